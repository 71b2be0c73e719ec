"""Receive mail: drive one SMTP or LMTP session per connection (RFC 5321, RFC 2033).

Durability: 250 for a recipient means that ``Store.deliver`` has returned, so a crash cannot lose
the message.  If the 250 itself is lost, the sender tries again and the message is stored twice.
SMTP has a single reply for all recipients.  After a failure for one recipient, the sender repeats
the message for all, so recipients that already have the message are recorded and get no second
copy.
Limits: the limits of every connection (``connection``) and of a session (``smtp.session.Policy``);
``_SILENCE``, ``_MESSAGE`` and ``_SESSION``; 64 KiB of a message in memory, the rest in an unnamed
file.  Mail is neither relayed nor queued.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO, Protocol

from ..errors import NoSuchUser, RestanteError, TemporaryFailure
from ..maildrop import Store
from ..message import Envelope, separate
from ..passdb import Directory
from ..smtp.commands import VERBS
from ..smtp.grammar import Reply
from ..smtp.session import Policy, Session
from ..smtp.state import (
    BeginData,
    Close,
    Content,
    Deliver,
    Event,
    Recipient,
    Resolve,
    StartTLS,
    State,
)
from .admission import Slot
from .connection import DIRECT, BaseConnection, BaseService
from .proxy import Origin

_log = logging.getLogger("restante.intake")
_SILENCE = 300.0  # seconds; a server should wait at least 5 minutes (RFC 5321 §4.5.3.2.7)
_MESSAGE = 1800.0  # seconds from MAIL to the end of the data: 50 MiB at 30 kB/s
_SESSION = 3600.0  # seconds after which the session ends between two messages
_PIECE = 65_536  # octets
_IN_MEMORY = 65_536  # octets of one message in memory; thousands of connections may hold as many


class PartialDeliveries(Protocol):
    """Records which recipients have a message that its sender will send again.

    A message is identified by the digest of its reverse-path and octets.
    """

    async def recipients(self, message: bytes) -> Collection[str]:
        """Return the maildrops that have the message."""

    async def remember(self, message: bytes, maildrops: Collection[str]) -> None:
        """Record durably that these maildrops have the message."""

    async def forget(self, message: bytes, maildrops: Collection[str]) -> None:
        """Remove the record after a 250.  The same octets may arrive later as a new message."""


@dataclass(slots=True)
class Intake(BaseService):
    """The state that the connections of all intake listeners share."""

    store: Store
    directory: Directory
    hostname: str
    max_message: int
    """Maximum size of a message in octets, before our trace fields."""
    log: logging.Logger = field(default=_log, kw_only=True)
    partial: PartialDeliveries | None = field(default=None, kw_only=True)
    postmaster: Callable[[], Awaitable[str]] | None = field(default=None, kw_only=True)
    """Returns the maildrop for postmaster's mail if no user has this name (RFC 5321 §4.5.1)."""

    def lmtp(self) -> Callable[[str, Slot, Origin], IntakeConnection]:
        """Return a factory of LMTP connections, for ``Listener``."""
        policy = Policy(self.hostname, self.max_message, is_lmtp=True)
        return lambda address, slot, origin: IntakeConnection(self, policy, address, slot, origin)

    def smtp(self, domains: Collection[str]) -> Callable[[str, Slot, Origin], IntakeConnection]:
        """Return a factory of SMTP connections; recipients in ``domains`` are accepted."""
        local = frozenset(domain.casefold() for domain in domains)
        policy = Policy(self.hostname, self.max_message, domains=local)
        return lambda address, slot, origin: IntakeConnection(self, policy, address, slot, origin)

    async def resolve(self, recipient: str) -> str:
        """Return the maildrop of a recipient.

        Raises:
            NoSuchUser, TemporaryFailure, UnsafeArgument: the reply shows the error's text.
        """
        try:
            return await self.directory.maildrop_of(recipient)
        except NoSuchUser:
            is_postmaster = recipient.partition("@")[0].casefold() == "postmaster"
            if is_postmaster and self.postmaster is not None:
                return await self.postmaster()
            raise

    async def take(self, message: IO[bytes], maildrop: str, envelope: Envelope) -> int:
        """Store a message durably for one recipient, and return its size in octets."""
        head = envelope.trace_fields(self.hostname, datetime.now(UTC))
        entry = await self.store.deliver(maildrop, _pieces(head, message))
        return entry.size


async def _pieces(head: bytes, message: IO[bytes]) -> AsyncIterator[bytes]:
    message.seek(0)
    piece = message.read(_PIECE)
    skipped, inserted = separate(piece)
    yield head + inserted + piece[skipped:]
    while piece := message.read(_PIECE):
        yield piece


class IntakeConnection(BaseConnection[Event]):
    """One client that sends mail."""

    __slots__ = ("_digest", "_message", "_ready_at")

    _service: Intake
    _session: Session

    def __init__(
        self, service: Intake, policy: Policy, address: str, slot: Slot, origin: Origin = DIRECT
    ) -> None:
        super().__init__(service, address, slot, origin)
        self._proto = "lmtp" if policy.is_lmtp else "smtp"
        self._session = Session(VERBS, policy, may_start_tls=service.tls is not None)
        self._message: IO[bytes] | None = None  # being received or delivered
        self._digest = sha256()  # of the reverse-path and the message; SMTP only
        self._ready_at = self._began  # end of the last message

    # Events.

    def _open_session(self, ssl_object: ssl.SSLObject | None) -> bytes:
        return self._session.greeting().encode()

    def _respond(self, event: Event) -> bool:
        if self._session.state is State.READY:
            self._ready_at = self._last_command
        match event:
            case Reply():
                self._send(event)
            case BeginData(reply):
                self._drop_message()
                # Closed by _drop_message: a whole message is delivered from it first.
                self._message = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
                if not self._session.policy.is_lmtp:
                    path = self._session.reverse_path.encode("utf-8", "replace")
                    self._digest = sha256(path + b"\0")
                self._send(reply)
            case Content(octets):
                self._spool(octets)
            case Close(reason):
                self._end_session(reason)
            case StartTLS():
                self._transport.pause_reading()  # at once, because the TLS handshake follows
                return False
            case _:
                return False
        return True

    def _spool(self, octets: bytes) -> None:
        assert self._message is not None
        if not self._session.policy.is_lmtp:
            self._digest.update(octets)
        try:
            self._message.write(octets)
        except OSError as error:
            self._log_event("message not kept", logging.ERROR, reason=error.strerror)
            self._session.cannot_keep()

    async def _perform(self, event: Event) -> None:
        await self._enter_task()
        match event:
            case Resolve(address):
                await self._resolve(address)
            case Deliver():
                await self._deliver(event)
            case StartTLS(reply):
                await self._start_tls(reply.encode())

    def _secured(self, ssl_object: ssl.SSLObject) -> None:
        self._session.secured()

    async def _resolve(self, address: str) -> None:
        try:
            maildrop = await self._service.resolve(address)
        except RestanteError as error:
            self._send(self._session.refused(error))
        else:
            self._send(self._session.resolved(maildrop))
            if self._session.policy.is_lmtp:
                self._slot.protect()  # a mail server of this site must not be evicted

    async def _deliver(self, event: Deliver) -> None:
        if self._session.policy.is_lmtp:
            await self._deliver_by_lmtp(event)
        else:
            await self._deliver_by_smtp(event)

    async def _deliver_by_lmtp(self, event: Deliver) -> None:
        """Send each reply as soon as it is known (RFC 2033 §5)."""
        fates: dict[str, RestanteError | None] = self._spool_failures(event)
        for recipient in event.recipients:
            await self._store_once(recipient, event, fates)
            self._send_now(self._session.delivered(fates[recipient.maildrop]))
        self._drop_message()

    async def _deliver_by_smtp(self, event: Deliver) -> None:
        """Send a single reply when the deliveries that it reports are durable."""
        partial, message = self._service.partial, self._digest.digest()
        known = await partial.recipients(message) if partial is not None else ()
        fates = {**self._spool_failures(event), **dict.fromkeys(known)}
        for recipient in event.recipients:
            await self._store_once(recipient, event, fates)
        self._drop_message()
        stored = {each.maildrop for each in event.recipients if fates[each.maildrop] is None}
        is_whole = all(fates[each.maildrop] is None for each in event.recipients)
        if partial is not None and stored and not is_whole:
            await self._record_partial(partial.remember(message, stored))
        elif partial is not None and known and is_whole:
            await self._record_partial(partial.forget(message, stored))
        if stored:
            self._slot.protect()
        for recipient in event.recipients:
            self._send_now(self._session.delivered(fates[recipient.maildrop]))

    def _spool_failures(self, event: Deliver) -> dict[str, RestanteError | None]:
        """Return a failure for each recipient if the last octets cannot be spooled, else {}."""
        assert self._message is not None
        try:
            self._message.flush()
        except OSError as error:
            self._log_event("message not kept", logging.ERROR, reason=error.strerror)
            failure = TemporaryFailure("no room for the message")
            return dict.fromkeys((each.maildrop for each in event.recipients), failure)
        return {}

    async def _record_partial(self, writing: Awaitable[None]) -> None:
        try:
            await writing
        except RestanteError as error:  # the mail is stored; a repetition may store it twice
            self._log_event("partial delivery not noted", logging.ERROR, reason=str(error))

    async def _store_once(
        self, recipient: Recipient, event: Deliver, fates: dict[str, RestanteError | None]
    ) -> None:
        """Store a single copy for each maildrop, even if it belongs to several recipients."""
        if recipient.maildrop not in fates:
            envelope = self._envelope(event, recipient.address)
            fates[recipient.maildrop] = await self._store(recipient.maildrop, envelope)

    async def _store(self, maildrop: str, envelope: Envelope) -> RestanteError | None:
        assert self._message is not None
        try:
            octets = await self._service.take(self._message, maildrop, envelope)
        except RestanteError as error:
            failure = error
        except Exception:
            self._log_bug()
            failure = TemporaryFailure("local error, try again later")
        else:
            via = envelope.protocol.lower()
            self._log_event("delivered", via=via, user=maildrop, octets=octets)
            return None
        self._log_event("delivery refused", logging.WARNING, user=maildrop, reason=str(failure))
        return failure

    def _envelope(self, event: Deliver, recipient: str) -> Envelope:
        address = f" ([{self._address}])" if self._address else ""
        return Envelope(event.reverse_path, recipient, event.protocol, f"{event.hello}{address}")

    def _answer_bug(self, event: Event | None) -> None:
        if isinstance(event, Resolve):
            failure = TemporaryFailure("local error, try again later")
            self._send(self._session.refused(failure))
        else:
            self.abort("bug")  # the client would take another reply for that of its next command

    # Output.

    def _send(self, reply: Reply) -> None:
        self._output.write(reply.encode())

    def _send_now(self, reply: Reply | None) -> None:
        if reply is not None:
            self._send(reply)
            self._output.flush()

    # Deadlines and closing

    def _deadline(self) -> float:
        silent = self._last_command + _SILENCE
        if self._session.state in (State.MAIL, State.DATA):
            return min(silent, self._ready_at + _MESSAGE)
        return min(silent, self._began + _SESSION)

    def _expire(self) -> None:
        self._output.write(Reply(421, "4.4.2", "timeout, closing the connection").encode())
        self.close("timeout")

    def _is_interruptible(self) -> bool:
        """Return False during a delivery, because the sender may have received replies for it."""
        return self._message is None

    def _drop_message(self) -> None:
        message, self._message = self._message, None
        if message is not None:
            with suppress(OSError):
                message.close()  # flushing its buffer may fail on a full disk

    def _finish(self) -> None:
        if self._is_lost:
            self._service.discard(self)
            self._drop_message()
