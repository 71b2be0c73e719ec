"""Run blocking calls in threads, so that the event loop does not wait.

A cancelled caller of ``in_thread`` closes files and connections and releases locks.  This must not
happen while the thread uses them, so the cancellation waits for the call.

Without an event loop, calls run directly in the caller's thread, and ``complete`` runs a coroutine
that waits only for such calls.  Commands that need neither network nor threads therefore do not
import ``asyncio``, which would make ``restante deliver`` take 50 % longer.

Limits: a bounded number of calls run at the same time; others wait for a free thread.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio

P = ParamSpec("P")
T = TypeVar("T")

# Maximum number of simultaneous calls for each event loop, the upper limit of ThreadPoolExecutor.
# Disks can reorder this many requests.
_MAX_CALLS = 32
_IDLE_TIMEOUT = 10.0  # seconds that an idle thread waits; starting a thread takes about 100 µs


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    if (imported := sys.modules.get("asyncio")) is not None:
        with suppress(RuntimeError):
            loop: asyncio.AbstractEventLoop = imported.get_running_loop()
            return loop
    return None


def deadline(end: float) -> AbstractAsyncContextManager[object]:
    """Return ``asyncio.timeout_at(end)``; without an event loop there is no deadline."""
    return nullcontext() if running_loop() is None else sys.modules["asyncio"].timeout_at(end)


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine without an event loop.  It must wait only for calls to this module.

    Raises:
        RuntimeError: the coroutine waits for something else.
    """
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()
    raise RuntimeError("a coroutine that runs without an event loop tried to wait")


async def to_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``call`` like ``asyncio.to_thread``: a cancelled caller does not wait for the call."""
    if running_loop() is None:
        return call(*args, **kwargs)
    from asyncio import to_thread

    return await to_thread(call, *args, **kwargs)


class Threads:
    """Threads for one kind of work, started as they are needed.

    The program does not wait for these threads when it ends.  ``ThreadPoolExecutor`` would wait,
    and each call would take three times as long.
    """

    def __init__(self, name: str, max_threads: int) -> None:
        """``max_threads`` is the maximum number of calls that run at the same time."""
        self._name = name
        self._max_threads = max_threads
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = SimpleQueue()
        self._running = 0  # threads
        self._idle = 0  # idle threads minus waiting calls
        self._lock = threading.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` in a thread, and return its result or raise its exception.

        A cancelled caller does not wait for a call that has begun, so a call that hangs blocks
        nothing but its own thread.  A call that has not begun is dropped.
        """
        if (loop := running_loop()) is None:
            return call()
        future: asyncio.Future[T] = loop.create_future()
        self.start(call, future)
        return await future

    def start(self, call: Callable[[], T], future: asyncio.Future[T]) -> None:
        """Run ``call``, and set its result or exception on ``future`` in the event loop.

        A call is dropped if ``future`` was cancelled before a thread was free.

        Raises:
            RuntimeError: no thread can be started.
        """
        with self._lock:
            self._idle -= 1
            needs_thread = self._idle < 0 and self._running < self._max_threads
            if needs_thread:
                self._idle += 1
                self._running += 1
        if needs_thread:
            try:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            except RuntimeError:
                with self._lock:
                    self._running -= 1
                raise
        self._calls.put((call, future))

    def _serve(self) -> None:
        while True:
            try:
                self._run(*self._calls.get(timeout=_IDLE_TIMEOUT))  # keeps no reference to the call
            except Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        self._running -= 1
                        return
                # Otherwise a call for this thread will arrive.

    def _run(self, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        result = failure = None
        try:
            if not future.done():
                result = call()
        except BaseException as error:
            failure = error
        with self._lock:  # before the caller gets the result and calls again
            self._idle += 1
        with suppress(RuntimeError):  # the loop has ended
            future.get_loop().call_soon_threadsafe(_settle, future, result, failure)
        del failure  # which refers to this frame


def _settle(future: asyncio.Future[Any], result: object, failure: BaseException | None) -> None:
    if future.done():  # its caller was cancelled
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)


@cache
def _unstoppable() -> Callable[..., asyncio.Future[Any]]:
    """Return a class of futures that ignore cancellation.

    If a task awaits such a future, a cancellation of the task takes effect when the future is done.
    """
    from asyncio import Future

    class Unstoppable(Future[Any]):
        def cancel(self, msg: object = None) -> Literal[False]:
            return False

    return Unstoppable


_disk: WeakKeyDictionary[asyncio.AbstractEventLoop, Threads] = WeakKeyDictionary()
"""By event loop, because neither threads nor loops survive a fork."""


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``call`` in a thread.  A cancellation takes effect when the call has ended."""
    if (loop := running_loop()) is None:
        return call(*args, **kwargs)
    threads = _disk.get(loop)
    if threads is None:
        threads = _disk[loop] = Threads("disk", _MAX_CALLS)
    future: asyncio.Future[T] = _unstoppable()(loop=loop)
    threads.start(partial(call, *args, **kwargs), future)
    return await future


async def wait_until_done(work: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until the work is done, even if the caller is cancelled while it waits.

    Returns the first cancellation, which the caller must raise, or None.
    """
    from asyncio import CancelledError, wait

    cancelled = None
    while not work.done():
        try:
            await wait([work])
        except CancelledError as error:
            cancelled = cancelled or error
    return cancelled
