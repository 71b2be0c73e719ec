"""A program on a terminal: questions, typed answers, and a window that can be closed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 30.0  # seconds; the limit for any single wait


class Screen:
    """The output of a command, and its keyboard."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.shown = ""
        """The output so far, with bare line feeds."""
        self._master = master
        self._read = 0  # characters of ``shown`` that were expected

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until this text is shown after the last expected one."""
        end = time.monotonic() + PATIENCE
        while (match := re.compile(pattern).search(self.shown, self._read)) is None:
            if time.monotonic() > end or not self._look():
                raise AssertionError(f"{pattern!r} does not appear: {self.shown!r}")
        self._read = match.end()
        return match

    def settle(self, seconds: float) -> None:
        """Wait until there was no output for this time."""
        while select.select([self._master], [], [], seconds)[0] and self._look():
            pass

    def _look(self) -> bool:
        """Read output; returns whether there may be more."""
        if not select.select([self._master], [], [], 0.5)[0]:
            return True
        try:
            octets = os.read(self._master, 65_536)
        except OSError:  # the command has ended
            return False
        self.shown += octets.decode(errors="replace").replace("\r\n", "\n")
        return bool(octets)

    def type(self, line: str) -> None:
        self.press(f"{line}\n")

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def answer(self, pattern: str, line: str) -> None:
        self.expect(pattern)
        self.type(line)

    def close(self) -> None:
        """Close the window."""
        with suppress(OSError):
            os.close(self._master)

    def wait(self) -> int:
        """Wait for the end; returns the exit code, and ``shown`` has the output."""
        end = time.monotonic() + PATIENCE
        with suppress(OSError):
            while time.monotonic() < end and self._look():
                pass
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(
    *arguments: str | Path, columns: int = 80, ignores_hangup: bool = False
) -> Iterator[Screen]:
    """Run ``restante`` with these arguments in the foreground of a terminal."""
    command = [sys.executable, "-W", "error", "-m", "restante", *map(str, arguments)]
    with program(command, columns=columns, ignores_hangup=ignores_hangup) as screen:
        yield screen


@contextmanager
def program(
    command: Sequence[str],
    *,
    columns: int = 80,
    ignores_hangup: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Screen]:
    """Run any program in the foreground of a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def take_it() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores_hangup else signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, **(environment or {})},
        preexec_fn=take_it,
    )
    os.close(slave)
    screen = Screen(process, master)
    try:
        yield screen
    finally:
        screen.close()
        process.kill()
        process.wait()
