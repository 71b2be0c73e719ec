"""Whose an OAuth 2 bearer token is: signed tokens (JWT, RFC 7519, RFC 9068) and their keys (RFC
7517), or the provider's word (RFC 7662).

Security, by RFC 8725: only listed asymmetric algorithms, and each key only for its own kind;
``exp``, ``iss`` and ``aud`` are required and checked; ``kid`` is a key of a table and nothing
else; what names keys or URLs in a token is never followed.  An unknown ``kid`` makes keys be
fetched anew at most once a minute, whoever sends how many.  An e-mail address counts only if it is
verified.
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
from .http import Web

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # of keys, by algorithm
_MAX_TOKEN = 16_384  # octets
_MAX_KEYS = 100
_MIN_RSA = 2048  # bits
# RFC 9068 §4 accepts at+jwt only; Google, Microsoft and older providers write JWT or nothing.  An
# ID token, a logout token or a DPoP proof is no access token.
_ACCESS_TYPES = ("jwt", "at+jwt", "application/at+jwt")
_LEEWAY = 30.0  # seconds that clocks may differ
_AT_ONCE = 16  # requests to the provider

Claims = Mapping[str, Any]


class Issuer(Protocol):
    """Knows the tokens of one provider."""

    async def owner(self, token: str) -> str:
        """The name of whom the token was given to.

        Raises:
            AuthenticationFailed: forged, expired, or for another service.
            BackendUnavailable: cannot be told now.
        """


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a token must say."""

    issuer: str
    audience: tuple[str, ...]
    """One of these; at least one."""
    claim: str = "email"
    """Which claim names the user."""
    scope: str = ""
    """Must be among the token's; empty: whatever they are."""

    def name(self, claims: Claims) -> str:
        """The user's.

        Raises:
            AuthenticationFailed: nobody's, or not for this.
        """
        if self.scope and self.scope not in _words(claims.get("scope", claims.get("scp", ""))):
            raise AuthenticationFailed("token-scope")
        if self.claim == "email" and claims.get("email_verified") is not True:
            raise AuthenticationFailed("token-email-not-verified")
        name = claims.get(self.claim)
        if not isinstance(name, str) or not name:
            raise AuthenticationFailed("token-names-nobody")
        return name


def _words(value: object) -> list[str]:
    """Scopes are words in a text; some providers make a list."""
    if isinstance(value, str):
        return value.split(" ")
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


# Signed tokens.


@dataclass(slots=True)
class Keys:
    """A provider's public keys, by ``kid``."""

    source: str
    """A URL, or the path of a file."""
    web: Web
    clock: Callable[[], float] = time.monotonic
    _keys: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    _fetched: float = float("-inf")
    _tried: float = float("-inf")
    _trouble: BackendUnavailable | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _threads: Threads = field(default_factory=lambda: Threads("jwks", 1))

    @property
    def _is_file(self) -> bool:
        return "://" not in self.source

    async def find(self, kid: str | None) -> tuple[str, Any]:
        """The kind of a key and the key.  Without ``kid``: the only one there is.

        Raises:
            AuthenticationFailed: there is none.
            BackendUnavailable: there may be one, but the keys cannot be had.
        """
        fresh, again = (10.0, 1.0) if self._is_file else (3600.0, 60.0)  # seconds
        if self.clock() - self._fetched <= fresh and (found := self._pick(kid)):
            return found  # without the lock: a forged kid makes no other login wait for a fetch
        async with self._lock:
            now = self.clock()
            is_due = now - self._fetched > fresh or self._pick(kid) is None
            if is_due and now - self._tried > again:
                self._tried = now
                try:
                    self._keys = _parse(await self._threads.run(self._fetch))
                except BackendUnavailable as error:
                    self._trouble = error
                else:
                    self._fetched, self._trouble = now, None
        if found := self._pick(kid):
            return found
        if self._trouble:
            raise BackendUnavailable(self._trouble.reason) from self._trouble
        raise AuthenticationFailed("token-key")

    def _pick(self, kid: str | None) -> tuple[str, Any] | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _fetch(self) -> Mapping[str, Any]:
        if not self._is_file:
            return self.web.ask(self.source)
        try:
            found = json.loads(read_regular(Path(self.source)))
        except OSError as error:
            raise BackendUnavailable(f"{self.source}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise BackendMisconfigured(f"{self.source}: is no JSON") from error
        return found if isinstance(found, dict) else {}


def _parse(found: Mapping[str, Any]) -> Mapping[str, tuple[str, Any]]:
    """Public keys for signatures; others are left out, secret ones above all."""
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    listed = found.get("keys")
    if not isinstance(listed, list) or len(listed) > _MAX_KEYS:
        raise BackendUnavailable("the provider's keys are no set of keys")
    keys: dict[str, tuple[str, Any]] = {}
    for number, each in enumerate(listed):
        if not isinstance(each, dict) or each.get("use", "sig") != "sig":
            continue
        kind, kid = str(each.get("kty")), each.get("kid", f"\0{number}")
        if kind not in _KINDS.values() or not isinstance(kid, str) or "d" in each:
            continue
        try:
            key = PyJWK(each).key
        except (PyJWTError, ValueError, TypeError):
            continue
        if kind != "RSA" or key.key_size >= _MIN_RSA:
            keys[kid] = (kind, key)
    return keys


class Signed:
    """An ``Issuer`` whose tokens speak for themselves."""

    def __init__(
        self, keys: Keys, wanted: Wanted, *, algorithms: tuple[str, ...] = ALGORITHMS
    ) -> None:
        self._keys = keys
        self._wanted = wanted
        self._algorithms = algorithms

    async def owner(self, token: str) -> str:
        try:
            import jwt
            from jwt.exceptions import PyJWTError
        except ImportError as error:
            raise BackendMisconfigured("oauth needs pip install 'restante[jwt]'") from error

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
        kind, key = await self._keys.find(kid)
        if kind != _KINDS[algorithm[:2]]:
            raise AuthenticationFailed("token-algorithm")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._wanted.audience,
                issuer=self._wanted.issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise AuthenticationFailed(f"token: {type(error).__name__}") from None
        _refuse_bound(claims)
        return self._wanted.name(claims)


def _refuse_bound(claims: Claims) -> None:
    """A token may be bound to a key of its client (RFC 7800, RFC 8705, RFC 9449).  SASL cannot show
    that key, so such a token may have been stolen from the service that it was made for."""
    if "cnf" in claims:
        raise AuthenticationFailed("token-bound")


# The provider's word.


class Introspected:
    """An ``Issuer`` that asks its provider about each token (RFC 7662)."""

    def __init__(self, url: str, client: str, secret: str, wanted: Wanted, web: Web) -> None:
        """``client`` and ``secret`` are those of this server at the provider."""
        self._url = url
        self._client = client
        self._secret = secret
        self._wanted = wanted
        self._web = web
        self._threads = Threads("introspection", _AT_ONCE)

    async def owner(self, token: str) -> str:
        if len(token) > _MAX_TOKEN:
            raise AuthenticationFailed("token-form")
        return self._judge(await self._threads.run(lambda: self._ask(token)))

    def _ask(self, token: str) -> Claims:
        # RFC 6749 §2.3.1: both are encoded as in a form.
        login = f"{quote_plus(self._client)}:{quote_plus(self._secret)}"
        headers = {
            "Authorization": f"Basic {b64encode(login.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        form = urlencode({"token": token, "token_type_hint": "access_token"})
        return self._web.ask(self._url, form.encode("ascii"), headers)

    def _judge(self, claims: Claims) -> str:
        """What RFC 7662 §2.2 leaves out is not required; what it says must fit."""
        if claims.get("active") is not True:
            raise AuthenticationFailed("token-not-active")
        if claims.get("iss", self._wanted.issuer) != self._wanted.issuer:
            raise AuthenticationFailed("token-issuer")
        if not self._is_meant(claims):
            raise AuthenticationFailed("token-audience")
        now, forever = time.time(), float("inf")
        if not _is_time(claims.get("exp", forever), now - _LEEWAY, forever):
            raise AuthenticationFailed("token-expired")
        if not _is_time(claims.get("nbf", now), -forever, now + _LEEWAY):
            raise AuthenticationFailed("token-too-early")
        _refuse_bound(claims)
        return self._wanted.name(claims)

    def _is_meant(self, claims: Claims) -> bool:
        """For this service; where the provider tells no audience, for a client of it."""
        audience = claims.get("aud") or claims.get("client_id")
        named = audience if isinstance(audience, list) else [audience]
        return any(each in self._wanted.audience for each in named)


def _is_time(value: object, after: float, before: float) -> bool:
    """Seconds since the epoch, between two others."""
    return isinstance(value, int | float) and after < value <= before
