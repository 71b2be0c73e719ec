"""The server's side of one POP3 session, without I/O (RFC 1939 §3-§7).

Pass received octets to ``receive`` and call ``next`` for events until it returns None.  A Response
or Challenge must be sent.  An Action must be carried out and answered; until then ``next`` returns
None, so that pipelined commands wait (RFC 2449 §6.6).

Security: all input comes from untrusted clients.  Bad input changes no state.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple

from ..errors import (
    AuthenticationFailed,
    BadCommand,
    BareLineFeed,
    HostileInput,
    NoExchange,
    NulOctet,
    RestanteError,
)
from ..maildrop import Entry
from ..passdb import ScramSecrets, Terms, UserAccount
from ..sasl.exchange import Channel, Exchange, Lookup
from ..sasl.mechanisms import MECHANISMS, Mechanism
from ..wire import CRLF, FOREIGN_PROTOCOLS, MAX_COMMAND, LineBuffer
from ..words import counted
from .grammar import Challenge, Command, Repeated, Response, failure
from .state import Close, Event, Login, Retrieve, StartTLS, State
from .texts import translated
from .transaction import Transaction

MAX_XCLIENT = 8192  # octets of an XCLIENT line, from trusted proxies only; our own limit
# Octets of the greeting's text if a time stamp follows; the line may have 512 (RFC 2449 §4).
_BESIDE = 150
# Equal commands that wait together, in the spelling that programs send.  At most 16, because one
# event is answered in one step, and other connections wait for it.
_RUN = re.compile(
    rb"(RETR|DELE) [1-9][0-9]{0,9}\r\n(?:\1 [1-9][0-9]{0,9}\r\n){0,15}"
    rb"|(TOP) [1-9][0-9]{0,9} (0|[1-9][0-9]{0,9})\r\n(?:TOP [1-9][0-9]{0,9} \3\r\n){0,15}"
)
_NUMBER = re.compile(rb"[A-Z] ([0-9]+)")  # the message-number of each of them
_CLEAR = Channel()
_ANSWERS = (Response, Repeated, Challenge)
_FOREIGN = FOREIGN_PROTOCOLS | {"EHLO", "HELO", "LHLO"}


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of one server for all its sessions."""

    banner: str = "restante ready"
    """Text of the greeting, without "<" (announces APOP) or a leading "[" (RFC 2449 §3)."""
    language: str = "en"
    """Language of the texts until a client chooses another (RFC 6856 §3)."""
    makes_surrogates: bool = False
    """Send surrogates of messages with UTF-8 in their header to clients without UTF8 (RFC 6858)."""
    mechanisms: tuple[str, ...] = ("PLAIN",)
    bad_commands: int = 3
    """Maximum number of bad commands before login; the session ends at the limit."""
    bad_commands_in_a_row: int = 20
    """Maximum number of consecutive bad commands after login; the session ends at the limit."""
    refused_exchanges: int = 20
    """Maximum number of AUTH commands that were refused or cancelled; there are ten mechanisms."""
    commands_before_login: int = 100
    """Maximum number of lines before login, right or wrong; a login takes three to ten."""
    failed_logins: int = 3
    terms: Terms = field(default_factory=Terms)
    """The terms of every user whose account does not set its own."""
    announced: Terms | None = None
    """The longest delay and the shortest retention of any user, announced before login; None: all
    users have ``terms`` (RFC 2449 §6.5, §6.7)."""

    @property
    def public_terms(self) -> Terms:
        """The terms that are announced before the login."""
        return self.announced or self.terms

    def terms_of(self, account: UserAccount) -> Terms:
        """Return the user's terms; the delay is never longer than announced before the login."""
        delay = ceil(account.login_delay) or self.terms.login_delay
        return Terms(
            min(delay, self.public_terms.login_delay),
            self.terms.expire if account.expire is None else account.expire,
        )


class Verb(NamedTuple):
    """One row of the table of commands."""

    run: Callable[..., Event]
    """Takes the session and the arguments, and returns a response or an action."""
    states: tuple[State, ...]
    arity: range
    """The permitted numbers of arguments."""
    takes_rest: bool = False
    """Whether everything after the keyword's space is one argument, including spaces."""
    may: Callable[[Session], object] | None = None
    """Returns whether the session supports the command; otherwise it is unknown."""
    run_all: Callable[..., Repeated | Retrieve] | None = None
    """Runs the first of several equal commands; takes the session, the message-numbers, and what
    else is equal.  Raises only if not even the first can be run."""


class Session:
    """One client's dialogue with the server."""

    __slots__ = (
        "_allow_plaintext",
        "_awaiting",
        "_bad_commands",
        "_channel",
        "_closing",
        "_commands",
        "_exchange",
        "_failed_logins",
        "_failure",
        "_lines",
        "_lookup",
        "_max_line",
        "_may_start_tls",
        "_policy",
        "_refusal",
        "_refused_exchanges",
        "_retrieving",
        "_terms",
        "_verbs",
        "accepts_xclient",
        "cancelled",
        "is_secure",
        "is_utf8",
        "language",
        "mechanism",
        "state",
        "time_stamp",
        "transaction",
        "user",
    )

    def __init__(
        self,
        verbs: Mapping[str, Verb],
        policy: Policy,
        *,
        is_secure: bool,
        may_start_tls: bool = False,
        allow_plaintext: bool = False,
        accepts_xclient: bool = False,
        channel: Channel | None = None,
        time_stamp: str = "",
    ) -> None:
        """
        Args:
            verbs: the table of commands.
            allow_plaintext: passwords are accepted without TLS.
            accepts_xclient: the peer is a trusted proxy and may report its client's address.
            channel: what the TLS connection offers to SASL mechanisms.
            time_stamp: for APOP, unique for each session; empty: no APOP.
        """
        self.state = State.AUTHORIZATION
        self.is_secure = is_secure
        self.user: str | None = None
        """The name sent by USER; None if PASS is not allowed."""
        self.language = policy.language
        """Language of the texts; a tag of ``texts.LANGUAGES``."""
        self.mechanism = ""
        """Mechanism of the last AUTH command."""
        self.cancelled = ""
        """The mechanism of the last exchange that the client cancelled."""
        self.is_utf8 = False
        """Whether the client sent UTF8 and accepts UTF-8 in headers (RFC 6856 §2)."""
        self._verbs = verbs
        self._policy = policy
        self._may_start_tls = may_start_tls
        self._allow_plaintext = allow_plaintext
        self.accepts_xclient: bool = accepts_xclient
        self.time_stamp: str = time_stamp if self.may_authenticate else ""
        """The time stamp of the greeting for APOP (RFC 1939 §7); empty if APOP is disabled."""
        self._lines = LineBuffer(self._limit)
        self._channel = channel or _CLEAR
        self._exchange: Exchange | None = None
        self._lookup: Lookup | None = None  # the look-up that the exchange waits for
        self._max_line = 0  # octets of Base64 in one response of this exchange
        self._refusal = b""  # the challenge that reports a failure of this exchange
        self._failure: AuthenticationFailed | None = None  # the failure that it reported
        self._awaiting = False
        self._retrieving: Retrieve | None = None  # requested but not answered yet
        self._closing = ""
        self._bad_commands = self._refused_exchanges = self._commands = 0
        self.transaction: Transaction
        """Messages and deletion marks; exists only after the login."""
        self._terms = policy.public_terms
        self._failed_logins = 0

    # Called by the driver.

    def greeting(self) -> Response:
        """Return the greeting (RFC 1939 §4)."""
        text = self._policy.banner
        if self.time_stamp:
            text = f"{text[:_BESIDE]} {self.time_stamp}"
        return Response(text, "XCLIENT" if self.accepts_xclient else None)

    def receive(self, octets: bytes) -> None:
        """Feed received octets.  The caller must stop reading while ``unread`` is large."""
        self._lines.feed(octets)

    def next(self) -> Event | None:
        """Process one command, and return the response to send or the action to carry out.

        None: more input is needed, or the last action must be answered first.
        """
        if self._awaiting or self.state is State.CLOSED:
            return None
        if self._closing:
            return self._close(self._closing)
        try:
            event = self._retrieving or self._take()
        except HostileInput as error:
            return self._close(str(error))
        except RestanteError as error:
            return self._refuse(error)
        if event is None:
            return None
        self._awaiting = not isinstance(event, _ANSWERS)
        self._retrieving = event if isinstance(event, Retrieve) else None
        if self.state is State.TRANSACTION:
            self._bad_commands = 0
        return event if self.language == "en" else self._translate_event(event)

    def opened(
        self, listing: Sequence[Entry], *, is_read_only: bool = False, terms: Terms | None = None
    ) -> Response:
        """Answers Login: the maildrop is open and locked (RFC 1939 §4).

        ``terms``: the user's terms, if they differ from those announced.
        """
        self.transaction = opened = Transaction(listing, is_read_only=is_read_only)
        self._terms = terms or self._terms
        self._awaiting = False
        self.state = State.TRANSACTION
        self._bad_commands = 0
        return self._translate(
            Response(f"{counted(opened.count, 'message')} ({opened.octets} octets)")
        )

    def retrieved(self, count: int = 1) -> None:
        """Answers Retrieve: this number of messages was sent completely."""
        self._awaiting = False
        self._drop_retrieved(count)

    def _drop_retrieved(self, count: int) -> None:
        run = self._retrieving
        self._retrieving = run.after(count) if run is not None and run.commands > count else None

    def looked_up(self, secrets: ScramSecrets) -> Response | Challenge:
        """Answers Lookup."""
        self._awaiting = False
        exchange, lookup = self._exchange, self._lookup
        assert exchange is not None
        assert lookup is not None
        self._end_exchange()
        lookup.secrets = secrets
        try:
            event = self._advance(exchange, b"")
        except RestanteError as error:
            return self._refuse(error)
        assert isinstance(event, Challenge)
        return event

    def secured(self, channel: Channel | None = None) -> None:
        """Answers StartTLS: everything received before TLS is discarded (RFC 2595 §4)."""
        self._awaiting = False
        self.is_secure = True
        self.time_stamp = ""
        self._channel = channel or _CLEAR

    def client_changed(self, tls: str, *, allow_plaintext: bool) -> Response:
        """Answers Xclient: the session now belongs to the client behind the proxy."""
        self._awaiting = False
        self._allow_plaintext = allow_plaintext
        self.accepts_xclient = False
        self.time_stamp = ""  # the client received the proxy's greeting, not this one
        self._lines.limit = self._limit
        if tls:
            self.is_secure = tls != "no"
            self._may_start_tls = False  # the proxy cannot start it for its client
        return self._translate(Response("updated"))

    def updated(self) -> Response:
        """Answers Update: all marked messages were removed durably."""
        return self._answer_last(Response("goodbye"))

    def failed(self, error: RestanteError) -> Response | Challenge:
        """Answers Login, Lookup, Retrieve or Update: the action failed."""
        if self.state is State.UPDATE:
            return self._answer_last(failure(error))
        self._awaiting = False
        self._drop_retrieved(1)
        if self._refusal and isinstance(error, AuthenticationFailed):
            self._failure = error
            return Challenge(b64encode(self._refusal))
        return self._refuse(error)

    @property
    def unread(self) -> int:
        """Octets received but not yet processed."""
        return self._lines.unread

    # Called by the commands.

    @property
    def may_authenticate(self) -> bool:
        """Whether the client may send a password now: inside TLS, or if clear text is allowed."""
        return self.is_secure or self._allow_plaintext

    @property
    def may_start_tls(self) -> bool:
        return self._may_start_tls and not self.is_secure and self.state is State.AUTHORIZATION

    @property
    def needs_surrogates(self) -> bool:
        return self._policy.makes_surrogates and not self.is_utf8

    @property
    def default_language(self) -> str:
        return self._policy.language

    def begin_utf8(self) -> None:
        """Enable UTF-8; STLS is no longer allowed (RFC 6856 §2.1).

        After the login this has no effect, because the sizes announced then must stay valid.
        """
        if self.state is State.AUTHORIZATION:
            self.is_utf8 = True
            self._may_start_tls = False

    def head(self, text: str) -> bytes:
        """Return a first line, +OK, in the client's language."""
        return self._translate(Response(text)).head()

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The mechanisms that AUTH accepts now."""
        if not self.may_authenticate:
            return ()
        return tuple(
            name
            for name in self._policy.mechanisms
            if MECHANISMS[name].is_possible(self._channel)
            and (self.is_secure or not MECHANISMS[name].needs_tls)
        )

    @property
    def terms(self) -> tuple[Terms, bool]:
        """The terms to announce, and whether they may change with the login."""
        is_vague = self.state is State.AUTHORIZATION and self._policy.announced is not None
        return self._terms, is_vague

    def begin_exchange(self, mechanism: Mechanism, initial_response: str | None) -> Event:
        """Run the first step, or the first two if there is an initial response (RFC 5034 §4).

        Raises:
            BadCommand: the mechanism accepts no initial response, or its Base64 is invalid.
            AuthenticationFailed: the mechanism refuses the response without a look-up.
        """
        channel = self._channel
        if not any(name.endswith("-PLUS") for name in self.mechanisms):
            # A client that did not see -PLUS in the offer must not be refused for not using it.
            channel = replace(channel, end_point=b"")
        exchange = mechanism.server(channel)
        challenge = next(exchange)
        assert isinstance(challenge, bytes)
        self._refusal, self._max_line = mechanism.refusal, mechanism.max_line
        if initial_response is None:
            self._keep(exchange)
            return Challenge(b64encode(challenge))
        if challenge:
            raise BadCommand("this mechanism does not accept an initial response")
        return self._respond(exchange, "" if initial_response == "=" else initial_response)

    def close_after(self, response: Response) -> Response:
        """Close the session after this response."""
        self._closing = "quit"
        return response

    # Internal.

    def _take(self) -> Event | None:
        if not self._lines.unread:
            return None
        if self.state is State.TRANSACTION and (run := self._lines.match(_RUN)) is not None:
            return self._run_all(run)
        line = self._lines.next_line()
        if line is None:
            return None
        if self.state is State.AUTHORIZATION:
            self._commands += 1
            if self._commands > self._policy.commands_before_login:
                return self._last("too many commands before login, closing the connection")
        if self._failure is not None:
            raise self._failure  # the response to the challenge is ignored
        if self._exchange is not None:
            return self._continue(self._exchange, line)
        return self._run(Command.parse(line))

    def _run(self, command: Command) -> Event:
        verb = self._verbs.get(command.keyword)
        if verb is None or (verb.may is not None and not verb.may(self)):
            if self.state is State.AUTHORIZATION and (
                command.keyword in _FOREIGN or command.keyword.startswith("SSH-")
            ):
                raise HostileInput("another protocol")
            raise BadCommand("unknown command")
        if self.state not in verb.states:
            raise BadCommand(f"{command.keyword} is not allowed in the {self.state.name} state")
        rest = [] if command.rest is None else [command.rest]
        arguments = rest if verb.takes_rest else command.arguments()
        if len(arguments) not in verb.arity:
            raise BadCommand(f"wrong arguments for {command.keyword}")
        event = verb.run(self, *arguments)
        if self.user is not None and command.keyword not in ("USER", "AUTH"):
            self.user = None  # PASS must follow USER directly; AUTH changes nothing (RFC 5034 §4)
        return event

    def _run_all(self, commands: re.Match[bytes]) -> Event:
        """Run the first commands of a run of equal commands if they have the same response."""
        keyword, lines = commands[1] or commands[2], commands[3]
        run = self._verbs[keyword.decode()].run_all
        assert run is not None
        numbers = [int(number) for number in _NUMBER.findall(commands[0])]
        try:
            event = run(self, numbers, *([int(lines)] if lines else []))
        except RestanteError:
            self._lines.skip(1)
            raise
        self._lines.skip(event.commands)
        return event

    def _continue(self, exchange: Exchange, line: bytes) -> Event:
        self._end_exchange()
        if line == b"*":
            self.cancelled = self.mechanism
            raise NoExchange("authentication cancelled")
        return self._respond(exchange, line.decode("ascii", "replace"))

    def _respond(self, exchange: Exchange, response: str) -> Event:
        """Pass the client's response to the exchange."""
        try:
            octets = b64decode(response, validate=True)
        except ValueError as error:
            raise BadCommand("invalid Base64") from error
        return self._advance(exchange, octets)

    def _advance(self, exchange: Exchange, response: bytes) -> Event:
        try:
            step = exchange.send(response)
        except StopIteration as end:
            return Login(end.value)
        self._keep(exchange)
        if isinstance(step, bytes):
            return Challenge(b64encode(step))
        self._lookup = step
        return step

    def _keep(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._lines.limit = self._max_line + len(CRLF)

    def _end_exchange(self) -> None:
        self._exchange = self._lookup = None
        self._lines.limit = self._limit

    @property
    def _limit(self) -> int:
        return MAX_XCLIENT if self.accepts_xclient else MAX_COMMAND

    def _refuse(self, error: RestanteError) -> Response:
        """Return -ERR without a change of state; too many errors end the session."""
        self._end_exchange()
        self._refusal, self._failure = b"", None
        policy, in_transaction = self._policy, self.state is State.TRANSACTION
        if isinstance(error, AuthenticationFailed):
            self._failed_logins += 1
        elif isinstance(error, NoExchange):
            self._refused_exchanges += 1
        elif isinstance(error, BadCommand):
            self._bad_commands += 1
        if isinstance(error, BareLineFeed | NulOctet):
            self._closing = str(error)
        elif self._bad_commands >= (
            policy.bad_commands_in_a_row if in_transaction else policy.bad_commands
        ):
            return self._last("too many bad commands, closing the connection")
        elif self._refused_exchanges >= policy.refused_exchanges:
            return self._last("too many refused or cancelled AUTH commands, closing the connection")
        elif self._failed_logins >= policy.failed_logins:
            return self._last("too many failed logins, closing the connection", error.code)
        return self._translate(failure(error))

    def _last(self, text: str, code: str | None = None) -> Response:
        """Return the last -ERR of the session, which announces the end."""
        self._closing = text.partition(",")[0]
        return self._translate(Response(text, code, is_ok=False))

    def _answer_last(self, response: Response) -> Response:
        self._awaiting = False
        return self.close_after(self._translate(response))

    def _translate_event(self, event: Event) -> Event:
        """Translate the text of an event into the client's language."""
        match event:
            case Response():
                return self._translate(event)
            case Repeated(response):
                return event._replace(response=self._translate(response))
            case StartTLS(response):
                return StartTLS(self._translate(response))
        return event

    def _translate(self, response: Response) -> Response:
        if self.language == "en" or response.is_data:
            return response
        return response._replace(text=translated(response.text, self.language))

    def _close(self, reason: str) -> Close:
        self.state = State.CLOSED
        return Close(reason)
