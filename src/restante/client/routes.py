"""The route to a server: direct, from a local address, through a proxy, or over a given socket."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from dataclasses import dataclass
from ipaddress import ip_address

from ..errors import UnsafeArgument
from .connecting import reach, reach_blocking
from .proxies import Proxy


@dataclass(slots=True)
class Route:
    """The route to one server, for all sessions of a client."""

    host: str
    port: int
    local_address: tuple[str, int] | None = None
    """IP address and port to connect from; port 0: any."""
    proxy: Proxy | None = None
    sock: socket.socket | None = None
    """A connected socket; None after it has been used."""
    is_once: bool = False
    """Whether a socket was given, so that only one session is possible."""

    @classmethod
    def parse(
        cls,
        host: str,
        port: int,
        sock: socket.socket | None,
        proxy: str | None,
        local_addr: str | tuple[str, int] | None,
    ) -> Route:
        """Return the route for the arguments of ``connect``.

        Raises:
            TypeError, UnsafeArgument: a proxy, a local address or a socket is invalid.
        """
        if sock is not None and (proxy or local_addr):
            raise UnsafeArgument("sock is connected already: remove proxy and local_addr")
        if isinstance(sock, ssl.SSLSocket):
            raise UnsafeArgument("sock must be a socket without TLS, which begins inside it")
        if sock is not None:
            try:
                sock.getpeername()
            except OSError as error:
                raise UnsafeArgument("sock must be connected") from error
        address = (local_addr, 0) if isinstance(local_addr, str) else local_addr
        if address is not None:
            _check_address(address)
        way = Proxy.parse(proxy) if proxy else None
        return cls(host, port, address, way, sock, is_once=sock is not None)

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine; decided by the address, not by the name."""
        if self.proxy is not None:
            return False
        if self.sock is None:
            return self.host == "localhost" or _is_loopback(self.host)
        if self.sock.family in (socket.AF_INET, socket.AF_INET6):
            return _is_loopback(self.sock.getpeername()[0])
        return self.sock.family == getattr(socket, "AF_UNIX", None)

    @property
    def is_direct(self) -> bool:
        """Whether a second connection, for a diagnosis, would take the same route."""
        return not self.is_once and self.proxy is None

    def check_renewable(self) -> None:
        """
        Raises:
            UnsafeArgument: the only socket is in use.
        """
        if self.is_once:
            raise UnsafeArgument("no second session is possible with sock; call connect again")

    async def connect(self) -> socket.socket:
        """Connect; the caller limits the time.

        Raises:
            OSError: no address of the host, or of the proxy, answers.
            CannotConnect: the proxy refuses.
            UnsafeArgument: the socket was used already.
        """
        if self.is_once:
            given = self._take()
            given.setblocking(False)
            return given
        if self.proxy is None:
            return await reach(self.host, self.port, self.local_address)
        connection = await reach(self.proxy.host, self.proxy.port, self.local_address)
        try:
            await self._pass_proxy(self.proxy, connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect_blocking(self, seconds: float | None) -> socket.socket:
        """Connect in a thread that may block, for at most ``seconds`` seconds.

        Raises:
            TimeoutError: the connection took longer.
            OSError, CannotConnect, UnsafeArgument: see ``connect``.
        """
        if self.is_once:
            return self._take()
        if self.proxy is None:
            return reach_blocking(self.host, self.port, seconds, self.local_address)
        until = math.inf if seconds is None else time.monotonic() + seconds
        target = (self.proxy.host, self.proxy.port)
        connection = reach_blocking(*target, seconds, self.local_address)
        try:
            self._pass_proxy_blocking(self.proxy, connection, until)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take(self) -> socket.socket:
        given, self.sock = self.sock, None
        if given is None:
            self.check_renewable()
        assert given is not None
        return given

    async def _pass_proxy(self, proxy: Proxy, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        exchange = proxy.ask_for(self.host, self.port)
        octets = b""
        while True:
            try:
                step = exchange.send(octets) if octets else next(exchange)
            except StopIteration:
                return
            octets = b""
            if isinstance(step, bytes):
                await loop.sock_sendall(connection, step)
                continue
            while len(octets) < step:
                if not (more := await loop.sock_recv(connection, step - len(octets))):
                    raise proxy.refusal("it closed the connection")
                octets += more

    def _pass_proxy_blocking(self, proxy: Proxy, connection: socket.socket, until: float) -> None:
        exchange = proxy.ask_for(self.host, self.port)
        octets = b""
        while True:
            try:
                step = exchange.send(octets) if octets else next(exchange)
            except StopIteration:
                return
            octets = b""
            if isinstance(step, bytes):
                connection.settimeout(_left(until))
                connection.sendall(step)
                continue
            while len(octets) < step:
                connection.settimeout(_left(until))
                if not (more := connection.recv(step - len(octets))):
                    raise proxy.refusal("it closed the connection")
                octets += more


def _check_address(address: tuple[str, int]) -> None:
    """
    Raises:
        TypeError, UnsafeArgument: not an IP address and a port.
    """
    kinds = [type(each) for each in address] if isinstance(address, tuple) else []
    if kinds != [str, int]:
        raise TypeError("local_addr must be an IP address, or a pair of an IP address and a port")
    try:
        ip_address(address[0])
    except ValueError as error:
        raise UnsafeArgument("local_addr must be an IP address") from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _left(until: float) -> float | None:
    """Return the seconds that are left for the next wait.

    Raises:
        TimeoutError: no time is left.
    """
    if until == math.inf:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
