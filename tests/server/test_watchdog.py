"""No client can make a turn of the event loop long: each listener with its largest inputs.

Only processor time of the loop's thread is measured, so a busy machine does not matter.  The limit
is ten times the longest turn, and an input that exceeds it is tried once more.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from restante.pop3.commands import VERBS as POP3
from restante.pop3.session import Policy
from restante.sasl.mechanisms import MECHANISMS
from restante.server.connection import BaseConnection
from restante.server.intake import Intake
from restante.smtp.commands import VERBS as SMTP
from restante.store.memory import MemoryStore

from ..support import Client, Run, listening, once, serving, until
from .test_intake import Ann

MOST = 0.2  # seconds of processor time in one turn; the longest are about 20 ms
if sys.gettrace():
    MOST *= 10  # ./dev coverage counts every line
BURST = 256 * 1024  # octets that one read may return
# Combining marks in the wrong order: normalising them takes quadratic time.
SPREAD = "a" + "\u0307" * 6000 + "\u0323" * 6000
DOORS = ("pop3", "pop3s", "lmtp", "smtp")


class WatchedLoop(asyncio.SelectorEventLoop):
    """An event loop that measures its longest turn."""

    longest = 0.0

    def _run_once(self) -> None:
        before = time.thread_time()
        super()._run_once()  # type: ignore[misc]  # asyncio's own, of all its versions
        self.longest = max(self.longest, time.thread_time() - before)


def largest_inputs(door: str) -> Iterator[tuple[str, bytes]]:
    """Return inputs before login, each as large as one read."""
    verbs = POP3 if door.startswith("pop3") else SMTP
    for verb in verbs:
        line = verb.encode() + b"\r\n"
        yield verb, line * (BURST // len(line))
        argument = verb.encode() + b" " + b"x" * 240 + b"\r\n"
        yield f"{verb} with an argument", argument * (BURST // len(argument))
    for name, octets in (
        ("nothing but line ends", b"\r\n"),
        ("bare line feeds", b"\n"),
        ("NUL", b"\0"),
        ("a line without end", b"x"),
        ("spaces", b" "),
        ("octets that are not UTF-8", b"\xff"),
        ("angle brackets", b"<"),
        ("quotes", b'"'),
    ):
        yield name, octets * (BURST // len(octets))
    if door.startswith("pop3"):
        for name, mechanism in MECHANISMS.items():
            for text in (SPREAD, f"\0{SPREAD}", "a" * 90_000, f"n,,n={SPREAD}", "=2C" * 20_000):
                # The longest line, less the octets that PLAIN and LOGIN need after a name.
                octets = text.encode()[: mechanism.max_line * 3 // 4 - 8] + b"\0x"
                message = b64encode(octets) + b"\r\n"
                yield f"AUTH {name} {text[:5]!r}", b"AUTH " + name.encode() + b"\r\n" + message * 2
        user = b"USER " + SPREAD.encode()[:200] + b"\r\nPASS " + SPREAD.encode()[:200] + b"\r\n"
        yield "USER and PASS", user * 20
    else:
        begin = b"EHLO x\r\nLHLO x\r\nMAIL FROM:<b@x>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n"
        for name, octets in (
            ("a header without end", b"X: y\r\n"),
            ("Received", b"Received: x\r\n"),
            ("dots", b"..\r\n"),
            ("line ends", b"\r\n"),
            ("CR", b"\r"),
            ("one line", b"x"),
        ):
            yield f"DATA with {name}", begin + octets * (4 * BURST // len(octets))


@asynccontextmanager
async def connected(
    door: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> AsyncIterator[Client]:
    store = MemoryStore()
    await store.deliver("mrose", once(b"Subject: x\r\n\r\n" + b"y" * 1000 + b"\r\n"))
    if door.startswith("pop3"):
        policy = Policy(mechanisms=tuple(MECHANISMS))
        tls = (server_tls, client_tls) if door == "pop3s" else (None, None)
        async with (
            serving(store, tls=tls[0], implicit=door == "pop3s", policy=policy) as server,
            server.client(tls[1]) as client,
        ):
            yield client
        return
    intake = Intake(store, Ann(), "mail.example.org", 2**20)
    build = intake.lmtp() if door == "lmtp" else intake.smtp(["example.org"])
    with listening(build) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()
            await intake.drain(0)  # its connection and its files must not outlive the loop


async def provoke(client: Client, octets: bytes) -> None:
    client.send(octets)

    async def read() -> None:
        while await client.reader.read(65_536):
            pass

    try:
        async with asyncio.timeout(0.1):
            await read()
    except (TimeoutError, ConnectionError, ssl.SSLError):
        pass


def longest_turn(make: Callable[[], Coroutine[Any, Any, None]]) -> float:
    """Return the seconds of the longest turn; a turn over the limit must occur twice to count."""
    longest = 0.0
    for _ in range(2):
        with asyncio.Runner(loop_factory=WatchedLoop) as runner:
            runner.run(make())
            loop = runner.get_loop()
            assert isinstance(loop, WatchedLoop)
            longest = loop.longest
        if longest < MOST:
            break
    return longest


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_no_input_occupies_the_event_loop(
    door: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def one(octets: bytes) -> None:
        async with connected(door, server_tls, client_tls) as client:
            await provoke(client, octets)

    inputs = largest_inputs(door)
    longest = {name: longest_turn(partial(one, octets)) for name, octets in inputs}
    assert {name: turn for name, turn in longest.items() if turn >= MOST} == {}


def test_input_of_one_turn_is_bounded(run: Run[None], monkeypatch: pytest.MonkeyPatch) -> None:
    """However much has arrived: uvloop reads up to 32 times per connection."""
    turns = [0]
    receive = BaseConnection.data_received

    def count(connection: BaseConnection[Any], data: bytes) -> None:
        turns[-1] += len(data)
        receive(connection, data)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        ticking: asyncio.Handle

        def begin_turn() -> None:
            nonlocal ticking
            turns.append(0)
            ticking = loop.call_soon(begin_turn)

        begin_turn()
        intake = Intake(MemoryStore(), Ann(), "mail.example.org", 2**24)
        with listening(intake.lmtp()) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"LHLO x\r\nMAIL FROM:<b@x>\r\nRCPT TO:<ann>\r\nDATA\r\n")
            writer.write(b"x" * 16 * BURST)
            await until(lambda: sum(turns) >= 8 * BURST)
            ticking.cancel()
            writer.transport.abort()
            await intake.drain(0)

    monkeypatch.setattr(BaseConnection, "data_received", count)
    run(main())
    assert max(turns) <= 2 * BURST


@pytest.mark.parametrize("is_known", [False, True])
def test_pipelining_after_login_does_not_occupy_the_loop(
    is_known: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    lines = [b"RETR 1", b"TOP 1 5", b"LIST", b"UIDL", b"NOOP", b"STAT", b"DELE 1\r\nRSET", b"CAPA"]

    async def one(line: bytes, door: str) -> None:
        async with connected(door, server_tls, client_tls) as client:
            if is_known:
                await client.log_in()
            await provoke(client, (line + b"\r\n") * (BURST // (len(line) + 2)))

    for line in lines:
        assert longest_turn(partial(one, line, "pop3")) < MOST, line
