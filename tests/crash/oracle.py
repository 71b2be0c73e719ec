"""What must be found after a crash, whatever crashed and however."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Protocol

from restante.maildrop import Holding, Remembering, Store

from ..store.helpers import text_of, whole

LISTED, HELD, GONE = "listed", "held", "gone"
NOTED = "noted"
"""In the journal: a session, whose credential stands for a text."""
WAIT = 60  # seconds


class HoldingStore(Store, Holding, Remembering, Protocol):
    """What recovery is tried on."""


@dataclass(frozen=True)
class Fate:
    """Where one message may be, and its unique-id as long as it is listed."""

    places: frozenset[str]
    unique_id: str | None = None


class Oracle:
    """What was promised so far.  Messages are known by their text, each of its own."""

    def __init__(self) -> None:
        self._fates: dict[bytes, Fate] = {}
        self._lock = Lock()
        self.changed: Callable[[], None] = lambda: None
        """Called after each promise."""

    def expect(self, text: bytes, *places: str, unique_id: str | None = None) -> None:
        with self._lock:
            self._fates[text] = Fate(frozenset(places), unique_id)
        self.changed()

    def rule_out(self, text: bytes, place: str) -> None:
        with self._lock:
            fate = self._fates[text]
            self._fates[text] = replace(fate, places=fate.places - {place})

    def snapshot(self) -> Expected:
        return tuple(self._fates.items())


Expected = tuple[tuple[bytes, Fate], ...]


async def found_in(store: HoldingStore, user: str) -> tuple[list[tuple[bytes, str]], list[bytes]]:
    """What is listed, with unique-ids, and what is held."""
    async with asyncio.timeout(WAIT):
        async with store.open(user) as maildrop:
            listed = [(await text_of(maildrop, e), e.unique_id) for e in maildrop.listing]
        held = [await whole(store.read_held(user, each)) for each in await store.held(user)]
    return listed, held


async def check(
    store: HoldingStore,
    user: str,
    expected: Iterable[tuple[bytes, Fate]],
    *,
    twice: bool = False,
    key: Callable[[bytes], bytes] = lambda text: text,
) -> None:
    """Open the maildrop as it was found, and compare.

    ``twice``: on such a file system a message under way may be found in two places.
    ``key``: the text that a message was sent with.
    """
    found, found_held = await found_in(store, user)
    listed = [(key(text), unique_id) for text, unique_id in found]
    held = list(map(key, found_held))
    fates = dict(expected)
    texts = [text for text, _ in listed]
    unknown = {*texts, *held} - fates.keys()
    assert not unknown, f"found what was never accepted: {unknown}"
    assert max(Counter(texts).values(), default=0) <= 1, f"listed twice: {texts}"
    assert twice or len({*texts, *held}) == len(texts + held), f"twice: {texts}, held {held}"
    noted = [each.credential.encode() for each in await store.sessions(user)]
    unique_ids = {text: unique_id for text, unique_id in listed}
    for text, fate in fates.items():
        places = {
            name for name, there in ((LISTED, texts), (HELD, held), (NOTED, noted)) if text in there
        }
        assert (places or {GONE}) <= fate.places, f"{text!r} is {places}, not {set(fate.places)}"
        if fate.unique_id and text in unique_ids:
            assert unique_ids[text] == fate.unique_id, f"{text!r} has another unique-id"
    again, _ = await found_in(store, user)
    assert again == found, "the second look finds something else"
