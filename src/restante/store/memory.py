"""A store in memory, for demonstrations and for tests of the layers that use a store.

Limits: one process and one event loop; all mail is lost when the process ends.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from math import inf

from ..errors import MaildropInUse, MessageGone
from ..maildrop import BRAKED, Entry, Forecast, HeldMessage, Maildrop, SessionRecord, Sweep
from ..message import LineEnds
from .rules import Rules, days_to_seconds, forecast

_PIECE = 65_536  # octets; the longest piece that ``restante.maildrop`` allows


@dataclass(frozen=True, slots=True)
class _Message:
    entry: Entry
    stored: bytes


@dataclass(slots=True)
class _Box:
    """The maildrop of one user."""

    messages: dict[str, _Message] = field(default_factory=dict)  # by unique-id
    held: dict[str, tuple[HeldMessage, _Message]] = field(default_factory=dict)  # by name
    opened_at: float | None = None  # on the monotonic clock; None: the lock is free
    # The last login that counts for LOGIN-DELAY, on the monotonic clock.
    paced_at: float | None = None
    # Times of arrival by unique-id, in seconds since the epoch.
    arrived: dict[str, float] = field(default_factory=dict)
    sessions: deque[SessionRecord] = field(default_factory=lambda: deque(maxlen=1000))
    rules: Rules = field(default_factory=Rules)


class MemoryStore:
    """A store in memory.

    Implements ``Store``, ``Holding``, ``Remembering`` and ``Expiring``.  Its maildrops also
    implement ``Journal`` and ``Paced``.
    """

    def __init__(self, *, hold: Callable[[str], float] = lambda _: 14 * 86400) -> None:
        """``hold`` returns the hold time of a user in seconds, as for ``MaildirStore``."""
        self.hold = hold
        self._boxes: dict[str, _Box] = {}
        self._counter = itertools.count(1)

    def clear(self) -> None:
        """Remove all mail and its history.  Unique-ids are not reused, even after this call."""
        self._boxes.clear()

    @property
    def is_prompt(self) -> bool:
        return True

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        box = self._boxes.setdefault(user, _Box())
        now = time.monotonic()
        if box.opened_at is not None:
            raise MaildropInUse(now - box.opened_at)
        box.opened_at = now
        try:
            yield _MemoryMaildrop(box, self._counter, self.hold(user))
        finally:
            box.opened_at = None

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        stored = b"".join([octets async for octets in message])
        entry = Entry(f"m{next(self._counter)}", len(_wire_text(stored)))
        box = self._boxes.setdefault(user, _Box())
        box.messages[entry.unique_id] = _Message(entry, stored)
        box.arrived[entry.unique_id] = time.time()
        return entry

    async def expire(self, user: str, days: int | None, *, until: float, now: float) -> Sweep:
        box = self._boxes.setdefault(user, _Box())
        end = box.rules.changed(int(now), expire=days_to_seconds(days)).kept_until
        ends = {unique_id: end(box.arrived[unique_id]) for unique_id in box.messages}
        expired = [unique_id for unique_id, at in ends.items() if at <= until]
        if expired:
            async with self.open(user):
                _remove(box, expired, self.hold(user), next(self._counter))
        return Sweep(len(expired), sum(until < each <= now for each in ends.values()))

    async def purge_due(self, user: str, *, until: float, now: float) -> Sweep:
        box = self._boxes.get(user, _Box())
        end = box.rules.changed(int(now), hold=self.hold(user)).held_until
        ends = {name: end(held.removed_at) for name, (held, _) in box.held.items()}
        due = [name for name, at in ends.items() if at <= until]
        for name in due:
            del box.held[name]
        return Sweep(len(due), sum(until < each <= now for each in ends.values()))

    async def note_rules(self, user: str, days: int | None, now: float) -> Forecast:
        box = self._boxes.get(user, _Box())
        before = box.rules
        box.rules = before.changed(int(now), hold=self.hold(user), expire=days_to_seconds(days))
        return _forecast(box, before, box.rules)

    async def forecast(self, user: str, days: int | None, now: float) -> Forecast:
        box = self._boxes.get(user, _Box())
        after = box.rules.changed(int(now), hold=self.hold(user), expire=days_to_seconds(days))
        return _forecast(box, after.without_recent_changes(now), after)

    async def held(self, user: str) -> Sequence[HeldMessage]:
        return [held for held, _ in self._boxes.get(user, _Box()).held.values()]

    async def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        entry = self._boxes.get(user, _Box()).held.get(held.name)
        if entry is None:
            raise MessageGone
        for piece in _pieces(entry[1].stored):
            yield piece

    async def restore(
        self, user: str, held: Collection[HeldMessage], *, same_unique_ids: bool = False
    ) -> int:
        box = self._boxes.get(user, _Box())
        restored = 0
        for name in [each.name for each in held if each.name in box.held]:
            message = box.held[name][1]
            if not same_unique_ids:
                entry = replace(message.entry, unique_id=f"m{next(self._counter)}")
                message = replace(message, entry=entry)
            elif message.entry.unique_id in box.messages:
                continue
            del box.held[name]
            box.messages[message.entry.unique_id] = message
            box.arrived[message.entry.unique_id] = time.time()
            restored += 1
        box.messages = dict(sorted(box.messages.items(), key=lambda item: int(item[0][1:])))
        return restored

    async def purge(self, user: str, removed_before: float) -> int:
        box = self._boxes.get(user, _Box())
        old = [name for name, (held, _) in box.held.items() if held.removed_at < removed_before]
        for name in old:
            del box.held[name]
        return len(old)

    async def sessions(self, user: str) -> Sequence[SessionRecord]:
        return list(self._boxes.get(user, _Box()).sessions)

    async def users(self) -> AsyncIterator[str]:
        for user in sorted(self._boxes):
            yield user


class _MemoryMaildrop:
    def __init__(self, box: _Box, counter: itertools.count[int], hold: float) -> None:
        self._box = box
        self._counter = counter
        self._hold = hold
        self.listing = tuple(message.entry for message in box.messages.values())

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        message = self._box.messages.get(entry.unique_id)
        if message is None:
            raise MessageGone
        for piece in _pieces(_wire_text(message.stored)):
            yield piece

    async def pace(self, delay: float) -> float:
        now = time.monotonic()
        if self._box.paced_at is not None and now - self._box.paced_at < delay:
            return self._box.paced_at + delay - now
        self._box.paced_at = now
        return 0.0

    async def record(self, session: SessionRecord) -> None:
        if session.retrieved or session.removed or session.end == BRAKED:
            self._box.sessions.append(session)

    async def past(self, credential: str) -> Sequence[SessionRecord]:
        return [each for each in self._box.sessions if each.credential == credential]

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        if self._hold != inf:
            ids = [entry.unique_id for entry in entries]
            _remove(self._box, ids, self._hold, next(self._counter))
        return ()


def _remove(box: _Box, unique_ids: Sequence[str], hold: float, number: int) -> None:
    """Remove messages, and hold them if ``hold`` is above 0.  ``number`` is unique to this call."""
    now = time.time()
    box.rules = box.rules.changed(int(now), hold=hold)
    for unique_id in unique_ids:
        message = box.messages.pop(unique_id, None)
        if message is not None and hold:
            size, name = len(message.stored), f"{number}.{unique_id}"
            box.held[name] = (HeldMessage(name, unique_id, size, now), message)


def _forecast(box: _Box, before: Rules, after: Rules) -> Forecast:
    removed = [held.removed_at for held, _ in box.held.values()]
    arrived = [box.arrived[unique_id] for unique_id in box.messages]
    return forecast(before, after, removed=lambda: removed, arrived=lambda: arrived)


def _wire_text(stored: bytes) -> bytes:
    ends = LineEnds()
    return ends.feed(stored) + ends.finish()


def _pieces(octets: bytes) -> list[bytes]:
    return [octets[start : start + _PIECE] for start in range(0, len(octets), _PIECE)]
