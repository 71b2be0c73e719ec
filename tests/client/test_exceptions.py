"""Exceptions that programs catch, including the built-in ones of Python's network code."""

from __future__ import annotations

import asyncio
import pickle
import socket
from typing import Any

import pytest

import restante
from restante.app.failures import adding_path, describe
from restante.errors import RestanteError
from restante.testing import Pop3Server

from .shells import NONE, UNUSED, Peer, kinds, opened, polite, scripted

IN_CLEAR: dict[str, Any] = {"user": "mrose", "password": "x", "tls": NONE, "context": UNUSED}


def exported() -> list[type[BaseException]]:
    found = [getattr(restante, name) for name in restante.__all__]
    return [each for each in found if isinstance(each, type) and issubclass(each, BaseException)]


def test_every_exported_exception_has_the_exported_base() -> None:
    assert len(exported()) > 12
    for kind in exported():
        assert issubclass(kind, restante.RestanteError), kind


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (restante.ConnectionLost, (ConnectionError, OSError)),
        (restante.CannotConnect, (restante.ConnectionLost, ConnectionError)),
        (restante.DeadlineExceeded, (restante.ConnectionLost, TimeoutError, ConnectionError)),
        (restante.ProtocolBroken, (restante.ConnectionLost,)),
        (restante.StaleMessage, (restante.UnsafeArgument, ValueError)),
    ],
)
def test_an_exception_is_also_one_that_people_already_catch(
    kind: type[Exception], bases: tuple[type[Exception], ...]
) -> None:
    assert all(issubclass(kind, base) for base in bases)


def test_other_exceptions_are_not_caught_with_the_systems() -> None:
    """A refused login is no ConnectionError, and a large message no OSError of a full disk."""
    for kind in exported():
        assert issubclass(kind, OSError) == issubclass(kind, restante.ConnectionLost)


def test_text_and_values_survive_a_file_name_and_pickling() -> None:
    error = restante.DeadlineExceeded("silent for 60 s", 2, is_known=False)
    with pytest.raises(restante.DeadlineExceeded), adding_path("maildir:there"):
        raise error
    assert (error.errno, error.filename) == (None, None)
    error.filename = "x"  # other programs do this with an OSError
    assert str(error) == describe(error) == str(pickle.loads(pickle.dumps(error)))
    assert str(error).startswith(
        "silent for 60 s; 2 deletions may or may not have been carried out"
    )


async def silent(peer: Peer) -> None:
    await peer.until_gone()


@kinds
def test_a_silent_server_is_a_timeout_error(kind: str) -> None:
    async def main(port: int, **limits: float) -> None:
        async with opened(kind, f"pop3://127.0.0.1:{port}", **IN_CLEAR, **limits):
            pass

    async def both(**limits: float) -> None:
        async with scripted(silent) as (port, _):
            with pytest.raises(TimeoutError) as caught:
                await main(port, **limits)
            assert isinstance(caught.value, restante.DeadlineExceeded)
            context = caught.value.__context__
            assert not isinstance(context, RestanteError), "it is raised once, not again and again"

    asyncio.run(both(timeout=0.05))
    asyncio.run(both(deadline=0.05))


@kinds
def test_a_host_that_refuses_or_does_not_exist_cannot_be_connected_to(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(where: str) -> None:
        async with opened(kind, where, **IN_CLEAR):
            pass

    async def refused() -> None:
        async with scripted(polite) as (port, _):
            pass
        with pytest.raises(restante.CannotConnect, match="refused") as caught:
            await main(f"pop3://127.0.0.1:{port}")
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)

    def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    asyncio.run(refused())
    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with pytest.raises(restante.CannotConnect, match="not known"):
        asyncio.run(main("pop3://localhost"))


@kinds
def test_a_connection_that_ends_later_is_lost_and_was_made(kind: str) -> None:
    async def main(server: Pop3Server) -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            with pytest.raises(ConnectionError) as caught:
                await held.call("noop")
            assert type(caught.value) is restante.ConnectionLost

    with Pop3Server() as server:
        server.fault.drop("NOOP")
        asyncio.run(main(server))


@kinds
def test_a_message_of_an_earlier_session_is_stale(kind: str) -> None:
    async def main(server: Pop3Server) -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            message = (await held.listing())[0]
            await held.call("reconnect")
            client: Any = held.client
            with pytest.raises(restante.StaleMessage, match="list the messages again"):
                await held.call("delete", message)
            with pytest.raises(restante.StaleMessage):
                client.retrieve(message)
            assert len(await held.listing()) == 1

    with Pop3Server() as server:
        server.deliver("ann", b"Subject: one\r\n\r\nx\r\n")
        asyncio.run(main(server))
