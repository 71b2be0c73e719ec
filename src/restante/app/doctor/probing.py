"""Connect to our own listeners as a client does, and read what they send.

Security: another program may have the port.  It gets no secret, and all that it sends is bounded:
each connection has one deadline, and ``Dialogue`` limits the length of lines and responses.
"""

from __future__ import annotations

import socket
import ssl
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

from ...errors import ConnectionLost, DeadlineExceeded
from ...passdb import Network, is_within
from ...pop3.dialogue import Capabilities, Dialogue, Procedure
from ...server.address import Address, peer_address, socket_path

T = TypeVar("T")
_READ_SIZE = 65_536  # octets
_PROXY_HEADER = b"PROXY UNKNOWN\r\n"  # proxy-protocol.txt §2.1: a connection of the proxy's own

_LOOPBACK = {"": ("::1", "127.0.0.1"), "::": ("::1", "127.0.0.1"), "0.0.0.0": ("127.0.0.1",)}


@dataclass(frozen=True)
class Heard:
    """What a POP3 server sent before a login."""

    capabilities: Capabilities
    """The capabilities after TLS has started."""
    announced_stls: bool
    """Whether the server announced STLS before TLS."""
    tls: str
    """The version of TLS, such as "TLSv1.3"."""
    certificate: bytes
    """The server's certificate in DER."""


def context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return a context that accepts any certificate; with ``version`` only this version of TLS."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["pop3"])
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0 and 1.1
            # OpenSSL's security level forbids old versions, and would hide what the server does.
            made.set_ciphers("ALL:@SECLEVEL=0")
            made.minimum_version = made.maximum_version = version
    return made


class Probe:
    """One connection to a listener."""

    def __init__(self, address: Address, seconds: float, proxies: Iterable[Network] = ()) -> None:
        """Connect.

        If this machine's own address is in ``proxies``, begin with a PROXY header.

        Raises:
            OSError: the connection is refused, or not accepted in time.
        """
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._socket = connected(address, seconds, proxies)
        self._dialogue = Dialogue()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def start_tls(self, tls: ssl.SSLContext, server_name: str = "") -> ssl.SSLSocket:
        """Do a TLS handshake.

        Raises:
            OSError: the handshake fails; ``ssl.SSLError`` or ``TimeoutError`` in most cases.
        """
        self._set_timeout()
        secured = tls.wrap_socket(
            self._socket, server_hostname=server_name or None, do_handshake_on_connect=False
        )
        self._socket = secured
        secured.do_handshake()  # its timeout is not renewed by octets that arrive
        return secured

    def send_stls(self) -> None:
        """Read the greeting and send STLS.

        Raises:
            RestanteError: the server does not follow the protocol, or refuses STLS.
        """
        self.perform(self._dialogue.greeting())
        self.perform(self._dialogue.start_tls())

    def hear(self, *, is_implicit: bool) -> Heard:
        """Read the greeting and the capabilities, start TLS, and end the session.

        Raises:
            OSError: the connection or TLS fails.
            RestanteError: the server does not follow the protocol.
        """
        dialogue, announced = self._dialogue, False
        if is_implicit:
            secured = self.start_tls(context())
            self.perform(dialogue.greeting())
        else:
            self.perform(dialogue.greeting())
            announced = self.perform(dialogue.request_capabilities()).stls
            self.perform(dialogue.start_tls())
            secured = self.start_tls(context())
        capabilities = self.perform(dialogue.request_capabilities())
        self.perform(dialogue.quit())
        certificate = secured.getpeercert(binary_form=True) or b""
        return Heard(capabilities, announced, secured.version() or "", certificate)

    def perform(self, procedure: Procedure[T]) -> T:
        """Run a procedure of ``Dialogue``, or another one that sends and receives octets."""
        try:
            outgoing = next(procedure)
            while True:
                outgoing = procedure.send(self._exchange(outgoing))
        except StopIteration as end:
            return cast(T, end.value)

    def _exchange(self, outgoing: bytes | None) -> bytes:
        self._set_timeout()
        try:
            if outgoing is not None:
                self._socket.sendall(outgoing)
                return b""
            octets = self._socket.recv(_READ_SIZE)
        except TimeoutError as failure:
            raise DeadlineExceeded(f"no answer within {self._seconds:g} s") from failure
        if not octets:
            raise ConnectionLost("the connection was closed")
        return octets

    def _set_timeout(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)


def connected(address: Address, seconds: float, proxies: Iterable[Network]) -> socket.socket:
    """Connect; if this machine's own address is in ``proxies``, begin with a PROXY header.

    Raises:
        OSError: the connection is refused, or not accepted in time.
    """
    opened = _connect(address, seconds)
    if is_within(peer_address(opened.getsockname()), proxies):
        opened.sendall(_PROXY_HEADER)
    return opened


def _connect(address: Address, seconds: float) -> socket.socket:
    """Connect to an address of this machine; a wildcard is reached through loopback."""
    if address.path:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(seconds)
            with socket_path(address.path) as short:
                connected.connect(short)
        except BaseException:
            connected.close()
            raise
        return connected
    failure: OSError | None = None
    for host in _LOOPBACK.get(address.host, (address.host,)):
        try:
            return socket.create_connection((host, address.port), seconds)
        except OSError as error:
            failure = failure or error
    assert failure is not None
    raise failure
