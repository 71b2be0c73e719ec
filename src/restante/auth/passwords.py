"""Password hashes: argon2id in PHC strings (RFC 9106), made and checked outside the event loop.

Security: a hash whose parameters would cost more than ``_MAX_*`` is wrong without being tried, so
that a foreign database cannot make one login cost more than a second or two.  The library
compares in constant time.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from operator import gt
from typing import TypeVar

from ..errors import TooBusy
from ..passdb import MAX_PASSWORD, Credentials

T = TypeVar("T")

# The second choice of RFC 9106 §4 in the form OWASP recommends: about 45 ms of one core.
_MEMORY, _ITERATIONS, _LANES = 19_456, 2, 1  # KiB, passes, lanes
_MAX_MEMORY, _MAX_ITERATIONS, _MAX_LANES = 262_144, 16, 16
# KiB times passes: the time is in proportion to this, some 1.5 s of a core for 1 GiB passed once.
_MAX_WORK = 4 * 262_144
_PARAMETERS = re.compile(r"\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,3})\$[^$]+\$[^$]+")
_WAITING = 256  # logins that may wait for their turn to be hashed
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is taken for another


USUAL, APP = 20, 19  # characters of generated passwords; many devices take no more than 19 or 20
SHORTEST, SHORTEST_APP, LONGEST = 8, 16, 64
_EARLIER_APP = re.compile("-".join([f"([{_LETTERS}]{{4}})"] + [f"[{_LETTERS}]{{4}}"] * 6))
_APP = re.compile(f"([{_LETTERS}]{{4}})[{_LETTERS}]{{{SHORTEST_APP - 4},{LONGEST - 4}}}")


def generate(length: int = USUAL) -> str:
    """A password of letters and digits that are not taken for each other: 99 bits by default."""
    while selector(made := _random(length)):
        pass
    return made


def generate_app_password(length: int = APP) -> str:
    """Of letters and digits: 89 bits by default.  The first four are its selector, and the last one
    follows from the others, so that hardly any password of another kind looks like this."""
    made = _random(length - 1)
    return made + _check(made)


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _check(letters: str) -> str:
    total = sum(place * _LETTERS.index(each) for place, each in enumerate(letters, 1))
    return _LETTERS[total % len(_LETTERS)]


def selector(password: str) -> str:
    """What tells which app password of a user this is, so that only one hash is computed for
    any login; empty for what is no app password."""
    if found := _EARLIER_APP.fullmatch(password):
        return found[1]
    found = _APP.fullmatch(password)
    return found[1] if found and _check(password[:-1]) == password[-1] else ""


def make_hash(password: str) -> str:
    """A PHC string with a fresh salt.  Takes some 45 ms and 19 MiB."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # 0.1 s, so not at start

    kdf = Argon2id(
        salt=os.urandom(16),
        length=32,
        iterations=_ITERATIONS,
        lanes=_LANES,
        memory_cost=_MEMORY,
    )
    return kdf.derive_phc_encoded(password.encode("utf-8", "surrogateescape"))


def is_current(phc: str) -> bool:
    """Whether a hash has the parameters that a new one would have."""
    return phc.startswith(f"$argon2id$v=19$m={_MEMORY},t={_ITERATIONS},p={_LANES}$")


def is_sane(phc: str, kind: str = "argon2id") -> bool:
    """Whether it has the form of a hash, and its parameters are within the limits."""
    found = _PARAMETERS.fullmatch(phc.removeprefix(f"${kind}"))
    if found is None:
        return False
    parameters = memory, iterations, _ = [int(each) for each in found.groups()]
    limits = (_MAX_MEMORY, _MAX_ITERATIONS, _MAX_LANES)
    return not any(map(gt, parameters, limits)) and memory * iterations <= _MAX_WORK


def matches(password: str, phc: str, *, kind: str = "argon2id") -> bool:
    """Whether this password has this hash.  Anything that is no sane hash matches nothing.

    ``kind`` is ``argon2id``, or ``argon2i``, which others have made.
    """
    if not is_sane(phc, kind):
        return False
    from cryptography.exceptions import InvalidKey
    from cryptography.hazmat.primitives.kdf import argon2

    try:
        computed = argon2.Argon2id if kind == "argon2id" else argon2.Argon2i
        computed.verify_phc_encoded(password.encode("utf-8", "surrogateescape"), phc)
    except (InvalidKey, ValueError):
        return False
    return True


def is_possible(password: str) -> bool:
    """Whether anybody can have it; what nobody can have is not worth a hash."""
    octets = password.encode("utf-8", "surrogateescape")
    return 0 < len(octets) <= MAX_PASSWORD and b"\0" not in octets


@cache
def decoy_hash() -> str:
    """A hash that no password has: checking it costs what checking a user's costs."""
    return make_hash(secrets.token_hex())


class Hashers:
    """Threads that check passwords; one core is left to the event loop."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), name)
        self._waiting = 0

    async def run(self, check: Callable[[Credentials], T], shown: Credentials) -> T:
        """What ``check`` returns, or raises.

        Raises:
            TooBusy: too many wait already.
        """
        if self._waiting >= _WAITING:
            raise TooBusy("too many logins at once, try again later")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, check, shown)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Wait for what is being checked."""
        self._threads.shutdown()
