"""The answers of the control sockets (docs/decisions/0242-control-sockets.md).

A worker that is asked about the whole server asks its siblings, with ``here`` in the query, and
names those that do not answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from .. import __version__
from ..server.control import JSON, Answer, ControlService, Peer, refusal
from ..server.http import Request
from . import siblings
from .live import Live
from .upkeep import format_time

CERTIFICATE_DAYS = 7  # days before the end of a certificate from which on the operator is warned;
# ACME clients renew 30 days before it, so a renewal has failed for weeks


class Control:
    """Answers the requests to one worker."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._routes: dict[tuple[str, str], Callable[[Request, Peer], Awaitable[Answer]]] = {
            ("GET", "/status"): self._status,
        }

    def service(self) -> ControlService:
        return ControlService(path=self._live.socket_of(self._live.number), answer=self.answer)

    async def answer(self, request: Request, peer: Peer) -> Answer:
        route = self._routes.get((request.method, request.path))
        if route is not None:
            return await route(request, peer)
        is_known = any(path == request.path for _, path in self._routes)
        return refusal(405 if is_known else 404)

    # GET /status

    async def _status(self, request: Request, peer: Peer) -> Answer:
        if "here" in request.query:
            return _json(self._own_status())
        live = self._live
        workers = await asyncio.gather(*map(self._status_of, range(live.site.workers)))
        return _json({"schema": "restante/status/1", **self._summary(workers)})

    def _own_status(self) -> dict[str, Any]:
        live = self._live
        connections = Counter(each.protocol for each in live.connections())
        return {
            "worker": live.number,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - live.began),
            "connections": connections,
            "logged_in": sum(bool(each.user) for each in live.connections()),
            "reload": live.site.reloads.adopted(live.number),
            "stopping": live.is_stopping,
        }

    async def _status_of(self, worker: int) -> dict[str, Any]:
        if worker == self._live.number:
            return self._own_status()
        octets = await siblings.content(self._live.socket_of(worker), "GET", "/status?here=1")
        found: dict[str, Any] = {"worker": worker, "missing": True}
        return found if octets is None else json.loads(octets)

    def _summary(self, workers: list[dict[str, Any]]) -> dict[str, Any]:
        live, config = self._live, self._live.config()
        connections: Counter[str] = Counter()
        for each in workers:
            connections.update(each.get("connections", {}))
        refused = live.site.reloads.refusal()
        faults = [*self._faults(workers)]
        return {
            "version": __version__,
            "pid": live.site.pid,
            "uptime": round(time.monotonic() - live.site.began),
            "ready": not faults,
            "faults": faults,
            "attention": [*faults, *self._warnings()],
            "workers": workers,
            "connections": connections,
            "logged_in": sum(each.get("logged_in", 0) for each in workers),
            "certificate_end": format_time(live.certificate_end()),
            "configuration": {
                "file": str(config.source) if config.source else None,
                "loaded": format_time(live.site.reloads.loaded_at),
                "restart_needed": live.needs_restart(),
            },
            "reload_refused": refused and {"at": format_time(refused.at), "reason": refused.reason},
        }

    def _faults(self, workers: list[dict[str, Any]]) -> list[str]:
        """Return why the server is not ready."""
        missing = [each["worker"] for each in workers if "missing" in each]
        faults = [f"worker {number} does not answer" for number in missing]
        if any(each.get("stopping") for each in workers):
            faults.append("the server is stopping")
        if (end := self._live.certificate_end()) <= time.time():
            faults.append(f"the certificate has expired on {format_time(end)}")
        return faults

    def _warnings(self) -> list[str]:
        """Return conditions that need the operator's attention, although the server is ready."""
        live, warnings = self._live, []
        days = (live.certificate_end() - time.time()) / 86_400
        if 0 < days < CERTIFICATE_DAYS:
            warnings.append(f"the certificate expires on {format_time(live.certificate_end())}")
        reloads = live.site.reloads
        refused = reloads.refusal()
        if refused is not None and refused.number > reloads.accepted:
            warnings.append(f"the last reload was refused: {refused.reason}")
        elif (changed := _changed_at(live)) is not None and changed > live.site.reloads.loaded_at:
            warnings.append(
                f"the configuration was changed on {format_time(changed)}, and not reloaded"
            )
        if live.needs_restart():
            warnings.append("changed settings require a restart")
        return warnings


def _changed_at(live: Live) -> float | None:
    """Return when the configuration file was changed; None without a readable file."""
    source = live.config().source
    try:
        return os.stat(source).st_mtime if source is not None else None
    except OSError:
        return None


def _json(document: dict[str, Any]) -> Answer:
    return Answer(200, JSON, json.dumps(document).encode() + b"\n")
