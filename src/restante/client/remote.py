"""The server that a client connects to, the required security, and the credentials."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import sha256
from hmac import compare_digest
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, TypedDict, Unpack
from urllib.parse import unquote_to_bytes

from .. import tls as contexts
from ..errors import CannotConnect, DeadlineExceeded, TLSUnavailable, UnsafeArgument
from ..pop3.quirks import PRESETS, Quirks, by_host
from ..sasl.exchange import ClientLogin, Strength
from .routes import Route
from .secret import Secret, reveal

StrPath = str | os.PathLike[str]
"""The path of a file."""
Token = str | Secret
TokenSource = Token | Callable[[], Token | Awaitable[Token]]
"""An OAuth 2 bearer token, or a function that returns a fresh token for each login; for ``connect``
it may be a coroutine function."""


class TLS(Enum):
    """When TLS begins (RFC 8314 §3).  There is no opportunistic TLS."""

    IMPLICIT = "pop3s"
    """TLS from the first octet."""
    STARTTLS = "pop3"
    """STLS before any login; the connection fails if the server does not support it."""
    NONE = "none"
    """No TLS; allowed only for a loopback address."""


@dataclass(frozen=True, slots=True)
class Service:
    """A server of a mail domain, found by ``discover``; ``connect`` accepts it instead of a URL.

    Its certificate must name the mail domain, or the host if the host is known to belong to the
    domain (RFC 7817 §3).
    """

    host: str
    """Host name of the server."""
    port: int
    """Port of the server."""
    tls: TLS
    """When TLS begins."""
    domain: str
    """The mail domain for which the server was found."""
    user: str = ""
    """The whole address (RFC 6186 §4); some servers require only the part before the "@"."""
    is_confirmed: bool = False
    """Whether the user has confirmed that this host belongs to the domain."""

    @property
    def is_within(self) -> bool:
        """Whether the host is in the domain.  If not, ask the user before calling ``confirmed``."""
        return self.host == self.domain or self.host.endswith(f".{self.domain}")

    def confirmed(self) -> Service:
        """Return a copy of this service whose certificate may name the host."""
        return replace(self, is_confirmed=True)


class Options(TypedDict, total=False):
    """The keyword arguments of ``connect`` that describe the server and the login.

    For functions that pass options on: ``def fetch(url: str, **options: Unpack[Options])``.  See
    ``connect`` for the meaning of each; None always stands for the default.
    """

    user: str | None
    password: str | Secret | None
    token: TokenSource | None
    certificate: StrPath | tuple[StrPath, StrPath] | None
    mechanism: str | None
    strength: Strength | None
    tls: TLS | None
    port: int | None
    ca_file: StrPath | None
    quirks: Quirks | str | None
    context: ssl.SSLContext | None
    sock: socket.socket | None
    proxy: str | None
    local_addr: str | tuple[str, int] | None
    server_hostname: str | None
    fingerprint: str | bytes | None


_PORTS = {TLS.IMPLICIT: 995, TLS.STARTTLS: 110, TLS.NONE: 110}
_SCHEMES = {"pop3s": TLS.IMPLICIT, "pop3": TLS.STARTTLS, "pop": TLS.STARTTLS}
SILENCE = 3.0
"""Seconds without a greeting after which the client tests whether the port uses implicit TLS."""
# OpenSSL's errors for a response that is not TLS.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
_UNSIGNED = (18, 20)  # OpenSSL's X509_V_ERR_…: self-signed; signed by an unknown authority
_AUTH = re.compile(";auth=", re.IGNORECASE)
# ``urllib.parse`` is not used, because its exceptions quote invalid parts, for example part of a
# password.  The last "@" ends the login, as in ``urllib.parse``.
_URL = re.compile(
    r"(?P<scheme>[a-z0-9]+)://(?:(?P<login>[^/?#]*)@)?"
    r"(?P<host>\[[0-9a-f.:%a-z]+\]|[^/?#@:\[\]\s]+)(?::(?P<port>[0-9]*))?/*",
    re.IGNORECASE,
)
_HOST = re.compile(r"[\w.:-]+")
_URL_HELP = (
    "a POP3 URL is pop3s://user@host or pop3://user@host, optionally with a port after the host; "
    'in user name and password, write ":", "/", "?", "#" and "%" as %3A, %2F, %3F, %23 and %25'
)
_PATH = (str, os.PathLike)
_OPTION_TYPES: Mapping[str, tuple[Any, ...]] = {
    "user": (str,),
    "password": (str, Secret),
    "token": (str, Secret, Callable),
    "certificate": (*_PATH, tuple),
    "mechanism": (str,),
    "tls": (TLS,),
    "port": (SupportsIndex,),
    "ca_file": _PATH,
    "quirks": (Quirks, str),
    "context": (ssl.SSLContext,),
    "sock": (socket.socket,),
    "proxy": (str,),
    "local_addr": (str, tuple),
    "server_hostname": (str,),
    "fingerprint": (str, bytes),
}
"""The types that each option accepts.  None always means the default."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A server, and the login for it."""

    host: str
    port: int
    tls: TLS
    login: ClientLogin
    token: TokenSource = field(repr=False)
    options: Options = field(repr=False)
    route: Route = field(repr=False)
    fingerprint: bytes | None
    """The SHA-256 of the server's certificate."""
    service: Service | None = None

    @classmethod
    def parse(cls, where: str | Service, **options: Unpack[Options]) -> Remote:
        """Parse ``pop3s://user@host:port`` (implicit TLS), ``pop3://user@host:port`` (STLS), or a
        host.

        A mechanism may follow the user: ``pop3s://user;AUTH=PLAIN@host`` (RFC 2384 §3).

        Raises:
            TypeError: an option is unknown or has the wrong type.
            UnsafeArgument: the URL is invalid, or password, token and certificate are all missing.
            TLSUnavailable: TLS.NONE was requested for another machine.
        """
        _check_options(options)
        host, port, scheme, url_login = split(where)
        chosen = options.get("tls") or scheme
        if (chosen_port := options.get("port")) is not None:
            port = index(chosen_port)
        token = options.get("token") or ""
        login = replace(
            url_login,
            user=options.get("user") or url_login.user,
            password=reveal(options.get("password")) or url_login.password,
            has_certificate=options.get("certificate") is not None,
            mechanism=options.get("mechanism") or url_login.mechanism,
            strength=options.get("strength") or Strength.SECRET,
        )
        port = _PORTS[chosen] if port is None else port
        service = where if isinstance(where, Service) else None
        route = Route.parse(
            host, port, options.get("sock"), options.get("proxy"), options.get("local_addr")
        )
        fingerprint = _digest(options.get("fingerprint"))
        remote = cls(host, port, chosen, login, token, options, route, fingerprint, service)
        remote._check()
        return remote

    def _check(self) -> None:
        """
        Raises:
            UnsafeArgument, TLSUnavailable: see ``parse``.
        """
        login = self.login
        shows_certificate = login.has_certificate or login.mechanism.upper() == "EXTERNAL"
        if not shows_certificate and not (login.user and (login.password or self.token)):
            raise UnsafeArgument(
                "a login requires a user name with a password or a token, or a certificate"
            )
        if login.password and self.token:
            raise UnsafeArgument("a login requires either a password or a token, not both")
        if not 0 < self.port < 65_536:
            raise UnsafeArgument("port must be a number from 1 to 65535")
        if login.has_certificate and self.options.get("context") is not None:
            raise UnsafeArgument(
                "with context, load the certificate into it, and set mechanism to EXTERNAL"
            )
        if self.options.get("ca_file") is not None and self.options.get("context") is not None:
            raise UnsafeArgument("with context, load the certificates of ca_file into it")
        if self.service is not None and self.options.get("context") is not None:
            raise UnsafeArgument(
                "context cannot be combined with a Service, whose names need their own check"
            )
        quirks = self.options.get("quirks")
        if isinstance(quirks, str) and quirks not in PRESETS:
            raise UnsafeArgument(f"unknown quirks; known presets: {', '.join(PRESETS)}")
        self._check_tls()

    def _check_tls(self) -> None:
        """
        Raises:
            UnsafeArgument, TLSUnavailable: see ``parse``.
        """
        if self.service is not None and self.options.get("server_hostname"):
            raise UnsafeArgument("server_hostname cannot be combined with a Service")
        if self.tls is TLS.NONE and (self.fingerprint or self.options.get("server_hostname")):
            raise UnsafeArgument("fingerprint and server_hostname require TLS")
        if self.tls is TLS.NONE and not self.route.is_local:
            raise TLSUnavailable(
                f"only connections to this machine may be without TLS, not to {self.host}"
            )

    @property
    def server_name(self) -> str:
        """The name that the server's certificate must have."""
        return self.options.get("server_hostname") or self.host

    def context(self) -> ssl.SSLContext:
        """
        Raises:
            ConfigurationError: a file of certificates cannot be used.
        """
        own_context = self.options.get("context")
        if own_context is not None:
            return own_context
        ca_file = self.options.get("ca_file")
        context = contexts.client_context(None if ca_file is None else Path(ca_file))
        context.check_hostname = self.service is None  # otherwise ``check_certificate`` does it
        if self.fingerprint is not None and ca_file is None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        certificate = self.options.get("certificate")
        if certificate is not None:
            chain, key = (
                certificate if isinstance(certificate, tuple) else (certificate, certificate)
            )
            contexts.load_own(context, Path(chain), Path(key))
        return context

    def check_certificate(self, peer: ssl.SSLSocket | ssl.SSLObject) -> None:
        """Check the fingerprint, if one is given, and the names that a ``Service`` allows.

        The chain has been verified before, unless only the fingerprint is checked.

        Raises:
            TLSUnavailable: the certificate is not the expected one; no credential was sent.
        """
        if self.fingerprint is not None:
            digest = sha256(peer.getpeercert(True) or b"").digest()
            if not compare_digest(digest, self.fingerprint):
                raise TLSUnavailable(
                    f"the certificate of {self.host} has a different fingerprint: {digest.hex()}"
                )
        if self.service is None:
            return
        label = "_pop3s" if self.tls is TLS.IMPLICIT else "_pop3"
        hosts = {self.service.domain}
        if self.service.is_within or self.service.is_confirmed:
            hosts.add(self.host)
        certificate_der = peer.getpeercert(True)
        if not certificate_der or not contexts.is_valid_for(
            certificate_der, hosts, f"{label}.{self.service.domain}"
        ):
            domain = self.service.domain
            raise TLSUnavailable(f"the certificate of {self.host} is not valid for {domain}")

    @property
    def quirks(self) -> Quirks:
        chosen = self.options.get("quirks")
        if chosen is None:
            return by_host(self.host)
        return PRESETS[chosen] if isinstance(chosen, str) else chosen

    def implicit_tls_error(self) -> TLSUnavailable:
        """Return the error for a server that begins with TLS instead of a greeting."""
        return TLSUnavailable(
            f"{self.host} requires TLS from the first octet on port {self.port}; use "
            f"pop3s://{self.host}:{self.port}"
        )

    def has_implicit_tls(self) -> bool:
        """Return whether the server uses implicit TLS on this port.  Blocks for a few seconds.

        The certificate is ignored, because the connection ends without sending anything.  Returns
        False if a second connection through the same route is impossible.
        """
        if not self.route.is_direct:
            return False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with self.route.connect_blocking(SILENCE) as connection:
                connection.settimeout(SILENCE)
                context.wrap_socket(connection, server_hostname=self.server_name).close()
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "")
        except (OSError, ValueError):
            return False
        return True

    def get_token(self) -> Token | Awaitable[Token]:
        """Return the token for the next login; empty if the login uses no token."""
        return self.token() if callable(self.token) else self.token


def _digest(fingerprint: str | bytes | None) -> bytes | None:
    """
    Raises:
        UnsafeArgument: the fingerprint is not a SHA-256.
    """
    if fingerprint is None:
        return None
    try:
        if isinstance(fingerprint, str):
            fingerprint = bytes.fromhex(fingerprint.replace(":", ""))
    except ValueError:
        fingerprint = b""
    if len(fingerprint) != 32:
        raise UnsafeArgument("fingerprint must be the SHA-256 of a certificate: 64 hex digits")
    return fingerprint


def _check_options(options: Options) -> None:
    """Check names and types of options: a misspelt option must not silently weaken a login.

    Raises:
        TypeError: an option is invalid; the error does not quote its value, which may be secret.
    """
    given: Mapping[str, object] = {**options}
    for name, value in given.items():
        if name not in Options.__annotations__:
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"unknown option {name!r}; known options: {known}")
        if value is None:
            continue
        if name == "strength":
            is_valid = isinstance(value, Strength)
        else:
            is_valid = isinstance(value, _OPTION_TYPES[name]) and not isinstance(value, bool)
        if not is_valid:
            raise TypeError(f"{name} must not be of type {type(value).__name__}")


def split(where: str | Service) -> tuple[str, int | None, TLS, ClientLogin]:
    """Return host, port or None, the kind of TLS, and the login in the URL.

    Raises:
        UnsafeArgument: ``where`` is neither a URL nor a host; the error does not quote it.
        TypeError: ``where`` is not a ``str``.
    """
    if isinstance(where, Service):
        return where.host, where.port, where.tls, ClientLogin(where.user)
    if not isinstance(where, str):
        raise TypeError(
            f"the server must be a URL, a host or a Service, not {type(where).__name__}"
        )
    if _HOST.fullmatch(where):
        return where, None, TLS.IMPLICIT, ClientLogin("")
    match = _URL.fullmatch(where)
    if match is None or match["scheme"].lower() not in _SCHEMES or not where.isprintable():
        raise UnsafeArgument(_URL_HELP)
    user, _, password = (match["login"] or "").partition(":")
    user, *mechanism = _AUTH.split(user, maxsplit=1)
    mechanism_name = "".join(mechanism).removeprefix("+")
    login = ClientLogin(
        _decoded(user),
        _decoded(password),
        mechanism="" if mechanism_name == "*" else mechanism_name,
    )
    port = int(match["port"][:6]) if match["port"] else None
    return match["host"].strip("[]").lower(), port, _SCHEMES[match["scheme"].lower()], login


def _decoded(text: str) -> str:
    """
    Raises:
        UnsafeArgument: the percent-encoded octets are not UTF-8 (RFC 3986 §2.5).
    """
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        pass  # its exception contains the text, which may be a password
    raise UnsafeArgument("percent-encoded octets in a URL must be UTF-8")


def channel_binding(peer: ssl.SSLSocket | ssl.SSLObject | None) -> bytes:
    """Return the channel binding to the server's certificate; empty without TLS."""
    certificate_der = peer.getpeercert(True) if peer is not None else None
    return contexts.end_point(certificate_der) if certificate_der else b""


def explain(error: OSError, host: str, tls: TLS = TLS.STARTTLS) -> Exception:
    """Return the exception for a failure to connect, with advice."""
    if isinstance(error, ssl.SSLCertVerificationError):
        is_unsigned = error.verify_code in _UNSIGNED
        advice = (
            "; if it is the right one, trust it with ca_file (--ca-file)" if is_unsigned else ""
        )
        return TLSUnavailable(
            f"the certificate of {host} is not trusted: {error.verify_message}{advice}"
        )
    if isinstance(error, ssl.SSLError):
        name = getattr(error, "reason", "") or "handshake failed"
        reason = name.lower().replace("_", " ")
        advice = "; if this port begins without TLS, use pop3:// (STLS)"
        begins_without_tls = tls is TLS.IMPLICIT and name in _NOT_TLS
        return TLSUnavailable(
            f"TLS with {host} failed: {reason}{advice if begins_without_tls else ''}"
        )
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{host} does not answer")
    # Look up the system's text, because asyncio replaces it.
    text = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return CannotConnect(f"{host}: {text or str(error) or 'connection lost'}")
