"""Calls in threads: a cancelled caller waits before it cleans up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from restante.server import retrieval
from restante.store import files
from restante.threads import Threads, complete, deadline, in_thread, to_thread

WAYS = [in_thread, files.in_thread]


@pytest.mark.parametrize("way", WAYS)
def test_call_returns_or_raises_like_the_function(
    way: Callable[..., Coroutine[Any, Any, Any]],
) -> None:
    async def main() -> None:
        assert await way(lambda first, *, second: (first, second), 1, second=2) == (1, 2)
        with pytest.raises(ZeroDivisionError):
            await way(lambda: 1 // 0)

    asyncio.run(main())


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_call_ends_before_a_cancelled_caller_goes_on(
    way: Callable[..., Coroutine[Any, Any, Any]], fails: bool, times: int
) -> None:
    """However often it is cancelled; an error of the call is then ignored."""

    async def main() -> None:
        complaints: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, what: complaints.append(what))
        begun, go, ended = threading.Event(), threading.Event(), threading.Event()

        def call() -> None:
            begun.set()
            go.wait(10)
            ended.set()
            if fails:
                raise OSError("x")

        caller = asyncio.create_task(way(call))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(times):
            caller.cancel()
            await asyncio.sleep(0)
        assert not caller.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended.is_set()
        del caller
        assert complaints == []

    asyncio.run(main())


def test_a_file_is_read_to_its_end_before_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def pread(file: int, count: int, offset: int) -> bytes:
        begun.set()
        go.wait(10)
        return b"octets"

    monkeypatch.setattr(os, "pread", pread)

    async def main() -> None:
        reader = asyncio.create_task(retrieval._read(0, 0, 6))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(2):
            reader.cancel()
            await asyncio.sleep(0)
        assert not reader.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(main())


def test_calls_run_in_a_forked_process_too() -> None:
    """The threads of the parent do not exist there."""
    text = """
import asyncio, os
from restante.threads import in_thread
asyncio.run(in_thread(os.getpid))
pid = os.fork()
if not pid:
    asyncio.run(in_thread(print, "child", flush=True))
    os._exit(0)
os.waitpid(pid, 0)
"""
    command = [sys.executable, "-W", "ignore", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "child\n", "")


@pytest.mark.parametrize("calls", [1, 2, 3, 7])
def test_at_most_that_many_calls_run_at_once_and_all_of_them_run(calls: int) -> None:
    async def main() -> None:
        threads, loop = Threads("test", 2), asyncio.get_running_loop()
        begun, go, names = threading.Semaphore(0), threading.Event(), list[str]()

        def call() -> None:
            names.append(threading.current_thread().name)
            begun.release()
            assert go.wait(10)

        ended = [loop.create_future() for _ in range(calls)]
        for each in ended:
            threads.start(call, each)
        for _ in range(min(calls, 2)):
            assert await asyncio.to_thread(begun.acquire, timeout=10)
        assert not begun.acquire(blocking=False)
        go.set()
        await asyncio.gather(*ended)
        assert names == ["test"] * calls

    asyncio.run(main())


def test_without_an_event_loop_calls_run_at_once() -> None:
    """In the thread of the caller; so a command that needs no network does not load asyncio."""

    async def main() -> list[threading.Thread]:
        async with deadline(0):  # passed
            ways = (in_thread, files.in_thread, to_thread, Threads("x", 1).run)
            return [await way(threading.current_thread) for way in ways]

    assert complete(main()) == [threading.current_thread()] * 4


@pytest.mark.parametrize("way", [in_thread, to_thread, Threads("x", 1).run])
def test_without_an_event_loop_an_error_is_raised(
    way: Callable[..., Coroutine[Any, Any, Any]],
) -> None:
    def fail() -> None:
        raise OSError("x")

    with pytest.raises(OSError, match="x"):
        complete(way(fail))


def test_without_an_event_loop_there_is_no_other_wait() -> None:
    ended = False

    async def main() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(0)
        finally:
            ended = True

    with pytest.raises(RuntimeError, match="without an event loop"):
        complete(main())
    assert ended
