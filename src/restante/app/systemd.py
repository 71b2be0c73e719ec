"""Communication with systemd: sd_notify(3) and sd_listen_fds(3).

Without systemd's environment variables, these functions do nothing.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from ..errors import ConfigurationError

_FIRST = 3  # descriptor (SD_LISTEN_FDS_START)
_NAMES = ("pop3s", "pop3", "lmtp", "smtp")


def notify(*states: str) -> None:
    """Send a state: ``READY=1``, ``RELOADING=1``, ``STOPPING=1`` or ``WATCHDOG=1``."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.connect("\0" + path[1:] if path.startswith("@") else path)
        sending.send("\n".join(states).encode())


def inherited() -> list[tuple[str, socket.socket]]:
    """Return the listening sockets that systemd opened, each with its FileDescriptorName=.

    Raises:
        ConfigurationError: a name is unknown, or the number of sockets is not LISTEN_FDS.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    given = os.environ.get("LISTEN_FDS", "0")
    if not (given.isascii() and given.isdecimal()):
        raise ConfigurationError(f"socket unit: LISTEN_FDS={given!r} must be a number")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    sockets = []
    for at in range(int(given)):
        name = names[at] if at < len(names) else ""
        if name not in _NAMES:
            raise ConfigurationError(
                f"socket unit: FileDescriptorName={name!r} must be one of {', '.join(_NAMES)}"
            )
        try:
            os.set_inheritable(_FIRST + at, False)
            sockets.append((name, socket.socket(fileno=_FIRST + at)))
        except OSError as error:
            what = f"socket unit: descriptor {_FIRST + at} ({name}) is not a socket"
            raise ConfigurationError(f"{what}: {error.strerror}") from error
    return sockets
