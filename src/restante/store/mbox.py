"""Reading mbox files of mail servers, mail programs and exports: where each message is, and its id.

Without I/O.  An mbox has no grammar that all programs agree on (RFC 4155 appendix A), so where a
message begins is judged by evidence: the line before, the date in the From_ line, and the line
after.  Content-Length decides nothing, because any sender can write it.  What is not certain is
reported.

Formats: mboxo, mboxrd (``>From`` quoting); UW's server (X-IMAP, X-UID), qpopper (X-UIDL),
Thunderbird (``From - …``, X-Mozilla-Status), Google Takeout; LF or CRLF, with or without empty
lines between messages.
Limits: lines may be of any length, if ``lines`` gives long ones in pieces.
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
_BARE = re.compile(rb"From(?: +\S+)?[ \t]*\r?\n?")  # no more than a sender, or "-"
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
# With one of these nearly every message begins.
_FIRST_FIELD = re.compile(
    rb"(?:Return-Path|Received|Delivered-To|X-[A-Za-z0-9-]+|From|Date|Subject|To|Message-ID|Sender"
    rb"|Reply-To|MIME-Version|Content-[A-Za-z-]+|Status|DKIM-Signature|ARC-[A-Za-z-]+|Envelope-To"
    rb"|Authentication-Results|DomainKey-Signature|List-[A-Za-z-]+|References|In-Reply-To|Cc"
    rb"):",
    re.IGNORECASE,
)
_QUOTED = re.compile(rb">?From ")
_NOTED = re.compile(rb"(X-UIDL|X-UID|X-IMAP(?:base)?|Subject): *([^\r\n]*)", re.IGNORECASE)
# Of the message in which UW's server and Dovecot keep their own data.
_INTERNAL = b"DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA"
_MOZILLA_STATUS = re.compile(rb"X-Mozilla-Status: *([0-9A-Fa-f]{4})")
_EXPUNGED = 0x0008  # Thunderbird: deleted, and not yet compacted away
# Fields in which programs keep flags: they change, and the message stays the same.
_FLAGS = re.compile(
    rb"(?:Status|X-Status|X-Keywords|X-UID|X-IMAP(?:base)?|X-Mozilla-(?:Status2?|Keys)):",
    re.IGNORECASE,
)
_UNQUOTE = re.compile(rb"^>(>*From )", re.MULTILINE)
_LONGEST = 65_536  # octets that are kept of a line


@dataclass(slots=True)
class Section:
    """One message of an mbox file."""

    number: int
    """Of the message in the file, from 1."""
    begin: int
    """Octets before it, its From_ line included."""
    end: int = 0
    unique_id: str = ""
    """Of the server that used this file: X-UIDL, or UW's X-UID; empty when it has none."""
    digest: str = ""
    """Of its octets, without the fields in which programs keep flags."""
    is_expunged: bool = False
    """Deleted in Thunderbird."""


@dataclass(slots=True)
class Mbox:
    """What is in a file, in its order."""

    messages: list[Section] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    """Numbers of lines that may begin a message or not."""
    is_thunderbirds: bool = False
    """No POP3 server used it, and X-UIDL is the id on a server from which Thunderbird fetched."""

    @property
    def is_servers(self) -> bool:
        return not self.is_thunderbirds and any(each.unique_id for each in self.messages)


def read(lines: Iterable[bytes]) -> Mbox:
    """``lines``: of the file, each with its line end; a long one may come in pieces.

    Raises:
        PermanentFailure: not an mbox, in words that help.
    """
    reader = _Reader()
    for line in lines:
        reader.feed(line)
    reader.finish()
    return reader.found


class _Candidate(NamedTuple):
    """A line that may begin a message; the next line decides."""

    line: bytes
    number: int
    """Of the line, from 1."""
    is_after_empty: bool


class _Reader:
    def __init__(self) -> None:
        self.found = Mbox()
        self._at = self._number = 0  # octets and lines before the next line
        self._is_start = True  # of a line; the rest of a long one comes in pieces
        self._empty = b""  # the last line, if it is empty: it may belong to no message
        self._section: Section | None = None
        self._sections = 0
        self._candidate: _Candidate | None = None
        self._fields: dict[bytes, bytes] = {}
        self._validity = 0
        self._in_head = self._is_first_field = self._is_flag = self._is_mozillas = False
        self._hash = hashlib.sha256()

    def feed(self, line: bytes) -> None:
        if not self._number:
            line = self._without_mark(line)
        if self._candidate is not None:
            self._decide(line)
        if self._is_start:
            self._number += 1
        if self._is_start and self._may_begin(line):
            is_after_empty = bool(self._empty) or self._section is None
            self._candidate = _Candidate(line, self._number, is_after_empty)
        else:
            self._take(line)
        self._is_start = line.endswith(b"\n")

    def finish(self) -> None:
        if self._candidate is not None:
            self._decide(b"")
        self._end()

    def _without_mark(self, line: bytes) -> bytes:
        for mark, coding in _BOMS.items():
            if line.startswith(mark):
                if coding:
                    raise PermanentFailure(
                        f"mbox: this is {coding} text; next: convert it to UTF-8"
                    )
                self._at = len(mark)
                line = line.removeprefix(mark)
        if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            raise PermanentFailure("mbox: its lines end with CR alone; next: convert them to LF")
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
            self._take(candidate.line)

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
            self.found.doubtful.append(candidate.number)
        return begins

    def _begin(self, candidate: _Candidate) -> None:
        self._at += len(candidate.line)
        self._section = Section(len(self.found.messages) + 1, self._at)
        self._sections += 1
        self._fields, self._hash = {}, hashlib.sha256()
        self._in_head = self._is_first_field = True
        self._empty, self._is_flag = b"", False
        is_bare = _BARE.fullmatch(candidate.line) is not None
        self._is_mozillas = is_bare or candidate.line.startswith(b"From - ")

    def _take(self, line: bytes) -> None:
        """A line of the message, or a part of one."""
        self._at += len(line)
        is_empty = self._is_start and not line.strip(b"\r\n")
        if self._section is None:
            if not is_empty:
                raise PermanentFailure("mbox: does not begin with a From_ line")
            return
        self._hash.update(self._empty)
        self._empty = line if is_empty else b""
        self._in_head = self._in_head and not is_empty
        if self._in_head:
            self._take_header(line)
        elif not is_empty:
            self._hash.update(line)

    def _take_header(self, line: bytes) -> None:
        assert self._section is not None
        if self._is_first_field and _QUOTED.match(line):  # the From_ line of a second program
            self._section.begin = self._at
            return
        if self._is_start and not line.startswith((b" ", b"\t")):
            self._is_flag = _FLAGS.match(line) is not None
            if match := _NOTED.match(line):
                self._note(match[1].upper(), match[2].strip())
            elif self._is_first_field and (match := _MOZILLA_STATUS.match(line)):
                self._note_mozilla(int(match[1], 16))
        self._is_first_field = False
        if not self._is_flag:
            self._hash.update(line)

    def _note_mozilla(self, flags: int) -> None:
        """No sender can write it there: Thunderbird puts its own before all others."""
        assert self._section is not None
        if self._is_mozillas:
            self.found.is_thunderbirds = True
            self._section.is_expunged = bool(flags & _EXPUNGED)

    def _note(self, name: bytes, value: bytes) -> None:
        """UW's server keeps its UIDVALIDITY in the first message, where no sender can write it."""
        if name.startswith(b"X-IMAP"):
            if self._sections > 1:
                return
            if number := re.match(rb"[0-9]{1,10}", value):
                self._validity = int(number[0])
        self._fields[name] = value

    def _end(self) -> None:
        if self._section is None:
            return
        section, self._section = self._section, None
        section.end = max(self._at - len(self._empty), section.begin)
        section.digest = self._hash.hexdigest()[:40]
        section.unique_id = self._unique_id()
        if not self._is_internal():
            self.found.messages.append(section)

    def _is_internal(self) -> bool:
        """Whether it is no mail.  X-IMAP alone may come from a sender, where no server has put its
        own message in front."""
        return b"X-IMAP" in self._fields and self._fields.get(b"SUBJECT") == _INTERNAL

    def _unique_id(self) -> str:
        uid = self._fields.get(b"X-UID", b"")
        if given := self._fields.get(b"X-UIDL"):
            unique_id = given.decode("latin-1")
            return unique_id if UNIQUE_ID.fullmatch(unique_id) else ""
        if self._validity and re.fullmatch(rb"[0-9]{1,10}", uid):
            return f"{self._validity:08x}{int(uid):08x}"
        return ""


def unquoted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The message without the ``>`` that mboxrd puts before each ``>*From ``, in pieces."""
    held, is_start = b"", True
    for piece in pieces:
        text = held + piece
        cut = text.rfind(b"\n") + 1
        if not cut and len(text) > _LONGEST:  # a long line
            cut = len(text)
        yield _unquoted(text[:cut], is_start=is_start)
        is_start = text[:cut].endswith(b"\n") or (not cut and is_start)
        held = text[cut:]
    yield _unquoted(held, is_start=is_start)


def _unquoted(text: bytes, *, is_start: bool) -> bytes:
    begin = 0 if is_start else text.find(b"\n") + 1 or len(text)
    return text[:begin] + _UNQUOTE.sub(rb"\1", text[begin:])
