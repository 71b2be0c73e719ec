"""A snapshot of a maildrop shows one moment, whatever happens while its messages are read."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from restante.maildrop import Entry
from restante.store import held, snapshot
from restante.store.maildir import MaildirStore

from ..support import once


def deliver(place: Path, octets: bytes) -> Entry:
    return asyncio.run(MaildirStore(f"{place}/%u").deliver("ann", once(octets)))


def maildrop(place: Path) -> int:
    return os.open(place / "ann", os.O_RDONLY | os.O_DIRECTORY)


def read(opened: int, listed: list[snapshot.Listed]) -> dict[str, bytes]:
    """Read the messages, by path."""
    return {
        message.path: os.pread(file, 1000, 0) for message, file in snapshot.opened(opened, listed)
    }


def only(place: Path) -> Path:
    """The file of the only message in new/."""
    (path,) = (place / "ann" / "new").iterdir()
    return path


def read_it(place: Path) -> None:
    path = only(place)
    path.rename(place / "ann" / "cur" / f"{path.name}:2,S")


def delete_it(place: Path) -> None:
    async def main() -> None:
        async with MaildirStore(f"{place}/%u").open("ann") as opened:
            assert not await opened.remove(opened.listing)

    asyncio.run(main())


def delete_and_restore(place: Path) -> None:
    """The message gets another unique-id."""
    delete_it(place)
    store = MaildirStore(f"{place}/%u")
    assert asyncio.run(store.restore("ann", asyncio.run(store.held("ann")))) == 1


def move_to_a_folder(place: Path) -> None:
    path, folder = only(place), place / "ann" / ".Old"
    for name in ("new", "cur", "tmp"):
        (folder / name).mkdir(parents=True)
    path.rename(folder / "cur" / f"{path.name}:2,S")


@pytest.mark.parametrize("change", [read_it, delete_it, delete_and_restore, move_to_a_folder])
def test_moved_message_is_read_under_its_old_name(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    deliver(tmp_path, b"Subject: one\r\n")
    path = only(tmp_path)
    opened = maildrop(tmp_path)
    listed = snapshot.snapshot(opened).messages
    change(tmp_path)
    assert not path.exists()
    assert read(opened, listed) == {f"new/{path.name}": b"Subject: one\r\n"}
    os.close(opened)


def test_destroyed_message_is_missing_and_no_other_takes_its_place(tmp_path: Path) -> None:
    deliver(tmp_path, b"Subject: one\r\n")
    path = only(tmp_path)
    opened = maildrop(tmp_path)
    listed = snapshot.snapshot(opened).messages
    path.unlink()
    for _ in range(20):  # one of them gets the inode number, and all have the size
        deliver(tmp_path, b"Subject: two\r\n")
    same_name = tmp_path / "ann" / "new" / path.name
    same_name.write_bytes(b"Subject: two\r\n")
    assert read(opened, listed) == {}
    os.close(opened)


def test_message_that_arrives_later_is_left_out(tmp_path: Path) -> None:
    deliver(tmp_path, b"Subject: one\r\n")
    opened = maildrop(tmp_path)
    listed = snapshot.snapshot(opened).messages
    deliver(tmp_path, b"Subject: two\r\n")
    assert list(read(opened, listed).values()) == [b"Subject: one\r\n"]
    os.close(opened)


def test_snapshot_waits_for_an_update(tmp_path: Path) -> None:
    """UPDATE renames one message after the other; a snapshot shows all of them or none moved."""
    deliver(tmp_path, b"Subject: one\r\n")
    delete_it(tmp_path)
    opened = maildrop(tmp_path)
    in_update = os.open(tmp_path / "ann" / "held", os.O_RDONLY)
    fcntl.flock(in_update, fcntl.LOCK_EX)
    found: list[snapshot.Snapshot] = []
    thread = threading.Thread(target=lambda: found.append(snapshot.snapshot(opened)))
    thread.start()
    thread.join(0.05)
    assert not found
    fcntl.flock(in_update, fcntl.LOCK_UN)
    thread.join()
    assert [each.path.partition("/")[0] for each in found[0].messages] == ["held"]
    os.close(in_update)
    os.close(opened)


def test_files_of_all_folders_are_listed_without_disposable_ones(tmp_path: Path) -> None:
    deliver(tmp_path, b"Subject: one\r\n")
    delete_it(tmp_path)
    place = tmp_path / "ann"
    for name in ("new", "cur", "tmp", "held"):
        (place / ".Junk" / name).mkdir(parents=True)
    (place / ".Junk" / "cur" / "1.a:2,S").write_bytes(b"x")
    (place / ".Junk" / "restante.ids").write_bytes(b"ids")
    (place / ".Junk" / "maildirfolder").write_bytes(b"")
    (place / "tmp" / "2.b").write_bytes(b"half")
    (place / "maildirsize").write_bytes(b"1S\n")
    (place / "restante.rules.tmp").write_bytes(b"torn")
    (place / "sieve").mkdir()
    (place / "sieve" / "main").write_bytes(b"keep;")
    (place / "link").symlink_to("/etc/passwd")
    (place / held.VICTIMS).write_bytes(b"")
    os.mkfifo(place / "fifo")
    opened = maildrop(tmp_path)
    found = snapshot.snapshot(opened)
    os.close(opened)
    assert ".Junk/restante.ids" in {each.path for each in found.small}
    assert {each.path for each in found.small} <= {".Junk/restante.ids", "restante.rules"}
    assert found.others == [".Junk/maildirfolder", "sieve/main"]
    assert {each.path.rpartition("/")[0] for each in found.messages} == {"held", ".Junk/cur"}
    paths = [path for path, _ in found.directories]
    assert paths[0] == "."
    assert {"new", "tmp", "sieve", ".Junk", ".Junk/held"} < set(paths)
