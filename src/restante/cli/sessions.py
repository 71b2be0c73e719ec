"""``restante sessions``: list the open sessions of the running server, and end sessions."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from .. import sysexits
from ..errors import UnsafeArgument
from ..words import counted, size
from . import common, control

_HEADINGS = "id user ip proto state open sent"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the open sessions of the running server, and end sessions. Session IDs are the same "
        "as in the log."
    )
    _add_user(parser, "list only the sessions of this user")
    parser.set_defaults(run=list_)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    action = actions.add_parser("list", help="list the open sessions (the default)")
    _add_user(action, "list only the sessions of this user")
    action.set_defaults(run=list_)
    action = actions.add_parser(
        "end",
        help="end a session, or all sessions of a user",
        description="End a session, or all sessions of a user. The connection is dropped: messages "
        "that were marked as deleted remain in the maildrop.",
    )
    action.add_argument("id", nargs="?", metavar="ID", help="the session's ID")
    _add_user(action, "end all sessions of this user")
    action.set_defaults(run=end)


def _add_user(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--user", metavar="USER", default=argparse.SUPPRESS, help=text)


def list_(options: argparse.Namespace) -> int:
    """Print the sessions, and return EX_TEMPFAIL if a worker does not answer."""
    query = {"user": getattr(options, "user", None)}
    sessions: list[dict[str, Any]] = []
    missing: list[int] = []
    for row in control.ask(options, "GET", "/sessions", query).lines():
        if "missing" in row:
            missing = row["missing"]
        else:
            sessions.append(row)
    if options.json:
        common.print_json("sessions", sessions=sessions, missing=missing)
    else:
        rows = [_row(each) for each in sessions]
        common.print_table(_HEADINGS, rows, right="open sent", shorten="user ip state")
    return _report(missing, "its sessions are not listed")


def _row(session: dict[str, Any]) -> list[object]:
    shown = [session.get(name) or "-" for name in ("id", "user", "ip", "proto", "state")]
    return [*shown, control.duration(session["seconds"]), size(session["sent"])]


def end(options: argparse.Namespace) -> int:
    """End sessions.

    Raises:
        UnsafeArgument: neither an ID nor a user was given, or both, or the ID is unknown.
    """
    user = getattr(options, "user", None)
    if (options.id is None) == (user is None):
        raise UnsafeArgument("give the ID of a session, or --user USER")
    path = "/sessions" if options.id is None else f"/sessions/{quote(options.id, safe='')}"
    reply = control.ask(options, "DELETE", path, {"user": user}, accept=404)
    if reply.status == 404:  # not in the form of an ID
        raise UnsafeArgument(_unknown(options.id))
    result = reply.json()
    is_found = result["ended"] or result["finishing"] or result["missing"]
    if options.id is not None and not is_found:
        raise UnsafeArgument(_unknown(options.id))
    if options.json:
        common.print_json("sessions-end", **result)
    else:
        print(f"Ended {counted(len(result['ended']), 'session')}.")
        if result["finishing"]:
            print(f"{counted(len(result['finishing']), 'session')} will end after QUIT.")
    return _report(result["missing"], "its sessions may continue")


def _unknown(session: str) -> str:
    return f"there is no session with the ID {session}"


def _report(missing: list[int], consequence: str) -> int:
    for worker in missing:
        common.say(f"restante sessions: worker {worker} does not answer; {consequence}")
    return sysexits.EX_TEMPFAIL if missing else sysexits.EX_OK
