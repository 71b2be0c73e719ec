"""Both clients reach a host in the same way, and fail in the same way (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

from restante.client import connecting
from restante.client.connecting import MAX_ADDRESSES, Limits, interleave, reach, reach_blocking
from restante.errors import ClientError, ConnectionLost, UnsafeArgument

from ..support import until
from .shells import ANSWERS, NONE, UNUSED, Peer, kinds, opened, polite, scripted

V4, V6 = socket.AF_INET, socket.AF_INET6
IN_CLEAR: dict[str, Any] = {
    "user": "mrose",
    "password": "tan staaf",
    "tls": NONE,
    "context": UNUSED,
}


def entry(host: str, port: int, family: int = V4) -> Any:
    return (family, socket.SOCK_STREAM, 6, "", (host, port))


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """Return an address that does not answer: a socket with a full queue."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        where: tuple[str, int] = listening.getsockname()
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(where)
        yield where


REFUSES = entry("127.0.0.3", 1)
NOT_HERE = (9999, socket.SOCK_STREAM, 6, "", ("127.0.0.3", 1))  # a family that does not exist


async def outcome(kind: str, port: int, **options: Any) -> str:
    """Return the result or the error that a program gets."""
    try:
        async with opened(kind, f"pop3://localhost:{port}", **IN_CLEAR, **options) as held:
            return str(await held.call("stat"))
    except ClientError as error:
        return f"{type(error).__name__}: {error}"


async def counting(peer: Peer) -> None:
    await peer.say(b"+OK ready\r\n")
    while command := await peer.hear():
        await peer.say(b"+OK 1 2\r\n" if command == b"STAT" else ANSWERS.get(command, b"+OK\r\n"))


def resolving(patch: pytest.MonkeyPatch, *entries: Any) -> None:
    patch.setattr(socket, "getaddrinfo", lambda *_, **__: list(entries))


@kinds
@pytest.mark.rfc("P-167")
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("after", [0, 2])
def test_first_address_that_responds_is_used(
    kind: str, before: int, after: int, dead: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number before it may refuse, be dead, or have a family this machine lacks."""
    monkeypatch.setattr(connecting, "DELAY", 0.02)

    async def main() -> None:
        async with scripted(counting) as (port, peers):
            odd = [REFUSES, entry(*dead), NOT_HERE]
            resolving(
                monkeypatch,
                *odd * before,
                entry("127.0.0.1", port),
                *[entry(*dead)] * after,
            )
            assert await outcome(kind, port, timeout=20) == "(1, 2)"
        assert len(peers) == 1

    asyncio.run(main())


@kinds
@pytest.mark.parametrize(
    ("entries", "reported"),
    [
        ([], "CannotConnect: localhost: localhost has no address"),
        ([REFUSES], "CannotConnect: localhost: Connection refused"),
        ([NOT_HERE, REFUSES], "CannotConnect: localhost: Connection refused"),
        (["dead"], "DeadlineExceeded: localhost does not answer"),
        ([REFUSES, "dead"], "DeadlineExceeded: localhost does not answer"),
        (["dead", REFUSES], "DeadlineExceeded: localhost does not answer"),
    ],
)
def test_no_address_responds(
    kind: str,
    entries: list[Any],
    reported: str,
    dead: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, *[entry(*dead) if each == "dead" else each for each in entries])
    monkeypatch.setattr(connecting, "DELAY", 0.02)
    assert asyncio.run(outcome(kind, 1, timeout=0.2)) == reported


@kinds
def test_the_deadline_ends_it_too(
    kind: str, dead: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, entry(*dead), entry(*dead))
    reported = "DeadlineExceeded: the deadline has passed"
    assert asyncio.run(outcome(kind, 1, timeout=60, deadline=0.1)) == reported


@kinds
@pytest.mark.parametrize(
    ("limits", "reported"),
    [
        ({"timeout": 0.05}, "DeadlineExceeded: mail.invalid does not answer"),
        ({"deadline": 0.05}, "DeadlineExceeded: the deadline has passed"),
    ],
)
def test_look_up_that_hangs_times_out(
    kind: str, limits: dict[str, Any], reported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the program can exit meanwhile."""
    goes_on = threading.Event()

    def hangs(*_: object, **__: object) -> list[Any]:
        goes_on.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hangs)

    async def main() -> str:
        try:
            async with opened(kind, "mail.invalid", user="ann", password="x", **limits):
                return "connected"
        except ClientError as error:
            return f"{type(error).__name__}: {error}"

    try:
        assert asyncio.run(main()) == reported
        assert all(each.daemon for each in threading.enumerate() if each.name == "getaddrinfo")
    finally:
        goes_on.set()


@kinds
@pytest.mark.parametrize("host", ["a..b", "x" * 64, "é" * 64])
def test_invalid_host_names_are_refused(kind: str, host: str) -> None:
    async def main() -> None:
        async with opened(kind, host, user="ann", password="x"):
            pass

    with pytest.raises(ConnectionLost, match="host"):
        asyncio.run(main())


class Noted(socket.socket):
    """A socket that a test can inspect afterwards."""

    made: ClassVar[list[socket.socket]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.made.append(self)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Return all sockets made from here on."""
    monkeypatch.setattr(Noted, "made", [])
    monkeypatch.setattr(socket, "socket", Noted)
    return Noted.made


async def reached(kind: str, port: int) -> socket.socket:
    if kind == "asyncio":
        return await reach("localhost", port)
    return await asyncio.to_thread(reach_blocking, "localhost", port, 20)


@kinds
def test_no_socket_is_left_over(
    kind: str, dead: tuple[str, int], made: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "DELAY", 0.01)

    async def main() -> None:
        async with scripted(polite) as (port, peers):
            resolving(monkeypatch, REFUSES, *[entry(*dead)] * 5, entry("127.0.0.1", port))
            made.clear()
            found = await reached(kind, port)
            await until(lambda: len(peers) == 1)
            clients = [each for each in made if each.family == V4 and each.fileno() >= 0]
            assert [each for each in clients if each.getsockname()[1] != port] == [found]
            found.close()

    asyncio.run(main())


def test_a_cancelled_attempt_leaves_no_socket(
    dead: tuple[str, int], made: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, *[entry(*dead)] * 3)
    monkeypatch.setattr(connecting, "DELAY", 0.01)

    async def main() -> None:
        made.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reach("localhost", 1)
        assert len(made) == 3
        assert all(each.fileno() < 0 for each in made)

    asyncio.run(main())


@pytest.mark.rfc("P-166")
def test_address_families_alternate() -> None:
    """RFC 8305 §4: a broken family costs at most one delay each time."""
    sixes = [entry(f"::{at}", 1, V6) for at in range(3)]
    fours = [entry(f"127.0.0.{at}", 1) for at in range(2)]
    expected = [sixes[0], fours[0], sixes[1], fours[1], sixes[2]]
    assert interleave([*sixes, *fours]) == expected
    assert interleave([*fours, *sixes])[0] == fours[0]
    assert interleave([]) == []


@kinds
def test_only_some_of_very_many_addresses_are_tried(
    kind: str, made: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile DNS answer must not cause unlimited work."""
    resolving(monkeypatch, *[REFUSES] * 5000)

    async def main() -> None:
        made.clear()
        with pytest.raises(ConnectionRefusedError):
            await reached(kind, 1)
        assert len(made) == MAX_ADDRESSES

    asyncio.run(main())


# Limits.


@kinds
@pytest.mark.parametrize("name", ["timeout", "deadline"])
@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (0, UnsafeArgument),
        (-1, UnsafeArgument),
        (float("nan"), UnsafeArgument),
        ("60", TypeError),
        (True, TypeError),
    ],
)
def test_invalid_numbers_of_seconds_are_refused(
    kind: str, name: str, seconds: Any, error: type[Exception]
) -> None:
    async def main() -> None:
        async with opened(kind, "localhost", user="ann", password="x", **{name: seconds}):
            pass

    with pytest.raises(error, match=name):
        asyncio.run(main())


@kinds
def test_no_limit(kind: str) -> None:
    async def main() -> None:
        async with scripted(counting) as (port, _):
            assert await outcome(kind, port, timeout=None, deadline=None) == "(1, 2)"

    asyncio.run(main())


def test_the_next_wait_is_the_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limits = Limits(10, 25, now)
    assert (limits.next_wait(), limits.has_deadline_passed) == (10, False)
    now = 120.0
    assert (limits.next_wait(), limits.has_deadline_passed) == (5, False)
    now = 125.0
    assert (limits.next_wait(), limits.has_deadline_passed) == (0, True)
    assert (Limits(None, 30, 100.0).next_wait(), Limits(None, None).next_wait()) == (5, None)
