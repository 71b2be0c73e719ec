"""Accept connections: read the PROXY header, admit the client, do the TLS handshake.

After these steps, an asyncio protocol serves the connection.  ``loop.create_server`` is not used
for three reasons: connections must be counted before the TLS handshake, failed handshakes must be
logged, and a process without free file descriptors must pause instead of spinning.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, MutableSequence
from dataclasses import replace
from typing import Any

from ..errors import HostileInput
from ..passdb import Network, is_within
from ..series import cell, zeros
from . import proxy
from .address import peer_address
from .admission import Admission, Slot
from .binding import AF_UNIX
from .proxy import MAX_V1, MAX_V2, Origin

_log = logging.getLogger("restante.listener")
# Connections that are accepted in one turn of the loop.  With more, a flood would delay sessions.
_ACCEPTS_PER_TURN = 64
# Unsent octets in the kernel's buffer at which the socket is full (TCP_NOTSENT_LOWAT).  Equal to
# ``output.HIGH_WATER``, so that neither buffer is larger than the other.
_MAX_UNSENT = 65_536
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Seconds without accepting after one of these errors; asyncio pauses for 1 s (ACCEPT_RETRY_DELAY).
_PAUSE = 0.5
_DIRECT = Origin()
TLS_AT_PROXY = "proxy"
"""Value of ``Origin.tls`` if the configuration, not the PROXY header, states that TLS is used."""
_REFUSED = {
    reason: cell("connections_refused_total", reason)
    for reason in ("total", "per_address", "handshake", "proxy")
}
_HANDSHAKE_FAILED = cell("tls_handshakes_total", "failed")
_NOTSENT_LOWAT: int = getattr(socket, "TCP_NOTSENT_LOWAT", 0)  # missing on Windows


class Listener:
    """Accepts connections on one socket until it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        build: Callable[[str, Slot, Origin], asyncio.BaseProtocol],
        admission: Admission,
        *,
        name: str,
        tls: ssl.SSLContext | None = None,
        handshake: float = 10.0,
        busy: bytes = b"",
        proxy_from: tuple[Network, ...] = (),
        tls_at_proxy: bool = False,
        counts: list[float] | None = None,
    ) -> None:
        """
        Args:
            build: returns the protocol object for a client.  Its arguments are the client's
                address, the slot, which the protocol must release, and the proxy's data.
            tls: the context for implicit TLS; None if connections begin without TLS.
            handshake: seconds for the TLS handshake, and also for the PROXY header.
            busy: the response to a client that gets no slot, unless the connection begins with TLS.
            proxy_from: networks whose connections begin with a PROXY header.
            tls_at_proxy: whether the proxies accept only clients that use TLS.
            counts: the values of the metrics (``series``).
        """
        self._socket = listening
        self._build = build
        self._admission = admission
        self.name = name
        self.tls = tls
        """The context for implicit TLS on later connections."""
        self.proxy_from = proxy_from
        """Networks whose connections begin with a PROXY header; no other peer may send one."""
        self._tls_at_proxy = tls_at_proxy
        self._handshake = handshake
        self._busy = busy
        self._counts = zeros() if counts is None else counts
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        if listening.family != AF_UNIX and _NOTSENT_LOWAT:  # accepted sockets inherit the option
            listening.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _MAX_UNSENT)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting connections, and abort handshakes that have not finished.

        Connections that a protocol serves continue.  The path of a Unix socket is not removed,
        because other workers may listen on it.
        """
        if self._socket.fileno() < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for task in self._handshakes:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                client_socket, peer = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                _log.error("accept paused", extra={"fields": {"reason": error.strerror}})
                self._loop.remove_reader(self._socket.fileno())
                self._resume = self._loop.call_later(_PAUSE, self._accept_again)
                return
            self._handle(client_socket, peer_address(peer))

    def _accept_again(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _handle(self, client_socket: socket.socket, address: str) -> None:
        """Admit a client, or read the PROXY header first if the peer is a proxy."""
        if is_within(address, self.proxy_from):
            client_socket.setblocking(False)

            def refuse(error: BaseException) -> None:
                client_socket.close()
                self._counts[_REFUSED["proxy"]] += 1
                reason = "timeout" if isinstance(error, TimeoutError) else str(error)
                fields = {"ip": address, "proto": self.name, "reason": reason}
                _log.warning("proxy refused", extra={"fields": fields})

            self._start(self._admit_from_proxy(client_socket, address), refuse)
        else:
            self._admit(client_socket, address, _DIRECT)

    def _start(
        self, work: Coroutine[Any, Any, None], on_failure: Callable[[BaseException], None]
    ) -> asyncio.Task[None]:
        """Run ``work`` in a task; if it fails, ``on_failure`` releases its resources.

        ``on_failure`` is a callback and not a ``finally`` block: a task that is cancelled before
        its first step never enters its body, and the slot would stay occupied.
        """

        def done(task: asyncio.Task[None]) -> None:
            self._handshakes.discard(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                return
            on_failure(error)
            if not isinstance(error, OSError | HostileInput | asyncio.CancelledError):
                _log.error("bug", exc_info=error)

        task = self._loop.create_task(work)
        self._handshakes.add(task)
        task.add_done_callback(done)
        return task

    async def _admit_from_proxy(self, client_socket: socket.socket, address: str) -> None:
        """Read the client's address from the PROXY header, and admit the client by it."""
        async with asyncio.timeout(self._handshake):
            origin = await read_header(client_socket)
        if origin.address:
            origin = replace(origin, address=peer_address((origin.address,)), proxy=address)
            if self._tls_at_proxy and not origin.tls:
                origin = replace(origin, tls=TLS_AT_PROXY)
        self._admit(client_socket, origin.address or address, origin)

    def _admit(self, client_socket: socket.socket, address: str, origin: Origin) -> None:
        slot = self._admission.admit(address)
        if slot is None:
            limit = "per_address" if self._admission.is_source_full(address) else "total"
            self._counts[_REFUSED[limit]] += 1
            _log.warning(
                "connection refused",
                extra={"fields": {"ip": address, "proto": self.name, "reason": "too-many"}},
            )
            try:
                if self._busy and self.tls is None:
                    client_socket.send(self._busy)
            except OSError:
                pass  # the client has disconnected
            finally:
                client_socket.close()
            return

        def refuse(error: BaseException) -> None:
            """Release the slot after a handshake that failed, took too long or was cancelled."""
            slot.release()
            client_socket.close()
            self._counts[_REFUSED["handshake"]] += 1
            log_refused_tls(address, self.name, error, self._counts)

        task = self._start(self._start_protocol(client_socket, address, slot, origin), refuse)
        slot.make_evictable(task.cancel)

    async def _start_protocol(
        self, client_socket: socket.socket, address: str, slot: Slot, origin: Origin
    ) -> None:
        """Do the TLS handshake if TLS is implicit, and pass the connection to a protocol."""
        protocol = self._build(address, slot, origin)
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                client_socket,
                ssl=self.tls,
                ssl_handshake_timeout=self._handshake if self.tls else None,
            )
        except BaseException:
            # uvloop does not call this method after a cancellation, so the service would wait for
            # the end of this connection for ever.
            protocol.connection_lost(None)
            raise


async def read_header(client_socket: socket.socket) -> Origin:
    """Read a PROXY header.  The octets after the header, for TLS or for the session, stay unread.

    Raises:
        HostileInput: the header is malformed.
        OSError: the connection has ended.
    """
    octets = b""
    while True:
        await _wait_until_readable(client_socket)
        try:
            peeked = client_socket.recv(MAX_V1 + MAX_V2, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        if not peeked:
            raise ConnectionResetError("connection ended within the PROXY header")
        header = proxy.parse(octets + peeked)
        count = len(peeked) if header is None else header[1] - len(octets)
        octets += client_socket.recv(count)
        if header is not None:
            return header[0]


async def _wait_until_readable(client_socket: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(client_socket.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(client_socket.fileno())


def log_refused_tls(
    address: str, name: str, error: BaseException, counts: MutableSequence[float]
) -> None:
    """Count and log a failed TLS handshake.

    The reason in the log does not depend on the TLS library's texts.
    """
    counts[_HANDSHAKE_FAILED] += 1
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "handshake").lower().replace("_", "-")
    elif isinstance(error, TimeoutError):
        reason = "timeout"
    else:
        reason = "connection-lost"
    _log.info("tls refused", extra={"fields": {"ip": address, "proto": name, "reason": reason}})
