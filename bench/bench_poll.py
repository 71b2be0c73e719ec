"""What does a poll cost that finds nothing new: log in, STAT, UIDL, QUIT, seen by the store?

Worst case: 100,000 messages.  ``warm`` is a poll after another of the same process, ``disk``
the first one of a process, ``changed`` the first one after a delivery.
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


async def change(store: MaildirStore, user: str, place: Path) -> float:
    (place / "new" / f"{time.time_ns()}.b,S=4000,W=4100").write_bytes(b"x")
    return await poll(store, user)


def fill(place: Path, count: int) -> None:
    for name in ("new", "cur", "tmp"):
        (place / name).mkdir(parents=True)
    for number in range(count):
        name = f"1764000000.M{number:06}P12345R0123456789abcdef.mail,S=4000,W=4100:2,S"
        os.close(os.open(place / "cur" / name, os.O_CREAT, 0o600))


def tell(name: str, count: int, times: list[float]) -> None:
    found = {"bench": f"poll_{name}", "messages": count, "unit": "ms", "runs": len(times)}
    figures = {"median": median(times), "min": min(times), "max": max(times)}
    print(json.dumps({**found, **{key: round(value, 3) for key, value in figures.items()}}))


async def main(folder: str) -> None:
    for count in (10, 1_000, 100_000):
        user, place = f"u{count}", Path(folder, f"u{count}")
        fill(place, count)
        store = MaildirStore(f"{folder}/%u")
        tell("first", count, [await poll(store, user)])
        await asyncio.sleep(0.05)  # the stamps must be older than the next session
        await poll(store, user)
        await poll(store, user)
        tell("warm", count, [await poll(store, user) for _ in range(RUNS)])
        fresh = [await poll(MaildirStore(f"{folder}/%u"), user) for _ in range(RUNS)]
        tell("disk", count, fresh)
        tell("changed", count, [await change(store, user, place) for _ in range(5)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
