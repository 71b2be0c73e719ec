"""``restante auth``: explain why a login would be accepted or refused."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Collection
from contextlib import closing
from ipaddress import ip_address
from shlex import quote

from ..app import backends, stores, throttling
from ..auth.chain import Chain
from ..auth.throttle import Facts
from ..config import Configuration
from ..errors import NoMaildrop, NoSuchUser, UnsafeArgument
from ..passdb import UserAccount
from ..sasl.choice import USER_AND_PASS
from ..server.login import supported_mechanisms
from ..server.views import interpret
from . import common

_REASONS = {
    "disabled": "the user is disabled",
    "network": "the user may not log in from this network",
    "needs-tls": "the user must log in with TLS",
    "mechanism": "the user may not use this mechanism",
    "clear": "logins without TLS are refused from this address; see auth.allow_plaintext_from",
    "not-offered": "the server does not offer this mechanism; see auth.mechanisms",
    "no-maildrop": "store.path defines no maildrop for this name",
    "no-password": "the hash is locked, malformed or too expensive, so no password matches it",
}
_WITHOUT_PASSWORD = ("OAUTHBEARER", "XOAUTH2", "EXTERNAL")
# Advice for users in restante's own database; other back ends are managed differently.
_ADVICE = {
    "disabled": ". Run: restante user enable {user}",
    "network": ". Run: restante user permit {user} --network any",
    "needs-tls": ". Run: restante user permit {user} --no-tls",
    "mechanism": ". Run: restante user permit {user} --mechanism any",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser(
        "why", help="show whether a login with the correct password would be accepted or refused"
    )
    action.add_argument("user", metavar="USER", help="the user's name")
    action.add_argument("address", metavar="ADDRESS", help="the IP address of the client")
    action.add_argument("--clear", action="store_true", help="check a login without TLS")
    action.add_argument(
        "--mechanism",
        metavar="NAME",
        default="",
        help="check a login with this mechanism, such as PLAIN, or USER for USER/PASS",
    )
    action.set_defaults(run=why)


def why(options: argparse.Namespace) -> int:
    """Return 0 if a correct password would be accepted, otherwise 77."""
    try:
        ip_address(options.address)
    except ValueError:
        raise UnsafeArgument(f"{options.address!r} is not an IP address") from None
    config = common.configuration(options)
    with closing(backends.chain(config, stores.users(config))) as chain:
        backend, account = asyncio.run(_find(chain, options.user, config.auth.folder_separator))
        if account is None:
            raise NoSuchUser(options.user)
        mechanisms = supported_mechanisms(chain, config.auth.mechanisms)
    reason, user = _reason(options, config, account, mechanisms), account.user
    uses_password = options.mechanism.upper() not in _WITHOUT_PASSWORD
    if reason is None and uses_password and backend == "passwd-file":
        reason = None if _has_password(config, user) else "no-password"
    with closing(throttling.throttle(config)) as throttle:
        facts = throttle.facts(user, options.address)
    if options.json:
        row = {"user": user, "backend": backend, "allowed": reason is None, "reason": reason}
        common.print_json("auth-why", **row, **_as_json(facts))
    elif reason is None:
        print(
            f"{user} (back end: {backend}): a correct password is accepted from {options.address}"
        )
    else:
        advice = _ADVICE.get(reason, "").format(user=quote(user)) if backend == "users" else ""
        print(f"{user} (back end: {backend}) is refused: {_REASONS[reason]}{advice}")
    if not options.json:
        print(f"{options.address}: {_describe(facts)}")
        if facts.sprayed >= 0.5:
            print(_describe_spray(facts))
    return os.EX_OK if reason is None else os.EX_NOPERM


def _has_password(config: Configuration, user: str) -> bool:
    with closing(backends.passwd_file(config.auth)) as file:
        return file.has_password(user)


def _describe(facts: Facts) -> str:
    """Describe what the server has recorded about the address; this may be a minute old.

    Only responses to wrong passwords are delayed.
    """
    known = "a network the user logs in from" if facts.is_known else "a new network for this user"
    recent = "trusted" if facts.is_trusted else f"{facts.guesses:.0f} recent failed guesses"
    return f"{known}, {recent}; a wrong password is answered after {facts.delay:.1f} s"


def _describe_spray(facts: Facts) -> str:
    return (
        f"password spraying: {facts.sprayed:.0f} recent attempts with the same passwords for many "
        f"users; attempts with these passwords are answered after {facts.sprayed_delay:.1f} s from "
        "any address"
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


async def _find(chain: Chain, name: str, separator: str) -> tuple[str, UserAccount | None]:
    """Look up the user as for a login; the name may include a folder."""
    user, _ = await interpret(chain, name, separator)
    return await chain.find(user)


def _reason(
    options: argparse.Namespace,
    config: Configuration,
    account: UserAccount,
    mechanisms: Collection[str],
) -> str | None:
    """Return the first reason for a refusal, in the order of the server's checks."""
    mechanism = options.mechanism.upper()
    if options.clear and not any(
        ip_address(options.address) in network for network in config.auth.allow_plaintext_from
    ):
        return "clear"
    if mechanism and mechanism not in (USER_AND_PASS, *mechanisms):
        return "not-offered"
    reason = account.refusal(options.address, is_secure=not options.clear, mechanism=mechanism)
    if reason is None:
        try:
            backends.maildrop_check(config)(account.maildrop)
        except NoMaildrop:
            return "no-maildrop"
    return reason
