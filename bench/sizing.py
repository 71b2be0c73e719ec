"""Writes docs/howto/sizing.md: the resources that three sites need, from the measured rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from measured import EACH, OURS, Results, label, markdown, short

SECONDS_PER_DAY = 86_400


class Site(NamedTuple):
    """The assumed load of a server."""

    name: str
    users: int
    polls: float
    """Sessions over TLS per user per day."""
    mails: float
    """Messages per user per day; each is delivered, downloaded one at a time, and deleted."""
    kilobytes: float
    """Size of a message."""
    hashes: float
    """Logins per user per day with a password that is not cached, so it must be hashed."""
    peak: float
    """Load in the busiest minute, as a multiple of the average."""
    connections: int
    """Simultaneous TLS connections in the busiest minute."""


SITES = (
    Site("office with 1,000 users", 1_000, 60, 40, 100, 60, 10, 200),
    Site("provider with 100,000 users", 100_000, 48, 20, 75, 48, 3, 5_000),
    Site("ticket system", 1, 8_640, 2_000, 100, 1, 10, 5),
)
_ASSUMED: tuple[tuple[str, Callable[[Site], float]], ...] = (
    ("users", lambda site: site.users),
    ("sessions per user per day, over TLS", lambda site: site.polls),
    ("of these, sessions whose password must be hashed", lambda site: site.hashes),
    ("messages per user per day", lambda site: site.mails),
    ("size of a message, kB", lambda site: site.kilobytes),
    ("load in the busiest minute, as a multiple of the average", lambda site: site.peak),
    ("simultaneous connections, over TLS", lambda site: site.connections),
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
"""Rows that the page shows in addition to those it uses."""
LARGE_KILOBYTES = 25 * 2**20 / 1000


class Need(NamedTuple):
    """The resources that a site needs on a machine like the one that was measured."""

    sessions: float
    """CPU seconds per day for sessions, without hashing passwords."""
    hashing: float
    """CPU seconds per day for hashing passwords."""
    mail: float
    """CPU seconds per day for delivering, downloading and deleting mail."""
    cores: float
    """Cores needed in the busiest minute."""
    megabytes: float
    writes: float
    """Disk writes per day for deliveries."""
    flushes: float
    """Disk flushes per second in the busiest minute."""


def need(site: Site, results: Results) -> Need:
    """Compute the needs of a site from the measured rows.

    Raises:
        Missing: one of these rows was not measured.
    """
    mails = site.users * site.mails
    body = results.figure(*LARGE) / LARGE_KILOBYTES * site.kilobytes  # µs, for TLS and line endings
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

The figures on this page are computed from the measurements on the page
[Performance](../performance.md), which also describes the machine and the method. Your machine is
different, so treat the figures as rough estimates. To measure on your own machine, run
`./dev bench --all`.

## Three sites

The estimates are for three typical sites, with the following assumptions. In an office, the busiest
minute is at the start of the day, when all users start their mail clients.

"""
_SIZING_NOTES = """\
A session consists of a login, STAT, UIDL, one RETR and QUIT over TLS. Messages are delivered
over LMTP by one sender, downloaded over TLS one at a time, and deleted, with the default hold of 14
days. The size of messages affects only the download. The memory figure covers a server with two
workers and its connections.

Hashing is slow on purpose: hashing a password takes far more CPU time than the rest of the session.
Correct passwords are cached for five minutes. A client that polls at least every five minutes
therefore rarely causes a hash computation; any other client causes one each time it polls.

Keep one worker per core (`workers = "auto"`, the default), and use a machine with one more core
than the busiest minute needs.

## Measurements used

"""
_SIZING_TAIL = """\
## Large maildrops

A maildrop with 100,000 messages opens almost as fast as a small one, after its first login has
indexed it.

## Disk

- Each message is stored once and takes up as much disk space as its size. Deleted mail takes up
  this space until its [hold](deletion-limits.md) is over; the default is 14 days.
- Indexes and journals need at most a few MB per user; the journal is limited to 2 MiB.
- Each delivered message is synced to disk before it is accepted, so the rate of deliveries depends
  on the time that the disk needs for a flush. On a hard disk or on network storage, expect a far
  lower rate than on the machine that was measured.

## Connections

`sessions = 4096` and `per_address = 50` under `[limits]` are the defaults. Each connection needs a
file descriptor, so set `LimitNOFILE=` in the unit to a value above `sessions`. If the limit is too
low, the log reports `connections limited`.
"""


def page(results: Results) -> str:
    """Return the text of docs/howto/sizing.md.

    Raises:
        Missing: a row that the page needs was not measured.
    """
    needs = [need(site, results) for site in SITES]
    head = ["", *(site.name for site in SITES)]
    rule = ["---", *["---:"] * len(SITES)]
    assumed = [[name, *(short(of(site)) for site in SITES)] for name, of in _ASSUMED]
    answers = (
        ("CPU seconds per day: sessions", "sessions"),
        ("CPU seconds per day: hashing passwords", "hashing"),
        ("CPU seconds per day: mail", "mail"),
        ("cores in the busiest minute", "cores"),
        ("memory, MB", "megabytes"),
        ("disk writes per day, for deliveries", "writes"),
        ("disk flushes per second in the busiest minute", "flushes"),
    )
    answered = [[name, *(short(getattr(each, key)) for each in needs)] for name, key in answers]
    rows = [["measurement", "unit", "result"], ["---", "---", "---:"]]
    for key in (*USED, *MORE):
        rows.append([label(key[1]), label(key[2]), short(results.figure(*key))])
    commands = dict.fromkeys(results.row(*key).lines[OURS]["command"] for key in (*USED, *MORE))
    return (
        _SIZING_HEAD
        + markdown([head, rule, *assumed])
        + "\nEach site needs approximately these resources:\n\n"
        + markdown([head, rule, *answered])
        + f"\n{_SIZING_NOTES}"
        + markdown(rows)
        + "\nThese commands produced the figures:\n\n"
        + "".join(f"- `{command}`\n" for command in commands)
        + f"\n{_SIZING_TAIL}"
    )
