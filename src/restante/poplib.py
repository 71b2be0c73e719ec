"""The module ``poplib`` of Python's standard library, with other insides: RFC 1939, 2449, 2595.

The same names, arguments and results, and the very same ``error_proto``, so that a program needs no
change but its import.  What differs, because mail or passwords were at stake:

- TLS is verified unless a ``context`` says otherwise;
- a multi-line response ends at CRLF.CRLF only, so no message can end itself with a dot between
  bare LFs, and ``b"\\r\\n".join(lines)`` is the message, octet for octet;
- lines of mail may be of any length;
- control characters in arguments are refused with ``ValueError``, before anything is sent;
- octets that nobody asked for end the session, before TLS and between responses;
- ``apop`` answers only to a time stamp of the form of a Message-ID (RFC 1939 §7, CVE-2007-1558);
- ``set_debuglevel`` shows no password.

For new programs ``connect_blocking`` is the better interface: it streams and pipelines.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from hashlib import md5
from io import BufferedReader
from pathlib import Path
from poplib import error_proto

from .errors import UnsafeArgument
from .net import tls
from .pop3.record import Record
from .wire import Unstuffer

__all__ = ["POP3", "POP3_SSL", "error_proto"]

POP3_PORT = 110
POP3_SSL_PORT = 995
CR, LF, CRLF = b"\r", b"\n", b"\r\n"
HAVE_SSL = True
_MAXLINE = 65_536  # octets of a first line, though RFC 1939 §3 allows 512
_PIECE = 65_536  # octets read at once
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

Lines = list[bytes]
LongResponse = tuple[bytes, Lines, int]
Number = int | str


class _Default(Enum):
    TIMEOUT = "of the module socket"


class POP3:
    """A session; the server's greeting was read when this returns.

    Every method but ``stat``, ``capa`` and those with a list gives the response as it came.

    Raises:
        error_proto: the server said -ERR or broke the protocol, or the connection has ended.
        OSError: the connection failed; TimeoutError, when it was silent for too long.
        UnsafeArgument (a ValueError): a control character in an argument; nothing was sent.
    """

    encoding = "UTF-8"
    timestamp = re.compile(rb"<[!-;=?A-~]+@[!-;=?A-~]+>")
    """What ``apop`` takes for a time stamp; a subclass may take more."""
    default_context: Callable[[], ssl.SSLContext] = staticmethod(tls.client_context)
    """Makes the context where none is given; a subclass may trust otherwise."""

    def __init__(
        self,
        host: str,
        port: int = POP3_PORT,
        timeout: float | _Default | None = _Default.TIMEOUT,
    ) -> None:
        self.host = host
        self.port = port
        self._tls_established = False
        self._unread = b""
        self._record = Record()
        sys.audit("poplib.connect", self, host, port)
        self.sock: socket.socket | None = self._create_socket(timeout)
        self.file: BufferedReader | None = self.sock.makefile("rb")
        try:
            self.welcome = self._getresp()
        except BaseException:
            self.close()
            raise

    def _create_socket(self, timeout: float | _Default | None) -> socket.socket:
        if timeout is _Default.TIMEOUT:
            timeout = socket.getdefaulttimeout()
        if timeout is not None and not timeout:
            raise ValueError("Non-blocking socket (timeout=0) is not supported")
        assert not isinstance(timeout, _Default)
        return socket.create_connection((self.host, self.port), timeout)

    # One command and its response; subclasses use these names.

    def _shortcmd(self, line: str) -> bytes:
        """
        Raises:
            error_proto: also when the server has said more than it was asked: nobody knows to
                which command that belongs.
        """
        octets = line.encode(self.encoding)
        if _CONTROL.search(octets):
            raise UnsafeArgument("control character in an argument; nothing was sent")
        if self.sock is None:
            raise error_proto("-ERR connection closed")
        if self._unread:
            raise error_proto("-ERR the server said more than it was asked")
        self._record.sent(octets)
        sys.audit("poplib.putline", self, octets)
        self.sock.sendall(octets + CRLF)
        return self._getresp()

    def _longcmd(self, line: str) -> LongResponse:
        response = self._shortcmd(line)
        body, text = Unstuffer(), bytearray()
        while not body.is_finished:
            octets, self._unread = self._unread or self._receive(), b""
            text += body.feed(octets)
        self._unread = body.rest
        # Octets of a message, so bytearray.splitlines would see too many ends.
        return response, bytes(text).split(CRLF)[:-1], len(text)

    def _getresp(self) -> bytes:
        """A first line.  It may end with a bare LF, as seen in the wild, for no mail is in it."""
        while LF not in self._unread:
            if len(self._unread) > _MAXLINE:
                raise error_proto("line too long")
            self._unread += self._receive()
        line, _, rest = self._unread.partition(LF)
        if len(line) > _MAXLINE:
            raise error_proto("line too long")
        self._unread = rest
        line = line.removesuffix(CR)
        self._record.heard(line)
        if not line.startswith(b"+"):
            raise error_proto(line)
        return line

    def _receive(self) -> bytes:
        octets = self.file.read1(_PIECE) if self.file is not None else b""
        if not octets:
            raise error_proto("-ERR EOF")
        return octets

    def getwelcome(self) -> bytes:
        return self.welcome

    def set_debuglevel(self, level: int) -> None:
        """Print what both sides say, without passwords; 0: no longer."""
        self._record = Record(print if level else None)

    # AUTHORIZATION.

    def user(self, user: str) -> bytes:
        return self._shortcmd(f"USER {user}")

    def pass_(self, pswd: str) -> bytes:
        with self._record.login(pswd):
            return self._shortcmd(f"PASS {pswd}")

    def apop(self, user: str, password: str) -> bytes:
        """Log in by a digest of the greeting's time stamp and the password; MD5 is broken."""
        found = self.timestamp.search(self.welcome)
        if found is None:
            raise error_proto("-ERR APOP not supported by server")
        secret = password.encode(self.encoding)
        digest = md5(found[0] + secret, usedforsecurity=False).hexdigest()
        with self._record.login(password):
            return self._shortcmd(f"APOP {user} {digest}")

    def rpop(self, user: str) -> bytes:
        """Of RFC 1081, which no server knows any more."""
        return self._shortcmd(f"RPOP {user}")

    def utf8(self) -> bytes:
        """Ask for messages as they are (RFC 6856 §2)."""
        return self._shortcmd("UTF8")

    def capa(self) -> dict[str, list[str]]:
        """Capabilities with their arguments (RFC 2449 §5)."""
        try:
            _, lines, _ = self._longcmd("CAPA")
        except error_proto as error:
            raise error_proto("-ERR CAPA not supported by server") from error
        words = [line.decode("ascii", "replace").split() for line in lines]
        return {each[0]: each[1:] for each in words if each}

    def stls(self, context: ssl.SSLContext | None = None) -> bytes:
        """Begin TLS (RFC 2595 §4)."""
        if self._tls_established:
            raise error_proto("-ERR TLS session already established")
        if "STLS" not in self.capa():
            raise error_proto("-ERR STLS not supported by server")
        response = self._shortcmd("STLS")
        # What came with it would count as said inside TLS (CVE-2021-22947 and others); what the
        # file still holds is gone with it.
        if self._unread:
            self.close()
            raise error_proto("-ERR octets came before the TLS handshake")
        assert self.sock is not None
        context = self.default_context() if context is None else context
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
        self.file = self.sock.makefile("rb")
        self._tls_established = True
        return response

    # TRANSACTION.

    def stat(self) -> tuple[int, int]:
        """How many messages, how many octets."""
        response = self._shortcmd("STAT")
        found = re.match(rb"\+\S* +([0-9]{1,10}) +(-?[0-9]{1,18})", response)
        if found is None:
            raise error_proto(response)
        return int(found[1]), int(found[2])

    def list(self, which: Number | None = None) -> bytes | LongResponse:
        """``number octets`` of one message; or of all: response, lines, octets."""
        return self._longcmd("LIST") if which is None else self._shortcmd(f"LIST {which}")

    def uidl(self, which: Number | None = None) -> bytes | LongResponse:
        """``number unique-id`` of one message; or of all: response, lines, octets."""
        return self._longcmd("UIDL") if which is None else self._shortcmd(f"UIDL {which}")

    def retr(self, which: Number) -> LongResponse:
        """Response, lines, octets with line ends."""
        return self._longcmd(f"RETR {which}")

    def top(self, which: Number, howmuch: int) -> LongResponse:
        """The header and so many lines of the body, as ``retr`` gives them."""
        return self._longcmd(f"TOP {which} {howmuch}")

    def dele(self, which: Number) -> bytes:
        return self._shortcmd(f"DELE {which}")

    def noop(self) -> bytes:
        return self._shortcmd("NOOP")

    def rset(self) -> bytes:
        return self._shortcmd("RSET")

    # The end.

    def quit(self) -> bytes:
        """What was marked as deleted is removed; the connection ends."""
        response = self._shortcmd("QUIT")
        self.close()
        return response

    def close(self) -> None:
        """Drop the connection: nothing is removed."""
        file, connection = self.file, self.sock
        self.file = self.sock = None
        if file is not None:
            file.close()
        if connection is not None:
            with suppress(OSError):  # the server was quicker
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class POP3_SSL(POP3):  # the name is the standard library's
    """A session with TLS from the first octet (RFC 8314 §3.1).

    ``certfile`` and ``keyfile`` are our own; Python 3.12 has taken them away.
    """

    def __init__(
        self,
        host: str,
        port: int = POP3_SSL_PORT,
        keyfile: str | None = None,
        certfile: str | None = None,
        timeout: float | _Default | None = _Default.TIMEOUT,
        context: ssl.SSLContext | None = None,
    ) -> None:
        own = certfile or keyfile
        if context is not None and own is not None:
            raise ValueError("context and certfile or keyfile arguments are mutually exclusive")
        self.context = self.default_context() if context is None else context
        if own is not None:
            what = "keyfile and certfile are deprecated, use a custom context instead"
            warnings.warn(what, DeprecationWarning, stacklevel=2)
            tls.load_own(self.context, Path(certfile or own), Path(keyfile or own))
        super().__init__(host, port, timeout)

    def _create_socket(self, timeout: float | _Default | None) -> socket.socket:
        connection = super()._create_socket(timeout)
        return self.context.wrap_socket(connection, server_hostname=self.host)

    def stls(self, context: ssl.SSLContext | None = None) -> bytes:
        raise error_proto("-ERR TLS session already established")
