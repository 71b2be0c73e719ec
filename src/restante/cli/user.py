"""``restante user``: who may log in."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from getpass import getpass
from pathlib import Path

from ..auth import passwords
from ..auth.users import NameTaken, Users, check_name, normalise
from ..errors import ConfigurationError, NoSuchUser, UnsafeArgument
from . import common


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = verbs.add_parser("user", help="who may log in: add, passwd, list, enable, disable, rm")
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


def add(options: argparse.Namespace) -> int:
    users = _users(options)
    options.name = check_name(options.name)
    if any(user.name == options.name for user in users.list()):  # before somebody types
        raise NameTaken(options.name)
    password = _password(options)
    users.add(options.name, password)
    return _done(options, "user-add", "may log in now", password)


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
        rows = [
            {
                "name": user.name,
                "enabled": user.is_enabled,
                "networks": [str(network) for network in user.networks],
                "created": datetime.fromtimestamp(user.created_at, UTC).isoformat(),
            }
            for user in found
        ]
        common.print_json("user-list", users=rows)
        return os.EX_OK
    for user in found:
        print(user.name if user.is_enabled else f"{user.name}  (disabled)")
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
    if not common.confirm(f"Remove {options.name}? The maildrop stays.", options):
        return os.EX_USAGE
    _users(options).remove(options.name)
    return _done(options, "user-rm", "is removed; the maildrop stays")


def _users(options: argparse.Namespace) -> Users:
    return common.users(common.configuration(options))


def _done(options: argparse.Namespace, verb: str, text: str, password: str = "") -> int:
    made = {"password": password} if password and options.generate else {}
    if options.json:
        common.print_json(verb, name=options.name, **made)
    else:
        common.say(f"{options.name} {text}")
        if made:
            print(password)
    return os.EX_OK


def _password(options: argparse.Namespace) -> str:
    """Never from the command line, where every user of the machine can read it."""
    if options.generate:
        return passwords.generate()
    if options.password_file:
        return first_line(options.password_file)
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
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
