"""What a check reports, and the installation that it examines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ...client.discovery import Resolver
from ...config import SYSTEM, Configuration
from ...errors import RestanteError
from ..asking import ask
from ..control_paths import folder_of
from .repairs import Repair


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    NOT_CHECKED = "not checked"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check."""

    level: Level
    text: str
    command: str = ""
    """What the operator should run next; empty if no command helps."""
    code: int = 0
    """The exit code for this finding (sysexits.h); 0 unless it is an error."""
    repair: Repair | None = None
    """The change that ``--fix`` makes."""
    check: str = ""
    """The name of the check."""

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``restante doctor --json`` prints for this finding."""
        names = ("check", "level", "text", "command", "code")
        return {name: getattr(self, name) for name in names} | {"can_fix": self.repair is not None}

    def encoded(self) -> dict[str, Any]:
        """Return the finding as JSON for another process."""
        return asdict(self)

    @classmethod
    def decoded(cls, values: dict[str, Any]) -> Finding:
        """Return the finding that ``encoded`` has turned into ``values``."""
        repair = values["repair"] and Repair(**values["repair"])
        return cls(**{**values, "level": Level(values["level"]), "repair": repair})


def ok(text: str) -> Finding:
    """Report that something was checked and works."""
    return Finding(Level.OK, text)


def not_checked(reason: str) -> Finding:
    """Report that something could not be checked."""
    return Finding(Level.NOT_CHECKED, reason)


def warning(text: str, command: str = "", repair: Repair | None = None) -> Finding:
    """Report something that works, but probably not as intended."""
    return Finding(Level.WARNING, text, command or (repair.command if repair else ""), 0, repair)


def error(code: int, text: str, command: str = "", repair: Repair | None = None) -> Finding:
    """Report something that does not work; ``code`` is an exit code of sysexits.h."""
    return Finding(Level.ERROR, text, command or (repair.command if repair else ""), code, repair)


@dataclass
class Subject:
    """The installation to examine."""

    config: Configuration
    owner: int
    """The user ID that the server runs with."""
    timeout: float = 5.0
    """Seconds to wait for a peer, in total for each connection."""
    round_trip: str = ""
    """The user who gets a message in a round trip; empty for no round trip."""
    ntp: str = ""
    """The NTP server to compare the clock with; empty for none."""
    resolver: Resolver | None = None
    """Answers DNS queries instead of the system's resolver."""
    mta: str = "postfix"
    """The operating system's user that the mail server runs as."""
    service_state: Path = SYSTEM[1]
    """The state directory of the system's service."""
    system: Path = field(default=Path("/"))
    """The root directory of the operating system's own files."""

    @cached_property
    def _answer(self) -> dict[str, Any] | RestanteError:
        try:
            reply = ask(folder_of(self.config.runtime), "GET", "/status", timeout=self.timeout)
            return reply.json()
        except RestanteError as failure:
            return failure
        except (OSError, ValueError) as failure:  # the answer was cut off
            return RestanteError(f"the server's answer is incomplete: {failure}")

    @property
    def status(self) -> dict[str, Any] | None:
        """The status of the running server; None if it cannot be read."""
        return self._answer if isinstance(self._answer, dict) else None

    @property
    def status_failure(self) -> RestanteError | None:
        """Why the status of the running server cannot be read."""
        return None if isinstance(self._answer, dict) else self._answer


class Check(NamedTuple):
    """One row of the table of checks."""

    name: str
    run: Callable[[Subject], Iterator[Finding]]
    """Yields the findings.  It changes nothing, except for what it also undoes."""
    as_root: bool = False
    """Whether root runs the check as root; all other checks run as the server's user."""
