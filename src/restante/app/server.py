"""Build the server from the configuration, run it, reload it, and drain it when it stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import ssl
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from operator import attrgetter
from pathlib import Path
from typing import Any

from .. import log, tls
from ..auth import passwords
from ..auth.cache import Cache
from ..auth.chain import Backend, Chain, Verifier
from ..auth.throttle import Throttle
from ..auth.users import Users
from ..config import BACKENDS, Configuration
from ..errors import RestanteError
from ..maildrop import Forecast, ServableStore
from ..passdb import Terms
from ..pop3.session import Policy
from ..posix import resource
from ..server.admission import Admission, Slot
from ..server.connection import Timeouts
from ..server.intake import Intake
from ..server.listener import Listener
from ..server.login import offered, time_stamp
from ..server.pop3 import Service
from ..server.proxy import Origin
from ..shared import Tally
from ..store.partial import PartialDeliveries
from ..store.paths import Template
from . import backends, gateway, local, stores, systemd, throttling
from .sockets import BoundSocket, addresses_of, listening
from .upkeep import Upkeep, moment

_new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
with suppress(ImportError):  # Windows, or an interpreter without a wheel
    import uvloop

    _new_loop = uvloop.new_event_loop

_log = logging.getLogger("restante.serve")
_GRACE = 10.0  # seconds that busy sessions may continue after SIGTERM
_RENEW_EVERY = 86_400.0  # seconds for which one key opens the TLS session tickets
_REVIEW_EVERY = 1.0  # seconds between two searches for sessions of disabled users
_TERMS_EVERY = 60.0  # seconds; other processes change the users
_OWN_DESCRIPTORS = 64  # for a worker without connections; an estimate, twice the counted number
_DESCRIPTORS = 3  # for each connection: its socket, the maildrop's lock, and a message
_POP3 = ("pop3s", "pop3")  # schemes of listeners
_BUSY = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
_INTAKE_BUSY = b"421 4.7.0 too many connections, try again later\r\n"


def worker_count(config: Configuration) -> int:
    """Return the number of workers: the configured number, or one for each processor.

    Returns 1 without a configuration and for a store in memory, which cannot be shared.
    """
    if config.source is None or config.store.kind == "memory":
        return 1
    return config.server.workers or _processors()


def _processors() -> int:
    """Return the number of processors for this process (on macOS, of all processors)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _most_connections(wanted: int) -> int:
    """Return the maximum number of connections: ``wanted``, or less if descriptors are limited.

    With that limit, the oldest connection before login makes room for a new one.  Without it the
    server would have to stop accepting, which would lock out all users.  The soft limit of
    descriptors is for programs that use select(2), so it is raised (systemd.exec(5), LimitNOFILE).
    The limit is for all workers together, because one worker may get all connections.
    """
    needed = _OWN_DESCRIPTORS + wanted * _DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < raised:
        with suppress(OSError, ValueError):  # macOS has another limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = max(1, (soft - _OWN_DESCRIPTORS) // _DESCRIPTORS)
    fields = {"wanted": wanted, "most": most, "descriptors": soft}
    _log.warning("connections limited", extra={"fields": fields})
    return most


def run_loop(work: Awaitable[None]) -> None:
    """Run ``work`` in a new event loop."""
    freeze()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_await(work))


def freeze() -> None:
    """Exclude all objects that exist now from the search for reference cycles.

    A supervisor calls this before it forks: a search in a worker would write to each object, and
    so copy the memory that the workers share.  Sessions create no large cycles; a search after
    every 700 new objects (Python's default), among the objects of thousands of sessions, would only
    cost time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _await(work: Awaitable[None]) -> None:
    await work


def reload(adopt: Callable[[], object]) -> bool:
    """Reload the configuration; if the new one is invalid, the old one stays in force."""
    systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        adopt()
    except RestanteError as error:
        _log.error("reload failed", extra={"fields": {"reason": str(error)}})
        return False
    except Exception as error:  # a file with any content must not end the server
        _log.exception("reload failed", extra={"fields": {"reason": repr(error)}})
        return False
    finally:
        systemd.notify("READY=1")
    return True


@dataclass(frozen=True, slots=True)
class SharedResources:
    """Resources that the workers of one server share."""

    sockets: Sequence[BoundSocket]
    """Open sockets to listen on."""
    context: ssl.SSLContext
    tally: Tally
    throttle: Throttle
    purges: bool
    """Whether this worker does the upkeep: it expires mail and saves the throttle's state."""
    workers: int = 1
    backends: Mapping[str, Backend] = field(default_factory=dict)
    """Back ends that were built before the workers."""


@dataclass
class Running:
    """A running server."""

    config: Configuration
    certificate: Path
    addresses: dict[str, str] = field(default_factory=dict)
    """Listening addresses by protocol: ``pop3s``, ``pop3``, ``lmtp``, ``smtp`` …"""
    users: dict[str, str] = field(default_factory=dict)
    """Users created at this start, with their passwords."""
    adopt: Callable[[Configuration], None] = lambda _: None
    """Applies another configuration to new sessions; open sessions keep the old one.

    Raises ConfigurationError if the configuration is invalid; nothing has changed then."""

    def as_json(self, *, with_passwords: bool) -> dict[str, object]:
        row: dict[str, object] = {"schema": "restante/serve/1", **self.addresses}
        row["ca"] = str(self.certificate)
        if with_passwords:
            row["users"] = self.users
            row["maildir"] = self.config.store.path
        return row


@asynccontextmanager
async def running(
    config: Configuration,
    users: Users,
    store: ServableStore,
    shared: SharedResources | None = None,
) -> AsyncIterator[Running]:
    """Run the server; at the end of the context, drain the sessions and stop.

    Raises:
        ConfigurationError: a certificate or an address cannot be used.
    """
    certificate, _ = await asyncio.to_thread(certificate_files, config)
    async with AsyncExitStack() as ends:
        ends.callback(users.close)
        if shared is None:
            shared = ends.enter_context(_own_resources(config))
        parts = _ServerParts(Running(config, certificate), users, store, shared, ends)
        parts.start()
        yield parts.running


@contextmanager
def _own_resources(config: Configuration) -> Iterator[SharedResources]:
    """Open the resources of a server without other workers."""
    with listening(config) as sockets, throttling.kept(config) as throttle:
        yield SharedResources(sockets, tls_context(config), Tally(), throttle, purges=True)


class _ServerParts:
    """The parts of a server: how they start, and how they adopt another configuration.

    Each part registers a callback in ``ends`` when it has started, so the parts stop in reverse
    order: tasks, listeners, then the sessions, which are drained, and last the back ends.
    """

    _passdb: Chain
    _cache: Cache
    _service: Service
    _admission: Admission
    _intake: Intake
    _upkeep: Upkeep | None = None  # only one worker has it

    def __init__(
        self,
        running: Running,
        users: Users,
        store: ServableStore,
        shared: SharedResources,
        ends: AsyncExitStack,
    ) -> None:
        """``running`` contains the configuration at the start, and later the current one."""
        self.running = running
        self._started_with = running.config
        self._users, self._store, self._shared, self._ends = users, store, shared, ends
        self._clock = stores.clock(running.config)
        self._listeners: list[Listener] = []

    def start(self) -> None:
        """Start all parts.  The event loop serves no connection before the last has started."""
        self._open_back_ends()
        self._start_service()
        self._start_intake()
        self._listen()
        self._start_tasks()
        self.running.adopt = self._adopt

    def _open_back_ends(self) -> None:
        throttle, workers = self._shared.throttle, self._shared.workers

        def queue(backend: Backend, slots: int) -> Verifier:
            return throttling.login_queue(backend, throttle, workers, slots)

        built = self._shared.backends
        self._passdb = backends.chain(self.running.config, self._users, queue, built)
        self._ends.callback(self._passdb.close)
        has_generations = self._passdb.has_all_generations
        self._cache = Cache(self._passdb, has_all_generations=has_generations)

    def _start_service(self) -> None:
        """Create the objects that POP3 connections share."""
        throttle, context = self._shared.throttle, self._shared.context
        service = Service(
            self._store, self._passdb, self._cache, throttle, tls=context, write_event=log.write
        )
        self._ends.push_async_callback(service.drain, _GRACE)
        admission = Admission(0, 0, self._shared.tally)  # ``_apply`` sets the limits
        admission.reserved = throttle.is_known_network
        service.is_crowded = lambda: admission.is_crowded
        clock = self._clock
        service.proven_time = lambda: clock.read().proven
        self._service, self._admission = service, admission
        self._apply(self.running.config)

    def _start_intake(self) -> None:
        """Create the objects that LMTP and SMTP connections share."""
        config = self.running.config
        self._intake = Intake(
            self._store,
            self._passdb,
            config.server.hostname,
            config.limits.message,
            tls=self._shared.context,
            partial=PartialDeliveries(config.state / "intake.sqlite3"),
            postmaster=local.Recipients(config, self._users, self._passdb).postmaster,
        )
        self._ends.push_async_callback(self._intake.drain, _GRACE)

    def _listen(self) -> None:
        """Accept connections on all sockets."""
        config, service, context = self.running.config, self._service, self._shared.context
        builders: dict[str, Callable[[str, Slot, Origin], asyncio.BaseProtocol]] = {
            "pop3s": service.connection,
            "pop3": service.connection,
            "lmtp": self._intake.lmtp(),
            "smtp": self._intake.smtp(config.intake.smtp.domains),
        }
        for bound in self._shared.sockets:
            is_pop3 = bound.scheme in _POP3
            listener = Listener(
                bound.socket,
                builders[bound.scheme],
                self._admission,
                name=bound.scheme,
                tls=context if bound.scheme == "pop3s" else None,
                handshake=service.timeouts.handshake,
                busy=_BUSY if is_pop3 else _INTAKE_BUSY,
                proxy_from=config.server.proxy_from if is_pop3 else (),
                tls_at_proxy=bound.tls_at_proxy,
            )
            self._ends.callback(listener.close)
            self._listeners.append(listener)
        self.running.addresses = addresses_of(self._shared.sockets)

    def _start_tasks(self) -> None:
        """Start the work that is repeated while the server runs."""
        self._start_task(_update_terms(self._service, self._users))
        self._start_task(_end_disabled_sessions(self._service))
        if self._shared.purges:
            self._start_upkeep()
        self._start_task(_renew_tls(lambda: self._secure(self.running.config)))

    def _start_upkeep(self) -> None:
        service = self._service
        upkeep = self._upkeep = Upkeep(
            self._store,
            self._users,
            self._passdb,
            self._clock,
            terms=lambda account: service.policy.terms_of(account),
            site_expires=lambda: service.policy.terms.expire is not None,
        )
        self._ends.callback(upkeep.look)  # records the time
        self._start_task(upkeep.run_for_ever())
        self._start_task(throttling.save_for_ever(self._shared.throttle, self.running.config))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._ends.callback(asyncio.create_task(work).cancel)

    def _secure(self, config: Configuration) -> None:
        """Use the current certificate file, and new ticket keys, for later connections.

        Raises:
            ConfigurationError: the certificate cannot be used; nothing has changed.
        """
        context = tls_context(config)
        self._service.tls = self._intake.tls = context
        for listener in self._listeners:
            listener.tls = context if listener.tls else None

    def _adopt(self, config: Configuration) -> None:
        """See ``Running.adopt``."""
        self._secure(config)
        before, self.running.config = self.running.config, config
        needs_restart = any(key(config) != key(self._started_with) for key in _FIXED)
        stores.set_rules(self._store, config, self._users)
        self._apply(config)
        self._cache.clear()
        throttling.configure(self._shared.throttle, config)
        for listener in self._listeners:
            if listener.name in _POP3:
                listener.proxy_from = config.server.proxy_from
        log.set_up(config.log)
        is_changed = _RULES(before) != _RULES(config)
        self._service.spawn(_log_reload(needs_restart, self._upkeep if is_changed else None))

    def _apply(self, config: Configuration) -> None:
        """Apply the settings that may change while the server runs."""
        limits, service, admission = config.limits, self._service, self._admission
        mechanisms = offered(service.passdb, config.auth.mechanisms)
        service.policy = Policy(
            banner=config.server.banner,
            language=config.server.language,
            makes_surrogates=config.server.utf8_headers == "surrogate",
            mechanisms=tuple(name for name in mechanisms if name != "APOP"),
            terms=Terms(ceil(limits.login_delay), limits.expire),
            announced=service.policy.announced,
        )
        service.policy = replace(
            service.policy, announced=_worst_terms(self._users, service.policy)
        )
        host = config.server.hostname
        service.time_stamp = partial(time_stamp, host) if "APOP" in mechanisms else None
        polling = gateway.Gateway(config, local.Recipients(config, self._users, self._passdb))
        service.before_opening = polling.poll if polling else None
        service.xclient_from = config.server.xclient_from
        service.folder_separator = config.auth.folder_separator
        service.allow_plaintext_from = config.auth.allow_plaintext_from
        service.deletions_by_new = limits.deletions_by_new
        service.timeouts = Timeouts(login=limits.login, idle=limits.idle)
        admission.sessions = _most_connections(limits.sessions)
        admission.per_address = limits.per_address


async def _log_reload(needs_restart: bool, upkeep: Upkeep | None) -> None:
    """Log a reload, and how many messages ``upkeep`` will remove because a rule has changed."""
    changed = Forecast()
    if upkeep is not None:
        with suppress(RestanteError):  # the next round repeats it
            changed = await upkeep.forecast()
    restart = {"restart": "needed"} if needs_restart else {}
    removals = (
        {"held": changed.held, "expiring": changed.expiring, "at": moment(changed.at)}
        if changed
        else {}
    )
    _log.info("reloaded", extra={"fields": {**restart, **removals}})


_RULES = attrgetter("store.hold", "store.quota", "limits.expire")  # rules that apply to stored mail


# Settings that a reload does not change.
_FIXED: tuple[Callable[[Configuration], object], ...] = (
    attrgetter("server.listen", "server.workers", "server.hostname", "server.tls_at_proxy"),
    attrgetter("store.kind", "store.path", "store.maildrop"),
    attrgetter("intake", "limits.message"),
    attrgetter("auth.chain", "auth.deadline"),
    lambda config: [getattr(config.auth, name.replace("-", "_")) for name in BACKENDS],
    lambda config: bool(config.tls.client_ca),
)


def tls_context(config: Configuration) -> tls.ServerContext:
    certificate, key = certificate_files(config)
    wanted = config.tls
    client_ca = Path(wanted.client_ca) if wanted.client_ca else None
    can_bind = any(name.endswith("-PLUS") for name in config.auth.mechanisms)
    return tls.server_context(certificate, key, wanted.min_version, client_ca, can_bind=can_bind)


def certificate_files(config: Configuration) -> tuple[Path, Path]:
    wanted = config.tls
    if wanted.mode == "files":
        return Path(wanted.cert), Path(wanted.key)
    names = [config.server.hostname, "localhost", "127.0.0.1", "::1"]
    return tls.make_self_signed(config.state / "tls", list(dict.fromkeys(names)))


def make_first_user(config: Configuration, users: Users) -> tuple[str, str] | None:
    """Add a user for a server without a configuration; return name and password."""
    if config.source is not None or users.list():
        return None
    password = passwords.generate()
    users.add("me", password)
    if not any(Path(Template(config.store.path).base).glob("*")):
        with suppress(OSError):  # no mail exists that a wrong clock could destroy
            stores.clock(config).accept()
    return "me", password


async def _update_terms(service: Service, users: Users) -> None:
    """Update the announced terms regularly.  Until then, no user waits longer than announced."""
    while True:
        await asyncio.sleep(_TERMS_EVERY)
        announced = await asyncio.to_thread(_worst_terms, users, service.policy)
        service.policy = replace(service.policy, announced=announced)


async def _end_disabled_sessions(service: Service) -> None:
    """End the sessions of users who were disabled during a session."""
    while True:
        await asyncio.sleep(_REVIEW_EVERY)
        try:
            await service.end_disabled()
        except Exception:  # the next round tries again
            _log.exception("bug", extra={"fields": {"via": "review"}})


def _worst_terms(users: Users, policy: Policy) -> Terms | None:
    try:
        return users.worst_terms(policy.terms)
    except RestanteError as error:
        _log.warning("users not read", extra={"fields": {"reason": str(error)}})
        return policy.announced


async def _renew_tls(secure: Callable[[], None]) -> None:
    """Replace the TLS context daily, and with it the key of its session tickets.

    A stolen key then does not decrypt older sessions.  A renewed certificate is loaded as well.
    """
    while True:
        await asyncio.sleep(_RENEW_EVERY)
        try:
            secure()
        except Exception as error:  # if a file is invalid, the old certificate stays in use
            _log.error("certificate refused", extra={"fields": {"reason": str(error)}})
