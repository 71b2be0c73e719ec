"""Options of ``account add`` that describe the destination of collected mail."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..config import Configuration
from ..errors import UnsafeArgument
from . import prompts

_GMAIL_DOMAINS = ("gmail.com", "googlemail.com")


def add_options(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--to",
        metavar="PLACE",
        help="where to deliver: maildrop:USER, maildir:PATH, imaps://USER@HOST/FOLDER, "
        "gmail:LABEL, lmtp:HOST:PORT, command:PROGRAM …",
    )
    action.add_argument(
        "--recipient",
        metavar="ADDRESS",
        help="the recipient's address for an lmtp: or smtp: destination, or the Gmail address for "
        "a gmail: destination",
    )
    prompts.add_secret(action, "to-password", "the password for an imaps: destination")
    action.add_argument(
        "--to-client-id",
        metavar="ID",
        help="client ID of the app registered with Google, for a gmail: destination",
    )
    prompts.add_secret(
        action, "to-client-secret", "the client secret of the app registered with Google"
    )
    action.add_argument(
        "--to-ca-file",
        type=Path,
        metavar="FILE",
        help="trust the CA certificates in FILE (PEM) instead of the system's for an imaps: "
        "destination",
    )
    action.add_argument(
        "--poll-on-login",
        metavar="TIME",
        help="with --to maildrop:USER, also collect when that user logs in; the login waits at "
        "most TIME for new mail",
    )


@dataclass(slots=True)
class Destination:
    """The configuration options of a destination."""

    values: dict[str, Any] = field(default_factory=dict)
    oauth: dict[str, Any] = field(default_factory=dict)
    """The options of the section ``to_oauth``."""

    @property
    def kind(self) -> str:
        kind, colon, _ = str(self.values["to"]).partition(":")
        return kind if colon else ""


def destination(
    options: argparse.Namespace, config: Configuration, name: str, user: str
) -> Destination:
    """Return the destination without its secrets.

    ``ask_for_secrets`` asks for them later, when all options are known to be valid.

    ``user`` is the user name on the account's POP3 server.

    Raises:
        UnsafeArgument: an option is missing, or conflicts with another option.
    """
    result = Destination({"to": absolute(options.to or _ask_for_destination(name))})
    kind = result.kind
    result.values["recipient"] = options.recipient or _ask_for_recipient(kind, user)
    result.values["poll_on_login"] = options.poll_on_login
    if options.poll_on_login and kind != "maildrop":
        raise UnsafeArgument("--poll-on-login requires --to maildrop:USER")
    if options.to_ca_file:
        result.values["to_ca_file"] = str(options.to_ca_file.resolve())
    if kind == "gmail":
        result.oauth = {"provider": "google", **_app(options, config)}
    elif options.to_client_id:
        raise UnsafeArgument("--to-client-id requires --to gmail:LABEL")
    return result


def _app(options: argparse.Namespace, config: Configuration) -> Mapping[str, Any]:
    app = {
        "client_id": options.to_client_id,
        "client_secret": prompts.given_secret(options, "to-client-secret"),
    }
    if not options.to_client_id:
        shared = prompts.shared_app(config, "google")
        app |= shared or {"client_id": prompts.client_id("google", "--to-client-id")}
    return app


def ask_for_secrets(
    options: argparse.Namespace, config: Configuration, name: str, result: Destination
) -> None:
    if result.kind in ("imap", "imaps"):
        parts = urlsplit(str(result.values["to"]))
        question = f"Password for {unquote(parts.username or '')} at {parts.hostname}"
        result.values["to_password"] = prompts.given_secret(
            options, "to-password"
        ) or prompts.ask_for_secret(config, f"{name}.to", question, "--to-password-file FILE")
    elif prompts.given_secret(options, "to-password"):
        raise UnsafeArgument("--to-password-… requires --to imaps://USER@HOST/FOLDER")
    if result.oauth and not result.oauth["client_secret"]:
        result.oauth["client_secret"] = prompts.ask_for_secret(
            config,
            f"{name}.to.client",
            "Client secret of the app registered with Google",
            "--to-client-secret-file FILE",
        )


def offer_polling(result: Destination, user: str) -> None:
    """Offer to collect at each login, so that the maildrop serves devices without OAuth 2."""
    _, _, maildrop = str(result.values["to"]).partition(":")
    if result.kind == "maildrop" and not result.values["poll_on_login"]:
        question = f"Collect from {user} whenever {maildrop} logs in to this server?"
        result.values["poll_on_login"] = "20s" if prompts.confirm(question) else None


def _ask_for_destination(name: str) -> str:
    default = Path.home() / "Mail" / name
    question = (
        "Where should this account's mail be delivered?\n"
        "maildrop:USER, maildir:PATH, imaps://USER@HOST/FOLDER, gmail:LABEL, …\n"
        f"[maildir:{default}] "
    )
    if answer := prompts.ask(question, "--to PLACE"):
        return answer
    # A collector does not create the parent directory of a Maildir.
    default.parent.mkdir(exist_ok=True)
    return f"maildir:{default}"


def _ask_for_recipient(kind: str, user: str) -> str:
    """Ask for the recipient if the default, the account's user, is not a suitable address."""
    if not sys.stdin.isatty():
        return ""
    domain = user.rpartition("@")[2].lower()
    if kind in ("lmtp", "smtp") and "@" not in user:
        return prompts.ask("Address of the recipient: ", "--recipient ADDRESS")
    if kind == "gmail" and domain not in _GMAIL_DOMAINS:
        return prompts.ask("Gmail address to deliver to: ", "--recipient ADDRESS")
    return ""


def absolute(to: str) -> str:
    """Return the destination with an absolute path, because cron uses a different directory.

    Raises:
        UnsafeArgument: a command has unbalanced quotation marks.
    """
    kind, colon, rest = to.partition(":")
    if kind in ("maildir", "mbox") and rest:
        return f"{kind}:{_absolute(rest)}"
    if kind == "command":
        return f"command:{_absolute_program(rest)}"
    return _absolute(to) if to and not colon else to


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _absolute_program(command: str) -> str:
    """Make the program's path absolute, unless it has no "/" and is looked up in PATH."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UnsafeArgument(f"command: {error}") from error
    if not words or "/" not in words[0] or words[0].startswith("/"):
        return command
    return shlex.join([_absolute(words[0]), *words[1:]])
