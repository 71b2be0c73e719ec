"""The receiving side of one SMTP or LMTP session, without I/O (RFC 5321 §3, RFC 2033).

Pass received octets to ``receive`` and call ``next`` for events until it returns None.  A Reply
must be sent.  Resolve, Deliver and StartTLS must be carried out and answered; until then ``next``
returns None, so that pipelined commands wait (RFC 2920).

Security: all input comes from untrusted clients.  Bad input changes no state, and each kind of work
that a client can cause without delivering a message has a limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import (
    BadCommand,
    BareLineFeed,
    HostileInput,
    NoSuchUser,
    NulOctet,
    RestanteError,
    TemporaryFailure,
)
from ..wire import FOREIGN_PROTOCOLS, LineBuffer
from .content import Incoming
from .grammar import MAX_LINE, Command, Refusal, Reply, failure
from .state import BeginData, Close, Content, Deliver, Event, Recipient, Resolve, State
from .verbs import Verb

_LAST_WORD = 421  # RFC 5321 §3.8: the server closes the connection
# Octets beyond twice the limit that are read before the connection is closed.  If the server reads
# on, an honest client receives the refusal at the end of its message; the bound stops an endless
# message.
_EXCESS = 2**20


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of all sessions of one listener."""

    hostname: str
    max_message: int
    """Maximum size of one message in octets, without the trace fields that are added."""
    is_lmtp: bool = False
    domains: frozenset[str] = frozenset()
    """SMTP only: the domains whose recipients are accepted, in lower case."""
    recipients: int = 100
    """Maximum number of recipients of one message; the client sends the message again for the
    others (RFC 5321 §4.5.3.1.8 requires at least 100)."""
    recipient_commands: int = 1000
    """Maximum number of RCPT commands without a delivered message; then the session ends."""
    bad_commands: int = 20
    """Maximum number of bad commands; then the session ends (Postfix: smtpd_hard_error_limit)."""
    unknown_recipients: int = 100
    """Maximum number of unknown recipients; then the session ends.  This limits guessing."""
    commands: int = 100
    """Maximum number of commands other than RCPT without a delivered message (Postfix:
    smtpd_junk_command_limit)."""


class Session:
    """One session of a client that sends mail."""

    __slots__ = (
        "_awaiting",
        "_bad_commands",
        "_closing",
        "_commands",
        "_incoming",
        "_lines",
        "_outcomes",
        "_pending",
        "_recipient_commands",
        "_resolving",
        "_unknown",
        "_verbs",
        "hello",
        "is_extended",
        "is_secure",
        "is_utf8",
        "may_start_tls",
        "messages",
        "policy",
        "recipients",
        "reverse_path",
        "state",
    )

    def __init__(
        self,
        verbs: Mapping[str, Verb],
        policy: Policy,
        *,
        is_secure: bool = False,
        may_start_tls: bool = False,
    ) -> None:
        self.policy = policy
        self.state = State.CONNECTED
        self.is_secure = is_secure
        self.may_start_tls = may_start_tls and not is_secure
        self.hello = ""
        """The client's name for itself."""
        self.is_extended = False
        """Whether the client sent EHLO or LHLO."""
        self.is_utf8 = False
        """Whether this transaction may use UTF-8 in addresses and header (RFC 6531 §3.4)."""
        self.reverse_path = ""
        self.recipients: list[Recipient] = []
        self.messages = 0
        """Number of messages that were delivered to at least one recipient."""
        self._verbs = verbs
        self._lines = LineBuffer(MAX_LINE)
        self._pending: deque[Event] = deque()
        self._resolving = ""
        self._incoming: Incoming | None = None
        self._outcomes: list[Reply] = []  # replies for the recipients with a known result
        self._awaiting = False
        self._closing = ""
        self._bad_commands = self._unknown = self._commands = self._recipient_commands = 0

    # Called by the driver.

    def greeting(self) -> Reply:
        """Return the greeting."""
        kind = "LMTP" if self.policy.is_lmtp else "ESMTP"
        return Reply(220, "", f"{self.policy.hostname} {kind} restante ready")

    def receive(self, octets: bytes) -> None:
        """Feed received octets.  The caller must stop reading while ``unread`` is large."""
        self._lines.feed(octets)

    @property
    def unread(self) -> int:
        """Octets received but not yet processed."""
        return self._lines.unread

    def next(self) -> Event | None:
        """Take one command or a piece of the message.

        Returns:
            The next event; None: feed more octets, or answer the last event first.
        """
        if self._awaiting or self.state is State.CLOSED:
            return None
        if self._pending:
            return self._pending.popleft()
        if self._closing:
            return self._close(self._closing)
        if self._incoming is not None:
            return self._take_content(self._incoming)
        try:
            line = self._lines.next_line()
            if line is None:
                return None
            event = self._run(Command.parse(line))
        except HostileInput as error:
            return self._close(str(error))
        except RestanteError as error:
            return self._refuse(error)
        self._awaiting = not isinstance(event, Reply | BeginData)
        return event

    def resolved(self, maildrop: str) -> Reply:
        """Answers Resolve: the recipient is accepted."""
        self._awaiting = False
        self.recipients.append(Recipient(self._resolving, maildrop))
        return Reply(250, "2.1.5", "OK")

    def refused(self, error: RestanteError) -> Reply:
        """Answers Resolve: the recipient is unknown, or the look-up failed temporarily."""
        self._awaiting = False
        return self._refuse(error)

    def cannot_keep(self) -> None:
        """Report that content could not be stored; the message is read to its end, then refused."""
        if self._incoming is not None and self._incoming.failure is None:
            self._incoming.failure = TemporaryFailure("no room for the message")

    def delivered(self, error: RestanteError | None = None) -> Reply | None:
        """Answers Deliver for the next recipient; with an error if the message is not stored.

        Returns:
            LMTP: this recipient's reply (RFC 2033 §4.2).  SMTP: None until the last recipient, then
            one reply for all, which reports any failure.  The client then tries again, so the
            caller must remember which recipients already have the message.
        """
        reply = Reply(250, "2.0.0", "stored") if error is None else failure(error)
        self._outcomes.append(reply)
        outcomes = self._outcomes
        if len(outcomes) == len(self.recipients):
            self._awaiting = False
            self._end_message(is_delivered=any(each.is_ok for each in outcomes))
            if not self.policy.is_lmtp:
                return min(outcomes, key=_urgency)
        return reply if self.policy.is_lmtp else None

    def secured(self) -> None:
        """Answers StartTLS: everything received before TLS is discarded (RFC 3207 §4.2)."""
        self._awaiting = False
        self.is_secure, self.may_start_tls = True, False
        self.state, self.hello, self.is_extended = State.CONNECTED, "", False
        self.end_transaction()

    # Called by the commands.

    @property
    def protocol(self) -> str:
        """The protocol in the ``with`` clause of Received (RFC 3848, RFC 6531 §4.3)."""
        tls = "S" if self.is_secure else ""
        if self.policy.is_lmtp:
            return f"{'UTF8LMTP' if self.is_utf8 else 'LMTP'}{tls}"
        if not self.is_extended:
            return "SMTP"
        return f"{'UTF8SMTP' if self.is_utf8 else 'ESMTP'}{tls}"

    def resolve(self, address: str) -> Resolve:
        """
        Raises:
            Refusal: too many recipients for one message.
        """
        if len(self.recipients) >= self.policy.recipients:
            raise Refusal(452, "4.5.3", "too many recipients, send the others separately")
        self._resolving = address
        return Resolve(address)

    def begin_data(self) -> BeginData:
        self.state = State.DATA
        limit, refuses_bare = self.policy.max_message, not self.policy.is_lmtp
        self._incoming = Incoming(limit, refuses_bare=refuses_bare)
        return BeginData(Reply(354, "", "end data with <CR><LF>.<CR><LF>"))

    def end_transaction(self) -> None:
        """Forget reverse-path and recipients."""
        self.reverse_path, self.recipients, self.is_utf8 = "", [], False
        self._outcomes = []
        if self.state is not State.CONNECTED:
            self.state = State.READY

    def close_after(self, reply: Reply) -> Reply:
        """Close the session after this reply."""
        self._closing = "quit"
        return reply

    # Inside.

    def _run(self, command: Command) -> Event:
        if self.state is State.CONNECTED and command.keyword in FOREIGN_PROTOCOLS:
            raise HostileInput("another protocol")
        self._count(command.keyword)
        verb = self._verbs.get(command.keyword)
        if verb is None or verb.is_lmtp not in (None, self.policy.is_lmtp):
            raise Refusal(500, "5.5.1", "unknown command")
        if self.state not in verb.states:
            text = (
                "send EHLO first" if self.state is State.CONNECTED else "bad sequence of commands"
            )
            raise Refusal(503, "5.5.1", text)
        return verb.run(self, command.argument)

    def _count(self, keyword: str) -> None:
        """
        Raises:
            Refusal: the limit is exceeded; this is the last reply, and the session ends.
        """
        if keyword == "RCPT":
            self._recipient_commands += 1
        else:
            self._commands += 1
        policy = self.policy
        is_spent = self._commands > policy.commands
        if is_spent or self._recipient_commands > policy.recipient_commands:
            raise self._last("too many commands without a message")

    def _last(self, reason: str) -> Refusal:
        self._closing = reason
        return Refusal(_LAST_WORD, "4.7.0", f"{reason}, closing the connection")

    def _refuse(self, error: RestanteError) -> Reply:
        """Return the reply to an error, and change no state; too many errors end the session."""
        reply = failure(error)
        if isinstance(error, BareLineFeed | NulOctet):
            self._closing = str(error)
        elif isinstance(error, NoSuchUser):
            self._unknown += 1
            if self._unknown >= self.policy.unknown_recipients:
                reply = self._last("too many unknown recipients").reply
        elif isinstance(error, BadCommand) and reply.code >= 500:
            self._bad_commands += 1
            if self._bad_commands >= self.policy.bad_commands:
                reply = self._last("too many bad commands").reply
        return reply

    def _take_content(self, incoming: Incoming) -> Event | None:
        if incoming.is_finished:
            return self._end_data(incoming)
        octets = self._lines.take_all()
        if not octets:
            return None
        content = incoming.feed(octets)
        if incoming.is_finished:
            self._lines.feed(incoming.rest)
        elif incoming.octets > 2 * self.policy.max_message + _EXCESS:
            return self._close("message without end")
        return Content(content) if content else self.next()

    def _end_data(self, incoming: Incoming) -> Event:
        self._incoming = None
        if incoming.failure is None:
            self._awaiting = True
            path, recipients = self.reverse_path, tuple(self.recipients)
            return Deliver(path, recipients, self.hello, self.protocol)
        reply = failure(incoming.failure)
        replies = len(self.recipients) if self.policy.is_lmtp else 1
        self._pending += [reply] * replies
        self._end_message(is_delivered=False)
        if reply.code >= 500:
            self._bad_commands += 1
        return self._pending.popleft()

    def _end_message(self, *, is_delivered: bool) -> None:
        self.end_transaction()
        if not is_delivered:
            return
        self.messages += 1
        self._commands = self._recipient_commands = self._bad_commands = 0
        if self.policy.is_lmtp:
            self._unknown = 0  # an LMTP client is the site's own mail server, not a guesser

    def _close(self, reason: str) -> Close:
        self.state = State.CLOSED
        return Close(reason)


def _urgency(reply: Reply) -> int:
    """Return the rank of an outcome; the lowest decides: try again, give up, done."""
    return {4: 0, 5: 1}.get(reply.code // 100, 2)
