"""The ledger's clock, which does not follow jumps of the machine's clock.

Messages are deleted on their server some days after they were collected, so a clock that jumps to
another year must not make them look old.  The ledger adds up the time between its readings:

- A clock that goes back adds nothing.
- The time between two readings is added immediately, up to ``_PLAUSIBLE``.
- A longer time means that the machine was switched off or that its clock is wrong.  The rest is
  added when the clock has run for ``_TRIAL`` without going back, so a wrong date that is corrected
  within a day deletes nothing.  The rest is added only to the age of messages that were taken
  before the jump.  Otherwise messages taken on the day after it would look as old as the jump.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

_PLAUSIBLE = 86_400.0  # seconds; collectors run daily or more often
_TRIAL = 86_400.0  # seconds, as for a purge


class Reading(NamedTuple):
    """The state of the clock, all in seconds."""

    wall: float
    """The machine's clock when it was last read, since the epoch."""
    time: float
    """The ledger's time, which never goes back."""
    pending: float = 0.0
    """The part of a jump of the machine's clock that has not been added yet."""
    pending_since: float = 0.0
    """``time`` at that jump."""
    caught_up: float = 0.0
    """The part of an earlier jump that is added at this reading.  Time stamps since the jump must
    be moved by it.  Never more than one jump is pending: the next jump adds a day, which ends the
    trial of the earlier one."""


def advance(last: Reading | None, wall: float) -> Reading:
    """Return the next reading; ``wall`` is the machine's clock now."""
    if last is None:
        return Reading(wall, wall)
    passed = wall - last.wall
    if passed < 0:
        return Reading(wall, last.time)  # an earlier jump forward was wrong
    time, pending, since = last.time + min(passed, _PLAUSIBLE), last.pending, last.pending_since
    caught_up = pending if pending and time - since >= _TRIAL else 0.0
    if caught_up:
        time, pending = time + caught_up, 0.0
    if passed > _PLAUSIBLE:
        pending, since = pending + passed - _PLAUSIBLE, time
    return Reading(wall, time, pending, since if pending else 0.0, caught_up)


class Elapsed:
    """The ledger's clock during one session, in seconds; it is read once at the beginning."""

    def __init__(self, time: float, wall: Callable[[], float]) -> None:
        """``time`` is the reading of the ledger's clock, ``wall`` returns the machine's clock."""
        self._time, self._clock, self._began = time, wall, wall()

    def __call__(self) -> float:
        return self._time + min(max(self._clock() - self._began, 0.0), _PLAUSIBLE)
