"""Calls that block, run beside the event loop.

Limits: a bounded number at once, and the rest waits for its turn.  A call that never ends keeps its
place, but neither its caller, who has a deadline, nor the end of the program waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Aside:
    """Threads of one kind of work."""

    def __init__(self, name: str, most: int) -> None:
        """At most ``most`` calls run at once."""
        self._name = name
        self._places = asyncio.Semaphore(most)

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns, or raises."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            self._places.release()
            if ended.done():  # its caller has given up
                return
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(result)  # type: ignore[arg-type]  # without an error it is one

        def work() -> None:
            result, failed = None, None
            try:
                result = call()
            except BaseException as error:
                failed = error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, failed)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError:  # no thread is to be had
            self._places.release()
            raise
        return await ended
