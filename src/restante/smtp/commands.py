"""The commands of SMTP and LMTP: a function for each command, and the table of all commands.

Standards: RFC 5321, RFC 2033 (LMTP), RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 3207 (STARTTLS),
RFC 6531 (SMTPUTF8), RFC 2034 (enhanced status codes), RFC 2920 (pipelining).
Each function takes the session and the command's argument, and returns a reply or an action.
"""

from __future__ import annotations

from ..errors import HostileInput, MessageTooLarge
from .grammar import Path, Refusal, Reply, parse_hello
from .session import Session
from .state import Event, StartTLS, State
from .verbs import Verb

_MAIL_PARAMETERS = {"SIZE", "BODY", "SMTPUTF8"}
_OK = Reply(250, "2.0.0", "OK")


def ehlo(session: Session, argument: str) -> Reply:
    """Lists the extensions, and ends a transaction (RFC 5321 §4.1.1.1, §4.1.4)."""
    _greet(session, argument, is_extended=True)
    extensions = ["PIPELINING", f"SIZE {session.policy.max_message}"]
    if session.may_start_tls:
        extensions.append("STARTTLS")
    extensions += ["8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
    return Reply(250, "", session.policy.hostname, tuple(extensions))


def helo(session: Session, argument: str) -> Reply:
    """Greets a client without support for extensions, and ends a transaction."""
    _greet(session, argument, is_extended=False)
    return Reply(250, "", session.policy.hostname)


def _greet(session: Session, argument: str, *, is_extended: bool) -> None:
    session.hello = parse_hello(argument)
    session.is_extended = is_extended
    session.state = State.READY
    session.end_transaction()


def starttls(session: Session, argument: str) -> Event:
    """Requests TLS, whose handshake begins immediately after the reply (RFC 3207 §4).

    If the client has already sent octets after the command, the connection is closed, because these
    octets would be read as if TLS had protected them (CVE-2011-0411).
    """
    if argument:
        raise Refusal(501, "5.5.4", "STARTTLS does not accept an argument")
    if not session.may_start_tls:
        raise Refusal(503 if session.is_secure else 500, "5.5.1", "TLS cannot be started here")
    if session.unread:
        raise HostileInput("octets after STARTTLS")
    return StartTLS(Reply(220, "2.0.0", "begin TLS"))


def mail(session: Session, argument: str) -> Reply:
    """Begins a transaction (RFC 5321 §4.1.1.2)."""
    path = Path.parse(_after(argument, "FROM:", "MAIL FROM:<address>"), "5.1.7")
    _check_parameters(session, path.parameters)
    is_utf8 = "SMTPUTF8" in path.parameters
    _check_utf8(path.address, is_utf8=is_utf8, status="5.6.7")
    session.state = State.MAIL
    session.reverse_path, session.is_utf8 = path.address, is_utf8
    return Reply(250, "2.1.0", "OK")


def _check_parameters(session: Session, parameters: dict[str, str]) -> None:
    allowed = _MAIL_PARAMETERS if session.is_extended else frozenset[str]()
    if not parameters.keys() <= allowed:
        raise Refusal(555, "5.5.4", "unknown parameter of MAIL")
    size = parameters.get("SIZE")
    if size is not None:
        if not (size.isascii() and size.isdecimal() and len(size) <= 20):  # RFC 1870 §3
            raise Refusal(501, "5.5.4", "SIZE must be a number")
        if int(size) > session.policy.max_message:
            raise MessageTooLarge(session.policy.max_message)
    if parameters.get("BODY", "7BIT").upper() not in ("7BIT", "8BITMIME"):
        raise Refusal(501, "5.5.4", "BODY must be 7BIT or 8BITMIME")
    if parameters.get("SMTPUTF8"):
        raise Refusal(501, "5.5.4", "SMTPUTF8 does not accept a value")


def rcpt(session: Session, argument: str) -> Event:
    """Adds a recipient (RFC 5321 §4.1.1.3)."""
    path = Path.parse(_after(argument, "TO:", "RCPT TO:<address>"), "5.1.3")
    if path.parameters:
        raise Refusal(555, "5.5.4", "RCPT does not accept parameters")
    if not path.address:
        raise Refusal(553, "5.1.3", "recipient address is empty")
    _check_utf8(path.address, is_utf8=session.is_utf8, status="5.6.7")
    policy = session.policy
    is_postmaster = path.address.casefold() == "postmaster"  # RFC 5321 §4.5.1
    if not (policy.is_lmtp or is_postmaster or path.domain in policy.domains):
        raise Refusal(550, "5.7.1", "relaying is not allowed")
    return session.resolve(path.address)


def _check_utf8(address: str, *, is_utf8: bool, status: str) -> None:
    if not (is_utf8 or address.isascii()):
        raise Refusal(553, status, "a non-ASCII address requires SMTPUTF8")


def _after(argument: str, prefix: str, usage: str) -> str:
    """Return the text after ``FROM:`` or ``TO:``.

    Spaces after the colon are ignored: they are common, although they are not allowed.
    """
    if argument[: len(prefix)].upper() != prefix:
        raise Refusal(501, "5.5.4", f"usage: {usage}")
    return argument[len(prefix) :].lstrip(" ")


def data(session: Session, argument: str) -> Event:
    """Begins to receive the message (RFC 5321 §4.1.1.4)."""
    if argument:
        raise Refusal(501, "5.5.4", "DATA does not accept an argument")
    if not session.recipients:
        raise Refusal(503, "5.5.1", "no valid recipients")
    return session.begin_data()


def rset(session: Session, argument: str) -> Reply:
    """Ends a transaction (RFC 5321 §4.1.1.5)."""
    if argument:
        raise Refusal(501, "5.5.4", "RSET does not accept an argument")
    session.end_transaction()
    return _OK


def noop(_: Session, __: str) -> Reply:
    """Has no effect; an argument is ignored (RFC 5321 §4.1.1.9)."""
    return _OK


def vrfy(_: Session, __: str) -> Reply:
    """Does not reveal whether a user exists (RFC 5321 §3.5.3, §7.3)."""
    return Reply(252, "2.5.0", "cannot verify users, but will accept messages for them")


def help_(_: Session, __: str) -> Reply:
    """Refers to the standards (RFC 5321 §4.1.1.8)."""
    return Reply(214, "2.0.0", "see RFC 5321, or RFC 2033 for LMTP")


def quit_(session: Session, argument: str) -> Reply:
    """Ends the session (RFC 5321 §4.1.1.10)."""
    if argument:
        raise Refusal(501, "5.5.4", "QUIT does not accept an argument")
    return session.close_after(Reply(221, "2.0.0", "goodbye"))


_ANY_STATE = (State.CONNECTED, State.READY, State.MAIL)
_AFTER_GREETING = (State.READY, State.MAIL)

VERBS = {
    "EHLO": Verb(ehlo, _ANY_STATE, is_lmtp=False),
    "HELO": Verb(helo, _ANY_STATE, is_lmtp=False),
    "LHLO": Verb(ehlo, _ANY_STATE, is_lmtp=True),
    "STARTTLS": Verb(starttls, _AFTER_GREETING),
    "MAIL": Verb(mail, (State.READY,)),
    "RCPT": Verb(rcpt, (State.MAIL,)),
    "DATA": Verb(data, (State.MAIL,)),
    "RSET": Verb(rset, _ANY_STATE),
    "NOOP": Verb(noop, _ANY_STATE),
    "VRFY": Verb(vrfy, _ANY_STATE),
    "HELP": Verb(help_, _ANY_STATE),
    "QUIT": Verb(quit_, _ANY_STATE),
}
