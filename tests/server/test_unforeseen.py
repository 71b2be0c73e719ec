"""An unforeseen exception in every place where a command waits for something.

The client gets an answer (RFC 3206 §4), or for a partly sent message no final dot; the lock is free
afterwards, the log has the traceback, and the server forgets the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from restante.maildrop import (
    Entry,
    Maildrop,
    RawMessage,
    SessionRecord,
    Store,
)
from restante.passdb import Credentials, ScramSecrets, Terms, UserAccount
from restante.pop3.session import Policy
from restante.store.memory import MemoryStore

from ..support import OneUser, Run, Server, once, serving, until

MESSAGE = b"Subject: x\r\n\r\nhello\r\n"
TEMPORARY = b"-ERR [SYS/TEMP] "


class Unforeseen(Exception):
    """An exception that no part of restante handles."""


class Broken:
    """The places that raise the exception; counts how often each was reached."""

    def __init__(self) -> None:
        self.at = ""
        self.reached = 0

    def __call__(self, place: str) -> None:
        if place == self.at:
            self.reached += 1
            raise Unforeseen(place)


class Drop:
    """A maildrop with every add-on."""

    def __init__(self, maildrop: Maildrop, broken: Broken) -> None:
        self._maildrop, self._broken = maildrop, broken

    @property
    def listing(self) -> Any:
        self._broken("listing")
        return self._maildrop.listing

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        self._broken("read")
        yield MESSAGE[:5]
        self._broken("read half")
        yield MESSAGE[5:]

    def cached_texts(
        self, entries: Sequence[Entry], most: int, lines: int | None = None
    ) -> list[bytes]:
        self._broken("cached_texts")
        return []

    def open_raw(self, entry: Entry) -> RawMessage | None:
        self._broken("open_raw")
        return None

    def record_form(self, entry: Entry, *, is_wire_ready: bool) -> None:
        """Store nothing."""

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        self._broken("remove")
        return await self._maildrop.remove(entries)

    async def pace(self, delay: float) -> float:
        self._broken("pace")
        return 0.0

    async def record(self, session: SessionRecord) -> None:
        self._broken("record")

    async def past(self, credential: str) -> tuple[SessionRecord, ...]:
        self._broken("past")
        return ()


class BrokenStore(MemoryStore):
    def __init__(self, broken: Broken) -> None:
        super().__init__()
        self.broken = broken

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        self.broken("open")
        async with super().open(user) as maildrop:
            self.broken("opened")
            yield Drop(maildrop, self.broken)
        self.broken("close")


class BrokenPassdb(OneUser):
    broken = Broken()

    async def verify(self, credentials: Credentials) -> UserAccount:
        self.broken("verify")
        return await super().verify(credentials)

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        self.broken("scram")
        return await super().scram(identity, digest)


@asynccontextmanager
async def breaking(place: str) -> AsyncIterator[tuple[Server, Broken]]:
    broken = Broken()
    store = BrokenStore(broken)
    await store.deliver("mrose", once(MESSAGE))
    await store.deliver("mrose", once(MESSAGE))
    policy = Policy(mechanisms=("PLAIN", "SCRAM-SHA-256"), terms=Terms(login_delay=1))
    async with serving(cast(Store, store), policy=policy) as server:
        passdb = BrokenPassdb()
        passdb.broken = broken
        server.service.passdb = passdb
        server.service.deletions_by_new_credential = 1

        async def before_opening(_: str) -> None:
            broken("before_opening")

        server.service.before_opening = before_opening
        broken.at = place
        yield server, broken


async def works_again(server: Server, broken: Broken, caplog: pytest.LogCaptureFixture) -> None:
    """Check that the server works, and that each failure was logged once."""
    await until(lambda: not server.service.connections)
    assert broken.reached > 0
    assert caplog.messages.count("bug") == broken.reached
    broken.at = ""
    async with server.client() as client:
        await client.log_in()
        assert await client.ask(b"STAT") == b"+OK 2 42"


LOGIN = ("verify", "before_opening", "open", "opened", "pace", "listing")


@pytest.mark.parametrize("place", LOGIN)
@pytest.mark.rfc("P-083")
def test_unforeseen_exception_in_a_login_is_answered(
    place: str, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with breaking(place) as (server, broken):
            async with server.client() as client:
                await client.ask(b"USER mrose")
                assert (await client.ask(b"PASS tan staaf")).startswith(TEMPORARY)
                assert await client.rest() == b""
            await works_again(server, broken, caplog)

    with caplog.at_level(logging.ERROR):
        run(main())


def test_unforeseen_exception_in_a_lookup_is_answered(
    run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with breaking("scram") as (server, broken):
            async with server.client() as client:
                first = b"AUTH SCRAM-SHA-256 biwsbj1tcm9zZSxyPXh5enp5\r\n"  # n,,n=mrose,r=xyzzy
                client.send(first)
                assert (await client.line()).startswith(TEMPORARY)
                assert await client.rest() == b""
            await works_again(server, broken, caplog)

    with caplog.at_level(logging.ERROR):
        run(main())


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("cached_texts", b"RETR 1"),
        ("open_raw", b"RETR 1"),
        ("read", b"RETR 1"),
        ("read", b"TOP 1 0"),
    ],
)
def test_unforeseen_exception_in_one_message_leaves_the_others(
    place: str, command: bytes, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with breaking(place) as (server, broken):
            async with server.client() as client:
                await client.log_in()
                client.send(command + b"\r\nNOOP\r\n")  # pipelined commands are answered too
                assert (await client.line()).startswith(TEMPORARY)
                assert (await client.line()).startswith(b"+OK")
                broken.at = ""
                client.send(b"RETR 2\r\n")
                assert (await client.line()).startswith(b"+OK")
                for expected in (*MESSAGE.splitlines(), b"."):
                    assert await client.line() == expected
            await works_again(server, broken, caplog)

    with caplog.at_level(logging.ERROR):
        run(main())


def test_message_that_fails_half_way_gets_no_final_dot(
    run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with breaking("read half") as (server, broken):
            async with server.client() as client:
                await client.log_in()
                client.send(b"RETR 1\r\n")
                heard = await client.rest()
                assert b"\r\n.\r\n" not in heard
                assert b"-ERR" not in heard
            await works_again(server, broken, caplog)

    with caplog.at_level(logging.ERROR):
        run(main())


@pytest.mark.parametrize(
    ("place", "answer"),
    [("remove", TEMPORARY), ("past", TEMPORARY), ("record", b"+OK"), ("close", b"+OK")],
)
def test_unforeseen_exception_at_quit_is_answered(
    place: str, answer: bytes, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    """The messages are removed even if recording that fails."""

    async def main() -> None:
        async with breaking(place) as (server, broken):
            async with server.client() as client:
                await client.log_in()
                assert (await client.ask(b"DELE 1")).startswith(b"+OK")
                assert (await client.ask(b"QUIT")).startswith(answer)
                assert await client.rest() == b""
            await until(lambda: not server.service.connections)
            assert caplog.messages.count("bug") == broken.reached == 1
            broken.at = ""
            async with server.client() as client:
                await client.log_in()
                left = b"+OK 1 21" if answer == b"+OK" else b"+OK 2 42"
                assert await client.ask(b"STAT") == left

    with caplog.at_level(logging.ERROR):
        run(main())


@pytest.mark.parametrize("place", ["record", "close"])
def test_server_stops_after_a_connection_whose_end_failed(
    place: str, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with breaking(place) as (server, broken):
            async with server.client() as client:
                await client.log_in()
            await works_again(server, broken, caplog)
            await asyncio.wait_for(server.service.drain(10), 5)

    with caplog.at_level(logging.ERROR):
        run(main())


@pytest.mark.parametrize("command", [b"STAT", b"LIST", b"UIDL", b"CAPA", b"NOOP"])
def test_unforeseen_exception_in_a_simple_command_is_answered(
    command: bytes,
    run: Run[None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from restante.pop3 import commands

    def broken(*_: object) -> None:
        raise Unforeseen

    async def main() -> None:
        async with serving(MemoryStore()) as server, server.client() as client:
            await client.log_in()
            row = commands.VERBS[command.decode()]
            patched = row._replace(run=cast(Callable[..., Any], broken))
            monkeypatch.setitem(commands.VERBS, command.decode(), patched)
            assert (await client.ask(command)).startswith(TEMPORARY)
            assert await client.rest() == b""
            await until(lambda: not server.service.connections)
            assert caplog.messages == ["bug"]

    with caplog.at_level(logging.ERROR):
        run(main())
