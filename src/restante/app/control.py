"""Answer the requests to a worker's control socket (docs/decisions/0242-control-sockets.md).

For a request about the whole server, the worker sends requests to the other workers, with ``here``
in the query, and reports the workers that do not answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar
from urllib.parse import urlencode

from .. import __version__, log
from ..series import cell
from ..server.connection import BaseConnection
from ..server.control import ControlService, Peer
from ..server.http import Request
from ..server.http_connection import JSON, LINES, Answer, refusal
from . import siblings
from .answers import parse
from .events import EventQueue
from .live import CERTIFICATE_DAYS, Live
from .monitoring import Monitor
from .reloads import Refusal
from .upkeep import format_time

T = TypeVar("T")
_log = logging.getLogger("restante.control")
_RESTORED = cell("messages_restored_total")
_SESSIONS_PER_TURN = 100  # in one turn of the event loop; takes about a millisecond
# Seconds for the supervisor to read the new configuration, and then for all workers to adopt it.
# The sum is less than the time that ``restante reload`` waits.
_DECISION, _ADOPTION = 20.0, 10.0
_POLL = 0.02  # seconds between two reads of the shared memory
_SUPERVISOR_POLL = 0.2  # seconds between two reads, while a client follows the log
_RETRY = 1.0  # seconds before the events of a worker that does not answer are requested again


class Control:
    """Answers the requests to one worker."""

    def __init__(self, live: Live, monitor: Monitor) -> None:
        self._live, self._monitor = live, monitor
        self._routes: dict[tuple[str, str], Callable[[Request, Peer], Awaitable[Answer]]] = {
            ("GET", "/status"): self._status,
            ("GET", "/sessions"): self._sessions,
            ("DELETE", "/sessions"): self._end_sessions,
            ("DELETE", "/sessions/"): self._end_sessions,
            ("POST", "/reload"): self._reload,
            ("GET", "/events"): self._events,
            ("POST", "/restored"): self._count_restored,
            ("GET", "/metrics"): self._monitoring,
            ("GET", "/healthz"): self._monitoring,
            ("GET", "/readyz"): self._monitoring,
        }

    def service(self) -> ControlService:
        """Return a service whose connections this object answers."""
        return ControlService(path=self._live.socket_of(self._live.number), answer=self.answer)

    async def answer(self, request: Request, peer: Peer) -> Answer:
        """Return the response to a request that the peer may send."""
        start = _start(request.path)
        route = self._routes.get((request.method, start))
        if route is not None:
            return await route(request, peer)
        return refusal(405 if any(path == start for _, path in self._routes) else 404)

    # GET /metrics, /healthz and /readyz

    async def _monitoring(self, request: Request, peer: Peer) -> Answer:
        return await self._monitor.answer(request.path)

    # POST /restored

    async def _count_restored(self, request: Request, peer: Peer) -> Answer:
        """Count messages that a command has restored, because the server cannot see it."""
        text = request.query.get("messages", "")
        if not re.fullmatch("[0-9]{1,9}", text):
            return refusal(400, "the number of messages is required")
        self._live.site.counters.values[_RESTORED] += int(text)
        return _json({"messages": int(text)})

    # GET /status

    async def _status(self, request: Request, peer: Peer) -> Answer:
        if "here" in request.query:
            return _json(await self._own_status())
        own = await self._own_status()
        answers = await self._ask_siblings("GET", "/status?here=1", {*own})
        others = [{**(answer or {"missing": True}), "worker": number} for number, answer in answers]
        workers = sorted([own, *others], key=itemgetter("worker"))
        return _json({"schema": "restante/status/1", **self._summary(workers)})

    async def _own_status(self) -> dict[str, Any]:
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
            "faults": await self._monitor.readiness.reasons(),
            "followers": log.follower_count(),
        }

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
            "listen": live.listeners(),
            "certificate_end": format_time(live.certificate_end()),
            "configuration": {
                "file": str(config.source) if config.source else None,
                "loaded": format_time(live.site.reloads.loaded_at),
                "restart_needed": live.needs_restart(),
            },
            "reload_refused": refused and {"at": format_time(refused.at), "reason": refused.reason},
        }

    def _faults(self, workers: list[dict[str, Any]]) -> list[str]:
        """Return the reasons why the server is not ready."""
        missing = [each["worker"] for each in workers if "missing" in each]
        faults = [f"worker {number} does not answer" for number in missing]
        reasons = [reason for each in workers for reason in each.get("faults", ())]
        return [*faults, *dict.fromkeys(reasons)]

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
                f"the configuration was changed on {format_time(changed)}, but not reloaded"
            )
        if live.needs_restart():
            warnings.append("changed settings require a restart")
        return warnings

    # /sessions

    async def _sessions(self, request: Request, peer: Peer) -> Answer:
        """Return one JSON object per line, and finally the workers that did not answer."""
        pieces = self._own_sessions(request) if "here" in request.query else self._all(request)
        return Answer(200, LINES, pieces)

    async def _own_sessions(self, request: Request) -> AsyncGenerator[bytes, None]:
        user, rows = request.query.get("user"), []
        async for connection in self._connections():
            if user is None or connection.user == user:
                described = connection.describe()
                since = format_time(time.time() - described["seconds"])
                described |= {"since": since, "worker": self._live.number}
                rows.append(json.dumps(described).encode() + b"\n")
            if len(rows) == _SESSIONS_PER_TURN:  # many in one piece, for speed
                yield b"".join(rows)
                rows = []
        yield b"".join(rows)

    async def _connections(self) -> AsyncGenerator[BaseConnection[Any], None]:
        """Yield the open client connections; other work gets a turn after every few."""
        for number, connection in enumerate(self._live.connections(), 1):
            yield connection
            if number % _SESSIONS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _all(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the sessions of all workers, without keeping them in memory."""
        missing = []
        target = "/sessions?" + urlencode({**request.query, "here": "1"})
        async with AsyncExitStack() as stack:
            # All at the same time, so that several workers that hang delay the answer only once.
            answers = dict(await self._of_siblings(partial(self._begin_answer, stack, target)))
            for worker in range(self._live.site.workers):
                is_own = worker == self._live.number
                rows = self._own_sessions(request) if is_own else _relay(answers[worker])
                try:
                    async with aclosing(rows):
                        async for piece in rows:
                            yield piece
                except OSError:
                    missing.append(worker)
        yield json.dumps({"missing": missing}).encode() + b"\n"

    async def _begin_answer(
        self, stack: AsyncExitStack, target: str, worker: int
    ) -> siblings.Answer | None:
        """Return the answer of another worker, which ``stack`` closes; None if it is missing."""
        with suppress(OSError):
            opening = siblings.ask(self._live.socket_of(worker), "GET", target)
            return await stack.enter_async_context(opening)
        return None

    async def _end_sessions(self, request: Request, peer: Peer) -> Answer:
        """End the session with the given ID, or all sessions of a user."""
        session, user = request.path[len("/sessions/") :], request.query.get("user")
        if not session and user is None:
            return refusal(400, "an ID or a user is required")  # never end all sessions by mistake
        is_from_worker = "here" in request.query and peer.uid == os.geteuid()
        uid = request.query.get("uid", "") if is_from_worker else str(peer.uid)
        ended, finishing, missing = [], [], []
        async for connection in self._connections():
            if connection.id == session or (not session and connection.user == user):
                fields = {"session": connection.id, "user": connection.user}
                if connection.end():
                    ended.append(connection.id)
                    _log.info("control", extra={"fields": {"uid": uid, "verb": "end", **fields}})
                else:
                    finishing.append(connection.id)
        if "here" not in request.query:
            query = urlencode({**request.query, "here": "1", "uid": uid})
            target, keys = f"{request.path}?{query}", {"ended", "finishing"}
            for worker, answer in await self._ask_siblings("DELETE", target, keys):
                if answer is None:
                    missing.append(worker)
                else:
                    ended += answer["ended"]
                    finishing += answer["finishing"]
        return _json({"ended": ended, "finishing": finishing, "missing": missing})

    # POST /reload

    async def _reload(self, request: Request, peer: Peer) -> Answer:
        """Request a reload, and wait until all workers have reloaded or the reload is refused."""
        site, reloads = self._live.site, self._live.site.reloads
        if site.pid not in (os.getpid(), os.getppid()):
            return refusal(503, "the server is stopping")
        _log.info("control", extra={"fields": {"uid": str(peer.uid), "verb": "reload"}})
        number = reloads.request(self._live.number)
        os.kill(site.pid, signal.SIGHUP)
        with suppress(TimeoutError):
            async with asyncio.timeout(_DECISION):
                while (result := reloads.result(number)) is False:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL)
        if result is False:
            return refusal(503, f"the server has not reloaded within {_DECISION:.0f} seconds")
        if isinstance(result, Refusal):
            return _json({"reason": result.reason}, status=409)
        missing = await self._late_workers(number)
        return _json(
            {
                "workers": site.workers - len(missing),
                "missing": missing,
                "restart_needed": self._live.needs_restart(),
            }
        )

    async def _late_workers(self, number: int) -> list[int]:
        """Wait for all workers to reload; return those that have not reloaded in time."""
        reloads, missing = self._live.site.reloads, list(range(self._live.site.workers))
        with suppress(TimeoutError):
            async with asyncio.timeout(_ADOPTION):
                while missing:
                    await asyncio.sleep(_POLL)
                    missing = [each for each in missing if reloads.adopted(each) < number]
        return missing

    # GET /events

    async def _events(self, request: Request, peer: Peer) -> Answer:
        """Send one JSON object per line, as in the log, until the client disconnects."""
        level = logging.getLevelNamesMapping().get(request.query.get("level", "debug").upper())
        if level is None:
            return refusal(400, "the level is unknown")
        events = EventQueue(level, request.query.get("user"))
        return Answer(200, LINES, self._follow(events, request), is_live=True)

    async def _follow(self, events: EventQueue, request: Request) -> AsyncGenerator[bytes, None]:
        workers = range(self._live.site.workers) if "here" not in request.query else ()
        target = "/events?" + urlencode({**request.query, "here": "1"})
        with log.following(events.put):
            tasks = [
                asyncio.create_task(self._follow_sibling(worker, target, events))
                for worker in workers
                if worker != self._live.number
            ]
            if workers:
                after = request.query.get("after")
                tasks.append(asyncio.create_task(self._follow_supervisor(events, after)))
            try:
                while True:
                    yield await events.take()
            finally:
                for task in tasks:
                    task.cancel()

    async def _follow_supervisor(self, events: EventQueue, after: str | None) -> None:
        """Add the events of the supervisor, which has no socket.

        ``after`` is the time of the last event that a client has received from another worker.
        """
        supervisor = self._live.site.supervisor_events
        number = supervisor.count
        if after is not None:
            missed = supervisor.since(0)
            events.put_lines(line for line in missed if parse(line)["t"] > after)
        while True:
            if number < (count := supervisor.count):
                events.put_lines(supervisor.since(number))
                number = count
            await asyncio.sleep(_SUPERVISOR_POLL)

    async def _follow_sibling(self, worker: int, target: str, events: EventQueue) -> None:
        """Add another worker's events, and reconnect after that worker has restarted."""
        is_missing = False
        while True:
            with suppress(OSError):
                path = self._live.socket_of(worker)
                async with siblings.ask(path, "GET", target) as answer:
                    is_missing = False
                    answer.live()
                    async with aclosing(answer.lines()) as pieces:
                        async for lines in pieces:
                            for line in lines:
                                events.put_line(line)
            if not is_missing:
                events.put_line(json.dumps({"missing": worker}).encode())
            is_missing = True
            await asyncio.sleep(_RETRY)

    async def _ask_siblings(
        self, method: str, target: str, keys: set[str]
    ) -> list[tuple[int, dict[str, Any] | None]]:
        """Send a request to each other worker; return its number and answer, None if missing.

        ``keys`` are the keys that an answer must have.
        """

        async def ask(worker: int) -> dict[str, Any] | None:
            answer = await siblings.document(self._live.socket_of(worker), method, target)
            return answer if answer is not None and keys <= answer.keys() else None

        return await self._of_siblings(ask)

    async def _of_siblings(
        self, ask: Callable[[int], Coroutine[Any, Any, T]]
    ) -> list[tuple[int, T]]:
        """Call a function for each other worker; return the workers' numbers and the results."""
        others = [each for each in range(self._live.site.workers) if each != self._live.number]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(worker)) for worker in others]
        return [(worker, task.result()) for worker, task in zip(others, tasks, strict=True)]


async def _relay(answer: siblings.Answer | None) -> AsyncGenerator[bytes, None]:
    """Yield the lines of another worker's answer.

    Raises:
        OSError: there is no answer, or it is late or incomplete.
    """
    if answer is None:
        raise ConnectionError("the worker is missing")
    async with aclosing(answer.lines()) as pieces:
        async for lines in pieces:
            yield b"".join(line + b"\n" for line in lines)
            await asyncio.sleep(0)  # the socket may always be readable


def _start(path: str) -> str:
    """Return the path of a route: ``/sessions/`` for ``/sessions/ID``."""
    return "/sessions/" if re.fullmatch(r"/sessions/[0-9a-f]+", path) else path


def _changed_at(live: Live) -> float | None:
    """Return when the configuration file was changed; None without a readable file."""
    source = live.config().source
    try:
        return os.stat(source).st_mtime if source is not None else None
    except OSError:
        return None


def _json(document: dict[str, Any], status: int = 200) -> Answer:
    return Answer(status, JSON, json.dumps(document).encode() + b"\n")
