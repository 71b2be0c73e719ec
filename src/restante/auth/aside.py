"""Calls that block, run beside the event loop.

Limits: a bounded number at once, and the rest waits for its turn.  A call that never ends keeps its
thread, but neither its caller, who has a deadline, nor the end of the program waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ..threads import Threads

T = TypeVar("T")


class Aside:
    """Threads of one kind of work."""

    def __init__(self, name: str, most: int) -> None:
        """At most ``most`` calls run at once."""
        self._threads = Threads(name, most)

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns, or raises."""
        ended: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._threads.start(call, ended)
        return await ended
