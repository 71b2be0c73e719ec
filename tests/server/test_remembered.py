"""A login whose password was checked before, and a QUIT without deletions, need no task.

They pass every check that another login passes: what a permission forbids now, the answer to a
refusal, the login delay, and what happens before the maildrop is opened.
"""

from __future__ import annotations

import asyncio
import os
import threading
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from scramp import ScramClient

from restante.auth import passwords
from restante.auth.cache import Cache
from restante.auth.last_use import LastUse
from restante.auth.users import Users
from restante.maildrop import Maildrop, Store, View
from restante.passdb import Credentials, UserAccount
from restante.pop3.session import Policy
from restante.server.pop3 import Connection
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore

from ..support import OneUser, Run, Server, once, serving, sizes, until
from .test_cancelled import is_aborted, is_lost
from .test_guessing import Guard

MROSE = UserAccount("mrose", "mrose")
PASSWORD = b"tan staaf"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that cost nothing, and no writer of last uses that a login may have to wait for."""
    monkeypatch.setattr(LastUse, "record", lambda *_: None)
    monkeypatch.setattr(passwords, "make_hash", lambda password: f"hash of {password}")
    monkeypatch.setattr(passwords, "matches", lambda password, phc: phc == f"hash of {password}")
    monkeypatch.setattr(passwords, "is_current", lambda phc: True)
    monkeypatch.setattr(passwords, "is_sane", lambda phc: phc.startswith("hash of "))
    monkeypatch.setattr(passwords, "decoy_hash", lambda: "")


@pytest.fixture
def users(tmp_path: Path) -> Users:
    made = Users(tmp_path / "users.sqlite3")
    made.add("mrose", PASSWORD.decode())
    return made


def maildirs(place: Path) -> MaildirStore:
    (place / "mail").mkdir()
    return MaildirStore(f"{place}/mail/%u")


@asynccontextmanager
async def remembering(
    users: Users, store: Store | None = None, *, per_address: int = 100
) -> AsyncIterator[Server]:
    """A server with a cache and a guard."""
    policy = Policy(mechanisms=("PLAIN", "SCRAM-SHA-256"))
    async with serving(store or MemoryStore(), policy=policy, per_address=per_address) as server:
        server.service.passdb, server.service.passwords = users, Cache(users)
        server.service.guard = Guard(wait=0.01)
        yield server
    users.close()


async def log_in(server: Server, password: bytes = PASSWORD) -> bytes:
    """The answer to PASS in a session of its own, which ends by QUIT."""
    async with server.client() as client:
        await client.ask(b"USER mrose")
        answer = await client.ask(b"PASS " + password)
        await client.ask(b"QUIT")
        assert await client.line() == b""
    return answer


async def log_in_by_scram(
    server: Server, user: str = "mrose", *, before_proof: Callable[[], object] = lambda: None
) -> bytes:
    """The last answer to AUTH; ``before_proof`` runs between the look-up of keys and the proof."""
    library = ScramClient(["SCRAM-SHA-256"], user, PASSWORD.decode())
    async with server.client() as client:
        opening = b64encode(library.get_client_first().encode())
        challenge = await client.ask(b"AUTH SCRAM-SHA-256 " + opening)
        library.set_server_first(b64decode(challenge[2:]).decode())
        before_proof()
        answer = await client.ask(b64encode(library.get_client_final().encode()))
        if answer.startswith(b"+ "):
            answer = await client.ask(b"")
        await client.ask(b"QUIT")
        assert await client.line() == b""
    return answer


def works_of(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the coroutines that become tasks from now on."""
    works: list[str] = []
    spawn = type(server.service).spawn

    def counting(service: object, work: object) -> object:
        works.append(work.__name__)  # type: ignore[attr-defined]
        return spawn(service, work)  # type: ignore[arg-type]

    monkeypatch.setattr(type(server.service), "spawn", counting)
    return works


@pytest.mark.parametrize("kind", [MemoryStore, MaildirStore])
def test_remembered_session_needs_no_task(
    users: Users, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run[None], kind: type
) -> None:
    """And leaves nothing behind: there is one slot, and one lock."""

    async def visit(server: Server) -> None:
        assert (await log_in(server)).startswith(b"+OK 0 messages")
        await until(lambda: not server.service.connections)

    async def main() -> None:
        warm = -1
        store = MemoryStore() if kind is MemoryStore else maildirs(tmp_path)
        async with remembering(users, store, per_address=1) as server:
            works = works_of(server, monkeypatch)
            async with asyncio.timeout(10):
                while not works or len(works) != warm:  # the index is read, and its stamps settle
                    warm = len(works)
                    await visit(server)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                await visit(server)
            assert len(works) == warm
            assert len(os.listdir("/proc/self/fd")) == before

    run(main())


def test_scram_session_needs_no_task(
    users: Users, monkeypatch: pytest.MonkeyPatch, run: Run[None]
) -> None:
    """Neither for a wrong name until its proof is refused, which waits."""

    async def main() -> None:
        async with remembering(users) as server:
            works = works_of(server, monkeypatch)
            for _ in range(3):
                assert (await log_in_by_scram(server)).startswith(b"+OK 0 messages")
            assert works == []
            assert (await log_in_by_scram(server, "zed")).startswith(b"-ERR [AUTH]")
            guard = server.service.guard
            assert isinstance(guard, Guard)
            assert (len(works), len(guard.failures), len(guard.successes)) == (1, 1, 3)

    run(main())


@pytest.mark.parametrize(
    "forbid",
    [lambda users: users.set_enabled("mrose", False), lambda users: users.remove("mrose")],
    ids=["disabled", "removed"],
)
def test_change_between_keys_and_proof_holds(
    users: Users, forbid: Callable[[Users], object]
) -> None:
    async def main() -> None:
        async with remembering(users) as server:
            answer = await log_in_by_scram(server, before_proof=lambda: forbid(users))
            assert answer.startswith(b"-ERR [AUTH]")
            guard = server.service.guard
            assert isinstance(guard, Guard)
            assert (len(guard.failures), len(guard.successes)) == (1, 0)

    asyncio.run(main())


def test_scram_opens_the_folder_that_the_name_means(users: Users, tmp_path: Path) -> None:
    async def main() -> None:
        store = maildirs(tmp_path)
        await store.deliver("mrose", once(b"x\r\n"))
        for name in ("cur", "new", "tmp"):
            (tmp_path / "mail" / "mrose" / ".Junk" / name).mkdir(parents=True)
        async with remembering(users, store) as server:
            assert (await log_in_by_scram(server)).startswith(b"+OK 1 message")
            assert (await log_in_by_scram(server, "mrose+Junk")).startswith(b"+OK 0 messages")
            assert (await log_in_by_scram(server, "zed+Junk")).startswith(b"-ERR [AUTH]")

    asyncio.run(main())


def change(**permissions: object) -> Callable[[Users], object]:
    account = MROSE._replace(**permissions)  # type: ignore[arg-type]
    return lambda users: users.permit("mrose", account)


@pytest.mark.parametrize(
    "forbid",
    [
        change(is_enabled=False),
        change(networks=(ip_network("192.0.2.0/24"),)),
        change(needs_tls=True),
        change(mechanisms=("SCRAM-SHA-256",)),
        lambda users: users.set_password("mrose", "another"),
        lambda users: users.remove("mrose"),
    ],
    ids=["disabled", "network", "needs-tls", "mechanism", "password", "removed"],
)
def test_change_holds_at_the_next_login(users: Users, forbid: Callable[[Users], object]) -> None:
    """It is refused like a wrong password, counted as a guess, and answered late."""

    async def main() -> None:
        async with remembering(users) as server:
            for _ in range(2):
                assert (await log_in(server)).startswith(b"+OK")
            forbid(users)
            guard = server.service.guard
            assert isinstance(guard, Guard)
            wrong = await log_in(server, b"wrong")
            assert await log_in(server) == wrong
            assert wrong.startswith(b"-ERR [AUTH]")
            assert (len(guard.failures), len(guard.successes)) == (2, 2)

    asyncio.run(main())


def test_refusal_of_a_remembered_password_is_answered_late(users: Users) -> None:
    """The cache keeps it, because other addresses may be allowed; each refusal waits."""

    async def main() -> None:
        users.permit("mrose", MROSE._replace(is_enabled=False))
        async with remembering(users) as server:
            await log_in(server)
            shown = Credentials("USER", "mrose", PASSWORD.decode())
            assert server.service.passwords.remembered(shown)  # type: ignore[union-attr]
            server.service.guard = Guard(wait=3600)
            async with server.client() as client:
                await client.ask(b"USER mrose")
                client.send(b"PASS " + PASSWORD + b"\r\n")
                await server.service.guard.heard.wait()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await client.line()

    asyncio.run(main())


def test_revoked_app_password_is_refused_at_once(users: Users) -> None:
    made = users.add_app_password("mrose", "phone").encode()

    async def main() -> None:
        async with remembering(users) as server:
            for _ in range(2):
                assert (await log_in(server, made)).startswith(b"+OK")
            users.revoke("mrose", "phone")
            assert (await log_in(server, made)).startswith(b"-ERR [AUTH]")

    asyncio.run(main())


def test_remembered_login_sees_only_its_folders(users: Users, tmp_path: Path) -> None:
    """And a name that may mean a folder is looked up, not remembered."""

    async def main() -> None:
        store = maildirs(tmp_path)
        await store.deliver("mrose", once(b"x\r\n"))
        for name in ("cur", "new", "tmp"):
            (tmp_path / "mail" / "mrose" / ".Junk" / name).mkdir(parents=True)
        async with remembering(users, store) as server:
            for _ in range(2):
                assert (await log_in(server)).startswith(b"+OK 1 message")
            users.permit("mrose", MROSE._replace(view=View(("Junk",))))
            for _ in range(2):
                assert (await log_in(server)).startswith(b"+OK 0 messages")
            users.permit("mrose", MROSE)
            assert (await log_in(server)).startswith(b"+OK 1 message")

    asyncio.run(main())


def test_login_delay_holds_for_remembered_logins(users: Users) -> None:
    users.permit("mrose", MROSE._replace(login_delay=60))

    async def main() -> None:
        async with remembering(users) as server:
            announced = users.announced_terms(server.service.policy.terms)
            server.service.policy = replace(server.service.policy, announced=announced)
            assert (await log_in(server)).startswith(b"+OK")
            assert (await log_in(server)).startswith(b"-ERR [LOGIN-DELAY]")
            assert (await log_in(server)).startswith(b"-ERR [LOGIN-DELAY]")

    asyncio.run(main())


def test_locked_maildrop_is_in_use_for_a_remembered_login(users: Users, tmp_path: Path) -> None:
    async def main() -> None:
        store = maildirs(tmp_path)
        async with remembering(users, store) as server:
            for _ in range(2):
                assert (await log_in(server)).startswith(b"+OK")
            await until(lambda: not server.service.connections)
            async with store.open("mrose"):
                assert (await log_in(server)).startswith(b"-ERR [IN-USE]")
            assert (await log_in(server)).startswith(b"+OK")

    asyncio.run(main())


async def briefly() -> None:
    async with asyncio.timeout(10):
        await asyncio.sleep(0)


class Hurried(MemoryStore):
    """Uses what works in a task only, as a store of another author may."""

    opens_immediately = property()  # absent

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        async with super().open(user) as maildrop:
            await briefly()
            yield maildrop
            await briefly()


class HurriedPassdb(OneUser):
    async def verify(self, credentials: Credentials) -> UserAccount:
        await briefly()
        return self.open(credentials)


async def hurried_poll(maildrop: str) -> None:
    assert maildrop == "mrose"
    await briefly()


@pytest.mark.parametrize("foreign", ["store", "passdb", "poll"])
def test_foreign_code_runs_in_a_task(
    users: Users, caplog: pytest.LogCaptureFixture, run: Run[None], foreign: str
) -> None:
    async def main() -> None:
        store = Hurried() if foreign == "store" else MemoryStore()
        async with remembering(users, store) as server:
            if foreign == "passdb":
                server.service.passdb, server.service.passwords = HurriedPassdb(), None
            if foreign == "poll":
                server.service.before_opening = hurried_poll
            for _ in range(3):
                assert (await log_in(server)).startswith(b"+OK 0 messages")
        assert not caplog.records

    run(main())


@pytest.mark.parametrize("end", [is_lost, is_aborted])
def test_client_lost_while_a_thread_takes_the_lock_leaves_no_lock(
    users: Users,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run[None],
    end: Callable[[Connection], None],
) -> None:
    """The cancellation comes before the first step of the task that waits for the thread."""

    async def main() -> None:
        store = maildirs(tmp_path)
        async with remembering(users, store) as server:
            assert (await log_in(server)).startswith(b"+OK")
            await until(lambda: not server.service.connections)
            before = len(os.listdir("/proc/self/fd"))
            store._indexes.clear()  # so that a thread has to open it
            lock, end_seen = store._lock, threading.Event()

            def lock_later(*arguments: Any, **options: Any) -> Any:
                assert end_seen.wait(10)
                return lock(*arguments, **options)

            monkeypatch.setattr(store, "_lock", lock_later)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await reader.readline()
            [connection] = server.service.connections
            assert isinstance(connection, Connection)
            connection.data_received(b"USER mrose\r\nPASS " + PASSWORD + b"\r\n")
            assert connection._worker is not None
            end(connection)
            writer.transport.abort()
            await asyncio.sleep(0.01)
            end_seen.set()
            await until(lambda: not server.service.connections)
            assert await sizes(store) == []
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before)

    run(main())
