"""Serve metrics and health checks over HTTP, without a login.

Security: only clients on this machine and in the permitted networks get an answer.  The answers
contain no names of users and no addresses of clients, and no request changes anything.
Limits: see ``connection`` and, for requests, ``http``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_network

from ..passdb import Network, is_within
from .admission import Slot
from .connection import DIRECT
from .http import Request
from .http_connection import Answer, HTTPConnection, HTTPService, refusal
from .proxy import Origin

_log = logging.getLogger("restante.metrics")
_THIS_MACHINE = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass(slots=True)
class MonitoringService(HTTPService):
    """The state that the connections of one worker share."""

    log: logging.Logger = field(default=_log, kw_only=True)
    answer: Callable[[str], Awaitable[Answer]]
    """Returns the response to a GET request for a path."""
    allow_from: Callable[[], tuple[Network, ...]]
    """Returns the networks, besides this machine, whose clients get an answer."""

    def connection(self, address: str, slot: Slot, origin: Origin = DIRECT) -> MonitoringConnection:
        return MonitoringConnection(self, address, slot, origin)


class MonitoringConnection(HTTPConnection):
    """The connection of one client."""

    __slots__ = ()

    _service: MonitoringService

    def __init__(
        self, service: MonitoringService, address: str, slot: Slot, origin: Origin = DIRECT
    ) -> None:
        super().__init__(service, address, slot, origin)
        self._proto = "metrics"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not is_within(self._address, (*_THIS_MACHINE, *self._service.allow_from())):
            self._log_event("metrics refused", logging.WARNING, ip=self._address)
            self.abort("refused")

    async def _answer(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        return await self._service.answer(request.path)
