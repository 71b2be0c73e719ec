"""Long loops: a server is killed under load, or the power of a disk is cut.

The parent process keeps the promises, outside the file system and the process that fail.
``./dev crash --cycles N`` runs any number of cycles, test_cycles.py only a few.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import pickle
import poplib
import random
import shutil
import signal
import smtplib
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from restante.cli.main import main as restante
from restante.errors import RestanteError
from restante.store.maildir import MaildirStore

from ..store.helpers import deliver, text_of
from .oracle import GONE, HELD, LISTED, WAIT, Oracle, check

USER = "ann"
PASSWORD = "correct horse battery staple"
_SET_CHILD_SUBREAPER = 36  # prctl(2)
WIPED = 25  # cycles after which the maildrop is emptied, so that comparing it stays fast


# -- Processes that die


@contextmanager
def forked(act: Callable[[], object]) -> Iterator[int]:
    """Run ``act`` in a child process; at the end kill it and its own children.

    This process must not have other threads.
    """
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)  # grandchildren become our children
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setpgid(0, 0)
            act()
            status = 0
        finally:
            os._exit(status)
    with suppress(OSError):  # the child does it too; either may be first
        os.setpgid(child, child)
    try:
        yield child
    finally:
        os.killpg(child, signal.SIGKILL)
        # Wait for all: only a process that was reaped has certainly released its locks.
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-child, 0)


class PipeOracle(Oracle):
    """The oracle of a child process: sends each promise through a pipe before going on."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def expect(self, text: bytes, *places: str, unique_id: str | None = None) -> None:
        promise = pickle.dumps((text, places, unique_id))
        os.write(self._pipe, struct.pack("=I", len(promise)) + promise)


def receive(octets: bytes, oracle: Oracle) -> int:
    """Add the promises of a child to ``oracle``; returns their number.

    A promise at the end that is incomplete does not count.
    """
    at = promises = 0
    while at + 4 <= len(octets):
        (length,) = struct.unpack_from("=I", octets, at)
        if at + 4 + length <= len(octets):
            text, places, unique_id = pickle.loads(octets[at + 4 : at + 4 + length])
            oracle.expect(text, *places, unique_id=unique_id)
            promises += 1
        at += 4 + length
    return promises


# -- A server that is killed


class Served:
    """A ``restante serve`` with one user, LMTP and POP3; its files are in ``place``."""

    def __init__(self, place: Path) -> None:
        self.mail = place / "mail"
        self.mail.mkdir()
        self.oracle = Oracle()
        self.counts = {"deliveries": 0, "sessions": 0, "removals": 0}
        self._configuration = place / "restante.toml"
        self._configuration.write_text(
            f'[server]\nlisten = ["pop3://127.0.0.1:0"]\n[tls]\nmode = "self"\n'
            f'[store]\npath = "{self.mail}/%u"\n[auth]\nusers = "{place}/users"\n'
            'allow_plaintext_from = ["127.0.0.0/8"]\n'
            '[intake.lmtp]\nlisten = ["127.0.0.1:0"]\n[log]\nlevel = "error"\n'
        )
        (place / "password").write_text(PASSWORD + "\n")
        self._number = 0
        os.environ["XDG_STATE_HOME"] = str(place)
        self._restante("user", "add", USER, "--password-file", str(place / "password"))

    def _restante(self, *arguments: str) -> int:
        return restante(["--json", "-c", str(self._configuration), *arguments])

    def cycle(self, after: float) -> None:
        """Start the server, load it for ``after`` seconds, kill it and check its mail."""
        reading, writing = os.pipe()

        def serve() -> None:
            os.dup2(writing, 1)
            self._restante("serve")

        with forked(serve) as server:
            os.close(writing)
            with open(reading) as output:
                addresses = json.loads(output.readline())
                stopping = threading.Event()
                clients = [
                    threading.Thread(target=self._busy, args=(act, addresses, stopping))
                    for act in (self._deliver, self._fetch)
                ]
                for client in clients:
                    client.start()
                time.sleep(after)
                os.killpg(server, signal.SIGKILL)
                stopping.set()
                for client in clients:
                    client.join(WAIT)
                    assert not client.is_alive()
        asyncio.run(check(MaildirStore(f"{self.mail}/%u"), USER, self.oracle.snapshot(), key=_sent))

    def _busy(
        self,
        act: Callable[[dict[str, str]], None],
        addresses: dict[str, str],
        stop: threading.Event,
    ) -> None:
        while not stop.is_set():
            with suppress(OSError, EOFError, smtplib.SMTPException, poplib.error_proto):
                act(addresses)

    def _deliver(self, addresses: dict[str, str]) -> None:
        host, _, port = addresses["lmtp"].rpartition(":")
        with smtplib.LMTP(host, int(port), timeout=WAIT) as lmtp:
            for _ in range(10):
                self._number += 1
                number = f"{threading.get_ident()}.{self._number}"
                lines = ("x" * 70).join(["\r\n"] * random.randrange(2, 200))
                text = f"Subject: {number}\r\n\r\n{lines}".encode()
                self.oracle.expect(text, LISTED, GONE)
                lmtp.sendmail("", USER, text)
                self.oracle.rule_out(text, GONE)
                self.counts["deliveries"] += 1

    def _fetch(self, addresses: dict[str, str]) -> None:
        host, _, port = addresses["pop3"].rpartition(":")
        maildrop = poplib.POP3(host, int(port), timeout=WAIT)
        try:
            maildrop.user(USER)
            maildrop.pass_(PASSWORD)
            removed = []
            count = maildrop.stat()[0]
            for number in random.sample(range(1, count + 1), min(count, 5)):
                lines = maildrop.retr(number)[1]
                maildrop.dele(number)
                removed.append(_sent(b"".join(line + b"\r\n" for line in lines)))
            for text in removed:
                self.oracle.expect(text, LISTED, HELD)
            maildrop.quit()
            for text in removed:
                self.oracle.expect(text, HELD)
            self.counts["sessions"] += 1
            self.counts["removals"] += len(removed)
        finally:
            maildrop.close()

    def wipe(self) -> None:
        shutil.rmtree(self.mail / USER, ignore_errors=True)
        self.oracle = Oracle()


def _sent(text: bytes) -> bytes:
    """Return a message without the trace fields that the server puts before it."""
    return text[text.index(b"Subject:") :]


def kills(place: Path, cycles: int, say: Callable[[str], None] = lambda _: None) -> dict[str, int]:
    """Kill a server under load ``cycles`` times; returns counts of what it did."""
    served = Served(place)
    for cycle in range(1, cycles + 1):
        served.cycle(random.uniform(0.05, 0.5))
        if cycle % WIPED == 0:
            served.wipe()
            say(f"{cycle} kills, {served.counts}")
    if not all(served.counts.values()):
        raise AssertionError(f"the server did too little: {served.counts}")
    return served.counts


# -- A disk whose power is cut


_SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
_NO_LOG_FLUSH = 2
_MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
_SIZES = {"ext4": 32, "xfs": 300}  # MiB; mkfs.xfs takes no smaller ones


class Disk:
    """A file system in an image file in ``place``, mounted by a loop device.  Needs root."""

    def __init__(self, kind: str, place: Path) -> None:
        self.mounted = place / "mounted"
        self.mounted.mkdir()
        self._image = place / "image"
        with self._image.open("wb") as image:
            image.truncate(_SIZES[kind] * 2**20)
        _run(*_MKFS[kind], str(self._image))

    def __enter__(self) -> Disk:
        _run("mount", "-o", "loop", str(self._image), str(self.mounted))
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", str(self.mounted))

    def cut(self) -> None:
        """Cut the power: nothing more reaches the disk."""
        opened = os.open(self.mounted, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(opened, _SHUT_DOWN, struct.pack("=I", _NO_LOG_FLUSH))
        finally:
            os.close(opened)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=WAIT)


def cuts(
    kind: str, place: Path, cycles: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, int]:
    """Cut the power of a disk in use ``cycles`` times; returns the number of promises made."""
    disk, oracle, promises = Disk(kind, place), Oracle(), 0
    with disk:
        _run("chmod", "700", str(disk.mounted))
    for cycle in range(1, cycles + 1):
        reading, writing = os.pipe()
        with disk:
            if cycle % WIPED == 0:
                shutil.rmtree(disk.mounted / USER, ignore_errors=True)
                os.sync()
                oracle = Oracle()
                say(f"{cycle} power cuts, {promises} promises")

            def work(pipe: int = writing) -> None:
                asyncio.run(_busy(MaildirStore(f"{disk.mounted}/%u"), PipeOracle(pipe)))

            with forked(work) as child:
                os.close(writing)
                time.sleep(random.uniform(0.005, 0.08))
                # The ioctl takes milliseconds, during which fsync on xfs succeeds without syncing.
                # A machine without power makes no promises, so the process is stopped first.
                os.kill(child, signal.SIGSTOP)
                disk.cut()
            with open(reading, "rb") as pipe:
                octets = pipe.read()
        promises += receive(octets, oracle)
        with disk:
            store = MaildirStore(f"{disk.mounted}/%u")
            asyncio.run(check(store, USER, oracle.snapshot()))
            oracle = asyncio.run(_settled(store))
    return {"promises": promises}


async def _busy(store: MaildirStore, oracle: Oracle) -> None:
    """Deliver, remove, restore and purge, in any order, until the disk fails."""
    while True:
        with suppress(RestanteError):
            act = random.choice([_take_in, _take_in, _take_in, _remove, _restore, _purge])
            await act(store, oracle)


async def _take_in(store: MaildirStore, oracle: Oracle) -> None:
    text = b"%d %s\r\n" % (random.getrandbits(64), b"x" * random.choice([1, 500, 5000, 50_000]))
    oracle.expect(text, LISTED, GONE)
    entry = await deliver(store, USER, text)
    oracle.expect(text, LISTED, unique_id=entry.unique_id)


async def _remove(store: MaildirStore, oracle: Oracle) -> None:
    async with store.open(USER) as maildrop:
        marked = {}
        for entry in maildrop.listing:
            if random.random() < 0.5:
                marked[entry] = await text_of(maildrop, entry)
        for entry, text in marked.items():
            oracle.expect(text, LISTED, HELD, unique_id=entry.unique_id)
        left = await maildrop.remove(list(marked))
        for entry, text in marked.items():
            if entry not in left:
                oracle.expect(text, HELD)


async def _held(store: MaildirStore) -> dict[Any, bytes]:
    texts = {}
    for held in await store.held(USER):
        texts[held] = b"".join([piece async for piece in store.read_held(USER, held)])
    return texts


async def _restore(store: MaildirStore, oracle: Oracle) -> None:
    texts = await _held(store)
    for text in texts.values():
        oracle.expect(text, HELD, LISTED)
    await store.restore(USER, list(texts))
    for text in texts.values():
        oracle.expect(text, LISTED)


async def _purge(store: MaildirStore, oracle: Oracle) -> None:
    texts = await _held(store)
    for text in texts.values():
        oracle.expect(text, HELD, GONE)
    await store.purge(USER, 2**40)
    for text in texts.values():
        oracle.expect(text, GONE)


async def _settled(store: MaildirStore) -> Oracle:
    """Return an oracle that expects all mail to stay where it was found after a crash."""
    oracle = Oracle()
    async with store.open(USER) as maildrop:
        for entry in maildrop.listing:
            text = await text_of(maildrop, entry)
            oracle.expect(text, LISTED, unique_id=entry.unique_id)
    for text in (await _held(store)).values():
        oracle.expect(text, HELD)
    return oracle
