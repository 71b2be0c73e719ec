"""Who is hashed next: fair among networks, the known first, and never without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from restante.auth import login_queue as module
from restante.auth.login_queue import Turns
from restante.auth.throttle import Lane
from restante.errors import AuthenticationFailed, TooBusy
from restante.passdb import Account, Credentials, attempting


class Hashing:
    """A passdb that answers when it is told to; "wrong" is wrong."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.came = asyncio.Event()
        self._running: list[tuple[str, asyncio.Future[None]]] = []

    async def verify(self, credentials: Credentials) -> Account:
        self.begun.append(credentials.identity)
        self.came.set()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running.append((credentials.identity, ended))
        await ended
        if credentials.password == "wrong":
            raise AuthenticationFailed
        return Account(credentials.identity, credentials.identity)

    async def account(self, identity: str) -> Account:
        return await self.verify(Credentials("", identity, ""))

    async def finish(self, count: int = 1) -> None:
        for _ in range(count):
            _, ended = self._running.pop(0)
            if not ended.done():
                ended.set_result(None)
            await settled()


class Bench:
    """One at a time is hashed; an identity such as "dirty/a1" names its lane and whose it is."""

    def __init__(self, slots: int = 1, share: float = 0.5) -> None:
        self.now = 100.0
        self.guessing: set[str] = set()
        self.passdb = Hashing()
        self.turns = Turns(self.passdb, self.lane, slots=slots, share=share, clock=lambda: self.now)
        self.tasks: dict[str, asyncio.Task[Any]] = {}

    def lane(self, shown: Credentials) -> tuple[Lane, str]:
        lane, whose = shown.identity.split("/")
        dirty = whose[0] in self.guessing
        return Lane.DIRTY if dirty else Lane[lane.upper()], whose[0]

    async def come(self, *identities: str, password: str = "x") -> None:
        for identity in identities:
            verifying = self.turns.verify(Credentials("PLAIN", identity, password))
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
        if bench.turns._alarm is not None:
            bench.turns._alarm.cancel()

    asyncio.run(main())


def test_the_networks_take_turns() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("clean/a1", "clean/a2", "clean/a3", "clean/b1", "clean/c1", "clean/b2")
        await bench.passdb.finish(6)
        assert bench.begun == [f"clean/{each}" for each in ("a1", "a2", "b1", "c1", "a3", "b2")]

    run(test)


def test_the_known_are_first() -> None:
    """I 187: whoever waits already."""

    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", "clean/b1", "dirty/a2", "clean/b2", "known/m1", "known/n1")
        await bench.passdb.finish(3)
        assert bench.begun[1:3] == ["known/m1", "known/n1"]

    run(test)


def test_names_wait_with_the_login_that_they_are_looked_up_for() -> None:
    """What no login asks, such as whose a recipient is, waits by its own name."""

    async def test(bench: Bench) -> None:
        def look_up(login: str, name: str) -> None:
            with attempting(Credentials("PLAIN", login, "x"), began=0.0):
                bench.tasks[login] = asyncio.create_task(bench.turns.account(name))

        await bench.come("clean/a1")
        look_up("dirty/a2", "ann")
        look_up("clean/b1", "bob")
        look_up("known/c1", "cat")
        bench.tasks["mail"] = asyncio.create_task(bench.turns.account("clean/d1"))
        await settled()
        await bench.passdb.finish(5)
        assert bench.begun == ["clean/a1", "cat", "ann", "bob", "clean/d1"]
        assert bench.tasks["known/c1"].result() == Account("cat", "cat")

    run(test)


def test_networks_that_guess_get_their_share_and_no_more() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", "dirty/b1")
        assert bench.begun == ["dirty/a1"]
        bench.now += 0.05
        await bench.passdb.finish()
        assert bench.begun == ["dirty/a1"], "as long as it took, it rests"
        await bench.come("clean/c1")
        assert bench.begun == ["dirty/a1", "clean/c1"], "and others use the core"
        bench.now += 0.05
        await bench.come("clean/c2")
        await bench.passdb.finish()
        assert bench.begun[2:] == ["dirty/b1"], "but it does not starve"

    run(test)


def test_what_rests_is_let_in_by_the_clock() -> None:
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


def test_one_of_them_at_a_time() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("dirty/a1", "dirty/b1", "dirty/c1", "clean/d1")
        assert bench.begun == ["dirty/a1", "clean/d1"]

    run(test, slots=2)


def test_who_waits_goes_on_with_those_who_guess_when_the_network_does() -> None:
    """The first guesses of many networks do not hold strangers up, once they are known as such."""

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


def test_a_full_lane_refuses_whom_most_wait_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """And as trouble of ours, not as a wrong password."""
    monkeypatch.setattr(module, "_WAITING", 4)

    async def test(bench: Bench) -> None:
        await bench.come("clean/x0", "clean/a1", "clean/a2", "clean/a3", "clean/b1")
        await bench.come("clean/a4")
        with pytest.raises(TooBusy):
            await bench.tasks["clean/a4"]
        await bench.come("clean/c1")
        with pytest.raises(TooBusy):
            await bench.tasks["clean/a3"]
        await bench.come("known/m1")
        assert not bench.tasks["known/m1"].done(), "another lane has its own places"
        await bench.passdb.finish(6)
        assert sorted(bench.begun) == [
            *(f"clean/{each}" for each in ("a1", "a2", "b1", "c1", "x0")),
            "known/m1",
        ]

    run(test)


@pytest.mark.parametrize("when", ["waiting", "let in", "running"])
def test_who_gives_up_leaves_no_place_taken(when: str) -> None:
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
        assert bench.turns._free == 0
        await bench.passdb.finish(len(bench.passdb._running))
        await settled()
        assert not any(bench.turns._lanes.values())

    run(test)


def test_answers_are_those_of_the_passdb() -> None:
    async def test(bench: Bench) -> None:
        await bench.come("clean/a1")
        await bench.come("clean/b1", password="wrong")
        await bench.passdb.finish(2)
        assert (await bench.tasks["clean/a1"]).user == "clean/a1"
        with pytest.raises(AuthenticationFailed):
            await bench.tasks["clean/b1"]
        assert bench.turns._free == 1

    run(test)


def test_an_attack_from_a_thousand_networks_leaves_the_rest_half_a_core() -> None:
    """I 187: each hash takes 50 ms; whoever comes from a clean network waits for two at most."""

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
