"""Build the server from the configuration, run it, reload it, and drain it when it stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
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
from typing import TYPE_CHECKING, Any

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
from ..server.login import supported_mechanisms, time_stamp
from ..server.pop3 import Service
from ..server.proxy import Origin
from ..shared import Tally
from ..store.partial import PartialDeliveries
from ..store.paths import Template
from . import backends, control_socket, gateway, local, stores, systemd, throttling
from .live import Live, Site
from .measuring import measure
from .monitoring import Monitor
from .reloads import Reloads
from .sockets import MONITORING, BoundSocket, addresses_of, listeners_as_json, listening
from .upkeep import Upkeep, format_time

if TYPE_CHECKING:
    from .server_alerts import ServerAlerts

_new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
with suppress(ImportError):  # uvloop has no wheel for Windows or for some interpreters
    import uvloop

    _new_loop = uvloop.new_event_loop

_log = logging.getLogger("restante.serve")
_GRACE = 10.0  # seconds for which busy sessions may continue after SIGTERM
_RENEW_EVERY = 86_400.0  # seconds after which the key for TLS session tickets is replaced
_REVIEW_EVERY = 1.0  # seconds between two searches for sessions of disabled users
_TERMS_EVERY = 60.0  # seconds between two updates of the terms; other processes may change users
# File descriptors for a worker without connections.  The value is twice the measured number.
_OWN_DESCRIPTORS = 64
_CONNECTION_DESCRIPTORS = 3  # per connection: the socket, the maildrop's lock, and a message
_POP3_SCHEMES = ("pop3s", "pop3")
_BUSY = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
_INTAKE_BUSY = b"421 4.7.0 too many connections, try again later\r\n"


def worker_count(config: Configuration) -> int:
    """Return the number of workers: the configured number, or one for each processor.

    Returns 1 if there is no configuration file, or if the store is in memory and cannot be shared.
    """
    if config.source is None or config.store.kind == "memory":
        return 1
    return config.server.workers or _processors()


def _processors() -> int:
    """Return the number of processors that this process may use (on macOS, of all processors)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def needed_descriptors(connections: int) -> int:
    """Return how many file descriptors a worker needs for a number of connections."""
    return _OWN_DESCRIPTORS + connections * _CONNECTION_DESCRIPTORS


def _max_connections(configured: int) -> int:
    """Return ``configured``, or a lower number if there are not enough file descriptors for it.

    At the maximum, a new connection replaces the oldest one that has not logged in.  If descriptors
    ran out first, the server could not accept any connection, which would lock out all users.
    The soft limit of descriptors protects only programs that use select(2), so it is raised
    (systemd.exec(5), LimitNOFILE).  The maximum applies to all workers together, because one worker
    may get all connections.
    """
    needed = needed_descriptors(configured)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < raised:
        with suppress(OSError, ValueError):  # macOS has another limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return configured
    possible = max(1, (soft - _OWN_DESCRIPTORS) // _CONNECTION_DESCRIPTORS)
    fields = {"wanted": configured, "most": possible, "descriptors": soft}
    _log.warning("connections limited", extra={"fields": fields})
    return possible


def run_loop(work: Awaitable[None]) -> None:
    """Run ``work`` in a new event loop."""
    freeze()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_await(work))


def freeze() -> None:
    """Exclude all existing objects from garbage collection, and collect less often.

    A supervisor calls this function before it forks: a garbage collection in a worker writes to
    each object, and thus copies the memory that the workers share.  Sessions create no large
    reference cycles.  A collection after every 700 new objects (Python's default) would examine the
    objects of thousands of sessions and find no garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _await(work: Awaitable[None]) -> None:
    """Turn an awaitable into the coroutine that ``Runner.run`` requires."""
    await work


def reload(adopt: Callable[[], object]) -> str | None:
    """Call ``adopt`` to reload the configuration, and return why it was refused, or None.

    If the new configuration is invalid, the old one stays in force.
    """
    systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        adopt()
    except RestanteError as error:
        _log.error("reload failed", extra={"fields": {"reason": str(error)}})
        return str(error)
    except Exception as error:  # the server must survive any content of a file
        _log.exception("reload failed", extra={"fields": {"reason": repr(error)}})
        return repr(error)
    finally:
        systemd.notify("READY=1")
    return None


@dataclass(frozen=True, slots=True)
class SharedResources:
    """Resources that the workers of one server share, and the duties of this worker."""

    sockets: Sequence[BoundSocket]
    """Open sockets to listen on."""
    context: tls.ServerContext
    tally: Tally
    throttle: Throttle
    does_upkeep: bool
    """Whether this worker expires mail, destroys held mail and saves the throttle's state."""
    workers: int = 1
    backends: Mapping[str, Backend] = field(default_factory=dict)
    """Back ends that were built before the workers were forked, by name."""
    number: int = 0
    """This worker's number."""
    site: Site = field(kw_only=True)
    """Data about the whole server, for the control sockets."""


@dataclass
class Running:
    """A running server: its addresses, and the function that changes its configuration."""

    config: Configuration
    certificate: Path
    """The file with the server's certificate."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Listening addresses by protocol: ``pop3s``, ``pop3``, ``lmtp``, ``smtp`` …"""
    users: dict[str, str] = field(default_factory=dict)
    """Passwords of the users who were created when the server started, by user name."""
    adopt: Callable[[Configuration], None] = lambda _: None
    """Applies another configuration to new sessions; open sessions keep the old one.

    Raises ConfigurationError if the configuration is invalid; the old one then stays in force."""

    def as_json(self, *, with_passwords: bool) -> dict[str, object]:
        """Return the object that `restante serve --json` prints."""
        result: dict[str, object] = {"schema": "restante/serve/1", **self.addresses}
        result["ca"] = str(self.certificate)
        if with_passwords:
            result["users"] = self.users
            result["maildir"] = self.config.store.path
        return result


@asynccontextmanager
async def running(
    config: Configuration,
    users: Users,
    store: ServableStore,
    shared: SharedResources | None = None,
    *,
    site: Site | None = None,
) -> AsyncIterator[Running]:
    """Run the server; when the context ends, drain the sessions and stop the server.

    ``site`` is for a server without ``shared`` resources.

    Raises:
        ConfigurationError: a certificate or an address cannot be used.
    """
    certificate, _ = await asyncio.to_thread(certificate_files, config)
    async with AsyncExitStack() as exit_stack:
        exit_stack.callback(users.close)
        if shared is None:
            shared = exit_stack.enter_context(_own_resources(config, site or Site(1, Reloads(1))))
        parts = _ServerParts(Running(config, certificate), users, store, shared, exit_stack)
        # Closed last, so that the operator can watch the server drain.
        await exit_stack.enter_async_context(control_socket.serving(parts.live, parts.monitor))
        monitored = [each for each in shared.sockets if each.scheme == MONITORING]
        await exit_stack.enter_async_context(parts.monitor.serving(monitored))
        parts.start()
        exit_stack.callback(parts.live.stop)
        yield parts.running


@contextmanager
def _own_resources(config: Configuration, site: Site) -> Iterator[SharedResources]:
    """Open the resources of a server that runs in a single process."""
    with (
        listening(config) as sockets,
        throttling.saved_throttle(config) as throttle,
        log.watched(site.incidents.watch),
    ):
        context = tls_context(config)
        yield SharedResources(sockets, context, Tally(), throttle, does_upkeep=True, site=site)


class _ServerParts:
    """Starts the parts of a server, and applies a new configuration to them.

    Each part registers a callback in ``exit_stack`` when it has started, so the parts stop in
    reverse order: first the tasks and the listeners, then the sessions, which are drained, and
    finally the back ends.
    """

    _passdb: Chain
    _cache: Cache
    _service: Service
    _admission: Admission
    _intake: Intake
    _upkeep: Upkeep | None = None  # only one worker does the upkeep
    _alerts: ServerAlerts | None = None  # only one worker sends alerts

    def __init__(
        self,
        running: Running,
        users: Users,
        store: ServableStore,
        shared: SharedResources,
        exit_stack: AsyncExitStack,
    ) -> None:
        """Prepare the parts; ``running.config`` is always the current configuration."""
        self.running = running
        self._initial_config = running.config
        self._users, self._store, self._shared, self._exit_stack = users, store, shared, exit_stack
        self._clock = stores.clock(running.config)
        self._listeners: list[Listener] = []
        self._context = shared.context
        self.live = Live(
            number=shared.number,
            site=shared.site,
            runtime=running.config.runtime,
            config=lambda: self.running.config,
            certificate_end=lambda: self._context.ends_at,
            needs_restart=self._needs_restart,
            listeners=partial(listeners_as_json, shared.sockets),
        )
        self.monitor = Monitor(self.live, lambda: self._passdb.backends)

    def start(self) -> None:
        """Start all parts.  No connection is served before this method returns."""
        self._start_alerts()  # first, so that they end last
        self._open_back_ends()
        self._start_service()
        self._start_intake()
        self._listen()
        self.live.services = (self._service, self._intake)
        self._start_tasks()
        self.running.adopt = self._adopt

    def _start_alerts(self) -> None:
        """Start to send alerts if they are configured, and if this worker sends them."""
        alert = self.running.config.alert
        if self._alerts or not self._shared.does_upkeep or not (alert.to or alert.webhook):
            return
        from .server_alerts import ServerAlerts  # not needed by most servers

        incidents, config = self._shared.site.incidents, lambda: self.running.config
        self._alerts = ServerAlerts(incidents, config, lambda: self._context.ends_at)
        self._exit_stack.push_async_callback(self._alerts.close)
        self._start_task(self._alerts.run_for_ever())

    def _open_back_ends(self) -> None:
        throttle, workers = self._shared.throttle, self._shared.workers

        def queue(backend: Backend, slots: int) -> Verifier:
            return throttling.login_queue(backend, throttle, workers, slots)

        built = self._shared.backends
        self._passdb = backends.chain(self.running.config, self._users, queue, built)
        self._exit_stack.callback(self._passdb.close)
        has_generations = self._passdb.has_all_generations
        self._cache = Cache(self._passdb, has_all_generations=has_generations)

    def _start_service(self) -> None:
        """Create the objects that POP3 connections share."""
        throttle, context = self._shared.throttle, self._shared.context
        service = Service(
            self._store,
            self._passdb,
            self._cache,
            throttle,
            tls=context,
            write_event=log.write,
            counts=self._shared.site.counters.values,
        )
        self._exit_stack.push_async_callback(service.drain, _GRACE)
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
            counts=self._shared.site.counters.values,
            partial=PartialDeliveries(config.state / "intake.sqlite3"),
            postmaster=local.Recipients(config, self._users, self._passdb).postmaster,
        )
        self._exit_stack.push_async_callback(self._intake.drain, _GRACE)

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
            if bound.scheme == MONITORING:
                continue
            is_pop3 = bound.scheme in _POP3_SCHEMES
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
                counts=self._shared.site.counters.values,
            )
            self._exit_stack.callback(listener.close)
            self._listeners.append(listener)
        self.running.addresses = addresses_of(self._shared.sockets)

    def _start_tasks(self) -> None:
        """Start the tasks that repeat their work while the server runs."""
        self._exit_stack.callback(self.monitor.publish)
        self._start_task(self.monitor.run_for_ever())
        self._start_task(_update_terms(self._service, self._users))
        self._start_task(_end_disabled_sessions(self._service))
        if self._shared.does_upkeep:
            self._start_upkeep()
        self._start_task(_renew_tls(lambda: self._replace_tls(self.running.config)))

    def _start_upkeep(self) -> None:
        service, base = self._service, stores.base(self.running.config)
        upkeep = self._upkeep = Upkeep(
            self._store,
            self._users,
            self._passdb,
            self._clock,
            terms=lambda account: service.policy.terms_of(account),
            site_expires=lambda: service.policy.terms.expire is not None,
            measure=partial(measure, self._store, base, self._shared.site.counters.values),
        )
        self._exit_stack.callback(upkeep.read_clock)  # also records when the server stops
        self._start_task(upkeep.run_for_ever())
        self._start_task(throttling.save_for_ever(self._shared.throttle, self.running.config))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._exit_stack.callback(asyncio.create_task(work).cancel)

    def _replace_tls(self, config: Configuration) -> None:
        """Load the certificate again, and use it and new ticket keys for later connections.

        Raises:
            ConfigurationError: the certificate cannot be used; the old one stays in use.
        """
        context = tls_context(config)
        self._service.tls = self._intake.tls = self._context = context
        for listener in self._listeners:
            listener.tls = context if listener.tls else None

    def _adopt(self, config: Configuration) -> None:
        """See ``Running.adopt``."""
        self._replace_tls(config)
        previous, self.running.config = self.running.config, config
        stores.set_rules(self._store, config, self._users)
        self._apply(config)
        self._cache.clear()
        throttling.configure(self._shared.throttle, config)
        for listener in self._listeners:
            if listener.name in _POP3_SCHEMES:
                listener.proxy_from = config.server.proxy_from
        log.set_up(config.log)
        self._start_alerts()
        has_new_rules = _retention_rules(previous) != _retention_rules(config)
        upkeep = self._upkeep if has_new_rules else None
        self._service.spawn(_log_reload(self._needs_restart(), upkeep))

    def _needs_restart(self) -> bool:
        """Return whether settings have changed that a reload does not change."""
        config = self.running.config
        return any(get(config) != get(self._initial_config) for get in _FIXED_SETTINGS)

    def _apply(self, config: Configuration) -> None:
        """Apply the settings that may change while the server runs."""
        limits, service, admission = config.limits, self._service, self._admission
        mechanisms = supported_mechanisms(service.passdb, config.auth.mechanisms)
        service.policy = Policy(
            banner=config.server.banner,
            language=config.server.language,
            makes_surrogates=config.server.utf8_headers == "surrogate",
            mechanisms=tuple(name for name in mechanisms if name != "APOP"),
            terms=Terms(ceil(limits.login_delay), limits.expire),
            announced=service.policy.announced,
        )
        service.policy = replace(
            service.policy, announced=_terms_to_announce(self._users, service.policy)
        )
        host = config.server.hostname
        service.time_stamp = partial(time_stamp, host) if "APOP" in mechanisms else None
        recipients = local.Recipients(config, self._users, self._passdb)
        polling = gateway.Gateway(config, recipients, service.counts)
        service.before_opening = polling.poll if polling else None
        service.xclient_from = config.server.xclient_from
        service.folder_separator = config.auth.folder_separator
        service.allow_plaintext_from = config.auth.allow_plaintext_from
        service.deletions_by_new_credential = limits.deletions_by_new
        service.timeouts = Timeouts(login=limits.login, idle=limits.idle)
        admission.sessions = _max_connections(limits.sessions)
        admission.per_address = limits.per_address


async def _log_reload(needs_restart: bool, upkeep: Upkeep | None) -> None:
    """Log a reload, and how many messages ``upkeep`` will remove because a rule has changed.

    ``upkeep`` is None if no rule has changed, or if another worker does the upkeep.
    """
    changed = Forecast()
    if upkeep is not None:
        with suppress(RestanteError):  # the next round of the upkeep logs the removals
            changed = await upkeep.forecast()
    restart = {"restart": "needed"} if needs_restart else {}
    removals = (
        {"held": changed.held, "expiring": changed.expiring, "at": format_time(changed.at)}
        if changed
        else {}
    )
    _log.info("reloaded", extra={"fields": {**restart, **removals}})


# Settings that decide when stored mail is removed.
_retention_rules = attrgetter("store.hold", "store.quota", "limits.expire")


# Settings that take effect only when the server is restarted.
_FIXED_SETTINGS: tuple[Callable[[Configuration], object], ...] = (
    attrgetter("server.listen", "server.workers", "server.hostname", "server.tls_at_proxy"),
    attrgetter("store.kind", "store.path", "store.maildrop"),
    attrgetter("intake", "limits.message", "metrics.listen"),
    attrgetter("auth.chain", "auth.deadline"),
    lambda config: [getattr(config.auth, name.replace("-", "_")) for name in BACKENDS],
    lambda config: bool(config.tls.client_ca),
)


def tls_context(config: Configuration) -> tls.ServerContext:
    """Return a TLS context for the configured certificate, with new ticket keys.

    Raises:
        ConfigurationError: the certificate cannot be used.
    """
    certificate, key = certificate_files(config)
    settings = config.tls
    client_ca = Path(settings.client_ca) if settings.client_ca else None
    can_bind = any(name.endswith("-PLUS") for name in config.auth.mechanisms)
    return tls.server_context(certificate, key, settings.min_version, client_ca, can_bind=can_bind)


def certificate_files(config: Configuration) -> tuple[Path, Path]:
    """Return the paths of the certificate and its key.

    Unless files are configured, a self-signed certificate is created if necessary.
    """
    settings = config.tls
    if settings.mode == "files":
        return Path(settings.cert), Path(settings.key)
    names = [config.server.hostname, "localhost", "127.0.0.1", "::1"]
    return tls.make_self_signed(config.state / "tls", list(dict.fromkeys(names)))


def make_first_user(config: Configuration, users: Users) -> tuple[str, str] | None:
    """Create the user of a server that runs without a configuration; return name and password.

    Returns None if there is a configuration, or if users exist.
    """
    if config.source is not None or users.list():
        return None
    password = passwords.generate()
    users.add("me", password)
    if not any(Path(Template(config.store.path).base).glob("*")):
        with suppress(OSError):  # without stored mail, a wrong clock does no harm
            stores.clock(config).accept()
    return "me", password


async def _update_terms(service: Service, users: Users) -> None:
    """Regularly update the terms that are announced before login.

    Between updates, ``Policy.terms_of`` limits each user's login delay to the announced delay.
    """
    while True:
        await asyncio.sleep(_TERMS_EVERY)
        announced = await asyncio.to_thread(_terms_to_announce, users, service.policy)
        service.policy = replace(service.policy, announced=announced)


async def _end_disabled_sessions(service: Service) -> None:
    """Regularly end the sessions of users who have been disabled."""
    while True:
        await asyncio.sleep(_REVIEW_EVERY)
        try:
            await service.end_disabled()
        except Exception:  # the next round tries again
            _log.exception("bug", extra={"fields": {"via": "review"}})


def _terms_to_announce(users: Users, policy: Policy) -> Terms | None:
    """Return the terms to announce before login; the previous ones if users cannot be read."""
    try:
        return users.announced_terms(policy.terms)
    except RestanteError as error:
        _log.warning("users not read", extra={"fields": {"reason": str(error)}})
        return policy.announced


async def _renew_tls(replace_tls: Callable[[], None]) -> None:
    """Replace the TLS context daily, and with it the key that encrypts session tickets.

    Thus a stolen key cannot decrypt the sessions of earlier days.  A renewed certificate is also
    loaded.
    """
    while True:
        await asyncio.sleep(_RENEW_EVERY)
        try:
            replace_tls()
        except Exception as error:  # if a file is invalid, the old certificate stays in use
            _log.error("certificate refused", extra={"fields": {"reason": str(error)}})
