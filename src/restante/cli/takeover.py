"""``restante import getmail|fetchmail|mpop``: accounts of other collectors, and what they saw."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Configuration
from ..errors import ConfigurationError, UnsafeArgument
from ..log import printable
from . import adding, collect, common

if TYPE_CHECKING:
    from ..collect.foreign import Foreign
    from ..collect.ledger import Ledger

_KINDS = {
    "getmail": "its directory, or one getmailrc",
    "fetchmail": "its .fetchmailrc",
    "mpop": "its .mpoprc",
}


def add_parsers(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for kind, path in _KINDS.items():
        parser = kinds.add_parser(
            kind,
            help=f"accounts of {kind}, and what it has seen",
            description="Writes each account into the configuration, and what was downloaded "
            "already into the ledger, so that the first restante collect downloads none of it "
            "again. Such mail is never deleted on its server by us. Nothing is changed where it "
            "comes from; do not let both collect.",
        )
        parser.add_argument("path", metavar="PATH", type=Path, help=path)
        parser.add_argument("--to", metavar="PLACE", help="where mail goes, instead of there")
        parser.add_argument("--seen", metavar="FILE", type=Path, help="its list of seen mail")
        parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
        parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """All accounts, or none at all."""
    found = common.configuration(options)
    accounts = _reader(options.kind)(options.path, options.seen)
    for each in accounts:
        each.name = re.sub("[^A-Za-z0-9_-]", "-", each.name).strip("-") or options.kind
        each.to = options.to or each.to
        if not each.to:
            raise UnsafeArgument(f"{each.name}: {each.notes[-1]}; next: --to PLACE")
        if not each.host or not each.user:
            raise ConfigurationError(f"{each.name}: names no server or no user")
        if each.name in found.account:
            raise ConfigurationError(f"there is an account {each.name!r} already")
    if not options.dry_run:
        with closing(collect.open_ledger(found)) as ledger:
            for each in accounts:
                _take_over(found, ledger, each)
    for each in accounts:
        _tell(options, each)
    return os.EX_OK


def _reader(kind: str) -> Callable[[Path, Path | None], list[Foreign]]:
    from ..collect.foreign.fetchmail import fetchmail
    from ..collect.foreign.getmail import getmail
    from ..collect.foreign.mpop import mpop

    return {"fetchmail": fetchmail, "getmail": getmail, "mpop": mpop}[kind]


def _take_over(found: Configuration, ledger: Ledger, each: Foreign) -> None:
    """What was seen first: an account that knows nothing would download everything."""
    from ..collect.plan import UNKNOWN_SIZE

    ledger.adopt(each.name, [(key, UNKNOWN_SIZE) for key in each.seen], time.time())
    password: object = each.password
    if each.password_command:
        password = {"command": list(each.password_command)}
    values = {
        "url": each.url,
        "user": each.user,
        "password": password,
        "ca_file": each.ca_file,
        "to": each.to,
        "recipient": each.recipient,
        "keep": each.keep,
        "largest": each.largest,
    }
    adding.write(adding.file_of(found, each.name), each.name, values)


def _tell(options: argparse.Namespace, each: Foreign) -> None:
    if options.json:
        common.print_json(
            "import",
            account=each.name,
            url=each.url,
            user=each.user,
            to=each.to,
            keep=each.keep,
            seen=len(each.seen),
            notes=each.notes,
        )
        return
    if not each.seen:
        each.notes.append(
            f"no seen mail is listed in {each.seen_file}: all of it will be fetched; "
            f"restante account adopt {each.name} marks what is there as taken"
        )
    for note in each.notes:
        common.say(printable(f"{each.name}: {note}"))
    would = "would be" if options.dry_run else "is"
    print(
        printable(
            f"{each.name}: {each.user} at {each.url} to {each.to}, keeps {each.keep}; "
            f"{len(each.seen)} seen messages; it {would} taken over"
        )
    )
