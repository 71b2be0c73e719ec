"""Slows password guessing down without locking any user out.

Policy (docs/decisions/0111-guessing.md).  Wrong passwords are checked in the same way as correct
ones, but the response is delayed.  The delay grows with the number of recent wrong passwords from
the same network.  A correct password is answered immediately.  Users are never locked, so an
attacker cannot lock a user out.  The same wrong password for the same user counts only once for
each network, because a forgotten device may try an old password all day.  A password that fails for
many users, from any networks, is being sprayed: it gets the longest delay and one line in the log.
Passwords are hashed by priority (``login_queue``): first logins with a password that was correct
before, or from a network from which the user has logged in before; then logins from networks
without guesses; then all others.

Security: the tables contain keyed hashes of 63 bits.  Two tables and their key are kept across
restarts: networks with recent guesses, and networks from which users have logged in.  The three
tables that depend on passwords are only in memory, with a key that is created at each start.  A
correct password is answered immediately even if it is being sprayed, so the delay does not show
which users have this password.

Limits: tables have a fixed size; the entry with the lowest weight is evicted.
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

from ..passdb import Credentials, Network, Shown, UserAccount
from ..shared import SharedLock, Weights
from . import names

_log = logging.getLogger("restante.auth")
# Seconds after which a guess from a network counts half.  The time is short, because the provider
# may assign the address to another customer.
_HALF_LIFE = 600.0
_DAY = 86_400.0  # seconds
# Number of guesses from a /24 or /48 that count as one guess from an address in this network.
# Customers of one provider share the network, and a customer who guesses must not delay the others.
_WIDE = 8
# A user loses priority in a network after this number of guesses from it.  A real user makes fewer
# typing errors.
_MAX_PAIR_GUESSES = 8
# A password counts as sprayed when it has failed for ten users.  The limit is half a user lower,
# because the weights of the first users have decayed a little by the time of the tenth failure.
_SPRAYED = 9.5
_KNOWN = 0.5  # weight of a login after 30 days, the half-life in the table of known networks
_FRESH = 0.97  # weight after one or two days; an entry with a higher weight is not written again
# Seconds for which a recorded known network is not looked up again.  The half-life of these entries
# is 30 days, so an entry of the last hour is among the last to be evicted.
_RECENT, _MAX_RECENT = 3600.0, 4096  # at most about 2 MB of names and addresses
# The base delay is added at most 2.5 times; with jitter, the total is at most 4 times the base
# delay.
_MAX_EXTRA = 2.5
_ANY_USER = "\0"  # names that no user can have
_NO_USER = "\1"
_SPRAYS = b"sprays"  # key for guesses with sprayed passwords; all other keys are for networks
_MAGIC = b"restante throttle 1\n"


class Priority(IntEnum):
    """Priority for password checks, highest first."""

    KNOWN = 0
    """The password was correct before, or the user has logged in from this network before."""
    CLEAN = 1
    """There were no recent guesses from this network."""
    DIRTY = 2
    """There were recent guesses from this network."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The data in the tables about a user and an address, for ``restante auth why``."""

    is_known: bool
    """Whether the user has logged in from this network in the last 30 days."""
    is_trusted: bool
    """Whether guesses from this address are not counted."""
    guesses: float
    """Current weight of the recent guesses from this network."""
    delay: float
    """Minimum number of seconds before the next wrong password is answered."""
    sprayed: float
    """Current weight of the recent guesses with sprayed passwords from all networks."""
    sprayed_delay: float
    """Minimum number of seconds before a guess with a sprayed password is answered."""


class Throttle:
    """The policy and its tables in shared memory; must be created before the workers are forked."""

    def __init__(
        self,
        *,
        delay: float = 2.0,
        trusted: Sequence[Network] = (),
        secret: bytes | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        places: int = 32_768,
    ) -> None:
        """
        Args:
            delay: seconds before the first failed login is answered; 0 disables delays.
            secret: key of the hashes that are kept across restarts; random by default.
            chance: returns a number from 0 to 1 for the jitter.
            places: number of entries in each table.
        """
        self.delay = delay
        self.trusted = tuple(trusted)
        self._secret = secret or os.urandom(32)
        self._saved = b""
        self._chance = chance
        self._lock = SharedLock()
        self._guesses = Weights(places, _HALF_LIFE, clock=clock, secret=self._secret)
        self._known_networks = Weights(places, 30 * _DAY, clock=clock, secret=self._secret)
        self._wrong = Weights(places, _DAY, clock=clock)
        self._right = Weights(places, 30 * _DAY, clock=clock)
        # (user, password) pairs that failed, and users for each password.
        self._tried = Weights(places, _DAY, clock=clock)
        self._clock = clock
        self._recent: dict[tuple[str, str, str], float] = {}  # when this worker recorded logins

    def close(self) -> None:
        self._lock.close()

    # Before a password is checked.

    def priority(self, shown: Credentials) -> tuple[Priority, str]:
        """Return the priority of a login, and the group under which it is queued.

        The group is a network, or the user if the login is known or its network trusted.
        """
        if self._right.of(_password(shown.identity, shown.password)):
            return Priority.KNOWN, shown.identity
        if self._is_trusted(shown.address):
            return Priority.CLEAN, shown.identity
        narrow, wide = _networks(shown.address)
        if (
            self._is_known_network(shown.identity, shown.address)
            and self._guesses.of(_pair(shown.identity, narrow)) < _MAX_PAIR_GUESSES
        ):
            return Priority.KNOWN, shown.identity
        if self._guesses.of(wide.encode()) >= _WIDE:
            return Priority.DIRTY, wide
        if self._guesses.of(narrow.encode()) >= 0.5:
            return Priority.DIRTY, narrow
        return Priority.CLEAN, narrow

    # After a password was checked.

    def refused(self, shown: Shown) -> float:
        """Count a failed login, and return the seconds from its arrival to its response."""
        with self._lock:
            is_sprayed = isinstance(shown, Credentials) and self._is_sprayed(shown)
            if not self._is_trusted(shown.address):
                self._count(shown)
        return self._delay(shown.address, is_sprayed) + self._chance() * self.delay / 2

    def accepted(self, shown: Shown, account: UserAccount, *, is_remembered: bool = False) -> None:
        """Record a successful login.

        ``is_remembered``: the password was recorded when it was checked, minutes ago.
        """
        login = (shown.identity, account.user, shown.address)
        now = self._clock()
        shows_password = isinstance(shown, Credentials) and not is_remembered
        if not shows_password and 0 <= now - self._recent.get(login, -inf) < _RECENT:
            return
        users = {_name(shown.identity), _name(account.user)}
        seen = [
            (self._known_networks, _user_network(name, shown.address))
            for name in (*users, _ANY_USER)
        ]
        if isinstance(shown, Credentials) and shows_password:
            seen += [(self._right, _password(name, shown.password)) for name in users]
        new = [(table, key) for table, key in seen if table.of(key) < _FRESH]
        if new:
            with self._lock:
                for table, key in new:
                    table.add(key, 1.0, most=1.0)
        if len(self._recent) >= _MAX_RECENT:
            self._recent.clear()
        self._recent[login] = now

    def is_known_network(self, address: str) -> bool:
        """Whether any user has logged in from this network in the last 30 days."""
        return self._is_known_network(_ANY_USER, address)

    def facts(self, user: str, address: str) -> Facts:
        """Return the data in the tables about this user and this address."""
        return Facts(
            self._is_known_network(user, address),
            self._is_trusted(address),
            self._penalty(address),
            self._delay(address),
            self._guesses.of(_SPRAYS),
            self._delay(address, is_sprayed=True),
        )

    def _is_sprayed(self, shown: Credentials) -> bool:
        """Record that this password has failed for this user.

        Returns whether the password is being sprayed.
        """
        user, password = _password(shown.identity, shown.password), _framed(shown.password)
        if not self._tried.of(user):
            self._tried.add(user, 1.0, most=1.0)
            before = self._tried.of(password)
            self._tried.add(password, 1.0)
            if before < _SPRAYED <= before + 1:
                fields = {"ip": shown.address, "users": round(before + 1)}
                _log.warning("password sprayed", extra={"fields": fields})
        is_sprayed = self._tried.of(password) >= _SPRAYED
        if is_sprayed:
            self._guesses.add(_SPRAYS, 1.0)
        return is_sprayed

    def _count(self, shown: Shown) -> None:
        narrow, wide = _networks(shown.address)
        if isinstance(shown, Credentials):
            wrong = _password(shown.identity, shown.password) + narrow.encode()
            is_repeated = self._wrong.of(wrong) > 0.0
            self._wrong.add(wrong, 1.0, most=1.0)
            if is_repeated:
                return
        for key in (narrow.encode(), wide.encode(), _pair(shown.identity, narrow)):
            self._guesses.add(key, 1.0)

    def _penalty(self, address: str) -> float:
        if self._is_trusted(address):
            return 0.0
        narrow, wide = (self._guesses.of(each.encode()) for each in _networks(address))
        return max(narrow, wide / _WIDE)

    def _delay(self, address: str, is_sprayed: bool = False) -> float:
        return self.delay * (
            1 + (_MAX_EXTRA if is_sprayed else min(self._penalty(address) / 4, _MAX_EXTRA))
        )

    def _is_known_network(self, identity: str, address: str) -> bool:
        return self._known_networks.of(_user_network(identity, address)) >= _KNOWN

    def _is_trusted(self, address: str) -> bool:
        return not address or any(ip_address(address) in each for each in self.trusted)

    # Persistence across restarts.

    def save(self, path: Path) -> None:
        """Write the tables that are kept across restarts, if they have changed.

        Raises:
            OSError: the file cannot be written; the previous file has not changed.
        """
        saved = self._secret + self._guesses.octets + self._known_networks.octets
        digest = sha256(saved).digest()
        if digest == self._saved:
            return
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(_MAGIC + digest + zlib.compress(saved, 1))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._saved = digest

    def load(self, path: Path) -> None:
        """Read saved tables.  A missing or damaged file is ignored."""
        with suppress(OSError, ValueError, zlib.error):
            octets = path.read_bytes()
            begin = len(_MAGIC) + 32  # the digest and the secret have 32 octets each
            saved = zlib.decompress(octets[begin:])
            if octets[:begin] != _MAGIC + sha256(saved).digest():
                return
            half = (len(saved) - 32) // 2
            self._guesses.octets = saved[32 : 32 + half]
            self._known_networks.octets = saved[32 + half :]
            self._secret = self._guesses.secret = self._known_networks.secret = saved[:32]


@lru_cache(4096)  # most logins come from the same few addresses
def _networks(address: str) -> tuple[str, str]:
    """Return the network of a customer (an IPv4 address or a /64), and the wider /24 or /48."""
    if not address:
        return "", ""
    parsed = ip_address(address)
    packed = parsed.packed.hex()
    if isinstance(parsed, IPv4Address):
        return f"4 {packed}", f"4 {packed[:6]}"
    return f"6 {packed[:16]}", f"6 {packed[:12]}"


def _name(identity: str) -> str:
    """Return the canonical form of a name.  All invalid names have the same form."""
    return identity if identity == _ANY_USER else names.key(identity) or _NO_USER


def _password(identity: str, password: str) -> bytes:
    return _framed(_name(identity), password)


def _pair(identity: str, narrow: str) -> bytes:
    return _framed(_name(identity), narrow)


def _user_network(identity: str, address: str) -> bytes:
    """Return the key of a user in a network: a /24 (IPv4 addresses change within it) or a /64."""
    narrow, wide = _networks(address)
    return _framed(_name(identity), wide if narrow.startswith("4") else narrow)


def _framed(*texts: str) -> bytes:
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
