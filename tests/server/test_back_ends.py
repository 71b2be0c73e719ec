"""Slow back ends: the queries of a login, and the logins that they delay."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import dataclass, field

import pytest

from restante.passdb import Attempt, Credentials, ScramSecrets, UserAccount, current_attempt
from restante.pop3.session import Policy
from restante.server import pop3 as server_module
from restante.store.memory import MemoryStore

from ..support import OneUser, serving, until


@dataclass
class Watched(OneUser):
    """Knows ``mrose`` and ``bob``, and records for which login each query is made."""

    asked: list[tuple[str, Attempt | None]] = field(default_factory=list)
    disabled: set[str] = field(default_factory=set)
    hangs: set[str] = field(default_factory=set)

    async def verify(self, credentials: Credentials) -> UserAccount:
        self.note("verify")
        if credentials.identity == "bob":
            return UserAccount("bob", "bob")
        return await super().verify(credentials)

    async def account(self, identity: str) -> UserAccount | None:
        self.note("account")
        if identity in self.hangs:
            await asyncio.Event().wait()
        known = identity in ("mrose", "bob")
        return (
            UserAccount(identity, identity, is_enabled=identity not in self.disabled)
            if known
            else None
        )

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        self.note("scram")
        return await super().scram(identity, digest)

    async def generation(self, identity: str) -> bytes | None:
        return repr(self.disabled).encode()

    def note(self, question: str) -> None:
        self.asked.append((question, current_attempt()))


@pytest.mark.parametrize(
    ("commands", "questions"),
    [
        ([b"USER mrose+Junk", b"PASS tan staaf"], ["account", "account", "verify"]),
        (
            [b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=mrose+Junk,r=x")],
            ["account", "account", "scram"],
        ),
    ],
)
def test_queries_of_one_login_are_attributed_to_it(
    commands: list[bytes], questions: list[str]
) -> None:
    passdb = Watched()

    async def main() -> None:
        policy = Policy(mechanisms=("PLAIN", "SCRAM-SHA-256"))
        async with serving(MemoryStore(), policy=policy) as server, server.client() as client:
            server.service.passdb = passdb
            for command in commands:
                await client.ask(command)
            await passdb.account("bob")

    asyncio.run(main())
    asked, logins = zip(*passdb.asked, strict=True)
    assert list(asked) == [*questions, "account"]
    assert logins[-1] is None
    (login,) = set(logins[:-1])
    assert login is not None
    assert login.credentials.address == "127.0.0.1"
    assert login.credentials.identity == "mrose+Junk"


def test_slow_back_end_does_not_delay_ending_disabled_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each round over all sessions ends even if a query hangs, and the next round tries again."""
    monkeypatch.setattr(server_module, "_REVIEW_TIMEOUT", 0.1)
    passdb = Watched()

    async def main() -> None:
        async with serving(MemoryStore()) as server:
            server.service.passdb = passdb
            async with server.client() as mrose, server.client() as bob:
                for client, name in ((mrose, b"mrose"), (bob, b"bob")):
                    await client.ask(b"USER " + name)
                    assert (await client.ask(b"PASS tan staaf")).startswith(b"+OK")
                passdb.hangs, passdb.disabled = {"mrose"}, {"mrose", "bob"}
                reviewing = asyncio.create_task(server.service.end_disabled())
                assert await bob.line() == b""
                await reviewing
                assert (await mrose.ask(b"NOOP")).startswith(b"+OK")
                passdb.hangs = set()
                await server.service.end_disabled()
                assert await mrose.line() == b""
                await until(lambda: not server.service.connections)

    asyncio.run(main())
