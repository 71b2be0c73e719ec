"""``restante auth``: why a login would be let in or refused."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Collection
from contextlib import closing
from ipaddress import ip_address

from ..app import backends, stores, throttling
from ..auth.chain import Chain
from ..auth.throttle import Facts
from ..config import Configuration
from ..errors import NoMaildrop, NoSuchUser, UnsafeArgument
from ..passdb import Account
from ..sasl.choice import USER_AND_PASS
from ..server.login import offered
from ..server.views import understand
from . import common

_WHY = {
    "disabled": "the user is disabled",
    "network": "the user may not come from there",
    "needs-tls": "the user needs TLS",
    "mechanism": "the user may not log in so",
    "clear": "nobody may log in without TLS from there; see auth.allow_plaintext_from",
    "not-offered": "the server does not offer this mechanism; see auth.mechanisms",
    "no-maildrop": "the name does not fit store.path",
    "no-password": "no password matches the hash: locked, malformed, or too costly",
}
_WITHOUT_PASSWORD = ("OAUTHBEARER", "XOAUTH2", "EXTERNAL")
# For users of our own database; others have their own administration.
_NEXT = {
    "disabled": "; next: restante user enable {user}",
    "network": "; next: restante user permit {user} --network any",
    "needs-tls": "; next: restante user permit {user} --no-tls",
    "mechanism": "; next: restante user permit {user} --mechanism any",
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
    with closing(backends.chain(found, stores.users(found))) as chain:
        backend, account = asyncio.run(_find(chain, options.user, found.auth.folder_separator))
        if account is None:
            raise NoSuchUser(options.user)
        mechanisms = offered(chain, found.auth.mechanisms)
    reason, user = _reason(options, found, account, mechanisms), account.user
    by_password = options.mechanism.upper() not in _WITHOUT_PASSWORD
    if reason is None and by_password and backend == "passwd-file":
        reason = None if _has_password(found, user) else "no-password"
    with closing(throttling.throttle(found)) as throttle:
        facts = throttle.facts(user, options.address)
    if options.json:
        told = {"user": user, "backend": backend, "allowed": reason is None, "reason": reason}
        common.print_json("auth-why", **told, **_as_json(facts))
    elif reason is None:
        print(f"{user} ({backend}) may log in from {options.address} with a right password")
    else:
        hint = _NEXT.get(reason, "").format(user=user) if backend == "users" else ""
        print(f"{user} ({backend}) is refused: {_WHY[reason]}{hint}")
    if not options.json:
        print(f"{options.address} is {_describe(facts)}")
        if facts.sprayed >= 0.5:
            print(_describe_spray(facts))
    return os.EX_OK if reason is None else os.EX_NOPERM


def _has_password(found: Configuration, user: str) -> bool:
    with closing(backends.passwd_file(found.auth)) as file:
        return file.has_password(user)


def _describe(facts: Facts) -> str:
    """What the server knew a minute ago.  None of it refuses a right password."""
    known = "a known network of the user" if facts.is_known else "no known network of the user"
    lately = "trusted" if facts.is_trusted else f"{facts.guesses:.0f} guesses lately"
    return f"{known}, {lately}: a wrong password waits {facts.delay:.1f} s, a right one does not"


def _describe_spray(facts: Facts) -> str:
    return (
        f"somebody tries the same passwords at many users, {facts.sprayed:.0f} times lately: "
        f"where one of those is wrong it waits {facts.sprayed_delay:.1f} s, from anywhere"
    )


def _as_json(facts: Facts) -> dict[str, object]:
    return {
        "is_known": facts.is_known,
        "is_trusted": facts.is_trusted,
        "guesses": round(facts.guesses, 2),
        "delay": round(facts.delay, 2),
        "sprayed": round(facts.sprayed, 2),
        "sprayed_delay": round(facts.sprayed_delay, 2),
    }


async def _find(chain: Chain, name: str, separator: str) -> tuple[str, Account | None]:
    """As a login understands the name, which may hold a folder."""
    user, _ = await understand(chain, name, separator)
    return await chain.find(user)


def _reason(
    options: argparse.Namespace, found: Configuration, account: Account, mechanisms: Collection[str]
) -> str | None:
    """In the order in which the server looks."""
    mechanism = options.mechanism.upper()
    if options.clear and not any(
        ip_address(options.address) in network for network in found.auth.allow_plaintext_from
    ):
        return "clear"
    if mechanism and mechanism not in (USER_AND_PASS, *mechanisms):
        return "not-offered"
    reason = account.refusal(options.address, is_secure=not options.clear, mechanism=mechanism)
    if reason is None:
        try:
            backends.place_check(found)(account.maildrop)
        except NoMaildrop:
            return "no-maildrop"
    return reason
