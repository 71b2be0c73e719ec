"""The client's side of POP3, each operation once, without I/O (RFC 1939, 2449, 2595, 5034).

An operation is a generator: it yields octets to send, or None for "give me more octets", and
returns its result.  The asyncio and the blocking client are loops around these.

Security: the server is a stranger.  A multi-line response ends at CRLF.CRLF only, octets that come
with the response to STLS end the connection, and no argument can hold a second command.
Strict about where a response ends, tolerant about what stands in it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import (
    CommandFailed,
    ConnectionLost,
    LoginFailed,
    ProtocolBroken,
    TLSUnavailable,
    UnsafeArgument,
)
from ..sasl import plain
from ..wire import CRLF, MAX_COMMAND, Unstuffer

T = TypeVar("T")
Procedure = Generator[bytes | None, bytes, T]

MAX_LINE = 65_536  # octets of a first line, though RFC 1939 §3 allows 512; ours
MAX_LISTING = 128 * 2**20  # octets of LIST, UIDL or CAPA: a million messages and room; ours
WINDOW_COMMANDS = 64  # unanswered RETR commands; some 700 octets, so sending them never blocks
WINDOW_OCTETS = 4 * 2**20  # announced size of what they ask for
_STATUS = re.compile(rb"(\+OK|-ERR)(?: +(.*))?", re.DOTALL)
_CODE = re.compile(r"\[([A-Za-z0-9/._-]+)\] *(.*)", re.DOTALL)
_SCAN = re.compile(rb" *([0-9]{1,10}) +([0-9]{1,18})(?: .*)?", re.DOTALL)
_UNIQUE = re.compile(rb" *([0-9]{1,10}) +([^ ].*?) *", re.DOTALL)
_MAX_UNIQUE_ID = 1000  # octets, though RFC 1939 §7 allows 70


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the listing."""

    number: int
    """Its message-number; good for this session only (RFC 1939 §4)."""
    unique_id: str | None
    """None when the server has no UIDL (RFC 1939 §7)."""
    size: int
    """Octets as the server announces them; a hint."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server announces (RFC 2449 §5); empty when it has no CAPA."""

    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Arguments by tag, both in upper case."""

    @property
    def pipelining(self) -> bool:
        """Commands may be sent before the responses have come (RFC 2449 §6.6)."""
        return "PIPELINING" in self.tags

    @property
    def stls(self) -> bool:
        return "STLS" in self.tags

    @property
    def uidl(self) -> bool:
        return "UIDL" in self.tags

    @property
    def top(self) -> bool:
        return "TOP" in self.tags

    @property
    def sasl(self) -> tuple[str, ...]:
        """Mechanisms (RFC 5034 §3)."""
        return self.tags.get("SASL", ())

    @property
    def implementation(self) -> str:
        """What the server calls itself; nothing may depend on it (RFC 2449 §6.9)."""
        return " ".join(self.tags.get("IMPLEMENTATION", ()))

    @property
    def login_delay(self) -> int | None:
        """Seconds between logins (RFC 2449 §6.5)."""
        found = self.tags.get("LOGIN-DELAY", ())
        return int(found[0]) if found and found[0].isdecimal() and found[0].isascii() else None

    @property
    def expire(self) -> str | None:
        """Days that messages are kept at least, or ``NEVER`` (RFC 2449 §6.7)."""
        found = self.tags.get("EXPIRE", ())
        return found[0] if found else None


@dataclass(slots=True)
class _Asked:
    """A message whose RETR or TOP was sent and not yet answered."""

    message: Message
    command: str


class Dialogue:
    """One connection's conversation."""

    def __init__(self) -> None:
        self.capabilities = Capabilities()
        self.deletions = 0
        """Messages marked as deleted and not yet removed by QUIT."""
        self._unread = bytearray()
        self._waiting: deque[_Asked] = deque()  # RETR not sent yet
        self._asked: deque[_Asked] = deque()  # RETR sent, response not read yet
        self._body: Unstuffer | None = None  # the multi-line response that is being read

    def lost(self, reason: str, kind: type[ConnectionLost] = ConnectionLost) -> ConnectionLost:
        """The exception for a connection that ended without QUIT."""
        return kind(reason, self.deletions)

    # The beginning.

    def greeting(self) -> Procedure[None]:
        """The server speaks first (RFC 1939 §4).

        Raises:
            CommandFailed: it wants no connection now.
        """
        yield from self._status("greeting")

    def ask_capabilities(self) -> Procedure[Capabilities]:
        """CAPA (RFC 2449 §5)."""
        yield from self._send("CAPA")
        try:
            yield from self._status("CAPA")
        except CommandFailed:
            self.capabilities = Capabilities()
            return self.capabilities
        tags = {}
        for line in (yield from self._lines()):
            tag, *arguments = line.decode("ascii", "replace").upper().split()
            tags[tag] = tuple(arguments)
        self.capabilities = Capabilities(tags)
        return self.capabilities

    def start_tls(self) -> Procedure[None]:
        """STLS; the handshake follows at once, and what was learned before is forgotten.

        Raises:
            TLSUnavailable: the server refuses; nothing secret was sent (RFC 2595 §2.2).
            ProtocolBroken: octets came with the response (CVE-2021-22947 and others).
        """
        yield from self._send("STLS")
        try:
            yield from self._status("STLS")
        except CommandFailed as error:
            raise TLSUnavailable(f"the server refuses STLS: {error.text}") from error
        if self._unread:
            raise self.lost("octets came before the TLS handshake", ProtocolBroken)
        self.capabilities = Capabilities()

    def log_in(self, user: str, password: str) -> Procedure[None]:
        """AUTH PLAIN where announced, else USER and PASS.  One try: no fall-back after a failure.

        Raises:
            LoginFailed: with the server's response code.
            UnsafeArgument: a control character in user or password; nothing was sent.
        """
        _check(user, password)
        if "PLAIN" in self.capabilities.sasl:
            yield from self._auth("PLAIN", plain.client(user, password))
            return
        for command, argument in (("USER", user), ("PASS", password)):
            yield from self._send(command, argument)
            yield from self._status(command, LoginFailed)

    def _auth(self, mechanism: str, message: bytes) -> Procedure[None]:
        """One message from the client, with the command if it fits there (RFC 5034 §4)."""
        command, response = f"AUTH {mechanism}".encode(), b64encode(message)
        if len(command) + 1 + len(response) + len(CRLF) <= MAX_COMMAND:
            yield command + b" " + response + CRLF
        else:
            yield command + CRLF
            line = yield from self._line()
            if not line.startswith(b"+") or line.startswith(b"+OK"):
                raise self._failure("AUTH", line, LoginFailed)
            yield response + CRLF
        yield from self._status("AUTH", LoginFailed)

    # The transaction.

    def stat(self) -> Procedure[tuple[int, int]]:
        """Drop listing: how many messages, how many octets (RFC 1939 §5)."""
        yield from self._send("STAT")
        text = yield from self._status("STAT")
        found = _SCAN.fullmatch(text)
        if found is None:
            raise self.lost("STAT was answered without numbers", ProtocolBroken)
        return int(found[1]), int(found[2])

    def listing(self) -> Procedure[list[Message]]:
        """LIST and UIDL together, in the order of LIST.

        Raises:
            CommandFailed: also when UIDL is announced and fails; that is no empty answer.
            ProtocolBroken: lines that tell no numbers, or the same number twice.
        """
        unique_ids: dict[int, str] = {}
        yield from self._send("LIST")
        if self.capabilities.pipelining:
            yield b"UIDL\r\n"
        try:
            yield from self._status("LIST")
        except CommandFailed:
            if self.capabilities.pipelining:
                yield from self._unique_ids()
            raise
        sizes: dict[int, int] = {}
        for line in (yield from self._lines()):
            found = _SCAN.fullmatch(line)
            if found is None or int(found[1]) in sizes or int(found[1]) == 0:
                raise self.lost("LIST was answered with a line that lists nothing", ProtocolBroken)
            sizes[int(found[1])] = int(found[2])
        if not self.capabilities.pipelining:
            yield b"UIDL\r\n"
        unique_ids = yield from self._unique_ids()
        return [Message(at, unique_ids.get(at), size) for at, size in sizes.items()]

    def _unique_ids(self) -> Procedure[dict[int, str]]:
        """The response to UIDL, whose command was sent (RFC 1939 §7)."""
        try:
            yield from self._status("UIDL")
        except CommandFailed:
            if self.capabilities.uidl:
                raise
            return {}
        found: dict[int, str] = {}
        for line in (yield from self._lines()):
            match = _UNIQUE.fullmatch(line)
            if match is None:
                continue  # a blank unique-id is none
            if len(match[2]) > _MAX_UNIQUE_ID or int(match[1]) in found:
                raise self.lost("UIDL was answered with impossible lines", ProtocolBroken)
            found[int(match[1])] = match[2].decode("utf-8", "surrogateescape")
        return found

    def ask_for(self, messages: Iterable[Message], command: str = "RETR") -> Procedure[None]:
        """Queue messages for ``next_message``.  ``command`` is RETR, or ``TOP 10``."""
        yield from self._settle()
        self._waiting.extend(_Asked(message, command) for message in messages)

    def next_message(self) -> Procedure[tuple[Message, CommandFailed | None] | None]:
        """The next queued message, whose body ``piece`` then gives; None: there is none.

        What is left of the body before it is skipped.  If the server refuses one message, the
        error is returned with it and the others are not disturbed.
        """
        yield from self._skip_body()
        if commands := self._fill_window():
            yield commands
        if not self._asked:
            return None
        asked = self._asked.popleft()
        try:
            yield from self._status(asked.command.split(" ")[0])
        except CommandFailed as error:
            return asked.message, error
        self._body = Unstuffer()
        return asked.message, None

    def piece(self) -> Procedure[bytes]:
        """The next octets of the body, CRLF text without byte-stuffing; none at its end.

        The end is only told when the termination octet was seen, so who gets no empty piece has
        no whole message.
        """
        while self._body is not None:
            octets = bytes(self._unread) or (yield None)
            self._unread.clear()
            content = self._body.feed(octets)
            if self._body.is_finished:
                self._unread += self._body.rest
                self._body = None
            if content:
                return content
        return b""

    def delete(self, messages: Iterable[Message]) -> Procedure[None]:
        """DELE for each, pipelined where announced (RFC 1939 §5).

        Raises:
            CommandFailed: for the first that was refused; the others are marked.
        """
        yield from self._settle()
        waiting, sent = deque(messages), 0
        refused: CommandFailed | None = None
        while waiting or sent:
            window = WINDOW_COMMANDS if self.capabilities.pipelining else 1
            some = [waiting.popleft() for _ in range(min(window - sent, len(waiting)))]
            if some:
                yield b"".join(b"DELE %d\r\n" % message.number for message in some)
                sent += len(some)
            try:
                yield from self._status("DELE")
                self.deletions += 1
            except CommandFailed as error:
                refused = refused or error
            sent -= 1
        if refused is not None:
            raise refused

    def reset(self) -> Procedure[None]:
        """RSET: nothing is marked as deleted any more (RFC 1939 §5)."""
        yield from self._send("RSET")
        yield from self._status("RSET")
        self.deletions = 0

    def noop(self) -> Procedure[None]:
        """NOOP, which resets the server's autologout timer (RFC 1939 §5)."""
        yield from self._send("NOOP")
        yield from self._status("NOOP")

    def quit(self) -> Procedure[None]:
        """QUIT: now the marked messages are removed (RFC 1939 §6).

        Raises:
            CommandFailed: some were not removed.
        """
        yield from self._send("QUIT")
        yield from self._status("QUIT")
        self.deletions = 0

    # Inside.

    def _fill_window(self) -> bytes:
        """Commands for what may be asked now; one alone where nothing may be pipelined."""
        commands = []
        octets = sum(asked.message.size for asked in self._asked)
        while self._waiting:
            size = self._waiting[0].message.size
            if self._asked and (
                not self.capabilities.pipelining
                or len(self._asked) >= WINDOW_COMMANDS
                or octets + size > WINDOW_OCTETS
            ):
                break
            asked = self._waiting.popleft()
            octets += size
            self._asked.append(asked)
            verb, _, rest = asked.command.partition(" ")
            commands.append(f"{verb} {asked.message.number} {rest}".rstrip().encode() + CRLF)
        return b"".join(commands)

    def _settle(self) -> Procedure[None]:
        """Read what was asked for and not fetched, so that the next response is the next one's."""
        self._waiting.clear()
        while (yield from self.next_message()) is not None:
            pass

    def _skip_body(self) -> Procedure[None]:
        while (yield from self.piece()):
            pass

    def _send(self, command: str, argument: str = "") -> Procedure[None]:
        _check(argument)
        yield from self._settle()
        yield f"{command} {argument}".encode() + CRLF if argument else command.encode() + CRLF

    def _line(self) -> Procedure[bytes]:
        scanned = 0
        while (end := self._unread.find(CRLF, scanned)) < 0:
            if len(self._unread) > MAX_LINE:
                raise self.lost("a response line without end", ProtocolBroken)
            scanned = max(len(self._unread) - 1, 0)
            self._unread += yield None
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        return line

    def _status(self, command: str, kind: type[CommandFailed] = CommandFailed) -> Procedure[bytes]:
        """The text after +OK.

        Raises:
            CommandFailed (``kind``): -ERR.
            ProtocolBroken: neither; the connection cannot be trusted any more.
        """
        line = yield from self._line()
        found = _STATUS.fullmatch(line)
        if found is None or found[1] == b"-ERR":
            raise self._failure(command, line, kind)
        return found[2] or b""

    def _failure(self, command: str, line: bytes, kind: type[CommandFailed]) -> Exception:
        found = _STATUS.fullmatch(line)
        if found is None or found[1] != b"-ERR":
            return self.lost(f"{command} was answered with no POP3 response", ProtocolBroken)
        text = (found[2] or b"").decode("utf-8", "replace")
        code = _CODE.fullmatch(text)
        return kind(command, code[2] if code else text, code[1].upper() if code else None)

    def _lines(self) -> Procedure[list[bytes]]:
        """A multi-line response, of which the status was read."""
        self._body = Unstuffer()
        content = bytearray()
        while piece := (yield from self.piece()):
            content += piece
            if len(content) > MAX_LISTING:
                raise self.lost("a listing without end", ProtocolBroken)
        return [line for line in bytes(content).split(CRLF) if line]


def _check(*arguments: str) -> None:
    """
    Raises:
        UnsafeArgument: a control character, which could begin another command.
    """
    for argument in arguments:
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in argument):
            raise UnsafeArgument("control character in an argument; nothing was sent")
