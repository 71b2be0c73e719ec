"""Plain English: words that this project does not use, in sources, docs, help and tests.

``tests/english.txt`` counts the uses that are left in each file.  Its numbers may only fall.
After removing some, and after moving a file, run ``python -m tests.test_english``.  Git merges
the table by keeping the lines of both sides; then the lower number of a file counts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
TABLE = Path(__file__).with_name("english.txt")

# Word → what to write instead.
WORDS = {
    "nobody": "no user, no client, no other program",
    "somebody": "a user, a client, a sender",
    "whoever": "clients that, users who",
    "everybody": "all users, all clients",
    "anybody": "any user, any client",
    "whom": "name the role",
    "whence": "source, the address of",
    "anew": "again",
    "so many": "at most N, a number of",
    "is none": "missing, invalid, there is no",
    "are none": "missing, invalid, there are no",
    "tell": "print, show, report, log",
    "tells": "prints, shows, reports, logs",
    "told": "printed, shown, reported, logged",
    "wants": "requires, needs, expects",
    "by itself": "automatically",
    "lies ready": "is ready, is cached",
    "stands in": "is in, replaces",
    "for nothing": "needlessly, free of charge",
    "in vain": "without success",
    "a person": "a user",
}

# Part of a path, text around the word, reason.
EXCEPTIONS = (
    ("", r"(?:\.|def )tell\((?:\)|self)", "a method of files in Python"),
    ("first-server.md", r"(?m)^Wants=", "a setting of systemd"),
    ("foreign/fetchmail.py", r'"wants"', "a word of fetchmail's configuration"),
    ("collect/", r"\b(?:FROM|INTO|TABLE) told\b|\"told\"", "a table of the ledger, never renamed"),
    ("src/restante/auth/", r'"[\w=-]*nobody"', "users in directories and PAM, a reason in the log"),
)

# Words that make a test name a clause without a subject: it must be a statement of a fact.
HEADLESS = {"what", "whatever"}

# "is None" is Python, so these two are not matched in any other case.
_EXACT = "|".join(rf"[{word[0].upper()}{word[0]}]{word[1:]}" for word in WORDS if "none" in word)
_OTHERS = "|".join(word for word in WORDS if "none" not in word)
_WORD = re.compile(rf"\b(?:(?i:{_OTHERS})|{_EXACT})\b".replace(" ", r"\s+"))
_TEST = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
_HEADLESS = re.compile(rf"\b(?:{'|'.join(HEADLESS)})\b|^(?:who|whose|which|such)\b")
_STRING = re.compile(r'"{3}(.*?)"{3}', re.DOTALL)
_COMMENT = re.compile(r"(?:^ *|  )(#.*)$", re.MULTILINE)
_TEST_REFERENCE = re.compile(r"\btest_\w+")
_GENERATED = "<!-- Made by docs/generate.py"
_RUN = "run: python -m tests.test_english"


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Return each path and the text to check; identifiers are split into words."""
    return tuple(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for path in (HOUSE / "src").rglob("*.py"):
        yield _relative(path), _words(path.read_text())
    for path in (HOUSE / "tests").rglob("*.py"):
        if path != Path(__file__):
            source = path.read_text()
            yield _relative(path), _words("\n".join([*_TEST.findall(source), *prose(source)]))
    pages = [HOUSE / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "dev")]
    docs = HOUSE / "docs"
    pages += [page for suffix in ("md", "toml", "py") for page in docs.rglob(f"*.{suffix}")]
    for page in pages:
        text = page.read_text()
        # Decisions are history; generated pages have their text from the sources.
        if docs / "decisions" not in page.parents and not text.startswith(_GENERATED):
            yield _relative(page), _words(_TEST_REFERENCE.sub("", text))


def prose(source: str) -> Iterator[str]:
    """Yield the docstrings and the comments of a module."""
    # Parsing would take ten times as long; every string in three quotes is matched to skip others.
    for match in _STRING.finditer(source):
        if not source[source.rfind("\n", 0, match.start()) + 1 : match.start()].strip():
            yield match[1]
    yield from _COMMENT.findall(source)


def _relative(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def _words(text: str) -> str:
    return text.replace("_", " ")


def hits(path: str, text: str) -> list[str]:
    """Return each use that no exception covers, with some text around it."""
    for part, pattern, _ in EXCEPTIONS:
        if part in path:
            text = re.sub(pattern, "", text)
    return [_describe(text, found) for found in _WORD.finditer(text)]


def _describe(text: str, found: re.Match[str]) -> str:
    instead = WORDS[" ".join(found[0].lower().split())]
    around = " ".join(text[max(0, found.start() - 30) : found.end() + 30].split())
    return f"{around}  (write: {instead})"


@cache
def uses() -> dict[str, list[str]]:
    """Return the uses in each file that has any."""
    return {path: found for path, text in sorted(texts()) if (found := hits(path, text))}


def table() -> dict[str, int]:
    """Return the number of uses that each file may still have."""
    allowed: dict[str, int] = {}
    for line in TABLE.read_text().splitlines():
        number, path = line.split()
        allowed[path] = min(int(number), allowed.get(path, int(number)))
    return allowed


def problems(found: dict[str, list[str]], allowed: dict[str, int]) -> Iterator[str]:
    """Yield what does not agree with the table."""
    for path in sorted(found.keys() | allowed.keys()):
        uses_here, number = found.get(path, []), allowed.get(path, 0)
        if len(uses_here) > number:
            listed = "".join(f"\n    {use}" for use in uses_here)
            yield f"{path} has {len(uses_here)} of these words, at most {number} allowed:{listed}"
        elif len(uses_here) < number:
            yield f"{path}: lower the number from {number} to {len(uses_here)}; {_RUN}"


def test_text_has_no_unwanted_words() -> None:
    assert "\n".join(problems(uses(), table())) == ""


def test_test_names_are_statements() -> None:
    names = [
        f"{_relative(path)}: {name}"
        for path in (HOUSE / "tests").rglob("*.py")
        for name in _TEST.findall(path.read_text())
        if _HEADLESS.search(_words(name.removeprefix("test_")))
    ]
    assert names == []


def test_prose_of_tests_is_their_docstrings_and_comments() -> None:
    quotes = '"' * 3
    source = f"{quotes}One.{quotes}\nX = {quotes}two\n{quotes}\n# three\nY = 4  # four\n"
    source += f"def f():\n    {quotes}Five.\n\n    Six.{quotes}\n"
    assert list(prose(source)) == ["One.", "Five.\n\n    Six.", "# three", "# four"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Nobody is told\n    anew.", 3),
        ("if x is None: return", 0),
        ("there is\n    none", 1),
        ("def nobodys(): tells_told", 2),
        ("file.tell()", 0),
        ("At most so\nmany; toldo", 1),
        ("for_nothing", 1),
    ],
)
def test_words_are_found_in_sentences_and_names(text: str, number: int) -> None:
    assert len(hits("src/x.py", _words(text))) == number


def test_more_and_fewer_uses_than_in_the_table_are_reported() -> None:
    more, fewer, removed = problems(
        {"a": ["told"], "b": ["told"], "c": ["x"]}, {"b": 2, "c": 1, "d": 1}
    )
    assert more.startswith("a has 1 of these words, at most 0 allowed:\n    told")
    assert fewer.startswith("b: lower the number from 2 to 1")
    assert removed.startswith("d: lower the number from 1 to 0")


def test_every_exception_is_needed_and_has_a_reason() -> None:
    checked = texts()
    for part, pattern, reason in EXCEPTIONS:
        assert reason
        assert any(part in path and re.search(pattern, text) for path, text in checked), pattern


def lower() -> str:
    """Rewrite the table, and return what prevents it; a moved file takes its uses along."""
    found, allowed = uses(), table()
    more = {path: list_ for path, list_ in found.items() if len(list_) > allowed.get(path, 0)}
    if any((HOUSE / path).exists() and path in allowed for path in more) or sum(
        map(len, found.values())
    ) > sum(allowed.values()):
        return "\n".join(problems(more, {path: n for path, n in allowed.items() if path in more}))
    TABLE.write_text("".join(f"{len(list_)} {path}\n" for path, list_ in found.items()))
    return ""


if __name__ == "__main__":
    sys.exit(lower() or 0)
