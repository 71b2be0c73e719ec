"""Extract sender, subject and date of a message for display.

Standards: RFC 5322 §2.2.3 (folding), RFC 2047 (encoded words), RFC 6532 (UTF-8 in headers).
Security: the header is untrusted.  No header can raise an error, take more than linear
time, or reach a terminal unescaped.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import AsyncIterator
from contextlib import suppress

from ..escaping import printable

_HEADER = 65_536  # octets of a header that are searched; mail programs write shorter headers
_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_FIELD = re.compile(rb"^(from|subject|date)[ \t]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"=\?([^?\s*]{1,60})(?:\*[^?\s]*)?\?([BbQq])\?([^?\s]*)\?=")
_SLOW_CODECS = ("idna", "punycode")  # codecs for host names that take quadratic time
_MAX_DATE = 31  # characters, as "Thu, 13 Feb 1969 23:32:54 -0330"


async def read_summary(pieces: AsyncIterator[bytes]) -> dict[str, str]:
    """Return ``sender``, ``subject`` and ``date`` of a message; empty if missing."""
    octets = b""
    async for piece in pieces:
        octets += piece
        if _END.search(octets) or len(octets) > _HEADER:
            break
    return summarise(octets)


def summarise(octets: bytes) -> dict[str, str]:
    text = octets[:_HEADER]
    header = _FOLD.sub(b"", text[: end.end()] if (end := _END.search(text)) else text)
    fields: dict[bytes, bytes] = {}
    for name, value in _FIELD.findall(header):
        fields.setdefault(name.lower(), value)
    return {
        "sender": decoded(fields.get(b"from", b"")),
        "subject": decoded(fields.get(b"subject", b"")),
        "date": decoded(fields.get(b"date", b""))[:_MAX_DATE],
    }


def decoded(value: bytes) -> str:
    """Return a field's value as one line of text; octets that are not UTF-8 are read as Latin-1."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    parts, offset, pending, charset = [], 0, b"", ""
    for match in _WORD.finditer(text):
        gap, octets = text[offset : match.start()], _octets(match[2], match[3])
        offset = match.end()
        if octets is None or not _is_known(match[1]):
            parts += [_text(pending, charset), gap, match[0]]  # unchanged
            pending, charset = b"", ""
            continue
        follows_another = bool(charset) and not gap.strip()
        if not follows_another or charset != match[1].lower():
            parts.append(_text(pending, charset))
            pending = b""
        if not follows_another:  # white space between encoded words is dropped (RFC 2047)
            parts.append(gap)
        pending, charset = pending + octets, match[1].lower()  # a word may end inside a character
    parts += [_text(pending, charset), text[offset:]]
    return printable(" ".join("".join(parts).split()))


def _octets(encoding: str, word: str) -> bytes | None:
    """Return the decoded octets; None if the encoded word is invalid."""
    with suppress(ValueError):
        if encoding in "Qq":
            return binascii.a2b_qp(word.encode(), header=True)
        return base64.b64decode(word + "=" * (-len(word) % 4), validate=True)
    return None


def _is_known(charset: str) -> bool:
    try:
        "".encode(charset)  # fails for codecs that are only for octets
    except (LookupError, ValueError):
        return False
    return codecs.lookup(charset).name not in _SLOW_CODECS


def _text(octets: bytes, charset: str) -> str:
    return octets.decode(charset, "replace") if octets else ""
