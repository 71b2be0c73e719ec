"""The client's side of POP3 without I/O (RFC 1939, 2449, 2595, 5034).

Each operation is a generator (a ``Procedure``).  It yields octets to send, or None to request
received octets, and returns its result.  The asyncio client and the blocking client run these
generators.

Security: servers are not trusted.  A multi-line response ends only at CRLF.CRLF.  If octets arrive
together with the response to STLS, the connection is closed.  No argument can contain a second
command.  The client is strict about where a response ends, and tolerant about its content.
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
from .quirks import LineEndings, Quirks, describe, remedy
from .record import Record

T = TypeVar("T")
Procedure = Generator[bytes | None, bytes, T]

# Maximum number of octets in the first line of a response.  Our own limit; RFC 1939 §3 allows 512.
MAX_LINE = 65_536
# Maximum number of octets in a response to LIST, UIDL or CAPA.  Our own limit; a million messages
# with unique-ids of 70 octets take about 80 MB.
MAX_LISTING = 128 * 2**20
_PIECE = 32_768  # octets of a multi-line response that are processed at a time
# Limits for pipelining: the number of unanswered RETR commands, and the announced size of their
# messages in octets.  The commands take about 10 kB, which fits into socket buffers.
WINDOW_COMMANDS = 1024
WINDOW_OCTETS = 4 * 2**20
_STATUS = re.compile(rb"(\+OK|-ERR)(?: +(.*))?", re.DOTALL)
_CODE = re.compile(r"\[([A-Za-z0-9/._-]+)\] *(.*)", re.DOTALL)
_DROP = re.compile(rb" *([0-9]{1,10}) +(-?[0-9]{1,18})(?: .*)?", re.DOTALL)
_SCAN = re.compile(rb"(?:\+OK)? *([0-9]{1,10}) +([0-9]{1,18})(?: .*)?", re.DOTALL)
_UNIQUE = re.compile(rb"(?:\+OK)? *([0-9]{1,10}) +([^ ].*)", re.DOTALL)
_TIME_STAMP = re.compile(rb"<[!-;=?A-~]+@[!-;=?A-~]+>")
_MAX_UNIQUE_ID = 1000  # octets; our own limit, because RFC 1939 §7 allows only 70


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities that a server announces (RFC 2449 §5).

    ``tags`` is empty if the server does not support CAPA.
    """

    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The arguments of each capability by its tag, both in upper case."""

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
        """The SASL mechanisms (RFC 5034 §3)."""
        return self.tags.get("SASL", ())

    @property
    def implementation(self) -> str:
        """The name of the server software; behaviour must not depend on it (RFC 2449 §6.9)."""
        return " ".join(self.tags.get("IMPLEMENTATION", ()))

    @property
    def login_delay(self) -> int | None:
        """Minimum number of seconds between two logins (RFC 2449 §6.5)."""
        seconds = next(iter(self.tags.get("LOGIN-DELAY", ())), "")
        return int(seconds) if seconds.isdecimal() and seconds.isascii() else None

    @property
    def expire(self) -> str | None:
        """Minimum number of days that messages are kept, or ``NEVER`` (RFC 2449 §6.7)."""
        return next(iter(self.tags.get("EXPIRE", ())), None)


@dataclass(slots=True, eq=False)
class Answer:
    """The response to a RETR or TOP command, or to a DELE command that was sent between them."""

    message: Message
    command: bytes
    """The command, including CRLF."""
    error: CommandFailed | None = None
    """The error if the server refused this command."""
    is_complete: bool = False
    """Whether the response was read up to the termination octet."""
    is_pipelined: bool = False
    """Whether the command was sent before the response to an earlier command arrived."""

    @property
    def keyword(self) -> str:
        return self.command.split(b" ")[0].decode()

    @property
    def has_body(self) -> bool:
        return self.keyword != "DELE"


class Retrieval:
    """A request for several messages.  It ends when any other command is sent."""

    def __init__(self, *, deletes: bool = False) -> None:
        self.failure: Exception | None = None
        """The exception that the caller's iterable of messages raised; it does not affect earlier
        messages."""
        self.deletes = deletes
        """Whether ``next_message`` deletes the messages that were read."""
        self.deleted_numbers: set[int] = set()
        """Numbers of the messages that ``next_message`` or the caller has deleted.  A second DELE
        for them would fail."""


class Dialogue:
    """The state of one connection to a server."""

    def __init__(self, record: Record | None = None, quirks: Quirks | None = None) -> None:
        self.record = record or Record()
        self.quirks = quirks or Quirks()
        self.capabilities = Capabilities()
        self.deletions = 0
        """Number of messages for which DELE was requested, and which QUIT has not removed yet."""
        self.refused: list[Message] = []
        """Messages that the server refused to mark as deleted."""
        self.session = object()
        """Identifies the session; equals ``Message.session`` of its messages."""
        self._greeting_text = b""
        self._command = "greeting"  # the last command whose response was awaited
        self._line_endings = LineEndings()
        self._unread = bytearray()  # octets that were received but not processed
        self._queued_deletions: deque[Answer] = deque()  # DELE commands to send before ``_queue``
        self._queue: Iterator[Answer] = iter(())  # RETR or TOP commands to send
        self._next_queued: Answer | None = None  # the first command, already taken from ``_queue``
        self._window = WINDOW_COMMANDS  # number of commands to pipeline; smaller after a refusal
        self._unanswered: deque[Answer] = deque()  # commands whose response has not been read
        self._retrieval: Retrieval | None = None
        self._reading: Answer | None = None  # the message whose body is being read
        self._body: Unstuffer | None = None  # the multi-line response that is being read
        self._first_refusal: CommandFailed | None = None  # the error of the first refused DELE
        self._has_sent_quit = False
        self._has_pipelined_uidl = False  # UIDL was sent with LIST and has not been answered
        self._has_pipelined = False  # a command for a message was sent before an earlier response
        self._is_pipelining_proved = False  # the response to such a command arrived

    @property
    def is_pipelining_in_doubt(self) -> bool:
        """Whether several commands were sent together, and no more than one has been answered.

        If the connection is lost in this state, the server probably announces PIPELINING without
        supporting it.  The state does not include the time during which a message is received.
        """
        is_unproved = self._has_pipelined and not self._is_pipelining_proved
        return self._has_pipelined_uidl or (is_unproved and self._reading is None)

    def stop_pipelining(self) -> None:
        """From now on, send one command at a time, even if the server announces PIPELINING."""
        tags = {tag: words for tag, words in self.capabilities.tags.items() if tag != "PIPELINING"}
        self.capabilities = Capabilities(tags)

    def connection_lost(
        self, reason: str, kind: type[ConnectionLost] = ConnectionLost
    ) -> ConnectionLost:
        """Return the exception for a connection that ended before the response to QUIT."""
        suggestion = self._suggestion()
        text = f"{reason}; {suggestion}" if suggestion else reason
        return kind(text, self.deletions, is_known=not self._has_sent_quit)

    def _suggestion(self) -> str:
        """Suggest a quirk for a connection that is lost now; return "" if none is known."""
        if self._command == "CAPA":
            return f"if this happens after each CAPA command, set {describe('no-capa')}"
        if self.is_pipelining_in_doubt:
            return (
                "several commands had been sent together: if this happens each time, set "
                f"{describe('hide:PIPELINING')}"
            )
        if self._command == "TOP" and self._unread:
            return f"if it answers TOP twice, set {describe('hide:TOP')}"
        if b"\n" in self._unread and CRLF not in self._unread:
            return (
                "its lines end with a bare LF: if you trust all senders of the messages, set "
                f"{describe('bare-line-feeds')}"
            )
        return ""

    def is_harmless(self, error: ConnectionLost) -> bool:
        """Return whether the connection was lost after QUIT, and no message had to be removed.

        QUIT then has no effect (RFC 1939 §6), so its response does not matter.
        """
        is_after_quit = self._has_sent_quit and type(error) is ConnectionLost
        return is_after_quit and not self.deletions and self._first_refusal is None

    # Greeting, capabilities and login

    def greeting(self) -> Procedure[None]:
        """Read the greeting, which the server sends without a command (RFC 1939 §4).

        Raises:
            CommandFailed: the server refuses the connection.
        """
        self._greeting_text = yield from self._status("greeting")

    def request_capabilities(self) -> Procedure[Capabilities]:
        """Send CAPA (RFC 2449 §5), and apply the quirks to the response."""
        tags: dict[str, tuple[str, ...]] = {}

        def add_line(line: bytes) -> None:
            if words := line.decode("ascii", "replace").upper().split():
                tags[words[0]] = tuple(words[1:])

        if not self.quirks.no_capa:
            yield from self._send("CAPA")
            try:
                yield from self._status("CAPA")
            except CommandFailed:
                pass
            else:
                yield from self._each_line(add_line, MAX_LINE)
        for added in self.quirks.added:
            add_line(added.encode())
        for hidden in self.quirks.hidden:
            tags.pop(hidden.upper(), None)
        self.capabilities = Capabilities(tags)
        self._command = ""
        return self.capabilities

    def start_tls(self) -> Procedure[None]:
        """Send STLS and discard the capabilities.  The TLS handshake must follow immediately.

        Raises:
            TLSUnavailable: the server refused STLS; no secret was sent (RFC 2595 §2.2).
            ProtocolBroken: octets arrived together with the response (CVE-2021-22947 and others).
        """
        yield from self._send("STLS")
        try:
            yield from self._status("STLS")
        except CommandFailed as error:
            raise TLSUnavailable(f"the server refused STLS: {error.text}") from error
        if self._unread:
            raise self.connection_lost(
                "the server sent data before the TLS handshake", ProtocolBroken
            )
        self.capabilities, self._greeting_text = Capabilities(), b""

    def log_in(
        self, login: ClientLogin, end_point: Callable[[], bytes] = lambda: b""
    ) -> Procedure[None]:
        """Log in with the strongest mechanism that both sides support.

        If this login fails, no weaker mechanism is tried.

        ``end_point`` returns the channel binding to the server's certificate (RFC 5929 §4), or
        empty octets if there is no certificate.  It is called only for mechanisms that use it.

        Raises:
            LoginFailed: the server refused the login, or offers no login of the required strength.
                Contains the server's response code.
            ProtocolBroken: the server could not prove that it knows the password.
            UnsafeArgument: the user or the password contains a control character, or text that
                this server does not accept; nothing was sent.
        """
        _check(login.user, login.password, login.token, login.mechanism)
        with self.record.login(login.secret):
            yield from self._log_in(login, end_point)

    def _log_in(self, login: ClientLogin, end_point: Callable[[], bytes]) -> Procedure[None]:
        offer = self.capabilities.sasl
        binding = end_point() if uses_binding((*offer, login.mechanism.upper())) else b""
        accepts_user = not offer or "USER" in self.capabilities.tags
        advice = f"if it also accepts USER and PASS, set {describe('add:USER')}"
        mechanism = choose(login, offer, bool(binding), accepts_user=accepts_user, advice=advice)
        if mechanism == "APOP":
            yield from self._apop(login)
        elif mechanism == USER_AND_PASS:
            yield from self._user_and_pass(login)
        else:
            yield from self._auth(mechanism, client_exchange(mechanism, login, binding))

    def _user_and_pass(self, login: ClientLogin) -> Procedure[None]:
        """
        Raises:
            UnsafeArgument: the user or the password is not ASCII, and the server does not announce
                UTF-8 for USER (RFC 6856 §2.2).
        """
        accepts_utf8 = self.quirks.utf8_login or "USER" in self.capabilities.tags.get("UTF8", ())
        if not accepts_utf8 and not (login.user + login.password).isascii():
            raise UnsafeArgument(
                "the user name or password is not ASCII, but the server does not announce UTF-8 "
                f"for USER (RFC 6856 §2.2); if it accepts UTF-8, set {describe('utf8-login')}"
            )
        for command, argument in (("USER", login.user), ("PASS", login.password)):
            yield from self._send(command, argument)
            yield from self._status(command, LoginFailed)

    def _apop(self, login: ClientLogin) -> Procedure[None]:
        """Log in with APOP: a digest of the greeting's time stamp and the password (RFC 1939 §7).

        MD5 is broken, and the server does not prove that it knows the password.  So APOP is used
        only if the caller requests it.

        Raises:
            LoginFailed: the greeting contains no time stamp in the form of a Message-ID.  Other
                time stamps would help a malicious server to guess the password (CVE-2007-1558).
            UnsafeArgument: the password is not ASCII.
        """
        time_stamp = _TIME_STAMP.search(self._greeting_text)
        if time_stamp is None:
            raise LoginFailed("APOP", "the greeting has no usable time stamp", None)
        if not login.password.isascii():
            raise UnsafeArgument("APOP requires an ASCII password")
        digest = md5(time_stamp[0] + login.password.encode(), usedforsecurity=False).hexdigest()
        yield from self._send("APOP", f"{login.user} {digest}")
        yield from self._status("APOP", LoginFailed)

    def _auth(self, mechanism: str, exchange: ClientExchange) -> Procedure[None]:
        """Run a SASL exchange (RFC 5034 §4).

        The first response is sent with the AUTH command if the mechanism and the server allow this,
        and if the line is short enough.
        """
        yield from self._settle()
        step = next(exchange)
        command, response = f"AUTH {mechanism}".encode(), b64encode(step.response) or b"="
        is_offered = mechanism in self.capabilities.sasl
        is_short = len(command) + 1 + len(response) + len(CRLF) <= MAX_COMMAND
        is_sent = step.is_initial and is_offered and is_short and not self.quirks.two_step_auth
        has_initial_response, self._command = is_sent, "AUTH"
        yield (command + b" " + response if is_sent else command) + CRLF
        while True:
            line = yield from self._line()
            if not line.startswith(b"+") or (line.startswith(b"+OK") and is_sent):
                break  # before our first response, some servers send +OK instead of a challenge
            if is_sent:
                try:
                    step = exchange.send(_decode(line))
                except (StopIteration, ValueError):
                    yield b"*\r\n"
                    step = step._replace(may_be_last=False)
                    line = yield from self._line()
                    break
            is_sent = True
            yield b64encode(step.response) + CRLF
        if not line.startswith(b"+OK"):
            raise self._failure("AUTH", line, LoginFailed, with_response=has_initial_response)
        if not step.may_be_last:
            raise self.connection_lost(
                "the server did not prove that it knows the password", ProtocolBroken
            )

    # Commands of the TRANSACTION state

    def stat(self) -> Procedure[tuple[int, int]]:
        """Return the drop listing: the number of messages and of octets (RFC 1939 §5).

        If the number of octets is negative, because it overflows on some servers, 0 is returned.
        """
        yield from self._send("STAT")
        text = yield from self._status("STAT")
        match = _DROP.fullmatch(text)
        if match is None:
            raise self.connection_lost("STAT was answered without numbers", ProtocolBroken)
        return int(match[1]), max(int(match[2]), 0)

    def listing(self) -> Procedure[Listing]:
        """Send LIST and UIDL, and return the messages in the order of LIST.

        Raises:
            CommandFailed: the server refused LIST, or announces UIDL and refused it.  The second
                error must not look like a server without unique-ids.
            ProtocolBroken: a line is malformed, or the same number is listed twice.
        """
        listing = ListingBuilder(self.session)

        def add_line(line: bytes) -> None:
            match = _SCAN.fullmatch(line)
            if match is None or not listing.add(int(match[1]), int(match[2])):
                raise self.connection_lost(
                    "the response to LIST contains an invalid line", ProtocolBroken
                )

        yield from self._send("LIST")
        if self.capabilities.pipelining:
            self._has_pipelined_uidl = True
            yield b"UIDL\r\n"
        try:
            yield from self._status("LIST")
        except CommandFailed:
            if self.capabilities.pipelining:
                yield from self._unique_ids(listing)
            raise
        yield from self._each_line(add_line, MAX_LISTING)
        if not self.capabilities.pipelining:
            yield b"UIDL\r\n"
        yield from self._unique_ids(listing)
        return listing

    def _unique_ids(self, listing: ListingBuilder) -> Procedure[None]:
        """Read the response to a UIDL command that has been sent already (RFC 1939 §7)."""

        def add_line(line: bytes) -> None:
            match = _UNIQUE.fullmatch(line.rstrip(b" "))
            if match is None or len(match[2]) > _MAX_UNIQUE_ID:
                return  # ignore blank unique-ids, and long ones, which would fill the memory
            if not listing.set_unique_id(int(match[1]), match[2]):
                raise self.connection_lost(
                    "UIDL was answered with two unique-ids for a message", ProtocolBroken
                )

        try:
            yield from self._status("UIDL")
        except CommandFailed:
            self._has_pipelined_uidl = False
            if self.capabilities.uidl:
                raise
            return
        self._has_pipelined_uidl = False
        yield from self._each_line(add_line, MAX_LISTING)

    def request_messages(
        self, messages: Iterable[Message], command: str = "RETR", *, deletes: bool = False
    ) -> Procedure[Retrieval]:
        """Queue messages for ``next_message``, which deletes them if ``deletes`` is set.

        ``command`` is ``RETR``, or for example ``TOP 10``.  The first message is taken from the
        iterable immediately, before the returned procedure runs, because the iterable may use the
        session to list the messages.

        Raises, immediately:
            StaleMessage: the first message belongs to another session; nothing was sent.
            TypeError: the first item is not a Message.
            Exception: any exception of the iterable.
        """
        verb, _, rest = command.partition(" ")
        _check(verb, rest)
        queue = (self._queued(message, verb, rest) for message in messages)
        return self._begin(next(queue, None), queue, Retrieval(deletes=deletes))

    def _begin(
        self, first: Answer | None, queue: Iterator[Answer], retrieval: Retrieval
    ) -> Procedure[Retrieval]:
        yield from self._settle()
        self._next_queued, self._queue = first, queue
        self._retrieval = retrieval
        return retrieval

    def request_headers(self, messages: Iterable[Message]) -> Procedure[Retrieval]:
        """Queue messages to read their headers.

        The caller must ignore the octets after the blank line that ends a header.
        """
        return self.request_messages(messages, "RETR" if "TOP" in self.quirks.hidden else "TOP 0")

    def next_message(
        self, retrieval: Retrieval, done: Message | None = None
    ) -> Procedure[Answer | None]:
        """Return the response for the next message, or None after the last message.

        The caller reads the body with ``piece``.  The rest of the previous body is skipped.  If the
        server refuses a message, ``Answer.error`` is set, and the other messages are not affected.
        After the last message, ``retrieval.failure`` is the exception that ended the caller's
        iterable early, or None.  ``done`` is deleted before the next message is requested; see
        ``delete``.

        Raises:
            BodySkipped: another command has ended the retrieval.  The remaining messages were not
                requested, and ``done`` is not deleted, because the command may have been RSET.
        """
        if retrieval is not self._retrieval:
            raise BodySkipped("another command has ended this retrieval")
        if done is not None and done.number not in retrieval.deleted_numbers:
            self.deletions += 1
            self._queued_deletions.append(self._queued(done, "DELE"))
            retrieval.deleted_numbers.add(done.number)
        return (yield from self._next_answer())

    def _next_answer(self) -> Procedure[Answer | None]:
        yield from self._skip_body()
        while True:
            if octets := self._fill_window():
                yield octets
            if not self._unanswered:
                break
            answer = self._unanswered.popleft()
            self._command = answer.keyword
            try:
                yield from self._status(answer.keyword)
            except CommandFailed as error:
                answer.error = error
            self._is_pipelining_proved |= answer.is_pipelined
            if answer.has_body:
                if answer.error is None:
                    self._reading, self._body = answer, Unstuffer()
                    self._window = min(2 * self._window, WINDOW_COMMANDS)
                else:
                    self._window = 1  # pipelining may be the reason why the server refused
                return answer
            if answer.error is not None:
                self.deletions -= 1
                self.refused.append(answer.message)
                self._first_refusal = self._first_refusal or answer.error
        return None

    def piece(self, answer: Answer) -> Procedure[bytes]:
        """Return the next octets of a body, with CRLF line endings and without byte-stuffing.

        Returns empty octets at the end, but only after the termination octet.  A caller that does
        not get them has only a part of the message.

        Raises:
            CommandFailed: the server refused this message.
            BodySkipped: the next message or another command was requested before the end.
        """
        if answer.error is not None:
            raise answer.error
        if answer.is_complete:
            return b""
        if answer is not self._reading:
            raise BodySkipped("another command was sent before the end of this message")
        content = yield from self._content()
        if not content:
            self._reading, answer.is_complete = None, True
        return content

    def _content(self) -> Procedure[bytes]:
        """Return the next octets of the multi-line response, or empty octets at its end."""
        while self._body is not None:
            if not self._unread:
                self._unread += yield from self._more()
            octets = bytes(self._unread[:_PIECE])  # many small messages may have arrived together
            content = self._body.feed(octets)
            del self._unread[: len(octets) - len(self._body.rest)]
            if self._body.is_finished:
                self._body = None
            if content:
                return content
        return b""

    def delete(self, messages: Iterable[Message]) -> Procedure[None]:
        """Send DELE for each message, pipelined if the server supports it (RFC 1939 §5).

        During a retrieval, DELE is sent between its commands, and ``next_message`` reads the
        responses.  If the server refuses to delete a message, the message is added to ``refused``,
        and the others are not affected; ``quit`` raises the error after the others were removed.

        Raises, immediately:
            StaleMessage: a message belongs to another session; nothing was sent.
            TypeError: an item is not a Message; nothing was sent.
        """
        return self._delete([self._queued(message, "DELE") for message in messages])

    def _delete(self, commands: Sequence[Answer]) -> Procedure[None]:
        is_idle = self._reading is None and not self._unanswered and self._next_command() is None
        self.deletions += len(commands)
        self._queued_deletions += commands
        if self._retrieval is not None and self._retrieval.deletes:
            self._retrieval.deleted_numbers.update(each.message.number for each in commands)
        if is_idle:
            yield from self._next_answer()
        elif octets := self._fill_window():
            yield octets

    def reset(self) -> Procedure[None]:
        """Send RSET, which unmarks all messages (RFC 1939 §5)."""
        yield from self._send("RSET")
        yield from self._status("RSET")
        self.deletions, self._first_refusal = 0, None

    def noop(self) -> Procedure[None]:
        """Send NOOP, which resets the server's autologout timer (RFC 1939 §3, §5)."""
        yield from self._send("NOOP")
        yield from self._status("NOOP")

    def quit(self) -> Procedure[None]:
        """Send QUIT, which removes the marked messages (RFC 1939 §6).

        Raises:
            CommandFailed: if ``command`` is QUIT, some messages were not removed.  If it is DELE,
                all marked messages were removed, but the server had refused to mark others; this
                is its first refusal.
        """
        if self.quirks.reset_before_quit and not self.deletions:
            yield from self.reset()
        yield from self._send("QUIT")
        self._has_sent_quit = True
        yield from self._status("QUIT")
        self.deletions = 0
        if self._first_refusal is not None:
            raise self._first_refusal

    # Internal

    def _queued(self, message: Message, verb: str, rest: str = "") -> Answer:
        """
        Raises:
            StaleMessage: the message belongs to another session.
            UnsafeArgument: the message-number is not a whole number.
            TypeError: ``message`` is not a Message.
        """
        if not isinstance(message, Message):
            raise TypeError(f"must be a Message from list(), not {type(message).__name__}")
        if message.session not in (None, self.session):
            raise StaleMessage("the message belongs to another session; list the messages again")
        if type(message.number) is not int:
            raise UnsafeArgument("a message-number must be a whole number")
        return Answer(message, f"{verb} {message.number} {rest}".rstrip().encode() + CRLF)

    def _next_command(self) -> Answer | None:
        return self._queued_deletions[0] if self._queued_deletions else self._peek()

    def _peek(self) -> Answer | None:
        """Return the next command of ``_queue`` without removing it.

        An exception in the caller's iterable must not end the session.
        """
        if self._next_queued is None:
            try:
                self._next_queued = next(self._queue, None)
            except Exception as error:
                self._queue = iter(())
                assert self._retrieval is not None  # the iterable belongs to it
                self._retrieval.failure = error
        return self._next_queued

    def _fill_window(self) -> bytes:
        """Return the commands that can be sent now; without PIPELINING, at most one.

        The window is refilled when half of it is empty, so that many commands share one segment.
        The number of commands is limited, because sending must not block while the server waits
        for the client to read.  The size of the messages is limited, because a caller that stops
        early must still read the messages that were requested.
        """
        if len(self._unanswered) > self._window // 2:
            return b""
        if self._reading is not None and not self._unanswered:
            return b""  # superfluous octets after this body could be mistaken for a response
        commands = []
        octets = sum(answer.message.size for answer in self._unanswered if answer.has_body)
        while (answer := self._next_command()) is not None:
            size = answer.message.size if answer.has_body else 0
            if self._unanswered and (
                not self.capabilities.pipelining
                or len(self._unanswered) >= self._window
                or octets + size > WINDOW_OCTETS
            ):
                break
            octets += size
            if not self._unanswered:
                self._refuse_unrequested_data()
            answer.is_pipelined = bool(self._unanswered) or self._reading is not None
            self._has_pipelined |= answer.is_pipelined
            if answer.has_body:
                self._next_queued = None
            else:
                self._queued_deletions.popleft()
            self._unanswered.append(answer)
            commands.append(answer.command)
        return b"".join(commands)

    def _settle(self) -> Procedure[None]:
        """Read the responses to all commands that were sent before the next command."""
        retrieval = self._retrieval
        # A retrieval that deletes ends even after its last message, because the next command may be
        # RSET.
        if (
            (retrieval is not None and retrieval.deletes)
            or self._peek() is not None
            or any(answer.has_body for answer in self._unanswered)
        ):
            self._retrieval = None
        self._next_queued, self._queue = None, iter(())
        while (yield from self._next_answer()) is not None:
            pass

    def _skip_body(self) -> Procedure[None]:
        self._reading = None
        while (yield from self._content()):
            pass

    def _refuse_unrequested_data(self) -> None:
        """
        Raises:
            ConnectionLost: the server sent data without a command.  It may be part of a message, so
                it must not be mistaken for the next response.
        """
        if self._unread.startswith(b"-ERR"):
            raise self.connection_lost("the server has ended the session")
        if self._unread:
            raise self.connection_lost("the server sent data without a command", ProtocolBroken)

    def _send(self, command: str, argument: str = "") -> Procedure[None]:
        _check(argument)
        yield from self._settle()
        self._refuse_unrequested_data()
        self._command = command
        yield f"{command} {argument}".encode() + CRLF if argument else command.encode() + CRLF

    def _more(self) -> Procedure[bytes]:
        octets = yield None
        return self._line_endings.feed(octets) if self.quirks.bare_line_feeds else octets

    def _line(self) -> Procedure[bytes]:
        scanned = 0
        while (end := self._unread.find(CRLF, scanned)) < 0:
            if len(self._unread) > MAX_LINE:
                raise self.connection_lost("a line of a response is too long", ProtocolBroken)
            scanned = max(len(self._unread) - 1, 0)
            self._unread += yield from self._more()
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        self.record.received(line)
        return line

    def _status(self, command: str, kind: type[CommandFailed] = CommandFailed) -> Procedure[bytes]:
        """Read a status line, and return the text after +OK.

        Raises:
            CommandFailed (``kind``): the line begins with -ERR.
            ProtocolBroken: the line begins neither with +OK nor with -ERR, so the connection cannot
                be trusted any more.
        """
        line = yield from self._line()
        match = _STATUS.fullmatch(line)
        if match is None or match[1] == b"-ERR":
            raise self._failure(command, line, kind)
        return match[2] or b""

    def _failure(
        self,
        command: str,
        line: bytes,
        kind: type[CommandFailed],
        *,
        with_response: bool = False,
    ) -> Exception:
        match = _STATUS.fullmatch(line)
        if match is None or match[1] != b"-ERR":
            return self.connection_lost(
                f"{command} was not answered with +OK or -ERR", ProtocolBroken
            )
        text = self.record.hide((match[2] or b"").decode("utf-8", "replace"))
        with_code = _CODE.fullmatch(text)
        if with_code is None:
            code = self.quirks.code(text)
            advice = "" if code else remedy(command, text, with_response=with_response)
            return kind(command, text, code, advice)
        return kind(command, with_code[2], with_code[1].upper())

    def _each_line(self, process: Callable[[bytes], None], limit: int) -> Procedure[None]:
        """Read a multi-line response after its status line, and pass each line to ``process``.

        ``limit``: maximum number of octets; a longer response ends the connection.
        """
        self._body = Unstuffer()
        octets, rest = 0, b""
        while piece := (yield from self._content()):
            octets += len(piece)
            *lines, rest = (rest + piece).split(CRLF)
            if octets > limit or len(rest) > MAX_LINE:
                raise self.connection_lost("a multi-line response is too long", ProtocolBroken)
            for line in lines:
                if line:
                    process(line)


def _decode(challenge: bytes) -> bytes:
    """
    Raises:
        ValueError: the challenge is not valid Base64.
    """
    return b64decode(challenge[1:].strip(b" "), validate=True)


def _check(*arguments: str) -> None:
    """
    Raises:
        UnsafeArgument: an argument contains a surrogate, or a control character, which could begin
            another command.
    """
    for argument in arguments:
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in argument):
            raise UnsafeArgument("control character in an argument; nothing was sent")
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UnsafeArgument("an argument is not valid Unicode text; nothing was sent")
