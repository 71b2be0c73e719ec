"""Find the messages in mbox files of servers, mail programs and exports, with their unique-ids.

This module does no I/O.  Programs do not agree on a grammar for mbox (RFC 4155 appendix A), so the
beginning of a message is inferred from the previous line, the date in its From_ line, and the next
line.  Content-Length is ignored, because any sender can write this field.  Lines that may or may
not begin a message are reported.

Formats: mboxo, mboxrd (``>From`` quoting); UW's server (X-IMAP, X-UID), qpopper (X-UIDL),
Thunderbird (``From - …``, X-Mozilla-Status), Google Takeout; LF or CRLF, with or without empty
lines between messages.
Limits: lines may have any length if the caller passes long lines in pieces.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import PermanentFailure
from .adopted import UNIQUE_ID

_BOMS = {b"\xef\xbb\xbf": "", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_MONTHS = b"Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_DATED = re.compile(
    rb"From (?=.*\b(?:%b)\b)(?=.*\b[0-9]{1,2}:[0-9]{2})(?=.*\b(?:19|20)[0-9]{2}\b)" % _MONTHS
)
_FROM = re.compile(rb"From(?: |\r?\n)")
_BARE = re.compile(rb"From(?: +\S+)?[ \t]*\r?\n?")  # only a sender or "-"
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
# The first field of nearly every message.
_FIRST_FIELD = re.compile(
    rb"(?:Return-Path|Received|Delivered-To|X-[A-Za-z0-9-]+|From|Date|Subject|To|Message-ID|Sender"
    rb"|Reply-To|MIME-Version|Content-[A-Za-z-]+|Status|DKIM-Signature|ARC-[A-Za-z-]+|Envelope-To"
    rb"|Authentication-Results|DomainKey-Signature|List-[A-Za-z-]+|References|In-Reply-To|Cc"
    rb"):",
    re.IGNORECASE,
)
_QUOTED = re.compile(rb">?From ")
_RECORDED_FIELD = re.compile(rb"(X-UIDL|X-UID|X-IMAP(?:base)?|Subject): *([^\r\n]*)", re.IGNORECASE)
# Subject of the message in which UW's server and Dovecot store their own data.
_INTERNAL = b"DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA"
_MOZILLA_STATUS = re.compile(rb"X-Mozilla-Status: *([0-9A-Fa-f]{4})")
_EXPUNGED = 0x0008  # Thunderbird flag: deleted, but not yet removed by compacting
# Fields in which programs store flags; they may change although the message does not.
_FLAGS = re.compile(
    rb"(?:Status|X-Status|X-Keywords|X-UID|X-IMAP(?:base)?|X-Mozilla-(?:Status2?|Keys)):",
    re.IGNORECASE,
)
_UNQUOTE = re.compile(rb"^>(>*From )", re.MULTILINE)
_MAX_LINE = 65_536  # octets of a line in memory; longer lines are passed on in pieces


@dataclass(slots=True)
class Section:
    """One message of an mbox file."""

    number: int
    """Number of the message in the file, from 1."""
    begin: int
    """Offset of the message's first octet, after the From_ line."""
    end: int = 0
    """Offset of the octet after the message's last octet."""
    unique_id: str = ""
    """The unique-id of the server that used this file (X-UIDL, or UW's X-UID), or empty."""
    digest: str = ""
    """Hash of the message's octets, without the fields in which programs store flags."""
    is_expunged: bool = False
    """Whether the message was deleted in Thunderbird."""


@dataclass(slots=True)
class Mbox:
    """The messages of a file, in the order of the file."""

    messages: list[Section] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    """Numbers of the lines that may or may not begin a message."""
    is_from_thunderbird: bool = False
    """Whether Thunderbird wrote the file.  X-UIDL then contains the unique-id of the server from
    which Thunderbird fetched the message."""

    @property
    def has_server_ids(self) -> bool:
        """Whether a POP3 server used the file and gave its messages unique-ids."""
        return not self.is_from_thunderbird and any(each.unique_id for each in self.messages)


def read(lines: Iterable[bytes]) -> Mbox:
    """Return the content of an mbox.

    ``lines`` are the lines of the file with line endings.  A long line may be passed in pieces.

    Raises:
        PermanentFailure: the file is not an mbox; the error message describes how to correct it.
    """
    reader = _Reader()
    for line in lines:
        reader.feed(line)
    reader.finish()
    return reader.result


class _Candidate(NamedTuple):
    """A line that may begin a message, depending on the next line."""

    line: bytes
    number: int
    """Number of the line, from 1."""
    is_after_empty: bool
    """Whether the previous line is empty, or this is the first line."""


class _Reader:
    """Collects the messages of a file whose lines are fed in order."""

    def __init__(self) -> None:
        self.result = Mbox()
        self._offset = self._line_number = 0  # number of octets and lines read so far
        self._is_line_start = True  # whether the next piece begins a line
        self._empty = b""  # the last line if it is empty; it may separate two messages
        self._section: Section | None = None
        self._sections = 0
        self._candidate: _Candidate | None = None
        self._fields: dict[bytes, bytes] = {}
        self._uid_validity = 0
        self._is_in_header = self._is_first_field = False
        self._is_flag_field = self._may_be_mozilla = False
        self._hash = hashlib.sha256()

    def feed(self, line: bytes) -> None:
        if not self._line_number:
            line = self._without_mark(line)
        if self._candidate is not None:
            self._decide(line)
        if self._is_line_start:
            self._line_number += 1
        if self._is_line_start and self._may_begin(line):
            is_after_empty = bool(self._empty) or self._section is None
            self._candidate = _Candidate(line, self._line_number, is_after_empty)
        else:
            self._add(line)
        self._is_line_start = line.endswith(b"\n")

    def finish(self) -> None:
        if self._candidate is not None:
            self._decide(b"")
        self._end()

    def _without_mark(self, line: bytes) -> bytes:
        for mark, encoding in _BOMS.items():
            if line.startswith(mark):
                if encoding:
                    raise PermanentFailure(
                        f"mbox: the file is encoded in {encoding}; convert it to UTF-8 first"
                    )
                self._offset = len(mark)
                line = line.removeprefix(mark)
        if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            raise PermanentFailure("mbox: the lines end with CR; convert them to LF first")
        return line

    def _may_begin(self, line: bytes) -> bool:
        if _FROM.match(line) is None:
            return False
        return bool(self._empty) or self._section is None or _DATED.match(line) is not None

    def _decide(self, following: bytes) -> None:
        candidate = self._candidate
        assert candidate is not None
        self._candidate = None
        if self._begins_message(candidate, following):
            self._end()
            self._begin(candidate)
        else:
            self._add(candidate.line)

    def _begins_message(self, candidate: _Candidate, following: bytes) -> bool:
        has_header = bool(_FIELD.match(following) or _QUOTED.match(following))
        is_bare = bool(_BARE.fullmatch(candidate.line))
        if _DATED.match(candidate.line):
            is_certain = has_header or not following.strip(b"\r\n")
            begins = candidate.is_after_empty or has_header
        elif self._section is None:
            is_certain = begins = has_header or is_bare
        else:
            begins = has_header if is_bare else bool(_FIRST_FIELD.match(following))
            is_certain = is_bare and begins
        if not is_certain:
            self.result.doubtful.append(candidate.number)
        return begins

    def _begin(self, candidate: _Candidate) -> None:
        self._offset += len(candidate.line)
        self._section = Section(len(self.result.messages) + 1, self._offset)
        self._sections += 1
        self._fields, self._hash = {}, hashlib.sha256()
        self._is_in_header = self._is_first_field = True
        self._empty, self._is_flag_field = b"", False
        is_bare = _BARE.fullmatch(candidate.line) is not None
        self._may_be_mozilla = is_bare or candidate.line.startswith(b"From - ")

    def _add(self, line: bytes) -> None:
        """Add a line, or a piece of a line, to the current message."""
        self._offset += len(line)
        is_empty = self._is_line_start and not line.strip(b"\r\n")
        if self._section is None:
            if not is_empty:
                raise PermanentFailure("mbox: does not begin with a From_ line")
            return
        self._hash.update(self._empty)
        self._empty = line if is_empty else b""
        self._is_in_header = self._is_in_header and not is_empty
        if self._is_in_header:
            self._add_header_line(line)
        elif not is_empty:
            self._hash.update(line)

    def _add_header_line(self, line: bytes) -> None:
        assert self._section is not None
        if self._is_first_field and _QUOTED.match(line):
            # Another program has added this From_ line.
            self._section.begin = self._offset
            return
        if self._is_line_start and not line.startswith((b" ", b"\t")):
            self._is_flag_field = _FLAGS.match(line) is not None
            if match := _RECORDED_FIELD.match(line):
                self._record_field(match[1].upper(), match[2].strip())
            elif self._is_first_field and (match := _MOZILLA_STATUS.match(line)):
                self._record_mozilla_flags(int(match[1], 16))
        self._is_first_field = False
        if not self._is_flag_field:
            self._hash.update(line)

    def _record_mozilla_flags(self, flags: int) -> None:
        """Record Thunderbird's flags.

        Senders cannot forge these flags, because Thunderbird's field is the first field.
        """
        assert self._section is not None
        if self._may_be_mozilla:
            self.result.is_from_thunderbird = True
            self._section.is_expunged = bool(flags & _EXPUNGED)

    def _record_field(self, name: bytes, value: bytes) -> None:
        """Record a header field.

        UIDVALIDITY is read only from the first message, because senders cannot write it there.
        """
        if name.startswith(b"X-IMAP"):
            if self._sections > 1:
                return
            if number := re.match(rb"[0-9]{1,10}", value):
                self._uid_validity = int(number[0])
        self._fields[name] = value

    def _end(self) -> None:
        if self._section is None:
            return
        section, self._section = self._section, None
        section.end = max(self._offset - len(self._empty), section.begin)
        section.digest = self._hash.hexdigest()[:40]
        section.unique_id = self._unique_id()
        if not self._is_internal():
            self.result.messages.append(section)

    def _is_internal(self) -> bool:
        """Return whether this is a server's own data instead of mail.

        The field X-IMAP alone is no proof, because a sender can write it into the first message.
        """
        return b"X-IMAP" in self._fields and self._fields.get(b"SUBJECT") == _INTERNAL

    def _unique_id(self) -> str:
        uid = self._fields.get(b"X-UID", b"")
        if given := self._fields.get(b"X-UIDL"):
            unique_id = given.decode("latin-1")
            return unique_id if UNIQUE_ID.fullmatch(unique_id) else ""
        if self._uid_validity and re.fullmatch(rb"[0-9]{1,10}", uid):
            return f"{self._uid_validity:08x}{int(uid):08x}"
        return ""


def unquoted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the message without the ``>`` that mboxrd adds before each ``>*From ``."""
    pending, is_start = b"", True
    for piece in pieces:
        text = pending + piece
        end = text.rfind(b"\n") + 1
        if not end and len(text) > _MAX_LINE:  # a long line, which is passed on in pieces
            end = len(text)
        yield _unquoted(text[:end], is_start=is_start)
        is_start = text[:end].endswith(b"\n") or (not end and is_start)
        pending = text[end:]
    yield _unquoted(pending, is_start=is_start)


def _unquoted(text: bytes, *, is_start: bool) -> bytes:
    begin = 0 if is_start else text.find(b"\n") + 1 or len(text)
    return text[:begin] + _UNQUOTE.sub(rb"\1", text[begin:])
