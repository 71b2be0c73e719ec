"""Calls that block, run in a thread that is waited for whatever becomes of the caller.

A caller that is cancelled goes on to close files, free locks and end connections.  That must not
happen while the thread still uses them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``call`` returns, or raises.  A cancellation takes effect when the call has ended."""
    work = asyncio.get_running_loop().run_in_executor(None, partial(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)  # cheaper than ``finished``, and seldom cancelled
    except asyncio.CancelledError:
        await finished(work)
        raise


async def finished(work: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until the work is done, however often the caller is cancelled meanwhile.  Returns the
    first cancellation, which the caller must raise, or None."""
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    return cancelled
