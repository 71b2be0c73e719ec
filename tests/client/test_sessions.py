"""Sharing, misusing, losing and renewing sessions, with both clients."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import restante
from restante.client import sinks
from restante.client.asynchronous import connect
from restante.client.blocking import BlockingClient
from restante.client.connecting import Limits
from restante.errors import (
    BodySkipped,
    CommandFailed,
    ConnectionLost,
    DeadlineExceeded,
    MessageTooLarge,
    UnsafeArgument,
)
from restante.pop3.listing import Message
from restante.sasl.exchange import Strength
from restante.testing import Pop3Server

from .shells import (
    ANSWERS,
    NONE,
    UNUSED,
    Held,
    Peer,
    called,
    gathered,
    iterated,
    kinds,
    opened,
    polite,
    scripted,
)

IN_CLEAR: dict[str, Any] = {
    "user": "mrose",
    "password": "tan staaf",
    "tls": NONE,
    "context": UNUSED,
}


@pytest.fixture
def server() -> Iterator[Pop3Server]:
    with Pop3Server() as found:
        yield found


def with_mail(server: Pop3Server, count: int) -> None:
    for at in range(1, count + 1):
        server.deliver("ann", f"Subject: {at}\r\n\r\n{'x' * 50}\r\n".encode())


def subjects(server: Pop3Server) -> list[str]:
    return [message["subject"] for message in server.messages("ann")]


def heard(server: Pop3Server, session: int) -> list[str]:
    """Return the commands of one session in order."""
    start = f"{session} C: "
    lines = server.transcript.splitlines()
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


async def called_on(body: Any, method: str, *arguments: Any, **options: Any) -> Any:
    return await called(getattr(body, method), *arguments, **options)


# Threads.


OPERATIONS: dict[str, Callable[[BlockingClient, Message], object]] = {
    "stat": lambda client, _: client.stat(),
    "list": lambda client, _: client.list(),
    "retrieve": lambda client, message: client.retrieve(message).read(),
    "top": lambda client, message: client.top(message).email(),
    "retrieve_all": lambda client, message: next(iter(client.retrieve_all([message]))),
    "headers": lambda client, message: next(iter(client.headers([message]))),
    "delete": lambda client, message: client.delete(message),
    "reset": lambda client, _: client.reset(),
    "noop": lambda client, _: client.noop(),
    "quit": lambda client, _: client.quit(),
    "commit": lambda client, _: client.commit(),
    "reconnect": lambda client, _: client.reconnect(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_second_thread_is_refused_before_anything_is_sent(server: Pop3Server, name: str) -> None:
    """Over TLS, where two threads in one connection crash the interpreter."""
    with_mail(server, 2)
    server.fault.delay("NOOP", seconds=0.2, times=1)
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:
        listing = client.list()
        client.delete(listing[1])
        before = len(heard(server, 1))
        waits = threading.Thread(target=client.noop)
        waits.start()
        while len(heard(server, 1)) == before:
            pass
        with pytest.raises(RuntimeError, match="two threads"):
            OPERATIONS[name](client, listing[0])
        waits.join()
        assert heard(server, 1)[before:] == ["NOOP"]
        assert client.stat()[0] == 1
    assert subjects(server) == ["1"]


def test_threads_that_share_a_session_get_their_responses_or_an_error(
    server: Pop3Server,
) -> None:
    with_mail(server, 8)
    wrong: list[object] = []
    right: list[int] = []
    url = server.url("ann")
    with restante.connect_blocking(url, ca_file=server.ca_file) as client:
        listing = client.list()

        def work(message: Message) -> None:
            for _ in range(200):
                try:
                    email = client.retrieve(message).email()
                except (RuntimeError, BodySkipped):
                    continue  # another thread is using the session
                except Exception as error:
                    wrong.append(error)
                else:
                    right.append(message.number)
                    if email["subject"] != str(message.number):
                        wrong.append(email["subject"])

        threads = [threading.Thread(target=work, args=[message]) for message in listing]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert wrong == []
        assert right
        assert client.stat()[0] == 8  # the session continues


def test_another_thread_can_end_a_waiting_session(server: Pop3Server) -> None:
    """The waiting thread gets an error, and closes the connection itself."""
    with_mail(server, 1)
    server.fault.delay("NOOP", seconds=60)
    ended: list[BaseException] = []

    def waits(client: BlockingClient) -> None:
        try:
            client.noop()
        except ConnectionLost as error:
            ended.append(error)

    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:
        thread = threading.Thread(target=waits, args=[client])
        thread.start()
        while "NOOP" not in heard(server, 1):
            pass
        client.abort()
        thread.join(10)
        assert len(ended) == 1
        with pytest.raises(ConnectionLost):
            client.stat()
    assert subjects(server) == ["1"]


# Options.


@kinds
@pytest.mark.parametrize(
    "options",
    [
        {"strenght": Strength.PROOF},
        {"Strength": Strength.PROOF},
        {"time_out": 5},
        {"cafile": None},
        {"strength": "PROOF"},
        {"strength": 2},
        {"strength": True},
        {"tls": "none"},
        {"tls": False},
        {"mechanism": Strength.PROOF},
        {"password": b"secret"},
        {"user": 7},
        {"token": 7},
        {"port": "995"},
        {"port": True},
        {"context": True},
        {"quirks": ["gmail"]},
        {"certificate": True},
        {"ca_file": True},
        {"record": "print"},
    ],
    ids=str,
)
def test_a_misspelt_or_mistaken_option_is_a_type_error(kind: str, options: dict[str, Any]) -> None:
    """``strenght=`` must never weaken a login; errors repeat no values."""

    async def main() -> None:
        async with scripted(polite) as (port, peers):
            given = {**IN_CLEAR, **options}
            with pytest.raises(TypeError, match=next(iter(options))) as caught:
                async with opened(kind, f"pop3://127.0.0.1:{port}", **given):
                    pass
            assert "secret" not in str(caught.value)
            assert peers == []

    asyncio.run(main())


@kinds
@pytest.mark.parametrize("name", restante.Options.__annotations__)
def test_none_is_the_default_of_each_option(kind: str, name: str) -> None:
    async def main() -> None:
        async with scripted(polite) as (port, _):
            given = {**IN_CLEAR, "port": port} | {name: None}
            where = f"pop3://mrose:tan%20staaf@127.0.0.1:{port}"
            if name == "tls":
                given["tls"] = NONE  # otherwise STLS is required
            async with opened(kind, where, **given) as held:
                assert len(await held.listing()) == 2

    asyncio.run(main())


@kinds
@pytest.mark.parametrize("port", [0, -1, 65_536, 10**9])
def test_invalid_ports_are_refused(kind: str, port: int) -> None:
    async def main() -> None:
        async with opened(kind, "localhost", user="ann", password="x", port=port):
            pass

    with pytest.raises(UnsafeArgument, match="port"):
        asyncio.run(main())


# Sessions that are over.


async def created_before(held: Held, message: Message) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return objects of a session that a program may keep after its end, and their use."""
    client: Any = held.client
    listing = await held.listing()
    begun = iterated(client.retrieve(listing[0]))
    await anext(begun)
    all_of_them, headers = client.retrieve_all(listing), client.headers(listing)
    unread, unparsed, top = client.retrieve(message), client.retrieve(message), client.top(message)
    return {
        "body that was begun": lambda: anext(begun),
        "retrieve_all": lambda: gathered(all_of_them),
        "headers": lambda: gathered(headers),
        "body": lambda: called(unread.read),
        "email": lambda: called(unparsed.email),
        "top": lambda: called(top.read),
        "delete": lambda: called(client.delete, message),
        "retrieve": lambda: called(lambda: client.retrieve(message)),
        "retrieve_all of old ones": lambda: gathered(client.retrieve_all([message])),
        "headers of old ones": lambda: gathered(client.headers([message])),
    }


@kinds
@pytest.mark.parametrize("renewal", ["reconnect", "commit", "lost, then reconnect"])
def test_nothing_continues_from_an_old_session_in_a_new_one(
    server: Pop3Server, kind: str, renewal: str
) -> None:
    """Its numbers mean other messages in the new one, which its deletions would remove."""
    with_mail(server, 3)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            message = (await held.listing())[0]
            later = await created_before(held, message)
            if renewal == "commit":
                await held.call("commit")
            else:
                await held.call("delete", *(await held.listing())[:2])
            if renewal.startswith("lost"):
                server.fault.drop("NOOP")
                with pytest.raises(ConnectionLost):
                    await held.call("noop")
            if renewal != "commit":
                assert await held.call("reconnect") == 2
            for name, go_on in later.items():
                with pytest.raises((BodySkipped, UnsafeArgument)):
                    pytest.fail(f"{name}: {await go_on()}")
            assert len(await held.listing()) == 3

    asyncio.run(main())
    second = [line for line in heard(server, 2) if line.split()[0] in ("RETR", "TOP", "DELE")]
    assert second == []
    assert subjects(server) == ["1", "2", "3"]


@kinds
def test_pending_deletions_are_not_sent_in_the_next_session(server: Pop3Server, kind: str) -> None:
    """They wait for a retrieval, and must not be sent in another session."""
    with_mail(server, 3)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            client: Any = held.client
            listing = await held.listing()
            unbegun = client.retrieve_all(listing)
            async for message, _ in held.each("retrieve_all", listing):
                await held.call("delete", message)
                break
            assert await held.call("reconnect") == 1
            with pytest.raises(BodySkipped):
                await gathered(unbegun)
            assert await held.call("stat") is not None

    asyncio.run(main())
    assert [line for line in heard(server, 2) if line.startswith("DELE")] == []
    assert subjects(server) == ["1", "2", "3"]


# Deletions.


@kinds
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("how", ["before", "after", "instead"])
def test_messages_are_deleted_before_after_or_without_reading_them(
    server: Pop3Server, kind: str, count: int, how: str
) -> None:
    with_mail(server, count)

    async def main() -> list[str]:
        found = []
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            async for message, body in held.each("retrieve_all", await held.listing()):
                if how != "after":
                    await held.call("delete", message)
                if how != "instead":
                    found.append((await called_on(body, "email"))["subject"])
                if how == "after":
                    await held.call("delete", message)
        return found

    assert asyncio.run(main()) == ([] if how == "instead" else list(map(str, range(1, count + 1))))
    assert server.messages("ann") == []


@kinds
@pytest.mark.parametrize("way", ["in a retrieval", "one by one", "all at once"])
def test_a_refused_deletion_is_raised_when_the_others_are_removed(
    server: Pop3Server, kind: str, way: str
) -> None:
    with_mail(server, 3)
    server.fault.err("DELE", "on hold", times=1)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.listing()
            if way == "in a retrieval":
                async for message, body in held.each("retrieve_all", listing):
                    await called_on(body, "read")
                    await held.call("delete", message)
            elif way == "one by one":
                for message in listing:
                    await held.call("delete", message)
            else:
                await held.call("delete", *listing)
            await held.call("noop")
            assert list(held.client.refused) == listing[:1]

    with pytest.raises(CommandFailed, match="DELE: on hold"):
        asyncio.run(main())
    assert subjects(server) == ["1"]


@kinds
def test_a_refused_deletion_does_not_keep_commit_from_going_on(
    server: Pop3Server, kind: str
) -> None:
    with_mail(server, 3)
    server.fault.err("DELE", "on hold", times=1)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            await held.call("delete", *await held.listing())
            with pytest.raises(CommandFailed, match="DELE: on hold"):
                await held.call("commit")
            assert len(await held.listing()) == 1
            await held.call("delete", *await held.listing())

    asyncio.run(main())
    assert server.messages("ann") == []


@kinds
@pytest.mark.parametrize("then", ["ends", "reconnects in vain"])
def test_ignored_loss_of_deletions_is_reported_at_the_end(
    server: Pop3Server, kind: str, then: str
) -> None:
    with_mail(server, 3)
    server.fault.drop("NOOP")

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            await held.call("delete", *await held.listing())
            with pytest.raises(ConnectionLost):
                await held.call("noop")
            if then == "reconnects in vain":
                server.fault.err("AUTH", "[SYS/TEMP] not now", times=1)
                with pytest.raises(CommandFailed):
                    await held.call("reconnect")

    with pytest.raises(ConnectionLost) as caught:
        asyncio.run(main())
    assert (caught.value.lost_deletions, caught.value.is_known) == (3, True)
    assert caught.value.__cause__ is not None
    assert len(server.messages("ann")) == 3


@kinds
@pytest.mark.parametrize("then", ["abort", "reconnect", "lost without deletions", "raise"])
def test_known_loss_or_none_is_not_reported(server: Pop3Server, kind: str, then: str) -> None:
    with_mail(server, 3)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            if then != "lost without deletions":
                await held.call("delete", *await held.listing())
            if then == "abort":
                held.client.abort()  # on purpose
                return
            server.fault.drop("NOOP")
            with pytest.raises(ConnectionLost):
                await held.call("noop")
            if then == "reconnect":
                assert await held.call("reconnect") == 3
            if then == "raise":
                raise ZeroDivisionError

    if then == "raise":
        with pytest.raises(ZeroDivisionError):
            asyncio.run(main())
    else:
        asyncio.run(main())
    assert len(server.messages("ann")) == 3


@kinds
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("marked", [0, 1])
def test_close_at_quit_loses_only_marked_deletions(
    server: Pop3Server, kind: str, reset: bool, marked: int
) -> None:
    """Some servers never answer QUIT; without marked messages that loses nothing."""
    with_mail(server, 2)
    server.fault.drop("QUIT", reset=reset)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            await held.call("delete", *(await held.listing())[:marked])

    if marked:
        with pytest.raises(ConnectionLost) as caught:
            asyncio.run(main())
        assert (caught.value.lost_deletions, caught.value.is_known) == (1, False)
    else:
        asyncio.run(main())
    assert len(server.messages("ann")) == 2 - marked


@kinds
def test_a_connection_that_is_lost_before_quit_is_an_error(server: Pop3Server, kind: str) -> None:
    server.fault.drop("NOOP")

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            await held.call("noop")

    with pytest.raises(ConnectionLost):
        asyncio.run(main())


# Mistakes.


def raises_at(listing: list[Message], place: int) -> Iterator[Message]:
    yield from listing[:place]
    raise ZeroDivisionError


@kinds
@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda client, _: client.retrieve(1), TypeError),
        (lambda client, _: client.retrieve("1"), TypeError),
        (lambda client, _: client.retrieve(None), TypeError),
        (lambda client, _: client.top(1), TypeError),
        (lambda client, listing: client.top(listing[0], -1), UnsafeArgument),
        (lambda client, listing: client.top(listing[0], "x"), TypeError),
        (lambda client, listing: client.delete(listing), TypeError),
        (lambda client, listing: client.delete(*listing, 1), TypeError),
        (lambda client, listing: client.delete(iter(listing)), TypeError),
        (lambda client, _: client.retrieve_all(1), TypeError),
        (lambda client, listing: client.retrieve_all(listing[0]), TypeError),
        (lambda client, listing: client.retrieve_all([*listing, 3]), TypeError),
        (lambda client, _: client.retrieve_all(raises_at([], 0)), ZeroDivisionError),
        (lambda client, listing: client.retrieve_all(raises_at(listing, 0)), ZeroDivisionError),
        (lambda client, listing: client.retrieve_all(raises_at(listing, 1)), ZeroDivisionError),
        (lambda client, listing: client.headers(raises_at(listing, 1)), ZeroDivisionError),
        (lambda client, _: client.headers(["1"]), TypeError),
        (lambda client, listing: client.retrieve(listing[0]).read(-1), UnsafeArgument),
        (lambda client, listing: client.retrieve(listing[0]).save(None), TypeError),
    ],
)
def test_mistake_raises_an_error_and_the_session_continues(
    server: Pop3Server, kind: str, mistake: Callable[[Any, Any], Any], error: type[Exception]
) -> None:
    with_mail(server, 2)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.listing()
            await held.call("delete", listing[1])

            async def make_it() -> None:
                found = mistake(held.client, listing)
                if inspect.iscoroutine(found):
                    await found
                elif found is not None:
                    await gathered(found)

            with pytest.raises(error):
                await make_it()
            assert (await held.call("stat"))[0] == 1

    asyncio.run(main())
    assert subjects(server) == ["1"]


def test_an_iterable_may_list_the_messages_itself(server: Pop3Server) -> None:
    """For example ``retrieve_all(client.list())``, which is in the manual."""
    with_mail(server, 3)
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:

        def odd() -> Iterator[Message]:
            for message in client.list():
                if message.number % 2:
                    yield message

        for source in (client.list(), odd(), (each for each in client.list())):
            found = [body.read() for _, body in client.retrieve_all(source)]
            assert len(found) in (2, 3)


@kinds
def test_a_listing_is_a_sequence_for_retrieve_all(server: Pop3Server, kind: str) -> None:
    """Also by unique-id, which identifies messages across sessions."""
    with_mail(server, 3)

    async def main() -> None:
        known = ""
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.call("list")
            assert [await called(body.read) async for _, body in held.each("retrieve_all", listing)]
            known = listing[1].unique_id
            await held.call("delete", listing[0])
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.call("list")
            assert (listing[known].number, listing[known].unique_id) == (1, known)
            await held.call("delete", listing[known])

    asyncio.run(main())
    assert subjects(server) == ["3"]


@kinds
def test_the_old_name_of_list_warns_and_works(server: Pop3Server, kind: str) -> None:
    with_mail(server, 2)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            client: Any = held.client
            with pytest.warns(DeprecationWarning, match=r"use list\(\)") as caught:
                old = client.messages()
            assert caught[0].filename == __file__
            assert await gathered(old) == await held.listing()

    asyncio.run(main())


def test_an_iterable_that_uses_the_session_meanwhile_is_a_mistake(server: Pop3Server) -> None:
    with_mail(server, 3)
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:

        def nosy() -> Iterator[Message]:
            for message in client.list():
                yield message
                client.noop()

        found = client.retrieve_all(nosy())
        assert next(found)[1].read()
        with pytest.raises(RuntimeError, match="POP3 session"):
            list(found)
        assert client.stat()[0] == 3


@kinds
def test_a_record_that_cannot_be_written_costs_no_session(server: Pop3Server, kind: str) -> None:
    """For example ``print`` on a terminal that cannot display a character."""
    with_mail(server, 1)

    def fails(line: str) -> None:
        if "NOOP" in line:
            raise UnicodeEncodeError("ascii", "é", 0, 1, "not here")

    async def main() -> None:
        url, trust = server.url("ann"), server.ca_file
        async with opened(kind, url, ca_file=trust, record=fails) as held:
            await held.call("delete", *await held.listing())
            with pytest.raises(UnicodeEncodeError):
                await held.call("noop")
            assert await held.call("stat") == (0, 0)

    asyncio.run(main())
    assert server.messages("ann") == []


# Bodies.


@kinds
@pytest.mark.parametrize("method", ["read", "email"])
@pytest.mark.parametrize("pipelined", [False, True])
def test_message_larger_than_the_limit_is_refused(
    server: Pop3Server, kind: str, method: str, pipelined: bool
) -> None:
    """Messages announced as larger are not requested; those that turn out larger are skipped."""
    size = len(b"Subject: 1\r\n\r\n") + 52
    with_mail(server, 3)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.listing()
            assert listing[0].size == size
            if pipelined:
                async for _, body in held.each("retrieve_all", listing):
                    with pytest.raises(MessageTooLarge, match=f"larger than {size - 1} octets"):
                        await called_on(body, method, size - 1)
            else:
                body = held.client.retrieve(listing[0])
                with pytest.raises(MessageTooLarge):
                    await called_on(body, method, max_size=size - 1)
                assert "RETR 1" not in heard(server, 1)
                assert await called_on(body, method, size)  # it was not read
            found = [
                await called_on(body, method, size)
                async for _, body in held.each("retrieve_all", listing)
            ]
            assert len(found) == 3

    asyncio.run(main())


@kinds
@pytest.mark.parametrize("method", ["read", "email"])
def test_limit_applies_even_if_the_server_announces_wrong_sizes(
    server: Pop3Server, kind: str, method: str
) -> None:
    with_mail(server, 1)
    server.fault.lie_about_size(-40)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            [message] = await held.listing()
            body = held.client.retrieve(message)
            with pytest.raises(MessageTooLarge):
                await called_on(body, method, 40)
            with pytest.raises(BodySkipped):
                await called_on(body, method)
            assert (await held.call("stat"))[0] == 1

    asyncio.run(main())


@kinds
def test_headers_have_a_limit_too(server: Pop3Server, kind: str) -> None:
    with_mail(server, 2)

    async def main() -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            listing = await held.listing()
            found = [each async for each in held.each("headers", listing, max_size=14)]
            assert [headers["subject"] for _, headers in found] == ["1", "2"]
            with pytest.raises(MessageTooLarge):
                await gathered(held.client.headers(listing, max_size=13))

    asyncio.run(main())


def test_save_and_email_leave_the_event_loop_alone(
    server: Pop3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk operations and the parser run in another thread."""
    with_mail(server, 1)
    server.deliver("ann", b"x" * 78 + b"\r\n" + (b"y" * 78 + b"\r\n") * 40_000)
    used: dict[str, set[int]] = {}

    def noted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            used.setdefault(name, set()).add(threading.get_ident())
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for name in ("open", "fsync", "link", "close", "unlink"):
        noted(os, name)
    noted(sinks.FileSink, "write")
    noted(sinks.ParserSink, "close")

    async def main() -> None:
        async with connect(server.url("ann"), ca_file=server.ca_file) as client:
            used.clear()
            listing = await client.list()
            async for message, body in client.retrieve_all(listing):
                await body.save(tmp_path / str(message.number))
            await client.retrieve(listing[0]).email()

    asyncio.run(main())
    assert {"open", "fsync", "link", "write"} <= used.keys()
    assert threading.get_ident() not in set.union(*used.values())
    assert [path.stat().st_size for path in sorted(tmp_path.iterdir())] == [66, 3_200_080]


@pytest.mark.parametrize("step", ["__enter__", "write", "__exit__"])
def test_a_cancelled_save_leaves_no_trace_of_half_a_message(
    server: Pop3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A running thread is awaited before its file is removed."""
    with_mail(server, 1)
    original = getattr(sinks.FileSink, step)
    begun, may_end = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        may_end.wait(10)
        return original(*arguments)

    monkeypatch.setattr(sinks.FileSink, step, slow)

    async def main() -> None:
        async with connect(server.url("ann"), ca_file=server.ca_file) as client:
            [message] = await client.list()
            task = asyncio.create_task(client.retrieve(message).save(tmp_path / "one"))
            await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    whole = step == "__exit__"  # cancelled too late
    assert [path.name for path in tmp_path.iterdir()] == (["one"] if whole else [])


# Deadlines.


async def noops(client: Any) -> None:
    while True:
        await client.noop()


def test_the_deadline_holds_in_a_task_that_did_not_enter_the_block() -> None:
    """For example with a fixture that enters it for a test."""

    async def main() -> None:
        async with scripted(polite) as (port, peers):
            where = f"pop3://127.0.0.1:{port}"
            block = connect(where, timeout=10, deadline=0.5, **IN_CLEAR)
            client = await asyncio.create_task(block.__aenter__())
            with pytest.raises(DeadlineExceeded, match="deadline"):
                await asyncio.create_task(noops(client))
            await asyncio.create_task(block.__aexit__(None, None, None))
        assert b"QUIT" not in peers[0].heard

    asyncio.run(main())


def test_a_wait_in_another_task_ends_at_the_deadline() -> None:
    async def silent_after_the_login(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while (command := await peer.hear()) != b"NOOP":
            await peer.say(ANSWERS.get(command, b"+OK\r\n"))
        await peer.until_gone()

    async def main() -> None:
        async with scripted(silent_after_the_login) as (port, _):
            where = f"pop3://127.0.0.1:{port}"
            block = connect(where, timeout=60, deadline=0.5, **IN_CLEAR)
            client = await asyncio.create_task(block.__aenter__())
            with pytest.raises(DeadlineExceeded, match="deadline"):
                await client.noop()
            await block.__aexit__(None, None, None)

    asyncio.run(main())


def test_within_the_deadline_another_task_may_end_the_block() -> None:
    async def main() -> None:
        async with scripted(polite) as (port, peers):
            where = f"pop3://127.0.0.1:{port}"
            block = connect(where, timeout=10, deadline=60, **IN_CLEAR)
            client = await asyncio.create_task(block.__aenter__())
            await asyncio.create_task(client.noop())
            await asyncio.create_task(block.__aexit__(None, None, None))
        assert peers[0].heard[-2:] == [b"NOOP", b"QUIT"]

    asyncio.run(main())


@kinds
def test_no_command_is_sent_when_the_deadline_is_over(kind: str) -> None:
    """Even if its answer would arrive at once."""

    async def too_late(where: str) -> None:
        async with opened(kind, where, **IN_CLEAR) as held:
            await held.call("delete", *await held.listing())
            held.client._limits = Limits(60, 0.001)
            await asyncio.sleep(0.01)
            await held.call("noop")

    async def main() -> None:
        async with scripted(polite) as (port, peers):
            with pytest.raises(DeadlineExceeded, match="deadline") as caught:
                await too_late(f"pop3://127.0.0.1:{port}")
            assert caught.value.lost_deletions == 2
            assert peers[0].heard[-1] == b"DELE 2"

    asyncio.run(main())
