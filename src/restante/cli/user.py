"""``restante user``: create users, and manage their passwords, permissions and quotas."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from getpass import getpass
from ipaddress import ip_network
from math import inf
from pathlib import Path
from shlex import quote
from typing import Any

from ..app import backends, failures, stores, upkeep
from ..auth import passwords
from ..auth.names import BadName, check_new_name, normalise
from ..auth.users import AppPassword, NameTaken, Users
from ..clock import is_credible
from ..config import Configuration
from ..errors import NoMaildrop, NoSuchUser, RestanteError, UnsafeArgument
from ..maildrop import View
from ..passdb import Network, UserAccount
from ..store.folders import directory_of
from ..words import counted, limit_size
from . import common

_DEFAULT = ("default", "any")  # "any" is the old keyword


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Manage the users who may log in to this server."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, run, text in (
        ("add", add, "add a user"),
        ("passwd", passwd, "change a user's password"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument(
            "name", metavar="NAME", help="the user's name, such as ann or ann@example.org"
        )
        action.add_argument(
            "--password-file",
            type=Path,
            metavar="FILE",
            help="read the password from the first line of FILE",
        )
        action.add_argument(
            "--generate", action="store_true", help="generate a password and print it"
        )
        _add_length(action, passwords.LENGTH, passwords.MIN_LENGTH)
        action.set_defaults(run=run)
    actions.add_parser("list", help="list users").set_defaults(run=list_)
    for name, run, text in (
        ("enable", enable, "allow a disabled user to log in again"),
        ("disable", disable, "refuse a user's logins; mail is still delivered"),
        ("rm", remove, "remove a user, but not the user's mail"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME", help="the user's name")
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        action.set_defaults(run=run)

    _add_settings(actions)
    _add_app_passwords(actions)


def _add_settings(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = actions.add_parser("show", help="show a user's permissions and last logins")
    action.add_argument("name", metavar="NAME", help="the user's name")
    action.set_defaults(run=show)
    action = actions.add_parser(
        "permit",
        help="set where and how a user may log in, and what the maildrop shows",
        description="Set a user's permissions. Permissions that you leave out stay unchanged; "
        '"any" removes a restriction.',
    )
    action.add_argument("name", metavar="NAME", help="the user's name")
    action.add_argument(
        "--network",
        nargs="+",
        metavar="NET",
        help='allow logins only from these networks, such as 192.0.2.0/24; "any" allows all',
    )
    action.add_argument(
        "--mechanism",
        nargs="+",
        metavar="NAME",
        help='allow logins only with these mechanisms, such as SCRAM-SHA-256; "any" allows all',
    )
    yes_or_no = argparse.BooleanOptionalAction
    action.add_argument("--tls", action=yes_or_no, help="require TLS for logins from every network")
    action.add_argument("--read-only", action=yes_or_no, help="do not let the user delete mail")
    action.add_argument(
        "--login-delay", metavar="TIME", help="set the minimum time between logins, such as 5min"
    )
    action.add_argument(
        "--expire",
        metavar="TIME",
        help='remove mail automatically after this time, such as 90d; "default" '
        "restores the configured time",
    )
    action.add_argument(
        "--folder",
        nargs="+",
        metavar="FOLDER",
        help='show these folders as one maildrop; "default" restores the configured list',
    )
    action.set_defaults(run=permit)
    action = actions.add_parser(
        "quota",
        help="limit the size of a user's mail",
        description="Set the maximum size of a user's mail. The change takes effect at the next "
        "delivery.",
    )
    action.add_argument("name", metavar="NAME", help="the user's name")
    action.add_argument(
        "size",
        metavar="SIZE",
        help='the quota, such as 2GiB; "none" removes the limit; "default" restores the configured '
        "quota",
    )
    action.set_defaults(run=quota)
    action = actions.add_parser(
        "hold",
        help="set how long a user's deleted mail is held",
        description="Set how long a user's deleted mail is held. The change takes effect at the "
        "next QUIT.",
    )
    action.add_argument("name", metavar="NAME", help="the user's name")
    action.add_argument(
        "time",
        metavar="TIME",
        help='how long to hold deleted mail, such as 30d; 0 destroys it at QUIT; "keep" holds it '
        'for ever; "default" restores the configured time',
    )
    action.set_defaults(run=hold)


def _add_app_passwords(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = actions.add_parser(
        "app-password", help="manage app passwords, one for each device or program"
    )
    commands = noun.add_subparsers(dest="app_password_action", metavar="COMMAND", required=True)
    for name, run, text in (
        ("new", new_app_password, "create an app password; it is shown only once"),
        ("list", list_app_passwords, "list app passwords with their last use"),
        ("revoke", revoke_app_password, "revoke an app password"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", metavar="NAME", help="the user's name")
        if name != "list":
            command.add_argument(
                "label", metavar="LABEL", help='the name of the app password, such as "phone"'
            )
        if name == "new":
            _add_length(command, passwords.APP_LENGTH, passwords.MIN_APP_LENGTH)
        command.set_defaults(run=run)


def _add_length(action: argparse.ArgumentParser, default: int, shortest: int) -> None:
    def length(text: str) -> int:
        number = int(text)
        if not shortest <= number <= passwords.MAX_LENGTH:
            raise argparse.ArgumentTypeError(
                f"must be {shortest} to {passwords.MAX_LENGTH} characters"
            )
        return number

    text = f"length of the generated password in characters ({default} by default)"
    action.add_argument("--length", type=length, metavar="N", help=text)


def add(options: argparse.Namespace) -> int:
    common.password_from_file(options)
    config = common.configuration(options)
    users = stores.users(config)
    options.name = check_new_name(options.name)
    if reason := _why_no_maildrop(config, options.name):
        raise BadName(f"{options.name} would not be able to log in: {reason}")
    if any(user.name == options.name for user in users.list()):  # before a password is typed
        raise NameTaken(options.name)
    password = _password(options)
    users.add(options.name, password)
    return _report(options, "user-add", f"Created user {options.name}.", password)


def _why_no_maildrop(config: Configuration, name: str) -> str:
    """Return why a login would find no maildrop; empty if it would find a maildrop."""
    try:
        backends.maildrop_check(config)(name)
    except NoMaildrop as error:
        return f"the name {error.reason}; store.path is {config.store.path}"
    return ""


def passwd(options: argparse.Namespace) -> int:
    common.password_from_file(options)
    users = _users(options)
    if all(user.name != normalise(options.name) for user in users.list()):
        raise NoSuchUser(options.name)
    password = _password(options)
    users.set_password(options.name, password)
    return _report(options, "user-passwd", f"Changed {options.name}'s password.", password)


def list_(options: argparse.Namespace) -> int:
    users = _users(options).list()
    if options.json:
        rows = [
            {**_account_as_json(each.account), "created": _isoformat(each.created_at)}
            for each in users
        ]
        common.print_json("user-list", users=rows)
        return os.EX_OK
    if not users:
        common.say("No users yet. Create one: restante user add ann")
        return os.EX_OK
    common.print_table(
        "user created logins",
        [(user.name, _day(user.created_at), _login_state(user.account)) for user in users],
    )
    return os.EX_OK


def _day(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d")


def _login_state(account: UserAccount) -> str:
    return "allowed" if account.is_enabled else "disabled"


def enable(options: argparse.Namespace) -> int:
    _users(options).set_enabled(options.name, True)
    return _report(options, "user-enable", f"User {options.name} may log in again.")


def disable(options: argparse.Namespace) -> int:
    _users(options).set_enabled(options.name, False)
    return _report(options, "user-disable", f"User {options.name} can no longer log in.")


def remove(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    users = stores.users(config)
    name = users.get(options.name).name  # an unknown name is reported before the question
    admitted_by, warnings = _find_other_backend(config, users, name)
    for warning in [] if options.json else warnings:
        common.say(f"warning: {warning}")
    if not common.confirm(f"Remove user {options.name}? The maildrop stays.", options):
        return os.EX_OK
    users.remove(options.name)
    json_values = {"admitted_by": admitted_by, "warnings": warnings}
    text = f"Removed user {options.name}. The maildrop stays."
    return _report(options, "user-rm", text, json_values=json_values)


def _find_other_backend(
    config: Configuration, users: Users, name: str
) -> tuple[dict[str, str] | None, list[str]]:
    """Return the back end that would accept the user's logins after the removal, and warnings."""
    try:
        backend, maildrop = backends.find_outside_users(config, users, name)
    except RestanteError as error:
        reason = failures.describe(error)
        return None, [f"{name} may still be able to log in through another back end: {reason}"]
    if not backend:
        return None, []
    warning = f"{name} can still log in to the maildrop {maildrop} through the back end {backend}"
    if "users" in config.auth.chain[: config.auth.chain.index(backend)]:
        warning += (
            f". To prevent this, disable the user instead: restante user disable {quote(name)}"
        )
    return {"backend": backend, "maildrop": maildrop}, [warning]


def show(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    users = stores.users(config)
    account = users.get(options.name).account
    app_passwords = users.app_passwords(options.name)
    if options.json:
        common.print_json(
            "user-show",
            **_account_as_json(account),
            quota=users.quota(options.name),
            hold=_hold_as_json(users.hold(options.name)),
            app_passwords=_app_passwords_as_json(app_passwords),
        )
        return os.EX_OK
    print(account.user)
    rows = [("logins", _login_state(account))]
    if reason := _why_no_maildrop(config, account.maildrop):
        rows.append(("problem", f"cannot log in: {reason}"))
    rows += [
        ("networks", " ".join(map(str, account.networks)) or "any"),
        ("mechanisms", " ".join(account.mechanisms) or "any"),
        ("TLS", "required" if account.needs_tls else "as configured"),
        ("deletions", "forbidden" if account.is_read_only else "allowed"),
    ]
    if account.login_delay:
        rows.append(("login delay", f"{account.login_delay:g} s"))
    if account.expire is not None:
        rows.append(("expire", f"after {counted(account.expire, 'day')}"))
    if account.view.folders:
        rows.append(("folders", ", ".join(account.view.folders)))
    rows += [
        ("quota", _describe_quota(users.quota(options.name))),
        ("deleted mail", _describe_hold(users.hold(options.name))),
    ]
    common.print_fields(rows)
    _print_app_passwords(app_passwords)
    return os.EX_OK


def permit(options: argparse.Namespace) -> int:
    users = _users(options)
    changes: dict[str, Any] = {"needs_tls": options.tls, "is_read_only": options.read_only}
    if options.network:
        changes["networks"] = tuple(_network(each) for each in options.network if each != "any")
    if options.mechanism:
        names = (name.upper() for name in options.mechanism)
        changes["mechanisms"] = tuple(name for name in names if name != "ANY")
    if options.login_delay:
        changes["login_delay"] = common.seconds(options.login_delay)
    if options.folder:
        for folder in options.folder:
            directory_of(folder)
        is_default = options.folder in (["default"], ["any"])
        changes["view"] = View(() if is_default else tuple(options.folder))
    if options.expire and options.expire not in _DEFAULT:
        changes["expire"] = common.days(options.expire)
    new_values = {name: value for name, value in changes.items() if value is not None}
    if options.expire in _DEFAULT:
        new_values["expire"] = None
    users.permit(options.name, users.get(options.name).account._replace(**new_values), new_values)
    text = f"Changed permissions. Show them: restante user show {quote(options.name)}"
    code = _report(options, "user-permit", text)
    _note_rules(options)
    return code


def quota(options: argparse.Namespace) -> int:
    words = {"none": 0, "default": None}
    size = words[options.size] if options.size in words else common.octets(options.size)
    _users(options).set_quota(options.name, size)
    code = _report(options, "user-quota", f"Set {options.name}'s quota: {_describe_quota(size)}.")
    _note_rules(options)
    return code


def hold(options: argparse.Namespace) -> int:
    words = {"keep": inf, "default": None}
    time_ = words[options.time] if options.time in words else common.seconds(options.time)
    _users(options).set_hold(options.name, time_)
    code = _report(
        options, "user-hold", f"{options.name}'s deleted mail is now {_describe_hold(time_)}."
    )
    _note_rules(options)
    return code


def _note_rules(options: argparse.Namespace) -> None:
    """Record the changed rule; it takes effect for existing mail after one day.

    A changed quota is also written to the file that other programs read.
    """
    config = common.configuration(options)
    if config.store.kind == "memory":
        return
    try:
        changed = asyncio.run(upkeep.forecast(config, [normalise(options.name)], note=True))
    except RestanteError:  # for example, a disk is not mounted
        return  # the server records the rule within an hour
    if changed:
        common.say(f"{options.name}: {upkeep.describe(changed)}")


def _hold_as_json(seconds: float | None) -> float | str | None:
    return "keep" if seconds == inf else seconds


def _describe_hold(seconds: float | None) -> str:
    return "held as configured" if seconds is None else common.describe_hold(seconds)


def _describe_quota(octets: int | None) -> str:
    return {None: "as configured", 0: "none"}.get(octets, "") or limit_size(octets or 0)


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise UnsafeArgument(
            f'{text!r} is not a network; write a network such as 192.0.2.0/24, or "any"'
        ) from error


def new_app_password(options: argparse.Namespace) -> int:
    length = options.length or passwords.APP_LENGTH
    password = _users(options).add_app_password(options.name, options.label, length)
    if options.json:
        common.print_json(
            "app-password-new", name=options.name, label=options.label, password=password
        )
    else:
        common.say(f"{options.name}'s app password for {options.label}; it is shown only once:")
        print(password)
    return os.EX_OK


def list_app_passwords(options: argparse.Namespace) -> int:
    app_passwords = _users(options).app_passwords(options.name)
    if options.json:
        rows = _app_passwords_as_json(app_passwords)
        common.print_json("app-password-list", name=options.name, app_passwords=rows)
        return os.EX_OK
    _print_app_passwords(app_passwords)
    if not app_passwords:
        create = f"restante user app-password new {quote(options.name)} phone"
        common.say(f"No app passwords yet. Create one: {create}")
    return os.EX_OK


def revoke_app_password(options: argparse.Namespace) -> int:
    _users(options).revoke(options.name, options.label)
    if options.json:
        common.print_json("app-password-revoke", name=options.name, label=options.label)
    else:
        common.say(f"Revoked {options.name}'s app password for {options.label}.")
    return os.EX_OK


def _print_app_passwords(app_passwords: Sequence[AppPassword]) -> None:
    rows = []
    for each in app_passwords:
        used, source = "never", ""
        if each.used_at is not None:
            used = datetime.fromtimestamp(each.used_at).strftime("%Y-%m-%d %H:%M")
            if not is_credible(each.used_at, time.time()):
                used = "while the clock was wrong"
            source = each.used_from or "this machine"
        rows.append((each.label, _day(each.created_at), used, source))
    if rows:
        common.print_table("app-password created used from", rows)


def _app_passwords_as_json(app_passwords: Sequence[AppPassword]) -> list[dict[str, object]]:
    return [
        {
            "label": each.label,
            "created": _isoformat(each.created_at),
            "used": None if each.used_at is None else _isoformat(each.used_at),
            "used_from": each.used_from,
        }
        for each in app_passwords
    ]


def _account_as_json(account: UserAccount) -> dict[str, object]:
    return {
        "name": account.user,
        "enabled": account.is_enabled,
        "networks": [str(network) for network in account.networks],
        "mechanisms": list(account.mechanisms),
        "needs_tls": account.needs_tls,
        "read_only": account.is_read_only,
        "login_delay": account.login_delay,
        "expire": account.expire,
        "folders": list(account.view.folders),
    }


def _isoformat(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _users(options: argparse.Namespace) -> Users:
    return stores.users(common.configuration(options))


def _report(
    options: argparse.Namespace,
    command: str,
    text: str,
    password: str = "",
    json_values: Mapping[str, object] | None = None,
) -> int:
    """Print ``text`` and a generated password; ``json_values`` is only for JSON."""
    generated = {"password": password} if password and options.generate else {}
    if options.json:
        common.print_json(command, name=options.name, **generated, **(json_values or {}))
    else:
        common.say(text)
        if generated:
            print(password)
    return os.EX_OK


def _password(options: argparse.Namespace) -> str:
    """Read a password, but not from the command line, which every user of the machine can read."""
    if options.generate:
        return passwords.generate(options.length or passwords.LENGTH)
    if options.length:
        raise UnsafeArgument("--length requires --generate")
    if options.password_file:
        return common.password_from_file(options)
    if not sys.stdin.isatty():
        if line := sys.stdin.readline():
            return line.rstrip("\r\n")
        raise UnsafeArgument("no password on standard input; use --password-file or --generate")
    password = getpass("Password: ")
    if password != getpass("Repeat the password: "):
        raise UnsafeArgument("the passwords differ; nothing was changed")
    return password
