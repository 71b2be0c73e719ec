"""Calls that block run beside the event loop, and hold nothing up when they hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from restante.auth.aside import Aside


def test_what_a_call_returns_or_raises() -> None:
    def fail() -> None:
        raise OSError("x")

    async def main() -> None:
        aside = Aside("test", 1)
        assert await aside.run(lambda: 7) == 7
        with pytest.raises(OSError, match="x"):
            await aside.run(fail)
        assert await aside.run(threading.current_thread) is not threading.current_thread()

    asyncio.run(main())


def test_a_thread_serves_one_call_after_the_other_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("restante.threads._PATIENCE", 0.05)

    async def main() -> None:
        aside = Aside("test", 5)
        threads = [await aside.run(threading.current_thread) for _ in range(20)]
        assert len(set(threads)) < 20  # a slow machine may let one go meanwhile
        for thread in threads:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
        assert await aside.run(threading.current_thread) not in threads
        both = threading.Barrier(2)
        await asyncio.gather(*(aside.run(lambda: both.wait(10)) for _ in range(2)))

    asyncio.run(main())


def test_the_rest_waits_for_its_turn() -> None:
    async def main() -> None:
        aside, begun, go = Aside("test", 2), threading.Semaphore(0), threading.Event()

        def call() -> None:
            begun.release()
            assert go.wait(10)

        calls = [asyncio.create_task(aside.run(call)) for _ in range(5)]
        for _ in range(2):
            assert await asyncio.to_thread(begun.acquire, timeout=10)
        assert not begun.acquire(blocking=False)
        go.set()
        await asyncio.gather(*calls)

    asyncio.run(main())


def test_a_call_keeps_its_place_though_its_caller_has_given_up() -> None:
    async def main() -> None:
        aside, go = Aside("test", 1), threading.Event()
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await aside.run(lambda: go.wait(10))
        second = asyncio.create_task(aside.run(lambda: go.is_set()))
        await asyncio.sleep(0)
        assert not second.done()
        go.set()
        assert await second
        assert complaints == []

    asyncio.run(main())


def test_a_caller_that_gives_up_in_the_queue_takes_no_place() -> None:
    async def main() -> None:
        aside, go = Aside("test", 1), threading.Event()
        first = asyncio.create_task(aside.run(lambda: go.wait(10)))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await aside.run(lambda: None)
        go.set()
        await first
        assert await aside.run(lambda: 7) == 7

    asyncio.run(main())


def test_the_end_of_the_program_does_not_wait() -> None:
    text = """
import asyncio, threading
from restante.auth.aside import Aside
async def main():
    async with asyncio.timeout(0.01):
        await Aside("test", 1).run(threading.Event().wait)
try:
    asyncio.run(main())
except TimeoutError:
    print("over")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
