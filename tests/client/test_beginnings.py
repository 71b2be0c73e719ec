"""Beginning and end of a session: entered, awaited, or forgotten."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

import restante
from restante.errors import DeadlineExceeded
from restante.testing import Pop3Server

from .shells import NONE, UNUSED, kinds, polite, scripted

IN_CLEAR: dict[str, Any] = {"user": "mrose", "password": "x", "tls": NONE, "context": UNUSED}


@pytest.fixture
def server() -> Iterator[Pop3Server]:
    with Pop3Server() as server:
        server.deliver("ann", b"Subject: one\r\n\r\nx\r\n")
        yield server


async def begun(kind: str, server: Pop3Server) -> Any:
    """Return a client that is connected but not entered."""
    if kind == "asyncio":
        return await restante.connect(server.url("ann"), ca_file=server.ca_file)
    return restante.connect_blocking(server.url("ann"), ca_file=server.ca_file)


async def do(client: Any, name: str, *arguments: Any) -> Any:
    found = getattr(client, name)(*arguments)
    return await found if asyncio.iscoroutine(found) else found


@kinds
def test_a_session_need_not_be_entered(server: Pop3Server, kind: str) -> None:
    async def main() -> None:
        client = await begun(kind, server)
        assert await do(client, "stat") == (1, 19)
        message = restante.Message(1, None, 19)
        await do(client, "delete", message)
        await do(client, "quit")
        with pytest.raises(restante.ConnectionLost, match="closed"):
            await do(client, "stat")

    asyncio.run(main())
    assert server.messages("ann") == []


@kinds
@pytest.mark.parametrize("fails", [False, True])
def test_session_that_has_begun_can_be_entered(server: Pop3Server, kind: str, fails: bool) -> None:
    """Then the block decides: its normal end sends QUIT, an exception does not."""

    async def main() -> None:
        client = await begun(kind, server)
        await do(client, "delete", restante.Message(1, None, 19))
        if kind == "asyncio":
            async with client as same:
                assert same is client
                if fails:
                    raise ZeroDivisionError
        else:
            with client as same:
                assert same is client
                if fails:
                    raise ZeroDivisionError

    with suppress(ZeroDivisionError):
        asyncio.run(main())
    assert len(server.messages("ann")) == int(fails)


@kinds
def test_a_forgotten_session_is_reported_and_removes_nothing(server: Pop3Server, kind: str) -> None:
    async def main() -> None:
        client = await begun(kind, server)
        await do(client, "delete", restante.Message(1, None, 19))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client
            gc.collect()
        assert [str(each.message) for each in caught if each.category is ResourceWarning] == [
            "POP3 session with localhost was not ended; call quit() or abort()"
        ]
        await asyncio.to_thread(server.messages, "ann")  # until the server has noticed

    asyncio.run(main())
    assert len(server.messages("ann")) == 1
    assert "QUIT" not in server.transcript


@kinds
@pytest.mark.parametrize("end", ["quit", "abort"])
def test_a_session_that_has_ended_is_not_forgotten(server: Pop3Server, kind: str, end: str) -> None:
    async def main() -> None:
        client = await begun(kind, server)
        await do(client, end)
        del client
        gc.collect()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())


def test_a_session_forgotten_until_the_loop_has_ended_is_reported(server: Pop3Server) -> None:
    kept: list[Any] = []

    async def main() -> None:
        kept.append(await begun("asyncio", server))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        kept.clear()
        gc.collect()
        texts = [str(each.message) for each in caught]
        caught.clear()  # the warnings refer to the clients
        gc.collect()
    assert any("was not ended" in each for each in texts)


def test_connect_that_is_neither_entered_nor_awaited_is_reported() -> None:
    with pytest.warns(RuntimeWarning, match="neither entered nor awaited"):
        restante.connect("pop3s://ann:x@mail.example.org")  # collected at once


def test_a_pending_client_can_be_used_once(server: Pop3Server) -> None:
    async def main() -> None:
        pending = restante.connect(server.url("ann"), ca_file=server.ca_file)
        client = await pending
        await client.quit()
        with pytest.raises(RuntimeError, match="once"):
            await pending
        with pytest.raises(RuntimeError, match="once"):
            async with pending:
                pass

    asyncio.run(main())


def test_a_mistake_is_raised_where_it_was_made() -> None:
    """At the call, not where the result is awaited."""
    with pytest.raises(restante.UnsafeArgument):
        restante.connect("imap://ann@mail.example.org", password="x")
    with pytest.raises(TypeError, match="pasword"):
        restante.connect("pop3s://ann@mail.example.org", pasword="x")  # type: ignore[call-arg]


@kinds
def test_the_deadline_holds_without_a_block(kind: str) -> None:
    """It applies to operations of the session; it does not cancel other tasks."""

    async def main() -> None:
        async with scripted(polite) as (port, _):
            url = f"pop3://127.0.0.1:{port}"
            if kind == "asyncio":
                client: Any = await restante.connect(url, deadline=0.3, **IN_CLEAR)
            else:
                client = await asyncio.to_thread(
                    restante.connect_blocking, url, deadline=0.3, **IN_CLEAR
                )
            await asyncio.sleep(0.35)
            with pytest.raises(DeadlineExceeded):
                await do(client, "noop")
            client.abort()

    asyncio.run(main())


def test_the_deadline_counts_from_the_entry() -> None:
    async def main() -> None:
        async with scripted(polite) as (port, _):
            pending = restante.connect(f"pop3://127.0.0.1:{port}", deadline=0.3, **IN_CLEAR)
            await asyncio.sleep(0.35)
            async with pending as client:
                await client.noop()

    asyncio.run(main())


def test_the_deadline_interrupts_the_source_of_a_token() -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    async def main() -> None:
        async with asyncio.timeout(5):
            await restante.connect("pop3s://ann@localhost", token=never, deadline=0.05)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(main())
