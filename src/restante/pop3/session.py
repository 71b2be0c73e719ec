"""The server's side of one POP3 session, without I/O (RFC 1939 §3-§7).

The driver passes received octets to ``receive`` and calls ``next`` for events until it returns
None.  The driver must send each Response and Challenge.  It must carry out each Action and call the
method that reports the result; until then ``next`` returns None, so that pipelined commands wait
(RFC 2449 §6.6).

Security: all input comes from untrusted clients.  Invalid input does not change the state.
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
from ..series import cell
from ..wire import CRLF, FOREIGN_PROTOCOLS, MAX_COMMAND, LineBuffer
from ..words import counted
from .grammar import Challenge, Command, Repeated, Response, failure
from .state import Close, Event, Login, Retrieve, StartTLS, State
from .texts import translate
from .transaction import Transaction

MAX_XCLIENT = 8192  # octets of an XCLIENT line, from trusted proxies only; our own limit
# Maximum length of the banner in characters if a time stamp follows it.  The whole line can have
# 512 octets (RFC 2449 §4).
_MAX_BANNER = 150
# Matches pipelined commands that differ only in their message-number, in the spelling that programs
# usually send.  A run has at most 16 commands, because other connections wait while
# it is processed.
_RUN = re.compile(
    rb"(RETR|DELE) [1-9][0-9]{0,9}\r\n(?:\1 [1-9][0-9]{0,9}\r\n){0,15}"
    rb"|(TOP) [1-9][0-9]{0,9} (0|[1-9][0-9]{0,9})\r\n(?:TOP [1-9][0-9]{0,9} \3\r\n){0,15}"
)
_NUMBER = re.compile(rb"[A-Z] ([0-9]+)")  # matches the message-number of each command in a run
_EMPTY_CHANNEL = Channel()
_RESPONSES = (Response, Repeated, Challenge)
_OTHER_CELL = cell("commands_total", "other", "ok")
_FOREIGN = FOREIGN_PROTOCOLS | {"EHLO", "HELO", "LHLO"}


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a server that apply to all of its sessions."""

    banner: str = "restante ready"
    """Text of the greeting.  It must not contain "<", which would announce APOP, and must not begin
    with "[" (RFC 2449 §3)."""
    language: str = "en"
    """Language of the texts until the client selects another one (RFC 6856 §3)."""
    makes_surrogates: bool = False
    """Whether clients that did not send UTF8 get surrogates for messages with UTF-8 in the header
    (RFC 6858)."""
    mechanisms: tuple[str, ...] = ("PLAIN",)
    bad_commands: int = 3
    """Maximum number of bad commands before login; the session ends at the limit."""
    bad_commands_in_a_row: int = 20
    """Maximum number of consecutive bad commands after login; the session ends at the limit."""
    refused_exchanges: int = 20
    """Maximum number of refused or cancelled AUTH commands; the session ends at the limit.  It is
    higher than the number of mechanisms, because a client may try them all."""
    commands_before_login: int = 100
    """Maximum number of lines before login, valid or not; a login takes three to ten."""
    failed_logins: int = 3
    """Maximum number of failed logins; the session ends at the limit."""
    terms: Terms = field(default_factory=Terms)
    """The terms of all users whose accounts do not have terms of their own."""
    announced: Terms | None = None
    """The longest delay and the shortest retention of any user, announced before login (RFC 2449
    §6.5, §6.7).  None if ``terms`` apply to all users."""

    @property
    def public_terms(self) -> Terms:
        """The terms that are announced before login."""
        return self.announced or self.terms

    def terms_of(self, account: UserAccount) -> Terms:
        """Return the user's terms.  The delay is never longer than announced before login."""
        delay = ceil(account.login_delay) or self.terms.login_delay
        return Terms(
            min(delay, self.public_terms.login_delay),
            self.terms.expire if account.expire is None else account.expire,
        )


class Verb(NamedTuple):
    """One row of the table of commands."""

    run: Callable[..., Event]
    """Called with the session and the arguments; returns a response or an action."""
    states: tuple[State, ...]
    arity: range
    """The permitted numbers of arguments."""
    takes_rest: bool = False
    """Whether everything after the space that follows the keyword is one argument."""
    is_supported: Callable[[Session], object] | None = None
    """Returns whether the session supports the command; if not, the command is unknown."""
    run_all: Callable[..., Repeated | Retrieve] | None = None
    """Runs several commands that differ only in the message-number, up to the first one that fails.
    Called with the session, the message-numbers and the other arguments.  Raises an exception only
    if the first command fails."""
    cell: int = _OTHER_CELL
    """See ``Session.cell``."""


class Session:
    """The session of one client."""

    __slots__ = (
        "_allow_plaintext",
        "_bad_commands",
        "_channel",
        "_close_reason",
        "_commands",
        "_exchange",
        "_failed_logins",
        "_failure",
        "_is_action_pending",
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
        "cancelled_mechanism",
        "cell",
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
            is_secure: whether the connection uses TLS from the beginning.
            may_start_tls: whether the client may start TLS with STLS.
            allow_plaintext: whether passwords are accepted without TLS.
            accepts_xclient: whether the peer is a trusted proxy that may report its client.
            channel: the properties of the TLS connection that SASL mechanisms use.
            time_stamp: the time stamp for APOP, unique for each session; empty to disable APOP.
        """
        self.state = State.AUTHORIZATION
        self.is_secure = is_secure
        self.user: str | None = None
        """The name sent by USER; None if PASS is not allowed."""
        self.language = policy.language
        """Language of the texts: a tag in ``texts.LANGUAGES``."""
        self.mechanism = ""
        """Mechanism of the last AUTH command."""
        self.cancelled_mechanism = ""
        """The mechanism of the last exchange that the client cancelled."""
        self.cell = _OTHER_CELL
        """The metric of successful commands of this kind (``series``); failed ones have the next
        cell.  Belongs to the last command that was processed."""
        self.is_utf8 = False
        """Whether the client has sent UTF8 and so accepts UTF-8 in headers (RFC 6856 §2)."""
        self._verbs = verbs
        self._policy = policy
        self._may_start_tls = may_start_tls
        self._allow_plaintext = allow_plaintext
        self.accepts_xclient: bool = accepts_xclient
        self.time_stamp: str = time_stamp if self.may_authenticate else ""
        """The time stamp of the greeting for APOP (RFC 1939 §7); empty if APOP is disabled."""
        self._lines = LineBuffer(self._line_limit)
        self._channel = channel or _EMPTY_CHANNEL
        self._exchange: Exchange | None = None
        self._lookup: Lookup | None = None  # the look-up that the exchange waits for
        self._max_line = 0  # octets of Base64 in one response of this exchange
        self._refusal = b""  # the challenge that reports a failure of this exchange
        # The failure that was reported by this challenge.
        self._failure: AuthenticationFailed | None = None
        self._is_action_pending = False
        self._retrieving: Retrieve | None = None  # the pending action, or the rest of it
        self._close_reason = ""  # set if the session must end
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
            text = f"{text[:_MAX_BANNER]} {self.time_stamp}"
        return Response(text, "XCLIENT" if self.accepts_xclient else None)

    def receive(self, octets: bytes) -> None:
        """Add received octets.  The driver must stop receiving while ``unread`` is large."""
        self._lines.feed(octets)

    def next(self) -> Event | None:
        """Process one command, and return the response to send or the action to carry out.

        Returns None if more input is needed, or if the result of the last action must be reported
        first.
        """
        if self._is_action_pending or self.state is State.CLOSED:
            return None
        if self._close_reason:
            return self._close(self._close_reason)
        try:
            event = self._retrieving or self._process_input()
        except HostileInput as error:
            return self._close(str(error))
        except RestanteError as error:
            return self._refuse(error)
        if event is None:
            return None
        self._is_action_pending = not isinstance(event, _RESPONSES)
        self._retrieving = event if isinstance(event, Retrieve) else None
        if self.state is State.TRANSACTION:
            self._bad_commands = 0
        return event if self.language == "en" else self._translate_event(event)

    def opened(
        self, listing: Sequence[Entry], *, is_read_only: bool = False, terms: Terms | None = None
    ) -> Response:
        """Answers Login: the maildrop is open and locked (RFC 1939 §4).

        ``terms``: the user's terms, if they differ from the announced terms.
        """
        self.transaction = transaction = Transaction(listing, is_read_only=is_read_only)
        self._terms = terms or self._terms
        self._is_action_pending = False
        self.state = State.TRANSACTION
        self._bad_commands = 0
        return self._translate(
            Response(f"{counted(transaction.count, 'message')} ({transaction.octets} octets)")
        )

    def retrieved(self, count: int = 1) -> None:
        """Answers Retrieve: ``count`` messages were sent completely."""
        self._is_action_pending = False
        self._drop_retrieved(count)

    def _drop_retrieved(self, count: int) -> None:
        run = self._retrieving
        self._retrieving = run.after(count) if run is not None and run.commands > count else None

    def looked_up(self, secrets: ScramSecrets) -> Response | Challenge:
        """Answers Lookup: the user's keys were found."""
        self._is_action_pending = False
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
        """Answers StartTLS: the connection uses TLS.

        Everything that the client sent before TLS is discarded (RFC 2595 §4).
        """
        self._is_action_pending = False
        self.is_secure = True
        self.time_stamp = ""
        self._channel = channel or _EMPTY_CHANNEL

    def client_changed(self, tls: str, *, allow_plaintext: bool) -> Response:
        """Answers Xclient: the session now belongs to the client that the proxy reported.

        ``tls`` is ``Xclient.tls``.  ``allow_plaintext``: whether this client may send passwords
        without TLS.
        """
        self._is_action_pending = False
        self._allow_plaintext = allow_plaintext
        self.accepts_xclient = False
        self.time_stamp = ""  # the client has received the proxy's greeting, not this one
        self._lines.limit = self._line_limit
        if tls:
            self.is_secure = tls != "no"
            self._may_start_tls = False  # the proxy cannot start TLS for its client
        return self._translate(Response("updated"))

    def updated(self) -> Response:
        """Answers Update: all messages that were marked as deleted are removed durably."""
        return self._answer_last(Response("goodbye"))

    def failed(self, error: RestanteError) -> Response | Challenge:
        """Answers Login, Lookup, Retrieve or Update: the action failed."""
        if self.state is State.UPDATE:
            return self._answer_last(failure(error))
        self._is_action_pending = False
        self._drop_retrieved(1)
        if self._refusal and isinstance(error, AuthenticationFailed):
            self._failure = error
            return Challenge(b64encode(self._refusal))
        return self._refuse(error)

    @property
    def unread(self) -> int:
        """Number of octets that were received but not yet processed."""
        return self._lines.unread

    # Called by the commands.

    @property
    def may_authenticate(self) -> bool:
        """Whether the client may log in now: inside TLS, or if clear text is allowed."""
        return self.is_secure or self._allow_plaintext

    @property
    def may_start_tls(self) -> bool:
        """Whether the client may send STLS now."""
        return self._may_start_tls and not self.is_secure and self.state is State.AUTHORIZATION

    @property
    def needs_surrogates(self) -> bool:
        """Whether messages with UTF-8 in their header are sent as surrogates (RFC 6858)."""
        return self._policy.makes_surrogates and not self.is_utf8

    @property
    def default_language(self) -> str:
        return self._policy.language

    def begin_utf8(self) -> None:
        """Enable UTF-8, after which STLS is not allowed any more (RFC 6856 §2.1).

        After login this has no effect, because the sizes that were announced must stay valid.
        """
        if self.state is State.AUTHORIZATION:
            self.is_utf8 = True
            self._may_start_tls = False

    def head(self, text: str) -> bytes:
        """Return the first line of a +OK response, in the client's language."""
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
        """The terms to announce, and whether they may be different after login."""
        may_change = self.state is State.AUTHORIZATION and self._policy.announced is not None
        return self._terms, may_change

    def begin_exchange(self, mechanism: Mechanism, initial_response: str | None) -> Event:
        """Begin a SASL exchange: run its first step, or two steps if there is an initial response.

        See RFC 5034 §4.

        Raises:
            BadCommand: the initial response is invalid Base64, or the mechanism does not accept an
                initial response.
            AuthenticationFailed: the mechanism refuses the initial response without a look-up.
        """
        channel = self._channel
        if not any(name.endswith("-PLUS") for name in self.mechanisms):
            # If -PLUS was not offered, a client that does not use it must not be refused.
            channel = replace(channel, end_point=b"")
        exchange = mechanism.server(channel)
        challenge = next(exchange)
        assert isinstance(challenge, bytes)
        self._refusal, self._max_line = mechanism.refusal, mechanism.max_line
        if initial_response is None:
            self._set_exchange(exchange)
            return Challenge(b64encode(challenge))
        if challenge:
            raise BadCommand("this mechanism does not accept an initial response")
        return self._respond(exchange, "" if initial_response == "=" else initial_response)

    def close_after(self, response: Response) -> Response:
        """Close the session after this response."""
        self._close_reason = "quit"
        return response

    # Internal.

    def _process_input(self) -> Event | None:
        """Process one line, or a run of commands; return None if more input is needed."""
        if not self._lines.unread:
            return None
        if self.state is State.TRANSACTION and (run := self._lines.match(_RUN)) is not None:
            return self._run_all(run)
        self.cell = _OTHER_CELL
        line = self._lines.next_line()
        if line is None:
            return None
        if self.state is State.AUTHORIZATION:
            self._commands += 1
            if self._commands > self._policy.commands_before_login:
                return self._last_response("too many commands before login, closing the connection")
        if self._failure is not None:
            raise self._failure  # the client's response to the challenge is ignored
        if self._exchange is not None:
            return self._continue_exchange(self._exchange, line)
        return self._run(line)

    def _run(self, line: bytes) -> Event:
        command = Command.parse(line)
        verb = self._verbs.get(command.keyword)
        if verb is not None:
            self.cell = verb.cell
        if verb is None or (verb.is_supported is not None and not verb.is_supported(self)):
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
            # PASS must follow USER directly, but a failed AUTH has no effect (RFC 5034 §4).
            self.user = None
        return event

    def _run_all(self, commands: re.Match[bytes]) -> Event:
        """Run several commands that differ only in the message-number, up to the first failure."""
        keyword, lines = commands[1] or commands[2], commands[3]
        verb = self._verbs[keyword.decode()]
        run, self.cell = verb.run_all, verb.cell
        assert run is not None
        numbers = [int(number) for number in _NUMBER.findall(commands[0])]
        try:
            event = run(self, numbers, *([int(lines)] if lines else []))
        except RestanteError:
            self._lines.skip(1)
            raise
        self._lines.skip(event.commands)
        return event

    def _continue_exchange(self, exchange: Exchange, line: bytes) -> Event:
        self.cell = self._verbs["AUTH"].cell
        self._end_exchange()
        if line == b"*":
            self.cancelled_mechanism = self.mechanism
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
        self._set_exchange(exchange)
        if isinstance(step, bytes):
            return Challenge(b64encode(step))
        self._lookup = step
        return step

    def _set_exchange(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._lines.limit = self._max_line + len(CRLF)

    def _end_exchange(self) -> None:
        self._exchange = self._lookup = None
        self._lines.limit = self._line_limit

    @property
    def _line_limit(self) -> int:
        return MAX_XCLIENT if self.accepts_xclient else MAX_COMMAND

    def _refuse(self, error: RestanteError) -> Response:
        """Return -ERR.  The state does not change, but too many errors end the session."""
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
            self._close_reason = str(error)
        elif self._bad_commands >= (
            policy.bad_commands_in_a_row if in_transaction else policy.bad_commands
        ):
            return self._last_response("too many bad commands, closing the connection")
        elif self._refused_exchanges >= policy.refused_exchanges:
            return self._last_response(
                "too many refused or cancelled AUTH commands, closing the connection"
            )
        elif self._failed_logins >= policy.failed_logins:
            return self._last_response("too many failed logins, closing the connection", error.code)
        return self._translate(failure(error))

    def _last_response(self, text: str, code: str | None = None) -> Response:
        """Return the last response of the session, a -ERR that announces the end."""
        self._close_reason = text.partition(",")[0]
        return self._translate(Response(text, code, is_ok=False))

    def _answer_last(self, response: Response) -> Response:
        self._is_action_pending = False
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
        return response._replace(text=translate(response.text, self.language))

    def _close(self, reason: str) -> Close:
        self.state = State.CLOSED
        return Close(reason)
