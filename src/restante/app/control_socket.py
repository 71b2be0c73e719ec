"""Open and close a worker's control socket.

If the socket cannot be opened, the server logs the error and runs without it, because mail is more
important than the operator's commands.  It tries again until the socket can be opened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RestanteError
from ..server.address import Address
from ..server.admission import Admission, Slot
from ..server.binding import bind
from ..server.listener import Listener
from ..server.proxy import Origin
from .live import Live
from .monitoring import Monitor

if TYPE_CHECKING:
    from ..server.control import ControlService

_log = logging.getLogger("restante.control")
# Maximum number of control connections of a worker.  An operator uses two or three, and monitoring
# a few more.  A new connection replaces the oldest one, so programs that follow the log cannot lock
# out the operator.
_MAX_CONNECTIONS = 32
_CHECK_EVERY = 5.0  # seconds between two checks whether the socket is open
_GRACE = 1.0  # seconds for which responses may continue when the worker stops


@asynccontextmanager
async def serving(live: Live, monitor: Monitor) -> AsyncIterator[None]:
    """Serve this worker's control socket until the context ends."""
    opened = _ControlSocket(live, monitor)
    opened.open()
    keeping_open = asyncio.create_task(opened.keep_open())
    try:
        yield
    finally:
        keeping_open.cancel()
        await opened.close()


class _ControlSocket:
    """The control socket of one worker."""

    def __init__(self, live: Live, monitor: Monitor) -> None:
        self._live, self._monitor = live, monitor
        self._path = live.socket_of(live.number)
        self._admission = Admission(_MAX_CONNECTIONS, _MAX_CONNECTIONS)
        self._service: ControlService | None = None
        self._listener: Listener | None = None
        self._created: os.stat_result | None = None  # of the file; None if it is not open
        self._is_reported = False  # whether the log says that the socket is unavailable

    def open(self) -> None:
        """Listen on the socket, or log the reason why this is impossible."""
        live = self._live
        try:
            _make_folder(self._path.parent, is_shared=live.runtime != live.config().state)
            listening = bind(
                Address(path=str(self._path)), "the runtime directory", is_private=True
            )
            self._created = os.lstat(self._path)
        except (OSError, RestanteError) as error:
            if not self._is_reported:
                _log.warning("control unavailable", extra={"fields": {"reason": str(error)}})
            self._is_reported = True
            return
        self._listener = Listener(listening, self._build, self._admission, name="control")
        if self._is_reported:
            _log.info("control available", extra={"fields": {}})
        self._is_reported = False

    async def keep_open(self) -> None:
        """Regularly open the socket if it is not open, or if its file has been removed.

        At startup, workers of a killed server that finish their sessions may still use it.
        """
        while True:
            await asyncio.sleep(_CHECK_EVERY)
            if not self._is_open:
                self._stop_listening()
                self.open()

    @property
    def _is_open(self) -> bool:
        return self._listener is not None and os.path.lexists(self._path)

    async def close(self) -> None:
        """Stop listening, remove the file, and drain the connections."""
        self._stop_listening()
        if self._created is not None:
            with suppress(OSError):
                if os.path.samestat(os.lstat(self._path), self._created):
                    self._path.unlink()  # no other server has replaced it
        if self._service is not None:
            await self._service.drain(_GRACE)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _build(self, address: str, slot: Slot, origin: Origin) -> asyncio.BaseProtocol:
        from .control import Control  # imports h11, which is needed only if an operator connects

        if self._service is None:
            self._service = Control(self._live, self._monitor).service()
        return self._service.connection(address, slot, origin)


def _make_folder(folder: Path, *, is_shared: bool) -> None:
    """Create the directory of the sockets, which the server's group may enter if ``is_shared``.

    Raises:
        OSError: the directory cannot be created, or belongs to another user.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise OSError(f"{folder} is not a directory of this user")
    os.chmod(folder, 0o750 if is_shared else 0o700)
