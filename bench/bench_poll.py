"""What does a poll cost that finds nothing new: log in, STAT, UIDL, QUIT, seen by the store?

Worst case: 100,000 messages.  ``warm`` is a poll after another of the same process, ``disk``
the first one of a process; ``delivered`` the first one after a delivery and ``again`` the one
after that, ``removed`` the first after the newest message was removed by another program, and
``oldest`` after the oldest was.  Messages lie in cur/, or in new/ as where only POP3 is used.
``update`` is a session that removes the newest, from its listing on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from restante.maildrop import Rendered
from restante.store.maildir import MaildirStore

RUNS = 15


async def poll(store: MaildirStore, user: str) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    async with store.open(user) as maildrop:
        assert isinstance(maildrop.listing, Rendered)
        assert maildrop.listing.octets
        assert maildrop.listing.unique_id_listing()
    return (time.perf_counter() - begin) * 1000


async def delivered(store: MaildirStore, user: str, place: Path) -> float:
    (place / "new" / f"{time.time_ns()}.b,S=4000,W=4100").write_bytes(b"x")
    return await poll(store, user)


async def again(store: MaildirStore, user: str, place: Path) -> float:
    await asyncio.sleep(0.02)
    return await poll(store, user)


async def removed(store: MaildirStore, user: str, place: Path, at: int = -1) -> float:
    async with store.open(user) as maildrop:
        unique_id = maildrop.listing[at].unique_id
    unlink(place, unique_id)
    return await poll(store, user)


def unlink(place: Path, unique_id: str) -> None:
    next(place.glob(f"???/{unique_id}*")).unlink()


async def oldest(store: MaildirStore, user: str, place: Path) -> float:
    return await removed(store, user, place, 0)


async def update(store: MaildirStore, user: str, place: Path) -> float:
    async with store.open(user) as maildrop:
        begin = time.perf_counter()
        await maildrop.remove([maildrop.listing[-1]])
        return (time.perf_counter() - begin) * 1000


def fill(place: Path, count: int, folder: str) -> None:
    for name in ("new", "cur", "tmp"):
        (place / name).mkdir(parents=True)
    flags = ":2,S" if folder == "cur" else ""
    for number in range(count):
        name = f"1764000000.M{number:06}P12345R0123456789abcdef.mail,S=4000,W=4100{flags}"
        os.close(os.open(place / folder / name, os.O_CREAT, 0o600))


def report(name: str, count: int, times: list[float]) -> None:
    found = {"bench": f"poll_{name}", "messages": count, "unit": "ms", "runs": len(times)}
    figures = {"median": median(times), "min": min(times), "max": max(times)}
    print(json.dumps({**found, **{key: round(value, 3) for key, value in figures.items()}}))


async def main(base: str) -> None:
    for count, folder in ((10, "cur"), (1_000, "cur"), (100_000, "cur"), (100_000, "new")):
        user, place = f"{folder}{count}", Path(base, f"{folder}{count}")
        fill(place, count, folder)
        store = MaildirStore(f"{base}/%u")
        report(f"first_{folder}", count, [await poll(store, user)])
        await asyncio.sleep(0.05)  # the stamps must be older than the next session
        await poll(store, user)
        await poll(store, user)
        report(f"warm_{folder}", count, [await poll(store, user) for _ in range(RUNS)])
        fresh = [await poll(MaildirStore(f"{base}/%u"), user) for _ in range(RUNS)]
        report(f"disk_{folder}", count, fresh)
        for each in (delivered, again, removed, oldest, update):
            times = [await each(store, user, place) for _ in range(5)]
            report(f"{each.__name__}_{folder}", count, times)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
