"""Read metrics in Prometheus's text format, and check that the text is valid."""

from __future__ import annotations

import re

_SAMPLE = re.compile(
    r"(?P<name>[a-z_]+)(?:\{(?P<labels>[a-z_]+=\"[^\"\\]*\"(?:,[a-z_]+=\"[^\"\\]*\")*)\})? "
    r"(?P<value>[0-9.e+-]+)"
)
_SUFFIXES = ("_bucket", "_sum", "_count")


def parsed(text: str) -> dict[str, float]:
    """Return the value of each sample, such as ``restante_sessions{protocol="pop3"}``."""
    assert text.endswith("\n")
    samples: dict[str, float] = {}
    kinds: dict[str, str] = {}
    name = kind = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, kind = line.split(" ", 3)[2], ""
            assert name not in kinds, f"{name} twice"
            assert line.split(" ", 3)[3]
        elif line.startswith("# TYPE "):
            _, _, named, kind = line.split(" ")
            assert named == name
            assert kind in ("counter", "gauge", "histogram")
            assert (kind == "counter") == name.endswith("_total"), name
            kinds[name] = kind
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            allowed = [name + suffix for suffix in _SUFFIXES] if kind == "histogram" else [name]
            assert match["name"] in allowed, line
            key, _, value = line.rpartition(" ")
            assert key not in samples, f"{key} twice"
            samples[key] = float(value)
    for name, kind in kinds.items():
        found = [key for key in samples if re.split(r"[{]", key)[0].startswith(name)]
        assert found, f"{name} has no sample"
        if kind == "histogram":
            _check_histogram(name, samples)
    return samples


def _check_histogram(name: str, samples: dict[str, float]) -> None:
    buckets: dict[str, list[float]] = {}
    for key, value in samples.items():
        if key.startswith(f"{name}_bucket{{"):
            labels = re.sub(r',?le="[^"]*"', "", key.removeprefix(f"{name}_bucket"))
            buckets.setdefault(labels, []).append(value)
            if 'le="+Inf"' in key:
                assert samples[f"{name}_count{labels}"] == value
                assert f"{name}_sum{labels}" in samples
    for values in buckets.values():
        assert values == sorted(values), f"{name} is not cumulative"
