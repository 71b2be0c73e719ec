"""Lines and multi-line responses, octet by octet (RFC 1939 §3, RFC 2449 §4).

Security: all input is untrusted.  A line ends only with CRLF, in every state and in both
directions.  Therefore restante never reads two lines where another program along the way reads a
single line, or vice versa.  Memory is bounded by the limits.
"""

from __future__ import annotations

import re

from .errors import BareLineFeed, HostileInput, NulOctet, OverlongLine

CRLF = b"\r\n"
TERMINATION = b".\r\n"  # the line that contains only the termination octet
MAX_COMMAND = 255  # octets, CRLF included (RFC 2449 §4)
MAX_RESPONSE = 512  # octets of a first line, CRLF included (RFC 1939 §3)
MAX_DISCARD = 131_072  # octets of an overlong line that are discarded; not based on an RFC
# First words of other protocols.  A browser that was tricked into connecting to a mail server gets
# no response (ALPACA, https://alpaca-attack.com).
_HTTP = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI")
FOREIGN_PROTOCOLS = frozenset((*_HTTP, "HOST:", "PROXY"))


class LineBuffer:
    """Splits received octets into lines."""

    __slots__ = ("_discarded", "_octets", "_scanned", "limit")

    def __init__(self, limit: int = MAX_COMMAND) -> None:
        self.limit = limit  # octets, CRLF included
        self._octets = bytearray()
        self._scanned = 0  # octets already searched without finding a line ending
        self._discarded = -1  # discarded octets of the current overlong line; -1 if not overlong

    @property
    def unread(self) -> int:
        """Number of octets that have not been taken yet."""
        return len(self._octets)

    def feed(self, octets: bytes) -> None:
        self._octets += octets

    def next_line(self) -> bytes | None:
        """Return the next line without its CRLF, or None if more octets are needed.

        Raises:
            OverlongLine: the line has more than ``limit`` octets; raised once per line, before the
                end of the line.
            BareLineFeed: the line contains an LF without a CR.
            NulOctet: the line contains NUL; may be raised before the end of the line.
            HostileInput: an overlong line does not end within 128 KiB.
        """
        while self._octets:
            end = self._octets.find(b"\n", self._scanned)
            if self._discarded >= 0:
                if end < 0:
                    self._discard_unfinished()
                    return None
                self._discard(self._take(end + 1))
                continue
            if 0 <= end < self.limit:
                line = self._take(end + 1)
                if b"\0" in line:
                    raise NulOctet
                if not line.endswith(CRLF):
                    raise BareLineFeed
                return line[:-2]
            if self._octets.find(b"\0", self._scanned, self.limit) >= 0:
                self._discarded = 0
                raise NulOctet
            if end < 0 and len(self._octets) < self.limit:
                self._scanned = len(self._octets)
                return None
            self._discarded = 0
            raise OverlongLine(self.limit)
        return None

    def match(self, lines: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Match complete lines, including their CRLF, at the beginning; ``skip`` removes them."""
        return lines.match(self._octets) if self._discarded < 0 else None

    def skip(self, lines: int) -> None:
        """Remove this number of lines after ``match`` has matched them."""
        end = 0
        for _ in range(lines):
            end = self._octets.index(10, end) + 1  # LF
        del self._octets[:end]
        self._scanned = 0

    def take_all(self) -> bytes:
        """Take all octets, for data that is not lines."""
        return self._take(len(self._octets))

    def _discard_unfinished(self) -> None:
        """Discard all octets except a final CR, because an LF may follow."""
        keep = 1 if self._octets.endswith(b"\r") else 0
        self._discard(self._take(len(self._octets) - keep))
        self._scanned = keep

    def _discard(self, octets: bytes) -> None:
        self._discarded += len(octets)
        if octets.endswith(CRLF):
            self._discarded = -1
        elif self._discarded > MAX_DISCARD:
            raise HostileInput("an endless line")

    def _take(self, count: int) -> bytes:
        octets = bytes(self._octets[:count])
        del self._octets[:count]
        self._scanned = 0
        return octets


def stuffed(text: bytes) -> bytes:
    """Byte-stuff the complete CRLF text of a response, as ``Stuffer`` does for pieces."""
    if text.startswith(b"."):
        text = b"." + text
    return _doubled(text)


def _doubled(text: bytes) -> bytes:
    """Double the dots that follow a line ending."""
    # Base64 text has no dots, and a search for one octet is ten times as fast as for three octets.
    return text.replace(b"\r\n.", b"\r\n..") if b"." in text else text


class Stuffer:
    """Byte-stuffs one multi-line response (RFC 1939 §3).

    CRLF text is fed in pieces of any size.  ``finish`` returns the line of the termination octet.
    """

    def __init__(self) -> None:
        self._last = CRLF  # the last two octets; the response begins at the start of a line

    def feed(self, octets: bytes) -> bytes:
        border = self._last + octets[:2]
        last, self._last = self._last, octets[-2:] if len(octets) > 1 else border[-2:]
        if b"\r\n." in border:  # across two pieces, where ``_doubled`` cannot find it
            return _doubled(last + octets)[len(last) :]
        return _doubled(octets)

    def finish(self) -> bytes:
        return TERMINATION if self._last == CRLF else CRLF + TERMINATION


class Unstuffer:
    """Extracts the content of one multi-line response, without the line of the termination octet.

    The response ends only at CRLF.CRLF.  A dot between bare LFs is content; otherwise a message
    could forge responses if the server passes on bare LFs.
    """

    _END = b"\r\n.\r\n"

    def __init__(self) -> None:
        self.is_finished = False
        self.rest = b""
        """Octets after the end of the response; they belong to the next response."""
        self._pending = CRLF  # may be the start of the end marker
        self._virtual = 2  # octets of an imaginary CRLF before the response, not content

    def feed(self, octets: bytes) -> bytes:
        """Feed octets, and return the octets that are certainly content."""
        text = self._pending + octets
        end = text.find(self._END)
        if end >= 0:
            self.is_finished = True
            self.rest = text[end + len(self._END) :]
            content, self._pending = text[: end + 2], b""
        else:
            keep = next((n for n in (4, 3, 2, 1) if text.endswith(self._END[:n])), 0)
            content, self._pending = text[: len(text) - keep], text[len(text) - keep :]
        content = content.replace(b"\r\n.", CRLF)
        if self._virtual and content:
            # The virtual CRLF is removed completely or not at all.
            content = content[self._virtual :]
            self._virtual = 0
        return content
