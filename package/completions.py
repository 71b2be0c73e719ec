"""Write completion scripts for shells from the parsers of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from restante.cli.command import make_parser

# The standard places below share/ (bash-completion, zsh and fish read them without configuration).
PLACES = {
    "bash": "bash-completion/completions/restante",
    "zsh": "zsh/site-functions/_restante",
    "fish": "fish/vendor_completions.d/restante.fish",
}
_PATHS = {"FILE": shtab.FILE, "PATH": shtab.FILE, "MAILDIR": shtab.DIRECTORY}


def write(share: Path) -> None:
    """Write a script for each shell below ``share``."""
    parser = make_parser(is_complete=True)
    for action in _actions(parser):
        if action.help == argparse.SUPPRESS:  # the list of verbs, which the help shows in groups
            action.help = ""
        if action.metavar in _PATHS:
            action.complete = _PATHS[action.metavar]  # type: ignore[attr-defined]
    for shell, place in PLACES.items():
        path = share / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
