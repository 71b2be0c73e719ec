"""What the verbs share: configuration, stores, exit codes, ways to speak."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

from .. import config
from ..config import Configuration
from ..errors import (
    ConfigurationError,
    UnsafeArgument,
)
from ..posix import pwd
from ..store.paths import Template


def configuration(options: argparse.Namespace, **overrides: Any) -> Configuration:
    """The configuration in force for this command."""
    given = {key.replace("__", "."): value for key, value in overrides.items() if value}
    found = config.load(options.config, overrides=given)
    if options.verb not in ("serve", "check") and getattr(os, "geteuid", lambda: 1)() == 0:
        _refuse_root(found)
    return found


def _refuse_root(found: Configuration) -> None:
    """What root makes among the files of the server's user, the server cannot open.

    Raises:
        ConfigurationError: they are another user's.
    """
    for place in (Path(found.auth.users).parent, Path(Template(found.store.path).base)):
        with suppress(FileNotFoundError):
            if owner := place.stat().st_uid:
                try:
                    name = pwd.getpwuid(owner).pw_name
                except KeyError:
                    name = str(owner)
                raise ConfigurationError(
                    f"{place} belongs to {name}, who could not read what root makes there; "
                    f"next: runuser -u {name} -- restante …"
                )


def told_hold(hold: float) -> str:
    """What becomes of mail that a client deletes; ``hold`` in seconds."""
    if hold == inf:
        return "kept in the maildrop"
    return f"held {hold / 86_400:g} days" if hold else "destroyed at once"


def say(text: str) -> None:
    """Talk; results go to standard output.  Where it cannot be written nothing else fails."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def columns() -> int:
    """For prose; a terminal may be wider than it is easy to read."""
    return min(shutil.get_terminal_size().columns, 100)


def seconds(text: str) -> float:
    try:
        return config.duration(text)
    except Exception as error:
        raise UnsafeArgument('a time is "90s", "10min", "2h" or "14d"') from error


def days(text: str) -> int:
    """Whole days, one at least: what is removed by itself was there long enough to be seen."""
    found = seconds(text)
    if found < 86_400 or found % 86_400:
        raise UnsafeArgument('a time to keep mail is one in whole days, such as "90d"')
    return int(found) // 86_400


def octets(text: str) -> int:
    try:
        return config.octets(text)
    except Exception as error:
        raise UnsafeArgument('a size is "500MiB", "2GiB", or a number of octets') from error


def halves(fingerprint: str) -> tuple[str, str]:
    """A fingerprint in two parts, for lines of 80 columns."""
    groups = fingerprint.split()
    return " ".join(groups[:8]), " ".join(groups[8:])


def print_json(verb: str, **values: Any) -> None:
    """One object; every verb's has a schema."""
    print(json.dumps({"schema": f"restante/{verb}/1", **values}), flush=True)


def refuse_json(options: argparse.Namespace) -> None:
    """
    Raises:
        UnsafeArgument: JSON is asked of a command that has none, so that no program waits for it.
    """
    if options.json:
        raise UnsafeArgument("this command has no --json")


def confirm(question: str, options: argparse.Namespace) -> bool:
    """Whether ``--yes`` was given, or the user agrees.

    Raises:
        UnsafeArgument: there is no terminal to ask at.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise UnsafeArgument(f"{question} Not without --yes.")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    say("Nothing was changed.")
    return False
