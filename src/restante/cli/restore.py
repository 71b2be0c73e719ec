"""``restante restore``: restore a backup."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import sysexits
from ..app.backup import reading, restoring
from ..words import counted, size
from . import common
from .progress import octets_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Restore a backup that `restante backup` has made. The backup is verified completely "
        "before anything is written. Stop the server first; existing files are never overwritten. "
        "If a restore is interrupted, run it again."
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="the backup: a tar file, or a directory, whose newest backup is restored",
    )
    parser.add_argument(
        "--to",
        metavar="DIRECTORY",
        type=Path,
        help="write everything into this empty directory, beside a running server",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    source = reading.source(options.path)
    with octets_bar("verify", is_enabled=not options.json) as progress:
        backup = restoring.verify(source, progress)
    if options.to is not None:
        plan = restoring.plan_beside(options.to.absolute())
    else:
        plan = restoring.plan(backup, options.config)
    restoring.check(backup, plan)
    if options.to is None:
        _show(backup, plan)
        if not common.confirm("Restore?", options):
            return sysexits.EX_OK
    with (
        common.signals_as_interrupts(),
        octets_bar("restore", is_enabled=not options.json) as progress,
    ):
        restoring.restore(backup, plan, progress)
    if options.json:
        common.print_json(
            "restore",
            path=source.name,
            configuration=str(plan.source) if backup.configuration and plan.source else None,
            state=str(plan.state),
            mail=str(plan.mail),
            with_mail=backup.with_mail,
            messages=backup.messages,
            octets=backup.octets,
        )
        return sysexits.EX_OK
    print(f"Restored {counted(backup.messages, 'message')}, {size(backup.octets)}.")
    if not backup.with_mail:
        common.print_text(f"The backup contains no mail; it must be in {plan.mail}.")
    if options.to is None:
        print("Next: restante check, and start the server.")
    return sysexits.EX_OK


def _show(backup: restoring.Backup, plan: restoring.Plan) -> None:
    """Show where the files will be written."""
    rows = [("state", str(plan.state)), ("mail", str(plan.mail) if backup.with_mail else "none")]
    if backup.configuration:
        rows.insert(0, ("configuration", str(plan.source or plan.folder)))
    for name, text in rows:
        common.say(f"  {name:<13}  {text}")
