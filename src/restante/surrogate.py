"""Surrogates: a message whose header is in UTF-8, for a client that did not ask for that.

Standards: RFC 6856 §2.1, §5; RFC 6858 §2 (what a surrogate is), §4 (sizes); RFC 2047; RFC 6532.
A surrogate has as many octets as its original, so that sizes need not be known beforehand and
STAT, LIST and RETR agree without a look into any message: what is too short gets a comment, and
what is too long loses fields that nobody reads first.
Security: an address that cannot be shown becomes one that is nobody's, never one that might be
somebody's.  Header sections of more than 64 KiB are not looked into.
Limits: only the header of the message itself; those of its parts stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.header import Header
from email.utils import getaddresses

from .errors import NeedsUTF8
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
        NeedsUTF8: there is no room.
    """
    if header.isascii():
        return header
    try:
        text = header.decode()
    except UnicodeDecodeError:
        return header
    fields = re.findall(r"[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", text)
    if sum(map(len, fields)) != len(text):
        raise NeedsUTF8  # bare CR or LF: no header that anybody could agree on
    shown = [each for each in map(_shown, fields) if each]
    return _fitted(shown, len(header))


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
        return _field(name, _encoded(name, value))
    if kind in _ADDRESSES:
        return _field(name, ",\r\n ".join(map(_address, getaddresses([value]))))
    if kind in ("content-type", "content-disposition"):
        ascii_parts = [part for part in value.split(";") if part.isascii()]
        return _field(name, ";".join(ascii_parts)) if ascii_parts else b""
    return b""


def _address(found: tuple[str, str]) -> str:
    name, address = found
    told = _encoded("", name or address) if not (name or address).isascii() else _quoted(name)
    is_plain = address.isascii() and re.fullmatch(r"[!-~]+", address)
    return f"{told} <{address if is_plain else NOBODY}>".lstrip()


def _quoted(name: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"' if name else ""


def _encoded(name: str, value: str) -> str:
    return Header(value, "utf-8", maxlinelen=75, header_name=name).encode(linesep="\r\n")


def _field(name: str, value: str) -> bytes:
    return f"{name}: {value}\r\n".encode("ascii")


def _fitted(fields: Sequence[bytes], size: int) -> bytes:
    kept = list(fields)
    for field in sorted(reversed(fields), key=_worth):
        if sum(map(len, kept)) <= size:
            break
        if _worth(field) < len(_WANTED):  # From stays
            kept.remove(field)
    room = size - sum(map(len, kept))
    if room < 0 or not kept:
        raise NeedsUTF8
    least = len(b"Comments:" + _NOTE + CRLF)
    if room < least:
        return b"".join(kept)[:-2] + b" " * room + CRLF
    folds, rest = divmod(room - least, len(_FOLD))
    return b"".join(kept) + b"Comments:" + _NOTE + b"." * rest + _FOLD * folds + CRLF


def _worth(field: bytes) -> int:
    name = field.partition(b":")[0].decode("latin-1").strip().lower()
    return len(_WANTED) - _WANTED.index(name) if name in _WANTED else 0
