"""What the verbs share: configuration, stores, exit codes, ways to speak."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from .. import config
from ..auth.users import BadName, BadPassword, NameTaken, Users
from ..config import Configuration
from ..errors import (
    AuthenticationFailed,
    CannotListen,
    ConfigurationError,
    LoginFailed,
    MessageRefused,
    NoSuchUser,
    PermanentFailure,
    ProtocolBroken,
    RestanteError,
    TLSUnavailable,
    UnsafeArgument,
)
from ..store.maildir import MaildirStore
from ..store.memory import MemoryStore

# The first row that fits decides (sysexits.h).
_EXIT_CODES: tuple[tuple[type[RestanteError], int], ...] = (
    (CannotListen, os.EX_UNAVAILABLE),
    (ConfigurationError, os.EX_CONFIG),
    (NoSuchUser, os.EX_NOUSER),
    (NameTaken, os.EX_CANTCREAT),
    (BadName, os.EX_USAGE),
    (BadPassword, os.EX_USAGE),
    (UnsafeArgument, os.EX_USAGE),
    (MessageRefused, os.EX_DATAERR),
    (TLSUnavailable, os.EX_NOPERM),
    (AuthenticationFailed, os.EX_NOPERM),
    (ProtocolBroken, os.EX_PROTOCOL),
    (PermanentFailure, os.EX_CONFIG),
)


def exit_code(error: BaseException) -> int:
    """What the shell is told (sysexits.h)."""
    if isinstance(error, RestanteError):
        if error.retry:
            return os.EX_TEMPFAIL
        if isinstance(error, LoginFailed):
            return os.EX_NOPERM
        found = (code for kind, code in _EXIT_CODES if isinstance(error, kind))
        return next(found, os.EX_UNAVAILABLE)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return os.EX_IOERR if isinstance(error, OSError) else os.EX_SOFTWARE


def configuration(options: argparse.Namespace, **overrides: Any) -> Configuration:
    """The configuration in force for this command."""
    given = {key.replace("__", "."): value for key, value in overrides.items() if value}
    return config.load(options.config, overrides=given)


def users(found: Configuration) -> Users:
    domains = {"localhost", found.server.hostname, *found.intake.smtp.domains}
    return Users(Path(found.auth.users), domains=domains)


def store(found: Configuration) -> MaildirStore | MemoryStore:
    if found.store.kind == "memory":
        return MemoryStore()
    if found.store.path == f"{found.state}/mail/%u":  # ours to make; any other may be a mount
        (found.state / "mail").mkdir(mode=0o700, parents=True, exist_ok=True)
    return MaildirStore(found.store.path, hold=found.store.hold)


def say(text: str) -> None:
    """Talk; results go to standard output."""
    print(text, file=sys.stderr)


def print_json(verb: str, **values: Any) -> None:
    """One object; every verb's has a schema."""
    print(json.dumps({"schema": f"restante/{verb}/1", **values}))


def confirm(question: str, options: argparse.Namespace) -> bool:
    """``--yes``, or a person who says so."""
    if options.yes:
        return True
    if not sys.stdin.isatty():
        say(f"{question} Not without --yes.")
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
