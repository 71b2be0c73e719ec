"""Writes docs/howto/sizing.md: what three sites take, computed from the measured rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from measured import EACH, OURS, Results, markdown, short

SECONDS_PER_DAY = 86_400


class Site(NamedTuple):
    """Who uses a server, and how much; all of it is assumed."""

    name: str
    users: int
    polls: float
    """Sessions of a user in a day, over TLS."""
    mails: float
    """Messages for a user in a day; each is delivered, downloaded one at a time, and deleted."""
    kilobytes: float
    """Size of a message."""
    hashes: float
    """Logins of a user in a day whose password is not remembered, so that it is hashed."""
    peak: float
    """How much more than the average happens in the busiest minute."""
    connections: int
    """Open at once over TLS in the busiest minute."""


SITES = (
    Site("office with 1,000 users", 1_000, 60, 40, 100, 60, 10, 200),
    Site("provider with 100,000 users", 100_000, 48, 20, 75, 48, 3, 5_000),
    Site("ticket system", 1, 8_640, 2_000, 100, 1, 10, 5),
)
_ASSUMED: tuple[tuple[str, Callable[[Site], float]], ...] = (
    ("users", lambda site: site.users),
    ("sessions per user and day, over TLS", lambda site: site.polls),
    ("of these with a password that must be hashed", lambda site: site.hashes),
    ("messages per user and day", lambda site: site.mails),
    ("size of a message, kB", lambda site: site.kilobytes),
    ("the busiest minute, times the average", lambda site: site.peak),
    ("connections open at once, over TLS", lambda site: site.connections),
)
TLS_SESSION = ("bench_sessions", "sessions over TLS", EACH)
HASHED = ("bench_logins", "argon2id, first login", "ms of server CPU each")
DELIVERED = ("bench_delivery", "1 sender, many maildrops, cost", "µs CPU")
RETRIEVED = ("bench_retr", "RETR one at a time, n10k_lf over TLS", EACH)
LARGE = ("bench_drain", "drain d25m_lf over TLS", EACH)
DELETED = ("bench_delete", "DELE of 10,000, hold = 14 d", EACH)
REMOVED = ("bench_delete", "QUIT that removes 10,000, hold = 14 d", EACH)
SERVER = ("bench_start", "whole server, 100 users, after 400 sessions", "MB of PSS")
IDLE = ("bench_idle_memory", "an idle connection, logged in over TLS", "kB of PSS")
WRITES = ("bench_delivery", "1 sender, many maildrops, disk", "disk writes each")
FLUSHES = ("bench_delivery", "1 sender, many maildrops, disk", "disk flushes each")
USED = (TLS_SESSION, HASHED, DELIVERED, RETRIEVED, LARGE, DELETED, REMOVED, SERVER, IDLE, WRITES)
USED += (FLUSHES,)
MORE = tuple(("bench_listing", f"PASS and STAT, {shape}_lf", "ms") for shape in ("n1k", "n100k"))
"""Shown beside them."""
LARGE_KILOBYTES = 25 * 2**20 / 1000


class Need(NamedTuple):
    """What a site takes of a machine like the one that was measured."""

    sessions: float
    """CPU seconds a day: logging in and looking for mail, without hashing."""
    hashing: float
    """CPU seconds a day."""
    mail: float
    """CPU seconds a day: delivering, downloading, deleting."""
    cores: float
    """In the busiest minute."""
    megabytes: float
    writes: float
    """Disk writes a day, for deliveries."""
    flushes: float
    """Disk flushes a second in the busiest minute."""


def need(site: Site, results: Results) -> Need:
    """From the measured rows.

    Raises:
        Missing: one of them was not measured.
    """
    mails = site.users * site.mails
    body = results.figure(*LARGE) / LARGE_KILOBYTES * site.kilobytes  # µs, for TLS and line ends
    each = sum(results.figure(*row) for row in (DELIVERED, RETRIEVED, DELETED, REMOVED)) + body
    sessions = site.users * site.polls * results.figure(*TLS_SESSION) / 1e6
    hashing = site.users * site.hashes * results.figure(*HASHED) / 1e3
    mail = mails * each / 1e6
    return Need(
        sessions,
        hashing,
        mail,
        (sessions + hashing + mail) / SECONDS_PER_DAY * site.peak,
        results.figure(*SERVER) + site.connections * results.figure(*IDLE) / 1e3,
        mails * results.figure(*WRITES),
        mails * results.figure(*FLUSHES) / SECONDS_PER_DAY * site.peak,
    )


_SIZING_HEAD = """\
# Sizing

`bench/report.py` computes this page from the rows that [Performance](../performance.md) shows,
which also says how and on which machine they were measured. Your machine differs: use the figures
as an order of magnitude, and measure with `./dev bench --all`.

## Three sites

These are assumptions. The busiest minute of an office is the one in which all programs are started.

"""
_SIZING_NOTES = """\
Sessions are a login, STAT, UIDL, one RETR and QUIT over TLS. Each message is delivered by LMTP from
one sender, downloaded over TLS one at a time, and deleted, with the default hold of 14 days. Its
size counts in downloading only. Memory is a server with two workers, and the connections.

Hashing a password takes far more than the session around it, on purpose. Correct passwords are
remembered for five minutes: clients that poll every five minutes or more often rarely cost a hash,
others cost one each time.

Keep one worker per core (`workers = "auto"`, the default), and have a core more than the busiest
minute needs.

## The rows behind them

"""
_SIZING_TAIL = """\
## Large maildrops

A maildrop with 100,000 messages opens as fast as a small one, once it has been indexed by its first
login.

## Disk

- Mail takes its own size, once. Deleted mail takes its size until its [hold](deletion-limits.md) is
  over; the default is 14 days.
- Indexes and journals take at most a few MB per user; the journal is limited to 2 MiB.
- Each delivered message is synced to disk before it is accepted. The disk's time for a flush limits
  the rate. On a hard disk or network storage expect far less than on the machine that was measured.

## Connections

`sessions = 4096` and `per_address = 50` under `[limits]` are the defaults. Each connection needs a
file descriptor: set `LimitNOFILE=` in the unit above `sessions`. If it is too low, the log reports
`connections limited`.
"""


def page(results: Results) -> str:
    """The page.

    Raises:
        Missing: a row behind it was not measured.
    """
    needs = [need(site, results) for site in SITES]
    head = ["", *(site.name for site in SITES)]
    rule = ["---", *["---:"] * len(SITES)]
    assumed = [[name, *(short(of(site)) for site in SITES)] for name, of in _ASSUMED]
    answers = (
        ("CPU seconds a day: sessions", "sessions"),
        ("CPU seconds a day: hashing passwords", "hashing"),
        ("CPU seconds a day: mail", "mail"),
        ("cores in the busiest minute", "cores"),
        ("memory, MB", "megabytes"),
        ("disk writes a day, for deliveries", "writes"),
        ("disk flushes/s in the busiest minute", "flushes"),
    )
    answered = [[name, *(short(getattr(each, key)) for each in needs)] for name, key in answers]
    rows = [["question", "unit", "measured"], ["---", "---", "---:"]]
    for key in (*USED, *MORE):
        rows.append([key[1], key[2], short(results.figure(*key))])
    commands = dict.fromkeys(results.row(*key).lines[OURS]["command"] for key in (*USED, *MORE))
    return (
        _SIZING_HEAD
        + markdown([head, rule, *assumed])
        + "\nThis is what they take:\n\n"
        + markdown([head, rule, *answered])
        + f"\n{_SIZING_NOTES}"
        + markdown(rows)
        + "\nMeasured by:\n\n"
        + "".join(f"- `{command}`\n" for command in commands)
        + f"\n{_SIZING_TAIL}"
    )
