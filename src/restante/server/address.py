"""Parse addresses to listen on, and bind sockets to them."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from ..errors import CannotListen, ConfigurationError

MAX_SOCKET_PATH = 107  # octets (unix(7): sun_path has 108, a NUL ends it)
AF_UNIX: int = getattr(socket, "AF_UNIX", -1)  # missing on Windows
_BACKLOG = 1024  # connections; the kernel caps it at net.core.somaxconn
_ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z0-9+]+)://)?(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:/]*)):(?P<port>\d+)"
)


@dataclass(frozen=True, slots=True)
class Address:
    """``pop3s://host:port``, ``host:port`` or ``unix:/path``."""

    scheme: str = ""
    host: str = ""
    """Name or IP address; empty means every interface."""
    port: int = 0
    """Port; if 0, the system chooses a port."""
    path: str = ""
    """The path of a Unix socket.  In that case the other fields are empty."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address as it is written in the configuration.

        Raises:
            ConfigurationError: ``text`` has none of the three forms.
        """
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(path=text.removeprefix("unix:"))
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > 65_535:
            raise ConfigurationError(
                f"{text!r} is not an address; write host:port, [::1]:port or unix:/path"
            )
        host = match["v6"] or match["host"]
        return cls(match["scheme"] or "", host, int(match["port"]))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" if self.scheme else f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect to the address."""
        try:
            return bool(self.path) or self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


def bind(address: Address, setting: str = "the port") -> socket.socket:
    """Return a listening socket, close-on-exec and non-blocking.

    ``setting`` is the name of the setting for error messages.

    Raises:
        CannotListen: the address is in use, missing on this machine or not permitted.
    """
    try:
        return _bind_path(address.path) if address.path else _bind_port(address)
    except (OSError, UnicodeError) as error:
        advice = _advice(error, address, setting)
        raise CannotListen(f"cannot listen on {address}: {advice}") from error


def _advice(error: OSError | UnicodeError, address: Address, setting: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"{_listening_program(address.port)} listens there; stop it, or change {setting}"
    if number == errno.EACCES:
        return "not allowed; ports below 1024 need CAP_NET_BIND_SERVICE or a socket unit"
    if number == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _listening_program(port: int) -> str:
    """Return the name of the program that listens on a port.

    The current user must be allowed to see it (proc_net_tcp, proc_pid_fd(5)).
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


def _bind_path(path: str) -> socket.socket:
    """Bind a Unix socket.  A socket left by a crash, without a listening process, is replaced."""
    listening = socket.socket(AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_dead_socket(path):
            Path(path).unlink()
        before = os.umask(0o117)  # rw-rw----: the MTA delivers through the group
        try:
            listening.bind(path)
        finally:
            os.umask(before)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_dead_socket(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def peer_address(accepted: object) -> str:
    """Return the IP address of a socket's peer, or "" for a Unix socket.

    An IPv4 address stays IPv4 on a dual-stack socket.
    """
    return _plain(accepted[0]) if isinstance(accepted, tuple) else ""


@lru_cache(4096)  # addresses, about 0.5 MB; the same clients connect repeatedly
def _plain(host: str) -> str:
    address = ip_address(host.partition("%")[0])
    mapped = address if isinstance(address, IPv4Address) else address.ipv4_mapped
    return str(mapped or address)
