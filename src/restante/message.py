"""Process messages as octets: line endings, sizes, the response to TOP, and trace fields.

Standards: RFC 1939 §7 (TOP), §11 (sizes); RFC 5321 §4.4 (trace fields).
Security: messages are not parsed, except for the search for the end of the header.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from .errors import UnsafeArgument
from .wire import CRLF

# Regular expressions are the fastest way to search for these sequences.
_DOTTED = re.compile(rb"\n\.")
_BARE = re.compile(rb"\n(?<!\r\n)")
_FROM_LINE = re.compile(rb">?From [^\r\n]*\r?\n")
_FIELD = re.compile(rb"[!-9;-~]{1,997}[ \t]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BLANK_LINE = re.compile(rb"\r?\n")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


class LineEndings:
    """Convert stored octets to CRLF text (RFC 1939 §11).

    A bare LF becomes CRLF, and CRLF is appended if the last line has no line ending.  All other
    octets, including a bare CR and NUL, are not changed, so CRLF text remains the same.
    """

    def __init__(self) -> None:
        self.size = 0
        """Number of octets returned so far; after ``finish``, the size on the wire."""
        self._cr = b""  # a CR whose LF may be in the next piece
        self._at_line_start = True

    def feed(self, octets: bytes) -> bytes:
        """Return the CRLF text of the next stored octets."""
        text = self._cr + octets
        self._cr = b"\r" if text.endswith(b"\r") else b""
        if self._cr:
            text = text[:-1]
        if not text:
            return b""
        text = _with_crlf(text)
        self._at_line_start = text.endswith(CRLF)
        self.size += len(text)
        return text

    def finish(self) -> bytes:
        """Return the last octets: a CR that was held back, and a missing line ending."""
        end = b"" if self._at_line_start and not self._cr else self._cr + CRLF
        self.size += len(end)
        return end


def crlf_text(message: bytes) -> bytes:
    """Convert a whole message to CRLF text, as ``LineEndings`` does for pieces."""
    text = _with_crlf(message)
    return text if not text or text.endswith(CRLF) else text + CRLF


def _with_crlf(text: bytes) -> bytes:
    if b"\r" in text:
        if _BARE.search(text) is None:
            return text
        text = text.replace(CRLF, b"\n")
    return text.replace(b"\n", CRLF)


class Survey:
    """Determines the size of a message on the wire, and the form of its lines, from its octets."""

    def __init__(self) -> None:
        self.stored = 0
        """Number of stored octets."""
        self.dotted = 0
        """Number of lines that begin with a dot, if all lines end with CRLF."""
        self._ends = LineEndings()
        self._last = b"\n"  # the previous octet; a message begins at the start of a line

    def feed(self, octets: bytes) -> None:
        self.stored += len(octets)
        self._ends.feed(octets)
        self.dotted += len(_DOTTED.findall(self._last + octets))
        self._last = octets[-1:] or self._last

    def finish(self) -> None:
        self._ends.finish()

    @property
    def size(self) -> int:
        """Number of octets on the wire, before byte-stuffing (RFC 1939 §11)."""
        return self._ends.size

    @property
    def has_crlf(self) -> bool:
        """Whether every line, including the last line, ends with CRLF; valid after ``finish``."""
        return self.stored == self.size


class Top:
    """Extracts the response to TOP: the header, the blank line and the first lines of the body."""

    def __init__(self, lines: int) -> None:
        self.is_finished = False
        """Whether the response is complete."""
        self._lines = lines  # number of lines of the body that are still needed
        self._in_header = True
        self._last = CRLF  # the end of the previous octets, which may be part of a line ending

    def feed(self, octets: bytes) -> bytes:
        """Return the part of ``octets`` (CRLF text) that belongs to the response."""
        if self.is_finished:
            return b""
        repeated = len(self._last)
        text = self._last + octets
        end = 0
        if self._in_header:
            blank_line = text.find(b"\r\n\r\n")
            if blank_line < 0:
                self._last = text[-3:]
                return octets
            self._in_header = False
            end = blank_line + 4
        # All lines are split by one call; a call for each line would take 13 ms for 64 KiB of empty
        # lines.
        *lines, rest = text[end:].split(CRLF, min(self._lines, len(text)))
        self._lines -= len(lines)
        if self._lines:
            self._last = rest[-1:]
            return octets
        end = len(text) - len(rest)
        self.is_finished = True
        return octets[: max(end - repeated, 0)]


class Envelope(NamedTuple):
    """The envelope of a message (RFC 5321 §2.3.1)."""

    reverse_path: str
    """The sender's address, empty for a notification (``MAIL FROM:<>``)."""
    recipient: str
    protocol: str = "LMTP"
    """Value of the ``with`` clause: SMTP, ESMTP, LMTP (RFC 3848), or ``local``."""
    peer: str = ""
    """Name (as sent by the host) and address of the sending host; empty for a local program."""

    def trace_fields(self, hostname: str, at: datetime) -> bytes:
        """Return the fields Return-Path, Delivered-To and Received (RFC 5321 §4.4).

        Raises:
            UnsafeArgument: the envelope or ``hostname`` contains a control character, which could
                forge a header field.
        """
        source = f"from {self.peer} " if self.peer else ""
        for part in (self.reverse_path, self.recipient, self.protocol, self.peer, hostname):
            if _CONTROL.search(part):
                raise UnsafeArgument("control character in the envelope")
        fields = (
            f"Return-Path: <{self.reverse_path}>\r\n"
            f"Delivered-To: {self.recipient}\r\n"
            f"Received: {source}by {hostname} (restante) with {self.protocol}\r\n"
            f"\tfor <{self.recipient}>; {_date(at.replace(microsecond=0))}\r\n"
        )
        return fields.encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _date(at: datetime) -> str:
    """Format a date for a header field (RFC 5322 §3.3).

    The result is cached, because it changes only once per second.
    """
    # ``strftime`` would use the locale's names, and ``email.utils`` takes 3 ms to import.
    return f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at:%Y %H:%M:%S %z}"


def header_insertion(message: bytes) -> tuple[int, bytes]:
    """Determine how to insert header fields before a message that begins with these octets.

    Returns:
        The number of octets to remove from the beginning of the message (an mbox "From " line is
        not a header field, RFC 5322 §2.2), and the octets to insert after the new fields (a blank
        line if the message has no header).
    """
    from_line = _FROM_LINE.match(message)
    skipped = from_line.end() if from_line is not None else 0
    has_header = _FIELD.match(message, skipped) or _BLANK_LINE.match(message, skipped)
    return skipped, b"" if has_header else b"\r\n"
