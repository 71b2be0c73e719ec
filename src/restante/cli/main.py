"""The door of ``restante``: an interrupt never ends it with a traceback.

While modules are imported, and after a command has ended, SIGINT ends the process as the system
does.  Only a command that runs gets KeyboardInterrupt, because it may have something to undo
(``command.run``).  So nothing is imported here that takes time.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False  # importing typing takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (sysexits.h).  None: what the shell passed."""
    if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .command import run

    return run(arguments)
