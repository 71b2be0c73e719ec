"""Every exception of restante, and what it means on the wire.

An error knows its response code (RFC 2449 §8, RFC 3206) and whether the same
request may succeed later.  Its message names the thing, the limit and the unit;
it never repeats what a peer sent, so it may be shown to that peer.

RestanteError
├── BadCommand                 this command is wrong, the session goes on
│   ├── NoExchange             AUTH was refused or cancelled
│   ├── OverlongLine
│   ├── BareLineFeed           answered, then the connection is closed
│   ├── NulOctet               likewise
│   └── NoSuchMessage
├── HostileInput               the connection is closed without a word
├── AuthenticationFailed       [AUTH]
├── TLSRequired
├── MaildropInUse              [IN-USE]
├── LoginDelayed               [LOGIN-DELAY]
├── ReadOnly                   this login may not mark messages as deleted
├── TemporaryFailure           [SYS/TEMP]
│   ├── MessageGone
│   ├── NotRemoved
│   ├── QuotaExceeded
│   ├── Damaged                a file of ours; waits for an administrator
│   ├── BackendUnavailable     an identity back end; never counts as a guess
│   │   └── BackendMisconfigured
│   └── TooBusy
├── NeedsUTF8                  [UTF8]
├── PermanentFailure           [SYS/PERM]
│   ├── NoMaildrop             a user whose name does not fit the path of maildrops
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
    ├── LoginWithheld          it refused these credentials, and they wait for their next try
    ├── ConsentNeeded          an OAuth 2 provider gives no token until somebody acts
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
    """An AUTH that was refused or cancelled before any credential was shown.

    A client may try another mechanism, or USER and PASS (RFC 5034 §4), so this is negotiation.
    """


class OverlongLine(BadCommand):
    """A line longer than its limit; the rest of it is discarded (RFC 2449 §4)."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"line longer than {limit} octets")
        self.limit = limit  # octets, CRLF included


class BareLineFeed(BadCommand):
    """LF without CR.  What other software takes for one line must not be two here."""

    def __init__(self) -> None:
        super().__init__("lines must end with CRLF, this one has a bare LF")


class NulOctet(BadCommand):
    """NUL in a command.  No mail client sends it; TLS spoken to a port without TLS does."""

    def __init__(self) -> None:
        super().__init__("NUL in a command")


class NoSuchMessage(BadCommand):
    """No such message-number, or marked as deleted (RFC 1939 §5)."""

    def __init__(self, text: str = "no such message") -> None:
        super().__init__(text)


class HostileInput(RestanteError):
    """Octets that no POP3 client sends: another protocol, an endless line."""


class AuthenticationFailed(RestanteError):
    """The same words for an unknown user, a wrong password and a closed account.

    ``reason`` goes to the log, never to the peer (RFC 3206 §5).
    """

    code = "AUTH"

    def __init__(self, reason: str = "bad-password") -> None:
        super().__init__("authentication failed")
        self.reason = reason


class TLSRequired(RestanteError):
    """Login in clear is refused before the credentials are looked at (RFC 8314 §4.1)."""

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
    """Right credentials, too soon after the last login with them (RFC 2449 §8.1.1)."""

    code = "LOGIN-DELAY"
    retry = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"log in again in {ceil(seconds)} s")
        self.seconds = seconds


class ReadOnly(RestanteError):
    """DELE in a session that may not change the maildrop; as a refusal, not a mistake."""

    def __init__(self) -> None:
        super().__init__("this login is not allowed to delete messages")


class TemporaryFailure(RestanteError):
    """Our side failed; nothing changed, and it may work later (RFC 3206 §4)."""

    code = "SYS/TEMP"
    retry = True


class MessageGone(TemporaryFailure):
    """Another program removed the message during the session."""

    def __init__(self) -> None:
        super().__init__("message was removed by another program")


class NotRemoved(TemporaryFailure):
    """UPDATE left marked messages behind; no unmarked one was touched (RFC 1939 §6)."""

    def __init__(self, left: int) -> None:
        super().__init__(f"{left} deleted messages not removed")
        self.left = left  # messages


class Braked(TemporaryFailure):
    """A credential that is new here marked more messages as deleted than it may yet."""

    def __init__(self, marked: int) -> None:
        super().__init__(
            f"this password is too new to delete {marked} messages; nothing was deleted"
        )
        self.marked = marked  # messages


class QuotaExceeded(TemporaryFailure):
    """No room for this message now; there may be when the user has deleted some mail."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"maildrop is full: its quota is {limit} octets")
        self.limit = limit  # octets


class Damaged(TemporaryFailure):
    """A file of ours that nothing else can replace is damaged.

    Peers may try again, since an administrator can restore it; the command line reports EX_DATAERR.
    """


class BackendUnavailable(TemporaryFailure):
    """An identity back end is down, slow or broken, so nobody can tell who this is.

    It never counts as a guess.  ``reason`` goes to the log, never to the peer.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("logins cannot be checked now")
        self.reason = reason


class BackendMisconfigured(BackendUnavailable):
    """An identity back end works only after an administrator has changed something, such as a
    refused password of ours or a missing library.  Peers may try again."""


class TooBusy(TemporaryFailure):
    """A limit on connections or on work was reached."""


class NeedsUTF8(RestanteError):
    """A message in UTF-8, for a client that did not ask for that (RFC 6856 §5)."""

    code = "UTF8"

    def __init__(self) -> None:
        super().__init__("message uses UTF-8: send UTF8 before login")


class PermanentFailure(RestanteError):
    """Our side failed, and an administrator must act (RFC 3206 §4)."""

    code = "SYS/PERM"


class NoMaildrop(PermanentFailure):
    """A user who cannot have a maildrop, because the name does not fit the path of maildrops.

    The message is for the user who logs in; ``reason``, a clause without a subject, for the
    administrator.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class CredentialsRefused(PermanentFailure):
    """A server that should store our mail refuses our user name or password."""


class NoSuchUser(RestanteError):
    """No such user in the database of users."""

    def __init__(self, user: str) -> None:
        super().__init__(f"no such user: {user!r}")
        self.user = user


class MessageRefused(RestanteError):
    """A message that intake will never accept; the sender is told why."""


class MessageTooLarge(MessageRefused):
    """A message is larger than the limit for one message.

    ``limit`` is in octets.  From the client: the session goes on, and the message stays on the
    server.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"message larger than {limit} octets")
        self.limit = limit  # octets


class LargerThanQuota(MessageTooLarge):
    """It would not fit into the maildrop if that were empty."""

    def __init__(self, limit: int) -> None:
        MessageRefused.__init__(self, f"message larger than the whole quota of {limit} octets")
        self.limit = limit  # octets


class ConfigurationError(RestanteError):
    """A configuration that cannot be used; names the file, the line and the key."""


class CannotListen(ConfigurationError):
    """An address where no socket can listen now; says what to do."""


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
    """What of a code is known decides; levels below that are passed over (RFC 2449 §8)."""
    while code:
        if code in _MAY_PASS:
            return _MAY_PASS[code]
        code = code.rpartition("/")[0]
    return False


class ClientError(RestanteError):
    """A remote server or the way to it failed."""


class CommandFailed(ClientError):
    """The server answered -ERR.  The session goes on.

    ``code`` is the response code it gave, or that its words are known to mean, or None.  ``text``
    is what it said, without our password if it repeats that; as the message of this error it
    cannot command a terminal.  ``remedy`` is what may help, at the end of that message.
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
    """The server refused the login.  Only ``[AUTH]`` speaks of the credentials (RFC 3206 §5)."""


class LoginWithheld(ClientError):
    """These credentials were refused before, and are not tried again yet.

    Who tries too often what is wrong shuts out the owner as well.
    """

    def __init__(self, account: str, refusals: int, seconds: float) -> None:
        often = "once" if refusals == 1 else f"{refusals} times"
        super().__init__(
            f"the login was refused {often}; the next try is in {seconds:.0f} s; "
            f"at once: restante account test {account}"
        )
        self.seconds = seconds


class ConsentNeeded(ClientError):
    """An OAuth 2 provider gives no token until somebody does something; the text says what."""


class TLSUnavailable(ClientError):
    """TLS was asked for and could not be had.  No credential was sent."""


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
