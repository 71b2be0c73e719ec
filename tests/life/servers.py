"""``restante serve``, in a thread of this process or as processes that can be killed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, redirect_stderr
from dataclasses import replace
from typing import Any, Protocol

from restante import config, log
from restante.app import stores
from restante.app.server import running
from restante.cli.main import main

from ..crash.cycles import forked
from ..support import LOOPS
from .homes import Home

WAIT = 60.0  # seconds; the limit for any single wait
_EXPECTED = {"update.finished"}  # logged as an error after a kill


class Server(Protocol):
    """A server of one installation; it can be restarted after it was stopped or killed."""

    addresses: dict[str, str]
    """Addresses by protocol, such as ``pop3s``; ``ca`` is the path of the certificate."""

    def start(self) -> None:
        """Start the server; returns when it accepts connections."""

    def stop(self) -> None:
        """Stop the server as an operator does."""

    def kill(self) -> None:
        """Kill the server and wait for its end; in a thread it is stopped instead."""

    def reload(self) -> None:
        """Apply a changed configuration."""

    def log(self) -> str:
        """Return the text written to standard error since the last call."""


def check_log(text: str) -> None:
    """Check that every line is a log event, and that none reports a bug or an error."""
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            raise AssertionError(f"the server wrote to standard error: {text}") from None
        is_error = event["level"] in ("error", "critical") and event["event"] not in _EXPECTED
        assert not is_error, f"the server logged {line}"


def wait_for_end(process: int) -> int:
    """Wait for a child process without reaping it; returns its exit code."""
    deadline = time.monotonic() + WAIT
    while (ended := os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
        assert time.monotonic() < deadline, "a process does not end"
        time.sleep(0.005)
    return ended.si_status


class InThread:
    """A server in a thread, with one event loop and real sockets: thousands of steps a minute."""

    can_be_killed = False

    def __init__(self, home: Home) -> None:
        self.addresses: dict[str, str] = {}
        self._home = home
        self._thread = threading.Thread()
        self._log = io.StringIO()

    def start(self) -> None:
        with self._home.environment(), redirect_stderr(self._log):
            configuration = config.load(self._home.configuration)
            log.set_up(configuration.log)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(configuration, ready))
        self._thread.start()
        ready.wait(WAIT)
        assert self._thread.is_alive(), f"no server: {self._log.getvalue()}"

    def _run(self, configuration: config.Configuration, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=list(LOOPS.values())[-1]) as runner:
            try:
                runner.run(self._serve(configuration, ready))
            finally:
                ready.set()

    async def _serve(self, configuration: config.Configuration, ready: threading.Event) -> None:
        users = stores.users(configuration)
        store = stores.store(configuration, users)
        async with running(configuration, users, store) as server:
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            self._server = server
            self.addresses = {**server.addresses, "ca": str(server.certificate)}
            ready.set()
            await self._end.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(WAIT)
        assert not self._thread.is_alive(), "the server does not stop"

    def kill(self) -> None:
        if self._thread.is_alive():
            self.stop()

    def reload(self, **limits: Any) -> None:
        """``limits``: values that a configuration file may not have."""
        with self._home.environment():
            loaded = config.load(self._home.configuration)
        changed = replace(loaded, limits=replace(loaded.limits, **limits))

        async def adopt() -> None:
            self._server.adopt(changed)

        with redirect_stderr(self._log):  # the log is set up again
            asyncio.run_coroutine_threadsafe(adopt(), self._loop).result(WAIT)

    def log(self) -> str:
        text = self._log.getvalue()
        self._log.seek(0)
        self._log.truncate()
        return text


class AsProcesses:
    """A server with a supervisor and workers, as an operator runs it."""

    can_be_killed = True

    def __init__(self, home: Home) -> None:
        self.addresses: dict[str, str] = {}
        self._home = home
        self._life = ExitStack()
        self._process = 0
        self._log_file = home.place.with_suffix(".log")
        self._log_file.touch()
        self._read = 0  # octets of the log that were returned

    def start(self) -> None:
        reading, writing = os.pipe()

        def serve() -> None:
            sys.stdout, sys.stderr = os.fdopen(writing, "w"), self._log_file.open("a")
            for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
                os.dup2(stream.fileno(), number)
            with self._home.environment():
                main(["--json", "-c", str(self._home.configuration), "serve"])

        self._process = self._life.enter_context(forked(serve))
        os.close(writing)
        with open(reading) as output:
            line = output.readline()
        assert line, f"no server: {self.log()}"
        self.addresses = json.loads(line)

    def stop(self) -> None:
        os.kill(self._process, signal.SIGTERM)
        status = wait_for_end(self._process)
        assert status == 0, f"exit code {status}: {self.log()}"
        self.kill()

    def kill(self) -> None:
        """Kill all processes at once and wait for their end."""
        self._life.close()

    def reload(self) -> None:
        workers = self._home.options["server"]["workers"]
        before = self._log_file.stat().st_size
        os.kill(self._process, signal.SIGHUP)
        deadline = time.monotonic() + WAIT
        while self._log_file.read_bytes()[before:].count(b'"event": "reloaded"') < workers:
            assert time.monotonic() < deadline, f"no reload: {self.log()}"
            time.sleep(0.005)

    def log(self) -> str:
        with self._log_file.open("rb") as file:
            file.seek(self._read)
            octets = file.read()
        whole = octets[: octets.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode()
