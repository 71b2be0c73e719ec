"""Accept connections: count each, read the PROXY header, do the TLS handshake, start the protocol.

``loop.create_server`` is not used, so that connections are counted before a TLS handshake, failed
handshakes are logged, and a process without free file descriptors waits instead of spinning.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from ..errors import HostileInput
from ..passdb import Network, is_within
from . import proxy
from .address import AF_UNIX, peer_address
from .admission import Admission, Slot
from .proxy import MAX_V1, MAX_V2, Origin

_log = logging.getLogger("restante.listener")
_ACCEPT_AT_ONCE = 64  # connections; with a higher number, sessions would wait during a flood
_UNSENT = 65_536  # octets that the kernel accepts for a client that does not acknowledge them;
# the same as the output of a connection, so that neither buffer is larger
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.5  # seconds without accepting after one of these; asyncio waits 1 s (ACCEPT_RETRY_DELAY)
_DIRECT = Origin()
TLS_AT_PROXY = "proxy"
"""Replaces a TLS version that is known only from the configuration, not from the proxy's header."""
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
    ) -> None:
        """
        Args:
            build: returns the protocol for a client.  Its arguments are the client's address, the
                slot, which the protocol must release, and the data reported by a proxy.
            tls: the context for implicit TLS; None if connections begin without TLS.
            handshake: seconds for the TLS handshake, and for the PROXY header.
            busy: sent to a client that gets no slot, unless the connection begins with TLS.
            proxy_from: networks whose connections begin with a PROXY header.
            tls_at_proxy: whether the proxies accept only clients that use TLS.
        """
        self._socket = listening
        self._build = build
        self._admission = admission
        self.name = name
        self.tls = tls
        """The context for connections that are accepted from now on."""
        self.proxy_from = proxy_from
        """Networks whose connections begin with a PROXY header; no other peer may send one."""
        self._tls_at_proxy = tls_at_proxy
        self._handshake = handshake
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._accepting: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        if listening.family != AF_UNIX and _NOTSENT_LOWAT:  # accepted sockets inherit it
            listening.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting, and abort running handshakes.

        Accepted connections continue.  The path of a Unix socket is kept, because other workers may
        listen on it.
        """
        if self._socket.fileno() < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for task in self._accepting:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                accepted, peer = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                _log.error("accept paused", extra={"fields": {"reason": error.strerror}})
                self._loop.remove_reader(self._socket.fileno())
                self._resume = self._loop.call_later(_PAUSE, self._accept_again)
                return
            self._receive(accepted, peer_address(peer))

    def _accept_again(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _receive(self, accepted: socket.socket, address: str) -> None:
        if is_within(address, self.proxy_from):
            accepted.setblocking(False)

            def refuse(error: BaseException) -> None:
                accepted.close()
                reason = "timeout" if isinstance(error, TimeoutError) else str(error)
                fields = {"ip": address, "proto": self.name, "reason": reason}
                _log.warning("proxy refused", extra={"fields": fields})

            self._start(self._behind_proxy(accepted, address), refuse)
        else:
            self._admit(accepted, address, _DIRECT)

    def _start(
        self, work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]
    ) -> asyncio.Task[None]:
        """Run ``work``; if it fails, ``failed`` releases its resources.

        ``failed`` is a callback and not a ``finally``, because a task that is cancelled before its
        first step never enters its body, and the slot would stay occupied.
        """

        def ended(task: asyncio.Task[None]) -> None:
            self._accepting.discard(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                return
            failed(error)
            if not isinstance(error, OSError | HostileInput | asyncio.CancelledError):
                _log.error("bug", exc_info=error)

        task = self._loop.create_task(work)
        self._accepting.add(task)
        task.add_done_callback(ended)
        return task

    async def _behind_proxy(self, accepted: socket.socket, address: str) -> None:
        """Read the client's address before admission, so that this address is counted."""
        async with asyncio.timeout(self._handshake):
            origin = await read_header(accepted)
        if origin.address:
            origin = replace(origin, address=peer_address((origin.address,)), proxy=address)
            if self._tls_at_proxy and not origin.tls:
                origin = replace(origin, tls=TLS_AT_PROXY)
        self._admit(accepted, origin.address or address, origin)

    def _admit(self, accepted: socket.socket, address: str, origin: Origin) -> None:
        slot = self._admission.admit(address)
        if slot is None:
            _log.warning(
                "connection refused",
                extra={"fields": {"ip": address, "proto": self.name, "reason": "too-many"}},
            )
            try:
                if self._busy and self.tls is None:
                    accepted.send(self._busy)
            except OSError:
                pass  # the client has disconnected
            finally:
                accepted.close()
            return

        def refuse(error: BaseException) -> None:
            """Release the slot after a handshake that failed, took too long or was cancelled."""
            slot.release()
            accepted.close()
            log_refused_tls(address, self.name, error)

        task = self._start(self._hand_over(accepted, address, slot, origin), refuse)
        slot.make_evictable(task.cancel)

    async def _hand_over(
        self, accepted: socket.socket, address: str, slot: Slot, origin: Origin
    ) -> None:
        await self._loop.connect_accepted_socket(
            lambda: self._build(address, slot, origin),
            accepted,
            ssl=self.tls,
            ssl_handshake_timeout=self._handshake if self.tls else None,
        )


async def read_header(accepted: socket.socket) -> Origin:
    """Read a PROXY header.  Later octets are not read; they belong to TLS or to the session.

    Raises:
        HostileInput: the header is malformed.
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
        header = proxy.parse(octets + waiting)
        count = len(waiting) if header is None else header[1] - len(octets)
        octets += accepted.recv(count)
        if header is not None:
            return header[0]


async def _readable(accepted: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(accepted.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(accepted.fileno())


def log_refused_tls(address: str, name: str, error: BaseException) -> None:
    """Log a failed TLS handshake, with a reason that does not depend on the TLS library's texts."""
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "handshake").lower().replace("_", "-")
    elif isinstance(error, TimeoutError):
        reason = "timeout"
    else:
        reason = "connection-lost"
    _log.info("tls refused", extra={"fields": {"ip": address, "proto": name, "reason": reason}})
