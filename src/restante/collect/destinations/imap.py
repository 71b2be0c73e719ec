"""Store mail in a folder of an IMAP server: APPEND (RFC 3501 §6.3.11), with ``imapclient``.

The field ``X-Restante: …`` is added at the top of each message.  Its value, the *mark*, is derived
from the account and the unique-id.  Bare CR and LF become CRLF, as IMAP requires.  The internal
date is the date of the message.

A message counts as stored only if its header can be fetched after APPEND.  After a crash or a lost
connection, restante searches for the mark, first in the newest messages and then with SEARCH.  Some
servers (QQ, Alimail) ignore the argument of SEARCH HEADER and return every message, so the headers
of the results are fetched and checked.  A message is stored exactly once, unless the server was
still processing the first APPEND during the search.

Security: TLS is always used, implicit or with STARTTLS, with verified certificates.  Only the first
mark in a header counts, because the sender may have added other marks.
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
from .spooled import HANG_WEIGHT, Spooled

if TYPE_CHECKING:
    from imapclient import IMAPClient

_MARK = "X-Restante"
_TIMEOUT = 60.0  # seconds for a response; chosen without measurement
_IDLE = 30.0  # seconds after which an idle connection is tested before it is used
_MAX_HEADER = 2**20  # octets at the start of a message that are searched for its date
# Response codes (RFC 3501, 5530, 7889).
# The server will never accept this message:
_PERMANENT_CODES = ("[TOOBIG]", "[CANNOT]", "[PARSE]", "[BADCHARSET]")
# The server refuses all messages of this user:
_ACCOUNT_CODES = (
    *("[AUTHENTICATIONFAILED]", "[AUTHORIZATIONFAILED]", "[EXPIRED]"),
    *("[PRIVACYREQUIRED]", "[CONTACTADMIN]", "[NOPERM]"),
)
# The server cannot accept messages now:
_TEMPORARY_CODES = ("[OVERQUOTA]", "[UNAVAILABLE]", "[INUSE]", "[LIMIT]", "[SERVERBUG]")

# Number of the newest messages that are searched after a crash.  The message that may have been
# stored was the last one that restante appended.
_NEWEST = 5000
_RECENT = 10  # number of the newest messages that are searched immediately after APPEND
_BLOCK = 500  # number of headers that are fetched by one command
_FIRST_MARK = re.compile(rb"^x-restante[ \t]*:[ \t]*([0-9a-f]{32})\b", re.IGNORECASE | re.MULTILINE)
_FIELDS = f"BODY.PEEK[HEADER.FIELDS ({_MARK} MESSAGE-ID DATE FROM TO CC SUBJECT)]"
_APPENDED = re.compile(rb"\[APPENDUID \d+ (\d+)\]", re.IGNORECASE)  # RFC 4315
_PAUSES = (0.0, 0.0, 2.0)  # seconds before each search for an appended message


class Imap(Spooled):
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
        with self._connection() as server:
            return name in self._newest_marks(server) or name in self._search_marks(server, name)

    def _newest_marks(self, server: IMAPClient) -> set[str]:
        """Return the marks of the newest messages at the time of the first call."""
        if self._marks is None:
            self._marks = set()
            for header in self._newest_headers(server, _NEWEST):
                self._marks |= _marks_in(header)
        return self._marks

    def _search_marks(self, server: IMAPClient, name: str) -> set[str]:
        """Return the marks of the messages that SEARCH finds."""
        try:
            numbers = server.search(["HEADER", _MARK, name])[-_NEWEST:]
        except imaplib.IMAP4.abort:
            raise
        except imaplib.IMAP4.error:
            self._drop_connection()  # SEARCH is not supported, or its response is too long
            return set()
        return {mark for header in _headers(server, numbers) for mark in _marks_in(header)}

    def _newest_headers(self, server: IMAPClient, count: int) -> Iterator[bytes]:
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

    def _deliver(self, message: IO[bytes]) -> None:
        """Append the message to the folder.

        Raises:
            MessageRefused: the server will never accept the message.
            Doubtful: the cause may be this message or the server.
            TemporaryFailure: the message cannot be stored now, or there were too many doubts.
            CredentialsRefused: the user has no permission to append.
        """
        octets = f"{_MARK}: {self._name}\r\n".encode() + message.read()
        at = _date(octets[:_MAX_HEADER])
        is_sent = False
        try:
            with self._connection() as server:
                is_sent = True
                response = self._append(server, octets, at)
                if not self._is_listed(server, response, octets):
                    text = "reports that it stored a message, but does not list it"
                    raise self._doubtful_error(f"the IMAP server {self._host} {text}")
        except _ConnectionLost as error:
            if not is_sent:
                raise
            raise self._doubtful_error(str(error), HANG_WEIGHT) from error

    def _append(self, server: IMAPClient, octets: bytes, at: datetime | None) -> bytes:
        try:
            response = server.append(self._folder, octets, msg_time=at)
        except imaplib.IMAP4.abort:
            raise
        except imaplib.IMAP4.error as error:
            text = str(error)
            if "command error: BAD" in text or any(code in text for code in _PERMANENT_CODES):
                raise MessageRefused(_shortened(text)) from error
            if any(code in text for code in _ACCOUNT_CODES):
                raise self._credentials_refused(error) from error
            if any(code in text for code in _TEMPORARY_CODES):
                raise TemporaryFailure(_shortened(text)) from error
            raise self._doubtful_error(_shortened(text)) from error
        return response if isinstance(response, bytes) else b""

    def _is_listed(self, server: IMAPClient, response: bytes, octets: bytes) -> bool:
        """Return whether the server lists the appended message.

        If the server removes the mark, or merges the message with an identical one as Gmail does,
        the message is recognised by the sender's header fields.
        """
        digest = header_digest(header_of(octets))
        unique_id = _APPENDED.search(response)
        for pause in _PAUSES:
            time.sleep(pause)
            if unique_id is not None:
                headers = list(_headers(server, [int(unique_id[1])]))
                unique_id = None  # the server may not list this unique-id yet
            else:
                headers = list(self._newest_headers(server, _RECENT))
            if any(self._name in _marks_in(each) for each in headers):
                return True
            if digest is not None and any(header_digest(each) == digest for each in headers):
                return True
        return False

    @contextmanager
    def _connection(self) -> Iterator[IMAPClient]:
        try:
            if self._server is not None and time.monotonic() > self._used_at + _IDLE:
                self._test_connection(self._server)
            if self._server is None:
                self._server = self._connect()
            yield self._server
            self._used_at = time.monotonic()
        except (imaplib.IMAP4.error, OSError, ValueError) as error:
            self._drop_connection()
            if any(code in str(error) for code in _ACCOUNT_CODES):
                raise self._credentials_refused(error) from error
            raise _ConnectionLost(f"the IMAP server {self._host}: {_shortened(error)}") from error

    def _test_connection(self, server: IMAPClient) -> None:
        """Test an idle connection, which the server may have closed (RFC 3501 §5.4)."""
        try:
            server.noop()
        except (imaplib.IMAP4.error, OSError):
            self._drop_connection()

    def _connect(self) -> IMAPClient:
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
        """Log in.

        Raises:
            CredentialsRefused: the login was refused without a response code for a temporary cause
                (RFC 5530 §3).
        """
        try:
            server.login(self._user, self._password)
        except imaplib.IMAP4.error as error:
            text = _shortened(error)
            was_lost = isinstance(error.__context__, imaplib.IMAP4.abort)  # imapclient wraps it
            if was_lost or any(code in text for code in _TEMPORARY_CODES):
                raise
            raise self._credentials_refused(error) from None

    def _credentials_refused(self, error: Exception) -> CredentialsRefused:
        text = _shortened(error).replace(self._password, "…")
        return CredentialsRefused(f"the IMAP server {self._host}: {text}")

    def _drop_connection(self) -> None:
        """Drop the connection.  A command in progress may or may not have been executed."""
        if self._server is not None:
            with suppress(OSError):
                self._server.shutdown()
            self._server = None

    def close(self) -> None:
        super().close()
        if self._server is not None:
            with suppress(imaplib.IMAP4.error, OSError):
                self._server.logout()
            self._drop_connection()


class _ConnectionLost(TemporaryFailure):
    """The connection was lost, or a response was invalid."""


def _headers(server: IMAPClient, messages: Sequence[int]) -> Iterator[bytes]:
    """Yield headers; ``messages`` contains unique-ids if ``server.use_uid`` is set."""
    for first in range(0, len(messages), _BLOCK):
        block = list(messages[first : first + _BLOCK])
        response = server.fetch(block, [_FIELDS])
        for number in block:
            for key, octets in response.get(number, {}).items():
                if key.upper().startswith(b"BODY[HEADER") and isinstance(octets, bytes):
                    yield octets


def _marks_in(header: bytes) -> set[str]:
    mark = _FIRST_MARK.search(header)
    return {mark[1].decode()} if mark else set()


def _date(octets: bytes) -> datetime | None:
    """Return the date in the first Received field, or in Date; None if both are invalid."""
    for name in ("Received", "Date"):
        with suppress(Exception):  # malformed headers raise errors of many types
            value = str(BytesHeaderParser().parsebytes(octets).get(name, ""))
            date = parsedate_to_datetime(value.rpartition(";")[2].strip())
            if 1970 <= date.year < 2100:
                return date
    return None


def _shortened(error: object) -> str:
    return " ".join(str(error).split())[:200]
