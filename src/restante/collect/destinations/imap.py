"""Store mail in a folder of an IMAP server: APPEND (RFC 3501 §6.3.11), with ``imapclient``.

The first line ``X-Restante: …`` is added to each message: a mark that is derived from the account
and the unique-id.  Bare CR and LF become CRLF, as IMAP requires.  The internal date is the date of
the message.

A message counts as stored only when its header can be fetched after APPEND.  After a crash or a
lost connection, restante searches for the mark, first in the newest messages.  SEARCH returns only
candidates.  Their headers are fetched as well, because some servers ignore the argument of SEARCH
HEADER and return every message (QQ, Alimail).  So a message is stored exactly once, unless the
server was still processing the first APPEND during the search.

Security: TLS is always used, implicit or with STARTTLS, with verified certificates.  Only the first
mark in a header counts, because the sender may have written others.
"""

from __future__ import annotations

import imaplib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from email.parser import BytesHeaderParser
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ...errors import (
    ConfigurationError,
    CredentialsRefused,
    MessageRefused,
    TemporaryFailure,
    UnsafeArgument,
)
from ...tls import client_context
from ..fingerprint import header_digest, header_of
from . import name_of
from .spooled import HANG, Handed

if TYPE_CHECKING:
    from imapclient import IMAPClient

_MARK = "X-Restante"
_TIMEOUT = 60.0  # seconds for a response; an estimate, not measured
_IDLE = 30.0  # seconds after which an idle connection is tested before it is used
_MAX_HEADER = 2**20  # octets of a message that are searched for its date
# Response codes (RFC 3501, 5530, 7889).  The server never accepts this message:
_NEVER = ("[TOOBIG]", "[CANNOT]", "[PARSE]", "[BADCHARSET]")
# The server refuses this user's messages:
_REFUSED = (
    *("[AUTHENTICATIONFAILED]", "[AUTHORIZATIONFAILED]", "[EXPIRED]"),
    *("[PRIVACYREQUIRED]", "[CONTACTADMIN]", "[NOPERM]"),
)
# The server accepts no message now:
_LATER = ("[OVERQUOTA]", "[UNAVAILABLE]", "[INUSE]", "[LIMIT]", "[SERVERBUG]")

# Number of messages to search for a message in doubt, which was appended last in the previous run.
_NEWEST = 5000
_JUST_NOW = 10  # number of messages to search for a message that has just been appended
_BLOCK = 500  # messages whose headers are fetched by one command
_FIRST_MARK = re.compile(rb"^x-restante[ \t]*:[ \t]*([0-9a-f]{32})\b", re.IGNORECASE | re.MULTILINE)
_FIELDS = f"BODY.PEEK[HEADER.FIELDS ({_MARK} MESSAGE-ID DATE FROM TO CC SUBJECT)]"
_APPENDED = re.compile(rb"\[APPENDUID \d+ (\d+)\]", re.IGNORECASE)  # RFC 4315
_PAUSES = (0.0, 0.0, 2.0)  # seconds before each search for an appended message


class Imap(Handed):
    """A folder of an IMAP server; one connection is used for all messages."""

    is_repeatable = True  # because ``has`` searches the folder

    def __init__(self, url: str, password: str, ca_file: Path | None = None) -> None:
        """``url`` is ``imaps://user@host/Folder``, or ``imap:`` for STARTTLS.

        Raises:
            UnsafeArgument: the URL is invalid.
            ConfigurationError: the library is not installed.
        """
        super().__init__()
        try:
            parts = urlsplit(url)
            self._port = parts.port
        except ValueError as error:
            raise UnsafeArgument(f"invalid IMAP URL: {error}") from error
        self._user, self._host = unquote(parts.username or ""), parts.hostname or ""
        self._folder = unquote(parts.path.lstrip("/")) or "INBOX"
        if not self._user or not self._host or parts.password is not None or parts.query:
            raise UnsafeArgument("an IMAP destination must have the form imaps://user@host/Folder")
        if not password:
            raise UnsafeArgument("an IMAP destination requires a password in to_password")
        if not (self._user + self._folder + password).isprintable():
            raise UnsafeArgument("control character in an IMAP destination")
        self._is_implicit = parts.scheme == "imaps"
        self._password = password
        self._context = client_context(ca_file)
        self._name = ""
        self._marks: set[str] | None = None  # None: not searched yet
        self._server: IMAPClient | None = None
        self._used_at = 0.0  # on the monotonic clock
        try:
            import imapclient  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "an IMAP destination requires the extra restante[imap]"
            ) from error

    def has(self, identity: str) -> bool:
        """Search for a message by its mark."""
        name = name_of(identity)
        with self._talking() as server:
            return name in self._newest_marks(server) or name in self._found(server, name)

    def _newest_marks(self, server: IMAPClient) -> set[str]:
        """Return the marks of the newest messages, as of the first call."""
        if self._marks is None:
            self._marks = set()
            for header in self._newest(server, _NEWEST):
                self._marks |= _mark_in(header)
        return self._marks

    def _found(self, server: IMAPClient, name: str) -> set[str]:
        """Return the marks of the messages that SEARCH finds."""
        try:
            numbers = server.search(["HEADER", _MARK, name])[-_NEWEST:]
        except imaplib.IMAP4.abort:
            raise
        except imaplib.IMAP4.error:
            self._leave()  # SEARCH is not supported, or its response is too long
            return set()
        return {mark for header in _headers(server, numbers) for mark in _mark_in(header)}

    def _newest(self, server: IMAPClient, count: int) -> Iterator[bytes]:
        """Yield the headers of the newest messages, the newest first."""
        total = int(server.select_folder(self._folder).get(b"EXISTS", 0))
        numbers = range(total, max(total - count, 0), -1)
        server.use_uid = False
        try:
            yield from _headers(server, numbers)
        finally:
            server.use_uid = True

    def begin(self, identity: str) -> bool:
        self._name = name_of(identity)
        return super().begin(identity)

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            MessageRefused: the server never accepts the message; or the cause may be this message,
                and there were only a few such errors in a row.
            TemporaryFailure: the message cannot be stored now; or too many such errors in a row.
            CredentialsRefused: the user has no permission to append.
        """
        octets = f"{_MARK}: {self._name}\r\n".encode() + message.read()
        at = _date(octets[:_MAX_HEADER])
        is_sent = False
        try:
            with self._talking() as server:
                is_sent = True
                answer = self._append(server, octets, at)
                if not self._is_there(server, answer, octets):
                    text = "reports that it stored a message, but does not list it"
                    raise self._doubt(f"the IMAP server {self._host} {text}")
        except _Lost as error:
            if not is_sent:
                raise
            raise self._doubt(str(error), HANG) from error

    def _append(self, server: IMAPClient, octets: bytes, at: datetime | None) -> bytes:
        try:
            answer = server.append(self._folder, octets, msg_time=at)
        except imaplib.IMAP4.abort:
            raise
        except imaplib.IMAP4.error as error:
            text = str(error)
            if "command error: BAD" in text or any(code in text for code in _NEVER):
                raise MessageRefused(_short(text)) from error
            if any(code in text for code in _REFUSED):
                raise self._refused(error) from error
            if any(code in text for code in _LATER):
                raise TemporaryFailure(_short(text)) from error
            raise self._doubt(_short(text)) from error
        return answer if isinstance(answer, bytes) else b""

    def _is_there(self, server: IMAPClient, answer: bytes, octets: bytes) -> bool:
        """Return whether the server lists the appended message.

        If the server removes the mark, or merges the message with an equal one as Gmail does, the
        message is recognised by the sender's header fields.
        """
        mine = header_digest(header_of(octets))
        named = _APPENDED.search(answer)
        for pause in _PAUSES:
            time.sleep(pause)
            if named is not None:
                seen = list(_headers(server, [int(named[1])]))
                named = None  # the server may not show this number yet
            else:
                seen = list(self._newest(server, _JUST_NOW))
            if any(self._name in _mark_in(each) for each in seen):
                return True
            if mine is not None and any(header_digest(each) == mine for each in seen):
                return True
        return False

    @contextmanager
    def _talking(self) -> Iterator[IMAPClient]:
        try:
            if self._server is not None and time.monotonic() > self._used_at + _IDLE:
                self._try_out(self._server)
            if self._server is None:
                self._server = self._connected()
            yield self._server
            self._used_at = time.monotonic()
        except (imaplib.IMAP4.error, OSError, ValueError) as error:
            self._leave()
            if any(code in str(error) for code in _REFUSED):
                raise self._refused(error) from error
            raise _Lost(f"the IMAP server {self._host}: {_short(error)}") from error

    def _try_out(self, server: IMAPClient) -> None:
        """Test an idle connection, which the server may have closed (RFC 3501 §5.4)."""
        try:
            server.noop()
        except (imaplib.IMAP4.error, OSError):
            self._leave()

    def _connected(self) -> IMAPClient:
        """Connect, log in and select the folder; a missing folder is created."""
        from imapclient import IMAPClient

        server = IMAPClient(
            self._host,
            self._port,
            ssl=self._is_implicit,
            ssl_context=self._context if self._is_implicit else None,
            timeout=_TIMEOUT,
        )
        try:
            if not self._is_implicit:
                server.starttls(self._context)
            self._log_in(server)
            if not server.folder_exists(self._folder):
                server.create_folder(self._folder)
                server.subscribe_folder(self._folder)
            server.select_folder(self._folder)
        except BaseException:
            with suppress(OSError):
                server.shutdown()
            raise
        return server

    def _log_in(self, server: IMAPClient) -> None:
        """
        Raises:
            CredentialsRefused: the refusal has no response code for a temporary cause (RFC 5530
                §3).
        """
        try:
            server.login(self._user, self._password)
        except imaplib.IMAP4.error as error:
            text = _short(error)
            was_lost = isinstance(error.__context__, imaplib.IMAP4.abort)  # imapclient wraps it
            if was_lost or any(code in text for code in _LATER):
                raise
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> CredentialsRefused:
        text = _short(error).replace(self._password, "…")
        return CredentialsRefused(f"the IMAP server {self._host}: {text}")

    def _leave(self) -> None:
        """Drop the connection; a command in progress may or may not have been carried out."""
        if self._server is not None:
            with suppress(OSError):
                self._server.shutdown()
            self._server = None

    def close(self) -> None:
        super().close()
        if self._server is not None:
            with suppress(imaplib.IMAP4.error, OSError):
                self._server.logout()
            self._leave()


class _Lost(TemporaryFailure):
    """The connection was lost, or the responses are out of step."""


def _headers(server: IMAPClient, messages: Sequence[int]) -> Iterator[bytes]:
    """Yield headers; the numbers are unique-ids if ``server.use_uid`` is set."""
    for first in range(0, len(messages), _BLOCK):
        block = list(messages[first : first + _BLOCK])
        response = server.fetch(block, [_FIELDS])
        for number in block:
            for key, octets in response.get(number, {}).items():
                if key.upper().startswith(b"BODY[HEADER") and isinstance(octets, bytes):
                    yield octets


def _mark_in(header: bytes) -> set[str]:
    mark = _FIRST_MARK.search(header)
    return {mark[1].decode()} if mark else set()


def _date(octets: bytes) -> datetime | None:
    """Return the date of the first Received field, or of Date; None if neither has a valid one."""
    for name in ("Received", "Date"):
        with suppress(Exception):  # malformed headers raise errors of many types
            value = str(BytesHeaderParser().parsebytes(octets).get(name, ""))
            date = parsedate_to_datetime(value.rpartition(";")[2].strip())
            if 1970 <= date.year < 2100:
                return date
    return None


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]
