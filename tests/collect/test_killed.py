"""kill -9 before and after every step of a collector: run again, and all is there exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from restante.collect.collector import Account, Outcome, collect
from restante.collect.destinations import open_destination
from restante.collect.ledger import Ledger
from restante.collect.plan import Policy
from restante.errors import LoginFailed
from restante.net.client import Client
from restante.store.maildir import MaildirStore

from ..support import once, serving, sizes
from .shelf import account

WORDS = ("one", "two", "three")
STEPS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "rename"),
    (os, "unlink"),
    (Ledger, "tried"),
    (Ledger, "began"),
    (Ledger, "intend"),
    (Ledger, "took"),
    (Ledger, "used"),
    (Ledger, "gone"),
    (Client, "delete"),
    (Client, "quit"),
)


class Death:
    """Kills this very process at the k-th moment: each step has one before and one after it."""

    def __init__(self, moment: int) -> None:
        self._left = moment

    def wait(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def stalk(self, steps: Iterable[tuple[Any, str]] = STEPS) -> None:
        for owner, name in steps:
            setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        if asyncio.iscoroutinefunction(step):

            async def awaited(*args: Any, **kwargs: Any) -> Any:
                self.wait()
                result = await step(*args, **kwargs)
                self.wait()
                return result

            return awaited

        def called(*args: Any, **kwargs: Any) -> Any:
            self.wait()
            result = step(*args, **kwargs)
            self.wait()
            return result

        return called


@contextmanager
def remote_server(tmp_path: Path, server_tls: ssl.SSLContext) -> Iterator[tuple[MaildirStore, int]]:
    """A server in a process of its own, so that it outlives its clients."""
    (tmp_path / "remote").mkdir()
    store = MaildirStore(f"{tmp_path}/remote/%u")
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:

        async def serve() -> None:
            async with serving(store, tls=server_tls, implicit=True, clear=False) as running:
                os.write(theirs, str(running.port).encode())
                await asyncio.sleep(3600)

        asyncio.run(serve())
        os._exit(0)
    try:
        yield store, int(os.read(ours, 10))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def server(tmp_path: Path, server_tls: ssl.SSLContext) -> Iterator[tuple[MaildirStore, int]]:
    with remote_server(tmp_path, server_tls) as running:
        yield running


def stored(mail: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (mail / "new").iterdir())


def collected(isp: Account, place: Path) -> Outcome:
    """One run.  The server may not have seen yet that a killed one is gone."""
    with (
        closing(Ledger(place / "ledger")) as ledger,
        closing(open_destination(f"maildir:{place}/Mail")) as destination,
    ):
        while True:
            try:
                return asyncio.run(collect(isp, ledger, destination))
            except LoginFailed as error:
                if error.code != "IN-USE":
                    raise


@pytest.mark.slow
def test_killed_at_every_step_of_a_stub(
    server: tuple[MaildirStore, int], tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """First the header, and in a later session all of it: each is there once."""
    store, port = server
    whole, small = b"Subject: large\r\n\r\n" + b"x" * 99 + b"\r\n", b"Subject: small\r\n\r\n"
    stubs = account(port, certificate[0], Policy(keep=0.0, largest=50, stubs=True))
    later = account(port, certificate[0], Policy(keep=0.0))

    async def fill() -> None:
        for octets in (small, whole):
            await store.deliver("mrose", once(octets))

    for moment in count():
        asyncio.run(fill())
        place = tmp_path / f"at-{moment}"
        place.mkdir()
        child = os.fork()
        if child == 0:
            Death(moment).stalk()
            collected(stubs, place)
            collected(later, place)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        collected(stubs, place)
        found = stored(place / "Mail")
        assert small in found
        assert whole in found or asyncio.run(sizes(store)) == [len(whole)]
        collected(later, place)
        found = stored(place / "Mail")
        assert found[:2] == sorted([small, whole]), f"killed at moment {moment}"
        assert [each[:15] for each in found[2:]] == [b"X-Restante-Stub"]
        assert asyncio.run(sizes(store)) == [], f"killed at moment {moment}"
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert moment > 40


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.0, None], ids=["delete", "keep"])
@pytest.mark.rfc("P-118")
def test_killed_at_every_step(
    keep: float | None,
    server: tuple[MaildirStore, int],
    tmp_path: Path,
    certificate: tuple[Path, Path],
) -> None:
    store, port = server
    text = {word: f"Subject: {word}\r\n\r\n{word}\r\n".encode() for word in WORDS}
    isp = account(port, certificate[0], Policy(keep=keep))

    async def fill() -> None:
        for octets in text.values():
            await store.deliver("mrose", once(octets))

    deaths = 0
    for moment in count():
        if keep is not None or moment == 0:
            asyncio.run(fill())
        place = tmp_path / f"at-{moment}"
        place.mkdir()
        child = os.fork()
        if child == 0:
            Death(moment).stalk()
            collected(isp, place)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        collected(isp, place)
        assert stored(place / "Mail") == sorted(text.values()), f"killed at moment {moment}"
        if keep is not None:
            assert asyncio.run(sizes(store)) == [], f"killed at moment {moment}"
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        deaths += 1
    assert deaths > 2 * (3 * len(WORDS) + 4)  # fsync, rename, fsync each; and the ledger's
