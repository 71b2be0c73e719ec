"""Format metrics as text for Prometheus (text format, version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import isnan

from ..series import BUCKETS, COMMAND_CLASSES, METRICS, Kind, Metric, cell

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[str, Mapping[str, str], float]
"""A suffix of the metric's name, the labels and the value."""


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of one metric.  The values of labels must not need escaping."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for suffix, labels, value in samples:
        pairs = ",".join(f'{key}="{each}"' for key, each in labels.items())
        yield f"{name}{suffix}{{{pairs}}} {value:.15g}" if pairs else f"{name}{suffix} {value:.15g}"


def lines(
    values: Sequence[float], computed: Mapping[str, Iterable[tuple[Mapping[str, str], float]]]
) -> Iterator[str]:
    """Yield the lines of all metrics of the server.

    ``values`` has a number for each cell.  ``computed`` has labels and value of each sample of the
    metrics without cells, by name.
    """
    for metric in METRICS:
        if metric.name in computed:
            samples: Iterable[Sample] = [("", *each) for each in computed[metric.name]]
        else:
            samples = [*_samples(metric, values)]
        if samples:
            yield from family(
                f"restante_{metric.name}", metric.kind.prometheus, metric.text, samples
            )


def _samples(metric: Metric, values: Sequence[float]) -> Iterator[Sample]:
    for names in metric.series:
        labels = dict(zip(metric.labels, names, strict=True))
        first = cell(metric.name, *names)
        if metric.kind is Kind.HISTOGRAM:
            yield from _histogram(labels, values, first, _immediate(metric.name, names, values))
        elif not isnan(values[first]):
            yield "", labels, values[first]


def _histogram(
    labels: Mapping[str, str], values: Sequence[float], first: int, immediate: float
) -> Iterator[Sample]:
    counts = [*values[first : first + len(BUCKETS) + 1]]
    counts[0] += max(0.0, immediate - sum(counts))
    limits = [*(f"{limit:g}" for limit in BUCKETS), "+Inf"]
    totals = [*accumulate(counts)]
    for limit, total in zip(limits, totals, strict=True):
        yield "_bucket", {**labels, "le": limit}, total
    yield "_sum", labels, values[first + len(counts)]
    yield "_count", labels, totals[-1]


def _immediate(name: str, labels: Sequence[str], values: Sequence[float]) -> float:
    """Return the number of events that a histogram must contain.

    Events that take less than a millisecond are counted as events but not observed, because most
    events are of this kind.  They belong to the first bucket.  A smaller number has no effect.
    """
    if name == "login_seconds":
        return _sum("logins_total", values, labels[0])
    if name == "command_seconds":
        keywords = COMMAND_CLASSES[labels[0]]
        return sum(_sum("commands_total", values, keyword) for keyword in keywords)
    return 0.0


def _sum(name: str, values: Sequence[float], first_label: str) -> float:
    """Return the sum of a counter over all series whose first label has this value."""
    metric = next(each for each in METRICS if each.name == name)
    return sum(values[cell(name, *labels)] for labels in metric.series if labels[0] == first_label)
