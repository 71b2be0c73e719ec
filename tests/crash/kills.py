"""kill -9 at every system call: a child runs a transaction and dies before its n-th call.

Only the moment of death is chosen: the calls are real ones of a real process, and the kernel
keeps what it was given.  The child sends its promises through a pipe.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from ..store.watched import Call, Hook, WatchedOs, below_the_store, nothing
from .cycles import PipeOracle, forked, receive
from .laboratory import sample
from .oracle import Oracle, check
from .scenarios import SCENARIOS, USER, Scenario


def kills_at_every_call(
    place: Path, say: Callable[[str], None], *, most: int | None = None
) -> dict[str, int]:
    """Kill each transaction at each of its calls, or at ``most`` of them chosen at random.

    Returns the number of kills by transaction.
    """
    kills = {}
    for name, scenario in SCENARIOS.items():
        kills[name] = _kill(scenario, place, most)
        say(f"{name}: {kills[name]} kills")
    return kills


def _kill(scenario: Scenario, place: Path, most: int | None) -> int:
    counted = place / "counted"
    _run_in_child(scenario, place / "whole", nothing, lambda count: counted.write_text(str(count)))
    chosen = sample(list(range(int(counted.read_text()))), most)
    for number in chosen:
        try:
            _run_in_child(scenario, place / "base", _killed_at(number), lambda _: None)
        except AssertionError as error:
            raise AssertionError(f"{error}\nafter a kill at call {number}") from error
    return len(chosen)


def _run_in_child(
    scenario: Scenario, base: Path, hook: Hook, survived: Callable[[int], object]
) -> None:
    """Run the transaction in a child, and compare what is left with its promises."""
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    oracle = Oracle()
    scenario.fill(base / USER, oracle)
    reading, writing = os.pipe()

    def work() -> None:
        async def story() -> None:
            await scenario.act(scenario.store(base), PipeOracle(writing))

        with below_the_store(WatchedOs(base, hook)) as system:
            asyncio.run(story())
        survived(len(system.calls))

    with forked(work):
        os.close(writing)
        with open(reading, "rb") as pipe:
            octets = pipe.read()  # until the child is dead
    receive(octets, oracle)
    asyncio.run(check(scenario.store(base), USER, oracle.snapshot()))


def _killed_at(number: int) -> Hook:
    calls = 0

    def hook(_: Call) -> None:
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    return hook
