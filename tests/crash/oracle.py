"""What must be found after a crash of any kind."""

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
"""A place for sessions in the journal; the credential is used as the text."""
WAIT = 60  # seconds


class HoldingStore(Store, Holding, Remembering, Protocol):
    """A store with all add-ons that the scenarios use."""


@dataclass(frozen=True)
class Fate:
    """Where one message may be, and which unique-id it has while it is listed."""

    places: frozenset[str]
    unique_id: str | None = None


class Oracle:
    """The promises made so far.  Messages are identified by their text, which is unique."""

    def __init__(self) -> None:
        self._fates: dict[bytes, Fate] = {}
        self._lock = Lock()
        self.changed: Callable[[], None] = lambda: None
        """Is called after each promise."""

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
    """Return the listed messages with their unique-ids, and the held messages."""
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
    """Open the maildrop and compare it with the promises.

    ``twice``: the file system may show a message in two places while it is being moved.
    ``key``: returns the text with which a message was sent.
    """
    found, found_held = await found_in(store, user)
    listed = [(key(text), unique_id) for text, unique_id in found]
    held = list(map(key, found_held))
    fates = dict(expected)
    texts = [text for text, _ in listed]
    unknown = {*texts, *held} - fates.keys()
    assert not unknown, f"messages that were never accepted: {unknown}"
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
    assert again == found, "the second listing differs from the first"
