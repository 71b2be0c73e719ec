"""A store in memory: for the tests of the layers above, and for trying things out.

Limits: one process and one event loop; everything is lost with the process.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from ..errors import MaildropInUse, MessageGone
from ..maildrop import BRAKED, Entry, HeldMessage, Maildrop, SessionRecord
from ..message import LineEnds

_PIECE = 65_536  # octets (maildrop.py: no piece is longer)


@dataclass(frozen=True, slots=True)
class _Message:
    entry: Entry
    stored: bytes


@dataclass(slots=True)
class _Box:
    """All that is known of one user."""

    messages: dict[str, _Message] = field(default_factory=dict)  # by unique-id
    held: dict[str, tuple[HeldMessage, _Message]] = field(default_factory=dict)  # by name
    opened_at: float | None = None  # on the monotonic clock; None: nobody holds the lock
    paced_at: float | None = None  # the last login that counted, on the monotonic clock
    arrived: dict[str, float] = field(default_factory=dict)  # by unique-id; since the epoch
    sessions: deque[SessionRecord] = field(default_factory=lambda: deque(maxlen=1000))


class MemoryStore:
    """Implements ``Store``, ``Holding``, ``Remembering`` and ``Expiring``; its maildrops also
    ``Journal`` and ``Paced``."""

    def __init__(self, *, hold: Callable[[str], float] = lambda _: 14 * 86400) -> None:
        """``hold``: as of a ``MaildirStore``, but that infinity holds for ever."""
        self.hold = hold
        self._boxes: dict[str, _Box] = {}
        self._counter = itertools.count(1)

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        box = self._boxes.setdefault(user, _Box())
        now = time.monotonic()
        if box.opened_at is not None:
            raise MaildropInUse(now - box.opened_at)
        box.opened_at = now
        try:
            yield _MemoryMaildrop(box, self._counter)
        finally:
            box.opened_at = None

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        stored = b"".join([octets async for octets in message])
        entry = Entry(f"m{next(self._counter)}", len(_wire_text(stored)))
        box = self._boxes.setdefault(user, _Box())
        box.messages[entry.unique_id] = _Message(entry, stored)
        box.arrived[entry.unique_id] = time.time()
        return entry

    async def expire(self, user: str, arrived_before: float) -> int:
        async with self.open(user) as maildrop:
            arrived = self._boxes[user].arrived
            old = [e for e in maildrop.listing if arrived[e.unique_id] < arrived_before]
            await maildrop.remove(old)
        return len(old)

    async def held(self, user: str) -> Sequence[HeldMessage]:
        return [held for held, _ in self._boxes.get(user, _Box()).held.values()]

    async def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        found = self._boxes.get(user, _Box()).held.get(held.name)
        if found is None:
            raise MessageGone
        for piece in _cut(found[1].stored):
            yield piece

    async def undelete(
        self, user: str, held: Collection[HeldMessage], *, same_unique_ids: bool = False
    ) -> int:
        box = self._boxes.get(user, _Box())
        given_back = 0
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
            given_back += 1
        box.messages = dict(sorted(box.messages.items(), key=lambda item: int(item[0][1:])))
        return given_back

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
    def __init__(self, box: _Box, counter: itertools.count[int]) -> None:
        self._box = box
        self._counter = counter
        self.listing = tuple(message.entry for message in box.messages.values())

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        message = self._box.messages.get(entry.unique_id)
        if message is None:
            raise MessageGone
        for piece in _cut(_wire_text(message.stored)):
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
        for entry in entries:
            message = self._box.messages.pop(entry.unique_id, None)
            if message is not None:
                held = HeldMessage(
                    f"{next(self._counter)}.{entry.unique_id}",
                    entry.unique_id,
                    len(message.stored),
                    time.time(),
                )
                self._box.held[held.name] = (held, message)
        return ()


def _wire_text(stored: bytes) -> bytes:
    ends = LineEnds()
    return ends.feed(stored) + ends.finish()


def _cut(octets: bytes) -> list[bytes]:
    return [octets[at : at + _PIECE] for at in range(0, len(octets), _PIECE)]
