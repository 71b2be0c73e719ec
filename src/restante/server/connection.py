"""One connection of a line protocol: its input, its output, its deadlines and its end.

POP3 (``server``), SMTP and LMTP (``intake``) add what their sessions ask for.  The guards are here,
so that every door has the same ones:

- At most ``_COMMANDS_PER_TURN`` commands of one connection run before other connections get a turn.
- After some 64 KiB of input other connections get a turn, too.
- A client that does not read is not served on, so a connection holds some 64 KiB of output and as
  much input, whatever is pipelined.
- There is a deadline for the login or the first message, for silence, and for a client that takes
  nothing of what is sent to it.

Security: no stream classes; an octet that came before TLS must not be read after it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from struct import unpack
from typing import Any, Generic, Protocol, TypeVar, cast

from ..posix import NotOnThisSystem, fcntl, termios
from ..tls import ForeignProtocol, refuse_foreign
from .admission import Slot
from .listener import log_refused_tls
from .proxy import Origin

HIGH_WATER = 65_536  # octets of output, and of unread input, per connection
DIRECT = Origin()
WAITING = 16_384  # octets that may wait in a transport before we do; in the kernel wait others
_TURN = 262_144  # octets written before others have a turn
_COMMANDS_PER_TURN = 100  # some milliseconds; others wait no longer for a client that pipelines
_FAREWELL = 1.0  # seconds that a stop waits for a client that has all to end TLS
_PROGRESS = 1024  # octets that a client must take in one ``Timeouts.progress``


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds."""

    login: float = 60.0
    """From the beginning of the connection to a successful login."""
    idle: float = 600.0
    """Autologout; at least 600 (RFC 1939 §3)."""
    handshake: float = 10.0
    progress: float = 30.0
    """In this time a client must take ``_PROGRESS`` octets of what waits for it."""


E = TypeVar("E")
"""The events of a session."""
E_co = TypeVar("E_co", covariant=True)


class LineSession(Protocol[E_co]):
    """A session without I/O, as far as every connection uses it."""

    def receive(self, octets: bytes) -> None: ...

    def next(self) -> E_co | None: ...

    @property
    def unread(self) -> int: ...


@dataclass(slots=True, kw_only=True)
class BaseService:
    """What the connections of one service share."""

    log: logging.Logger = field(default_factory=lambda: logging.getLogger("restante"))
    tls: ssl.SSLContext | None = None
    """For STLS or STARTTLS; without it neither is offered."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    connections: set[BaseConnection[Any]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it to its end, whatever becomes of the connection."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forget(self, connection: BaseConnection[Any]) -> bool:
        """The connection is at its end; True the first time."""
        known = connection in self.connections
        self.connections.discard(connection)
        if not self.connections:
            self._quiet.set()
        return known

    async def drain(self, grace: float) -> None:
        """Close idle connections now, busy ones when they become idle, all after ``grace`` s.

        No session enters UPDATE by this; one that is in UPDATE finishes.
        """
        self._quiet.clear()
        for connection in list(self.connections):
            connection.retire()
        if not self.connections:
            return
        try:
            async with asyncio.timeout(grace):
                while self.connections:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_FAREWELL):
                            await self._quiet.wait()
                    for connection in list(self.connections):
                        connection.leave()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abandon()
            await self._quiet.wait()


class BaseConnection(asyncio.Protocol, Generic[E]):
    """One client; a subclass says what its protocol does with an event."""

    __slots__ = (
        "_address",
        "_began",
        "_end",
        "_id",
        "_is_closing",
        "_is_half_closed",
        "_is_lost",
        "_is_retiring",
        "_is_turn_due",
        "_last_command",
        "_loop",
        "_origin",
        "_out",
        "_out_octets",
        "_proto",
        "_service",
        "_session",
        "_shared_at",
        "_slot",
        "_taken",
        "_timer",
        "_transport",
        "_worker",
        "_writable",
        "_written",
    )

    _service: BaseService
    _session: LineSession[E]
    _proto: str

    def __init__(
        self, service: BaseService, address: str, slot: Slot, origin: Origin = DIRECT
    ) -> None:
        self._service = service
        self._address = address
        self._origin = origin
        self._slot = slot
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._worker: asyncio.Task[None] | None = None  # performs an action, then goes on
        self._writable: asyncio.Event | None = None  # set up while the client does not read
        self._out: list[bytes] = []
        self._out_octets = 0
        self._written = 0  # octets given to the transport
        self._shared_at = 0  # how many it were when others last had a turn
        self._taken = 0  # of these, what the client had taken when we last looked
        self._is_half_closed = self._is_retiring = self._is_closing = self._is_lost = False
        self._is_turn_due = False  # commands wait until other connections had their turn
        self._began = self._last_command = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        # For the log.
        self._id = secrets.token_hex(5)
        self._end = "dropped"

    # What a subclass adds.

    def _open_session(self, ssl_object: ssl.SSLObject | None) -> bytes:
        """Set ``_proto`` and ``_session``; returns the greeting."""
        raise NotImplementedError

    def _respond(self, event: E) -> bool:
        """Answer an event if that can be done at once; False: ``_perform`` has to."""
        raise NotImplementedError

    async def _perform(self, event: E) -> None:
        """Do what takes longer."""
        raise NotImplementedError

    def _answer_bug(self, event: E | None) -> None:
        """Answer a command that raised an unforeseen exception."""
        raise NotImplementedError

    def _is_interruptible(self) -> bool:
        """Whether the action under way may be cancelled because the client has gone."""
        return True

    def _secured(self, ssl_object: ssl.SSLObject) -> None:
        """TLS has begun."""
        raise NotImplementedError

    def _deadline(self) -> float:
        """When the session ends unless the client does something, on the loop's clock."""
        raise NotImplementedError

    def _expire(self) -> None:
        """The deadline is over.  No response to autologout (RFC 1939 §3)."""
        self._close("autologout")

    def _release_slot(self) -> None:
        self._slot.release()

    def _part(self) -> None:
        """Nothing is under way any more, and the connection is at its end or will be."""
        self._tell_end()

    def _tell_end(self) -> None:
        """Once the connection is lost: it is no longer counted, and the log may say so."""
        raise NotImplementedError

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        ssl_object = transport.get_extra_info("ssl_object")
        greeting = self._open_session(ssl_object)
        self._adopt(transport)
        self._service.connections.add(self)
        self._slot.make_evictable(self._make_room)
        try:
            refuse_foreign(ssl_object)
        except ForeignProtocol as error:
            log_refused_tls(self._address, self._proto, error)
            self.abort("tls-refused")
            return
        self._set_timer(self._service.timeouts.login)
        self._write(greeting)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._session.receive(data)
        self._go_on()
        if self._is_closing:
            return
        if len(data) >= HIGH_WATER and not self._is_turn_due:
            # Or else uvloop reads on, up to 32 times in one turn: 8 MB of a message, which take
            # long enough for a few connections to keep all others waiting for seconds.
            self._is_turn_due = True
            self._loop.call_soon(self._take_turn)
            self._transport.pause_reading()
        elif self._session.unread > HIGH_WATER:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """A client may close its half and still wait for what it asked for; not so in TLS."""
        self._is_half_closed = True
        self._go_on()
        return self._transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()
        self._taken = self._drained()
        self._set_timer(self._service.timeouts.progress)

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None
        self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._release_slot()
        if self._worker is None:
            self._part()
        elif self._is_interruptible() and self._worker is not asyncio.current_task():
            self._worker.cancel()

    # What the service calls.

    def retire(self) -> None:
        """Close as soon as nothing is under way."""
        self._is_retiring = True
        self._go_on()

    def leave(self) -> None:
        """Cut the connection if the client has all, and only its end of TLS is missing."""
        if self._is_closing and self._worker is None and self._drained() == self._written:
            self.abort(self._end)

    def abort(self, reason: str) -> None:
        """Cut the connection, so that no client takes what it has for a whole response."""
        self._end = reason
        self._is_closing = True
        self._transport.abort()

    def abandon(self) -> None:
        """Cut the connection, and what it waits for unless that must be finished."""
        self.abort("stopped")

    def _make_room(self) -> None:
        """Evicted to make room for a new connection."""
        self._note("seat given up", ip=self._address, proto=self._proto)
        self.abort("made-room")

    # One read, the commands in it, one write.

    def _go_on(self) -> None:
        if self._worker is None and not (self._is_closing or self._is_turn_due):
            event = self._answer()
            if event is not None:
                self._work(self._perform_from(event))

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        self._worker = self._service.spawn(work)
        # Not a ``finally`` in the coroutine: a task that is cancelled before its first step never
        # gets there, and the maildrop would stay locked.
        self._worker.add_done_callback(self._has_worked)

    def _has_worked(self, task: asyncio.Task[None]) -> None:
        if self._is_closing and self._worker is task:
            self._worker = None
            self._part()

    def _answer(self) -> E | None:
        """Say all that can be said at once; returns the event that takes longer, or None."""
        for _ in range(_COMMANDS_PER_TURN):
            if self._writable is not None or self._is_closing:
                break
            event, produced = None, self._produced
            try:
                event = self._session.next()
                if event is None:
                    self._rest()
                    break
                self._last_command = self._loop.time()
                if not self._respond(event):
                    return event
            except Exception:
                self._fail(event, produced)
        else:
            self._is_turn_due = True
            self._loop.call_soon(self._take_turn)
        self._flush()
        return None

    def _take_turn(self) -> None:
        self._is_turn_due = False
        self._go_on()

    def _rest(self) -> None:
        """Nothing is left to do until more arrives."""
        if self._is_half_closed:
            self._close("dropped")
        elif self._is_retiring:
            self._close("stopped")
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    async def _perform_from(self, event: E | None) -> None:
        try:
            while event is not None:
                produced = self._produced
                try:
                    await self._perform(event)
                except Exception:
                    self._fail(event, produced)
                event = self._answer()
        finally:
            if not self._is_closing:
                self._worker = None

    def _fail(self, event: E | None, produced: int) -> None:
        """An unforeseen exception: answer the command, unless the client has a part of its answer
        already.  ``produced``: octets of output before that command."""
        self._log_bug()
        if self._produced == produced:
            self._answer_bug(event)
        else:
            self.abort("bug")

    async def _start_tls(self, response: bytes) -> None:
        assert self._service.tls is not None
        self._write(response)
        self._flush()
        if self._session.unread:
            self.abort("octets-before-tls")  # what arrives from here on came through TLS
            return
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                self._service.tls,
                server_side=True,
                ssl_handshake_timeout=self._service.timeouts.handshake,
            )
            if transport is None or self._is_closing:  # cut meanwhile, by us
                raise ConnectionResetError
            refuse_foreign(transport.get_extra_info("ssl_object"))
        except OSError as error:
            log_refused_tls(self._address, self._proto, error)
            self.abort("tls-refused")
            self.connection_lost(error)  # no loop tells us of an end inside the handshake
            return
        self._adopt(transport)
        self._secured(transport.get_extra_info("ssl_object"))

    # Output, and the pace of the client.

    @property
    def _produced(self) -> int:
        """Octets of output so far."""
        return self._written + self._out_octets

    def _write(self, octets: bytes) -> None:
        self._out.append(octets)
        self._out_octets += len(octets)

    def _flush(self) -> None:
        if self._out and not self._is_lost:
            self._written += self._out_octets
            self._transport.write(b"".join(self._out))
        self._out = []
        self._out_octets = 0

    async def _drain(self, at_least: int = HIGH_WATER // 2) -> None:
        """Between the pieces of something long: wait for the client, let others have a turn."""
        if 0 < self._out_octets < at_least:
            return
        self._flush()
        if self._writable is not None:
            await self._writable.wait()
        elif self._written - self._shared_at >= _TURN:
            self._shared_at = self._written
            await asyncio.sleep(0)

    def _drained(self) -> int:
        """Octets that the client has; what the kernel still holds it has not."""
        return self._written - self._transport.get_write_buffer_size() - _unsent(self._transport)

    def _adopt(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # TCP, or TLS over it
        self._transport.set_write_buffer_limits(high=WAITING)

    # Time and the end.

    def _set_timer(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._look_at_time)

    def _look_at_time(self) -> None:
        """One timer a connection: drop clients that stop reading, log out idle ones."""
        timeouts, now = self._service.timeouts, self._loop.time()
        if self._transport.get_write_buffer_size():
            if self._drained() - self._taken < _PROGRESS:
                self.abort("does-not-read")
                return
            self._taken = self._drained()
            self._set_timer(timeouts.progress)
            return
        due = self._deadline()
        if self._worker is not None:
            due = max(due, now + timeouts.progress)  # the delay is ours
        if now < due:
            self._set_timer(due - now)
        else:
            self._expire()

    def _close(self, reason: str) -> None:
        """Say what was to be said, then close."""
        self._end = reason
        self._is_closing = True
        self._flush()
        self._transport.close()
        if self._worker is None:
            self._part()
        if self._transport.get_extra_info("ssl_object") or self._transport.get_write_buffer_size():
            self._taken = self._drained()
            self._set_timer(self._service.timeouts.progress)  # it waits for the client too

    def _tls_version(self) -> str:
        if self._origin.tls:
            return self._origin.tls
        tls = self._transport.get_extra_info("ssl_object")
        return (tls.version() or "").removeprefix("TLSv") if tls else "no"

    def _log_bug(self) -> None:
        """Called where an exception is handled."""
        self._service.log.exception("bug", extra={"fields": {"session": self._id}})

    def _note(self, event: str, level: int = logging.INFO, **fields: object) -> None:
        self._service.log.log(level, event, extra={"fields": {**fields, "session": self._id}})


def _unsent(transport: asyncio.Transport) -> int:
    """Octets that the kernel holds for the client (tcp(7), SIOCOUTQ)."""
    connected = transport.get_extra_info("socket")
    try:
        return int(unpack("i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, AttributeError, ValueError, NotOnThisSystem):
        return 0
