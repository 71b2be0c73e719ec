"""Generate passwords, and create and check their hashes (argon2id, RFC 9106, in PHC strings).

Hashes are computed in threads, outside the event loop.

Security: if the parameters of a hash exceed ``_MAX_*``, it matches nothing and is not computed, so
that a hash from an imported database cannot use more than a second or two of CPU time.  The library
compares in constant time.
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

# Recommended by the OWASP Password Storage Cheat Sheet.  This is less memory than RFC 9106 §4
# recommends, because a server computes several hashes at the same time.  About 45 ms on one core.
_MEMORY, _ITERATIONS, _LANES = 19_456, 2, 1  # KiB, passes, lanes
_MAX_MEMORY, _MAX_ITERATIONS, _MAX_LANES = 262_144, 16, 16  # KiB, passes, lanes
# KiB multiplied by passes.  The computing time is proportional to it: about 1.5 s on one core for
# 1 GiB.
_MAX_WORK = 4 * 262_144
_PARAMETERS = re.compile(r"\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,3})\$[^$]+\$[^$]+")
_MAX_WAITING = 256  # logins that wait for a thread; see ``login_queue``
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without letters and digits that look alike

# Lengths of generated passwords in characters; many devices accept no more than 19 or 20.
LENGTH, APP_LENGTH = 20, 19
MIN_LENGTH, MIN_APP_LENGTH, MAX_LENGTH = 8, 16, 64
# App passwords of earlier versions, and of this version.
_OLD_APP_PASSWORD = re.compile("-".join([f"([{_LETTERS}]{{4}})"] + [f"[{_LETTERS}]{{4}}"] * 6))
_APP_PASSWORD = re.compile(
    f"([{_LETTERS}]{{4}})[{_LETTERS}]{{{MIN_APP_LENGTH - 4},{MAX_LENGTH - 4}}}"
)


def generate(length: int = LENGTH) -> str:
    """Return a random password without characters that look alike: 99 bits by default."""
    while selector(password := _random(length)):
        pass
    return password


def generate_app_password(length: int = APP_LENGTH) -> str:
    """Return a random app password: 89 bits by default.

    The first four characters are its selector.  The last character is a check digit, so other
    passwords rarely look like an app password.
    """
    letters = _random(length - 1)
    return letters + _check_digit(letters)


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _check_digit(letters: str) -> str:
    total = sum(position * _LETTERS.index(each) for position, each in enumerate(letters, 1))
    return _LETTERS[total % len(_LETTERS)]


def selector(password: str) -> str:
    """Return the part of an app password that identifies it among its user's app passwords.

    With the selector, a login computes only one hash.  Other passwords have an empty selector.
    """
    if match := _OLD_APP_PASSWORD.fullmatch(password):
        return match[1]
    match = _APP_PASSWORD.fullmatch(password)
    return match[1] if match and _check_digit(password[:-1]) == password[-1] else ""


def make_hash(password: str) -> str:
    """Return a PHC string with a new salt.  Takes about 45 ms and 19 MiB."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # the import takes 0.1 s

    kdf = Argon2id(
        salt=os.urandom(16),
        length=32,
        iterations=_ITERATIONS,
        lanes=_LANES,
        memory_cost=_MEMORY,
    )
    return kdf.derive_phc_encoded(password.encode("utf-8", "surrogateescape"))


def is_current(phc: str) -> bool:
    """Return whether a hash has the parameters that are used for new hashes."""
    return phc.startswith(f"$argon2id$v=19$m={_MEMORY},t={_ITERATIONS},p={_LANES}$")


def is_sane(phc: str, kind: str = "argon2id") -> bool:
    """Return whether a hash is well-formed and its parameters are within the limits."""
    match = _PARAMETERS.fullmatch(phc.removeprefix(f"${kind}"))
    if match is None:
        return False
    parameters = memory, iterations, _ = [int(each) for each in match.groups()]
    limits = (_MAX_MEMORY, _MAX_ITERATIONS, _MAX_LANES)
    return not any(map(gt, parameters, limits)) and memory * iterations <= _MAX_WORK


def matches(password: str, phc: str, *, kind: str = "argon2id") -> bool:
    """Return whether the password matches the hash.  A hash that is not sane matches nothing.

    ``kind`` is ``argon2id``, or ``argon2i`` for hashes of other programs.
    """
    if not is_sane(phc, kind):
        return False
    from cryptography.exceptions import InvalidKey
    from cryptography.hazmat.primitives.kdf import argon2

    try:
        algorithm = argon2.Argon2id if kind == "argon2id" else argon2.Argon2i
        algorithm.verify_phc_encoded(password.encode("utf-8", "surrogateescape"), phc)
    except (InvalidKey, ValueError):
        return False
    return True


def is_possible(password: str) -> bool:
    """Return whether a user can have this password; if not, no hash needs to be computed."""
    octets = password.encode("utf-8", "surrogateescape")
    return 0 < len(octets) <= MAX_PASSWORD and b"\0" not in octets


@cache
def decoy_hash() -> str:
    """Return a hash that no password has.  Checking it takes as long as checking a user's hash."""
    return make_hash(secrets.token_hex())


class Hashers:
    """Threads that check passwords; one core is left for the event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads: ThreadPoolExecutor | None = None
        self._updater: ThreadPoolExecutor | None = None
        self._waiting = 0

    async def run(self, check: Callable[[Credentials], T], credentials: Credentials) -> T:
        """Run ``check`` in a thread, and return its result or raise its exception.

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
            return await loop.run_in_executor(self._threads, check, credentials)
        finally:
            self._waiting -= 1

    def _start(self) -> None:
        from concurrent.futures import ThreadPoolExecutor  # most commands check no passwords

        self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), self._name)
        self._updater = ThreadPoolExecutor(1, "updater")

    def run_later(self, call: Callable[[], None]) -> None:
        """Run ``call`` in another thread, so that the running check does not wait for it.

        Must be called only by a running check.
        """
        assert self._updater is not None
        self._updater.submit(call)

    def close(self) -> None:
        """Wait until all checks and the calls that they passed to ``run_later`` have ended."""
        for threads in (self._threads, self._updater):
            if threads is not None:
                threads.shutdown()
