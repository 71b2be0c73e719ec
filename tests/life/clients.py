"""Minimal clients that follow the RFCs: POP3, LMTP and SMTP over real sockets."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

_SILENCE = 30.0  # seconds without an answer after which the server has failed
_WINDOW = 32  # pipelined commands; few enough that no buffer is ever full
_PIECE = 65_536  # octets read at once
_PATIENCE = 15.0  # seconds until the lock of a dropped connection is free


class Refused(Exception):
    """The server answered -ERR, or with a reply of 4yz or 5yz."""


class Ended(AssertionError):
    """The server closed the connection instead of answering."""


class Listed(NamedTuple):
    """A message as LIST and UIDL show it."""

    number: int
    unique_id: str
    size: int


class _Lines:
    """A connection that is read line by line."""

    def __init__(self, address: str, ca: str = "") -> None:
        """``ca``: path of a trusted certificate; then TLS is used from the first octet."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), _SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ca:
            context = ssl.create_default_context(cafile=ca)
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            self.socket = context.wrap_socket(self.socket, server_hostname=host)
        self._octets = bytearray()
        """Octets that were received and not read yet."""

    def _take(self, end: bytes) -> bytes:
        """Return the octets up to and including ``end``."""
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
        """Read one line; returns it without CRLF."""
        return self._take(b"\r\n")[:-2]

    def text(self) -> bytes:
        """Read a multi-line response; returns it without byte-stuffing (RFC 1939 §3)."""
        if self.line_follows(b".\r\n"):
            return b""
        text = b"\r\n" + self._take(b"\r\n.\r\n")[:-3]
        return text.replace(b"\r\n.", b"\r\n")[2:]

    def line_follows(self, line: bytes) -> bool:
        """Return whether ``line``, with CRLF, comes next; only then it is read."""
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
        """Wait for the server to close the connection."""
        with suppress(ConnectionError):
            while self.socket.recv(_PIECE):
                pass
        return True

    def drop(self) -> None:
        """Close the connection without QUIT."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Pop3(_Lines):
    """A POP3 session."""

    def __init__(self, address: str, ca: str = "") -> None:
        super().__init__(address, ca)
        greeting = self.line()
        assert greeting.startswith(b"+OK"), greeting

    def status(self) -> bytes:
        """Read a positive status line; returns its text."""
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
        """List the messages by STAT, UIDL and LIST, which must agree."""
        count, octets = self.stat()
        self.ask("UIDL")
        ids = [line.decode().split(" ") for line in self.lines()]
        self.ask("LIST")
        sizes = [tuple(map(int, line.split(b" "))) for line in self.lines()]
        numbers = list(range(1, count + 1))
        assert [int(number) for number, _ in ids] == numbers, "UIDL has other numbers than STAT"
        assert [number for number, _ in sizes] == numbers, "LIST has other numbers than STAT"
        assert sum(size for _, size in sizes) == octets, "LIST has other sizes than STAT"
        listing = [Listed(n, ids[n - 1][1], sizes[n - 1][1]) for n in numbers]
        assert len({each.unique_id for each in listing}) == count, "one unique-id for two messages"
        return listing

    def retrieve(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
        """Yield each number and its message; None if the server refuses it."""
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
        """End the session; on return all marked messages are removed (RFC 1939 §6)."""
        self.ask("QUIT")
        self.drop()


class Smtp(_Lines):
    """A client of SMTP, or of LMTP (RFC 2033), for one transaction after another."""

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
        """Begin a transaction, up to the point where the message can be sent.

        After many refused messages the server closes the connection (421), at any command; then
        the transaction begins on a new one.
        """
        try:
            self._begin(recipients)
        except Refused as error:
            if not str(error).startswith("421"):
                raise
            self.drop()
            self._connect()
            self._begin(recipients)

    def _begin(self, recipients: Sequence[str]) -> None:
        self._ask(b"MAIL FROM:<bob@example.net>")
        for each in recipients:
            self._ask(b"RCPT TO:<%s>" % each.encode())
        self._ask(b"DATA")

    def send_message(self, text: bytes) -> None:
        """Send ``text``, which has CRLF line ends, without reading the reply."""
        stuffed = text.replace(b"\r\n.", b"\r\n..")
        self.socket.sendall((b"." if text[:1] == b"." else b"") + stuffed + b".\r\n")

    def deliver(self, recipients: Sequence[str], text: bytes) -> list[bool]:
        """Send a message; returns for each reply whether it was positive."""
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
    """Open a session and log in.

    ``may_be_locked``: the server may not have noticed yet that an earlier connection was dropped.
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
    """Return whether a login is refused with this response code (RFC 2449 §8)."""
    client = Pop3(address)
    try:
        client.log_in(name, password)
    except Refused as error:
        return code in str(error)
    finally:
        client.drop()
    return False
