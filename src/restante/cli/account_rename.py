"""``restante account rename OLD NEW``: rename an account without collecting messages twice.

The steps are: rename the account in the ledger, copy its secrets to the new name, rename it in
the configuration (by renaming one file), and remove the old secrets.  After a crash at any step,
one of the two names works, the ledger is complete, and the same command finishes the work.  If a
collector runs under the old name between two steps, it moves the ledger's rows back to this name,
because it identifies the rows by the mailbox's address.
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
from ..app.job import Job, open_ledger, select_jobs
from ..client.sinks import fsync_directory
from ..config import Account, Configuration
from ..errors import ConfigurationError, UnsafeArgument
from . import account_add, common, prompts

_SECRET_SUFFIXES = ("", ".client", ".to", ".to.client")  # suffixes of the files of typed secrets


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = actions.add_parser(
        "rename",
        help="rename an account without collecting messages twice",
        description="Rename an account in its configuration file and in the ledger, and rename its "
        "secrets. The recorded messages keep their names, so no message is collected twice. If the "
        "command was interrupted, run it again. If the account is defined in a file that `restante "
        "account add` did not write, rename it in that file by hand first; this command then "
        "renames the rest.",
    )
    action.add_argument("old", metavar="OLD", help="the current name of the account")
    action.add_argument("new", metavar="NEW", help="the new name of the account")
    action.set_defaults(run=rename)


def rename(options: argparse.Namespace) -> int:
    config, old, new = common.configuration(options), options.old, options.new
    account_add.file_of(config, new)  # raises if the name is invalid
    if old in config.account and new in config.account:
        raise UnsafeArgument(f"account {new!r} already exists")
    if new not in config.account:
        select_jobs(config, [old], select_all=False)
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(open_ledger(config)))
        for name in (old, new):
            stack.enter_context(ledger.of(name).alone())
        if old in config.account:
            label = _rename_in_ledger(config, ledger, old, new)
            _copy_secrets(config, old, new)
            _rename_in_file(config, old, new, label)
        else:  # the account was renamed by hand, or an earlier run crashed after renaming it
            _rename_in_ledger(config, ledger, old, new)
            _copy_tokens(config, old, new)
        _remove_leftovers(config, old, new)
    if options.json:
        common.print_json("account-rename", old=old, new=new)
    else:
        print(f"Renamed account {old} to {new}.")
    return os.EX_OK


def _rename_in_ledger(config: Configuration, ledger: Any, old: str, new: str) -> str:
    """Rename the account in the ledger and return its label, with which message names begin."""
    from ..collect.accounts import Accounts

    accounts = Accounts(ledger)
    is_done = accounts.label(new) and not accounts.label(old)
    if old in config.account and not is_done:
        # Record the mailbox's address first: it identifies the rows after a crash.
        accounts.enter(Job.of(config, old).mailbox(), ledger.now(time.time()))
    accounts.rename(old, new)
    return accounts.label(new) or old


def _copy_secrets(config: Configuration, old: str, new: str) -> None:
    for suffix in _SECRET_SUFFIXES:
        path = prompts.secret_file(config, old + suffix)
        with suppress(FileNotFoundError, FileExistsError):
            os.link(path, prompts.secret_file(config, new + suffix))
            fsync_directory(path.parent)
    _copy_tokens(config, old, new)


def _copy_tokens(config: Configuration, old: str, new: str) -> None:
    """Encrypt the tokens again for the new name, because the encryption includes the name."""
    if not (config.state / "tokens").is_dir():
        return
    for is_destination in (False, True):
        old_file = tokens.token_file(config, old, is_destination=is_destination)
        with old_file.alone():
            stored = old_file.get()
            new_file = tokens.token_file(config, new, is_destination=is_destination)
            if stored is not None:
                with new_file.alone():
                    if new_file.get() is None:
                        new_file.put(stored)


def _rename_in_file(config: Configuration, old: str, new: str, label: str) -> None:
    from ..collect.oauth.sealed import write_durably

    path = account_add.file_of(config, old)
    if not path.exists():
        raise ConfigurationError(
            f"account {old!r} is not defined in {path}; rename its table by hand in the file that "
            "defines it, and run this command again"
        )
    write_durably(path, _renamed_text(config, path, old, new, label).encode())
    path.rename(account_add.file_of(config, new))
    fsync_directory(path.parent)


def _renamed_text(config: Configuration, path: Path, old: str, new: str, label: str) -> str:
    """Return the text of the account's file with the new name.

    Raises:
        ConfigurationError: the text must be changed by hand.
    """
    before = path.read_text()
    header = rf"(?m)^(\s*\[\s*account\s*\.\s*)\"?{re.escape(old)}\"?(?=\s*[.\]])"
    text = re.sub(header, rf"\g<1>{new}", before)
    for suffix in _SECRET_SUFFIXES:
        source, target = (str(prompts.secret_file(config, name + suffix)) for name in (old, new))
        text = text.replace(configuration.toml(source), configuration.toml(target))
    expected = tomllib.loads(before)
    table = expected["account"].pop(old)
    if "label" not in table and label != new:
        text = re.sub(
            rf"(?m)^(\s*\[\s*account\s*\.\s*{re.escape(new)}\s*\].*)$",
            rf"\g<1>\nlabel = {configuration.toml(label)}",
            text,
        )
        table["label"] = label
    expected["account"][new] = _with_new_paths(config, table, old, new)
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(text) == expected:
            return text
    raise ConfigurationError(
        f"this command cannot edit {path}; rename the account in that file by hand, and run this "
        "command again"
    )


def _with_new_paths(config: Configuration, value: Any, old: str, new: str) -> Any:
    """Return a copy of the table with the new paths of typed secrets."""
    if isinstance(value, dict):
        return {key: _with_new_paths(config, each, old, new) for key, each in value.items()}
    for suffix in _SECRET_SUFFIXES:
        if value == str(prompts.secret_file(config, old + suffix)):
            return str(prompts.secret_file(config, new + suffix))
    return value


def _remove_leftovers(config: Configuration, old: str, new: str) -> None:
    """Remove the secrets, tokens and unfinished files that only the old name used."""
    used = _secret_paths(config.account[new]) if new in config.account else set()
    for suffix in _SECRET_SUFFIXES:
        path = prompts.secret_file(config, old + suffix)
        if str(path) not in used:
            path.unlink(missing_ok=True)
    if (config.state / "tokens").is_dir():
        for is_destination in (False, True):
            tokens.token_file(config, old, is_destination=is_destination).forget()
    for unfinished in config.folder.glob(f".account-{old}.toml.*"):
        unfinished.unlink(missing_ok=True)
    old_file, new_file = account_add.file_of(config, old), account_add.file_of(config, new)
    if old_file.exists() and not new_file.exists() and new in config.account:
        old_file.rename(new_file)
        fsync_directory(new_file.parent)


def _secret_paths(account: Account) -> set[str]:
    """Return the paths of the account's secret files."""
    secrets = (
        *(account.password, account.oauth.client_secret),
        *(account.to_password, account.to_oauth.client_secret),
    )
    return {str(each.value) for each in secrets if each and each.kind == "file"}
