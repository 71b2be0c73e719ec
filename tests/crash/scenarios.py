"""The transactions of the store: what each does, and which promises it makes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from restante.maildrop import SessionRecord
from restante.store import journal as module
from restante.store.maildir import MaildirStore
from restante.store.maildir import _OpenMaildir as Opened

from ..store.helpers import deliver, put, text_of
from .oracle import GONE, HELD, LISTED, NOTED, HoldingStore, Oracle

USER = "ann"
NAMES = {b"1.a": "new/1.a", b"2.a": "cur/2.a:2,S", b"3.a": "new/3.a,S=5,W=5", b"4.a": "cur/4.a:2,"}
"""File names by text, which is also the unique-id; a line end follows in the file."""
VICTIMS = [b"1.a\r\n", b"2.a\r\n", b"3.a\r\n"]


QUARREL = {b"first\r\n": "new/1.a", b"second\r\n": "cur/1.a:2,S"}
"""File names of two messages that claim the same unique-id, by text."""


def begin_quarrel(place: Path, oracle: Oracle) -> None:
    for text, name in QUARREL.items():
        put(place, name, text)
        oracle.expect(text, LISTED)


def begin(place: Path, oracle: Oracle) -> None:
    """Fill a maildrop as another program would."""
    for text, name in NAMES.items():
        put(place, name, text + b"\r\n")
        oracle.expect(text + b"\r\n", LISTED, unique_id=text.decode())


def begin_large(place: Path, oracle: Oracle) -> None:
    """Fill a maildrop in which the victims are fewer than half of the messages."""
    begin(place, oracle)
    for number in range(5, 8):
        put(place, f"cur/{number}.a:2,", b"%d.a\r\n" % number)
        oracle.expect(b"%d.a\r\n" % number, LISTED, unique_id=f"{number}.a")


def nothing_there(place: Path, oracle: Oracle) -> None:
    """Make nothing, not even a maildrop."""


async def delivery(store: HoldingStore, oracle: Oracle) -> None:
    for text in (b"first\r\n", b"second\r\n"):
        oracle.expect(text, LISTED, GONE)
        entry = await deliver(store, USER, text[:3], text[3:])
        oracle.expect(text, LISTED, unique_id=entry.unique_id)


async def opening(store: HoldingStore, oracle: Oracle) -> None:
    async with store.open(USER):
        pass


async def followed(store: HoldingStore, oracle: Oracle) -> None:
    """Write the index, and append to it twice."""
    await opening(store, oracle)
    for text in (b"first\r\n", b"second\r\n"):
        oracle.expect(text, LISTED, GONE)
        entry = await deliver(store, USER, text)
        oracle.expect(text, LISTED, unique_id=entry.unique_id)
        await opening(store, oracle)
    await _remove(store, oracle, HELD)
    await opening(store, oracle)


async def quarrel(store: HoldingStore, oracle: Oracle) -> None:
    """A message keeps the id it was listed with; no other inherits it later."""
    async with store.open(USER) as maildrop:
        entries = {await text_of(maildrop, entry): entry for entry in maildrop.listing}
        for text, entry in entries.items():
            oracle.expect(text, LISTED, unique_id=entry.unique_id)
        for text, entry in entries.items():
            if entry.unique_id == "1.a":
                oracle.expect(text, LISTED, HELD, unique_id=entry.unique_id)
                if not await maildrop.remove([entry]):
                    oracle.expect(text, HELD)
    await opening(store, oracle)


async def adoption(store: HoldingStore, oracle: Oracle) -> None:
    """Mail of another server is never listed under another id than its own."""
    texts = {"7.a:2,S": b"seven\r\n", "8.a": b"eight\r\n"}
    ids = {name: f"old-{text[:5].decode()}" for name, text in texts.items()}

    async def read(name: str) -> AsyncIterator[bytes]:
        yield texts[name]

    assert isinstance(store, MaildirStore)
    for name, text in texts.items():
        oracle.expect(text, LISTED, GONE, unique_id=ids[name])
    for _ in range(2):
        assert await store.adopt(USER, ids, read) in (0, 2)
        for name, text in texts.items():
            oracle.expect(text, LISTED, unique_id=ids[name])


async def journal(store: HoldingStore, oracle: Oracle) -> None:
    await _journal(store, oracle, module._MAX_SIZE)


async def full_journal(store: HoldingStore, oracle: Oracle) -> None:
    await _journal(store, oracle, 1)


async def _journal(store: HoldingStore, oracle: Oracle, full: int) -> None:
    """Record two sessions; for the second, the file is full after ``full`` octets."""
    for name in (b"session 1", b"session 2"):
        async with store.open(USER) as maildrop:
            assert isinstance(maildrop, Opened)
            marked = [e for e in maildrop.listing if _text(e.unique_id) in VICTIMS][:1]
            for entry in marked:
                oracle.expect(_text(entry.unique_id), LISTED, HELD, unique_id=entry.unique_id)
            left = await maildrop.remove(marked)
            for entry in marked:
                if entry not in left:
                    oracle.expect(_text(entry.unique_id), HELD)
            oracle.expect(name, NOTED, GONE)
            with suppress(OSError):  # as in the store, which logs it
                session = SessionRecord(0, 1, "", "", name.decode(), marked, marked, "quit")
                with pytest.MonkeyPatch.context() as patch:
                    if name == b"session 2":
                        patch.setattr(module, "_MAX_SIZE", full)
                    module.append(maildrop.maildrop, session)
                oracle.expect(name, NOTED)


async def update(store: HoldingStore, oracle: Oracle) -> None:
    await _remove(store, oracle, HELD)


async def destroying_update(store: HoldingStore, oracle: Oracle) -> None:
    await _remove(store, oracle, GONE)


async def _remove(store: HoldingStore, oracle: Oracle, where: str) -> None:
    async with store.open(USER) as maildrop:
        marked = [e for e in maildrop.listing if _text(e.unique_id) in VICTIMS]
        for entry in marked:
            text = _text(entry.unique_id)
            # If the rule to destroy mail could not be recorded, an interrupted UPDATE holds it.
            oracle.expect(text, LISTED, HELD, where, unique_id=entry.unique_id)
        left = await maildrop.remove(marked)
        for entry in marked:
            if entry not in left:
                oracle.expect(_text(entry.unique_id), where)


def _text(unique_id: str) -> bytes:
    return unique_id.encode() + b"\r\n"


async def restore(store: HoldingStore, oracle: Oracle) -> None:
    await _restore(store, oracle, same_unique_ids=False)


async def restore_same(store: HoldingStore, oracle: Oracle) -> None:
    await _restore(store, oracle, same_unique_ids=True)


async def _restore(store: HoldingStore, oracle: Oracle, *, same_unique_ids: bool) -> None:
    await update(store, oracle)
    held = await store.held(USER)
    ids = {_text(each.unique_id): each.unique_id if same_unique_ids else None for each in held}
    for text, unique_id in ids.items():
        oracle.expect(text, HELD, LISTED, unique_id=unique_id)
    assert await store.restore(USER, held, same_unique_ids=same_unique_ids) == len(held)
    for text, unique_id in ids.items():
        oracle.expect(text, LISTED, unique_id=unique_id)
    await opening(store, oracle)  # must not remove them again


async def purge(store: HoldingStore, oracle: Oracle) -> None:
    await update(store, oracle)
    texts = [_text(each.unique_id) for each in await store.held(USER)]
    for text in texts:
        oracle.expect(text, HELD, GONE)
    assert await store.purge(USER, 2**40) == len(texts)
    for text in texts:
        oracle.expect(text, GONE)


@dataclass(frozen=True)
class Scenario:
    act: Callable[[HoldingStore, Oracle], Awaitable[None]]
    hold: float = 60
    fill: Callable[[Path, Oracle], None] = begin
    """Makes the state before the transaction."""
    limit: int = 0
    """The quota in octets; 0 for none."""

    def store(self, base: Path) -> HoldingStore:
        return MaildirStore(f"{base}/%u", hold=self.hold, limit=lambda _: self.limit)


SCENARIOS = {
    "first delivery": Scenario(delivery, fill=nothing_there),
    "first opening": Scenario(opening, fill=nothing_there),
    "delivery": Scenario(delivery),
    "opening of a foreign maildrop": Scenario(opening),
    "index that follows": Scenario(followed),
    "contested unique-ids": Scenario(quarrel, fill=begin_quarrel),
    "adopted unique-ids": Scenario(adoption),
    "journal": Scenario(journal),
    "journal that is full": Scenario(full_journal),
    "update": Scenario(update),
    "destroying update": Scenario(destroying_update, hold=0),
    "update of a part": Scenario(update, fill=begin_large),
    "destroying update of a part": Scenario(destroying_update, hold=0, fill=begin_large),
    "restore": Scenario(restore),
    "restore, same unique-ids": Scenario(restore_same),
    "purge": Scenario(purge),
    "delivery with a quota": Scenario(delivery, limit=10**6),
    "update with a quota": Scenario(update, limit=10**6),
}
