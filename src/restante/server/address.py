"""Addresses to listen on, and addresses of peers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from ..errors import ConfigurationError

MAX_SOCKET_PATH = 107  # octets; sun_path has 108, including the final NUL (unix(7))
_ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z0-9+]+)://)?(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:/]*)):(?P<port>\d+)"
)


@contextmanager
def socket_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path for ``bind`` or ``connect`` that names this Unix socket, however long its path.

    A path that is too long is reached through an open descriptor of its directory, which requires
    Linux's /proc.  The yielded path is valid in this process, in the context.

    Raises:
        OSError: the path is too long, and its directory cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield os.fspath(path)
        return
    directory, name = os.path.split(path)
    # O_PATH: the directory must be searchable, but need not be readable.
    opened = os.open(directory, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{opened}/{name}"
    finally:
        os.close(opened)


class Address(NamedTuple):
    """An address to listen on: ``pop3s://host:port``, ``host:port`` or ``unix:/path``."""

    scheme: str = ""
    host: str = ""
    """Name or IP address; empty for all addresses of this machine."""
    port: int = 0
    """Port; if 0, the system chooses a port."""
    path: str = ""
    """Path of a Unix socket, which has no other fields; empty for TCP."""

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


def peer_address(peer: object) -> str:
    """Return the IP address of a peer, or "" if the connection uses a Unix socket.

    ``peer`` is a socket address, as ``accept`` returns it.  An IPv4-mapped address, as reported by
    a dual-stack socket, is returned as an IPv4 address.
    """
    return _canonical(peer[0]) if isinstance(peer, tuple) else ""


@lru_cache(4096)  # addresses, about 0.5 MB; the same clients connect repeatedly
def _canonical(host: str) -> str:
    address = ip_address(host.partition("%")[0])
    mapped = address if isinstance(address, IPv4Address) else address.ipv4_mapped
    return str(mapped or address)
