"""The collector, set up by a configuration, with servers that have quirks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from restante import config
from restante.app import runs
from restante.app.failures import exit_code
from restante.app.job import Job, open_ledger
from restante.collect.collector import LoginTooSoon, Outcome
from restante.errors import CommandFailed, LoginFailed

from ..client.shells import scripted
from .odd import MAIL, Odd


def large(octets: int) -> bytes:
    return b"Subject: large\r\n\r\n" + b"x" * octets + b"\r\n"


class Home:
    """Runs ``restante collect`` with one account, through a TLS server."""

    def __init__(self, path: Path, tls: ssl.SSLContext, ca_file: Path) -> None:
        self.path, self._tls, self._ca = path, tls, ca_file

    def collect(self, server: Odd, limit: int | None = None, **options: Any) -> Outcome:
        async def main() -> Outcome:
            async with scripted(server, tls=self._tls) as (port, _):
                return await self._run(port, limit, options)

        return asyncio.run(main())

    async def _run(self, port: int, limit: int | None, options: dict[str, Any]) -> Outcome:
        values = {
            "url": f"pop3s://127.0.0.1:{port}",
            "user": "mrose",
            "password": "tan staaf",
            "ca_file": str(self._ca),
            "to": f"maildir:{self.path}/Mail",
            **options,
        }
        file = self.path / "restante.toml"
        lines = [f"{key} = {config.toml(value)}" for key, value in values.items()]
        file.write_text("\n".join(["[account.odd]", *lines, ""]))
        file.chmod(0o600)
        found = config.load(file, environment={"STATE_DIRECTORY": str(self.path / "state")})
        with closing(open_ledger(found)) as ledger:
            total = Outcome()
            await runs.sessions(Job.of(found, "odd"), ledger, total, limit=limit)
            return total

    @property
    def mail(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in (self.path / "Mail" / "new").iterdir())


@pytest.fixture
def home(tmp_path: Path, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]) -> Home:
    return Home(tmp_path, server_tls, certificate[0])


def taken_once(home: Home, server: Odd, **options: Any) -> None:
    """Check that the first run stores everything and the second nothing."""
    wanted = sorted(server.mail.values())
    assert home.collect(server, **options).stored == len(wanted)
    assert home.mail == wanted
    server.read.clear()
    assert home.collect(server, **options).stored == 0
    assert home.mail == wanted


# Quirks that must be configured


def test_server_that_hangs_on_capa(home: Home) -> None:
    server = Odd(answer=lambda said, usual: b"" if said == "CAPA" else usual)
    taken_once(home, server, quirks=["no-capa", "add:UIDL"])


def test_server_that_loses_pipelined_commands(home: Home) -> None:
    server = Odd(announced=("UIDL", "PIPELINING"), loses_commands=True)
    taken_once(home, server, quirks="hide:PIPELINING")


def test_server_that_removes_retrieved_messages(home: Home) -> None:
    server = Odd(removes_what_was_read=True)
    home.collect(server, quirks="reset-before-quit")
    assert len(server.mail) == 3
    home.collect(server, quirks="reset-before-quit", keep="none")
    assert server.mail == {}
    assert len(home.mail) == 3


def refuses_initial_responses(said: str, usual: bytes) -> bytes:
    if said.startswith("AUTH "):
        return b"+ \r\n" if said == "AUTH PLAIN" else b"-ERR Protocol error. 10\r\n"
    return usual


@pytest.mark.parametrize("quirks", ["microsoft", "two-step-auth"])
def test_server_that_accepts_no_initial_response(home: Home, quirks: str) -> None:
    server = Odd(announced=("UIDL", "SASL PLAIN"), answer=refuses_initial_responses)
    taken_once(home, server, quirks=quirks)


def test_server_that_needs_a_quirk_fails_without_it(home: Home) -> None:
    with pytest.raises(LoginFailed, match="Protocol error"):
        home.collect(Odd(announced=("UIDL", "SASL PLAIN"), answer=refuses_initial_responses))


def test_quirk_adds_a_pause_between_logins(home: Home) -> None:
    server = Odd()
    home.collect(server, quirks="add:LOGIN-DELAY:60")
    with pytest.raises(LoginTooSoon) as caught:
        home.collect(server, quirks="add:LOGIN-DELAY:60")
    assert exit_code(caught.value) == 75
    assert server.logins == 1


def test_server_that_answers_top_twice(home: Home) -> None:
    """No stub is made, because the repeated answer would desynchronise the session."""
    server = Odd({**MAIL, "large": large(5000)})
    server.answer = lambda said, usual: usual * (1 + said.startswith("TOP"))
    outcome = home.collect(server, quirks="hide:TOP", largest=4000, larger="stub")
    assert (outcome.stored, outcome.stubs) == (3, 0)
    assert "does not support TOP" in outcome.skipped[0]


def test_server_that_ends_lines_with_lf(home: Home) -> None:
    server = Odd(answer=lambda _, usual: usual.replace(b"\r\n", b"\n"))
    taken_once(home, server, quirks="bare-line-feeds")


# Gmail lists a few hundred messages per session, and after QUIT hides those that were read


@pytest.mark.parametrize("keep", ["all", "none"])
def test_server_that_lists_in_parts_is_emptied_in_one_run(home: Home, keep: str) -> None:
    mail = {f"u{at}": f"Subject: {at}\r\n\r\n{at}\r\n".encode() for at in range(70)}
    server = Odd(mail, part=25, announced=("UIDL", "PIPELINING"))
    outcome = home.collect(server, quirks="gmail", keep=keep)
    assert (outcome.stored, server.logins) == (70, 4)  # the last session lists nothing
    assert home.mail == sorted(mail.values())
    assert (len(server.mail), outcome.deleted) == ((70, 0) if keep == "all" else (0, 70))


def test_no_more_parts_are_asked_for_than_may_be_fetched(home: Home) -> None:
    mail = {f"u{at}": f"Subject: {at}\r\n\r\n{at}\r\n".encode() for at in range(70)}
    server = Odd(mail, part=25)
    assert home.collect(server, limit=30, quirks="gmail").stored == 30
    assert server.logins == 2


def test_where_nothing_changes_no_part_is_asked_for_again(home: Home) -> None:
    """Including a server that forgets deletions, with which the run would never end."""
    server = Odd(answer=lambda said, usual: b"+OK\r\n" if said[:4] == "DELE" else usual)
    server.mail = _Unchanging(server.mail)
    home.collect(server, quirks="in-parts", keep="none")
    assert server.logins == 2
    home.collect(server, quirks="in-parts", keep="none")
    assert server.logins == 3


class _Unchanging(dict[str, bytes]):
    """A server on which removed messages come back."""

    def items(self) -> Any:
        return []

    def __bool__(self) -> bool:
        return True


# Quirks that need no configuration


def listing(*lines: str) -> Callable[[str, bytes], bytes]:
    octets = "\r\n".join(["+OK", *lines, ".", ""]).encode("latin-1")
    return lambda said, usual: octets if said == "UIDL" else usual


@pytest.mark.parametrize(
    "lines",
    [
        ["+OK 1 one", "+OK 2 two", "+OK 3 three"],
        ["1   one", "2\t two", "3    three"],
        ["3 three", "1 one", "2 two"],
        ["1 " + "x" * 200, "2 a b c", "3 \xe9\xff"],
        ["1 same", "2 same", "3 same"],
        ["1 ", "2", "3 three"],
        ["1 one", "3 three"],
    ],
    ids=["status", "spaces", "disorder", "long", "equal", "blank", "gap"],
)
def test_odd_listings(home: Home, lines: Sequence[str]) -> None:
    taken_once(home, Odd(answer=listing(*lines)))


def test_sizes_that_lie(home: Home) -> None:
    def answer(said: str, usual: bytes) -> bytes:
        return b"+OK\r\n1 1\r\n2 99999\r\n3 0\r\n.\r\n" if said == "LIST" else usual

    taken_once(home, Odd(answer=answer, announced=("UIDL", "PIPELINING")))


def test_a_message_that_is_listed_and_not_given(home: Home) -> None:
    def answer(said: str, usual: bytes) -> bytes:
        return b"-ERR cannot open it\r\n" if said == "RETR 2" else usual

    outcome = home.collect(Odd(answer=answer))
    assert (outcome.stored, outcome.refused) == (2, ["message 2: cannot open it"])


def test_no_unique_ids_at_all(home: Home) -> None:
    def answer(said: str, usual: bytes) -> bytes:
        return b"-ERR what?\r\n" if said in ("UIDL", "CAPA") else usual

    taken_once(home, Odd(answer=answer))


def test_a_challenge_that_says_ok(home: Home) -> None:
    def answer(said: str, usual: bytes) -> bytes:
        return b"+OK\r\n" if said.startswith("AUTH ") else usual

    taken_once(home, Odd(announced=("UIDL", "SASL PLAIN"), answer=answer), quirks="two-step-auth")


@pytest.mark.parametrize(
    ("quirks", "said", "text"),
    [
        ("auto", "PASS", b"-ERR maildrop already locked\r\n"),
        ("gmail", "UIDL", b"-ERR Lockdown in sector 4\r\n"),
        ("netease", "LIST", b"-ERR Download exceed\r\n"),
    ],
)
def test_temporary_failures_exit_with_75(home: Home, quirks: str, said: str, text: bytes) -> None:
    server = Odd(answer=lambda command, usual: text if command.startswith(said) else usual)
    with pytest.raises((CommandFailed, LoginFailed)) as caught:
        home.collect(server, quirks=quirks)
    assert exit_code(caught.value) == 75


def test_unknown_quirk_is_a_configuration_error(home: Home) -> None:
    with pytest.raises(Exception, match="quirks: must be auto, gmail"):
        home.collect(Odd(), quirks="gmial")
