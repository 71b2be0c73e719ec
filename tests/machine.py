"""A simulated machine: its clock can be set, it can be switched off, and time passes at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restante.clock import RELEASED, Clock, Reading

DAY = 86_400.0
TODAY = RELEASED + 400 * DAY


@dataclass
class Machine:
    """A machine with a wall clock, and with the true time."""

    path: Path | None
    now: float = TODAY
    """The time that the clock shows."""
    true: float = TODAY
    boot: int = 1
    running: float = 5000.0

    def clock(self, *, in_sandbox: bool = False) -> Clock:
        """Return the clock as a new process has it; a sandbox hides the identity of the boot."""
        return Clock(
            self.path,
            wall=lambda: self.now,
            running=lambda: ("" if in_sandbox else f"boot {self.boot}", self.running),
        )

    def run(self, seconds: float, *, looks: float = 6 * 3600.0) -> Reading:
        """Let time pass with a running process that reads the clock regularly."""
        while seconds > 0:
            step = min(looks, seconds)
            self.now, self.true = self.now + step, self.true + step
            self.running += step
            seconds -= step
            self.clock().advance()
        return self.clock().advance()

    def set(self, now: float) -> Reading:
        self.now = now
        return self.clock().advance()

    def reboot(self, off: float = 60.0, *, clock_stops: bool = False) -> Reading:
        self.boot += 1
        self.running = 20.0
        self.true += off + self.running
        self.now += self.running if clock_stops else off + self.running
        return self.clock().advance()
