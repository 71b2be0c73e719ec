"""Does the time of a refusal reveal whether a user exists, or is disabled?

Each try uses a new connection and measures the time from PASS to its answer, without the delay of
failures (``auth.failure_delay = 0``), which would hide all differences.  Cold: a password that was
never tried before.  Warm: answers from the cache.  The kinds alternate at random.  The results are
the difference of the medians and the p of a two-sided Mann-Whitney test.  A value below 0.01 means
that this number of tries distinguishes the kinds.
"""

from __future__ import annotations

import math
import random
import secrets
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from itertools import combinations, count
from pathlib import Path
from statistics import median

import harness

KINDS = ("wrong", "unknown", "disabled")


def main() -> None:
    parser = harness.options(__doc__ or "", rounds=1)
    parser.add_argument(
        "--tries", type=int, default=2_000, help="of each kind; default %(default)s"
    )
    options = parser.parse_args()
    harness.ENVIRONMENT["RESTANTE__AUTH__FAILURE_DELAY"] = "0"
    harness.ENVIRONMENT["RESTANTE__AUTH__TRUSTED"] = "127.0.0.0/8"
    results = harness.Results("bench_timing")
    with harness.restante(["small"], chain="users") as server:
        disable(harness.DATABASE, harness.USERS[-options.tries :])
        try:
            for _ in range(options.rounds):
                for name, shown in (("cold", cold()), ("warm", warm())):
                    report(results, name, times(server.port, shown, options.tries))
        finally:
            disable(harness.DATABASE, [])
    results.report()


def disable(path: Path, users: list[str]) -> None:
    """These and no others."""
    with sqlite3.connect(path) as database:
        database.execute("UPDATE users SET is_enabled = 1")
        rows = [(user,) for user in users]
        database.executemany("UPDATE users SET is_enabled = 0 WHERE name = ?", rows)
    database.close()


def cold() -> Callable[[str], tuple[str, str]]:
    """A user of that kind and a password, none of them shown before."""
    numbers = {kind: count(1) for kind in KINDS}

    def shown(kind: str) -> tuple[str, str]:
        at = next(numbers[kind])
        if kind == "disabled":
            return harness.USERS[-at], harness.PASSWORD
        return f"u{at % 100}" if kind == "wrong" else f"v{at % 100}", secrets.token_hex(6)

    return shown


def warm() -> Callable[[str], tuple[str, str]]:
    """Always the same."""
    users = {"wrong": ("u1", "wrong"), "unknown": ("v1", "wrong")}
    return lambda kind: users.get(kind, (harness.USERS[-1], harness.PASSWORD))


def times(port: int, shown: Callable[[str], tuple[str, str]], tries: int) -> dict[str, list[float]]:
    """Milliseconds by kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(20):
        for kind in KINDS:  # whatever comes first is slower
            refusal(port, *shown(kind)) if kind != "disabled" else None
    for number in range(tries):
        for kind in random.sample(KINDS, len(KINDS)):
            found[kind].append(refusal(port, *shown(kind)) * 1000)
        if number % 200 == 0:
            print(f"{number} of {tries}", file=sys.stderr)
    return found


def refusal(port: int, user: str, password: str) -> float:
    with socket.create_connection(("127.0.0.1", port), 60) as connected:
        connected.recv(1_000)
        connected.sendall(b"USER %b\r\n" % user.encode())
        connected.recv(1_000)
        began = time.perf_counter()
        connected.sendall(b"PASS %b\r\n" % password.encode())
        answer = connected.recv(1_000)
        took = time.perf_counter() - began
    if answer != b"-ERR [AUTH] authentication failed\r\n":
        raise SystemExit(f"bench: {user} heard {answer!r}")
    return took


def report(results: harness.Results, name: str, found: dict[str, list[float]]) -> None:
    for kind in KINDS:
        results.add(f"{name}: median", kind, "ms", median(found[kind]))
    for one, other in combinations(KINDS, 2):
        pair = f"{one} and {other}"
        difference = median(found[one]) - median(found[other])
        results.add(f"{name}: difference of the medians", pair, "ms", difference)
        results.add(f"{name}: Mann-Whitney", pair, "p", mann_whitney(found[one], found[other]))


def mann_whitney(one: list[float], other: list[float]) -> float:
    """Two-sided p by the normal approximation; times have hardly any ties."""
    ranked = sorted([(value, True) for value in one] + [(value, False) for value in other])
    ranks = sum(rank for rank, (_, is_one) in enumerate(ranked, 1) if is_one)
    n, m = len(one), len(other)
    u = ranks - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


if __name__ == "__main__":
    main()
