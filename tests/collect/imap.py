"""An IMAP server in a thread, with one folder; a test chooses its answers to APPEND."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

_LITERAL = re.compile(rb"(.*)\{(\d+)\}\r\n", re.DOTALL)


class ImapStandIn:
    """Serves one connection after another."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.stored: list[bytes] = []
        self.appended: list[bytes] = []
        """The arguments of each APPEND, without its literal."""
        self.heard: list[bytes] = []
        self.answers: list[bytes] = []
        """Answers to the next APPENDs, instead of storing: ``NO …``, ``BAD …``, or an action:
        ``lost`` drops the connection, ``stored-and-lost`` does so after storing."""
        self.judge: Callable[[bytes], bytes] = lambda octets: b""
        """Returns such an answer for a message when ``answers`` is empty."""
        self.login = b""
        """The answer to LOGIN, instead of OK; ``lost`` drops the connection."""
        self.folders = {b"INBOX"}
        self.search = "honest"
        """Or ``all``: every message matches; ``none``: no message matches; ``BAD``;
        ``endless``: more than a client reads."""
        self.has_uidplus = True
        self.keeps_mark = True
        """Sends the whole header instead of the requested fields."""
        self.forgets = False
        """Answers OK to APPEND and stores nothing."""
        self.shows_late = False
        """Shows appended messages only after the folder is selected again."""
        self._shown = 0
        self._connected: ssl.SSLSocket | None = None
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
                self._connected = tls
                self._talk(cast(BinaryIO, tls.makefile("rwb", buffering=0)))

    def hang_up(self) -> None:
        """Close the current connection."""
        assert self._connected is not None
        self._connected.shutdown(socket.SHUT_RDWR)

    def _talk(self, peer: BinaryIO) -> None:
        peer.write(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready\r\n")
        while line := peer.readline():
            self.heard.append(line)
            tag, _, rest = line.rstrip(b"\r\n").partition(b" ")
            found = _LITERAL.fullmatch(line)
            if found is not None:
                peer.write(b"+ go on\r\n")
                octets = b""
                while len(octets) < int(found[2]) and (piece := peer.read(65_536)):
                    octets += piece
                octets = octets[: int(found[2])]
                self.appended.append(found[1])
                answer = self.answers.pop(0) if self.answers else self.judge(octets)
                if answer in (b"", b"stored-and-lost") and not self.forgets:
                    self.stored.append(octets if self.keeps_mark else octets.partition(b"\r\n")[2])
                    self._shown += not self.shows_late
                if answer.endswith(b"lost"):
                    return
                done = b"OK [APPENDUID 1 %d] done" % (100 + len(self.stored))
                done = done if self.has_uidplus else b"OK done"
                peer.write(tag + b" " + (answer or done) + b"\r\n")
                continue
            if not rest:
                continue  # the line end after a literal
            if refusal := self._refusal(rest.upper()):
                if refusal == b"lost":
                    return
                peer.write(tag + b" " + refusal + b"\r\n")
                continue
            peer.write(self._untagged(rest) + tag + b" OK done\r\n")
            if rest.upper() == b"LOGOUT":
                return

    def _refusal(self, command: bytes) -> bytes:
        if b"SEARCH" in command and self.search == "BAD":
            return b"BAD no such search"
        return self.login if command.startswith(b"LOGIN") else b""

    def _untagged(self, command: bytes) -> bytes:
        words = command.replace(b'"', b"").split()
        match words[0].upper():
            case b"CAPABILITY":
                return b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"
            case b"LIST":
                return b"".join(
                    b'* LIST () "/" "%s"\r\n' % each for each in self.folders if each in words
                )
            case b"CREATE":
                self.folders.add(words[1])
            case b"SELECT":
                self._shown = len(self.stored)
                return b"* %d EXISTS\r\n" % len(self.stored)
            case b"UID" if words[1].upper() == b"SEARCH":
                return self._search(words)
            case b"UID":
                return self._fetch(words[2], 100)
            case b"FETCH":
                return self._fetch(words[1], 0)
            case b"LOGOUT":
                return b"* BYE\r\n"
        return b""

    def _search(self, words: list[bytes]) -> bytes:
        """Answer SEARCH; the UID of a message is its number plus 100."""
        mark = b"%s: %s\r\n" % (words[-2], words[-1])
        numbers = range(1, len(self.stored) + 1)
        found = {
            "honest": [at for at in numbers if mark in self.stored[at - 1]],
            "all": list(numbers),
            "none": [],
            "endless": [10**6] * 200_000,
        }[self.search]
        return b"* SEARCH " + b" ".join(b"%d" % (100 + at) for at in found) + b"\r\n"

    def _fetch(self, numbers: bytes, more: int) -> bytes:
        """Answer FETCH; ``more`` is the difference between UID and number."""
        answer = b""
        for number in map(int, numbers.split(b",")):
            at = number - more
            if not 1 <= at <= self._shown:
                continue
            header = self.stored[at - 1].partition(b"\r\n\r\n")[0]
            lines = re.findall(
                rb"^(?:x-restante|message-id|date|from|to|cc|subject):.*?\r\n(?![ \t])",
                header + b"\r\n",
                re.IGNORECASE | re.MULTILINE | re.DOTALL,
            )
            fields = b"".join(lines) + b"\r\n"
            name = b"BODY[HEADER.FIELDS (X-RESTANTE MESSAGE-ID DATE FROM TO CC SUBJECT)]"
            uid = b"UID %d " % (100 + at) if more else b""
            answer += b"* %d FETCH (%s%s {%d}\r\n%s)\r\n" % (at, uid, name, len(fields), fields)
        return answer

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def imap_server(context: ssl.SSLContext) -> Iterator[ImapStandIn]:
    server = ImapStandIn(context)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(10)
