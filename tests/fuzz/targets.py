"""Promises that hold for any octets: each target takes an input and checks one promise.

A target that raises has found a broken promise.  Errors that a promise allows are caught here.
The same targets run on the kept corpus in every test run, on inputs that hypothesis makes, and
with a coverage-guided fuzzer by ``./dev fuzz``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from restante import config
from restante.auth import schemes
from restante.collect.foreign.fetchmail import fetchmail
from restante.collect.foreign.getmail import getmail
from restante.collect.foreign.mpop import mpop
from restante.errors import (
    AuthenticationFailed,
    BadCommand,
    ConfigurationError,
    ConnectionLost,
    HostileInput,
    NeedsUTF8,
    NulOctet,
    PermanentFailure,
    ProtocolBroken,
    RestanteError,
)
from restante.maildrop import Entry, SessionRecord
from restante.message import LineEndings, Survey, Top
from restante.passdb import Proof, ScramSecrets
from restante.pop3.dialogue import Dialogue, Procedure
from restante.pop3.grammar import Command
from restante.pop3.session import Policy
from restante.sasl.exchange import Channel, ClientLogin, Lookup
from restante.sasl.mechanisms import MECHANISMS, client_exchange
from restante.server import proxy
from restante.smtp.content import Incoming
from restante.store import foreign, journal, mbox, names
from restante.surrogate import Downgrade
from restante.wire import CRLF, LineBuffer, Stuffer, Unstuffer

from ..pop3.core import Core
from ..smtp.test_session import LMTP, SMTP
from ..smtp.test_session import Driver as IntakeDriver
from ..support import OneUser
from ..test_mime import FIELDS, read_all

MESSAGES = [b"Subject: a\r\n\r\n.dot\r\n", b"", b"no line end", b"x" * 300 + b"\r\n"]
UNIQUE_ID = re.compile("[!-~]{1,70}")


def in_pieces(octets: bytes) -> tuple[bytes, list[bytes]]:
    """Split the input; its first octet is the length of the pieces."""
    size, octets = octets[0] % 16 + 1 if octets else 1, octets[1:]
    return octets, [octets[at : at + size] for at in range(0, len(octets), size)]


def command(octets: bytes) -> None:
    """Lines do not depend on the pieces; invalid commands raise BadCommand."""

    def lines(pieces: list[bytes]) -> Iterator[object]:
        buffer = LineBuffer()
        for piece in pieces:
            buffer.feed(piece)
            while True:
                try:
                    line = buffer.next_line()
                except (HostileInput, NulOctet) as error:  # these end the session
                    yield str(error)
                    return
                except BadCommand as error:
                    yield str(error)
                    continue
                if line is None:
                    break
                with suppress(BadCommand):
                    yield Command.parse(line)

    whole, pieces = in_pieces(octets)
    assert list(lines([whole])) == list(lines(pieces))


def session(octets: bytes) -> None:
    """Output does not depend on the pieces of the input, and only QUIT removes messages."""

    def served(pieces: list[bytes]) -> Core:
        policy = Policy(mechanisms=("PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"))
        core = Core(list(MESSAGES), policy=policy)
        for piece in pieces:
            core.send(piece)
        return core

    whole, pieces = in_pieces(octets)
    one, other = served([whole]), served(pieces)
    assert one.said == other.said
    assert one.messages == other.messages
    assert one.messages == MESSAGES or b"+OK goodbye\r\n" in one.said
    for line in one.said.split(CRLF):
        assert len(line) <= 510 or set(line) <= set(b"x.")


def login(octets: bytes) -> None:
    """No octets but the password open the maildrop."""
    core = Core(list(MESSAGES), password="4v8Fq0ZkYw")
    assert b"messages (" not in core.send(b"USER mrose\r\n" + octets + CRLF)


def multi_line(octets: bytes) -> None:
    """Byte-stuffed text is read back exactly, and octets after it are not consumed."""
    _, pieces = in_pieces(octets)
    ends, stuffer, unstuffer = LineEndings(), Stuffer(), Unstuffer()
    text = b"".join(map(ends.feed, pieces)) + ends.finish()
    sent = stuffer.feed(text) + stuffer.finish() + b"+OK"
    step = len(pieces[0]) if pieces else 1
    read, at = b"", 0
    while not unstuffer.is_finished:
        read += unstuffer.feed(sent[at : at + step])
        at += step
    assert read == text
    assert unstuffer.rest + sent[at:] == b"+OK"
    assert ends.size == len(text)


def unstuffing(octets: bytes) -> None:
    """A multi-line response has the same content and end in any pieces."""

    def read(pieces: list[bytes]) -> tuple[bytes, bytes | None]:
        unstuffer, content = Unstuffer(), b""
        for at, piece in enumerate(pieces):
            content += unstuffer.feed(piece)
            if unstuffer.is_finished:
                return content, unstuffer.rest + b"".join(pieces[at + 1 :])
        return content, None

    whole, pieces = in_pieces(octets)
    (content, rest), (other, other_rest) = read([whole]), read(pieces)
    assert rest == other_rest
    assert content == other or (rest is None and content.startswith(other))
    assert (rest is None) == (CRLF + b".\r\n" not in CRLF + whole)


def message(octets: bytes) -> None:
    """The announced size is the size sent; TOP sends its first lines."""
    whole, pieces = in_pieces(octets)
    ends, survey, top = LineEndings(), Survey(), Top(len(whole) % 5)
    text = b"".join(map(ends.feed, pieces)) + ends.finish()
    for piece in pieces:
        survey.feed(piece)
    survey.finish()
    assert survey.size == ends.size == len(text)
    assert survey.has_crlf == (text == whole)
    shown = b"".join(top.feed(text[at : at + 3]) for at in range(0, len(text), 3))
    assert text.startswith(shown)


def client(octets: bytes) -> None:
    """For any answers of a server, a client succeeds or raises one of our errors."""
    _, pieces = in_pieces(octets)
    heard = iter(pieces)

    def run(procedure: Procedure[Any]) -> Any:
        wanted = next(procedure)
        while True:
            try:
                if wanted is not None:
                    assert wanted.endswith(CRLF)
                    wanted = procedure.send(b"")
                elif piece := next(heard, b""):
                    wanted = procedure.send(piece)
                else:
                    wanted = procedure.throw(ConnectionLost("the end"))
            except StopIteration as end:
                return end.value

    dialogue = Dialogue()
    with suppress(RestanteError):
        run(dialogue.greeting())
        run(dialogue.request_capabilities())
        run(dialogue.log_in(ClientLogin("mrose", "tan staaf")))
        run(dialogue.stat())
        listing = run(dialogue.listing())
        retrieval = run(dialogue.request_messages(listing))
        while (answer := run(dialogue.next_message(retrieval))) is not None:
            while run(dialogue.piece(answer)):
                pass
        run(dialogue.delete(listing))
        run(dialogue.quit())


def _exchange(name: str, octets: bytes, user: OneUser) -> object | None:
    """Run the server's half of a mechanism with messages separated by LF."""
    channel = Channel(b"end point", ("mrose@example.org",))
    exchange, step = MECHANISMS[name].server(channel), b""
    challenge: bytes | Lookup = next(exchange)
    for message in octets.split(b"\n"):
        try:
            challenge = exchange.send(message.replace(b"{}", step))
            while isinstance(challenge, Lookup):
                challenge.secrets = user.keys(challenge.identity, challenge.digest)
                assert isinstance(challenge.secrets, ScramSecrets)
                challenge = exchange.send(b"")
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except (BadCommand, AuthenticationFailed):
            return None
        step = challenge.partition(b",")[0].removeprefix(b"r=")
    return None


def plain(octets: bytes) -> None:
    """A PLAIN message gives credentials or BadCommand."""
    _exchange("PLAIN", octets, USER)


def oauthbearer(octets: bytes) -> None:
    """An OAUTHBEARER message gives a token or BadCommand."""
    _exchange("OAUTHBEARER", octets, USER)


def xoauth2(octets: bytes) -> None:
    """An XOAUTH2 message gives a token or BadCommand."""
    _exchange("XOAUTH2", octets, USER)


def external(octets: bytes) -> None:
    """An EXTERNAL message gives an identity of the certificate, or is refused."""
    _exchange("EXTERNAL", octets, USER)


def scram(octets: bytes) -> None:
    """A client without the password cannot log in."""
    for name in ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"):
        assert not isinstance(_exchange(name, octets, USER), Proof)


def scram_client(octets: bytes) -> None:
    """A server without the password cannot complete the exchange."""
    exchange = client_exchange("SCRAM-SHA-256", ClientLogin("mrose", "tan staaf"))
    nonce = next(exchange).response.rpartition(b"r=")[2]
    last = False
    for challenge in octets.split(b"\n"):
        if re.search(rb"i=\d{5}", challenge):
            return  # valid, but slow
        try:
            last = exchange.send(challenge.replace(b"{}", nonce)).may_be_last
        except (ProtocolBroken, StopIteration):
            break
    assert not last


def maildir_name(octets: bytes) -> None:
    """Any file names give distinct, permanent unique-ids that RFC 1939 §7 allows."""
    found = [
        names.File("new" if len(name) % 2 else "cur", name, len(name) % 3)
        for name in octets.decode("utf-8", "surrogateescape").split("\0")
    ]
    by_id = names.identify(found)
    assert all(map(UNIQUE_ID.fullmatch, by_id))
    assert {file.identity for file in by_id.values()} == {file.identity for file in found}
    settled = names.contested(by_id, {})
    assert {k: v.identity for k, v in names.identify(reversed(found)).items()} == {
        k: v.identity for k, v in by_id.items()
    }
    assert names.unpack(names.pack(settled)) == settled
    for file in found:
        assert all((names.field(letter, file.name) or 0) >= 0 for letter in "SWD")
        names.size_fields(file.name)


def adopted_ids(octets: bytes) -> None:
    """A damaged file of adopted unique-ids gives fewer of them, and no invalid ones."""
    assert all(map(UNIQUE_ID.fullmatch, names.unpack(octets).values()))


def foreign_lists(octets: bytes) -> None:
    """Files of other servers are parsed, or refused with an explanation."""
    readers: tuple[Callable[[bytes], object], ...] = (
        foreign.dovecot,
        foreign.courier,
        foreign.unique_id_list,
        lambda text: mbox.read(BytesIO(text)),
    )
    for read in readers:
        with suppress(PermanentFailure):
            read(octets)


def configuration(octets: bytes) -> None:
    """A configuration is valid, or its mistakes are reported."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "restante.toml"
        file.write_bytes(octets)
        with suppress(ConfigurationError):
            config.load(file, environment={"HOME": folder})


def data(octets: bytes) -> None:
    """A message with a bare CR or LF is refused in any pieces (SMTP smuggling)."""
    whole, _ = in_pieces(octets)
    stuffer = Stuffer()
    sent = stuffer.feed(whole) + stuffer.finish()
    content = whole if whole.endswith(CRLF) or not whole else whole + CRLF
    incoming = Incoming(10**6, refuses_bare=True)
    for piece in in_pieces((octets[:1] or b"\0") + sent)[1]:
        incoming.feed(piece)
    is_bare = re.search(rb"(?<!\r)\n|\r(?!\n)", content) is not None
    assert incoming.is_finished
    assert incoming.octets == len(content)
    if incoming.failure is None:
        assert not is_bare
    else:
        assert is_bare or content.lower().count(b"received") > 50


def intake(octets: bytes) -> None:
    """Each command of SMTP and LMTP is answered, and no octets raise an exception."""
    for policy in (SMTP, LMTP):
        driver = IntakeDriver(policy)
        for piece in in_pieces(octets)[1]:
            driver.feed(piece)
        for line in driver.said:
            assert line.isascii()
            assert len(line) <= 510  # RFC 5321 §4.5.3.1.5


def entry(octets: bytes) -> None:
    """A message has one number, which RETR accepts in one spelling only (RFC 1939 §4)."""
    core = Core(list(MESSAGES))
    core.session.opened([Entry(f"u{at}", len(text)) for at, text in enumerate(MESSAGES, 1)])
    argument = octets.replace(b"\n", b"")
    said = core.send(b"LIST " + argument + CRLF)
    if said.startswith(b"+OK"):
        assert said == b"+OK %s %d\r\n" % (argument, len(MESSAGES[int(argument) - 1]))


def proxy_header(octets: bytes) -> None:
    """A PROXY header is parsed alike in any pieces, and octets after it are not consumed."""

    def parsed(text: bytes) -> tuple[proxy.Origin, int] | str | None:
        try:
            return proxy.parse(text)
        except HostileInput as error:
            return str(error)

    found = parsed(octets)
    if isinstance(found, tuple):
        origin, length = found
        assert length <= len(octets)
        assert parsed(octets[:length]) == parsed(octets[:length] + b"more") == found
        assert all(parsed(octets[:cut]) is None for cut in range(length))
        assert not origin.address or ip_address(origin.address)
    elif found is None:
        assert len(octets) < 16 + proxy.MAX_V2


def downgraded(octets: bytes) -> None:
    """A surrogate is ASCII and has the size of its original, in any pieces."""

    def fed(pieces: list[bytes]) -> bytes | None:
        downgrade = Downgrade()
        try:
            return b"".join(map(downgrade.feed, pieces)) + downgrade.finish()
        except NeedsUTF8:
            return None

    whole, pieces = in_pieces(octets)
    found = fed([whole])
    assert fed(pieces) == found
    assert found is None or len(found) == len(whole)
    header = whole[: whole.find(b"\r\n\r\n") + 2]
    if found is not None and header and b"\r\n\r\n" in whole and not whole.startswith(b"\r\n"):
        with suppress(UnicodeDecodeError):
            assert not header.decode() or found[: len(header)].isascii()


def malformed_mail(octets: bytes) -> None:
    """Any octets can be parsed as a message, and all parts can be read."""
    read_all(octets, "to")


def header_field(octets: bytes) -> None:
    """Any value can be read, in the field that the first octet chooses."""
    field = FIELDS[octets[0] % len(FIELDS)] if octets else "to"
    value = octets[1:].replace(b"\n", b"\n ")
    read_all(field.encode() + b": " + value + b"\r\n\r\nbody\r\n", field)


def stored_hash(octets: bytes) -> None:
    """An invalid hash matches no password, and costs nothing."""
    text = octets.decode("utf-8", "surrogateescape")
    if re.search(r"\d{4}|\$\d\d\$|SCRYPT|PLAIN|CLEAR", text, re.ASCII | re.IGNORECASE):
        return  # valid but slow costs; plaintext passwords
    assert not schemes.matches("a password", text)
    schemes.is_known(text)


def journal_line(octets: bytes) -> None:
    """Any line of the journal is read or skipped."""
    good = journal._line(SESSION)
    at = int.from_bytes(octets[:1], "big") % len(good)
    harmed = good[:at] + octets[1:] + good[at + len(octets[1:]) :]
    for line in (octets, harmed.rstrip(b"\n")):
        assert isinstance(journal._parse(line), SessionRecord | None)


def foreign_accounts(octets: bytes) -> None:
    """Another collector's configuration is parsed, or refused with an explanation."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rc"
        file.write_bytes(octets)
        for read in (fetchmail, getmail, mpop):
            with suppress(RestanteError):
                read(file, file)


USER = OneUser("tan staaf")
SESSION = SessionRecord(
    began_at=1.5,
    ended_at=2.5,
    address="192.0.2.7",
    tls="1.3",
    credential="phone",
    retrieved=(Entry("u1", 5),),
    removed=(Entry("u1", 5),),
    end="quit",
)
Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    "command": command,
    "session": session,
    "login": login,
    "entry": entry,
    "multi_line": multi_line,
    "unstuffing": unstuffing,
    "message": message,
    "client": client,
    "plain": plain,
    "oauthbearer": oauthbearer,
    "xoauth2": xoauth2,
    "external": external,
    "scram": scram,
    "scram_client": scram_client,
    "maildir_name": maildir_name,
    "adopted_ids": adopted_ids,
    "foreign_lists": foreign_lists,
    "configuration": configuration,
    "data": data,
    "intake": intake,
    "proxy_header": proxy_header,
    "downgraded": downgraded,
    "malformed_mail": malformed_mail,
    "header_field": header_field,
    "stored_hash": stored_hash,
    "journal_line": journal_line,
    "foreign_accounts": foreign_accounts,
}
