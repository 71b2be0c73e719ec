"""``restante user``: create users, and manage passwords and permissions."""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from restante.app import stores
from restante.auth.throttle import Throttle
from restante.auth.users import Users
from restante.config import load
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
    assert (found.code, found.err) == (78, f"restante user: {file}: invalid UTF-8\n")
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
    """Simulate a user who types these answers, one for each prompt; None is Ctrl-D."""
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


def test_stopping_at_a_question_ends_its_line(
    restante: Restante, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert restante("user", "add", "ann").err == "\nrestante user: stopped\n"


def test_no_password_at_all_names_the_ways_to_give_one(restante: Restante) -> None:
    found = restante("user", "add", "ann")
    assert found.code == 64
    assert "use --password-file or --generate" in found.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add", "ann"], 73, "user 'ann' already exists"),
        (["add", "ANN"], 73, "user 'ann' already exists"),
        (["add", "a/b"], 64, "must not contain '/'"),
        (["add", "-x"], 64, ""),
        (["add", "bob smith"], 64, "no space"),
        (["add", "\uff42ob"], 64, "use bob"),
        (["passwd", "bob"], 67, "no such user: 'bob'"),
    ],
)
def test_impossible_requests_are_refused_before_the_password_prompt(
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


@pytest.mark.parametrize("password", [b"\n", b"x" * 1025 + b"\n", b"a\0b\n"])
def test_an_impossible_password_is_refused(
    restante: Restante, password: bytes, state: Path
) -> None:
    found = restante("user", "add", "ann", stdin=password)
    assert found.code == 64
    assert "a password must have 1 to 1024 octets" in found.err
    assert restante("user", "list").out == ""


def test_a_name_is_kept_in_its_normal_form(restante: Restante) -> None:
    assert restante("user", "add", "ANN@Example.ORG", "--json", stdin=b"pw").json["name"] == (
        "ann@example.org"
    )
    heads, row = restante("user", "list").out.splitlines()
    assert heads.split() == ["USER", "CREATED", "LOGINS"]
    assert re.fullmatch(r"ann@example\.org  \d{4}-\d\d-\d\d  allowed", row)


def test_disable_and_enable(restante: Restante, ann: str, state: Path) -> None:
    assert restante("user", "disable", "Ann").code == 0
    assert not may_log_in(state, "tan staaf")
    assert restante("user", "list").out.endswith("  disabled\n")
    assert restante("user", "enable", "ann").code == 0
    assert may_log_in(state, "tan staaf")


def test_the_list_for_programs(restante: Restante, ann: str) -> None:
    (row,) = restante("user", "list", "--json").json["users"]
    assert row.items() >= {"name": "ann", "enabled": True, "networks": []}.items()


def test_an_empty_list_names_the_next_step(restante: Restante) -> None:
    found = restante("user", "list")
    assert (found.code, found.out) == (0, "")
    assert "Create one: restante user add ann" in found.err


def test_rm_asks(
    restante: Restante, ann: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert restante("user", "rm", "ann").code == 64
    assert may_log_in(state, "tan staaf")
    typed(monkeypatch, "n", "y")
    assert restante("user", "rm", "ann").code == 0
    assert restante("user", "rm", "ann").code == 0
    assert not may_log_in(state, "tan staaf")


@pytest.mark.parametrize("verb", ["enable", "disable", "rm"])
def test_unknown_user_is_an_error(restante: Restante, ann: str, verb: str) -> None:
    more = ["--yes"] if verb == "rm" else []
    found: Outcome = restante("user", verb, "bob", *more)
    assert (found.code, found.err) == (67, "restante user: no such user: 'bob'\n")


def test_unusable_state_directory_is_an_error_on_one_line(restante: Restante, state: Path) -> None:
    state.write_text("a file, where a directory should be")
    found = restante("user", "add", "ann", stdin=b"pw\n")
    assert found.code == 74
    assert str(state) in found.err
    assert len(found.err.splitlines()) == 1


def test_a_password_is_never_an_argument(restante: Restante) -> None:
    """All users of a machine can read the arguments of programs."""
    assert restante("user", "add", "ann", "tan staaf").code == 64


# App passwords.


def test_an_app_password_is_made_shown_once_listed_and_revoked(
    restante: Restante, ann: str, state: Path
) -> None:
    found = restante("user", "app-password", "new", "ANN", "phone")
    assert found.code == 0
    password = found.out.removesuffix("\n")
    heads, row = restante("user", "app-password", "list", "ann").out.splitlines()
    assert heads.split() == ["APP-PASSWORD", "CREATED", "USED", "FROM"]
    assert re.fullmatch(r"phone +\d{4}-\d\d-\d\d  never", row)
    assert may_log_in(state, password)
    assert restante("user", "app-password", "revoke", "ann", "phone").code == 0
    assert not may_log_in(state, password)
    found = restante("user", "app-password", "list", "ann")
    assert (found.out, "Create one: restante user app-password new ann" in found.err) == ("", True)


def test_a_use_in_the_future_is_one_of_an_unknown_time(
    restante: Restante, ann: str, state: Path
) -> None:
    restante("user", "app-password", "new", "ann", "phone")
    with closing(sqlite3.connect(state / "users.sqlite3")) as database, database:
        ahead = time.time() + 300 * 86_400
        database.execute("UPDATE credentials SET used_at = ?, used_from = '192.0.2.7'", (ahead,))
    shown = restante("user", "app-password", "list", "ann").out
    assert shown.endswith("  while the clock was wrong  192.0.2.7\n")


def test_app_passwords_for_programs(restante: Restante, ann: str) -> None:
    made = restante("user", "app-password", "new", "ann", "phone", "--json").json
    assert made.keys() == {"schema", "name", "label", "password"}
    (row,) = restante("user", "app-password", "list", "ann", "--json").json["app_passwords"]
    assert row.keys() == {"label", "created", "used", "used_from"}
    assert restante("user", "app-password", "revoke", "ann", "phone", "--json").json == {
        "schema": "restante/app-password-revoke/1",
        "name": "ann",
        "label": "phone",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["new", "bob", "phone"], 67, "no such user"),
        (["new", "ann", "phone"], 73, "app password 'phone' already exists"),
        (["new", "ann", "password"], 64, "must have 1 to 64"),
        (["list", "bob"], 67, "no such user"),
        (["revoke", "ann", "tablet"], 67, "ann has no app password 'tablet'"),
        (["revoke", "ann", "password"], 67, "no app password"),
    ],
)
def test_app_password_errors_are_explained(
    restante: Restante, ann: str, arguments: list[str], code: int, words: str
) -> None:
    restante("user", "app-password", "new", "ann", "phone")
    found = restante("user", "app-password", *arguments)
    assert found.code == code
    assert words in found.err


# Permissions.


def test_permit_changes_only_the_named_permissions(restante: Restante, ann: str) -> None:
    restante("user", "permit", "ann", "--network", "192.0.2.0/24", "2001:db8::/32", "--tls")
    restante("user", "permit", "ANN", "--mechanism", "scram-sha-256", "--login-delay", "5min")
    restante("user", "permit", "ann", "--read-only", "--no-tls", "--expire", "90d")
    found = restante("user", "show", "ann", "--json").json
    assert found == {
        "schema": "restante/user-show/1",
        "name": "ann",
        "enabled": True,
        "networks": ["192.0.2.0/24", "2001:db8::/32"],
        "mechanisms": ["SCRAM-SHA-256"],
        "needs_tls": False,
        "read_only": True,
        "login_delay": 300.0,
        "expire": 90,
        "folders": [],
        "quota": None,
        "hold": None,
        "app_passwords": [],
    }
    restante("user", "permit", "ann", "--network", "any", "--mechanism", "any", "--no-read-only")
    text = restante("user", "show", "ann").out
    for words in ("logins", "allowed", "networks      any", "mechanisms    any", "300 s"):
        assert words in text
    assert "90 days" in text
    restante("user", "permit", "ann", "--expire", "any")
    assert restante("user", "show", "ann", "--json").json["expire"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--network", "x"],
        ["--network", "10.0.0.1/8"],
        ["--login-delay", "soon"],
        ["--expire", "12h"],
        ["--expire", "0"],
    ],
)
def test_a_permission_that_means_nothing_is_refused(
    restante: Restante, ann: str, arguments: list[str]
) -> None:
    assert restante("user", "permit", "ann", *arguments).code == 64
    assert restante("user", "show", "bob").code == 67


@pytest.mark.parametrize(
    ("permission", "question", "reason"),
    [
        ([], ["192.0.2.7"], None),
        ([], ["192.0.2.7", "--clear"], "clear"),
        (["--network", "192.0.2.0/24"], ["192.0.2.7"], None),
        (["--network", "192.0.2.0/24"], ["198.51.100.7"], "network"),
        (["--network", "192.0.2.0/24"], ["2001:db8::1"], "network"),
        (["--mechanism", "scram-sha-256"], ["192.0.2.7", "--mechanism", "plain"], "mechanism"),
        (["--mechanism", "scram-sha-256"], ["::1", "--mechanism", "scram-sha-256"], None),
        ([], ["::1", "--mechanism", "scram-sha-256-plus"], "not-offered"),
        (
            ["--mechanism", "scram-sha-256-plus"],
            ["::1", "--mechanism", "scram-sha-256"],
            "mechanism",
        ),
        (["--tls"], ["10.0.0.1", "--clear"], "needs-tls"),
    ],
)
def test_why_gives_the_reason_of_a_refusal(
    restante: Restante,
    ann: str,
    permission: list[str],
    question: list[str],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESTANTE__AUTH__ALLOW_PLAINTEXT_FROM", "10.0.0.0/8")
    assert restante("user", "permit", "ann", *permission).code == 0
    found = restante("auth", "why", "ann", *question, "--json")
    assert (found.code, found.json["reason"]) == (77 if reason else 0, reason)
    text = restante("auth", "why", "ann", *question).out
    assert (". Run: " in text or "see auth." in text) == (reason is not None)


def test_why_distinguishes_disabled_and_unknown_users(restante: Restante, ann: str) -> None:
    restante("user", "disable", "ann")
    found = restante("auth", "why", "ann", "::1")
    reported, _, facts = found.out.partition("\n")
    assert (
        reported
        == "ann (back end: users) is refused: the user is disabled. Run: restante user enable ann"
    )
    assert facts == (
        "::1: a new network for this user, 0 recent failed guesses; "
        "a wrong password is answered after 2.0 s\n"
    )
    assert restante("auth", "why", "bob", "::1").code == 67
    assert restante("auth", "why", "ann", "nowhere").code == 64


def test_why_reports_password_spraying(restante: Restante, ann: str, state: Path) -> None:
    with closing(Throttle()) as throttle:
        for number in range(12):
            address = f"198.51.{number}.1"
            throttle.record_failure(
                Credentials("PLAIN", f"user{number}", "Winter2026", address=address)
            )
        throttle.save(state / "guesses")
    reported = restante("auth", "why", "ann", "::1").out.splitlines()
    assert reported[0] == "ann (back end: users): a correct password is accepted from ::1"
    assert "a wrong password is answered after 2.0 s" in reported[1]
    assert reported[2] == (
        "password spraying: 3 recent attempts with the same passwords for many users; "
        "attempts with these passwords are answered after 7.0 s from any address"
    )
    found = restante("auth", "why", "ann", "::1", "--json").json
    assert found["allowed"] is True
    assert found["sprayed"] == pytest.approx(3, abs=0.1)
    assert found["sprayed_delay"] == 7.0


def test_user_has_a_separate_quota(restante: Restante, ann: str) -> None:
    def quota() -> object:
        return restante("user", "show", "ann", "--json").json["quota"]

    assert quota() is None
    for size, octets, words in (
        ("2GiB", 2**31, "2 GiB"),
        ("none", 0, "none"),
        ("default", None, "as configured"),
    ):
        assert words in restante("user", "quota", "ann", size).err
        assert quota() == octets
        assert f"  quota         {words}\n" in restante("user", "show", "ann").out


@pytest.mark.parametrize(
    ("name", "size", "code"), [("bob", "1GiB", 67), ("ann", "much", 64), ("ann", "-1", 64)]
)
def test_a_quota_that_cannot_be(
    restante: Restante, ann: str, name: str, size: str, code: int
) -> None:
    assert restante("user", "quota", "--", name, size).code == code


@pytest.mark.parametrize("word", ["default", "any"])
def test_folders_that_a_user_sees_as_one(word: str, restante: Restante, ann: str) -> None:
    """``any`` is the former word, and still works."""
    assert restante("user", "permit", "ann", "--folder", "INBOX", "Lists.Python").code == 0
    assert restante("user", "show", "ann", "--json").json["folders"] == ["INBOX", "Lists.Python"]
    assert "  folders       INBOX, Lists.Python\n" in restante("user", "show", "ann").out
    assert restante("user", "permit", "ann", "--folder", "../bob").code != 0
    assert restante("user", "permit", "ann", "--folder", word).code == 0
    assert restante("user", "show", "ann", "--json").json["folders"] == []
    assert restante("user", "permit", "ann", "--expire", "90d").code == 0
    assert restante("user", "show", "ann", "--json").json["expire"] == 90
    assert restante("user", "permit", "ann", "--expire", word).code == 0
    assert restante("user", "show", "ann", "--json").json["expire"] is None


@pytest.mark.parametrize(
    ("time", "seconds", "words"),
    [
        ("30d", 30 * 86_400, "held 30 days"),
        ("0", 0, "destroyed immediately"),
        ("keep", "keep", "kept in the maildrop"),
        ("default", None, "held as configured"),
    ],
)
def test_user_has_a_separate_hold(
    restante: Restante, ann: str, time: str, seconds: object, words: str
) -> None:
    assert restante("user", "hold", "ann", "1d").code == 0
    assert words in restante("user", "hold", "ann", time).err
    assert restante("user", "show", "ann", "--json").json["hold"] == seconds
    assert f"  deleted mail  {words}\n" in restante("user", "show", "ann").out
    held = stores.store(load()).hold("ann")
    assert held == (14 * 86_400 if seconds is None else math.inf if seconds == "keep" else seconds)


def test_a_time_for_deleted_mail_that_cannot_be(restante: Restante, ann: str) -> None:
    assert restante("user", "hold", "ann", "soon").code == 64
    assert restante("user", "hold", "eve", "keep").code == 67


def test_a_database_that_cannot_be_used_is_named(restante: Restante, state: Path) -> None:
    """In local output, but never to a peer."""
    database = state / "users.sqlite3"
    found = restante("deliver", "ann", stdin=b"Subject: hi\n\nhi\n")
    words = "user database cannot be used"
    hint = f"{database} does not exist; run: restante user add ann"
    assert (found.code, found.err) == (75, f"restante deliver: {words}: {hint}\n")
    state.mkdir(parents=True)
    database.write_bytes(b"no database" * 100)
    found = restante("user", "list")
    assert found.err == f"restante user: {words}: {database}: file is not a database\n"
