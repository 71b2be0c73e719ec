"""Calls in threads: a caller that is cancelled does not clean up under them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from restante.net import body
from restante.store import files
from restante.threads import in_thread

WAYS = [in_thread, files.in_thread]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_call_returns_or_raises(way: Callable[..., Coroutine[Any, Any, Any]]) -> None:
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
    """However often it is cancelled; an error of the call is not reported beside it."""

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
        reader = asyncio.create_task(body._read(0, 0, 6))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(2):
            reader.cancel()
            await asyncio.sleep(0)
        assert not reader.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(main())
