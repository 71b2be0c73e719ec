"""The connection of a line-based protocol: input, output, deadlines, and how a connection ends.

Subclasses for POP3 (``pop3``) and for SMTP and LMTP (``intake``) answer the events of their
sessions.  This module enforces the limits, which are the same for all protocols:

- Other connections get a turn after ``_EVENTS_PER_TURN`` commands, after ``TURN`` octets of output,
  and after about 64 KiB of input.  A short run of RETR, TOP or DELE commands counts as one command.
- A client that stops reading gets no more responses (``output``).  Thus a connection buffers about
  64 KiB of output and 64 KiB of input, however many commands are pipelined.
- There are deadlines for the login or the first message, for idle clients, and for clients that
  stop reading.

A connection ends in one of three ways:

``drain``
    Runs all commands that have been received, then closes the connection.  Nothing is lost.
``close``
    Runs no more commands.  Waits until the client has received all responses, but not for a client
    that stops reading.  Pipelined commands that were not run are lost.
``abort``
    Does not wait.  Output that the client has not received is lost.  A response that was being
    sent stays incomplete, and the client cannot mistake it for a complete response.

None of these makes a POP3 session enter UPDATE.  An UPDATE or a delivery that has begun is always
completed, even after ``abort``; only then is the maildrop released and the end logged.
``BaseService.drain`` drains all connections, and aborts those that have not ended in time.

Security: no stream classes are used, so octets that were received before TLS cannot be read after
the handshake.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from types import coroutine
from typing import Any, Generic, Protocol, TypeVar, cast

from ..series import cell, zeros
from ..tls import ForeignProtocol, refuse_foreign
from .admission import Slot
from .listener import log_refused_tls
from .output import HIGH_WATER, TURN, Output
from .proxy import Origin

DIRECT = Origin()
_EVENTS_PER_TURN = 100  # commands; they take a few milliseconds, during which other clients wait
# Seconds for which a drain waits for close_notify from clients that have received all output.
_CLOSE_NOTIFY_TIMEOUT = 1.0
_HANDSHAKES = {f"TLSv{each}": cell("tls_handshakes_total", each) for each in ("1.2", "1.3")}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The deadlines of connections, in seconds."""

    login: float = 60.0
    """Time from the beginning of the connection to a successful login."""
    idle: float = 600.0
    """Time without a command after which the session ends; at least 600 (RFC 1939 §3)."""
    handshake: float = 10.0
    """Time for a TLS handshake."""
    progress: float = 30.0
    """Time within which a client must receive some octets.  We estimate that a slow mobile link can
    stall for almost as long."""


def log_event(logger: logging.Logger, level: int, event: str, fields: dict[str, object]) -> None:
    """Log an event with its fields."""
    logger.log(level, event, extra={"fields": fields})


E = TypeVar("E")
"""The events of a session."""
E_co = TypeVar("E_co", covariant=True)


class LineSession(Protocol[E_co]):
    """The methods of a session that ``BaseConnection`` uses.  Sessions do no I/O."""

    def receive(self, octets: bytes) -> None:
        """Add octets from the client."""

    def next(self) -> E_co | None:
        """Process the input up to the next event; None if more octets are required."""

    @property
    def unread(self) -> int:
        """Number of octets that have not been processed."""


@dataclass(slots=True, kw_only=True)
class BaseService:
    """The state that the connections of one service share."""

    log: logging.Logger = field(default_factory=lambda: logging.getLogger("restante"))
    write_event: Callable[[logging.Logger, int, str, dict[str, object]], None] = log_event
    """Called to log an event of a connection."""
    tls: ssl.SSLContext | None = None
    """The context for STLS or STARTTLS; None if they are not offered."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    counts: list[float] = field(default_factory=zeros)
    """The values of the metrics (``series``)."""
    connections: set[BaseConnection[Any]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _all_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` in a task, which continues even if the connection ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def add(self, connection: BaseConnection[Any]) -> None:
        self.connections.add(connection)
        self._all_ended.clear()

    def discard(self, connection: BaseConnection[Any]) -> bool:
        """Remove a connection that has ended.  Returns False if it had already been removed."""
        was_present = connection in self.connections
        self.connections.discard(connection)
        if not self.connections:
            self._all_ended.set()
        return was_present

    async def drain(self, grace: float) -> None:
        """Drain all connections, and abort those that have not ended after ``grace`` seconds.

        No session enters UPDATE because of this.  Sessions in UPDATE finish it.
        """
        for connection in list(self.connections):
            connection.drain()
        if not self.connections:
            return
        try:
            async with asyncio.timeout(grace):
                while self.connections:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_CLOSE_NOTIFY_TIMEOUT):
                            await self._all_ended.wait()
                    for connection in list(self.connections):
                        connection.abort_if_awaiting_close_notify()
        except TimeoutError:
            while self.connections:  # connections accepted before the drain may still be added
                for connection in list(self.connections):
                    connection.abort("stopped", is_forced=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CLOSE_NOTIFY_TIMEOUT):
                        await self._all_ended.wait()


class BaseConnection(asyncio.Protocol, Generic[E]):
    """The connection of one client.  Subclasses answer the events of their protocol's session."""

    __slots__ = (
        "_address",
        "_began",
        "_end",
        "_id",
        "_is_closing",
        "_is_draining",
        "_is_half_closed",
        "_is_lost",
        "_is_turn_due",
        "_last_command",
        "_loop",
        "_origin",
        "_output",
        "_proto",
        "_service",
        "_session",
        "_slot",
        "_timer",
        "_transport",
        "_worker",
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
        self._output = Output()
        self._worker: asyncio.Task[None] | None = None  # handles an event and the commands after it
        self._is_half_closed = self._is_draining = self._is_closing = self._is_lost = False
        self._is_turn_due = False  # whether other connections get a turn before more input is read
        self._began = self._last_command = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._id = secrets.token_hex(5)  # for the log
        self._end = "dropped"

    @property
    def protocol(self) -> str:
        """The protocol: ``pop3``, ``pop3s``, ``lmtp``, ``smtp`` …"""
        return self._proto

    @property
    def user(self) -> str:
        """The user who has logged in; empty before the login, and for protocols without logins."""
        return ""

    @property
    def id(self) -> str:
        """Identifies the session in the log and in the operator's commands."""
        return self._id

    def describe(self) -> dict[str, Any]:
        """Return the session's data for the operator; times in seconds, sizes in octets."""
        return {
            "id": self._id,
            "user": self.user,
            "ip": self._address,
            "proto": self._proto,
            "tls": self._tls_version(),
            "seconds": round(self._loop.time() - self._began),
            "sent": self._output.written,
        }

    def end(self) -> bool:
        """End the session at the operator's request; return False if it is already ending."""
        self.drain()
        return True

    # Defined by subclasses.

    def _open_session(self, ssl_object: ssl.SSLObject | None) -> bytes:
        """Set ``_proto`` and ``_session``, and return the greeting."""
        raise NotImplementedError

    def _respond(self, event: E) -> bool:
        """Answer an event without waiting.  Return False if ``_perform`` must be called instead."""
        raise NotImplementedError

    async def _perform(self, event: E) -> None:
        """Answer an event that may require waiting.

        The call may begin outside a task (see ``_enter_task``).
        """
        raise NotImplementedError

    def _answer_internal_error(self, event: E | None) -> None:
        """Answer a command that raised an unexpected exception."""
        raise NotImplementedError

    def _is_interruptible(self) -> bool:
        """Return whether the current event may be cancelled when the client has disconnected."""
        return True

    def _on_tls_started(self, ssl_object: ssl.SSLObject) -> None:
        """Called after the TLS handshake that STLS or STARTTLS requested."""
        raise NotImplementedError

    def _deadline(self) -> float:
        """Return the time, on the loop's clock, at which an idle session ends."""
        raise NotImplementedError

    def _expire(self) -> None:
        """End the session without a response, because its deadline has passed (RFC 1939 §3)."""
        self.close("autologout")

    def _release_slot(self) -> None:
        self._slot.release()

    def _release(self) -> None:
        """Release the session's resources; called when the session ends and no work is running.

        May be called twice: when the connection is closing and when it is lost.
        """
        self._finish()

    def _finish(self) -> None:
        """If the connection has been lost, remove it from the service and log its end."""
        raise NotImplementedError

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        ssl_object = transport.get_extra_info("ssl_object")
        greeting = self._open_session(ssl_object)
        self._adopt(transport)
        self._service.add(self)
        self._slot.make_evictable(self._evict)
        try:
            refuse_foreign(ssl_object)
        except ForeignProtocol as error:
            log_refused_tls(self._address, self._proto, error, self._service.counts)
            self.abort("tls-refused")
            return
        if ssl_object is not None:
            self._count_handshake(ssl_object)
        self._set_timer(self._service.timeouts.login)
        self._output.write(greeting)
        self._output.flush()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._session.receive(data)
        self._process_input()
        if self._is_closing:
            return
        if len(data) >= HIGH_WATER and not self._is_turn_due:
            # uvloop would read up to 32 times in one turn, which is 8 MB of a message.  A few
            # connections could thus keep all others waiting for seconds.
            self._continue_later()
            self._transport.pause_reading()
        elif self._session.unread > HIGH_WATER:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Keep the connection unless it uses TLS.

        A client may close its half of the connection and wait for responses.
        """
        self._is_half_closed = True
        self._process_input()
        return self._transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        self._output.block()
        self._set_timer(self._service.timeouts.progress)

    def resume_writing(self) -> None:
        """Continue in the next turn.

        asyncio calls this method while it writes.  If this method closed the transport, asyncio
        would report the end of the connection twice.
        """
        self._output.unblock()
        self._continue_later()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        self._output.discard_output()
        if self._timer is not None:
            self._timer.cancel()
        self._release_slot()
        if self._worker is None:
            self._release()
        elif self._is_interruptible() and self._worker is not asyncio.current_task():
            self._cancel_work()

    # Ways to end a connection; see the module's docstring.

    def drain(self) -> None:
        """Run the commands that have been received, then close the connection."""
        self._is_draining = True
        self._process_input()

    def close(self, reason: str) -> None:
        """Run no more commands, send all responses, then end the connection."""
        self._end = reason
        self._is_closing = True
        self._output.flush()
        if not self._transport.is_closing():  # asyncio's TLS transport fails if it is closed twice
            self._transport.close()
        if self._worker is None:
            self._release()
        if self._transport.get_extra_info("ssl_object") or self._output.is_waiting:
            self._output.start_check()
            self._set_timer(self._service.timeouts.progress)  # the client may have stopped reading

    def abort(self, reason: str, *, is_forced: bool = False) -> None:
        """End the connection without waiting.

        ``is_forced``: also cancel a password check.
        """
        self._end = reason
        self._is_closing = True
        self._transport.abort()

    def abort_if_awaiting_close_notify(self) -> None:
        """Abort the connection if it is closing and waits only for the client's close_notify."""
        if self._is_closing and self._worker is None and self._output.is_acknowledged:
            self.abort(self._end)

    def _evict(self) -> None:
        """End this connection before it has logged in, to make room for a new connection."""
        self._log_event("seat given up", ip=self._address, proto=self._proto)
        self.abort("made-room")

    # Commands.  All commands of one read are answered in one write.

    def _process_input(self) -> None:
        if self._worker is None and not (self._is_closing or self._is_turn_due):
            event = self._run_commands()
            if event is not None:
                self._start_work(self._perform_from(event))

    def _start_work(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it has to wait, and the rest of it in a task.

        A login with a cached password and a QUIT without deletions never have to wait.  Creating a
        task would take as long as checking such a login.
        """
        try:
            awaited = work.send(None)
        except StopIteration:
            return
        self._worker = self._service.spawn(_complete(work, awaited))
        # This is a callback and not a ``finally`` block: a task that is cancelled before its first
        # step never enters its body, and the maildrop would stay locked.
        self._worker.add_done_callback(self._on_work_ended)

    async def _enter_task(self) -> None:
        """Continue in a task of this connection.

        Until ``_perform`` waits for the first time, it runs outside a task, where
        ``asyncio.timeout`` and ``TaskGroup`` fail.  So ``_enter_task`` must be awaited before calls
        that may use them, for example calls to third-party back ends and stores.
        """
        if self._worker is None:
            await asyncio.sleep(0)

    def _cancel_work(self) -> None:
        """Cancel the task after its first step.

        An earlier cancellation would not reach the work, which may be waiting for a thread that is
        acquiring the maildrop's lock.
        """
        if self._worker is not None:
            self._loop.call_soon(self._worker.cancel)

    def _on_work_ended(self, task: asyncio.Task[None]) -> None:
        if self._is_closing and self._worker is task:
            self._worker = None
            self._release()

    def _run_commands(self) -> E | None:
        """Answer commands until a command requires waiting.  Return its event, or None."""
        events, turn_ends = 0, self._output.produced + TURN
        while not (self._output.is_blocked or self._is_closing):
            event, produced = None, self._output.produced
            if events == _EVENTS_PER_TURN or produced >= turn_ends:
                self._continue_later()
                break
            events += 1
            try:
                event = self._session.next()
                if event is None:
                    self._on_idle()
                    break
                self._last_command = self._loop.time()
                if not self._respond(event):
                    return event
            except Exception:
                self._fail(event, produced)
        self._output.flush()
        return None

    def _continue_later(self) -> None:
        """Give other connections a turn, then process the input."""
        if not self._is_turn_due:
            self._is_turn_due = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._is_turn_due = False
        self._process_input()

    def _on_idle(self) -> None:
        """Called when all received commands have been answered."""
        if self._is_half_closed:
            self.close("dropped")
        elif self._is_draining:
            self.close("stopped")
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    async def _perform_from(self, event: E | None) -> None:
        try:
            while event is not None:
                produced = self._output.produced
                try:
                    await self._perform(event)
                except Exception:
                    self._fail(event, produced)
                event = self._run_commands()
        finally:
            if not self._is_closing:
                self._worker = None

    def _fail(self, event: E | None, produced: int) -> None:
        """Answer a command that raised an unexpected exception.

        If part of the response has been produced, the connection is aborted instead.  ``produced``
        is the number of octets of output before the command.
        """
        self._log_bug()
        if self._output.produced == produced:
            self._answer_internal_error(event)
        else:
            self.abort("bug")

    async def _start_tls(self, response: bytes) -> None:
        assert self._service.tls is not None
        self._output.write(response)
        self._output.flush()
        if self._session.unread:
            self.abort("octets-before-tls")  # only octets received through TLS may be processed
            return
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                self._service.tls,
                server_side=True,
                ssl_handshake_timeout=self._service.timeouts.handshake,
            )
            if transport is None or self._is_closing:  # the server has aborted the connection
                raise ConnectionResetError
            refuse_foreign(transport.get_extra_info("ssl_object"))
        except OSError as error:
            log_refused_tls(self._address, self._proto, error, self._service.counts)
            self.abort("tls-refused")
            self.connection_lost(error)  # the loop does not call it during a handshake
            return
        self._adopt(transport)
        ssl_object = transport.get_extra_info("ssl_object")
        self._count_handshake(ssl_object)
        self._on_tls_started(ssl_object)

    def _count_handshake(self, ssl_object: ssl.SSLObject) -> None:
        if (version := ssl_object.version()) in _HANDSHAKES:
            self._service.counts[_HANDSHAKES[version]] += 1

    def _adopt(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # TCP, or TLS over TCP
        self._output.adopt(self._transport)

    # Deadlines and the log.

    def _set_timer(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Drop a client that has stopped reading, and log out an idle client.

        Each connection has a single timer.
        """
        timeouts, now = self._service.timeouts, self._loop.time()
        if self._output.is_waiting:
            if self._output.has_progressed():
                self._set_timer(timeouts.progress)
            else:
                self.abort("does-not-read")
            return
        due = self._deadline()
        if self._worker is not None:
            due = max(due, now + timeouts.progress)  # the client is waiting for the server
        if now < due:
            self._set_timer(due - now)
        else:
            self._expire()

    def _end_session(self, reason: str) -> None:
        """Close the connection because the session has ended; log the end, except after QUIT."""
        if reason != "quit":
            self._log_event("session ended", ip=self._address, proto=self._proto, reason=reason)
        self.close(reason)

    def _tls_version(self) -> str:
        if self._origin.tls:
            return self._origin.tls
        tls = self._transport.get_extra_info("ssl_object")
        return (tls.version() or "").removeprefix("TLSv") if tls else "no"

    def _log_bug(self) -> None:
        """Log the current exception."""
        self._service.log.exception("bug", extra={"fields": {"session": self._id}})

    def _log_event(self, event: str, level: int = logging.INFO, **fields: object) -> None:
        service = self._service
        service.write_event(service.log, level, event, {**fields, "session": self._id})


async def _complete(work: Coroutine[Any, Any, None], awaited: object) -> None:
    """Run the rest of ``work``, which has begun and waits for ``awaited``."""
    await _steps(work, awaited)


@coroutine
def _steps(work: Coroutine[Any, Any, None], awaited: object) -> Generator[Any, Any, None]:
    """Pass everything that the task sends or throws, such as a cancellation, to ``work``."""
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                awaited = work.throw(error)
            else:
                awaited = work.send(sent)
    except StopIteration:
        return
