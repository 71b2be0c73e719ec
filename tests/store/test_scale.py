"""What a store does with many messages costs no more for each of them than with few.

A QUIT that removed 10,000 messages once took seconds, because a set was made again for each of
them.  So the processor time for each message is compared between a small maildrop and one that has
``MANY`` times as many: what grows with the square takes ``MANY`` times as long for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from restante.store.maildir import MaildirStore

from .helpers import run

FEW, MANY = 500, 20
MOST = 4.0  # times as long for each message; 1 was measured
MEMORY = Path("/dev/shm")  # a disk's own work would be counted as well


async def list_all(store: MaildirStore) -> None:
    async with store.open("ann") as maildrop:
        assert list(maildrop.listing)


async def read_all(store: MaildirStore) -> None:
    async with store.open("ann") as maildrop:
        for entry in maildrop.listing:
            assert [piece async for piece in maildrop.read(entry)]


async def remove_all(store: MaildirStore) -> None:
    async with store.open("ann") as maildrop:
        assert not await maildrop.remove(list(maildrop.listing))


async def restore_all(store: MaildirStore) -> None:
    held = await store.held("ann")
    assert await store.restore("ann", held) == len(held)


async def purge_all(store: MaildirStore) -> None:
    assert await store.purge("ann", time.time() + 10**6)


async def verify_all(store: MaildirStore) -> None:
    assert (await store.verify("ann"))[1] == []


async def reindex_all(store: MaildirStore) -> None:
    assert await store.reindex("ann")


async def expire_all(store: MaildirStore) -> None:
    now = time.time()
    await store.expire("ann", 1, until=now, now=now)


Step = Callable[[MaildirStore], Coroutine[Any, Any, None]]
STEPS: tuple[Step, ...] = (
    list_all,
    list_all,
    read_all,
    verify_all,
    reindex_all,
    expire_all,
    remove_all,
    restore_all,
    list_all,
    remove_all,
    purge_all,
)


def costs(place: Path, count: int, quota: int) -> list[float]:
    """Return the processor time of each step for each message, in seconds."""
    maildir = place / "ann"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    for number in range(count):
        (maildir / "cur" / f"{1_700_000_000 + number}.M{number}.host:2,S").write_bytes(
            b"a: b\n\nc\n"
        )
    store = MaildirStore(f"{place}/%u", hold=86_400.0, limit=lambda _: quota)
    spent = []
    for step in STEPS:
        before = time.process_time()
        run(step(store))
        spent.append((time.process_time() - before) / count)
    return spent


@pytest.mark.slow
@pytest.mark.parametrize("quota", [0, 10**9])
def test_cost_of_a_message_does_not_grow_with_their_number(tmp_path: Path, quota: int) -> None:
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        place = Path(folder)
        few = [costs(place / f"few{at}", FEW, quota) for at in range(3)]
        many = costs(place / "many", FEW * MANY, quota)
    for step, small, large in zip(STEPS, map(min, zip(*few, strict=True)), many, strict=True):
        assert large < MOST * small, step.__name__
