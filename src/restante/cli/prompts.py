"""Prompts of ``account add``; each prompt can be avoided with an option.

Security: secrets are not echoed when they are typed.  Each secret is stored in a separate file in
the state directory; only its owner can read it, and the configuration contains only its path.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from getpass import getpass
from pathlib import Path
from typing import Any

from ..config import Configuration
from ..errors import UnsafeArgument
from . import common

_INSTRUCTIONS = {
    "google": "Register an app with Google first. It is free and has to be done only once: at "
    "console.cloud.google.com, create a project, enable the Gmail API, and under APIs & Services, "
    'Credentials, create an OAuth client ID of the type "Desktop app".',
    "microsoft": "Register an app with Microsoft first. It is free and has to be done only once: "
    "at entra.microsoft.com, under App registrations, create a registration for accounts in any "
    "organisation and personal accounts; add the platform Mobile and desktop with the address "
    "http://localhost, allow public client flows, and add the delegated permission "
    "POP.AccessAsUser.All.",
}
_SECRET_SOURCES = (
    ("file", "FILE", "{what}, from the first line of a file"),
    ("env", "NAME", "{what}, from an environment variable"),
    ("credential", "NAME", "{what}, from a systemd credential (LoadCredential=)"),
    ("keyring", "NAME", "{what}, from the keyring entry NAME of the service restante"),
)


def ask(question: str, option: str) -> str:
    """Prompt the user and return the answer.

    Raises:
        UnsafeArgument: standard input is not a terminal, so ``option`` is required.
    """
    if not sys.stdin.isatty():
        raise UnsafeArgument(f"standard input is not a terminal; add {option}")
    return input(question).strip()


def confirm(question: str) -> bool:
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def add_secret(action: argparse.ArgumentParser, name: str, what: str) -> None:
    """Add the options that name the source of a secret."""
    group = action.add_mutually_exclusive_group()
    for kind, metavar, text in _SECRET_SOURCES:
        group.add_argument(f"--{name}-{kind}", metavar=metavar, help=text.format(what=what))
    text = f"{what}, from the output of a command; must be the last option"
    group.add_argument(f"--{name}-command", metavar="COMMAND", nargs="+", help=text)


def given_secret(options: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """Return a reference to a secret, as in the configuration; None if no option names one."""
    for kind in ("file", "env", "credential", "keyring", "command"):
        if value := getattr(options, f"{name}_{kind}".replace("-", "_")):
            return {kind: str(Path(value).resolve()) if kind == "file" else value}
    return None


def ask_for_secret(config: Configuration, name: str, question: str, option: str) -> dict[str, str]:
    """Ask for a secret, store it durably in the file ``name``, and return a reference to it.

    If standard input is not a terminal, the secret is its next line.

    Raises:
        UnsafeArgument: the secret is empty.
    """
    from ..collect.oauth.sealed import write_durably

    line = getpass(f"{question}: ") if sys.stdin.isatty() else sys.stdin.readline()
    typed = line.rstrip("\r\n")
    if not typed:
        raise UnsafeArgument(f"{question}: missing; add {option}, or write it to standard input")
    path = secret_file(config, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, f"{typed}\n".encode())
    return {"file": str(path)}


def secret_file(config: Configuration, name: str) -> Path:
    return config.state / "passwords" / name


def client_id(provider: str, option: str) -> str:
    """Ask for the client ID of an app that the user registers with the provider."""
    if instructions := _INSTRUCTIONS.get(provider):
        text = f"{instructions} You will be given a client ID. More accounts can use the same app."
        common.say(textwrap.fill(text, common.columns(), break_on_hyphens=False))
    if typed := ask("Client ID: ", f"{option} ID"):
        return typed
    raise UnsafeArgument(f"a client ID is required; add {option} ID")


def shared_app(config: Configuration, provider: str) -> dict[str, Any] | None:
    """Return the app of another account with this provider; None if no app can be shared."""
    for name, account in config.account.items():
        for app in (account.oauth, account.to_oauth):
            secret = app.client_secret
            # Secrets in the configuration are not copied.
            is_inline = secret and secret.kind == "text"
            if app.provider == provider and app.client_id and not is_inline:
                common.say(f"Using the app of account {name}.")
                value = list(secret.value) if secret.kind == "command" else secret.value
                reference = {secret.kind: value} if secret else None
                return {"client_id": app.client_id, "client_secret": reference}
    return None
