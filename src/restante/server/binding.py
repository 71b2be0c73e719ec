"""Sockets that listen on an address."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from ..errors import CannotListen
from .address import Address, socket_path

AF_UNIX: int = getattr(socket, "AF_UNIX", -1)  # missing on Windows
_MODE = 0o660  # of Unix sockets: the MTA's user is a member of the group
_BACKLOG = 1024  # connections; the kernel caps it at net.core.somaxconn


def bind(address: Address, setting: str = "the port", *, is_private: bool = False) -> socket.socket:
    """Return a socket that listens on an address.

    Args:
        setting: the setting to change if the address is in use; it is named in the error.
        is_private: whether no other user can write to the directory of a Unix socket.  Then this
            function may be called while other threads create files.

    Raises:
        CannotListen: the address is in use, does not belong to this machine, or is not permitted.
    """
    try:
        return _bind_path(address.path, is_private) if address.path else _bind_port(address)
    except (OSError, UnicodeError) as error:
        advice = _advice(error, address, setting)
        raise CannotListen(f"cannot listen on {address}: {advice}") from error


def _advice(error: OSError | UnicodeError, address: Address, setting: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        program = _listening_program(address.port)
        return f"{program} uses this address; stop that program, or change {setting}"
    if number == errno.EACCES:
        return "not allowed; ports below 1024 require CAP_NET_BIND_SERVICE or a socket unit"
    if number == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _listening_program(port: int) -> str:
    """Return the name of the program that listens on a port (proc_net_tcp(5), proc_pid_fd(5)).

    Returns "another program" if the system does not reveal the name to the current user.
    """
    sockets = set()
    for table in "tcp", "tcp6":
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{inode}]")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError, UnicodeError):
            if os.readlink(link) in sockets:
                name = (link.parent.parent / "comm").read_text().strip()
                if name.isprintable():
                    return f"{name} (process {link.parts[2]})"
    return "another program"


def _bind_port(address: Address) -> socket.socket:
    family, _, _, _, resolved = socket.getaddrinfo(
        address.host or "::", address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(
        resolved[:2],
        family=family,
        backlog=_BACKLOG,
        dualstack_ipv6=family == socket.AF_INET6 and resolved[0] == "::",
    )


def _bind_path(path: str, is_private: bool) -> socket.socket:
    """Bind a Unix socket.  A socket file on which no process listens any more is replaced."""
    listening = socket.socket(AF_UNIX, socket.SOCK_STREAM)
    try:
        if is_dead_socket(path):
            Path(path).unlink()
        if is_private:
            _bind_file(listening, path)
            os.chmod(path, _MODE)  # before ``listen``; until then, no process can connect
        else:
            # Without ``chmod``, because another user could replace the file before.
            previous_umask = os.umask(0o777 & ~_MODE)
            try:
                _bind_file(listening, path)
            finally:
                os.umask(previous_umask)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _bind_file(listening: socket.socket, path: str) -> None:
    with socket_path(path) as short:
        listening.bind(short)


def is_dead_socket(path: str) -> bool:
    """Return whether a path is a Unix socket on which no process listens."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # the queue of a stopped process may be full
        try:
            with socket_path(path) as short:
                probe.connect(short)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            return False
    return False
