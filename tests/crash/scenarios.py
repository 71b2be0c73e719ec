"""The transactions of the store: what each does, and what it promises on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from restante.store.maildir import MaildirStore

from ..store.helpers import deliver, put
from .oracle import GONE, HELD, LISTED, HoldingStore, Oracle

USER = "ann"
NAMES = {b"1.a": "new/1.a", b"2.a": "cur/2.a:2,S", b"3.a": "new/3.a,S=5,W=5", b"4.a": "cur/4.a:2,"}
"""Messages by text, each with its own unique-id; the text has a line end as well."""
VICTIMS = [b"1.a\r\n", b"2.a\r\n", b"3.a\r\n"]


def begin(place: Path, oracle: Oracle) -> None:
    """A maildrop that another program has filled."""
    for text, name in NAMES.items():
        put(place, name, text + b"\r\n")
        oracle.expect(text + b"\r\n", LISTED, unique_id=text.decode())


async def delivery(store: HoldingStore, oracle: Oracle) -> None:
    for text in (b"first\r\n", b"second\r\n"):
        oracle.expect(text, LISTED, GONE)
        entry = await deliver(store, USER, text[:3], text[3:])
        oracle.expect(text, LISTED, unique_id=entry.unique_id)


async def opening(store: HoldingStore, oracle: Oracle) -> None:
    async with store.open(USER):
        pass


async def update(store: HoldingStore, oracle: Oracle) -> None:
    await _remove(store, oracle, HELD)


async def destroying_update(store: HoldingStore, oracle: Oracle) -> None:
    await _remove(store, oracle, GONE)


async def _remove(store: HoldingStore, oracle: Oracle, where: str) -> None:
    async with store.open(USER) as maildrop:
        marked = [e for e in maildrop.listing if _text(e.unique_id) in VICTIMS]
        for entry in marked:
            text = _text(entry.unique_id)
            oracle.expect(text, LISTED, where, unique_id=entry.unique_id)
        left = await maildrop.remove(marked)
        for entry in marked:
            if entry not in left:
                oracle.expect(_text(entry.unique_id), where)


def _text(unique_id: str) -> bytes:
    return unique_id.encode() + b"\r\n"


async def undelete(store: HoldingStore, oracle: Oracle) -> None:
    await _give_back(store, oracle, same_unique_ids=False)


async def undelete_same(store: HoldingStore, oracle: Oracle) -> None:
    await _give_back(store, oracle, same_unique_ids=True)


async def _give_back(store: HoldingStore, oracle: Oracle, *, same_unique_ids: bool) -> None:
    await update(store, oracle)
    held = await store.held(USER)
    ids = {_text(each.unique_id): each.unique_id if same_unique_ids else None for each in held}
    for text, unique_id in ids.items():
        oracle.expect(text, HELD, LISTED, unique_id=unique_id)
    assert await store.undelete(USER, held, same_unique_ids=same_unique_ids) == len(held)
    for text, unique_id in ids.items():
        oracle.expect(text, LISTED, unique_id=unique_id)
    await opening(store, oracle)  # nothing takes them again


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
    filled: bool = True
    """Whether the maildrop exists before."""
    limit: int = 0
    """The quota, octets."""

    def store(self, base: Path) -> HoldingStore:
        return MaildirStore(f"{base}/%u", hold=self.hold, limit=lambda _: self.limit)


SCENARIOS = {
    "first delivery": Scenario(delivery, filled=False),
    "first opening": Scenario(opening, filled=False),
    "delivery": Scenario(delivery),
    "opening of a foreign maildrop": Scenario(opening),
    "update": Scenario(update),
    "destroying update": Scenario(destroying_update, hold=0),
    "undelete": Scenario(undelete),
    "undelete, same unique-ids": Scenario(undelete_same),
    "purge": Scenario(purge),
    "delivery with a quota": Scenario(delivery, limit=10**6),
    "update with a quota": Scenario(update, limit=10**6),
}
