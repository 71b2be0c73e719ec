"""The POP3 commands of the server: one function for each command, and the table ``VERBS``.

Standards: RFC 1939, RFC 2449 (CAPA), RFC 2595 (STLS), RFC 5034 (AUTH), RFC 6856 (UTF8, LANG).
Each function is called with the session and the arguments, and returns a response or an action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address

from ..errors import BadCommand, HostileInput, NoExchange, TLSRequired
from ..passdb import Credentials, Digest
from ..sasl.mechanisms import MECHANISMS
from ..sasl.prepare import saslprep
from ..series import cell
from ..words import counted
from . import texts
from .grammar import Repeated, Response, parse_count, parse_number
from .session import Session, Verb
from .state import Event, Login, Retrieve, StartTLS, State, Update, Xclient


def user(session: Session, name: str) -> Response:
    """Accepts every name, so that clients cannot find out which users exist (RFC 1939 §13)."""
    if not session.may_authenticate:
        raise TLSRequired
    if not name:
        raise BadCommand("USER requires a user name")
    session.user = name
    return Response("send the password")


def pass_(session: Session, password: str) -> Event:
    """Logs in.  Must directly follow USER.  The password may contain spaces (RFC 1939 §7)."""
    if not session.may_authenticate:
        raise TLSRequired
    if not session.user:
        raise BadCommand("send USER first")
    if not password:
        raise BadCommand("PASS requires a password")
    return Login(Credentials("USER", saslprep(session.user), saslprep(password)))


def apop(session: Session, name: str, digest: str) -> Event:
    """Logs in with a digest of the password and the greeting's time stamp (RFC 1939 §7).

    After STLS, the time stamp is not valid any more (RFC 2595 §4), and APOP is an unknown command.
    """
    return Login(Digest("APOP", saslprep(name), session.time_stamp, digest))


def auth(session: Session, name: str, initial_response: str | None = None) -> Event:
    """Starts a SASL exchange (RFC 5034 §4).  AUTH without a mechanism is an error."""
    if not session.may_authenticate:
        raise TLSRequired
    if name.upper() not in session.mechanisms:
        raise NoExchange("authentication mechanism not supported")
    session.mechanism = name.upper()
    return session.begin_exchange(MECHANISMS[session.mechanism], initial_response)


def xclient(_: Session, attributes: str) -> Event:
    """Reports the client behind a trusted proxy, in Dovecot's format.

    If the peer is not a trusted proxy, the command is unknown.  Attributes about a login are
    ignored, so the client must still log in.
    """
    values = {}
    for attribute in attributes.split(" "):
        name, equals, value = attribute.partition("=")
        if not equals:
            raise BadCommand("XCLIENT requires NAME=VALUE")
        values[name.upper()] = value
    address, transport = values.get("ADDR", ""), values.get("CLIENT-TRANSPORT", "")
    if address:
        address = _address(address)
    tls = ("yes" if transport.upper().startswith("TLS") else "no") if transport else ""
    return Xclient(address, tls)


def _address(text: str) -> str:
    try:
        address = ip_address(text.upper().removeprefix("IPV6:"))
    except ValueError as error:
        raise BadCommand("ADDR is not a valid IP address") from error
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def capa(session: Session) -> Response:
    """Lists the capabilities (RFC 2449 §5).  STLS is listed only before login (RFC 2595 §8)."""
    tags = ["TOP", "UIDL", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE"]
    if session.may_authenticate:
        tags.append("USER")
    if session.mechanisms:
        tags.append("SASL " + " ".join(session.mechanisms))
    if session.may_start_tls:
        tags.append("STLS")
    tags += ["UTF8 USER", "LANG"]
    tags += _policies(session)
    tags.append("IMPLEMENTATION restante")
    return Response("capabilities follow", lines=tags)


def _policies(session: Session) -> Iterator[str]:
    """Yield LOGIN-DELAY and EXPIRE (RFC 2449 §6.5, §6.7)."""
    terms, may_change = session.terms
    user = " USER" if may_change else ""
    if terms.login_delay:
        yield f"LOGIN-DELAY {terms.login_delay}{user}"
    yield f"EXPIRE {'NEVER' if terms.expire is None else terms.expire}{user}"


def stls(session: Session) -> Event:
    """Starts TLS.  The handshake follows the response (RFC 2595 §4).

    If octets arrived together with the command, the connection is closed.  Otherwise they would be
    processed as if TLS had protected them (CVE-2011-0411).
    """
    if not session.may_start_tls:
        raise BadCommand("TLS cannot be started here")
    if session.unread:
        raise HostileInput("octets after STLS")
    return StartTLS(Response("begin TLS"))


def utf8(session: Session) -> Response:
    """Enables UTF-8 before login (RFC 6856 §2).

    Outlook sends UTF8 after PASS, and gives up if it is refused.  Therefore UTF8 is also accepted
    after login, where it has no effect.
    """
    session.begin_utf8()
    return Response("UTF-8 enabled")


def lang(session: Session, language_range: str | None = None) -> Response:
    """Selects the language of the texts, or lists the languages (RFC 6856 §3.2)."""
    if language_range is None:
        lines = [f"{tag} {name}" for tag, name in texts.LANGUAGES.items()]
        return Response("languages follow", lines=lines)
    tag = texts.choose_language(language_range, session.default_language)
    if tag is None:
        raise BadCommand("language not supported")
    session.language = tag
    text = texts.translate("responses are now in English", tag)
    return Response(f"{tag} {text}", is_data=True)


def stat(session: Session) -> Response:
    """Sends the drop listing, without messages that are marked as deleted (RFC 1939 §5)."""
    transaction = session.transaction
    return Response(f"{transaction.count} {transaction.octets}", is_data=True)


def list_(session: Session, number: str | None = None) -> Response:
    """Sends the scan listing of one message, or of all that are not marked (RFC 1939 §5)."""
    transaction = session.transaction
    if number is not None:
        return Response(f"{number} {transaction.entry(parse_number(number)).size}", is_data=True)
    text = f"{counted(transaction.count, 'message')} ({transaction.octets} octets)"
    if transaction.rendered is not None:
        return Response(text, lines=transaction.rendered.scan_listing())
    return Response(text, lines=(f"{each} {entry.size}" for each, entry in transaction.unmarked()))


def uidl(session: Session, number: str | None = None) -> Response:
    """Sends the unique-id listing of one message, or of all that are not marked (RFC 1939 §7)."""
    transaction = session.transaction
    if number is not None:
        unique_id = transaction.entry(parse_number(number)).unique_id
        return Response(f"{number} {unique_id}", is_data=True)
    text = "unique-ids follow"
    if transaction.rendered is not None:
        return Response(text, lines=transaction.rendered.unique_id_listing())
    lines = (f"{each} {entry.unique_id}" for each, entry in transaction.unmarked())
    return Response(text, lines=lines)


def retr(session: Session, number: str) -> Retrieve:
    """Sends the whole message (RFC 1939 §5)."""
    return retrieve(session, [parse_number(number)])


def top(session: Session, number: str, lines: str) -> Retrieve:
    """Sends the header and the first lines of the body (RFC 1939 §7)."""
    return retrieve(session, [parse_number(number)], parse_count(lines))


def retrieve(session: Session, numbers: Sequence[int], lines: int | None = None) -> Retrieve:
    """Sends several messages, up to the first one that does not exist or is marked."""
    entries = session.transaction.entries(numbers)
    if lines is None:
        heads = [session.head(f"{entry.size} octets") for entry in entries]
    else:
        heads = [session.head("top of message follows")] * len(entries)
    return Retrieve(numbers[: len(entries)], entries, heads, lines)


def dele(session: Session, number: str) -> Repeated:
    """Marks a message as deleted; it is removed at QUIT (RFC 1939 §5)."""
    return delete(session, [parse_number(number)])


def delete(session: Session, numbers: Sequence[int]) -> Repeated:
    """Marks several messages as deleted, up to the first one that cannot be marked."""
    return Repeated(Response("marked as deleted"), session.transaction.mark(numbers))


def rset(session: Session) -> Response:
    """Unmarks all messages (RFC 1939 §5)."""
    transaction = session.transaction
    transaction.unmark_all()
    return Response(f"{counted(transaction.count, 'message')} ({transaction.octets} octets)")


def noop(_: Session) -> Response:
    """Does nothing, but resets the autologout timer like every command (RFC 1939 §3, §5)."""
    return Response()


def quit_(session: Session) -> Event:
    """Enters the UPDATE state, which removes the marked messages (RFC 1939 §6).

    A session that ends without QUIT removes no messages.
    """
    if session.state is State.AUTHORIZATION:
        return session.close_after(Response("goodbye"))
    session.state = State.UPDATE
    return Update(session.transaction.marked())


_AUTH, _TRANS = (State.AUTHORIZATION,), (State.TRANSACTION,)

VERBS = {
    "USER": Verb(user, _AUTH, range(1, 2), takes_rest=True),
    "PASS": Verb(pass_, _AUTH, range(1, 2), takes_rest=True),
    "APOP": Verb(apop, _AUTH, range(2, 3), is_supported=lambda session: session.time_stamp),
    "AUTH": Verb(auth, _AUTH, range(1, 3)),
    "XCLIENT": Verb(
        xclient,
        _AUTH,
        range(1, 2),
        takes_rest=True,
        is_supported=lambda session: session.accepts_xclient,
    ),
    "UTF8": Verb(utf8, _AUTH + _TRANS, range(1)),
    "LANG": Verb(lang, _AUTH + _TRANS, range(2)),
    "STLS": Verb(stls, _AUTH, range(1)),
    "CAPA": Verb(capa, _AUTH + _TRANS, range(1)),
    "STAT": Verb(stat, _TRANS, range(1)),
    "LIST": Verb(list_, _TRANS, range(2)),
    "UIDL": Verb(uidl, _TRANS, range(2)),
    "RETR": Verb(retr, _TRANS, range(1, 2), run_all=retrieve),
    "TOP": Verb(top, _TRANS, range(2, 3), run_all=retrieve),
    "DELE": Verb(dele, _TRANS, range(1, 2), run_all=delete),
    "RSET": Verb(rset, _TRANS, range(1)),
    "NOOP": Verb(noop, _TRANS, range(1)),
    "QUIT": Verb(quit_, _AUTH + _TRANS, range(1)),
}
VERBS = {
    keyword: verb._replace(cell=cell("commands_total", keyword.lower(), "ok"))
    for keyword, verb in VERBS.items()
}
