"""Write the collector's metrics for the textfile collector of Prometheus's node_exporter.

Security: the file contains names of accounts, counts and times, but no names of users or hosts, and
no mail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from secrets import token_hex

from ..collect.health import Health
from ..collect.ledger import Ledger
from ..config import Configuration
from .job import Job

_Labels = Mapping[str, str]

# Type and help text of each metric, by name.
_METRICS = {
    "restante_collect_runs_total": ("counter", "Sessions that ended, by result."),
    "restante_collect_messages_total": ("counter", "Messages that were stored."),
    "restante_collect_bytes_total": ("counter", "Octets of messages that were received."),
    "restante_collect_failures": ("gauge", "Failed sessions since the last successful one."),
    "restante_collect_last_success_timestamp_seconds": (
        "gauge",
        "Time of the last successful session.",
    ),
    "restante_oauth_token_expiry_timestamp_seconds": (
        "gauge",
        "Time by which the user must sign in again, if the provider reports it.",
    ),
}


def write(config: Configuration, ledger: Ledger, path: Path) -> None:
    """Write the metrics of all accounts; the file is replaced completely or not at all.

    Raises:
        OSError: the file cannot be written.
        RestanteError: the ledger cannot be read now.
    """
    # The exporter must not read the temporary file, so its name does not end in .prom.
    temporary = path.with_name(f".{path.name}.{token_hex(8)}")
    with ledger.reading():  # so that another process cannot replace newer metrics with older ones
        text = "".join(f"{line}\n" for line in _lines(config, ledger))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o644)
        try:
            with os.fdopen(descriptor, "w") as file:
                # The exporter runs as another user, so the umask must not apply.
                os.fchmod(descriptor, 0o644)
                file.write(text)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _lines(config: Configuration, ledger: Ledger) -> Iterator[str]:
    samples = [each for name in config.account for each in _samples(config, name, ledger)]
    for metric, (kind, text) in _METRICS.items():
        yield f"# HELP {metric} {text}"
        yield f"# TYPE {metric} {kind}"
        for name, labels, value in samples:
            if name == metric:
                pairs = ",".join(f'{key}="{each}"' for key, each in labels.items())
                yield f"{metric}{{{pairs}}} {value:.15g}"


def _samples(
    config: Configuration, name: str, ledger: Ledger
) -> Iterator[tuple[str, _Labels, float]]:
    """Yield name, labels and value of each metric of an account.

    Account names ([A-Za-z0-9_-]) need no escaping.
    """
    state, labels = Health(ledger.of(name)).state(), {"account": name}
    yield "restante_collect_runs_total", labels | {"result": "ok"}, state.good
    yield "restante_collect_runs_total", labels | {"result": "failed"}, state.bad
    yield "restante_collect_messages_total", labels, state.messages
    yield "restante_collect_bytes_total", labels, state.octets
    yield "restante_collect_failures", labels, state.failures
    if (last_success := ledger.of(name).last_success()) is not None:
        yield "restante_collect_last_success_timestamp_seconds", labels, last_success
    grant = Job.of(config, name).grant
    if grant.options.provider and (end := grant.expires_at()) is not None:
        yield "restante_oauth_token_expiry_timestamp_seconds", labels, end
