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
    is_single_use: bool = False
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
            TypeError, UnsafeArgument: the proxy, the local address or the socket is invalid.
        """
        if sock is not None and (proxy or local_addr):
            raise UnsafeArgument("sock cannot be combined with proxy or local_addr")
        if isinstance(sock, ssl.SSLSocket):
            raise UnsafeArgument("sock must not use TLS; the client begins TLS itself")
        if sock is not None:
            try:
                sock.getpeername()
            except OSError as error:
                raise UnsafeArgument("sock must be connected") from error
        address = (local_addr, 0) if isinstance(local_addr, str) else local_addr
        if address is not None:
            _check_address(address)
        parsed_proxy = Proxy.parse(proxy) if proxy else None
        return cls(host, port, address, parsed_proxy, sock, is_single_use=sock is not None)

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
        return not self.is_single_use and self.proxy is None

    def check_renewable(self) -> None:
        """
        Raises:
            UnsafeArgument: ``sock`` was given, which allows only one session.
        """
        if self.is_single_use:
            raise UnsafeArgument("no second session is possible with sock; call connect again")

    async def connect(self) -> socket.socket:
        """Connect without a time limit; the caller has to set one.

        Raises:
            OSError: no address of the host, or of the proxy, answers.
            CannotConnect: the proxy refuses.
            UnsafeArgument: the given socket has already been used.
        """
        if self.is_single_use:
            sock = self._take_socket()
            sock.setblocking(False)
            return sock
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
        if self.is_single_use:
            return self._take_socket()
        if self.proxy is None:
            return reach_blocking(self.host, self.port, seconds, self.local_address)
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        target = (self.proxy.host, self.proxy.port)
        connection = reach_blocking(*target, seconds, self.local_address)
        try:
            self._pass_proxy_blocking(self.proxy, connection, deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_socket(self) -> socket.socket:
        sock, self.sock = self.sock, None
        if sock is None:
            self.check_renewable()
        assert sock is not None
        return sock

    async def _pass_proxy(self, proxy: Proxy, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        exchange = proxy.request(self.host, self.port)
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
                    raise proxy.failure("it closed the connection")
                octets += more

    def _pass_proxy_blocking(
        self, proxy: Proxy, connection: socket.socket, deadline: float
    ) -> None:
        exchange = proxy.request(self.host, self.port)
        octets = b""
        while True:
            try:
                step = exchange.send(octets) if octets else next(exchange)
            except StopIteration:
                return
            octets = b""
            if isinstance(step, bytes):
                connection.settimeout(_remaining(deadline))
                connection.sendall(step)
                continue
            while len(octets) < step:
                connection.settimeout(_remaining(deadline))
                if not (more := connection.recv(step - len(octets))):
                    raise proxy.failure("it closed the connection")
                octets += more


def _check_address(address: tuple[str, int]) -> None:
    """
    Raises:
        TypeError, UnsafeArgument: it is not a pair of an IP address and a port.
    """
    types = [type(each) for each in address] if isinstance(address, tuple) else []
    if types != [str, int]:
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


def _remaining(deadline: float) -> float | None:
    """Return the seconds that are left for the next wait.

    Raises:
        TimeoutError: no time is left.
    """
    if deadline == math.inf:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
