"""``restante account``: maildrops elsewhere that ``restante collect`` empties."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from .. import config
from ..config import Account, Configuration, Secret
from ..errors import ConfigurationError, LoginFailed, UnsafeArgument
from . import collect, common, oauth
from .telling import counted

if TYPE_CHECKING:
    from ..collect.ledger import Ledger


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = verbs.add_parser(
        "account", help="accounts elsewhere, for collect: add, list, show, test, adopt, rm"
    )
    actions = noun.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser(
        "add",
        help="write an account into the configuration and try it",
        description="Writes conf.d/account-NAME.toml beside the configuration, for nobody else to "
        "read. Without one of the --password options the password is asked for and stands there.",
    )
    action.add_argument("name", metavar="NAME", help="a word of yours, such as isp")
    action.add_argument("url", metavar="URL", help="pop3s://user@host, or pop3:// for STLS")
    action.add_argument("--to", required=True, metavar="PLACE", help="such as maildrop:ann")
    action.add_argument("--keep", default="all", help="all, none, 14d, until-verified or -deleted")
    action.add_argument("--every", metavar="TIME", help="the pause between sessions with --watch")
    action.add_argument("--ca-file", type=Path, metavar="FILE", help="trust these certificates")
    action.add_argument("--recipient", metavar="ADDRESS", help="for lmtp: and smtp:")
    secret = action.add_mutually_exclusive_group()
    secret.add_argument("--password-file", metavar="FILE", help="its first line is the password")
    secret.add_argument("--password-env", metavar="NAME", help="an environment variable")
    secret.add_argument(
        "--password-command", metavar="COMMAND", nargs="+", help="prints it; must come last"
    )
    action.add_argument("--no-test", action="store_true", help="do not log in now")
    action.set_defaults(run=add)
    actions.add_parser("list", help="all accounts").set_defaults(run=list_)
    action = actions.add_parser(
        "auth",
        help="sign in by OAuth 2, for account.NAME.oauth",
        description="Asks the provider, shows what a person must do in a browser, and stores the "
        "tokens, sealed, in the state directory.",
    )
    action.add_argument("name", metavar="NAME")
    action.add_argument(
        "--flow", choices=("browser", "paste", "device", "client"), help="instead of oauth.flow"
    )
    action.add_argument("--to", action="store_true", help="for where mail goes, to_oauth")
    action.set_defaults(run=auth)
    for name, run, text in (
        ("show", show, "one account, and when it last worked"),
        ("test", test, "log in, count, log out; changes nothing"),
        ("adopt", adopt, "mark all that is on the server now as taken, without fetching it"),
        ("rm", remove, "forget an account, and what was taken from it"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME")
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask")
        action.set_defaults(run=run)


def add(options: argparse.Namespace) -> int:
    found = common.configuration(options)
    path = file_of(found, options.name)
    if options.name in found.account:
        raise ConfigurationError(f"there is an account {options.name!r} already")
    parts = urlsplit(options.url)
    if parts.password is not None:
        raise UnsafeArgument("a password in the URL can be read by every user of this machine")
    user = unquote(parts.username or "")
    if not user or not parts.hostname:
        raise UnsafeArgument("who logs in where? write pop3s://user@host")
    port = f":{parts.port}" if parts.port else ""
    values = {
        "url": f"{parts.scheme}://{parts.hostname}{port}",
        "user": user,
        "password": _password(options, user),
        "to": options.to,
        "keep": options.keep,
        "every": options.every,
        "ca_file": str(options.ca_file.resolve()) if options.ca_file else None,
        "recipient": options.recipient,
    }
    write(path, options.name, values)
    try:
        found = common.configuration(options)
        account = found.account[options.name]
        collect.open_destination(found, options.name, account).close()
        if not options.no_test:
            _try(found, options.name, account, options)
    except BaseException:
        path.unlink()  # an account that does not work is not left behind
        raise
    common.say(f"written: {path}\nnext: restante collect {options.name} --dry-run")
    return os.EX_OK


def write(path: Path, name: str, values: Mapping[str, Any]) -> None:
    """A new file that nobody else can read, of what is not empty."""
    lines = [f"{key} = {config.toml(value)}" for key, value in values.items() if value]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join([f"[account.{name}]", *lines, ""]))


def file_of(found: Configuration, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UnsafeArgument("an account's name has letters, digits, - and _")
    return found.folder / f"account-{name}.toml"


def _password(options: argparse.Namespace, user: str) -> str | dict[str, str | list[str]]:
    if options.password_file:
        return {"file": str(Path(options.password_file).resolve())}
    if options.password_env:
        return {"env": options.password_env}
    if options.password_command:
        return {"command": options.password_command}
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    return getpass(f"Password of {user}: ")


def list_(options: argparse.Namespace) -> int:
    found = common.configuration(options)
    if options.json:
        rows = [_row(found, name, account) for name, account in found.account.items()]
        common.print_json("account-list", accounts=rows)
        return os.EX_OK
    for name, account in found.account.items():
        print(f"{name}: {account.user} at {account.url} to {account.to}, keeps {account.keep}")
        if account.oauth.provider:
            print(f"  {account.oauth.provider}: {oauth.state(found, name, account)}")
    if not found.account:
        common.say("none yet; next: restante account add NAME pop3s://user@host --to maildir:PATH")
    return os.EX_OK


def show(options: argparse.Namespace) -> int:
    from ..collect.health import Health

    found, account = _one(options)
    with closing(collect.open_ledger(found)) as ledger:
        row = _row(found, options.name, account)
        row |= {"on_server": ledger.expected(options.name)}
        row |= {"last_success": ledger.last_success(options.name)}
        state = Health(ledger).state(options.name)
        row |= {"failures": state.failures, "failing_since": state.failing_since}
    if options.json:
        common.print_json("account-show", **row)
        return os.EX_OK
    at = row["last_success"]
    when = _when(float(str(at))) if at else "never"
    print(f"{options.name}: {account.user} at {account.url}")
    print(f"  to        {account.to}\n  keeps     {account.keep}")
    if account.oauth.provider:
        print(f"  oauth     {account.oauth.provider}: {row['oauth']}")
    else:
        print(f"  password  {_origin(account.password)}")
    print(f"  taken and not deleted there: {row['on_server']}\n  last success: {when}")
    if state.failing_since is not None:
        print(f"  {counted(state.failures, 'session')} failed since {_when(state.failing_since)}")
    return os.EX_OK


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _row(found: Configuration, name: str, account: Account) -> dict[str, object]:
    row: dict[str, object] = {}
    if account.oauth.provider:
        row = {"oauth": oauth.state(found, name, account)}
    return row | {
        "name": name,
        "url": account.url,
        "user": account.user,
        "to": account.to,
        "keep": account.keep,
    }


def _origin(secret: Secret) -> str:
    if not secret:
        return "none"
    if secret.kind == "text":
        return "in the file"
    value = secret.value if isinstance(secret.value, str) else " ".join(secret.value)
    return f"{secret.kind} {value}"


def auth(options: argparse.Namespace) -> int:
    found, account = _one(options)
    name = options.name
    if options.to:
        name, account = oauth.at_destination(name, account)
    if not account.oauth.provider:
        which = "to_oauth" if options.to else "oauth"
        raise ConfigurationError(f"account.{options.name}.{which}.provider: is not set")
    tokens = oauth.agree(found, name, account, options.flow or "")
    if options.json:
        common.print_json("account-auth", name=options.name, user=tokens.user)
    else:
        print(f"{options.name}: {oauth.state(found, name, account)}")
    return os.EX_OK


def test(options: argparse.Namespace) -> int:
    found, account = _one(options)
    return _try(found, options.name, account, options)


def _try(found: Configuration, name: str, account: Account, options: argparse.Namespace) -> int:
    with closing(collect.open_ledger(found)) as ledger:
        count, octets = asyncio.run(_look(found, name, account, ledger))
    if options.json:
        common.print_json("account-test", name=name, messages=count, octets=octets)
    else:
        print(f"{name}: {counted(count, 'message')} ({counted(octets, 'octet')})")
    return os.EX_OK


async def _look(
    found: Configuration, name: str, account: Account, ledger: Ledger
) -> tuple[int, int]:
    """Its login counts as any other; one that works ends the wait after refusals."""
    ledger.tried(name, time.time())
    try:
        async with collect.connected(found, name, account) as client:
            ledger.began(name, time.time(), client.capabilities.login_delay or 0)
            return await client.stat()
    except LoginFailed as error:
        if not error.retry:
            ledger.refused(name, time.time())
        raise


def adopt(options: argparse.Namespace) -> int:
    found, account = _one(options)
    with closing(collect.open_ledger(found)) as ledger, ledger.alone(options.name):
        listing = asyncio.run(_listing(found, options.name, account))
        ledger.adopt(options.name, listing, time.time())
    if options.json:
        common.print_json("account-adopt", name=options.name, messages=len(listing))
    else:
        print(f"{options.name}: {counted(len(listing), 'message')} marked as taken")
    return os.EX_OK


async def _listing(found: Configuration, name: str, account: Account) -> list[tuple[str, int]]:
    from ..collect.plan import unique_ids

    async with collect.connected(found, name, account) as client:
        messages = [message async for message in client.messages()]
    ids = unique_ids(messages)
    return [(ids[each.number], each.size) for each in messages if each.number in ids]


def remove(options: argparse.Namespace) -> int:
    found, account = _one(options)
    path = file_of(found, options.name)
    if not path.exists():
        raise ConfigurationError(
            f"account {options.name!r} does not stand in {path}; take it out of its file by hand"
        )
    if not common.confirm(
        f"Forget {options.name}, and which messages were taken from it?", options
    ):
        return os.EX_USAGE
    path.unlink()
    if account.oauth.provider:
        oauth.tokenfile(found, options.name).forget()
    if account.to_oauth.provider:
        oauth.tokenfile(found, f"{options.name}.to").forget()
    with closing(collect.open_ledger(found)) as ledger:
        count = ledger.forget(options.name)
    common.say(f"{options.name} is forgotten, with {count} messages that were taken")
    return os.EX_OK


def _one(options: argparse.Namespace) -> tuple[Configuration, Account]:
    found = common.configuration(options)
    return found, collect.chosen(found, [options.name], everything=False)[options.name]
