"""Code that all commands share: the configuration, parsing of values, output and prompts."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

from .. import config as config_module
from ..app import interrupted, privileges
from ..config import Configuration
from ..errors import ConfigurationError, UnsafeArgument
from ..escaping import printable
from .tables import table


def configuration(options: argparse.Namespace, **overrides: Any) -> Configuration:
    """Load the configuration for this command, and become the server's user if root runs it.

    Files that only root can read must be read before: see ``password_from_file``.

    ``overrides`` are configuration options given on the command line, with "__" in place of ".".

    Raises:
        ConfigurationError: the configuration is invalid, or root runs the command and cannot become
            the server's user.
    """
    options_given = {key.replace("__", "."): value for key, value in overrides.items() if value}
    config = config_module.load(options.config, overrides=options_given)
    if options.command != "serve":
        privileges.drop(config)
        # Without this path, the new user's home directory might be searched for the file.
        options.config = options.config or config.source
    interrupted.refuse(config.state)
    return config


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Let signals that would end the process raise KeyboardInterrupt, so that commands clean up."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_hold(hold: float) -> str:
    """Describe what happens to mail that a client deletes; ``hold`` is in seconds."""
    if hold == inf:
        return "kept in the maildrop"
    days = hold / 86_400
    return f"held {days:g} {'day' if days == 1 else 'days'}" if hold else "destroyed immediately"


def say(text: str) -> None:
    """Print a message to standard error; results go to standard output.

    An error while printing is ignored, so that it cannot make a finished command fail.
    """
    with suppress(OSError):
        print(text, file=sys.stderr)


def print_text(text: str) -> None:
    """Print a line of a result; control characters are escaped."""
    print(printable(text))


def print_table(
    headings: str, rows: Sequence[Sequence[object]], *, right: str = "", shorten: str = ""
) -> None:
    """Print a table; ``headings`` has one word for each column.  Control characters are escaped.

    ``right`` has the headings of the columns that are aligned to the right, and ``shorten`` those
    of the columns that may be shortened to fit into the terminal, or into 80 columns.
    """
    width = columns(most=sys.maxsize) if shorten else 0
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    for line in table(headings.split(), cells, right=right, shorten=shorten, width=width):
        print(line)


def print_fields(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and their values, one pair per line, indented."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(printable(f"  {name:<{width}}  {value}"))


def columns(most: int = 100) -> int:
    """Return the width of the terminal, at most ``most``; 100 columns of prose are easy to read."""
    import shutil  # takes 2 ms, with all compression libraries

    return min(shutil.get_terminal_size().columns, most)


def seconds(text: str) -> float:
    try:
        return config_module.duration(text)
    except Exception as error:
        raise UnsafeArgument(
            f"{text!r} is not a valid duration; write a number and a unit, as in "
            '"90s", "10min", "2h" or "14d"'
        ) from error


def days(text: str) -> int:
    """Parse a time in whole days, at least 1, so that users can see mail before it is removed."""
    number = seconds(text)
    if number < 86_400 or number % 86_400:
        raise UnsafeArgument('the time to keep mail must be in whole days, such as "90d"')
    return int(number) // 86_400


def octets(text: str) -> int:
    try:
        return config_module.octets(text)
    except Exception as error:
        raise UnsafeArgument(
            f'{text!r} is not a valid size; write "500MiB", "2GiB", or a number of octets'
        ) from error


def password_from_file(options: argparse.Namespace) -> str:
    """Return the first line of the file of ``--password-file``; empty without this option.

    The file is read only once.  The first call must be before ``configuration``, because only root
    may be able to read the file.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    if not hasattr(options, "file_password"):
        options.file_password = first_line(options.password_file) if options.password_file else ""
    return str(options.file_password)


def first_line(path: Path) -> str:
    """Return the secret in the first line of a file.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        return path.read_text().split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "invalid UTF-8"
        raise ConfigurationError(f"{path}: {text}") from error


def halves(fingerprint: str) -> tuple[str, str]:
    """Split a fingerprint into two parts that fit into 80 columns."""
    groups = fingerprint.split()
    return " ".join(groups[:8]), " ".join(groups[8:])


def print_json(command: str, **values: Any) -> None:
    """Print one JSON object.  Its member ``schema`` names the format of the command's output."""
    import json  # takes 2 ms

    print(json.dumps({"schema": f"restante/{command}/1", **values}), flush=True)


def refuse_json(options: argparse.Namespace) -> None:
    """Refuse ``--json``, so that no program waits for output that never comes.

    Raises:
        UnsafeArgument: ``--json`` was given.
    """
    if options.json:
        raise UnsafeArgument("this command does not support --json")


def confirm(question: str, options: argparse.Namespace) -> bool:
    """Return whether ``--yes`` was given or the user agrees.

    Raises:
        UnsafeArgument: standard input is not a terminal, so the user cannot be asked.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise UnsafeArgument(f"{question} Confirm with --yes.")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    say("Nothing was changed.")
    return False
