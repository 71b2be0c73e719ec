"""The destination's part of ``account add``: what each kind of destination needs to be told."""

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
        help="where mail goes: maildrop:USER, maildir:PATH, imaps://USER@HOST/FOLDER, gmail:LABEL, "
        "lmtp:HOST:PORT, command:PROGRAM …",
    )
    action.add_argument(
        "--recipient", metavar="ADDRESS", help="for lmtp: and smtp:; and who signs in for gmail:"
    )
    prompts.add_secret(action, "to-password", "the password for imaps:")
    action.add_argument(
        "--to-client-id", metavar="ID", help="for gmail:, of the application at Google"
    )
    prompts.add_secret(action, "to-client-secret", "the secret of that application")
    action.add_argument(
        "--to-ca-file", type=Path, metavar="FILE", help="trust these certificates for imaps:"
    )
    action.add_argument(
        "--poll-on-login",
        metavar="TIME",
        help="for maildrop:USER: collect when that user logs in, which waits so long at most",
    )


@dataclass(slots=True)
class Destination:
    """Answers about a destination, as the configuration holds them."""

    values: dict[str, Any] = field(default_factory=dict)
    oauth: dict[str, Any] = field(default_factory=dict)
    """The section ``to_oauth``."""

    @property
    def kind(self) -> str:
        kind, colon, _ = str(self.values["to"]).partition(":")
        return kind if colon else ""


def destination(
    options: argparse.Namespace, config: Configuration, name: str, user: str
) -> Destination:
    """All but the secrets, so that what is missing shows before a password is typed.  ``user``: of
    the account.

    Raises:
        UnsafeArgument: something is missing, or does not go together.
    """
    found = Destination({"to": absolute(options.to or _asked_place(name))})
    kind = found.kind
    found.values["recipient"] = options.recipient or _asked_recipient(kind, user)
    found.values["poll_on_login"] = options.poll_on_login
    if options.poll_on_login and kind != "maildrop":
        raise UnsafeArgument("--poll-on-login needs --to maildrop:USER")
    if options.to_ca_file:
        found.values["to_ca_file"] = str(options.to_ca_file.resolve())
    if kind == "gmail":
        found.oauth = {"provider": "google", **_application(options, config)}
    elif options.to_client_id:
        raise UnsafeArgument("--to-client-id needs --to gmail:LABEL")
    return found


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
    options: argparse.Namespace, config: Configuration, name: str, found: Destination
) -> None:
    if found.kind in ("imap", "imaps"):
        parts = urlsplit(str(found.values["to"]))
        question = f"Password of {unquote(parts.username or '')} at {parts.hostname}"
        found.values["to_password"] = prompts.given_secret(
            options, "to-password"
        ) or prompts.typed_secret(config, f"{name}.to", question, "--to-password-file FILE")
    elif prompts.given_secret(options, "to-password"):
        raise UnsafeArgument("--to-password-… needs --to imaps://USER@HOST/FOLDER")
    if found.oauth and not found.oauth["client_secret"]:
        found.oauth["client_secret"] = prompts.typed_secret(
            config,
            f"{name}.to.client",
            "Secret of the application at Google",
            "--to-client-secret-file FILE",
        )


def offer_polling(found: Destination, user: str) -> None:
    """For a device that cannot do OAuth 2, a maildrop here stands between it and the mailbox."""
    _, _, maildrop = str(found.values["to"]).partition(":")
    if found.kind == "maildrop" and not found.values["poll_on_login"]:
        question = f"Collect from {user} whenever {maildrop} logs in here?"
        found.values["poll_on_login"] = "20s" if prompts.is_confirmed(question) else None


def _asked_place(name: str) -> str:
    default = Path.home() / "Mail" / name
    question = (
        "Where should this account's mail be delivered?\n"
        "maildrop:USER, maildir:PATH, imaps://USER@HOST/FOLDER, gmail:LABEL, …\n"
        f"[maildir:{default}] "
    )
    if answer := prompts.asked(question, "--to PLACE"):
        return answer
    default.parent.mkdir(exist_ok=True)  # a collector makes no directory above a Maildir
    return f"maildir:{default}"


def _asked_recipient(kind: str, user: str) -> str:
    """Only where the account's user, which is the default, is no address that fits."""
    if not sys.stdin.isatty():
        return ""
    domain = user.rpartition("@")[2].lower()
    if kind in ("lmtp", "smtp") and "@" not in user:
        return prompts.asked("Address of the recipient: ", "--recipient ADDRESS")
    if kind == "gmail" and domain not in _MAILBOXES:
        return prompts.asked("Gmail address that it goes to: ", "--recipient ADDRESS")
    return ""


def absolute(to: str) -> str:
    """The same destination from wherever a command is run, as cron does it elsewhere.

    Raises:
        UnsafeArgument: a command whose quotation marks do not match.
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
    """A name without "/" is looked for in PATH, and stays as it is."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UnsafeArgument(f"command: {error}") from error
    if not words or "/" not in words[0] or words[0].startswith("/"):
        return command
    return shlex.join([_absolute(words[0]), *words[1:]])
