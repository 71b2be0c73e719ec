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

_MAILBOXES = ("gmail.com", "googlemail.com")


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
        help="the recipient's address if the destination is lmtp: or smtp:, or the Gmail user's "
        "if it is gmail:",
    )
    prompts.add_secret(action, "to-password", "the password for an imaps: destination")
    action.add_argument(
        "--to-client-id",
        metavar="ID",
        help="client ID of the app registered with Google, for a gmail: destination",
    )
    prompts.add_secret(action, "to-client-secret", "the client secret of the app at Google")
    action.add_argument(
        "--to-ca-file",
        type=Path,
        metavar="FILE",
        help="trust the CA certificates in FILE (PEM) for an imaps: destination, not those of the "
        "system",
    )
    action.add_argument(
        "--poll-on-login",
        metavar="TIME",
        help="with --to maildrop:USER, also collect when that user logs in; the login waits at "
        "most TIME for it",
    )


@dataclass(slots=True)
class Destination:
    """The configuration options of a destination."""

    values: dict[str, Any] = field(default_factory=dict)
    oauth: dict[str, Any] = field(default_factory=dict)
    """Values of the section ``to_oauth``."""

    @property
    def kind(self) -> str:
        kind, colon, _ = str(self.values["to"]).partition(":")
        return kind if colon else ""


def destination(
    options: argparse.Namespace, config: Configuration, name: str, user: str
) -> Destination:
    """Return all options except secrets, so that mistakes are found before a password is typed.

    ``user`` is the user name at the account's server.

    Raises:
        UnsafeArgument: an option is missing, or contradicts another one.
    """
    result = Destination({"to": absolute(options.to or _asked_place(name))})
    kind = result.kind
    result.values["recipient"] = options.recipient or _asked_recipient(kind, user)
    result.values["poll_on_login"] = options.poll_on_login
    if options.poll_on_login and kind != "maildrop":
        raise UnsafeArgument("--poll-on-login requires --to maildrop:USER")
    if options.to_ca_file:
        result.values["to_ca_file"] = str(options.to_ca_file.resolve())
    if kind == "gmail":
        result.oauth = {"provider": "google", **_application(options, config)}
    elif options.to_client_id:
        raise UnsafeArgument("--to-client-id requires --to gmail:LABEL")
    return result


def _application(options: argparse.Namespace, config: Configuration) -> Mapping[str, Any]:
    given = {
        "client_id": options.to_client_id,
        "client_secret": prompts.given_secret(options, "to-client-secret"),
    }
    if not options.to_client_id:
        shared = prompts.registered(config, "google")
        given |= shared or {"client_id": prompts.client_id("google", "--to-client-id")}
    return given


def ask_secrets(
    options: argparse.Namespace, config: Configuration, name: str, result: Destination
) -> None:
    if result.kind in ("imap", "imaps"):
        parts = urlsplit(str(result.values["to"]))
        question = f"Password for {unquote(parts.username or '')} at {parts.hostname}"
        result.values["to_password"] = prompts.given_secret(
            options, "to-password"
        ) or prompts.typed_secret(config, f"{name}.to", question, "--to-password-file FILE")
    elif prompts.given_secret(options, "to-password"):
        raise UnsafeArgument("--to-password-… requires --to imaps://USER@HOST/FOLDER")
    if result.oauth and not result.oauth["client_secret"]:
        result.oauth["client_secret"] = prompts.typed_secret(
            config,
            f"{name}.to.client",
            "Secret of the app at Google",
            "--to-client-secret-file FILE",
        )


def offer_polling(result: Destination, user: str) -> None:
    """Offer to collect at each login, so that the maildrop serves devices without OAuth 2."""
    _, _, maildrop = str(result.values["to"]).partition(":")
    if result.kind == "maildrop" and not result.values["poll_on_login"]:
        question = f"Collect from {user} whenever {maildrop} logs in to this server?"
        result.values["poll_on_login"] = "20s" if prompts.is_confirmed(question) else None


def _asked_place(name: str) -> str:
    default = Path.home() / "Mail" / name
    question = (
        "Where should this account's mail be delivered?\n"
        "maildrop:USER, maildir:PATH, imaps://USER@HOST/FOLDER, gmail:LABEL, …\n"
        f"[maildir:{default}] "
    )
    if answer := prompts.asked(question, "--to PLACE"):
        return answer
    default.parent.mkdir(exist_ok=True)  # a collector does not create the directory above a Maildir
    return f"maildir:{default}"


def _asked_recipient(kind: str, user: str) -> str:
    """Ask for the recipient if the default, the account's user, is not a suitable address."""
    if not sys.stdin.isatty():
        return ""
    domain = user.rpartition("@")[2].lower()
    if kind in ("lmtp", "smtp") and "@" not in user:
        return prompts.asked("Address of the recipient: ", "--recipient ADDRESS")
    if kind == "gmail" and domain not in _MAILBOXES:
        return prompts.asked("Gmail address to deliver to: ", "--recipient ADDRESS")
    return ""


def absolute(to: str) -> str:
    """Return the destination with an absolute path, since cron uses another directory.

    Raises:
        UnsafeArgument: the quotation marks of a command do not match.
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
    """Make the program's path absolute; a name without "/" is searched for in PATH instead."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UnsafeArgument(f"command: {error}") from error
    if not words or "/" not in words[0] or words[0].startswith("/"):
        return command
    return shlex.join([_absolute(words[0]), *words[1:]])
