"""``restante auth``: why a login would be let in or refused."""

from __future__ import annotations

import argparse
import os
from ipaddress import ip_address

from ..config import Configuration
from ..errors import UnsafeArgument
from ..passdb import Account
from . import common

_WHY = {
    "disabled": "the user is disabled; next: restante user enable {user}",
    "network": "the user may not come from there; next: restante user permit {user} --network any",
    "needs-tls": "the user needs TLS; next: restante user permit {user} --no-tls",
    "mechanism": "the user may not log in so; next: restante user permit {user} --mechanism any",
    "clear": "nobody may log in without TLS from there; see auth.allow_plaintext_from",
}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = verbs.add_parser("auth", help="why: would a right password be let in from an address?")
    actions = noun.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser("why", help="would a right password be let in from an address?")
    action.add_argument("user", metavar="USER")
    action.add_argument("address", metavar="ADDRESS", help="where from, an IP address")
    action.add_argument("--clear", action="store_true", help="without TLS")
    action.add_argument("--mechanism", metavar="NAME", default="", help="such as PLAIN, or USER")
    action.set_defaults(run=why)


def why(options: argparse.Namespace) -> int:
    """0 when a right password would be let in, 77 when not."""
    try:
        ip_address(options.address)
    except ValueError:
        raise UnsafeArgument(f"{options.address!r} is no IP address") from None
    found = common.configuration(options)
    account = common.users(found).get(options.user).account
    reason = _reason(options, found, account)
    if options.json:
        common.print_json("auth-why", user=account.user, allowed=reason is None, reason=reason)
    elif reason is None:
        print(f"{account.user} may log in from {options.address} with a right password")
    else:
        print(f"{account.user} is refused: {_WHY[reason].format(user=account.user)}")
    return os.EX_OK if reason is None else os.EX_NOPERM


def _reason(options: argparse.Namespace, found: Configuration, account: Account) -> str | None:
    """In the order in which the server looks."""
    if options.clear and not any(
        ip_address(options.address) in network for network in found.auth.allow_plaintext_from
    ):
        return "clear"
    return account.refusal(
        options.address, is_secure=not options.clear, mechanism=options.mechanism.upper()
    )
