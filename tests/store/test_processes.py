"""Tests that need another process: locks, kills, and memory use."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from restante.errors import MaildropInUse
from restante.maildrop import View
from restante.store.maildir import MaildirStore

from .helpers import deliver, listing, remove, run

ROOT = Path(__file__).parents[2]

HOLD = """
import asyncio, sys
from restante.store.maildir import MaildirStore

async def hold():
    async with MaildirStore(sys.argv[1]).open("ann") as maildrop:
        print(len(maildrop.listing), flush=True)
        sys.stdin.read()

asyncio.run(hold())
"""

MEASURE = """
import asyncio, os, resource, sys
from restante.store.maildir import MaildirStore

async def pieces(count):
    for _ in range(count):
        yield b"x" * 1_000_000

async def story():
    store = MaildirStore(sys.argv[1])
    await store.deliver("ann", pieces(1))
    async with store.open("ann") as maildrop:
        async for piece in maildrop.read(maildrop.listing[0]):
            pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    entry = await store.deliver("ann", pieces(200))
    with open(sys.argv[2], "wb") as foreign:  # of unknown size, and one line
        foreign.truncate(200_000_000)
    async with store.open("ann") as maildrop:
        assert len(maildrop.listing) == 3
        for entry in maildrop.listing[-2:]:
            assert entry.size == 200_000_002
            size = 0
            async for piece in maildrop.read(entry):
                assert len(piece) <= 65_536
                size += len(piece)
            assert size == entry.size
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(story())
"""


@contextmanager
def another_process(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
@pytest.mark.rfc("P-035", "N-08")
def test_lock_applies_between_processes_and_ends_with_its_holder(
    maildir: MaildirStore, tmp_path: Path, end: signal.Signals | None
) -> None:
    entry = run(deliver(maildir, "ann", b"x"))
    lock = tmp_path / "ann" / "restante.lock"
    os.utime(lock, (0, 0))
    with another_process(HOLD, f"{tmp_path}/%u") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        os.utime(lock, (0, time.time() - 100))
        with pytest.raises(MaildropInUse) as refused:
            run(listing(maildir, "ann"))
        assert 100 <= refused.value.held_for < 110
        run(deliver(maildir, "ann", b"y"))
        if end:
            process.send_signal(end)
        else:
            process.stdin.close()
        process.wait(10)
    assert len(run(listing(maildir, "ann"))) == 2
    assert time.time() - lock.stat().st_mtime < 10
    assert run(remove(maildir, "ann", [entry])) == []


@pytest.mark.parametrize("change", ["removed", "replaced"])
@pytest.mark.parametrize("folder", ["INBOX", "Junk"])
def test_lock_still_applies_if_its_file_is_removed(
    maildir: MaildirStore, place: Path, folder: str, change: str
) -> None:
    """By `rm restante.*` or a restore.  The lock is free when the session has ended."""
    for each in ("cur", "new", "tmp"):
        (place / ".Junk" / each).mkdir(parents=True)
    lock = place / ("restante.lock" if folder == "INBOX" else ".Junk/restante.lock")
    view = View((folder,))

    async def story() -> None:
        for _ in range(2):
            async with maildir.open_view("ann", view):
                lock.unlink()
                if change == "replaced":
                    lock.touch()
                for store in (maildir, MaildirStore(f"{place.parent}/%u")):
                    for _ in range(2):
                        with pytest.raises(MaildropInUse):
                            async with store.open_view("ann", view):
                                pass
        async with MaildirStore(f"{place.parent}/%u").open_view("ann", view):
            pass

    run(story())


def test_session_of_an_older_version_is_detected(maildir: MaildirStore, place: Path) -> None:
    """An older version locks only the lock file."""
    run(deliver(maildir, "ann", b"x"))
    with (place / "restante.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MaildropInUse):
            run(listing(maildir, "ann"))
    assert len(run(listing(maildir, "ann"))) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_message(tmp_path: Path) -> None:
    """A line of 200 MB is delivered, measured and read in less than 8 MiB."""
    foreign = tmp_path / "ann" / "new" / "9999999999.sparse"
    with another_process(MEASURE, f"{tmp_path}/%u", str(foreign)) as process:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    assert int(output) < 8 * 1024  # KiB
