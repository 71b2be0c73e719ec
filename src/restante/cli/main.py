"""The entry point of ``restante``: an interrupt never ends the process with a traceback.

While modules are imported, and after a command has ended, SIGINT has the system's default action.
KeyboardInterrupt is raised only while a command runs, because the command may have to undo changes
(``command.run``).  For this reason, this module imports only modules that load quickly.
"""

from __future__ import annotations

import sys

from .. import __version__

TYPE_CHECKING = False  # importing ``typing`` takes longer than importing this module
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (sysexits.h); None means ``sys.argv``."""
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(f"restante {__version__}")  # a parser would take longer than Python's own start
        return 0
    try:
        import signal

        if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        from .command import run

        return run(arguments)
    except (ImportError, MemoryError, OSError) as error:
        # There is no memory or no free file descriptor, or an upgrade is replacing the modules.
        # After Python's exit code 1, a mail server would bounce the mail for `restante deliver`.
        _print_error(error)
        return 75  # EX_TEMPFAIL; the module ``sysexits`` might not be importable either


def _print_error(error: Exception) -> None:
    try:
        print(f"restante: cannot run: {error!r}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # otherwise Python would fail again at exit
