"""``restante account rename OLD NEW``: the same mailbox by another name, and nothing comes twice.

A crash at any step leaves either name in force with all that was taken known, and the same command
finishes it: first there are copies of secrets under the new name, then the ledger, then the
configuration (one rename of a file puts the new name in force), and at the end the old secrets go.
A collector that runs in between under the old name takes the ledger's rows back, because it finds
them by the address of the mailbox.
"""

from __future__ import annotations

import argparse
import os
import re
import time
import tomllib
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from .. import config as configuration
from ..app import tokens
from ..app.job import Job, chosen, open_ledger
from ..client.sinks import fsync_directory
from ..config import Account, Configuration
from ..errors import ConfigurationError, UnsafeArgument
from . import account_add, common, prompts

_TYPED = ("", ".client", ".to", ".to.client")  # secrets that are typed in, see ``adding``


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = actions.add_parser(
        "rename",
        help="give an account another name; what was taken stays known",
        description="Renames the account in its file, in the ledger and for its secrets. Its "
        "messages keep the names that they have, so none comes twice. Repeat it after a crash. An "
        "account in another file is renamed there by hand; this command then moves its tokens.",
    )
    action.add_argument("old", metavar="OLD")
    action.add_argument("new", metavar="NEW")
    action.set_defaults(run=rename)


def rename(options: argparse.Namespace) -> int:
    config, old, new = common.configuration(options), options.old, options.new
    account_add.file_of(config, new)  # whether it can be a name
    if old in config.account and new in config.account:
        raise UnsafeArgument(f"there is an account {new!r} already")
    if new not in config.account:
        chosen(config, [old], everything=False)
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(open_ledger(config)))
        for name in (old, new):
            stack.enter_context(ledger.alone(name))
        if old in config.account:
            label = _rename_in_ledger(config, ledger, old, new)
            _copy_secrets(config, old, new)
            _rename_in_file(config, old, new, label)
        else:  # by hand, or a crash has left the rest of it
            _rename_in_ledger(config, ledger, old, new)
            _copy_tokens(config, old, new)
        _remove_leftovers(config, old, new)
    if options.json:
        common.print_json("account-rename", old=old, new=new)
    else:
        print(f"Renamed account {old} to {new}.")
    return os.EX_OK


def _rename_in_ledger(config: Configuration, ledger: Any, old: str, new: str) -> str:
    """Returns the name that its messages begin with."""
    from ..collect.accounts import Accounts

    accounts = Accounts(ledger)
    is_done = accounts.label(new) and not accounts.label(old)
    if old in config.account and not is_done:
        # With its address: else a crash now would leave rows that nothing recognises.
        accounts.enter(Job.of(config, old).mailbox(), ledger.now(time.time()))
    accounts.rename(old, new)
    return accounts.label(new) or old


def _copy_secrets(config: Configuration, old: str, new: str) -> None:
    for suffix in _TYPED:
        path = prompts.secret_file(config, old + suffix)
        with suppress(FileNotFoundError, FileExistsError):
            os.link(path, prompts.secret_file(config, new + suffix))
            fsync_directory(path.parent)
    _copy_tokens(config, old, new)


def _copy_tokens(config: Configuration, old: str, new: str) -> None:
    """They are sealed for one name."""
    if not (config.state / "tokens").is_dir():
        return
    for is_destination in (False, True):
        before = tokens.token_file(config, old, is_destination=is_destination)
        with before.alone():
            kept = before.get()
            after = tokens.token_file(config, new, is_destination=is_destination)
            if kept is not None:
                with after.alone():
                    if after.get() is None:
                        after.put(kept)


def _rename_in_file(config: Configuration, old: str, new: str, label: str) -> None:
    from ..collect.oauth.sealed import write_durably

    path = account_add.file_of(config, old)
    if not path.exists():
        raise ConfigurationError(
            f"account {old!r} is not in {path}; rename its table in its own file by hand, and run "
            "this again: its messages stay known"
        )
    write_durably(path, _renamed(config, path, old, new, label).encode())
    path.rename(account_add.file_of(config, new))
    fsync_directory(path.parent)


def _renamed(config: Configuration, path: Path, old: str, new: str, label: str) -> str:
    """The text of its file with the new name.

    Raises:
        ConfigurationError: it is written in a way that must be changed by hand.
    """
    before = path.read_text()
    header = rf"(?m)^(\s*\[\s*account\s*\.\s*)\"?{re.escape(old)}\"?(?=\s*[.\]])"
    text = re.sub(header, rf"\g<1>{new}", before)
    for suffix in _TYPED:
        here, there = (str(prompts.secret_file(config, name + suffix)) for name in (old, new))
        text = text.replace(configuration.toml(here), configuration.toml(there))
    expected = tomllib.loads(before)
    table = expected["account"].pop(old)
    if "label" not in table and label != new:
        text = re.sub(
            rf"(?m)^(\s*\[\s*account\s*\.\s*{re.escape(new)}\s*\].*)$",
            rf"\g<1>\nlabel = {configuration.toml(label)}",
            text,
        )
        table["label"] = label
    expected["account"][new] = _with_secrets(config, table, old, new)
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(text) == expected:
            return text
    raise ConfigurationError(
        f"{path} is written in a way that is not understood; rename the account there by hand, and "
        "run this again: its messages stay known"
    )


def _with_secrets(config: Configuration, value: Any, old: str, new: str) -> Any:
    """The same table, with the new places of secrets that were typed in."""
    if isinstance(value, dict):
        return {key: _with_secrets(config, each, old, new) for key, each in value.items()}
    for suffix in _TYPED:
        if value == str(prompts.secret_file(config, old + suffix)):
            return str(prompts.secret_file(config, new + suffix))
    return value


def _remove_leftovers(config: Configuration, old: str, new: str) -> None:
    """What only the old name needed."""
    used = _paths(config.account[new]) if new in config.account else set()
    for suffix in _TYPED:
        path = prompts.secret_file(config, old + suffix)
        if str(path) not in used:
            path.unlink(missing_ok=True)
    if (config.state / "tokens").is_dir():
        for is_destination in (False, True):
            tokens.token_file(config, old, is_destination=is_destination).forget()
    for unfinished in config.folder.glob(f".account-{old}.toml.*"):
        unfinished.unlink(missing_ok=True)
    moved, named = account_add.file_of(config, old), account_add.file_of(config, new)
    if moved.exists() and not named.exists() and new in config.account:
        moved.rename(named)
        fsync_directory(named.parent)


def _paths(account: Account) -> set[str]:
    """Of its secrets."""
    secrets = (
        *(account.password, account.oauth.client_secret),
        *(account.to_password, account.to_oauth.client_secret),
    )
    return {str(each.value) for each in secrets if each and each.kind == "file"}
