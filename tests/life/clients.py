"""Clients that keep to the RFCs and hide nothing: POP3, LMTP and SMTP over real sockets."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

_SILENCE = 30.0  # seconds; a server that is silent for longer has failed
_WINDOW = 32  # commands sent ahead; few enough that no buffer is ever full
_PIECE = 65_536  # octets
_PATIENCE = 15.0  # seconds until a lock is free whose connection was dropped


class Refused(Exception):
    """-ERR, or a reply of 4yz or 5yz."""


class Ended(AssertionError):
    """The server closed the connection where an answer was due."""


class Listed(NamedTuple):
    """A message as LIST and UIDL show it."""

    number: int
    unique_id: str
    size: int


class _Lines:
    """A connection, line by line."""

    def __init__(self, address: str, ca: str = "") -> None:
        """``ca``: trust it, and speak TLS from the first octet."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), _SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ca:
            context = ssl.create_default_context(cafile=ca)
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            self.socket = context.wrap_socket(self.socket, server_hostname=host)
        self._octets = bytearray()
        """Received, and not read yet."""

    def _take(self, end: bytes) -> bytes:
        """All until ``end``, and that as well."""
        searched = 0
        while (at := self._octets.find(end, searched)) < 0:
            searched = max(0, len(self._octets) - len(end))
            if not (octets := self.socket.recv(_PIECE)):
                raise Ended(f"the connection ended with {bytes(self._octets[-100:])!r}")
            self._octets += octets
        taken = bytes(self._octets[: at + len(end)])
        del self._octets[: at + len(end)]
        return taken

    def line(self) -> bytes:
        """Without CRLF."""
        return self._take(b"\r\n")[:-2]

    def text(self) -> bytes:
        """A multi-line response, with byte-stuffing undone (RFC 1939 §3)."""
        if self.line_follows(b".\r\n"):
            return b""
        text = b"\r\n" + self._take(b"\r\n.\r\n")[:-3]
        return text.replace(b"\r\n.", b"\r\n")[2:]

    def line_follows(self, line: bytes) -> bool:
        """Whether this is the next line, which is then taken."""
        first = self._take(b"\r\n")
        if first == line:
            return True
        self._octets[:0] = first
        return False

    def lines(self) -> list[bytes]:
        return self.text().split(b"\r\n")[:-1]

    def send(self, *lines: bytes) -> None:
        self.socket.sendall(b"".join(line + b"\r\n" for line in lines))

    def has_ended(self) -> bool:
        """Waits for the server to close the connection."""
        with suppress(ConnectionError):
            while self.socket.recv(_PIECE):
                pass
        return True

    def drop(self) -> None:
        """End without a word."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Pop3(_Lines):
    """One session."""

    def __init__(self, address: str, ca: str = "") -> None:
        super().__init__(address, ca)
        greeting = self.line()
        assert greeting.startswith(b"+OK"), greeting

    def status(self) -> bytes:
        """The text of a status indicator that is positive."""
        line = self.line()
        if line.startswith(b"-ERR"):
            raise Refused(line.decode())
        assert line.startswith(b"+OK"), line
        return line[4:]

    def ask(self, *words: object) -> bytes:
        self.send(" ".join(map(str, words)).encode())
        return self.status()

    def log_in(self, name: str, password: str) -> None:
        self.ask("USER", name)
        self.ask("PASS", password)

    def stat(self) -> tuple[int, int]:
        count, octets, *_ = self.ask("STAT").split()
        return int(count), int(octets)

    def listing(self) -> list[Listed]:
        """By STAT, UIDL and LIST, which must agree."""
        count, octets = self.stat()
        self.ask("UIDL")
        ids = [line.decode().split(" ") for line in self.lines()]
        self.ask("LIST")
        sizes = [tuple(map(int, line.split(b" "))) for line in self.lines()]
        numbers = list(range(1, count + 1))
        assert [int(number) for number, _ in ids] == numbers, "UIDL has other numbers than STAT"
        assert [number for number, _ in sizes] == numbers, "LIST has other numbers than STAT"
        assert sum(size for _, size in sizes) == octets, "LIST has other sizes than STAT"
        found = [Listed(n, ids[n - 1][1], sizes[n - 1][1]) for n in numbers]
        assert len({each.unique_id for each in found}) == count, "one unique-id for two messages"
        return found

    def retrieve(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
        """The texts; None of a message that is refused."""
        for first in range(0, len(numbers), _WINDOW):
            some = numbers[first : first + _WINDOW]
            self.send(*(b"RETR %d" % number for number in some))
            for number in some:
                try:
                    self.status()
                except Refused:
                    yield number, None
                else:
                    yield number, self.text()

    def mark(self, numbers: Sequence[int]) -> None:
        for first in range(0, len(numbers), _WINDOW):
            some = numbers[first : first + _WINDOW]
            self.send(*(b"DELE %d" % number for number in some))
            for _ in some:
                self.status()

    def quit(self) -> None:
        """UPDATE; all that was marked is removed on return."""
        self.ask("QUIT")
        self.drop()


class Smtp(_Lines):
    """One transaction after the other; LMTP if it is spoken there (RFC 2033)."""

    def __init__(self, address: str, *, is_lmtp: bool) -> None:
        self._address, self._is_lmtp = address, is_lmtp
        self._connect()

    def _connect(self) -> None:
        super().__init__(self._address)
        self._reply()
        self._ask(b"LHLO client.example" if self._is_lmtp else b"EHLO client.example")

    def _ask(self, line: bytes) -> None:
        self.send(line)
        self._reply()

    def _reply(self) -> None:
        while (line := self.line())[3:4] == b"-":
            pass
        if line[:1] not in b"23":
            raise Refused(line.decode())

    def begin(self, recipients: Sequence[str]) -> None:
        """Until the message can be sent."""
        self._ask(b"MAIL FROM:<bob@example.net>")
        for each in recipients:
            self._ask(b"RCPT TO:<%s>" % each.encode())
        self._ask(b"DATA")

    def send_message(self, text: bytes) -> None:
        """``text`` in CRLF; without a look at the reply."""
        stuffed = text.replace(b"\r\n.", b"\r\n..")
        self.socket.sendall((b"." if text[:1] == b"." else b"") + stuffed + b".\r\n")

    def deliver(self, recipients: Sequence[str], text: bytes) -> list[bool]:
        """Whether it was taken, for each recipient."""
        try:
            self.begin(recipients)
        except Refused as error:
            # After many messages that were refused the server ends the connection (421).
            if not str(error).startswith("421"):
                raise
            self.drop()
            self._connect()
            self.begin(recipients)
        self.send_message(text)
        taken = []
        for _ in recipients if self._is_lmtp else recipients[:1]:
            try:
                self._reply()
                taken.append(True)
            except Refused:
                taken.append(False)
        return taken


def log_in(
    address: str, name: str, password: str, *, ca: str = "", may_be_locked: bool = False
) -> Pop3:
    """A session that is logged in.

    ``may_be_locked``: a connection was dropped a moment ago, and its end may not have been seen.
    """
    deadline = time.monotonic() + (_PATIENCE if may_be_locked else 0)
    while True:
        client = Pop3(address, ca)
        try:
            client.log_in(name, password)
            return client
        except Refused as error:
            client.drop()
            if "[IN-USE]" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def is_refused(address: str, name: str, password: str, code: str) -> bool:
    """Whether a login ends with this response code (RFC 2449 §8)."""
    client = Pop3(address)
    try:
        client.log_in(name, password)
    except Refused as error:
        return code in str(error)
    finally:
        client.drop()
    return False
