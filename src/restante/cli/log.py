"""``restante log``: follow the log of the running server."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, NotRunning, UnsafeArgument
from ..escaping import escape, printable
from ..log import time_stamp
from . import common, control

_JOURNAL = Path("/run/systemd/journal")  # exists while systemd-journald runs
_UNIT = "restante"
_PAUSE = 0.5  # seconds before another worker is asked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print the events of the running server as they happen, in the form of its log."
    )
    parser.add_argument("-f", "--follow", action="store_true", help="print new events")
    parser.add_argument("--user", metavar="USER", help="print only events of this user")
    parser.add_argument(
        "--level",
        choices=("debug", "info", "warning", "error"),
        help="the lowest level of events to print; log.level limits them as well",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        help='print the events since this time from systemd\'s journal, such as "-1 hour"',
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print events until the user or the server stops.

    Raises:
        UnsafeArgument: neither --follow nor --since was given.
        NotRunning: no server is running, or it has stopped.
    """
    if options.since:
        return _read_journal(options)
    if not options.follow:
        raise UnsafeArgument("give -f to print new events, or --since TIME for earlier events")
    query: dict[str, str | None] = {"user": options.user, "level": options.level}
    last = time_stamp(time.time())
    while True:
        reply = control.ask(options, "GET", "/events", query)
        reply.live()
        with suppress(NotRunning):  # the worker has ended; another one may answer
            for event in reply.lines():
                print(json.dumps(event) if options.json else _line(event), flush=True)
                last = event.get("t", last)
        common.say("restante log: the worker has ended; some of its events may be missing")
        query["after"] = last
        time.sleep(_PAUSE)


def _line(event: dict[str, Any]) -> str:
    """Return a line as in the log with time stamps (``log.Plain``)."""
    if "skipped" in event:
        return f"… {event['skipped']} events skipped"
    if set(event) == {"missing"}:
        return f"… worker {event['missing']} does not answer; its events are missing"
    fields = {name: value for name, value in event.items() if name not in _HEAD}
    name = printable(event.get("event", "-").replace(".", " ")) + ":" * bool(fields)
    return " ".join(
        [event.get("t", "-"), name, *(f"{key}={escape(value)}" for key, value in fields.items())]
    )


_HEAD = ("t", "level", "event")


def _read_journal(options: argparse.Namespace) -> int:
    """Run journalctl.

    Raises:
        ConfigurationError: this machine has no journal.
        UnsafeArgument: --user, --level or --json was given, which journalctl cannot apply.
    """
    if options.user or options.level:
        raise UnsafeArgument("--since cannot be combined with --user or --level")
    common.refuse_json(options)
    program = shutil.which("journalctl")
    if program is None or not _JOURNAL.is_dir():
        raise ConfigurationError(
            "--since needs systemd's journal, which this machine does not have; look for earlier "
            "events where the standard error of `restante serve` is stored"
        )
    follow = ["--follow"] if options.follow else []
    command = [program, "--unit", _UNIT, f"--since={options.since}", "--no-pager", *follow]
    return subprocess.run(command, check=False).returncode
