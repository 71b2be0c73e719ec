"""Output of ``fetch`` and ``collect``: progress bars, a line for each account, JSON."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
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
def bars(*, is_enabled: bool = True) -> Iterator[Bars]:
    """Show progress bars if standard error is a terminal that can move its cursor.

    A bar appears when the size of the download is known, so a refused login shows no bar.
    """
    if not is_enabled or not _can_show():
        yield no_bar
        return
    display = _progress()
    try:

        @contextmanager
        def bar(name: str) -> Iterator[Report]:
            task = display.add_task(name, total=None, what="", visible=False)

            def show(messages: Sequence[Message], octets: int) -> None:
                if messages:
                    total = sum(message.size for message in messages)
                    what = counted(len(messages), "message")
                    display.update(task, total=total, what=what, visible=True)
                    display.start()  # has no effect the second time
                display.update(task, advance=octets)

            try:
                yield show
            finally:
                display.remove_task(task)

        yield bar
    finally:
        display.stop()


@contextmanager
def octets_bar(name: str, *, is_enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how many octets were processed, if standard error is a terminal; the total is unknown.

    The yielded function is called with the number of octets of each piece.
    """
    if not is_enabled or not _can_show():
        yield lambda _: None
        return
    display = _progress()
    task = display.add_task(name, total=None, what="")
    try:
        display.start()
        yield lambda octets: display.update(task, advance=octets)
    finally:
        display.stop()


def _can_show() -> bool:
    """Return whether standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _progress() -> Progress:
    """Return the display; rich chooses the colours, and omits them if NO_COLOR is set."""
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
        redirect_stdout=sys.stdout.isatty(),  # a file contains only the results
    )


def report(
    options: argparse.Namespace,
    name: str,
    result: Outcome,
    error: RestanteError | OSError | None,
) -> None:
    """Print a line for an account with new mail or an error; on a terminal, for every account."""
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
    has_changes = (
        result.stored or result.stubs or result.deleted or result.unverified or result.withheld
    )
    if has_changes or (error is None and sys.stdout.isatty()):
        print(_line(name, result, dry_run=options.dry_run), flush=True)
    # A pause that the server requires between logins is not an error.
    if error is not None and (sys.stderr.isatty() or not isinstance(error, LoginTooSoon)):
        common.say(printable(f"{name}: {failures.describe(error)}"))


def _line(name: str, result: Outcome, *, dry_run: bool) -> str:
    prefix = "would be " if dry_run else ""
    parts = []
    if result.stored:
        parts.append(f"{counted(result.stored, 'message')} {prefix}stored, {size(result.octets)}")
    if result.stubs:
        parts.append(f"{counted(result.stubs, 'header')} of oversized messages {prefix}stored")
    if result.known:
        parts.append(f"{result.known} collected before")
    if result.in_doubt:
        parts.append(f"{result.in_doubt} possibly stored twice after a crash")
    if result.deleted:
        parts.append(f"{result.deleted} {prefix}deleted on the server")
    if result.withheld:
        parts.append(
            f"{result.withheld} not deleted on the server yet because of deletion_limit "
            "(--no-deletion-limit deletes them now)"
        )
    if result.later:
        parts.append(f"{result.later} left for later because of {result.later_for}")
    if result.unverified:
        parts.append(f"{result.unverified} left on the server because the local copy differs")
    return f"{name}: " + ("; ".join(parts) or "no new mail")
