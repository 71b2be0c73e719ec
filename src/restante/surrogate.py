"""Surrogates: a message whose header is in UTF-8, for a client that did not ask for that.

Standards: RFC 6856 §2.1, §5; RFC 6858 §2 (what a surrogate is), §4 (sizes); RFC 2047; RFC 6532.
A surrogate has as many octets as its original, so that sizes need not be known beforehand and
STAT, LIST and RETR agree without a look into any message: what is too short gets a comment, and
what is too long loses fields that nobody reads first.
Security: an address that cannot be shown becomes one that is nobody's, never one that might be
somebody's.  Header sections of more than 64 KiB are not looked into.  The time grows with the
octets of the header, not faster; even so, make surrogates outside the event loop.
Limits: only the header of the message itself; those of its parts stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import getaddresses

from .errors import NeedsUTF8
from .headers import encoded_words, folded, is_bounded, split_addresses
from .wire import CRLF

NOBODY = "invalid@internationalized-address.invalid"  # RFC 6858 §2.1.1
_MAX_HEADER = 65_536  # octets
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
# What makes room first: everything else, then these from the end.
_WANTED = (
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
_NOTE = b" This stands for a message in UTF-8 (RFC 6858)."
_FOLD = b"\r\n " + b"." * 70


class Downgrade:
    """Takes a message in pieces of CRLF text; gives its surrogate, or itself if it needs none."""

    def __init__(self) -> None:
        self._held: bytes | None = b""  # of the header; None: it is over

    @property
    def is_in_header(self) -> bool:
        """False when everything that follows is passed on unchanged."""
        return self._held is not None

    def feed(self, octets: bytes) -> bytes:
        """
        Raises:
            NeedsUTF8: no surrogate of that size can be made; nothing was given out.
        """
        if self._held is None:
            return octets
        held = self._held + octets
        end = 0 if held.startswith(CRLF) else held.find(b"\r\n\r\n") + 2
        if end == 1 and len(held) <= _MAX_HEADER:
            self._held = held
            return b""
        self._held = None
        return held if end == 1 else surrogate(held[:end]) + held[end:]

    def finish(self) -> bytes:
        """The rest: a header without a body."""
        held, self._held = self._held, None
        return surrogate(held) if held else b""


def surrogate(header: bytes) -> bytes:
    """Of a header, without the blank line; as many octets of ASCII as it has of UTF-8.

    A header in ASCII, or in some other encoding, is its own.

    Raises:
        NeedsUTF8: there is no room, or the header is too malformed to be shown.
    """
    if header.isascii():
        return header
    try:
        text = header.decode()
    except UnicodeDecodeError:
        return header
    try:
        return _made(text, len(header))
    except NeedsUTF8:
        raise
    except Exception as error:  # the standard library raises almost any on malformed addresses
        raise NeedsUTF8 from error


def _made(text: str, size: int) -> bytes:
    fields = re.findall(r"[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", text)
    if sum(map(len, fields)) != len(text):
        raise NeedsUTF8  # bare CR or LF: no header that anybody could agree on
    shown = [each for each in map(_shown, fields) if each]
    return _fitted(shown, size)


def _shown(field: str) -> bytes:
    """In ASCII; empty if it cannot be shown."""
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
        members = [shown for member in split_addresses(value) for shown in _addresses(member)]
        return _field(name, ",\r\n ".join(members))
    if kind in ("content-type", "content-disposition"):
        ascii_parts = [part for part in value.split(";") if part.isascii()]
        return _field(name, ";".join(ascii_parts)) if ascii_parts else b""
    return b""


def _addresses(member: str) -> list[str]:
    """A member of an address-list: one address, or all of a group."""
    found = getaddresses([member]) if is_bounded(member) else []
    if not any(address for _, address in found):
        return [f"{_encoded(member)} <{NOBODY}>"]
    return [_address(name, address) for name, address in found]


def _address(name: str, address: str) -> str:
    shown = _quoted(name) if (name or address).isascii() else _encoded(name or address)
    is_plain = address.isascii() and re.fullmatch(r"[!-~]+", address)
    return f"{shown} <{address if is_plain else NOBODY}>".lstrip()


def _quoted(name: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"' if name else ""


def _encoded(text: str) -> str:
    return "\r\n ".join(encoded_words(text))


def _field(name: str, value: str) -> bytes:
    return f"{name}: {value}\r\n".encode("ascii")


def _fitted(fields: Sequence[bytes], size: int) -> bytes:
    kept: list[bytes] = list(fields)
    total = sum(map(len, fields))
    for at in sorted(reversed(range(len(fields))), key=lambda at: _worth(fields[at])):
        if total <= size:
            break
        if _worth(fields[at]) < len(_WANTED):  # From stays
            total -= len(fields[at])
            kept[at] = b""
    room = size - total
    if room < 0 or not any(kept):
        raise NeedsUTF8
    least = len(b"Comments:" + _NOTE + CRLF)
    if room < least:
        return b"".join(kept)[:-2] + b" " * room + CRLF
    folds, rest = divmod(room - least, len(_FOLD))
    return b"".join(kept) + b"Comments:" + _NOTE + b"." * rest + _FOLD * folds + CRLF


def _worth(field: bytes) -> int:
    name = field.partition(b":")[0].decode("latin-1").strip().lower()
    return len(_WANTED) - _WANTED.index(name) if name in _WANTED else 0
