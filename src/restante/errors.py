"""Every exception of restante, and what it means on the wire.

An error has its response code (RFC 2449 §8, RFC 3206) and whether the same request
may succeed later.  Its message names the object, the limit and the unit; it never
repeats what a peer sent, so it may be shown to that peer.

RestanteError
├── BadCommand                 this command is wrong, the session goes on
│   ├── NoExchange             AUTH was refused or cancelled
│   ├── OverlongLine
│   ├── BareLineFeed           answered, then the connection is closed
│   ├── NulOctet               likewise
│   └── NoSuchMessage
├── HostileInput               the connection is closed without a response
├── AuthenticationFailed       [AUTH]
├── TLSRequired
├── MaildropInUse              [IN-USE]
├── LoginDelayed               [LOGIN-DELAY]
├── ReadOnly                   this login may not mark messages as deleted
├── TemporaryFailure           [SYS/TEMP]
│   ├── MessageGone
│   ├── NotRemoved
│   ├── QuotaExceeded
│   ├── Damaged                a file of restante; an administrator must restore it
│   ├── BackendUnavailable     an identity back end; never counts as a guess
│   │   └── BackendMisconfigured
│   └── TooBusy
├── NeedsUTF8                  [UTF8]
├── PermanentFailure           [SYS/PERM]
│   ├── NoMaildrop             the user's name does not fit the path of maildrops
│   └── CredentialsRefused     by a server that should store our mail
├── NoSuchUser                 intake and administration
├── MessageRefused             intake: this message will never be accepted
│   └── MessageTooLarge
│       └── LargerThanQuota
├── ConfigurationError
│   └── CannotListen
├── UnsafeArgument             a caller's argument would break the protocol; a ValueError
│   └── StaleMessage           a message of an earlier session
├── BodySkipped                a caller came back to a body after another command
└── ClientError                a remote server, seen by our client
    ├── CommandFailed          it answered -ERR; the session goes on
    │   └── LoginFailed
    ├── LoginWithheld          the credentials were refused before; the next try has to wait
    ├── ConsentNeeded          the user must sign in again at the OAuth 2 provider
    ├── TLSUnavailable         no safe connection; no credential was sent
    └── ConnectionLost         the session is over; a ConnectionError
        ├── CannotConnect      it never began
        ├── ProtocolBroken
        └── DeadlineExceeded   a TimeoutError
"""

from __future__ import annotations

from math import ceil


class RestanteError(Exception):
    """Base class of every exception that restante raises on purpose.

    The exceptions are mistakes in a call: ``TypeError`` for an argument of the wrong type,
    ``RuntimeError`` for two tasks or threads in one session, ``FileExistsError`` from ``save``.
    """

    code: str | None = None
    """Response code without its brackets, or None."""
    retry: bool = False
    """Whether the same request may succeed later."""


class BadCommand(RestanteError):
    """Unknown, malformed or out of place (RFC 1939 §3); nothing else happens."""


class NoExchange(BadCommand):
    """AUTH was refused or cancelled before any credential was sent.

    A client may try another mechanism, or USER and PASS (RFC 5034 §4), so this counts as
    negotiation and not as a bad command.
    """


class OverlongLine(BadCommand):
    """A line is longer than its limit; the rest of it is discarded (RFC 2449 §4)."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"line longer than {limit} octets")
        self.limit = limit  # octets, CRLF included


class BareLineFeed(BadCommand):
    """LF without CR.  Text that other software reads as one line must not be two lines here."""

    def __init__(self) -> None:
        super().__init__("lines must end with CRLF, this one has a bare LF")


class NulOctet(BadCommand):
    """NUL in a command.  No mail client sends it; a TLS handshake on a port without TLS has it."""

    def __init__(self) -> None:
        super().__init__("NUL in a command")


class NoSuchMessage(BadCommand):
    """No such message-number, or marked as deleted (RFC 1939 §5)."""

    def __init__(self, text: str = "no such message") -> None:
        super().__init__(text)


class HostileInput(RestanteError):
    """Input that no POP3 client sends: another protocol, or an endless line."""


class AuthenticationFailed(RestanteError):
    """The login failed; the message is the same for an unknown user, a wrong password and a
    disabled account.

    ``reason`` goes to the log, never to the peer (RFC 3206 §5).
    """

    code = "AUTH"

    def __init__(self, reason: str = "bad-password") -> None:
        super().__init__("authentication failed")
        self.reason = reason


class TLSRequired(RestanteError):
    """Login without TLS; refused before the credentials are checked (RFC 8314 §4.1)."""

    def __init__(self) -> None:
        super().__init__("login requires TLS: send STLS first, or connect to the POP3S port")


class MaildropInUse(RestanteError):
    """Another session holds the maildrop's exclusive-access lock (RFC 2449 §8.1.2)."""

    code = "IN-USE"
    retry = True

    def __init__(self, held_for: float) -> None:
        super().__init__(f"maildrop in use by another session for {held_for:.0f} s")
        self.held_for = held_for  # seconds


class LoginDelayed(RestanteError):
    """The credentials are correct, but the last login is too recent (RFC 2449 §8.1.1)."""

    code = "LOGIN-DELAY"
    retry = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"log in again in {ceil(seconds)} s")
        self.seconds = seconds


class ReadOnly(RestanteError):
    """DELE in a session that may not change the maildrop; not counted as a bad command."""

    def __init__(self) -> None:
        super().__init__("this login is not allowed to delete messages")


class TemporaryFailure(RestanteError):
    """The server failed; nothing changed, and a later try may succeed (RFC 3206 §4)."""

    code = "SYS/TEMP"
    retry = True


class MessageGone(TemporaryFailure):
    """Another program removed the message during the session."""

    def __init__(self) -> None:
        super().__init__("message was removed by another program")


class NotRemoved(TemporaryFailure):
    """UPDATE could not remove all marked messages; unmarked ones are untouched (RFC 1939 §6)."""

    def __init__(self, left: int) -> None:
        super().__init__(f"{left} deleted messages not removed")
        self.left = left  # messages


class Braked(TemporaryFailure):
    """A recently added password marked more messages as deleted than its limit allows."""

    def __init__(self, marked: int) -> None:
        super().__init__(
            f"this password is too new to delete {marked} messages; nothing was deleted"
        )
        self.marked = marked  # messages


class QuotaExceeded(TemporaryFailure):
    """The maildrop has no room for this message until the user deletes mail."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"maildrop is full: its quota is {limit} octets")
        self.limit = limit  # octets


class Damaged(TemporaryFailure):
    """A file of restante is damaged, and its content cannot be recreated.

    Peers may try again, since an administrator can restore it; the command line reports EX_DATAERR.
    """


class BackendUnavailable(TemporaryFailure):
    """An identity back end is down, slow or broken, so the login cannot be checked.

    It never counts as a guess.  ``reason`` goes to the log, never to the peer.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("logins cannot be checked now")
        self.reason = reason


class BackendMisconfigured(BackendUnavailable):
    """An administrator must correct the configuration of an identity back end, such as the password
    that restante uses there or a missing library.  Peers may try again."""


class TooBusy(TemporaryFailure):
    """A limit on connections or on work was reached."""


class NeedsUTF8(RestanteError):
    """The message has UTF-8 in its header, and the client did not send UTF8 (RFC 6856 §5)."""

    code = "UTF8"

    def __init__(self) -> None:
        super().__init__("message uses UTF-8: send UTF8 before login")


class PermanentFailure(RestanteError):
    """The server failed, and an administrator must act (RFC 3206 §4)."""

    code = "SYS/PERM"


class NoMaildrop(PermanentFailure):
    """The user cannot have a maildrop, because the name does not fit the path of maildrops.

    The message is for the user who logs in; ``reason``, a clause without a subject, for the
    administrator.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class CredentialsRefused(PermanentFailure):
    """The server that should store our mail refused the user name or password."""


class NoSuchUser(RestanteError):
    """No such user in the database of users."""

    def __init__(self, user: str) -> None:
        super().__init__(f"no such user: {user!r}")
        self.user = user


class MessageRefused(RestanteError):
    """Intake will never accept this message; the reply to the sender says why."""


class MessageTooLarge(MessageRefused):
    """A message is larger than the limit for one message.

    ``limit`` is in octets.  From the client: the session goes on, and the message stays on the
    server.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"message larger than {limit} octets")
        self.limit = limit  # octets


class LargerThanQuota(MessageTooLarge):
    """The message would not fit into an empty maildrop."""

    def __init__(self, limit: int) -> None:
        MessageRefused.__init__(self, f"message larger than the whole quota of {limit} octets")
        self.limit = limit  # octets


class ConfigurationError(RestanteError):
    """The configuration is invalid; the message names the file, the line and the key."""


class CannotListen(ConfigurationError):
    """The server cannot listen on an address; the message says what to do."""


class UnsafeArgument(RestanteError, ValueError):
    """CR, LF, NUL or another control character in an argument: refused before sending."""


class StaleMessage(UnsafeArgument):
    """A message of an earlier session, where its number may mean another message.

    Nothing was sent, and the session goes on.  List the messages again.
    """


class BodySkipped(RestanteError):
    """The rest of a message was skipped, because another command came before its end.

    What was read of it is not the message.
    """


# RFC 2449 §8.1, RFC 3206 §4: whether the same request may succeed later.
_MAY_PASS = {"IN-USE": True, "LOGIN-DELAY": True, "SYS": True, "SYS/TEMP": True, "SYS/PERM": False}


def _may_pass(code: str | None) -> bool:
    """Return the meaning of the longest known prefix of a code (RFC 2449 §8: a hierarchy)."""
    while code:
        if code in _MAY_PASS:
            return _MAY_PASS[code]
        code = code.rpartition("/")[0]
    return False


class ClientError(RestanteError):
    """A remote server or the way to it failed."""


class CommandFailed(ClientError):
    """The server answered -ERR.  The session goes on.

    ``code`` is its response code, or the code that its text is known to mean, or None.  ``text`` is
    the text of the response, without our password if the server repeats it; control characters are
    escaped in the message of this error, for terminals.  ``remedy`` is advice at its end.
    """

    def __init__(self, command: str, text: str, code: str | None, remedy: str = "") -> None:
        shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
        message = f"{command}: {shown}" if text else command
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.command = command
        self.text = text
        self.code = code
        self.retry = _may_pass(code)


class LoginFailed(CommandFailed):
    """The server refused the login.  Only ``[AUTH]`` means wrong credentials (RFC 3206 §5)."""


class LoginWithheld(ClientError):
    """The credentials were refused before, and are not tried again yet.

    Many failed logins may lock the account for its owner as well.
    """

    def __init__(self, account: str, refusals: int, seconds: float) -> None:
        often = "once" if refusals == 1 else f"{refusals} times"
        super().__init__(
            f"the login was refused {often}; the next try is in {seconds:.0f} s; "
            f"at once: restante account test {account}"
        )
        self.seconds = seconds


class ConsentNeeded(ClientError):
    """The OAuth 2 provider issues no token until the user acts; the message says what to do."""


class TLSUnavailable(ClientError):
    """TLS is required, and could not be established.  No credential was sent."""


class ConnectionLost(ClientError, ConnectionError):
    """The session ended without QUIT, so no message was removed (RFC 1939 §6).

    ``lost_deletions`` is the number of messages that were marked as deleted and not removed.  If
    the answer to QUIT was lost, ``is_known`` is False: the server may have removed them.
    """

    retry = True
    __str__ = Exception.__str__  # that of OSError shows a file name, and there is none

    def __init__(self, text: str, lost_deletions: int = 0, *, is_known: bool = True) -> None:
        fate = "were not carried out" if is_known else "may have been carried out, or not"
        super().__init__(f"{text}; {lost_deletions} deletions {fate}" if lost_deletions else text)
        self.lost_deletions = lost_deletions  # messages
        self.is_known = is_known


class CannotConnect(ConnectionLost):
    """No connection to the server could be made: unknown host, refused, unreachable."""


class ProtocolBroken(ConnectionLost):
    """The server broke the protocol; the connection cannot be trusted any more."""

    retry = False


class DeadlineExceeded(ConnectionLost, TimeoutError):
    """The server did not answer within ``timeout``, or ``deadline`` has passed."""
