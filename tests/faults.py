"""Attacks and faults in docs/faults.toml, and the tests that it names."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

HOUSE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Fault:
    """An entry of ``docs/faults.toml``."""

    number: int
    area: str
    text: str
    tests: tuple[str, ...]
    reason: str = ""
    """Why there is no test."""


def faults() -> list[Fault]:
    found = []
    for area, lines in tomllib.loads((HOUSE / "docs" / "faults.toml").read_text()).items():
        for number, (text, *tests) in lines.items():
            reasons = [test for test in tests if test.startswith("No test")]
            shown = tuple(test for test in tests if test not in reasons)
            found.append(Fault(int(number), area, text, shown, " ".join(reasons)))
    return found


def known() -> set[str]:
    """Return the names of all tests and transcripts, as in the table."""
    tests = HOUSE / "tests"
    found = {
        path.relative_to(tests / "transcripts").with_suffix("").as_posix()
        for path in (tests / "transcripts").rglob("*.txt")
    }
    for path in tests.rglob("test_*.py"):
        module = path.relative_to(tests).with_suffix("").as_posix()
        names = re.findall(r"^ *(?:async )?def (\w+)\(", path.read_text(), re.MULTILINE)
        found.update(f"{module}: {name}" for name in names)
    return found
