"""Questions of ``account add``, each with an option that answers it beforehand.

Security: a secret that is typed is not shown, and stands in a file of its own in the state
directory, which only its owner can read; the configuration says where.
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

_REGISTER = {
    "google": "Register an app with Google first. It is free and has to be done only once: at "
    "console.cloud.google.com make a project, enable the Gmail API, and under APIs & Services, "
    'Credentials make an OAuth client ID of the type "Desktop app".',
    "microsoft": "Register an app with Microsoft first. It is free and has to be done only once: "
    "at entra.microsoft.com under App registrations make a new one for accounts in any "
    "organisation and personal ones; add the platform Mobile and desktop with the address "
    "http://localhost, allow public client flows, and give it the delegated permission "
    "POP.AccessAsUser.All.",
}
_KINDS = (
    ("file", "FILE", "{what} is its first line"),
    ("env", "NAME", "an environment variable"),
    ("credential", "NAME", "of systemd (LoadCredential=)"),
    ("keyring", "NAME", "in the key ring, under restante"),
)


def asked(question: str, option: str) -> str:
    """What the user types.

    Raises:
        UnsafeArgument: there is no terminal, so ``option`` is required.
    """
    if not sys.stdin.isatty():
        raise UnsafeArgument(f"there is no terminal to ask at; next: {option}")
    return input(question).strip()


def is_confirmed(question: str) -> bool:
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def add_secret(action: argparse.ArgumentParser, name: str, what: str) -> None:
    """The options that say where a secret is."""
    group = action.add_mutually_exclusive_group()
    for kind, metavar, text in _KINDS:
        group.add_argument(f"--{name}-{kind}", metavar=metavar, help=text.format(what=what))
    text = "prints it; must come last"
    group.add_argument(f"--{name}-command", metavar="COMMAND", nargs="+", help=text)


def given_secret(options: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """A reference to a secret, as the configuration holds it; None: no option names one."""
    for kind in ("file", "env", "credential", "keyring", "command"):
        if value := getattr(options, f"{name}_{kind}".replace("-", "_")):
            return {kind: str(Path(value).resolve()) if kind == "file" else value}
    return None


def typed_secret(config: Configuration, name: str, question: str, option: str) -> dict[str, str]:
    """A reference to the file ``name`` in which it is, durable on return.  Without a terminal it is
    the next line of standard input.

    Raises:
        UnsafeArgument: nothing was typed.
    """
    from ..collect.oauth.sealed import write_durably

    line = getpass(f"{question}: ") if sys.stdin.isatty() else sys.stdin.readline()
    typed = line.rstrip("\r\n")
    if not typed:
        raise UnsafeArgument(f"{question}: missing; next: {option}, or a line of standard input")
    path = secret_file(config, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, f"{typed}\n".encode())
    return {"file": str(path)}


def secret_file(config: Configuration, name: str) -> Path:
    return config.state / "passwords" / name


def client_id(provider: str, option: str) -> str:
    """Of an application that the user registers with the provider."""
    if words := _REGISTER.get(provider):
        text = f"{words} You will be given a client ID. Further accounts will use it, too."
        common.say(textwrap.fill(text, common.columns(), break_on_hyphens=False))
    if typed := asked("Client ID: ", f"{option} ID"):
        return typed
    raise UnsafeArgument(f"a client ID is required; next: {option} ID")


def registered(config: Configuration, provider: str) -> dict[str, Any] | None:
    """The application of another account at this provider; None: there is none to share."""
    for name, account in config.account.items():
        for known in (account.oauth, account.to_oauth):
            secret = known.client_secret
            is_written = secret and secret.kind == "text"  # which is not copied
            if known.provider == provider and known.client_id and not is_written:
                common.say(f"using the application of the account {name}")
                value = list(secret.value) if secret.kind == "command" else secret.value
                shared = {secret.kind: value} if secret else None
                return {"client_id": known.client_id, "client_secret": shared}
    return None
