"""Deliver a message to a user, fetch and delete it over POP3, and restore it.

No other mail of the user is touched: a message is deleted only if its header contains the random
token of this round trip.  The app password is revoked and the message is removed even if a step
fails.  If the program is killed, the next round trip of the user revokes the app password.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from email.utils import formatdate
from math import inf

from ... import sysexits
from ...auth.users import User, Users
from ...client.blocking import BlockingClient, connect_blocking
from ...config import Configuration
from ...errors import (
    CommandFailed,
    MaildropInUse,
    NoSuchUser,
    RestanteError,
    TemporaryFailure,
)
from ...maildrop import HeldMessage, ServableStore
from ...pop3.dialogue import Procedure
from ...pop3.listing import Message
from ...server.address import Address
from ...tls import first_certificate
from .. import stores
from ..failures import describe, exit_code
from .findings import Finding, Subject, error, not_checked, ok, warning
from .intake import address_of, reply
from .probing import Probe, connected
from .server import addresses, certificate_path, listed

_SEARCHED = 20  # of the newest messages; more may arrive only while the round trip lasts
_HEADER = 8192  # octets of a message in which the token is searched
_LABEL = re.compile(r"restante doctor [0-9a-f]{16}")
_LEFT_OVER = 600.0  # seconds; no round trip lasts this long
_WAITING = ("IN-USE", "LOGIN-DELAY")  # response codes: the user's own client has logged in


def round_trip(subject: Subject) -> Iterator[Finding]:
    """Let a message make the round trip of all mail, with a new app password."""
    if not subject.round_trip:
        yield not_checked("give a user with --round-trip USER to send a test message")
        return
    with closing(stores.users(subject.config)) as users:
        try:
            user = users.get(subject.round_trip)
        except NoSuchUser:
            text = f"no such user: {subject.round_trip}"
            yield error(sysexits.EX_CONFIG, text, "restante user list")
            return
        if reason := _why_not(subject, users, user):
            yield not_checked(reason)
            return
        yield from RoundTrip(subject, users, user).findings()


def _why_not(subject: Subject, users: Users, user: User) -> str:
    """Return why the round trip of a user cannot be made; empty if it can."""
    config, account = subject.config, user.account
    if config.store.kind == "memory":
        return "mail is kept in memory (store.kind)"
    if subject.status is None:
        return "the server is not running"
    if not next(addresses(subject, "pop3s", "pop3"), None):
        return "the server does not listen for POP3"
    if reason := account.refusal("127.0.0.1"):
        return f"{user.name} may not log in from this machine ({reason})"
    if account.is_read_only:
        return f"{user.name} may not delete mail (restante user permit)"
    if _hold(config, users, user.name) == inf:
        return f"deleted mail of {user.name} is kept, so the message could not be removed"
    return ""


def _hold(config: Configuration, users: Users, name: str) -> float:
    seconds = users.hold(name)
    return config.store.hold if seconds is None else seconds


class RoundTrip:
    """One message that is delivered, fetched, deleted and restored."""

    def __init__(self, subject: Subject, users: Users, user: User) -> None:
        self._subject, self._users = subject, users
        self._name, self._maildrop = user.name, user.account.maildrop
        self._token = secrets.token_hex(16)
        self._label = f"restante doctor {secrets.token_hex(8)}"
        self._date, self._step = formatdate(), ""
        self._store: ServableStore = stores.store(subject.config, users)

    def findings(self) -> Iterator[Finding]:
        """Make the round trip, and yield what was found.  Nothing of it remains."""
        try:
            self._go()
        except CommandFailed as failure:
            if failure.code in _WAITING:
                yield not_checked(f"{self._name}: {describe(failure)}")
            else:
                yield self._error(failure)
        except (OSError, RestanteError) as failure:
            yield self._error(failure)
        else:
            yield ok(f"a message to {self._name} was delivered, fetched, deleted and restored")
        finally:
            problems = [*self._clean_up()]
        yield from problems

    def _error(self, failure: Exception) -> Finding:
        text = f"{self._step}: {describe(failure)}"
        return error(listed(exit_code(failure)), text, f"restante auth why {self._name} 127.0.0.1")

    def _go(self) -> None:
        self._step = "delivery"
        self.deliver()
        self._step = "app password"
        password = self.add_password()
        self._step = "login"
        with self.log_in(password) as client:
            self._step = "fetch"
            message = self.fetch(client)
            self._step = "deletion"
            client.delete(message)
        self._step = "restoring"
        self.restore()

    # The steps

    def deliver(self) -> None:
        """Deliver the message over LMTP if it is configured, otherwise directly."""
        listeners = [each for _, each in addresses(self._subject, "lmtp")]
        if not listeners:
            asyncio.run(self._store.deliver(self._maildrop, _once(self._message())))
            return
        with Probe(listeners[0], self._subject.timeout) as probe:
            probe.perform(_send(address_of(self._name), self._message()))

    def add_password(self) -> str:
        """Revoke app passwords that a killed round trip has left, and add a new one."""
        for each in self._users.app_passwords(self._name):
            is_old = each.created_at < time.time() - _LEFT_OVER
            if is_old and _LABEL.fullmatch(each.label):
                self._users.revoke(self._name, each.label)
        return self._users.add_app_password(self._name, self._label)

    def log_in(self, password: str) -> BlockingClient:
        """Log in.  Only a server with our own key gets the password."""
        scheme, address = next(addresses(self._subject, "pop3s", "pop3"))
        proxies = self._subject.config.server.proxy_from
        digest = hashlib.sha256(first_certificate(certificate_path(self._subject.config)))
        opened = connected(address, self._subject.timeout, proxies)
        try:
            return connect_blocking(
                f"{scheme}://{_host(address)}:{address.port}",
                user=self._name,
                password=password,
                sock=opened,
                fingerprint=digest.hexdigest(),
                timeout=self._subject.timeout,
                deadline=3 * self._subject.timeout,
            )
        except BaseException:
            opened.close()
            raise

    def fetch(self, client: BlockingClient) -> Message:
        """Find the message by its token, and compare its text.

        Raises:
            TemporaryFailure: the message is not listed, or its text has changed.
        """
        for message in list(client.list())[::-1][:_SEARCHED]:
            if self._is_ours(client.top(message, 0).read()):
                if not client.retrieve(message).read().endswith(self._message()):
                    raise TemporaryFailure("the message was changed")
                return message
        raise TemporaryFailure("the message is not in the maildrop")

    def restore(self) -> None:
        """Restore the message, unless deleted mail is destroyed at once.

        Raises:
            TemporaryFailure: the message is not held, or cannot be restored.
        """
        if not _hold(self._subject.config, self._users, self._name):
            return
        held = asyncio.run(self._held())
        if held is None:
            raise TemporaryFailure("the deleted message is not held")
        if asyncio.run(self._store.restore(self._maildrop, [held])) != 1:
            raise TemporaryFailure("the deleted message was not restored")

    async def _held(self) -> HeldMessage | None:
        newest = list(await self._store.held(self._maildrop))[::-1]
        for each in newest[:_SEARCHED]:
            if self._is_ours(await _beginning(self._store.read_held(self._maildrop, each))):
                return each
        return None

    # Cleaning up

    def _clean_up(self) -> Iterator[Finding]:
        """Revoke the app password and remove the message, and yield what remains."""
        try:
            labels = [each.label for each in self._users.app_passwords(self._name)]
            if self._label in labels:
                self._users.revoke(self._name, self._label)
        except RestanteError as failure:
            command = f"restante user app-password revoke {self._name} '{self._label}'"
            text = f"an app password of {self._name} was not revoked: {describe(failure)}"
            yield error(sysexits.EX_TEMPFAIL, text, command)
        try:
            asyncio.run(self._remove())
        except MaildropInUse:
            text = f"a test message remains in the maildrop of {self._name}, which is in use"
            yield warning(text)
        except (OSError, RestanteError) as failure:
            text = f"a test message remains in the maildrop of {self._name}: {describe(failure)}"
            yield warning(text)

    async def _remove(self) -> None:
        """Remove our message from the maildrop; it is held like all deleted mail."""
        end = time.monotonic() + self._subject.timeout
        while True:
            try:
                async with self._store.open(self._maildrop) as maildrop:
                    for entry in list(maildrop.listing)[::-1][:_SEARCHED]:
                        if self._is_ours(await _beginning(maildrop.read(entry))):
                            await maildrop.remove([entry])
                    return
            except MaildropInUse:  # the server may not have noticed the end of our session
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.05)

    # The message

    @property
    def _hostname(self) -> str:
        return self._subject.config.server.hostname

    def _message(self) -> bytes:
        return "\r\n".join(
            (
                f"From: restante doctor <postmaster@{self._hostname}>",
                "To: undisclosed-recipients:;",
                "Subject: Test message of restante doctor",
                f"Date: {self._date}",
                f"Message-ID: <{self._token}@{self._hostname}>",
                f"X-Restante-Doctor: {self._token}",
                "",
                "This message tests the delivery of mail. You can delete it.",
                ".a line that begins with a dot",
                "",
            )
        ).encode()

    def _is_ours(self, text: bytes) -> bool:
        header = text.partition(b"\r\n\r\n")[0] + b"\r\n"
        return f"\r\nX-Restante-Doctor: {self._token}\r\n".encode() in header


async def _once(octets: bytes) -> AsyncIterator[bytes]:
    yield octets


async def _beginning(pieces: AsyncIterator[bytes]) -> bytes:
    """Return the beginning of a message, with the header of a test message."""
    text = b""
    with suppress(RestanteError):  # a message of another program cannot be read
        async for piece in pieces:
            text += piece
            if len(text) > _HEADER:
                break
    return text


def _host(address: Address) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host or "localhost"


def _send(recipient: str, message: bytes) -> Procedure[None]:
    """Send a message over LMTP (RFC 2033).

    Raises:
        TemporaryFailure: the message was refused.
    """
    buffer = bytearray()
    yield from reply(buffer)
    for command in ("LHLO localhost", "MAIL FROM:<>", f"RCPT TO:<{recipient}>", "DATA"):
        yield command.encode() + b"\r\n"
        _check((yield from reply(buffer)), command)
    yield message.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    _check((yield from reply(buffer)), "DATA")
    yield b"QUIT\r\n"


def _check(answer: tuple[int, str], command: str) -> None:
    code, text = answer
    if code // 100 not in (2, 3):
        raise TemporaryFailure(f"{command.split()[0]} was refused: {code} {text}")
