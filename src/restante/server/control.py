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
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from .admission import Slot
from .connection import DIRECT
from .http import Request
from .http_connection import Answer, HTTPConnection, HTTPService, refusal
from .proxy import Origin

_log = logging.getLogger("restante.control")
_UCRED = struct.Struct("iII")  # pid, uid, gid (unix(7), SO_PEERCRED)
_SO_PEERGROUPS = getattr(socket, "SO_PEERGROUPS", 59)  # asm-generic/socket.h; not in Python 3.11
_GROUP = struct.Struct("I")
_GROUPS = 1024  # octets for 256 groups; the maximum that Python's getsockopt reads
# The ID of all users and groups that are not mapped into this namespace (user_namespaces(7)).
_UNMAPPED = 65_534


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


@dataclass(slots=True)
class ControlService(HTTPService):
    """The state that the control connections of one worker share."""

    log: logging.Logger = field(default=_log, kw_only=True)
    path: Path
    """The socket's file, whose group may send requests that only read."""
    answer: Callable[[Request, Peer], Awaitable[Answer]]
    """Returns the response to a request that this peer may send."""

    max_protected: int = field(default=16, kw_only=True)
    """Maximum number of connections of operators that new connections cannot replace; half of all
    slots.  Thus members of the group cannot interrupt the requests of operators."""
    protected: set[ControlConnection] = field(default_factory=set, kw_only=True)

    def connection(self, address: str, slot: Slot, origin: Origin = DIRECT) -> ControlConnection:
        return ControlConnection(self, address, slot, origin)


class ControlConnection(HTTPConnection):
    """The connection of one client of the control socket."""

    __slots__ = ("_peer",)

    _service: ControlService

    def __init__(
        self, service: ControlService, address: str, slot: Slot, origin: Origin = DIRECT
    ) -> None:
        super().__init__(service, address, slot, origin)
        self._proto = "control"
        self._peer: Peer

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
        elif self._peer.is_operator and len(self._service.protected) < self._service.max_protected:
            self._service.protected.add(self)
            self._slot.protect()

    def _begin_live_answer(self) -> None:
        super()._begin_live_answer()
        self._service.protected.discard(self)
        self._slot.make_evictable(self._evict)

    def _release_slot(self) -> None:
        self._service.protected.discard(self)
        super()._release_slot()

    def _is_member(self) -> bool:
        try:
            return self._peer.is_member(os.lstat(self._service.path).st_gid)
        except OSError:  # another program has removed the file
            return False

    async def _answer(self, request: Request) -> Answer:
        if request.method == "GET" or self._peer.is_operator:
            return await self._service.answer(request, self._peer)
        return refusal(HTTPStatus.FORBIDDEN, "only root and the server's user may do this")
