"""``restante serve``: POP3 out, LMTP and SMTP in, until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from .. import __version__, config, log, tls
from ..auth import passwords
from ..auth.cache import Cache
from ..auth.chain import Backend, Queued
from ..auth.throttle import Throttle
from ..auth.users import Users
from ..config import Configuration, Server
from ..errors import ConfigurationError, RestanteError
from ..maildrop import Forecast, Store
from ..passdb import Directory, Terms
from ..pop3.session import Policy
from ..posix import resource
from ..server.connection import Timeouts
from ..server.intake import Intake
from ..server.listener import Address, Admission, Listener, Seat, bind
from ..server.login import offered, time_stamp
from ..server.pop3 import Service
from ..server.proxy import Origin
from ..shared import SharedTally, Tally
from ..store.maildir import MaildirStore
from ..store.memory import MemoryStore
from ..store.partial import PartialDeliveries
from . import common, gateway, guessing, identities, local, systemd
from .terminal import Terminal
from .upkeep import Upkeep, moment
from .workers import BEAT, Lines, Supervisor

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


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("serve", help="serve POP3, and take mail in by LMTP and SMTP")
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="serve POP3 here instead, e.g. pop3s://127.0.0.1:1995; may be given again",
    )
    parser.add_argument(
        "--ephemeral",
        action="store_true",
        help="for tests: temporary mail, free ports, one user; tells all in one line of JSON and "
        "stops when its standard input ends",
    )
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="create this once mail can come and go"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT, the end of the terminal, or with ``--ephemeral`` the end of
    standard input."""
    with _configured(options) as configuration:
        log.set_up(configuration.log)
        with suppress(OSError):  # before a file there gets a time stamp from a clock that jumped
            common.clock(configuration).advance()
        count = _workers(configuration)
        if count > 1:
            return _supervise(configuration, options, count)
        run_loop(_serve(configuration, options))
    return os.EX_OK


def _workers(configuration: Configuration) -> int:
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


@contextmanager
def _configured(options: argparse.Namespace) -> Iterator[Configuration]:
    if not options.ephemeral:
        yield _configuration(options)
        return
    with TemporaryDirectory(prefix="restante-") as folder:
        yield config.ephemeral(Path(folder))


async def _serve(configuration: Configuration, options: argparse.Namespace) -> None:
    """All in this process."""
    terminal, stop = Terminal(), _listen_to_signals()
    common.look_over(configuration)
    users = common.users(configuration)
    store = common.store(configuration, users)
    first_user = await asyncio.to_thread(_first_user, configuration, users)
    await asyncio.to_thread(gateway.look_over, configuration)
    async with running(configuration, users, store) as server:
        server.users = dict([first_user] if first_user else [])
        _listen_to_hangup(server, options, stop, lambda: terminal.is_closed() or options.ephemeral)
        beating = asyncio.create_task(_beat(lambda: systemd.notify("WATCHDOG=1")))
        with _told_ready(server, options):
            if options.ephemeral:
                _watch_input(stop)
            await stop.wait()
            _log.info("stopping", extra={"fields": {}})
            systemd.notify("STOPPING=1")
        beating.cancel()


def _supervise(configuration: Configuration, options: argparse.Namespace, count: int) -> int:
    """Workers serve; this process looks after them."""
    common.look_over(configuration)
    common.store(configuration)  # what is wrong with it is told once, not by each worker
    first_user = _first_user(configuration, common.users(configuration))
    gateway.look_over(configuration)
    certificate, _ = _certificate(configuration)
    # Made before the workers, so that a TLS session begun with one is resumed with any.
    context = _context(configuration)
    server = Running(configuration, certificate)
    server.users = dict([first_user] if first_user else [])

    def work(lines: Lines) -> None:
        tally.serve_as(lines.number)
        os.environ.pop("NOTIFY_SOCKET", None)  # systemd hears the supervisor
        common_ground = Ground(
            places, context, tally, throttle, purges=lines.number == 0, workers=count
        )
        run_loop(_work(configuration, options, common_ground, lines))

    def reload() -> bool:
        return _reload(lambda: _context(_configuration(options)))

    with ExitStack() as stack:
        places = stack.enter_context(listening(configuration))
        tally = stack.enter_context(closing(SharedTally(count)))
        throttle = stack.enter_context(guessing.kept(configuration))
        server.addresses = _addresses(places)
        supervisor = Supervisor(
            count,
            work,
            ready=lambda: stack.enter_context(_told_ready(server, options)),
            reload=reload,
            ended=tally.forget,
            terminal=Terminal(),
        )
        return supervisor.run()


async def _work(
    configuration: Configuration, options: argparse.Namespace, ground: Ground, lines: Lines
) -> None:
    """One worker's life."""
    stop = _listen_to_signals()
    asyncio.get_running_loop().add_reader(lines.life, stop.set)  # nobody looks after us any more
    users = common.users(configuration)
    store = common.store(configuration, users)
    async with running(configuration, users, store, ground) as server:
        _listen_to_hangup(server, options, stop, lambda: False)  # the supervisor decides that
        beating = asyncio.create_task(_beat(lines.beat))
        await stop.wait()
        beating.cancel()


async def _beat(tell: Callable[[], None]) -> None:
    """Tell that the event loop turns."""
    while True:
        tell()
        await asyncio.sleep(BEAT)


def _configuration(options: argparse.Namespace) -> Configuration:
    return common.configuration(options, server__listen=options.listen)


def _listen_to_hangup(
    server: Running, options: argparse.Namespace, stop: asyncio.Event, is_over: Callable[[], bool]
) -> None:
    """SIGHUP stops the server where ``is_over`` returns True; else it reloads the configuration."""

    def adopt() -> None:
        server.adopt(_configuration(options))

    def obey() -> None:
        if is_over():
            stop.set()
        else:
            _reload(adopt)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, obey)


def _reload(adopt: Callable[[], object]) -> bool:
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


@contextmanager
def _told_ready(server: Running, options: argparse.Namespace) -> Iterator[None]:
    """Tell everybody who waits for it that mail can come and go."""
    if options.ready_file:
        options.ready_file.touch()
    if options.ephemeral or options.json:
        told = server.as_json(with_passwords=options.ephemeral)
        if server.users and not options.ephemeral:
            told["password_file"] = str(
                _store_password(server.configuration, *server.users.values())
            )
        print(json.dumps(told), flush=True)
    else:
        _introduce(server.configuration, server)
    systemd.notify("READY=1")
    try:
        yield
    finally:
        if options.ready_file:
            options.ready_file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something listens."""

    scheme: str
    """What is spoken there: ``pop3s``, ``pop3``, ``lmtp`` or ``smtp``."""
    socket: socket.socket
    tls_at_proxy: bool = False
    """See ``server.tls_at_proxy``."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What the workers of one server have in common."""

    places: Sequence[Place]
    context: ssl.SSLContext
    tally: Tally
    throttle: Throttle
    purges: bool
    """Also keeps what the throttle knows."""
    workers: int = 1


@contextmanager
def listening(configuration: Configuration) -> Iterator[list[Place]]:
    """A socket for each address of the configuration: systemd's where it passes one for that port,
    else our own.

    Raises:
        ConfigurationError: an address that cannot be used, or a socket of systemd that is open to
            more addresses than the configuration.
    """
    with ExitStack() as stack:
        trusted = configuration.server.tls_at_proxy
        places = [
            Place(name, stack.enter_context(each), _address(name, each) in trusted)
            for name, each in systemd.inherited()
        ]
        wanted = _wanted(configuration, {place.scheme for place in places})
        for place in places:
            _compare(place, [address for address, scheme, _ in wanted if scheme == place.scheme])
        passed = tuple(places)
        for address, scheme, setting in wanted:
            if any(each.scheme == scheme and _serves(each.socket, address) for each in passed):
                continue
            own = stack.enter_context(bind(address, setting))
            places.append(Place(scheme, own, str(address) in trusted))
            if address.path:
                stack.callback(Path(address.path).unlink, missing_ok=True)
        yield places


def _wanted(
    configuration: Configuration, inherited: Collection[str]
) -> list[tuple[Address, str, str]]:
    """Address, scheme and setting of all that the configuration asks for.

    The default of ``server.listen`` gives way where systemd passes a socket for POP3.
    """
    served, intake = configuration.server.listen, configuration.intake
    if served == Server().listen and not {"pop3", "pop3s"}.isdisjoint(inherited):
        served = ()
    wanted = [
        (address, address.scheme, "server.listen (--listen)")
        for address in map(Address.parse, served)
    ]
    for scheme, texts in (("lmtp", intake.lmtp.listen), ("smtp", intake.smtp.listen)):
        setting = f"intake.{scheme}.listen"
        wanted += [(Address.parse(text), scheme, setting) for text in texts]
    return wanted


def _compare(place: Place, configured: Sequence[Address]) -> None:
    """
    Raises:
        ConfigurationError: the inherited socket is open to more than any configured address.
    """
    where = _port_or_path(place.socket)
    there = [address for address in configured if where == (address.path or address.port)]
    if configured and isinstance(where, int):
        host, compared = place.socket.getsockname()[0], there or configured
        if not any(_reach(host) <= _reach(address.host) for address in compared):
            raise ConfigurationError(
                f"socket unit: {place.scheme} on {_name(place.socket)} is open to more than "
                f"{', '.join(map(str, compared))}; change ListenStream= or the configuration"
            )
    if not there:
        fields = {"proto": place.scheme, "listen": where}
        _log.warning("socket not configured", extra={"fields": fields})


def _port_or_path(listening: socket.socket) -> int | str:
    name = listening.getsockname()
    return name if listening.family == socket.AF_UNIX else int(name[1])


def _reach(host: str) -> frozenset[str]:
    """What can be connected to: all of a family, or one address."""
    if host in ("", "::"):
        return frozenset({"0.0.0.0", "::", "loopback"})
    if host == "0.0.0.0":
        return frozenset({"0.0.0.0", "loopback"})
    return frozenset({"loopback" if Address(host=host, port=1).is_local else host})


def _serves(listening: socket.socket, address: Address) -> bool:
    """Whether an inherited socket serves an address of the configuration, at least a part of it:
    the rest could not be bound."""
    if _port_or_path(listening) != (address.path or address.port):
        return False
    if address.path:
        return True
    hosts = {listening.getsockname()[0], address.host or "::"}
    if "::" in hosts or len(hosts) == 1:
        return True
    if "0.0.0.0" in hosts:
        return not any(":" in host for host in hosts)
    return "localhost" in hosts and all(Address(host=host, port=1).is_local for host in hosts)


def _addresses(places: Sequence[Place]) -> dict[str, str]:
    found = {}
    for place in places:
        if place.socket.family == socket.AF_UNIX:
            found[f"{place.scheme}_unix"] = place.socket.getsockname()
        else:
            found[place.scheme] = _name(place.socket)
    return found


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
    store: MaildirStore | MemoryStore,
    ground: Ground | None = None,
) -> AsyncIterator[Running]:
    """Listen everywhere the configuration says; on leaving, drain and stop.

    Raises:
        ConfigurationError: a certificate or an address that cannot be used.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, "disk"))
    certificate, _ = await asyncio.to_thread(_certificate, configuration)
    server = Running(configuration, certificate)
    async with AsyncExitStack() as stack:
        stack.callback(users.close)
        if ground is None:
            places = stack.enter_context(listening(configuration))
            throttle = stack.enter_context(guessing.kept(configuration))
            ground = Ground(places, _context(configuration), Tally(), throttle, purges=True)
        throttle, workers = ground.throttle, ground.workers

        def queue(backend: Backend, slots: int) -> Queued:
            return guessing.turns(backend, throttle, workers, slots)

        passdb = identities.chain(configuration, users, queue)
        stack.callback(passdb.close)
        cache = Cache(passdb, tells_all_changes=passdb.tells_all_changes)
        service = Service(store, passdb, cache, throttle, tls=ground.context)
        stack.push_async_callback(service.drain, _GRACE)
        admission = Admission(0, 0, ground.tally)
        admission.reserved = throttle.is_home
        service.is_crowded = lambda: admission.is_crowded
        _set_up(service, admission, configuration, users, passdb)
        intake = _intake(configuration, passdb, users, store, ground.context)
        stack.push_async_callback(intake.drain, _GRACE)
        domains = configuration.intake.smtp.domains
        builders: dict[str, Callable[[str, Seat, Origin], asyncio.BaseProtocol]] = {
            "pop3s": service.connection,
            "pop3": service.connection,
            "lmtp": intake.lmtp(),
            "smtp": intake.smtp(domains),
        }
        listeners = []
        for place in ground.places:
            is_pop3 = place.scheme in ("pop3s", "pop3")
            listener = Listener(
                place.socket,
                builders[place.scheme],
                admission,
                name=place.scheme,
                tls=ground.context if place.scheme == "pop3s" else None,
                handshake=service.timeouts.handshake,
                busy=_BUSY if is_pop3 else _INTAKE_BUSY,
                proxies=configuration.server.proxy_from if is_pop3 else (),
                tls_at_proxy=place.tls_at_proxy,
            )
            stack.callback(listener.close)
            listeners.append(listener)
        server.addresses = _addresses(ground.places)
        watching = asyncio.create_task(_learn_terms_for_ever(service, users))
        stack.callback(watching.cancel)
        reviewing = asyncio.create_task(_end_disabled_for_ever(service))
        stack.callback(reviewing.cancel)
        clock = common.clock(configuration)
        service.proven_time = lambda: clock.read().proven
        upkeep = None
        if ground.purges:
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
            saving = asyncio.create_task(guessing.save_for_ever(throttle, configuration))
            stack.callback(saving.cancel)

        def secure(found: Configuration) -> None:
            context = _context(found)
            service.tls = intake.tls = context
            for listener in listeners:
                listener.tls = context if listener.tls else None

        def adopt(found: Configuration) -> None:
            secure(found)
            before, server.configuration = server.configuration, found
            fixed = [key for key in _FIXED if key(found) != key(configuration)]
            common.set_rules(store, found, users)
            _set_up(service, admission, found, users, passdb)
            cache.clear()
            guessing.configure(throttle, found)
            for listener in listeners:
                if listener.name in ("pop3s", "pop3"):
                    listener.proxies = found.server.proxy_from
            log.set_up(found.log)
            is_changed = _RULES(before) != _RULES(found)
            service.spawn(_log_reload(bool(fixed), upkeep if is_changed else None))

        renewing = asyncio.create_task(_renew_for_ever(lambda: secure(server.configuration)))
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
    attrgetter("auth.users", "auth.chain", "auth.deadline", "auth.passwd_file"),
    attrgetter("auth.ldap", "auth.pam", "auth.oauth"),
    lambda found: bool(found.tls.client_ca),
)


def _set_up(
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
        greeting=configuration.server.banner,
        language=configuration.server.language,
        makes_surrogates=configuration.server.utf8_headers == "surrogate",
        mechanisms=tuple(name for name in mechanisms if name != "APOP"),
        terms=Terms(ceil(limits.login_delay), limits.expire),
        worst=service.policy.worst,
    )
    service.policy = replace(service.policy, worst=_worst_terms(users, service.policy))
    host = configuration.server.hostname
    service.time_stamp = partial(time_stamp, host) if "APOP" in mechanisms else None
    polling = gateway.Gateway(configuration, local.Recipients(configuration, users, directory))
    service.before_opening = polling.poll if polling else None
    service.relays = configuration.server.xclient_from
    service.separator = configuration.auth.folder_separator
    service.clear_login_from = configuration.auth.allow_plaintext_from
    service.brake = limits.deletions_by_new
    service.timeouts = Timeouts(login=limits.login, idle=limits.idle)
    admission.total = _most_connections(limits.sessions)
    admission.per_source = limits.per_address


def _context(configuration: Configuration) -> ssl.SSLContext:
    certificate, key = _certificate(configuration)
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


def _address(scheme: str, listening: socket.socket) -> str:
    """As ``server.listen`` writes it; empty for a Unix socket."""
    return "" if listening.family == socket.AF_UNIX else f"{scheme}://{_name(listening)}"


def _name(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return str(Address(host=host, port=port))


def _certificate(configuration: Configuration) -> tuple[Path, Path]:
    wanted = configuration.tls
    if wanted.mode == "files":
        return Path(wanted.cert), Path(wanted.key)
    names = [configuration.server.hostname, "localhost", "127.0.0.1", "::1"]
    return tls.make_self_signed(configuration.state / "tls", list(dict.fromkeys(names)))


def _first_user(configuration: Configuration, users: Users) -> tuple[str, str] | None:
    """Where nothing is configured there must be somebody to try it with."""
    if configuration.source is not None or users.list():
        return None
    password = passwords.generate()
    users.add("me", password)
    return "me", password


async def _learn_terms_for_ever(service: Service, users: Users) -> None:
    """Announce what users have now; until then none waits longer than was announced."""
    while True:
        await asyncio.sleep(_TERMS_EVERY)
        worst = await asyncio.to_thread(_worst_terms, users, service.policy)
        service.policy = replace(service.policy, worst=worst)


async def _end_disabled_for_ever(service: Service) -> None:
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
        return policy.worst


async def _renew_for_ever(secure: Callable[[], None]) -> None:
    """A context lives for a day, and with it the key that opens its tickets: who steals the key
    reads no older sessions.  A certificate that was renewed meanwhile is found, too."""
    while True:
        await asyncio.sleep(_RENEW_EVERY)
        try:
            secure()
        except Exception as error:  # whatever the file holds, the old one stays in force
            _log.error("certificate refused", extra={"fields": {"reason": str(error)}})


def _listen_to_signals() -> asyncio.Event:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told


def _watch_input(told: asyncio.Event) -> None:
    """Set it at the end of standard input, whatever that is: not every file can be polled."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not told.is_set():
            common.say("standard input has ended, and so does this server")
            told.set()

    def read() -> None:
        with suppress(OSError, RuntimeError):  # closed, or the loop has ended
            while sys.stdin and os.read(sys.stdin.fileno(), 4096):
                pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(end)

    threading.Thread(target=read, name="stdin", daemon=True).start()


def _introduce(configuration: Configuration, server: Running) -> None:
    """What a person needs to begin, on standard error."""
    say = common.say
    if configuration.source is None:
        say(
            f"restante {__version__}: nothing is configured, so this is private mode\n"
            "(loopback only, your files, TLS made on the spot)"
        )
    else:
        say(f"restante {__version__}: {configuration.source}")
    notes = {"pop3s": "TLS from the first octet", "pop3": "login needs STLS"}
    for name, where in server.addresses.items():
        url = f"unix:{where}" if name.endswith("_unix") else f"{name}://{where}"
        say(f"  {name.removesuffix('_unix'):6} {url}  {notes.get(name, '')}".rstrip())
    for each in configuration.server.tls_at_proxy:
        proxies = ", ".join(map(str, configuration.server.proxy_from))
        say(f"  proxy  {each} counts as TLS when {proxies} connects")
    if clear := configuration.auth.allow_plaintext_from:
        say(f"  clear  logins without TLS are accepted from {', '.join(map(str, clear))}")
    say(f"  trust  {server.certificate}, SHA-256")
    for half in common.halves(tls.fingerprint(server.certificate)):
        say(f"         {half}")
    for user, password in server.users.items():
        say(f"  first user {user!r}: {_hand_over(configuration, password)}")
    if server.users:
        say("next: restante deliver me < message   or   restante demo")
        if pop3s := server.addresses.get("pop3s"):
            trust = f"--ca-file {server.certificate}"
            say(f"then: restante fetch pop3s://me@{pop3s} --to Mail --keep {trust}")


def _hand_over(configuration: Configuration, password: str) -> str:
    """A password is shown once, to a person at a terminal; else it waits in a private file."""
    if sys.stderr.isatty():
        return f"password, shown only now: {password}"
    return f"password in {_store_password(configuration, password)}"


def _store_password(configuration: Configuration, password: str) -> Path:
    path = configuration.state / "first-password"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(password + "\n")
    return path
