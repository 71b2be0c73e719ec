"""``restante``: reads the command line and turns errors into exit codes."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import __version__, sysexits

_VERBS = (
    *("demo", "serve", "user", "auth", "maildrop", "import_", "deliver", "fetch", "account"),
    *("collect", "check"),
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (sysexits.h)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(_verb(arguments))
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help(sys.stderr)
        return sysexits.EX_USAGE
    sys.stdout = sys.stdout or io.StringIO()  # `restante … >&-`
    _escape_what_cannot_be_displayed()
    try:
        with _interruptible():
            code: int = options.run(options)
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `restante … | head`
        _discard_output()
        return sysexits.EX_OK
    except (Exception, KeyboardInterrupt) as error:
        _discard_output()
        return _explain(error, options)


def _escape_what_cannot_be_displayed() -> None:
    """Python does so on standard error; on standard output a subject could end the command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt here, where ``main`` made it end the process."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _discard_output() -> None:
    """What standard output cannot take must not fail once more when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException, options: argparse.Namespace) -> int:
    from ..app.failures import describe, exit_code
    from ..log import printable

    code = exit_code(error)
    if code == 130 and sys.stderr.isatty():
        print(file=sys.stderr)  # a question stands there, and ^C
    if options.verbose or code == sysexits.EX_SOFTWARE:
        traceback.print_exception(error)
    for line in describe(error).splitlines():
        print(f"restante {options.verb}: {printable(line)}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Ends with EX_USAGE on a mistake, as every other error of ours has its sysexits code.

    What all verbs share may stand before the verb or after it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        unset = argparse.SUPPRESS
        self.add_argument(
            "-c",
            "--config",
            type=Path,
            metavar="FILE",
            default=unset,
            help="the configuration (restante.toml)",
        )
        self.add_argument(
            "--json", action="store_true", default=unset, help="results as JSON, for programs"
        )
        self.add_argument(
            "-v", "--verbose", action="store_true", default=unset, help="tell where an error arose"
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(sysexits.EX_USAGE, f"{self.prog}: {message}\n")


def _verb(arguments: Sequence[str]) -> str:
    """The first word that is no option, nor the value of one."""
    words = iter(arguments)
    for word in words:
        if word in ("-c", "--config"):
            next(words, "")
        elif not word.startswith("-"):
            return word
    return ""


def make_parser(verb: str = "") -> argparse.ArgumentParser:
    """For one verb, since each loads what it needs; for all of them if there is none like it."""
    parser = _Parser(
        prog="restante",
        description="Mail held until called for: a POP3 server and what belongs to it.",
        epilog="restante VERB --help tells more. Exit codes are those of sysexits.h; "
        "75 means: try again, nothing is lost.",
    )
    parser.add_argument("--version", action="version", version=f"restante {__version__}")
    parser.set_defaults(config=None, json=False, verbose=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name in [each for each in _VERBS if each.rstrip("_") == verb] or _VERBS:
        import_module(f".{name}", __package__).add_parser(verbs)
    return parser
