"""Message files that another program has compressed or encrypted in a Maildir.

Such files are recognised by their first octets, because file names differ between programs.  No
plain message can begin with these octets, because field names are printable ASCII (RFC 5322 §2.2).

Formats: gzip (RFC 1952), bzip2, zstd (RFC 8878), xz, the LZ4 frame format, and Dovecot's own
LZ4 and mail_crypt.
Limits: only gzip and bzip2 can be unpacked.  Memory and size are limited, because a few kB may
unpack to gigabytes.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable, Iterable, Iterator

from ..errors import PermanentFailure

ENCODED_ERROR = "message was compressed or encrypted by another program"
PREFIX_LENGTH = 16
"""Number of octets at the start of a file that ``encoding_of`` examines."""

_ENCODINGS = re.compile(
    rb"""(?P<gzip>\x1f\x8b)
    | (?P<bzip2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))
    | (?P<zstd>\x28\xb5\x2f\xfd)
    | (?P<xz>\xfd7zXZ\x00)
    | (?P<lz4>\x04\x22\x4d\x18 | Dovecot-LZ4\r\x2a\x9b\xc5)
    | (?P<encryption>CRYPTED\x03\x07)""",
    re.VERBOSE,
)
_PIECE = 65_536  # octets unpacked at a time


def encoding_of(first: bytes) -> str:
    """Return the encoding of a file with these first octets, empty for a plain file."""
    match = _ENCODINGS.match(first)
    return (match.lastgroup or "") if match else ""


class _Gzip:
    """Gives zlib's decompressor the interface of bz2's, which buffers unused input internally."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)  # 31: gzip format, including its checksum

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


_Unpacker = _Gzip | bz2.BZ2Decompressor
_UNPACKERS: dict[str, Callable[[], _Unpacker]] = {"gzip": _Gzip, "bzip2": bz2.BZ2Decompressor}
UNPACKED = frozenset(_UNPACKERS)
"""Encodings that ``unpacked`` supports."""


def unpacked(pieces: Iterable[bytes], encoding: str, limit: int) -> Iterator[bytes]:
    """Yield the unpacked message in pieces of at most 64 KiB.  ``limit`` is in octets.

    Raises:
        PermanentFailure: the data is damaged or incomplete, or the message exceeds the limit.
    """
    size = 0
    try:
        for piece in _unpacked(pieces, _UNPACKERS[encoding]):
            if (size := size + len(piece)) > limit:
                raise PermanentFailure(f"larger than {limit} octets when unpacked")
            yield piece
    except (zlib.error, OSError, EOFError) as error:
        raise PermanentFailure(f"damaged {encoding} data") from error


def _unpacked(pieces: Iterable[bytes], new_unpacker: Callable[[], _Unpacker]) -> Iterator[bytes]:
    """Unpack all streams of a file, which may contain several streams in succession."""
    unpacker, has_begun = new_unpacker(), False
    for piece in pieces:
        rest, has_begun = piece, has_begun or bool(piece)
        while True:
            if unpacker.eof:
                if not rest:
                    break
                unpacker = new_unpacker()
            octets = unpacker.decompress(rest, _PIECE)
            rest = unpacker.unused_data if unpacker.eof else b""
            if octets:
                yield octets
            elif not unpacker.eof:
                break
    if has_begun and not unpacker.eof:
        raise EOFError
