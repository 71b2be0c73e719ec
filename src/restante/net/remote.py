"""Where a client connects to, and how safely."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import ConnectionLost, DeadlineExceeded, TLSUnavailable, UnsafeArgument
from . import tls as contexts


class TLS(Enum):
    """When TLS begins (RFC 8314 §3).  There is no "if possible"."""

    IMPLICIT = "pop3s"
    """With the first octet."""
    STARTTLS = "pop3"
    """By STLS, before any login; refused where it cannot be had."""
    NONE = "none"
    """Never; only to a loopback address."""


_PORTS = {TLS.IMPLICIT: 995, TLS.STARTTLS: 110, TLS.NONE: 110}


@dataclass(frozen=True, slots=True)
class Remote:
    """A server and who logs in there."""

    host: str
    port: int
    tls: TLS
    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, url: str, *, user: str, password: str, tls: TLS | None) -> Remote:
        """``pop3s://user@host:port`` (TLS first) or ``pop3://user@host:port`` (STLS).

        ``user`` and ``password`` that are given win over those in the URL.

        Raises:
            UnsafeArgument: no such URL, or nobody to log in.
            TLSUnavailable: TLS.NONE to another machine.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UnsafeArgument(f"no POP3 URL: {error}") from error
        if parts.scheme not in ("pop3", "pop3s") or not parts.hostname:
            raise UnsafeArgument("a POP3 URL is pop3s://user@host or pop3://user@host")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise UnsafeArgument("a POP3 URL ends with the host and its port")
        chosen = tls or TLS(parts.scheme)
        found = cls(
            parts.hostname,
            _PORTS[chosen] if port is None else port,
            chosen,
            user or unquote(parts.username or ""),
            password or unquote(parts.password or ""),
        )
        if not found.user or not found.password:
            raise UnsafeArgument("a login needs a user and a password")
        if chosen is TLS.NONE and not found.is_loopback:
            raise TLSUnavailable(f"without TLS only to this machine, not to {found.host}")
        return found

    @property
    def is_loopback(self) -> bool:
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    def context(self, given: ssl.SSLContext | None, ca_file: Path | None) -> ssl.SSLContext:
        return given or contexts.client_context(ca_file)


def explain(error: OSError, host: str) -> Exception:
    """What a failure to connect means, in words that help."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLSUnavailable(f"the certificate of {host} is not trusted: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "handshake failed").lower().replace("_", " ")
        return TLSUnavailable(f"no TLS with {host}: {reason}")
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{host} does not answer")
    # asyncio puts its own words in place of the system's.
    text = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return ConnectionLost(f"{host}: {text or error or 'connection lost'}")
