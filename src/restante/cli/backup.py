"""``restante backup``: back up configuration, users, state and mail, or verify a backup."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import sysexits
from ..app.backup import making, reading, restoring
from ..errors import UnsafeArgument
from ..words import counted, size
from . import common
from .progress import octets_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Back up configuration, users, state and mail, while the server runs. PATH is a tar file, "
        "compressed if its name ends with .gz, or a directory that exists or ends with a slash. "
        "A directory gets a subdirectory for each backup; unchanged messages take no space again."
    )
    parser.add_argument("path", metavar="PATH", help="the file or directory for the backup")
    parser.add_argument(
        "--without-mail", action="store_true", help="back up everything except the maildrops"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="make no backup; read the backup at PATH completely and check it",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    return _verify(options) if options.verify else _back_up(options)


def _back_up(options: argparse.Namespace) -> int:
    if options.path == "-":
        raise UnsafeArgument("a backup cannot be written to standard output; name a file")
    path = Path(options.path)
    is_tree = options.path.endswith("/") or path.is_dir()
    path = path.absolute()
    config = common.configuration(options)
    configuration = making.configuration_files(config)
    with (
        common.signals_as_interrupts(),
        octets_bar("backup", is_enabled=not options.json) as progress,
    ):
        report = making.make(
            config,
            configuration,
            path,
            is_tree=is_tree,
            with_mail=not options.without_mail,
            replace=options.overwrite,
            progress=progress,
        )
    if options.json:
        common.print_json(
            "backup",
            path=str(report.path),
            maildrops=report.maildrops,
            messages=report.messages,
            octets=report.octets,
            reused=report.reused,
            destroyed=report.destroyed,
            not_included=report.not_included,
        )
        return sysexits.EX_OK
    common.print_text(f"Wrote {report.path}")
    if options.without_mail:
        print("  without mail")
    else:
        mail = f"{counted(report.messages, 'message')}, {size(report.octets)}"
        print(f"  {counted(report.maildrops, 'maildrop')} with {mail}")
    if report.reused:
        print(f"  {counted(report.reused, 'message')} shared with the previous backup")
    if report.destroyed:
        print(f"  without {counted(report.destroyed, 'message')} destroyed during the backup")
    for each in report.not_included:
        common.print_text(f"  not included: {each}")
    return sysexits.EX_OK


def _verify(options: argparse.Namespace) -> int:
    source = reading.source(Path(options.path))
    with octets_bar("verify", is_enabled=not options.json) as progress:
        found = restoring.verify(source, progress)
    if options.json:
        common.print_json(
            "backup-verify",
            path=source.name,
            made_at=found.header.get("made_at"),
            version=found.header.get("version"),
            with_mail=found.with_mail,
            messages=found.messages,
            octets=found.octets,
        )
    else:
        common.print_text(f"{source.name} is complete and undamaged.")
        print(f"  {counted(found.messages, 'message')}, {size(found.octets)}")
    return sysexits.EX_OK
