"""A supervisor and its workers: forked, restarted when they die, told what it is told.

The supervisor serves nobody: no thread and no event loop runs in it, so that it can fork at
any time.  Workers share the listening sockets and the memory that was made before them.

A worker tells that its event loop turns by one octet, its number, down a pipe.  It hears that
the supervisor is gone by the end of another.
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

BEAT = 1.0  # seconds between two signs of life
_SILENCE = 60.0  # seconds after which a worker is taken for hung
_STEADY = 60.0  # seconds after which a worker's life was no failure to start
_LONGEST = 30.0  # seconds between the end of a worker and the next start, at most
_STOP = 30.0  # seconds that workers get to end by themselves
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger("restante.workers")


@dataclass(frozen=True, slots=True)
class Lines:
    """A worker's own ends of the two pipes."""

    number: int
    life: int
    """Descriptor that comes to its end with the supervisor."""
    sign: int
    """Descriptor for signs of life."""

    def beat(self) -> None:
        os.write(self.sign, bytes([self.number]))


@dataclass(slots=True)
class _Worker:
    pid: int = 0
    """0: none runs."""
    began: float = 0.0
    """On the monotonic clock, like the others."""
    heard: float = 0.0
    due: float = 0.0
    """When the next may start."""
    failures: int = 0


class Supervisor:
    """Runs ``count`` workers until SIGTERM, SIGINT, or the end of its terminal."""

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
        """``work`` is a worker's life.  ``ready`` is called once all workers serve, ``reload`` at
        SIGHUP (whether the workers may), ``ended`` with the number of each worker that ended.
        ``terminal`` is the one that this process was started from.
        """
        self._work, self._ready, self._reload, self._ended = work, ready, reload, ended
        self._terminal = terminal
        self._workers = [_Worker() for _ in range(count)]
        self._serving: set[int] | None = set()  # who was heard; None: all were
        self._stop_by: float | None = None
        self._status = os.EX_OK
        self._life = os.pipe()
        self._signs = os.pipe()
        self._told = os.pipe()

    def run(self) -> int:
        """Returns an exit status (sysexits.h)."""
        for descriptor in self._told:
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._told[1])
        for each in _SIGNALS:
            signal.signal(each, lambda *_: None)
        while True:
            self._start_due()
            if self._stop_by is not None and not any(worker.pid for worker in self._workers):
                return self._status
            readable, _, _ = select.select([self._told[0], self._signs[0]], [], [], BEAT)
            if self._signs[0] in readable:
                self._hear(os.read(self._signs[0], 4096))
            if self._told[0] in readable:
                for told in set(os.read(self._told[0], 4096)):
                    self._obey(signal.Signals(told))
            self._reap()
            self._watch()

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, worker in enumerate(self._workers):
            if not worker.pid and worker.due <= now and self._stop_by is None:
                worker.began = worker.heard = now
                worker.pid = self._fork(number)

    def _fork(self, number: int) -> int:
        # Until the child has handlers of its own, ours would take its SIGTERM and do nothing.
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
            for descriptor in (self._life[1], self._signs[0], *self._told):
                os.close(descriptor)
            self._work(Lines(number, self._life[0], self._signs[1]))
            status = os.EX_OK
        except BaseException:
            _log.exception("bug", extra={"fields": {"worker": number}})
        finally:
            sys.stderr.flush()
            os._exit(status)  # what the supervisor has opened is the supervisor's to close

    def _hear(self, numbers: bytes) -> None:
        now = time.monotonic()
        for number in set(numbers):
            self._workers[number].heard = now
        if self._serving is not None:
            self._serving |= set(numbers)
            if len(self._serving) == len(self._workers):
                self._serving = None
                self._ready()

    def _obey(self, number: signal.Signals) -> None:
        is_over = number is signal.SIGHUP and self._terminal.is_closed()
        if is_over or number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number is signal.SIGHUP and self._stop_by is None and self._reload():
            self._tell_all(signal.SIGHUP)

    def _stop(self) -> None:
        if self._stop_by is None:
            _log.info("stopping", extra={"fields": {}})
            systemd.notify("STOPPING=1")
            self._stop_by = time.monotonic() + _STOP
        self._tell_all(signal.SIGTERM)

    def _tell_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)  # not waited for yet, so the number is still its own

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
            if self._serving is not None:  # it never came up, and so would not the next
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
            self._tell_all(signal.SIGKILL)
        if self._serving is None and not silent:
            systemd.notify("WATCHDOG=1")
