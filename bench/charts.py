"""The charts of docs/performance.md: which figures they show.  docs/pictures.py draws them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from measured import EACH, Results, read

__all__ = ["CHARTS", "Bars", "drawn", "read"]


class Bars(NamedTuple):
    """A chart: the question of each group, and the figures of its contenders."""

    title: str
    groups: list[tuple[str, dict[str, float]]]


CHARTS: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "sessions": (
        "CPU of a session in µs: shorter is better",
        (
            ("bench_sessions", "sessions", EACH),
            ("bench_sessions", "sessions over TLS", EACH),
        ),
    ),
    "logins": (
        "CPU of a session with a stored hash in µs: shorter is better",
        (
            ("bench_logins", "argon2id, later logins", EACH),
            ("bench_logins", "bcrypt, later logins", EACH),
            ("bench_logins", "SCRAM-SHA-256", EACH),
        ),
    ),
    "drain": (
        "CPU of a message of 4 kB in µs: shorter is better",
        tuple(
            ("bench_drain", f"drain d4k_{form}{tls}", EACH)
            for tls in ("", " over TLS")
            for form in ("lf", "crlf")
        ),
    ),
    "commands": (
        "CPU of a command in µs: shorter is better",
        (
            ("bench_top", "TOP n 0, n10k_lf", EACH),
            ("bench_top", "TOP n 0, d100k_lf", EACH),
            ("bench_retr", "RETR one at a time, n10k_lf", EACH),
            ("bench_retr", "RETR one at a time, n10k_lf over TLS", EACH),
        ),
    ),
    "polls": (
        "PASS and STAT in ms: shorter is better",
        tuple(
            ("bench_listing", f"PASS and STAT, {shape}_lf", "ms")
            for shape in ("n1k", "n10k", "n100k")
        ),
    ),
    "large": (
        "LMTP into a maildrop of 100,000, messages/s: longer is better",
        (("bench_large", "LMTP into a maildrop of 100,000, 16 senders", "messages/s"),),
    ),
}


def drawn(results: Results, names: Iterable[str] = CHARTS) -> dict[str, Bars]:
    """These charts by name.

    Raises:
        Missing: one of their figures was not measured.
    """
    found = {}
    for name in names:
        title, keys = CHARTS[name]
        groups = [(key[1], results.row(*key).medians()) for key in keys]
        found[name] = Bars(title, groups)
    return found
