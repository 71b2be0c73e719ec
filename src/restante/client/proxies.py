"""The client's dialogue with a proxy before the server's first octet, without I/O.

Standards: RFC 1928 and RFC 1929 (SOCKS 5 with user name and password), RFC 9110 §9.3.6 (CONNECT).
Security: exactly the octets of the proxy's response are read, because the server's greeting
follows.  The proxy always looks up the server's name, so that the name does not leak to the local
DNS.  Until TLS begins, a proxy can read and change everything, like any router along the way.
Limits: the header section of a response to CONNECT can have ``_MAX_HEAD`` octets.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Generator
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import unquote

from ..errors import CannotConnect, UnsafeArgument

Exchange = Generator[bytes | int, bytes, None]
"""Yields octets to send, or the exact number of octets to receive."""

_MAX_HEAD = 16_384  # octets; far more than the few lines that proxies send
_URL = re.compile(
    r"(?P<scheme>socks5h?|http)://(?:(?P<login>[^/?#]*)@)?"
    r"(?P<host>\[[0-9a-f.:]+\]|[\w.-]+):(?P<port>[0-9]{1,5})/?",
    re.IGNORECASE,
)
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b")
_SOCKS_FAILURES = {
    1: "general failure",
    2: "the proxy does not allow this connection",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}
_SOCKS_ADDRESS_SIZES = {
    1: 4,
    4: 16,
}  # octets by address type; type 3 is a name, which begins with its size


@dataclass(frozen=True, slots=True)
class Proxy:
    """A SOCKS 5 or HTTP proxy."""

    host: str
    port: int
    is_http: bool
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Parse ``socks5://user:password@host:port`` or ``http://…``; the login is optional.

        Raises:
            UnsafeArgument: the URL is invalid; the error does not quote it.
        """
        match = _URL.fullmatch(url)
        if match is None or not url.isprintable() or not 0 < int(match["port"]) < 65_536:
            raise UnsafeArgument("a proxy URL must be socks5://host:port or http://host:port")
        user, _, password = (match["login"] or "").partition(":")
        is_http, host = match["scheme"].lower() == "http", match["host"].strip("[]")
        return cls(host, int(match["port"]), is_http, unquote(user), unquote(password))

    def request(self, host: str, port: int) -> Exchange:
        """Request a connection to this host.

        Raises:
            CannotConnect: the proxy refuses, or its response is invalid.
        """
        if self.is_http:
            yield from self._connect(host, port)
        else:
            yield from self._socks(host, port)

    def failure(self, reason: str) -> CannotConnect:
        """Return the error for a failure of the proxy."""
        return CannotConnect(f"proxy {self.host}:{self.port}: {reason}")

    def _connect(self, host: str, port: int) -> Exchange:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.user:
            login = b64encode(f"{self.user}:{self.password}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {login}")
        yield "\r\n".join([*lines, "", ""]).encode("idna" if not target.isascii() else "ascii")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if len(head) > _MAX_HEAD:
                raise self.failure("the header section of its response is too long")
            head += yield 1
        status = _STATUS.match(head)
        if status is None:
            raise self.failure("its response is not HTTP")
        if not status[1].startswith(b"2"):
            wrong_login = status[1] == b"407"
            reason = "it requires a different login" if wrong_login else "it refuses to connect"
            raise self.failure(f"{reason} (HTTP status {status[1].decode()})")

    def _socks(self, host: str, port: int) -> Exchange:
        yield b"\x05\x02\x00\x02" if self.user else b"\x05\x01\x00"
        version, method = yield 2
        if version != 5 or method not in ((0, 2) if self.user else (0,)):
            reason = (
                "it requires a different login" if version == 5 else "its response is not SOCKS 5"
            )
            raise self.failure(reason)
        if method == 2:
            user, password = self.user.encode(), self.password.encode()
            if not (0 < len(user) < 256 and 0 < len(password) < 256):
                raise self.failure("user name and password must have 1 to 255 octets")
            yield b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password
            _, status = yield 2
            if status != 0:
                raise self.failure("it refuses the login")
        yield b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big")
        version, status, _, address_type = yield 4
        if version != 5 or status != 0:
            raise self.failure(_SOCKS_FAILURES.get(status, "unknown failure"))
        size = _SOCKS_ADDRESS_SIZES.get(address_type)
        if size is None and address_type != 3:
            raise self.failure("its response is not SOCKS 5")
        # Skip the address and the port of the proxy.
        yield (size if size is not None else (yield 1)[0]) + 2


def _socks_address(host: str) -> bytes:
    """
    Raises:
        UnsafeArgument: the host name is invalid.
    """
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        return (b"\x01" if address.version == 4 else b"\x04") + address.packed
    try:
        name = host.encode("idna")
    except UnicodeError as error:
        raise UnsafeArgument("invalid host name") from error
    return b"\x03" + bytes([len(name)]) + name
