"""Schedule the sessions of an account.

The next session begins soon if new mail arrived, and later if no mail arrived or a session failed.
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

_FACTOR = 1.5  # by which each pause is longer than the one before, while no mail arrives
_MAX_FAILURE_PAUSE = 3600.0  # seconds; a longer ``Pace.longest`` applies after failures as well


@dataclass(frozen=True, slots=True)
class Pace:
    """The pauses between sessions, in seconds."""

    shortest: float
    longest: float

    def pause(self, quiet: int, failures: int) -> float:
        """Return the pause after a number of consecutive failures, or of sessions without mail.

        ``quiet`` is the number of successful sessions since new mail arrived.
        """
        longest = max(self.shortest, self.longest)
        if failures:
            return min(self.shortest * 2.0 ** min(failures, 30), max(_MAX_FAILURE_PAUSE, longest))
        return min(self.shortest * _FACTOR ** min(quiet, 30), longest)


async def run_sessions(
    session: Callable[[], Awaitable[Outcome | BaseException]],
    may_begin: Callable[[float], float],
    pace: Pace,
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
    jitter: Callable[[float, float], float] = random.uniform,
) -> None:
    """Run one session after another until cancelled.

    ``session`` returns its outcome or its exception.  ``may_begin`` is called with the current
    time, and returns the earliest time at which the server and the budget allow a login.  If
    another process is collecting the account, or it is too early for a login, the session does not
    count as failed.
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
