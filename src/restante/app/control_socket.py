"""Open a worker's control socket, and close it.

A server without it works: mail is more important than the operator's commands, so an error is
logged and ignored.
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
from ..server.address import Address, bind
from ..server.admission import Admission, Slot
from ..server.listener import Listener
from ..server.proxy import Origin
from .live import Live

if TYPE_CHECKING:
    from ..server.control import ControlService

_log = logging.getLogger("restante.control")
# Connections of one worker.  An operator uses two or three, and monitoring a few more.  The oldest
# one makes room for a new one, so programs that follow the log cannot lock out the operator.
_MOST_CONNECTIONS = 32
_GRACE = 1.0  # seconds in which an answer may be finished when the worker stops


@asynccontextmanager
async def opened(live: Live) -> AsyncIterator[None]:
    """Serve this worker's control socket, until the end of the context."""
    path = live.socket_of(live.number)
    try:
        _make_folder(path.parent, is_shared=live.config().runtime != live.config().state)
        listening = bind(Address(path=str(path)), "the runtime directory")
        made = os.lstat(path)
    except (OSError, RestanteError) as error:
        _log.warning("control unavailable", extra={"fields": {"reason": str(error)}})
        yield
        return
    services: list[ControlService] = []

    def build(address: str, slot: Slot, origin: Origin) -> asyncio.BaseProtocol:
        from .control import Control  # imports h11, which a server without operators does not need

        if not services:
            services.append(Control(live).service())
        return services[0].connection(address, slot, origin)

    admission = Admission(_MOST_CONNECTIONS, _MOST_CONNECTIONS)
    listener = Listener(listening, build, admission, name="control")
    try:
        yield
    finally:
        listener.close()
        with suppress(OSError):
            if os.path.samestat(os.lstat(path), made):  # not that of another server
                path.unlink()
        for service in services:
            await service.drain(_GRACE)


def _make_folder(folder: Path, *, is_shared: bool) -> None:
    """Make the directory of the sockets; ``is_shared``: the server's group may enter it.

    Raises:
        OSError: it cannot be made, or belongs to another user.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(f"{folder} is not a directory of this user")
    os.chmod(folder, 0o750 if is_shared else 0o700)
