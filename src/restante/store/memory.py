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
from ..maildrop import (
    DELETION_LIMITED,
    Entry,
    Forecast,
    HeldMessage,
    Maildrop,
    SessionRecord,
    Sweep,
)
from ..message import LineEndings
from .rules import Rules, days_to_seconds, forecast

_PIECE = 65_536  # octets; the longest piece that ``restante.maildrop`` allows


@dataclass(frozen=True, slots=True)
class _Message:
    entry: Entry
    stored: bytes


@dataclass(slots=True)
class _MaildropState:
    """The content of one user's maildrop."""

    messages: dict[str, _Message] = field(default_factory=dict)  # by unique-id
    held: dict[str, tuple[HeldMessage, _Message]] = field(default_factory=dict)  # by name
    opened_at: float | None = None  # on the monotonic clock; None: the lock is free
    # The last login that counts for LOGIN-DELAY, on the monotonic clock.
    paced_at: float | None = None
    # Times of arrival by unique-id, in seconds since the epoch.
    arrival_times: dict[str, float] = field(default_factory=dict)
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
        self._states: dict[str, _MaildropState] = {}
        self._counter = itertools.count(1)

    def clear(self) -> None:
        """Remove all mail and its history.  Unique-ids are not reused, even after this call."""
        self._states.clear()

    @property
    def opens_immediately(self) -> bool:
        return True

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        state = self._states.setdefault(user, _MaildropState())
        now = time.monotonic()
        if state.opened_at is not None:
            raise MaildropInUse(now - state.opened_at)
        state.opened_at = now
        try:
            yield _MemoryMaildrop(state, self._counter, self.hold(user))
        finally:
            state.opened_at = None

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        stored = b"".join([octets async for octets in message])
        entry = Entry(f"m{next(self._counter)}", len(_wire_text(stored)))
        state = self._states.setdefault(user, _MaildropState())
        state.messages[entry.unique_id] = _Message(entry, stored)
        state.arrival_times[entry.unique_id] = time.time()
        return entry

    async def expire(self, user: str, days: int | None, *, until: float, now: float) -> Sweep:
        state = self._states.setdefault(user, _MaildropState())
        end = state.rules.changed(int(now), expire=days_to_seconds(days)).kept_until
        ends = {unique_id: end(state.arrival_times[unique_id]) for unique_id in state.messages}
        expired = [unique_id for unique_id, at in ends.items() if at <= until]
        if expired:
            async with self.open(user):
                _remove(state, expired, self.hold(user), next(self._counter))
        return Sweep(len(expired), sum(until < each <= now for each in ends.values()))

    async def purge_due(self, user: str, *, until: float, now: float) -> Sweep:
        state = self._states.get(user, _MaildropState())
        end = state.rules.changed(int(now), hold=self.hold(user)).held_until
        ends = {name: end(held.removed_at) for name, (held, _) in state.held.items()}
        due = [name for name, at in ends.items() if at <= until]
        for name in due:
            del state.held[name]
        return Sweep(len(due), sum(until < each <= now for each in ends.values()))

    async def note_rules(self, user: str, days: int | None, now: float) -> Forecast:
        state = self._states.get(user, _MaildropState())
        before = state.rules
        state.rules = before.changed(int(now), hold=self.hold(user), expire=days_to_seconds(days))
        return _forecast(state, before, state.rules)

    async def forecast(self, user: str, days: int | None, now: float) -> Forecast:
        state = self._states.get(user, _MaildropState())
        after = state.rules.changed(int(now), hold=self.hold(user), expire=days_to_seconds(days))
        return _forecast(state, after.without_recent_changes(now), after)

    async def held(self, user: str) -> Sequence[HeldMessage]:
        return [held for held, _ in self._states.get(user, _MaildropState()).held.values()]

    async def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        entry = self._states.get(user, _MaildropState()).held.get(held.name)
        if entry is None:
            raise MessageGone
        for piece in _pieces(entry[1].stored):
            yield piece

    async def restore(
        self, user: str, held: Collection[HeldMessage], *, same_unique_ids: bool = False
    ) -> int:
        state = self._states.get(user, _MaildropState())
        restored = 0
        for name in [each.name for each in held if each.name in state.held]:
            message = state.held[name][1]
            if not same_unique_ids:
                entry = replace(message.entry, unique_id=f"m{next(self._counter)}")
                message = replace(message, entry=entry)
            elif message.entry.unique_id in state.messages:
                continue
            del state.held[name]
            state.messages[message.entry.unique_id] = message
            state.arrival_times[message.entry.unique_id] = time.time()
            restored += 1
        state.messages = dict(sorted(state.messages.items(), key=lambda item: int(item[0][1:])))
        return restored

    async def purge(self, user: str, removed_before: float) -> int:
        state = self._states.get(user, _MaildropState())
        old = [name for name, (held, _) in state.held.items() if held.removed_at < removed_before]
        for name in old:
            del state.held[name]
        return len(old)

    async def sessions(self, user: str) -> Sequence[SessionRecord]:
        return list(self._states.get(user, _MaildropState()).sessions)

    async def users(self) -> AsyncIterator[str]:
        for user in sorted(self._states):
            yield user


class _MemoryMaildrop:
    def __init__(self, state: _MaildropState, counter: itertools.count[int], hold: float) -> None:
        self._state = state
        self._counter = counter
        self._hold = hold
        self.listing = tuple(message.entry for message in state.messages.values())

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        message = self._state.messages.get(entry.unique_id)
        if message is None:
            raise MessageGone
        for piece in _pieces(_wire_text(message.stored)):
            yield piece

    async def pace(self, delay: float) -> float:
        now = time.monotonic()
        if self._state.paced_at is not None and now - self._state.paced_at < delay:
            return self._state.paced_at + delay - now
        self._state.paced_at = now
        return 0.0

    async def record(self, session: SessionRecord) -> None:
        if session.retrieved or session.removed or session.end == DELETION_LIMITED:
            self._state.sessions.append(session)

    async def past(self, credential: str) -> Sequence[SessionRecord]:
        return [each for each in self._state.sessions if each.credential == credential]

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        if self._hold != inf:
            ids = [entry.unique_id for entry in entries]
            _remove(self._state, ids, self._hold, next(self._counter))
        return ()


def _remove(state: _MaildropState, unique_ids: Sequence[str], hold: float, number: int) -> None:
    """Remove messages, and hold them if ``hold`` is above 0.  ``number`` is unique to this call."""
    now = time.time()
    state.rules = state.rules.changed(int(now), hold=hold)
    for unique_id in unique_ids:
        message = state.messages.pop(unique_id, None)
        if message is not None and hold:
            size, name = len(message.stored), f"{number}.{unique_id}"
            state.held[name] = (HeldMessage(name, unique_id, size, now), message)


def _forecast(state: _MaildropState, before: Rules, after: Rules) -> Forecast:
    removed = [held.removed_at for held, _ in state.held.values()]
    arrivals = [state.arrival_times[unique_id] for unique_id in state.messages]
    return forecast(before, after, removal_times=lambda: removed, arrival_times=lambda: arrivals)


def _wire_text(stored: bytes) -> bytes:
    ends = LineEndings()
    return ends.feed(stored) + ends.finish()


def _pieces(octets: bytes) -> list[bytes]:
    return [octets[start : start + _PIECE] for start in range(0, len(octets), _PIECE)]
