"""A control socket: the peers that it answers, and clients that misbehave.

The listener runs in this process, on an event loop whose clock can be set forward.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from restante.errors import CannotListen
from restante.server import binding
from restante.server.address import Address
from restante.server.admission import Admission
from restante.server.binding import bind
from restante.server.control import ControlService, Peer, peer_of
from restante.server.http import Request
from restante.server.http_connection import TEXT, Answer
from restante.server.listener import Listener

from ..support import until
from .test_every_listener import BOUND, JumpingLoop, jump, settled

GET = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
IS_ROOT = os.geteuid() == 0
# CI runs as root, so it fails where this is skipped elsewhere.
needs_root = pytest.mark.skipif(not IS_ROOT and "CI" not in os.environ, reason="requires root")
OTHER = 65_533  # a user and group that no account has


@dataclass
class Door:
    """A control socket, its service, and the requests that it got."""

    path: Path
    service: ControlService
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    """Number of events of the live answer that were sent."""

    async def answer(self, request: Request, _: Peer) -> Answer:
        self.requests.append(request)
        match request.path:
            case "/live":
                return Answer(200, TEXT, self._live(), is_live=True)
            case "/large":
                return Answer(200, TEXT, self._large())
            case "/bug":
                raise ZeroDivisionError
        return Answer(200, TEXT, b"yes\n")

    async def _live(self) -> AsyncGenerator[bytes, None]:
        while True:
            self.sent += 1
            yield b"x" * 1000
            await asyncio.sleep(0)

    async def _large(self) -> AsyncGenerator[bytes, None]:
        for _ in range(1000):
            yield b"x" * 10_000

    @property
    def held(self) -> int:
        """Number of octets that the server buffers for all clients."""
        return sum(
            each._session.unread
            + each._output.collected
            + each._transport.get_write_buffer_size() * (not each._is_lost)
            for each in self.service.connections
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path), limit=4096)

    async def ask(self, octets: bytes) -> bytes:
        """Send octets and read all that the server sends before it closes."""
        reader, writer = await self.connect()
        with suppress(ConnectionError):
            writer.write(octets)
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def serving(folder: Path, *, most: int = 32) -> AsyncIterator[Door]:
    path = folder / "0.sock"
    service = ControlService(path=path, answer=None, max_protected=most // 2)  # type: ignore[arg-type]
    door = Door(path, service)
    door.service.answer = door.answer
    listener = Listener(
        bind(Address(path=str(path))),
        door.service.connection,
        Admission(most, most),
        name="control",
    )
    try:
        yield door
    finally:
        listener.close()
        await door.service.drain(0.1)
        path.unlink(missing_ok=True)


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(work)


# -- Peers


def as_user(uid: int, gid: int, groups: list[int], path: Path, octets: bytes) -> bytes:
    """Send octets as another user, in a child process; returns what the server sends."""
    result, writing = os.pipe()
    if not (pid := os.fork()):
        with suppress(BaseException):
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as connected:
                connected.settimeout(10)
                try:
                    connected.connect(str(path))
                    connected.sendall(octets)
                    while piece := connected.recv(65_536):
                        os.write(writing, piece)
                except PermissionError:
                    os.write(writing, b"not permitted")
                except ConnectionError:
                    os.write(writing, b"reset")
        os._exit(0)
    os.close(writing)
    with open(result, "rb") as file:
        heard = file.read()
    os.waitpid(pid, 0)
    return heard


GET_STATUS = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
DELETE = b"DELETE /status HTTP/1.1\r\nHost: x\r\n\r\n"


@needs_root
@pytest.mark.parametrize(
    ("uid", "gid", "groups", "may_read", "may_change"),
    [
        (0, 0, [], True, True),
        (0, OTHER, [], True, True),
        (OTHER, OTHER, [], False, False),
        (OTHER, OTHER, [OTHER - 2, OTHER - 3], False, False),
        (OTHER, OTHER - 1, [], True, False),  # the socket's group
        (OTHER, OTHER, [7, OTHER - 1], True, False),
        (65_534, 65_534, [], False, False),
    ],
)
def test_access_depends_on_user_and_group_not_on_the_mode(
    uid: int, gid: int, groups: list[int], may_read: bool, may_change: bool
) -> None:
    """The file's mode lets all users connect, as after a mistake of the operator."""

    async def main() -> None:
        with TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            async with serving(Path(folder)) as door:
                os.chown(door.path, 0, OTHER - 1)
                os.chmod(door.path, 0o666)
                for octets, is_allowed, refused in (
                    (GET_STATUS, may_read, (b"", b"reset")),
                    (DELETE, may_change, (b"HTTP/1.1 403",) if may_read else (b"", b"reset")),
                ):
                    heard = await asyncio.to_thread(as_user, uid, gid, groups, door.path, octets)
                    if is_allowed:
                        assert heard.startswith(b"HTTP/1.1 200"), heard
                        assert door.requests.pop().path == "/status"
                    else:
                        assert heard[:12] in refused, heard
                    assert door.requests == []

    run(main())


@needs_root
def test_a_socket_is_made_for_its_user_and_group_only() -> None:
    async def main() -> None:
        with TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            before = os.umask(0)
            try:
                async with serving(Path(folder)) as door:
                    assert stat.S_IMODE(door.path.stat().st_mode) == 0o660
                    heard = await asyncio.to_thread(
                        as_user, OTHER, OTHER, [], door.path, GET_STATUS
                    )
                    assert heard == b"not permitted"
            finally:
                os.umask(before)

    run(main())


def test_unmapped_users_and_groups_have_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user namespace all other users and groups have this number (PrivateUsers=)."""
    monkeypatch.setattr(os, "geteuid", lambda: 65_534)
    peer = Peer(65_534, frozenset({65_534}))
    assert not peer.is_operator
    assert not peer.is_member(65_534)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Peer(1000, frozenset()).is_operator
    assert Peer(1001, frozenset({5})).is_member(5)
    assert not Peer(1001, frozenset({5})).is_operator


def test_the_kernel_names_the_user_and_groups_of_a_peer() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_of(one) == Peer(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def test_a_peer_that_cannot_be_identified_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            monkeypatch.setattr("restante.server.control.peer_of", unidentified)
            assert await door.ask(GET_STATUS) == b""
            assert door.requests == []

    def unidentified(_: object) -> Peer:
        raise OSError(95, "Operation not supported")

    run(main())


# -- Misbehaving clients


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (GET_STATUS, 200),
        (GET_STATUS * 2, 200),
        (b"GET /bug HTTP/1.1\r\nHost: x\r\n\r\n", 500),
        (b"USER ann\r\nPASS x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nPadding: " + b"x" * 10_000 + b"\r\n\r\n", 431),
        (b"x" * 1_000_000, 431),
    ],
)
def test_every_request_gets_one_response(tmp_path: Path, octets: bytes, status: int) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            heard = await door.ask(octets)
            if len(octets) < 100_000:  # unread octets may reset the connection
                assert heard.startswith(b"HTTP/1.1 %d" % status)
            assert heard.count(b"HTTP/1.1") <= 1
            assert len(door.requests) == (status in (200, 500))
            assert not door.service.connections

    run(main())


@pytest.mark.parametrize("path", [b"/status", b"/large", b"/live"])
@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE", b"DELETE"])
def test_no_method_is_a_bug(
    tmp_path: Path, method: bytes, path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            if path == b"/live" and method != b"HEAD":
                return  # the response never ends
            heard = await door.ask(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            head, _, content = heard.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 405" if method == b"CONNECT" else b"HTTP/1.1 200")
            assert bool(content) == (method != b"HEAD"), "RFC 9110 §9.3.2"
            await until(lambda: not door.service.connections)

    run(main())
    assert "bug" not in caplog.text


@pytest.mark.parametrize("path", [b"/status", b"/live", b"/large"])
def test_a_client_that_sends_without_end_is_dropped(tmp_path: Path, path: bytes) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            _, writer = await door.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: bool(door.requests))
            with suppress(ConnectionError):
                for _ in range(100):
                    writer.write(b"x" * 1000)
                    await settled()
            await until(lambda: not door.service.connections)
            writer.close()

    run(main())


@pytest.mark.parametrize("part", [b"", b"GET /sta", GET_STATUS[:-2]])
def test_incomplete_request_times_out(tmp_path: Path, part: bytes) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            reader, writer = await door.connect()
            writer.write(part)
            await settled()
            await jump(9)
            assert len(door.service.connections) == 1
            await jump(2)
            await until(lambda: not door.service.connections)
            assert await reader.read() == b""
            assert door.requests == []
            writer.close()

    run(main())


def test_slow_octets_do_not_extend_the_deadline(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            _, writer = await door.connect()
            for octet in GET_STATUS[:10]:
                writer.write(bytes([octet]))
                await settled()
                await jump(1.2)
            await until(lambda: not door.service.connections)
            writer.close()

    run(main())


def test_a_half_closed_connection_gets_its_response(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            reader, writer = await door.connect()
            writer.write(GET_STATUS)
            writer.write_eof()
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()

    run(main())


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            _, writer = await door.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(GET)
            for _ in range(100):
                await settled()
                assert door.held < BOUND
            assert len(door.service.connections) == 1
            for _ in range(4):
                await jump(20)
            await until(lambda: not door.service.connections)
            writer.close()

    run(main())


def test_stopped_reader_of_a_live_response_is_cheap_and_not_disconnected(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            reader, writer = await door.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(500):
                await settled()
                assert door.held < BOUND
            sent = door.sent
            for _ in range(60):
                await jump(60)
            assert door.sent == sent, "the answer waits for its reader"
            assert len(door.service.connections) == 1
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(10):
                await reader.readexactly(1_000_000)
            writer.close()
            await until(lambda: not door.service.connections)

    run(main())


def test_oldest_connection_is_closed_to_make_room(tmp_path: Path) -> None:
    """Neither silent clients nor those that follow the log can lock out the operator."""

    async def main() -> None:
        async with serving(tmp_path, most=3) as door:
            with ExitStack() as stack:
                for at in range(10):
                    _, writer = await door.connect()
                    stack.callback(writer.close)
                    if at % 2:
                        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
                    await settled()
                    assert len(door.service.connections) <= 3
                assert (await door.ask(GET_STATUS)).startswith(b"HTTP/1.1 200")

    run(main())


def test_members_of_the_group_cannot_interrupt_an_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = [Peer(0, frozenset())]

    async def main() -> None:
        monkeypatch.setattr("restante.server.control.peer_of", lambda _: peers[-1])
        async with serving(tmp_path, most=4) as door:
            with ExitStack() as stack:
                reader, writer = await door.connect()
                stack.callback(writer.close)
                writer.write(GET_STATUS[:10])
                await settled()
                peers.append(Peer(OTHER, frozenset({door.path.stat().st_gid})))
                for _ in range(20):
                    _, other = await door.connect()
                    stack.callback(other.close)
                    await settled()
                    assert len(door.service.connections) <= 4
                writer.write(GET_STATUS[10:])
                assert (await reader.read()).startswith(b"HTTP/1.1 200")
            await until(lambda: not door.service.connections)
            assert not door.service.protected

    run(main())


def test_a_drain_ends_live_answers_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            _, writer = await door.connect()
            writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: door.sent > 0)
            async with asyncio.timeout(2):
                await door.service.drain(60)
            writer.close()

    run(main())


# -- Paths that exist


def test_only_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "0.sock"
    listening = bind(Address(path=str(path)))
    with pytest.raises(CannotListen):
        bind(Address(path=str(path)))
    listening.close()
    bind(Address(path=str(path))).close()
    path.unlink()
    path.write_text("mail")
    with pytest.raises(CannotListen):
        bind(Address(path=str(path)))
    assert path.read_text() == "mail"
    path.unlink()
    path.symlink_to(tmp_path / "target")
    with pytest.raises(CannotListen):
        bind(Address(path=str(path)))
    assert path.is_symlink()


def test_socket_with_a_full_queue_counts_as_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process accepts nothing, so connecting to its socket waits."""
    monkeypatch.setattr(binding, "_BACKLOG", 0)
    path = tmp_path / "0.sock"
    with ExitStack() as stack:
        stack.enter_context(bind(Address(path=str(path))))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(str(path))
        with pytest.raises(CannotListen):
            bind(Address(path=str(path)))
