"""The long loops: a server that is killed under load, a disk whose power is cut.

What was promised is remembered here, outside the file system and the process that fail.
``./dev crash`` runs them for as many cycles as wanted, test_cycles.py for a few.
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
WIPED = 25  # cycles after which a maildrop begins afresh, so that none takes long to compare


# -- Processes that die


@contextmanager
def forked(act: Callable[[], object]) -> Iterator[int]:
    """A child of this warm process; killed in the end, with its own children.

    Needs a process without threads.
    """
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)  # so that its children become ours
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setpgid(0, 0)
            act()
            status = 0
        finally:
            os._exit(status)
    with suppress(OSError):  # the child does it as well; whoever comes first
        os.setpgid(child, child)
    try:
        yield child
    finally:
        os.killpg(child, signal.SIGKILL)
        # All of them: only who was waited for has certainly given its locks back.
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-child, 0)


class Told(Oracle):
    """Promises of a child, told through a pipe before it goes on."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def expect(self, text: bytes, *places: str, unique_id: str | None = None) -> None:
        told = pickle.dumps((text, places, unique_id))
        os.write(self._pipe, struct.pack("=I", len(told)) + told)


def hear(octets: bytes, oracle: Oracle) -> int:
    """What a child told, and how often; a last word that was cut off does not count."""
    at = words = 0
    while at + 4 <= len(octets):
        (length,) = struct.unpack_from("=I", octets, at)
        if at + 4 + length <= len(octets):
            text, places, unique_id = pickle.loads(octets[at + 4 : at + 4 + length])
            oracle.expect(text, *places, unique_id=unique_id)
            words += 1
        at += 4 + length
    return words


# -- A server that is killed


class Served:
    """A ``restante serve`` with one user, LMTP and POP3, its mail in ``place``."""

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
        """Start, be busy for so many seconds, be killed, and be found right."""
        reading, writing = os.pipe()

        def serve() -> None:
            os.dup2(writing, 1)
            self._restante("serve")

        with forked(serve) as server:
            os.close(writing)
            with open(reading) as told:
                addresses = json.loads(told.readline())
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
    """A message without the header lines that intake puts before it."""
    return text[text.index(b"Subject:") :]


def kills(place: Path, cycles: int, say: Callable[[str], None] = lambda _: None) -> dict[str, int]:
    """``cycles`` kills of a server under load; returns what it did meanwhile."""
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
    """An image, in memory if ``place`` is, mounted by a loop device.  Needs root."""

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
        """Nothing that is not on the disk by now gets there."""
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
    """``cycles`` power cuts of a disk in use; returns how many promises had been made."""
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
                asyncio.run(_busy(MaildirStore(f"{disk.mounted}/%u"), Told(pipe)))

            with forked(work) as child:
                os.close(writing)
                time.sleep(random.uniform(0.005, 0.08))
                # The ioctl takes milliseconds, in which fsync on xfs says yes and syncs nothing;
                # a machine without power makes no more promises.
                os.kill(child, signal.SIGSTOP)
                disk.cut()
            with open(reading, "rb") as told:
                octets = told.read()
        promises += hear(octets, oracle)
        with disk:
            store = MaildirStore(f"{disk.mounted}/%u")
            asyncio.run(check(store, USER, oracle.snapshot()))
            oracle = asyncio.run(_settled(store))
    return {"promises": promises}


async def _busy(store: MaildirStore, oracle: Oracle) -> None:
    """Deliver, remove, give back and purge, in any order, until the disk fails."""
    while True:
        with suppress(RestanteError):
            act = random.choice([_take_in, _take_in, _take_in, _remove, _give_back, _purge])
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
    found = {}
    for held in await store.held(USER):
        found[held] = b"".join([piece async for piece in store.read_held(USER, held)])
    return found


async def _give_back(store: MaildirStore, oracle: Oracle) -> None:
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
    """What is there after a crash is there for good."""
    oracle = Oracle()
    async with store.open(USER) as maildrop:
        for entry in maildrop.listing:
            text = await text_of(maildrop, entry)
            oracle.expect(text, LISTED, unique_id=entry.unique_id)
    for text in (await _held(store)).values():
        oracle.expect(text, HELD)
    return oracle
