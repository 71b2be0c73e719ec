"""The ledger's clock, which is not affected by jumps of the machine's clock.

Messages are deleted on their server some days after they were collected, so a clock that jumps to
another year must not make them look old.  The ledger adds up the time between its readings of the
machine's clock:

- If the machine's clock was set back, nothing is added.
- The time between two readings is added immediately, up to ``_MAX_STEP``.
- If more time seems to have passed, the machine was switched off or its clock is wrong.  The rest
  is added after the clock has run for ``_SETTLING_TIME`` without being set back, so a wrong date
  that is corrected within a day deletes nothing.  The rest is added only to the age of messages
  that were collected before the jump.  Otherwise messages collected after it would look too old.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

_MAX_STEP = 86_400.0  # seconds between two readings; collectors run daily or more often
_SETTLING_TIME = 86_400.0  # seconds; the same time as ``clock.SETTLING_TIME``


class Reading(NamedTuple):
    """The state of the clock, all in seconds."""

    wall: float
    """The machine's clock when it was last read, since the epoch."""
    time: float
    """The ledger's time, which never decreases."""
    pending: float = 0.0
    """The part of a jump of the machine's clock that has not been added yet."""
    pending_since: float = 0.0
    """The value of ``time`` at that jump."""
    caught_up: float = 0.0
    """The part of an earlier jump that this reading has added.  The same time must be added to all
    time stamps since that jump.  There is never more than one pending jump: the next jump adds a
    day, and after a day the earlier jump is accepted."""


def advance(last: Reading | None, wall: float) -> Reading:
    """Return the next reading; ``wall`` is the machine's clock now."""
    if last is None:
        return Reading(wall, wall)
    passed = wall - last.wall
    if passed < 0:
        return Reading(wall, last.time)  # an earlier jump forward was wrong
    time, pending, since = last.time + min(passed, _MAX_STEP), last.pending, last.pending_since
    caught_up = pending if pending and time - since >= _SETTLING_TIME else 0.0
    if caught_up:
        time, pending = time + caught_up, 0.0
    if passed > _MAX_STEP:
        pending, since = pending + passed - _MAX_STEP, time
    return Reading(wall, time, pending, since if pending else 0.0, caught_up)


class Elapsed:
    """Returns the ledger's time during one session, in seconds."""

    def __init__(self, time: float, wall: Callable[[], float]) -> None:
        """``time`` is the ledger's time at the beginning; ``wall`` returns the machine's clock."""
        self._time, self._clock, self._began = time, wall, wall()

    def __call__(self) -> float:
        return self._time + min(max(self._clock() - self._began, 0.0), _MAX_STEP)
