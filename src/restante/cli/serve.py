"""``restante serve``: serve POP3, and receive mail over LMTP and SMTP, until a signal stops it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from .. import __version__, log, tls
from ..app import backends, gateway, stores, systemd, throttling
from ..app.live import Site
from ..app.reloads import Reloads
from ..app.server import (
    Running,
    SharedResources,
    certificate_files,
    freeze,
    make_first_user,
    reload,
    run_loop,
    running,
    tls_context,
    worker_count,
)
from ..app.sockets import addresses_of, listening
from ..app.supervisor import HEARTBEAT_INTERVAL, Supervisor, WorkerPipes
from ..app.terminal import Terminal
from ..config import Configuration, ephemeral
from ..shared import SharedTally
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="serve POP3 on this address, such as pop3s://127.0.0.1:1995, instead of the addresses "
        "in server.listen; may be repeated",
    )
    parser.add_argument(
        "--ephemeral",
        action="store_true",
        help="for tests: serve one user's temporary mail on free ports, print the ports and the "
        "password as a line of JSON, and stop at the end of standard input",
    )
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="create FILE when the server is ready"
    )
    parser.set_defaults(run=run)


_log = logging.getLogger("restante.serve")


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT is received, or the terminal is closed.

    With ``--ephemeral``, also stop at the end of standard input.
    """
    with _prepared_configuration(options) as config:
        # A reload must not fall back to private mode if the file has been moved away.
        options.config = options.config or config.source
        log.set_up(config.log)
        with suppress(
            OSError
        ):  # before any file gets a time stamp, because the clock may have jumped
            stores.clock(config).advance()
        count = worker_count(config)
        if count > 1:
            return _supervise(config, options, count)
        run_loop(_serve(config, options))
    return os.EX_OK


@contextmanager
def _prepared_configuration(options: argparse.Namespace) -> Iterator[Configuration]:
    if not options.ephemeral:
        yield _configuration(options)
        return
    with TemporaryDirectory(prefix="restante-") as folder:
        yield ephemeral(Path(folder))


async def _serve(config: Configuration, options: argparse.Namespace) -> None:
    """Serve in this process."""
    reloads = Reloads(1)
    terminal, stop = _Terminal(reloads), _listen_to_signals()
    stores.validate(config)
    users = stores.users(config)
    store = stores.store(config, users)
    first_user = await asyncio.to_thread(make_first_user, config, users)
    await asyncio.to_thread(gateway.validate, config)
    async with running(config, users, store, site=Site(1, reloads)) as server:
        server.users = dict([first_user] if first_user else [])

        def load() -> Configuration:
            return config if options.ephemeral else _configuration(options)

        def handle_hangup() -> None:
            if terminal.detach_if_closed() or (options.ephemeral and not reloads.is_requested):
                stop.set()
                return
            reloads.begin()
            reloads.end(reload(lambda: server.adopt(load())))
            reloads.adopt(0, reloads.accepted)

        _listen_to_hangups(handle_hangup)
        heartbeat = asyncio.create_task(_report_heartbeat(lambda: systemd.notify("WATCHDOG=1")))
        with _announcement(server, options):
            if options.ephemeral:
                _stop_at_end_of_input(stop)
            await stop.wait()
            _log.info("stopping", extra={"fields": {}})
            systemd.notify("STOPPING=1")
        heartbeat.cancel()


def _supervise(config: Configuration, options: argparse.Namespace, count: int) -> int:
    """Serve in worker processes, which this process starts, monitors and restarts."""
    stores.validate(config)
    stores.store(config)  # report mistakes once, not in each worker
    first_user = make_first_user(config, stores.users(config))
    gateway.validate(config)
    certificate, _ = certificate_files(config)
    # Created before the workers, so that each worker can resume TLS sessions of the others.
    context = tls_context(config)
    server = Running(config, certificate)
    server.users = dict([first_user] if first_user else [])
    reloads = Reloads(count)
    site, latest = Site(count, reloads), config

    def work(pipes: WorkerPipes) -> None:
        log.forget_followers()
        tally.serve_as(pipes.number)
        site.incidents.serve_as(pipes.number)
        site.counters.serve_as(pipes.number)
        os.environ.pop("NOTIFY_SOCKET", None)  # only the supervisor notifies systemd
        shared = SharedResources(
            sockets,
            context,
            tally,
            throttle,
            does_upkeep=pipes.number == 0,
            workers=count,
            backends=shared_backends,
            number=pipes.number,
            site=site,
        )
        run_loop(_work(config, latest, options, shared, pipes))

    def accept() -> None:
        """Check the configuration and the certificate; workers that start later use them."""
        nonlocal latest
        loaded = _configuration(options)
        tls_context(loaded)
        latest = loaded

    def forget(worker: int, is_stopping: bool) -> None:
        tally.forget(worker)
        site.counters.forget(worker, is_expected=is_stopping)

    def reload_configuration() -> bool:
        reloads.begin()
        refusal = reload(accept)
        reloads.end(refusal)
        return refusal is None

    with ExitStack() as stack:
        sockets = stack.enter_context(listening(config))
        tally = stack.enter_context(closing(SharedTally(count)))
        throttle = stack.enter_context(throttling.saved_throttle(config))
        stack.enter_context(log.watched(site.incidents.watch))  # in the workers, too
        server.addresses = addresses_of(sockets)
        supervisor = Supervisor(
            count,
            work,
            on_ready=lambda: stack.enter_context(_announcement(server, options)),
            reload=reload_configuration,
            on_exit=forget,
            terminal=_Terminal(reloads),
        )
        shared_backends = backends.read_ahead(config)
        freeze()
        with log.following(site.supervisor_events.put):
            return supervisor.run()


class _Terminal(Terminal):
    """The terminal of a server, where SIGHUP may also be a request of ``restante reload``."""

    def __init__(self, reloads: Reloads) -> None:
        super().__init__()
        self._reloads = reloads

    def detach_if_closed(self) -> bool:
        return not self._reloads.is_requested and super().detach_if_closed()


async def _work(
    config: Configuration,
    latest: Configuration,
    options: argparse.Namespace,
    shared: SharedResources,
    pipes: WorkerPipes,
) -> None:
    """Serve in one worker process.

    ``config`` is the configuration at startup.  ``latest`` is the configuration of the last
    reload: settings that a reload does not change stay the same in all workers.
    """
    reloads = shared.site.reloads
    number = reloads.accepted
    stop = _listen_to_signals()
    # This pipe becomes readable when the supervisor has ended.
    asyncio.get_running_loop().add_reader(pipes.supervisor_pipe, stop.set)
    users = stores.users(config)
    store = stores.store(config, users)
    async with running(config, users, store, shared) as server:
        if latest is not config:
            reload(lambda: server.adopt(latest))
        reloads.adopt(pipes.number, number)

        def adopt() -> None:
            number = reloads.accepted  # read first, because another reload may follow
            if reload(lambda: server.adopt(_configuration(options))) is None:
                reloads.adopt(pipes.number, number)

        # The supervisor, not a worker, stops at SIGHUP when the terminal is closed.
        _listen_to_hangups(adopt)
        if reloads.accepted != number:  # a reload during the start
            adopt()
        heartbeat = asyncio.create_task(_report_heartbeat(pipes.beat))
        await stop.wait()
        heartbeat.cancel()


async def _report_heartbeat(notify: Callable[[], None]) -> None:
    """Report regularly that the event loop is running."""
    while True:
        notify()
        await asyncio.sleep(HEARTBEAT_INTERVAL)


def _configuration(options: argparse.Namespace) -> Configuration:
    return common.configuration(options, server__listen=options.listen)


@contextmanager
def _announcement(server: Running, options: argparse.Namespace) -> Iterator[None]:
    """Announce that the server is ready: with a file, as JSON or text, and to systemd."""
    if options.ready_file:
        options.ready_file.touch()
    if options.ephemeral or options.json:
        row = server.as_json(with_passwords=options.ephemeral)
        if server.users and not options.ephemeral:
            row["password_file"] = str(_store_password(server.config, *server.users.values()))
        print(json.dumps(row), flush=True)
    else:
        _print_introduction(server.config, server)
    systemd.notify("READY=1")
    try:
        yield
    finally:
        if options.ready_file:
            options.ready_file.unlink(missing_ok=True)


def _listen_to_signals() -> asyncio.Event:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _listen_to_hangups(work: Callable[[], None]) -> None:
    """Call ``work`` after SIGHUP, at most once in each turn of the event loop.

    Signals that arrive while ``work`` reads files are handled together.  Otherwise many signals
    would keep clients waiting.
    """
    loop, is_due = asyncio.get_running_loop(), False

    def begin() -> None:
        nonlocal is_due
        is_due = False
        work()

    def handle() -> None:
        nonlocal is_due
        if not is_due:
            is_due = True
            loop.call_soon(begin)

    loop.add_signal_handler(signal.SIGHUP, handle)


def _stop_at_end_of_input(stop: asyncio.Event) -> None:
    """Set ``stop`` at the end of standard input.

    This uses a thread, because the event loop cannot poll some kinds of files.
    """
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not stop.is_set():
            common.say("Standard input has ended; the server stops.")
            stop.set()

    def read() -> None:
        with suppress(OSError, RuntimeError):  # standard input is closed
            while sys.stdin and os.read(sys.stdin.fileno(), 4096):
                pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(end)

    threading.Thread(target=read, name="stdin", daemon=True).start()


def _print_introduction(config: Configuration, server: Running) -> None:
    """Print addresses, certificate and first steps to standard error, for the operator."""
    say = common.say
    if config.source is None:
        say(
            f"restante {__version__}: no configuration file, so this is private mode\n"
            "(this machine only, a new TLS certificate)"
        )
    else:
        say(f"restante {__version__}: {config.source}")
    notes = {"pop3s": "implicit TLS", "pop3": "STLS required"}
    for name, address in server.addresses.items():
        if name == "metrics":
            say(f"  http   http://{address}/metrics")
            continue
        url = f"unix:{address}" if name.endswith("_unix") else f"{name}://{address}"
        say(f"  {name.removesuffix('_unix'):6} {url}  {notes.get(name, '')}".rstrip())
    for each in config.server.tls_at_proxy:
        proxies = ", ".join(map(str, config.server.proxy_from))
        say(f"  proxy  {each} is treated as TLS for connections from {proxies}")
    if clear := config.auth.allow_plaintext_from:
        say(f"  clear  logins without TLS are accepted from {', '.join(map(str, clear))}")
    say(f"  trust  {server.certificate}, SHA-256 fingerprint:")
    for line in common.halves(tls.fingerprint(server.certificate)):
        say(f"         {line}")
    for user, password in server.users.items():
        say(f"  first user {user!r}: {_describe_password(config, password)}")
    if server.users:
        say("Next, deliver a message and fetch it:")
        say("  restante deliver me < message")
        if pop3s := server.addresses.get("pop3s"):
            trust = f"--ca-file {server.certificate}"
            say(f"  restante fetch pop3s://me@{pop3s} --to Mail --keep {trust}")


def _describe_password(config: Configuration, password: str) -> str:
    """Show a password once on a terminal; otherwise store it in a private file."""
    if sys.stderr.isatty():
        return f"password {password} (shown only once)"
    return f"password in {_store_password(config, password)}"


def _store_password(config: Configuration, password: str) -> Path:
    path = config.state / "first-password"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(password + "\n")
    return path
