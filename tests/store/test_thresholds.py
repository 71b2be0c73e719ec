"""Every threshold of the store, with none, one, and numbers around the threshold.

Expected results are computed from the files alone.  A store that has seen the maildrop before and
one that reads its index from disk must agree.
"""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest

from restante.maildrop import Entry, Rendered, View
from restante.store import index, maildir, refresh
from restante.store.maildir import MaildirStore
from restante.store.names import File

from .helpers import canonical, put, run
from .test_index import later

NEW, CUR = "new", "cur"
FIRST = 1_700_000_000  # seconds since the epoch


def around(limit: int) -> list[int]:
    return sorted({0, 1, limit - 1, limit, limit + 1})


def empty(place: Path) -> None:
    for each in (NEW, CUR, "tmp"):
        (place / each).mkdir(parents=True, exist_ok=True)


def arrive(place: Path, first: int, count: int, *, sized: bool) -> None:
    """Deliver as another program does; without sizes in names, messages are measured."""
    for number in range(first, first + count):
        octets = b"x" * (number % 7) + b"\n"
        sizes = f",S={len(octets)},W={len(canonical(octets))}" if sized else ""
        put(place, f"{NEW}/{FIRST + number}.M{number}P1.host{sizes}", octets)


def read(place: Path, count: int) -> None:
    """Move the first messages to cur/, as another program does."""
    for name in sorted(os.listdir(place / NEW))[:count]:
        (place / NEW / name).rename(place / CUR / f"{name}:2,S")


def files(place: Path) -> list[Path]:
    """Return the files in order of arrival."""
    return sorted((*place.glob("new/*"), *place.glob("cur/*")), key=lambda each: each.name)


def expected(place: Path) -> list[Entry]:
    return [
        Entry(each.name.partition(":")[0].partition(",")[0], len(canonical(each.read_bytes())))
        for each in files(place)
    ]


async def answers(store: MaildirStore, user: str) -> tuple[list[Entry], bytes, bytes, int]:
    async with store.open(user) as maildrop:
        found = maildrop.listing
        assert isinstance(found, Rendered)
        entries = list(found)
        assert [index.Index.find(found, each) for each in entries] == [*range(len(entries))]  # type: ignore[arg-type]
        return entries, found.scan_listing(), found.unique_id_listing(), found.octets


async def check(place: Path, *stores: MaildirStore) -> None:
    """Check the whole listing with each of these stores in turn."""
    wanted = expected(place)
    scan = "".join(f"{n} {each.size}\r\n" for n, each in enumerate(wanted, 1)).encode()
    ids = "".join(f"{n} {each.unique_id}\r\n" for n, each in enumerate(wanted, 1)).encode()
    right = wanted, scan, ids, sum(each.size for each in wanted)
    for store in stores:
        assert await answers(store, place.name) == right


def another(place: Path) -> MaildirStore:
    """Return a store with nothing in memory, as in another process."""
    return MaildirStore(f"{place.parent}/%u")


LIMIT = 5  # small, so that all combinations around it can be tried
LIMITS = {
    "_MAX_NEW": (refresh, True),
    "_BATCH": (refresh, False),
    "_MAX_APPENDED": (index, True),
}
"""The module of each threshold, and whether names have sizes; others are measured in batches."""


@pytest.mark.slow
@pytest.mark.parametrize("fresh_process", [False, True])
@pytest.mark.parametrize("limit", LIMITS)
def test_batches_around_a_limit_are_listed(
    tmp_path: Path, limit: str, fresh_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages before, arriving and gone: each from none to one more than the limit."""
    module, sized = LIMITS[limit]
    monkeypatch.setattr(module, limit, LIMIT)

    async def story(place: Path, before: int, arriving: int, leaving: int) -> None:
        store = another(place)
        empty(place)
        arrive(place, 0, before, sized=sized)
        await check(place, store)
        later(store, place.name)
        store = another(place) if fresh_process else store
        await check(place, store)
        arrive(place, before, arriving, sized=sized)
        read(place, arriving // 2)
        for each in files(place)[:leaving]:
            each.unlink()
        await check(place, store, another(place))

    async def stories() -> None:
        for number, counts in enumerate(product(around(LIMIT), repeat=3)):
            await story(tmp_path / f"u{number}", *counts)

    run(stories())


@pytest.mark.slow
@pytest.mark.parametrize("arriving", [0, 1, 2, *range(7, 11), *range(31, 34), 1000, 1001])
@pytest.mark.parametrize("before", [0, 1, 9])
def test_batches_around_the_real_limits_are_listed(
    tmp_path: Path, before: int, arriving: int
) -> None:
    place = tmp_path / "ann"

    async def story() -> None:
        store = another(place)
        empty(place)
        arrive(place, 0, before, sized=True)
        await check(place, store, another(place))
        arrive(place, before, arriving, sized=True)
        await check(place, store, another(place))
        for each in files(place):
            each.unlink()
        await check(place, store, another(place))
        arrive(place, 0, arriving, sized=True)
        await check(place, store, another(place))

    run(story())


@pytest.mark.parametrize("count", range(10))
def test_index_answers_about_any_number_of_unique_ids(count: int) -> None:
    """Also an empty index; for none, some and many unique-ids."""
    found = index.Index(
        index.Row(f"id{at}", File(NEW, f"id{at}", at + 1), at) for at in range(count)
    )
    for asked in range(20):
        strange = [f"x{at}" for at in range(asked)]
        assert not found.has(strange)
        assert found.has([*strange, "id0"]) == (count > 0)
        similar = [f"id{at}.x" for at in range(asked)]
        assert not found.has(similar)
        assert not found.has([*similar, "id"])
        assert found.has([*similar, f"id{count - 1}"]) == (count > 0)
    for first, end in product(range(count + 1), repeat=2):
        if first <= end:
            assert found._unique_ids(first, end) == [f"id{at}" for at in range(first, end)]
            assert found._columns(first, end).ids == [f"id{at}" for at in range(first, end)]


@pytest.mark.parametrize("users", around(3))
def test_indexes_around_the_size_of_the_cache_are_right(
    tmp_path: Path, users: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        store = MaildirStore(f"{tmp_path}/%u")
        for user in range(users):
            arrive(tmp_path / f"u{user}", 0, 3, sized=True)
            await check(tmp_path / f"u{user}", store)
            if not user:
                monkeypatch.setattr(maildir, "_CACHE", 3 * store._indexes["u0"].memory)
        for user in range(users):
            await check(tmp_path / f"u{user}", store)
        assert len(store._indexes) == min(users, 3)
        assert store._cached_octets == sum(each.memory for each in store._indexes.values())

    run(story())


@pytest.mark.parametrize("views", around(3))
@pytest.mark.parametrize("messages", [0, 1, 2])
def test_joined_listings_around_the_number_that_is_kept_are_right(
    tmp_path: Path, views: int, messages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maildir, "_MAX_VIEWS", 3)
    store = MaildirStore(f"{tmp_path}/%u")

    async def shows_all(user: str) -> None:
        async with store.open_view(user, View(("INBOX", "Junk"))) as maildrop:
            shown = [each.size for each in maildrop.listing]
        parts = tmp_path / user, tmp_path / user / ".Junk"
        assert shown == [each.size for part in parts for each in expected(part)]

    async def story() -> None:
        users = [f"u{number}" for number in range(views)]
        for user in users:
            for part in (tmp_path / user, tmp_path / user / ".Junk"):
                empty(part)
                arrive(part, 0, messages, sized=True)
        for user in [*users, *users]:
            await shows_all(user)
        for user in users:
            arrive(tmp_path / user, messages, 1, sized=True)
            await shows_all(user)
            await shows_all(user)

    run(story())
