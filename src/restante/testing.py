"""A POP3 server for tests of other programs; it runs on loopback and starts in milliseconds.

``Pop3Server`` runs the server of this package in its own thread, with TLS and STLS.  A test can
deliver mail, check what a client left or deleted, and cause faults.  For pytest, use the fixture
``pop3_server``.

Limits: mail is in memory and passwords are not hashed, so never use it for real mail.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import re
import shutil
import socket
import ssl
import struct
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.message import EmailMessage
from functools import cache
from hashlib import sha256
from importlib import import_module
from ipaddress import ip_network
from operator import attrgetter
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from . import mime, tls
from .errors import AuthenticationFailed, MaildropInUse
from .maildrop import Maildrop
from .passdb import Credentials, Proof, ScramSecrets, Token, UserAccount
from .pop3.commands import VERBS
from .pop3.session import Policy
from .pop3.state import Event, StartTLS
from .sasl.mechanisms import MECHANISMS, Needs
from .server.address import Address
from .server.admission import Admission, Slot
from .server.binding import bind
from .server.listener import Listener
from .server.pop3 import Connection, Service
from .store.memory import MemoryStore
from .words import counted

T = TypeVar("T")
_log = logging.getLogger("restante")
SASL_MECHANISMS = tuple(
    name for name, row in MECHANISMS.items() if row.needs is not Needs.CERTIFICATE
)
_ITERATIONS = 4096  # SCRAM iterations: the minimum of RFC 7677 §4, to keep tests fast
_TIMEOUT = 30.0  # seconds that a test waits for the server's thread
_POLL_INTERVAL = 0.005  # seconds between checks of whether a client still holds a maildrop
# Seconds within which the server processes the end of a connection.  If a maildrop is open for
# longer, its client is assumed to be connected.
_MAX_CLOSING_TIME = 0.1
_SESSION_END_TIMEOUT = 10.0  # seconds
_VERBS = tuple(VERBS)


@dataclass(frozen=True, slots=True)
class TranscriptLine:
    """One line of a transcript, without passwords."""

    client: int
    """The number of the connection, from 1."""
    sender: str
    """"C" for the client, "S" for the server."""
    text: str
    """A command, or the first line of a response and the number of octets that follow."""

    @property
    def verb(self) -> str:
        """The first word, such as "RETR" or "+OK"."""
        return self.text.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.client} {self.sender}: {self.text}"


class UnusedFault(UserWarning):
    """A fault was set up but never occurred, so the test shows nothing about it."""


@dataclass(slots=True, eq=False)
class _FaultCall:
    """One call to a method of ``Fault``."""

    call: str
    has_occurred: bool = False


@dataclass(slots=True)
class _Rule:
    """One fault for one command."""

    source: _FaultCall
    verb: str
    times: int | None
    """Number of occurrences left; None: unlimited."""
    delay: float = 0.0
    answer: bytes | None = None
    """Response to send instead of carrying out the command."""
    drop_after: int | None = None
    """Number of octets of the response after which the connection ends."""
    reset: bool = False
    """Whether the connection ends with RST."""
    rewrite: Callable[[bytes], bytes] | None = None
    drip: int = 0
    """Number of octets in each part of the response, sent ``delay`` seconds apart; 0 if it
    is not split."""

    def __post_init__(self) -> None:
        self.verb = self.verb.upper()
        if self.verb not in _VERBS:
            raise ValueError(f"unknown command {self.verb!r}; known commands: {', '.join(_VERBS)}")


class Fault:
    """Makes the server misbehave when it next receives the given command.

    ``times`` is the number of occurrences; None means until ``clear``.  A newer fault for the same
    command takes precedence.  A fault that never occurs causes an ``UnusedFault`` warning when the
    server stops.
    """

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._calls: list[_FaultCall] = []

    @property
    def unused(self) -> list[str]:
        """The calls that set up a fault which has not occurred so far, such as ``drop('RETR')``."""
        return [each.call for each in self._calls if not each.has_occurred]

    def _add(self, call: str, *verbs: str, **effects: Any) -> None:
        source = _FaultCall(call)
        rules = [_Rule(source, verb, **effects) for verb in verbs]
        self._calls.append(source)
        self._rules += rules

    def drop(
        self,
        verb: str = "RETR",
        *,
        after_bytes: int = 0,
        reset: bool = False,
        times: int | None = 1,
    ) -> None:
        """End the connection after ``after_bytes`` octets, with FIN or, if ``reset``, with RST."""
        self._add(f"drop({verb!r})", verb, times=times, drop_after=after_bytes, reset=reset)

    def delay(self, verb: str, *, seconds: float, times: int | None = None) -> None:
        """Wait for ``seconds`` before carrying out the command."""
        self._add(f"delay({verb!r})", verb, times=times, delay=seconds)

    def drip(
        self,
        verb: str = "RETR",
        *,
        octets: int = 1,
        seconds: float = 0.1,
        times: int | None = None,
    ) -> None:
        """Send the response in parts of ``octets`` octets, ``seconds`` apart.

        Each wait is short, but the whole response takes so long that the client needs a deadline.
        """
        self._add(f"drip({verb!r})", verb, times=times, delay=seconds, drip=octets)

    def err(
        self, verb: str, text: str = "[SYS/TEMP] try again later", *, times: int | None = None
    ) -> None:
        """Answer with -ERR, without carrying out the command."""
        self._add(f"err({verb!r})", verb, times=times, answer=f"-ERR {text}\r\n".encode())

    def garbage(
        self, verb: str, octets: bytes = b"\x00\xff garbage\r\n", *, times: int | None = None
    ) -> None:
        """Answer with octets that are not a POP3 response."""
        self._add(f"garbage({verb!r})", verb, times=times, answer=octets)

    def dup_uidl(self, *, times: int | None = None) -> None:
        """Give every message the unique-id of the first message in the response to UIDL."""
        self._add("dup_uidl()", "UIDL", times=times, rewrite=_same_unique_ids)

    def short_list(self, messages: int = 0, *, times: int | None = None) -> None:
        """List only the first ``messages`` messages, like a server with an internal error."""

        def cut(response: bytes) -> bytes:
            first, *lines, end, rest = response.split(b"\r\n")
            return b"\r\n".join([first, *lines[:messages], end, rest])

        self._add("short_list()", "LIST", "UIDL", times=times, rewrite=cut)

    def lie_about_size(self, octets: int = 1000, *, times: int | None = None) -> None:
        """Announce each message in LIST and STAT with a size that is wrong by ``octets``."""

        def change_sizes(response: bytes) -> bytes:
            return _SIZE.sub(lambda size: b"%d" % max(int(size[0]) + octets, 0), response)

        self._add("lie_about_size()", "LIST", "STAT", times=times, rewrite=change_sizes)

    def lose_quit(self, *, times: int | None = 1) -> None:
        """Remove the deleted messages, and end the connection without a response."""
        self.drop("QUIT", times=times)

    def no_capa(self) -> None:
        """Refuse CAPA, as old servers do."""
        self.err("CAPA", "unknown command")

    def clear(self) -> None:
        """Remove all faults."""
        self._rules.clear()

    def _forget(self) -> None:
        """Remove all faults, without warnings about unused ones."""
        self._rules.clear()
        self._calls.clear()

    def _next_rule(self, verb: str) -> _Rule | None:
        rule = next((each for each in reversed(self._rules) if each.verb == verb), None)
        if rule is not None and rule.times is not None:
            rule.times -= 1
            if not rule.times:
                self._rules.remove(rule)
        return rule


# Matches the size in a line of a listing ("1 120") and in a response ("+OK 1 120").
_SIZE = re.compile(rb"(?m)(?<=\d )\d+(?=\r$)")


def _same_unique_ids(response: bytes) -> bytes:
    lines = response.split(b"\r\n")
    first = next((line.partition(b" ")[2] for line in lines[1:] if b" " in line), b"")
    return b"\r\n".join(
        line.partition(b" ")[0] + b" " + first if index and b" " in line else line
        for index, line in enumerate(lines)
    )


class _FaultyConnection(Connection):
    """A connection that processes commands one by one, so that faults can apply to each command."""

    def __init__(self, server: Pop3Server, service: Service, address: str, slot: Slot) -> None:
        super().__init__(service, address, slot)
        self._server = server
        self.name = server._register(self)
        self._unprocessed = b""
        self._is_idle = True
        self._is_challenged = False  # whether the next line answers a SASL challenge
        self._rule: _Rule | None = None
        self._is_short = False  # whether the response has only one line
        self._response = bytearray()  # octets of the response to the current command
        self._unsent = bytearray()  # octets to be sent slowly
        self._dripping: asyncio.Task[None] | None = None
        self._is_ended = False  # whether the real transport was closed or aborted

    def holds(self, user: str) -> bool:
        """Return whether this client has the user's maildrop open."""
        maildrop = self._account.maildrop if self._account is not None else None
        return self._opening is not None and maildrop == user

    @property
    def is_still_connected(self) -> bool:
        """Whether the client is connected and all its input has been processed."""
        real = self._real.get_extra_info("socket")
        if real is None or self._is_closing:
            return False
        try:
            with real.dup() as connection:
                connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass  # the connection was reset
        return False

    def _adopt(self, transport: asyncio.BaseTransport) -> None:
        super()._adopt(transport)
        self._real = self._transport
        # ``_InterceptedTransport`` has all methods that the session uses.
        self._transport = _InterceptedTransport(self)  # type: ignore[assignment]
        self._output.adopt(self._transport)

    # Input from the client.

    def data_received(self, data: bytes) -> None:
        self._unprocessed += data
        self._process_command()

    def _process_command(self) -> None:
        line, end, rest = self._unprocessed.partition(b"\n")
        if not self._is_idle or not end or self._is_closing:
            return
        self._unprocessed, self._is_idle = rest, False
        text = line.removesuffix(b"\r").decode("ascii", "backslashreplace")
        verb = "AUTH" if self._is_challenged else text.partition(" ")[0].upper()
        is_secret = self._is_challenged or verb in ("PASS", "AUTH", "APOP")
        shown = "***" if self._is_challenged else f"{verb} ***" if is_secret else text
        self._server._add_line(self.name, "C", shown)
        rule = None if self._is_challenged else self._server.fault._next_rule(verb)
        self._rule, self._is_challenged = rule, False
        self._is_short = verb == "STAT" or (verb in ("LIST", "UIDL") and " " in text)
        if rule is not None and rule.answer is not None:
            self._record_fault(rule)
            self._response += rule.answer
            self._send_to_client(rule.answer)
            self._finish_response()
        elif rule is not None and rule.delay and not rule.drip:
            self._record_fault(rule)
            self._loop.call_later(rule.delay, super().data_received, line + end)
        else:
            super().data_received(line + end)

    def _run_commands(self) -> Event | None:
        event = super()._run_commands()
        if event is None:
            self._finish_response()
        elif isinstance(event, StartTLS):
            # The TLS handshake that follows is not recorded.
            self._response += event.response.head()
            self._record_response()
            unprocessed, self._unprocessed = self._unprocessed, b""
            if unprocessed:
                self._session.receive(unprocessed)
            self._transport, self._is_idle = self._real, True
            self._output.adopt(self._real)
        return event

    def _finish_response(self) -> None:
        """Continue after the response to a command."""
        self._record_response()
        self._is_idle = True
        self._loop.call_soon(self._process_command)

    def _record_response(self) -> None:
        if self._response:
            first = self._response.partition(b"\r\n")[0]
            self._is_challenged = first.startswith(b"+ ") or first == b"+"
            self._server._add_line(self.name, "S", self.response_so_far)
            self._response.clear()

    @property
    def response_so_far(self) -> str:
        """The part of the current response that is not in the transcript yet."""
        first, _, rest = bytes(self._response).partition(b"\r\n")
        text = first.decode("ascii", "backslashreplace")
        return text + (f" … {len(rest)} more octets" if rest else "")

    # Output of the server.

    def write_response(self, octets: bytes) -> None:
        """Process octets that the session has written, and send them to the client."""
        if self._is_ended:
            return
        self._response += octets
        rule = self._rule
        if rule is not None and rule.drop_after is not None:
            remaining = rule.drop_after - (len(self._response) - len(octets))
            self._send_to_client(octets[: max(remaining, 0)])
            if remaining <= len(octets):
                del self._response[rule.drop_after :]
                self._record_fault(rule)
                self._end_connection(rule.reset)
        elif rule is None or rule.rewrite is None:
            self._send_to_client(octets)
        elif self._response.startswith(b"-ERR"):
            self._send_to_client(bytes(self._response))
        elif self._response.endswith(b"\r\n" if self._is_short else b"\r\n.\r\n"):
            answer = rule.rewrite(bytes(self._response))
            if answer != self._response:
                self._record_fault(rule)
            self._response[:] = answer
            self._send_to_client(answer)

    def _record_fault(self, rule: _Rule) -> None:
        rule.source.has_occurred = True

    def _end_connection(self, reset: bool) -> None:
        self._record_response()
        self._server._add_line(self.name, "S", "(the connection ends)")
        self._is_closing = self._is_ended = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection = self._real.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._real.abort()
        else:
            self._real.close()

    def _send_to_client(self, octets: bytes) -> None:
        """Send octets to the client, after all octets that are still being sent slowly."""
        rule = self._rule
        if self._dripping is None and rule is not None and rule.drip and octets:
            self._record_fault(rule)
            self._dripping = self._loop.create_task(self._drip(rule))
        if self._dripping is not None:
            self._unsent += octets
        elif not self._is_ended:
            self._real.write(octets)

    async def _drip(self, rule: _Rule) -> None:
        await asyncio.sleep(0)
        while self._unsent and not self._is_ended:
            piece = bytes(self._unsent[: rule.drip])
            del self._unsent[: rule.drip]
            self._real.write(piece)
            await asyncio.sleep(rule.delay)
        self._dripping = None
        if self._is_closing:
            self.close_real()

    # The end of the connection.

    def close_real(self) -> None:
        """Close the real transport when all octets have been sent, however slowly."""
        if self._dripping is None and not self._is_ended:
            self._is_ended = True
            self._real.close()

    def abort_real(self) -> None:
        """Abort the real transport, even if it is closing."""
        self._is_ended = True
        self._real.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_ended = True
        self._record_response()
        if self._dripping is not None:
            self._dripping.cancel()
        super().connection_lost(error)


class _InterceptedTransport:
    """The transport that the session uses; it passes all output to the connection."""

    def __init__(self, connection: _FaultyConnection) -> None:
        self._connection = connection

    def write(self, octets: bytes) -> None:
        self._connection.write_response(octets)

    def close(self) -> None:
        self._connection.close_real()

    def abort(self) -> None:
        self._connection.abort_real()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection._real, name)


@dataclass(slots=True)
class _TestUsers:
    """A passdb for tests.  It offers all optional methods except those for certificates.

    A user's token is the password.
    """

    passwords: dict[str, str]

    async def verify(self, credentials: Credentials) -> UserAccount:
        return self._authenticate(credentials.identity, credentials.password)

    async def verify_token(self, token: Token) -> UserAccount:
        return self._authenticate(token.identity, token.token)

    def _authenticate(self, user: str, secret: str) -> UserAccount:
        if self.passwords.get(user) != secret:
            raise AuthenticationFailed
        return UserAccount(user, user)

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        from .auth import scram  # imported late, because few tests need scramp

        salt = sha256(identity.encode("utf-8", "surrogateescape")).digest()[: scram.SALT]
        keys = scram.make_keys(self.passwords.get(identity, ""), salt, _ITERATIONS)
        digest_keys = keys.sha1 if digest == "sha1" else keys.sha256
        if identity not in self.passwords or digest_keys is None:
            return scram.decoy_secrets(b"restante.testing", identity, digest)
        return ScramSecrets(salt, _ITERATIONS, (scram.split_keys("password", digest_keys),))

    async def proved(self, proof: Proof) -> UserAccount:
        if proof.authorization not in ("", proof.identity):
            raise AuthenticationFailed
        return UserAccount(proof.identity, proof.identity)


class Pop3Server:
    """A POP3 server as a context manager; its methods may be called from any thread.

    ``users`` maps names to passwords; other users that get mail have the password ``pw``.  ``sasl``
    lists the mechanisms to offer in addition to USER and PASS, any of ``SASL_MECHANISMS``.  A
    user's password is also the user's OAuth 2 token.  ``clear`` allows logins on ``stls_port``
    without STLS.
    """

    host = "localhost"

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        sasl: Sequence[str] = ("PLAIN",),
        clear: bool = False,
    ) -> None:
        """
        Raises:
            TypeError, ValueError: an option is invalid.
        """
        sasl = tuple(sasl) if isinstance(sasl, Iterable) and not isinstance(sasl, str) else sasl
        _check_options(users, sasl, clear)
        self.fault = Fault()
        self._policy = Policy(mechanisms=tuple(sasl))
        self._clear_from = (ip_network("127.0.0.0/8"),) if clear else ()
        self.port = 0
        """Port with implicit TLS (POP3S)."""
        self.stls_port = 0
        """Port on which STLS is required before the login."""
        self._users = _TestUsers(dict(users or {}))
        self._store = MemoryStore()
        self._transcript: list[TranscriptLine] = []
        self._connection_count = 0
        self._connections: WeakSet[_FaultyConnection] = WeakSet()
        self._bugs: list[BaseException] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exit_stack = AsyncExitStack()

    # Starting and stopping the server.

    def __enter__(self) -> Pop3Server:
        context = tls.server_context(*certificate())
        # Neither uvloop nor the default loop on Windows can watch a listening socket.
        loop = self._loop = asyncio.SelectorEventLoop()
        loop.set_exception_handler(self._record_bug)
        self._thread = threading.Thread(target=loop.run_forever, name="pop3-server", daemon=True)
        self._thread.start()
        self._handler = _BugHandler(self)
        _log.addHandler(self._handler)
        try:
            self._run(self._start(context))
        except BaseException:
            self._stop_thread()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        Raises:
            RuntimeError: the server has a bug.
        """
        try:
            self._run(self._shut_down())
        finally:
            self._stop_thread()
        if self._bugs:
            raise RuntimeError("a bug in the server of restante.testing") from self._bugs[0]
        if error is None:
            self._warn_about_unused_faults(stacklevel=3)

    def _warn_about_unused_faults(self, stacklevel: int) -> None:
        for call in self.fault.unused:
            warnings.warn(f"fault.{call} never occurred", UnusedFault, stacklevel=stacklevel)

    async def _shut_down(self) -> None:
        await self._exit_stack.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _stop_thread(self) -> None:
        loop, self._loop = self._loop, None
        assert loop is not None
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(_TIMEOUT)
        loop.close()
        _log.removeHandler(self._handler)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """
        Raises:
            RuntimeError: the server is not running.
        """
        if self._loop is None:
            work.close()
            raise RuntimeError("the server runs only inside its with block")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_TIMEOUT)

    def _record_bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError | None):  # a disconnected client is not a bug
            self._bugs.append(error)

    async def _start(self, context: ssl.SSLContext) -> None:
        service = self._service = Service(
            self._store,
            self._users,
            policy=self._policy,
            tls=context,
            allow_plaintext_from=self._clear_from,
        )
        self._exit_stack.push_async_callback(service.drain, 0)
        admission = Admission(1000, 1000)
        for name, implicit_tls in (("pop3s", context), ("pop3", None)):
            listening = bind(Address(name, "127.0.0.1", 0))
            listener = Listener(
                listening,
                lambda address, slot, _: _FaultyConnection(self, service, address, slot),
                admission,
                name=name,
                tls=implicit_tls,
            )
            self._exit_stack.callback(listener.close)
            port = listening.getsockname()[1]
            self.port, self.stls_port = (
                (port, self.stls_port) if implicit_tls else (self.port, port)
            )

    # Settings for a client.

    @property
    def ca_file(self) -> Path:
        """The certificate to trust, in PEM, for ``localhost`` and ``127.0.0.1``."""
        return certificate()[0]

    def password(self, user: str) -> str:
        return self._users.passwords.setdefault(user, "pw")

    def url(self, user: str, *, stls: bool = False) -> str:
        """Return ``pop3s://user:password@localhost:port``, or ``pop3://…`` if ``stls`` is true."""
        login = f"{quote(user, safe='')}:{quote(self.password(user), safe='')}"
        if stls:
            return f"pop3://{login}@{self.host}:{self.stls_port}"
        return f"pop3s://{login}@{self.host}:{self.port}"

    # Mail.

    def deliver(self, user: str, message: bytes | EmailMessage | Path | str) -> str:
        """Put a message into the user's maildrop and return its unique-id.

        A ``str`` that contains a line ending is the message itself; any other ``str`` is the path
        of a file.  Line endings are sent as CRLF, as POP3 requires.
        """
        if isinstance(message, EmailMessage):
            octets = message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
        elif isinstance(message, bytes):
            octets = message
        elif isinstance(message, str) and "\n" in message:
            octets = message.encode()
        else:
            octets = Path(message).read_bytes()
        self.password(user)
        return self._run(self._deliver(user, octets))

    async def _deliver(self, user: str, octets: bytes) -> str:
        async def once() -> Any:
            yield octets

        return (await self._store.deliver(user, once())).unique_id

    def messages(self, user: str) -> list[EmailMessage]:
        """Return the messages in the maildrop, after the sessions of disconnected clients have
        ended.

        Raises:
            MaildropInUse: a client is logged in.
        """
        return [_parse(pieces) for pieces in self._run(self._messages(user))]

    async def _messages(self, user: str) -> list[list[bytes]]:
        async with AsyncExitStack() as stack:
            maildrop = await self._open_when_idle(user, stack)
            return [[piece async for piece in maildrop.read(entry)] for entry in maildrop.listing]

    async def _open_when_idle(self, user: str, stack: AsyncExitStack) -> Maildrop:
        """
        Raises:
            MaildropInUse: a connected client has the maildrop open.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        held_since, deadline = now, now + _SESSION_END_TIMEOUT
        while True:
            try:
                return await stack.enter_async_context(self._store.open(user))
            except MaildropInUse:
                now = loop.time()
                if not all(
                    each.is_still_connected for each in self._connections if each.holds(user)
                ):
                    held_since = now
                if now - held_since >= _MAX_CLOSING_TIME or now >= deadline:
                    raise
            await asyncio.sleep(_POLL_INTERVAL)

    def held(self, user: str) -> list[EmailMessage]:
        """Return the messages that clients have deleted, in the order of deletion."""
        return [_parse(pieces) for pieces in self._run(self._held(user))]

    async def _held(self, user: str) -> list[list[bytes]]:
        return [
            [piece async for piece in self._store.read_held(user, each)]
            for each in await self._store.held(user)
        ]

    # Clients.

    def wait_idle(self, timeout: float = 10.0) -> None:
        """Wait until no client is connected and all sessions have ended.

        Use it for a client in another thread or process, before ``messages`` and ``held``.

        Raises:
            TimeoutError: a client is still connected after ``timeout`` seconds.
        """
        self._run(self._wait_idle(timeout))

    async def _wait_idle(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while self._service.connections:  # noqa: ASYNC110 - the server has no such event
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            clients = counted(len(self._service.connections), "client")
            raise TimeoutError(f"{clients} still connected") from None

    def reset(self) -> None:
        """Drop all clients; remove mail, deleted mail, faults and the transcript.

        Users, ports and the certificate are kept, so that many tests can use one server.  Faults
        that never occurred cause an ``UnusedFault`` warning.
        """
        self._warn_about_unused_faults(stacklevel=3)
        self._run(self._reset())

    async def _reset(self) -> None:
        await self._service.drain(0)
        self._store.clear()
        self._transcript.clear()
        self._connection_count = 0
        self.fault._forget()

    # The transcript.

    @property
    def transcript(self) -> str:
        """The dialogue so far, without passwords; commands of client 1 begin with ``1 C:``."""
        return "\n".join(map(str, self.transcript_lines))

    @property
    def transcript_lines(self) -> list[TranscriptLine]:
        """A copy of the transcript as objects, to compare and count."""
        return list(self._transcript) if self._loop is None else self._run(self._lines())

    async def _lines(self) -> list[TranscriptLine]:
        """Return all lines; must run in the server's thread, after all responses are recorded."""
        incomplete = sorted(
            (
                TranscriptLine(int(each.name), "S", f"{each.response_so_far} (so far)")
                for each in self._connections
                if each.response_so_far
            ),
            key=attrgetter("client"),
        )
        return [*self._transcript, *incomplete]

    def _add_line(self, name: str, sender: str, text: str) -> None:
        self._transcript.append(TranscriptLine(int(name), sender, text))

    def _register(self, connection: _FaultyConnection) -> str:
        """Register a new connection and return its name."""
        self._connections.add(connection)
        self._connection_count += 1
        return str(self._connection_count)


class _BugHandler(logging.Handler):
    """Keeps the server's log away from stderr, and records bugs, which ``__exit__`` raises."""

    def __init__(self, server: Pop3Server) -> None:
        super().__init__(logging.ERROR)
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._server._thread.ident and record.exc_info:
            error = record.exc_info[1]
            if error is not None:
                self._server._bugs.append(error)


def _check_options(users: Any, sasl: Any, clear: Any) -> None:
    """
    Raises:
        TypeError, ValueError: see ``Pop3Server``.
    """
    passwords = {} if users is None else users
    texts = [*passwords, *passwords.values()] if isinstance(passwords, Mapping) else [passwords]
    if not all(isinstance(each, str) for each in texts) or isinstance(passwords, str):
        raise TypeError("users must be a dictionary of names and passwords")
    if isinstance(sasl, str) or not isinstance(sasl, Iterable):
        raise TypeError("sasl must be a list of mechanisms")
    if unknown := [each for each in sasl if each not in SASL_MECHANISMS]:
        known = ", ".join(SASL_MECHANISMS)
        raise ValueError(f"sasl: unknown mechanisms {unknown}; known mechanisms: {known}")
    if not isinstance(clear, bool):
        raise TypeError("clear must be True or False")


def _parse(pieces: list[bytes]) -> EmailMessage:
    text = b"".join(pieces).replace(b"\r\n", b"\n")  # tests compare text with LF
    return mime.parse(text)


@cache
def certificate() -> tuple[Path, Path]:
    """Return the certificate and the key, created once per process and removed when it ends."""
    folder, owner = mkdtemp(prefix="restante-testing-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child must not remove the folder when it ends
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return tls.make_self_signed(Path(folder), ["localhost", "127.0.0.1"])


if __name__ == "__main__":  # python -m restante.testing; the command imports this module
    import_module("restante.testing_command").main()
