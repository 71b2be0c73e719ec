"""Sign in with OAuth 2 for an account: in a browser, on another device, or by pasting a URL."""

from __future__ import annotations

import argparse
import os
import sys
import time
import webbrowser
from getpass import getpass
from typing import TYPE_CHECKING

from ..app.tokens import SOON, Grant
from ..config import OAuth
from ..errors import UnsafeArgument
from ..escaping import printable
from . import common

if TYPE_CHECKING:
    from ..collect.oauth.flow import Application, Tokens
    from ..collect.oauth.sealed import Tokenfile


def add_flows(action: argparse.ArgumentParser) -> None:
    """Add the options that select how to sign in."""
    flows = action.add_mutually_exclusive_group()
    for flow, name, text in (
        ("browser", "--browser", "sign in with a browser on this machine"),
        ("paste", "--paste", "sign in with a browser on any machine, and paste the final address"),
        ("device", "--device", "sign in on another device by entering a code"),
        ("client", "--client-credentials", "sign in as the app with its secret, without a user"),
    ):
        flows.add_argument(name, dest="flow", action="store_const", const=flow, help=text)


def sign_in(grant: Grant, flow: str) -> Tokens:
    """Let the user sign in, and store the tokens on disk.

    Raises:
        ConsentNeeded: the user did not sign in, or the provider refused the consent.
    """
    flow = _choose_flow(flow, grant.options)
    with grant.naming_command():
        tokens = _run_flow(grant.application(), grant.user, flow)
    if flow != "client" and not tokens.refresh:
        common.say(
            "The provider issued no refresh token, so you must sign in again in about an hour."
        )
    if tokens.user and tokens.user.lower() != grant.user.lower():
        common.say(
            printable(f"Signed in as {tokens.user}, but the account's user is {grant.user}.")
        )
    file = grant.file()
    with file.alone():
        file.put(tokens)
    return tokens


def _choose_flow(requested: str, options: OAuth) -> str:
    chosen = requested or options.flow
    if chosen != "auto":
        return chosen
    has_browser = options.provider == "google" or bool(options.authorize_url)
    if not has_browser:
        return "device"
    return "browser" if _has_screen() else "paste"


def _has_screen() -> bool:
    has_window = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return has_window or sys.platform == "darwin"


def _run_flow(app: Application, user: str, flow: str) -> Tokens:
    from ..collect.oauth import web

    match flow:
        case "browser":
            return web.by_browser(app, user, _open_browser)
        case "paste":
            return web.by_pasting(app, user, _show_address, _read_address)
        case "device":
            return web.by_device(app, _show_code)
        case "client":
            return web.by_client_secret(app)
    raise UnsafeArgument(f"unknown OAuth 2 flow: {flow}")


def _open_browser(url: str) -> None:
    common.say(f"Open this address in a browser on this machine, and sign in:\n\n{url}\n")
    if _has_screen():
        webbrowser.open(url)


def _show_address(url: str) -> None:
    common.say(
        f"Open this address in a browser on any machine, and sign in:\n\n{url}\n\n"
        "After you have signed in, the browser cannot show the last page; copy that page's address "
        "from the browser and paste it at the prompt."
    )


def _read_address() -> str:
    """Read the address without echo, because it contains an authorization code."""
    return getpass("Address: ") if sys.stdin.isatty() else sys.stdin.readline()


def _show_code(address: str, user_code: str) -> None:
    common.say(f"Open {address} on any device, and enter the code {user_code}")


def state(grant: Grant) -> str:
    """Describe whether the user has signed in, and how long the sign-in remains valid."""
    file = grant.file()
    tokens = file.get()
    if grant.options.flow == "client":
        return "with the app's secret" + _failure(grant, file)
    if tokens is None:
        return f"Not signed in yet. Run: {grant.command}"
    text = f"signed in {_day(tokens.agreed_at)}"
    if tokens.user:
        text += f" as {printable(tokens.user)}"
    text += _failure(grant, file)
    end, now = tokens.refresh_expires_at, time.time()
    if end is None:
        return text
    if end < now:
        return f"{text}, expired {_day(end)}. Run: {grant.command}"
    return f"{text}, until {_day(end)}" + (f". Run: {grant.command}" if end - now < SOON else "")


def _failure(grant: Grant, file: Tokenfile) -> str:
    failure = file.failure()
    if failure is None:
        return ""
    at, text = failure
    return f", renewal failed {_day(at)}: {printable(grant.with_command(text))}"


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))
