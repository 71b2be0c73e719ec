"""The index: what it saves, when it is trusted, and that a damaged one does no harm."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restante import scanning
from restante.errors import TemporaryFailure
from restante.maildrop import Entry, RawReading
from restante.message import crlf_text
from restante.store import adopted, files, index, refresh
from restante.store.index import INDEX, Form, Index, Row
from restante.store.maildir import MaildirStore
from restante.store.names import File
from restante.wire import stuffed

from .helpers import (
    contents,
    deliver,
    listing,
    names,
    put,
    remove,
    rename,
    run,
    text_of,
    unlink,
)
from .watched import WatchedOs, watched

LOOKS = ("scandir", "pread", "preadv", "listdir")


def settled(store: MaildirStore, user: str = "ann") -> list[Entry]:
    """List a maildrop whose directories changed long ago, so that the index is trusted."""
    run(listing(store, user))
    later(store, user)
    return run(listing(store, user))


def later(store: MaildirStore, user: str = "ann") -> None:
    """Wait until the clock of the file system has ticked, as the lock file shows."""
    place = Path(store._template.base, user)
    while (place / "restante.lock").stat().st_mtime_ns <= max(
        max(s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, (place / "new", place / "cur"))
    ):
        os.utime(place / "restante.lock")


def looks(system: WatchedOs) -> list[str]:
    """Return which directories were read and which messages were opened."""
    opened = [c[1] for c in system.calls if c[0] == "open" and ("new/" in c[1] or "cur/" in c[1])]
    return opened + [c[0] for c in system.calls if c[0] in LOOKS]


# -- Cost of a poll


@pytest.mark.parametrize("fresh_process", [False, True])
def test_poll_of_an_unchanged_maildrop_does_not_grow(
    maildir: MaildirStore, tmp_path: Path, fresh_process: bool
) -> None:
    costs = []
    for user, count in (("none", 0), ("few", 2), ("many", 300)):
        for number in range(count):
            put(tmp_path / user, f"cur/{number}.a:2,S", b"x\n")
        before = settled(maildir, user)
        store = MaildirStore(f"{tmp_path}/%u") if fresh_process else maildir
        with watched(tmp_path) as system:
            assert run(listing(store, user)) == before
        assert looks(system) == []
        costs.append(len(system.calls))
    assert len(set(costs)) == 1


def test_answers_are_those_of_the_entries(maildir: MaildirStore) -> None:
    delivered = [run(deliver(maildir, "ann", b"x" * at)) for at in range(12)]

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            found = maildrop.listing
            assert isinstance(found, Index)
            assert list(found) == delivered
            assert found[2:4] == delivered[2:4]
            assert found[-1] == delivered[-1]
            with pytest.raises(IndexError):
                found[12]
            assert found.octets == sum(each.size for each in delivered)
            lines = [f"{n} {e.size}\r\n" for n, e in enumerate(delivered, 1)]
            assert found.scan_listing() == "".join(lines).encode()
            lines = [f"{n} {e.unique_id}\r\n" for n, e in enumerate(delivered, 1)]
            assert found.unique_id_listing() == "".join(lines).encode()

    run(story())


def test_hundred_thousand_messages_use_about_ten_megabytes() -> None:
    unique = "1764000000.M123456P12345R0123456789abcdef.mail{:06}"
    found = Index(
        Row(unique.format(n), File("new", unique.format(n) + ",S=4096,W=4200", n), 4200)
        for n in range(1000)
    )
    assert found.memory < 120 * 1000
    assert len(found.encode(1)) < 125 * 1000


# -- When it is trusted


def replace_new(place: Path) -> None:
    (place / "new").rename(place / "old")
    shutil.copytree(place / "old", place / "new")  # with all time stamps


CHANGES = {
    "delivered": lambda place: put(place, "new/9.z", b"x"),
    "removed": lambda place: unlink(place, "cur/1.a:2,S"),
    "flag changed": lambda place: rename(place, "cur/1.a:2,S", "cur/1.a:2,FS"),
    "moved": lambda place: rename(place, "new/2.a", "cur/2.a:2,S"),
    "directory replaced": lambda place: replace_new(place),
    "ids adopted": lambda place: adopted.write(
        os.open(place, os.O_RDONLY), {("1.a", 0): "old-1", ("2.a", 0): "old-2"}
    ),
}


@pytest.mark.parametrize("fresh_process", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_change_is_seen(
    maildir: MaildirStore, place: Path, change: object, fresh_process: bool
) -> None:
    put(place, "cur/1.a:2,S", b"x")
    put(place, "new/2.a", b"y")
    settled(maildir)
    change(place)  # type: ignore[operator]
    store = MaildirStore(f"{place.parent}/%u") if fresh_process else maildir
    found = run(listing(store, "ann"))
    (place / INDEX).unlink()
    assert found == run(listing(MaildirStore(f"{place.parent}/%u"), "ann"))
    assert all(run(contents(store, "ann")))


def test_changes_in_the_same_tick_of_the_clock_are_seen_by_the_next_poll(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail of another program, between a delivery and a poll of ours and right after them.

    Since Linux 6.13 the times of files differ even within a tick, so the test makes them coarse.
    """
    for module, name in ((files, "stamp"), (scanning, "_stamp")):
        monkeypatch.setattr(module, name, _coarse(getattr(module, name)))
    monkeypatch.setattr(files, "session_lock", _coarse_lock(files.session_lock))

    async def story() -> None:
        for number in range(5):
            put(place, f"new/{number}.before", b"x")
            await deliver(maildir, "ann", b"ours\r\n")
            put(place, f"cur/{number}.between:2,S", b"x")
            assert len(await listing(maildir, "ann")) == 5 * number + 3
            put(place, f"new/{number}.after", b"x")
            assert len(await listing(maildir, "ann")) == 5 * number + 4
            put(place, f"cur/{number}.after:2,S", b"x")
            assert len(await listing(maildir, "ann")) == 5 * number + 5

    run(story())


def _tick(nanoseconds: int) -> int:
    return nanoseconds - nanoseconds % 10**12


def _coarse(real: Callable[..., tuple[int, ...]]) -> Callable[..., tuple[int, ...]]:
    def stamp(*args: object) -> tuple[int, ...]:
        inode, *times = real(*args)
        return inode, *map(_tick, times)

    return stamp


def _coarse_lock(
    real: Callable[[int], files.OpenDescriptors],
) -> Callable[[int], files.OpenDescriptors]:
    def lock(maildrop: int) -> files.OpenDescriptors:
        opened = real(maildrop)
        opened._value = _tick(opened._value)
        return opened

    return lock


@pytest.mark.parametrize(
    ("stamp", "began", "believed"), [(5, 6, True), (6, 6, False), (7, 6, False), (5, 0, False)]
)
@pytest.mark.parametrize("at", [1, 2, 4, 5, 7, 8])
def test_stamp_is_trusted_only_if_older_than_the_session(
    at: int, stamp: int, began: int, believed: bool
) -> None:
    found = [9, 1, 1, 9, 1, 1, 9, 1, 1]
    found[at] = stamp
    assert (index.trusted(tuple(found), began) == tuple(found)) == believed


# -- A damaged index


@pytest.fixture
def kept(maildir: MaildirStore, place: Path) -> list[Entry]:
    for number in range(3):
        put(place, f"cur/{number}.a:2,S", b"x\n" * (number + 1))
    return settled(maildir)


def test_index_truncated_at_any_octet_loses_nothing(place: Path, kept: list[Entry]) -> None:
    whole = (place / INDEX).read_bytes()
    for length in range(len(whole)):
        found = Index.decode(whole[:length], place.stat().st_ino)
        assert found is None or found.on_disk is not None
    for octets in (None, b"", whole[:100], whole + b"x", whole[:-1]):
        if octets is None:
            (place / INDEX).unlink()
        else:
            (place / INDEX).write_bytes(octets)
        assert run(listing(MaildirStore(f"{place.parent}/%u"), "ann")) == kept


# -- Small changes


def fresh_index(place: Path) -> tuple[bytes, ...]:
    """Return the index that a full scan makes."""
    directory = os.open(place, os.O_RDONLY)
    try:
        looked = refresh._snapshot(directory, 0, None)
        refresh._measure(directory, looked.messages, range(len(looked.messages)))
    finally:
        os.close(directory)
    return parts(Index(looked.messages, ordered_count=looked.ordered_count))


def parts(found: Index) -> tuple[bytes, ...]:
    return (*found._parts(), b"%d %d" % (found.octets, found._ordered_count))


def known(store: MaildirStore, user: str = "ann") -> Index:
    return store._indexes[user]


STEPS = st.lists(
    st.tuples(st.sampled_from("dDrfFmMsa"), st.integers(0, 9), st.booleans()),
    min_size=1,
    max_size=12,
)


def step(place: Path, what: str, at: int) -> None:
    """Make a change that another program may make."""
    files = sorted(place.glob("new/*")) + sorted(place.glob("cur/*"))
    chosen = files[at % len(files)] if files else None
    unique = f"{at}.a{at}"
    if what == "d":
        arrive(place, f"new/{unique}", b"x" * at)
    elif what == "D":
        arrive(place, f"cur/{unique},S={at}:2,S", b"y" * at)
    elif what == "a":
        directory = os.open(place, os.O_RDONLY)
        adopted.write(directory, {(f"{at}.a{at}", 0): "old-7", (f"{at + 1}.a", 0): "8.a8"})
        os.close(directory)
    elif chosen is None:
        return
    elif what == "r":
        chosen.unlink()
    elif what in "fF":
        chosen.rename(place / "cur" / f"{chosen.name.partition(':')[0]}:2,{what}")
    elif what == "m":
        chosen.rename(place / "new" / chosen.name)
    elif what == "M":
        with suppress(FileExistsError):
            os.link(chosen, place / "cur" / f"{at}.é{at},S=3:2,")
    else:  # another file of the same name
        arrive(place, f"{chosen.parent.name}/{chosen.name}", b"z" * (at + 3))


def arrive(place: Path, name: str, octets: bytes) -> None:
    """Add a file with an inode number that was never used before and stays in use."""
    put(place, "tmp/s", octets)
    os.link(place / "tmp/s", place / "tmp" / f"{(place / 'tmp/s').stat().st_ino}")
    rename(place, "tmp/s", name)


@pytest.mark.slow
@pytest.mark.parametrize("fresh_process", [False, True])
@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_index_after_changes_equals_a_rebuilt_one(
    steps: list[tuple[str, int, bool]], fresh_process: bool
) -> None:
    with TemporaryDirectory() as base:
        place = Path(base, "ann")
        store = MaildirStore(f"{base}/%u")
        for number in range(3):
            arrive(place, f"new/{number}.a{number}", b"x")
        settled(store)
        for what, at, looks_now in steps:
            step(place, what, at)
            if looks_now:
                run(listing(MaildirStore(f"{base}/%u") if fresh_process else store, "ann"))
        store = MaildirStore(f"{base}/%u") if fresh_process else store
        run(listing(store, "ann"))
        assert parts(known(store)) == fresh_index(place)
        disk = index_on_disk(place)
        assert disk is not None
        assert parts(disk) == parts(known(store))


@pytest.mark.parametrize("fresh_process", [False, True])
def test_new_message_opens_no_other_message(
    maildir: MaildirStore, tmp_path: Path, fresh_process: bool
) -> None:
    costs = []
    for user, count in (("few", 2), ("many", 300)):
        for number in range(count):
            put(tmp_path / user, f"cur/{number}.a:2,S", b"x\n")
        settled(maildir, user)
        size = (tmp_path / user / INDEX).stat().st_size
        put(tmp_path / user, "new/1764000000.b,S=1,W=3", b"x")
        store = MaildirStore(f"{tmp_path}/%u") if fresh_process else maildir
        with watched(tmp_path) as system:
            assert len(run(listing(store, user))) == count + 1
        assert looks(system) == ["scandir"]
        costs.append((len(system.calls), (tmp_path / user / INDEX).stat().st_size - size))
    assert costs[0] == costs[1]
    assert 0 < costs[0][1] < 500


def test_new_message_without_size_in_its_name_is_measured(
    maildir: MaildirStore, place: Path
) -> None:
    put(place, "cur/1.a:2,S", b"x")
    settled(maildir)
    put(place, "new/2.b", b"four")
    assert [entry.size for entry in run(listing(maildir, "ann"))] == [3, 6]


def test_index_with_many_changes_is_written_again(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, "cur/1.a:2,S", b"x")
    settled(maildir)
    monkeypatch.setattr(index, "_MAX_APPENDED", 1)
    for number in (2, 3):
        put(place, f"new/{number}.b", b"x")
        before = (place / INDEX).stat().st_ino
        run(listing(maildir, "ann"))
    assert (place / INDEX).stat().st_ino != before
    on_disk = index_on_disk(place)
    assert on_disk is not None
    assert parts(on_disk) == parts(known(maildir))


def changed_on_disk(maildir: MaildirStore, place: Path) -> tuple[bytes, int]:
    """Return an index with two appended changes, and the offset of the first."""
    put(place, "cur/1.a:2,S", b"x")
    settled(maildir)
    begin = (place / INDEX).stat().st_size
    for number in (2, 3):
        put(place, f"new/{number}.b", b"x" * number)
        run(listing(maildir, "ann"))
    return (place / INDEX).read_bytes(), begin


def test_index_change_truncated_at_any_octet_loses_nothing(
    maildir: MaildirStore, place: Path
) -> None:
    whole, begin = changed_on_disk(maildir, place)
    expected = run(listing(maildir, "ann"))
    counts = set()
    for length in range(begin, len(whole)):
        found = Index.decode(whole[:length], place.stat().st_ino)
        assert found is not None
        counts.add(len(found))
    assert counts == {1, 2}
    for octets in (whole[:-1], whole[:-1] + b"\0", whole[:-1] + b"x" * 99, whole + b"x"):
        (place / INDEX).write_bytes(octets)
        assert run(listing(MaildirStore(f"{place.parent}/%u"), "ann")) == expected
        assert len(index_on_disk(place) or "") == 3
        put(place, "new/4.b", b"x")
        assert len(run(listing(MaildirStore(f"{place.parent}/%u"), "ann"))) == 4
        assert len(index_on_disk(place) or "") == 4  # not after a torn change
        unlink(place, "new/4.b")


def test_change_of_another_index_is_not_believed(maildir: MaildirStore, place: Path) -> None:
    whole, begin = changed_on_disk(maildir, place)
    (place / INDEX).unlink()
    run(listing(MaildirStore(f"{place.parent}/%u"), "ann"))
    other = (place / INDEX).read_bytes()
    found = Index.decode(other + whole[begin:], place.stat().st_ino)
    assert found is not None
    assert len(found) == 3


def test_nothing_is_appended_to_an_index_that_another_process_has_changed(
    maildir: MaildirStore, place: Path
) -> None:
    put(place, "cur/1.a:2,S", b"x")
    settled(maildir)
    old = known(maildir)
    directory = os.open(place, os.O_RDONLY)
    message = Row("2.b", File("new", "2.b", 7), 3)
    index.apply_change(directory, old, index.IndexChange(added=[message]), index.UNKNOWN)
    index.apply_change(directory, old, index.IndexChange(removed=[0]), index.UNKNOWN)
    os.close(directory)
    found = index_on_disk(place)
    assert found is not None
    assert len(found) == 0


def test_only_changes_of_another_process_are_read(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of 100,000 messages has 10 MB, and it is checked whenever it is read."""
    other = MaildirStore(f"{place.parent}/%u")
    put(place, "cur/1.a:2,S", b"x")
    settled(maildir)
    run(listing(other, "ann"))
    read, offsets = files.read, list[int]()

    def watched_read(name: str, parent: int, offset: int = 0) -> bytes:
        offsets.extend([offset] * (name == INDEX))
        return read(name, parent, offset)

    monkeypatch.setattr(files, "read", watched_read)
    for number in range(2, 8):
        put(place, f"new/{number}.b", b"x" * number)
        offsets.clear()
        for store in (maildir, other) if number % 2 else (other, maildir):
            entries = run(listing(store, "ann"))
            assert [entry.size for entry in entries] == [*range(3, number + 3)]
        assert 0 not in offsets
        assert parts(known(maildir)) == parts(known(other))


def test_another_index_in_the_same_file_is_read_whole(maildir: MaildirStore, place: Path) -> None:
    """File systems give the inode number of a removed file to the next one."""
    put(place, "cur/1.a:2,S", b"x")
    settled(maildir)
    old = known(maildir)
    other = old.changed(
        index.IndexChange(replaced={0: old.row(0)._replace(size=99)}), index.UNKNOWN
    )
    (place / INDEX).write_bytes(other.encode(place.stat().st_ino))
    directory = os.open(place, os.O_RDONLY)
    loaded = index.load(directory, old)
    os.close(directory)
    assert loaded is not None
    assert [entry.size for entry in loaded] == [99]


def test_damaged_changes_of_another_process_lose_nothing(
    maildir: MaildirStore, place: Path
) -> None:
    other = MaildirStore(f"{place.parent}/%u")
    whole, begin = changed_on_disk(maildir, place)
    run(listing(other, "ann"))
    put(place, "new/4.b", b"x")
    expected = run(listing(other, "ann"))
    longer = (place / INDEX).read_bytes()
    assert longer.startswith(whole)
    for octets in (longer[:-1], longer[:-1] + b"x", whole + b"x", whole, whole[:-1], b"", longer):
        (place / INDEX).write_bytes(octets)  # its inode number stays
        store = MaildirStore(f"{place.parent}/%u")
        store._indexes = {"ann": known(maildir)}
        assert run(listing(store, "ann")) == expected
        assert run(listing(MaildirStore(f"{place.parent}/%u"), "ann")) == expected
    assert len(whole) > begin


def index_on_disk(place: Path) -> Index | None:
    return Index.decode((place / INDEX).read_bytes(), place.stat().st_ino)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_index_is_not_trusted(place: Path, kept: list[Entry], data: st.DataObject) -> None:
    whole = bytearray((place / INDEX).read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    found = Index.decode(bytes(whole), place.stat().st_ino)
    assert found is None or (found.on_disk is not None and found.on_disk.octets <= at)


def test_index_of_another_maildrop_is_not_trusted(maildir: MaildirStore, tmp_path: Path) -> None:
    for user in ("ann", "bob"):
        put(tmp_path / user, "cur/1.a:2,S", user.encode())
        put(tmp_path / user, f"new/2.{user}", b"x")
    before = {user: settled(maildir, user) for user in ("ann", "bob")}
    first, second = tmp_path / "ann" / INDEX, tmp_path / "bob" / INDEX
    octets = first.read_bytes()
    assert Index.decode(octets, (tmp_path / "ann").stat().st_ino) is not None
    assert Index.decode(octets, (tmp_path / "bob").stat().st_ino) is None
    first.write_bytes(second.read_bytes())
    second.write_bytes(octets)
    store = MaildirStore(f"{tmp_path}/%u")
    for user, entries in before.items():
        assert run(listing(store, user)) == entries
        assert run(contents(store, user))[0] == f"{user}\r\n".encode()


def test_index_cannot_name_a_file_elsewhere(
    maildir: MaildirStore, place: Path, tmp_path: Path
) -> None:
    put(place, "new/1.a", b"x")
    put(tmp_path / "bob", "new/1.b", b"secret")
    settled(maildir)
    name = "../../bob/new/1.b"
    forged = Index(
        [Row("1.b", File("new", name, (tmp_path / "bob/new/1.b").stat().st_ino), 8)],
        run_stamps(place),
    )
    (place / INDEX).write_bytes(forged.encode(place.stat().st_ino))

    async def story() -> None:
        async with MaildirStore(f"{tmp_path}/%u").open("ann") as maildrop:
            assert len(maildrop.listing) == 1
            with pytest.raises((TemporaryFailure, FileNotFoundError)):
                await anext(maildrop.read(maildrop.listing[0]))

    run(story())


def run_stamps(place: Path) -> index.Stamps:
    directory = os.open(place, os.O_RDONLY)
    try:
        return index.stamps(directory)
    finally:
        os.close(directory)


@pytest.mark.parametrize("call", ["open", "write", "rename"])
def test_maildrop_works_if_the_index_cannot_be_written(
    maildir: MaildirStore, place: Path, call: str
) -> None:
    put(place, "new/1.a", b"x")

    def full_disk(each: tuple[str, ...]) -> None:
        if each[0] == call and INDEX in each[1]:
            raise OSError(28, "No space left on device")

    with watched(place.parent, full_disk):
        assert len(run(listing(maildir, "ann"))) == 1
    assert INDEX not in names(place)
    assert f"{INDEX}.tmp" not in names(place)


def test_wrong_size_is_corrected_for_other_processes_too(
    maildir: MaildirStore, place: Path
) -> None:
    put(place, "cur/1.a,S=1,W=1:2,", b"four")
    settled(maildir)
    with pytest.raises(TemporaryFailure):
        run(contents(maildir, "ann"))
    for store in (maildir, MaildirStore(f"{place.parent}/%u")):
        assert run(contents(store, "ann")) == [b"four\r\n"]


def test_slow_login_is_logged(
    maildir: MaildirStore,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from restante.store import refresh as module

    put(place, "new/1.a", b"x")
    monkeypatch.setattr(module, "_SLOW_LOGIN", -1.0)
    with caplog.at_level(logging.WARNING):
        run(listing(maildir, "ann"))
    assert [record.message for record in caplog.records] == ["maildrop indexed"]


# -- Contested unique-ids


def test_unique_id_of_a_removed_message_is_not_inherited(
    maildir: MaildirStore, place: Path
) -> None:
    put(place, "cur/1.a:2,S", b"first")
    put(place, "new/1.a", b"second")
    first, second = run(listing(maildir, "ann"))
    texts = dict(zip([first, second], run(contents(maildir, "ann")), strict=True))
    (taken,) = [entry for entry in texts if entry.unique_id == "1.a"]
    (other,) = [entry for entry in texts if entry != taken]
    assert run(remove(maildir, "ann", [taken])) == []
    assert run(listing(maildir, "ann")) == [other]
    put(place, "new/1.a:2,S", b"third")
    third = [entry for entry in run(listing(maildir, "ann")) if entry != other]
    assert third[0].unique_id not in (taken.unique_id, other.unique_id)


def lower_inode_last(place: Path) -> None:
    """Make ``tmp/first`` and ``tmp/later``, of which the latter has the lower inode number."""
    for name in ("first", "later"):
        put(place, f"tmp/{name}", b"x")
    first, later = sorted(place.glob("tmp/*"), key=lambda each: -each.stat().st_ino)
    first.rename(place / "tmp/a")
    later.rename(place / "tmp/later")
    (place / "tmp/a").rename(place / "tmp/first")
    (place / "tmp/first").write_bytes(b"first")
    (place / "tmp/later").write_bytes(b"second")


@pytest.mark.parametrize("kind", ["known", "another process", "no index"])
@pytest.mark.parametrize("name", ["cur/1.a:2,S", "new/1.a"])
def test_known_message_keeps_its_id_if_a_file_with_the_same_name_appears(
    maildir: MaildirStore, place: Path, name: str, kind: str
) -> None:
    """The later file has the lower inode number, since free numbers are used again.
    Without an index the times of the files show which came first."""
    lower_inode_last(place)
    rename(place, "tmp/first", name)
    (known,) = settled(maildir)
    os.utime(place / "tmp/later", ns=(0, (place / name).stat().st_mtime_ns + 1))
    rename(place, "tmp/later", "cur/1.a:2,FR")
    store = maildir if kind == "known" else MaildirStore(f"{place.parent}/%u")
    if kind == "no index":
        (place / INDEX).unlink()

    async def by_id() -> dict[str, bytes]:
        async with store.open("ann") as maildrop:
            return {e.unique_id: await text_of(maildrop, e) for e in maildrop.listing}

    found = run(by_id())
    assert found[known.unique_id] == b"first\r\n"
    assert sorted(found.values()) == [b"first\r\n", b"second\r\n"]
    rename(place, "cur/1.a:2,FR", "cur/1.a:2,")
    assert run(by_id()) == found


def test_known_message_keeps_its_id_although_the_other_looks_older(
    maildir: MaildirStore, place: Path
) -> None:
    lower_inode_last(place)
    rename(place, "tmp/first", "cur/1.a:2,S")
    os.utime(place / "tmp/later", (1, 1))
    settled(maildir)
    rename(place, "tmp/later", "new/1.a")
    entries = run(listing(maildir, "ann"))
    (at,) = [at for at, entry in enumerate(entries) if entry.unique_id == "1.a"]
    assert run(contents(maildir, "ann"))[at] == b"first\r\n"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_ids_that_cannot_be_remembered_are_not_shown(
    maildir: MaildirStore, place: Path, error: int
) -> None:
    """Otherwise another message would inherit the id later; on a read-only disk none leaves."""
    put(place, "cur/1.a:2,S", b"first")
    put(place, "new/1.a", b"second")

    def no_disk(call: tuple[str, ...]) -> None:
        if call[0] in ("write", "open") and "restante.ids.tmp" in call[1]:
            raise OSError(error, os.strerror(error))

    with watched(place.parent, no_disk):
        if error == errno.EROFS:
            assert len(run(listing(maildir, "ann"))) == 2
        else:
            with pytest.raises(TemporaryFailure):
                run(listing(maildir, "ann"))
    assert len(run(listing(maildir, "ann"))) == 2


@pytest.mark.parametrize("octets", [b"", b"garbage", b"restante ids 1\n" + b"x" * 64])
def test_maildrop_with_damaged_ids_is_not_opened(
    maildir: MaildirStore, place: Path, octets: bytes
) -> None:
    put(place, "new/1.a", b"x")
    settled(maildir)
    (place / "restante.ids").write_bytes(octets)
    with pytest.raises(TemporaryFailure):
        run(listing(maildir, "ann"))


# -- Messages as files


@pytest.mark.parametrize(
    ("octets", "form"),
    [
        (b"", Form.READY),
        (b"a\r\nb.\r\n", Form.READY),
        (b".a\r\n", Form.CRLF),
        (b"a\r\n.\r\n", Form.CRLF),
        (b"x" * 32_764 + b"\r\n.\r\n", Form.CRLF),
        (b"x" * 32_765 + b"\r\n.\r\n", Form.CRLF),
        (b"a\n", Form.UNKNOWN),
        (b"a\r\nb", Form.UNKNOWN),
        (b"a\r\nb\r", Form.UNKNOWN),
    ],
)
@pytest.mark.parametrize("delivered", [True, False])
def test_wire_ready_file_is_recognised(
    maildir: MaildirStore, place: Path, octets: bytes, form: Form, delivered: bool
) -> None:
    if delivered:
        run(deliver(maildir, "ann", octets[:1], octets[1:]))
    else:
        put(place, "new/1.a", octets)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            assert isinstance(maildrop, RawReading)
            raw = maildrop.open_raw(maildrop.listing[0])
            assert raw is not None
            assert os.read(raw.descriptor, len(octets) + 1) == octets
            os.close(raw.descriptor)
            assert raw.size == len(octets)
            assert raw.is_wire_ready == (form is Form.READY)
            assert raw.has_crlf == (form is not Form.UNKNOWN)
            size = maildrop.listing[0].size
            assert maildrop.cached_texts(maildrop.listing, size - 1) == []
            assert maildrop.cached_texts(maildrop.listing, size) == [stuffed(crlf_text(octets))]

    run(story())


@pytest.mark.parametrize("lines", [None, 0, 9999])
def test_a_small_message_is_read_once(
    maildir: MaildirStore, place: Path, lines: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TOP with more lines than the message has is the usual way to read without a mark."""
    put(place, "cur/1.a:2,S", b"a: b\n\nc\n")
    read, names = files.read_cached, list[str]()

    def watched_read(name: str, parent: int, most: int) -> bytes | None:
        names.append(name)
        return read(name, parent, most)

    monkeypatch.setattr(files, "read_cached", watched_read)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            assert isinstance(maildrop, RawReading)
            assert len(maildrop.cached_texts(maildrop.listing, 100, lines)) == 1

    run(story())
    assert names == ["1.a:2,S"]


def test_file_of_another_size_is_not_ready(maildir: MaildirStore, place: Path) -> None:
    run(deliver(maildir, "ann", b"a\r\n"))
    (name,) = names(place / "new")

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            assert isinstance(maildrop, RawReading)
            put(place, f"new/{name}", b"a\r\nb\r\n")
            raw = maildrop.open_raw(maildrop.listing[0])
            assert raw is not None
            os.close(raw.descriptor)
            assert not raw.is_wire_ready
            assert not raw.has_crlf
            assert maildrop.cached_texts(maildrop.listing, 100) == []

    run(story())


def test_renamed_or_irregular_file_is_left_to_read(maildir: MaildirStore, place: Path) -> None:
    for name in ("new/1.a", "new/2.a", "new/3.a"):
        put(place, name, b"x")

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            assert isinstance(maildrop, RawReading)
            rename(place, "new/1.a", "cur/1.a:2,S")
            unlink(place, "new/2.a")
            unlink(place, "new/3.a")
            (place / "new/3.a").symlink_to(place / "cur/1.a:2,S")
            for entry in maildrop.listing:
                assert maildrop.open_raw(entry) is None
                assert maildrop.cached_texts([entry], 100) == []
            with suppress(StopAsyncIteration):
                await anext(maildrop.read(maildrop.listing[0]))
            raw = maildrop.open_raw(maildrop.listing[0])
            assert raw is not None
            os.close(raw.descriptor)

    before = len(os.listdir("/proc/self/fd"))
    run(story())
    assert len(os.listdir("/proc/self/fd")) == before
