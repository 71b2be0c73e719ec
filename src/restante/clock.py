"""A clock for decisions that destroy mail, on machines whose system clock may jump.

The system clock may be wrong because its battery is empty, a virtual machine was paused, or an
operator mistyped the year.  This must not cause mail that is held for 14 days to be destroyed
within the hour.  Therefore a file contains a high-water mark: the latest time that is known to have
passed.  The mark advances with the uptime of the machine, which does not depend on the system
clock.  If the clock and the mark agree, the mark is set to the clock.  If they differ, because the
clock jumped or the machine was off, the mark is set to the clock only after a day of uptime
(``SETTLING_TIME``), so that the operator can notice and correct a wrong clock.

Limits: a jump of less than an hour is accepted immediately.  A long time without power cannot be
distinguished from a jump and is treated in the same way.  A lost mark is replaced with the time
stamp of the newest file in the same directory.  Linux's ``boot_id`` identifies a boot; without it,
as in a sandbox that hides /proc/sys, only an uptime that has become shorter shows a reboot.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

SLACK = 3600.0
"""Seconds by which the clock and the mark may differ, for example after a reboot or because the
time zone is wrong by an hour."""
SETTLING_TIME = 86_400.0
"""Seconds of uptime after which a clock that jumped is trusted: a day to correct a wrong clock."""
PLAUSIBLE = 10**9
"""The earliest credible time (in 2001), in seconds since the epoch.  Machines without a battery for
their clock boot in 1970."""
RELEASED = 1_767_225_600.0
"""2026-01-01T00:00Z.  A clock with an earlier time is wrong, because this program is newer."""
UNKNOWN = 99_999_000_000
"""The time stamp of events that occur while the clock is wrong.  It is in the future, so it is
never credible."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PROCESS = "process "
"""The beginning of the identity in files of earlier versions that could not read the boot's; their
uptime is that of a process."""
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux


class Reading(NamedTuple):
    """The time of the system clock and the mark, in seconds since the epoch."""

    now: float
    """The time of the system clock."""
    mark: float
    """The high-water mark; equal to ``now`` if the clock is trusted."""

    @property
    def proven(self) -> float:
        """The latest time that is known to have passed."""
        return min(self.now, self.mark)

    @property
    def is_behind(self) -> bool:
        """Whether the clock is behind the mark, and therefore must be wrong."""
        return self.now < self.mark - SLACK


def is_credible(stamp: float, now: float) -> bool:
    """Return whether a time stamp can be correct: it is not in the future, and not before 2001."""
    return PLAUSIBLE <= stamp <= now + SLACK


def elapsed() -> float:
    """Return a monotonic time in seconds, independent of the system clock.

    The time in which the machine sleeps is included if the system supports this.
    """
    return time.clock_gettime(_BOOTTIME) if _BOOTTIME is not None else time.monotonic()


class _State(NamedTuple):
    """The content of the file.  All times are in seconds."""

    mark: float
    """The high-water mark, since the epoch."""
    boot: str
    """Identifies the boot of the machine; empty if the process could not read it."""
    running: float
    """Uptime since this boot."""
    claim: float | None = None
    """Time of the clock after a jump, plus the uptime since the jump; None if the clock is
    trusted."""
    waited: float = 0.0
    """Uptime since the jump."""


class Clock:
    """The clock whose mark is stored in one state directory.

    Each process creates its own object.  Several threads and processes may use the clock at the
    same time.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        wall: Callable[[], float] | None = None,
        running: Callable[[], tuple[str, float]] | None = None,
    ) -> None:
        """``path`` is the file that contains the mark.  If it is None, the mark is not stored.

        ``wall`` returns seconds since the epoch.  ``running`` returns the identity of the boot and
        the uptime in seconds, including sleep.
        """
        self._path = path
        self._wall = wall or _wall
        self._running = running or _running
        self._state: _State | None = None  # used if there is no file

    def read(self) -> Reading:
        """Read the clock and the mark.  Does not raise; an unreadable mark is treated as lost."""
        now = self._wall()
        return Reading(now, self._current_state(now).mark)

    def advance(self) -> Reading:
        """Read the clock and save the mark.  Must be called every few minutes.

        Raises:
            OSError: the mark cannot be saved; ``read`` returns the same reading.
        """
        with self._lock():
            now = self._wall()
            return self._save(now, self._current_state(now))

    def accept(self) -> Reading:
        """Set the mark to the clock, because the operator confirmed that the clock is correct.

        Raises:
            OSError: the mark cannot be saved.
        """
        with self._lock():
            now = self._wall()
            state = self._current_state(now)
            state = state._replace(mark=max(now, RELEASED), claim=None, waited=0.0)
            return self._save(now, state)

    def stamp(self) -> int:
        """Return the current time stamp, or ``UNKNOWN`` while the clock is behind the mark."""
        reading = self.read()
        return UNKNOWN if reading.is_behind else int(reading.now)

    def _current_state(self, now: float) -> _State:
        boot, running = self._running()
        before = self._load() if self._path else self._state
        if before is None:
            before = _State(self._newest_file_time(now), boot, running)
        return _advance(before, now, boot, running)

    def _newest_file_time(self, now: float) -> float:
        """Return the time stamp of the newest file in the same directory, at most ``now``.

        If ``path`` is None, the result is ``now``.  The result is never before ``RELEASED``.
        """
        if self._path is None or now < RELEASED:
            return max(now, RELEASED)
        times = [RELEASED]
        with suppress(OSError):
            for path in self._path.parent.iterdir():
                with suppress(OSError):
                    # The clock's own files may have been created just now.
                    if not path.name.startswith(self._path.name):
                        times.append(path.stat().st_mtime)
        return min(max(each for each in times if each <= now + SLACK), now)

    def _load(self) -> _State | None:
        assert self._path is not None
        try:
            # ``int`` raises ValueError for NaN and Infinity.
            content = json.loads(self._path.read_bytes(), parse_constant=int)
            state = _State(
                mark=float(content["mark"]),
                boot=str(content["boot"]),
                running=float(content["running"]),
                claim=None if content["claim"] is None else float(content["claim"]),
                waited=float(content["waited"]),
            )
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            return None
        return state if RELEASED <= state.mark < UNKNOWN else None

    def _save(self, now: float, state: _State) -> Reading:
        self._state = state
        if self._path is not None:
            temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            try:
                with open(os.open(temporary, flags, 0o600), "wb") as file:
                    file.write(json.dumps(state._asdict()).encode())
                    file.flush()
                    os.fsync(file.fileno())  # otherwise a power failure could leave an empty file
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        return Reading(now, state.mark)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold a lock that excludes other processes."""
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(f"{self._path}.lock", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            with suppress(ImportError):  # Windows has no flock
                from fcntl import LOCK_EX, flock

                flock(file, LOCK_EX)
            yield


def _advance(before: _State, now: float, boot: str, running: float) -> _State:
    """Return the state that follows the state ``before`` when the clock shows ``now``.

    The mark is increased by the time that has certainly passed since ``before``.  While the clock
    is not trusted, ``claim`` is the time of the clock.  The claim becomes the mark after
    ``SETTLING_TIME`` seconds of uptime.  If the clock is set to a time before the claim, or to the
    other side of the mark, a new claim begins.
    """
    is_other_boot = bool(boot and before.boot and boot != before.boot)
    is_other_boot |= running < before.running or before.boot.startswith(_PROCESS)
    passed = added = running if is_other_boot else running - before.running
    # Without the identity of the boot, a long uptime may be that of another machine.
    if is_other_boot or (not (boot and before.boot) and passed > SLACK):
        added = min(passed, max(0.0, now - before.mark))
    mark = before.mark + added
    if abs(now - mark) <= SLACK:
        return _State(max(now, RELEASED), boot, running)
    claim, waited = before.claim, before.waited + passed
    if claim is not None:
        claim += passed
    if claim is None or now < claim - SLACK or (claim < mark) != (now < mark):
        claim, waited = now, 0.0
    if waited >= SETTLING_TIME and claim >= RELEASED:
        return _advance(_State(claim, boot, running), now, boot, running)
    return _State(mark, boot, running, claim, waited)


def _wall() -> float:
    return time.time()


def _running() -> tuple[str, float]:
    boot = ""
    with suppress(OSError), open(_BOOT_ID) as file:
        boot = file.read().strip()
    return boot, elapsed()
