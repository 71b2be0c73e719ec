"""A worker whose siblings hang, send single octets, or send nonsense.

The siblings are programs of the test, and the clock of the event loop can be set forward.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from restante import log
from restante.app.answers import Document, Lines, Patience, parse
from restante.app.control import Control
from restante.app.live import Live, Site
from restante.app.monitoring import Monitor
from restante.app.reloads import Reloads
from restante.app.siblings import TIMEOUT
from restante.config import Configuration, Log
from restante.errors import ProtocolBroken

from ..server.test_control import Door, run, serving
from ..server.test_every_listener import jump, settled
from ..support import until

HEAD = b"HTTP/1.1 200 OK\r\n"
CLOSED = HEAD + b"Connection: close\r\n\r\n"
Sender = Callable[[asyncio.StreamWriter], Awaitable[None]]


def control(folder: Path, workers: int) -> Control:
    def certificate_end() -> float:
        return 4e9

    live = Live(
        0, Site(workers, Reloads(workers)), folder, Configuration, certificate_end, bool, list
    )
    (folder / "control").mkdir()
    return Control(live, Monitor(live, dict))


@asynccontextmanager
async def asked_with(folder: Path, *senders: Sender) -> AsyncIterator[Door]:
    """Serve a worker, and for each sender a sibling that sends its own answer."""
    worker, answering = control(folder, 1 + len(senders)), set[asyncio.Task[None] | None]()

    def sibling(send: Sender) -> Callable[..., Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            answering.add(asyncio.current_task())
            with suppress(ConnectionError, asyncio.CancelledError):
                await reader.readuntil(b"\r\n\r\n")
                await send(writer)
            writer.close()

        return serve

    servers = [
        await asyncio.start_unix_server(sibling(send), folder / "control" / f"{number}.sock")
        for number, send in enumerate(senders, 1)
    ]
    try:
        async with serving(folder) as door:
            door.service.answer = worker.answer
            yield door
    finally:
        for server in servers:
            server.close()
        for task in filter(None, answering):
            task.cancel()
        await settled()


def sending(octets: bytes) -> Sender:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(octets)
        await writer.drain()

    return send


def one_by_one(octets: bytes) -> Sender:
    async def send(writer: asyncio.StreamWriter) -> None:
        for octet in octets:
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(1)

    return send


def without_end(octets: bytes, piece: bytes) -> Sender:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(octets)
        for _ in range(300):
            writer.write(piece)
            await writer.drain()

    return send


def hanging_after(octets: bytes) -> Sender:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(octets)
        await asyncio.sleep(1000)

    return send


SENDERS = {
    "hangs": hanging_after(b""),
    "closes": sending(b""),
    "hangs in content": hanging_after(CLOSED),
    "single octets of the head": one_by_one(HEAD * 100),
    "single octets of content": one_by_one(CLOSED + b" " * 1000),
    "no HTTP": sending(b"+OK POP3 ready\r\n\r\n" * 10),
    "an error": sending(b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\n{}\n"),
    "text": sending(CLOSED + b"hello\n"),
    "an array": sending(CLOSED + b"[1]\n"),
    "deep": sending(CLOSED + b"[" * 60_000 + b"\n"),
    "no UTF-8": sending(CLOSED + b'{"\xff": 1}\n'),
    "cut off": sending(HEAD + b'Content-Length: 100\r\n\r\n{"worker": 1}'),
    "endless head": without_end(HEAD, b"A: b\r\n" * 10_000),
    "endless line": without_end(CLOSED, b"x" * 60_000),
}


async def ask(door: Door, method: str, target: str) -> tuple[float, bytes]:
    """Return the seconds that an answer takes, and its content."""
    loop = asyncio.get_running_loop()
    reader, writer = await door.connect()
    writer.write(f"{method} {target} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    asking = asyncio.create_task(reader.read())
    await settled()
    began = loop.time()
    while not asking.done():
        assert loop.time() < began + 10 * TIMEOUT
        await jump(0.25)
    writer.close()
    head, _, content = (await asking).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return loop.time() - began, content


@pytest.mark.parametrize("name", SENDERS)
def test_sibling_without_a_valid_answer_is_missing(name: str, tmp_path: Path) -> None:
    """The time is that for one sibling, although there are three."""

    async def main() -> None:
        async with asked_with(tmp_path, *3 * [SENDERS[name]]) as door:
            for method, target, missing in (
                ("GET", "/status", lambda row: [each["worker"] for each in row["workers"][1:]]),
                ("GET", "/sessions", lambda row: row["missing"]),
                ("DELETE", "/sessions?user=ann", lambda row: row["missing"]),
            ):
                seconds, content = await ask(door, method, target)
                rows = list(map(json.loads, content.splitlines()))
                assert missing(rows[-1]) == [1, 2, 3]
                # Contents are read one after another, because the list is not kept in memory.
                assert seconds < (4 if target == "/sessions" else 2) * TIMEOUT
                if target == "/status":
                    assert (
                        len([each for each in rows[0]["faults"] if "does not answer" in each]) == 3
                    )
                else:
                    assert len(rows) == 1
            await until(lambda: not door.service.connections)

    run(main())


def test_long_answer_may_take_longer(tmp_path: Path) -> None:
    """A worker on a busy machine sends its list of sessions slowly, but it does send."""
    rows = [json.dumps({"id": f"{number:010x}", "user": "x" * 300}) for number in range(1000)]

    async def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(CLOSED)
        for at in range(0, len(rows), 100):
            await asyncio.sleep(1)
            writer.write("".join(f"{row}\n" for row in rows[at : at + 100]).encode())
            await writer.drain()

    async def main() -> None:
        async with asked_with(tmp_path, slowly) as door:
            seconds, content = await ask(door, "GET", "/sessions")
            assert content.decode().splitlines() == [*rows, '{"missing": []}']
            assert seconds > 2 * TIMEOUT

    run(main())


def test_long_list_of_a_sibling_is_not_kept_in_memory(tmp_path: Path) -> None:
    """The client stops reading; the worker stops reading from its sibling."""
    line = json.dumps({"id": "1", "user": "x" * 300}).encode() + b"\n"
    sent = 0

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CLOSED)
        while True:
            writer.write(line * 100)
            await writer.drain()
            sent += 1

    async def main() -> None:
        async with asked_with(tmp_path, send) as door:
            _, writer = await door.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /sessions HTTP/1.0\r\nHost: x\r\n\r\n")
            for _ in range(100):
                await settled()
            assert door.held < 3 * 65_536
            before = sent
            for _ in range(100):
                await settled()
            assert sent == before
            writer.close()
            await until(lambda: not door.service.connections)

    run(main())


@pytest.mark.parametrize(
    "name", sorted(SENDERS.keys() - {"hangs in content"})
)  # there are no events yet
def test_events_of_other_workers_continue(
    name: str, tmp_path: Path, loggers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sibling without a valid answer is reported, and asked again."""
    asked = 0

    async def count(writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await SENDERS[name](writer)

    async def main() -> None:
        async with asked_with(tmp_path, count, sending(CLOSED + b'{"event": "one"}\n')) as door:
            reader, writer = await door.connect()
            writer.write(b"GET /events HTTP/1.0\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            rows: list[Any] = []
            reading = asyncio.create_task(reader.readline())
            while asked < 3 or {"event": "one"} not in rows:
                await jump(0.25)
                if reading.done():
                    rows.append(json.loads(reading.result()))
                    reading = asyncio.create_task(reader.readline())
            reading.cancel()
            assert {"missing": 1} in rows
            writer.close()
            await until(lambda: not log._followers)

    log.set_up(Log(format="journal"))
    run(main())


# -- Limits that workers and commands share


def test_time_for_an_answer_includes_all_steps() -> None:
    now = 0.0
    patience = Patience(2.0, lambda: now)
    for _ in range(4):
        with patience.waiting() as seconds:
            assert seconds == 2.0 - now
            now += 0.5
        patience.received(1)
    with pytest.raises(TimeoutError), patience.waiting():
        raise AssertionError
    now += 100  # time in which the client does not wait
    patience = Patience(2.0, lambda: now)
    with patience.waiting():
        now += 1.9
    now += 100
    patience.received(16_384)
    with patience.waiting() as seconds:
        assert seconds == 2.0
    with Patience(None).waiting() as seconds:
        assert seconds is None


@pytest.mark.parametrize("step", [1, 3, 100])
def test_content_is_divided_into_lines(step: int) -> None:
    lines, content = Lines(), b"one\ntwo\n\nthree"
    pieces = (content[at : at + step] for at in range(0, len(content), step))
    assert [line for piece in pieces for line in lines.add(piece)] == [b"one", b"two", b""]


def test_long_lines_and_documents_are_refused() -> None:
    lines, document = Lines(), Document()
    lines.add(b"x" * 65_536)
    with pytest.raises(ProtocolBroken):
        lines.add(b"x")
    document.add(b" " * (1 << 20))
    with pytest.raises(ProtocolBroken):
        document.add(b" ")


@pytest.mark.parametrize(
    "octets", [b"", b"{", b"[]", b"1", b"null", b'{"\xff": 1}', b"[" * 60_000, b'{"a":' * 60_000]
)
def test_only_a_json_object_is_accepted(octets: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        parse(octets)
    assert parse(b' {"a": 1}\n') == {"a": 1}
