"""Serve control connections: HTTP over a Unix socket, for the operator's commands.

Security: the user and the groups of each peer, which the kernel reports (unix(7), SO_PEERCRED;
SO_PEERGROUPS), are checked, because the mode of the socket's file can be changed by mistake.  root
and the server's own user may do everything, and members of the socket's group may read.  All other
connections are closed without an answer.
Limits: see ``connection`` and, for requests, ``http``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from ..errors import RestanteError
from .admission import Slot
from .connection import DIRECT, BaseConnection, BaseService, Timeouts
from .http import MAX_REQUEST, BadRequest, Request, ServerExchange
from .proxy import Origin

_log = logging.getLogger("restante.control")
REQUEST_TIME = 10.0  # seconds from connecting to a complete request; commands need far less time
_UCRED = struct.Struct("iII")  # pid, uid, gid (unix(7), SO_PEERCRED)
_SO_PEERGROUPS = getattr(socket, "SO_PEERGROUPS", 59)  # asm-generic/socket.h; not in Python 3.11
_GROUP = struct.Struct("I")
_GROUPS = 1024  # octets for 256 groups; the maximum that Python's getsockopt reads
# The ID of all users and groups that are not mapped into this namespace (user_namespaces(7)).
_UNMAPPED = 65_534
TEXT, JSON, LINES = "text/plain; charset=utf-8", "application/json", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket."""

    uid: int
    groups: frozenset[int]

    @property
    def is_operator(self) -> bool:
        """Whether the peer runs as root or as the server's own user."""
        # With systemd's PrivateUsers=, other users have the ID _UNMAPPED.
        return self.uid == 0 or (self.uid == os.geteuid() and self.uid != _UNMAPPED)

    def is_member(self, group: int) -> bool:
        """Whether the peer is a member of a group."""
        return group in self.groups and group != _UNMAPPED


def peer_of(connected: socket.socket) -> Peer:
    """Return the process that connected.

    Raises:
        OSError: the socket is not a Unix socket, or the system cannot identify its peer.
    """
    _, uid, gid = _UCRED.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    groups = {gid}
    with suppress(OSError):  # the peer has more groups than fit into the buffer
        octets = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS)
        groups.update(group for (group,) in _GROUP.iter_unpack(octets))
    return Peer(uid, frozenset(groups))


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status code, media type and content."""

    status: int
    media_type: str
    content: bytes | AsyncGenerator[bytes, None]
    """The content, or its pieces."""
    is_live: bool = False
    """Whether each piece is sent immediately, and the client may pause for any length of time."""


def refusal(status: int, text: str = "") -> Answer:
    """Return a response with a line of text."""
    return Answer(status, TEXT, f"{text or HTTPStatus(status).phrase}\n".encode())


@dataclass(slots=True)
class ControlService(BaseService):
    """The state that the control connections of one worker share."""

    log: logging.Logger = field(default=_log, kw_only=True)
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(login=REQUEST_TIME), kw_only=True)
    path: Path
    """The socket's file, whose group may send requests that only read."""
    answer: Callable[[Request, Peer], Awaitable[Answer]]
    """Returns the response to a request that this peer may send."""

    def connection(self, address: str, slot: Slot, origin: Origin = DIRECT) -> ControlConnection:
        return ControlConnection(self, address, slot, origin)


class ControlConnection(BaseConnection["Request | BadRequest"]):
    """The connection of one client, which sends one request."""

    __slots__ = ("_is_live", "_peer")

    _service: ControlService
    _session: ServerExchange

    def __init__(
        self, service: ControlService, address: str, slot: Slot, origin: Origin = DIRECT
    ) -> None:
        super().__init__(service, address, slot, origin)
        self._proto = "control"
        self._is_live = False
        self._peer: Peer

    def _open_session(self, ssl_object: object) -> bytes:
        self._session = ServerExchange()
        return b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            self._peer = peer_of(transport.get_extra_info("socket"))
        except OSError as error:
            self._log_event("control refused", logging.WARNING, reason=error.strerror)
            self.abort("refused")
            return
        if not (self._peer.is_operator or self._is_member()):
            self._log_event("control refused", logging.WARNING, reason="user", uid=self._peer.uid)
            self.abort("refused")

    def _is_member(self) -> bool:
        try:
            return self._peer.is_member(os.lstat(self._service.path).st_gid)
        except OSError:  # another program has removed the file
            return False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Reading must continue, because it shows when the client disconnects.
        if self._session.discarded > MAX_REQUEST:
            self.abort("flood")

    def _respond(self, event: Request | BadRequest) -> bool:
        return False

    async def _perform(self, event: Request | BadRequest) -> None:
        await self._enter_task()
        try:
            answer = await self._answer(event)
        except RestanteError as error:
            status = HTTPStatus.SERVICE_UNAVAILABLE if error.retry else HTTPStatus.CONFLICT
            answer = refusal(status, str(error))
        await self._send(answer)
        self.close("answered")

    async def _answer(self, event: Request | BadRequest) -> Answer:
        match event:
            case BadRequest(status):
                return refusal(status)
            case Request(method="GET"):
                return await self._service.answer(event, self._peer)
            case _ if self._peer.is_operator:
                return await self._service.answer(event, self._peer)
            case _:
                return refusal(HTTPStatus.FORBIDDEN, "only root and the server's user may do this")

    async def _send(self, answer: Answer) -> None:
        session, output, content = self._session, self._output, answer.content
        if isinstance(content, bytes):
            output.write(session.head(answer.status, answer.media_type, len(content)))
            output.write(session.content(content), session.end())
            return
        output.write(session.head(answer.status, answer.media_type))
        if not session.has_content:
            await content.aclose()
            output.write(session.end())
            return
        self._is_live = answer.is_live
        if self._is_live:
            output.flush()
        async with aclosing(content):
            async for piece in content:
                output.write(session.content(piece))
                await output.flush_and_wait(*((1,) if self._is_live else ()))
        output.write(session.end())

    def _answer_internal_error(self, event: Request | BadRequest | None) -> None:
        answer = refusal(HTTPStatus.INTERNAL_SERVER_ERROR)
        assert isinstance(answer.content, bytes)
        self._output.write(self._session.head(answer.status, answer.media_type))
        self._output.write(self._session.content(answer.content), self._session.end())
        self.close("bug")

    # Deadlines and closing.

    def drain(self) -> None:
        if self._is_live:
            self.abort("stopped")
        else:
            super().drain()

    def eof_received(self) -> bool:
        """End the connection if the response is live, because it would never end otherwise."""
        if self._is_live:
            self.abort("dropped")
            return False
        return super().eof_received()

    def _check_deadlines(self) -> None:
        if not self._is_live:
            super()._check_deadlines()

    def _deadline(self) -> float:
        return self._began + self._service.timeouts.login

    def _expire(self) -> None:
        self.close("timeout")

    def _finish(self) -> None:
        if self._is_lost:
            self._service.discard(self)
