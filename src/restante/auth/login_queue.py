"""Who is checked now, and who waits: fair among networks, bounded for all.

Of a back end on this machine only passwords wait, because of their hash; of one that another
program answers, such as a directory, look-ups of names too.

Users whom the throttle knows are let in first.  Networks that guess share a part of one core;
whatever they do, the rest is left to others.  In each lane the networks take turns.  A lane that
is full refuses with [SYS/TEMP], first those of whom most wait already.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from ..errors import TooBusy
from ..passdb import Account, Accounts, Credentials, Passdb, current_attempt
from .throttle import Lane

_WAITING = 256  # that may wait in one lane

T = TypeVar("T")


class Turns:
    """A ``Passdb`` before one whose answers are costly or slow, and ``Accounts`` if that is."""

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
        return await self._run(credentials, lambda: self._passdb.verify(credentials))

    async def account(self, identity: str) -> Account | None:
        """With the priority of the login that it is asked for; what no login asks waits like a
        login without guesses.

        Raises:
            TemporaryFailure: as the back end says.
            TooBusy: too many wait already.
        """
        attempt = current_attempt()
        asker = attempt.asker if attempt else Credentials("", identity, "")
        return await self._run(asker, lambda: cast(Accounts, self._passdb).account(identity))

    async def _run(self, credentials: Credentials, ask: Callable[[], Awaitable[T]]) -> T:
        waiter = _Waiter(credentials, asyncio.get_running_loop().create_future())
        self._queue(waiter)
        self._admit()
        try:
            await waiter.admitted
        except BaseException:
            if not waiter.admitted.done() or waiter.admitted.cancelled():
                self._lanes[waiter.lane].remove(waiter)
            elif waiter.admitted.exception() is None:  # let in and gone at the same moment
                self._leave(waiter.lane)
            raise
        try:
            return await ask()
        finally:
            self._leave(waiter.lane)

    def _queue(self, waiter: _Waiter) -> None:
        waiter.lane, waiter.whose = self._lane(waiter.credentials)
        self._lanes[waiter.lane].add(waiter)

    def _admit(self) -> None:
        while self._free and (lane := self._next()) is not None:
            waiter = self._lanes[lane].take()
            if waiter.admitted.done():
                continue  # it has given up
            if lane is Lane.CLEAN and self._has_guessed(waiter):
                continue
            self._free -= 1
            if lane is Lane.DIRTY:
                self._dirty_since = self._clock()
            waiter.admitted.set_result(None)

    def _has_guessed(self, waiter: _Waiter) -> bool:
        """While it waited others from its network did; it goes on waiting with them."""
        if self._lane(waiter.credentials)[0] is not Lane.DIRTY:
            return False
        try:
            self._queue(waiter)
        except TooBusy as error:
            waiter.admitted.set_exception(error)
        return True

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


@dataclass(slots=True, eq=False)
class _Waiter:
    """Who waits, and where."""

    credentials: Credentials
    admitted: asyncio.Future[None]
    lane: Lane = Lane.CLEAN
    whose: str = ""


class _Queue:
    """One lane."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # the next one first

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, waiter: _Waiter) -> None:
        """
        Raises:
            TooBusy: the lane is full, and nobody has more in it.
        """
        if self._count >= self._most:
            self._make_room(waiter.whose)
        self._waiting.setdefault(waiter.whose, deque()).append(waiter)
        self._count += 1

    def take(self) -> _Waiter:
        whose, waiters = self._waiting.popitem(last=False)
        waiter = waiters.popleft()
        self._count -= 1
        if waiters:
            self._waiting[whose] = waiters
        return waiter

    def remove(self, waiter: _Waiter) -> None:
        waiters = self._waiting.get(waiter.whose, deque())
        if waiter in waiters:
            waiters.remove(waiter)
            self._count -= 1
            if not waiters:
                del self._waiting[waiter.whose]

    def _make_room(self, whose: str) -> None:
        most = max(self._waiting, key=lambda each: len(self._waiting[each]))
        if len(self._waiting[most]) <= len(self._waiting.get(whose, ())) + 1:
            raise TooBusy("too many logins at once, try again later")
        refused = self._waiting[most].pop()
        self._count -= 1
        if not refused.admitted.done():
            refused.admitted.set_exception(TooBusy("too many logins at once, try again later"))
