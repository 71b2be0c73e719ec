"""``restante fetch``: download a maildrop into a directory, a Maildir or an mbox."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import closing
from functools import partial
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import sysexits
from ..app import failures
from ..errors import UnsafeArgument
from ..escaping import printable
from ..words import counted, size
from . import common, progress

if TYPE_CHECKING:
    from ..collect.collector import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Download every message and store it durably. Then delete the stored messages "
        "on the server, unless --keep is given. Messages that are already in the directory or "
        "Maildir are not stored again; before they are deleted on the server, they are downloaded "
        "and compared."
    )
    parser.add_argument(
        "url",
        metavar="URL",
        help="the maildrop: pop3s://user@host[:port], or pop3://user@host for STLS on port 110",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="PLACE",
        help="where to store the messages: a directory, maildir:PATH or mbox:PATH",
    )
    parser.add_argument("--keep", action="store_true", help="do not delete messages on the server")
    parser.add_argument("--limit", type=int, metavar="N", help="fetch at most N messages")
    parser.add_argument("--user", default="", help="the user name, if it is not in the URL")
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="read the password from FILE"
    )
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="trust the CA certificates in this PEM file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Return 75 if trying again can help; even then, only stored messages have been deleted."""
    from ..client.remote import Remote, split

    host, _, _, login = split(options.url)
    if login.password:
        raise UnsafeArgument(
            "a password in the URL can be read by every user of this machine; "
            "use --password-file, or RESTANTE_PASSWORD in the environment"
        )
    user = options.user or login.user
    if not user:
        raise UnsafeArgument("no user name; write pop3s://user@host, or add --user")
    # Find mistakes before the user types a password.
    Remote.parse(options.url, user=user, password="?")
    name = f"{user}@{host}"
    outcome = asyncio.run(_fetch(options, name, user, password_of(options, user)))
    _report(options, outcome)
    return sysexits.EX_TEMPFAIL if outcome.refused or outcome.short else sysexits.EX_OK


def password_of(options: argparse.Namespace, user: str) -> str:
    if options.password_file:
        return common.password_from_file(options)
    if password := os.environ.get("RESTANTE_PASSWORD"):
        return password
    if not sys.stdin.isatty():
        raise UnsafeArgument("no password: use --password-file or RESTANTE_PASSWORD")
    return getpass(f"Password for {user}: ")


async def _fetch(options: argparse.Namespace, name: str, user: str, password: str) -> Outcome:
    from ..client.asynchronous import connect
    from ..collect.collector import Account, collect
    from ..collect.destinations.opening import open_destination
    from ..collect.ledger import Ledger
    from ..collect.plan import Policy

    account = Account(
        name,
        partial(connect, options.url, user=user, password=password, ca_file=options.ca_file),
        Policy(keep=None if options.keep else 0.0, limit=options.limit),
    )
    with (
        failures.adding_path(options.to),
        closing(open_destination(options.to)) as destination,
        closing(Ledger(None)) as ledger,
        progress.bars() as bars,
        bars("fetching") as show,
    ):
        return await collect(account, ledger, destination, adopt_present=True, progress=show)


def _report(options: argparse.Namespace, outcome: Outcome) -> None:
    if options.json:
        common.print_json(
            "fetch",
            stored=outcome.stored,
            octets=outcome.octets,
            present=outcome.present + outcome.known,
            deleted=outcome.deleted,
            refused=outcome.refused,
            short=outcome.short,
            notes=outcome.notes,
        )
        return
    for text in outcome.refused:
        common.say(printable(f"refused by the server: {text}"))
    for text in (*outcome.short, *outcome.notes):
        common.say(printable(text))
    present = outcome.present + outcome.known
    stored_before = f"; {present} already stored" if present else ""
    deleted = f"; {outcome.deleted} deleted on the server" if outcome.deleted else ""
    stored = f"{counted(outcome.stored, 'message')}, {size(outcome.octets)}"
    print(f"Stored {stored}{stored_before}{deleted}.")
