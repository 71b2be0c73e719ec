"""kill -9 before and after every step of a collector: the next run leaves each message once."""

from __future__ import annotations

import asyncio
import mailbox
import os
import signal
import ssl
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import closing, contextmanager
from email import message_from_bytes
from email.message import Message
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from restante.client.asynchronous import Client
from restante.collect.account_ledger import AccountLedger
from restante.collect.collector import Account, Outcome, collect
from restante.collect.destinations import Destination
from restante.collect.destinations.maildrop import LocalMaildrop
from restante.collect.destinations.mbox import Mbox
from restante.collect.destinations.opening import open_destination
from restante.collect.destinations.spooled import Smtp
from restante.collect.ledger import Ledger
from restante.collect.plan import Policy
from restante.errors import LoginFailed
from restante.server.intake import Intake
from restante.store.maildir import MaildirStore

from ..support import listening, once, serving, sizes
from .shelf import account

WORDS = ("one", "two", "three")
STEPS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "rename"),
    (os, "unlink"),
    (AccountLedger, "record_attempt"),
    (AccountLedger, "record_login"),
    (AccountLedger, "intend"),
    (AccountLedger, "took"),
    (AccountLedger, "add_usage"),
    (AccountLedger, "gone"),
    (Client, "delete"),
    (Client, "quit"),
)


class Death:
    """Kills this process at the k-th moment; each step has one before and one after it."""

    def __init__(self, moment: int) -> None:
        self._left = moment

    def wait(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._end()

    def _end(self) -> None:
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
def apart(serve: Callable[[Callable[[int], object]], Coroutine[Any, Any, None]]) -> Iterator[int]:
    """Run a server in a separate process, so that it outlives its clients; yields its port."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(serve(lambda port: os.write(theirs, str(port).encode())))
        os._exit(0)
    try:
        yield int(os.read(ours, 10))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)
        os.close(theirs)


@contextmanager
def remote_server(tmp_path: Path, server_tls: ssl.SSLContext) -> Iterator[tuple[MaildirStore, int]]:
    (tmp_path / "remote").mkdir()
    store = MaildirStore(f"{tmp_path}/remote/%u")

    async def serve(tell: Callable[[int], object]) -> None:
        async with serving(store, tls=server_tls, implicit=True, clear=False) as running:
            tell(running.port)
            await asyncio.sleep(3600)

    with apart(serve) as port:
        yield store, port


@pytest.fixture
def server(tmp_path: Path, server_tls: ssl.SSLContext) -> Iterator[tuple[MaildirStore, int]]:
    with remote_server(tmp_path, server_tls) as running:
        yield running


def stored(mail: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (mail / "new").iterdir())


def opened(place: Path, to: str) -> Destination:
    if to == "maildrop":
        store = MaildirStore(f"{place}/%u", limit=lambda _: 100_000)
        return LocalMaildrop(store.deliveries("Mail"))
    return open_destination(to, recipient="ann@example.org")


def collected(isp: Account, place: Path, to: str = "") -> Outcome:
    """Run the collector, possibly before the server notices that a killed one is gone."""
    with (
        closing(Ledger(place / "ledger")) as ledger,
        closing(opened(place, to or f"maildir:{place}/Mail")) as destination,
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
    """First the header is stored, in a later session the whole message; each exactly once."""
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
@pytest.mark.parametrize("to", ["", "maildrop"], ids=["maildir", "maildrop"])
@pytest.mark.rfc("P-118")
def test_killed_at_every_step(
    to: str,
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
            collected(isp, place, to)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        collected(isp, place, to)
        assert stored(place / "Mail") == sorted(text.values()), f"killed at moment {moment}"
        if keep is not None:
            assert asyncio.run(sizes(store)) == [], f"killed at moment {moment}"
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        deaths += 1
    # fsync, rename and fsync for each message, and the steps of the ledger
    assert deaths > 2 * (3 * len(WORDS) + 4)


class AnyUser:
    """A user directory in which every name exists."""

    async def maildrop_of(self, recipient: str) -> str:
        return recipient.partition("@")[0]


def handed_over(place: Path) -> list[str]:
    """Return the messages that the mail server received, and forget them."""
    subjects = []
    for path in (place / "ann" / "new").iterdir():
        subjects.append(subject(message_from_bytes(path.read_bytes())))
        path.unlink()
    return sorted(subjects)


def in_mbox(path: Path) -> list[str]:
    with closing(mailbox.mbox(path)) as box:
        return sorted(map(subject, box))


def subject(message: Message) -> str:
    """Return the subject, which must equal the text."""
    text = str(message["Subject"])
    assert str(message.get_payload()).split() == [text]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mbox", "lmtp"])
def test_killed_at_every_step_with_one_duplicate_allowed(
    kind: str,
    server: tuple[MaildirStore, int],
    tmp_path: Path,
    certificate: tuple[Path, Path],
) -> None:
    """Such destinations recognise no message: one may come twice, with a warning, never be lost."""
    store, port = server
    isp = account(port, certificate[0], Policy(keep=0.0))
    inbox = tmp_path / "inbox"
    inbox.mkdir()

    async def fill() -> None:
        for word in WORDS:
            await store.deliver("mrose", once(f"Subject: {word}\r\n\r\n{word}\r\n".encode()))

    async def take(report: Callable[[int], object]) -> None:
        intake = Intake(MaildirStore(f"{inbox}/%u"), AnyUser(), "localhost", 100_000)
        with listening(intake.lmtp()) as port:
            report(port)
            await asyncio.sleep(3600)

    twice = 0
    with apart(take) as lmtp:
        for moment in count():
            asyncio.run(fill())
            place = tmp_path / f"at-{moment}"
            place.mkdir()
            to = f"mbox:{place}/mbox" if kind == "mbox" else f"lmtp:127.0.0.1:{lmtp}"
            child = os.fork()
            if child == 0:
                Death(moment).stalk([*STEPS, (Mbox, "commit"), (Smtp, "commit")])
                collected(isp, place, to)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            outcome = collected(isp, place, to)
            found = in_mbox(place / "mbox") if kind == "mbox" else handed_over(inbox)
            assert set(found) == set(WORDS), f"killed at moment {moment}"
            more = len(found) - len(WORDS)
            assert more <= outcome.in_doubt <= 1, f"killed at moment {moment}"
            twice += more
            assert asyncio.run(sizes(store)) == [], f"killed at moment {moment}"
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
    assert moment > 2 * 2 * len(WORDS)
    assert twice, "the window was met"
