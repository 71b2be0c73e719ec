"""Asking a provider: HTTPS requests, the loopback address, and the token of an account.

Everything blocks.  Security: that of ``https``; clear HTTP goes to this machine only, for tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from ssl import SSLContext
from urllib.parse import urlencode, urlsplit

from ...errors import ConfigurationError, ConsentNeeded, TemporaryFailure, UnsafeArgument
from ...https import JsonClient, is_lasting
from ...tls import client_context
from . import flow
from .errors import ProviderUnavailable
from .flow import Answer, Application, Form, Question, Tokens
from .sealed import Tokenfile

_PATIENCE = 30.0  # seconds for an answer
_PERSON = 600.0  # seconds for a person in a browser
_EARLY = 120.0  # seconds before its end from which on an access token is not begun with
_DONE = b"Signed in. You can close this window.\n"
_WRONG = b"This is not the answer that restante waits for.\n"

Say = Callable[[str], None]


def post(url: str, form: Form, context: SSLContext | None = None) -> Answer:
    """The provider's JSON, whether it is an error or not (RFC 6749 §5.2).

    Raises:
        ProviderUnavailable: no answer, or none that is JSON.
        ConfigurationError: clear HTTP to another machine.
    """
    check(url)
    host = urlsplit(url).hostname
    try:
        web = JsonClient(context or client_context(), patience=_PATIENCE)
        status, found = web.ask(url, urlencode(form).encode())
    except TemporaryFailure as error:
        raise ProviderUnavailable(str(error)) from error
    if status >= 500 or status == 429:
        raise ProviderUnavailable(f"the provider answers {status}")
    if found is None:
        text = f"{host}: that is no answer of a provider (HTTP status {status})"
        cause = ConfigurationError(text) if is_lasting(status) else None
        raise ProviderUnavailable(text) from cause
    return found


def endpoints(issuer: str, context: SSLContext | None = None) -> Answer:
    """What an OpenID provider says of itself (OpenID Connect Discovery 1.0 §4).

    Raises:
        ProviderUnavailable: no answer.
        ConfigurationError: none of this issuer's, or clear HTTP to another machine.
    """
    check(issuer)
    web = JsonClient(context or client_context(), patience=_PATIENCE)
    try:
        _, found = web.ask(issuer.rstrip("/") + "/.well-known/openid-configuration")
    except TemporaryFailure as error:
        raise ProviderUnavailable(str(error)) from error
    if found is None or str(found.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
        raise ConfigurationError(f"{issuer} does not say where it is asked; give its addresses")
    return found


def check(url: str) -> None:
    """
    Raises:
        ConfigurationError: secrets would go in clear.
    """
    parts = urlsplit(url)
    is_here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    if parts.scheme != "https" and not is_here:
        raise ConfigurationError(f"an OAuth 2 endpoint is an https address, not {url!r}")


# Ways for the user to consent.  Each returns tokens that are not stored yet.


def by_browser(application: Application, user: str, show: Say) -> Tokens:
    """On this machine; ``show`` is given the address for the browser."""
    with _Loopback(("127.0.0.1", 0), _Handler) as server:
        redirect = f"http://{application.provider.host}:{server.server_address[1]}/"
        question = server.question = Question(application, redirect, user)
        show(question.url)
        server.timeout = 1.0
        until = time.monotonic() + _PERSON
        while server.answer is None and time.monotonic() < until:
            server.handle_request()
    if server.answer is None:
        raise ConsentNeeded("no answer from the browser in time; sign in again")
    return _redeem(question, question.code(server.answer))


def by_pasting(application: Application, user: str, show: Say, read: Callable[[], str]) -> Tokens:
    """In a browser anywhere, whose last address ``read`` gives; nothing answers there."""
    question = Question(application, f"http://{application.provider.host}:1/", user)
    show(question.url)
    return _redeem(question, question.code(read()))


def _redeem(question: Question, code: str) -> Tokens:
    answer = post(question.application.provider.token, question.redeem(code))
    return question.tokens(answer, time.time())


def by_device(
    application: Application,
    show: Callable[[str, str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Tokens:
    """On any device; ``show`` is given where, and what to enter there."""
    if not application.provider.device:
        raise UnsafeArgument("this provider knows no devices; use --browser or --paste")
    form = flow.ask_for_device(application)
    asked = flow.device(post(application.provider.device, form), time.time())
    show(asked.address, asked.user_code)
    interval: float | None = asked.interval
    while time.time() < asked.expires_at:
        assert interval is not None
        sleep(interval)
        try:
            answer = post(application.provider.token, flow.poll(application, asked))
        except ProviderUnavailable:
            interval *= 2  # RFC 8628 §3.5
            continue
        if (interval := flow.wait_longer(answer, interval)) is None:
            return flow.tokens(answer, time.time(), agreed_at=time.time())
    raise ConsentNeeded("the code was not entered in time; once more")


def by_itself(application: Application) -> Tokens:
    """By the application's own secret."""
    if not application.client_secret:
        raise ConfigurationError("oauth.client_secret is wanted for the flow client")
    answer = post(application.provider.token, flow.for_itself(application))
    return flow.tokens(answer, time.time(), agreed_at=time.time())


class _Loopback(HTTPServer):
    question: Question
    answer: str | None = None


class _Handler(BaseHTTPRequestHandler):
    server: _Loopback
    timeout = 10  # seconds for a request

    def do_GET(self) -> None:
        """Only what answers the question counts; anybody on this machine can ask here."""
        try:
            self.server.question.code(self.path)
        except UnsafeArgument:
            self._say(400, _WRONG)
            return
        except (ConsentNeeded, ProviderUnavailable):
            pass  # the terminal shows the error
        self.server.answer = self.path
        self._say(200, _DONE)

    def _say(self, status: int, text: bytes) -> None:
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
        """The code is in the address."""


# The token of an account.


def access_token(
    application: Application, file: Tokenfile, *, is_service: bool = False, renew: bool = False
) -> str:
    """One that is good for a login now; a new one is on disk before it is returned.

    ``renew`` asks for another although there seems to be a good one.

    Raises:
        ConsentNeeded: the user must act; the stored tokens stay.
        ProviderUnavailable: try again; the stored tokens stay.
    """
    with file.alone():
        before, now = file.get(), time.time()
        if before is not None and not renew and now < before.expires_at - _EARLY:
            return before.access
        try:
            found = _renewed(application, before, now, is_service=is_service)
        except (ConsentNeeded, ProviderUnavailable) as error:
            file.failed(now, str(error))
            raise
        file.put(found)
        return found.access


def _renewed(
    application: Application, before: Tokens | None, now: float, *, is_service: bool
) -> Tokens:
    if is_service:
        return by_itself(application)
    if before is None or not before.refresh:
        raise ConsentNeeded("not signed in yet; next: restante account auth NAME")
    answer = post(application.provider.token, flow.refresh(application, before))
    return flow.tokens(answer, now, before)
