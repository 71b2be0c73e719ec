"""Many operations on one maildrop at once: no message is lost or duplicated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from restante.errors import MaildropInUse
from restante.store.maildir import MaildirStore

from ..store.helpers import deliver, run
from .oracle import found_in


async def at_most_one_session(store: MaildirStore, marks: int, pauses: int) -> None:
    """Remove every other message, from the first or the second, unless the login is refused."""
    with suppress(MaildropInUse):
        async with store.open("ann") as maildrop:
            for _ in range(pauses):
                await asyncio.sleep(0)
            assert not await maildrop.remove(list(maildrop.listing)[marks % 2 :: 2])


async def restore(store: MaildirStore, same: bool) -> None:
    await store.restore("ann", await store.held("ann"), same_unique_ids=same)


def test_hundred_simultaneous_deliveries(tmp_path: Path) -> None:
    store = MaildirStore(f"{tmp_path}/%u")
    texts = [b"%d\r\n" % number for number in range(100)]

    async def story() -> None:
        entries = await asyncio.gather(*(deliver(store, "ann", text) for text in texts))
        listed, _ = await found_in(store, "ann")
        unique_ids = [entry.unique_id for entry in entries]
        assert sorted(listed) == sorted(zip(texts, unique_ids, strict=True))
        assert len(set(unique_ids)) == 100

    run(story())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from("dsut"), min_size=2, max_size=14), st.integers(0, 9))
def test_simultaneous_sessions_deliveries_and_restores(operations: list[str], pauses: int) -> None:
    """Each message is listed or held exactly once, in any combination of operations."""
    with TemporaryDirectory() as place:
        store = MaildirStore(f"{place}/%u")
        texts = [b"%d\r\n" % number for number in range(len(operations) + 4)]

        async def story() -> None:
            for text in texts[:4]:
                await deliver(store, "ann", text)
            acts: list[Awaitable[object]] = []
            delivered = texts[:4]
            for number, each in enumerate(operations):
                if each == "d":
                    delivered.append(texts[4 + number])
                    acts.append(deliver(store, "ann", texts[4 + number]))
                elif each == "s":
                    acts.append(at_most_one_session(store, number, pauses))
                else:
                    acts.append(restore(store, each == "t"))
            await asyncio.gather(*acts)
            listed, held = await found_in(store, "ann")
            assert Counter([text for text, _ in listed] + held) == Counter(delivered)

        run(story())
