"""The running server as its control socket shows it and changes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Configuration
from ..server.connection import BaseConnection, BaseService
from .control_paths import socket_of
from .reloads import Reloads


@dataclass(frozen=True, slots=True)
class Site:
    """The data of a server that all its workers share.  Created before they are forked."""

    workers: int
    reloads: Reloads
    pid: int = field(default_factory=os.getpid)
    """The process that gets SIGHUP for a reload: the supervisor, or the only process."""
    began: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Live:
    """One worker."""

    number: int
    site: Site
    config: Callable[[], Configuration]
    """Returns the configuration in use."""
    certificate_end: Callable[[], float]
    """Returns when the certificate in use ends, in seconds since the epoch."""
    needs_restart: Callable[[], bool]
    """Returns whether settings have changed that a reload does not change."""
    services: tuple[BaseService, ...] = ()
    """POP3 and the intake of mail, when they have started."""
    began: float = field(default_factory=time.monotonic)
    is_stopping: bool = False

    def stop(self) -> None:
        """Called when the server begins to stop."""
        self.is_stopping = True

    def socket_of(self, worker: int) -> Path:
        """Return the control socket of a worker of this server."""
        return socket_of(self.config().runtime, worker)

    def connections(self) -> Iterator[BaseConnection[Any]]:
        """Yield the connections of clients that are open now."""
        for service in self.services:
            yield from list(service.connections)
