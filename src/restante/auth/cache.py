"""Remembers what a passdb said of a password, so that the next poll costs no hash.

Security (the mistakes of CVE-2025-30189 and CVE-2026-27855): the key is a keyed hash, by a secret
of this process, of everything that the answer depends on, each part with its length: service,
mechanism, both identities, password and the user's generation.  A credential or a permission that
changes makes another generation, and what was remembered is never found again.  No password is
kept.  Only passwords are remembered: whatever proves itself by a challenge, or by a token, is asked
each time.  Whether an account may be opened now is not decided here, but at each login.

Limits: two tables of fixed size, so that guesses do not push out what users have proved.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Generic, TypeVar

from ..addons import offers
from ..clock import elapsed
from ..errors import AuthenticationFailed
from ..passdb import Account, Credentials, Generations, LastUses, Passdb

_RIGHT = 300.0  # seconds
_RIGHT_BLINDLY = 60.0  # seconds, where the passdb cannot tell generations
_WRONG = 10.0  # seconds
_MANY_RIGHT, _MANY_WRONG = 16_384, 4_096  # entries, about 0.5 KiB each

T = TypeVar("T")


class Cache:
    """A ``Passdb`` before another one."""

    def __init__(
        self,
        passdb: Passdb,
        by: Passdb | None = None,
        *,
        tells_all_changes: bool = True,
        service: str = "pop3",
        clock: Callable[[], float] = elapsed,
    ) -> None:
        """
        Args:
            by: used instead of ``passdb``, for example a queue in front of it.
            tells_all_changes: False if some changes do not change the generation, as where one of
                several back ends has none.
        """
        self._passdb = by or passdb
        self._generations = passdb if offers(passdb, Generations) else None
        self._last_uses = passdb if offers(passdb, LastUses) else None
        self._tells_all = tells_all_changes
        self._service = service
        self._secret = secrets.token_bytes(32)
        self._right = _Table[Account](_MANY_RIGHT, clock)
        self._wrong = _Table[str](_MANY_WRONG, clock)

    async def verify(self, credentials: Credentials) -> Account:
        generation = await self._generation(credentials)
        key = self._key(credentials, generation)
        account, reason = self._right.get(key), self._wrong.get(key)
        if account is not None:
            if self._last_uses is not None:
                self._last_uses.used(account, credentials.address)
            return account
        if reason is not None:
            raise AuthenticationFailed(reason)
        try:
            account = await self._passdb.verify(credentials)
        except AuthenticationFailed as error:
            # Where no generation tells that it was put right, a wrong one is asked each time.
            is_vague = generation is None or not self._tells_all
            if not is_vague and generation == await self._generation(credentials):
                self._wrong.put(key, error.reason, _WRONG)
            raise
        if generation == await self._generation(credentials):  # nothing changed meanwhile
            is_vague = generation is None or not self._tells_all
            lifetime = _RIGHT_BLINDLY if is_vague else _RIGHT
            self._right.put(key, account, lifetime)
        return account

    def clear(self) -> None:
        """Remember nothing of what was."""
        self._right.clear()
        self._wrong.clear()

    async def _generation(self, credentials: Credentials) -> bytes | None:
        if self._generations is None:
            return None
        return await self._generations.generation(credentials.identity)

    def _key(self, shown: Credentials, generation: bytes | None) -> bytes:
        texts = (
            self._service,
            shown.mechanism,
            shown.identity,
            shown.authorization,
            shown.password,
        )
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        parts.append(generation or b"")
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return blake2b(framed, key=self._secret, digest_size=32).digest()


class _Table(Generic[T]):
    """At most ``size`` entries that expire; the one not asked for longest makes room."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, T]] = OrderedDict()

    def get(self, key: bytes) -> T | None:
        found = self._entries.get(key)
        if found is None:
            return None
        until, value = found
        if self._clock() >= until:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: T, lifetime: float) -> None:
        self._entries[key] = (self._clock() + lifetime, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()
