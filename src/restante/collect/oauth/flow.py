"""The steps of OAuth 2 without I/O: create requests, and interpret the provider's responses.

The user signs in with a browser (authorization code with PKCE, RFC 6749 §4.1, RFC 7636 §4) or on
another device (RFC 8628 §3).  The browser is redirected to a loopback address (RFC 8252 §7.3), or
the user pastes the address to which it was redirected.  A service uses its own secret (RFC 6749
§4.4).

Security: the state binds the response to the request, and the nonce binds the ID token to it.  The
verifier makes a stolen code useless (RFC 8252 §8.1).  No ``repr`` contains a token.
"""

from __future__ import annotations

import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from ...errors import ConsentNeeded, UnsafeArgument
from .errors import ProviderUnavailable, explain

# Seconds for which an access token is valid, if the provider does not report it (RFC 6749 §5.1).
_DEFAULT_LIFETIME = 300.0
_INTERVAL = 5.0  # seconds between polls, and the increase after slow_down (RFC 8628 §3.5)
_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"

Form = dict[str, str]
JsonObject = Mapping[str, object]
"""A JSON object from the provider."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider's endpoints and scopes."""

    authorize: str
    token: str
    device: str
    scopes: tuple[str, ...]
    app_scopes: tuple[str, ...] = ()
    """Scopes for a service with its own secret."""
    extra: tuple[tuple[str, str], ...] = ()
    """Additional parameters for ``authorize``."""
    host: str = "127.0.0.1"
    """Host in the loopback address to which the provider redirects the browser."""


GOOGLE = Provider(
    "https://accounts.google.com/o/oauth2/v2/auth",
    "https://oauth2.googleapis.com/token",
    "",  # no device flow for mail scopes
    ("openid", "email", "https://mail.google.com/"),
    # Without these parameters, a second sign-in returns no refresh token.
    extra=(("access_type", "offline"), ("prompt", "consent")),
)


def microsoft(tenant: str = "common") -> Provider:
    """Return Microsoft's endpoints and scopes.

    ``tenant`` is an organisation, or ``common``, ``organizations`` or ``consumers``.
    """
    base = f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
    return Provider(
        f"{base}/authorize",
        f"{base}/token",
        f"{base}/devicecode",
        (
            "openid",
            "email",
            "offline_access",
            "https://outlook.office.com/POP.AccessAsUser.All",
        ),
        ("https://outlook.office365.com/.default",),
        host="localhost",
    )


@dataclass(frozen=True, slots=True)
class Application:
    """An application that is registered with the provider."""

    provider: Provider
    client_id: str
    client_secret: str = field(default="", repr=False)

    def form(self, **values: str) -> Form:
        """Return a form with these values and the application's credentials."""
        secret = {"client_secret": self.client_secret} if self.client_secret else {}
        return {"client_id": self.client_id, **secret, **values}


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that a provider issued."""

    access: str = field(repr=False)
    expires_at: float
    """When the access token expires, in seconds since the epoch."""
    refresh: str = field(default="", repr=False)
    refresh_expires_at: float | None = None
    """When the refresh token expires, in seconds since the epoch; None if unknown."""
    agreed_at: float = 0.0
    """When the user consented, in seconds since the epoch."""
    user: str = ""
    """The user who consented; empty if unknown."""


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """One authorization request; the response must match it."""

    application: Application
    redirect: str
    user: str
    state: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(64), repr=False)

    @property
    def url(self) -> str:
        """The address to open in a browser (RFC 6749 §4.1.1, RFC 7636 §4.3)."""
        provider = self.application.provider
        digest = sha256(self.verifier.encode()).digest()
        values = {
            "response_type": "code",
            "client_id": self.application.client_id,
            "redirect_uri": self.redirect,
            "scope": " ".join(provider.scopes),
            "state": self.state,
            "nonce": self.nonce,
            "code_challenge": urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "login_hint": self.user,
            **dict(provider.extra),
        }
        return f"{provider.authorize}?{urlencode(values)}"

    def code(self, address: str) -> str:
        """Return the code in the address to which the browser was redirected (RFC 6749 §4.1.2).

        Raises:
            UnsafeArgument: the address is not the response to this request.
            ConsentNeeded, ProviderUnavailable: the provider or the user refused.
        """
        parameters = dict(parse_qsl(urlsplit(address.strip()).query))
        if not compare_digest(parameters.get("state", "").encode(), self.state.encode()):
            raise UnsafeArgument("this address is not the response to this sign-in")
        if "error" in parameters:
            raise explain(parameters["error"], parameters.get("error_description", ""))
        if not parameters.get("code"):
            raise UnsafeArgument("this address contains no code")
        return parameters["code"]

    def redeem(self, code: str) -> Form:
        """Return the request for tokens in exchange for the code (RFC 6749 §4.1.3)."""
        return self.application.form(
            grant_type="authorization_code",
            code=code,
            redirect_uri=self.redirect,
            code_verifier=self.verifier,
        )

    def tokens(self, response: JsonObject, now: float) -> Tokens:
        """Return the tokens of the response to ``redeem``.

        Raises:
            ConsentNeeded: the request was refused, or the ID token belongs to another request.
        """
        received = tokens(response, now, agreed_at=now)
        claims = _claims(response)
        if "openid" in self.application.provider.scopes:
            audience = claims.get("aud")
            is_audience = audience == self.application.client_id or (
                isinstance(audience, list) and self.application.client_id in audience
            )
            if claims.get("nonce") != self.nonce or not is_audience:
                raise ConsentNeeded(
                    "the provider's ID token belongs to another request; sign in again"
                )
        return received


def tokens(
    response: JsonObject, now: float, previous: Tokens | None = None, *, agreed_at: float = 0.0
) -> Tokens:
    """Return the tokens in a response from the token endpoint (RFC 6749 §5.1).

    If the response contains no refresh token, the one in ``previous`` remains valid (RFC 6749 §6).

    Raises:
        ConsentNeeded, ProviderUnavailable: the response is an error.
    """
    if "error" in response:
        raise explain(_text(response, "error"), _text(response, "error_description"))
    access = _text(response, "access_token")
    if not access or _text(response, "token_type").lower() != "bearer":
        raise ProviderUnavailable("the provider's response contains no bearer token")
    refresh = _text(response, "refresh_token")
    life = _number(response, "refresh_token_expires_in")
    expires = previous.refresh_expires_at if previous else None
    if refresh or life is not None:
        expires = None if life is None else now + life
    claims = _claims(response)
    user = _text(claims, "email") or _text(claims, "preferred_username")
    return Tokens(
        access,
        now + (_number(response, "expires_in") or _DEFAULT_LIFETIME),
        refresh or (previous.refresh if previous else ""),
        expires,
        previous.agreed_at if previous else agreed_at,
        user or (previous.user if previous else ""),
    )


def refresh(application: Application, previous: Tokens) -> Form:
    """Return the request that uses the refresh token to get a new access token (RFC 6749 §6)."""
    return application.form(grant_type="refresh_token", refresh_token=previous.refresh)


def client_credentials_request(application: Application) -> Form:
    """Return the request for the tokens of a service with its own secret (RFC 6749 §4.4)."""
    scopes = application.provider.app_scopes or application.provider.scopes
    return application.form(grant_type="client_credentials", scope=" ".join(scopes))


class Device(NamedTuple):
    """The provider's response to ``device_request`` (RFC 8628 §3.2)."""

    user_code: str
    """The code that the user must enter."""
    address: str
    """The address of the page where the user must enter the code."""
    code: str
    """The secret code for ``poll``."""
    expires_at: float
    """When the codes expire, in seconds since the epoch."""
    interval: float
    """Seconds between polls."""


def device_request(application: Application) -> Form:
    """Return the request for a device code (RFC 8628 §3.1)."""
    return application.form(scope=" ".join(application.provider.scopes))


def device(response: JsonObject, now: float) -> Device:
    """Return the codes in a response to ``device_request`` (RFC 8628 §3.2).

    Raises:
        ConsentNeeded, ProviderUnavailable: the response is an error.
    """
    if "error" in response:
        raise explain(_text(response, "error"), _text(response, "error_description"))
    address = _text(response, "verification_uri") or _text(response, "verification_url")
    device = Device(
        _text(response, "user_code"),
        address,
        _text(response, "device_code"),
        now + (_number(response, "expires_in") or _DEFAULT_LIFETIME),
        _number(response, "interval") or _INTERVAL,
    )
    if not (device.code and device.user_code.isprintable() and address.isprintable()):
        raise ProviderUnavailable("the provider's response contains no device code")
    return device


def poll(application: Application, device: Device) -> Form:
    """Return the request that asks whether the user has entered the code (RFC 8628 §3.4)."""
    return application.form(grant_type=_DEVICE, device_code=device.code)


def wait_longer(response: JsonObject, interval: float) -> float | None:
    """Return the seconds until the next poll; None if the response is final (RFC 8628 §3.5)."""
    match response.get("error"):
        case "authorization_pending":
            return interval
        case "slow_down":
            return interval + _INTERVAL
    return None


def _text(response: JsonObject, key: str) -> str:
    value = response.get(key)
    return value if isinstance(value, str) else ""


def _number(response: JsonObject, key: str) -> float | None:
    """Return a positive number, or None; some providers send numbers as text."""
    try:
        value = float(str(response.get(key)))
    except ValueError:
        return None
    return value if 0 < value < 1e10 else None


def _claims(response: JsonObject) -> JsonObject:
    """Return the claims of the ID token.

    The signature is not verified, because the token came from the provider over TLS (OpenID Connect
    Core, 3.1.3.7).
    """
    parts = _text(response, "id_token").split(".")
    try:
        claims = json.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}
