"""A supervisor process that forks workers, restarts those that die, and forwards signals to them.

The supervisor does not accept connections.  It has no threads and no event loop, so it can fork at
any time.  Workers share the listening sockets and the memory that existed before the fork.

To show that its event loop runs, each worker regularly writes its number as one octet to a pipe.
On a second pipe, the workers read end of file when the supervisor dies.
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

HEARTBEAT_INTERVAL = 1.0  # seconds between two heartbeats
# Seconds without a heartbeat after which a worker is killed because it hangs.  This value is an
# estimate: a slow disk or a full garbage collection blocks the event loop for a much shorter
# time.
_HANG_TIMEOUT = 60.0
# Seconds of uptime after which a worker counts as stable: if it dies later, it is restarted without
# delay.  The value is twice the longest delay between restarts.
_STABLE_AFTER = 60.0
_MAX_RESTART_DELAY = 30.0  # seconds; keeps the load of repeated restarts tolerable
# Seconds after which workers that do not stop are killed; less than TimeoutStopSec=45 in the unit.
_STOP_TIMEOUT = 30.0
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger("restante.workers")


@dataclass(frozen=True, slots=True)
class WorkerPipes:
    """A worker's number and its ends of the two pipes."""

    number: int
    supervisor_pipe: int
    """Descriptor on which end of file is read when the supervisor has died."""
    heartbeat_pipe: int
    """Descriptor to which heartbeats are written."""

    def beat(self) -> None:
        """Send a heartbeat to the supervisor."""
        os.write(self.heartbeat_pipe, bytes([self.number]))


@dataclass(slots=True)
class _Worker:
    pid: int = 0
    """Process ID; 0 if the worker is not running."""
    forked_at: float = 0.0
    """Time of the fork; like the other times, on the monotonic clock."""
    last_heartbeat: float = 0.0
    """Time of the last heartbeat."""
    start_at: float = 0.0
    """Earliest time at which the worker may be started again."""
    failures: int = 0
    """Number of consecutive exits before ``_STABLE_AFTER``."""


class Supervisor:
    """Runs ``count`` workers until it receives SIGTERM or SIGINT, or its terminal is closed."""

    def __init__(
        self,
        count: int,
        work: Callable[[WorkerPipes], None],
        *,
        on_ready: Callable[[], None],
        reload: Callable[[], bool],
        on_exit: Callable[[int, bool], None],
        terminal: Terminal,
    ) -> None:
        """Prepare a supervisor; ``run`` starts the workers.

        Args:
            work: called in each worker process, which exits when ``work`` returns.
            on_ready: called once, when all workers are serving.
            reload: called at SIGHUP; returns whether the workers should reload too.
            on_exit: called for each worker that has exited, with its number and whether the server
                is stopping.
            terminal: the terminal from which this process was started.
        """
        self._work, self._on_ready, self._reload, self._on_exit = work, on_ready, reload, on_exit
        self._terminal = terminal
        self._workers = [_Worker() for _ in range(count)]
        # Numbers of the workers that have sent a heartbeat; None once all workers have.
        self._serving: set[int] | None = set()
        self._stop_by: float | None = None
        self._status = os.EX_OK
        self._supervisor_pipe = os.pipe()
        self._heartbeat_pipe = os.pipe()
        self._signal_pipe = os.pipe()  # Python's signal handler writes the numbers of signals to it

    def run(self) -> int:
        """Run until all workers have exited, and return an exit status (sysexits.h)."""
        for descriptor in self._signal_pipe:
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._signal_pipe[1])
        for each in _SIGNALS:
            signal.signal(each, lambda *_: None)
        while True:
            self._start_workers()
            if self._stop_by is not None and not any(worker.pid for worker in self._workers):
                return self._status
            readable, _, _ = select.select(
                [self._signal_pipe[0], self._heartbeat_pipe[0]], [], [], HEARTBEAT_INTERVAL
            )
            if self._heartbeat_pipe[0] in readable:
                self._record_heartbeats(os.read(self._heartbeat_pipe[0], 4096))
            if self._signal_pipe[0] in readable:
                for number in set(os.read(self._signal_pipe[0], 4096)):
                    self._handle(signal.Signals(number))
            self._reap()
            self._check_heartbeats()

    def _start_workers(self) -> None:
        now = time.monotonic()
        for number, worker in enumerate(self._workers):
            if not worker.pid and worker.start_at <= now and self._stop_by is None:
                worker.forked_at = worker.last_heartbeat = now
                worker.pid = self._fork(number)
                if self._serving is None:  # not at startup
                    fields = {"worker": number, "pid": worker.pid}
                    _log.info("worker started", extra={"fields": fields})

    def _fork(self, number: int) -> int:
        # Block signals until the child resets the handlers that it inherits from the supervisor,
        # because in the child these would ignore SIGTERM.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            return pid
        status = os.EX_SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            # SIGHUP must not end a worker that is starting; it checks later for a missed reload.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            unused = (self._supervisor_pipe[1], self._heartbeat_pipe[0], *self._signal_pipe)
            for descriptor in unused:
                os.close(descriptor)
            self._work(WorkerPipes(number, self._supervisor_pipe[0], self._heartbeat_pipe[1]))
            status = os.EX_OK
        except BaseException:
            _log.exception("bug", extra={"fields": {"worker": number}})
        finally:
            sys.stderr.flush()
            os._exit(status)  # does not run exit handlers, which belong to the supervisor

    def _record_heartbeats(self, numbers: bytes) -> None:
        now = time.monotonic()
        for number in set(numbers):
            self._workers[number].last_heartbeat = now
        if self._serving is not None:
            self._serving |= set(numbers)
            if len(self._serving) == len(self._workers):
                self._serving = None
                self._on_ready()

    def _handle(self, number: signal.Signals) -> None:
        is_terminal_hangup = number is signal.SIGHUP and self._terminal.detach_if_closed()
        if is_terminal_hangup or number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number is signal.SIGHUP and self._stop_by is None and self._reload():
            self._signal_all(signal.SIGHUP)

    def _stop(self) -> None:
        if self._stop_by is None:
            _log.info("stopping", extra={"fields": {}})
            systemd.notify("STOPPING=1")
            self._stop_by = time.monotonic() + _STOP_TIMEOUT
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                # The worker has not been reaped, so its pid cannot belong to another process.
                os.kill(worker.pid, number)

    def _reap(self) -> None:
        for number, worker in enumerate(self._workers):
            if not worker.pid or os.waitpid(worker.pid, os.WNOHANG)[0] == 0:
                continue
            uptime = time.monotonic() - worker.forked_at
            fields = {"worker": number, "pid": worker.pid, "seconds": round(uptime)}
            worker.pid = 0
            self._on_exit(number, self._stop_by is not None)
            if self._stop_by is not None:
                continue
            _log.error("worker ended", extra={"fields": fields})
            if self._serving is not None:  # a worker that never served would fail again
                self._status = os.EX_SOFTWARE
                self._stop()
                continue
            worker.failures = 0 if uptime > _STABLE_AFTER else worker.failures + 1
            delay = (
                min(2.0 ** (worker.failures - 2), _MAX_RESTART_DELAY)
                if worker.failures > 1
                else 0.0
            )
            worker.start_at = time.monotonic() + delay

    def _check_heartbeats(self) -> None:
        """Kill workers that hang or do not stop; if all workers run, notify systemd."""
        now = time.monotonic()
        hanging = [
            worker
            for worker in self._workers
            if worker.pid and now - worker.last_heartbeat > _HANG_TIMEOUT
        ]
        for worker in hanging:
            _log.error("worker hangs", extra={"fields": {"pid": worker.pid}})
            os.kill(worker.pid, signal.SIGKILL)
        if self._stop_by is not None and now > self._stop_by:
            self._signal_all(signal.SIGKILL)
        if self._serving is None and not hanging:
            systemd.notify("WATCHDOG=1")
