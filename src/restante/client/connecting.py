"""Connect to a host over TCP: look up its addresses, and use the first one that answers.

Standards: RFC 8305 (happy eyeballs): address families alternate, and the next address is
tried while earlier ones have not answered yet.  The asyncio and the blocking client use the
same algorithm.
Limits: at most ``MAX_ADDRESSES`` addresses of a host are tried.  A lookup that hangs occupies a
thread, but neither the client nor the exit of the program waits for it.
"""

from __future__ import annotations

import asyncio
import errno
import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import SupportsFloat, SupportsIndex

from ..errors import UnsafeArgument

DELAY = 0.25  # seconds until the next address is tried as well (RFC 8305 §5)
MAX_ADDRESSES = 20  # addresses to try, each with an open socket; not based on an RFC
_IN_PROGRESS = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN)

Address = tuple[int, int, int, str, tuple[str | int | bytes, ...]]
"""An address as returned by ``socket.getaddrinfo``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of a client, in seconds; None: no limit."""

    timeout: float | None
    """Limit for each wait for the server."""
    deadline: float | None
    """Limit for all waits together, counted from the creation of this object."""
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, UnsafeArgument: a limit is not a number above 0.
        """
        for name, seconds in (("timeout", self.timeout), ("deadline", self.deadline)):
            if seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, SupportsFloat | SupportsIndex):
                raise TypeError(f"{name} must be a number of seconds, or None")
            value = float(seconds)  # for example from a Decimal
            if math.isnan(value) or value <= 0:
                raise UnsafeArgument(f"{name} must be above 0 seconds, or None")
            object.__setattr__(self, name, value)

    @property
    def has_deadline_passed(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() - self._started >= self.deadline

    @property
    def timeout_reason(self) -> str:
        """The text of the exception after a wait has exceeded its time limit."""
        if self.has_deadline_passed:
            return "the deadline has passed"
        return f"the server was silent for {self.timeout:g} s"

    def next_wait(self) -> float | None:
        """Return the seconds for the next wait; 0 if the deadline has passed."""
        if self.deadline is None:
            return self.timeout
        remaining = max(self._started + self.deadline - time.monotonic(), 0.0)
        return remaining if self.timeout is None else min(self.timeout, remaining)


async def reach(
    host: str, port: int, local_address: tuple[str, int] | None = None
) -> socket.socket:
    """Return a connection to the first of the host's addresses that answers.

    ``local_address`` is the IP address and the port to connect from.  There is no time limit; the
    caller has to set one.

    Raises:
        OSError: no address answers, or the host has no address.
    """
    addresses: list[Address] = await asyncio.wrap_future(_look_up(host, port))
    waiting = deque(interleave(_same_family(addresses, local_address)))
    attempts: list[asyncio.Task[socket.socket]] = []
    pending: set[asyncio.Task[socket.socket]] = set()
    winner: socket.socket | None = None
    error: BaseException = OSError(f"{host} has no address")
    try:
        while winner is None and (waiting or pending):
            if waiting:
                attempts.append(asyncio.create_task(_connect(waiting.popleft(), local_address)))
                pending.add(attempts[-1])
            done, pending = await asyncio.wait(
                pending,
                timeout=DELAY if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                failure = task.exception()
                if failure is not None:
                    error = failure
                elif winner is None:
                    winner = task.result()
    finally:
        for task in attempts:
            task.cancel()
        for result in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(result, socket.socket) and result is not winner:
                result.close()
    if winner is None:
        raise error
    return winner


async def _connect(address: Address, local_address: tuple[str, int] | None) -> socket.socket:
    family, socket_type, protocol, _, socket_address = address
    connection = socket.socket(family, socket_type, protocol)
    try:
        connection.setblocking(False)
        if local_address is not None:
            connection.bind(local_address)
        await asyncio.get_running_loop().sock_connect(connection, socket_address)
    except BaseException:
        connection.close()
        raise
    return connection


def reach_blocking(
    host: str,
    port: int,
    seconds: float | None,
    local_address: tuple[str, int] | None = None,
) -> socket.socket:
    """Connect like ``reach``, but block the calling thread.

    ``seconds`` is the time limit for the lookup and all addresses.

    Raises:
        OSError: no address answers, or the host has no address.
        TimeoutError: no address answered in time.
    """
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    addresses = _look_up(host, port).result(seconds)
    waiting = deque(interleave(_same_family(addresses, local_address)))
    error: OSError = OSError(f"{host} has no address")
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or selector.get_map():
                if waiting:
                    error = _begin(waiting.popleft(), selector, local_address) or error
                wait = min(deadline - time.monotonic(), DELAY if waiting else math.inf)
                if deadline <= time.monotonic():
                    raise TimeoutError
                if not selector.get_map():
                    continue
                for key, _ in selector.select(None if wait == math.inf else wait):
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    selector.unregister(connection)
                    error_number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not error_number:
                        return connection
                    connection.close()
                    error = _failure(error_number)
        finally:
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
    raise error


def _begin(
    address: Address,
    selector: selectors.BaseSelector,
    local_address: tuple[str, int] | None,
) -> OSError | None:
    """Begin to connect; return the error if this fails immediately, otherwise None."""
    family, socket_type, protocol, _, socket_address = address
    try:
        connection = socket.socket(family, socket_type, protocol)
    except OSError as error:  # for example, the machine has no IPv6
        return error
    connection.setblocking(False)
    if local_address is not None:
        try:
            connection.bind(local_address)
        except OSError as error:
            connection.close()
            return error
    error_number = connection.connect_ex(socket_address)
    if error_number not in _IN_PROGRESS:
        connection.close()
        return _failure(error_number)
    selector.register(connection, selectors.EVENT_WRITE)
    return None


def _failure(number: int) -> OSError:
    """Return the exception for an errno, such as ConnectionRefusedError."""
    return OSError(number, errno.errorcode.get(number, ""))


def _same_family(
    addresses: Iterable[Address], local_address: tuple[str, int] | None
) -> Iterable[Address]:
    """Return addresses of the local address's family, or all if there is no local address."""
    if local_address is None:
        return addresses
    is_ipv6 = ":" in local_address[0]
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    return [each for each in addresses if each[0] == family]


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Return the addresses with alternating families, the preferred address first (RFC 8305 §4)."""
    families: dict[int, deque[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], deque()).append(address)
    ordered: list[Address] = []
    while families and len(ordered) < MAX_ADDRESSES:
        for family, remaining in list(families.items()):
            ordered.append(remaining.popleft())
            if not remaining:
                del families[family]
    return ordered[:MAX_ADDRESSES]


def _look_up(host: str, port: int) -> Future[list[Address]]:
    """Call ``getaddrinfo`` in a thread, because it cannot be interrupted.

    The thread may run longer than the caller waits.
    """
    future: Future[list[Address]] = Future()
    future.set_running_or_notify_cancel()  # so that cancelling the caller does not cancel this

    def work() -> None:
        try:
            future.set_result(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except UnicodeError:
            future.set_exception(socket.gaierror(socket.EAI_NONAME, "invalid host name"))
        except BaseException as error:
            future.set_exception(error)

    if _is_address(host):
        work()
    else:
        threading.Thread(target=work, name="getaddrinfo", daemon=True).start()
    return future


def _is_address(host: str) -> bool:
    try:
        return bool(ip_address(host.partition("%")[0]))
    except ValueError:
        return False
