"""The metrics of the server: names, types and labels, and the cell in which each value is stored.

All label values are listed here, so the number of series is fixed.  No label contains a user, an
address or a session.

A process keeps its values in a list with one number per cell (``zeros``), and increments
``values[cell(...)]``.  ``shared.Counters`` adds up the lists of the workers, and
``app.exposition`` formats them.  Only the event loop's thread may change the list.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, MutableSequence
from enum import Enum
from itertools import product
from math import nan
from typing import NamedTuple

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper limits of the buckets of a histogram, in seconds; one more bucket has no limit."""
_OF_HISTOGRAM = len(BUCKETS) + 2  # cells: one for each bucket, then the sum


class Kind(Enum):
    """The types of metrics, and how the values of several workers are combined."""

    COUNTER = "counter"
    """Never decreases; values are added, also those of workers that have ended."""
    HISTOGRAM = "histogram"
    """Counters of the observed times by bucket, and the sum of the times."""
    GAUGE = "gauge"
    """The values of the running workers are added."""
    MAXIMUM = "maximum"
    """A gauge; the highest value of the running workers is shown."""
    MEASURED = "measured"
    """A gauge that one worker measures from time to time; NaN until the first measurement.
    The last value is shown even if this worker has ended."""
    COMPUTED = "computed"
    """A gauge that is computed when it is shown and has no cell."""
    COUNTED = "counted"
    """A counter that is stored elsewhere and has no cell."""

    @property
    def prometheus(self) -> str:
        """The type's name in Prometheus."""
        names = {Kind.COUNTED: "counter", Kind.HISTOGRAM: "histogram", Kind.COUNTER: "counter"}
        return names.get(self, "gauge")

    @property
    def cells(self) -> int:
        """Number of cells for each combination of labels."""
        if self is Kind.HISTOGRAM:
            return _OF_HISTOGRAM
        return int(self not in (Kind.COMPUTED, Kind.COUNTED))


class Metric(NamedTuple):
    """One row of the table of metrics."""

    name: str
    """The name without the prefix ``restante_``."""
    kind: Kind
    text: str
    labels: Mapping[str, tuple[str, ...]] = {}
    """The possible values of each label."""

    @property
    def series(self) -> Iterator[tuple[str, ...]]:
        """All combinations of label values."""
        return product(*self.labels.values())


COMMANDS = (
    *("user", "pass", "apop", "auth", "xclient", "utf8", "lang", "stls", "capa", "stat", "list"),
    *("uidl", "retr", "top", "dele", "rset", "noop", "quit", "other"),
)
# The classes of ``command_seconds``.  Logins are in ``login_seconds``.
COMMAND_CLASSES = {
    "retr": ("retr", "top"),
    "list": ("list", "uidl"),
    "quit": ("quit",),
    "other": tuple(
        name
        for name in COMMANDS
        if name not in ("pass", "apop", "auth", "retr", "top", "list", "uidl", "quit")
    ),
}
MECHANISMS = (
    *("user", "apop", "external", "scram-sha-256-plus", "scram-sha-1-plus", "scram-sha-256"),
    *("scram-sha-1", "oauthbearer", "xoauth2", "plain", "login", "other"),
)
_PROTOCOLS = ("pop3", "pop3s", "lmtp", "smtp")
_LOGIN_RESULTS = ("ok", "refused", "failed")
_VIA = ("lmtp", "smtp", "gateway")

METRICS = (
    Metric("build_info", Kind.COMPUTED, "Always 1; the label is the version."),
    Metric("start_time_seconds", Kind.COMPUTED, "When the server started, since the epoch."),
    Metric("workers", Kind.GAUGE, "Worker processes that are running."),
    Metric("workers_ended_total", Kind.COUNTER, "Worker processes that ended unexpectedly."),
    Metric(
        "loop_lag_seconds",
        Kind.MAXIMUM,
        "Longest delay of the event loop of any worker in the last 10 seconds.",
    ),
    Metric("connections", Kind.GAUGE, "Open connections.", {"protocol": _PROTOCOLS}),
    Metric(
        "connections_refused_total",
        Kind.COUNTER,
        "Connections that were refused because of a limit on all connections or on those from "
        "one address, a failed TLS handshake, or an invalid PROXY header.",
        {"reason": ("total", "per_address", "handshake", "proxy")},
    ),
    Metric("sessions", Kind.GAUGE, "Users who are logged in.", {"protocol": _PROTOCOLS[:2]}),
    Metric(
        "logins_total",
        Kind.COUNTER,
        "Logins: ok; refused, for example because of a wrong password; failed, because of the "
        "server, a lock or a delay.",
        {"result": _LOGIN_RESULTS, "mechanism": MECHANISMS},
    ),
    Metric(
        "login_seconds",
        Kind.HISTOGRAM,
        "Time to check a login and to open the maildrop, without the delay after a failure.",
        {"result": _LOGIN_RESULTS},
    ),
    Metric(
        "commands_total",
        Kind.COUNTER,
        "POP3 commands that were answered.",
        {"command": COMMANDS, "result": ("ok", "err")},
    ),
    Metric(
        "command_seconds",
        Kind.HISTOGRAM,
        "Time to answer a POP3 command, including the time that the client takes to read the "
        "answer. retr includes TOP, and list includes UIDL; logins are not included.",
        {"command": tuple(COMMAND_CLASSES)},
    ),
    Metric("messages_sent_total", Kind.COUNTER, "Messages that were sent completely with RETR."),
    Metric("sent_bytes_total", Kind.COUNTER, "Total size of these messages."),
    Metric("messages_deleted_total", Kind.COUNTER, "Messages that were removed at QUIT."),
    Metric("messages_restored_total", Kind.COUNTER, "Held messages that were restored."),
    Metric(
        "deletions_braked_total",
        Kind.COUNTER,
        "Sessions whose deletions were refused because the password was new.",
    ),
    Metric(
        "deliveries_total",
        Kind.COUNTER,
        "Deliveries, by recipient: stored; refused permanently; deferred, so that the sender "
        "tries again. For the gateway, a failed poll counts as deferred.",
        {"via": _VIA, "result": ("stored", "refused", "deferred")},
    ),
    Metric("received_bytes_total", Kind.COUNTER, "Total size of stored deliveries.", {"via": _VIA}),
    Metric(
        "delivery_seconds",
        Kind.HISTOGRAM,
        "Time to store a message for a recipient. For the gateway, the time of a poll.",
        {"via": _VIA},
    ),
    Metric("held_messages", Kind.MEASURED, "Deleted messages that are held; measured hourly."),
    Metric("held_bytes", Kind.MEASURED, "Total size of the held messages."),
    Metric("maildrops", Kind.MEASURED, "Maildrops; measured hourly."),
    Metric("store_free_bytes", Kind.MEASURED, "Free space of the mail storage; measured hourly."),
    Metric("store_size_bytes", Kind.MEASURED, "Size of the mail storage's file system."),
    Metric(
        "store_errors_total",
        Kind.COUNTER,
        "Errors of the mail storage.",
        {"kind": ("read", "write", "sync", "journal")},
    ),
    Metric(
        "tls_handshakes_total",
        Kind.COUNTER,
        "TLS handshakes, by the version that was negotiated.",
        {"version": ("1.2", "1.3", "failed")},
    ),
    Metric(
        "tls_certificate_expiry_timestamp_seconds",
        Kind.COMPUTED,
        "When the certificate in use expires, since the epoch.",
    ),
    Metric(
        "reloads_total",
        Kind.COUNTED,
        "Reloads of the configuration.",
        {"result": ("ok", "refused")},
    ),
    Metric(
        "config_last_reload_successful",
        Kind.COMPUTED,
        "Whether the last reload was accepted; 1 if there was no reload.",
    ),
)


def _cells() -> Iterator[tuple[tuple[str, ...], Kind, range]]:
    """Yield the name with the labels, the kind and the cells of each series that has cells."""
    begin = 0
    for metric in METRICS:
        number = metric.kind.cells
        for labels in metric.series if number else ():
            yield (metric.name, *labels), metric.kind, range(begin, begin + number)
            begin += number


_KINDS = [(kind, cells) for _, kind, cells in _cells()]
_FIRST_CELLS = {series: cells.start for series, _, cells in _cells()}
SIZE = _KINDS[-1][1].stop
"""Number of cells."""


def cell(name: str, *labels: str) -> int:
    """Return the cell of a series; for a histogram, the cell of its first bucket."""
    return _FIRST_CELLS[name, *labels]


def cells_by_label(name: str) -> dict[str, int]:
    """Return the cells of a metric by the values of its only label."""
    return {labels[1]: first for labels, first in _FIRST_CELLS.items() if labels[0] == name}


def cells_of(kind: Kind) -> list[int]:
    """Return all cells of a kind."""
    return [each for other, cells in _KINDS if other is kind for each in cells]


def zeros() -> list[float]:
    """Return the values of a process that has counted nothing."""
    values = [0.0] * SIZE
    for each in cells_of(Kind.MEASURED):
        values[each] = nan
    return values


def observe(values: MutableSequence[float], first: int, seconds: float) -> None:
    """Add a time to the histogram whose first cell is ``first``."""
    values[first + bisect_left(BUCKETS, seconds)] += 1
    values[first + _OF_HISTOGRAM - 1] += seconds
