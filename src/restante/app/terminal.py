"""Find out whether the terminal from which a command was started has been closed."""

from __future__ import annotations

import os
import signal


class Terminal:
    """The controlling terminal from which this process was started, if there was one.

    SIGHUP has two meanings: an administrator requests a reload, or the terminal's window was
    closed.  In the second case, the terminal no longer exists (setsid(2), credentials(7)).  A
    process that ignored SIGHUP when it was started, as under nohup(1), outlives its terminal.
    """

    def __init__(self) -> None:
        self._existed = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _exists()
        self._descriptors = [each for each in range(3) if os.isatty(each)]

    def detach_if_closed(self) -> bool:
        """If the terminal was closed, discard later output to it.  Return whether it was closed."""
        if not self._existed or _exists():
            return False
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for each in self._descriptors:
            os.dup2(null, each)
        os.close(null)
        return True


def _exists() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
