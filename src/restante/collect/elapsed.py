"""How much time has passed for the ledger, whatever happens to the clock of the machine.

Messages are deleted on their server some days after they were taken, so a clock that jumps to
another year must not make them old.  The ledger adds up what passes between its readings:

- A clock that goes back adds nothing.
- What passes between two readings counts at once, up to ``_PLAUSIBLE``.
- More than that is either a machine that was switched off or a clock that is wrong.  The rest
  counts when the clock has gone on for ``_TRIAL`` without going back: a wrong date that is noticed
  within a day deletes nothing.  It makes older only what was there before the jump, or mail that
  was taken on the day after a long absence would look as old as the absence was long.
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
    """The ledger's own, which never goes back."""
    pending: float = 0.0
    """What the machine's clock jumped ahead, and does not count yet."""
    pending_since: float = 0.0
    """``time`` when it did."""
    caught_up: float = 0.0
    """By how much this reading makes up for a jump.  Time stamps since the jump must be moved by as
    much.  There is never more than one: the next jump adds a day, which ends the trial."""


def advance(last: Reading | None, wall: float) -> Reading:
    """The next reading, now that the machine's clock shows ``wall``."""
    if last is None:
        return Reading(wall, wall)
    passed = wall - last.wall
    if passed < 0:
        return Reading(wall, last.time)  # what it had jumped ahead was wrong
    time, pending, since = last.time + min(passed, _PLAUSIBLE), last.pending, last.pending_since
    caught_up = pending if pending and time - since >= _TRIAL else 0.0
    if caught_up:
        time, pending = time + caught_up, 0.0
    if passed > _PLAUSIBLE:
        pending, since = pending + passed - _PLAUSIBLE, time
    return Reading(wall, time, pending, since if pending else 0.0, caught_up)


class Elapsed:
    """The ledger's clock during one session, in seconds, after it was read once."""

    def __init__(self, time: float, wall: Callable[[], float]) -> None:
        """``time`` is what the ledger's clock showed, ``wall`` the machine's clock."""
        self._time, self._clock, self._began = time, wall, wall()

    def __call__(self) -> float:
        return self._time + min(max(self._clock() - self._began, 0.0), _PLAUSIBLE)
