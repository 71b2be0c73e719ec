"""A supervisor that forks workers, restarts those that die, and forwards its signals to them.

The supervisor accepts no connection.  It has no thread and no event loop, so it can fork at any
time.  Workers share the listening sockets and the memory that existed before the fork.

A worker regularly writes its number, one octet, to a pipe to show that its event loop runs.  When
another pipe reaches its end, the worker knows that the supervisor has died.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import systemd
from .terminal import Terminal

BEAT = 1.0  # seconds between two heartbeats
# Seconds without a heartbeat after which a worker is killed as hung.  An estimate: sixty missed
# beats, and far more than a slow disk or a full garbage collection delays the event loop.
_SILENCE = 60.0
# Seconds after which a worker counts as well started, so that the next restart is immediate.
# An estimate: twice the longest delay between restarts.
_STEADY = 60.0
_LONGEST = 30.0  # seconds between two restarts at most; an estimate of a tolerable load
_STOP = 30.0  # seconds until workers are killed at a stop; below TimeoutStopSec=45
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger("restante.workers")


@dataclass(frozen=True, slots=True)
class Lines:
    """A worker's number and its ends of the two pipes."""

    number: int
    life: int
    """Descriptor that reaches end of file when the supervisor dies."""
    sign: int
    """Descriptor for heartbeats."""

    def beat(self) -> None:
        """Send a heartbeat to the supervisor."""
        os.write(self.sign, bytes([self.number]))


@dataclass(slots=True)
class _Worker:
    pid: int = 0
    """0: not running."""
    began: float = 0.0
    """Time of the fork, on the monotonic clock like the other times."""
    heard: float = 0.0
    """Time of the last heartbeat."""
    due: float = 0.0
    """Time from which it may be started again."""
    failures: int = 0
    """Number of early ends in a row."""


class Supervisor:
    """Runs ``count`` workers until SIGTERM, SIGINT, or until its terminal is closed."""

    def __init__(
        self,
        count: int,
        work: Callable[[Lines], None],
        *,
        ready: Callable[[], None],
        reload: Callable[[], bool],
        ended: Callable[[int], None],
        terminal: Terminal,
    ) -> None:
        """Prepare a supervisor; ``run`` starts the workers.

        Each worker process calls ``work`` and exits when it returns.  ``ready`` is called once,
        when all workers serve.  ``reload`` is called at SIGHUP and returns whether the workers
        shall reload too.  ``ended`` is called with the number of each worker that has ended.
        ``terminal`` is the terminal that started this process.
        """
        self._work, self._ready, self._reload, self._ended = work, ready, reload, ended
        self._terminal = terminal
        self._workers = [_Worker() for _ in range(count)]
        self._serving: set[int] | None = set()  # workers heard so far; None: all were heard
        self._stop_by: float | None = None
        self._status = os.EX_OK
        self._life = os.pipe()
        self._signs = os.pipe()
        self._received = os.pipe()  # the numbers of signals, from Python's handler

    def run(self) -> int:
        """Run until all workers have ended, and return an exit status (sysexits.h)."""
        for descriptor in self._received:
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._received[1])
        for each in _SIGNALS:
            signal.signal(each, lambda *_: None)
        while True:
            self._start_due()
            if self._stop_by is not None and not any(worker.pid for worker in self._workers):
                return self._status
            readable, _, _ = select.select([self._received[0], self._signs[0]], [], [], BEAT)
            if self._signs[0] in readable:
                self._hear(os.read(self._signs[0], 4096))
            if self._received[0] in readable:
                for number in set(os.read(self._received[0], 4096)):
                    self._handle(signal.Signals(number))
            self._reap()
            self._watch()

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, worker in enumerate(self._workers):
            if not worker.pid and worker.due <= now and self._stop_by is None:
                worker.began = worker.heard = now
                worker.pid = self._fork(number)

    def _fork(self, number: int) -> int:
        # Until the child sets its own handlers, it has ours, which would ignore a SIGTERM.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return pid
        status = os.EX_SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for descriptor in (self._life[1], self._signs[0], *self._received):
                os.close(descriptor)
            self._work(Lines(number, self._life[0], self._signs[1]))
            status = os.EX_OK
        except BaseException:
            _log.exception("bug", extra={"fields": {"worker": number}})
        finally:
            sys.stderr.flush()
            os._exit(status)  # skips exit handlers, which belong to the supervisor

    def _hear(self, numbers: bytes) -> None:
        now = time.monotonic()
        for number in set(numbers):
            self._workers[number].heard = now
        if self._serving is not None:
            self._serving |= set(numbers)
            if len(self._serving) == len(self._workers):
                self._serving = None
                self._ready()

    def _handle(self, number: signal.Signals) -> None:
        is_over = number is signal.SIGHUP and self._terminal.is_closed()
        if is_over or number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number is signal.SIGHUP and self._stop_by is None and self._reload():
            self._signal_all(signal.SIGHUP)

    def _stop(self) -> None:
        if self._stop_by is None:
            _log.info("stopping", extra={"fields": {}})
            systemd.notify("STOPPING=1")
            self._stop_by = time.monotonic() + _STOP
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                # Not reaped yet, so the pid cannot belong to another process.
                os.kill(worker.pid, number)

    def _reap(self) -> None:
        for number, worker in enumerate(self._workers):
            if not worker.pid or os.waitpid(worker.pid, os.WNOHANG)[0] == 0:
                continue
            lived = time.monotonic() - worker.began
            fields = {"worker": number, "pid": worker.pid, "seconds": round(lived)}
            worker.pid = 0
            self._ended(number)
            if self._stop_by is not None:
                continue
            _log.error("worker ended", extra={"fields": fields})
            if self._serving is not None:  # the start failed, and another one would fail too
                self._status = os.EX_SOFTWARE
                self._stop()
                continue
            worker.failures = 0 if lived > _STEADY else worker.failures + 1
            delay = min(2.0 ** (worker.failures - 2), _LONGEST) if worker.failures > 1 else 0.0
            worker.due = time.monotonic() + delay

    def _watch(self) -> None:
        now = time.monotonic()
        silent = [
            worker for worker in self._workers if worker.pid and now - worker.heard > _SILENCE
        ]
        for worker in silent:
            _log.error("worker hangs", extra={"fields": {"pid": worker.pid}})
            os.kill(worker.pid, signal.SIGKILL)
        if self._stop_by is not None and now > self._stop_by:
            self._signal_all(signal.SIGKILL)
        if self._serving is None and not silent:
            systemd.notify("WATCHDOG=1")
