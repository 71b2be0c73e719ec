"""Commands and responses as values (RFC 1939 §3, RFC 2449 §3).

Security: no response repeats what a client sent, so a client cannot make the server send text that
another program would take for a response.
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
_LINES_AT_ONCE = 1000  # of a listing; about 30 kB, so that no write is very large
_OCTETS_AT_ONCE = 32_768  # of a pre-rendered listing


class Command(NamedTuple):
    """A keyword and its arguments."""

    keyword: str
    """In upper case; not necessarily known."""
    rest: str | None
    """Everything after the first space, or None without a space."""

    @classmethod
    def parse(cls, line: bytes) -> Command:
        """Parse a line.  Octets that are not UTF-8 become lone surrogates.

        Raises:
            BadCommand: the line contains a bare CR.
        """
        if b"\r" in line:
            raise BadCommand("bare CR in a command")
        keyword, space, rest = line.decode("utf-8", "surrogateescape").partition(" ")
        return cls(keyword.upper() if keyword.isascii() else "", rest if space else None)

    def arguments(self) -> list[str]:
        """Return the arguments, which are separated by single spaces (RFC 1939 §3).

        Two adjacent spaces enclose an empty argument.
        """
        return [] if self.rest is None else self.rest.split(" ")


def parse_number(argument: str) -> int:
    """Parse a message-number: decimal, at least 1, no sign, no leading zero (RFC 1939 §4)."""
    if not _NUMBER.fullmatch(argument):
        raise NoSuchMessage("message-number must be a decimal number, at least 1")
    return int(argument)


def parse_count(argument: str) -> int:
    """Parse a number of lines, at least 0 (RFC 1939 §7 TOP)."""
    if not _COUNT.fullmatch(argument):
        raise BadCommand("number of lines must be a decimal number, at least 0")
    return int(argument)


class Response(NamedTuple):
    """A status indicator, text, and for a multi-line response its lines."""

    text: str = ""
    """Printable ASCII, or UTF-8 after LANG; must not begin with "[" (RFC 2449 §3)."""
    code: str | None = None
    """Response code without its brackets (RFC 2449 §8)."""
    is_ok: bool = True
    lines: Iterable[str] | bytes | None = None
    """Lines without line ends and byte-stuffing, iterated once; or the octets to send, without the
    line of the termination octet."""
    is_data: bool = False
    """Whether the text is for programs and must not be translated."""

    def head(self) -> bytes:
        """Return the first line."""
        line = "+OK" if self.is_ok else "-ERR"
        if self.code:
            line += f" [{self.code}]"
        if self.text:
            line += f" {self.text}"
        return (line + "\r\n").encode()

    def encode(self) -> Iterator[bytes]:
        """Yield the response.  A long response is split into pieces of about 30 kB."""
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


class Repeated(NamedTuple):
    """The same single-line response to each command of a run."""

    response: Response
    commands: int

    def encode(self) -> Iterator[bytes]:
        yield self.response.head() * self.commands


@dataclass(frozen=True, slots=True)
class Challenge:
    """A server's step in a SASL exchange: ``+``, a space, base64 (RFC 5034 §4)."""

    base64: bytes

    def encode(self) -> Iterator[bytes]:
        yield b"+ " + self.base64 + b"\r\n"


def failure(error: RestanteError) -> Response:
    """Return the -ERR response for an error; the only place that translates errors."""
    return Response(str(error), error.code, is_ok=False)
