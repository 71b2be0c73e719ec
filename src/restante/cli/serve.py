"""``restante serve``: POP3 out, LMTP and SMTP in, until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from .. import __version__, config, log
from ..auth import passwords
from ..auth.users import Users
from ..config import Configuration
from ..errors import RestanteError
from ..maildrop import Holding, Store
from ..net import tls
from ..net.intake import Intake
from ..net.listener import Address, Admission, Listener, bind
from ..net.server import Service, Timeouts
from ..pop3.session import Policy
from ..store.maildir import MaildirStore
from ..store.memory import MemoryStore
from . import common

_log = logging.getLogger("restante.serve")
_GRACE = 10.0  # seconds that busy sessions get after SIGTERM
_PURGE_EVERY = 3600.0  # seconds
_BUSY = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"


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
    """Serve until SIGTERM, SIGINT, or with ``--ephemeral`` the end of standard input."""
    with _configured(options) as configuration:
        log.set_up(configuration.log)
        run_loop(_serve(configuration, options))
    return os.EX_OK


def run_loop(work: Awaitable[None]) -> None:
    try:
        import uvloop
    except ImportError:  # Windows, or an interpreter without a wheel
        loop_factory = None
    else:
        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_await(work))


async def _await(work: Awaitable[None]) -> None:
    await work


@contextmanager
def _configured(options: argparse.Namespace) -> Iterator[Configuration]:
    if not options.ephemeral:
        yield common.configuration(options, server__listen=options.listen)
        return
    with TemporaryDirectory(prefix="restante-") as folder:
        yield config.ephemeral(Path(folder))


async def _serve(configuration: Configuration, options: argparse.Namespace) -> None:
    stop = _listen_to_signals()
    common.look_over(configuration)
    users = common.users(configuration)
    store = common.store(configuration)
    first_user = await asyncio.to_thread(_first_user, configuration, users)
    async with running(configuration, users, store) as server:
        server.users = dict([first_user] if first_user else [])
        if options.ready_file:
            options.ready_file.touch()
        if options.ephemeral or options.json:
            told = server.as_json(with_passwords=options.ephemeral)
            if server.users and not options.ephemeral:
                told["password_file"] = str(_store_password(configuration, *server.users.values()))
            print(json.dumps(told), flush=True)
        else:
            _introduce(configuration, server)
        try:
            if options.ephemeral:
                _watch_input(stop)
            await stop.wait()
            _log.info("stopping", extra={"fields": {}})
        finally:
            if options.ready_file:
                options.ready_file.unlink(missing_ok=True)


@dataclass
class Running:
    """A server at work."""

    configuration: Configuration
    certificate: Path
    addresses: dict[str, str] = field(default_factory=dict)
    """Where it listens, by what is spoken there: ``pop3s``, ``pop3``, ``lmtp``, ``smtp`` …"""
    users: dict[str, str] = field(default_factory=dict)
    """Users made at this start, with their passwords."""

    def as_json(self, *, with_passwords: bool) -> dict[str, object]:
        found: dict[str, object] = {"schema": "restante/serve/1", **self.addresses}
        found["ca"] = str(self.certificate)
        if with_passwords:
            found["users"] = self.users
            found["maildir"] = self.configuration.store.path
        return found


@asynccontextmanager
async def running(
    configuration: Configuration, users: Users, store: MaildirStore | MemoryStore
) -> AsyncIterator[Running]:
    """Listen everywhere the configuration says; on leaving, drain and stop.

    Raises:
        ConfigurationError: a certificate or an address that cannot be used.
    """
    certificate, key = await asyncio.to_thread(_certificate, configuration)
    context = tls.server_context(certificate, key, configuration.tls.min_version)
    server = Running(configuration, certificate)
    service = Service(
        store,
        users,
        policy=Policy(greeting=configuration.server.banner),
        tls=context,
        clear_login_from=configuration.auth.allow_plaintext_from,
        timeouts=Timeouts(login=configuration.limits.login, idle=configuration.limits.idle),
    )
    admission = Admission(configuration.limits.sessions, configuration.limits.per_address)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(service.drain, _GRACE)
        for text in configuration.server.listen:
            address = Address.parse(text)
            listening = bind(address)
            implicit = context if address.scheme == "pop3s" else None
            listener = Listener(
                listening,
                service.connection,
                admission,
                name=address.scheme,
                tls=implicit,
                handshake=service.timeouts.handshake,
                busy=_BUSY,
            )
            stack.callback(listener.close)
            server.addresses[address.scheme] = _name(listening)
        await _open_intake(configuration, users, store, server, stack)
        if configuration.store.hold:
            purging = asyncio.create_task(_purge_for_ever(store, configuration.store.hold))
            stack.callback(purging.cancel)
        yield server


async def _open_intake(
    configuration: Configuration,
    users: Users,
    store: Store,
    server: Running,
    stack: AsyncExitStack,
) -> None:
    intake = Intake(store, users, configuration.server.hostname, configuration.limits.message)
    loop = asyncio.get_running_loop()
    smtp = intake.smtp(configuration.intake.smtp.domains)
    wanted = [(text, "lmtp", intake.lmtp()) for text in configuration.intake.lmtp.listen]
    wanted += [(text, "smtp", smtp) for text in configuration.intake.smtp.listen]
    for text, name, factory in wanted:
        address = Address.parse(text)
        listening = bind(address)
        if address.path:
            opened = await loop.create_unix_server(factory, sock=listening)
            stack.callback(Path(address.path).unlink, missing_ok=True)
            server.addresses[f"{name}_unix"] = address.path
        else:
            opened = await loop.create_server(factory, sock=listening)
            server.addresses[name] = _name(listening)
        stack.callback(opened.close)


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


async def _purge_for_ever(store: Holding, hold: float) -> None:
    """Destroy what was held long enough, now and then."""
    while True:
        async for user in store.users():
            try:
                await store.purge(user, time.time() - hold)
            except RestanteError as error:
                fields = {"user": user, "reason": str(error)}
                _log.warning("purge failed", extra={"fields": fields})
        await asyncio.sleep(_PURGE_EVERY)


def _listen_to_signals() -> asyncio.Event:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told


def _watch_input(told: asyncio.Event) -> None:
    """Set it at the end of standard input, whatever that is: not every file can be polled."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with suppress(OSError, RuntimeError):  # closed, or the loop has ended
            while sys.stdin and os.read(sys.stdin.fileno(), 4096):
                pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(told.set)

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
    say("  certificate SHA-256")
    for half in common.halves(tls.fingerprint(server.certificate)):
        say(f"         {half}")
    for user, password in server.users.items():
        say(f"  first user {user!r}: {_hand_over(configuration, password)}")
    if server.users:
        say("next: restante deliver me < message   or   restante demo")


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
