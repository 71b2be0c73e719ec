"""``restante``: reads the command line and turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .. import __version__
from ..errors import RestanteError

_VERBS = ("demo", "serve", "user", "maildrop", "deliver", "fetch", "account", "collect", "check")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (sysexits.h)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help(sys.stderr)
        return os.EX_USAGE
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `restante … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_OK
    except (RestanteError, OSError, KeyboardInterrupt) as error:
        return _explain(error, options)


def _explain(error: BaseException, options: argparse.Namespace) -> int:
    from ..log import printable
    from .common import exit_code

    if options.verbose:
        traceback.print_exception(error)
    text = str(error) or "stopped"
    for line in text.splitlines():
        print(f"restante {options.verb}: {printable(line)}", file=sys.stderr)
    return exit_code(error)


class _Parser(argparse.ArgumentParser):
    """Ends with EX_USAGE on a mistake, as every other error of ours has its sysexits code."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="restante",
        description="Mail held until called for: a POP3 server and what belongs to it.",
        epilog="restante VERB --help tells more. Exit codes are those of sysexits.h; "
        "75 means: try again, nothing is lost.",
    )
    parser.add_argument("--version", action="version", version=f"restante {__version__}")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="the configuration (restante.toml)"
    )
    parser.add_argument("--json", action="store_true", help="results as JSON, for programs")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell where an error arose")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name in _VERBS:
        import_module(f".{name}", __package__).add_parser(verbs)
    return parser
