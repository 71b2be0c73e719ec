"""UPDATE, held mail and restores: the state after a crash, a fault or a race."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

import pytest

from restante.errors import MaildropInUse, MessageGone, TemporaryFailure
from restante.maildrop import HeldMessage
from restante.store import files
from restante.store.maildir import MaildirStore

from .helpers import (
    contents,
    deliver,
    listing,
    names,
    pieces,
    put,
    remove,
    rename,
    run,
    unlink,
    whole,
)
from .watched import CHANGES, Call, Crash, WatchedOs, die_at, fail_at, watched

NAMES = ["new/1.a", "cur/2.a:2,S", "new/3.a,S=3,W=5", "cur/4.a:2,FS", "new/5.a"]
VICTIMS = ["1.a", "2.a", "3.a"]
KEPT = ["4.a", "5.a"]


@pytest.fixture
def full(place: Path) -> Path:
    """Make five messages; the text of each is its unique-id."""
    for name in NAMES:
        put(place, name, name[4:7].encode())
    return place


@pytest.fixture
def destroying(tmp_path: Path) -> MaildirStore:
    return MaildirStore(f"{tmp_path}/%u", hold=0)


async def mark(store: MaildirStore, unique_ids: Collection[str]) -> list[str]:
    """Delete messages in a session; returns the unique-ids of those not removed."""
    async with store.open("ann") as maildrop:
        marked = [entry for entry in maildrop.listing if entry.unique_id in unique_ids]
        return [entry.unique_id for entry in await maildrop.remove(marked)]


def listed(store: MaildirStore) -> list[str]:
    return [entry.unique_id for entry in run(listing(store, "ann"))]


def held(store: MaildirStore) -> list[str]:
    return sorted(message.unique_id for message in run(store.held("ann")))


def cut_short(store: MaildirStore, base: Path) -> str:
    """Die after one victim was moved; returns its unique-id."""
    # The first renames are of the index, the rules and the list.
    with watched(base, die_at(4, {"rename"})), pytest.raises(Crash):
        run(mark(store, VICTIMS))
    (moved,) = held(store)
    return moved


# -- Durability and its order


def test_removed_files_lie_in_held_under_their_names(maildir: MaildirStore, full: Path) -> None:
    assert run(mark(maildir, VICTIMS)) == []
    assert names(full / "new") + names(full / "cur") == ["5.a", "4.a:2,FS"]
    assert [name.partition(".")[2] for name in names(full / "held")] == [
        "1.a",
        "2.a:2,S",
        "3.a,S=3,W=5",
    ]
    assert all(abs(int(n.partition(".")[0]) - time.time()) < 5 for n in names(full / "held"))
    own = ["restante.index", "restante.lock", "restante.rules"]
    assert names(full) == ["cur", "held", "new", *own, "tmp"]


def test_nothing_is_held_when_hold_is_0(destroying: MaildirStore, full: Path) -> None:
    with watched(full.parent) as system:
        assert run(mark(destroying, VICTIMS)) == []
    assert not system.unsynced - {"ann"}
    assert listed(destroying) == KEPT
    assert held(destroying) == []


@pytest.mark.rfc("P-171", "P-175")
def test_delivery_is_durable_before_it_is_visible(maildir: MaildirStore, place: Path) -> None:
    def hook(call: Call) -> None:
        if call[0] == "rename":
            assert call[1].startswith("ann/tmp/")
            assert call[1] not in system.unsynced

    with watched(place.parent, hook) as system:
        run(deliver(maildir, "ann", b"x" * 300_000, b"y"))
    assert system.unsynced <= {"ann", "ann/tmp"}  # the lock file; the abandoned name
    assert [call[0] for call in system.calls[-3:]] == ["rename", "fstat", "fsync"]


def test_new_maildrop_is_durable_before_its_lock_exists(tmp_path: Path) -> None:
    """So a maildrop with a lock file is durable, even after a kill."""

    def hook(call: Call) -> None:
        if call[0] == "open" and call[1].endswith("restante.lock"):
            assert not system.unsynced
            locks.append(call)

    locks: list[Call] = []
    store = MaildirStore(f"{tmp_path}/%d/%n")
    with watched(tmp_path, hook) as system:
        run(deliver(store, "ann@example.org", b"x"))
    assert len(locks) == 1
    with watched(tmp_path) as system:
        run(deliver(store, "ann@example.org", b"x"))
    assert [call[1] for call in system.calls if call[0] == "fsync"][1:] == ["example.org/ann/new"]


def test_maildrop_half_made_is_finished(tmp_path: Path) -> None:
    """The process that made the directories was killed before they were durable."""
    (tmp_path / "example.org/ann/new").mkdir(parents=True)
    with watched(tmp_path) as system:
        run(deliver(MaildirStore(f"{tmp_path}/%d/%n"), "ann@example.org", b"x"))
    synced = {call[1] for call in system.calls if call[0] == "fsync"}
    assert {".", "example.org", "example.org/ann"} <= synced


@pytest.mark.rfc("P-118")
def test_list_of_deletions_is_durable_before_the_first_move(
    maildir: MaildirStore, full: Path
) -> None:
    def hook(call: Call) -> None:
        if call[0] == "rename" and "/held/" in call[2]:
            assert not system.unsynced - {"ann/held", "ann/new", "ann/cur"}
            assert (full / "restante.removing").exists()
            moved.append(call[1])
        if call == ("fsync", "ann/cur"):  # held/ first, otherwise a crash could leave it in neither
            assert "ann/held" not in system.unsynced
        if call[0] == "unlink":
            assert not system.unsynced
            unlinked.append(call[1])

    moved: list[str] = []
    unlinked: list[str] = []
    run(listing(maildir, "ann"))
    with watched(full.parent, hook) as system:
        assert run(mark(maildir, VICTIMS)) == []
    assert len(moved) == 3
    assert unlinked == ["ann/restante.removing"]
    assert system.unsynced == {"ann"}  # the list may reappear, but then finds no files


# -- Crashes


def crashes(before: Callable[[], None], act: Callable[[], object], base: Path) -> list[int]:
    """Let ``act`` die before each of its changes in turn, each time from the same state."""
    before()
    with watched(base) as system:
        act()
    changes = sum(call[0] in CHANGES for call in system.calls)
    assert changes > 5
    return list(range(changes))


@pytest.mark.slow
@pytest.mark.parametrize("hold", [0, 60])
@pytest.mark.rfc("P-116", "P-118")
def test_crash_in_update(full: Path, tmp_path: Path, hold: float) -> None:
    """Every message is listed or held or, if marked, destroyed, and always complete."""
    template = tmp_path / "template"
    full.rename(template)

    def afresh() -> MaildirStore:
        shutil.rmtree(full, ignore_errors=True)
        full.mkdir()
        for name in ["tmp", *NAMES]:  # renames keep inode numbers, copies do not
            (full / name).parent.mkdir(exist_ok=True)
            if name != "tmp":
                shutil.copy(template / name, full / name)
        (full / "tmp").mkdir()
        return MaildirStore(f"{tmp_path}/%u", hold=hold)

    ends = set()
    total = crashes(lambda: None, lambda: run(mark(afresh(), VICTIMS)), tmp_path)
    for number in total:
        store = afresh()
        with watched(tmp_path, die_at(number)), pytest.raises(Crash):
            run(mark(store, VICTIMS))
        has_list = (full / "restante.removing").exists()
        left = listed(store)
        ends.add(len(left))
        assert left[-2:] == KEPT
        if hold:
            assert sorted(left[:-2] + held(store)) == VICTIMS
            assert not (has_list and len(left) > 2)
        else:
            assert left[:-2] in ([], VICTIMS)
        assert not (full / "restante.removing").exists()
        assert run(mark(store, VICTIMS)) == []
        assert listed(store) == KEPT
        assert all(run(contents(store, "ann"))[n] == KEPT[n].encode() + b"\r\n" for n in (0, 1))
    assert ends == {2, 5}


def test_crash_while_an_update_is_finished(maildir: MaildirStore, full: Path) -> None:
    """Repeating it is harmless, however often it is interrupted."""
    cut_short(maildir, full.parent)
    for number in range(8):
        with watched(full.parent, die_at(number)), pytest.raises(Crash):
            run(listing(maildir, "ann"))
    assert listed(maildir) == KEPT
    assert held(maildir) == VICTIMS


def test_crash_in_delivery(maildir: MaildirStore, place: Path) -> None:
    """A message is complete or not there."""

    def act() -> None:
        run(deliver(maildir, "ann", b"x" * 300_000, b"y"))

    act()
    seen = 1
    for number in crashes(lambda: None, act, place.parent):
        seen = len(listed(maildir))
        with watched(place.parent, die_at(number)), pytest.raises(Crash):
            act()
        assert len(listed(maildir)) in (seen, seen + 1)
        assert set(run(contents(maildir, "ann"))) == {b"x" * 300_000 + b"y\r\n"}


def test_crash_during_a_restore(maildir: MaildirStore, full: Path) -> None:
    run(mark(maildir, VICTIMS))

    def act() -> None:
        run(maildir.restore("ann", run(maildir.held("ann"))))

    for number in range(9):
        with watched(full.parent, die_at(number)), pytest.raises(Crash):
            act()
        assert len(listed(maildir)) + len(held(maildir)) == 5
    act()
    assert sorted(run(contents(maildir, "ann"))) == [b"%d.a\r\n" % n for n in range(1, 6)]


def test_interrupted_update_identifies_messages_exactly(maildir: MaildirStore, full: Path) -> None:
    """Renamed victims are found; another file with a victim's unique part is not one."""
    moved = cut_short(maildir, full.parent)
    put(full, f"new/{moved}", b"another")
    for name in ("new/1.a", "cur/2.a:2,S"):
        if moved not in name:
            rename(full, name, f"cur/{name[4:7]}:2,RST")
    assert listed(maildir) == [moved, *KEPT]
    assert run(contents(maildir, "ann"))[0] == b"another\r\n"
    assert held(maildir) == VICTIMS


@pytest.mark.parametrize(
    "octets", [b"", b"garbage", b"\0\0\0", b"1 2 3", b"99999999999999999999 4.a 4.a\0", b"x" * 99]
)
def test_nonsense_in_the_list_of_victims(maildir: MaildirStore, full: Path, octets: bytes) -> None:
    put(full, "restante.removing", octets)
    assert listed(maildir) == VICTIMS + KEPT
    assert not (full / "restante.removing").exists()


# -- Faults


def test_message_that_cannot_be_moved_stays(maildir: MaildirStore, full: Path) -> None:
    """The others are removed, and it is not removed later."""

    def hook(call: Call) -> None:
        if call[0] == "rename" and call[1].endswith("2.a:2,S"):
            raise OSError(errno.EACCES, "no")

    with watched(full.parent, hook) as system:
        assert run(mark(maildir, VICTIMS)) == ["2.a"]
    assert not system.unsynced
    assert listed(maildir) == ["2.a", *KEPT]
    assert held(maildir) == ["1.a", "3.a"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.rfc("P-116")
def test_any_fault_in_update(full: Path, tmp_path: Path, error: int, once: bool) -> None:
    """Messages reported as removed are removed; no others are changed or lost."""
    number = 0
    while True:
        place = tmp_path / f"u{number}"
        shutil.copytree(full, place)
        store = MaildirStore(f"{tmp_path}/%u")

        async def story(user: str, hook: Callable[[Call], None], store: MaildirStore) -> list[str]:
            async with store.open(user) as maildrop:
                marked = [e for e in maildrop.listing if e.unique_id in VICTIMS]
                with watched(tmp_path, hook):
                    return [e.unique_id for e in await maildrop.remove(marked)]

        seen: list[Call] = []
        faulty = fail_at(number, error, CHANGES | {"scandir", "stat", "read"}, once=once)

        def hook(
            call: Call, seen: list[Call] = seen, faulty: Callable[[Call], None] = faulty
        ) -> None:
            seen.append(call)
            faulty(call)

        left = run(story(place.name, hook, store))
        entries = [e.unique_id for e in run(listing(store, place.name))]
        holding = [h.unique_id for h in run(store.held(place.name))]
        assert entries[-2:] == KEPT
        assert sorted(entries[:-2] + holding) == VICTIMS
        assert set(VICTIMS) - set(left) <= set(holding)
        if number >= len(seen):
            break
        number += 1
    assert number > 20
    assert left == []


def test_list_that_may_not_be_durable_removes_nothing(maildir: MaildirStore, full: Path) -> None:
    def hook(call: Call) -> None:
        if call == ("fsync", "ann"):
            raise OSError(errno.EIO, "disk")

    run(listing(maildir, "ann"))
    with watched(full.parent, hook):
        assert run(mark(maildir, VICTIMS)) == VICTIMS
    assert listed(maildir) == VICTIMS + KEPT
    assert held(maildir) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_does_not_keep_mail_from_being_removed(
    destroying: MaildirStore, full: Path, error: int
) -> None:
    def hook(call: Call) -> None:
        if call[0] == "write":
            raise OSError(error, "full")

    with watched(full.parent, hook) as system:
        assert run(mark(destroying, VICTIMS)) == []
    assert not system.unsynced
    assert listed(destroying) == KEPT
    assert "restante.removing.tmp" not in names(full)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("once", [True, False])
def test_any_fault_in_delivery(maildir: MaildirStore, place: Path, error: int, once: bool) -> None:
    """The result is a temporary failure that names no path, and no trace of the message."""

    def failure_at(number: int) -> TemporaryFailure | None:
        try:
            with watched(place.parent, fail_at(number, error, CHANGES | {"stat"}, once=once)):
                run(deliver(maildir, "ann", b"x" * 300_000, b"y"))
        except TemporaryFailure as failure:
            return failure
        return None

    run(deliver(maildir, "ann", b"first"))
    number = 0
    while failure := failure_at(number):
        assert str(failure) == f"mail storage: {os.strerror(error)}"
        assert isinstance(failure.__cause__, OSError)
        if once:
            assert not (place / "tmp").exists() or names(place / "tmp") == []
            assert len(names(place / "new")) == 1
        shutil.rmtree(place / "tmp", ignore_errors=True)
        for name in names(place / "new")[1:]:  # could be neither accepted nor removed
            unlink(place, f"new/{name}")
        number += 1
    assert number > 10
    assert len(listed(maildir)) == 2


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("once", [True, False])
def test_any_fault_in_a_session(maildir: MaildirStore, full: Path, error: int, once: bool) -> None:
    """No listing and no message is ever incomplete."""

    async def story(hook: Callable[[Call], None]) -> None:
        with watched(full.parent, hook):
            async with maildir.open("ann") as maildrop:
                assert [e.unique_id for e in maildrop.listing] == VICTIMS + KEPT
                for entry in maildrop.listing:
                    text = await whole(maildrop.read(entry))
                    assert text == entry.unique_id.encode() + b"\r\n"

    among = {"open", "scandir", "stat", "fstat", "pread", "preadv"}
    number = failures = 0
    while True:
        seen: list[Call] = []
        faulty = fail_at(number, error, among, once=once)

        def hook(
            call: Call, seen: list[Call] = seen, faulty: Callable[[Call], None] = faulty
        ) -> None:
            if call[0] in among:
                seen.append(call)
            faulty(call)

        try:
            run(story(hook))
        except TemporaryFailure:
            failures += 1
        else:
            if number >= len(seen):
                break
        number += 1
    assert failures > 20
    assert listed(maildir) == VICTIMS + KEPT


def test_unreadable_message_is_listed(maildir: MaildirStore, full: Path) -> None:
    """A bad file must neither lock its user out nor look removed."""

    def hook(call: Call) -> None:
        if call[0] == "open" and call[1].endswith("2.a:2,S"):
            raise PermissionError(errno.EACCES, "no")

    async def story() -> None:
        with watched(full.parent, hook):
            async with maildir.open("ann") as maildrop:
                first, second, *_ = maildrop.listing
                assert second.unique_id == "2.a"
                assert await whole(maildrop.read(first)) == b"1.a\r\n"
                with pytest.raises(TemporaryFailure):
                    await whole(maildrop.read(second))

    run(story())
    assert run(contents(maildir, "ann"))[1] == b"2.a\r\n"


def test_read_only_file_system_can_be_read(maildir: MaildirStore, full: Path) -> None:
    run(listing(maildir, "ann"))

    def hook(call: Call) -> None:
        there = os.path.exists(full.parent / call[1])
        if call[0] in ("rename", "unlink", "write") or (call[0] == "mkdir" and not there):
            raise OSError(errno.EROFS, "read-only")

    class ReadOnly(WatchedOs):
        def open(self, name: str, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> int:
            if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
                raise OSError(errno.EROFS, "read-only")
            return os.open(name, flags, dir_fd=dir_fd)

        def utime(self, *_: object) -> None:
            raise OSError(errno.EROFS, "read-only")

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            texts = [await whole(maildrop.read(entry)) for entry in maildrop.listing]
            assert texts == [each.encode() + b"\r\n" for each in VICTIMS + KEPT]
            with pytest.raises(MaildropInUse):
                await listing(maildir, "ann")
            assert len(await maildrop.remove(maildrop.listing[:2])) == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", ReadOnly(full.parent, hook))
        run(story())
    assert listed(maildir) == VICTIMS + KEPT


# -- Races


def test_victims_that_are_renamed_are_found(maildir: MaildirStore, full: Path) -> None:
    def hook(call: Call) -> None:
        if call[0] == "rename" and call[1].endswith("2.a:2,S"):
            rename(full, "cur/2.a:2,S", "cur/2.a:2,RS")

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            rename(full, "new/1.a", "cur/1.a:2,S")
            unlink(full, "new/3.a,S=3,W=5")
            marked = [e for e in maildrop.listing if e.unique_id in VICTIMS]
            with watched(full.parent, hook):
                assert list(await maildrop.remove(marked)) == []

    run(story())
    assert listed(maildir) == KEPT
    assert held(maildir) == ["1.a", "2.a"]


def _replace(place: Path) -> None:
    put(place, "tmp/other", b"another")
    rename(place, "tmp/other", "new/1.a")


@pytest.mark.parametrize(
    ("change", "others"),
    [
        (lambda place: None, []),
        (lambda place: rename(place, "new/1.a", "cur/1.a:2,S"), []),
        (lambda place: os.link(place / "new/1.a", place / "cur/1.a:2,S"), []),
        (lambda place: unlink(place, "new/1.a"), []),
        (_replace, [b"another\r\n"]),
        (lambda place: os.symlink("../cur/2.a:2,S", _without(place / "new/1.a")), []),
    ],
    ids=["unchanged", "renamed", "linked", "unlinked", "replaced", "symlink"],
)
@pytest.mark.parametrize("hold", [0, 14 * 86_400])
def test_one_of_many_messages_is_removed_after_any_change_by_another_program(
    tmp_path: Path, full: Path, change: Callable[[Path], None], others: list[bytes], hold: int
) -> None:
    store = MaildirStore(f"{tmp_path}/%u", hold=hold)

    async def story() -> None:
        async with store.open("ann") as maildrop:
            change(full)
            marked = [each for each in maildrop.listing if each.unique_id == "1.a"]
            assert list(await maildrop.remove(marked)) == []

    run(story())
    texts = run(contents(store, "ann"))
    assert sorted(texts) == sorted([*others, *(b"%d.a\r\n" % number for number in range(2, 6))])


def _without(path: Path) -> Path:
    path.unlink()
    return path


def test_removal_of_few_messages_does_not_read_the_directories(
    maildir: MaildirStore, full: Path
) -> None:
    listed(maildir)
    time.sleep(0.02)
    listed(maildir)
    with watched(full.parent) as system:
        assert run(mark(maildir, ["1.a", "2.a"])) == []
    assert "scandir" not in {call[0] for call in system.calls}
    assert held(maildir) == ["1.a", "2.a"]


def test_message_reported_as_not_removed_is_never_removed_later(
    maildir: MaildirStore, full: Path
) -> None:
    def hook(call: Call) -> None:
        if call[0] == "stat" and call[1].endswith("new/1.a"):
            raise OSError(errno.EIO, "input/output error")

    listed(maildir)
    with watched(full.parent, hook):
        assert run(mark(maildir, ["1.a", "2.a"])) == ["1.a", "2.a"]
    assert listed(maildir) == ["1.a", "2.a", "3.a", *KEPT]


def test_victim_that_keeps_being_renamed_is_left(maildir: MaildirStore, full: Path) -> None:
    def hook(call: Call) -> None:
        if call[0] == "rename" and "2.a:2," in call[1]:
            rename(full, call[1].removeprefix("ann/"), call[1].removeprefix("ann/") + "x")

    with watched(full.parent, hook):
        assert run(mark(maildir, VICTIMS)) == ["2.a"]
    assert listed(maildir) == ["2.a", *KEPT]


def test_cancelled_removal_is_finished_before_the_lock_is_freed(
    maildir: MaildirStore, full: Path
) -> None:
    def slow(call: Call) -> None:
        if call[0] == "rename" and "held" in call[-1]:
            loops[0].call_soon_threadsafe(begun[0].set)
            time.sleep(0.05)

    async def story() -> None:
        loops.append(asyncio.get_running_loop())
        begun.append(asyncio.Event())
        with watched(full.parent, slow):
            removal = asyncio.create_task(mark(maildir, VICTIMS))
            await begun[0].wait()
            for _ in range(3):
                removal.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await removal
        assert [entry.unique_id for entry in await listing(maildir, "ann")] == KEPT

    loops: list[asyncio.AbstractEventLoop] = []
    begun: list[asyncio.Event] = []
    run(story())


def test_same_name_is_never_overwritten_in_held(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    for octets in (b"one", b"two", b"three"):
        put(place, "new/1.a", octets)
        assert run(mark(maildir, ["1.a"])) == []
    assert names(place / "held") == ["1800000000.1.a", "1800000001.1.a", "1800000002.1.a"]
    assert [(place / "held" / n).read_bytes() for n in names(place / "held")] == [
        b"one",
        b"two",
        b"three",
    ]
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 1
    assert len(held(maildir)) == 2


# -- Held mail


def test_restored_message_is_where_it_was(maildir: MaildirStore, full: Path) -> None:
    def hook(call: Call) -> None:
        if call == ("fsync", "ann/held"):  # the last one, otherwise a crash could leave it nowhere
            assert system.unsynced == {"ann/held"}

    run(mark(maildir, VICTIMS))
    with watched(full.parent, hook) as system:
        assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 3
    assert not system.unsynced
    assert names(full / "new") == ["1.a", "3.a,S=3,W=5", "5.a"]
    assert names(full / "cur") == ["2.a:2,S", "4.a:2,FS"]


def test_restore_with_new_unique_ids_makes_new_mail(maildir: MaildirStore, full: Path) -> None:
    run(mark(maildir, VICTIMS))
    with watched(full.parent) as system:
        assert run(maildir.restore("ann", run(maildir.held("ann")))) == 3
    assert not system.unsynced
    assert names(full / "cur") == ["4.a:2,FS"]
    assert sum(name.endswith(",S=3,W=5") for name in names(full / "new")) == 1
    assert run(contents(maildir, "ann"))[:2] == [b"4.a\r\n", b"5.a\r\n"]


def test_restore_does_not_overwrite(maildir: MaildirStore, full: Path) -> None:
    run(mark(maildir, VICTIMS))
    put(full, "cur/1.a:2,S", b"another")
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 2
    assert held(maildir) == ["1.a"]
    assert b"another\r\n" in run(contents(maildir, "ann"))


def test_two_links_to_one_message_come_back_as_one(maildir: MaildirStore, full: Path) -> None:
    """If a rename is a link and an unlink, a crash may leave it in two places."""
    os.link(full / "new/1.a", full / "cur/1.a:2,S")
    assert run(mark(maildir, VICTIMS)) == []
    os.link(full / "new/5.a", full / "held/1700000000.5.a")
    assert len(held(maildir)) == 5
    assert run(maildir.restore("ann", run(maildir.held("ann")))) == 3
    assert sorted(run(contents(maildir, "ann"))) == [b"%d.a\r\n" % n for n in range(1, 6)]
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 0


def test_message_with_a_contested_id_is_restored_under_its_id(
    maildir: MaildirStore, full: Path
) -> None:
    put(full, "cur/1.a:2,S", b"another")
    before = listed(maildir)
    assert run(mark(maildir, before)) == []
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 6
    assert sorted(listed(maildir)) == sorted(before)


@pytest.mark.parametrize("name", [".hidden", "a" + ",S=1" * 60, "a:2,S"])
def test_any_name_can_be_restored_and_listed(maildir: MaildirStore, full: Path, name: str) -> None:
    """Or it is not a name of ours, and is ignored."""
    own = listed(maildir)
    put(full, f"held/1700000000.{name}", b"x")
    for same in (True, False):
        found = run(maildir.held("ann"))
        assert run(maildir.restore("ann", found, same_unique_ids=same)) == len(found)
        assert len(listed(maildir)) == 5 + (not name.startswith("."))
        run(mark(maildir, set(listed(maildir)) - set(own)))


def test_a_directory_in_the_way_keeps_no_other_message(maildir: MaildirStore, full: Path) -> None:
    run(mark(maildir, VICTIMS))
    (full / "new/1.a").mkdir()
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 2
    assert held(maildir) == ["1.a"]


def test_a_moment_that_no_calendar_has_is_no_removal(maildir: MaildirStore, full: Path) -> None:
    """Nor is one in the future: it is shown as now."""
    listed(maildir)
    put(full, "held/999999999999.1.x", b"x")
    put(full, "held/99999999999.2.x", b"x")
    (found,) = run(maildir.held("ann"))
    assert found.unique_id == "2.x"
    assert found.removed_at == pytest.approx(time.time(), abs=60)


def test_held_message_that_goes_while_mail_is_purged(maildir: MaildirStore, full: Path) -> None:
    """Another program may remove it."""
    run(mark(maildir, VICTIMS))

    def hook(call: Call) -> None:
        if call[0] == "unlink" and call[1].endswith(".1.a"):
            (full.parent / call[1]).unlink()

    with watched(full.parent, hook):
        assert run(maildir.purge("ann", time.time() + 10)) == 2
    assert held(maildir) == []


def test_interrupted_update_does_not_remove_restored_mail(
    maildir: MaildirStore, full: Path
) -> None:
    moved = cut_short(maildir, full.parent)
    run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True))
    assert listed(maildir) == [moved, *KEPT]


def test_power_failure_does_not_remove_restored_mail(maildir: MaildirStore, full: Path) -> None:
    """The removal of the list of victims is durable before a message is restored."""
    run(mark(maildir, VICTIMS))

    def hook(call: Call) -> None:
        if call[0] == "rename":
            assert "ann" in {each[1] for each in system.calls if each[0] == "fsync"}

    with watched(full.parent, hook) as system:
        run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True))


async def update(store: MaildirStore) -> None:
    assert await mark(store, ["3.a"]) == []


async def finish(store: MaildirStore) -> None:
    assert [entry.unique_id for entry in await listing(store, "ann")] == KEPT


async def give_back(store: MaildirStore) -> None:
    assert await store.restore("ann", await store.held("ann")) == 1


async def purge(store: MaildirStore) -> None:
    assert await store.purge("ann", time.time() + 10) == 1


@pytest.mark.parametrize("change", [update, finish, give_back, purge])
def test_held_directory_is_changed_by_one_process_at_a_time(
    maildir: MaildirStore, full: Path, change: Callable[[MaildirStore], Coroutine[Any, Any, None]]
) -> None:
    """Otherwise an UPDATE, which looks for renamed victims, would remove restored messages."""
    if change is finish:
        cut_short(maildir, full.parent)
    else:
        run(mark(maildir, ["1.a"]))

    async def story() -> None:
        with files.maildrop(str(full.parent), ["ann"]) as opened:
            with files.directory_lock("held", opened):
                changing = asyncio.create_task(change(maildir))
                _, pending = await asyncio.wait([changing], timeout=0.2)
                assert pending
            await changing

    run(story())


@pytest.mark.parametrize("name", ["../new/5.a", "1.../new/5.a", "1./x", "", ".", "1.", "x.5.a"])
def test_names_of_held_messages_are_checked(maildir: MaildirStore, full: Path, name: str) -> None:
    run(mark(maildir, VICTIMS))
    message = HeldMessage(name, "5.a", 1, 1.0)
    assert run(maildir.restore("ann", [message])) == 0
    with pytest.raises(MessageGone):
        run(whole(maildir.read_held("ann", message)))
    assert listed(maildir) == KEPT


def test_stray_files_in_held_are_left_alone(maildir: MaildirStore, full: Path) -> None:
    run(mark(maildir, ["1.a"]))
    put(full, "held/stray", b"x")
    os.mkfifo(full / "held/1.fifo")
    (full / "held/2.link").symlink_to(full / "new/5.a")
    assert held(maildir) == ["1.a"]
    assert run(maildir.purge("ann", time.time() + 10)) == 1
    assert len(names(full / "held")) == 3
    with pytest.raises(MessageGone):
        run(whole(maildir.read_held("ann", HeldMessage("stray", "1.a", 1, 1.0))))


def test_held_message_that_goes_while_it_is_listed(maildir: MaildirStore, full: Path) -> None:
    run(mark(maildir, VICTIMS))

    def hook(call: Call) -> None:
        if call[0] == "stat" and call[1].endswith(".1.a") and names(full / "held")[0][-3:] == "1.a":
            unlink(full, f"held/{names(full / 'held')[0]}")

    with watched(full.parent, hook):
        assert held(maildir) == ["2.a", "3.a"]


def test_purge_is_durable_and_removes_leftovers_of_deliveries(
    maildir: MaildirStore, full: Path
) -> None:
    run(mark(maildir, VICTIMS))
    put(full, "tmp/old", b"half a mess")
    put(full, "tmp/young", b"half a mess")
    os.utime(full / "tmp/old", (0, time.time() - 37 * 3600))
    with watched(full.parent) as system:
        assert run(maildir.purge("ann", time.time() + 10)) == 3
    assert system.unsynced == {"ann/tmp"}
    assert names(full / "tmp") == ["young"]
    assert names(full / "held") == []


def test_file_in_tmp_is_never_written_over(maildir: MaildirStore, full: Path) -> None:
    """If two deliveries choose the same name, one fails, and they are not mixed."""
    put(full, "tmp/name", b"the first")
    with (
        files.maildrop(str(full.parent), ["ann"]) as opened,
        files.directory("tmp", opened) as tmp,
        pytest.raises(FileExistsError),
    ):
        files.create("name", tmp)
    assert (full / "tmp/name").read_bytes() == b"the first"


def test_removed_messages_are_restored_at_their_positions(
    maildir: MaildirStore, place: Path
) -> None:
    """With any names: invalid UTF-8, too long, without a time, contested, or of another server."""
    names_of = ["1.a", "2.\u00fc", "3." + "x" * 69, "4." + "y" * 250, "no-time", "5.q", "6.z"]
    for at, name in enumerate(names_of):
        put(place, f"new/{name}", b"%d" % at)
    put(place, "cur/5.q:2,S", b"another")
    put(place, "cur/7.old,S=3:2,S", b"old")
    run(maildir.adopt("ann", {"7.old,S=3:2,S": "a:b"}, lambda _: pieces()))
    before = run(listing(maildir, "ann"))
    texts = run(contents(maildir, "ann"))
    assert len(before) == 9
    for chosen in ([each] for each in before):
        assert run(remove(maildir, "ann", chosen)) == []
        held = run(maildir.held("ann"))
        assert [each.unique_id for each in held] == [each.unique_id for each in chosen]
        assert run(maildir.restore("ann", held, same_unique_ids=True)) == 1
        for store in (maildir, MaildirStore(f"{place.parent}/%u")):
            assert run(listing(store, "ann")) == before
            assert run(contents(store, "ann")) == texts
    assert run(remove(maildir, "ann", before)) == []
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 9
    assert run(contents(maildir, "ann")) == texts
    assert run(listing(maildir, "ann")) == before
