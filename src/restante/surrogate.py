"""Make surrogates: ASCII versions of messages with a UTF-8 header, for clients without UTF8.

Standards: RFC 6856 §2.1, §5; RFC 6858 §2 (what a surrogate is), §4 (sizes); RFC 2047; RFC 6532.
A surrogate has exactly the size of its original, so STAT, LIST and RETR agree, although the server
does not convert messages to determine their size.  If the surrogate is too short, a Comments field
is added.  If it is too long, fields are removed, the least important first.
Security: an address that cannot be shown is replaced by one that can never exist, so that no reply
reaches another user.  Header sections of more than 64 KiB are passed on unchanged.  The time is
linear in the octets of the header; nevertheless, make surrogates outside the event loop.
Limits: changes only the header of the message itself, not those of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import getaddresses

from .errors import NeedsUTF8
from .headers import encoded_words, folded, is_bounded, split_addresses
from .wire import CRLF

INVALID_ADDRESS = "invalid@internationalized-address.invalid"  # RFC 6858 §2.1.1
_MAX_HEADER = 65_536  # octets; chosen without measurement
_ADDRESSES = (
    "bcc",
    "cc",
    "from",
    "reply-to",
    "return-path",
    "sender",
    "to",
    "resent-bcc",
    "resent-cc",
    "resent-from",
    "resent-sender",
    "resent-to",
)
_WORDS = ("subject", "comments", "content-description")
# Fields to keep.  To make room, all other fields are dropped first, then these, the last first.
_KEPT = (
    "from",
    "subject",
    "date",
    "to",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "message-id",
    "reply-to",
    "cc",
    "sender",
    "in-reply-to",
)
_NOTE = b" ASCII version of the UTF-8 message (RFC 6858)."
_FOLD = b"\r\n " + b"." * 70


class Downgrade:
    """Converts a message to its surrogate if it needs one; fed with pieces of CRLF text."""

    def __init__(self) -> None:
        self._pending: bytes | None = b""  # part of the header; None: the header has ended

    @property
    def is_in_header(self) -> bool:
        """Whether the header has not ended yet; the body is passed on unchanged."""
        return self._pending is not None

    def feed(self, octets: bytes) -> bytes:
        """Take a piece of the message and return the octets that can be sent.

        Raises:
            NeedsUTF8: no surrogate of this size can be created; no octets have been returned.
        """
        if self._pending is None:
            return octets
        pending = self._pending + octets
        end = 0 if pending.startswith(CRLF) else pending.find(b"\r\n\r\n") + 2
        if end == 1 and len(pending) <= _MAX_HEADER:
            self._pending = pending
            return b""
        self._pending = None
        return pending if end == 1 else surrogate(pending[:end]) + pending[end:]

    def finish(self) -> bytes:
        """Return the rest at the end of the message: a header without a body."""
        pending, self._pending = self._pending, None
        return surrogate(pending) if pending else b""


def surrogate(header: bytes) -> bytes:
    """Return the surrogate of a header without its blank line: ASCII, and the same size in octets.

    A header that is ASCII, or not UTF-8, is returned unchanged.

    Raises:
        NeedsUTF8: the surrogate is too large, or the header is malformed.
    """
    if header.isascii():
        return header
    try:
        text = header.decode()
    except UnicodeDecodeError:
        return header
    try:
        return _build(text, len(header))
    except NeedsUTF8:
        raise
    except Exception as error:  # the standard library raises many types on malformed addresses
        raise NeedsUTF8 from error


def _build(text: str, size: int) -> bytes:
    fields = re.findall(r"[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", text)
    if sum(map(len, fields)) != len(text):
        raise NeedsUTF8  # bare CR or LF: programs would read the header differently
    converted = [each for each in map(_to_ascii, fields) if each]
    return _fit_to_size(converted, size)


def _to_ascii(field: str) -> bytes:
    """Return a field in ASCII; empty if that is not possible."""
    if field.isascii():
        return field.encode()
    name, colon, value = field.partition(":")
    value = " ".join(re.sub(r"\r\n(?=[ \t])", "", value).split())
    kind = name.strip().lower()
    if not colon or not name.isascii():
        return b""
    if kind in _WORDS:
        return folded(name, value).encode("ascii")
    if kind in _ADDRESSES:
        members = [each for member in split_addresses(value) for each in _addresses(member)]
        return _field(name, ",\r\n ".join(members))
    if kind in ("content-type", "content-disposition"):
        ascii_parts = [part for part in value.split(";") if part.isascii()]
        return _field(name, ";".join(ascii_parts)) if ascii_parts else b""
    return b""


def _addresses(member: str) -> list[str]:
    """Return the addresses of one member of an address-list: one, or all of a group."""
    addresses = getaddresses([member]) if is_bounded(member) else []
    if not any(address for _, address in addresses):
        return [f"{_encoded(member)} <{INVALID_ADDRESS}>"]
    return [_address(name, address) for name, address in addresses]


def _address(name: str, address: str) -> str:
    display_name = _quoted(name) if (name or address).isascii() else _encoded(name or address)
    is_plain = address.isascii() and re.fullmatch(r"[!-~]+", address)
    return f"{display_name} <{address if is_plain else INVALID_ADDRESS}>".lstrip()


def _quoted(name: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"' if name else ""


def _encoded(text: str) -> str:
    return "\r\n ".join(encoded_words(text))


def _field(name: str, value: str) -> bytes:
    return f"{name}: {value}\r\n".encode("ascii")


def _fit_to_size(fields: Sequence[bytes], size: int) -> bytes:
    remaining: list[bytes] = list(fields)
    total = sum(map(len, fields))
    for index in sorted(reversed(range(len(fields))), key=lambda index: _priority(fields[index])):
        if total <= size:
            break
        if _priority(fields[index]) < len(_KEPT):  # From is never dropped
            total -= len(fields[index])
            remaining[index] = b""
    room = size - total
    if room < 0 or not any(remaining):
        raise NeedsUTF8
    min_size = len(b"Comments:" + _NOTE + CRLF)
    if room < min_size:
        return b"".join(remaining)[:-2] + b" " * room + CRLF
    folds, rest = divmod(room - min_size, len(_FOLD))
    return b"".join(remaining) + b"Comments:" + _NOTE + b"." * rest + _FOLD * folds + CRLF


def _priority(field: bytes) -> int:
    name = field.partition(b":")[0].decode("latin-1").strip().lower()
    return len(_KEPT) - _KEPT.index(name) if name in _KEPT else 0
