"""Runs transactions, interrupts them in every way, and checks the recovery."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from restante.errors import TemporaryFailure

from ..store.helpers import deliver
from ..store.watched import CHANGES, READS, Crash, Hook, below_the_store, die_at, fail_at, nothing
from .model import LOOSE, ORDERED, Arena, Disk, Recorder
from .oracle import GONE, LISTED, Expected, Oracle, check
from .scenarios import USER, Scenario

T = TypeVar("T")
Act = Callable[[], Awaitable[None]]

ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EINTR]
LAST = b"another\r\n"


class Laboratory:
    """Experiments with one scenario; ``place`` is an empty directory, best in memory."""

    def __init__(self, scenario: Scenario, place: Path) -> None:
        self.disks = 0
        """Number of disks that were opened and found correct."""
        self._scenario = scenario
        self._base, self._pool = place / "base", place / "pool"
        self._arenas = [Arena(place / f"arena{depth}", self._pool) for depth in range(2)]
        self._runner = asyncio.Runner()
        self._pool.mkdir()

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    # -- Experiments; ``calls`` and ``disks`` limit their number

    def power_fails(self, *, disks: int | None = None, again: int | None = None) -> None:
        """Check every state of the disk; in ``again`` of them the power fails in recovery too."""
        recorder, oracle = self._record(harsh=True)
        self._check_running(oracle)
        states = sample(list(recorder.states), disks)
        repeated = sample(states, again)
        for state in states:
            self._check_disk(self._arenas[0], *state)
            if state in repeated:
                self._power_fails_again(*state, disks=disks)

    def _power_fails_again(
        self, kind: str, expected: Expected, disk: Disk, *, disks: int | None
    ) -> None:
        self._arenas[0].make(disk)
        place = self._arenas[0].place
        recorder = Recorder(place, self._pool, lambda: expected)

        async def look() -> None:
            async with self._scenario.store(place).open(USER):
                pass

        self._run_until_stopped(recorder, look)
        for inner, _, left in sample(list(recorder.states), disks):
            self._check_disk(self._arenas[1], LOOSE if kind is LOOSE else inner, expected, left)

    def power_fails_after_kill(self, *, calls: int | None = None, disks: int | None = None) -> None:
        """The process is killed at each change, the next one delivers, then the power fails."""
        recorder, _ = self._record()
        changes = sum(call[0] in CHANGES for call in recorder.calls)
        for number in sample(list(range(changes)), calls):
            recorder, oracle = self._record(die_at(number))
            recorder.states.clear()
            recorder.hook = nothing
            self._run_until_stopped(recorder, self._deliver_another(oracle))
            self._check_running(oracle)
            self._check_disks(recorder, {LOOSE, ORDERED}, disks)

    def _deliver_another(self, oracle: Oracle) -> Act:
        async def act() -> None:
            oracle.expect(LAST, LISTED, GONE)
            entry = await deliver(self._scenario.store(self._base), USER, LAST)
            oracle.expect(LAST, LISTED, unique_id=entry.unique_id)

        return act

    def power_fails_after_fault(
        self, *, once: bool, calls: int | None = None, disks: int | None = None
    ) -> None:
        """Each call fails with each error; the promises that were made must hold.

        Only ORDERED disks: after a failed fsync a LOOSE one may show a message twice.
        """
        recorder, _ = self._record()
        faults = [(n, error) for n in range(len(recorder.calls)) for error in ERRORS]
        for number, error in sample(faults, calls):
            hook = fail_at(number, error, CHANGES | READS, once=once)
            recorder, oracle = self._record(hook)
            self._check_running(oracle)
            self._check_disks(recorder, {ORDERED}, disks)

    def power_fails_when_writes_are_short(self) -> None:
        recorder, oracle = self._record(most=50)
        self._check_running(oracle)
        self._check_disks(recorder, {ORDERED}, 20)

    # -- Helpers

    def _record(
        self, hook: Hook = nothing, *, most: int | None = None, harsh: bool = False
    ) -> tuple[Recorder, Oracle]:
        """Run the transaction until it ends or ``hook`` stops it.

        ``most``: the most octets that one write takes.  ``harsh``: see model.py.
        """
        shutil.rmtree(self._base, ignore_errors=True)
        self._base.mkdir()
        oracle = Oracle()
        self._scenario.fill(self._base / USER, oracle)
        recorder = Recorder(self._base, self._pool, oracle.snapshot, hook=hook, harsh=harsh)
        recorder.most = most
        oracle.changed = recorder.collect
        store = self._scenario.store(self._base)
        self._run_until_stopped(recorder, lambda: self._scenario.act(store, oracle))
        return recorder, oracle

    def _run_until_stopped(self, recorder: Recorder, act: Act) -> None:
        """Run ``act`` until it ends, the process dies or an error stops it."""

        async def story() -> None:
            await act()

        with below_the_store(recorder), suppress(Crash, TemporaryFailure):
            self._runner.run(story())

    def _check_running(self, oracle: Oracle) -> None:
        """Check the live file system: the process may have died, but not the machine."""
        self._check(self._base, oracle.snapshot())

    def _check_disks(self, recorder: Recorder, kinds: set[str], most: int | None) -> None:
        for state in sample([state for state in recorder.states if state[0] in kinds], most):
            self._check_disk(self._arenas[0], *state)

    def _check_disk(self, arena: Arena, kind: str, expected: Expected, disk: Disk) -> None:
        arena.make(disk)
        try:
            self._check(arena.place, expected, twice=kind is LOOSE)
        except Exception as error:
            held = "\n".join(f"  {path}: {content!r}" for path, _, content in disk)
            raise AssertionError(f"{error}\non a disk ({kind}) that held\n{held}") from error

    def _check(self, place: Path, expected: Expected, *, twice: bool = False) -> None:
        self._runner.run(check(self._scenario.store(place), USER, expected, twice=twice))
        self.disks += 1


def sample(choices: list[T], most: int | None) -> list[T]:
    if most is None or len(choices) <= most:
        return choices
    return random.Random(0).sample(choices, most)
