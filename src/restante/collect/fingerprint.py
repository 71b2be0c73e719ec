"""Fingerprints of messages, to decide whether two sets of octets are the same message.

``Content`` is made while a message passes by.  Its ``likeness`` covers a few header fields that the
sender wrote and that servers leave alone; other fields come and go: GNU mailutils' pop3d adds
``Status:`` and ``X-UIDL:`` at QUIT, Exchange gives other trace fields by TOP than by RETR, and a
program that has filled a Maildir may have changed line ends, folding and the fields in front.

Security: the header is not trusted.  It is searched once, up to a limit, and nothing is decoded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..scanning import ChangingMaildir, open_maildir, scan_exactly

LONGEST_HEADER = 2**18  # octets; what follows counts as the body
_FIELDS = (b"message-id", b"date", b"from", b"to", b"cc", b"subject")
_FIELD = re.compile(
    rb"^(" + b"|".join(_FIELDS) + rb")[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(rb"(?:\A|\n)\r?\n")  # of the header
# By how much honest servers announce too much: they round sizes up to the next KiB, or count header
# lines that they do not send (mbox "From ", X-UIDL, Status: some hundred octets).
_TOLERANCE = 1024  # octets; one more is allowed per line, since some servers count line ends twice
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
    likeness: bytes | None = None
    """See ``likeness``; None if unknown, or if the header has neither Message-ID nor Date."""

    def is_same(self, other: Content) -> bool:
        """Return whether both are the same message, even if a server rewrote other fields."""
        if self.digest == other.digest:
            return True
        if self.likeness is None or self.body is None:
            return False
        return self.likeness == other.likeness and self.body == other.body


def likeness(header: bytes) -> bytes | None:
    """Return the SHA-256 of the fields that the sender wrote, with white space normalised.

    None: the header has neither a Message-ID nor a Date, although RFC 5322 §3.6 requires a Date, so
    it could belong to many messages.
    """
    fields = defaultdict(list)
    for name, value in _FIELD.findall(header):
        fields[name.lower()].append(b" ".join(value.split()))
    if not (fields[b"message-id"] or fields[b"date"]):
        return None
    return sha256(b"\0".join(b"\1".join(fields[name]) for name in _FIELDS)).digest()


def header_of(octets: bytes) -> bytes:
    """Return the header, at most ``LONGEST_HEADER`` octets of it."""
    end = _END.search(octets, 0, LONGEST_HEADER)
    return octets[: end.start() if end else LONGEST_HEADER]


class ContentReader:
    """Makes the ``Content`` of a message that is received in pieces."""

    def __init__(self) -> None:
        self.octets = 0
        """Number of octets received so far."""
        self._lines = 0
        self._whole, self._body = sha256(), sha256()
        self._header = bytearray()
        self._is_in_body = False

    def feed(self, piece: bytes) -> None:
        self.octets += len(piece)
        self._lines += piece.count(b"\n")
        self._whole.update(piece)
        if self._is_in_body:
            self._body.update(piece)
            return
        begin = max(len(self._header) - 2, 0)  # a blank line may be cut in two
        self._header += piece
        end = _END.search(self._header, begin)
        if end is not None or len(self._header) > LONGEST_HEADER:
            at = min(end.end() if end is not None else LONGEST_HEADER, LONGEST_HEADER)
            self._is_in_body = True
            self._body.update(self._header[at:])
            del self._header[at:]

    def content(self) -> Content:
        """Return the fingerprints of everything received."""
        mark = likeness(header_of(bytes(self._header)))
        return Content(self._whole.digest(), self._body.digest(), mark)

    def is_short(self, announced: int) -> bool:
        """Return whether much less was received than ``announced``, in octets.

        Servers that fail to read a message may end it as if it were complete, as Dovecot does.
        """
        return announced - self.octets > self._lines + _TOLERANCE

    def is_substitute(self, announced: int) -> bool:
        """Return whether this is the notice Exchange sends for mail that it cannot convert."""
        if self.octets >= announced or b"microsoft exchange" not in self._header.lower():
            return False
        return _SUBSTITUTE.search(self._header) is not None


def in_maildir(path: Path) -> Counter[bytes]:
    """Count the messages of each likeness in a Maildir and its folders.

    Raises:
        TemporaryFailure: another program keeps renaming its files.
        OSError: the path cannot be read or is not a Maildir.
    """
    counts: Counter[bytes] = Counter()
    for file in _messages(path):
        try:
            opened = file.open("rb")
        except FileNotFoundError as error:  # renamed since it was seen
            raise ChangingMaildir from error
        with opened:
            if mark := likeness(header_of(opened.read(LONGEST_HEADER))):
                counts[mark] += 1
    return counts


def _messages(path: Path) -> Iterator[Path]:
    with open_maildir(path) as maildir:
        yield from [path / file.directory / file.name for file in scan_exactly(maildir)]
    for folder in path.iterdir():
        is_folder = folder.name not in ("new", "cur", "tmp") and not folder.is_symlink()
        if is_folder and (folder / "cur").is_dir():
            yield from _messages(folder)
