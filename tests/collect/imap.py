"""An IMAP server of one folder in a thread, whose answers to APPEND a test chooses."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

_LITERAL = re.compile(rb"(.*)\{(\d+)\}\r\n", re.DOTALL)


class ImapStandIn:
    """Serves one connection after the other."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.stored: list[bytes] = []
        self.appended: list[bytes] = []
        """The arguments of each APPEND, without its literal."""
        self.heard: list[bytes] = []
        self.answers: list[bytes] = []
        """Of the next APPENDs, instead of storing: ``NO …``, ``BAD …``, or a state of mind:
        ``lost`` drops the connection, ``stored-and-lost`` does so after storing."""
        self.folders = {b"INBOX"}
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
                self._talk(cast(BinaryIO, tls.makefile("rwb", buffering=0)))

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
                answer = self.answers.pop(0) if self.answers else b""
                if answer in (b"", b"stored-and-lost"):
                    self.stored.append(octets)
                if answer.endswith(b"lost"):
                    return
                peer.write(tag + b" " + (answer or b"OK done") + b"\r\n")
                continue
            if not rest:
                continue  # the line end behind a literal
            peer.write(self._untagged(rest) + tag + b" OK done\r\n")
            if rest.upper() == b"LOGOUT":
                return

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
                return b"* %d EXISTS\r\n" % len(self.stored)
            case b"UID":
                mark = b"%s: %s\r\n" % (words[-2], words[-1])
                found = [b"%d" % at for at, each in enumerate(self.stored, 1) if mark in each]
                return b"* SEARCH " + b" ".join(found) + b"\r\n"
            case b"LOGOUT":
                return b"* BYE\r\n"
        return b""

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
