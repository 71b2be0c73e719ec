"""The DATA phase: find the end of a message, and check its content as it arrives.

Standards: RFC 5321 §4.1.1.4, §4.5.2, §6.3.
Security: only CRLF.CRLF ends a message (SMTP smuggling, CVE-2023-51764).  The work for new octets
depends only on their number, not on earlier octets.
"""

from __future__ import annotations

import re

from ..errors import MessageRefused, MessageTooLarge, RestanteError
from ..wire import Unstuffer
from .grammar import Refusal

_HOPS = 100  # Received fields; more mean a loop (RFC 5321 §6.3)
_LINE_START = 64  # octets kept of an incomplete header line; enough for the name of the field
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_RECEIVED = re.compile(rb"^received[ \t]{0,8}:", re.IGNORECASE | re.MULTILINE)
_BLANK = re.compile(rb"^\r?\n", re.MULTILINE)


class Incoming:
    """One message while it is received."""

    def __init__(self, limit: int, *, refuses_bare: bool) -> None:
        """
        Args:
            limit: maximum size of the message, in octets.
            refuses_bare: refuse a message with a bare CR or LF.  SMTP does (RFC 5321 §2.3.8); LMTP
                does not, because a refusal at the last hop loses the mail.
        """
        self.octets = 0
        self.failure: RestanteError | None = None
        """Why the message will be refused; None: it is acceptable so far."""
        self._limit = limit
        self._data = Unstuffer()
        self._hops = _HopCount()
        self._bare = _BareCheck() if refuses_bare else None

    @property
    def is_finished(self) -> bool:
        return self._data.is_finished

    @property
    def rest(self) -> bytes:
        """The octets after the end of the message, which are the next commands."""
        return self._data.rest

    def feed(self, octets: bytes) -> bytes:
        """Return the content to store; empty as soon as the message must be refused."""
        content = self._data.feed(octets)
        self.octets += len(content)
        self._hops.feed(content)
        if self._bare is not None:
            self._bare.feed(content)
        if self.failure is None:
            self.failure = self._verdict()
        return content if self.failure is None else b""

    def _verdict(self) -> RestanteError | None:
        if self.octets > self._limit:
            return MessageTooLarge(self._limit)
        if self._bare is not None and self._bare.has_bare:
            return MessageRefused("message has a bare CR or LF")
        if self._hops.count > _HOPS:
            text = f"message has more than {_HOPS} Received fields: a mail loop"
            return Refusal(554, "5.4.6", text)
        return None


class _BareCheck:
    """Detects a CR or LF outside CRLF.  ``Unstuffer`` never returns a CR without the next octet."""

    def __init__(self) -> None:
        self.has_bare = False

    def feed(self, content: bytes) -> None:
        self.has_bare |= _BARE.search(content) is not None


class _HopCount:
    """Counts the Received fields of a header, with any line ends.

    It stores the beginning of an incomplete line, which contains the name of the field.
    """

    def __init__(self) -> None:
        self.count = 0
        self._is_in_header = True
        self._begun = b""

    def feed(self, content: bytes) -> None:
        if not self._is_in_header:
            return
        text = self._begun + content
        whole = text.rfind(b"\n") + 1
        lines = text[:whole]
        blank = _BLANK.search(lines)
        if blank is not None:
            self._is_in_header = False
            lines = lines[: blank.start()]
        self.count += len(_RECEIVED.findall(lines))
        begun = text[whole:]
        self._begun = begun[:_LINE_START]
