"""Sign in at an OAuth 2 provider, and get an account's access token.

All functions block.
Security: the rules of ``https`` apply.  Plain HTTP is allowed only to this machine, for tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from ssl import SSLContext
from urllib.parse import urlencode, urlsplit

from ...errors import ConfigurationError, ConsentNeeded, TemporaryFailure, UnsafeArgument
from ...https import JsonClient, is_permanent
from ...tls import client_context
from . import flow
from .errors import ProviderUnavailable
from .flow import Application, AuthorizationRequest, Form, JsonObject, Tokens
from .sealed import Tokenfile

_TIMEOUT = 30.0  # seconds for a response; chosen without measurement
_SIGN_IN_TIMEOUT = 600.0  # seconds for a user to sign in; chosen without measurement
# Seconds before its expiry at which an access token is replaced; long enough for a login.
_RENEWAL_MARGIN = 120.0
_DONE = b"Signed in. You can close this window.\n"
_WRONG = b"This is not the response that restante expects.\n"

Show = Callable[[str], None]
"""Shows an address to the user."""


def post(url: str, form: Form, context: SSLContext | None = None) -> JsonObject:
    """Send a form, and return the provider's JSON, which may be an error (RFC 6749 §5.2).

    Raises:
        ProviderUnavailable: there was no response, or it is not JSON.
        ConfigurationError: the URL uses plain HTTP to another machine.
    """
    check_endpoint(url)
    host = urlsplit(url).hostname
    try:
        client = JsonClient(context or client_context(), timeout=_TIMEOUT)
        status, response = client.request(url, urlencode(form).encode())
    except TemporaryFailure as error:
        raise ProviderUnavailable(str(error)) from error
    if status >= 500 or status == 429:
        raise ProviderUnavailable(f"the provider answered with HTTP status {status}")
    if response is None:
        text = f"{host}: not a response of an OAuth 2 provider (HTTP status {status})"
        cause = ConfigurationError(text) if is_permanent(status) else None
        raise ProviderUnavailable(text) from cause
    return response


def endpoints(issuer: str, context: SSLContext | None = None) -> JsonObject:
    """Return an OpenID provider's metadata (OpenID Connect Discovery 1.0 §4).

    Raises:
        ProviderUnavailable: there was no response.
        ConfigurationError: the response is not the metadata of this issuer, or the URL uses plain
            HTTP to another machine.
    """
    check_endpoint(issuer)
    client = JsonClient(context or client_context(), timeout=_TIMEOUT)
    try:
        _, metadata = client.request(issuer.rstrip("/") + "/.well-known/openid-configuration")
    except TemporaryFailure as error:
        raise ProviderUnavailable(str(error)) from error
    if metadata is None or str(metadata.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
        raise ConfigurationError(f"{issuer} does not publish its endpoints; configure them")
    return metadata


def check_endpoint(url: str) -> None:
    """Check that an endpoint is reached over TLS.

    Raises:
        ConfigurationError: secrets would be sent unencrypted.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"an OAuth 2 endpoint is not a valid URL: {url!r}") from None
    is_local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    if parts.scheme != "https" and not is_local:
        raise ConfigurationError(f"an OAuth 2 endpoint must be an https address, not {url!r}")


# Sign-in methods.  The caller must store the tokens that they return.


def by_browser(application: Application, user: str, show: Show) -> Tokens:
    """Sign in with a browser on this machine; ``show`` is called with the address to open."""
    with _Loopback(("127.0.0.1", 0), _Handler) as server:
        redirect = f"http://{application.provider.host}:{server.server_address[1]}/"
        request = server.authorization = AuthorizationRequest(application, redirect, user)
        show(request.url)
        server.timeout = 1.0
        until = time.monotonic() + _SIGN_IN_TIMEOUT
        while server.redirected_to is None and time.monotonic() < until:
            server.handle_request()
    if server.redirected_to is None:
        raise ConsentNeeded("no response from the browser in time; sign in again")
    return _redeem(request, request.code(server.redirected_to))


def by_pasting(application: Application, user: str, show: Show, read: Callable[[], str]) -> Tokens:
    """Sign in with a browser on any machine.

    The browser is redirected to an address at which no server listens.  The user copies this
    address, and ``read`` returns it.
    """
    request = AuthorizationRequest(application, f"http://{application.provider.host}:1/", user)
    show(request.url)
    return _redeem(request, request.code(read()))


def _redeem(request: AuthorizationRequest, code: str) -> Tokens:
    response = post(request.application.provider.token, request.redeem(code))
    return request.tokens(response, time.time())


def by_device(
    application: Application,
    show: Callable[[str, str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Tokens:
    """Sign in on any device; ``show`` is called with the address to open and the code to enter."""
    if not application.provider.device:
        raise UnsafeArgument(
            "this provider does not support sign-in with a device code; use --browser or --paste"
        )
    form = flow.device_request(application)
    device = flow.device(post(application.provider.device, form), time.time())
    show(device.address, device.user_code)
    interval: float | None = device.interval
    while time.time() < device.expires_at:
        assert interval is not None
        sleep(interval)
        try:
            response = post(application.provider.token, flow.poll(application, device))
        except ProviderUnavailable:
            interval *= 2  # RFC 8628 §3.5
            continue
        if (interval := flow.wait_longer(response, interval)) is None:
            return flow.tokens(response, time.time(), agreed_at=time.time())
    raise ConsentNeeded("the code was not entered in time; sign in again")


def by_client_secret(application: Application) -> Tokens:
    """Sign in as the application, with its secret (RFC 6749 §4.4)."""
    if not application.client_secret:
        raise ConfigurationError("the sign-in of an application requires oauth.client_secret")
    response = post(application.provider.token, flow.client_credentials_request(application))
    return flow.tokens(response, time.time(), agreed_at=time.time())


class _Loopback(HTTPServer):
    authorization: AuthorizationRequest
    redirected_to: str | None = None


class _Handler(BaseHTTPRequestHandler):
    server: _Loopback
    timeout = 10  # seconds for a request

    def do_GET(self) -> None:
        """Accept only the expected response, because any program on this machine can connect."""
        try:
            self.server.authorization.code(self.path)
        except UnsafeArgument:
            self._respond(400, _WRONG)
            return
        except (ConsentNeeded, ProviderUnavailable):
            pass  # the terminal shows the error
        self.server.redirected_to = self.path
        self._respond(200, _DONE)

    def _respond(self, status: int, text: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(text))),
            ("Referrer-Policy", "no-referrer"),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Log nothing, because the address contains the code."""


# The token of an account.


def access_token(
    application: Application, file: Tokenfile, *, is_service: bool = False, renew: bool = False
) -> str:
    """Return an access token that is valid long enough for a login now.

    A new token is stored on disk before it is returned.  With ``renew``, a new token is requested
    even if the stored token seems to be valid.

    Raises:
        ConsentNeeded: the user must sign in again; the stored tokens are kept.
        ProviderUnavailable: try again later; the stored tokens are kept.
    """
    with file.alone():
        previous, now = file.get(), time.time()
        if previous is not None and not renew and now < previous.expires_at - _RENEWAL_MARGIN:
            return previous.access
        try:
            tokens = _renew(application, previous, now, is_service=is_service)
        except (ConsentNeeded, ProviderUnavailable) as error:
            file.record_failure(now, str(error))
            raise
        file.put(tokens)
        return tokens.access


def _renew(
    application: Application, previous: Tokens | None, now: float, *, is_service: bool
) -> Tokens:
    if is_service:
        return by_client_secret(application)
    if previous is None or not previous.refresh:
        raise ConsentNeeded("not signed in yet; run: restante account auth NAME")
    response = post(application.provider.token, flow.refresh(application, previous))
    return flow.tokens(response, now, previous)
