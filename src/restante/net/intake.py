"""Mail in: LMTP (RFC 2033), and SMTP (RFC 5321) for the local domains of small sites.

The commands are aiosmtpd's; DATA is ours, because a message must reach the disk in bounded memory
and its end must be CRLF.CRLF and nothing else.  The mission is receiving: no relaying, no queue.

Durability: 250 for a recipient means that ``Store.deliver`` has returned, so a crash cannot lose
the message.  If the 250 itself is lost, the sender tries again and the message is there twice.
Security: a message with a bare LF or CR is refused (SMTP smuggling, CVE-2023-51764): what other
software takes for the end of a message, ours must not store either.  No STARTTLS and no AUTH here:
LMTP is spoken on one machine, and aiosmtpd's upgrade keeps octets from before TLS in its reader.
Limits: ``max_message`` octets, 100 recipients, 300 s of silence, 4 KiB of a command line.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP

from ..errors import (
    LargerThanQuota,
    MessageRefused,
    MessageTooLarge,
    NoSuchUser,
    QuotaExceeded,
    RestanteError,
    TemporaryFailure,
    UnsafeArgument,
)
from ..maildrop import Store
from ..message import Envelope
from ..passdb import Directory
from ..wire import Unstuffer

_log = logging.getLogger("restante.intake")
_SILENCE = 300.0  # seconds (RFC 5321 §4.5.3.2)
_RECIPIENTS = 100  # messages to more come in parts (RFC 5321 §4.5.3.1.8)
_HOPS = 100  # Received fields; more are a loop (RFC 5321 §6.3)
_PIECE = 65_536  # octets
_IN_MEMORY = 2**20  # octets of one message; a larger one waits in an unnamed file
_COMMAND = 4096  # octets that are buffered while a command has no end
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_STATUS = {  # enhanced status codes of replies that aiosmtpd gives without one (RFC 2034)
    "500": "5.5.2",
    "501": "5.5.4",
    "502": "5.5.1",
    "503": "5.5.1",
    "504": "5.5.4",
    "552": "5.3.4",
    "555": "5.5.4",
}


@dataclass(frozen=True, slots=True)
class Intake:
    """What all connections share."""

    store: Store
    directory: Directory
    hostname: str
    max_message: int
    """Octets, before our trace fields."""

    def lmtp(self) -> Callable[[], asyncio.Protocol]:
        """Makes the protocol for one LMTP connection; wants a running event loop."""
        return lambda: _Lmtp(self, None)

    def smtp(self, domains: Collection[str]) -> Callable[[], asyncio.Protocol]:
        """The same for SMTP; ``domains`` are those whose recipients are taken."""
        local = frozenset(domain.casefold() for domain in domains)
        return lambda: _Smtp(self, local)

    async def resolve(self, recipient: str) -> str:
        """The maildrop of a recipient.

        Raises:
            NoSuchUser, TemporaryFailure, UnsafeArgument: as a reply can tell it.
        """
        if not recipient.isprintable():
            raise UnsafeArgument("control character in the recipient")
        return await self.directory.maildrop_of(recipient)

    async def take(self, message: IO[bytes], user: str, envelope: Envelope) -> None:
        """Store one message for one recipient; durable on return."""
        head = envelope.trace_fields(self.hostname, datetime.now(UTC))
        entry = await self.store.deliver(user, _pieces(head, message))
        fields = {"via": envelope.protocol.lower(), "user": user, "octets": entry.size}
        _log.info("delivered", extra={"fields": fields})


async def _pieces(head: bytes, message: IO[bytes]) -> AsyncIterator[bytes]:
    message.seek(0)
    yield head
    while piece := message.read(_PIECE):
        yield piece


class MessageCheck:
    """Looks at a message while it comes in."""

    def __init__(self, max_message: int) -> None:
        self.octets = 0
        self._most = max_message
        self._cr = b""
        self._head = b""  # until the blank line, as far as it is looked at
        self._in_head = True
        self._has_bare = False

    def feed(self, octets: bytes) -> bool:
        """Whether these octets are worth keeping."""
        self.octets += len(octets)
        text = self._cr + octets
        self._cr = b"\r" if text.endswith(b"\r") else b""  # judged with what follows it
        self._has_bare |= _BARE.search(text.removesuffix(b"\r")) is not None
        if self._in_head and len(self._head) < _IN_MEMORY:
            self._head += octets
            self._in_head = b"\r\n\r\n" not in self._head
        return self.octets <= self._most and not self._has_bare

    def finish(self) -> None:
        """
        Raises:
            MessageRefused: with the reply's enhanced status code in front.
        """
        if self.octets > self._most:
            raise MessageTooLarge(self._most)
        if self._has_bare or self._cr:
            raise MessageRefused("5.6.0 message has a bare CR or LF")
        head = self._head.partition(b"\r\n\r\n")[0]
        if len(_RECEIVED.findall(head)) > _HOPS:
            raise MessageRefused("5.4.6 message goes round in circles")


class _Session(SMTP):  # type: ignore[misc]  # aiosmtpd tells no types
    """What LMTP and SMTP have in common."""

    line_length_limit = _COMMAND

    def __init__(self, intake: Intake, domains: Collection[str] | None) -> None:
        super().__init__(
            _Hooks(intake, domains),
            data_size_limit=intake.max_message,
            enable_SMTPUTF8=True,
            hostname=intake.hostname,
            ident="ready",
            timeout=_SILENCE,
            loop=asyncio.get_running_loop(),
        )
        self.command_size_limits: defaultdict[str, int] = defaultdict(
            lambda: 1024
        )  # aiosmtpd's is shared by all
        self.intake = intake
        for unwanted in ("AUTH", "STARTTLS", "EXPN"):
            self._smtp_methods.pop(unwanted, None)

    def _set_post_data_state(self) -> None:
        super()._set_post_data_state()
        self.users: list[str] = []  # maildrops, one for each accepted recipient

    async def push(self, status: str | bytes) -> None:
        """Every reply but greetings and continuations has an enhanced status code (RFC 2034)."""
        if isinstance(status, str) and re.match(r"[245]\d\d (?!\d\.\d+\.\d+ )", status):
            code = status[:3]
            if code not in ("220", "250") or status.startswith(("250 OK", "250 Syntax")):
                status = f"{code} {_STATUS.get(code, f'{code[0]}.0.0')} {status[4:]}"
        await super().push(status)

    async def smtp_DATA(self, arg: str | None) -> None:
        if await self.check_helo_needed():
            return
        if not self.users:
            await self.push("503 5.5.1 no valid recipients")
            return
        if arg:
            await self.push("501 5.5.4 DATA takes no arguments")
            return
        await self.push("354 end data with <CR><LF>.<CR><LF>")
        message = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  # closing it may fail
        try:
            await self._take_data(message)
        except BaseException:
            self.transport.abort()  # one more reply would be taken for that of the next command
            raise
        finally:
            with suppress(OSError):
                message.close()  # what it buffers may find no room
        self._set_post_data_state()

    async def _take_data(self, message: IO[bytes]) -> None:
        check = MessageCheck(self.intake.max_message)
        try:
            await self._receive(message, check)
            check.finish()
        except RestanteError as error:
            for _ in range(self._replies()):
                await self.push(_reply(error))
        else:
            await self._answer(self._deliver(message))

    async def _receive(self, message: IO[bytes], check: MessageCheck) -> None:
        """Read to the end of the data; what follows it stays in the reader.

        Raises:
            TemporaryFailure: no room for it; all the same it was read to its end, or its rest
                would be taken for commands.
        """
        data, full = Unstuffer(), None
        while not data.is_finished:
            octets = await self._reader.read(_PIECE)
            if not octets:
                raise ConnectionResetError("the sender left within the data")
            self._reset_timeout()
            content = data.feed(octets)
            if check.feed(content) and full is None:
                try:
                    message.write(content)
                    if data.is_finished:
                        message.flush()
                except OSError as error:
                    full = error
        self._reader._buffer[:0] = data.rest
        if full is not None:
            raise TemporaryFailure("no room for the message") from full

    async def _deliver(self, message: IO[bytes]) -> AsyncIterator[str]:
        """One reply for each recipient, in their order."""
        for recipient, user in zip(self.envelope.rcpt_tos, self.users, strict=True):
            peer = self.session.peer
            address = f" ([{peer[0]}])" if isinstance(peer, tuple) else ""
            envelope = Envelope(
                self.envelope.mail_from.strip("<>"),
                recipient,
                self._protocol(),
                f"{self.session.host_name}{address}",
            )
            try:
                await self.intake.take(message, user, envelope)
            except RestanteError as error:
                reply = _reply(error)
            except Exception:
                _log.exception("bug", extra={"fields": {"via": self._protocol().lower()}})
                reply = "451 4.3.0 local error, try again later"
            else:
                reply = "250 2.0.0 stored"
            if not reply.startswith("250"):
                fields = {"user": user, "reason": reply}
                _log.warning("delivery refused", extra={"fields": fields})
            yield reply

    async def _answer(self, replies: AsyncIterator[str]) -> None:
        """Each as soon as it is known (RFC 2033 §5)."""
        async for reply in replies:
            await self.push(reply)

    def _replies(self) -> int:
        return len(self.users)

    def _protocol(self) -> str:
        return "LMTP"


class _Lmtp(_Session, LMTP):  # type: ignore[misc]
    """One reply for each recipient (RFC 2033 §4.2)."""


class _Smtp(_Session):
    """One reply for all: a duplicate after a retry is better than a loss (RFC 5321 §6.1)."""

    async def _answer(self, replies: AsyncIterator[str]) -> None:
        told = [reply async for reply in replies]
        await self.push(next((reply for reply in told if reply[0] != "2"), told[0]))

    def _replies(self) -> int:
        return 1

    def _protocol(self) -> str:
        return "ESMTP" if self.session.extended_smtp else "SMTP"


class _Hooks:
    """What aiosmtpd asks."""

    def __init__(self, intake: Intake, domains: Collection[str] | None) -> None:
        self._intake = intake
        self._domains = domains

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname if hostname.isprintable() else "unknown"
        return [*responses[:-1], "250-PIPELINING", "250-ENHANCEDSTATUSCODES", responses[-1]]

    async def handle_HELO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
        session.host_name = hostname if hostname.isprintable() else "unknown"
        return f"250 {server.hostname}"

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if not address.isprintable():
            return "553 5.1.7 malformed address"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if len(envelope.rcpt_tos) >= _RECIPIENTS:
            return "452 4.5.3 too many recipients"
        domain = address.rpartition("@")[2].casefold()
        if self._domains is not None and domain not in self._domains:
            return "550 5.7.1 no relaying here"
        try:
            user = await self._intake.resolve(address)
        except RestanteError as error:
            return _reply(error)
        envelope.rcpt_tos.append(address)
        server.users.append(user)
        return "250 2.1.5 OK"

    async def handle_exception(self, error: Exception) -> str:
        if not isinstance(error, ConnectionError):
            _log.error("bug", exc_info=error, extra={"fields": {"via": "intake"}})
        return "451 4.3.0 local error, try again later"


def _reply(error: RestanteError) -> str:
    """The one place where an error becomes an SMTP reply."""
    match error:
        case LargerThanQuota():
            return f"552 5.2.3 {error}"
        case MessageTooLarge():
            return f"552 5.3.4 {error}"
        case MessageRefused():
            return f"554 {error}"
        case NoSuchUser():
            return "550 5.1.1 no such user here"
        case UnsafeArgument():
            return f"553 5.1.3 {error}"
        case QuotaExceeded():
            return f"452 4.2.2 {error}"
        case TemporaryFailure():
            return f"451 4.3.0 {error}"
        case _:
            return "451 4.3.5 local error, try again later"
