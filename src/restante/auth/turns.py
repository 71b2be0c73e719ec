"""Who may have a password hashed now, and who waits: fair among networks, bounded for all.

Users whom the throttle knows are let in first.  Networks that guess share a part of one core;
whatever they do, the rest is left to others.  In each lane the networks take turns.  A lane that
is full refuses with [SYS/TEMP], first those of whom most wait already.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from ..errors import TooBusy
from ..passdb import Account, Credentials, Passdb
from .throttle import Lane

_WAITING = 256  # that may wait in one lane

Waiter = asyncio.Future[None]


class Turns:
    """A ``Passdb`` before one whose answers cost a core something."""

    def __init__(
        self,
        passdb: Passdb,
        lane: Callable[[Credentials], tuple[Lane, str]],
        *,
        slots: int,
        share: float = 0.5,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``slots`` are asked at a time; of one, at most the ``share`` is for ``Lane.DIRTY``.
        ``lane`` also tells whose turn it is in the lane."""
        self._passdb = passdb
        self._lane = lane
        self._free = slots
        self._rest = 1 / share - 1  # seconds of it after each second of work
        self._lanes = {each: _Queue(_WAITING) for each in Lane}
        self._dirty_since: float | None = None
        self._dirty_again = 0.0
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._alarm: asyncio.TimerHandle | None = None

    async def verify(self, credentials: Credentials) -> Account:
        """
        Raises:
            AuthenticationFailed: as the passdb says.
            TemporaryFailure: as the passdb says.
            TooBusy: too many wait already.
        """
        lane, whose = self._lane(credentials)
        queue = self._lanes[lane]
        waiter: Waiter = asyncio.get_running_loop().create_future()
        queue.add(whose, waiter)
        self._admit()
        try:
            await waiter
        except BaseException:
            if not waiter.done() or waiter.cancelled():
                queue.remove(whose, waiter)
            elif waiter.exception() is None:  # let in and gone at the same moment
                self._leave(lane)
            raise
        try:
            return await self._passdb.verify(credentials)
        finally:
            self._leave(lane)

    def _admit(self) -> None:
        while self._free and (lane := self._next()) is not None:
            waiter = self._lanes[lane].take()
            self._free -= 1
            if lane is Lane.DIRTY:
                self._dirty_since = self._clock()
            waiter.set_result(None)

    def _next(self) -> Lane | None:
        if self._lanes[Lane.KNOWN]:
            return Lane.KNOWN
        if self._lanes[Lane.DIRTY] and self._dirty_since is None:
            wait = self._dirty_again - self._clock()
            if wait <= 0:  # its share is its own, or it would starve
                return Lane.DIRTY
            if self._alarm is None:
                self._alarm = asyncio.get_running_loop().call_later(wait, self._wake)
        return Lane.CLEAN if self._lanes[Lane.CLEAN] else None

    def _wake(self) -> None:
        self._alarm = None
        self._admit()

    def _leave(self, lane: Lane) -> None:
        self._free += 1
        if lane is Lane.DIRTY and self._dirty_since is not None:
            now = self._clock()
            self._dirty_again = now + (now - self._dirty_since) * self._rest
            self._dirty_since = None
        self._admit()


class _Queue:
    """One lane."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._waiting: OrderedDict[str, deque[Waiter]] = OrderedDict()  # the next one first

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, whose: str, waiter: Waiter) -> None:
        """
        Raises:
            TooBusy: the lane is full, and nobody has more in it.
        """
        if self._count >= self._most:
            self._make_room(whose)
        self._waiting.setdefault(whose, deque()).append(waiter)
        self._count += 1

    def take(self) -> Waiter:
        whose, waiters = self._waiting.popitem(last=False)
        waiter = waiters.popleft()
        self._count -= 1
        if waiters:
            self._waiting[whose] = waiters
        return waiter

    def remove(self, whose: str, waiter: Waiter) -> None:
        waiters = self._waiting.get(whose, deque())
        if waiter in waiters:
            waiters.remove(waiter)
            self._count -= 1
            if not waiters:
                del self._waiting[whose]

    def _make_room(self, whose: str) -> None:
        most = max(self._waiting, key=lambda each: len(self._waiting[each]))
        if len(self._waiting[most]) <= len(self._waiting.get(whose, ())) + 1:
            raise TooBusy("too many logins at once")
        refused = self._waiting[most].pop()
        self._count -= 1
        refused.set_exception(TooBusy("too many logins at once"))
