"""``restante user``: who may log in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from restante.auth.users import Users
from restante.errors import AuthenticationFailed
from restante.passdb import Credentials

from .conftest import Input, Outcome, Restante


def may_log_in(state: Path, password: str, user: str = "ann") -> bool:
    users = Users(state / "users.sqlite3")
    try:
        account = asyncio.run(users.verify(Credentials("PLAIN", user, password)))
    except AuthenticationFailed:
        return False
    return account.refusal("127.0.0.1") is None


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\nsecond line\n"])
def test_the_password_is_the_first_line(restante: Restante, state: Path, end: bytes) -> None:
    assert restante("user", "add", "ann", stdin=b" tan staaf " + end).code == 0
    assert may_log_in(state, " tan staaf ")


def test_the_password_may_be_in_a_file(restante: Restante, state: Path, home: Path) -> None:
    file = home / "secret"
    file.write_text("tan staaf\nmore")
    assert restante("user", "add", "ann", "--password-file", file).code == 0
    assert may_log_in(state, "tan staaf")
    file.write_bytes(b"\xff\n")
    found = restante("user", "passwd", "ann", "--password-file", file)
    assert (found.code, found.err) == (78, f"restante user: {file}: is not UTF-8 text\n")
    found = restante("user", "passwd", "ann", "--password-file", home / "none")
    assert found.err == f"restante user: {home / 'none'}: No such file or directory\n"


def test_a_password_is_made_and_is_the_result(restante: Restante, state: Path) -> None:
    found = restante("user", "add", "ann", "--generate")
    assert may_log_in(state, found.out.removesuffix("\n"))
    found = restante("user", "passwd", "ann", "--generate", "--json")
    assert found.json.keys() == {"schema", "name", "password"}
    assert may_log_in(state, found.json["password"])


def test_a_password_that_was_given_is_not_shown(restante: Restante) -> None:
    found = restante("user", "add", "ann", stdin=b"tan staaf\n")
    assert "staaf" not in found.out + found.err
    found = restante("user", "passwd", "ann", "--json", stdin=b"tan staaf\n")
    assert found.json == {"schema": "restante/user-passwd/1", "name": "ann"}


def typed(monkeypatch: pytest.MonkeyPatch, *words: str | None) -> None:
    """Somebody at a terminal types these, one at each question; None is Ctrl-D."""
    answers = iter(words)

    def answer(_: str) -> str:
        word = next(answers)
        if word is None:
            raise EOFError
        return word

    monkeypatch.setattr("restante.cli.user.getpass", answer)
    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(Input, "is_terminal", True)


def test_a_password_is_typed_twice(
    restante: Restante, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "tan staaf", "tan staaf", "one", "two", None)
    assert restante("user", "add", "ann").code == 0
    assert may_log_in(state, "tan staaf")
    found = restante("user", "passwd", "ann")
    assert (found.code, "differ; nothing was changed" in found.err) == (64, True)
    found = restante("user", "passwd", "ann")
    assert (found.code, found.err) == (130, "restante user: stopped\n")
    assert may_log_in(state, "tan staaf")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add", "ann"], 73, "user 'ann' exists already"),
        (["add", "ANN"], 73, "user 'ann' exists already"),
        (["add", "a/b"], 64, "no '/'"),
        (["add", "-x"], 64, ""),
        (["add", "bob smith"], 64, "no space"),
        (["passwd", "bob"], 67, "no such user: 'bob'"),
    ],
)
def test_what_cannot_be_is_told_before_a_password_is_asked_for(
    restante: Restante,
    ann: str,
    arguments: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed(monkeypatch)
    found = restante("user", *arguments)
    assert found.code == code
    assert words in found.err


@pytest.mark.parametrize("password", [b"", b"\n", b"x" * 1025 + b"\n", b"a\0b\n"])
def test_an_impossible_password_is_refused(
    restante: Restante, password: bytes, state: Path
) -> None:
    found = restante("user", "add", "ann", stdin=password)
    assert found.code == 64
    assert "a password has 1 to 1024 octets" in found.err
    assert restante("user", "list").out == ""


def test_a_name_is_kept_in_its_normal_form(restante: Restante) -> None:
    assert restante("user", "add", "ANN@Example.ORG", "--json", stdin=b"pw").json["name"] == (
        "ann@example.org"
    )
    assert restante("user", "list").out == "ann@example.org\n"


def test_disable_and_enable(restante: Restante, ann: str, state: Path) -> None:
    assert restante("user", "disable", "Ann").code == 0
    assert not may_log_in(state, "tan staaf")
    assert restante("user", "list").out == "ann  (disabled)\n"
    assert restante("user", "enable", "ann").code == 0
    assert may_log_in(state, "tan staaf")


def test_the_list_for_programs(restante: Restante, ann: str) -> None:
    (row,) = restante("user", "list", "--json").json["users"]
    assert row.items() >= {"name": "ann", "enabled": True, "networks": []}.items()


def test_an_empty_list_names_the_next_step(restante: Restante) -> None:
    found = restante("user", "list")
    assert (found.code, found.out) == (0, "")
    assert "next: restante user add NAME" in found.err


def test_rm_asks(
    restante: Restante, ann: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert restante("user", "rm", "ann").code == 64
    assert may_log_in(state, "tan staaf")
    typed(monkeypatch, "n", "y")
    assert restante("user", "rm", "ann").code == 64
    assert restante("user", "rm", "ann").code == 0
    assert not may_log_in(state, "tan staaf")


@pytest.mark.parametrize("verb", ["enable", "disable", "rm"])
def test_nobody_of_that_name(restante: Restante, ann: str, verb: str) -> None:
    more = ["--yes"] if verb == "rm" else []
    found: Outcome = restante("user", verb, "bob", *more)
    assert (found.code, found.err) == (67, "restante user: no such user: 'bob'\n")


def test_a_place_where_nothing_can_be_made_is_told(restante: Restante, state: Path) -> None:
    state.write_text("a file, where a directory should be")
    found = restante("user", "add", "ann", stdin=b"pw\n")
    assert found.code == 74
    assert found.err.startswith(f"restante user: {state}")
    assert len(found.err.splitlines()) == 1


def test_a_password_is_never_an_argument(restante: Restante) -> None:
    """Every user of the machine can read the arguments of a program."""
    assert restante("user", "add", "ann", "tan staaf").code == 64
