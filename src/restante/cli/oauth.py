"""OAuth 2 of accounts: what the configuration means, and how somebody agrees."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
import webbrowser
from dataclasses import replace
from functools import partial
from getpass import getpass
from typing import TYPE_CHECKING

from ..config import Account, Configuration, Secret
from ..errors import ConfigurationError, ConsentNeeded, UnsafeArgument
from ..log import printable
from . import common, secrets

if TYPE_CHECKING:
    from ..collect.oauth.flow import Application, Provider, Tokens
    from ..collect.oauth.sealed import Tokenfile

_GMAIL = (
    "openid",
    "email",
    "https://www.googleapis.com/auth/gmail.insert",
    "https://www.googleapis.com/auth/gmail.labels",
)
_SOON = 14 * 86_400.0  # seconds before its end in which a consent is told of


def application(name: str, account: Account) -> Application:
    """
    Raises:
        ConfigurationError: something is missing.
    """
    from ..collect.oauth.flow import Application
    from ..collect.oauth.web import check

    chosen = account.oauth
    if not chosen.client_id:
        raise ConfigurationError(f"account.{name}.oauth.client_id: is missing")
    provider = _provider(account)
    for url in (provider.authorize, provider.token, provider.device):
        if url:
            check(url)
    if not provider.token:
        raise ConfigurationError(f"account.{name}.oauth.token_url: is missing")
    secret = ""
    if chosen.client_secret:
        secret = secrets.fetch(chosen.client_secret, f"account.{name}.oauth.client_secret")
    return Application(provider, chosen.client_id, secret)


def _provider(account: Account) -> Provider:
    from ..collect.oauth import flow

    chosen = account.oauth
    match chosen.provider:
        case "google":
            found = flow.GOOGLE
        case "microsoft":
            found = flow.microsoft(chosen.tenant)
        case _:
            # OpenID Connect Core §11: without it a second consent gives no refresh token.
            extra = (("prompt", "consent"),) if "offline_access" in chosen.scopes else ()
            found = flow.Provider(
                chosen.authorize_url, chosen.token_url, chosen.device_url, (), extra=extra
            )
    if chosen.scopes:
        found = replace(found, scopes=chosen.scopes, app_scopes=chosen.scopes)
    return found


def at_destination(name: str, account: Account) -> tuple[str, Account]:
    """The same for ``gmail:``, where mail goes, with a file of its own."""
    scopes = account.to_oauth.scopes or _GMAIL
    chosen = replace(account.to_oauth, scopes=scopes)
    user = account.recipient or account.user
    return f"{name}.to", replace(account, oauth=chosen, user=user)


def tokenfile(found: Configuration, name: str) -> Tokenfile:
    from ..collect.oauth.sealed import Tokenfile, key_in

    folder = found.state / "tokens"
    given: Secret = found.collect.key
    fetch = partial(secrets.fetch, given, "collect.key") if given else None
    return Tokenfile(folder, name, key_in(folder / "key", fetch))


def token(found: Configuration, name: str, account: Account, *, renew: bool = False) -> str:
    """For one login.  Blocking; see ``collect.oauth.web.access_token``."""
    from ..collect.oauth.web import access_token

    try:
        return access_token(
            application(name, account),
            tokenfile(found, name),
            is_service=account.oauth.flow == "client",
            renew=renew,
        )
    except ConsentNeeded as error:
        raise ConsentNeeded(_named(str(error), name)) from error


def _named(text: str, name: str) -> str:
    """What is to be typed next, for this account; ``isp.to`` is that of its destination."""
    words = f"{name.removesuffix('.to')} --to" if name.endswith(".to") else name
    return text.replace("account auth NAME", f"account auth {words}")


async def fresh(found: Configuration, name: str, account: Account, *, renew: bool = False) -> str:
    return await asyncio.to_thread(token, found, name, account, renew=renew)


def add_flows(action: argparse.ArgumentParser) -> None:
    """Options that say how somebody agrees."""
    flows = action.add_mutually_exclusive_group()
    for flow, name, text in (
        ("browser", "--browser", "sign in in a browser on this machine"),
        ("paste", "--paste", "in a browser anywhere, and paste the address where it ends here"),
        ("device", "--device", "on a telephone or elsewhere, by entering a code"),
        ("client", "--client-credentials", "nobody signs in: the application's secret is enough"),
    ):
        flows.add_argument(name, dest="flow", action="store_const", const=flow, help=text)


def agree(found: Configuration, name: str, account: Account, flow: str) -> Tokens:
    """Somebody signs in; what comes of it is on disk on return.

    Raises:
        ConsentNeeded: nobody did, or it was somebody else.
    """
    app = application(name, account)
    flow = _flow(flow, account)
    tokens = _ask(app, account, flow)
    if flow != "client" and not tokens.refresh:
        common.say("the provider gave no refresh token, so this lasts for an hour or so only")
    if tokens.user and tokens.user.lower() != account.user.lower():
        common.say(printable(f"signed in as {tokens.user}; the account's user is {account.user}"))
    file = tokenfile(found, name)
    with file.alone():
        file.put(tokens)
    return tokens


def _flow(asked: str, account: Account) -> str:
    chosen = asked or account.oauth.flow
    if chosen != "auto":
        return chosen
    has_browser = account.oauth.provider == "google" or bool(account.oauth.authorize_url)
    if not has_browser:
        return "device"
    return "browser" if _has_screen() else "paste"


def _has_screen() -> bool:
    is_window = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return is_window or sys.platform == "darwin"


def _ask(app: Application, account: Account, flow: str) -> Tokens:
    from ..collect.oauth import web

    match flow:
        case "browser":
            return web.by_browser(app, account.user, _open)
        case "paste":
            return web.by_pasting(app, account.user, _show, _pasted)
        case "device":
            return web.by_device(app, _enter)
        case "client":
            return web.by_itself(app)
    raise UnsafeArgument(f"no such flow: {flow}")


def _open(url: str) -> None:
    common.say(f"Open this address in a browser on this machine, and sign in:\n\n{url}\n")
    if _has_screen():
        webbrowser.open(url)


def _show(url: str) -> None:
    common.say(
        f"Open this address in a browser anywhere, and sign in:\n\n{url}\n\n"
        "The last page cannot be shown; copy its address from the browser and paste it here."
    )


def _pasted() -> str:
    """Not shown: it holds a code."""
    return getpass("Address: ") if sys.stdin.isatty() else sys.stdin.readline()


def _enter(address: str, user_code: str) -> None:
    common.say(f"Open {address} on any device, and enter {user_code}")


def state(found: Configuration, name: str, account: Account) -> str:
    """For a person: whether somebody agreed, and how long that lasts."""
    file = tokenfile(found, name)
    tokens = file.get()
    if account.oauth.flow == "client":
        return "by the application's secret" + _failure(file, name)
    if tokens is None:
        return f"nobody has agreed; next: restante account auth {name}"
    since = f"agreed {_day(tokens.agreed_at)}"
    if tokens.user:
        since += f" by {printable(tokens.user)}"
    since += _failure(file, name)
    if tokens.refresh_expires_at is None:
        return since
    left = tokens.refresh_expires_at - time.time()
    if left < 0:
        ended = _day(tokens.refresh_expires_at)
        return f"{since}, run out {ended}; next: restante account auth {name}"
    hint = f"; next: restante account auth {name}" if left < _SOON else ""
    return f"{since}, until {_day(tokens.refresh_expires_at)}{hint}"


def _failure(file: Tokenfile, name: str) -> str:
    found = file.failure()
    if found is None:
        return ""
    return f", not renewed {_day(found[0])}: {printable(_named(found[1], name))}"


def ends(found: Configuration, name: str) -> float | None:
    """When the consent ends, in seconds since the epoch, if the provider tells."""
    tokens = tokenfile(found, name).get()
    return tokens.refresh_expires_at if tokens is not None else None


def ends_soon(found: Configuration, name: str) -> float | None:
    """The same, if that is soon and still to come."""
    end = ends(found, name)
    return end if end is not None and 0 < end - time.time() < _SOON else None


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))
