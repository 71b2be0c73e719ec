"""Every kind of destination and its failures, for tests that apply to all of them."""

from __future__ import annotations

import errno
import os
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from restante import syncing
from restante.collect.destinations import Destination, mbox
from restante.collect.destinations.gmail import Gmail
from restante.collect.destinations.maildrop import LocalMaildrop
from restante.collect.destinations.opening import open_destination
from restante.store.maildir import MaildirStore

from ..store.helpers import contents, put, run
from .imap import imap_server
from .test_destinations import messages_of
from .test_gmail import StandIn

CLOSED = 1  # a port on which nothing listens


class Place:
    """A destination for messages that end with one word each."""

    is_exact = True
    """Whether no failure duplicates a message."""
    can_refuse = True
    """Refuse one message, and accept others."""

    def __init__(self, folder: Path, context: ssl.SSLContext, ca_file: Path) -> None:
        self.folder = folder
        self.context, self.ca_file = context, ca_file
        self.is_away = False
        self.poison = ""
        """The word of the refused message."""
        self.is_full = False

    def opened(self) -> Destination:
        raise NotImplementedError

    def octets(self) -> list[bytes]:
        """Return everything that is stored."""
        raise NotImplementedError

    def words(self) -> list[str]:
        return sorted(word_of(octets) for octets in self.octets())

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def text(self, word: str) -> bytes:
        return f"Subject: {word}\r\n\r\n{word}\r\n".encode()


def word_of(octets: bytes) -> str:
    return octets.split()[-1].decode() if octets.split() else ""


# Files.


class Files(Place):
    """Files on a disk that may be full (``is_full``) or missing (``is_away``)."""

    can_refuse = False

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @contextmanager
    def running(self) -> Iterator[None]:
        self.disk.mkdir()
        fsync, unmounted = os.fsync, self.folder / "unmounted"

        def synced(file: int) -> None:
            if self.is_full and os.readlink(f"/proc/self/fd/{file}").startswith(str(self.disk)):
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", synced)
            patch.setattr(syncing, "_syncfs", lambda: None)
            patch.setattr(mbox, "_LOCK_TIMEOUT", 0.1)
            yield
        assert not unmounted.exists()

    def opened(self) -> Destination:
        unmounted = self.folder / "unmounted"
        if self.is_away:
            self.disk.rename(unmounted)
        try:
            return self.open_there()
        finally:
            if self.is_away:
                assert not self.disk.exists()
                unmounted.rename(self.disk)

    def open_there(self) -> Destination:
        raise NotImplementedError


class Directory(Files):
    def open_there(self) -> Destination:
        return open_destination(f"{self.disk}/Mail")

    def octets(self) -> list[bytes]:
        return [path.read_bytes() for path in self.disk.glob("Mail/*.eml")]


class Maildir(Files):
    def open_there(self) -> Destination:
        return open_destination(f"maildir:{self.disk}/Mail")

    def octets(self) -> list[bytes]:
        return [path.read_bytes() for path in self.disk.glob("Mail/new/*")]


class Mbox(Files):
    is_exact = False

    def open_there(self) -> Destination:
        return open_destination(f"mbox:{self.disk}/mail")

    def octets(self) -> list[bytes]:
        mail = self.disk / "mail"
        return messages_of(mail.read_bytes() if mail.exists() else b"")


class LocalUser(Files):
    """The maildrop of a user of this server."""

    def store(self) -> MaildirStore:
        return MaildirStore(f"{self.disk}/%u")

    def open_there(self) -> Destination:
        return LocalMaildrop(self.store().deliveries("ann"))

    def octets(self) -> list[bytes]:
        return run(contents(self.store(), "ann"))


class LocalUserWithQuota(LocalUser):
    """A maildrop with a quota: full because of other mail; one message exceeds the quota."""

    can_refuse = True
    LIMIT = 20_000

    def store(self) -> MaildirStore:
        return MaildirStore(f"{self.disk}/%u", limit=lambda _: self.LIMIT)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.disk.mkdir()
        yield

    def open_there(self) -> Destination:
        (self.disk / "ann" / "new" / "1.other").unlink(missing_ok=True)
        (self.disk / "ann" / "maildirsize").unlink(missing_ok=True)
        if self.is_full:
            put(self.disk / "ann", "new/1.other", b"x" * (self.LIMIT - 10))
        return super().open_there()

    def octets(self) -> list[bytes]:
        return [octets for octets in super().octets() if octets[:2] != b"xx"]

    def text(self, word: str) -> bytes:
        padding = b"x" * self.LIMIT + b"\r\n" if word == self.poison else b""
        return b"Subject: y\r\n\r\n" + padding + f"{word}\r\n".encode()


# Programs and servers.


class Program(Place):
    is_exact = False

    @contextmanager
    def running(self) -> Iterator[None]:
        (self.folder / "out").mkdir()
        yield

    def opened(self) -> Destination:
        program = self.folder / "program"
        program.write_text(
            "import os, sys\n"
            "octets = sys.stdin.read()\n"
            f"if {self.is_full}:\n    sys.exit(75)\n"
            f"if octets.split()[-1] == {self.poison!r}:\n    sys.exit(65)\n"
            f"open({str(self.folder)!r} + f'/out/{{os.getpid()}}', 'x').write(octets)\n"
        )
        python = "/nowhere/python" if self.is_away else sys.executable
        return open_destination(f"command:{python} {program}")

    def octets(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.folder / "out").iterdir()]


class MailServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self.place = place
        self.messages: list[bytes] = []


class _Talk(socketserver.StreamRequestHandler):
    """A connection by SMTP or LMTP, for one recipient."""

    def handle(self) -> None:
        server = cast(MailServer, self.server)
        self.wfile.write(b"220 ready\r\n")
        for line in self.rfile:
            match line[:4].upper():
                case b"RCPT" if server.place.is_full:
                    self.wfile.write(b"452 4.2.2 full\r\n")
                case b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    octets = b"".join(iter(self.rfile.readline, b".\r\n"))
                    if word_of(octets) == server.place.poison:
                        self.wfile.write(b"554 5.7.1 no\r\n")
                    else:
                        server.messages.append(octets)
                        self.wfile.write(b"250 2.0.0 stored\r\n")
                case b"QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
                case _:
                    self.wfile.write(b"250 ok\r\n")


class MailServerPlace(Place):
    is_exact = False

    def __init__(self, kind: str, folder: Path, context: ssl.SSLContext, ca_file: Path) -> None:
        super().__init__(folder, context, ca_file)
        self.kind = kind

    @contextmanager
    def running(self) -> Iterator[None]:
        with MailServer(self) as self.server:
            thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
            thread.start()
            yield
            self.server.shutdown()
            thread.join(10)

    def opened(self) -> Destination:
        port = CLOSED if self.is_away else self.server.server_address[1]
        return open_destination(f"{self.kind}:127.0.0.1:{port}", recipient="ann@example.org")

    def octets(self) -> list[bytes]:
        return self.server.messages


class ImapPlace(Place):
    @contextmanager
    def running(self) -> Iterator[None]:
        def judge(octets: bytes) -> bytes:
            if self.is_full:
                return b"NO [OVERQUOTA] full"
            return b"NO [CANNOT] take it" if word_of(octets) == self.poison else b""

        with imap_server(self.context) as self.server:
            self.server.judge = judge
            yield

    def opened(self) -> Destination:
        port = CLOSED if self.is_away else self.server.port
        place = f"imaps://ann@127.0.0.1:{port}/"
        return open_destination(place, password=lambda: "tan staaf", ca_file=self.ca_file)

    def octets(self) -> list[bytes]:
        return self.server.stored


class GmailPlace(Place):
    is_exact = False

    @contextmanager
    def running(self) -> Iterator[None]:
        def judge(octets: bytes) -> int:
            if self.is_full:
                return 429
            return 400 if word_of(octets) == self.poison else 200

        with StandIn() as self.server:
            self.server.judge = judge
            thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
            thread.start()
            yield
            self.server.shutdown()
            thread.join(10)

    def opened(self) -> Destination:
        url = f"http://127.0.0.1:{CLOSED}" if self.is_away else self.server.url
        return Gmail("", lambda _: "token", url)

    def octets(self) -> list[bytes]:
        return [octets for _, _, octets in self.server.imported]


PLACES: dict[str, Callable[[Path, ssl.SSLContext, Path], Place]] = {
    "directory": Directory,
    "maildir": Maildir,
    "maildrop": LocalUser,
    "maildrop with a quota": LocalUserWithQuota,
    "mbox": Mbox,
    "command": Program,
    "lmtp": partial(MailServerPlace, "lmtp"),
    "smtp": partial(MailServerPlace, "smtp"),
    "imap": ImapPlace,
    "gmail": GmailPlace,
}


@contextmanager
def place(kind: str, folder: Path, context: ssl.SSLContext, ca_file: Path) -> Iterator[Place]:
    folder.mkdir()
    made = PLACES[kind](folder, context, ca_file)
    with ExitStack() as stack:
        stack.enter_context(made.running())
        yield made
