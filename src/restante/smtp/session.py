"""The receiving side of one SMTP or LMTP session, without I/O (RFC 5321 §3, RFC 2033).

The caller passes received octets to ``receive`` and calls ``next`` for events until it returns
None.  A Reply must be sent.  Resolve, Deliver and StartTLS must be carried out, and their result
passed to the session.  Before that, ``next`` returns None, so pipelined commands wait (RFC 2920).

Security: all input comes from untrusted clients.  Invalid input changes no state, and each kind of
work that a client can cause without delivering a message has a limit.
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

_CLOSING = 421  # reply code: the server closes the connection (RFC 5321 §3.8)
# A message that is too large is read to its end, so that the client receives the refusal.  If it is
# larger than twice the limit and this number of octets, the connection is closed.
_EXCESS = 2**20


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings and limits of all sessions of one listener."""

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
    """Maximum number of RCPT commands without a delivered message; beyond it, the session ends."""
    bad_commands: int = 20
    """Number of bad commands that ends the session (Postfix: smtpd_hard_error_limit)."""
    unknown_recipients: int = 100
    """Number of unknown recipients that ends the session.  This limits guessing of addresses."""
    commands: int = 100
    """Maximum number of commands other than RCPT without a delivered message; beyond it, the
    session ends (Postfix: smtpd_junk_command_limit)."""


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
        "_unknown_recipients",
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
        """The name that the client gave in EHLO, HELO or LHLO."""
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
        self._resolving = ""  # the recipient's address in the last Resolve
        self._incoming: Incoming | None = None
        self._outcomes: list[Reply] = []  # replies for the recipients whose delivery has finished
        self._awaiting = False  # whether the result of the last event is awaited
        self._closing = ""  # the reason why the session ends after the pending replies
        self._commands = self._recipient_commands = 0
        self._bad_commands = self._unknown_recipients = 0

    # Called by the connection.

    def greeting(self) -> Reply:
        """Return the greeting."""
        kind = "LMTP" if self.policy.is_lmtp else "ESMTP"
        return Reply(220, "", f"{self.policy.hostname} {kind} restante ready")

    def receive(self, octets: bytes) -> None:
        """Feed received octets.  The caller must stop reading while ``unread`` is large."""
        self._lines.feed(octets)

    @property
    def unread(self) -> int:
        """Number of octets that were received but not yet processed."""
        return self._lines.unread

    def next(self) -> Event | None:
        """Process one command or a piece of the message.

        Returns:
            The next event; None if more octets or the result of the last event must come first.
        """
        if self._awaiting or self.state is State.CLOSED:
            return None
        if self._pending:
            return self._pending.popleft()
        if self._closing:
            return self._close(self._closing)
        if self._incoming is not None:
            return self._receive_content(self._incoming)
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

    def storing_failed(self) -> None:
        """Answers Content: storing failed, so the message is read to its end and then refused."""
        if self._incoming is not None and self._incoming.failure is None:
            self._incoming.failure = TemporaryFailure("no room for the message")

    def delivered(self, error: RestanteError | None = None) -> Reply | None:
        """Answers Deliver for the next recipient, with an error if the message was not stored.

        Returns:
            In LMTP, the reply for this recipient (RFC 2033 §4.2).  In SMTP, None for all recipients
            but the last, and then a single reply.  If it reports a failure, the client tries again
            for all recipients, so the caller must record which of them have the message.
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
        """Answers StartTLS: the session starts over, as RFC 3207 §4.2 requires."""
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
        """Return the request to look up a recipient.

        Raises:
            Refusal: the message has too many recipients.
        """
        if len(self.recipients) >= self.policy.recipients:
            raise Refusal(452, "4.5.3", "too many recipients, send the others separately")
        self._resolving = address
        return Resolve(address)

    def begin_data(self) -> BeginData:
        """Begin to receive a message."""
        self.state = State.DATA
        max_octets, refuses_bare = self.policy.max_message, not self.policy.is_lmtp
        self._incoming = Incoming(max_octets, refuses_bare=refuses_bare)
        return BeginData(Reply(354, "", "end data with <CR><LF>.<CR><LF>"))

    def end_transaction(self) -> None:
        """Discard the reverse-path and the recipients."""
        self.reverse_path, self.recipients, self.is_utf8 = "", [], False
        self._outcomes = []
        if self.state is not State.CONNECTED:
            self.state = State.READY

    def close_after(self, reply: Reply) -> Reply:
        """Close the session after this reply."""
        self._closing = "quit"
        return reply

    # Internal methods.

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
        """Count a command.

        Raises:
            Refusal: the number exceeds a limit; the session ends after this reply.
        """
        if keyword == "RCPT":
            self._recipient_commands += 1
        else:
            self._commands += 1
        policy = self.policy
        has_too_many = self._commands > policy.commands
        if has_too_many or self._recipient_commands > policy.recipient_commands:
            raise self._final_refusal("too many commands without a message")

    def _final_refusal(self, reason: str) -> Refusal:
        """Return a refusal after which the session ends."""
        self._closing = reason
        return Refusal(_CLOSING, "4.7.0", f"{reason}, closing the connection")

    def _refuse(self, error: RestanteError) -> Reply:
        """Return the reply for an error, and count the error; too many errors end the session."""
        reply = failure(error)
        if isinstance(error, BareLineFeed | NulOctet):
            self._closing = str(error)
        elif isinstance(error, NoSuchUser):
            self._unknown_recipients += 1
            if self._unknown_recipients >= self.policy.unknown_recipients:
                reply = self._final_refusal("too many unknown recipients").reply
        elif isinstance(error, BadCommand) and reply.code >= 500:
            self._bad_commands += 1
            if self._bad_commands >= self.policy.bad_commands:
                reply = self._final_refusal("too many bad commands").reply
        return reply

    def _receive_content(self, incoming: Incoming) -> Event | None:
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
            self._unknown_recipients = 0  # the client is the site's mail server and does not guess

    def _close(self, reason: str) -> Close:
        self.state = State.CLOSED
        return Close(reason)


def _urgency(reply: Reply) -> int:
    """Return the rank of a recipient's reply; the lowest becomes the single reply of SMTP.

    A temporary failure has the lowest rank, because the client must then try again.
    """
    return {4: 0, 5: 1}.get(reply.code // 100, 2)
