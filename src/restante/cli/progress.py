"""What ``fetch`` and ``collect`` show: bars on a terminal, a line for what came, JSON."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from ..app import failures
from ..app.runs import no_bar
from ..app.words import counted
from ..errors import RestanteError
from ..log import printable
from . import common

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..app.runs import Bars
    from ..collect.collector import Outcome
    from ..collect.collector import Progress as Report
    from ..pop3.listing import Message


@contextmanager
def bars(*, wanted: bool = True) -> Iterator[Bars]:
    """Bars below each other on a terminal that can move its cursor, and none elsewhere.

    Each appears once it is known how much there is, so a refused login leaves none behind.
    """
    is_able = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    if not wanted or not is_able:
        yield no_bar
        return
    shown = _progress()
    try:

        @contextmanager
        def bar(name: str) -> Iterator[Report]:
            task = shown.add_task(name, total=None, what="", visible=False)

            def show(messages: Sequence[Message], octets: int) -> None:
                if messages:
                    total = sum(message.size for message in messages)
                    what = counted(len(messages), "message")
                    shown.update(task, total=total, what=what, visible=True)
                    shown.start()  # which does nothing the second time
                shown.update(task, advance=octets)

            try:
                yield show
            finally:
                shown.remove_task(task)

        yield bar
    finally:
        shown.stop()


def _progress() -> Progress:
    """Colours are rich's matter, which leaves them out if NO_COLOR is set."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[what]}"),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a file gets the results as they are
    )


def report(
    options: argparse.Namespace,
    name: str,
    result: Outcome,
    error: RestanteError | OSError | None,
) -> None:
    """A line for an account where something came, and for one that failed; silence is good news."""
    from ..collect.collector import LoginTooSoon

    if options.json:
        told = {each.name: getattr(result, each.name) for each in fields(result)}
        del told["may_list_more"], told["may_go_on"], told["present"]
        if error is not None:
            told |= {"error": failures.describe(error), "exit_code": failures.exit_code(error)}
        common.print_json("collect", account=name, **told)
        return
    for text in (*result.skipped, *result.refused, *result.short, *result.notes):
        common.say(printable(f"{name}: {text}"))
    came = result.stored or result.stubs or result.deleted or result.unverified or result.withheld
    if came or (error is None and sys.stdout.isatty()):
        print(_line(name, result, dry_run=options.dry_run), flush=True)
    # That a server wants more time is as it should be.
    if error is not None and (sys.stderr.isatty() or not isinstance(error, LoginTooSoon)):
        common.say(printable(f"{name}: {failures.describe(error)}"))


def _line(name: str, result: Outcome, *, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    words = []
    if result.stored:
        octets = counted(result.octets, "octet")
        words.append(f"{counted(result.stored, 'message')} {would}stored ({octets})")
    if result.stubs:
        words.append(f"{counted(result.stubs, 'header')} {would}stored of what is too large")
    if result.known:
        words.append(f"{result.known} were here already")
    if result.in_doubt:
        words.append(f"{result.in_doubt} maybe twice, after a crash")
    if result.deleted:
        words.append(f"{result.deleted} {would}deleted on the server")
    if result.withheld:
        words.append(
            f"{result.withheld} not deleted there yet (deletion_limit; now: --no-deletion-limit)"
        )
    if result.later:
        words.append(f"{result.later} left for later by {result.later_for}")
    if result.unverified:
        words.append(f"{result.unverified} kept there: the copy here is not what came")
    return f"{name}: " + (", ".join(words) or "nothing new")
