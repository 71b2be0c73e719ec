"""Addresses to listen on, and the door: accept, count, hand over.

Accepting is our own, not ``loop.create_server``: connections are counted before any TLS
handshake is paid for, a failed handshake is seen and logged, and a process that runs out of
file descriptors waits instead of spinning.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import ssl
import stat
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from ..errors import CannotListen, ConfigurationError, HostileInput
from ..passdb import Network, is_within
from ..shared import Tally
from . import proxy
from .proxy import MAX_V1, MAX_V2, Origin

_log = logging.getLogger("restante.listener")
_BACKLOG = 1024  # connections; the kernel caps it at net.core.somaxconn
_ACCEPT_AT_ONCE = 64  # connections, so that a storm leaves room for sessions
_UNSENT = 65_536  # octets for one connection that its client is not ready to take
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.5  # seconds without accepting after one of these
_DIRECT = Origin()
TLS_AT_PROXY = "proxy"
"""In the place of a version of TLS: the configuration vouches for TLS, not the proxy's header."""
_AF_UNIX: int = getattr(socket, "AF_UNIX", -1)  # Windows has none
_NOTSENT_LOWAT: int = getattr(socket, "TCP_NOTSENT_LOWAT", 0)  # nor this
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
    """0 lets the system choose."""
    path: str = ""
    """Of a Unix socket; then the others are empty."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """
        Raises:
            ConfigurationError: not of one of the three forms.
        """
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(path=text.removeprefix("unix:"))
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > 65_535:
            raise ConfigurationError(
                f"{text!r} is no address; write host:port, [::1]:port or unix:/path"
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
        """Whether only programs on this machine can reach it."""
        try:
            return bool(self.path) or self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


MAX_SOCKET_PATH = 107  # octets (unix(7): sun_path has 108, a NUL ends it)


def bind(address: Address, setting: str = "the port") -> socket.socket:
    """A listening socket, close-on-exec and non-blocking.  ``setting``: where to change it.

    Raises:
        CannotListen: in use, not ours, forbidden; with the next step.
    """
    try:
        return _bind_path(address.path) if address.path else _bind_port(address)
    except (OSError, UnicodeError) as error:
        advice = _advice(error, address, setting)
        raise CannotListen(f"cannot listen on {address}: {advice}") from error


def _advice(error: OSError | UnicodeError, address: Address, setting: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"{_who_listens(address.port)} listens there; stop it, or change {setting}"
    if number == errno.EACCES:
        return "not allowed; ports below 1024 need CAP_NET_BIND_SERVICE or a socket unit"
    if number == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _who_listens(port: int) -> str:
    """The program, where this user may know it (proc_net_tcp, proc_pid_fd(5))."""
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
    family, _, _, _, where = socket.getaddrinfo(
        address.host or "::", address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(
        where[:2],
        family=family,
        backlog=_BACKLOG,
        dualstack_ipv6=family == socket.AF_INET6 and where[0] == "::",
    )


def _bind_path(path: str) -> socket.socket:
    """A socket that no process listens on is left over from a crash and is replaced."""
    listening = socket.socket(_AF_UNIX, socket.SOCK_STREAM)
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
    with socket.socket(_AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


class Seat:
    """One counted connection."""

    __slots__ = ("_admission", "_in_all", "_key")

    def __init__(self, admission: Admission, key: str) -> None:
        self._admission: Admission | None = admission
        self._key = key
        self._in_all = True

    def offer(self, give_way: Callable[[], object]) -> None:
        """A newcomer for whom there is no other may have it; ``give_way`` ends the connection."""
        if self._admission is not None:
            self._admission.offer(self, self._key, give_way)

    def keep(self) -> Callable[[], object] | None:
        """No newcomer may have it any more.  Returns what was offered."""
        return self._admission.withdraw(self, self._key) if self._admission else None

    def move(self, address: str) -> bool:
        """The client turned out to be somebody else; False: there is no seat for that source."""
        if self._admission is None:
            return True
        give_way = self.keep()
        taken = self._admission.enter(address, instead=self._key)
        if taken is not None:
            self._key = taken._key
            if give_way is not None:
                self.offer(give_way)
        return taken is not None

    def leave(self) -> None:
        """Give it back; once or more often."""
        if self._admission is not None:
            self.keep()
            self._admission.release(self._key, in_all=self._in_all)
            self._admission = None

    def linger(self) -> None:
        """The connection is gone; only for its source the seat stays taken until ``leave``."""
        if self._admission is not None and self._in_all:
            self.keep()
            self._admission.release(self._key, only_in_all=True)
            self._in_all = False


class Admission:
    """Counts connections, in all and from one source: an IPv4 address or an IPv6 /64.

    Connections by a Unix socket have no source; only the total limits them.

    Where no seat is left, whoever was first among those that are offered makes room: one of the
    same source if that has all it may have, else anybody.  Of other workers' connections we know
    the number only.
    """

    def __init__(self, total: int, per_source: int, tally: Tally | None = None) -> None:
        """``tally``: shared with the other workers, whose connections count too."""
        self.total = total
        self.per_source = per_source
        self.reserved: Callable[[str], bool] | None = None
        """For whom the last tenth of all seats is kept."""
        self._taken = tally or Tally()
        self._offered: OrderedDict[Seat, Callable[[], object]] = OrderedDict()
        self._offered_by: dict[str, OrderedDict[Seat, None]] = {}

    @property
    def is_crowded(self) -> bool:
        """Four fifths of all seats are taken."""
        return self._taken.all() * 5 > self.total * 4

    def enter(self, address: str, *, instead: str | None = None) -> Seat | None:
        """A seat, or None when there is none left for that source.

        ``instead``: the key of a seat that is given up for it.
        """
        key, total = _source(address), self.total
        if self.reserved is not None and self.is_crowded and not self.reserved(address):
            total -= total // 10
        is_taken = self._take(key, total, instead) or (
            # One goes, one comes: those whose seats are reserved lose none by it.
            self._make_room(key) and self._take(key, self.total, instead)
        )
        return Seat(self, key) if is_taken else None

    def _take(self, key: str, total: int, instead: str | None) -> bool:
        with self._taken.exclusively():
            if self._taken.all() - (instead is not None) >= total:
                return False
            if key and self._taken.of(key) - (instead == key) >= self.per_source:
                return False
            if instead is not None:
                self._taken.add(instead, -1)
            self._taken.add(key, 1)
        return True

    def _make_room(self, key: str) -> bool:
        is_source_full = bool(key) and self._taken.of(key) >= self.per_source
        seat = next(iter(self._offered_by.get(key, ()) if is_source_full else self._offered), None)
        if seat is None:
            return False
        give_way = self._offered[seat]
        seat.leave()
        give_way()
        return True

    def offer(self, seat: Seat, key: str, give_way: Callable[[], object]) -> None:
        self._offered[seat] = give_way
        self._offered_by.setdefault(key, OrderedDict())[seat] = None

    def withdraw(self, seat: Seat, key: str) -> Callable[[], object] | None:
        give_way = self._offered.pop(seat, None)
        if give_way is not None:
            del self._offered_by[key][seat]
            if not self._offered_by[key]:
                del self._offered_by[key]
        return give_way

    def release(self, key: str, *, in_all: bool = True, only_in_all: bool = False) -> None:
        with self._taken.exclusively():
            self._taken.add(key, -1, in_all=in_all)
            if only_in_all:
                self._taken.add(key, 1, in_all=False)


@lru_cache(4096)  # the same few come again and again
def _source(address: str) -> str:
    parsed = ip_address(address) if address else None
    if isinstance(parsed, IPv6Address):
        return parsed.packed[:8].hex()
    return address


def peer_address(accepted: object) -> str:
    """The IP address of a socket's peer; IPv4 stays IPv4 on a dual-stack socket; "" if local."""
    return _plain(accepted[0]) if isinstance(accepted, tuple) else ""


@lru_cache(4096)
def _plain(host: str) -> str:
    address = ip_address(host.partition("%")[0])
    mapped = address if isinstance(address, IPv4Address) else address.ipv4_mapped
    return str(mapped or address)


class Listener:
    """Accepts connections on one socket until it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        build: Callable[[str, Seat, Origin], asyncio.BaseProtocol],
        admission: Admission,
        *,
        name: str,
        tls: ssl.SSLContext | None = None,
        handshake: float = 10.0,
        busy: bytes = b"",
        proxies: tuple[Network, ...] = (),
        tls_at_proxy: bool = False,
    ) -> None:
        """``build`` makes the protocol for a peer's address; it gives back the seat at the end.
        What a proxy told of it is the third argument.

        ``tls`` is set where TLS speaks first; ``handshake`` is its deadline in seconds.
        ``busy`` is the last word to a peer for whom there is no seat.
        ``tls_at_proxy``: the proxies take nothing but TLS from the clients they connect here.
        """
        self._socket = listening
        self._build = build
        self._admission = admission
        self.name = name
        self.tls = tls
        """For the connections that come from now on."""
        self.proxies = proxies
        """Where every connection begins with a PROXY header; nobody else may send one."""
        self._tls_at_proxy = tls_at_proxy
        self._handshake = handshake
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        if listening.family != _AF_UNIX and _NOTSENT_LOWAT:  # each connection has it from here
            listening.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting.  Connections that are there stay, and so does the path of a Unix socket,
        on which other workers may listen."""
        if self._socket.fileno() < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for task in self._arriving:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                accepted, where = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                _log.error("accept paused", extra={"fields": {"reason": error.strerror}})
                self._loop.remove_reader(self._socket.fileno())
                self._resume = self._loop.call_later(_PAUSE, self._accept_again)
                return
            self._welcome(accepted, peer_address(where))

    def _accept_again(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _welcome(self, accepted: socket.socket, address: str) -> None:
        if is_within(address, self.proxies):
            accepted.setblocking(False)

            def refuse(error: BaseException) -> None:
                accepted.close()
                reason = "timeout" if isinstance(error, TimeoutError) else str(error)
                fields = {"ip": address, "proto": self.name, "reason": reason}
                _log.warning("proxy refused", extra={"fields": fields})

            self._begin(self._behind_proxy(accepted, address), refuse)
        else:
            self._seat(accepted, address, _DIRECT)

    def _begin(
        self, work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]
    ) -> asyncio.Task[None]:
        """``failed`` releases what the task holds, also if it is cancelled before its first step,
        when no ``finally`` inside it runs."""

        def ended(task: asyncio.Task[None]) -> None:
            self._arriving.discard(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                return
            failed(error)
            if not isinstance(error, OSError | HostileInput | asyncio.CancelledError):
                _log.error("bug", exc_info=error)

        task = self._loop.create_task(work)
        self._arriving.add(task)
        task.add_done_callback(ended)
        return task

    async def _behind_proxy(self, accepted: socket.socket, address: str) -> None:
        """Hear who it is, before anything is said or counted."""
        async with asyncio.timeout(self._handshake):
            origin = await read_header(accepted)
        if origin.address:
            origin = replace(origin, address=peer_address((origin.address,)), proxy=address)
            if self._tls_at_proxy and not origin.tls:
                origin = replace(origin, tls=TLS_AT_PROXY)
        self._seat(accepted, origin.address or address, origin)

    def _seat(self, accepted: socket.socket, address: str, origin: Origin) -> None:
        seat = self._admission.enter(address)
        if seat is None:
            _log.warning(
                "connection refused",
                extra={"fields": {"ip": address, "proto": self.name, "reason": "too-many"}},
            )
            try:
                if self._busy and self.tls is None:
                    accepted.send(self._busy)
            except OSError:
                pass  # it has gone already
            finally:
                accepted.close()
            return

        def refuse(error: BaseException) -> None:
            """No protocol was made: the handshake failed, took too long or was cancelled."""
            seat.leave()
            accepted.close()
            log_refused_tls(address, self.name, error)

        task = self._begin(self._hand_over(accepted, address, seat, origin), refuse)
        seat.offer(task.cancel)

    async def _hand_over(
        self, accepted: socket.socket, address: str, seat: Seat, origin: Origin
    ) -> None:
        await self._loop.connect_accepted_socket(
            lambda: self._build(address, seat, origin),
            accepted,
            ssl=self.tls,
            ssl_handshake_timeout=self._handshake if self.tls else None,
        )


async def read_header(accepted: socket.socket) -> Origin:
    """A PROXY header and not one octet more: what follows is for TLS, or for the session.

    Raises:
        HostileInput: not a header, to the letter.
        OSError: the connection has ended.
    """
    octets = b""
    while True:
        await _readable(accepted)
        try:
            waiting = accepted.recv(MAX_V1 + MAX_V2, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        if not waiting:
            raise ConnectionResetError("ended inside the PROXY header")
        found = proxy.parse(octets + waiting)
        own = len(waiting) if found is None else found[1] - len(octets)
        octets += accepted.recv(own)
        if found is not None:
            return found[0]


async def _readable(accepted: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_reader(accepted.fileno(), told.set)
    try:
        await told.wait()
    finally:
        loop.remove_reader(accepted.fileno())


def log_refused_tls(address: str, name: str, error: BaseException) -> None:
    """One line for a TLS handshake that failed, with a reason in words that are ours."""
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "handshake").lower().replace("_", "-")
    elif isinstance(error, TimeoutError):
        reason = "timeout"
    else:
        reason = "connection-lost"
    _log.info("tls refused", extra={"fields": {"ip": address, "proto": name, "reason": reason}})
