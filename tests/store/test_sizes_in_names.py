"""File names with wrong sizes: the first costs one connection, the others none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from restante.errors import MessageGone, TemporaryFailure
from restante.maildrop import View
from restante.message import Survey
from restante.store import files, refresh
from restante.store.index import INDEX
from restante.store.maildir import MaildirStore
from restante.store.refresh import MEASURE_SIZES

from .helpers import canonical, contents, listing, names, put, run, text_of
from .test_index import index_on_disk
from .watched import WatchedOs, watched

TEXT = b"Subject: x\n\n" + b"y\n" * 20
WRONG = f",S={len(TEXT)},W={len(TEXT)}"  # with LF line ends counted as stored
RIGHT = f",S={len(TEXT)},W={len(canonical(TEXT))}"


def fill(place: Path, count: int, sizes: str) -> None:
    for number in range(count):
        put(place, f"cur/{number}.a{sizes}:2,", TEXT)


async def read_until_wrong(store: MaildirStore, user: str = "ann") -> bool:
    """Read messages until one has another size; returns False if none has."""
    async with store.open(user) as maildrop:
        for entry in maildrop.listing:
            try:
                text = await text_of(maildrop, entry)
            except MessageGone:
                raise
            except TemporaryFailure:
                return True
            assert text == canonical(TEXT)
    return False


def workers(place: Path, count: int = 2) -> list[MaildirStore]:
    return [MaildirStore(f"{place.parent}/%u") for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 70])
def test_wrong_sizes_end_at_most_one_connection_of_all_workers(place: Path, count: int) -> None:
    fill(place, count, WRONG)
    stores = workers(place, 3)
    for store in stores:
        run(listing(store, "ann"))  # each process has the wrong sizes in memory
    assert run(read_until_wrong(stores[0]))
    for store in (stores[1], stores[0], stores[2], *workers(place)):
        assert not run(read_until_wrong(store))


@pytest.mark.parametrize("lost", ["nothing", "index"])
def test_sizes_in_names_of_later_messages_are_not_trusted(place: Path, lost: str) -> None:
    fill(place, 1, WRONG)
    store, another = workers(place)
    assert run(read_until_wrong(store))
    fill(place, 3, WRONG)
    if lost == "index":
        (place / INDEX).unlink()
    for each in (another, store):
        assert not run(read_until_wrong(each))


def test_right_names_are_believed_and_no_message_is_opened_for_its_size(place: Path) -> None:
    fill(place, 3, RIGHT)
    with watched(place.parent) as system:
        (store,) = workers(place, 1)
        run(listing(store, "ann"))
    assert opened(system) == []
    assert not run(read_until_wrong(store))
    assert MEASURE_SIZES not in names(place)


def opened(system: WatchedOs) -> list[str]:
    return [call[1] for call in system.calls if call[0] == "open" and "cur/" in call[1]]


def test_messages_are_measured_once(place: Path) -> None:
    fill(place, 3, WRONG)
    store, another = workers(place)
    assert run(read_until_wrong(store))
    run(listing(store, "ann"))
    os.rename(place / f"cur/0.a{WRONG}:2,", place / f"cur/0.a{WRONG}:2,S")
    with watched(place.parent) as system:
        for each in (store, another):
            run(listing(each, "ann"))
    assert opened(system) == []


def test_other_maildrops_and_folders_are_believed(place: Path) -> None:
    for each in (place, place / ".Junk", place.with_name("bob")):
        fill(each, 2, WRONG)
        (each / "held").mkdir()
    (store,) = workers(place, 1)
    assert run(read_until_wrong(store))
    assert not run(read_until_wrong(store))
    assert run(read_until_wrong(store, "bob"))

    async def junk() -> int:
        async with store.open_view("ann", View(("Junk",))) as maildrop:
            return maildrop.listing[0].size

    assert run(junk()) == len(TEXT)


def test_changed_file_does_not_distrust_names(place: Path) -> None:
    fill(place, 2, "")
    store, another = workers(place)
    for each in (store, another):
        run(listing(each, "ann"))
    (place / "cur/0.a:2,").write_bytes(TEXT + b"more\n")
    with pytest.raises(TemporaryFailure):
        run(contents(store, "ann"))
    for each in (another, store):
        assert run(contents(each, "ann"))[0] == canonical(TEXT + b"more\n")
    assert MEASURE_SIZES not in names(place)


def test_reindex_finds_wrong_names_too(place: Path) -> None:
    fill(place, 2, WRONG)
    store, another = workers(place)
    run(listing(another, "ann"))
    assert run(store.reindex("ann")) == 2
    fill(place, 3, WRONG)
    assert not run(read_until_wrong(another))


def test_verify_ignores_names_that_are_not_believed(place: Path) -> None:
    fill(place, 3, WRONG)
    (store,) = workers(place, 1)
    assert len(run(store.verify("ann"))[1]) == 3
    assert run(read_until_wrong(store))
    assert not run(read_until_wrong(store))
    assert run(store.verify("ann")) == (3, [])
    (place / INDEX).unlink()
    assert run(store.verify("ann")) == (3, [])


@pytest.mark.parametrize("refused", [MEASURE_SIZES, INDEX])
def test_full_disk_does_not_break_the_end_of_a_session(place: Path, refused: str) -> None:
    fill(place, 2, WRONG)
    (store,) = workers(place, 1)
    run(listing(store, "ann"))

    def full(call: tuple[str, ...]) -> None:
        if call[0] in ("open", "rename") and refused in call[1]:
            raise OSError(28, "No space left on device")

    with watched(place.parent, full):
        assert run(read_until_wrong(store))
    assert not run(read_until_wrong(store))


def test_client_that_gives_up_while_messages_are_measured_loses_none(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "_BATCH", 1)
    fill(place, 6, WRONG)
    (store,) = workers(place, 1)
    assert run(read_until_wrong(store))
    real, measured = files.survey, 0

    def measure(file: int) -> Survey:
        nonlocal measured
        measured += 1
        if measured == 3:
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(files, "survey", measure)
    with pytest.raises(KeyboardInterrupt):
        run(listing(store, "ann"))
    (another,) = workers(place, 1)
    found = index_on_disk(place)
    assert found is not None
    assert found.is_complete
    assert len(found) == 6
    assert not run(read_until_wrong(another))
    assert measured == 6  # five besides the wrong one, and one again
