"""``restante user``: who may log in."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from getpass import getpass
from ipaddress import ip_network
from math import inf
from pathlib import Path
from typing import Any

from ..app import backends, failures, stores, upkeep
from ..auth import passwords
from ..auth.names import BadName, check_new_name, normalise
from ..auth.users import AppPassword, NameTaken, Users
from ..clock import is_credible
from ..config import Configuration
from ..errors import ConfigurationError, NoMaildrop, NoSuchUser, RestanteError, UnsafeArgument
from ..maildrop import View
from ..passdb import Account, Network
from ..store.folders import directory_of
from . import common


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = verbs.add_parser(
        "user",
        help="who may log in: add, passwd, app-password, list, show, permit, quota, hold, enable, "
        "disable, rm",
    )
    actions = noun.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, run, text in (
        ("add", add, "let somebody log in"),
        ("passwd", passwd, "give somebody a new password"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME", help="such as ann, or ann@example.org")
        action.add_argument(
            "--password-file", type=Path, metavar="FILE", help="its first line is the password"
        )
        action.add_argument("--generate", action="store_true", help="make one and print it")
        _add_length(action, passwords.USUAL, passwords.SHORTEST)
        action.set_defaults(run=run)
    actions.add_parser("list", help="everybody").set_defaults(run=list_)
    for name, run, text in (
        ("enable", enable, "take back a disable"),
        ("disable", disable, "refuse logins; mail still comes in"),
        ("rm", remove, "forget somebody; the maildrop stays"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME")
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask")
        action.set_defaults(run=run)

    _add_permission(actions)
    _add_app_passwords(actions)


def _add_permission(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = actions.add_parser("show", help="what somebody may, and what was used when")
    action.add_argument("name", metavar="NAME")
    action.set_defaults(run=show)
    action = actions.add_parser(
        "permit",
        help="from where and how somebody may log in",
        description='What is not named stays as it is; "any" lifts a limit.',
    )
    action.add_argument("name", metavar="NAME")
    action.add_argument(
        "--network", nargs="+", metavar="NET", help="only from there, e.g. 192.0.2.0/24, or any"
    )
    action.add_argument(
        "--mechanism", nargs="+", metavar="NAME", help="only by these, e.g. SCRAM-SHA-256, or any"
    )
    yes_or_no = argparse.BooleanOptionalAction
    action.add_argument("--tls", action=yes_or_no, help="never in clear, wherever from")
    action.add_argument("--read-only", action=yes_or_no, help="nothing can be deleted")
    action.add_argument("--login-delay", metavar="TIME", help="between two logins, e.g. 5min")
    action.add_argument(
        "--expire",
        metavar="TIME",
        help="mail older than this is removed by itself, e.g. 90d; any: as the configuration says",
    )
    action.add_argument(
        "--folder", nargs="+", metavar="FOLDER", help="show these as one maildrop, or any"
    )
    action.set_defaults(run=permit)
    action = actions.add_parser(
        "quota",
        help="how much mail somebody may have",
        description="Holds from the next delivery on.",
    )
    action.add_argument("name", metavar="NAME")
    action.add_argument(
        "size", metavar="SIZE", help='such as 2GiB; "none", or "default" for the configured one'
    )
    action.set_defaults(run=quota)
    action = actions.add_parser(
        "hold",
        help="what becomes of mail that somebody deletes",
        description="Holds from the next QUIT on.",
    )
    action.add_argument("name", metavar="NAME")
    action.add_argument(
        "time",
        metavar="TIME",
        help='such as 30d; 0 destroys at QUIT, "keep" removes nothing, "default" is as configured',
    )
    action.set_defaults(run=hold)


def _add_app_passwords(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = actions.add_parser("app-password", help="one password for each device or program")
    verbs = noun.add_subparsers(dest="verb_of_app_password", metavar="VERB", required=True)
    for name, run, text in (
        ("new", new_app_password, "make one; it is shown this once"),
        ("list", list_app_passwords, "which there are, and when and from where each was used"),
        ("revoke", revoke_app_password, "nobody logs in with it from now on"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("name", metavar="NAME", help="a user")
        if name != "list":
            verb.add_argument("label", metavar="LABEL", help='such as "phone"')
        if name == "new":
            _add_length(verb, passwords.APP, passwords.SHORTEST_APP)
        verb.set_defaults(run=run)


def _add_length(action: argparse.ArgumentParser, usual: int, shortest: int) -> None:
    def length(text: str) -> int:
        number = int(text)
        if not shortest <= number <= passwords.LONGEST:
            raise argparse.ArgumentTypeError(f"from {shortest} to {passwords.LONGEST} characters")
        return number

    text = f"of the generated password, letters and digits; {usual} by default"
    action.add_argument("--length", type=length, metavar="N", help=text)


def add(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    users = stores.users(config)
    options.name = check_new_name(options.name)
    if reason := _why_no_maildrop(config, options.name):
        raise BadName(f"{options.name} could not log in: {reason}")
    if any(user.name == options.name for user in users.list()):  # before somebody types
        raise NameTaken(options.name)
    password = _password(options)
    users.add(options.name, password)
    return _done(options, "user-add", "may log in now", password)


def _why_no_maildrop(config: Configuration, name: str) -> str:
    """Why a login would fail for want of a maildrop; empty if it would not."""
    try:
        backends.place_check(config)(name)
    except NoMaildrop as error:
        return f"the name {error.reason}; store.path is {config.store.path}"
    return ""


def passwd(options: argparse.Namespace) -> int:
    users = _users(options)
    if all(user.name != normalise(options.name) for user in users.list()):
        raise NoSuchUser(options.name)
    password = _password(options)
    users.set_password(options.name, password)
    return _done(options, "user-passwd", "has a new password", password)


def list_(options: argparse.Namespace) -> int:
    found = _users(options).list()
    if options.json:
        rows = [{**_permission(each.account), "created": _time(each.created_at)} for each in found]
        common.print_json("user-list", users=rows)
        return os.EX_OK
    for user in found:
        print(user.name if user.account.is_enabled else f"{user.name}  (disabled)")
    if not found:
        common.say("nobody yet; next: restante user add NAME")
    return os.EX_OK


def enable(options: argparse.Namespace) -> int:
    _users(options).set_enabled(options.name, True)
    return _done(options, "user-enable", "may log in")


def disable(options: argparse.Namespace) -> int:
    _users(options).set_enabled(options.name, False)
    return _done(options, "user-disable", "cannot log in any more")


def remove(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    users = stores.users(config)
    name = users.get(options.name).name  # a typing error shows before the question
    admitted_by, warnings = _still_admitted(config, users, name)
    for warning in [] if options.json else warnings:
        common.say(f"warning: {warning}")
    if not common.confirm(f"Remove {options.name}? The maildrop stays.", options):
        return os.EX_OK
    users.remove(options.name)
    more = {"admitted_by": admitted_by, "warnings": warnings}
    return _done(options, "user-rm", "is removed; the maildrop stays", more=more)


def _still_admitted(
    config: Configuration, users: Users, name: str
) -> tuple[dict[str, str] | None, list[str]]:
    """The other back end that decides about a user after removal here, and warnings about it."""
    try:
        backend, maildrop = backends.admitted_without_users(config, users, name)
    except RestanteError as error:
        return None, [f"another back end may still let {name} in: {failures.describe(error)}"]
    if not backend:
        return None, []
    warning = (
        f"{backend} still lets {name} in, and opens the maildrop {maildrop} with the mail that is "
        "there"
    )
    if "users" in config.auth.chain[: config.auth.chain.index(backend)]:
        warning += f"; to keep the user out: restante user disable {name}, and no removal"
    return {"backend": backend, "maildrop": maildrop}, [warning]


def show(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    users = stores.users(config)
    account, found = users.get(options.name).account, users.app_passwords(options.name)
    if options.json:
        common.print_json(
            "user-show",
            **_permission(account),
            quota=users.quota(options.name),
            hold=_hold_for_programs(users.hold(options.name)),
            app_passwords=_rows(found),
        )
        return os.EX_OK
    print(f"{account.user}: {'may log in' if account.is_enabled else 'is disabled'}")
    if reason := _why_no_maildrop(config, account.maildrop):
        print(f"  cannot    log in: {reason}")
    print(f"  from      {' '.join(map(str, account.networks)) or 'everywhere'}")
    print(f"  by        {' '.join(account.mechanisms) or 'every mechanism'}")
    print(f"  TLS       {'always' if account.needs_tls else 'as the configuration says'}")
    print(f"  deleting  {'forbidden' if account.is_read_only else 'allowed'}")
    if account.login_delay:
        print(f"  at most   once in {account.login_delay:g} s")
    if account.expire is not None:
        print(f"  keeps     mail {account.expire} days at least")
    if account.view.folders:
        print(f"  shows     {', '.join(account.view.folders)}")
    print(f"  quota     {_told_quota(users.quota(options.name))}")
    print(f"  deletes   {_told_hold(users.hold(options.name))}")
    _print_app_passwords(found)
    return os.EX_OK


def permit(options: argparse.Namespace) -> int:
    users = _users(options)
    changes: dict[str, Any] = {"needs_tls": options.tls, "is_read_only": options.read_only}
    if options.network:
        changes["networks"] = tuple(_network(each) for each in options.network if each != "any")
    if options.mechanism:
        named = (name.upper() for name in options.mechanism)
        changes["mechanisms"] = tuple(name for name in named if name != "ANY")
    if options.login_delay:
        changes["login_delay"] = common.seconds(options.login_delay)
    if options.folder:
        for folder in options.folder:
            directory_of(folder)
        named = (folder for folder in options.folder if folder != "any")
        changes["view"] = View(tuple(named))
    if options.expire and options.expire != "any":
        changes["expire"] = common.days(options.expire)
    given = {name: value for name, value in changes.items() if value is not None}
    if options.expire == "any":
        given["expire"] = None
    users.permit(options.name, replace(users.get(options.name).account, **given), given)
    code = _done(options, "user-permit", "has these permissions now; see `restante user show`")
    _note_rules(options)
    return code


def quota(options: argparse.Namespace) -> int:
    words = {"none": 0, "default": None}
    size = words[options.size] if options.size in words else common.octets(options.size)
    _users(options).set_quota(options.name, size)
    code = _done(options, "user-quota", f"has this quota now: {_told_quota(size)}")
    _note_rules(options)
    return code


def hold(options: argparse.Namespace) -> int:
    words = {"keep": inf, "default": None}
    found = words[options.time] if options.time in words else common.seconds(options.time)
    _users(options).set_hold(options.name, found)
    code = _done(options, "user-hold", f"has deleted mail {_told_hold(found)} now")
    _note_rules(options)
    return code


def _note_rules(options: argparse.Namespace) -> None:
    """From now on older mail has a day until the rule that was changed applies to it, and other
    programs read the new quota."""
    config = common.configuration(options)
    if config.store.kind == "memory":
        return
    try:
        changed = asyncio.run(upkeep.forecast(config, [normalise(options.name)], note=True))
    except RestanteError:  # such as a disk that is not mounted: the server notes it within an hour
        return
    if changed:
        common.say(f"{options.name}: {upkeep.described(changed)}")


def _hold_for_programs(seconds: float | None) -> float | str | None:
    return "keep" if seconds == inf else seconds


def _told_hold(seconds: float | None) -> str:
    return "treated as configured" if seconds is None else common.told_hold(seconds)


def _told_quota(octets: int | None) -> str:
    return {None: "as configured", 0: "none"}.get(octets, f"{octets} octets")


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise UnsafeArgument(f"{text!r} is no network; write 192.0.2.0/24, or any") from error


def new_app_password(options: argparse.Namespace) -> int:
    length = options.length or passwords.APP
    password = _users(options).add_app_password(options.name, options.label, length)
    if options.json:
        common.print_json(
            "app-password-new", name=options.name, label=options.label, password=password
        )
    else:
        common.say(f"password of {options.name} for {options.label}, shown only now:")
        print(password)
    return os.EX_OK


def list_app_passwords(options: argparse.Namespace) -> int:
    found = _users(options).app_passwords(options.name)
    if options.json:
        common.print_json("app-password-list", name=options.name, app_passwords=_rows(found))
        return os.EX_OK
    _print_app_passwords(found)
    if not found:
        common.say(f"none yet; next: restante user app-password new {options.name} phone")
    return os.EX_OK


def revoke_app_password(options: argparse.Namespace) -> int:
    _users(options).revoke(options.name, options.label)
    if options.json:
        common.print_json("app-password-revoke", name=options.name, label=options.label)
    else:
        common.say(f"nobody logs in with {options.label} any more")
    return os.EX_OK


def _print_app_passwords(found: Sequence[AppPassword]) -> None:
    for each in found:
        used = "never used"
        if each.used_at is not None:
            at = datetime.fromtimestamp(each.used_at).strftime("%Y-%m-%d %H:%M")
            if not is_credible(each.used_at, time.time()):
                at = "while the clock was wrong"
            used = f"used {at} from {each.used_from or 'this machine'}"
        print(f"  app password {each.label!r}: {used}")


def _rows(found: Sequence[AppPassword]) -> list[dict[str, object]]:
    return [
        {
            "label": each.label,
            "created": _time(each.created_at),
            "used": None if each.used_at is None else _time(each.used_at),
            "used_from": each.used_from,
        }
        for each in found
    ]


def _permission(account: Account) -> dict[str, object]:
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


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _users(options: argparse.Namespace) -> Users:
    return stores.users(common.configuration(options))


def _done(
    options: argparse.Namespace,
    verb: str,
    text: str,
    password: str = "",
    more: Mapping[str, object] | None = None,
) -> int:
    """``more``: for programs only."""
    made = {"password": password} if password and options.generate else {}
    if options.json:
        common.print_json(verb, name=options.name, **made, **(more or {}))
    else:
        common.say(f"{options.name} {text}")
        if made:
            print(password)
    return os.EX_OK


def _password(options: argparse.Namespace) -> str:
    """Never from the command line, where every user of the machine can read it."""
    if options.generate:
        return passwords.generate(options.length or passwords.USUAL)
    if options.length:
        raise UnsafeArgument("--length is for a password that is generated; next: --generate")
    if options.password_file:
        return first_line(options.password_file)
    if not sys.stdin.isatty():
        if line := sys.stdin.readline():
            return line.rstrip("\r\n")
        raise UnsafeArgument(
            "no password on standard input; --password-file or --generate gives one"
        )
    password = getpass("Password: ")
    if password != getpass("Once more: "):
        raise UnsafeArgument("the two passwords differ; nothing was changed")
    return password


def first_line(path: Path) -> str:
    """A secret in a file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_text().split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigurationError(f"{path}: {text}") from error
