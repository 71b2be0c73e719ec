"""Slows guessing down, and nobody else.

Policy.  A wrong password is checked like a right one and answered late: the more wrong ones came
from its network lately, the later.  A right one is answered at once.  No user is ever locked, so
nobody can lock out another.  The same wrong password of the same user counts once, for a forgotten
device tries it all day.  One that fails at many users, from wherever, is being sprayed: it is
answered as late as can be, and the log tells once.  Who waits for a hash is let in by lanes: first
what was right before, and users from where they have logged in before; then networks without
guesses; the rest last (see ``turns``).

Security: the tables hold keyed hashes of 63 bits.  Two are kept over a restart, with their key:
where guesses came from, and where users have logged in from.  The three that know of passwords are
in memory only, with a key of this start.  A right password is answered at once, sprayed or not, so
the time tells nothing of who has it.

Limits: tables of fixed size; what is lightest makes room.
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
from pathlib import Path

from ..passdb import Account, Credentials, Network, Shown
from ..shared import SharedLock, Weights
from . import names

_log = logging.getLogger("restante.auth")
_FADES = 600.0  # seconds in which guesses of a network weigh half
_DAY = 86_400.0
_WIDE = 8  # guesses from a /24 or /48 that weigh as much as one from an address in it
_PAIR_IS_ATTACKED = 8  # guesses at one user from one network that end its priority
_SPRAYED = 9.5  # the tenth user at whom one password fails, while the first ones fade
_KNOWN = 0.5  # the weight of a login after 30 days
_FRESH = 0.97  # and after one day or two; until then it need not be written again
_MUCH = 2.5  # the longest answer of a failure is later by so much than the first
_ANYBODY = "\0"  # names that no user can have
_NO_USER = "\1"
_SPRAYS = b"sprays"  # a key beside those of networks: guesses with passwords that are sprayed
_MAGIC = b"restante throttle 1\n"


class Lane(IntEnum):
    """Who is let in to be hashed, the first before the others."""

    KNOWN = 0
    """This password was right before, or this user has logged in from that network before."""
    CLEAN = 1
    """No guesses came from that network lately."""
    DIRTY = 2
    """Some did."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a user and an address; for people."""

    is_known: bool
    """The user has logged in from that network in the last 30 days."""
    is_trusted: bool
    """Guesses from there are not counted."""
    guesses: float
    """From that network lately, as they weigh now."""
    delay: float
    """Seconds that the next wrong password waits for its answer, at least."""
    sprayed: float
    """Guesses with passwords that fail at many users, from anywhere, as they weigh now."""
    sprayed_delay: float
    """Seconds that such a one waits."""


class Throttle:
    """The policy and its tables.  Make it before the workers are forked."""

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
        """``delay``: seconds to the answer of a first failure; 0 delays none.  ``chance`` gives
        numbers from 0 to 1."""
        self.delay = delay
        self.trusted = tuple(trusted)
        self._secret = secret or os.urandom(32)
        self._saved = b""
        self._chance = chance
        self._lock = SharedLock()
        self._guesses = Weights(places, _FADES, clock=clock, secret=self._secret)
        self._homes = Weights(places, 30 * _DAY, clock=clock, secret=self._secret)
        self._wrong = Weights(places, _DAY, clock=clock)
        self._right = Weights(places, 30 * _DAY, clock=clock)
        self._tried = Weights(places, _DAY, clock=clock)  # at whom, and at how many

    def close(self) -> None:
        self._lock.close()

    # Before a password is checked.

    def lane(self, shown: Credentials) -> tuple[Lane, str]:
        """The lane, and whose turn it is in it."""
        if self._right.of(_password(shown.identity, shown.password)):
            return Lane.KNOWN, shown.identity
        if self._is_trusted(shown.address):
            return Lane.CLEAN, shown.identity
        narrow, wide = _networks(shown.address)
        if (
            self._is_home(shown.identity, shown.address)
            and self._guesses.of(_pair(shown.identity, narrow)) < _PAIR_IS_ATTACKED
        ):
            return Lane.KNOWN, shown.identity
        if self._guesses.of(wide.encode()) >= _WIDE:
            return Lane.DIRTY, wide
        if self._guesses.of(narrow.encode()) >= 0.5:
            return Lane.DIRTY, narrow
        return Lane.CLEAN, narrow

    # After it.

    def refused(self, shown: Shown) -> float:
        """Counts it.  Seconds from when it was shown to its answer."""
        with self._lock:
            is_sprayed = isinstance(shown, Credentials) and self._is_sprayed(shown)
            if not self._is_trusted(shown.address):
                self._count(shown)
        return self._delay(shown.address, is_sprayed) + self._chance() * self.delay / 2

    def accepted(self, shown: Shown, account: Account) -> None:
        """It was right, and may log in."""
        users = {_name(shown.identity), _name(account.user)}
        found = [(self._homes, _home(name, shown.address)) for name in (*users, _ANYBODY)]
        if isinstance(shown, Credentials):
            found += [(self._right, _password(name, shown.password)) for name in users]
        new = [(table, key) for table, key in found if table.of(key) < _FRESH]
        if new:
            with self._lock:
                for table, key in new:
                    table.add(key, 1.0, most=1.0)

    def is_home(self, address: str) -> bool:
        """Somebody has logged in from that network in the last 30 days."""
        return self._is_home(_ANYBODY, address)

    def facts(self, user: str, address: str) -> Facts:
        return Facts(
            self._is_home(user, address),
            self._is_trusted(address),
            self._penalty(address),
            self._delay(address),
            self._guesses.of(_SPRAYS),
            self._delay(address, is_sprayed=True),
        )

    def _is_sprayed(self, shown: Credentials) -> bool:
        """Counts the users at whom this password has failed."""
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
            is_again = self._wrong.of(wrong) > 0.0
            self._wrong.add(wrong, 1.0, most=1.0)
            if is_again:
                return
        for key in (narrow.encode(), wide.encode(), _pair(shown.identity, narrow)):
            self._guesses.add(key, 1.0)

    def _penalty(self, address: str) -> float:
        if self._is_trusted(address):
            return 0.0
        narrow, wide = (self._guesses.of(each.encode()) for each in _networks(address))
        return max(narrow, wide / _WIDE)

    def _delay(self, address: str, is_sprayed: bool = False) -> float:
        return self.delay * (1 + (_MUCH if is_sprayed else min(self._penalty(address) / 4, _MUCH)))

    def _is_home(self, identity: str, address: str) -> bool:
        return self._homes.of(_home(identity, address)) >= _KNOWN

    def _is_trusted(self, address: str) -> bool:
        return not address or any(ip_address(address) in each for each in self.trusted)

    # Over a restart.

    def save(self, path: Path) -> None:
        """If anything has changed.

        Raises:
            OSError: what was saved before is still there.
        """
        kept = self._secret + self._guesses.octets + self._homes.octets
        digest = sha256(kept).digest()
        if digest == self._saved:
            return
        made = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_MAGIC + digest + zlib.compress(kept, 1))
            made.replace(path)
        finally:
            made.unlink(missing_ok=True)
        self._saved = digest

    def load(self, path: Path) -> None:
        """Takes what is no longer whole for nothing."""
        with suppress(OSError, ValueError, zlib.error):
            saved = path.read_bytes()
            begin = len(_MAGIC) + 32
            kept = zlib.decompress(saved[begin:])
            if saved[:begin] != _MAGIC + sha256(kept).digest():
                return
            half = (len(kept) - 32) // 2
            self._guesses.octets = kept[32 : 32 + half]
            self._homes.octets = kept[32 + half :]
            self._secret = self._guesses.secret = self._homes.secret = kept[:32]


@lru_cache(4096)  # the same few come again and again
def _networks(address: str) -> tuple[str, str]:
    """An address, or what one customer has of IPv6; and what a provider gives to many."""
    if not address:
        return "", ""
    found = ip_address(address)
    packed = found.packed.hex()
    if isinstance(found, IPv4Address):
        return f"4 {packed}", f"4 {packed[:6]}"
    return f"6 {packed[:16]}", f"6 {packed[:12]}"


def _name(identity: str) -> str:
    """One form for all spellings of a name; names that no user can have are one name."""
    return identity if identity == _ANYBODY else names.key(identity) or _NO_USER


def _password(identity: str, password: str) -> bytes:
    return _framed(_name(identity), password)


def _pair(identity: str, narrow: str) -> bytes:
    return _framed(_name(identity), narrow)


def _home(identity: str, address: str) -> bytes:
    """IPv4 addresses change within a /24, IPv6 ones within a /64."""
    narrow, wide = _networks(address)
    return _framed(_name(identity), wide if narrow.startswith("4") else narrow)


def _framed(*texts: str) -> bytes:
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
