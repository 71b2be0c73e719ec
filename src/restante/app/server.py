"""A server at work: built from the configuration, reloaded, and drained at its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from operator import attrgetter
from pathlib import Path

from .. import log, tls
from ..auth import passwords
from ..auth.cache import Cache
from ..auth.chain import Backend, Verifier
from ..auth.throttle import Throttle
from ..auth.users import Users
from ..config import BACKENDS, Configuration
from ..errors import RestanteError
from ..maildrop import Forecast, ServableStore, Store
from ..passdb import Directory, Terms
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

_log = logging.getLogger("restante.serve")
_GRACE = 10.0  # seconds that busy sessions get after SIGTERM
_THREADS = 32  # that may wait for a disk; nobody else waits until so many do
_RENEW_EVERY = 86_400.0  # seconds
_REVIEW_EVERY = 1.0  # seconds between two looks for sessions of users who were disabled
_TERMS_EVERY = 60.0  # seconds; the users are changed by another program
_OWN_DESCRIPTORS = 64  # of a worker with no connections, twice what was counted
_DESCRIPTORS = 3  # of a connection: itself, the maildrop's lock, and a message
_BUSY = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
_INTAKE_BUSY = b"421 4.7.0 too many connections, try again later\r\n"


def worker_count(configuration: Configuration) -> int:
    """One for trying it out and for a store in memory, which cannot be shared; else as configured,
    or one for each processor."""
    if configuration.source is None or configuration.store.kind == "memory":
        return 1
    return configuration.server.workers or _processors()


def _processors() -> int:
    """Those that this process may use, where the system can say so (macOS cannot)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _most_connections(wanted: int) -> int:
    """Fewer than are wanted if a process may not open that many files: then the first that has not
    logged in makes room before accepting has to pause, which would shut every user out.

    The soft limit is for programs that use select(2) and is raised (systemd.exec(5), LimitNOFILE).
    All workers may have as many as one, because the system may give one of them all connections.
    """
    needed = _OWN_DESCRIPTORS + wanted * _DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < raised:
        with suppress(OSError, ValueError):  # macOS has one more limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = max(1, (soft - _OWN_DESCRIPTORS) // _DESCRIPTORS)
    fields = {"wanted": wanted, "most": most, "descriptors": soft}
    _log.warning("connections limited", extra={"fields": fields})
    return most


def run_loop(work: Awaitable[None]) -> None:
    try:
        import uvloop
    except ImportError:  # Windows, or an interpreter without a wheel
        loop_factory = None
    else:
        loop_factory = uvloop.new_event_loop
    # What is here now stays, and sessions make no cycles that memory waits for: looking for some
    # each 700 objects, among those of thousands of sessions, is time for nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_await(work))


async def _await(work: Awaitable[None]) -> None:
    await work


def reload(adopt: Callable[[], object]) -> bool:
    """What is wrong with the new configuration leaves the old one in force."""
    systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        adopt()
    except RestanteError as error:
        _log.error("reload failed", extra={"fields": {"reason": str(error)}})
        return False
    except Exception as error:  # only SIGTERM ends a server, and never what a file holds
        _log.exception("reload failed", extra={"fields": {"reason": repr(error)}})
        return False
    finally:
        systemd.notify("READY=1")
    return True


@dataclass(frozen=True, slots=True)
class SharedResources:
    """What the workers of one server have in common."""

    places: Sequence[BoundSocket]
    context: ssl.SSLContext
    tally: Tally
    throttle: Throttle
    purges: bool
    """Also keeps what the throttle knows."""
    workers: int = 1


@dataclass
class Running:
    """A server at work."""

    configuration: Configuration
    certificate: Path
    addresses: dict[str, str] = field(default_factory=dict)
    """Where it listens, by what is spoken there: ``pop3s``, ``pop3``, ``lmtp``, ``smtp`` …"""
    users: dict[str, str] = field(default_factory=dict)
    """Users made at this start, with their passwords."""
    adopt: Callable[[Configuration], None] = lambda _: None
    """Puts another configuration in force for what begins from now on; sessions go on as they
    began.  Raises ConfigurationError, and nothing has changed."""

    def as_json(self, *, with_passwords: bool) -> dict[str, object]:
        found: dict[str, object] = {"schema": "restante/serve/1", **self.addresses}
        found["ca"] = str(self.certificate)
        if with_passwords:
            found["users"] = self.users
            found["maildir"] = self.configuration.store.path
        return found


@asynccontextmanager
async def running(
    configuration: Configuration,
    users: Users,
    store: ServableStore,
    shared: SharedResources | None = None,
) -> AsyncIterator[Running]:
    """Listen everywhere the configuration says; on leaving, drain and stop.

    Raises:
        ConfigurationError: a certificate or an address that cannot be used.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, "disk"))
    certificate, _ = await asyncio.to_thread(certificate_files, configuration)
    server = Running(configuration, certificate)
    async with AsyncExitStack() as stack:
        stack.callback(users.close)
        if shared is None:
            places = stack.enter_context(listening(configuration))
            throttle = stack.enter_context(throttling.kept(configuration))
            shared = SharedResources(
                places, tls_context(configuration), Tally(), throttle, purges=True
            )
        throttle, workers = shared.throttle, shared.workers

        def queue(backend: Backend, slots: int) -> Verifier:
            return throttling.login_queue(backend, throttle, workers, slots)

        passdb = backends.chain(configuration, users, queue)
        stack.callback(passdb.close)
        cache = Cache(passdb, has_all_generations=passdb.has_all_generations)
        service = Service(store, passdb, cache, throttle, tls=shared.context)
        stack.push_async_callback(service.drain, _GRACE)
        admission = Admission(0, 0, shared.tally)
        admission.reserved = throttle.is_home
        service.is_crowded = lambda: admission.is_crowded
        _apply(service, admission, configuration, users, passdb)
        intake = _intake(configuration, passdb, users, store, shared.context)
        stack.push_async_callback(intake.drain, _GRACE)
        domains = configuration.intake.smtp.domains
        builders: dict[str, Callable[[str, Slot, Origin], asyncio.BaseProtocol]] = {
            "pop3s": service.connection,
            "pop3": service.connection,
            "lmtp": intake.lmtp(),
            "smtp": intake.smtp(domains),
        }
        listeners = []
        for place in shared.places:
            is_pop3 = place.scheme in ("pop3s", "pop3")
            listener = Listener(
                place.socket,
                builders[place.scheme],
                admission,
                name=place.scheme,
                tls=shared.context if place.scheme == "pop3s" else None,
                handshake=service.timeouts.handshake,
                busy=_BUSY if is_pop3 else _INTAKE_BUSY,
                proxy_from=configuration.server.proxy_from if is_pop3 else (),
                tls_at_proxy=place.tls_at_proxy,
            )
            stack.callback(listener.close)
            listeners.append(listener)
        server.addresses = addresses_of(shared.places)
        watching = asyncio.create_task(_update_terms(service, users))
        stack.callback(watching.cancel)
        reviewing = asyncio.create_task(_end_disabled_sessions(service))
        stack.callback(reviewing.cancel)
        clock = stores.clock(configuration)
        service.proven_time = lambda: clock.read().proven
        upkeep = None
        if shared.purges:
            upkeep = Upkeep(
                store,
                users,
                passdb,
                clock,
                terms=lambda account: service.policy.terms_of(account),
                site_expires=lambda: service.policy.terms.expire is not None,
            )
            stack.callback(upkeep.look)
            keeping_up = asyncio.create_task(upkeep.run_for_ever())
            stack.callback(keeping_up.cancel)
            saving = asyncio.create_task(throttling.save_for_ever(throttle, configuration))
            stack.callback(saving.cancel)

        def secure(config: Configuration) -> None:
            context = tls_context(config)
            service.tls = intake.tls = context
            for listener in listeners:
                listener.tls = context if listener.tls else None

        def adopt(config: Configuration) -> None:
            secure(config)
            before, server.configuration = server.configuration, config
            fixed = [key for key in _FIXED if key(config) != key(configuration)]
            stores.set_rules(store, config, users)
            _apply(service, admission, config, users, passdb)
            cache.clear()
            throttling.configure(throttle, config)
            for listener in listeners:
                if listener.name in ("pop3s", "pop3"):
                    listener.proxy_from = config.server.proxy_from
            log.set_up(config.log)
            is_changed = _RULES(before) != _RULES(config)
            service.spawn(_log_reload(bool(fixed), upkeep if is_changed else None))

        renewing = asyncio.create_task(_renew_tls(lambda: secure(server.configuration)))
        stack.callback(renewing.cancel)
        server.adopt = adopt
        yield server


async def _log_reload(needs_restart: bool, upkeep: Upkeep | None) -> None:
    """``upkeep``: it is asked what will go because a rule has changed."""
    changed = Forecast()
    if upkeep is not None:
        with suppress(RestanteError):  # it is asked again in the next round
            changed = await upkeep.forecast()
    restart = {"restart": "needed"} if needs_restart else {}
    goes = (
        {"held": changed.held, "expiring": changed.expiring, "at": moment(changed.at)}
        if changed
        else {}
    )
    _log.info("reloaded", extra={"fields": {**restart, **goes}})


_RULES = attrgetter("store.hold", "store.quota", "limits.expire")  # what mail was made under


# What a reload leaves as it was.
_FIXED: tuple[Callable[[Configuration], object], ...] = (
    attrgetter("server.listen", "server.workers", "server.hostname", "server.tls_at_proxy"),
    attrgetter("store.kind", "store.path", "store.maildrop"),
    attrgetter("intake", "limits.message"),
    attrgetter("auth.chain", "auth.deadline"),
    lambda config: [getattr(config.auth, name.replace("-", "_")) for name in BACKENDS],
    lambda found: bool(found.tls.client_ca),
)


def _apply(
    service: Service,
    admission: Admission,
    configuration: Configuration,
    users: Users,
    directory: Directory,
) -> None:
    """What may change while it serves."""
    limits = configuration.limits
    mechanisms = offered(service.passdb, configuration.auth.mechanisms)
    service.policy = Policy(
        banner=configuration.server.banner,
        language=configuration.server.language,
        makes_surrogates=configuration.server.utf8_headers == "surrogate",
        mechanisms=tuple(name for name in mechanisms if name != "APOP"),
        terms=Terms(ceil(limits.login_delay), limits.expire),
        announced=service.policy.announced,
    )
    service.policy = replace(service.policy, announced=_worst_terms(users, service.policy))
    host = configuration.server.hostname
    service.time_stamp = partial(time_stamp, host) if "APOP" in mechanisms else None
    polling = gateway.Gateway(configuration, local.Recipients(configuration, users, directory))
    service.before_opening = polling.poll if polling else None
    service.xclient_from = configuration.server.xclient_from
    service.folder_separator = configuration.auth.folder_separator
    service.allow_plaintext_from = configuration.auth.allow_plaintext_from
    service.deletions_by_new = limits.deletions_by_new
    service.timeouts = Timeouts(login=limits.login, idle=limits.idle)
    admission.sessions = _most_connections(limits.sessions)
    admission.per_address = limits.per_address


def tls_context(configuration: Configuration) -> ssl.SSLContext:
    certificate, key = certificate_files(configuration)
    wanted = configuration.tls
    client_ca = Path(wanted.client_ca) if wanted.client_ca else None
    return tls.server_context(certificate, key, wanted.min_version, client_ca)


def _intake(
    configuration: Configuration,
    directory: Directory,
    users: Users,
    store: Store,
    context: ssl.SSLContext,
) -> Intake:
    return Intake(
        store,
        directory,
        configuration.server.hostname,
        configuration.limits.message,
        tls=context,
        partial=PartialDeliveries(configuration.state / "intake.sqlite3"),
        postmaster=local.Recipients(configuration, users, directory).postmaster,
    )


def certificate_files(configuration: Configuration) -> tuple[Path, Path]:
    wanted = configuration.tls
    if wanted.mode == "files":
        return Path(wanted.cert), Path(wanted.key)
    names = [configuration.server.hostname, "localhost", "127.0.0.1", "::1"]
    return tls.make_self_signed(configuration.state / "tls", list(dict.fromkeys(names)))


def make_first_user(configuration: Configuration, users: Users) -> tuple[str, str] | None:
    """Add a user to try a server with that has no configuration; return name and password."""
    if configuration.source is not None or users.list():
        return None
    password = passwords.generate()
    users.add("me", password)
    if not any(Path(Template(configuration.store.path).base).glob("*")):
        with suppress(OSError):  # there is no mail that a wrong clock could destroy
            stores.clock(configuration).accept()
    return "me", password


async def _update_terms(service: Service, users: Users) -> None:
    """Announce what users have now; until then none waits longer than was announced."""
    while True:
        await asyncio.sleep(_TERMS_EVERY)
        announced = await asyncio.to_thread(_worst_terms, users, service.policy)
        service.policy = replace(service.policy, announced=announced)


async def _end_disabled_sessions(service: Service) -> None:
    """A user who is disabled while a session is open must not go on reading."""
    while True:
        await asyncio.sleep(_REVIEW_EVERY)
        try:
            await service.end_disabled()
        except Exception:  # the sessions go on, and the next time will do
            _log.exception("bug", extra={"fields": {"via": "review"}})


def _worst_terms(users: Users, policy: Policy) -> Terms | None:
    try:
        return users.worst_terms(policy.terms)
    except RestanteError as error:
        _log.warning("users not read", extra={"fields": {"reason": str(error)}})
        return policy.announced


async def _renew_tls(secure: Callable[[], None]) -> None:
    """A context lives for a day, and with it the key that opens its tickets: who steals the key
    reads no older sessions.  A certificate that was renewed meanwhile is found, too."""
    while True:
        await asyncio.sleep(_RENEW_EVERY)
        try:
            secure()
        except Exception as error:  # whatever the file holds, the old one stays in force
            _log.error("certificate refused", extra={"fields": {"reason": str(error)}})
