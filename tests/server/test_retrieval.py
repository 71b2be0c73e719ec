"""Every way to send a message: read at once, in pieces, or copied by the kernel."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from restante.maildrop import RawReading
from restante.pop3.state import Event
from restante.server import retrieval
from restante.server.connection import BaseConnection
from restante.server.output import HIGH_WATER, TURN, Output
from restante.server.pop3 import Connection
from restante.store import files
from restante.store.maildir import MaildirStore

from ..support import Client, Run, once, serving, until

HEAD = b"Subject: x\r\n\r\n"
EDGES = (32_766, 65_532, 65_536, 131_072, 1_048_576)  # where one piece or another ends


def reaching(edge: int, shift: int, then: bytes) -> bytes:
    """Return CRLF text in which ``then`` begins ``shift`` octets from an edge."""
    left = edge + shift - len(HEAD)
    lines, last = divmod(left, 72)
    return HEAD + (b"x" * 70 + b"\r\n") * (lines - 1) + b"y" * (last + 70) + b"\r\n" + then


def messages() -> Iterator[bytes]:
    yield b"\r\n"
    yield b".\r\n"
    for edge in EDGES:
        for shift in (-2, -1, 0, 1, 2) if edge < 2**20 else (0,):
            yield reaching(edge, shift, b".\r\n..\r\nend\r\n")
            yield reaching(edge, shift, b"")  # can be sent unchanged


def on_the_wire(message: bytes) -> bytes:
    """Return the wire form (RFC 1939 §3), made line by line."""
    stuffed = [b"." + line if line.startswith(b".") else line for line in message.split(b"\r\n")]
    return b"\r\n".join(stuffed) + b".\r\n"


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["lf", "crlf", "foreign"])
@pytest.mark.parametrize("in_tls", [False, True])
def test_every_message_is_sent_completely(
    in_tls: bool,
    stored: str,
    tmp_path: Path,
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    """RFC 1939 §3: a dot at any edge of any piece, with and without TLS.

    Twice, because messages of other programs are measured the first time.
    """
    sent = list(messages())

    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        for message in sent:
            octets = message.replace(b"\r\n", b"\n") if stored == "lf" else message
            await store.deliver("mrose", once(octets))
        if stored == "foreign":
            for path in (tmp_path / "mrose" / "new").iterdir():
                path.rename(path.with_name(path.name.partition(",D=")[0]))
        async with store.open("mrose") as maildrop:
            sizes = [entry.size for entry in maildrop.listing]
        assert sorted(sizes) == sorted(map(len, sent))
        tls = server_tls if in_tls else None
        async with serving(store, tls=tls, implicit=in_tls) as server:
            for _ in range(2):
                async with server.client(client_tls if in_tls else None) as client:
                    await client.log_in()
                    assert sorted(await everything(client, sizes)) == sorted(map(on_the_wire, sent))
        assert await ready(store) == (0 if stored == "lf" else sum(map(is_ready, sent)))

    run(main())


async def everything(client: Client, sizes: list[int]) -> list[bytes]:
    numbers = range(1, len(sizes) + 1)
    client.send(b"".join(b"RETR %d\r\n" % number for number in numbers) + b"QUIT\r\n")
    said = await client.rest()
    heard = []
    for size in sizes:
        head = b"+OK %d octets\r\n" % size
        assert said.startswith(head)
        text, end, said = said[len(head) :].partition(b"\r\n.\r\n" if size > 2 else b".\r\n")
        heard.append(text + end)
    assert said.startswith(b"+OK")
    return heard


def is_ready(message: bytes) -> bool:
    return on_the_wire(message) == message + b".\r\n"


async def ready(store: MaildirStore) -> int:
    """Return the number of messages that the store would send unchanged."""
    count = 0
    async with store.open("mrose") as maildrop:
        assert isinstance(maildrop, RawReading)
        for entry in maildrop.listing:
            raw = maildrop.open_raw(entry)
            assert raw is not None
            os.close(raw.descriptor)
            count += raw.is_wire_ready
    return count


def only_file(maildrop: Path) -> Path:
    (path,) = maildrop.glob("new/*")
    return path


def test_file_truncated_during_sendfile_gets_no_final_dot(tmp_path: Path, run: Run[None]) -> None:
    """A truncated message with the termination octet would be lost mail."""
    message = HEAD + (b"x" * 98 + b"\r\n") * 200_000  # more than all buffers together

    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        await store.deliver("mrose", once(message))
        path = only_file(tmp_path / "mrose")
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(b"RETR 1\r\nQUIT\r\n")
            (connection,) = server.service.connections
            async with asyncio.timeout(10):
                while not connection._output.is_blocked or connection._output.written < 100_000:  # noqa: ASYNC110
                    await asyncio.sleep(0)  # no event signals that the kernel has begun
            os.truncate(path, 1000)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            said = await client.rest()
        assert len(said) < len(message)
        assert b".\r\n" not in said, "wherever in a line the file was cut"
        assert b"goodbye" not in said

    run(main())


def open_files() -> list[Path]:
    return [each.resolve() for each in Path("/proc/self/fd").iterdir()]


@asynccontextmanager
async def barely_reading(place: Path, end: bytes) -> AsyncIterator[tuple[Connection, Client]]:
    """Request 20 MB, and stop reading once all buffers are full."""
    store = MaildirStore(f"{place}/%u")
    await store.deliver("mrose", once(HEAD + (b"x" * 98 + end) * 200_000))
    async with serving(store) as server, server.client() as client:
        await client.log_in()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = server.service.connections
        assert isinstance(connection, Connection)
        written = -1
        tracemalloc.start()
        try:
            client.send(b"RETR 1\r\n")
            while not connection._output.is_blocked or connection._output.written > written:
                written = connection._output.written
                await asyncio.sleep(0.05)
            yield connection, client
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("last", [b"QUIT\r\n", b"RETR 1\r\nQUIT\r\n", b"NOOP\n"])
def test_session_that_ends_when_the_client_reads_again_ends_once(
    last: bytes, tmp_path: Path, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio reports "resume" in the middle of its write; a transport that is closed there reports
    its end twice, and the second time raises."""

    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        await store.deliver("mrose", once(HEAD + b"x" * 60_000 + b"\r\n"))
        async with serving(store) as server:
            for _ in range(2):  # the first session learns the form, and waits at its end to save it
                async with server.client() as client:
                    await client.log_in()
                    (connection,) = server.service.connections
                    await resume(connection, client)
                await until(lambda: not server.service.connections and not server.service._tasks)

    async def resume(connection: BaseConnection[Any], client: Client) -> None:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        while not connection._output.is_blocked:
            client.send(b"RETR 1\r\n")
            await asyncio.sleep(0.001)
        client.send(last)
        await until(lambda: connection._session.unread >= len(last))
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        said = await client.rest()
        assert said.splitlines()[-1].startswith((b"+OK", b"-ERR"))

    run(main())
    assert not [each for each in caplog.records if each.exc_info]


ENDS = pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\n."])


@ENDS
def test_slow_reader_has_the_file_open_once(end: bytes, tmp_path: Path, run: Run[None]) -> None:
    """With thousands of slow readers, descriptors would run out first."""

    async def main() -> None:
        async with barely_reading(tmp_path, end):
            assert open_files().count(only_file(tmp_path / "mrose")) == 1

    run(main())


@ENDS
def test_slow_reader_uses_little_memory(end: bytes, tmp_path: Path, run: Run[None]) -> None:
    """In this process and in the kernel, where all connections share it.

    CVE-2024-12254: asyncio's ``writelines`` buffered without limit.
    """

    async def main() -> None:
        async with barely_reading(tmp_path, end) as (connection, client):
            ours, _ = tracemalloc.get_traced_memory()
            assert ours < 90_000
            waiting = connection._transport.get_write_buffer_size()
            theirs = client.writer.get_extra_info("socket")
            room = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert connection._output.written - waiting < room + 3 * 65_536

    run(main())


@ENDS
def test_hanging_up_during_a_retrieval_is_not_a_bug(
    end: bytes, tmp_path: Path, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with barely_reading(tmp_path, end) as (connection, client):
            client.writer.transport.abort()
            await until(lambda: connection._opening is None and connection._worker is None)

    run(main())
    assert "bug" not in caplog.messages


def test_tls_transport_cannot_use_sendfile(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        first = serving(store, tls=server_tls, implicit=True)
        async with first as server, server.client(client_tls):
            (secure,) = server.service.connections
            assert not hasattr(retrieval.outlet(secure._transport), "send_file")
        async with serving(store, tls=server_tls) as server, server.client() as client:
            (connection,) = server.service.connections
            assert isinstance(retrieval.outlet(connection._transport), retrieval.SocketOutlet)
            await client.ask(b"STLS")
            await client.writer.start_tls(client_tls, server_hostname="localhost")
            await client.ask(b"NOOP")
            assert not hasattr(retrieval.outlet(connection._transport), "send_file")

    run(main())


def test_unreadable_files_are_left_to_the_store(tmp_path: Path, run: Run[None]) -> None:
    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        await store.deliver("mrose", once(b"hello\r\n"))
        path = only_file(tmp_path / "mrose")
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            path.unlink()
            assert (await client.ask(b"RETR 1")).startswith(b"-ERR [SYS/TEMP] ")

    run(main())


@pytest.mark.parametrize("is_cached", [True, False])
def test_messages_of_a_run_are_sent_as_one_by_one(
    is_cached: bool, tmp_path: Path, run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the page cache or not, with a message that is gone and a large one among small ones."""
    sizes = [10, 20, 70_000, 30, 40, 50]
    commands = [b"%s%d%s\r\n" % each for each in [*runs(len(sizes)), (b"DELE ", 1, b"")]]
    if not is_cached:
        monkeypatch.setattr(files, "_NOWAIT", 0)
        monkeypatch.setattr(retrieval, "_NOWAIT", 0)

    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        for size in sizes:
            await store.deliver("mrose", once(b"a: b\n\n" + b".\n" * (size // 2)))
        path = min((tmp_path / "mrose" / "new").iterdir())
        aside = tmp_path / path.name
        async with serving(store) as server:
            async with server.client() as client:
                await client.log_in()
                path.rename(aside)
                one_by_one = b""
                for command in commands:
                    client.send(command)
                    reply = await client.reader.readline()
                    is_long = reply.startswith(b"+OK") and not command.startswith(b"DELE")
                    while is_long and not reply.endswith(b"\r\n.\r\n"):
                        reply += await client.reader.read(65_536)
                    one_by_one += reply
                client.send(b"RSET\r\nQUIT\r\n")
                await client.rest()
            aside.rename(path)
            async with server.client() as client:
                await client.log_in()
                path.rename(aside)
                client.send(b"".join(commands) + b"RSET\r\nQUIT\r\n")
                together = await client.rest()
        assert one_by_one.count(b"-ERR") == 3
        assert together.startswith(one_by_one)

    run(main())


def runs(count: int) -> Iterator[tuple[bytes, int, bytes]]:
    for command, rest in ((b"RETR ", b""), (b"TOP ", b" 0"), (b"TOP ", b" 3")):
        yield from ((command, number, rest) for number in range(1, count + 1))


@pytest.mark.parametrize("stored", ["lf", "crlf"])
@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.rfc("P-105")
def test_top_of_messages_of_any_size_is_exact(
    is_cached: bool, stored: str, tmp_path: Path, run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 1939 §7: headers, the blank line, and the first lines of the body, byte-stuffed."""
    if not is_cached:
        monkeypatch.setattr(files, "_NOWAIT", 0)
        monkeypatch.setattr(retrieval, "_NOWAIT", 0)
    header = b"Subject: x\r\n.y: z\r\n"
    large = b"X: " + b"h" * 20_000 + b"\r\n"
    bodies = [b"", b".\r\n", b".a\r\n..\r\n\r\nb\r\n", b"c" * 70 + b"\r\n.\r\n" * 30_000]
    bodies += [b"\r\n" * shift + b".d\r\n" * 4096 for shift in range(4)]  # cut at any octet
    sent = [head + b"\r\n" + body for head in (header, large + header) for body in bodies]
    sent += [header, large]  # no blank line

    def top(message: bytes, lines: int) -> bytes:
        head, blank, body = message.partition(b"\r\n\r\n")
        rows = body.split(b"\r\n")[:-1] if blank else []
        return on_the_wire(head + blank + b"".join(row + b"\r\n" for row in rows[:lines]))

    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        for message in sent:
            octets = message.replace(b"\r\n", b"\n") if stored == "lf" else message
            await store.deliver("mrose", once(octets))
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            wanted = [(number, lines) for lines in (0, 1, 3, 9999) for number in range(len(sent))]
            client.send(b"".join(b"TOP %d %d\r\n" % (at + 1, lines) for at, lines in wanted))
            client.send(b"QUIT\r\n")
            said = await client.rest()
        for at, lines in wanted:
            expected = b"+OK top of message follows\r\n" + top(sent[at], lines)
            assert said.startswith(expected), (at, lines)
            said = said[len(expected) :]

    run(main())


def test_a_turn_sends_a_bounded_number_of_octets(
    tmp_path: Path, run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even to a client that takes all at once."""
    count, size, turns = 64, 60_000, []
    process = Connection._run_commands

    def measured(self: Connection) -> Event | None:
        before = self._output.produced
        try:
            return process(self)
        finally:
            turns.append(self._output.produced - before)

    async def main() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        for _ in range(count):
            await store.deliver("mrose", once(b"x" * (size - 2) + b"\r\n"))
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            client.send(b"".join(b"RETR %d\r\n" % at for at in range(1, count + 1)) + b"QUIT\r\n")
            assert len(await client.rest()) > count * size

    monkeypatch.setattr(Connection, "_run_commands", measured)
    monkeypatch.setattr(Output, "block", lambda _: None)
    run(main())
    assert TURN / 2 < max(turns) < TURN + 2 * HIGH_WATER


def test_the_maildir_store_reads_raw(tmp_path: Path, run: Run[None]) -> None:
    async def main() -> None:
        async with MaildirStore(f"{tmp_path}/%u").open("mrose") as maildrop:
            assert isinstance(maildrop, RawReading)

    run(main())
