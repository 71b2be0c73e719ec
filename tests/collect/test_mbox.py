"""An mbox that other programs read and change: each message is complete and there once."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import pytest

from restante.collect.destinations import dotlock, mbox
from restante.collect.destinations.dotlock import Dotlock
from restante.collect.destinations.mbox import Mbox
from restante.errors import TemporaryFailure

from .test_destinations import leftovers, messages_of, put

FOREIGN = b"From eve Thu Jan  1 00:00:00 1970\nSubject: theirs\n\ntheirs\n\n"
ONE, TWO = b"Subject: one\r\n\r\none\r\n", b"Subject: two\r\n\r\ntwo\r\n"
LONG = ONE + b"x" * 500 + b"\r\n"
MAKER = f"restante on {socket.gethostname()}"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mbox, "_LOCK_TIMEOUT", 0.2)
    return tmp_path / "mail"


def theirs() -> bytes:
    return FOREIGN.partition(b"\n")[2][:-1].replace(b"\n", b"\r\n")


def rewritten(path: Path) -> None:
    """Write a new file and rename it, as some mail readers do."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() if path.exists() else b"")
    other.rename(path)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def removed(path: Path) -> None:
    path.unlink()


def appended_to(path: Path) -> None:
    """Append to the file without any lock."""
    with path.open("ab") as file:
        file.write(FOREIGN)


def untouched(path: Path) -> None:
    """Change nothing."""


CHANGES = [rewritten, emptied, removed, appended_to, untouched]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["between", "while it comes", "after the open"])
def test_changes_by_other_programs_are_kept(
    change: Callable[[Path], None], when: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete message is appended to the file that has the path at that time."""
    with closing(Mbox(path)) as box:
        put(box, "one", ONE)
        if when == "between":
            change(path)
        box.begin("two")
        box.write(TWO)
        if when == "while it comes":
            change(path)
        if when == "after the open":
            is_at = mbox._is_at

            def once(where: Path, file: int) -> bool:
                monkeypatch.setattr(mbox, "_is_at", is_at)
                change(path)
                return is_at(where, file)

            monkeypatch.setattr(mbox, "_is_at", once)
        box.commit()
    lost = change in (emptied, removed)
    more = [theirs()] if change is appended_to else []
    assert messages_of(path.read_bytes()) == [*([] if lost else [ONE]), *more, TWO]
    assert [each.name for each in path.parent.iterdir()] == ["mail"]


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("follows", [b"", FOREIGN])
def test_failed_append_removes_only_its_own_octets(
    pieces: int, follows: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none if another program has appended more."""
    path.write_bytes(FOREIGN)
    monkeypatch.setattr(mbox, "_PIECE", 20)
    append, left = mbox._append, pieces

    def failing(file: int, octets: bytes) -> None:
        nonlocal left
        if not left:
            with path.open("ab") as other:
                other.write(follows)
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        append(file, octets)

    with closing(Mbox(path)) as box:
        monkeypatch.setattr(mbox, "_append", failing)
        with pytest.raises(OSError, match="No space"):
            put(box, "one", LONG)
        monkeypatch.setattr(mbox, "_append", append)
        octets = path.read_bytes()
        assert octets.startswith(FOREIGN)
        assert octets.count(FOREIGN) == (2 if follows else 1)
        assert follows or octets == FOREIGN
        put(box, "one", LONG)
    assert messages_of(path.read_bytes())[-1] == LONG
    assert leftovers(path.parent) == []


def test_a_message_that_may_not_be_durable_is_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completely, because the next attempt would store it twice."""
    with closing(Mbox(path)) as box:
        fsync = os.fsync

        def failing(file: int) -> None:
            if os.readlink(f"/proc/self/fd/{file}") == str(path):
                monkeypatch.setattr(os, "fsync", fsync)
                raise OSError(errno.EIO, "Input/output error")
            fsync(file)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output"):
            put(box, "one", ONE)
        put(box, "one", ONE)
    assert messages_of(path.read_bytes()) == [ONE]


# Locks.


def locked_by_fcntl(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(file, fcntl.LOCK_EX)
    return file


def locked_by_flock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def locked_by_file(path: Path) -> int:
    path.with_name("mail.lock").write_text("1\n")
    return -1


@contextmanager
def another_process(work: Callable[[Path], object], path: Path) -> Iterator[None]:
    """Run a function in another process, which stays alive."""
    context = get_context("fork")
    done, end = context.Event(), context.Event()

    def run() -> None:
        _ = work(path)
        done.set()
        end.wait()

    process = context.Process(target=run)
    process.start()
    try:
        assert done.wait(20)
        yield
    finally:
        end.set()
        process.join(20)


@pytest.mark.parametrize("lock", [locked_by_fcntl, locked_by_flock, locked_by_file])
def test_no_lock_of_another_program_is_ignored(lock: Callable[[Path], int], path: Path) -> None:
    with closing(Mbox(path)) as box:
        with another_process(lock, path):
            box.begin("one")
            box.write(ONE)
            with pytest.raises(TemporaryFailure, match="locked by another program"):
                box.commit()
            box.abort()
            assert path.read_bytes() == b""
        path.with_name("mail.lock").unlink(missing_ok=True)
        put(box, "one", ONE)
    assert messages_of(path.read_bytes()) == [ONE]


@pytest.mark.parametrize("lock", [locked_by_fcntl, locked_by_flock])
def test_the_file_is_free_while_a_message_comes(lock: Callable[[Path], int], path: Path) -> None:
    """A mail reader can write its flags back however slow the mail server is."""
    with closing(Mbox(path)) as box:
        box.begin("one")
        box.write(ONE)
        assert not path.with_name("mail.lock").exists()
        with another_process(lambda path: os.close(lock(path)), path):
            box.commit()
        box.abort()
    assert messages_of(path.read_bytes()) == [ONE]


def locks_seen_by_another_process(path: Path) -> list[str]:
    """Return the names of the locks that are held."""

    def look(path: Path) -> None:
        found = ["file"] if path.with_name("mail.lock").exists() else []
        for name, lock in (("fcntl", fcntl.lockf), ("flock", fcntl.flock)):
            own = os.open(path, os.O_RDWR)
            try:
                lock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(name)
        os.write(write, " ".join([*found, "end"]).encode())

    read, write = os.pipe()
    with another_process(look, path):
        seen = os.read(read, 100).decode().split()
    os.close(read)
    os.close(write)
    return seen[:-1]


def test_all_locks_are_held_while_a_message_is_appended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if another account of this process uses the same file: fcntl releases all locks of a
    process when one of its threads closes the file."""
    append, seen = mbox._append, []
    threads: list[Thread] = []

    def watched(file: int, octets: bytes) -> None:
        if not threads:
            threads.append(Thread(target=other))
            threads[0].start()
            threads[0].join(0.5)
            seen.append(locks_seen_by_another_process(path))
        append(file, octets)

    def other() -> None:
        with closing(Mbox(path)) as box:
            put(box, "two", TWO)

    with closing(Mbox(path)) as box:
        monkeypatch.setattr(mbox, "_append", watched)
        put(box, "one", ONE)
    threads[0].join(20)
    assert seen == [["file", "fcntl", "flock"]]
    assert messages_of(path.read_bytes()) == [ONE, TWO]


def test_two_accounts_of_one_process_share_an_mbox(path: Path) -> None:
    with closing(Mbox(path)) as first, closing(Mbox(path)) as second:
        for box, word in ((first, ONE), (second, TWO)):
            box.begin("any")
            box.write(word[:7])
        first.write(ONE[7:])
        second.write(TWO[7:])
        second.commit()
        first.commit()
    assert messages_of(path.read_bytes()) == [TWO, ONE]


def many(path: Path) -> None:
    with closing(Mbox(path)) as box:
        for at in range(20):
            put(box, str(at), ONE if at % 2 else TWO)


@pytest.mark.slow
def test_many_processes_share_an_mbox(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbox, "_LOCK_TIMEOUT", 60.0)
    context = get_context("fork")
    processes = [context.Process(target=many, args=(path,)) for _ in range(4)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
    assert [each.exitcode for each in processes] == [0] * 4
    found = messages_of(path.read_bytes())
    assert len(found) == 80
    assert set(found) == {ONE, TWO}


# The lock file.


@pytest.mark.parametrize(
    ("content", "age", "is_broken"),
    [
        ("", 0, False),
        ("0", 0, False),
        ("1\n", 0, False),
        ("999999999\n", 0, False),  # may be alive on another machine
        ("not a number\n", 0, False),
        ("1\nMAKER\n", 0, False),
        ("999999999\nMAKER\n", 0, True),
        ("999999999\nMAKER 2\n", 0, False),
        ("PID\nMAKER\n", 0, True),  # of an earlier run, for example in a container
        ("", 299, False),
        ("", 301, True),
        ("1\n", 301, True),
        ("", -10_000, False),
    ],
)
def test_a_lock_that_was_left_behind_is_broken(
    content: str, age: float, is_broken: bool, path: Path
) -> None:
    lock = path.with_name("mail.lock")
    content = content.replace("PID", str(os.getpid())).replace("MAKER", MAKER)
    lock.write_text(content)
    os.utime(lock, (time.time() - age, time.time() - age))
    ours = Dotlock(path)
    assert ours.take() == is_broken
    if is_broken:
        assert lock.read_text() == f"{os.getpid()}\n{MAKER}\n"
        ours.release()
        assert not lock.exists()
    else:
        ours.release()
        assert lock.read_text() == content
    assert leftovers(path.parent) == []


def test_a_fresh_lock_is_not_broken_in_place_of_an_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may break the old lock first, and take the lock."""
    lock = path.with_name("mail.lock")
    lock.write_text("1\n")
    os.utime(lock, (1, 1))
    ours = Dotlock(path)
    rename = Path.rename

    def late(source: Path, target: Path) -> Path:
        lock.unlink()
        lock.write_text("2\n")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", late)
    assert not ours.take()
    assert lock.read_text() == "2\n"
    assert leftovers(path.parent) == []


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links(
    error: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(error, "no")

    monkeypatch.setattr(os, "link", refused)
    first, second = Dotlock(path), Dotlock(path.with_name("mail"))
    assert first.take()
    monkeypatch.setattr(second, "_owner_has_ended", lambda: False)
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


def test_a_lock_that_is_held_for_long_is_touched(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Dotlock(path)
    assert ours.take()
    lock = path.with_name("mail.lock")
    os.utime(lock, (1, 1))
    ours.touch()
    assert lock.stat().st_mtime == 1
    monkeypatch.setattr(dotlock, "_TOUCH", 0.0)
    ours.touch()
    assert lock.stat().st_mtime > 1


def test_leftovers_of_killed_runs_are_removed(path: Path) -> None:
    old, young = path.with_name(".mail.0.part"), path.with_name(".mail.1.part")
    other = path.with_name(".mail2.0.part")
    for each in (old, young, other):
        each.touch()
    for each in (old, other):
        os.utime(each, (1, 1))
    Mbox(path).close()
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
