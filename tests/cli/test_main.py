"""Common behaviour of all verbs: exit codes, error messages, output streams."""

from __future__ import annotations

import argparse
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import restante as package
from restante import errors
from restante.app import failures, privileges
from restante.auth.names import BadName
from restante.auth.users import BadPassword, NameTaken
from restante.cli import common

from .conftest import Restante, program

VERBS = [
    "demo",
    "serve",
    "user",
    "auth",
    "maildrop",
    "deliver",
    "fetch",
    "account",
    "collect",
    "check",
]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("x"), 78),
        (errors.CannotListen("x"), 69),
        (errors.NoSuchUser("x"), 67),
        (NameTaken("x"), 73),
        (BadName("x"), 64),
        (BadPassword("x"), 64),
        (errors.UnsafeArgument("x"), 64),
        (errors.MessageRefused("x"), 65),
        (errors.MessageTooLarge(1), 65),
        (errors.TemporaryFailure("x"), 75),
        (errors.MaildropInUse(1), 75),
        (errors.ConnectionLost("x"), 75),
        (errors.DeadlineExceeded("x"), 75),
        (errors.ProtocolBroken("x"), 76),
        (errors.LoginFailed("PASS", "x", "AUTH"), 77),
        (errors.LoginFailed("PASS", "x", "IN-USE"), 75),
        (errors.TLSUnavailable("x"), 77),
        (errors.AuthenticationFailed(), 77),
        (errors.PermanentFailure("x"), 78),
        (errors.CommandFailed("RETR", "x", None), 69),
        (OSError(errno.EACCES, "x"), 74),
        (OSError(errno.ENOSPC, "x"), 75),
        (KeyboardInterrupt(), 130),
        (EOFError(), 130),
        (ValueError("x"), 70),
    ],
)
def test_each_error_has_its_exit_code(error: BaseException, code: int) -> None:
    """sysexits.h; an error that may pass is 75, whatever its type."""
    assert failures.exit_code(error) == code


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "stopped"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (errors.NoSuchUser("x"), "no such user: 'x'"),
        (ValueError("odd"), "a bug in restante: ValueError: odd"),
    ],
)
def test_error_is_printed_on_one_line(error: BaseException, words: str) -> None:
    assert failures.describe(error) == words


def test_without_a_verb_the_help_is_shown(restante: Restante) -> None:
    found = restante()
    assert found.code == 64
    assert found.err.startswith("usage: restante")
    assert found.out == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_fits_a_terminal(
    verb: str, restante: Restante, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = restante(verb, "--help")
    assert found.code == 0
    assert max(map(len, found.out.splitlines())) <= 80
    assert verb in restante("--help").out


def test_help_lists_every_verb_in_a_group(restante: Restante) -> None:
    lines = restante("--help").out.splitlines()
    listed = {line.split()[0] for line in lines if re.match("  [a-z]", line)}
    assert listed >= {*VERBS, "import", "help"}
    for title in ("Serve:", "Users and mail:", "Collect from other servers:", "Check:"):
        assert title in lines


@pytest.mark.parametrize("words", [(), ("user",), ("user", "add"), ("maildrop", "restore")])
def test_help_verb_is_the_help_option(words: tuple[str, ...], restante: Restante) -> None:
    done = restante("help", *words)
    assert (done.code, done.err) == (0, "")
    assert done.out == restante(*words, "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "restante: unknown command: 'serv'; did you mean serve?"),
        (["user", "ad", "x"], "restante user: unknown action: 'ad'; did you mean add?"),
        (["user", "list", "--jsn"], "unknown argument: --jsn; did you mean --json?"),
        (["--vrsion"], "restante: unknown argument: --vrsion; did you mean --version?"),
        (["help", "mildrop"], "restante: unknown command: 'mildrop'; did you mean maildrop?"),
        (["xyz"], "restante: unknown command: 'xyz'; choose from demo, init, serve"),
        (["maildrop", "undelet", "ann"], "unknown action: 'undelet'; choose from list, show"),
        (["user", "list", "surplus"], "restante user list: unknown argument: surplus"),
    ],
)
def test_unknown_word_names_the_nearest_known_one(
    arguments: list[str], message: str, restante: Restante
) -> None:
    done = restante(*arguments)
    assert done.code == 64
    assert message in done.err
    assert "undelete" not in done.err


def test_wrong_url_is_refused_before_the_password_prompt(restante: Restante) -> None:
    found = restante("fetch", "http://ann@pop.example.org", "--to", "Mail")
    assert (found.code, "a POP3 URL is pop3s://user@host" in found.err) == (64, True)


def test_version_is_printed(restante: Restante) -> None:
    assert restante("--version").out == f"restante {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["serv"], ["user"], ["user", "ad", "x"], ["deliver"], ["check", "--x"], ["--x"]]
)
def test_a_wrong_command_line_is_64(arguments: list[str], restante: Restante) -> None:
    found = restante(*arguments)
    assert found.code == 64
    assert found.err.startswith("usage: ")


@pytest.mark.parametrize("arguments", [["--json", "user", "list"], ["user", "list", "--json"]])
def test_global_options_may_precede_or_follow_the_verb(
    arguments: list[str], restante: Restante
) -> None:
    assert restante(*arguments).json == {"schema": "restante/user-list/1", "users": []}


@pytest.mark.parametrize("option", ["-c", "-vc", "--config", "--conf"])
def test_file_with_the_name_of_a_verb_is_no_verb(
    option: str, restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    Path("deliver").touch()
    assert restante(option, "deliver", "--json", "user", "list").json["users"] == []


def test_the_configuration_may_be_named_after_the_verb(restante: Restante, home: Path) -> None:
    file = home / "x.toml"
    file.write_text("[log]\nlevl = 'info'")
    for arguments in (["-c", file, "check"], ["check", "-c", file]):
        found = restante(*arguments)
        assert found.code == 78
        assert f"{file}:2: log.levl: unknown option; did you mean level?" in found.err


def test_control_characters_of_others_are_escaped(restante: Restante) -> None:
    found = restante("deliver", "x\x1b[2J\u202e", stdin=b"hi\n")
    assert "\x1b" not in found.err
    assert "\u202e" not in found.err


def test_a_bug_is_70_and_shows_where(restante: Restante, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: argparse.Namespace) -> int:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(common, "configuration", broken)
    found = restante("check")
    assert found.code == 70
    assert "Traceback" in found.err
    assert found.err.endswith("restante check: a bug in restante: ZeroDivisionError: odd\n")


def test_verbose_shows_a_traceback(restante: Restante) -> None:
    assert "Traceback" not in restante("-c", "none", "check").err
    assert "Traceback" in restante("-v", "-c", "none", "check").err


# As separate processes: errors of the output.


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    """`restante check --example | head -1`"""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        found = program("check", "--example", stdout=writing)
    finally:
        os.close(writing)
    assert (found.code, found.err) == (0, "")


def test_output_that_cannot_be_written_is_74(home: Path) -> None:
    with open("/dev/full", "wb") as full:
        found = program("check", stdout=full)
    assert (found.code, found.err) == (75, "restante check: No space left on device\n")


def test_output_may_be_closed(home: Path) -> None:
    """`restante check >&-`"""
    assert (
        subprocess.run(
            ["sh", "-c", 'exec "$0" -m restante check >&-', sys.executable], timeout=30
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    "command",
    [("user", "list"), ("deliver", "ann"), ("maildrop", "list"), ("account", "list"), ("check",)],
)
def test_root_makes_nothing_that_the_server_cannot_read(
    restante: Restante, state: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """tests/app/test_privileges.py: which user root becomes, or why it is refused."""

    def refuse(config: object) -> None:
        raise errors.ConfigurationError("root does not know the server's user")

    monkeypatch.setattr(privileges, "server_account", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (state / "mail").mkdir(parents=True)
    found = restante(*command, stdin=b"Subject: hi\n\nhi\n")
    assert found.code == (75 if command[0] == "deliver" else 78)  # the mail server keeps it
    assert "root does not know the server's user" in found.err
    assert sorted(path.name for path in state.rglob("*")) == ["mail"]


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (OSError(errno.EACCES, "x"), 74),
        (OSError(errno.EROFS, "x"), 74),
        (OSError(errno.ENOTDIR, "x"), 74),
        (OSError(errno.ENOENT, "x"), 75),  # a disk may be mounted soon
        (OSError(errno.ENOSPC, "x"), 75),
        (OSError(errno.ECONNREFUSED, "x"), 75),
        (socket.gaierror(socket.EAI_NONAME, "x"), 68),
        (socket.gaierror(socket.EAI_AGAIN, "x"), 75),
        (None, 75),
    ],
)
def test_exit_code_75_means_that_a_retry_can_succeed(cause: OSError | None, code: int) -> None:
    for kind in (errors.TemporaryFailure, errors.ConnectionLost):
        error = kind("x")
        error.__cause__ = cause
        assert failures.exit_code(error) == code


def test_a_database_that_cannot_be_opened_is_not_75(
    restante: Restante, ann: str, state: Path
) -> None:
    (state / "users.sqlite3").write_text("not a database, and longer than its header" * 9)
    assert restante("user", "list").code == 74
