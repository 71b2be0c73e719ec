"""Which login is checked next: fair among networks, known users first, always bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from restante.auth import login_queue as module
from restante.auth.login_queue import LoginQueue
from restante.auth.throttle import Priority
from restante.errors import AuthenticationFailed, TooBusy
from restante.passdb import Credentials, UserAccount, attempting


class Hashing:
    """A back end that answers on `finish`; "wrong" is a wrong password."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.came = asyncio.Event()
        self._running: list[tuple[str, asyncio.Future[None]]] = []

    async def verify(self, credentials: Credentials) -> UserAccount:
        self.begun.append(credentials.identity)
        self.came.set()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running.append((credentials.identity, ended))
        await ended
        if credentials.password == "wrong":
            raise AuthenticationFailed
        return UserAccount(credentials.identity, credentials.identity)

    async def account(self, identity: str) -> UserAccount:
        return await self.verify(Credentials("", identity, ""))

    async def finish(self, count: int = 1) -> None:
        for _ in range(count):
            _, ended = self._running.pop(0)
            if not ended.done():
                ended.set_result(None)
            await settled()


class Bench:
    """Checks one login at a time; "dirty/a1" is a login of that priority in group "a"."""

    def __init__(self, slots: int = 1, share: float = 0.5) -> None:
        self.now = 100.0
        self.guessing: set[str] = set()
        self.passdb = Hashing()
        self.queue = LoginQueue(
            self.passdb, self.priority, slots=slots, share=share, clock=lambda: self.now
        )
        self.tasks: dict[str, asyncio.Task[Any]] = {}

    def priority(self, shown: Credentials) -> tuple[Priority, str]:
        name, group = shown.identity.split("/")
        dirty = group[0] in self.guessing
        return Priority.DIRTY if dirty else Priority[name.upper()], group[0]

    async def come(self, *identities: str, password: str = "x") -> None:
        for identity in identities:
            verifying = self.queue.verify(Credentials("PLAIN", identity, password))
            self.tasks[identity] = asyncio.create_task(verifying)
        await settled()

    @property
    def begun(self) -> list[str]:
        return self.passdb.begun


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[Bench], Awaitable[None]], **given: float) -> None:
    async def main() -> None:
        bench = Bench(**given)  # type: ignore[arg-type]
        await test(bench)
        for task in bench.tasks.values():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*bench.tasks.values(), return_exceptions=True)
        if bench.queue._timer is not None:
            bench.queue._timer.cancel()

    asyncio.run(main())


def test_networks_of_one_priority_take_turns() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("clean/a1", "clean/a2", "clean/a3", "clean/b1", "clean/c1", "clean/b2")
        await bench.passdb.finish(6)
        assert bench.begun == [f"clean/{each}" for each in ("a1", "a2", "b1", "c1", "a3", "b2")]

    run(test)


def test_known_users_are_checked_first() -> None:
    """Issue 187: even before logins that have waited longer."""

    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", "clean/b1", "dirty/a2", "clean/b2", "known/m1", "known/n1")
        await bench.passdb.finish(3)
        assert bench.begun[1:3] == ["known/m1", "known/n1"]

    run(test)


def test_lookup_has_the_priority_of_its_login() -> None:
    """A look-up outside a login, for example of a recipient, waits under its own name."""

    async def test(bench: Bench) -> None:
        def look_up(login: str, name: str) -> None:
            with attempting(Credentials("PLAIN", login, "x"), began=0.0):
                bench.tasks[login] = asyncio.create_task(bench.queue.account(name))

        await bench.come("clean/a1")
        look_up("dirty/a2", "ann")
        look_up("clean/b1", "bob")
        look_up("known/c1", "cat")
        bench.tasks["mail"] = asyncio.create_task(bench.queue.account("clean/d1"))
        await settled()
        await bench.passdb.finish(5)
        assert bench.begun == ["clean/a1", "cat", "ann", "bob", "clean/d1"]
        assert bench.tasks["known/c1"].result() == UserAccount("cat", "cat")

    run(test)


def test_guessing_networks_get_their_share_and_no_more() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", "dirty/b1")
        assert bench.begun == ["dirty/a1"]
        bench.now += 0.05
        await bench.passdb.finish()
        assert bench.begun == ["dirty/a1"], "it pauses as long as it worked"
        await bench.come("clean/c1")
        assert bench.begun == ["dirty/a1", "clean/c1"], "and others use the core"
        bench.now += 0.05
        await bench.come("clean/c2")
        await bench.passdb.finish()
        assert bench.begun[2:] == ["dirty/b1"], "but it does not starve"

    run(test)


def test_timer_admits_guessing_networks_after_their_pause() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", "dirty/b1")
        bench.now += 0.01
        await bench.passdb.finish()
        assert bench.begun == ["dirty/a1"]
        bench.now += 0.01
        bench.passdb.came.clear()
        async with asyncio.timeout(5):
            await bench.passdb.came.wait()

    run(test)


def test_guessing_networks_use_one_slot_at_a_time() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", "dirty/b1", "dirty/c1", "clean/d1")
        assert bench.begun == ["dirty/a1", "clean/d1"]

    run(test, slots=2)


def test_waiting_login_loses_priority_when_its_network_guesses() -> None:
    """First guesses from many networks do not delay other logins once they have failed."""

    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", *(f"clean/b{number}" for number in range(5)), "clean/c1")
        bench.guessing.add("b")
        bench.now += 0.05
        await bench.passdb.finish()
        assert bench.begun == ["dirty/a1", "clean/c1"]
        bench.now += 0.05
        await bench.passdb.finish()
        assert bench.begun == ["dirty/a1", "clean/c1", "clean/b0"]

    run(test)


def test_full_queue_refuses_the_network_with_most_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is temporary; it does not count as a wrong password."""
    monkeypatch.setattr(module, "_MAX_WAITING", 4)

    async def test(bench: Bench) -> None:
        await bench.come("clean/x0", "clean/a1", "clean/a2", "clean/a3", "clean/b1")
        await bench.come("clean/a4")
        with pytest.raises(TooBusy):
            await bench.tasks["clean/a4"]
        await bench.come("clean/c1")
        with pytest.raises(TooBusy):
            await bench.tasks["clean/a3"]
        await bench.come("known/m1")
        assert not bench.tasks["known/m1"].done(), "each priority has a queue of its own"
        await bench.passdb.finish(6)
        assert sorted(bench.begun) == [
            *(f"clean/{each}" for each in ("a1", "a2", "b1", "c1", "x0")),
            "known/m1",
        ]

    run(test)


@pytest.mark.parametrize("when", ["waiting", "let in", "running"])
def test_cancelled_login_frees_its_slot(when: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.come("clean/a1", "clean/b1", "clean/c1")
        if when == "let in":
            ended = bench.passdb._running.pop(0)[1]
            ended.set_result(None)
            await asyncio.sleep(0)  # a1 is done and b1 let in, but it does not run yet
        bench.tasks["clean/a1" if when == "running" else "clean/b1"].cancel()
        await settled()
        if when == "waiting":
            await bench.passdb.finish()
        await settled()
        assert bench.begun[-1] == ("clean/b1" if when == "running" else "clean/c1")
        assert bench.queue._free_slots == 0
        await bench.passdb.finish(len(bench.passdb._running))
        await settled()
        assert not any(bench.queue._queues.values())

    run(test)


def test_queue_returns_the_answers_of_the_backend() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("clean/a1")
        await bench.come("clean/b1", password="wrong")
        await bench.passdb.finish(2)
        assert (await bench.tasks["clean/a1"]).user == "clean/a1"
        with pytest.raises(AuthenticationFailed):
            await bench.tasks["clean/b1"]
        assert bench.queue._free_slots == 1

    run(test)


def test_attack_from_1000_networks_leaves_half_a_core() -> None:
    """Issue 187: each hash takes 50 ms; a login from a clean network waits for two at most."""

    async def test(bench: Bench) -> None:
        names = iter(range(10_000))
        waits = []

        def attackers() -> Iterator[str]:
            for _ in range(20):
                yield f"dirty/{chr(0x4E00 + next(names) % 1000)}"

        for round_ in range(50):
            await bench.come(*attackers())
            honest = f"clean/h{round_}"
            await bench.come(honest)
            began = bench.now
            while honest not in bench.begun:
                bench.now += 0.05
                await bench.passdb.finish(1)
            waits.append(bench.now - began)
            bench.now += 0.05
            await bench.passdb.finish(1)
        assert max(waits) <= 0.1 + 1e-6

    run(test)
