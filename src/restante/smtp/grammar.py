"""Commands, addresses and replies of SMTP as values (RFC 5321 §4.1, §4.2; RFC 3463; RFC 6531).

Security: no reply repeats what a client sent, so a client cannot choose the server's words.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import (
    BadCommand,
    LargerThanQuota,
    MessageRefused,
    MessageTooLarge,
    NoSuchUser,
    QuotaExceeded,
    RestanteError,
    TemporaryFailure,
    UnsafeArgument,
)

# Octets, including CRLF: 512 (RFC 5321 §4.5.3.1.4) and the octets that extensions add.  Paths have
# no other limit, as RFC 5321 §4.5.3.1 prefers: users may have longer names than its 256 octets.
MAX_LINE = 1024

# Beyond ASCII only with SMTPUTF8; lone surrogates are octets that were not UTF-8.  The classes name
# what is excluded, because ``re`` takes 50 ms for classes up to U+10FFFF.
_NEVER = r"\x7f-\x9f\ud800-\udfff"
# Wider than RFC 5321's Dot-string: addresses with ".." or with a dot at an end exist.
_LOCAL = rf'[^\x00-\x20"(),:;<>@[\\\]{_NEVER}]+'
_QUOTED = rf'"(?:[^\x00-\x1f"\\{_NEVER}]|\\[ -~])*"'
_LETTER = rf"[^\x00-/:-@[-^`{{-~{_NEVER}]"  # or a digit, or "_"
_DOMAIN = rf"{_LETTER}(?:[^\x00-,/:-@[-^`{{-~{_NEVER}]*{_LETTER})?\.?"
_LITERAL = r"\[[A-Za-z0-9:.-]+\]"
_ADDRESS = re.compile(rf"(?:{_LOCAL}|{_QUOTED})(?:@(?:{_DOMAIN}|{_LITERAL}))?")
# The alternatives share no first character, so matching takes linear time.
_PATH = re.compile(r'<((?:"(?:[^"\\]|\\.)*"|[^"<>])*)>(?: +(.*))?')
_BARE_PATH = re.compile(r"([^\s<>]+)(?: +(.*))?")  # without brackets, as old devices send it
_SOURCE_ROUTE = re.compile(r"@[^:\"]*:")  # accepted and ignored (RFC 5321 §4.1.1.3, appendix C)
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^= ]+))?")
_HELLO = re.compile(rf"{_DOMAIN}|{_LITERAL}")


class Refusal(BadCommand):
    """A command that is answered with this reply and has no other effect."""

    def __init__(self, code: int, status: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, status, text)


class Command(NamedTuple):
    """A keyword and its argument."""

    keyword: str
    """In upper case; not necessarily known."""
    argument: str
    """Everything after the first space, without spaces at its ends."""

    @classmethod
    def parse(cls, line: bytes) -> Command:
        """Parse a line; octets that are not UTF-8 become lone surrogates.

        Raises:
            BadCommand: the line contains a bare CR.
        """
        if b"\r" in line:
            raise BadCommand("bare CR in a command")
        keyword, _, argument = line.decode("utf-8", "surrogateescape").partition(" ")
        return cls(keyword.upper() if keyword.isascii() else "", argument.strip(" "))


class Reply(NamedTuple):
    """A reply code, an enhanced status code and a text (RFC 5321 §4.2, RFC 2034)."""

    code: int
    status: str
    """Such as ``2.1.0``; empty in the greeting, after EHLO and in 354."""
    text: str
    """Printable ASCII."""
    more: tuple[str, ...] = ()
    """Further lines: the extensions in the reply to EHLO."""

    def encode(self) -> bytes:
        """Return the whole reply, including CRLF."""
        *lines, last = f"{self.status} {self.text}".lstrip(), *self.more
        lines = [f"{self.code}-{line}\r\n" for line in lines]
        return f"{''.join(lines)}{self.code} {last}\r\n".encode("ascii", "replace")

    @property
    def is_ok(self) -> bool:
        return self.code < 400


class Path(NamedTuple):
    """The argument of MAIL or RCPT after its colon."""

    address: str
    """Empty: the null reverse-path (RFC 5321 §4.5.5)."""
    parameters: dict[str, str]
    """By keyword in upper case."""

    @classmethod
    def parse(cls, text: str, status: str) -> Path:
        """
        Args:
            status: the enhanced status code of a malformed address, 5.1.7 or 5.1.3.

        Raises:
            Refusal: the text is malformed.
        """
        match = _PATH.fullmatch(text) or _BARE_PATH.fullmatch(text)
        if match is None:
            raise Refusal(501, "5.5.4", "the address must be in angle brackets")
        address = _SOURCE_ROUTE.sub("", match[1], count=1) if match[1][:1] == "@" else match[1]
        if address and not _ADDRESS.fullmatch(address):
            raise Refusal(553, status, "malformed address")
        return cls(address, _parameters(match[2] or ""))

    @property
    def domain(self) -> str:
        """The domain in lower case; empty for a name without a domain."""
        # "@" may occur inside a quoted local part, never after one.
        return self.address.rpartition("@")[2].casefold() if "@" in self.address else ""


def _parameters(text: str) -> dict[str, str]:
    parameters = {}
    for each in text.split():
        match = _PARAMETER.fullmatch(each)
        if match is None:
            raise Refusal(501, "5.5.4", "malformed parameter")
        parameters[match[1].upper()] = match[2] or ""
    return parameters


def parse_hello(argument: str) -> str:
    """Return the client's name: a domain or an address literal (RFC 5321 §4.1.1.1).

    Raises:
        Refusal: anything else, because the name is copied into the Received field.
    """
    if len(argument) > 255 or not argument.isascii() or not _HELLO.fullmatch(argument):
        raise Refusal(501, "5.5.4", "give your host name or [address]")
    return argument


def failure(error: RestanteError) -> Reply:
    """Return the reply for an error; the only place that translates errors."""
    match error:
        case Refusal():
            return error.reply
        case LargerThanQuota():
            return Reply(552, "5.2.3", str(error))
        case MessageTooLarge():
            return Reply(552, "5.3.4", str(error))
        case MessageRefused():
            return Reply(554, "5.6.0", str(error))
        case NoSuchUser():
            return Reply(550, "5.1.1", "no such user here")
        case UnsafeArgument():
            return Reply(553, "5.1.3", str(error))
        case QuotaExceeded():
            return Reply(452, "4.2.2", str(error))
        case TemporaryFailure():
            return Reply(451, "4.3.0", str(error))
        case BadCommand():
            return Reply(500, "5.5.2", str(error))
        case _:
            return Reply(451, "4.3.5", "local error, try again later")
