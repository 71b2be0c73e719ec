"""Helpers for the tests of all stores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from restante.maildrop import Entry, Maildrop, Store
from restante.message import LineEndings

T = TypeVar("T")


def run(story: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(story, 60))


async def pieces(*octets: bytes) -> AsyncIterator[bytes]:
    for piece in octets:
        yield piece


async def deliver(store: Store, user: str, *octets: bytes) -> Entry:
    return await store.deliver(user, pieces(*octets))


async def whole(reading: AsyncIterator[bytes]) -> bytes:
    async with aclosing(reading) as each:  # type: ignore[type-var]
        return b"".join([piece async for piece in each])


async def text_of(maildrop: Maildrop, entry: Entry) -> bytes:
    return await whole(maildrop.read(entry))


async def listing(store: Store, user: str) -> list[Entry]:
    async with store.open(user) as maildrop:
        return list(maildrop.listing)


async def contents(store: Store, user: str) -> list[bytes]:
    async with store.open(user) as maildrop:
        return [await text_of(maildrop, entry) for entry in maildrop.listing]


async def remove(store: Store, user: str, entries: Iterable[Entry]) -> list[Entry]:
    """Run a session that marks these messages and quits; returns those not removed."""
    async with store.open(user) as maildrop:
        return list(await maildrop.remove(list(entries)))


def canonical(octets: bytes) -> bytes:
    """Return the wire text of stored octets (RFC 1939 §11)."""
    ends = LineEndings()
    return ends.feed(octets) + ends.finish()


# Actions of other programs in a Maildir.


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def put(place: Path, name: str, octets: bytes) -> None:
    """Write a file as another program does; ``name`` begins with ``new/`` or ``cur/``."""
    for each in ("cur", "new", "tmp"):
        (place / each).mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(octets)


def rename(place: Path, name: str, new_name: str) -> None:
    (place / name).rename(place / new_name)


def unlink(place: Path, name: str) -> None:
    (place / name).unlink()
