"""Requirements of the RFCs, and the tests that refer to them."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parent.parent
_ID = re.compile(r"[PN]-\d{2,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A requirement in ``docs/rfc.toml``, which explains the fields."""

    id: str
    level: str
    sources: tuple[str, ...]
    side: str
    text: str
    refused: str = ""
    not_yet: str = ""


def requirements() -> list[Requirement]:
    return [
        Requirement(
            id=name,
            level=table["level"],
            sources=tuple(table["from"]),
            side=table["side"],
            text=table["text"],
            refused=table.get("refused", ""),
            not_yet=table.get("not-yet", ""),
        )
        for name, table in _read().items()
        if name != "also"
    ]


def areas() -> dict[str, str]:
    """Return the areas, by the first requirement of each."""
    text = (HOUSE / "docs" / "rfc.toml").read_text()
    return {match[2]: match[1] for match in re.finditer(r"^# (.+)\n\n\[(.+)\]$", text, re.M)}


def sections() -> set[str]:
    """Return every section that may be cited, such as ``1939 §5``."""
    also = {f"{rfc} §{section}" for rfc, found in _read()["also"].items() for section in found}
    return also.union(*(each.sources for each in requirements()))


def _read() -> dict[str, Any]:
    return tomllib.loads((HOUSE / "docs" / "rfc.toml").read_text())


@cache
def named() -> dict[str, list[str]]:
    """Return the tests for each requirement: ``tests/x.py::test_y``, or a transcript."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((HOUSE / "tests").rglob("*.py")):
        text = path.read_text()
        for name, where in _in_module(ast.parse(text)) if ".rfc(" in text else ():
            found[name].append(f"{path.relative_to(HOUSE).as_posix()}{where}")
    for path in sorted((HOUSE / "tests" / "transcripts").rglob("*.txt")):
        for name in _in_transcript(path.read_text()):
            found[name].append(path.relative_to(HOUSE).as_posix())
    return found


def _in_module(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield marks of a test, then those of its module or parameters."""
    owned: set[ast.AST] = set()
    for test in ast.walk(tree):
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in test.decorator_list:
                owned.update(ast.walk(decorator))
                yield from ((name, f"::{test.name}") for name in _marks(decorator))
    for call in ast.walk(tree):
        if call not in owned and isinstance(call, ast.Call):
            yield from ((name, "") for name in _arguments(call))


def _marks(tree: ast.AST) -> Iterator[str]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            yield from _arguments(call)


def _arguments(call: ast.Call) -> Iterator[str]:
    is_near = isinstance(call.func, ast.Attribute) and call.func.attr == "rfc"
    if is_near and ast.unparse(call.func) == "pytest.mark.rfc":
        for argument in call.args:
            assert isinstance(argument, ast.Constant), "a requirement is named in plain text"
            yield str(argument.value)


def _in_transcript(text: str) -> Iterator[str]:
    """Yield the names in the first lines of a transcript."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        words = line.removeprefix("#").split()
        if words and all(_ID.fullmatch(word) for word in words):
            yield from words
