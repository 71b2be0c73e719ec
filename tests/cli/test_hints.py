"""A command that a message suggests can be pasted as it is."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import restante
from restante.app.tokens import Grant
from restante.cli import consent
from restante.cli.command import make_parser
from restante.cli.examples import EXAMPLES
from restante.collect.oauth import web
from restante.collect.oauth.errors import explain
from restante.config import OAuth, load
from restante.errors import ConsentNeeded

from .conftest import Restante

SOURCE = Path(restante.__file__).parent
VERBS = "|".join(sorted({verb.split()[0] for verb in EXAMPLES}))
# Behind a colon, or on a line of its own: what the reader is to run now.
SUGGESTED = re.compile(rf"(?::|\n)\s+(restante (?:{VERBS}) [^\n;`]*)")
# A text in capitals in place of a name: its command is only mentioned, or is completed elsewhere.
PLACEHOLDER = re.compile(rf"restante (?:{VERBS})\b[^\n;`]* [A-Z]{{3,}}(?![-\w])")
EXCUSED = {
    "collect/oauth/errors.py": "Grant.naming_command writes the account's name into it",
    "collect/oauth/web.py": "the same",
    "app/tokens.py": "this is where",
    "config/schema.py": "the manual of an option",
    "app/alert_texts.py": "the reader chooses the user",
    "app/doctor/backends.py": "the same",
    "app/doctor/files.py": "the same",
}


def texts(module: ast.Module) -> Iterator[str]:
    """Yield each text of a module but docstrings; a value inside is ``x``."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    documentation: set[int] = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    parts = {
        id(part)
        for node in ast.walk(module)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(shown, node.values))
        elif isinstance(node, ast.Constant) and id(node) not in documentation | parts:
            yield node.value if isinstance(node.value, str) else ""


def shown(part: ast.expr) -> str:
    """A piece of a text: ``x`` for a value, ``'x'`` for one that is quoted for a shell."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    return "'x'" if ast.unparse(part.value).startswith("quote(") else "x"


def all_texts() -> Iterator[tuple[str, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for text in texts(ast.parse(path.read_text())) if "restante " in path.read_text() else ():
            if "restante " in text:
                yield path.relative_to(SOURCE).as_posix(), text


TEXTS = list(all_texts())


def test_no_suggested_command_has_a_placeholder() -> None:
    found = {name for name, text in TEXTS if PLACEHOLDER.search(text)}
    assert found == EXCUSED.keys()


def suggestions(*modules: str) -> list[str]:
    """From all modules, or some."""
    return [
        match[1].partition(" < ")[0].rstrip(").")
        for name, text in TEXTS
        for match in SUGGESTED.finditer(text)
        if name not in EXCUSED and (name in modules or not modules)
        if not match[1].endswith(">")  # the sender's name in a From field
    ]


def test_every_suggested_command_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    found = suggestions()
    assert len(found) > 20
    for command in found:
        try:
            make_parser().parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")


def test_a_user_in_a_suggested_command_is_quoted(restante: Restante) -> None:
    """A user's name may have a quotation mark in it; an account's may not."""
    for module in ("user", "maildrop", "import_"):
        for command in suggestions(f"cli/{module}.py"):
            assert not re.search(r"(?<!')\bx\b", command), command
    name = "o'neil;x"
    assert restante("user", "add", name, stdin=b"tan staaf\n").code == 0
    assert restante("user", "permit", name, "--network", "192.0.2.0/24").code == 0
    done = restante("auth", "why", name, "198.51.100.1")
    hint = shlex.split(done.out.splitlines()[0].partition("Run: ")[2])
    assert hint == ["restante", "user", "permit", name, "--network", "any"]


def test_a_refused_sign_in_names_the_account(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``account auth``, and by a session that uses the tokens."""

    def refused(*_: object, **__: object) -> None:
        raise explain("access_denied", "")

    monkeypatch.setattr(consent, "_run_flow", refused)
    monkeypatch.setattr(web, "access_token", refused)
    options = OAuth(provider="google", client_id="id")
    grant = Grant(load(), "isp", "ann@example.org", options, is_destination=True)
    for attempt in (lambda: consent.sign_in(grant, "device"), grant.token):
        with pytest.raises(ConsentNeeded, match="run: restante account auth isp --to"):
            attempt()
