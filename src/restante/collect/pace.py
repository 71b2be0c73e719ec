"""Schedule the next session: soon after new mail, later without new mail or after failures.

Jitter prevents many collectors from connecting at the same moment.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..errors import LoginWithheld
from .collector import LoginTooSoon, Outcome
from .ledger_file import AccountBusy

_SLOWER = 1.5  # factor from one pause to the next while no mail arrives
_LONGEST = 3600.0  # seconds between attempts after failures, unless the usual pause is longer


@dataclass(frozen=True, slots=True)
class Pace:
    """The pauses between sessions, in seconds."""

    shortest: float
    longest: float

    def pause(self, quiet: int, failures: int) -> float:
        """Return the pause after consecutive sessions without mail (``quiet``) or ``failures``."""
        longest = max(self.shortest, self.longest)
        if failures:
            return min(self.shortest * 2.0 ** min(failures, 30), max(_LONGEST, longest))
        return min(self.shortest * _SLOWER ** min(quiet, 30), longest)


async def follow(
    session: Callable[[], Awaitable[Outcome | BaseException]],
    may_begin: Callable[[float], float],
    pace: Pace,
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
    jitter: Callable[[float, float], float] = random.uniform,
) -> None:
    """Run one session after another until cancelled.

    ``may_begin`` is called with the current time, and returns the earliest time of the next login
    that the server and the budget allow.  If another process is collecting the account, or the
    login came too soon, the session has not failed.
    """
    quiet = failures = 0
    while True:
        result = await session()
        wait = 0.0
        match result:
            case LoginTooSoon() | LoginWithheld():
                wait = result.seconds
            case AccountBusy():
                pass
            case BaseException():
                failures += 1
            case _:
                failures = 0
                quiet = 0 if result.stored or result.stubs else quiet + 1
        pause = pace.pause(quiet, failures) * jitter(1.0, 1.5 if failures else 1.1)
        now = clock()
        await sleep(max(pause, wait, may_begin(now) - now))
