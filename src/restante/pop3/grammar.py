"""Parse commands and encode responses (RFC 1939 §3, RFC 2449 §3).

Security: responses never repeat text that a client has sent, so a client cannot make the server
send text that another program would mistake for a response.
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
# Maximum size of the pieces of a listing: about 30 kB, so that no write is very large.
_MAX_LINES = 1000
_MAX_OCTETS = 32_768  # for a pre-rendered listing


class Command(NamedTuple):
    """A keyword and its arguments."""

    keyword: str
    """The keyword in upper case; it may be unknown."""
    rest: str | None
    """Everything after the first space; None if the line contains no space."""

    @classmethod
    def parse(cls, line: bytes) -> Command:
        """Parse a line.  Octets that are not UTF-8 are replaced by lone surrogates.

        Raises:
            BadCommand: the line contains a bare CR.
        """
        if b"\r" in line:
            raise BadCommand("bare CR in a command")
        keyword, space, rest = line.decode("utf-8", "surrogateescape").partition(" ")
        return cls(keyword.upper() if keyword.isascii() else "", rest if space else None)

    def arguments(self) -> list[str]:
        """Split ``rest`` at each space (RFC 1939 §3).

        Between two adjacent spaces there is an empty argument.
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
    """A response: a status indicator, a text, and the lines of a multi-line response."""

    text: str = ""
    """Printable ASCII, or UTF-8 after LANG; must not begin with "[" (RFC 2449 §3)."""
    code: str | None = None
    """The response code without its brackets (RFC 2449 §8)."""
    is_ok: bool = True
    lines: Iterable[str] | bytes | None = None
    """Lines without line endings and byte-stuffing, which are iterated only once; or the octets
    to send, without the final line (the termination octet).  None for a single-line response."""
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
            for begin in range(0, len(self.lines), _MAX_OCTETS):
                yield self.lines[begin : begin + _MAX_OCTETS]
            yield b".\r\n"
            return
        stuffer, lines, head = Stuffer(), iter(self.lines), self.head()
        while piece := list(islice(lines, _MAX_LINES)):
            yield head + stuffer.feed(("\r\n".join(piece) + "\r\n").encode())
            head = b""
        yield head + stuffer.finish()


class Repeated(NamedTuple):
    """The same single-line response to each of several commands."""

    response: Response
    commands: int

    def encode(self) -> Iterator[bytes]:
        yield self.response.head() * self.commands


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge of the server in a SASL exchange: ``+``, a space and Base64 (RFC 5034 §4)."""

    base64: bytes

    def encode(self) -> Iterator[bytes]:
        yield b"+ " + self.base64 + b"\r\n"


def failure(error: RestanteError) -> Response:
    """Return the -ERR response for an error, with its text and its response code."""
    return Response(str(error), error.code, is_ok=False)
