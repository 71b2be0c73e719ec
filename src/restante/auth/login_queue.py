"""A bounded queue in front of a back end: known users first, then an equal share for each network.

With a local back end, only password checks are queued, because hashing is expensive.  With a back
end that queries another program, such as a directory server, name look-ups are queued as well.

The throttle gives each login a priority and a group, which is the network or the user of the login.
If logins of the same priority are waiting, one login of each group is admitted in turn.  Logins
from networks with recent guesses share part of one core, which leaves the rest of the machine to
other logins.

Limits: ``_MAX_WAITING`` logins of each priority.  When a queue is full, logins are refused with
[SYS/TEMP], starting with the group that has the most logins waiting.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import TooBusy
from ..passdb import Credentials, UserAccount, current_attempt
from .chain import Verifier
from .throttle import Priority

# Number of logins of each priority.  On one core, with 45 ms for each hash, the last of 256 logins
# waits 12 s.  The chain has a deadline of 10 s, so a longer queue would only make more
# logins time out.
_MAX_WAITING = 256

T = TypeVar("T")


class LoginQueue:
    """A ``Verifier`` that queues the requests to a slow or expensive ``Verifier``."""

    def __init__(
        self,
        backend: Verifier,
        priority: Callable[[Credentials], tuple[Priority, str]],
        *,
        slots: int,
        share: float = 0.5,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """
        Args:
            backend: checks the passwords and looks the users up.
            priority: returns the priority of a login, and the group under which it is queued.
            slots: maximum number of simultaneous queries to ``backend``.
            share: fraction of one slot's time that ``Priority.DIRTY`` may use.
        """
        self._backend = backend
        self._priority = priority
        self._free_slots = slots
        self._pause = 1 / share - 1  # pause in seconds after each second of work for DIRTY
        self._queues = {each: _Queue(_MAX_WAITING) for each in Priority}
        self._dirty_since: float | None = None
        self._dirty_allowed_at = 0.0
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._timer: asyncio.TimerHandle | None = None

    async def verify(self, credentials: Credentials) -> UserAccount:
        """Check a password when a slot is free.

        Raises:
            AuthenticationFailed: from the back end.
            TemporaryFailure: from the back end.
            TooBusy: too many logins are waiting.
        """
        return await self._run(credentials, lambda: self._backend.verify(credentials))

    async def account(self, identity: str) -> UserAccount | None:
        """Look a user up, with the priority of the current login.

        A look-up outside a login, for example of a recipient, has the priority of a login by this
        user from an unknown address.

        Raises:
            TemporaryFailure: from the back end.
            TooBusy: too many logins are waiting.
        """
        attempt = current_attempt()
        credentials = attempt.credentials if attempt else Credentials("", identity, "")
        return await self._run(credentials, lambda: self._backend.account(identity))

    async def _run(self, credentials: Credentials, query: Callable[[], Awaitable[T]]) -> T:
        waiter = _Waiter(credentials, asyncio.get_running_loop().create_future())
        self._enqueue(waiter)
        self._admit()
        try:
            await waiter.admitted
        except BaseException:
            if not waiter.admitted.done() or waiter.admitted.cancelled():
                self._queues[waiter.priority].remove(waiter)
            elif waiter.admitted.exception() is None:  # cancelled after it was admitted
                self._release_slot(waiter.priority)
            raise
        try:
            return await query()
        finally:
            self._release_slot(waiter.priority)

    def _enqueue(self, waiter: _Waiter) -> None:
        waiter.priority, waiter.group = self._priority(waiter.credentials)
        self._queues[waiter.priority].add(waiter)

    def _admit(self) -> None:
        while self._free_slots and (priority := self._next_priority()) is not None:
            waiter = self._queues[priority].take()
            if waiter.admitted.done():
                continue  # its caller was cancelled
            if priority is Priority.CLEAN and self._requeue_if_dirty(waiter):
                continue
            self._free_slots -= 1
            if priority is Priority.DIRTY:
                self._dirty_since = self._clock()
            waiter.admitted.set_result(None)

    def _requeue_if_dirty(self, waiter: _Waiter) -> bool:
        """Requeue a login if its network became ``DIRTY`` while it waited.

        Returns True if the login was requeued or refused and must not be admitted now.
        """
        if self._priority(waiter.credentials)[0] is not Priority.DIRTY:
            return False
        try:
            self._enqueue(waiter)
        except TooBusy as error:
            waiter.admitted.set_exception(error)
        return True

    def _next_priority(self) -> Priority | None:
        if self._queues[Priority.KNOWN]:
            return Priority.KNOWN
        if self._queues[Priority.DIRTY] and self._dirty_since is None:
            wait = self._dirty_allowed_at - self._clock()
            # Checked before CLEAN, because otherwise a constant stream of CLEAN logins would keep
            # DIRTY logins waiting for ever.
            if wait <= 0:
                return Priority.DIRTY
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)
        return Priority.CLEAN if self._queues[Priority.CLEAN] else None

    def _on_timer(self) -> None:
        self._timer = None
        self._admit()

    def _release_slot(self, priority: Priority) -> None:
        self._free_slots += 1
        if priority is Priority.DIRTY and self._dirty_since is not None:
            now = self._clock()
            self._dirty_allowed_at = now + (now - self._dirty_since) * self._pause
            self._dirty_since = None
        self._admit()


@dataclass(slots=True, eq=False)
class _Waiter:
    """A login that is in the queue or is being checked."""

    credentials: Credentials
    admitted: asyncio.Future[None]
    priority: Priority = Priority.CLEAN
    group: str = ""


class _Queue:
    """The waiting logins of one priority."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._count = 0
        # The logins by group; the group whose turn is next comes first.
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, waiter: _Waiter) -> None:
        """Add a login to its group.

        Raises:
            TooBusy: the queue is full, and no other group has more logins waiting.
        """
        if self._count >= self._capacity:
            self._make_room(waiter.group)
        self._waiting.setdefault(waiter.group, deque()).append(waiter)
        self._count += 1

    def take(self) -> _Waiter:
        """Remove and return the first login of the next group, and move the group to the end."""
        group, waiters = self._waiting.popitem(last=False)
        waiter = waiters.popleft()
        self._count -= 1
        if waiters:
            self._waiting[group] = waiters
        return waiter

    def remove(self, waiter: _Waiter) -> None:
        """Remove a cancelled login if it is still in the queue."""
        waiters = self._waiting.get(waiter.group, deque())
        if waiter in waiters:
            waiters.remove(waiter)
            self._count -= 1
            if not waiters:
                del self._waiting[waiter.group]

    def _make_room(self, group: str) -> None:
        """Refuse the last login of the largest group.

        Raises:
            TooBusy: if a login were added, ``group`` would be at least as large as the largest
                group.
        """
        largest = max(self._waiting, key=lambda each: len(self._waiting[each]))
        if len(self._waiting[largest]) <= len(self._waiting.get(group, ())) + 1:
            raise TooBusy("too many logins at once, try again later")
        refused = self._waiting[largest].pop()
        self._count -= 1
        if not refused.admitted.done():
            refused.admitted.set_exception(TooBusy("too many logins at once, try again later"))
