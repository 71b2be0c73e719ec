"""Commands and responses as values (RFC 1939 §3, RFC 2449 §3).

Security: no response repeats what a client sent, so none can be made to speak for another
program that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from ..errors import BadCommand, NoSuchMessage, RestanteError
from ..wire import Stuffer

_NUMBER = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_COUNT = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_LINES_AT_ONCE = 1000  # of a listing; some 30 kB
_OCTETS_AT_ONCE = 32_768  # of a listing that lies ready


class Command(NamedTuple):
    """A keyword and what follows its space."""

    keyword: str
    """In upper case; not necessarily known."""
    rest: str | None
    """Everything after the first space, or None when there is none."""

    @classmethod
    def parse(cls, line: bytes) -> Command:
        """Octets that are not UTF-8 become lone surrogates.

        Raises:
            BadCommand: a bare CR.
        """
        if b"\r" in line:
            raise BadCommand("bare CR in a command")
        keyword, space, rest = line.decode("utf-8", "surrogateescape").partition(" ")
        return cls(keyword.upper() if keyword.isascii() else "", rest if space else None)

    def arguments(self) -> list[str]:
        """Separated by one space each (RFC 1939 §3), so two spaces enclose an empty one."""
        return [] if self.rest is None else self.rest.split(" ")


def parse_number(argument: str) -> int:
    """A message-number: decimal, from 1, without sign or leading zero (RFC 1939 §4)."""
    if not _NUMBER.fullmatch(argument):
        raise NoSuchMessage("message-number must be a decimal number, at least 1")
    return int(argument)


def parse_count(argument: str) -> int:
    """A number of lines, from 0 (RFC 1939 §7 TOP)."""
    if not _COUNT.fullmatch(argument):
        raise BadCommand("number of lines must be a decimal number, at least 0")
    return int(argument)


class Response(NamedTuple):
    """A status indicator, text, and for a multi-line response its lines."""

    text: str = ""
    """Printable ASCII, or UTF-8 after LANG; begins with no "[" (RFC 2449 §3)."""
    code: str | None = None
    """Response code without its brackets (RFC 2449 §8)."""
    is_ok: bool = True
    lines: Iterable[str] | bytes | None = None
    """Without line ends and without byte-stuffing, read once; or octets as they go out, all
    but the termination octet's line."""
    is_data: bool = False
    """The text is for programs, so no language changes it."""

    def head(self) -> bytes:
        """The first line."""
        line = "+OK" if self.is_ok else "-ERR"
        if self.code:
            line += f" [{self.code}]"
        if self.text:
            line += f" {self.text}"
        return (line + "\r\n").encode()

    def encode(self) -> Iterator[bytes]:
        """The whole response, a long one in pieces of some 30 kB."""
        if self.lines is None:
            yield self.head()
            return
        if isinstance(self.lines, bytes):
            yield self.head()
            for at in range(0, len(self.lines), _OCTETS_AT_ONCE):
                yield self.lines[at : at + _OCTETS_AT_ONCE]
            yield b".\r\n"
            return
        stuffer, lines, begin = Stuffer(), iter(self.lines), self.head()
        while some := list(islice(lines, _LINES_AT_ONCE)):
            yield begin + stuffer.feed(("\r\n".join(some) + "\r\n").encode())
            begin = b""
        yield begin + stuffer.finish()


@dataclass(frozen=True, slots=True)
class Challenge:
    """A server's step in a SASL exchange: ``+``, a space, base64 (RFC 5034 §4)."""

    base64: bytes

    def encode(self) -> Iterator[bytes]:
        yield b"+ " + self.base64 + b"\r\n"


def failure(error: RestanteError) -> Response:
    """The one place where an error becomes -ERR."""
    return Response(str(error), error.code, is_ok=False)
