"""All exceptions of restante, and what each means on the wire.

Each exception class has a response code (RFC 2449 §8, RFC 3206), and an attribute that states
whether the same request may succeed later.  The message of an exception names the object, the limit
and the unit.  It never repeats input from a peer, so it can be sent to that peer.

RestanteError
├── BadCommand                 the command is invalid; the session continues
│   ├── NoExchange             AUTH was refused or cancelled
│   ├── OverlongLine
│   ├── BareLineFeed           the connection is closed after a response
│   ├── NulOctet               the connection is closed after a response
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
│   ├── BackendUnavailable     an identity back end failed; not counted as a guess
│   │   └── BackendMisconfigured
│   ├── DeletionLimitExceeded  a new password may not delete that many messages
│   └── TooBusy
├── NeedsUTF8                  [UTF8]
├── PermanentFailure           [SYS/PERM]
│   ├── NoMaildrop             the user's name does not fit the path of maildrops
│   └── CredentialsRefused     a server to which mail is delivered refused the login
├── NoSuchUser
├── MessageRefused             the message will never be accepted
│   └── MessageTooLarge
│       └── LargerThanQuota
├── ConfigurationError
│   └── CannotListen
├── CannotCreate               a file or directory exists and is not overwritten
├── NotRunning                 no server answers on the control sockets
├── NotPermitted               this user is not permitted to control the server
├── UnsafeArgument             an argument would break the protocol; a ValueError
│   └── StaleMessage           an argument is a message of an earlier session
├── BodySkipped                a body was read after another command was sent
└── ClientError                a remote server or the connection to it failed
    ├── CommandFailed          the response was -ERR; the session continues
    │   └── LoginFailed
    ├── LoginWithheld          the credentials were refused before; wait before the next try
    ├── ConsentNeeded          the user must sign in again at the OAuth 2 provider
    ├── TLSUnavailable         no safe connection; no credential was sent
    └── ConnectionLost         the session is over; a ConnectionError
        ├── CannotConnect      no session began
        ├── ProtocolBroken
        └── DeadlineExceeded   a TimeoutError
"""

from __future__ import annotations

from math import ceil

from .words import counted


class RestanteError(Exception):
    """Base class of every exception that restante raises on purpose.

    Programming mistakes raise other exceptions: ``TypeError`` for an argument of the wrong type,
    ``RuntimeError`` if two tasks or threads use one session, ``FileExistsError`` from ``save``.
    """

    code: str | None = None
    """Response code without its brackets, or None."""
    retry: bool = False
    """Whether the same request may succeed later."""


class BadCommand(RestanteError):
    """A command is unknown, malformed or not allowed in the current state (RFC 1939 §3)."""


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
    """A line contains LF without CR, which other software may not treat as a line ending."""

    def __init__(self) -> None:
        super().__init__("lines must end with CRLF, but this line has a bare LF")


class NulOctet(BadCommand):
    """A command contains NUL, usually because TLS was used on a port without TLS."""

    def __init__(self) -> None:
        super().__init__("NUL in a command")


class NoSuchMessage(BadCommand):
    """No message has this number, or the message is marked as deleted (RFC 1939 §5)."""

    def __init__(self, text: str = "no such message") -> None:
        super().__init__(text)


class HostileInput(RestanteError):
    """The peer does not speak POP3: it sent another protocol or an endless line."""


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
    """A login without TLS was refused before the credentials were checked (RFC 8314 §4.1)."""

    def __init__(self) -> None:
        super().__init__("login requires TLS: send STLS first, or connect to the POP3S port")


class MaildropInUse(RestanteError):
    """Another session holds the exclusive-access lock of the maildrop (RFC 2449 §8.1.2)."""

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
    """DELE was sent in a session that may not change the maildrop; not counted as a bad command."""

    def __init__(self) -> None:
        super().__init__("this login is not allowed to delete messages")


class TemporaryFailure(RestanteError):
    """The server failed.  Nothing has changed, and the request may succeed later (RFC 3206 §4)."""

    code = "SYS/TEMP"
    retry = True


class MessageGone(TemporaryFailure):
    """Another program removed the message during the session."""

    def __init__(self) -> None:
        super().__init__("message was removed by another program")


class NotRemoved(TemporaryFailure):
    """UPDATE could not remove all marked messages; unmarked messages are kept (RFC 1939 §6)."""

    def __init__(self, left: int) -> None:
        super().__init__(f"{counted(left, 'deleted message')} not removed")
        self.left = left  # messages


class DeletionLimitExceeded(TemporaryFailure):
    """A session with a recently added password marked more messages as deleted than the limit for
    new passwords allows."""

    def __init__(self, marked: int) -> None:
        super().__init__(
            f"this password is too new to delete {counted(marked, 'message')}; nothing was deleted"
        )
        self.marked = marked  # messages


Braked = DeletionLimitExceeded
"""The former name of this exception."""


class QuotaExceeded(TemporaryFailure):
    """The maildrop is full until the user deletes mail."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"maildrop is full: its quota is {limit} octets")
        self.limit = limit  # octets


class Damaged(TemporaryFailure):
    """One of restante's own files is damaged and cannot be recreated.

    Clients may try again, because an administrator can restore the file.  Commands exit with
    EX_DATAERR.
    """


class BackendUnavailable(TemporaryFailure):
    """An authentication back end is down, slow or broken, so the login cannot be checked.

    Such a login does not count as a guess.  ``reason`` goes to the log, never to the peer.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("logins cannot be checked now")
        self.reason = reason


class BackendMisconfigured(BackendUnavailable):
    """An authentication back end is unusable until an administrator corrects its configuration or
    installs a missing library.  Clients may try again."""


class TooBusy(TemporaryFailure):
    """A limit on connections or on work was reached."""


class NeedsUTF8(RestanteError):
    """The header contains UTF-8, and the client did not send the UTF8 command (RFC 6856 §5)."""

    code = "UTF8"

    def __init__(self) -> None:
        super().__init__("message uses UTF-8: send UTF8 before login")


class PermanentFailure(RestanteError):
    """The server failed, and an administrator must act (RFC 3206 §4)."""

    code = "SYS/PERM"


class NoMaildrop(PermanentFailure):
    """The user cannot have a maildrop, because the name does not match `store.path`.

    The message of the exception is for the user who logs in.  ``reason`` is for the administrator,
    and has no subject, so that it can follow the user's name.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class CredentialsRefused(PermanentFailure):
    """The server to which mail is delivered refused the user name or password."""


class NoSuchUser(RestanteError):
    """The user database contains no such user."""

    def __init__(self, user: str) -> None:
        super().__init__(f"no such user: {user!r}")
        self.user = user


class MessageRefused(RestanteError):
    """The message will never be accepted, for the reason in the text of the exception."""


class MessageTooLarge(MessageRefused):
    """A message is larger than the limit for one message.

    ``limit`` is in octets.  If a client raises this exception, the session continues, and the
    message stays on the server.
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
    """The configuration is invalid; the text of the exception names the file, line and key."""


class CannotListen(ConfigurationError):
    """The server cannot listen on an address; the text of the exception states what to do."""


class CannotCreate(RestanteError):
    """A file or directory that the command would create exists, so nothing was written."""


class NotRunning(RestanteError):
    """There is no running server for the command to control."""


class NotPermitted(RestanteError):
    """The user who ran this command is not permitted to control the server."""


class UnsafeArgument(RestanteError, ValueError):
    """An argument contains CR, LF, NUL or another control character; nothing was sent."""


class StaleMessage(UnsafeArgument):
    """The message belongs to an earlier session; its number may now refer to another message.

    Nothing was sent, and the session continues.  List the messages again.
    """


class BodySkipped(RestanteError):
    """The rest of a message was skipped, because another command was sent before it was read.

    The part that was read is incomplete.
    """


# Whether the same request may succeed later (RFC 2449 §8.1, RFC 3206 §4).
_CAN_RETRY = {"IN-USE": True, "LOGIN-DELAY": True, "SYS": True, "SYS/TEMP": True, "SYS/PERM": False}


def _may_retry(code: str | None) -> bool:
    """Look up the longest known prefix of a code: codes form a hierarchy (RFC 2449 §8)."""
    while code:
        if code in _CAN_RETRY:
            return _CAN_RETRY[code]
        code = code.rpartition("/")[0]
    return False


class ClientError(RestanteError):
    """A remote server or the connection to it failed."""


class CommandFailed(ClientError):
    """The server answered -ERR.  The session continues.

    ``code`` is the response code, or the code inferred from a known response text, or None.
    ``text`` is the text of the response; if the server repeats the password, it is masked.
    Control characters are escaped in the message of the exception, to protect terminals.
    ``remedy`` is advice that is appended to the message.
    """

    def __init__(self, command: str, text: str, code: str | None, remedy: str = "") -> None:
        escaped = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
        message = f"{command}: {escaped}" if text else command
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.command = command
        self.text = text
        self.code = code
        self.retry = _may_retry(code)


class LoginFailed(CommandFailed):
    """The server refused the login.  Only ``[AUTH]`` means wrong credentials (RFC 3206 §5)."""


class LoginWithheld(ClientError):
    """The credentials were refused before, and it is too early to try them again.

    The wait is necessary because providers may lock an account after many failed logins.
    """

    def __init__(self, account: str, refusals: int, seconds: float) -> None:
        times = "once" if refusals == 1 else f"{refusals} times"
        super().__init__(
            f"the login was refused {times}; the next try is in {seconds:.0f} s; "
            f"to try now, run: restante account test {account}"
        )
        self.seconds = seconds


class ConsentNeeded(ClientError):
    """The OAuth 2 provider issues no token until the user signs in again."""


class TLSUnavailable(ClientError):
    """TLS is required but could not be established.  No credential was sent."""


class ConnectionLost(ClientError, ConnectionError):
    """The session ended without QUIT, so no message was removed (RFC 1939 §6).

    ``lost_deletions`` is the number of messages that were marked as deleted.  They were not
    removed, unless ``is_known`` is False: then the response to QUIT was lost, and the server may
    have removed them.
    """

    retry = True
    __str__ = Exception.__str__  # OSError.__str__ would show a file name

    def __init__(self, text: str, lost_deletions: int = 0, *, is_known: bool = True) -> None:
        verb = "was" if lost_deletions == 1 else "were"
        result = f"{verb} not carried out" if is_known else "may or may not have been carried out"
        super().__init__(
            f"{text}; {counted(lost_deletions, 'deletion')} {result}" if lost_deletions else text
        )
        self.lost_deletions = lost_deletions  # messages
        self.is_known = is_known


class CannotConnect(ConnectionLost):
    """The connection failed: the host is unknown or unreachable, or it refused the connection."""


class ProtocolBroken(ConnectionLost):
    """The server violated the protocol; the connection cannot be used any longer."""

    retry = False


class DeadlineExceeded(ConnectionLost, TimeoutError):
    """The server did not respond within ``timeout``, or the ``deadline`` has passed."""
