"""A replacement for ``poplib`` of Python's standard library (RFC 1939, 2449, 2595).

It has the same names, arguments and results, the same ``error_proto``, and the same methods to
override (``_getline`` and similar ones), so a program only has to change its import.  It differs
where the original puts mail or passwords at risk:

- certificates are verified unless a ``context`` disables this;
- a multi-line response ends only at CRLF.CRLF, so a dot between bare LFs does not end a message,
  and ``b"\\r\\n".join(lines)`` is the message, octet for octet;
- lines of mail can be of any length;
- control characters in arguments are refused with ``ValueError``, before anything is sent;
- unexpected octets before TLS or between responses end the session;
- ``apop`` accepts only a time stamp in the form of a Message-ID (RFC 1939 §7, CVE-2007-1558);
- ``set_debuglevel`` prints no password, and exceptions contain none that the server repeats.

For new programs, ``connect_blocking`` is the better interface: it streams and pipelines.
"""

from __future__ import annotations

import io
import re
import socket
import ssl
import sys
import warnings
from builtins import list as _list  # a method has the same name
from collections.abc import Callable
from contextlib import suppress
from hashlib import md5
from os import PathLike, fsdecode
from pathlib import Path
from poplib import error_proto
from typing import Any, BinaryIO, NoReturn, cast, overload

from . import tls
from .errors import UnsafeArgument
from .pop3.record import Record

__all__ = ["POP3", "POP3_SSL", "error_proto"]

POP3_PORT = 110
POP3_SSL_PORT = 995
CR, LF, CRLF = b"\r", b"\n", b"\r\n"
HAVE_SSL = True
_MAXLINE = 65_536  # octets in the first line of a response; RFC 1939 §3 allows 512
_BUFFER = 65_536  # octets read at a time
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# The standard library's own default, because subclasses pass it to ``socket.create_connection``.
_DEFAULT: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]

LongResponse = tuple[bytes, list[bytes], int]
StrOrBytesPath = str | bytes | PathLike[str] | PathLike[bytes]


class POP3:
    """A session; the constructor connects and reads the greeting.

    All methods return the response as received, except ``stat``, ``capa`` and the methods that
    return a list.

    Raises:
        error_proto: the response was -ERR or invalid, or the connection has ended.
        OSError: the connection failed; TimeoutError if the server did not respond in time.
        UnsafeArgument (a ValueError): an argument contains a control character; nothing was sent.
    """

    encoding = "UTF-8"
    timestamp: re.Pattern[Any] = re.compile(rb"<[!-;=?A-~]+@[!-;=?A-~]+>")
    """Pattern of the time stamps that ``apop`` accepts; a subclass may accept more."""
    default_context: Callable[[], ssl.SSLContext] = staticmethod(tls.client_context)
    """Creates the default context; a subclass may trust other certificates."""
    sock: socket.socket
    file: BinaryIO

    def __init__(self, host: str, port: int = POP3_PORT, timeout: float | None = _DEFAULT) -> None:
        self.host = host
        self.port = port
        self._tls_established = False
        self._debugging = 0
        self.__record = Record(self.__print)
        self.__is_text = False  # whether a multi-line response is being read
        sys.audit("poplib.connect", self, host, port)
        self.sock = self._create_socket(timeout)
        self.file = _file(self.sock)
        try:
            self.welcome: bytes = self._getresp()
        except BaseException:
            self.close()
            raise

    # One command and its response.  Subclasses of ``poplib.POP3`` override the methods whose names
    # begin with one underscore, so each is called where that module calls it.  They have the type
    # Any, because the stub does not declare them and a subclass may declare them differently.

    def __connect(self, timeout: float | None) -> socket.socket:
        if timeout is not None and not timeout:
            raise ValueError("Non-blocking socket (timeout=0) is not supported")
        return socket.create_connection((self.host, self.port), timeout)

    def __put_line(self, line: bytes) -> None:
        """
        Raises:
            error_proto: the connection is closed, or unexpected octets were received, which belong
                to no command.
        """
        if self.sock is None:  # after ``close``, although the type does not allow None
            raise error_proto("-ERR connection closed")
        if _unread(self.file):
            raise error_proto("-ERR the server sent data without a command")
        self.__record.sent(line)
        sys.audit("poplib.putline", self, line)
        self.sock.sendall(line + CRLF)

    def __put_command(self, line: str) -> None:
        octets = line.encode(self.encoding)
        if _CONTROL.search(octets):
            raise UnsafeArgument("an argument contains a control character; nothing was sent")
        self._putline(octets)

    def __get_line(self) -> tuple[bytes, int]:
        """Return a line without its end, and its number of octets including the end.

        The first line of a response may end with a bare LF, because some servers send it and the
        line contains no mail.  A line of a message ends only with CRLF, and can have any length.
        """
        line = self.file.readline(-1 if self.__is_text else _MAXLINE + 1)
        if self.__is_text and line.endswith(LF) and not line.endswith(CRLF):
            whole = bytearray(line)
            while line and not line.endswith(CRLF):
                line = self.file.readline()
                whole += line
            line = bytes(whole)
        if not line.endswith(LF):
            raise error_proto("line too long" if len(line) > _MAXLINE else "-ERR EOF")
        if not self.__is_text:
            return line[:-1].removesuffix(CR), len(line)
        if not line.endswith(CRLF):
            raise error_proto("-ERR EOF")
        return line[:-2], len(line)

    def __get_response(self) -> bytes:
        line: bytes = self._getline()[0]
        self.__record.received(line)
        if not line.startswith(b"+"):
            text = line.decode(errors="surrogateescape")
            raise error_proto(self.__record.hide(text).encode(errors="surrogateescape"))
        return line

    def __get_long_response(self) -> LongResponse:
        response: bytes = self._getresp()
        lines: list[bytes] = []
        octets = 0
        self.__is_text = True
        try:
            while (line_and_size := self._getline())[0] != b".":
                line, size = line_and_size
                if line.startswith(b".."):
                    line, size = line[1:], size - 1
                lines.append(line)
                octets += size
        finally:
            self.__is_text = False
        return response, lines, octets

    def __short_command(self, line: str) -> bytes:
        self._putcmd(line)
        response: bytes = self._getresp()
        return response

    def __long_command(self, line: str) -> LongResponse:
        self._putcmd(line)
        response: LongResponse = self._getlongresp()
        return response

    _create_socket: Any = __connect
    _putline: Any = __put_line
    _putcmd: Any = __put_command
    _getline: Any = __get_line
    _getresp: Any = __get_response
    _getlongresp: Any = __get_long_response
    _shortcmd: Any = __short_command
    _longcmd: Any = __long_command

    def getwelcome(self) -> bytes:
        return self.welcome

    def set_debuglevel(self, level: int) -> None:
        """Print the dialogue without passwords; 0 turns this off."""
        self._debugging = level

    def __print(self, line: str) -> None:
        if self._debugging and sys.stdout is not None:
            encoding = sys.stdout.encoding or "utf-8"
            print(line.encode(encoding, "backslashreplace").decode(encoding))

    # AUTHORIZATION.

    def user(self, user: str) -> bytes:
        return self.__short(f"USER {user}")

    def pass_(self, pswd: str) -> bytes:
        with self.__record.login(pswd):
            return self.__short(f"PASS {pswd}")

    def apop(self, user: str, password: str) -> bytes:
        """Log in with a digest of the greeting's time stamp and the password.  MD5 is insecure."""
        match = self.timestamp.search(self.welcome)
        if match is None:
            raise error_proto("-ERR APOP not supported by server")
        secret = password.encode(self.encoding)
        digest = md5(match[0] + secret, usedforsecurity=False).hexdigest()
        with self.__record.login(password):
            return self.__short(f"APOP {user} {digest}")

    def rpop(self, user: str) -> bytes:
        """Log in by RPOP (RFC 1081), which no current server supports."""
        return self.__short(f"RPOP {user}")

    def utf8(self) -> bytes:
        """Allow UTF-8 in messages (RFC 6856 §2)."""
        return self.__short("UTF8")

    def capa(self) -> dict[str, _list[str]]:
        """Return the capabilities with their arguments (RFC 2449 §5)."""
        try:
            lines = self.__long("CAPA")[1]
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
        response = self.__short("STLS")
        # Otherwise these octets would be taken for octets received inside TLS (CVE-2021-22947 and
        # others), or discarded with the file's buffer.
        if _unread(self.file):
            self.close()
            raise error_proto("-ERR the server sent data before the TLS handshake")
        context = self.default_context() if context is None else context
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
        self.file = _file(self.sock)
        self._tls_established = True
        return response

    # TRANSACTION.

    def stat(self) -> tuple[int, int]:
        """Return the number of messages and their total size in octets."""
        response = self.__short("STAT")
        match = re.match(rb"\+\S* +([0-9]{1,10}) +(-?[0-9]{1,18})", response)
        if match is None:
            raise error_proto(response)
        return int(match[1]), int(match[2])

    def list(self, which: object = None) -> LongResponse:
        """Return the response, the lines (``number octets``) and their octets.

        For one message, return only the response, ``+OK number octets``; the stub of the standard
        library does not declare this difference.
        """
        if which is None:
            return self.__long("LIST")
        return cast(LongResponse, self.__short(f"LIST {which}"))

    @overload
    def uidl(self) -> LongResponse: ...
    @overload
    def uidl(self, which: object) -> bytes: ...
    def uidl(self, which: object = None) -> bytes | LongResponse:
        """Return the response, the lines (``number unique-id``) and their octets.

        For one message, return only the response, ``+OK number unique-id``.
        """
        return self.__long("UIDL") if which is None else self.__short(f"UIDL {which}")

    def retr(self, which: object) -> LongResponse:
        """Return the response, the lines, and the number of octets including line endings."""
        return self.__long(f"RETR {which}")

    def top(self, which: object, howmuch: int) -> LongResponse:
        """Return the header and the first ``howmuch`` lines of the body, in the form of
        ``retr``."""
        return self.__long(f"TOP {which} {howmuch}")

    def dele(self, which: object) -> bytes:
        return self.__short(f"DELE {which}")

    def noop(self) -> bytes:
        return self.__short("NOOP")

    def rset(self) -> bytes:
        return self.__short("RSET")

    # UPDATE.

    def quit(self) -> bytes:
        """Remove the messages marked as deleted, and end the connection."""
        response = self.__short("QUIT")
        self.close()
        return response

    def close(self) -> None:
        """Drop the connection; no message is removed."""
        file: BinaryIO | None = self.file
        connection: socket.socket | None = self.sock
        # As in the standard library, whose stub does not allow None either.
        self.file = self.sock = None  # type: ignore[assignment]
        if file is not None:
            file.close()
        if connection is not None:
            with suppress(OSError):  # the server has closed it already
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def __short(self, line: str) -> bytes:
        response: bytes = self._shortcmd(line)
        return response

    def __long(self, line: str) -> LongResponse:
        response: LongResponse = self._longcmd(line)
        return response


class POP3_SSL(POP3):  # the name in the standard library
    """A session with TLS from the first octet (RFC 8314 §3.1).

    ``certfile`` and ``keyfile`` are for a client certificate; Python 3.12 has removed them.
    """

    def __init__(
        self,
        host: str,
        port: int = POP3_SSL_PORT,
        keyfile: StrOrBytesPath | None = None,
        certfile: StrOrBytesPath | None = None,
        timeout: float | None = _DEFAULT,
        context: ssl.SSLContext | None = None,
    ) -> None:
        own = certfile or keyfile
        if context is not None and own is not None:
            raise ValueError("context and certfile or keyfile arguments are mutually exclusive")
        self.keyfile = keyfile
        self.certfile = certfile
        self.context = self.default_context() if context is None else context
        if own is not None:
            what = "keyfile and certfile are deprecated, use a custom context instead"
            warnings.warn(what, DeprecationWarning, stacklevel=2)
            paths = (Path(fsdecode(each)) for each in (certfile or own, keyfile or own))
            tls.load_own(self.context, *paths)
        super().__init__(host, port, timeout)

    def __connect(self, timeout: float | None) -> socket.socket:
        connection: socket.socket = super()._create_socket(timeout)
        return self.context.wrap_socket(connection, server_hostname=self.host)

    _create_socket: Any = __connect

    def stls(self, context: Any = None, keyfile: Any = None, certfile: Any = None) -> NoReturn:
        raise error_proto("-ERR TLS session already established")


class _Counted(io.RawIOBase):
    """Reads from a socket, and counts the octets."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._octets = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        self._octets += count or 0
        return count

    def tell(self) -> int:
        return self._octets

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


def _file(connection: socket.socket) -> io.BufferedReader:
    """Return ``makefile("rb")``, but with a buffer whose number of octets can be determined."""
    return io.BufferedReader(_Counted(connection.makefile("rb", buffering=0)), _BUFFER)


def _unread(file: BinaryIO) -> int:
    """Return the number of octets received but not yet read; 0 for other files."""
    raw = getattr(file, "raw", None)
    return raw.tell() - file.tell() if isinstance(raw, _Counted) else 0
