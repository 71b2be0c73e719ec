"""A driver for ``Session`` that answers its actions immediately, from memory."""

from __future__ import annotations

from restante.errors import AuthenticationFailed
from restante.maildrop import Entry
from restante.message import Top
from restante.pop3.commands import VERBS
from restante.pop3.session import Policy, Session
from restante.pop3.state import Close, Event, Login, Retrieve, StartTLS, Update, Xclient
from restante.sasl.exchange import Channel, Lookup
from restante.wire import Stuffer

from ..support import OneUser
from ..transcript import Transcript


class Core:
    """A session over a list of messages, from which UPDATE removes."""

    def __init__(
        self,
        messages: list[bytes],
        *,
        tls: bool = True,
        may_start_tls: bool = True,
        password: str = "tan staaf",
        policy: Policy | None = None,
        channel: Channel | None = None,
        allow_plaintext: bool = False,
        time_stamp: str = "",
    ) -> None:
        self.messages = messages
        self.said = bytearray()
        self.is_closed = self.is_open = False
        self.is_handshaking = False
        self._passdb = OneUser(password)
        self._policy = policy or Policy()
        self._listing = [Entry(f"u{at}", len(text)) for at, text in enumerate(messages, 1)]
        self.session = Session(
            VERBS,
            self._policy,
            is_secure=tls,
            may_start_tls=may_start_tls,
            allow_plaintext=allow_plaintext,
            channel=channel,
            time_stamp=time_stamp,
        )

    def send(self, octets: bytes) -> bytes:
        """Feed octets to the session; returns its output."""
        before = len(self.said)
        if not self.is_closed:
            self.session.receive(octets)
        while not self.is_handshaking and (event := self.session.next()) is not None:
            self._do(event)
        return bytes(self.said[before:])

    def _do(self, event: Event) -> None:
        session = self.session
        match event:
            case Close():
                self.is_closed = True
            case Login(shown):
                try:
                    account = self._passdb.open(shown)
                except AuthenticationFailed as error:
                    self._do(session.failed(error))
                else:
                    terms = self._policy.terms_of(account)
                    self._do(session.opened(self._listing, terms=terms))
                    self.is_open = True
            case Lookup():
                self._do(session.looked_up(self._passdb.keys(event.identity, event.digest)))
            case Retrieve():
                self._retrieve(event)
            case Update(entries):
                assert self.is_open, "UPDATE without a maildrop"
                gone = {self._listing.index(entry) for entry in entries}
                self.messages = [m for at, m in enumerate(self.messages) if at not in gone]
                self._say(session.updated().head())
            case Xclient():
                self._do(session.client_changed(event.tls, allow_plaintext=False))
            case StartTLS(response):
                self._say(response.head())
                self.is_handshaking = True
            case _:
                self._say(b"".join(event.encode()))

    def _retrieve(self, event: Retrieve) -> None:
        """Send some of the messages; the session asks for the others again."""
        count = 1 + len(self.said) % event.commands
        for entry, head in zip(event.entries[:count], event.heads, strict=False):
            text = self.messages[self._listing.index(entry)]
            stuffer = Stuffer()
            text = text if event.lines is None else Top(event.lines).feed(text)
            self._say(head + stuffer.feed(text) + stuffer.finish())
        self.session.retrieved(count)

    def shake_hands(self) -> None:
        """Report a successful TLS handshake to the session."""
        self.is_handshaking = False
        self.session.secured()

    def _say(self, octets: bytes) -> None:
        self.said += octets


def transcript_core(transcript: Transcript) -> Core:
    """Return the session for a transcript."""
    return Core(
        list(transcript.messages),
        tls=transcript.tls,
        password=transcript.password,
        policy=transcript.policy,
        time_stamp=transcript.time_stamp,
    )
