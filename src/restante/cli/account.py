"""``restante account``: maildrops elsewhere that ``restante collect`` empties."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from ..app.job import Job, all_jobs, chosen, open_ledger
from ..app.words import counted
from ..config import Secret
from ..errors import ConfigurationError
from ..log import printable
from . import account_add, account_rename, common, consent


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = verbs.add_parser(
        "account",
        help="accounts elsewhere, for collect: add, list, show, test, adopt, log, rename, rm",
    )
    actions = noun.add_subparsers(dest="action", metavar="ACTION", required=True)
    account_add.add_parser(actions)
    account_rename.add_parser(actions)
    actions.add_parser("list", help="all accounts").set_defaults(run=list_)
    action = actions.add_parser(
        "auth",
        help="sign in by OAuth 2, for account.NAME.oauth",
        description="Asks the provider, shows what a person must do in a browser, and stores the "
        "tokens, sealed, in the state directory.",
    )
    action.add_argument("name", metavar="NAME")
    consent.add_flows(action)
    action.add_argument("--to", action="store_true", help="for where mail goes, to_oauth")
    action.set_defaults(run=auth)
    for name, run, text in (
        ("show", show, "one account, and when it last worked"),
        ("test", test, "log in, count, log out; changes nothing"),
        ("adopt", adopt, "mark all that is on the server now as taken, without fetching it"),
        ("log", log, "what was deleted on its server: when, why, and by which evidence"),
        ("rm", remove, "forget an account, and what was taken from it"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME")
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask")
        if name == "adopt":
            action.add_argument(
                "--like",
                metavar="MAILDIR",
                type=Path,
                help="only what this Maildir, or a folder of it, has too, as headers tell",
            )
        action.set_defaults(run=run)


def list_(options: argparse.Namespace) -> int:
    found = common.configuration(options)
    if options.json:
        rows = [_row(job) for job in all_jobs(found)]
        common.print_json("account-list", accounts=rows)
        return os.EX_OK
    for job in all_jobs(found):
        account = job.options
        print(f"{job.name}: {account.user} at {account.url} to {account.to}, keeps {account.keep}")
        if account.oauth.provider:
            print(f"  {account.oauth.provider}: {consent.state(job.grant)}")
    if not found.account:
        common.say("none yet; next: restante account add ann@example.org --to maildir:Mail")
    return os.EX_OK


def show(options: argparse.Namespace) -> int:
    from ..collect.health import Health

    job = _one(options)
    account = job.options
    with closing(open_ledger(job.config)) as ledger:
        row = _row(job)
        row |= {"on_server": ledger.on_server(options.name)}
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
    if account.to_oauth.provider:
        there = consent.state(job.destination_grant)
        print(f"  there     {account.to_oauth.provider}: {there}")
    elif account.to_password:
        print(f"  there     password {_origin(account.to_password)}")
    if account.poll_on_login:
        print(f"  polled    when the user logs in, for {account.poll_on_login:g} s at most")
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


def _row(job: Job) -> dict[str, object]:
    row: dict[str, object] = {}
    account = job.options
    if account.oauth.provider:
        row = {"oauth": consent.state(job.grant)}
    return row | {
        "name": job.name,
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
    job = _one(options)
    grant = job.destination_grant if options.to else job.grant
    if not grant.options.provider:
        raise ConfigurationError(f"{grant.key}.provider: is not set")
    agreed = consent.agree(grant, options.flow or "")
    if options.json:
        common.print_json("account-auth", name=options.name, user=agreed.user)
    else:
        print(f"{options.name}: {consent.state(grant)}")
    return os.EX_OK


def test(options: argparse.Namespace) -> int:
    job = _one(options)
    count, octets = account_add.try_login(job)
    account_add.try_destination(job)
    if options.json:
        common.print_json("account-test", name=options.name, messages=count, octets=octets)
    else:
        print(account_add.told_login(options.name, count, octets))
    return os.EX_OK


def adopt(options: argparse.Namespace) -> int:
    from ..collect.accounts import Accounts
    from ..collect.fingerprint import in_maildir

    job = _one(options)
    here = in_maildir(options.like) if options.like else None
    with closing(open_ledger(job.config)) as ledger, ledger.alone(options.name):
        accounts = Accounts(ledger)
        accounts.enter(job.mailbox(), ledger.now(time.time()))
        listing, others = asyncio.run(_listing(job, here))
        ledger.adopt(options.name, listing, time.time())
    if options.json:
        rows = {"messages": len(listing), "others": others}
        common.print_json("account-adopt", name=options.name, **rows)
    else:
        rest = f", {counted(others, 'other')} not in {options.like}" if others else ""
        print(f"{options.name}: {counted(len(listing), 'message')} marked as taken{rest}")
    return os.EX_OK


async def _listing(job: Job, here: Counter[bytes] | None) -> tuple[list[tuple[str, int]], int]:
    """What is there, by key and size, and how many others are not ``here``."""
    from ..collect.fingerprint import header_of, likeness
    from ..collect.plan import unique_ids

    async with job.connect() as client:
        messages = await client.list()
        ids = unique_ids(messages)
        known = [message for message in messages if message.number in ids]
        if here is not None:
            headers = [
                (each, likeness(header_of(await body.read())))
                async for each, body in client.raw_headers(known)
            ]
            if "TOP" in client.quirks.hidden:  # they came by RETR, and QUIT may remove these
                client.abort()
            known = []
            for message, mark in headers:
                if mark and here[mark]:
                    here[mark] -= 1  # of two that are alike one may be new
                    known.append(message)
    return [(ids[each.number], each.size) for each in known], len(ids) - len(known)


def log(options: argparse.Namespace) -> int:
    with closing(open_ledger(_one(options).config)) as ledger:
        removals = ledger.removals(options.name)
    if options.json:
        rows = [each._asdict() for each in removals]
        common.print_json("account-log", name=options.name, removals=rows)
        return os.EX_OK
    for each in removals:
        answer = each.answer or "no answer yet"
        text = f"{_when(each.at)} {each.key}: {each.why}; {each.evidence}; {answer}"
        print(printable(text))
    if not removals:
        common.say(f"{options.name}: nothing was deleted on its server")
    return os.EX_OK


def remove(options: argparse.Namespace) -> int:
    found = _one(options).config
    path = account_add.file_of(found, options.name)
    if not path.exists():
        raise ConfigurationError(
            f"account {options.name!r} does not stand in {path}; take it out of its file by hand"
        )
    if not common.confirm(
        f"Forget {options.name}, and which messages were taken from it?", options
    ):
        return os.EX_OK
    account_add.take_back(found, options.name)
    with closing(open_ledger(found)) as ledger:
        count = ledger.forget(options.name)
    if options.json:
        common.print_json("account-rm", name=options.name, forgotten=count)
    else:
        record = f"its record of {counted(count, 'collected message')}"
        common.say(f"Removed account {options.name} and {record}.")
    return os.EX_OK


def _one(options: argparse.Namespace) -> Job:
    (job,) = chosen(common.configuration(options), [options.name], everything=False)
    return job
