"""Verify OAuth 2 bearer tokens, and find their users.

``Signed`` verifies signed tokens (JWT, RFC 7519, RFC 9068) with the provider's keys (RFC 7517).
``Introspected`` sends the tokens to the provider for introspection (RFC 7662).

Security, as recommended by RFC 8725: only the configured asymmetric algorithms are accepted, and
each key only with algorithms of its type; ``exp``, ``iss`` and ``aud`` are required and checked;
``kid`` is used only as an index into the table of keys; keys and URLs in a token are ignored.
Tokens with an unknown ``kid`` cause at most one request for keys per minute.  An e-mail address is
accepted only if the provider has verified it.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode

from ..errors import AuthenticationFailed, BackendMisconfigured, BackendUnavailable
from ..regular import read_regular
from ..threads import Threads
from .choices import ALGORITHMS
from .http import ProviderClient

# The types of keys by the first two letters of the algorithm.
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_MAX_TOKEN = 16_384  # octets; bounds the work for a forged token
_MAX_KEYS = 100  # keys of one provider; bounds the work for an untrusted key set
_MIN_RSA = 2048  # bits (RFC 7518 §3.3)
# RFC 9068 §4 allows only at+jwt, but Google, Microsoft and older providers send JWT or no type.
# Other types, such as logout+jwt or dpop+jwt, are not access tokens.
_ACCESS_TYPES = ("jwt", "at+jwt", "application/at+jwt")
_LEEWAY = 30.0  # seconds by which clocks may differ (RFC 7519 §4.1.4: at most a few minutes)
_MAX_REQUESTS = 16  # simultaneous requests to the provider; chosen without measurement

Claims = Mapping[str, Any]


class Issuer(Protocol):
    """Verifies the tokens of one provider."""

    async def owner(self, token: str) -> str:
        """Return the name of the user that the token was issued for.

        Raises:
            AuthenticationFailed: the token is forged or expired, or was issued for another service.
            BackendUnavailable: the token cannot be checked now.
        """


@dataclass(frozen=True, slots=True)
class TokenRules:
    """The claims that a token must have."""

    issuer: str
    audience: tuple[str, ...]
    """One or more audiences; the token must have been issued for one of them."""
    claim: str = "email"
    """The claim that contains the user's name."""
    scope: str = ""
    """A scope that the token must have; empty if none is required."""

    def name(self, claims: Claims) -> str:
        """Return the name of the user.

        Raises:
            AuthenticationFailed: the claims lack a user name or the required scope.
        """
        if self.scope and self.scope not in _scopes(claims.get("scope", claims.get("scp", ""))):
            raise AuthenticationFailed("token-scope")
        if self.claim == "email" and claims.get("email_verified") is not True:
            raise AuthenticationFailed("token-email-not-verified")
        name = claims.get(self.claim)
        if not isinstance(name, str) or not name:
            raise AuthenticationFailed("token-names-nobody")
        return name


def _scopes(value: object) -> list[str]:
    """Return a list of scopes.  Most providers send a text with spaces, some a JSON array."""
    if isinstance(value, str):
        return value.split(" ")
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


# Signed tokens.


@dataclass(slots=True)
class KeySet:
    """A provider's public keys, by ``kid``.  They are fetched again when they are too old."""

    source: str
    """A URL, or the path of a file."""
    client: ProviderClient
    clock: Callable[[], float] = time.monotonic
    _keys: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    _fetched: float = float("-inf")
    _tried: float = float("-inf")
    _error: BackendUnavailable | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _threads: Threads = field(default_factory=lambda: Threads("jwks", 1))

    @property
    def _is_file(self) -> bool:
        return "://" not in self.source

    async def find(self, kid: str | None) -> tuple[str, Any]:
        """Return a key, with its type first.  If ``kid`` is None, the set must have only one key.

        Raises:
            AuthenticationFailed: unknown key.
            BackendUnavailable: the key may exist, but the keys cannot be fetched.
        """
        # Maximum age of the keys, and interval between two attempts to fetch them, in seconds.
        # Providers publish new keys hours before they use them.  The interval prevents forged
        # tokens from causing many requests.
        max_age, interval = (10.0, 1.0) if self._is_file else (3600.0, 60.0)
        if self.clock() - self._fetched <= max_age and (key := self._pick(kid)):
            return key  # without the lock, so that a fetch for a forged kid does not delay others
        async with self._lock:
            now = self.clock()
            is_due = now - self._fetched > max_age or self._pick(kid) is None
            if is_due and now - self._tried > interval:
                self._tried = now
                try:
                    self._keys = _parse(await self._threads.run(self._fetch))
                except BackendUnavailable as error:
                    self._error = error
                else:
                    self._fetched, self._error = now, None
        if key := self._pick(kid):
            return key
        if self._error:
            raise BackendUnavailable(self._error.reason) from self._error
        raise AuthenticationFailed("token-key")

    def _pick(self, kid: str | None) -> tuple[str, Any] | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _fetch(self) -> Mapping[str, Any]:
        if not self._is_file:
            return self.client.ask(self.source)
        try:
            keys = json.loads(read_regular(Path(self.source)))
        except OSError as error:
            raise BackendUnavailable(f"{self.source}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise BackendMisconfigured(f"{self.source} is not valid JSON") from error
        return keys if isinstance(keys, dict) else {}


def _parse(key_set: Mapping[str, Any]) -> Mapping[str, tuple[str, Any]]:
    """Return the public keys for signatures.  Other keys, such as private keys, are ignored."""
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    entries = key_set.get("keys")
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise BackendUnavailable("the provider's keys are not a JWK set")
    keys: dict[str, tuple[str, Any]] = {}
    for number, each in enumerate(entries):
        if not isinstance(each, dict) or each.get("use", "sig") != "sig":
            continue
        key_type, kid = str(each.get("kty")), each.get("kid", f"\0{number}")
        if key_type not in _KEY_TYPES.values() or not isinstance(kid, str) or "d" in each:
            continue
        try:
            key = PyJWK(each).key
        except (PyJWTError, ValueError, TypeError):
            continue
        if key_type != "RSA" or key.key_size >= _MIN_RSA:
            keys[kid] = (key_type, key)
    return keys


class Signed:
    """An ``Issuer`` whose tokens are signed."""

    def __init__(
        self, keys: KeySet, rules: TokenRules, *, algorithms: tuple[str, ...] = ALGORITHMS
    ) -> None:
        self.keys = keys
        self._rules = rules
        self._algorithms = algorithms

    async def owner(self, token: str) -> str:
        try:
            import jwt
            from jwt.exceptions import PyJWTError
        except ImportError as error:
            raise BackendMisconfigured(
                "oauth requires a library; run: pip install 'restante[jwt]'"
            ) from error

        if len(token) > _MAX_TOKEN or token.count(".") != 2:
            raise AuthenticationFailed("token-form")
        try:
            header = jwt.get_unverified_header(token)
        except (PyJWTError, ValueError, RecursionError):
            raise AuthenticationFailed("token-form") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms or {"crit", "b64", "zip"} & header.keys():
            raise AuthenticationFailed("token-algorithm")
        if kid is not None and not isinstance(kid, str):
            raise AuthenticationFailed("token-form")
        if str(header.get("typ", "JWT")).casefold() not in _ACCESS_TYPES:
            raise AuthenticationFailed("token-type")
        key_type, key = await self.keys.find(kid)
        if key_type != _KEY_TYPES[algorithm[:2]]:
            raise AuthenticationFailed("token-algorithm")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise AuthenticationFailed(f"token: {type(error).__name__}") from None
        _refuse_bound(claims)
        return self._rules.name(claims)


def _refuse_bound(claims: Claims) -> None:
    """Refuse a token that is bound to a key of its client (RFC 7800, RFC 8705, RFC 9449).

    SASL has no way for the client to prove that it has the key, so the token may be stolen.
    """
    if "cnf" in claims:
        raise AuthenticationFailed("token-bound")


# Introspection.


class Introspected:
    """An ``Issuer`` whose provider checks each token (RFC 7662)."""

    def __init__(
        self, url: str, client_id: str, secret: str, rules: TokenRules, client: ProviderClient
    ) -> None:
        """``client_id`` and ``secret`` are the credentials of this server at the provider."""
        self._url = url
        self._client_id = client_id
        self._secret = secret
        self._rules = rules
        self._client = client
        self._threads = Threads("introspection", _MAX_REQUESTS)

    async def owner(self, token: str) -> str:
        if len(token) > _MAX_TOKEN:
            raise AuthenticationFailed("token-form")
        return self._check_claims(await self._threads.run(lambda: self._ask(token)))

    def _ask(self, token: str) -> Claims:
        # RFC 6749 §2.3.1: the client ID and the secret are encoded like values of a form.
        login = f"{quote_plus(self._client_id)}:{quote_plus(self._secret)}"
        headers = {
            "Authorization": f"Basic {b64encode(login.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        form = urlencode({"token": token, "token_type_hint": "access_token"})
        return self._client.ask(self._url, form.encode("ascii"), headers)

    def _check_claims(self, claims: Claims) -> str:
        """Check the claims.  All except ``active`` are optional (RFC 7662 §2.2)."""
        if claims.get("active") is not True:
            raise AuthenticationFailed("token-not-active")
        if claims.get("iss", self._rules.issuer) != self._rules.issuer:
            raise AuthenticationFailed("token-issuer")
        if not self._is_for_this_service(claims):
            raise AuthenticationFailed("token-audience")
        now, forever = time.time(), float("inf")
        if not _is_time(claims.get("exp", forever), now - _LEEWAY, forever):
            raise AuthenticationFailed("token-expired")
        if not _is_time(claims.get("nbf", now), -forever, now + _LEEWAY):
            raise AuthenticationFailed("token-too-early")
        _refuse_bound(claims)
        return self._rules.name(claims)

    def _is_for_this_service(self, claims: Claims) -> bool:
        """Return whether the token is for this service.

        The client ID is checked if the token has no audience.
        """
        audience = claims.get("aud") or claims.get("client_id")
        audiences = audience if isinstance(audience, list) else [audience]
        return any(each in self._rules.audience for each in audiences)


def _is_time(value: object, after: float, before: float) -> bool:
    """Return whether ``value`` is a time in seconds since the epoch between these limits."""
    return isinstance(value, int | float) and after < value <= before
