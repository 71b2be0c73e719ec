"""Metrics and health checks of a worker, for the control socket and for ``metrics.listen``."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .. import __version__, log
from ..passdb import Accounts
from ..posix import host_name
from ..series import cell, cells_by_label
from ..server.admission import Admission, Slot
from ..server.listener import Listener
from ..server.proxy import Origin
from . import exposition
from .live import Live
from .readiness import Readiness
from .sockets import BoundSocket

if TYPE_CHECKING:
    from ..server.http_connection import Answer
    from ..server.monitoring import MonitoringService

_PUBLISH_EVERY = 1.0  # seconds after which other workers see new values
_LAG_ROUNDS = 10  # rounds, of a second each, over which the longest delay of the loop is shown
# Maximum number of connections of a worker.  Prometheus needs one, and each health check one.  A
# new connection replaces the oldest one.
_MAX_CONNECTIONS = 32
_GRACE = 1.0  # seconds for which responses may continue when the worker stops
_CONNECTIONS, _SESSIONS = cells_by_label("connections"), cells_by_label("sessions")
_JOURNAL_ERRORS = cell("store_errors_total", "journal")
_WORKERS, _LAG = cell("workers"), cell("loop_lag_seconds")


class Monitor:
    """Publishes the metrics of one worker, and answers requests about the server."""

    def __init__(self, live: Live, back_ends: Callable[[], Mapping[str, Accounts]]) -> None:
        """``back_ends``: see ``Readiness``."""
        self._live = live
        self.readiness = Readiness(live, back_ends)
        self._counters = live.site.counters
        self._lags: deque[float] = deque(maxlen=_LAG_ROUNDS)

    async def run_for_ever(self) -> None:
        """Publish the metrics every second, and measure the delay of the event loop."""
        loop = asyncio.get_running_loop()

        def count_journal_error() -> None:
            self._counters.values[_JOURNAL_ERRORS] += 1

        def watch(record: logging.LogRecord) -> None:
            """Count an error that the store only logs, perhaps in a thread."""
            if record.getMessage() == "journal not written":
                loop.call_soon_threadsafe(count_journal_error)

        with log.watched(watch):
            self.publish()
            while True:
                due = loop.time() + _PUBLISH_EVERY
                await asyncio.sleep(_PUBLISH_EVERY)
                self._lags.append(max(0.0, loop.time() - due))
                self.publish()

    def publish(self) -> None:
        """Write the current metrics to the memory that the workers share."""
        values = self._counters.values
        values[_WORKERS] = 1
        values[_LAG] = max(self._lags, default=0.0)
        connections = Counter(each.protocol for each in self._live.connections())
        sessions = Counter(each.protocol for each in self._live.connections() if each.user)
        for protocol, place in _CONNECTIONS.items():
            values[place] = connections[protocol]
        for protocol, place in _SESSIONS.items():
            values[place] = sessions[protocol]
        self._counters.publish()

    def metrics(self) -> bytes:
        """Return the metrics of the whole server."""
        self.publish()
        live, reloads = self._live, self._live.site.reloads
        refused = reloads.refusal()
        is_ok = refused is None or refused.number < reloads.accepted
        computed: dict[str, list[tuple[dict[str, str], float]]] = {
            "build_info": [({"version": __version__}, 1.0)],
            "start_time_seconds": [({}, live.site.started_at)],
            "tls_certificate_expiry_timestamp_seconds": [({}, live.certificate_end())],
            "reloads_total": [
                ({"result": "ok"}, float(reloads.accepted_count)),
                ({"result": "refused"}, float(reloads.refused_count)),
            ],
            "config_last_reload_successful": [({}, float(is_ok))],
        }
        lines = exposition.lines(self._counters.totals(), computed)
        return "".join(f"{line}\n" for line in lines).encode()

    async def answer(self, path: str) -> Answer:
        """Return the response to a GET request."""
        from ..server.http_connection import JSON, TEXT, Answer, refusal

        match path:
            case "/metrics":
                return Answer(200, exposition.MEDIA_TYPE, self.metrics())
            case "/healthz":
                return Answer(200, TEXT, b"ok\n")
            case "/readyz":
                reasons = await self.readiness.reasons()
                document = {"ready": not reasons, "reasons": reasons}
                content = json.dumps(document).encode() + b"\n"
                return Answer(503 if reasons else 200, JSON, content)
            case _:
                return refusal(404)

    @asynccontextmanager
    async def serving(self, sockets: Sequence[BoundSocket]) -> AsyncIterator[None]:
        """Answer requests on these sockets until the context ends."""
        services: list[MonitoringService] = []

        def build(address: str, slot: Slot, origin: Origin) -> asyncio.BaseProtocol:
            # imports h11, which is not needed before a client connects
            from ..server.monitoring import MonitoringService

            if not services:
                config = self._live.config
                services.append(
                    MonitoringService(
                        answer=self.answer,
                        allow_from=lambda: config().metrics.allow_from,
                        names=lambda: (config().server.hostname, host_name()),
                    )
                )
            return services[0].connection(address, slot, origin)

        admission = Admission(_MAX_CONNECTIONS, _MAX_CONNECTIONS)
        listeners = [Listener(each.socket, build, admission, name=each.scheme) for each in sockets]
        try:
            yield
        finally:
            for listener in listeners:
                listener.close()
            for service in services:
                await service.drain(_GRACE)
