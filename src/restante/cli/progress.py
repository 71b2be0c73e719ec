"""Output of ``fetch`` and ``collect``: progress bars, a line for each account, JSON."""

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
from ..errors import RestanteError
from ..escaping import printable
from ..words import counted, size
from . import common

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..app.runs import Bars
    from ..collect.collector import Outcome
    from ..collect.collector import Progress as Report
    from ..pop3.listing import Message


@contextmanager
def bars(*, wanted: bool = True) -> Iterator[Bars]:
    """Show progress bars on a terminal that can move its cursor, and nothing elsewhere.

    A bar appears when the size of the download is known, so a refused login shows none.
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
                    shown.start()  # has no effect the second time
                shown.update(task, advance=octets)

            try:
                yield show
            finally:
                shown.remove_task(task)

        yield bar
    finally:
        shown.stop()


def _progress() -> Progress:
    """rich chooses colours, and omits them if NO_COLOR is set."""
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
        redirect_stdout=sys.stdout.isatty(),  # a file gets the results only
    )


def report(
    options: argparse.Namespace,
    name: str,
    result: Outcome,
    error: RestanteError | OSError | None,
) -> None:
    """Print a line for an account with new mail or an error; nothing new is shown on a terminal."""
    from ..collect.collector import LoginTooSoon

    if options.json:
        row = {each.name: getattr(result, each.name) for each in fields(result)}
        del row["may_list_more"], row["may_go_on"], row["present"]
        if error is not None:
            row |= {"error": failures.describe(error), "exit_code": failures.exit_code(error)}
        common.print_json("collect", account=name, **row)
        return
    for text in (*result.skipped, *result.refused, *result.short, *result.notes):
        common.say(printable(f"{name}: {text}"))
    came = result.stored or result.stubs or result.deleted or result.unverified or result.withheld
    if came or (error is None and sys.stdout.isatty()):
        print(_line(name, result, dry_run=options.dry_run), flush=True)
    # A server that requires a pause between logins is not an error.
    if error is not None and (sys.stderr.isatty() or not isinstance(error, LoginTooSoon)):
        common.say(printable(f"{name}: {failures.describe(error)}"))


def _line(name: str, result: Outcome, *, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    words = []
    if result.stored:
        words.append(f"{counted(result.stored, 'message')} {would}stored, {size(result.octets)}")
    if result.stubs:
        words.append(f"{counted(result.stubs, 'header')} of too large messages {would}stored")
    if result.known:
        words.append(f"{result.known} collected before")
    if result.in_doubt:
        words.append(f"{result.in_doubt} perhaps stored twice after a crash")
    if result.deleted:
        words.append(f"{result.deleted} {would}deleted on the server")
    if result.withheld:
        words.append(
            f"{result.withheld} not deleted on the server yet because of deletion_limit "
            "(--no-deletion-limit deletes them now)"
        )
    if result.later:
        words.append(f"{result.later} left for later by {result.later_for}")
    if result.unverified:
        words.append(f"{result.unverified} left on the server because the local copy differs")
    return f"{name}: " + ("; ".join(words) or "no new mail")
