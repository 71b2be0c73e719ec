"""``restante status``: show whether the server is ready, and what needs attention."""

from __future__ import annotations

import argparse
import json
import sys
from textwrap import wrap
from typing import Any

from .. import sysexits
from ..words import counted
from . import common, control
from .command import discard_output

_WIDTH = 80  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the state of the running server: its workers, sessions, certificate and "
        "configuration, and what needs attention."
    )
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help="exit with 0 only if the server is ready, and with 75 if it is running but not ready",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the status.

    Raises:
        NotRunning: no server is running.
    """
    status = control.ask(options, "GET", "/status").json()
    try:
        if options.json:
            print(json.dumps(status))
        else:
            _print(status)
        sys.stdout.flush()
    except BrokenPipeError:  # `restante status --exit-code | head`: the exit code must be right
        discard_output(sys.stdout)
    is_failure = options.exit_code and not status["ready"]
    return sysexits.EX_TEMPFAIL if is_failure else sysexits.EX_OK


def _print(status: dict[str, Any]) -> None:
    state = "ready" if status["ready"] else "not ready"
    loaded, refused = status["configuration"], status["reload_refused"]
    print(f"restante {status['version']}: {state}")
    rows = [
        ("running for", f"{control.duration(status['uptime'])}, process {status['pid']}"),
        ("connections", _connections(status)),
        ("certificate", f"valid until {status['certificate_end']}"),
        ("configuration", f"{loaded['file'] or 'private mode'}, read {loaded['loaded']}"),
    ]
    if refused:
        rows.append(("refused reload", f"{refused['at']}: {refused['reason']}"))
    common.print_fields(list(_wrapped(rows)))
    print()
    common.print_table(
        "worker pid running connections logged-in",
        [_worker(each) for each in status["workers"]],
        right="worker pid running connections logged-in",
    )
    if status["attention"]:
        print("\nneeds attention:")
        for text in status["attention"]:
            for line in wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    "):
                common.print_text(line)


def _wrapped(rows: list[tuple[str, str]]) -> Any:
    """Split long values into lines of 80 columns."""
    width = _WIDTH - 4 - max(len(name) for name, _ in rows)
    for name, value in rows:
        for number, line in enumerate(wrap(value, width) or [""]):
            yield ("" if number else name), line


def _connections(status: dict[str, Any]) -> str:
    counts = sorted(status["connections"].items())
    text = ", ".join(f"{number} {name}" for name, number in counts) or "none"
    return f"{text}; {counted(status['logged_in'], 'user session')}"


def _worker(worker: dict[str, Any]) -> list[object]:
    if "missing" in worker:
        return [worker["worker"], "-", "no answer", "-", "-"]
    connections = sum(worker["connections"].values())
    running = control.duration(worker["uptime"])
    return [worker["worker"], worker["pid"], running, connections, worker["logged_in"]]
