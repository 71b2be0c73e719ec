"""Password hashes: argon2id in PHC strings (RFC 9106), made and checked outside the event loop.

Security: a hash whose parameters exceed ``_MAX_*`` matches nothing and is not computed, so that an
imported database cannot make one login cost more than a second or two.  The library compares in
constant time.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from functools import cache
from operator import gt
from typing import TYPE_CHECKING, TypeVar

from ..errors import TooBusy
from ..passdb import MAX_PASSWORD, Credentials
from ..threads import running_loop

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

# Recommended by the OWASP Password Storage Cheat Sheet; less memory than RFC 9106 §4 recommends,
# because a server computes several at the same time.  About 45 ms of one core.
_MEMORY, _ITERATIONS, _LANES = 19_456, 2, 1  # KiB, passes, lanes
_MAX_MEMORY, _MAX_ITERATIONS, _MAX_LANES = 262_144, 16, 16  # KiB, passes, lanes
# KiB times passes, to which the time is proportional: about 1.5 s of one core for 1 GiB.
_MAX_WORK = 4 * 262_144
_PARAMETERS = re.compile(r"\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,3})\$[^$]+\$[^$]+")
_MAX_WAITING = 256  # logins that wait for a thread, see ``login_queue``
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without letters and digits that look alike

USUAL, APP = 20, 19  # characters of generated passwords; many devices take no more than 19 or 20
SHORTEST, SHORTEST_APP, LONGEST = 8, 16, 64
_EARLIER_APP = re.compile("-".join([f"([{_LETTERS}]{{4}})"] + [f"[{_LETTERS}]{{4}}"] * 6))
_APP = re.compile(f"([{_LETTERS}]{{4}})[{_LETTERS}]{{{SHORTEST_APP - 4},{LONGEST - 4}}}")


def generate(length: int = USUAL) -> str:
    """Return a random password without characters that look alike: 99 bits by default."""
    while selector(password := _random(length)):
        pass
    return password


def generate_app_password(length: int = APP) -> str:
    """Return a random app password: 89 bits by default.

    The first four characters are its selector, and the last one is a check digit, so that few
    passwords of other kinds look like an app password.
    """
    letters = _random(length - 1)
    return letters + _check(letters)


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _check(letters: str) -> str:
    total = sum(place * _LETTERS.index(each) for place, each in enumerate(letters, 1))
    return _LETTERS[total % len(_LETTERS)]


def selector(password: str) -> str:
    """Return the part of an app password that identifies it among those of its user, so that each
    login computes only one hash; empty for any other password."""
    if match := _EARLIER_APP.fullmatch(password):
        return match[1]
    match = _APP.fullmatch(password)
    return match[1] if match and _check(password[:-1]) == password[-1] else ""


def make_hash(password: str) -> str:
    """Return a PHC string with a new salt.  Takes about 45 ms and 19 MiB."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # takes 0.1 s, so not at start

    kdf = Argon2id(
        salt=os.urandom(16),
        length=32,
        iterations=_ITERATIONS,
        lanes=_LANES,
        memory_cost=_MEMORY,
    )
    return kdf.derive_phc_encoded(password.encode("utf-8", "surrogateescape"))


def is_current(phc: str) -> bool:
    """Return whether a hash has the parameters of new hashes."""
    return phc.startswith(f"$argon2id$v=19$m={_MEMORY},t={_ITERATIONS},p={_LANES}$")


def is_sane(phc: str, kind: str = "argon2id") -> bool:
    """Return whether this is a hash with parameters within the limits."""
    match = _PARAMETERS.fullmatch(phc.removeprefix(f"${kind}"))
    if match is None:
        return False
    parameters = memory, iterations, _ = [int(each) for each in match.groups()]
    limits = (_MAX_MEMORY, _MAX_ITERATIONS, _MAX_LANES)
    return not any(map(gt, parameters, limits)) and memory * iterations <= _MAX_WORK


def matches(password: str, phc: str, *, kind: str = "argon2id") -> bool:
    """Return whether this password has this hash.  A hash that is not sane matches nothing.

    ``kind`` is ``argon2id``, or ``argon2i`` for hashes of other programs.
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
    """Return whether any user can have this password; if not, no hash is computed."""
    octets = password.encode("utf-8", "surrogateescape")
    return 0 < len(octets) <= MAX_PASSWORD and b"\0" not in octets


@cache
def decoy_hash() -> str:
    """Return a hash that no password has: checking it takes as long as checking a user's hash."""
    return make_hash(secrets.token_hex())


class Hashers:
    """Threads that check passwords; one core is left for the event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads: ThreadPoolExecutor | None = None
        self._later: ThreadPoolExecutor | None = None
        self._waiting = 0

    async def run(self, check: Callable[[Credentials], T], shown: Credentials) -> T:
        """Run ``check`` in a thread; return what it returns, or raise what it raises.

        Raises:
            TooBusy: too many logins are waiting.
        """
        if self._threads is None:
            self._start()
        if self._waiting >= _MAX_WAITING:
            raise TooBusy("too many logins at once, try again later")
        self._waiting += 1
        try:
            loop = running_loop()
            assert loop is not None
            return await loop.run_in_executor(self._threads, check, shown)
        finally:
            self._waiting -= 1

    def _start(self) -> None:
        from concurrent.futures import ThreadPoolExecutor  # most commands check no passwords

        self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), self._name)
        self._later = ThreadPoolExecutor(1, "updater")

    def later(self, call: Callable[[], None]) -> None:
        """Run ``call`` in another thread, after the calls of earlier checks.

        Must be called by a running check.
        """
        assert self._later is not None
        self._later.submit(call)

    def close(self) -> None:
        """Wait for the checks that have begun, and for the calls that they run later."""
        for threads in (self._threads, self._later):
            if threads is not None:
                threads.shutdown()
