"""``retrieve_all(…, delete=True)``: a message read to its end is deleted at the next iteration.

This is tested where it could fail: at 0, 1 and many messages, when the loop is left, when
a message is read in part, when storing it fails, and when the server or the caller interferes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import restante
from restante.errors import BodySkipped, CommandFailed, ConnectionLost, MessageTooLarge
from restante.testing import Pop3Server

from .shells import Held, called, gathered, iterated, kinds, opened

Step = Callable[[int, Any, Held], Awaitable[object]]
"""The body of the loop, for the message with this number."""


@pytest.fixture
def server() -> Iterator[Pop3Server]:
    with Pop3Server() as server:
        yield server


def deliver(server: Pop3Server, count: int) -> None:
    for number in range(1, count + 1):
        server.deliver("ann", f"Subject: {number}\r\n\r\n{number * 'x'}\r\n".encode())


def left(server: Pop3Server) -> list[str]:
    return [str(each["subject"]) for each in server.messages("ann")]


def fetch(server: Pop3Server, kind: str, step: Step, **options: Any) -> None:
    """Run a session: the loop, then QUIT."""

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file, **options) as held:
            await loop(held, await held.listing(), step)

    asyncio.run(main())


async def loop(held: Held, listing: list[restante.Message], step: Step) -> None:
    async for message, body in held.each("retrieve_all", listing, delete=True):
        await step(message.number, body, held)


async def read(_: int, body: Any, __: Held) -> object:
    return await called(body.read)


@kinds
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_messages_read_to_the_end_are_deleted(server: Pop3Server, kind: str, count: int) -> None:
    deliver(server, count)
    fetch(server, kind, read)
    assert left(server) == []
    assert [each["subject"] for each in server.held("ann")] == [str(1 + n) for n in range(count)]


@kinds
@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_deleted_without_being_asked(server: Pop3Server, kind: str, count: int) -> None:
    deliver(server, count)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            async for _, body in held.each("retrieve_all", await held.listing()):
                await called(body.read)

    asyncio.run(main())
    assert len(left(server)) == count
    assert "DELE" not in server.transcript


async def by_pieces(_: int, body: Any, __: Held) -> None:
    async for _piece in iterated(body):
        pass


async def parsed(_: int, body: Any, __: Held) -> None:
    await called(body.email)


@kinds
@pytest.mark.parametrize("way", [by_pieces, parsed])
def test_every_way_to_read_counts(server: Pop3Server, kind: str, way: Step) -> None:
    deliver(server, 2)
    fetch(server, kind, way)
    assert left(server) == []


@kinds
def test_saved_messages_are_deleted_and_others_are_not(
    server: Pop3Server, kind: str, tmp_path: Path
) -> None:
    deliver(server, 3)
    (tmp_path / "2").write_text("is there already")

    async def save(number: int, body: Any, _: Held) -> None:
        with suppress(FileExistsError):
            await called(body.save, tmp_path / str(number))

    fetch(server, kind, save)
    assert left(server) == ["2"]
    assert (tmp_path / "3").read_bytes() == b"Subject: 3\r\n\r\nxxx\r\n"


@kinds
@pytest.mark.parametrize("call", ["os.fsync", "os.link"])
def test_a_message_that_was_received_but_not_saved_stays(
    server: Pop3Server, kind: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last octet arrived; then the disk failed, and the program continued."""
    deliver(server, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def save(number: int, body: Any, _: Held) -> None:
        with monkeypatch.context() as patch:
            if number == 1:
                patch.setattr(call, full)
            with suppress(OSError):
                await called(body.save, tmp_path / str(number))

    fetch(server, kind, save)
    assert left(server) == ["1"]


@kinds
def test_a_message_that_could_not_be_parsed_stays(
    server: Pop3Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(server, 1)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async def parse(_: int, body: Any, __: Held) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("restante.mime.parse", broken)
            with suppress(ZeroDivisionError):
                await called(body.email)

    fetch(server, kind, parse)
    assert left(server) == ["1"]


async def unread(_: int, __: Any, ___: Held) -> None:
    pass


async def in_part(_: int, body: Any, __: Held) -> None:
    """All octets arrived with the first piece, but the loop does not know that."""
    async for _piece in iterated(body):
        break


async def all_but_the_end(_: int, body: Any, __: Held) -> None:
    pieces = iterated(body)
    assert await anext(pieces)


async def too_large(_: int, body: Any, __: Held) -> None:
    with pytest.raises(MessageTooLarge):
        await called(body.read, 5)


@kinds
@pytest.mark.parametrize("way", [unread, in_part, all_but_the_end, too_large])
def test_partly_read_message_stays(server: Pop3Server, kind: str, way: Step) -> None:
    deliver(server, 3)

    async def odd_ones(number: int, body: Any, held: Held) -> None:
        await (read if number == 2 else way)(number, body, held)

    fetch(server, kind, odd_ones)
    assert left(server) == ["1", "3"]


@kinds
@pytest.mark.parametrize("count", [1, 3])
def test_an_exception_in_the_loop_removes_nothing(
    server: Pop3Server, kind: str, count: int
) -> None:
    deliver(server, count)

    async def fails_at_the_last(number: int, body: Any, _: Held) -> None:
        await called(body.read)
        if number == count:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fetch(server, kind, fails_at_the_last)
    assert len(left(server)) == count


@kinds
@pytest.mark.parametrize("how", ["break", "exception that the block catches"])
def test_the_message_at_which_the_loop_is_left_stays(
    server: Pop3Server, kind: str, how: str
) -> None:
    """Although it was read to its end: the program may not have finished with it."""
    deliver(server, 3)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            with suppress(ZeroDivisionError):
                async for message, body in held.each(
                    "retrieve_all", await held.listing(), delete=True
                ):
                    await called(body.read)
                    if message.number == 2 and how == "break":
                        break
                    if message.number == 2:
                        raise ZeroDivisionError

    asyncio.run(main())
    assert left(server) == ["2", "3"]


@kinds
def test_a_message_that_the_server_refuses_stays(server: Pop3Server, kind: str) -> None:
    deliver(server, 3)
    server.fault.err("RETR", "[SYS/TEMP] not now", times=1)

    async def patient(_: int, body: Any, __: Held) -> None:
        with suppress(CommandFailed):
            await called(body.read)

    fetch(server, kind, patient)
    assert left(server) == ["1"]


@kinds
def test_a_refused_deletion_is_raised_when_the_others_are_removed(
    server: Pop3Server, kind: str
) -> None:
    deliver(server, 3)
    server.fault.err("DELE", "[SYS/TEMP] not now", times=1)
    with pytest.raises(CommandFailed, match="DELE"):
        fetch(server, kind, read)
    assert left(server) == ["1"]


@kinds
def test_a_lost_connection_removes_nothing(server: Pop3Server, kind: str) -> None:
    deliver(server, 3)
    server.fault.drop("QUIT")
    with pytest.raises(ConnectionLost) as caught:
        fetch(server, kind, read)
    assert caught.value.lost_deletions == 3


@kinds
def test_half_a_message_stays(server: Pop3Server, kind: str) -> None:
    deliver(server, 3)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            client: Any = held.client
            listing = await held.listing()
            server.fault.drop("RETR", after_bytes=15)
            with pytest.raises(ConnectionLost):
                await loop(held, listing, read)
            assert client.deletions == 0
            await held.call("reconnect")

    asyncio.run(main())
    assert len(left(server)) == 3


@kinds
@pytest.mark.parametrize("command", ["reset", "noop", "reconnect", "commit"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_command_in_the_loop_ends_it_and_deletes_nothing_more(
    server: Pop3Server, kind: str, command: str, count: int
) -> None:
    """Especially RSET: the caller has undone all deletions, so no other may follow, even of the
    last message."""
    deliver(server, count)

    async def interfere(number: int, body: Any, held: Held) -> None:
        await called(body.read)
        if number == 2:
            await held.call(command)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.listing()
            with pytest.raises(BodySkipped):
                await loop(held, listing, interfere)

    asyncio.run(main())
    # At the next iteration the first message was marked; after RSET none was.
    removed = {"reset": 0, "noop": 1, "reconnect": 0, "commit": 1}
    assert len(left(server)) == count - removed[command]


@kinds
@pytest.mark.parametrize("when", ["before", "after", "ahead"])
def test_message_deleted_by_the_caller_is_not_deleted_twice(
    server: Pop3Server, kind: str, when: str
) -> None:
    """A second DELE would fail, and hide other errors."""
    deliver(server, 3)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.listing()
            async for message, body in held.each("retrieve_all", listing, delete=True):
                if when == "before":
                    await held.call("delete", message)
                elif when == "ahead" and message.number == 1:
                    await held.call("delete", listing[1])
                await called(body.read)
                if when == "after":
                    await held.call("delete", message)

    asyncio.run(main())
    assert left(server) == []
    assert server.transcript.count("DELE") == 3


@kinds
def test_message_requested_twice_is_deleted_once(server: Pop3Server, kind: str) -> None:
    deliver(server, 2)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            first, last = await held.listing()
            await loop(held, [first, first, last, first], read)

    asyncio.run(main())
    assert left(server) == []
    assert server.transcript.count("DELE") == 2


@kinds
def test_the_session_goes_on_after_it(server: Pop3Server, kind: str) -> None:
    deliver(server, 2)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            client: Any = held.client
            async for _, body in held.each("retrieve_all", await held.listing(), delete=True):
                await called(body.read)
            assert client.deletions == 2
            assert await held.call("stat") == (0, 0)

    asyncio.run(main())
    assert left(server) == []


# The limit of the session.


@kinds
@pytest.mark.parametrize("way", ["read", "email", "save", "pieces"])
@pytest.mark.parametrize("lies", [False, True])
def test_the_limit_of_a_session_is_for_every_way_to_read(
    server: Pop3Server, kind: str, way: str, lies: bool, tmp_path: Path
) -> None:
    """Even if the server announces less than it sends; the session continues."""
    server.deliver("ann", b"Subject: large\r\n\r\n" + b"x" * 200 + b"\r\n")
    server.deliver("ann", b"Subject: small\r\n\r\nx\r\n")
    if lies:
        server.fault.lie_about_size(-200)

    async def one(_: int, body: Any, __: Held) -> None:
        with suppress(MessageTooLarge):
            if way == "save":
                await called(body.save, tmp_path / str(body.message.number))
            elif way == "pieces":
                await by_pieces(0, body, __)
            else:
                await called(getattr(body, way))

    fetch(server, kind, one, max_size=100)
    assert left(server) == ["large"]
    assert [path.name for path in tmp_path.iterdir()] == (["2"] if way == "save" else [])


@kinds
def test_a_call_may_have_another_limit_than_the_session(server: Pop3Server, kind: str) -> None:
    deliver(server, 1)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file, max_size=5) as held:
            client: Any = held.client
            message = (await held.listing())[0]
            body = client.retrieve(message)
            with pytest.raises(MessageTooLarge, match="5 octets") as caught:
                await called(body.read)
            assert caught.value.limit == 5
            assert len(await called(body.read, 1000)) == message.size  # it was not requested before
            with pytest.raises(MessageTooLarge):
                await called(client.top(message).read)
            assert [h async for _, h in held.each("headers", [message], max_size=50)]
            with pytest.raises(MessageTooLarge):
                await gathered(client.headers([message]))
            await held.call("noop")

    asyncio.run(main())


@kinds
@pytest.mark.parametrize(
    ("size", "error"),
    [(-1, restante.UnsafeArgument), ("5", TypeError), (True, TypeError), (1.5, TypeError)],
)
def test_invalid_size_limits_are_refused(kind: str, size: Any, error: type[Exception]) -> None:
    async def main() -> None:
        async with opened(kind, "pop3s://ann:x@localhost", max_size=size):
            pass

    with pytest.raises(error, match="max_size"):
        asyncio.run(main())
