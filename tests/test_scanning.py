"""Directories that change while they are read.

A model of a Maildir replaces the file system: it renames, adds and removes files between any two
entries of a pass, and shows a changed entry once, twice or not at all, as readdir may.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restante import scanning
from restante.scanning import (
    HELD,
    MAIL,
    NO_STAMP,
    ChangingMaildir,
    File,
    Identity,
    Scan,
    open_maildir,
    passes,
    scan,
    scan_exactly,
    scan_folders,
    scan_for,
    unique_part,
)

TICK = 20_000_000


class Model:
    """Files in directories, a coarse clock, and another program."""

    def __init__(self, seed: int, busy: int) -> None:
        """``busy``: probability in per cent of a change before an entry is read."""
        self.random = Random(seed)
        self.busy = busy
        self.now = 10**18
        self.monotonic = 0
        self.files: dict[Identity, tuple[str, str]] = {}
        self.stamps = {name: (number, 1, 1) for number, name in enumerate(MAIL, 1)}
        self.fresh = 0
        self.always: set[Identity] = set()
        """Messages that were never added or removed, only renamed."""
        for number in range(8):
            self._put((f"{number}.a", number), self.random.choice(MAIL), "")
        self.always = set(self.files)

    def _put(self, identity: Identity, directory: str, flags: str) -> None:
        self.files[identity] = directory, identity[0] + flags

    def _move_stamp(self, directory: str) -> None:
        tick = self.now - self.now % TICK
        self.stamps[directory] = (self.stamps[directory][0], tick, tick)

    def something_happens(self) -> None:
        """Perhaps make a change; time passes in any case, often by less than a clock tick."""
        self.pass_time(self.random.choice([1000, 1_000_000]))
        if self.random.randrange(100) >= self.busy:
            return
        what = self.random.choice("rrrrad")
        if what == "a":
            self.fresh += 1
            self._put((f"new{self.fresh}", 1000 + self.fresh), "new", "")
            self._move_stamp("new")
            return
        known = [each for each in self.files if what == "r" or each not in self.always]
        if not known:
            return
        identity = self.random.choice(known)
        directory, _ = self.files.pop(identity)
        self._move_stamp(directory)
        if what == "r":
            target = self.random.choice(MAIL)
            self._put(identity, target, f":2,{self.random.choice(['', 'S', 'F', 'FS'])}")
            self._move_stamp(target)

    def pass_time(self, nanoseconds: int) -> None:
        self.now += nanoseconds
        self.monotonic += nanoseconds

    # Functions that ``scanning`` calls.

    def stamp(self, name: str, parent: int) -> tuple[int, int, int]:
        self.something_happens()
        return self.stamps[name]

    def list(self, name: str, parent: int) -> dict[str, int]:
        """Return the entries at the beginning, in any order, in their current state; and some of
        those added meanwhile."""
        if name == "new":
            self.when_read = self.truth()
        begin = {each for each, (directory, _) in self.files.items() if directory == name}
        waiting = list(begin)
        self.random.shuffle(waiting)
        places = {each: self.files[each] for each in waiting}
        seen: dict[str, int] = {}
        for each in waiting:
            self.something_happens()
            # An unchanged entry is shown; a removed one may still be shown.
            if self.files.get(each) == places[each] or self.random.random() < 0.5:
                seen[places[each][1]] = each[1]
        for each, (directory, now) in self.files.items():
            is_other = each not in begin or places[each] != (directory, now)
            if directory == name and is_other and self.random.random() < 0.5:
                seen[now] = each[1]
        return seen

    def truth(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {name: {} for name in MAIL}
        for (_, inode), (directory, name) in self.files.items():
            found[directory][name] = inode
        return found


@contextmanager
def modelled(seed: int, busy: int) -> Iterator[Model]:
    model = Model(seed, busy)

    class Clock:
        def sleep(self, seconds: float) -> None:
            model.pass_time(round(seconds * 10**9))
            if model.busy:
                model.something_happens()

        def monotonic_ns(self) -> int:
            return model.monotonic

        def time_ns(self) -> int:
            return model.now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "_stamp", model.stamp)
        patch.setattr(scanning, "_list", model.list)
        patch.setattr(scanning, "time", Clock())
        yield model


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), busy=st.sampled_from([0, 1, 3, 10, 40, 100]))
def test_exact_scan_contains_exactly_the_existing_files(seed: int, busy: int) -> None:
    with modelled(seed, busy) as model:
        found = scan(0)
        if found.is_exact:
            assert found.names == model.when_read
        if busy == 0:
            assert found.is_exact


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), busy=st.sampled_from([1, 3, 10, 40]))
def test_scan_for_messages_reports_no_present_message_gone(seed: int, busy: int) -> None:
    with modelled(seed, busy) as model:
        found, selected = scan_for(0, model.always)
        seen = {identity for identity, _ in selected}
        assert seen == model.always or not found.is_exact


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), busy=st.sampled_from([3, 10, 40]))
def test_files_seen_in_any_pass_are_kept_until_an_exact_pass(seed: int, busy: int) -> None:
    with modelled(seed, busy):
        before: set[Identity] = set()
        for found in passes(0):
            seen = {file.identity for file in found.files()}
            assert found.is_exact or before <= seen
            before = seen


def test_constantly_changing_maildir_has_no_exact_scan() -> None:
    with modelled(1, 100), pytest.raises(ChangingMaildir):
        scan_exactly(0)


# -- The file system itself


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in (*MAIL, HELD):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.a").write_bytes(b"x")
        (tmp_path / name / ".hidden").write_bytes(b"x")
        (tmp_path / name / "directory").mkdir()
        (tmp_path / name / "link").symlink_to("1.a")
    return tmp_path


def exactly(place: Path, *directories: str) -> list[File]:
    with open_maildir(place) as maildir:
        return scan_exactly(maildir, directories or MAIL)


def settle(place: Path) -> None:
    """Wait until the clock of the file system has ticked."""
    while any(
        time.time_ns() - (place / name).stat().st_ctime_ns < 2 * TICK for name in (*MAIL, HELD)
    ):
        time.sleep(0.005)


def test_regular_files_without_dots_are_found(place: Path) -> None:
    wanted = [File(name, "1.a", (place / name / "1.a").stat().st_ino) for name in (*MAIL, HELD)]
    assert exactly(place, *MAIL, HELD) == wanted
    assert exactly(place) == wanted[:2]


def test_only_held_may_be_missing(place: Path) -> None:
    (place / HELD).rename(place / "other")
    assert len(exactly(place, *MAIL, HELD)) == 2
    (place / "cur").rename(place / "another")
    with pytest.raises(FileNotFoundError):
        exactly(place)


@pytest.mark.parametrize("name", [*MAIL, HELD])
def test_directory_that_is_a_link_is_not_followed(place: Path, name: str) -> None:
    (place / name).rename(place / "elsewhere")
    (place / name).symlink_to("elsewhere")
    with pytest.raises(OSError) as error:  # noqa: PT011
        exactly(place, *MAIL, HELD)
    assert error.value.errno in (errno.ELOOP, errno.ENOTDIR)


def test_directory_that_stood_still_is_read_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(place)
    read = counted(monkeypatch)
    with open_maildir(place) as maildir:
        (found,) = passes(maildir)
        assert found.is_exact
        assert read == list(MAIL)
        read.clear()
        (again,) = passes(maildir, known=found.stamps)
        assert again == Scan({}, True, found.stamps)
        assert read == []
        (place / "new" / "2.a").write_bytes(b"x")
        *_, last = passes(maildir, known=found.stamps)
        assert set(read) == {"new"}
        assert last.is_exact
        assert list(last.names) == ["new"]


def test_change_in_the_tick_of_the_clock_is_waited_for(place: Path) -> None:
    """A caller that knows that it was earlier need not wait."""
    settle(place)
    with open_maildir(place) as maildir:
        (place / "new" / "2.a").write_bytes(b"x")
        first, *rest = passes(maildir)
        assert not first.is_exact
        assert first.stamps["new"] == NO_STAMP
        assert first.stamps["cur"] != NO_STAMP
        assert rest[-1].is_exact
        (place / "new" / "3.a").write_bytes(b"x")
        clock = (place / "new").stat().st_ctime_ns + 1
        (only,) = passes(maildir, clock=clock)
        assert only.is_exact


def test_time_of_a_directory_in_the_future_does_not_matter(place: Path) -> None:
    """For example after a restore, or while a clock was wrong."""
    for name in MAIL:
        os.utime(place / name, (2**33, 2**33))
    settle(place)
    assert exactly(place)


def test_clock_of_a_file_system_may_be_ahead_of_ours(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example on a file server: an entry unchanged for a tick is older than a tick."""
    real, hour = scanning._stamp, 3600 * 10**9

    def ahead(name: str, parent: int) -> scanning.Stamp:
        inode, mtime, ctime = real(name, parent)
        return inode, mtime + hour, ctime + hour

    monkeypatch.setattr(scanning, "_stamp", ahead)
    assert exactly(place)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    real = scanning._list
    read: list[str] = []

    def list_(name: str, parent: int) -> Any:
        read.append(name)
        return real(name, parent)

    monkeypatch.setattr(scanning, "_list", list_)
    return read


def test_links_to_one_message_are_all_selected(place: Path) -> None:
    os.link(place / "new/1.a", place / "cur/1.a:2,S")
    with open_maildir(place) as maildir:
        inode = (place / "new/1.a").stat().st_ino
        found = scan(maildir).select({("1.a", inode)})
        assert [(file.directory, file.name) for _, file in found] == [
            ("new", "1.a"),
            ("cur", "1.a:2,S"),
        ]


def test_folders_are_scanned_with_their_held_mail(place: Path) -> None:
    for name in (".Junk/cur", ".Lists.Python/new", "other/cur", ".Junk/.Deeper/cur"):
        (place / name).mkdir(parents=True)
        (place / name / "2.b:2,S").write_bytes(b"x")
    (place / ".Link").symlink_to(".Junk")
    with open_maildir(place) as maildir:
        found = [f"{file.directory}/{file.name}" for file in scan_folders(maildir).files()]
    assert found == [
        "./new/1.a",
        "./cur/1.a",
        "./held/1.a",
        ".Junk/cur/2.b:2,S",
        ".Lists.Python/new/2.b:2,S",
    ]


def test_message_that_moves_into_a_new_folder_is_not_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scanning._list

    def list_(name: str, parent: int) -> dict[str, int]:
        if name == "./new" and not (place / ".Junk").exists():
            (place / ".Junk/cur").mkdir(parents=True)
            (place / "new/1.a").rename(place / ".Junk/cur/1.a:2,S")
        return real(name, parent)

    monkeypatch.setattr(scanning, "_list", list_)
    with open_maildir(place) as maildir:
        found = [f"{file.directory}/{file.name}" for file in scan_folders(maildir).files()]
    assert found == ["./cur/1.a", "./held/1.a", ".Junk/cur/1.a:2,S"]


@pytest.mark.parametrize(
    ("name", "unique"),
    [
        ("1.a", "1.a"),
        ("1.a:2,S", "1.a"),
        ("1.a,S=1:2,S", "1.a"),
        (":2,S", ""),
        ("1.a:2,S,x", "1.a"),
    ],
)
def test_unique_part_of_a_name(name: str, unique: str) -> None:
    assert unique_part(name) == unique
