"""Measure the mail storage for the metrics, which requires a walk through all maildrops."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from ..errors import RestanteError
from ..maildrop import ServableStore
from ..series import cell

_MAILDROPS = cell("maildrops")
_HELD, _HELD_BYTES = cell("held_messages"), cell("held_bytes")
_FREE_BYTES, _SIZE_BYTES = cell("store_free_bytes"), cell("store_size_bytes")


async def measure(store: ServableStore, base: Path | None, counts: list[float]) -> None:
    """Measure the store, and write the results to ``counts`` (``series``).

    ``base`` is the directory of the maildrops, or None if the store has no directory.
    """
    if base is not None:
        with suppress(OSError):  # the directory is missing, which ``readiness`` reports
            usage = await asyncio.to_thread(os.statvfs, base)
            counts[_FREE_BYTES] = usage.f_bavail * usage.f_frsize
            counts[_SIZE_BYTES] = usage.f_blocks * usage.f_frsize
    maildrops = messages = octets = 0
    async for user in store.users():
        maildrops += 1
        with suppress(RestanteError):  # a maildrop that cannot be read is not included
            held = await store.held(user)
            messages += len(held)
            octets += sum(each.size for each in held)
    counts[_MAILDROPS], counts[_HELD], counts[_HELD_BYTES] = maildrops, messages, octets
