"""Open the sockets that the server listens on, or use those that systemd has opened."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import (
    ExitStack,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path

from ..config import Configuration, Server
from ..errors import ConfigurationError
from ..server.address import Address
from ..server.binding import bind
from . import systemd

_log = logging.getLogger("restante.serve")
MONITORING = "metrics"
"""The scheme of sockets for metrics and health checks."""


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A listening socket and its protocol."""

    scheme: str
    """The protocol: ``pop3s``, ``pop3``, ``lmtp``, ``smtp`` or ``metrics``."""
    socket: socket.socket
    tls_at_proxy: bool = False
    """See ``server.tls_at_proxy``."""


@contextmanager
def listening(config: Configuration) -> Iterator[list[BoundSocket]]:
    """Open a socket for each configured address, unless systemd has passed a socket for it.

    Raises:
        ConfigurationError: an address cannot be used, or a systemd socket listens on more addresses
            than the configuration allows.
    """
    with ExitStack() as stack:
        tls_at_proxy = config.server.tls_at_proxy
        inherited = [
            BoundSocket(name, stack.enter_context(each), _address(name, each) in tls_at_proxy)
            for name, each in systemd.inherited()
        ]
        configured = configured_listeners(config, {bound.scheme for bound in inherited})
        for bound in inherited:
            _check_inherited(
                bound, [address for address, scheme, _ in configured if scheme == bound.scheme]
            )
        sockets = list(inherited)
        for address, scheme, setting in configured:
            if any(each.scheme == scheme and _serves(each.socket, address) for each in inherited):
                continue
            opened = stack.enter_context(bind(address, setting))
            sockets.append(BoundSocket(scheme, opened, str(address) in tls_at_proxy))
            if address.path:
                stack.callback(Path(address.path).unlink, missing_ok=True)
        yield sockets


def configured_listeners(
    config: Configuration, inherited_schemes: Collection[str]
) -> list[tuple[Address, str, str]]:
    """Return address, scheme and setting of each configured listener.

    If systemd passes a socket for POP3, the default of ``server.listen`` is ignored.
    """
    pop3_addresses, intake = config.server.listen, config.intake
    if pop3_addresses == Server().listen and not {"pop3", "pop3s"}.isdisjoint(inherited_schemes):
        pop3_addresses = ()
    listeners = [
        (address, address.scheme, "server.listen (--listen)")
        for address in map(Address.parse, pop3_addresses)
    ]
    for setting, scheme, texts in (
        ("intake.lmtp.listen", "lmtp", intake.lmtp.listen),
        ("intake.smtp.listen", "smtp", intake.smtp.listen),
        ("metrics.listen", MONITORING, config.metrics.listen),
    ):
        listeners += [(Address.parse(text), scheme, setting) for text in texts]
    return listeners


def _check_inherited(bound: BoundSocket, configured: Sequence[Address]) -> None:
    """Compare a systemd socket with the configured addresses of the same protocol.

    If none of them has the socket's port or path, a warning is logged.

    Raises:
        ConfigurationError: the socket listens on more addresses than are configured.
    """
    port_or_path = _port_or_path(bound.socket)
    matching = [each for each in configured if port_or_path == (each.path or each.port)]
    if configured and isinstance(port_or_path, int):
        host, compared = bound.socket.getsockname()[0], matching or configured
        if not any(_reach(host) <= _reach(address.host) for address in compared):
            raise ConfigurationError(
                f"socket unit: {bound.scheme} on {_name(bound.socket)} is open to more than "
                f"{', '.join(map(str, compared))}; change ListenStream= or the configuration"
            )
    if not matching:
        fields = {"proto": bound.scheme, "listen": port_or_path}
        _log.warning("socket not configured", extra={"fields": fields})


def _port_or_path(listening: socket.socket) -> int | str:
    name = listening.getsockname()
    return name if listening.family == socket.AF_UNIX else int(name[1])


def _reach(host: str) -> frozenset[str]:
    """Return the addresses on which a socket that is bound to ``host`` accepts connections.

    A wildcard address stands for all addresses of its family; ``::`` also includes IPv4.
    """
    if host in ("", "::"):
        return frozenset({"0.0.0.0", "::", "loopback"})
    if host == "0.0.0.0":
        return frozenset({"0.0.0.0", "loopback"})
    return frozenset({"loopback" if Address(host=host, port=1).is_local else host})


def _serves(listening: socket.socket, address: Address) -> bool:
    """Return whether an inherited socket serves a configured address, at least in part.

    If it serves a part, such as IPv4 only, a second socket for the rest could not be bound.
    """
    if _port_or_path(listening) != (address.path or address.port):
        return False
    if address.path:
        return True
    hosts = {listening.getsockname()[0], address.host or "::"}
    if "::" in hosts or len(hosts) == 1:
        return True
    if "0.0.0.0" in hosts:
        return not any(":" in host for host in hosts)
    return "localhost" in hosts and all(Address(host=host, port=1).is_local for host in hosts)


def addresses_of(sockets: Sequence[BoundSocket]) -> dict[str, str]:
    """Return the addresses of the sockets by scheme; a Unix socket's key is ``lmtp_unix`` etc."""
    addresses = {}
    for each in sockets:
        if each.socket.family == socket.AF_UNIX:
            addresses[f"{each.scheme}_unix"] = each.socket.getsockname()
        else:
            addresses[each.scheme] = _name(each.socket)
    return addresses


def listeners_as_json(sockets: Sequence[BoundSocket]) -> list[dict[str, str]]:
    """Return protocol and address of each open socket; that of a Unix socket has ``unix:``.

    While the server stops, most sockets are closed.
    """
    return [
        {
            "proto": each.scheme,
            "listen": f"unix:{each.socket.getsockname()}"
            if each.socket.family == socket.AF_UNIX
            else _name(each.socket),
        }
        for each in sockets
        if each.socket.fileno() >= 0
    ]


def _address(scheme: str, listening: socket.socket) -> str:
    """Return a socket's address in the form of ``server.listen``; empty for a Unix socket."""
    return "" if listening.family == socket.AF_UNIX else f"{scheme}://{_name(listening)}"


def _name(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return str(Address(host=host, port=port))
