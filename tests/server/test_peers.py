"""Bugs of other servers that no other test covers (docs/other-servers.md)."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from restante.maildrop import Entry
from restante.server.address import Address
from restante.server.binding import bind
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore

from ..pop3.core import Core
from ..pop3.test_session import LOGIN
from ..support import Run, once, serving
from .test_pop3 import MESSAGE, filled, starts_tls


@pytest.mark.rfc("P-100", "P-101")
def test_sizes_beyond_32_bits() -> None:
    """Cyrus and Stalwart: the sum of a maildrop wraps at 4 GiB."""
    core = Core([b"x", b"y"])
    core._listing[:] = [Entry("a", 2**32 - 1), Entry("b", 2**40)]
    core.send(LOGIN)
    assert core.send(b"STAT\r\nLIST 1\r\nLIST 2\r\n") == (
        b"+OK 2 1103806595071\r\n+OK 1 4294967295\r\n+OK 2 1099511627776\r\n"
    )


@pytest.mark.rfc("P-039", "P-104")
def test_rset_shows_no_new_mail(run: Run[None]) -> None:
    """James lists again at RSET, so that message-numbers change."""

    async def main() -> None:
        store = await filled(MESSAGE)
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            await client.ask(b"DELE 1")
            await store.deliver("mrose", once(MESSAGE))
            assert (await client.ask(b"RSET")).startswith(b"+OK")
            assert await client.ask(b"STAT") == b"+OK 1 21"
            assert (await client.ask(b"RETR 2")).startswith(b"-ERR")

    run(main())


@pytest.mark.parametrize("end", ["drop", "quit"])
def test_reading_marks_nothing_as_seen(end: str, run: Run[None], tmp_path: Path) -> None:
    """Dovecot marks retrieved messages as seen even when the connection was lost."""
    store = MaildirStore(f"{tmp_path}/%u")

    def names() -> list[Path]:
        return sorted(path.relative_to(tmp_path) for path in tmp_path.glob("mrose/???/*"))

    async def main() -> None:
        await store.deliver("mrose", once(MESSAGE))
        before = names()
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            assert await client.ask(b"RETR 1") == b"+OK 21 octets"
            while await client.line() != b".":
                pass
            if end == "quit":
                assert (await client.ask(b"QUIT")).startswith(b"+OK")
                await client.rest()
        assert before == names() != []

    run(main())


@pytest.mark.parametrize(
    "typed", [b"<script>", b"XYZZY", b"RETR XYZZY", b"USER a XYZZY", b"LANG XYZZY"]
)
def test_no_response_repeats_client_input(typed: bytes) -> None:
    """Dovecot: "-ERR Unknown command: …"; with HTTP it is a script in a browser (ALPACA)."""
    core = Core([])
    for command in (typed, b"AUTH " + typed, b"PASS " + typed):
        said = core.send(command + b"\r\n")
        assert said
        assert b"XYZZY" not in said
        assert b"script" not in said.lower()
    core = Core([])
    core.send(LOGIN)
    assert b"XYZZY" not in core.send(typed + b"\r\n")


def test_large_maildrops_are_listed_completely(run: Run[None]) -> None:
    """Mailpit lists the newest 100 and WildDuck 250, so clients may lose the rest."""

    async def main() -> None:
        async with serving(await filled(*[MESSAGE] * 300)) as server, server.client() as client:
            await client.log_in()
            assert await client.ask(b"STAT") == b"+OK 300 6300"
            assert await client.ask(b"LIST 300") == b"+OK 300 21"

    run(main())


def test_tls_of_one_session_does_not_secure_another(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Inbucket kept the state in the server: after one STLS it applied to all sessions."""

    async def main() -> None:
        async with (
            serving(MemoryStore(), tls=server_tls, clear=False) as server,
            server.client() as first,
            server.client() as second,
        ):
            await starts_tls(first, client_tls)
            assert (await second.ask(b"USER mrose")).startswith(b"-ERR")
            await starts_tls(second, client_tls)
            await second.log_in()

    run(main())


def test_server_listens_on_ipv6() -> None:
    """James does not."""
    if not socket.has_ipv6:  # pragma: no cover
        return
    with bind(Address.parse("pop3://[::1]:0")) as listening:
        assert listening.getsockname()[0] == "::1"
        with socket.create_connection(listening.getsockname()[:2], timeout=5):
            pass


def test_stop_sends_no_unsolicited_response(run: Run[None]) -> None:
    """Stalwart: "* BYE", which is IMAP."""

    async def main() -> None:
        async with serving(MemoryStore()) as server, server.client() as client:
            await client.log_in()
            await server.service.drain(0)
            assert await client.rest() == b""

    run(main())


def test_no_password_is_logged(run: Run[None], caplog: pytest.LogCaptureFixture) -> None:
    """Mailpit logs PASS unchanged at debug level."""
    caplog.set_level(1)

    async def main() -> None:
        async with serving(MemoryStore()) as server, server.client() as client:
            await client.ask(b"USER mrose")
            await client.ask(b"PASS wrong-secret")
            await client.ask(b"AUTH PLAIN AG1yb3NlAHdyb25nLXNlY3JldA==")
            await client.log_in()

    run(main())
    reported = " ".join(f"{each.getMessage()} {vars(each)}" for each in caplog.records)
    assert "mrose" in reported
    assert "wrong-secret" not in reported
    assert "tan staaf" not in reported
    assert "AG1yb3" not in reported
