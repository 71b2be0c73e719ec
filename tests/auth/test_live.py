"""Permission over the wire: users of the database before a real server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest

from restante.auth.users import Users
from restante.passdb import UserAccount
from restante.store.memory import MemoryStore

from ..support import Server, once, serving, sizes

MROSE = UserAccount("mrose", "mrose")


@asynccontextmanager
async def served(
    users: Users, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Server, MemoryStore]]:
    store = MemoryStore()
    await store.deliver("mrose", once(b"Subject: x\r\n\r\nhello\r\n"))
    async with serving(store, tls=tls, implicit=tls is not None) as server:
        server.service.passdb = users
        yield server, store


@pytest.mark.parametrize(
    ("permission", "over_tls", "may"),
    [
        ({}, False, True),
        ({"networks": (ip_network("127.0.0.0/8"),)}, False, True),
        ({"networks": (ip_network("192.0.2.0/24"),)}, False, False),
        ({"needs_tls": True}, False, False),
        ({"needs_tls": True}, True, True),
        ({"mechanisms": ("USER",)}, False, True),
        ({"mechanisms": ("SCRAM-SHA-256",)}, False, False),
        ({"is_enabled": False}, False, False),
    ],
)
def test_right_password_opens_permitted_maildrops(
    users: Users,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    permission: dict[str, object],
    over_tls: bool,
    may: bool,
) -> None:
    """And the client learns no reason: the answer is that to a wrong password."""
    users.permit("mrose", MROSE._replace(**permission))  # type: ignore[arg-type]

    async def main() -> None:
        tls = client_tls if over_tls else None
        async with served(users, server_tls if over_tls else None) as (server, _):
            async with server.client(tls) as client:
                await client.ask(b"USER mrose")
                reported = await client.ask(b"PASS tan staaf")
            async with server.client(tls) as client:
                await client.ask(b"USER mrose")
                wrong = await client.ask(b"PASS wrong")
        assert reported.startswith(b"+OK") == may
        assert may or reported == wrong

    asyncio.run(main())
    users.close()


def test_read_only_removes_nothing_and_goes_on(users: Users) -> None:
    users.permit("mrose", MROSE._replace(is_read_only=True))

    async def main() -> None:
        async with served(users) as (server, store), server.client() as client:
            await client.log_in()
            for _ in range(30):  # a refusal is not a bad command, so the client is not disconnected
                assert (
                    await client.ask(b"DELE 1")
                    == b"-ERR this login is not allowed to delete messages"
                )
            assert (await client.ask(b"RETR 1")).startswith(b"+OK")
            assert b"hello" in b"".join([await client.line() for _ in range(4)])
            assert (await client.ask(b"QUIT")).startswith(b"+OK")
            assert len(await sizes(store)) == 1

    asyncio.run(main())
    users.close()


def test_the_last_use_names_the_address_of_the_client(users: Users) -> None:
    made = users.add_app_password("mrose", "phone").encode()

    async def main() -> None:
        async with served(users) as (server, _), server.client() as client:
            await client.ask(b"USER mrose")
            assert (await client.ask(b"PASS " + made)).startswith(b"+OK")

    asyncio.run(main())
    users.close()
    (used,) = users.app_passwords("mrose")
    assert used.used_from == "127.0.0.1"
