"""Open and close a worker's control socket.

If the socket cannot be opened, the server logs the error and runs without it, because mail is more
important than the operator's commands.
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
_GRACE = 1.0  # seconds for which responses may continue when the worker stops


@asynccontextmanager
async def serving(live: Live, monitor: Monitor) -> AsyncIterator[None]:
    """Serve this worker's control socket until the context ends."""
    path = live.socket_of(live.number)
    try:
        _make_folder(path.parent, is_shared=live.runtime != live.config().state)
        listening = bind(Address(path=str(path)), "the runtime directory")
        created = os.lstat(path)
    except (OSError, RestanteError) as error:
        _log.warning("control unavailable", extra={"fields": {"reason": str(error)}})
        yield
        return
    services: list[ControlService] = []

    def build(address: str, slot: Slot, origin: Origin) -> asyncio.BaseProtocol:
        from .control import Control  # imports h11, which is needed only if an operator connects

        if not services:
            services.append(Control(live, monitor).service())
        return services[0].connection(address, slot, origin)

    admission = Admission(_MAX_CONNECTIONS, _MAX_CONNECTIONS)
    listener = Listener(listening, build, admission, name="control")
    try:
        yield
    finally:
        listener.close()
        with suppress(OSError):
            if os.path.samestat(os.lstat(path), created):  # no other server has replaced it
                path.unlink()
        for service in services:
            await service.drain(_GRACE)


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
