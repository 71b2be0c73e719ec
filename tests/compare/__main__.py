"""``./dev compare collectors``: run all scenarios in about four minutes and record the results."""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from restante.testing import certificate

from . import octets, report
from .programs import PROGRAMS, Program
from .scenarios import SCENARIOS, Scenario

HOUSE = Path(__file__).parent.parent.parent
AT_ONCE = 3  # most of the time is spent waiting
STEP = 61  # octets


@dataclass(frozen=True, slots=True)
class Trouble:
    """A cell of the table of scenarios."""

    name: str
    scenario: Scenario
    keep: bool
    program: Program

    def lines(self, step: int) -> Iterator[report.Line]:
        tries = list(self.scenario.tries(self.program, keep=self.keep, step=step))
        wrong: Counter[str] = Counter()
        for verdict in tries:
            for word in verdict.wrong():
                # Of one try the messages count, of many the tries.
                wrong[word] += 1 if self.scenario.points else int(getattr(verdict, word))
        yield {
            "trouble": self.name,
            "kept": self.keep,
            "program": self.program.name,
            "tries": len(tries),
            "wrong": dict(wrong),
        }


@dataclass(frozen=True, slots=True)
class Odd:
    """A column of the table of odd messages."""

    to: str
    program: Program

    def lines(self, step: int) -> Iterator[report.Line]:
        for message, kept in octets.tries(self.program, mbox=self.to == "mbox"):
            yield {
                "message": message,
                "to": self.to,
                "program": self.program.name,
                "verdict": kept.verdict,
                "detail": kept.detail,
            }


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev compare", description=__doc__)
    parser.add_argument("what", choices=["collectors"])
    parser.add_argument("--step", type=int, default=STEP, help="octets between two cuts")
    parser.add_argument(
        "--program",
        action="append",
        choices=PROGRAMS,
        help="run only this one, and do not record the results",
    )
    parser.add_argument(
        "--trouble",
        action="append",
        choices=SCENARIOS,
        help="run only this one, and do not record the results",
    )
    options = parser.parse_args()
    began = time.monotonic()
    programs = [PROGRAMS[name] for name in options.program or PROGRAMS]
    for program in programs:
        if not program.is_here:
            print(f"compare: {program.name} is not installed", file=sys.stderr)
            return 69
    work = list(_work(programs, options.trouble or list(SCENARIOS), odd=not options.trouble))

    certificate()  # made once, before threads start

    def do(each: Trouble | Odd) -> list[report.Line]:
        found = list(each.lines(options.step))
        for line in found:
            print(" ".join(map(str, line.values())), file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [line for lines in pool.map(do, work) for line in lines]
    if options.program or options.trouble or any(not s.can_run for s in SCENARIOS.values()):
        print("compare: not all was tried, so nothing is written down", file=sys.stderr)
    else:
        report.write([_about() | {"step": options.step}, *found])
        subprocess.run([sys.executable, str(HOUSE / "docs" / "generate.py")], check=True)
    print(f"compare: {time.monotonic() - began:.0f} s", file=sys.stderr)
    ours = [line for line in found if line["program"] == "restante"]
    return int(any(line.get("wrong") for line in ours))


def _work(programs: list[Program], troubles: list[str], *, odd: bool) -> Iterator[Trouble | Odd]:
    """Return the work, longest first, so that all threads end at about the same time."""
    for name in troubles:
        scenario = SCENARIOS[name]
        for program in programs:
            for keep in scenario.modes:
                if scenario.can_run and scenario.applies_to(program):
                    yield Trouble(name, scenario, keep, program)
    for program in programs if odd else ():
        yield Odd("maildir", program)
        if program.has_mbox:
            yield Odd("mbox", program)


def _about() -> dict[str, Any]:
    git = ["git", "-C", str(HOUSE), "rev-parse", "--short", "HEAD"]
    processor = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "command": " ".join(["./dev", "compare", *sys.argv[1:]]),
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "machine": f"{processor[1] if processor else platform.machine()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}",
        "versions": {name: program.installed_version() for name, program in PROGRAMS.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
