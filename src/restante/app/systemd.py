"""Communicate with systemd: report states (sd_notify(3)), receive sockets (sd_listen_fds(3)).

Without systemd's environment variables, these functions do nothing.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from ..errors import ConfigurationError

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_SOCKET_NAMES = ("pop3s", "pop3", "lmtp", "smtp", "metrics")


def notify(*states: str) -> None:
    """Report states such as ``READY=1``, ``RELOADING=1``, ``STOPPING=1`` or ``WATCHDOG=1``."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + path[1:] if path.startswith("@") else path)
        sender.send("\n".join(states).encode())


def inherited() -> list[tuple[str, socket.socket]]:
    """Return the listening sockets that systemd has opened, each with its FileDescriptorName=.

    Raises:
        ConfigurationError: LISTEN_FDS is invalid, a name is unknown, or a descriptor is not a
            socket.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "0")
    if not (count.isascii() and count.isdecimal()):
        raise ConfigurationError(f"socket unit: LISTEN_FDS={count!r} must be a number")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    sockets = []
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        if name not in _SOCKET_NAMES:
            raise ConfigurationError(
                f"socket unit: FileDescriptorName={name!r} must be one of "
                f"{', '.join(_SOCKET_NAMES)}"
            )
        descriptor = _FIRST_DESCRIPTOR + index
        try:
            os.set_inheritable(descriptor, False)
            sockets.append((name, socket.socket(fileno=descriptor)))
        except OSError as error:
            problem = f"socket unit: descriptor {descriptor} ({name}) is not a socket"
            raise ConfigurationError(f"{problem}: {error.strerror}") from error
    return sockets
