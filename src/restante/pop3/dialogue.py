"""The client's side of POP3, each operation once, without I/O (RFC 1939, 2449, 2595, 5034).

An operation is a generator: it yields octets to send, or None for "give me more octets", and
returns its result.  The asyncio and the blocking client are loops around these.

Security: the server is a stranger.  A multi-line response ends at CRLF.CRLF only, octets that come
with the response to STLS end the connection, and no argument can hold a second command.
Strict about where a response ends, tolerant about what stands in it.
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
from ..sasl import ClientExchange, ClientLogin, choose, client_exchange, uses_binding
from ..sasl.choice import USER_AND_PASS
from ..wire import CRLF, MAX_COMMAND, Unstuffer
from .listing import Listing, ListingBuilder, Message
from .quirks import LineEnds, Quirks, in_words, remedy
from .record import Record

T = TypeVar("T")
Procedure = Generator[bytes | None, bytes, T]

MAX_LINE = 65_536  # octets of a first line, though RFC 1939 §3 allows 512; ours
MAX_LISTING = 128 * 2**20  # octets of LIST, UIDL or CAPA: a million messages and room; ours
_PIECE = 32_768  # octets of content that are looked at together; ours
WINDOW_COMMANDS = 1024  # unanswered RETR commands; some 10 kB, so sending them never blocks
WINDOW_OCTETS = 4 * 2**20  # announced size of what they ask for
_STATUS = re.compile(rb"(\+OK|-ERR)(?: +(.*))?", re.DOTALL)
_CODE = re.compile(r"\[([A-Za-z0-9/._-]+)\] *(.*)", re.DOTALL)
_DROP = re.compile(rb" *([0-9]{1,10}) +(-?[0-9]{1,18})(?: .*)?", re.DOTALL)
_SCAN = re.compile(rb"(?:\+OK)? *([0-9]{1,10}) +([0-9]{1,18})(?: .*)?", re.DOTALL)
_UNIQUE = re.compile(rb"(?:\+OK)? *([0-9]{1,10}) +([^ ].*)", re.DOTALL)
_TIME_STAMP = re.compile(rb"<[!-;=?A-~]+@[!-;=?A-~]+>")
_MAX_UNIQUE_ID = 1000  # octets, though RFC 1939 §7 allows 70


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


@dataclass(slots=True, eq=False)
class Answer:
    """The response to RETR or TOP, or to a DELE that waits among these."""

    message: Message
    command: bytes
    """CRLF included."""
    error: CommandFailed | None = None
    """The server does not give this message."""
    is_whole: bool = False
    """The termination octet was seen."""
    is_behind: bool = False
    """The command was sent before the response to an earlier one had come."""

    @property
    def keyword(self) -> str:
        return self.command.split(b" ")[0].decode()

    @property
    def has_body(self) -> bool:
        return self.keyword != "DELE"


class Retrieval:
    """A run of messages asked for together; another command ends it."""

    def __init__(self, *, deletes: bool = False) -> None:
        self.failure: Exception | None = None
        """Raised by the caller's own iterable of messages; those before are not disturbed."""
        self.deletes = deletes
        """``next_message`` deletes messages of it."""
        self.deleted: set[int] = set()
        """Numbers of those that the caller has deleted meanwhile: a second DELE would fail."""


class Dialogue:
    """One connection's conversation."""

    def __init__(self, record: Record | None = None, quirks: Quirks | None = None) -> None:
        self.record = record or Record()
        self.quirks = quirks or Quirks()
        self.capabilities = Capabilities()
        self.deletions = 0
        """Messages marked as deleted, or about to be, and not yet removed by QUIT."""
        self.refused: list[Message] = []
        """Messages that the server would not mark as deleted."""
        self.session = object()
        self._welcome = b""  # the text of the greeting
        self._command = "greeting"  # what the server answers, or answered last
        self._line_ends = LineEnds()
        self._unread = bytearray()
        self._deletions: deque[Answer] = deque()  # not sent yet; they go before what is waiting
        self._waiting: Iterator[Answer] = iter(())  # not sent yet
        self._ahead: Answer | None = None  # the first of the waiting
        self._window = WINDOW_COMMANDS  # smaller after a refusal
        self._asked: deque[Answer] = deque()  # it was sent, the response was not read yet
        self._retrieval: Retrieval | None = None
        self._reading: Answer | None = None  # whose body is being read
        self._body: Unstuffer | None = None  # the multi-line response that is being read
        self._refused: CommandFailed | None = None  # the first deletion that was
        self._is_leaving = False  # QUIT was sent
        self._is_listing_ahead = False  # UIDL was sent before the response to LIST
        self._was_ahead = False  # so was a command for a message,
        self._has_pipelined = False  # and its response came

    @property
    def is_pipelining_in_doubt(self) -> bool:
        """Whether commands were sent together, and only the first of them was answered so far.

        If the session ends now, and not within a message, a server that announces PIPELINING and
        cannot do it is a likely reason.
        """
        is_begun = self._was_ahead and not self._has_pipelined and self._reading is None
        return self._is_listing_ahead or is_begun

    def stop_pipelining(self) -> None:
        """Send one command at a time, whatever the server announces."""
        tags = {tag: words for tag, words in self.capabilities.tags.items() if tag != "PIPELINING"}
        self.capabilities = Capabilities(tags)

    def lost(self, reason: str, kind: type[ConnectionLost] = ConnectionLost) -> ConnectionLost:
        """The exception for a connection that ended without the answer to QUIT."""
        advice = self._remedy()
        text = f"{reason}; {advice}" if advice else reason
        return kind(text, self.deletions, is_known=not self._is_leaving)

    def _remedy(self) -> str:
        """The quirk that may help where the connection ends now; empty where none is known."""
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
                "its lines end with LF alone: if you know all who send mail there, set "
                f"{in_words('bare-line-feeds')}"
            )
        return ""

    def is_harmless(self, error: ConnectionLost) -> bool:
        """Whether the server closed the connection at QUIT, and nothing had been marked.

        Then QUIT has nothing to do (RFC 1939 §6), answered or not.
        """
        is_end = self._is_leaving and type(error) is ConnectionLost
        return is_end and not self.deletions and self._refused is None

    # The beginning.

    def greeting(self) -> Procedure[None]:
        """The server speaks first (RFC 1939 §4).

        Raises:
            CommandFailed: it wants no connection now.
        """
        self._welcome = yield from self._status("greeting")

    def ask_capabilities(self) -> Procedure[Capabilities]:
        """CAPA (RFC 2449 §5)."""
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
        self.capabilities, self._welcome = Capabilities(), b""

    def log_in(
        self, login: ClientLogin, end_point: Callable[[], bytes] = lambda: b""
    ) -> Procedure[None]:
        """The strongest way that both sides know.  One try: no fall-back after a failure.

        ``end_point`` gives the channel binding to the server's certificate (RFC 5929 §4), empty
        where there is none; it is asked only when it is of use.

        Raises:
            LoginFailed: with the server's response code; or no login is strong enough.
            ProtocolBroken: the server could not prove that it knows the password.
            UnsafeArgument: a control character in user or password, or what this server cannot
                be told; nothing was sent.
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
            UnsafeArgument: the server was not heard to take UTF-8 (RFC 6856 §2.2).
        """
        takes_utf8 = self.quirks.utf8_login or "USER" in self.capabilities.tags.get("UTF8", ())
        if not takes_utf8 and not (login.user + login.password).isascii():
            raise UnsafeArgument(
                "this server announces only ASCII in USER and PASS (RFC 6856 §2.2); if it takes "
                f"UTF-8, set {in_words('utf8-login')}"
            )
        for command, argument in (("USER", login.user), ("PASS", login.password)):
            yield from self._send(command, argument)
            yield from self._status(command, LoginFailed)

    def _apop(self, login: ClientLogin) -> Procedure[None]:
        """A digest of the greeting's time stamp and the password (RFC 1939 §7).

        MD5 is broken and the server proves nothing, so this is never chosen, only forced.

        Raises:
            LoginFailed: no time stamp of the form of a Message-ID: what a server may choose
                freely helps it to guess the password (CVE-2007-1558).
            UnsafeArgument: the password is not ASCII.
        """
        found = _TIME_STAMP.search(self._welcome)
        if found is None:
            raise LoginFailed("APOP", "the greeting has no time stamp that may be used", None)
        if not login.password.isascii():
            raise UnsafeArgument("APOP takes passwords of ASCII")
        digest = md5(found[0] + login.password.encode(), usedforsecurity=False).hexdigest()
        yield from self._send("APOP", f"{login.user} {digest}")
        yield from self._status("APOP", LoginFailed)

    def _auth(self, mechanism: str, exchange: ClientExchange) -> Procedure[None]:
        """An exchange (RFC 5034 §4); the first response goes with AUTH where it may and fits."""
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
                break  # before our response +OK is some servers' word for "go on"
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

    # The transaction.

    def stat(self) -> Procedure[tuple[int, int]]:
        """Drop listing: how many messages, how many octets (RFC 1939 §5).

        Some servers count octets until they are negative; then nobody knows, and it is 0.
        """
        yield from self._send("STAT")
        text = yield from self._status("STAT")
        found = _DROP.fullmatch(text)
        if found is None:
            raise self.lost("STAT was answered without numbers", ProtocolBroken)
        return int(found[1]), max(int(found[2]), 0)

    def listing(self) -> Procedure[Listing]:
        """LIST and UIDL together, in the order of LIST.

        Raises:
            CommandFailed: also when UIDL is announced and fails; that is no empty answer.
            ProtocolBroken: lines that tell no numbers, or the same number twice.
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
        """The response to UIDL, whose command was sent (RFC 1939 §7)."""

        def take(line: bytes) -> None:
            match = _UNIQUE.fullmatch(line.rstrip(b" "))
            if match is None or len(match[2]) > _MAX_UNIQUE_ID:
                return  # a blank unique-id is none, nor is one that only fills memory
            if not found.name(int(match[1]), match[2]):
                raise self.lost("UIDL was answered with impossible lines", ProtocolBroken)

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
            TypeError: it is no message.
            Exception: what the iterable itself raises.
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
        """The same for headers; what follows a blank line is to be passed over."""
        return self.ask_for(messages, "RETR" if "TOP" in self.quirks.hidden else "TOP 0")

    def next_message(
        self, retrieval: Retrieval, done: Message | None = None
    ) -> Procedure[Answer | None]:
        """The next message of these, whose body ``piece`` then gives; None: there is none.

        What is left of the body before it is skipped.  If the server refuses one message, the
        error is in the answer and the others are not disturbed.  After None ``retrieval.failure``
        is what ended the iterable too early, if anything did.  ``done`` is deleted before the next
        message is asked for; see ``delete``.

        Raises:
            BodySkipped: another command came in between; the rest was not asked for, and ``done``
                is not deleted: that command may have been RSET.
        """
        if retrieval is not self._retrieval:
            raise BodySkipped("another command has ended this retrieval")
        if done is not None and done.number not in retrieval.deleted:
            self.deletions += 1
            self._deletions.append(self._queued(done, "DELE"))
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
                    self._window = 1  # it may be for the haste that it refuses
                return answer
            if answer.error is not None:
                self.deletions -= 1
                self.refused.append(answer.message)
                self._refused = self._refused or answer.error
        return None

    def piece(self, answer: Answer) -> Procedure[bytes]:
        """The next octets of a body, CRLF text without byte-stuffing; none at its end.

        The end is only told when the termination octet was seen, so who gets no empty piece has
        no whole message.

        Raises:
            CommandFailed: the server does not give this message.
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
        """The next octets of the multi-line response; none at its end."""
        while self._body is not None:
            if not self._unread:
                self._unread += yield from self._more()
            octets = bytes(self._unread[:_PIECE])  # of very much, when it is many small messages
            content = self._body.feed(octets)
            del self._unread[: len(octets) - len(self._body.rest)]
            if self._body.is_finished:
                self._body = None
            if content:
                return content
        return b""

    def delete(self, messages: Iterable[Message]) -> Procedure[None]:
        """DELE for each, pipelined where announced (RFC 1939 §5).

        In the middle of a retrieval they wait for their turn among its commands, and
        ``next_message`` reads the responses.  One that the server refuses is added to ``refused``
        and disturbs no other; ``quit`` raises its error when the others are removed.

        Raises, at once:
            StaleMessage: a message of another session; nothing was sent.
            TypeError: what is no message; nothing was sent.
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
        """RSET: nothing is marked as deleted any more (RFC 1939 §5)."""
        yield from self._send("RSET")
        yield from self._status("RSET")
        self.deletions, self._refused = 0, None

    def noop(self) -> Procedure[None]:
        """NOOP, which resets the server's autologout timer (RFC 1939 §5)."""
        yield from self._send("NOOP")
        yield from self._status("NOOP")

    def quit(self) -> Procedure[None]:
        """QUIT: now the marked messages are removed (RFC 1939 §6).

        Raises:
            CommandFailed: of QUIT: some were not removed.  Of DELE: all were, but for those that
                the server had refused to mark, of which this is the first.
        """
        if self.quirks.reset_before_quit and not self.deletions:
            yield from self.reset()
        yield from self._send("QUIT")
        self._is_leaving = True
        yield from self._status("QUIT")
        self.deletions = 0
        if self._refused is not None:
            raise self._refused

    # Inside.

    def _queued(self, message: Message, verb: str, rest: str = "") -> Answer:
        """
        Raises:
            StaleMessage: a message of an earlier session.
            UnsafeArgument: a number that is none.
            TypeError: not a message.
        """
        if not isinstance(message, Message):
            raise TypeError(f"a Message of list() is needed, not {type(message).__name__}")
        if message.session not in (None, self.session):
            raise StaleMessage("a message of another session; list the messages again")
        if type(message.number) is not int:
            raise UnsafeArgument("a message-number must be a whole number")
        return Answer(message, f"{verb} {message.number} {rest}".rstrip().encode() + CRLF)

    def _first_waiting(self) -> Answer | None:
        return self._deletions[0] if self._deletions else self._look_ahead()

    def _look_ahead(self) -> Answer | None:
        """The next message of the caller's iterable.  What that raises costs no session."""
        if self._ahead is None:
            try:
                self._ahead = next(self._waiting, None)
            except Exception as error:
                self._waiting = iter(())
                assert self._retrieval is not None  # whose iterable it is
                self._retrieval.failure = error
        return self._ahead

    def _fill_window(self) -> bytes:
        """Commands for what may be asked now; one alone where nothing may be pipelined."""
        if len(self._asked) > self._window // 2:
            return b""  # many in one segment rather than each in its own
        if self._reading is not None and not self._asked:
            return b""  # what comes unasked behind this last body would pass for an answer
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
        """Read what was asked for and not fetched, so that the next response is the next one's."""
        if self._look_ahead() is not None or any(answer.has_body for answer in self._asked):
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
            ConnectionLost: the server says something that nobody asked for.  A response out of
                step may be part of a message, and must never count as the next one's.
        """
        if self._unread.startswith(b"-ERR"):
            raise self.lost("the server has ended the session")
        if self._unread:
            raise self.lost("the server said more than it was asked", ProtocolBroken)

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
            return self.lost(f"{command} was answered with no POP3 response", ProtocolBroken)
        text = self.record.hide((found[2] or b"").decode("utf-8", "replace"))
        code = _CODE.fullmatch(text)
        if code is None:
            known = self.quirks.code(text)
            advice = "" if known else remedy(command, text, with_response=with_response)
            return kind(command, text, known, advice)
        return kind(command, code[2], code[1].upper())

    def _each_line(self, take: Callable[[bytes], None], limit: int) -> Procedure[None]:
        """A multi-line response of so many octets at most, of which the status was read."""
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
        UnsafeArgument: a control character, which could begin another command, or what is no text.
    """
    for argument in arguments:
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in argument):
            raise UnsafeArgument("control character in an argument; nothing was sent")
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UnsafeArgument("an argument that is no Unicode text; nothing was sent")
