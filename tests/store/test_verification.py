"""Verifying a maildrop and rebuilding its index, in every state that it may have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from restante.errors import MaildropInUse, TemporaryFailure
from restante.maildrop import Entry
from restante.store import adopted, index
from restante.store.index import INDEX, Form, Index, Row
from restante.store.maildir import MaildirStore
from restante.store.names import File, pack

from .helpers import contents, deliver, listing, put, run, unlink
from .watched import Call, Crash, watched

TEXTS = [b"one\r\n", b"two\r\n", b"three\r\n"]


@pytest.fixture
def mail(maildir: MaildirStore, place: Path) -> list[Entry]:
    """Make three messages, one of them held, and an index that is trusted."""
    run(deliver(maildir, "ann", b"held\r\n"))

    async def remove() -> None:
        async with maildir.open("ann") as maildrop:
            assert not await maildrop.remove(list(maildrop.listing))

    run(remove())
    for text in TEXTS:
        run(deliver(maildir, "ann", text))
    for _ in range(2):
        os.utime(place / "new", ns=(1, 1))
        while (place / "restante.lock").stat().st_mtime_ns <= (place / "new").stat().st_ctime_ns:
            os.utime(place / "restante.lock")
        found = run(listing(MaildirStore(f"{place.parent}/%u"), "ann"))
    return found


def faults(place: Path) -> list[str]:
    return [each.what for each in run(MaildirStore(f"{place.parent}/%u").verify("ann"))[1]]


def opened(place: Path) -> int:
    return os.open(place, os.O_RDONLY)


def forge(place: Path, *messages: Row) -> None:
    """Write an index that would be trusted."""
    directory = opened(place)
    index.save(directory, Index(messages, index.stamps(directory)))
    os.close(directory)


def rows(place: Path) -> list[Row]:
    found = Index.decode((place / INDEX).read_bytes(), place.stat().st_ino)
    assert found is not None
    return [found.row(at) for at in range(len(found))]


def first(place: Path) -> Path:
    return sorted((place / "new").iterdir())[0]


def test_nothing_is_wrong(mail: list[Entry], place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "lock" not in path.name}
    messages, found = run(MaildirStore(f"{place.parent}/%u").verify("ann"))
    assert (messages, found) == (3, [])
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "lock" not in path.name}
    assert before == after


INDEX_DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda place: unlink(place, INDEX),
    "empty": lambda place: (place / INDEX).write_bytes(b""),
    "garbage": lambda place: (place / INDEX).write_bytes(b"\xff" * 500),
    "cut": lambda place: os.truncate(place / INDEX, 100),
    "of another version": lambda place: (place / INDEX).write_bytes(b"restante index 1 little\n"),
    "another maildrop's": lambda place: (place / INDEX).write_bytes(Index().encode(7)),
    "torn": lambda place: (place / INDEX).write_bytes((place / INDEX).read_bytes() + b"x" * 99),
    "without a message": lambda place: forge(place, *rows(place)[1:]),
    "of another order": lambda place: forge(place, *reversed(rows(place))),
    "of another size": lambda place: forge(
        place, rows(place)[0]._replace(size=9), *rows(place)[1:]
    ),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
def test_damaged_index_is_found_and_rebuilt(damage: str, mail: list[Entry], place: Path) -> None:
    INDEX_DAMAGE[damage](place)
    found = faults(place)
    assert found == {
        "missing": [],
        "of another version": [],
        "another maildrop's": [],
        "without a message": ["index differs"],
        "of another order": ["index differs"],
        "of another size": ["size differs"],
    }.get(damage, ["index damaged"])
    assert faults(place) == found
    running = MaildirStore(f"{place.parent}/%u")
    run(listing(running, "ann"))  # and trusts it
    for _ in range(2):
        assert run(MaildirStore(f"{place.parent}/%u").reindex("ann")) == 3
        assert faults(place) == []
    for store in (running, MaildirStore(f"{place.parent}/%u")):
        assert run(listing(store, "ann")) == mail
        assert run(contents(store, "ann")) == TEXTS


def test_restored_copy_is_not_damaged(mail: list[Entry], place: Path) -> None:
    """Other inode numbers and times are no damage (docs/howto/backup-and-restore.md)."""
    away = place.with_name("away")
    place.rename(away)
    shutil.copytree(away, place)
    assert faults(place) == []
    assert run(listing(MaildirStore(f"{place.parent}/%u"), "ann")) == mail
    shutil.rmtree(place / "new")
    shutil.copytree(away / "new", place / "new")  # into the maildrop that is there
    assert faults(place) == []
    assert run(contents(MaildirStore(f"{place.parent}/%u"), "ann")) == TEXTS


def test_index_that_cannot_be_read_is_named(mail: list[Entry], place: Path) -> None:
    def refuse(call: tuple[str, ...]) -> None:
        if call[0] == "open" and call[1].endswith(INDEX):
            raise PermissionError(13, "Permission denied")

    with watched(place.parent, refuse):
        assert faults(place) == ["index damaged"]


def test_wrong_size_in_a_name_is_found_and_put_right(mail: list[Entry], place: Path) -> None:
    put(place, "cur/1.x,S=3,W=9:2,S", b"four\r\n")
    running = MaildirStore(f"{place.parent}/%u")
    run(listing(running, "ann"))
    assert faults(place) == ["size differs"]
    assert run(MaildirStore(f"{place.parent}/%u").reindex("ann")) == 4
    assert faults(place) == []
    assert run(contents(running, "ann"))[0] == b"four\r\n"


def test_index_is_not_believed_while_it_is_rebuilt(mail: list[Entry], place: Path) -> None:
    """Also by the next process after a crash in the middle."""
    INDEX_DAMAGE["of another size"](place)

    is_dead = False

    def hook(call: Call) -> None:
        nonlocal is_dead
        is_dead |= call[0] == "pread" and call[1].startswith("ann/new/")
        if is_dead:
            raise Crash

    with watched(place.parent, hook), pytest.raises(Crash):
        run(MaildirStore(f"{place.parent}/%u").reindex("ann"))
    assert run(listing(MaildirStore(f"{place.parent}/%u"), "ann")) == mail


def test_message_that_is_called_ready_and_is_not_is_found(mail: list[Entry], place: Path) -> None:
    path = first(place)
    octets = b".\r\n\n\n"
    assert len(octets) == path.stat().st_size
    path.write_bytes(octets)
    assert faults(place) in (["form differs"], ["size differs"])


def victims(place: Path) -> None:
    path = first(place)
    listed = pack({(path.name.partition(",")[0], path.stat().st_ino): "1.a"})
    (place / "restante.removing").write_bytes(listed)


STATES: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "update unfinished": (victims, ["update unfinished"], []),
    "two files claim an id": (
        lambda place: [(place / where / "1.a").write_bytes(b"x") for where in ("new", "cur")],
        ["ids contested"],
        [],
    ),
    "symlink": (lambda place: (place / "new/1.l").symlink_to("/etc"), ["no file"], ["no file"]),
    "fifo": (lambda place: os.mkfifo(place / "cur/1.f"), ["no file"], ["no file"]),
    "directory": (lambda place: (place / "cur/d").mkdir(), ["no file"], ["no file"]),
    "dotfile": (lambda place: put(place, "new/.nfs1", b""), [], []),
    "name of no text": (
        lambda place: os.close(os.open(os.fsencode(place) + b"/new/\xff\xfe1", os.O_CREAT)),
        [],
        [],
    ),
    "held under no name": (
        lambda place: (place / "held/x").write_bytes(b"x"),
        ["held unknown"],
        ["held unknown"],
    ),
    "held and listed": (
        lambda place: os.link(first(place), place / "held" / f"1.{first(place).name}"),
        ["twice"],
        ["twice"],
    ),
    "journal": (
        lambda place: (place / "restante.journal").write_bytes(b"x\n\0\0\0"),
        ["journal damaged"],
        ["journal damaged"],
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_findings_before_and_after_a_reindex(state: str, mail: list[Entry], place: Path) -> None:
    make, before, after = STATES[state]
    make(place)
    assert faults(place) == before
    assert faults(place) == before
    for _ in range(2):
        run(MaildirStore(f"{place.parent}/%u").reindex("ann"))
        assert faults(place) == after
    texts = run(contents(MaildirStore(f"{place.parent}/%u"), "ann"))
    assert set(texts) >= set(TEXTS[state == "update unfinished" :])


def test_damaged_ids_are_found_and_left_to_the_operator(mail: list[Entry], place: Path) -> None:
    directory = opened(place)
    adopted.write(directory, {("1.a", 0): "x"})
    os.close(directory)
    octets = (place / "restante.ids").read_bytes()
    (place / "restante.ids").write_bytes(octets[:-1])
    assert faults(place)[:1] == ["ids damaged"]
    for _ in range(2):
        with pytest.raises(TemporaryFailure):
            run(MaildirStore(f"{place.parent}/%u").reindex("ann"))
    assert (place / "restante.ids").read_bytes() == octets[:-1]


def test_message_that_cannot_be_read_is_found(
    maildir: MaildirStore, mail: list[Entry], place: Path
) -> None:
    def broken_disk(call: tuple[str, ...]) -> None:
        if call[0] == "pread" and call[1].startswith(("ann/new", "ann/held")):
            raise OSError(5, "Input/output error")

    with watched(place.parent, broken_disk):
        assert faults(place) == ["unreadable"] * 4
        run(maildir.reindex("ann"))
    assert run(maildir.reindex("ann")) == 3
    assert faults(place) == []
    assert run(listing(maildir, "ann")) == mail


def test_folders_are_looked_at_too(maildir: MaildirStore, mail: list[Entry], place: Path) -> None:
    junk = place / ".Junk"
    put(junk, "new/1.j,S=1,W=9", b"x")
    (junk / "held").mkdir()
    messages, (fault,) = run(maildir.verify("ann"))
    assert messages == 4
    assert (fault.what, fault.name) == ("size differs", ".Junk/1.j")
    assert run(maildir.reindex("ann")) == 4
    assert run(maildir.verify("ann")) == (4, [])


def test_verify_does_not_disturb_a_session(maildir: MaildirStore, mail: list[Entry]) -> None:
    async def story() -> None:
        async with maildir.open("ann"):
            for call in (maildir.verify, maildir.reindex):
                with pytest.raises(MaildropInUse):
                    await call("ann")

    run(story())


def test_missing_maildrop_has_no_findings(maildir: MaildirStore, tmp_path: Path) -> None:
    assert run(maildir.verify("eve")) == (0, [])
    assert run(maildir.reindex("eve")) == 0
    assert not (tmp_path / "eve").exists()


def test_maildir_that_only_others_used_is_looked_at(maildir: MaildirStore, place: Path) -> None:
    put(place, "new/1.a,S=1,W=3", b"x")
    assert run(maildir.verify("ann")) == (1, [])
    assert run(maildir.reindex("ann")) == 1


def test_form_is_compared(mail: list[Entry], place: Path) -> None:
    put(place, "new/1.a", b".\r\n")
    stat = (place / "new/1.a").stat()
    file = File("new", "1.a", stat.st_ino)
    forge(place, Row("1.a", file, 3, Form.READY), *rows(place))
    assert faults(place) == ["form differs"]
