"""The client's side of POP3 without I/O (RFC 1939, 2449, 2595, 5034), for both clients.

An operation is a generator: it yields octets to send, or None to request more octets, and returns
its result.  The asyncio and the blocking client are loops around these.

Security: servers are not trusted.  A multi-line response ends at CRLF.CRLF only, octets that arrive
with the response to STLS end the connection, and no argument can contain a second command.
The code is strict about where a response ends and tolerant about its content.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import md5
from typing import TypeVar

from ..errors import (
    BodySkipped,
    CommandFailed,
    ConnectionLost,
    LoginFailed,
    ProtocolBroken,
    StaleMessage,
    TLSUnavailable,
    UnsafeArgument,
)
from ..sasl.choice import USER_AND_PASS, choose, uses_binding
from ..sasl.exchange import ClientExchange, ClientLogin
from ..sasl.mechanisms import client_exchange
from ..wire import CRLF, MAX_COMMAND, Unstuffer
from .listing import Listing, ListingBuilder, Message
from .quirks import LineEnds, Quirks, in_words, remedy
from .record import Record

T = TypeVar("T")
Procedure = Generator[bytes | None, bytes, T]

MAX_LINE = 65_536  # octets of a first line; RFC 1939 §3 allows 512, our own limit tolerates more
# Octets of an answer to LIST, UIDL or CAPA.  Our own limit; a million messages with unique-ids of
# 70 octets take about 80 MB.
MAX_LISTING = 128 * 2**20
_PIECE = 32_768  # octets of content that are processed at a time
WINDOW_COMMANDS = 1024  # unanswered RETR commands: about 10 kB, which socket buffers hold
WINDOW_OCTETS = 4 * 2**20  # announced size of the messages that these request
_STATUS = re.compile(rb"(\+OK|-ERR)(?: +(.*))?", re.DOTALL)
_CODE = re.compile(r"\[([A-Za-z0-9/._-]+)\] *(.*)", re.DOTALL)
_DROP = re.compile(rb" *([0-9]{1,10}) +(-?[0-9]{1,18})(?: .*)?", re.DOTALL)
_SCAN = re.compile(rb"(?:\+OK)? *([0-9]{1,10}) +([0-9]{1,18})(?: .*)?", re.DOTALL)
_UNIQUE = re.compile(rb"(?:\+OK)? *([0-9]{1,10}) +([^ ].*)", re.DOTALL)
_TIME_STAMP = re.compile(rb"<[!-;=?A-~]+@[!-;=?A-~]+>")
_MAX_UNIQUE_ID = 1000  # octets; RFC 1939 §7 allows 70, our own limit tolerates more


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities that a server announces (RFC 2449 §5); empty without CAPA."""

    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Arguments by tag, both in upper case."""

    @property
    def pipelining(self) -> bool:
        """Whether commands may be sent before earlier responses arrive (RFC 2449 §6.6)."""
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
        """The server's name for itself; behaviour must not depend on it (RFC 2449 §6.9)."""
        return " ".join(self.tags.get("IMPLEMENTATION", ()))

    @property
    def login_delay(self) -> int | None:
        """Seconds between logins (RFC 2449 §6.5)."""
        found = self.tags.get("LOGIN-DELAY", ())
        return int(found[0]) if found and found[0].isdecimal() and found[0].isascii() else None

    @property
    def expire(self) -> str | None:
        """Minimum number of days that messages are kept, or ``NEVER`` (RFC 2449 §6.7)."""
        found = self.tags.get("EXPIRE", ())
        return found[0] if found else None


@dataclass(slots=True, eq=False)
class Answer:
    """The response to RETR or TOP, or to a DELE queued among these."""

    message: Message
    command: bytes
    """The command, including CRLF."""
    error: CommandFailed | None = None
    """The error with which the server refused this command."""
    is_whole: bool = False
    """The termination octet was seen."""
    is_behind: bool = False
    """The command was sent before the response to an earlier one arrived."""

    @property
    def keyword(self) -> str:
        return self.command.split(b" ")[0].decode()

    @property
    def has_body(self) -> bool:
        return self.keyword != "DELE"


class Retrieval:
    """A run of messages requested together; any other command ends it."""

    def __init__(self, *, deletes: bool = False) -> None:
        self.failure: Exception | None = None
        """The exception of the caller's iterable of messages; earlier messages are unaffected."""
        self.deletes = deletes
        """Whether ``next_message`` deletes the messages that were read."""
        self.deleted: set[int] = set()
        """Numbers of messages that ``next_message`` or the caller deleted: a second DELE would
        fail."""


class Dialogue:
    """One connection's conversation."""

    def __init__(self, record: Record | None = None, quirks: Quirks | None = None) -> None:
        self.record = record or Record()
        self.quirks = quirks or Quirks()
        self.capabilities = Capabilities()
        self.deletions = 0
        """Messages marked as deleted, or about to be, and not yet removed by QUIT."""
        self.refused: list[Message] = []
        """Messages that the server refused to mark as deleted."""
        self.session = object()
        self._welcome = b""  # the text of the greeting
        self._command = "greeting"  # the command that the server answers, or answered last
        self._line_ends = LineEnds()
        self._unread = bytearray()
        self._deletions: deque[Answer] = deque()  # not sent yet; sent before ``_waiting``
        self._waiting: Iterator[Answer] = iter(())  # not sent yet
        self._ahead: Answer | None = None  # the first of ``_waiting``, taken in advance
        self._window = WINDOW_COMMANDS  # smaller after a refusal
        self._asked: deque[Answer] = deque()  # sent, but the response has not been read
        self._retrieval: Retrieval | None = None
        self._reading: Answer | None = None  # the message whose body is being read
        self._body: Unstuffer | None = None  # the multi-line response that is being read
        self._refused: CommandFailed | None = None  # of the first refused deletion
        self._is_leaving = False  # QUIT was sent
        self._is_listing_ahead = False  # UIDL was sent before the response to LIST
        self._was_ahead = False  # a command for a message was sent before an earlier response
        self._has_pipelined = False  # the response to such a command arrived

    @property
    def is_pipelining_in_doubt(self) -> bool:
        """Whether commands were sent together, and only the first of them has been answered.

        If the session ends now, and not within a message, the likely reason is a server that
        announces PIPELINING but does not support it.
        """
        is_begun = self._was_ahead and not self._has_pipelined and self._reading is None
        return self._is_listing_ahead or is_begun

    def stop_pipelining(self) -> None:
        """Send one command at a time, even if the server announces PIPELINING."""
        tags = {tag: words for tag, words in self.capabilities.tags.items() if tag != "PIPELINING"}
        self.capabilities = Capabilities(tags)

    def lost(self, reason: str, kind: type[ConnectionLost] = ConnectionLost) -> ConnectionLost:
        """Return the exception for a connection that ended without the answer to QUIT."""
        advice = self._remedy()
        text = f"{reason}; {advice}" if advice else reason
        return kind(text, self.deletions, is_known=not self._is_leaving)

    def _remedy(self) -> str:
        """Suggest a quirk if the connection ends now; empty if none is known."""
        if self._command == "CAPA":
            return f"if that happens at CAPA each time, set {in_words('no-capa')}"
        if self.is_pipelining_in_doubt:
            return (
                "several commands had been sent at once: if that happens each time, set "
                f"{in_words('hide:PIPELINING')}"
            )
        if self._command == "TOP" and self._unread:
            return f"if it answers TOP twice, set {in_words('hide:TOP')}"
        if b"\n" in self._unread and CRLF not in self._unread:
            return (
                "its lines end with a bare LF: if you trust all senders of mail there, set "
                f"{in_words('bare-line-feeds')}"
            )
        return ""

    def is_harmless(self, error: ConnectionLost) -> bool:
        """Whether the server closed the connection at QUIT, and nothing had been marked.

        Then QUIT has nothing to do (RFC 1939 §6), answered or not.
        """
        is_end = self._is_leaving and type(error) is ConnectionLost
        return is_end and not self.deletions and self._refused is None

    # Greeting, capabilities and login

    def greeting(self) -> Procedure[None]:
        """Read the greeting; the server speaks first (RFC 1939 §4).

        Raises:
            CommandFailed: the server refuses the connection.
        """
        self._welcome = yield from self._status("greeting")

    def ask_capabilities(self) -> Procedure[Capabilities]:
        """Send CAPA (RFC 2449 §5) and apply the quirks to its answer."""
        tags: dict[str, tuple[str, ...]] = {}

        def take(line: bytes) -> None:
            if words := line.decode("ascii", "replace").upper().split():
                tags[words[0]] = tuple(words[1:])

        if not self.quirks.no_capa:
            yield from self._send("CAPA")
            try:
                yield from self._status("CAPA")
            except CommandFailed:
                pass
            else:
                yield from self._each_line(take, MAX_LINE)
        for added in self.quirks.added:
            take(added.encode())
        for hidden in self.quirks.hidden:
            tags.pop(hidden.upper(), None)
        self.capabilities = Capabilities(tags)
        self._command = ""
        return self.capabilities

    def start_tls(self) -> Procedure[None]:
        """Send STLS and discard the capabilities; the TLS handshake must follow at once.

        Raises:
            TLSUnavailable: the server refused; nothing secret was sent (RFC 2595 §2.2).
            ProtocolBroken: octets arrived with the response (CVE-2021-22947 and others).
        """
        yield from self._send("STLS")
        try:
            yield from self._status("STLS")
        except CommandFailed as error:
            raise TLSUnavailable(f"the server refused STLS: {error.text}") from error
        if self._unread:
            raise self.lost("the server sent data before the TLS handshake", ProtocolBroken)
        self.capabilities, self._welcome = Capabilities(), b""

    def log_in(
        self, login: ClientLogin, end_point: Callable[[], bytes] = lambda: b""
    ) -> Procedure[None]:
        """Log in by the strongest mechanism of both sides.  There is no fall-back after a failure.

        ``end_point`` returns the channel binding to the server's certificate (RFC 5929 §4), or
        empty octets without one; it is called only for mechanisms that use it.

        Raises:
            LoginFailed: with the server's response code; or no login is strong enough.
            ProtocolBroken: the server could not prove that it knows the password.
            UnsafeArgument: a control character in user or password, or text that this server does
                not accept; nothing was sent.
        """
        _check(login.user, login.password, login.token, login.mechanism)
        with self.record.login(login.secret):
            yield from self._log_in(login, end_point)

    def _log_in(self, login: ClientLogin, end_point: Callable[[], bytes]) -> Procedure[None]:
        offered = self.capabilities.sasl
        binding = end_point() if uses_binding((*offered, login.mechanism.upper())) else b""
        takes_user = not offered or "USER" in self.capabilities.tags
        remedy = f"if it also accepts USER and PASS, set {in_words('add:USER')}"
        chosen = choose(login, offered, bool(binding), takes_user=takes_user, remedy=remedy)
        if chosen == "APOP":
            yield from self._apop(login)
        elif chosen == USER_AND_PASS:
            yield from self._user_and_pass(login)
        else:
            yield from self._auth(chosen, client_exchange(chosen, login, binding))

    def _user_and_pass(self, login: ClientLogin) -> Procedure[None]:
        """
        Raises:
            UnsafeArgument: the server does not announce UTF-8 for USER (RFC 6856 §2.2).
        """
        takes_utf8 = self.quirks.utf8_login or "USER" in self.capabilities.tags.get("UTF8", ())
        if not takes_utf8 and not (login.user + login.password).isascii():
            raise UnsafeArgument(
                "this server announces only ASCII in USER and PASS (RFC 6856 §2.2); if it accepts "
                f"UTF-8, set {in_words('utf8-login')}"
            )
        for command, argument in (("USER", login.user), ("PASS", login.password)):
            yield from self._send(command, argument)
            yield from self._status(command, LoginFailed)

    def _apop(self, login: ClientLogin) -> Procedure[None]:
        """Send APOP: a digest of the greeting's time stamp and the password (RFC 1939 §7).

        MD5 is broken and the server proves nothing, so APOP is used only if the caller demands it.

        Raises:
            LoginFailed: the greeting has no time stamp in the form of a Message-ID; an arbitrary
                challenge helps a server to guess the password (CVE-2007-1558).
            UnsafeArgument: the password is not ASCII.
        """
        found = _TIME_STAMP.search(self._welcome)
        if found is None:
            raise LoginFailed("APOP", "the greeting has no usable time stamp", None)
        if not login.password.isascii():
            raise UnsafeArgument("APOP requires a password in ASCII")
        digest = md5(found[0] + login.password.encode(), usedforsecurity=False).hexdigest()
        yield from self._send("APOP", f"{login.user} {digest}")
        yield from self._status("APOP", LoginFailed)

    def _auth(self, mechanism: str, exchange: ClientExchange) -> Procedure[None]:
        """Run an exchange (RFC 5034 §4); send the first response with AUTH if allowed and short."""
        yield from self._settle()
        answer = next(exchange)
        command, response = f"AUTH {mechanism}".encode(), b64encode(answer.response) or b"="
        is_offered = mechanism in self.capabilities.sasl
        is_short = len(command) + 1 + len(response) + len(CRLF) <= MAX_COMMAND
        is_sent = answer.is_initial and is_offered and is_short and not self.quirks.two_step_auth
        has_response, self._command = is_sent, "AUTH"
        yield (command + b" " + response if is_sent else command) + CRLF
        while True:
            line = yield from self._line()
            if not line.startswith(b"+") or (line.startswith(b"+OK") and is_sent):
                break  # before our response, some servers send +OK instead of a challenge
            if is_sent:
                try:
                    answer = exchange.send(_decoded(line))
                except (StopIteration, ValueError):
                    yield b"*\r\n"
                    answer = answer._replace(may_be_last=False)
                    line = yield from self._line()
                    break
            is_sent = True
            yield b64encode(answer.response) + CRLF
        if not line.startswith(b"+OK"):
            raise self._failure("AUTH", line, LoginFailed, with_response=has_response)
        if not answer.may_be_last:
            raise self.lost("the server did not prove that it knows the password", ProtocolBroken)

    # Commands of the TRANSACTION state

    def stat(self) -> Procedure[tuple[int, int]]:
        """Return the drop listing: number of messages and of octets (RFC 1939 §5).

        On some servers the number of octets overflows and is negative; then 0 is returned.
        """
        yield from self._send("STAT")
        text = yield from self._status("STAT")
        found = _DROP.fullmatch(text)
        if found is None:
            raise self.lost("STAT was answered without numbers", ProtocolBroken)
        return int(found[1]), max(int(found[2]), 0)

    def listing(self) -> Procedure[Listing]:
        """Return the messages of LIST and UIDL, in the order of LIST.

        Raises:
            CommandFailed: also if UIDL is announced and fails, because an error must not look like
                a maildrop without unique-ids.
            ProtocolBroken: a line without numbers, or the same number twice.
        """
        found = ListingBuilder(self.session)

        def take(line: bytes) -> None:
            match = _SCAN.fullmatch(line)
            if match is None or not found.add(int(match[1]), int(match[2])):
                raise self.lost("LIST was answered with a line that lists nothing", ProtocolBroken)

        yield from self._send("LIST")
        if self.capabilities.pipelining:
            self._is_listing_ahead = True
            yield b"UIDL\r\n"
        try:
            yield from self._status("LIST")
        except CommandFailed:
            if self.capabilities.pipelining:
                yield from self._unique_ids(found)
            raise
        yield from self._each_line(take, MAX_LISTING)
        if not self.capabilities.pipelining:
            yield b"UIDL\r\n"
        yield from self._unique_ids(found)
        return found

    def _unique_ids(self, found: ListingBuilder) -> Procedure[None]:
        """Read the response to UIDL, which has been sent already (RFC 1939 §7)."""

        def take(line: bytes) -> None:
            match = _UNIQUE.fullmatch(line.rstrip(b" "))
            if match is None or len(match[2]) > _MAX_UNIQUE_ID:
                return  # ignore blank unique-ids, and long ones that only fill memory
            if not found.name(int(match[1]), match[2]):
                raise self.lost("UIDL was answered with a second unique-id", ProtocolBroken)

        try:
            yield from self._status("UIDL")
        except CommandFailed:
            self._is_listing_ahead = False
            if self.capabilities.uidl:
                raise
            return
        self._is_listing_ahead = False
        yield from self._each_line(take, MAX_LISTING)

    def ask_for(
        self, messages: Iterable[Message], command: str = "RETR", *, deletes: bool = False
    ) -> Procedure[Retrieval]:
        """Queue messages for ``next_message``, which may delete them if ``deletes`` is set.

        ``command`` is RETR, or ``TOP 10``.

        The first message is taken from the iterable before the procedure begins, so that the
        iterable may list the messages itself.

        Raises, at once:
            StaleMessage: the first is a message of another session; nothing was sent.
            TypeError: the first is not a Message.
            Exception: any exception of the iterable.
        """
        verb, _, rest = command.partition(" ")
        _check(verb, rest)
        waiting = (self._queued(message, verb, rest) for message in messages)
        return self._begin(next(waiting, None), waiting, Retrieval(deletes=deletes))

    def _begin(
        self, first: Answer | None, waiting: Iterator[Answer], retrieval: Retrieval
    ) -> Procedure[Retrieval]:
        yield from self._settle()
        self._ahead, self._waiting = first, waiting
        self._retrieval = retrieval
        return retrieval

    def ask_for_headers(self, messages: Iterable[Message]) -> Procedure[Retrieval]:
        """Queue messages for their headers; the caller must ignore what follows a blank line."""
        return self.ask_for(messages, "RETR" if "TOP" in self.quirks.hidden else "TOP 0")

    def next_message(
        self, retrieval: Retrieval, done: Message | None = None
    ) -> Procedure[Answer | None]:
        """Return the next message, whose body ``piece`` then reads, or None after the last.

        The unread rest of the body before it is skipped.  If the server refuses one message, the
        answer has the error and the other messages are unaffected.  After None,
        ``retrieval.failure`` is the exception that ended the caller's iterable early, or None.
        ``done`` is deleted before the next message is requested; see ``delete``.

        Raises:
            BodySkipped: another command came in between; the rest was not requested, and ``done``
                is not deleted: that command may have been RSET.
        """
        if retrieval is not self._retrieval:
            raise BodySkipped("another command has ended this retrieval")
        if done is not None and done.number not in retrieval.deleted:
            self.deletions += 1
            self._deletions.append(self._queued(done, "DELE"))
            retrieval.deleted.add(done.number)
        return (yield from self._next_answer())

    def _next_answer(self) -> Procedure[Answer | None]:
        yield from self._skip_body()
        while True:
            if commands := self._fill_window():
                yield commands
            if not self._asked:
                break
            answer = self._asked.popleft()
            self._command = answer.keyword
            try:
                yield from self._status(answer.keyword)
            except CommandFailed as error:
                answer.error = error
            self._has_pipelined |= answer.is_behind
            if answer.has_body:
                if answer.error is None:
                    self._reading, self._body = answer, Unstuffer()
                    self._window = min(2 * self._window, WINDOW_COMMANDS)
                else:
                    self._window = 1  # the server may have refused because of the pipelining
                return answer
            if answer.error is not None:
                self.deletions -= 1
                self.refused.append(answer.message)
                self._refused = self._refused or answer.error
        return None

    def piece(self, answer: Answer) -> Procedure[bytes]:
        """Return the next octets of a body, CRLF text without byte-stuffing; empty at its end.

        An empty piece is returned only after the termination octet, so a caller that never gets
        one has only a part of the message.

        Raises:
            CommandFailed: the server refused this message.
            BodySkipped: the next message or another command came before the end.
        """
        if answer.error is not None:
            raise answer.error
        if answer.is_whole:
            return b""
        if answer is not self._reading:
            raise BodySkipped("another command came before the end of this message")
        content = yield from self._content()
        if not content:
            self._reading, answer.is_whole = None, True
        return content

    def _content(self) -> Procedure[bytes]:
        """Return the next octets of the multi-line response; empty at its end."""
        while self._body is not None:
            if not self._unread:
                self._unread += yield from self._more()
            octets = bytes(self._unread[:_PIECE])  # many small messages may have arrived at once
            content = self._body.feed(octets)
            del self._unread[: len(octets) - len(self._body.rest)]
            if self._body.is_finished:
                self._body = None
            if content:
                return content
        return b""

    def delete(self, messages: Iterable[Message]) -> Procedure[None]:
        """Send DELE for each message, pipelined if announced (RFC 1939 §5).

        During a retrieval the commands are queued among its commands, and ``next_message`` reads
        the responses.  A message that the server refuses is added to ``refused`` and does not
        affect the others; ``quit`` raises its error after the others were removed.

        Raises, at once:
            StaleMessage: a message of another session; nothing was sent.
            TypeError: not a Message; nothing was sent.
        """
        return self._delete([self._queued(message, "DELE") for message in messages])

    def _delete(self, wanted: Sequence[Answer]) -> Procedure[None]:
        is_alone = self._reading is None and not self._asked and self._first_waiting() is None
        self.deletions += len(wanted)
        self._deletions += wanted
        if self._retrieval is not None and self._retrieval.deletes:
            self._retrieval.deleted.update(each.message.number for each in wanted)
        if is_alone:
            yield from self._next_answer()
        elif commands := self._fill_window():
            yield commands

    def reset(self) -> Procedure[None]:
        """Send RSET, which unmarks all messages (RFC 1939 §5)."""
        yield from self._send("RSET")
        yield from self._status("RSET")
        self.deletions, self._refused = 0, None

    def noop(self) -> Procedure[None]:
        """Send NOOP, which resets the server's autologout timer (RFC 1939 §3, §5)."""
        yield from self._send("NOOP")
        yield from self._status("NOOP")

    def quit(self) -> Procedure[None]:
        """Send QUIT, which removes the marked messages (RFC 1939 §6).

        Raises:
            CommandFailed: for QUIT: some messages were not removed.  For DELE: all marked messages
                were removed; this is the first that the server had refused to mark.
        """
        if self.quirks.reset_before_quit and not self.deletions:
            yield from self.reset()
        yield from self._send("QUIT")
        self._is_leaving = True
        yield from self._status("QUIT")
        self.deletions = 0
        if self._refused is not None:
            raise self._refused

    # Internal

    def _queued(self, message: Message, verb: str, rest: str = "") -> Answer:
        """
        Raises:
            StaleMessage: a message of an earlier session.
            UnsafeArgument: its number is not a whole number.
            TypeError: not a message.
        """
        if not isinstance(message, Message):
            raise TypeError(f"must be a Message of list(), not {type(message).__name__}")
        if message.session not in (None, self.session):
            raise StaleMessage("a message of another session; list the messages again")
        if type(message.number) is not int:
            raise UnsafeArgument("a message-number must be a whole number")
        return Answer(message, f"{verb} {message.number} {rest}".rstrip().encode() + CRLF)

    def _first_waiting(self) -> Answer | None:
        return self._deletions[0] if self._deletions else self._look_ahead()

    def _look_ahead(self) -> Answer | None:
        """Return the next message of the caller's iterable; its errors must not end the session."""
        if self._ahead is None:
            try:
                self._ahead = next(self._waiting, None)
            except Exception as error:
                self._waiting = iter(())
                assert self._retrieval is not None  # whose iterable it is
                self._retrieval.failure = error
        return self._ahead

    def _fill_window(self) -> bytes:
        """Return the commands that may be sent now; a single one without PIPELINING.

        The window is refilled when half of it is empty, so that many commands share one segment.
        It is bounded by commands (our send must not block while the server waits for us to read)
        and by octets (a caller that stops has to read what it requested).
        """
        if len(self._asked) > self._window // 2:
            return b""
        if self._reading is not None and not self._asked:
            return b""  # unrequested octets after this last body would be taken for its answer
        commands = []
        octets = sum(answer.message.size for answer in self._asked if answer.has_body)
        while (answer := self._first_waiting()) is not None:
            size = answer.message.size if answer.has_body else 0
            if self._asked and (
                not self.capabilities.pipelining
                or len(self._asked) >= self._window
                or octets + size > WINDOW_OCTETS
            ):
                break
            octets += size
            if not self._asked:
                self._expect_silence()
            answer.is_behind = bool(self._asked) or self._reading is not None
            self._was_ahead |= answer.is_behind
            if answer.has_body:
                self._ahead = None
            else:
                self._deletions.popleft()
            self._asked.append(answer)
            commands.append(answer.command)
        return b"".join(commands)

    def _settle(self) -> Procedure[None]:
        """Read the responses that are still due, so that the next one answers the next command."""
        retrieval = self._retrieval
        # One that deletes ends even at its last message: the next command may be RSET.
        if (
            (retrieval is not None and retrieval.deletes)
            or self._look_ahead() is not None
            or any(answer.has_body for answer in self._asked)
        ):
            self._retrieval = None
        self._ahead, self._waiting = None, iter(())
        while (yield from self._next_answer()) is not None:
            pass

    def _skip_body(self) -> Procedure[None]:
        self._reading = None
        while (yield from self._content()):
            pass

    def _expect_silence(self) -> None:
        """
        Raises:
            ConnectionLost: the server sent something without a command.  Such octets may be part of
                a message and must never be taken for the next response.
        """
        if self._unread.startswith(b"-ERR"):
            raise self.lost("the server has ended the session")
        if self._unread:
            raise self.lost("the server sent data without a command", ProtocolBroken)

    def _send(self, command: str, argument: str = "") -> Procedure[None]:
        _check(argument)
        yield from self._settle()
        self._expect_silence()
        self._command = command
        yield f"{command} {argument}".encode() + CRLF if argument else command.encode() + CRLF

    def _more(self) -> Procedure[bytes]:
        octets = yield None
        return self._line_ends.feed(octets) if self.quirks.bare_line_feeds else octets

    def _line(self) -> Procedure[bytes]:
        scanned = 0
        while (end := self._unread.find(CRLF, scanned)) < 0:
            if len(self._unread) > MAX_LINE:
                raise self.lost("a response line without end", ProtocolBroken)
            scanned = max(len(self._unread) - 1, 0)
            self._unread += yield from self._more()
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        self.record.heard(line)
        return line

    def _status(self, command: str, kind: type[CommandFailed] = CommandFailed) -> Procedure[bytes]:
        """Read a status line and return the text after +OK.

        Raises:
            CommandFailed (``kind``): -ERR.
            ProtocolBroken: neither; the connection cannot be trusted any more.
        """
        line = yield from self._line()
        found = _STATUS.fullmatch(line)
        if found is None or found[1] == b"-ERR":
            raise self._failure(command, line, kind)
        return found[2] or b""

    def _failure(
        self,
        command: str,
        line: bytes,
        kind: type[CommandFailed],
        *,
        with_response: bool = False,
    ) -> Exception:
        found = _STATUS.fullmatch(line)
        if found is None or found[1] != b"-ERR":
            return self.lost(f"{command} was not answered with +OK or -ERR", ProtocolBroken)
        text = self.record.hide((found[2] or b"").decode("utf-8", "replace"))
        code = _CODE.fullmatch(text)
        if code is None:
            known = self.quirks.code(text)
            advice = "" if known else remedy(command, text, with_response=with_response)
            return kind(command, text, known, advice)
        return kind(command, code[2], code[1].upper())

    def _each_line(self, take: Callable[[bytes], None], limit: int) -> Procedure[None]:
        """Pass each line of a multi-line response to ``take``, after its status line was read.

        ``limit``: maximum octets of the response; a longer one ends the connection.
        """
        self._body = Unstuffer()
        octets, rest = 0, b""
        while piece := (yield from self._content()):
            octets += len(piece)
            *lines, rest = (rest + piece).split(CRLF)
            if octets > limit or len(rest) > MAX_LINE:
                raise self.lost("a listing without end", ProtocolBroken)
            for line in lines:
                if line:
                    take(line)


def _decoded(challenge: bytes) -> bytes:
    """
    Raises:
        ValueError: invalid Base64.
    """
    return b64decode(challenge[1:].strip(b" "), validate=True)


def _check(*arguments: str) -> None:
    """
    Raises:
        UnsafeArgument: a control character, which could start another command, or a surrogate.
    """
    for argument in arguments:
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in argument):
            raise UnsafeArgument("control character in an argument; nothing was sent")
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UnsafeArgument("an argument is not valid Unicode text; nothing was sent")
