"""Cache the results of password checks, so that a client's next poll requires no hashing.

Security (compare CVE-2025-30189 and CVE-2026-27855): the key of an entry is a keyed hash of
everything on which the result depends: service, mechanism, both identities, password and the user's
generation.  The length of each part is included.  The hash key is a secret of this process.  If a
credential or a permission changes, the generation changes too, and older entries never match again.
No password is stored.  Only results of password checks are cached; challenges and tokens are
checked each time.  Whether an account may be opened now is not cached, but checked at each login.

Limits: correct and wrong passwords are cached in separate tables of fixed size, so that guesses do
not displace correct passwords.
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
from ..passdb import (
    Credentials,
    Generations,
    ImmediateGenerations,
    LastUses,
    Passdb,
    UserAccount,
)

# Seconds; chosen without measurement.  The first is long enough for clients that poll every few
# minutes.  The second applies to users without a generation: a change takes effect after a minute.
_CORRECT_LIFETIME, _CORRECT_LIFETIME_WITHOUT_GENERATION = 300.0, 60.0
_WRONG_LIFETIME = 10.0  # seconds; for clients that retry a wrong password immediately
_MAX_CORRECT, _MAX_WRONG = 16_384, 4_096  # entries of about 0.5 KiB: 10 MiB together

T = TypeVar("T")


class Cache:
    """A cache in front of a ``Passdb``; implements ``Passdb`` and ``ImmediateAnswers``."""

    def __init__(
        self,
        passdb: Passdb,
        verifier: Passdb | None = None,
        *,
        has_all_generations: bool = True,
        service: str = "pop3",
        clock: Callable[[], float] = elapsed,
    ) -> None:
        """
        Args:
            verifier: used instead of ``passdb`` for passwords, for example a queue in front of it.
            has_all_generations: whether every change also changes the generation.  False if one of
                several back ends has no generations.
        """
        self._passdb = verifier or passdb
        self._generations = passdb if offers(passdb, Generations) else None
        self._immediate_generations = passdb if offers(passdb, ImmediateGenerations) else None
        self._last_uses = passdb if offers(passdb, LastUses) else None
        self._has_all_generations = has_all_generations
        self._service = service
        self._secret = secrets.token_bytes(32)
        self._correct_passwords = _Table[UserAccount](_MAX_CORRECT, clock)
        self._wrong_passwords = _Table[str](_MAX_WRONG, clock)

    def remembered(self, credentials: Credentials) -> UserAccount | None:
        if self._immediate_generations is None:
            return None
        generation = self._immediate_generations.generation_now(credentials.identity)
        if generation is None:
            return None
        return self._cached_account(credentials, self._key(credentials, generation))

    async def verify(self, credentials: Credentials) -> UserAccount:
        generation = await self._generation(credentials)
        key = self._key(credentials, generation)
        account, reason = self._cached_account(credentials, key), self._wrong_passwords.get(key)
        if account is not None:
            return account
        if reason is not None:
            raise AuthenticationFailed(reason)
        try:
            account = await self._passdb.verify(credentials)
        except AuthenticationFailed as error:
            # Without a generation, the cache could not detect that the password was corrected.
            if self._is_exact(generation) and generation == await self._generation(credentials):
                self._wrong_passwords.put(key, error.reason, _WRONG_LIFETIME)
            raise
        if generation == await self._generation(credentials):  # unchanged during the check
            is_exact = self._is_exact(generation)
            lifetime = _CORRECT_LIFETIME if is_exact else _CORRECT_LIFETIME_WITHOUT_GENERATION
            self._correct_passwords.put(key, account, lifetime)
        return account

    def _cached_account(self, credentials: Credentials, key: bytes) -> UserAccount | None:
        account = self._correct_passwords.get(key)
        if account is not None and self._last_uses is not None:
            self._last_uses.used(account, credentials.address)
        return account

    def _is_exact(self, generation: bytes | None) -> bool:
        """Return whether any relevant change would have changed this generation."""
        return generation is not None and self._has_all_generations

    def clear(self) -> None:
        """Remove all entries."""
        self._correct_passwords.clear()
        self._wrong_passwords.clear()

    async def _generation(self, credentials: Credentials) -> bytes | None:
        if self._generations is None:
            return None
        return await self._generations.generation(credentials.identity)

    def _key(self, credentials: Credentials, generation: bytes | None) -> bytes:
        texts = (
            self._service,
            credentials.mechanism,
            credentials.identity,
            credentials.authorization,
            credentials.password,
        )
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        parts.append(generation or b"")
        octets = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return blake2b(octets, key=self._secret, digest_size=32).digest()


class _Table(Generic[T]):
    """A table of ``size`` entries that expire.  When it is full, the least recently used entry is
    evicted."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, T]] = OrderedDict()

    def get(self, key: bytes) -> T | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires_at, value = entry
        if self._clock() >= expires_at:
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
