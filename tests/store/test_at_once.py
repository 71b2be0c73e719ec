"""Deliveries and restores during, or just before, other operations on the maildrop."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from restante.store import files
from restante.store.maildir import MaildirStore

from .helpers import contents, deliver, listing, put, run
from .watched import Call, watched


@pytest.mark.parametrize("number", range(8))
def test_delivery_during_an_update_arrives_and_stays(
    maildir: MaildirStore, place: Path, number: int
) -> None:
    """Deliver at each of the first renames and syncs of UPDATE."""
    for name in ("1.a", "2.b", "3.c"):
        put(place, f"cur/{name}:2,S", name.encode())
    run(listing(maildir, "ann"))
    seen = [0]

    def hook(call: Call) -> None:
        if call[0] in ("rename", "fsync") and seen[0] <= number:
            seen[0] += 1
            if seen[0] == number + 1:
                run(deliver(MaildirStore(f"{place.parent}/%u"), "ann", b"late\r\n"))

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            with watched(place.parent, hook):
                assert await maildrop.remove(list(maildrop.listing)) == []

    run(story())
    assert seen[0] == number + 1
    assert run(contents(maildir, "ann")) == [b"late\r\n"]
    assert len(run(maildir.held("ann"))) == 3


def test_unique_ids_are_the_same_after_a_restore(
    maildir: MaildirStore, place: Path, tmp_path: Path
) -> None:
    """Restoring a backup gives files other inode numbers and times."""
    for name in ("new/1.a,S=1", "cur/2.b:2,S", "cur/odd name with spaces"):
        put(place, name, b"x")
    before = run(listing(maildir, "ann"))
    shutil.copytree(place, tmp_path / "backup", copy_function=shutil.copyfile)
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "backup", place, copy_function=shutil.copyfile)
    for store in (maildir, MaildirStore(f"{tmp_path}/%u")):
        assert run(listing(store, "ann")) == before


def test_unique_ids_stay_when_the_clock_goes_back(
    maildir: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([10**18, 10**18, 9 * 10**17, 9 * 10**17, 10**18])
    monkeypatch.setattr("time.time_ns", lambda: next(moments, 10**18))
    ids = [run(deliver(maildir, "ann", b"x")).unique_id for _ in range(6)]
    assert len(set(ids)) == 6
    assert sorted(entry.unique_id for entry in run(listing(maildir, "ann"))) == sorted(ids)


def test_directory_lock_is_released_at_the_end_of_the_block(tmp_path: Path) -> None:
    """Even if the descriptor stays open, as that of a maildrop does during a session."""
    ours, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        with files.lock(ours), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(ours)
        os.close(other)
