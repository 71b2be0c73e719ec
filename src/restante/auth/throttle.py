"""Slow down password guessing without locking out any user.

Policy (docs/decisions/0111-guessing.md).  Wrong passwords are checked in the same way as correct
ones, but the response is delayed.  The delay grows with the number of recent wrong passwords from
the same network.  A correct password is answered immediately.  Accounts are never locked, because
an attacker could use this to lock users out.  The same wrong password for the same user counts only
once for each network, because a forgotten device may try an old password all day.  A password that
fails for many users, whatever their networks, is being sprayed: its response gets the longest
delay, and the log gets one line.  Passwords are hashed in order of priority (``login_queue``).
Logins with a password that has been accepted before, or from a network from which the user has
logged in before, come first; then logins from networks without guesses; then all others.

Security: the tables contain keyed hashes of 63 bits.  Two tables and their key survive restarts:
networks with recent guesses, and networks from which users have logged in.  The three tables that
depend on passwords exist only in memory, with a key that is created at each start.  A correct
password is answered immediately even if it is being sprayed, so the delay does not show which users
have this password.

Limits: the tables have a fixed size; the entry with the lowest weight is evicted.
"""

from __future__ import annotations

import logging
import os
import random
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, ip_address
from math import inf
from pathlib import Path

from ..passdb import AnyCredentials, Credentials, Network, UserAccount
from ..shared import SharedLock, Weights
from . import names

_log = logging.getLogger("restante.auth")
# Half-life of the weight of a guess, in seconds.  It is short, because an Internet provider may
# assign an attacker's address to another customer.
_HALF_LIFE = 600.0
_DAY = 86_400.0  # seconds
# Number of guesses from a /24 or /48 that count as one guess from an address in this network.
# The customers of a provider share such a network, and guesses by one customer must not delay the
# others.
_WIDE_FACTOR = 8
# After this number of guesses for a user from a network, the user loses priority in this network.
# A real user makes fewer typing errors.
_MAX_PAIR_GUESSES = 8
# A password counts as sprayed when it has failed for ten users.  The limit is a little lower than
# ten, because the weights of the first failures have decayed by the time of the tenth.
_SPRAYED_WEIGHT = 9.5
_KNOWN_WEIGHT = 0.5  # weight of a login after 30 days, the half-life in the table of known networks
_FRESH_WEIGHT = 0.97  # weight after one or two days; heavier entries are not written again
# Seconds for which a recorded login is not looked up in the tables again.  Their half-life is 30
# days, so an entry made within the last hour is among the last to be evicted.
_RECENT = 3600.0
_MAX_RECENT = 4096  # logins; at most about 2 MB of names and addresses
# Maximum additional delay, as a multiple of the base delay.  With the base delay itself and jitter,
# the total is at most four times the base delay.
_MAX_EXTRA = 2.5
_ANY_USER = "\0"  # names that no user can have
_NO_USER = "\1"
_SPRAYS = b"sprays"  # the key under which the table counts all guesses with sprayed passwords
_MAGIC = b"restante throttle 1\n"


class Priority(IntEnum):
    """Priority for password checks, highest first."""

    KNOWN = 0
    """The password has been accepted before, or the user has logged in from this network before."""
    CLEAN = 1
    """The network has no recent guesses."""
    DIRTY = 2
    """The network has recent guesses."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The contents of the tables for a user and an address, shown by ``restante auth why``."""

    is_known: bool
    """Whether the user has logged in from this network in the last 30 days."""
    is_trusted: bool
    """Whether guesses from this address are not counted."""
    guesses: float
    """Current weight of the recent guesses from this network."""
    delay: float
    """Minimum number of seconds after which the next wrong password is answered."""
    sprayed: float
    """Current weight of the recent guesses with sprayed passwords from all networks."""
    sprayed_delay: float
    """Minimum number of seconds after which a guess with a sprayed password is answered."""


class Throttle:
    """The policy and its tables in shared memory; must be created before the workers are forked."""

    def __init__(
        self,
        *,
        delay: float = 2.0,
        trusted: Sequence[Network] = (),
        secret: bytes | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        entries: int = 32_768,
    ) -> None:
        """
        Args:
            delay: seconds after which the first failed login is answered; 0 disables all delays.
            trusted: networks whose guesses are not counted.
            secret: key of the hashes that are preserved across restarts; random by default.
            clock: returns the time in seconds since the epoch.
            jitter: returns a random number from 0 to 1, used to vary the delays.
            entries: number of entries in each table.
        """
        self.delay = delay
        self.trusted = tuple(trusted)
        self._secret = secret or os.urandom(32)
        self._saved_digest = b""
        self._jitter = jitter
        self._lock = SharedLock()
        self._guesses = Weights(entries, _HALF_LIFE, clock=clock, secret=self._secret)
        self._known_networks = Weights(entries, 30 * _DAY, clock=clock, secret=self._secret)
        self._wrong_passwords = Weights(entries, _DAY, clock=clock)
        self._correct_passwords = Weights(entries, 30 * _DAY, clock=clock)
        # Failed pairs of user and password, and for each password the number of such pairs.
        self._spraying = Weights(entries, _DAY, clock=clock)
        self._clock = clock
        # The time at which this worker last recorded each login.
        self._recent_logins: dict[tuple[str, str, str], float] = {}

    def close(self) -> None:
        self._lock.close()

    # Before a password is checked.

    def priority(self, credentials: Credentials) -> tuple[Priority, str]:
        """Return the priority of a login, and the group under which it is queued.

        The group is the user if the priority is ``KNOWN`` or the network is trusted; otherwise it
        is the network.
        """
        if self._correct_passwords.weight(
            _password_key(credentials.identity, credentials.password)
        ):
            return Priority.KNOWN, credentials.identity
        if self._is_trusted(credentials.address):
            return Priority.CLEAN, credentials.identity
        narrow, wide = _networks(credentials.address)
        if (
            self._is_known_network(credentials.identity, credentials.address)
            and self._guesses.weight(_pair_key(credentials.identity, narrow)) < _MAX_PAIR_GUESSES
        ):
            return Priority.KNOWN, credentials.identity
        if self._guesses.weight(wide.encode()) >= _WIDE_FACTOR:
            return Priority.DIRTY, wide
        if self._guesses.weight(narrow.encode()) >= 0.5:
            return Priority.DIRTY, narrow
        return Priority.CLEAN, narrow

    # After a password was checked.

    def record_failure(self, credentials: AnyCredentials) -> float:
        """Count a failed login.  Returns the number of seconds from its arrival to its response."""
        with self._lock:
            is_sprayed = isinstance(credentials, Credentials) and self._record_wrong_password(
                credentials
            )
            if not self._is_trusted(credentials.address):
                self._count_guess(credentials)
        return self._delay(credentials.address, is_sprayed) + self._jitter() * self.delay / 2

    def record_success(
        self, credentials: AnyCredentials, account: UserAccount, *, is_cached: bool = False
    ) -> None:
        """Record a successful login.

        ``is_cached``: the result came from a cache, so the password has been recorded already.
        """
        login = (credentials.identity, account.user, credentials.address)
        now = self._clock()
        has_new_password = isinstance(credentials, Credentials) and not is_cached
        if not has_new_password and 0 <= now - self._recent_logins.get(login, -inf) < _RECENT:
            return
        users = {_canonical_name(credentials.identity), _canonical_name(account.user)}
        entries = [
            (self._known_networks, _user_network_key(name, credentials.address))
            for name in (*users, _ANY_USER)
        ]
        if isinstance(credentials, Credentials) and has_new_password:
            entries += [
                (self._correct_passwords, _password_key(name, credentials.password))
                for name in users
            ]
        new = [(table, key) for table, key in entries if table.weight(key) < _FRESH_WEIGHT]
        if new:
            with self._lock:
                for table, key in new:
                    table.add(key, 1.0, maximum=1.0)
        if len(self._recent_logins) >= _MAX_RECENT:
            self._recent_logins.clear()
        self._recent_logins[login] = now

    def is_known_network(self, address: str) -> bool:
        """Return whether any user has logged in from this network in the last 30 days."""
        return self._is_known_network(_ANY_USER, address)

    def facts(self, user: str, address: str) -> Facts:
        """Return the contents of the tables for this user and this address."""
        return Facts(
            self._is_known_network(user, address),
            self._is_trusted(address),
            self._guess_weight(address),
            self._delay(address),
            self._guesses.weight(_SPRAYS),
            self._delay(address, is_sprayed=True),
        )

    def _record_wrong_password(self, credentials: Credentials) -> bool:
        """Record that this password has failed for this user, and return whether it is sprayed."""
        pair_key = _password_key(credentials.identity, credentials.password)
        password_key = _hash(credentials.password)
        if not self._spraying.weight(pair_key):
            self._spraying.add(pair_key, 1.0, maximum=1.0)
            old_weight = self._spraying.weight(password_key)
            self._spraying.add(password_key, 1.0)
            if old_weight < _SPRAYED_WEIGHT <= old_weight + 1:
                fields = {"ip": credentials.address, "users": round(old_weight + 1)}
                _log.warning("password sprayed", extra={"fields": fields})
        is_sprayed = self._spraying.weight(password_key) >= _SPRAYED_WEIGHT
        if is_sprayed:
            self._guesses.add(_SPRAYS, 1.0)
        return is_sprayed

    def _count_guess(self, credentials: AnyCredentials) -> None:
        narrow, wide = _networks(credentials.address)
        if isinstance(credentials, Credentials):
            guess = _password_key(credentials.identity, credentials.password) + narrow.encode()
            is_repeated = self._wrong_passwords.weight(guess) > 0.0
            self._wrong_passwords.add(guess, 1.0, maximum=1.0)
            if is_repeated:
                return
        for key in (narrow.encode(), wide.encode(), _pair_key(credentials.identity, narrow)):
            self._guesses.add(key, 1.0)

    def _guess_weight(self, address: str) -> float:
        if self._is_trusted(address):
            return 0.0
        narrow, wide = (self._guesses.weight(each.encode()) for each in _networks(address))
        return max(narrow, wide / _WIDE_FACTOR)

    def _delay(self, address: str, is_sprayed: bool = False) -> float:
        return self.delay * (
            1 + (_MAX_EXTRA if is_sprayed else min(self._guess_weight(address) / 4, _MAX_EXTRA))
        )

    def _is_known_network(self, identity: str, address: str) -> bool:
        return self._known_networks.weight(_user_network_key(identity, address)) >= _KNOWN_WEIGHT

    def _is_trusted(self, address: str) -> bool:
        return not address or any(ip_address(address) in each for each in self.trusted)

    # Persistence across restarts.

    def save(self, path: Path) -> None:
        """Write the tables that survive restarts, if they have changed.

        Raises:
            OSError: the file cannot be written; the previous file has not changed.
        """
        octets = self._secret + self._guesses.octets + self._known_networks.octets
        digest = sha256(octets).digest()
        if digest == self._saved_digest:
            return
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(_MAGIC + digest + zlib.compress(octets, 1))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._saved_digest = digest

    def load(self, path: Path) -> None:
        """Read saved tables.  A missing or damaged file is ignored."""
        with suppress(OSError, ValueError, zlib.error):
            octets = path.read_bytes()
            header_size = len(_MAGIC) + 32  # the digest and the secret have 32 octets each
            content = zlib.decompress(octets[header_size:])
            if octets[:header_size] != _MAGIC + sha256(content).digest():
                return
            half = (len(content) - 32) // 2
            self._guesses.octets = content[32 : 32 + half]
            self._known_networks.octets = content[32 + half :]
            self._secret = self._guesses.secret = self._known_networks.secret = content[:32]


@lru_cache(4096)  # most logins come from the same few addresses
def _networks(address: str) -> tuple[str, str]:
    """Return a customer's network (an IPv4 address or a /64), and the wider /24 or /48."""
    if not address:
        return "", ""
    parsed = ip_address(address)
    packed = parsed.packed.hex()
    if isinstance(parsed, IPv4Address):
        return f"4 {packed}", f"4 {packed[:6]}"
    return f"6 {packed[:16]}", f"6 {packed[:12]}"


def _canonical_name(identity: str) -> str:
    """Return the canonical form of a name.  All invalid names have the same form."""
    return identity if identity == _ANY_USER else names.key(identity) or _NO_USER


def _password_key(identity: str, password: str) -> bytes:
    return _hash(_canonical_name(identity), password)


def _pair_key(identity: str, narrow: str) -> bytes:
    return _hash(_canonical_name(identity), narrow)


def _user_network_key(identity: str, address: str) -> bytes:
    """Return the key for a user in a network.

    For IPv4, the network is a /24, because a customer's address may change within it.  For IPv6,
    the network is a /64.
    """
    narrow, wide = _networks(address)
    return _hash(_canonical_name(identity), wide if narrow.startswith("4") else narrow)


def _hash(*texts: str) -> bytes:
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
