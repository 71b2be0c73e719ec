"""Blocking calls run in a bounded number of threads; one that hangs delays only its caller."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from restante.threads import Threads


def test_run_returns_or_raises_like_the_call() -> None:
    def fail() -> None:
        raise OSError("x")

    async def main() -> None:
        threads = Threads("test", 1)
        assert await threads.run(lambda: 7) == 7
        with pytest.raises(OSError, match="x"):
            await threads.run(fail)
        assert await threads.run(threading.current_thread) is not threading.current_thread()

    asyncio.run(main())


def test_idle_thread_takes_the_next_call_and_later_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("restante.threads._IDLE_TIMEOUT", 0.05)

    async def main() -> None:
        threads = Threads("test", 5)
        used = [await threads.run(threading.current_thread) for _ in range(20)]
        assert len(set(used)) < 20  # a slow machine may let one go meanwhile
        for thread in used:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
        assert await threads.run(threading.current_thread) not in used
        both = threading.Barrier(2)
        await asyncio.gather(*(threads.run(lambda: both.wait(10)) for _ in range(2)))

    asyncio.run(main())


def test_calls_beyond_the_limit_wait() -> None:
    async def main() -> None:
        threads, begun, go = Threads("test", 2), threading.Semaphore(0), threading.Event()

        def call() -> None:
            begun.release()
            assert go.wait(10)

        calls = [asyncio.create_task(threads.run(call)) for _ in range(5)]
        for _ in range(2):
            assert await asyncio.to_thread(begun.acquire, timeout=10)
        assert not begun.acquire(blocking=False)
        go.set()
        await asyncio.gather(*calls)

    asyncio.run(main())


def test_running_call_keeps_its_thread_after_its_caller_gave_up() -> None:
    async def main() -> None:
        threads, go = Threads("test", 1), threading.Event()
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await threads.run(lambda: go.wait(10))
        second = asyncio.create_task(threads.run(lambda: go.is_set()))
        await asyncio.sleep(0)
        assert not second.done()
        go.set()
        assert await second
        assert complaints == []

    asyncio.run(main())


def test_cancelled_waiting_call_is_dropped() -> None:
    async def main() -> None:
        threads, go = Threads("test", 1), threading.Event()
        first = asyncio.create_task(threads.run(lambda: go.wait(10)))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await threads.run(lambda: None)
        go.set()
        await first
        assert await threads.run(lambda: 7) == 7

    asyncio.run(main())


def test_program_ends_without_waiting_for_a_hung_call() -> None:
    text = """
import asyncio, threading
from restante.threads import Threads
async def main():
    async with asyncio.timeout(0.01):
        await Threads("test", 1).run(threading.Event().wait)
try:
    asyncio.run(main())
except TimeoutError:
    print("over")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
