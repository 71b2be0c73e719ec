"""Another process constantly renames all messages of a maildrop, as an IMAP server does to set
flags.  It neither adds nor removes messages, so every listing is the same, or an error.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from restante.errors import TemporaryFailure
from restante.maildrop import Entry, View
from restante.scanning import ChangingMaildir
from restante.store.index import INDEX
from restante.store.maildir import MaildirStore

from .helpers import deliver, listing, run, text_of

SECONDS = 0.8
UNIQUE = [f"{1_700_000_000 + number}.M{number}P1.host" for number in range(1500)]
EXPECTED = [Entry(unique, 6) for unique in UNIQUE]


def rename_for_ever(place: str, uniques: list[str]) -> None:
    """Set and remove a flag of each message, and move some between new/ and cur/."""
    where = {unique: f"cur/{unique},S=5,W=6:2," for unique in uniques}
    for turn in count():
        for number, (unique, old) in enumerate(where.items()):
            flags = "S" if turn % 2 else ""
            is_new = number % 7 == turn % 7
            new = f"new/{unique},S=5,W=6" if is_new else f"cur/{unique},S=5,W=6:2,{flags}"
            with suppress(FileNotFoundError):  # it is in held/
                os.rename(os.path.join(place, old), os.path.join(place, new))
            where[unique] = new


def fill(place: Path, uniques: list[str]) -> None:
    for each in ("cur", "new", "tmp"):
        (place / each).mkdir(parents=True)
    for unique in uniques:
        (place / f"cur/{unique},S=5,W=6:2,").write_bytes(b"body\n")


@contextmanager
def renaming(place: Path, uniques: list[str] = UNIQUE) -> Iterator[Iterator[None]]:
    """Yield turns in which the maildrop is read while it changes."""

    def turns() -> Iterator[None]:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            yield

    other = multiprocessing.get_context("fork").Process(
        target=rename_for_ever, args=(str(place), uniques), daemon=True
    )
    other.start()
    try:
        yield turns()
    finally:
        other.kill()
        other.join()


def another(place: Path) -> MaildirStore:
    return MaildirStore(f"{place.parent}/%u")


@pytest.mark.slow
@pytest.mark.parametrize("fresh_process", [False, True])
def test_no_listing_is_incomplete(maildir: MaildirStore, place: Path, fresh_process: bool) -> None:
    fill(place, UNIQUE)

    async def story() -> None:
        assert await listing(maildir, "ann") == EXPECTED
        with renaming(place) as turns:
            for _ in turns:
                store = another(place) if fresh_process else maildir
                assert await listing(store, "ann") == EXPECTED
        assert await listing(maildir, "ann") == EXPECTED

    run(story())


@pytest.mark.slow
def test_listing_without_an_index_is_complete_or_fails(place: Path) -> None:
    fill(place, UNIQUE)

    async def story() -> None:
        with renaming(place) as turns:
            for _ in turns:
                (place / INDEX).unlink(missing_ok=True)
                with suppress(ChangingMaildir):
                    assert await listing(another(place), "ann") == EXPECTED
        assert await listing(another(place), "ann") == EXPECTED

    run(story())


@pytest.mark.slow
def test_recent_mail_has_no_hole(maildir: MaildirStore, place: Path) -> None:
    """With names without a time, so that the times of the files are read."""
    uniques = sorted(f"a{number}" for number in range(1500))
    fill(place, uniques)

    async def recent() -> list[Entry]:
        async with maildir.open_view("ann", View(recent=86_400)) as maildrop:
            return list(maildrop.listing)

    async def story() -> None:
        expected = [Entry(unique, 6) for unique in uniques]
        assert await recent() == expected
        with renaming(place, uniques) as turns:
            for _ in turns:
                assert await recent() == expected

    run(story())


@pytest.mark.slow
def test_no_renamed_message_is_reported_gone(maildir: MaildirStore, place: Path) -> None:
    fill(place, UNIQUE)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            with renaming(place) as turns:
                for _, entry in zip(turns, maildrop.listing, strict=False):
                    with suppress(ChangingMaildir):
                        assert await text_of(maildrop, entry) == b"body\r\n"

    run(story())


@pytest.mark.slow
def test_message_reported_removed_is_removed(maildir: MaildirStore, place: Path) -> None:
    fill(place, UNIQUE)

    async def story() -> None:
        assert await listing(maildir, "ann") == EXPECTED
        removed: set[str] = set()
        with renaming(place) as turns:
            for _ in turns:
                async with maildir.open("ann") as maildrop:
                    chosen = maildrop.listing[:50]
                    left = await maildrop.remove(chosen)
                removed |= {each.unique_id for each in chosen if each not in left}
        held = {message.unique_id for message in await maildir.held("ann")}
        assert removed
        assert held == removed
        assert {each.unique_id for each in await listing(maildir, "ann")} == {*UNIQUE} - held

    run(story())


@pytest.mark.slow
def test_restored_messages_are_there_once(maildir: MaildirStore, place: Path) -> None:
    fill(place, UNIQUE)

    async def restore() -> None:
        held = await maildir.held("ann")
        await maildir.restore("ann", held, same_unique_ids=True)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            await maildrop.remove(maildrop.listing[:20])
        with renaming(place) as turns:
            for _ in turns:
                with suppress(TemporaryFailure):
                    await restore()
        await restore()
        assert await listing(maildir, "ann") == EXPECTED

    run(story())


@pytest.mark.slow
def test_mail_that_fits_into_the_quota_is_not_refused(place: Path) -> None:
    fill(place, UNIQUE)
    store = MaildirStore(f"{place.parent}/%u", limit=lambda _: 2 * 5 * len(UNIQUE))

    async def story() -> None:
        with renaming(place) as turns:
            for _ in turns:
                (place / "maildirsize").unlink(missing_ok=True)  # so that it is recounted
                await deliver(store, "ann", b"x")

    run(story())
