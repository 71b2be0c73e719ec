"""``restante account``: manage accounts on other servers for ``restante collect``."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from ..app.job import Job, all_jobs, open_ledger, select_jobs
from ..config import Secret
from ..errors import ConfigurationError
from ..words import counted
from . import account_add, account_rename, common, consent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Manage accounts on other servers, from which `restante collect` collects mail."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    account_add.add_parser(actions)
    account_rename.add_parser(actions)
    actions.add_parser("list", help="list accounts").set_defaults(run=list_)
    action = actions.add_parser(
        "auth",
        help="sign in to a provider with OAuth 2",
        description="Sign in to the provider of an account in a browser. The tokens are stored "
        "encrypted in the state directory.",
    )
    action.add_argument("name", metavar="NAME")
    consent.add_flows(action)
    action.add_argument(
        "--to",
        action="store_true",
        help="sign in to the account's destination (section to_oauth) instead of its POP3 server",
    )
    action.set_defaults(run=auth)
    for name, run, text in (
        ("show", show, "show an account's settings and its last successful session"),
        ("test", test, "log in and count the messages, without changing anything"),
        ("adopt", adopt, "mark the messages on the server as collected, without downloading them"),
        ("log", log, "show what was deleted on the server, when, why, and on what evidence"),
        ("rm", remove, "remove an account and its record of collected messages"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME")
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        if name == "adopt":
            action.add_argument(
                "--like",
                metavar="MAILDIR",
                type=Path,
                help="mark only messages with the same headers as a message in this Maildir or in "
                "one of its folders",
            )
        action.set_defaults(run=run)


def list_(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    if options.json:
        rows = [_as_json(job) for job in all_jobs(config)]
        common.print_json("account-list", accounts=rows)
        return os.EX_OK
    if not config.account:
        common.say(
            "No accounts yet. Add one: restante account add ann@example.org --to maildir:Mail"
        )
        return os.EX_OK
    common.print_table(
        "account user server to keep login",
        [
            (
                job.name,
                job.options.user,
                urlsplit(job.options.url).hostname,
                job.options.to,
                job.options.keep,
                consent.state(job.grant) if job.options.oauth.provider else "password",
            )
            for job in all_jobs(config)
        ],
    )
    return os.EX_OK


def show(options: argparse.Namespace) -> int:
    from ..collect.health import Health

    job = _selected_job(options)
    account = job.options
    with closing(open_ledger(job.config)) as ledger:
        row = _as_json(job)
        account_ledger = ledger.of(options.name)
        row |= {"on_server": account_ledger.on_server()}
        row |= {"last_success": account_ledger.last_success()}
        state = Health(account_ledger).state()
        row |= {"failures": state.failures, "failing_since": state.failing_since}
    if options.json:
        common.print_json("account-show", **row)
        return os.EX_OK
    last_success = _minute(float(str(row["last_success"]))) if row["last_success"] else "never"
    print(options.name)
    rows = [("user", account.user), ("server", account.url)]
    if account.oauth.provider:
        rows.append(("oauth", f"{account.oauth.provider}: {row['oauth']}"))
    else:
        rows.append(("password", _secret_source(account.password)))
    rows += [("to", account.to), ("keep", account.keep)]
    if account.to_oauth.provider:
        destination_state = consent.state(job.destination_grant)
        rows.append(("to_oauth", f"{account.to_oauth.provider}: {destination_state}"))
    elif account.to_password:
        rows.append(("to_password", _secret_source(account.to_password)))
    if account.poll_on_login:
        rows.append(("poll_on_login", f"the login waits at most {account.poll_on_login:g} s"))
    rows += [("left on server", str(row["on_server"])), ("last success", last_success)]
    if state.failing_since is not None:
        since = _minute(state.failing_since)
        rows.append(("failing", f"{counted(state.failures, 'session')} since {since}"))
    common.print_fields(rows)
    return os.EX_OK


def _minute(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _as_json(job: Job) -> dict[str, object]:
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


def _secret_source(secret: Secret) -> str:
    if not secret:
        return "not set"
    if secret.kind == "text":
        return "in the configuration"
    value = secret.value if isinstance(secret.value, str) else " ".join(secret.value)
    return f"{secret.kind} {value}"


def auth(options: argparse.Namespace) -> int:
    job = _selected_job(options)
    grant = job.destination_grant if options.to else job.grant
    if not grant.options.provider:
        raise ConfigurationError(f"{grant.key}.provider is not set")
    tokens = consent.sign_in(grant, options.flow or "")
    if options.json:
        common.print_json("account-auth", name=options.name, user=tokens.user)
    else:
        print(f"{options.name}: {consent.state(grant)}")
    return os.EX_OK


def test(options: argparse.Namespace) -> int:
    job = _selected_job(options)
    count, octets = account_add.try_login(job)
    account_add.try_destination(job)
    if options.json:
        common.print_json("account-test", name=options.name, messages=count, octets=octets)
    else:
        print(account_add.describe_login(options.name, count, octets))
    return os.EX_OK


def adopt(options: argparse.Namespace) -> int:
    from ..collect.accounts import Accounts
    from ..collect.fingerprint import in_maildir

    job = _selected_job(options)
    local = in_maildir(options.like) if options.like else None
    with closing(open_ledger(job.config)) as ledger, ledger.of(options.name).alone():
        accounts = Accounts(ledger)
        accounts.enter(job.mailbox(), ledger.now(time.time()))
        listing, others = asyncio.run(_listing(job, local))
        ledger.of(options.name).adopt(listing, time.time())
    if options.json:
        rows = {"messages": len(listing), "others": others}
        common.print_json("account-adopt", name=options.name, **rows)
    else:
        marked = f"Marked {counted(len(listing), 'message')} as collected"
        rest = f"; {counted(others, 'other')} not found in {options.like}" if others else ""
        print(f"{options.name}: {marked}{rest}.")
    return os.EX_OK


async def _listing(job: Job, local: Counter[bytes] | None) -> tuple[list[tuple[str, int]], int]:
    """Return key and size of each message that is also in ``local``, and the number of others.

    ``local`` has the number of local messages for each digest of a header; if it is None, all
    messages on the server are returned.
    """
    from ..collect.fingerprint import header_digest, header_of
    from ..collect.plan import unique_ids

    async with job.connect() as client:
        messages = await client.list()
        ids = unique_ids(messages)
        selected = [message for message in messages if message.number in ids]
        if local is not None:
            headers = [
                (each, header_digest(header_of(await body.read())))
                async for each, body in client.raw_headers(selected)
            ]
            if "TOP" in client.quirks.hidden:
                client.abort()  # RETR was used instead of TOP, and QUIT may delete these messages
            selected = []
            for message, digest in headers:
                if digest and local[digest]:
                    # A local copy matches only one message: an identical message may be new.
                    local[digest] -= 1
                    selected.append(message)
    return [(ids[each.number], each.size) for each in selected], len(ids) - len(selected)


def log(options: argparse.Namespace) -> int:
    with closing(open_ledger(_selected_job(options).config)) as ledger:
        removals = ledger.of(options.name).removals()
    if options.json:
        rows = [each._asdict() for each in removals]
        common.print_json("account-log", name=options.name, removals=rows)
        return os.EX_OK
    if not removals:
        common.say(f"{options.name}: nothing has been deleted on the server yet.")
        return os.EX_OK
    common.print_table(
        "deleted message reason evidence answer",
        [
            (_minute(each.at), each.key, each.why, each.evidence, each.answer or "none yet")
            for each in removals
        ],
    )
    return os.EX_OK


def remove(options: argparse.Namespace) -> int:
    config = _selected_job(options).config
    path = account_add.file_of(config, options.name)
    if not path.exists():
        raise ConfigurationError(
            f"account {options.name!r} is not defined in {path}; delete it by hand from the file "
            "that defines it"
        )
    if not common.confirm(
        f"Remove account {options.name} and its record of collected messages?", options
    ):
        return os.EX_OK
    account_add.remove_files(config, options.name)
    with closing(open_ledger(config)) as ledger:
        count = ledger.of(options.name).forget()
    if options.json:
        common.print_json("account-rm", name=options.name, forgotten=count)
    else:
        record = f"its record of {counted(count, 'collected message')}"
        common.say(f"Removed account {options.name} and {record}.")
    return os.EX_OK


def _selected_job(options: argparse.Namespace) -> Job:
    (job,) = select_jobs(common.configuration(options), [options.name], select_all=False)
    return job
