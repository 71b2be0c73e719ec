"""Receive the content of a message after DATA: find its end, and check it as it arrives.

Standards: RFC 5321 §4.1.1.4, §4.5.2, §6.3.
Security: only CRLF.CRLF ends a message (SMTP smuggling, CVE-2023-51764).  The work for new octets
depends only on their number, not on the octets that were received before.
"""

from __future__ import annotations

import re

from ..errors import MessageRefused, MessageTooLarge, RestanteError
from ..wire import Unstuffer
from .grammar import Refusal

_MAX_HOPS = 100  # Received fields; more of them indicate a mail loop (RFC 5321 §6.3)
_LINE_START = 64  # stored octets of an incomplete header line; enough for the field's name
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_RECEIVED = re.compile(rb"^received[ \t]{0,8}:", re.IGNORECASE | re.MULTILINE)
_BLANK = re.compile(rb"^\r?\n", re.MULTILINE)


class Incoming:
    """A message that is being received."""

    def __init__(self, max_octets: int, *, refuses_bare: bool) -> None:
        """
        Args:
            max_octets: maximum size of the message.
            refuses_bare: whether to refuse a message with a bare CR or LF.  True for SMTP (RFC 5321
                §2.3.8); False for LMTP, because a refusal at the last hop would lose the mail.
        """
        self.octets = 0
        """Size of the content that has been received."""
        self.failure: RestanteError | None = None
        """The reason why the message will be refused; None if it is acceptable so far."""
        self._max_octets = max_octets
        self._data = Unstuffer()
        self._hops = _HopCount()
        self._bare = _BareCheck() if refuses_bare else None

    @property
    def is_finished(self) -> bool:
        """Whether the end of the message has been received."""
        return self._data.is_finished

    @property
    def rest(self) -> bytes:
        """The octets after the end of the message, which are the next commands."""
        return self._data.rest

    def feed(self, octets: bytes) -> bytes:
        """Feed received octets; return the content to store, or b"" if the message is refused."""
        content = self._data.feed(octets)
        self.octets += len(content)
        self._hops.feed(content)
        if self._bare is not None:
            self._bare.feed(content)
        if self.failure is None:
            self.failure = self._check()
        return content if self.failure is None else b""

    def _check(self) -> RestanteError | None:
        """Return the reason why the message must be refused, or None."""
        if self.octets > self._max_octets:
            return MessageTooLarge(self._max_octets)
        if self._bare is not None and self._bare.has_bare:
            return MessageRefused("message has a bare CR or LF")
        if self._hops.count > _MAX_HOPS:
            text = f"message has more than {_MAX_HOPS} Received fields: a mail loop"
            return Refusal(554, "5.4.6", text)
        return None


class _BareCheck:
    """Detects a CR or LF outside CRLF.

    Each piece can be checked alone, because ``Unstuffer`` never separates CR and LF.
    """

    def __init__(self) -> None:
        self.has_bare = False

    def feed(self, content: bytes) -> None:
        self.has_bare |= _BARE.search(content) is not None


class _HopCount:
    """Counts the Received fields of a header whose lines end with CRLF or LF."""

    def __init__(self) -> None:
        self.count = 0
        self._is_in_header = True
        self._incomplete_line = b""  # at most its first ``_LINE_START`` octets

    def feed(self, content: bytes) -> None:
        if not self._is_in_header:
            return
        text = self._incomplete_line + content
        end = text.rfind(b"\n") + 1
        lines = text[:end]
        blank = _BLANK.search(lines)
        if blank is not None:
            self._is_in_header = False
            lines = lines[: blank.start()]
        self.count += len(_RECEIVED.findall(lines))
        self._incomplete_line = text[end:][:_LINE_START]
