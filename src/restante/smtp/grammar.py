"""Parse SMTP commands and addresses, encode replies (RFC 5321 §4.1, §4.2; RFC 3463; RFC 6531).

Security: no reply repeats text from the client, so a client cannot choose what the server sends.
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

# Octets of a command line, including CRLF: the 512 of RFC 5321 §4.5.3.1.4 and more for extensions.
# Paths are not limited to the 256 octets of RFC 5321 §4.5.3.1.3, because users may have longer
# names; RFC 5321 §4.5.3.1 recommends avoiding such limits.
MAX_LINE = 1024

# Characters beyond ASCII are checked later, because they require SMTPUTF8.  Lone surrogates stand
# for octets that were not UTF-8.  The character classes list the characters that are excluded,
# because ``re`` takes 50 ms to compile classes up to U+10FFFF.
_EXCLUDED = r"\x7f-\x9f\ud800-\udfff"
# Unlike the Dot-string of RFC 5321, this accepts ".." and a dot at either end, because addresses
# with them exist.
_LOCAL = rf'[^\x00-\x20"(),:;<>@[\\\]{_EXCLUDED}]+'
_QUOTED = rf'"(?:[^\x00-\x1f"\\{_EXCLUDED}]|\\[ -~])*"'
_WORD = rf"[^\x00-/:-@[-^`{{-~{_EXCLUDED}]"  # a letter, a digit or "_"
_DOMAIN = rf"{_WORD}(?:[^\x00-,/:-@[-^`{{-~{_EXCLUDED}]*{_WORD})?\.?"
_LITERAL = r"\[[A-Za-z0-9:.-]+\]"
_ADDRESS = re.compile(rf"(?:{_LOCAL}|{_QUOTED})(?:@(?:{_DOMAIN}|{_LITERAL}))?")
# No two alternatives can match the same character, so matching takes linear time.
_PATH = re.compile(r'<((?:"(?:[^"\\]|\\.)*"|[^"<>])*)>(?: +(.*))?')
_BARE_PATH = re.compile(r"([^\s<>]+)(?: +(.*))?")  # without brackets, as some old devices send it
_SOURCE_ROUTE = re.compile(r"@[^:\"]*:")  # accepted and ignored (RFC 5321 §4.1.1.3, appendix C)
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^= ]+))?")
_HELLO = re.compile(rf"{_DOMAIN}|{_LITERAL}")


class Refusal(BadCommand):
    """The command is answered with ``reply`` and has no other effect."""

    def __init__(self, code: int, status: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, status, text)


class Command(NamedTuple):
    """A command line: a keyword and its argument."""

    keyword: str
    """In upper case; it may be unknown.  Empty if the keyword is not ASCII."""
    argument: str
    """Everything after the first space, without leading and trailing spaces."""

    @classmethod
    def parse(cls, line: bytes) -> Command:
        """Parse a command line.  Octets that are not UTF-8 become lone surrogates.

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
    """Enhanced status code, such as ``2.1.0``; empty in the greeting, after EHLO and in 354."""
    text: str
    """Printable ASCII."""
    more: tuple[str, ...] = ()
    """Additional lines: the extensions in the reply to EHLO."""

    def encode(self) -> bytes:
        """Return the whole reply, including CRLF."""
        *lines, last = f"{self.status} {self.text}".lstrip(), *self.more
        lines = [f"{self.code}-{line}\r\n" for line in lines]
        return f"{''.join(lines)}{self.code} {last}\r\n".encode("ascii", "replace")

    @property
    def is_ok(self) -> bool:
        """Whether the reply reports success."""
        return self.code < 400


class Path(NamedTuple):
    """The argument of MAIL or RCPT, after its colon."""

    address: str
    """The address; empty for the null reverse-path (RFC 5321 §4.5.5)."""
    parameters: dict[str, str]
    """Values of the parameters by keyword, which is in upper case."""

    @classmethod
    def parse(cls, text: str, status: str) -> Path:
        """Parse an address in angle brackets and the parameters after it.

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
        # A quoted local part may contain "@", but a domain cannot.
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
        Refusal: the argument is neither.  Other text is not accepted, because the name is copied
            into the Received field.
    """
    if len(argument) > 255 or not argument.isascii() or not _HELLO.fullmatch(argument):
        raise Refusal(501, "5.5.4", "give your host name or [address]")
    return argument


def failure(error: RestanteError) -> Reply:
    """Return the reply for an error."""
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
