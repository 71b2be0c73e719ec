"""Parse the command line, run one command, and translate errors into exit codes."""

from __future__ import annotations

import argparse
import gc
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

from .. import __version__, sysexits
from .examples import EXAMPLES

# The commands and their summaries, in the groups and order of the help.  The module that implements
# a command has the command's name.  It is imported only when the command is used, because a mail
# server starts `restante deliver` for each message (tests/cli/test_imports.py).
_GROUPS = {
    "Serve": {
        "demo": "run a temporary server and a client, to see how restante works",
        "init": "set up a server with its first user",
        "serve": "serve POP3, and receive mail over LMTP and SMTP",
    },
    "Users and mail": {
        "user": "add and change users, passwords, permissions and quotas",
        "maildrop": "list and verify maildrops, restore deleted mail, show session logs",
        "deliver": "deliver a message from standard input",
        "import": "migrate mail from another server or collector",
    },
    "Collect from other servers": {
        "account": "add and manage accounts on other servers",
        "collect": "collect new mail from accounts on other servers",
        "fetch": "download mail from a POP3 server once",
    },
    "Control a running server": {
        "status": "show whether the server is ready, and what needs attention",
        "log": "follow the log",
        "reload": "reload the configuration, and if it is refused, show why",
        "sessions": "list the open sessions, and end sessions",
    },
    "Back up": {
        "backup": "back up configuration, users, state and mail, or verify a backup",
        "restore": "restore a backup",
    },
    "Check": {
        "doctor": "examine the installation, and show how to fix each fault",
        "check": "check the configuration",
        "auth": "explain why a login would be accepted or refused",
    },
}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (sysexits.h)."""
    is_program = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    if (command := _command_name(arguments)) == "help":
        # `restante help user add` becomes `restante user add --help`.
        index = list(arguments).index(command)
        arguments = [*arguments[:index], *arguments[index + 1 :], "--help"]
    parser = make_parser(command)
    options = parser.parse_args(arguments)
    options.is_program = is_program  # the process ends together with the command
    if not hasattr(options, "run"):
        parser.print_help(sys.stderr)
        return sysexits.EX_USAGE
    sys.stdout = sys.stdout or io.StringIO()  # `restante … >&-`
    sys.stderr = sys.stderr or io.StringIO()
    _escape_undisplayable_characters()
    try:
        with _interruptible():
            code: int = options.run(options)
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `restante … | head`
        discard_output(sys.stdout)
        return sysexits.EX_OK
    except (Exception, KeyboardInterrupt) as error:
        discard_output(sys.stdout)
        return _explain(error, options)


def _escape_undisplayable_characters() -> None:
    """Make standard output escape characters that the terminal's encoding lacks.

    Otherwise a message's subject could end the command with an error.  Python escapes such
    characters on standard error only.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGINT raise KeyboardInterrupt in this context; elsewhere, it ends the process."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def discard_output(stream: TextIO) -> None:
    """Empty a buffer that cannot be written.  Otherwise Python would fail again at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _explain(error: BaseException, options: argparse.Namespace) -> int:
    """Print an error and return its exit code, even if the error cannot be printed.

    Mail servers bounce or keep mail by the exit code of ``restante deliver``.
    """
    from ..app.failures import exit_code  # imported late, because only errors need it

    code = exit_code(error)
    with suppress(OSError):
        _print_error(error, code, options)
    discard_output(sys.stderr)
    return code


def _print_error(error: BaseException, code: int, options: argparse.Namespace) -> None:
    import traceback

    from ..app.failures import describe
    from ..escaping import printable

    if code == 130 and sys.stderr.isatty():
        print(file=sys.stderr)  # end the line that shows a prompt and ^C
    if options.verbose or code == sysexits.EX_SOFTWARE:
        traceback.print_exception(error)
    for line in describe(error).splitlines():
        print(f"restante {options.command}: {printable(line)}", file=sys.stderr)
    if isinstance(error, PermissionError):
        from ..app import privileges

        if user := privileges.became:  # root does not expect to lack a permission
            print(f"restante {options.command}: root's command ran as {user}", file=sys.stderr)


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, but keeps the line breaks of examples and of the list of commands."""

    def __init__(self, prog: str) -> None:
        # Without a width, argparse imports shutil, which takes 2 ms.
        super().__init__(prog, width=_columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)


@cache  # argparse makes a formatter for each option
def _columns() -> int:
    """Return the width of the terminal, as ``shutil.get_terminal_size`` does."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size().columns or 80
    except OSError:  # standard output is not a terminal
        return 80


class _Parser(argparse.ArgumentParser):
    """Exits with EX_USAGE on a mistake, and suggests the most similar command or option.

    The options that all commands share may be given before or after the command.
    """

    module = ""
    """Module that adds the command's arguments on demand; empty after it has added them."""

    def load(self) -> None:
        """Add the arguments and examples of a command and of its actions."""
        if self.module:
            module, self.module = self.module, ""
            gc.disable()  # modules are not garbage, and scanning them takes 6 of 120 ms
            try:
                imported = import_module(module, __package__)
                gc.freeze()
            finally:
                gc.enable()
            imported.add_arguments(self)
            _add_examples(self)

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})
        unset = argparse.SUPPRESS
        self.add_argument(
            "-c",
            "--config",
            type=Path,
            metavar="FILE",
            default=unset,
            help="use this configuration file (default: restante.toml)",
        )
        self.add_argument("--json", action="store_true", default=unset, help="print JSON")
        self.add_argument(
            "-v", "--verbose", action="store_true", default=unset, help="show a traceback on errors"
        )

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(sysexits.EX_USAGE, f"{self.prog}: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments in the command's own parser, which knows similar options."""
        self.load()
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            suggestion = self._suggestion(unknown[0].partition("=")[0])
            self.error(f"unknown argument: {unknown[0]}{suggestion}")
        return options, unknown

    def _suggestion(self, option: str) -> str:
        return did_you_mean(option, self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            listed = [each.dest for each in action._choices_actions]
            suggestion = did_you_mean(value, listed) or f"; choose from {', '.join(listed)}"
            noun = str(action.metavar).lower()
            raise argparse.ArgumentError(None, f"unknown {noun}: {value!r}{suggestion}")
        super()._check_value(action, value)


def did_you_mean(word: str, known: Any) -> str:
    """Return "; did you mean …?", or an empty string if no known word is similar."""
    from difflib import get_close_matches

    return "".join(f"; did you mean {each}?" for each in get_close_matches(word, known, 1))


def _command_name(arguments: Sequence[str]) -> str:
    """Return the first word that is neither an option nor the value of an option."""
    words = iter(arguments)
    for word in words:
        if word in ("-c", "-vc") or (len(word) > 2 and "--config".startswith(word)):
            next(words, "")
        elif not word.startswith("-"):
            return word
    return ""


def make_parser(command: str = "", *, is_complete: bool = False) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    If ``command`` is known, the parser has only this command.  ``is_complete`` imports the modules
    of all commands, for callers that inspect the parsers.
    """
    parser = _Parser(
        prog="restante",
        usage="restante [OPTIONS] COMMAND …",
        description="\n".join(_command_list()),
        epilog="`restante help COMMAND` shows options and examples. Exit codes are those of "
        "sysexits.h; 75 means: try again, nothing is lost.",
    )
    parser.add_argument("--version", action="version", version=f"restante {__version__}")
    parser.set_defaults(config=None, json=False, verbose=False)
    commands = parser.add_subparsers(
        dest="command",
        metavar="COMMAND",
        parser_class=_Parser,
        help=argparse.SUPPRESS,
        prog="restante",
    )
    known = {name: text for group in _GROUPS.values() for name, text in group.items()}
    for name in [command] if command in known else known:
        added = commands.add_parser(name, help=known[name])
        added.module = ".import_" if name == "import" else f".{name}"
        if is_complete:
            added.load()
    return parser


def _command_list() -> Iterator[str]:
    """Yield the lines of the list of commands, by group."""
    yield "A POP3 mail system that serves mail and collects mail from other servers."
    for title, summaries in _GROUPS.items():
        yield f"\n{title}:"
        for name, summary in summaries.items():
            yield f"  {name:<9} {summary}"
    yield "\nHelp:"
    yield "  help      show the help for a command, such as: restante help user add"


def _add_examples(parser: argparse.ArgumentParser) -> None:
    if examples := EXAMPLES.get(parser.prog.removeprefix("restante ")):
        parser.epilog = "\n".join(["examples:", *(f"  {each}" for each in examples)])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _add_examples(each)
