"""``./dev crash``: run the loops and enumerations of the crash tests at length."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from .cycles import cuts, kills
from .kills import kills_at_every_call
from .laboratory import Laboratory
from .scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev crash", description=__doc__)
    parser.add_argument("--cycles", type=int, default=100, help="how often; 100 by default")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--power", action="store_true", help="cut the power of a disk (needs root)")
    what.add_argument("--calls", action="store_true", help="kill a process at each of its calls")
    what.add_argument("--states", action="store_true", help="open every disk of the model")
    parser.add_argument("--fs", choices=["ext4", "xfs"], default="ext4", help="for --power")
    options = parser.parse_args()
    logging.disable()
    began = time.monotonic()
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        if options.states:
            results: dict[str, object] = {each: _states(each, Path(name)) for each in SCENARIOS}
        elif options.calls:
            results = {**kills_at_every_call(Path(name), _say)}
        elif options.power:
            results = {**cuts(options.fs, Path(name), options.cycles, _say), "fs": options.fs}
        else:
            results = {**kills(Path(name), options.cycles, _say)}
    cycles = {} if options.states or options.calls else {"cycles": options.cycles}
    print(json.dumps({**cycles, **results, "seconds": round(time.monotonic() - began)}))
    return 0


def _states(name: str, place: Path) -> int:
    inside = place / name.replace(" ", "-")
    inside.mkdir()
    with Laboratory(SCENARIOS[name], inside) as laboratory:
        laboratory.power_fails()
        laboratory.power_fails_after_kill()
        for once in (True, False):
            laboratory.power_fails_after_fault(once=once, disks=10)
        laboratory.power_fails_when_writes_are_short()
    _say(f"{name}: {laboratory.disks} disks")
    return laboratory.disks


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
