"""``restante import getmail|fetchmail|mpop``: import accounts and lists of seen messages."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..app import failures
from ..app.job import open_ledger
from ..config import Configuration, load
from ..errors import ConfigurationError, RestanteError
from ..escaping import printable
from ..words import counted
from . import account_add, account_add_destination, common

if TYPE_CHECKING:
    from ..collect.foreign import ForeignAccount
    from ..collect.ledger import Ledger

_PATH_HELP = {
    "getmail": "getmail's directory, or a single getmailrc file",
    "fetchmail": "the file .fetchmailrc",
    "mpop": "the file .mpoprc",
}


def add_parsers(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for kind, path in _PATH_HELP.items():
        parser = kinds.add_parser(
            kind,
            help=f"import the accounts of {kind} and its lists of seen messages",
            description="Add each account to the configuration, and record in the ledger which "
            "messages the other collector has already downloaded, so that restante collect does "
            "not download them again. Those messages are never deleted from their server. The "
            "files of the other collector do not change. Do not run both collectors. If an "
            "account cannot be imported, the reason is printed, the other accounts are imported, "
            "and the exit code is 78.",
        )
        parser.add_argument("path", metavar="PATH", type=Path, help=path)
        parser.add_argument(
            "--to",
            metavar="PLACE",
            help="deliver to PLACE instead of the destination in the imported file",
        )
        parser.add_argument(
            "--seen", metavar="FILE", type=Path, help=f"{kind}'s list of seen messages"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="change nothing, only print what would be done"
        )
        parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Import the accounts and return 78 if any of them cannot be imported."""
    config = common.configuration(options)
    accounts = _reader(options.kind)(options.path, options.seen)
    _assign_names(options.kind, accounts)
    with ExitStack() as stack:
        ledger = None
        if not options.dry_run:
            ledger = stack.enter_context(closing(open_ledger(config)))
        for each in accounts:
            each.to = account_add_destination.absolute(options.to or each.to)
            each.refused = each.refused or _refusal(options, config, each)
            already_exists = not each.refused and each.name in config.account
            if ledger is not None and not each.refused and not already_exists:
                _import(config, ledger, each)
            _report(options, each, already_exists=already_exists)
    return os.EX_CONFIG if any(each.refused for each in accounts) else os.EX_OK


def _reader(kind: str) -> Callable[[Path, Path | None], list[ForeignAccount]]:
    from ..collect.foreign.fetchmail import fetchmail
    from ..collect.foreign.getmail import getmail
    from ..collect.foreign.mpop import mpop

    return {"fetchmail": fetchmail, "getmail": getmail, "mpop": mpop}[kind]


def _assign_names(kind: str, accounts: list[ForeignAccount]) -> None:
    """Give each account a unique name that is valid in the configuration."""
    used = set[str]()
    for each in accounts:
        base = re.sub("[^A-Za-z0-9_-]", "-", each.name).strip("-_")[:60] or kind
        names = (f"{base}-{number}" if number > 1 else base for number in count(1))
        each.name = next(name for name in names if name not in used)
        used.add(each.name)


def _refusal(options: argparse.Namespace, config: Configuration, account: ForeignAccount) -> str:
    """Return why the account cannot be imported; empty if it can or already has been."""
    if not account.host or not account.user:
        return "the server or the user name is missing"
    if not account.to:
        return f"{account.no_destination}; add --to PLACE"
    existing = config.account.get(account.name)
    if existing is not None:
        is_same = (existing.url, existing.user) == (account.url, account.user)
        return "" if is_same else "another account has this name"
    try:
        values = {f"account.{account.name}.{key}": value for key, value in _values(account).items()}
        load(options.config, overrides=values)
    except ConfigurationError as error:
        return str(error).removeprefix("command line: ")
    return ""


def _values(account: ForeignAccount) -> dict[str, Any]:
    """Return the section of the configuration, without empty values."""
    values = {
        "url": account.url,
        "user": account.user,
        "password": account.password,
        "ca_file": account.ca_file,
        "to": account.to,
        "recipient": account.recipient,
        "keep": account.keep,
        "largest": account.largest,
        "limit": account.limit,
    }
    if account.password_command:
        values["password"] = {"command": list(account.password_command)}
    return {key: value for key, value in values.items() if value}


def _import(config: Configuration, ledger: Ledger, account: ForeignAccount) -> None:
    """Record the seen messages first; otherwise the next run would download all of them again."""
    from ..collect.plan import UNKNOWN_SIZE

    try:
        ledger.of(account.name).adopt([(key, UNKNOWN_SIZE) for key in account.seen], time.time())
        account_add.write(account_add.file_of(config, account.name), account.name, _values(account))
    except (RestanteError, OSError) as error:
        account.refused = failures.describe(error)


def _report(options: argparse.Namespace, account: ForeignAccount, *, already_exists: bool) -> None:
    if options.json:
        common.print_json(
            "import",
            account=account.name,
            url=account.url,
            user=account.user,
            to=account.to,
            keep=account.keep,
            seen=len(account.seen),
            notes=account.notes,
            refused=account.refused or None,
            was_there=already_exists,
        )
        return
    if account.refused:
        login = f" ({account.user} at {account.host})" if account.host else ""
        common.say(printable(f"{account.name}{login}: not imported: {account.refused}"))
        return
    name = f"{account.name}: {account.user} at {account.url}"
    if already_exists:
        print(printable(f"{name}: already imported, not changed"))
        return
    if not account.seen:
        account.notes.append(
            f"{account.seen_file} lists no seen messages, so all will be downloaded. To mark the "
            f"messages on the server as collected: restante account adopt {account.name}"
        )
    for note in account.notes:
        common.say(printable(f"{account.name}: {note}"))
    seen = counted(len(account.seen), "seen message")
    result = "would be imported" if options.dry_run else "imported"
    print(printable(f"{name} to {account.to}, keep {account.keep}, {seen}: {result}"))
