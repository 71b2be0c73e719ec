"""Many deliveries share one fsync of their directory, which must begin after each of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock, Semaphore

import pytest

from restante import syncing
from restante.errors import TemporaryFailure
from restante.store import files
from restante.store.maildir import MaildirStore

from .helpers import contents, deliver, names, run

WAIT = 20  # seconds after which a thread counts as hung


WAITERS = Semaphore(0)
"""Released once for each thread that has waited since the test began."""


class ReportsWaiting(Event):
    """Reports each thread that waits for it."""

    def wait(self, timeout: float | None = None) -> bool:
        WAITERS.release()
        return super().wait(timeout)


class SlowOs:
    """``os`` with an fsync of directories that a test delays."""

    def __init__(self) -> None:
        self.begun: list[Event] = [Event() for _ in range(9)]
        self.may_end: list[Event] = [Event() for _ in range(9)]
        self.count = 0
        self.error: OSError | None = None
        self._lock = Lock()

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fsync(self, file: int) -> None:
        with self._lock:
            number, self.count = self.count, self.count + 1
        self.begun[number].set()
        assert self.may_end[number].wait(WAIT)
        if self.error is not None:
            raise self.error


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowOs:
    stand_in = SlowOs()
    monkeypatch.setattr(files, "Event", ReportsWaiting)
    while WAITERS.acquire(blocking=False):
        pass
    monkeypatch.setattr(files, "os", stand_in)
    monkeypatch.setattr(syncing, "os", stand_in)
    return stand_in


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def sync(tmp_path: Path, pool: ThreadPoolExecutor) -> Iterator[Callable[[], Future[None]]]:
    opened = os.open(tmp_path, os.O_RDONLY)
    yield lambda: pool.submit(files.sync_together, opened)
    pool.shutdown()
    os.close(opened)


def joined(sync: Callable[[], Future[None]], count: int) -> list[Future[None]]:
    """Run ``count`` threads that wait for a round that has not begun."""
    found = [sync() for _ in range(count)]
    for _ in range(count):
        assert WAITERS.acquire(timeout=WAIT)
    return found


def test_a_round_that_has_begun_is_not_joined(
    slow: SlowOs, sync: Callable[[], Future[None]]
) -> None:
    first = sync()
    assert slow.begun[0].wait(WAIT)
    later = joined(sync, 3)
    slow.may_end[0].set()
    first.result(WAIT)
    assert slow.begun[1].wait(WAIT)
    assert not any(each.done() for each in later), "their names may not be on the disk"
    slow.may_end[1].set()
    for each in later:
        each.result(WAIT)


def test_all_waiting_threads_share_the_next_round(
    slow: SlowOs, sync: Callable[[], Future[None]]
) -> None:
    for event in slow.may_end[1:]:
        event.set()
    waiting = [sync()]
    assert slow.begun[0].wait(WAIT)
    waiting += joined(sync, 6)
    slow.may_end[0].set()
    for each in waiting:
        each.result(WAIT)
    assert slow.count == 2
    assert not files._rounds
    assert not files._running


def test_error_is_raised_in_all_waiting_threads(
    slow: SlowOs, sync: Callable[[], Future[None]]
) -> None:
    first = sync()
    assert slow.begun[0].wait(WAIT)
    later = joined(sync, 3)
    slow.error = OSError(errno.EIO, "Input/output error")
    for event in slow.may_end:
        event.set()
    for each in [first, *later]:
        with pytest.raises(OSError, match="Input/output error"):
            each.result(WAIT)
    slow.error = None
    sync().result(WAIT)


def test_directories_do_not_wait_for_each_other(
    slow: SlowOs, sync: Callable[[], Future[None]], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    opened = os.open(tmp_path / "other", os.O_RDONLY)
    first = sync()
    assert slow.begun[0].wait(WAIT)
    second = pool.submit(files.sync_together, opened)
    assert slow.begun[1].wait(WAIT)
    slow.may_end[1].set()
    second.result(WAIT)
    assert not first.done()
    slow.may_end[0].set()
    first.result(WAIT)
    os.close(opened)


def test_delivery_fails_if_its_directory_cannot_be_synced(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(deliver(maildir, "ann", b"first\r\n"))

    def broken(directory: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "sync_together", broken)
    with pytest.raises(TemporaryFailure):
        run(deliver(maildir, "ann", b"second\r\n"))
    assert names(place / "tmp") == []
    assert run(contents(maildir, "ann")) == [b"first\r\n"]
