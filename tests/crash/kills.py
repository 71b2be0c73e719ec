"""kill -9 at every system call: a child runs a transaction and dies before its n-th call.

Nothing here is simulated but the moment: the calls are real ones of a real process, and what the
kernel was given is kept.  What was promised by then comes through a pipe.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from ..store.watched import Call, Hook, WatchedOs, below_the_store, nothing
from .cycles import Told, forked, hear
from .laboratory import sample
from .oracle import Oracle, check
from .scenarios import SCENARIOS, USER, Scenario


def kills_at_every_call(
    place: Path, say: Callable[[str], None], *, most: int | None = None
) -> dict[str, int]:
    """By transaction, how often it was cut short; ``most``: so many of its calls, chosen."""
    found = {}
    for name, scenario in SCENARIOS.items():
        found[name] = _kill(scenario, place, most)
        say(f"{name}: {found[name]} kills")
    return found


def _kill(scenario: Scenario, place: Path, most: int | None) -> int:
    counted = place / "counted"
    _cut_short(scenario, place / "whole", nothing, lambda count: counted.write_text(str(count)))
    chosen = sample(list(range(int(counted.read_text()))), most)
    for number in chosen:
        try:
            _cut_short(scenario, place / "base", _killed_at(number), lambda _: None)
        except AssertionError as error:
            raise AssertionError(f"{error}\nafter a kill at call {number}") from error
    return len(chosen)


def _cut_short(
    scenario: Scenario, base: Path, hook: Hook, survived: Callable[[int], object]
) -> None:
    """In a child; what is left is compared with what it promised."""
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    oracle = Oracle()
    scenario.fill(base / USER, oracle)
    reading, writing = os.pipe()

    def work() -> None:
        async def story() -> None:
            await scenario.act(scenario.store(base), Told(writing))

        with below_the_store(WatchedOs(base, hook)) as system:
            asyncio.run(story())
        survived(len(system.calls))

    with forked(work):
        os.close(writing)
        with open(reading, "rb") as told:
            octets = told.read()  # until the child is dead
    hear(octets, oracle)
    asyncio.run(check(scenario.store(base), USER, oracle.snapshot()))


def _killed_at(number: int) -> Hook:
    calls = 0

    def hook(_: Call) -> None:
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    return hook
