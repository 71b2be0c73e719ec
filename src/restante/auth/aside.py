"""Calls that block, run beside the event loop.

Limits: a bounded number at once, and the rest waits for its turn.  A call that never ends keeps its
thread, but neither its caller, who has a deadline, nor the end of the program waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = 10.0  # seconds that a thread waits for another call; to start one costs some 100 µs


class Aside:
    """Threads of one kind of work."""

    def __init__(self, name: str, most: int) -> None:
        """At most ``most`` calls run at once."""
        self._name = name
        self._places = asyncio.Semaphore(most)
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = 0  # threads that wait, less the calls that wait for them
        self._lock = threading.Lock()

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
            with self._lock:  # before the caller hears of it, who may come again at once
                self._idle += 1
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, failed)

        with self._lock:
            is_waited_for, self._idle = self._idle > 0, max(self._idle - 1, 0)
        try:
            if not is_waited_for:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        except RuntimeError:  # no thread is to be had
            self._places.release()
            raise
        self._calls.put(work)
        return await ended

    def _serve(self) -> None:
        while True:
            try:
                work = self._calls.get(timeout=_PATIENCE)
            except Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return
                continue  # a call for this thread is on its way
            work()
            del work  # what it holds goes now, not when the next call comes
