"""``restante deliver``: exit code 0 once the message is on disk, 75 in case of doubt."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from restante.app import backends, stores
from restante.config import ephemeral
from restante.threads import running_loop

from .conftest import Restante, program, started

MESSAGE = b"Subject: hello\n\nhi\n"


def stored(state: Path) -> list[bytes]:
    """Return every file in the maildrop of ann, including partial ones."""
    maildrop = state / "mail" / "ann"
    places = [maildrop / name for name in ("new", "cur", "tmp")]
    return [file.read_bytes() for place in places if place.exists() for file in place.iterdir()]


def test_a_message_is_in_the_maildrop(restante: Restante, ann: str, state: Path) -> None:
    found = restante("deliver", "ann", "--from", "bob@example.net", stdin=MESSAGE)
    assert (found.code, found.out, found.err) == (0, "", "")
    (octets,) = stored(state)
    assert octets.startswith(b"Return-Path: <bob@example.net>\r\n")
    assert octets.endswith(b"Subject: hello\r\n\r\nhi\r\n")


def test_the_result_for_programs(restante: Restante, ann: str, state: Path) -> None:
    found = restante("deliver", "ANN+lists", "--json", stdin=MESSAGE).json
    assert found.keys() == {"schema", "user", "unique_id", "size"}
    assert (found["user"], found["size"]) == ("ann", len(stored(state)[0]))


def test_a_from_line_is_not_mail(restante: Restante, ann: str, state: Path) -> None:
    restante("deliver", "ann", stdin=b"From bob Thu Jan  1 00:00:00 1970\n" + MESSAGE)
    assert b"From bob" not in stored(state)[0]


def not_toml(home: Path) -> None:
    (home / "config/restante").mkdir()
    (home / "config/restante/restante.toml").write_text("[server")


def no_users(home: Path) -> None:
    (home / "state/restante/users.sqlite3").unlink()


def no_database(home: Path) -> None:
    (home / "state/restante/users.sqlite3").write_text("not a database")


def no_maildrop(home: Path) -> None:
    (home / "state/restante/mail").rmdir()
    (home / "state/restante/mail").write_text("")


@pytest.mark.parametrize("trouble", [not_toml, no_users, no_database, no_maildrop])
def test_temporary_errors_bounce_no_mail(
    restante: Restante, ann: str, home: Path, trouble: Callable[[Path], None]
) -> None:
    """An MTA bounces the message for any exit code but 75."""
    (home / "state/restante/mail").mkdir()
    trouble(home)
    found = restante("deliver", "ann", stdin=MESSAGE)
    assert found.code == 75
    assert found.err.startswith("restante deliver: ")


def test_a_bug_bounces_nothing(
    restante: Restante, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(stores, "deliver", broken)
    found = restante("deliver", "ann", stdin=MESSAGE)
    assert (found.code, "ZeroDivisionError: odd" in found.err) == (75, True)


@pytest.mark.parametrize(
    ("user", "message", "code", "words"),
    [
        ("bob", MESSAGE, 67, "no such user: 'bob'"),
        ("ann", b"", 65, "no message on standard input"),
        ("ann", b"From bob\n", 65, "no message on standard input"),
        ("ann", b"x" * 1025, 65, "message larger than 1024 octets"),
        ("../ann", MESSAGE, 67, "no such user"),
    ],
)
def test_undeliverable_mail_is_bounced(
    restante: Restante,
    ann: str,
    user: str,
    message: bytes,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    state: Path,
) -> None:
    monkeypatch.setenv("RESTANTE__LIMITS__MESSAGE", "1KiB")
    found = restante("deliver", user, stdin=message)
    assert found.code == code
    assert words in found.err
    assert stored(state) == []


def test_a_full_maildrop_is_75_until_there_is_room(
    restante: Restante, ann: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTANTE__STORE__QUOTA", "2KiB")
    assert restante("deliver", "ann", stdin=b"x" * 1000).code == 0
    found = restante("deliver", "ann", stdin=b"x" * 1000)
    assert (found.code, "its quota is 2048 octets" in found.err) == (75, True)
    assert len(stored(state)) == 1
    assert restante("user", "quota", "ann", "1MiB").code == 0
    assert restante("deliver", "ann", stdin=b"x" * 1000).code == 0


def test_message_larger_than_the_quota_is_bounced(
    restante: Restante, ann: str, state: Path
) -> None:
    assert restante("user", "quota", "ann", "1000").code == 0
    found = restante("deliver", "ann", stdin=b"x" * 1000)
    assert (found.code, "larger than the whole quota of 1000" in found.err) == (65, True)
    assert stored(state) == []


@pytest.fixture(params=["full disk", "broken pipe"])
def unwritable(request: pytest.FixtureRequest) -> Iterator[int]:
    """A descriptor that nothing can be written to."""
    if request.param == "full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_exit_code_is_right_if_the_error_cannot_be_printed(
    ann: str, state: Path, unwritable: int, options: list[str]
) -> None:
    """An MTA bounces or loses mail for the wrong code."""
    found = program("deliver", "bob", *options, stdin=MESSAGE, stderr=unwritable)
    assert found.code == 67
    (state / "mail").mkdir()
    (state / "mail" / "ann").write_text("")
    found = program("deliver", "ann", *options, stdin=MESSAGE, stderr=unwritable)
    assert found.code == 75


def test_stored_message_is_not_delivered_again_if_the_result_cannot_be_printed(
    ann: str, state: Path, unwritable: int
) -> None:
    found = program("deliver", "ann", "--json", stdin=MESSAGE, stdout=unwritable)
    assert (found.code, found.err, len(stored(state))) == (0, "", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_half_way_stores_nothing(ann: str, state: Path, number: signal.Signals) -> None:
    with started("deliver", "ann") as process:
        assert process.stdin is not None
        process.stdin.write(b"Subject: hello\n\n" + b"x" * 200_000)
        process.stdin.flush()  # more than a pipe holds: it is reading, so it handles signals
        process.send_signal(number)
        assert process.wait(30) == 75
        assert b"stopped before the message was stored" in process.stderr.read()  # type: ignore[union-attr]
    assert stored(state) == []


def exit_code_of(script: str) -> int:
    """Run a program that delivers a message for ann by ``main``, and return its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", script, "deliver", "ann"],
        input=MESSAGE,
        capture_output=True,
        check=False,
        timeout=30,
    )
    return done.returncode


@pytest.mark.parametrize("descriptors", [3, 4, 5, 7, 9])
def test_lack_of_descriptors_at_any_step_bounces_no_mail(
    ann: str, state: Path, descriptors: int
) -> None:
    script = (
        "import resource, sys\n"
        "from restante.cli.main import main\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))\n"
        "sys.exit(main())\n"
    )
    assert exit_code_of(script) == (0 if stored(state) else 75)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_after_storing_does_not_change_the_exit_code(
    ann: str, state: Path, number: signal.Signals
) -> None:
    """The mail server would deliver the message again."""
    script = (
        "import os, sys, atexit\n"
        f"atexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
        "from restante.cli.main import main\n"
        "code = main()\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "sys.exit(code)\n"
    )
    assert (exit_code_of(script), len(stored(state))) == (0, 1)


def test_full_disk_is_exit_code_75_and_stores_nothing(
    ann: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on file sizes has the same effect: writing fails (EFBIG)."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # its file would be too large

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    found = program("deliver", "ann", stdin=b"x\n" * 200_000, preexec_fn=limit)
    assert found.code == 75
    assert len(found.err.splitlines()) == 1
    assert stored(state) == []


@pytest.mark.parametrize(
    ("given", "stored_as"),
    [
        ("bob@example.net", b"<bob@example.net>"),
        ("<bob@example.net>", b"<bob@example.net>"),
        ("<>", b"<>"),
        ("", b"<>"),
    ],
)
def test_addresses_may_stand_in_brackets(
    given: str, stored_as: bytes, restante: Restante, ann: str, state: Path
) -> None:
    """Some mail servers pass them like that (RFC 5321 §4.1.2, §4.4)."""
    assert restante("deliver", "<ann>", "--from", given, stdin=MESSAGE).code == 0
    (octets,) = stored(state)
    assert octets.startswith(b"Return-Path: %b\r\nDelivered-To: ann\r\n" % stored_as)


@pytest.mark.parametrize(
    ("chain", "has_loop"),
    [
        (("users",), False),
        (("passwd-file",), True),
        (("users", "passwd-file"), True),
        (("users", "pam"), True),
        (("ldap", "users"), True),
        (("oauth", "users"), True),
    ],
)
def test_back_ends_that_may_hang_have_an_event_loop_with_deadlines(
    chain: tuple[str, ...], has_loop: bool, tmp_path: Path
) -> None:
    async def ask() -> bool:
        return running_loop() is not None

    usual = ephemeral(tmp_path)
    config = replace(usual, auth=replace(usual.auth, chain=chain))
    assert backends.run(config, ask()) is has_loop


def test_user_of_a_passwd_file_gets_mail(restante: Restante, home: Path, state: Path) -> None:
    (home / "users").write_text("ann:{PLAIN}tan staaf\n")
    (home / "config/restante").mkdir(parents=True)
    (home / "config/restante/restante.toml").write_text(
        f'[auth]\nchain = ["passwd-file"]\n[auth.passwd_file]\npath = "{home}/users"\n'
    )
    assert restante("deliver", "ann+lists", stdin=MESSAGE).code == 0
    assert restante("deliver", "bob", stdin=MESSAGE).code == 67
    assert len(stored(state)) == 1
