"""The metrics of several processes, in memory that they share."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from restante import series
from restante.app import exposition
from restante.series import BUCKETS, METRICS, SIZE, Kind, cell, cells_of, observe
from restante.shared import Counters

from .exposition import parsed

SENT, FAILED = cell("messages_sent_total"), cell("tls_handshakes_total", "failed")
SESSIONS, LAG, HELD = cell("sessions", "pop3"), cell("loop_lag_seconds"), cell("held_messages")


def text(values: list[float]) -> str:
    computed: dict[str, list[tuple[dict[str, str], float]]] = {
        metric.name: [({}, 1.0)]
        for metric in METRICS
        if metric.kind in (Kind.COMPUTED, Kind.COUNTED)
    }
    return "".join(f"{line}\n" for line in exposition.lines(values, computed))


@contextmanager
def process(work: object) -> Iterator[int]:
    """Run a function in a child process."""
    pid = os.fork()
    if not pid:
        try:
            work()  # type: ignore[operator]
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_every_cell_belongs_to_one_series() -> None:
    cells = [each for kind in Kind for each in cells_of(kind)]
    assert sorted(cells) == list(range(SIZE))
    assert SIZE < 400, "the number of series is fixed and small"


def test_labels_name_no_user_address_or_session() -> None:
    labels = {label for metric in METRICS for label in metric.labels}
    assert labels <= {"protocol", "reason", "result", "mechanism", "command", "via", "kind"} | {
        "version"
    }


def test_text_is_valid_and_shows_every_metric() -> None:
    generator = random.Random(17)
    for values in (series.zeros(), [generator.random() * 10**9 for _ in range(SIZE)]):
        samples = parsed(text(values))
        shown = {key.partition("{")[0] for key in samples}
        for metric in METRICS:
            suffix = "_count" if metric.kind is Kind.HISTOGRAM else ""
            is_known = metric.kind is not Kind.MEASURED or values[HELD] == values[HELD]
            assert (f"restante_{metric.name}{suffix}" in shown) == is_known


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0.001), (0.001, 0.001), (0.0011, 0.0025), (10.0, 10.0), (10.1, "+Inf"), (1e9, "+Inf")],
)
def test_a_time_is_counted_in_its_bucket(seconds: float, bucket: object) -> None:
    values = series.zeros()
    observe(values, cell("delivery_seconds", "lmtp"), seconds)
    samples = parsed(text(values))
    limits = [*BUCKETS, "+Inf"]
    for index, limit in enumerate(limits):
        shown = f"{limit:g}" if isinstance(limit, float) else limit
        count = samples[f'restante_delivery_seconds_bucket{{via="lmtp",le="{shown}"}}']
        assert count == (index >= limits.index(bucket)), limit
    assert samples['restante_delivery_seconds_sum{via="lmtp"}'] == seconds


def test_events_without_a_time_are_in_the_first_bucket() -> None:
    values = series.zeros()
    values[cell("commands_total", "retr", "ok")] = 5
    values[cell("commands_total", "top", "err")] = 2
    observe(values, cell("command_seconds", "retr"), 0.2)
    samples = parsed(text(values))
    assert samples['restante_command_seconds_bucket{command="retr",le="0.001"}'] == 6
    assert samples['restante_command_seconds_count{command="retr"}'] == 7
    assert samples['restante_command_seconds_count{command="list"}'] == 0


def test_counts_of_ended_workers_are_kept_and_their_gauges_are_not() -> None:
    counters = Counters(2)

    def count(worker: int, held: float) -> None:
        counters.values = series.zeros()
        counters.serve_as(worker)
        counters.values[SENT] += 10
        counters.values[SESSIONS] = 3
        counters.values[LAG] = worker + 1
        counters.values[HELD] = held
        counters.publish()

    count(0, held=7)
    count(1, held=float("nan"))
    totals = counters.totals()
    assert [totals[each] for each in (SENT, SESSIONS, LAG, HELD)] == [20, 6, 2, 7]
    counters.forget(1)
    totals = counters.totals()
    assert [totals[each] for each in (SENT, SESSIONS, LAG, HELD)] == [20, 3, 1, 7]
    assert totals[cell("workers_ended_total")] == 1
    counters.forget(0, is_expected=True)
    totals = counters.totals()
    assert [totals[each] for each in (SENT, SESSIONS, HELD)] == [20, 0, 7]
    assert totals[cell("workers_ended_total")] == 1
    counters.values = series.zeros()
    counters.serve_as(0)
    counters.publish()
    assert counters.totals()[HELD] == 7, "the new worker has not measured yet"


def test_a_worker_killed_while_it_writes_blocks_no_reader() -> None:
    counters = Counters(1)
    counters.values[SENT] = 1
    counters._versions[0] += 1
    counters._rows[0][SENT] = 1
    began = time.monotonic()
    assert counters.totals()[SENT] == 1
    assert time.monotonic() - began < 5
    counters.forget(0)
    counters.publish()
    assert counters._versions[0] % 2 == 0


def test_readers_see_consistent_values_that_never_decrease() -> None:
    """A worker writes often, and is killed and replaced several times."""
    counters = Counters(1)

    def work() -> None:
        while True:
            sum(range(500))  # less often than a reader needs for a try
            counters.values[SENT] += 1
            counters.values[FAILED] += 1
            counters.publish()

    seen = 0.0
    for _ in range(5):
        before = seen
        with process(work):
            while seen < before + 500:
                totals = counters.totals()
                assert totals[SENT] == totals[FAILED]
                assert totals[SENT] >= seen
                seen = totals[SENT]
        counters.forget(0)
        assert counters.totals()[SENT] >= seen


def test_readers_see_no_count_twice_or_not_at_all_while_a_worker_is_forgotten() -> None:
    counters = Counters(2)
    counters.serve_as(0)
    counters.values[SENT] = 1
    counters.publish()

    def work() -> None:
        while True:  # the supervisor moves the counts, and they come back
            counters.forget(0)
            with counters._writing(2):
                counters._rows[0][SENT], counters._rows[-1][SENT] = 1.0, 0.0

    with process(work):
        for _ in range(100):
            assert counters.totals()[SENT] == 1
