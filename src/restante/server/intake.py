"""Receive mail over SMTP and LMTP (RFC 5321, RFC 2033): run a ``Session`` on each connection.

Mail is stored immediately; it is neither relayed nor queued.

Durability: 250 for a recipient means that ``Store.deliver`` has returned, so a crash cannot lose
the message.  If the 250 itself is lost, the sender tries again and the message is stored twice.
SMTP has a single reply for all recipients.  After a failure for one recipient, the sender sends
the message to all of them again, so recipients that already have the message are recorded and get
no second copy.
Limits: see ``connection`` and ``smtp.session.Policy``.  There are also timeouts for idle clients,
for each message and for the session.  A message of more than 64 KiB is spooled to an unnamed file.
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

from ..addons import offers
from ..errors import NoSuchUser, RestanteError, TemporaryFailure
from ..maildrop import Store
from ..message import Envelope, header_insertion
from ..passdb import Directory, ImmediateDirectory
from ..series import cell, observe
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
from . import store_errors
from .admission import Slot
from .connection import DIRECT, BaseConnection, BaseService
from .proxy import Origin

_log = logging.getLogger("restante.intake")
_IDLE_TIMEOUT = 300.0  # seconds; a server should wait at least 5 minutes (RFC 5321 §4.5.3.2.7)
_MESSAGE_TIMEOUT = 1800.0  # seconds from MAIL to the end of the data: 50 MiB at 30 kB/s
_SESSION_TIMEOUT = 3600.0  # seconds after which a session ends, but not during a message
_PIECE = 65_536  # octets of a spooled message that are read at a time
_MAX_IN_MEMORY = 65_536  # octets of a message in memory, for each of thousands of connections
# Metrics.
_RESULTS = ("stored", "refused", "deferred")
_DELIVERIES = {
    via: {result: cell("deliveries_total", via, result) for result in _RESULTS}
    for via in ("lmtp", "smtp")
}
_RECEIVED_BYTES = {via: cell("received_bytes_total", via) for via in _DELIVERIES}
_DELIVERY_SECONDS = {via: cell("delivery_seconds", via) for via in _DELIVERIES}
_WRITE_ERRORS = cell("store_errors_total", "write")


class PartialDeliveries(Protocol):
    """Records which maildrops already have a message that its sender will send again.

    ``message`` is the digest of the message's reverse-path and octets.
    """

    async def recipients(self, message: bytes) -> Collection[str]:
        """Return the maildrops that already have the message."""

    async def remember(self, message: bytes, maildrops: Collection[str]) -> None:
        """Record durably that these maildrops have the message."""

    async def forget(self, message: bytes, maildrops: Collection[str]) -> None:
        """Remove the record after a 250, because the same octets may arrive as a new message."""


@dataclass(slots=True)
class Intake(BaseService):
    """The state that all SMTP and LMTP connections share."""

    store: Store
    directory: Directory
    hostname: str
    max_message: int
    """Maximum size of a message in octets, without the trace fields that are added."""
    log: logging.Logger = field(default=_log, kw_only=True)
    partial: PartialDeliveries | None = field(default=None, kw_only=True)
    postmaster: Callable[[], Awaitable[str]] | None = field(default=None, kw_only=True)
    """Returns the maildrop for postmaster's mail; called if no user has this name (RFC 5321
    §4.5.1)."""

    def lmtp(self) -> Callable[[str, Slot, Origin], IntakeConnection]:
        """Return a factory for LMTP connections, for use by ``Listener``."""
        policy = Policy(self.hostname, self.max_message, is_lmtp=True)
        return lambda address, slot, origin: IntakeConnection(self, policy, address, slot, origin)

    def smtp(self, domains: Collection[str]) -> Callable[[str, Slot, Origin], IntakeConnection]:
        """Return a factory for SMTP connections; recipients in ``domains`` are accepted."""
        local = frozenset(domain.casefold() for domain in domains)
        policy = Policy(self.hostname, self.max_message, domains=local)
        return lambda address, slot, origin: IntakeConnection(self, policy, address, slot, origin)

    async def resolve(self, recipient: str) -> str:
        """Return the maildrop of a recipient.

        Raises:
            NoSuchUser, TemporaryFailure, UnsafeArgument: the error's text is sent in the reply.
        """
        try:
            return await self.directory.maildrop_of(recipient)
        except NoSuchUser:
            is_postmaster = recipient.partition("@")[0].casefold() == "postmaster"
            if is_postmaster and self.postmaster is not None:
                return await self.postmaster()
            raise

    async def store_message(self, message: IO[bytes], maildrop: str, envelope: Envelope) -> int:
        """Store a message durably for one recipient, and return its size in octets."""
        trace_fields = envelope.trace_fields(self.hostname, datetime.now(UTC))
        entry = await self.store.deliver(maildrop, _pieces(trace_fields, message))
        return entry.size


async def _pieces(trace_fields: bytes, message: IO[bytes]) -> AsyncIterator[bytes]:
    """Yield the trace fields and the message in pieces."""
    message.seek(0)
    piece = message.read(_PIECE)
    skipped, inserted = header_insertion(piece)
    yield trace_fields + inserted + piece[skipped:]
    while piece := message.read(_PIECE):
        yield piece


class IntakeConnection(BaseConnection[Event]):
    """The connection of one client that sends mail over SMTP or LMTP."""

    __slots__ = ("_digest", "_message", "_ready_at")

    _service: Intake
    _session: Session

    def __init__(
        self, service: Intake, policy: Policy, address: str, slot: Slot, origin: Origin = DIRECT
    ) -> None:
        super().__init__(service, address, slot, origin)
        self._proto = "lmtp" if policy.is_lmtp else "smtp"
        self._session = Session(VERBS, policy, may_start_tls=service.tls is not None)
        self._message: IO[bytes] | None = None  # the message that is being received or delivered
        self._digest = sha256()  # of the reverse-path and the message; SMTP only
        self._ready_at = self._began  # time of the last command outside a mail transaction

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
                # _drop_message closes the file, after delivery if the message is complete.
                self._message = SpooledTemporaryFile(_MAX_IN_MEMORY)  # noqa: SIM115
                if not self._session.policy.is_lmtp:
                    path = self._session.reverse_path.encode("utf-8", "replace")
                    self._digest = sha256(path + b"\0")
                self._send(reply)
            case Content(octets):
                self._spool(octets)
            case Close(reason):
                self._end_session(reason)
            case Resolve(address):
                return self._resolve_now(address)
            case StartTLS():
                self._transport.pause_reading()  # the next octets belong to the TLS handshake
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
            self._log_spool_failure(error)
            self._session.storing_failed()

    async def _perform(self, event: Event) -> None:
        await self._enter_task()
        match event:
            case Resolve(address):
                await self._resolve(address)
            case Deliver():
                await self._deliver(event)
            case StartTLS(reply):
                await self._start_tls(reply.encode())

    def _on_tls_started(self, ssl_object: ssl.SSLObject) -> None:
        self._session.secured()

    def _resolve_now(self, address: str) -> bool:
        """Accept a recipient who can be found without waiting; otherwise return False."""
        directory = self._service.directory
        if not offers(directory, ImmediateDirectory):
            return False
        maildrop = directory.maildrop_now(address)
        if maildrop is None:
            return False
        self._accept(maildrop)
        return True

    async def _resolve(self, address: str) -> None:
        try:
            maildrop = await self._service.resolve(address)
        except RestanteError as error:
            self._send(self._session.refused(error))
        else:
            self._accept(maildrop)

    def _accept(self, maildrop: str) -> None:
        self._send(self._session.resolved(maildrop))
        if self._session.policy.is_lmtp:
            self._slot.protect()  # this site's mail server must not be evicted

    async def _deliver(self, event: Deliver) -> None:
        if self._session.policy.is_lmtp:
            await self._deliver_by_lmtp(event)
        else:
            await self._deliver_by_smtp(event)

    async def _deliver_by_lmtp(self, event: Deliver) -> None:
        """Deliver a message, and send each recipient's reply after its delivery (RFC 2033 §5)."""
        errors: dict[str, RestanteError | None] = self._spool_failures(event)
        for recipient in event.recipients:
            await self._store_once(recipient, event, errors)
            self._send_now(self._session.delivered(errors[recipient.maildrop]))
        self._drop_message()

    async def _deliver_by_smtp(self, event: Deliver) -> None:
        """Deliver a message to all recipients, then send the single reply."""
        partial, message = self._service.partial, self._digest.digest()
        stored_before = await partial.recipients(message) if partial is not None else ()
        errors = {**self._spool_failures(event), **dict.fromkeys(stored_before)}
        for recipient in event.recipients:
            await self._store_once(recipient, event, errors)
        self._drop_message()
        stored = {each.maildrop for each in event.recipients if errors[each.maildrop] is None}
        is_complete = all(errors[each.maildrop] is None for each in event.recipients)
        if partial is not None and stored and not is_complete:
            await self._record_partial(partial.remember(message, stored))
        elif partial is not None and stored_before and is_complete:
            await self._record_partial(partial.forget(message, stored))
        if stored:
            self._slot.protect()
        for recipient in event.recipients:
            self._send_now(self._session.delivered(errors[recipient.maildrop]))

    def _spool_failures(self, event: Deliver) -> dict[str, RestanteError | None]:
        """Return an error for each maildrop if the last octets cannot be spooled, otherwise {}."""
        assert self._message is not None
        try:
            self._message.flush()
        except OSError as error:
            self._log_spool_failure(error)
            failure = TemporaryFailure("no room for the message")
            return dict.fromkeys((each.maildrop for each in event.recipients), failure)
        return {}

    def _log_spool_failure(self, error: OSError) -> None:
        self._service.counts[_WRITE_ERRORS] += 1
        self._log_event("message not kept", logging.ERROR, reason=error.strerror)

    async def _record_partial(self, writing: Awaitable[None]) -> None:
        try:
            await writing
        except RestanteError as error:  # at worst, the mail is stored a second time
            self._log_event("partial delivery not noted", logging.ERROR, reason=str(error))

    async def _store_once(
        self, recipient: Recipient, event: Deliver, errors: dict[str, RestanteError | None]
    ) -> None:
        """Store the message, unless ``errors`` already has a result for the recipient's maildrop.

        Several recipients may have the same maildrop, which gets a single copy.  A value of None in
        ``errors`` means that the maildrop has the message.
        """
        if recipient.maildrop not in errors:
            envelope = self._envelope(event, recipient.address)
            began = self._loop.time()
            error = errors[recipient.maildrop] = await self._store(recipient.maildrop, envelope)
            self._count_delivery(error, self._loop.time() - began)

    def _count_delivery(self, error: RestanteError | None, seconds: float) -> None:
        counts, via = self._service.counts, self._proto
        result = "stored" if error is None else "deferred" if error.retry else "refused"
        counts[_DELIVERIES[via][result]] += 1
        if error is not None:
            store_errors.count(counts, error, "write")
        observe(counts, _DELIVERY_SECONDS[via], seconds)

    async def _store(self, maildrop: str, envelope: Envelope) -> RestanteError | None:
        assert self._message is not None
        try:
            octets = await self._service.store_message(self._message, maildrop, envelope)
        except RestanteError as error:
            failure = error
        except Exception:
            self._log_bug()
            failure = TemporaryFailure("local error, try again later")
        else:
            self._service.counts[_RECEIVED_BYTES[self._proto]] += octets
            via = envelope.protocol.lower()
            self._log_event("delivered", via=via, user=maildrop, octets=octets)
            return None
        self._log_event("delivery refused", logging.WARNING, user=maildrop, reason=str(failure))
        return failure

    def _envelope(self, event: Deliver, recipient: str) -> Envelope:
        address = f" ([{self._address}])" if self._address else ""
        return Envelope(event.reverse_path, recipient, event.protocol, f"{event.hello}{address}")

    def _answer_internal_error(self, event: Event | None) -> None:
        if isinstance(event, Resolve):
            failure = TemporaryFailure("local error, try again later")
            self._send(self._session.refused(failure))
        else:
            self.abort("bug")  # a second reply would be mistaken for the next command's reply

    # Output.

    def _send(self, reply: Reply) -> None:
        self._output.write(reply.encode())

    def _send_now(self, reply: Reply | None) -> None:
        if reply is not None:
            self._send(reply)
            self._output.flush()

    # Deadlines and closing.

    def _deadline(self) -> float:
        idle_deadline = self._last_command + _IDLE_TIMEOUT
        if self._session.state in (State.MAIL, State.DATA):
            return min(idle_deadline, self._ready_at + _MESSAGE_TIMEOUT)
        return min(idle_deadline, self._began + _SESSION_TIMEOUT)

    def _expire(self) -> None:
        self._output.write(Reply(421, "4.4.2", "timeout, closing the connection").encode())
        self.close("timeout")

    def _is_interruptible(self) -> bool:
        """Return False during a delivery, because replies for it may have been sent."""
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
