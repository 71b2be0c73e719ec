"""Serve metrics and health checks over HTTP, without a login.

Security: only clients on this machine and in the permitted networks get an answer.  The answers
contain no names of users and no addresses of clients, and no request changes anything.  A web page
in a browser on this machine cannot read them: see ``MonitoringService.names``.
Limits: see ``connection`` and, for requests, ``http``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from ..passdb import Network, is_within
from .admission import Slot
from .connection import DIRECT
from .http import Request
from .http_connection import Answer, HTTPConnection, HTTPService, refusal
from .proxy import Origin

_log = logging.getLogger("restante.metrics")
_LOG_EVERY = 1.0  # seconds between two lines about refused clients; there is no other limit on them
_THIS_MACHINE = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass(slots=True)
class MonitoringService(HTTPService):
    """The state that the connections of one worker share."""

    log: logging.Logger = field(default=_log, kw_only=True)
    answer: Callable[[str], Awaitable[Answer]]
    """Returns the response to a GET request for a path."""
    allow_from: Callable[[], tuple[Network, ...]]
    """Returns the networks, besides this machine, whose clients get an answer."""
    names: Callable[[], Collection[str]]
    """Returns the names of this machine.

    A request from this machine must be addressed to one of them, to localhost or to an IP address.
    Otherwise a web page could give its own name an address of this machine, and its script could
    read the answers (DNS rebinding).  Other clients use any name that their DNS has for the server.
    """

    _logged_at: float = field(default=-math.inf, kw_only=True)

    def may_log(self) -> bool:
        """Return whether a refused client may be logged now; if so, the next ones may not."""
        now = asyncio.get_running_loop().time()
        if now - self._logged_at < _LOG_EVERY:
            return False
        self._logged_at = now
        return True

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
            if self._service.may_log():
                self._log_event("metrics refused", logging.WARNING, ip=self._address)
            self.abort("refused")

    async def _answer(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        names = self._service.names()
        if is_within(self._address, _THIS_MACHINE) and not _is_one_of(names, request.host):
            return refusal(HTTPStatus.FORBIDDEN, "unknown Host; use localhost or an IP address")
        return await self._service.answer(request.path)


def _is_one_of(names: Collection[str], host: str) -> bool:
    """Return whether a Host field is missing, an IP address, localhost or one of ``names``."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        if name in ("", "localhost") or name in {each.lower() for each in names}:
            return True
        ip_address(name)
    except ValueError:
        return False
    return True
