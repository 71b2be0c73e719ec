"""The state of a running server that its control sockets show and change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Configuration
from ..server.connection import BaseConnection, BaseService
from ..shared import Counters
from .control_paths import socket_of
from .events import SupervisorEvents
from .incidents import Incidents
from .reloads import Reloads

CERTIFICATE_DAYS = 7
"""Days before the end of the certificate from which on the operator is warned.  ACME clients renew
it 30 days before it expires, so by then the renewal has been failing for weeks."""


@dataclass(frozen=True, slots=True)
class Site:
    """The state that all workers of a server share.  Created before the workers are forked."""

    workers: int
    reloads: Reloads
    pid: int = field(default_factory=os.getpid)
    """The process that gets SIGHUP for a reload: the supervisor, or the only process."""
    began: float = field(default_factory=time.monotonic)
    supervisor_events: SupervisorEvents = field(default_factory=SupervisorEvents)
    started_at: float = field(default_factory=time.time)
    """When the server started, in seconds since the epoch."""
    counters: Counters = field(init=False)
    """The metrics of all workers."""
    incidents: Incidents = field(init=False)
    """Counts the events that cause alerts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", Counters(self.workers))
        object.__setattr__(self, "incidents", Incidents(self.workers))


@dataclass(slots=True)
class Live:
    """The state of one worker."""

    number: int
    site: Site
    runtime: Path
    """The runtime directory at startup; a reload does not move the sockets."""
    config: Callable[[], Configuration]
    """Returns the configuration in use."""
    certificate_end: Callable[[], float]
    """Returns when the certificate in use expires, in seconds since the epoch."""
    needs_restart: Callable[[], bool]
    """Returns whether settings have changed that take effect only after a restart."""
    listeners: Callable[[], list[dict[str, str]]]
    """Returns protocol and address of each listening socket."""
    services: tuple[BaseService, ...] = ()
    """The services for POP3 and for the intake of mail; empty until they have started."""
    began: float = field(default_factory=time.monotonic)
    is_stopping: bool = False

    def stop(self) -> None:
        """Called when the server begins to stop."""
        self.is_stopping = True

    def socket_of(self, worker: int) -> Path:
        """Return the control socket of a worker of this server."""
        return socket_of(self.runtime, worker)

    def connections(self) -> Iterator[BaseConnection[Any]]:
        """Yield the open client connections, which may end between two of them."""
        for service in self.services:
            for connection in list(service.connections):
                if connection in service.connections:
                    yield connection
