"""Fingerprints of messages, to decide whether two sequences of octets are the same message.

``Content`` is computed while a message is received.  Its ``header_digest`` covers a few header
fields that the sender wrote and that servers do not change.  Other fields may differ between two
copies of a message: GNU mailutils' pop3d adds ``Status:`` and ``X-UIDL:`` at QUIT, Exchange returns
different trace fields for TOP and for RETR, and the program that wrote a Maildir may have changed
line endings and folding, and added fields at the top.

Security: the header is not trusted.  It is searched once, up to a limit, and never decoded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..scanning import ChangingMaildir, open_maildir, scan_exactly

LONGEST_HEADER = 2**18  # octets of a message after which all octets are treated as the body
_FIELDS = (b"message-id", b"date", b"from", b"to", b"cc", b"subject")
_FIELD = re.compile(
    rb"^(" + b"|".join(_FIELDS) + rb")[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER_END = re.compile(rb"(?:\A|\n)\r?\n")
# Number of octets by which the announced size may exceed the size of a complete message.  Some
# servers round sizes up to the next KiB, or count header lines that they do not send (mbox "From ",
# X-UIDL and Status, a few hundred octets).  ``is_short`` allows one more octet per line, because
# some servers announce too many octets for line endings.
_TOLERANCE = 1024
_SUBSTITUTE = re.compile(
    rb"^subject:[^\n]*retrieval using the [a-z0-9]+ protocol failed", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Content:
    """The fingerprints of one message's CRLF text."""

    digest: bytes
    """SHA-256 of all octets."""
    body: bytes | None = None
    """SHA-256 of the text after the header; None if unknown."""
    header_digest: bytes | None = None
    """Result of ``header_digest``; None if unknown, or if both Message-ID and Date are missing."""

    def is_same(self, other: Content) -> bool:
        """Return whether both are the same message, even if their trace fields differ."""
        if self.digest == other.digest:
            return True
        if self.header_digest is None or self.body is None:
            return False
        return self.header_digest == other.header_digest and self.body == other.body


def header_digest(header: bytes) -> bytes | None:
    """Return the SHA-256 of the fields that the sender wrote, with white space normalised.

    The result is None if the header has neither Message-ID nor Date, because its digest could match
    many messages.
    """
    fields = defaultdict(list)
    for name, value in _FIELD.findall(header):
        fields[name.lower()].append(b" ".join(value.split()))
    if not (fields[b"message-id"] or fields[b"date"]):
        return None
    return sha256(b"\0".join(b"\1".join(fields[name]) for name in _FIELDS)).digest()


def header_of(octets: bytes) -> bytes:
    """Return the header of a message, truncated to ``LONGEST_HEADER`` octets."""
    end = _HEADER_END.search(octets, 0, LONGEST_HEADER)
    return octets[: end.start() if end else LONGEST_HEADER]


class ContentReader:
    """Computes the ``Content`` of a message that is received in pieces."""

    def __init__(self) -> None:
        self.octets = 0
        """Number of octets received so far."""
        self._lines = 0
        self._whole, self._body = sha256(), sha256()
        self._header = bytearray()
        self._is_in_body = False

    def feed(self, piece: bytes) -> None:
        """Process the next piece of the message, as CRLF text."""
        self.octets += len(piece)
        self._lines += piece.count(b"\n")
        self._whole.update(piece)
        if self._is_in_body:
            self._body.update(piece)
            return
        begin = max(len(self._header) - 2, 0)  # a blank line may be split between two pieces
        self._header += piece
        end = _HEADER_END.search(self._header, begin)
        if end is not None or len(self._header) > LONGEST_HEADER:
            size = min(end.end() if end is not None else LONGEST_HEADER, LONGEST_HEADER)
            self._is_in_body = True
            self._body.update(self._header[size:])
            del self._header[size:]

    def content(self) -> Content:
        """Return the fingerprints of all octets received so far."""
        digest = header_digest(header_of(bytes(self._header)))
        return Content(self._whole.digest(), self._body.digest(), digest)

    def is_short(self, announced: int) -> bool:
        """Return whether the message is much smaller than the ``announced`` number of octets.

        A server that fails to read a message, such as Dovecot, may end the response as if the
        message were complete.
        """
        return announced - self.octets > self._lines + _TOLERANCE

    def is_substitute(self, announced: int) -> bool:
        """Return whether Exchange sent a notice instead of a message that it cannot convert."""
        if self.octets >= announced or b"microsoft exchange" not in self._header.lower():
            return False
        return _SUBSTITUTE.search(self._header) is not None


def in_maildir(path: Path) -> Counter[bytes]:
    """Count the messages in a Maildir and its folders by their header digests.

    Raises:
        TemporaryFailure: another program keeps renaming files.
        OSError: the path cannot be read or is not a Maildir.
    """
    counts: Counter[bytes] = Counter()
    for file in _messages(path):
        try:
            opened = file.open("rb")
        except FileNotFoundError as error:  # renamed since it was listed
            raise ChangingMaildir from error
        with opened:
            if digest := header_digest(header_of(opened.read(LONGEST_HEADER))):
                counts[digest] += 1
    return counts


def _messages(path: Path) -> Iterator[Path]:
    with open_maildir(path) as maildir:
        yield from [path / file.directory / file.name for file in scan_exactly(maildir)]
    for folder in path.iterdir():
        is_folder = folder.name not in ("new", "cur", "tmp") and not folder.is_symlink()
        if is_folder and (folder / "cur").is_dir():
            yield from _messages(folder)
