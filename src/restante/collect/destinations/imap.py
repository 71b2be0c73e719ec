"""A folder of an IMAP server: APPEND (RFC 3501 §6.3.11), by the library ``imapclient``.

The first line of each message becomes ``X-Restante: …``, made from account and unique-id.  A
message that a crash left in doubt is looked for by that line, so it is there exactly once, unless
the server was still busy with the first APPEND when it was asked.  Bare CR and LF become CRLF,
as IMAP wants lines; the message's own date becomes its internal date.

Security: TLS always, from the first octet or by STARTTLS, with verified certificates.
"""

from __future__ import annotations

import imaplib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email.parser import BytesHeaderParser
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError, MessageRefused, TemporaryFailure, UnsafeArgument
from ...net.tls import client_context
from . import name_of
from .handed import Handed

if TYPE_CHECKING:
    from imapclient import IMAPClient

_MARK = "X-Restante"
_PATIENCE = 60.0  # seconds for an answer
_MAX_HEADER = 2**20  # octets of a message in which its date is looked for
# Of RFC 3501, 5530 and 7889: this message will never be taken, others may be.
_NEVER = ("[TOOBIG]", "[CANNOT]", "[PARSE]", "[BADCHARSET]")


class Imap(Handed):
    """One connection for all messages."""

    is_repeatable = True  # since ``has`` can tell

    def __init__(self, url: str, password: str, ca_file: Path | None = None) -> None:
        """``url`` is ``imaps://user@host/Folder``, or ``imap:`` for STARTTLS.

        Raises:
            UnsafeArgument: not of that form.
            ConfigurationError: the library is not installed.
        """
        super().__init__()
        try:
            parts = urlsplit(url)
            self._port = parts.port
        except ValueError as error:
            raise UnsafeArgument(f"no IMAP URL: {error}") from error
        self._user, self._host = unquote(parts.username or ""), parts.hostname or ""
        self._folder = unquote(parts.path.lstrip("/")) or "INBOX"
        if not self._user or not self._host or parts.password is not None or parts.query:
            raise UnsafeArgument("an IMAP destination is imaps://user@host/Folder")
        if not password:
            raise UnsafeArgument("an IMAP destination needs its password in to_password")
        if not (self._user + self._folder + password).isprintable():
            raise UnsafeArgument("control character in an IMAP destination")
        self._is_implicit = parts.scheme == "imaps"
        self._password = password
        self._context = client_context(ca_file)
        self._mark = ""
        self._server: IMAPClient | None = None
        try:
            import imapclient  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "an IMAP destination wants the extra restante[imap]"
            ) from error

    def has(self, identity: str) -> bool:
        """By its mark; a round trip."""
        with self._talking() as server:
            return bool(server.search(["HEADER", _MARK, name_of(identity)]))

    def begin(self, identity: str) -> bool:
        self._mark = f"{_MARK}: {name_of(identity)}\r\n"
        return super().begin(identity)

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            MessageRefused: the server will never take it.
            TemporaryFailure: not now, or nobody knows: ``has`` can tell.
        """
        octets = self._mark.encode() + message.read()
        at = _date(octets[:_MAX_HEADER])
        with self._talking() as server:
            try:
                server.append(self._folder, octets, msg_time=at)
            except imaplib.IMAP4.abort:
                raise
            except imaplib.IMAP4.error as error:
                text = str(error)
                if "command error: BAD" in text or any(code in text for code in _NEVER):
                    raise MessageRefused(_short(text)) from error
                raise

    @contextmanager
    def _talking(self) -> Iterator[IMAPClient]:
        try:
            if self._server is None:
                self._server = self._connected()
            yield self._server
        except (imaplib.IMAP4.error, OSError) as error:
            self._leave()
            raise TemporaryFailure(f"the IMAP server {self._host}: {_short(error)}") from error

    def _connected(self) -> IMAPClient:
        """Logged in, with the folder selected; one that is missing is made."""
        from imapclient import IMAPClient

        server = IMAPClient(
            self._host,
            self._port,
            ssl=self._is_implicit,
            ssl_context=self._context if self._is_implicit else None,
            timeout=_PATIENCE,
        )
        try:
            if not self._is_implicit:
                server.starttls(self._context)
            server.login(self._user, self._password)
            if not server.folder_exists(self._folder):
                server.create_folder(self._folder)
                server.subscribe_folder(self._folder)
            server.select_folder(self._folder)
        except BaseException:
            with suppress(OSError):
                server.shutdown()
            raise
        return server

    def _leave(self) -> None:
        """At once: what was under way may or may not have been done."""
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


def _date(octets: bytes) -> datetime | None:
    """When the last server before us had it, or when it was written; None: it does not tell."""
    header = BytesHeaderParser().parsebytes(octets)
    received = str(header.get("Received", "")).rpartition(";")[2]
    for text in (received, str(header.get("Date", ""))):
        with suppress(ValueError, TypeError, OverflowError):
            found = parsedate_to_datetime(text.strip())
            if 1970 <= found.year < 2100:
                return found
    return None


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]
