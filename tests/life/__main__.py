"""``./dev life``: run random lives one after another, until time is up or one fails."""

from __future__ import annotations

import argparse
import random
import sys
import time

from .running import LEVELS, BrokenPromise, live

_LIVES = 3  # lives per seed
_STEPS = 50  # steps per life


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev life", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long to run; 5 by default")
    parser.add_argument("--seed", type=int, help="the first seed, as a failure prints it")
    parser.add_argument(
        "--level",
        choices=list(LEVELS),
        help="how to run the server, or the collector alone; all by default",
    )
    parser.add_argument(
        "--shrink", action="store_true", help="after a failure search for a shorter life"
    )
    options = parser.parse_args()
    levels = [options.level] if options.level else list(LEVELS)
    number = random.randrange(10**6) if options.seed is None else options.seed
    began = time.monotonic()
    lives = 0
    while time.monotonic() < began + options.minutes * 60:
        for level in levels:
            try:
                live(level, number, lives=_LIVES, steps=_STEPS, shrink=options.shrink)
            except BrokenPromise as error:
                print(f"{error}\n{time.monotonic() - began:.0f} s", file=sys.stderr)
                return 1
            lives += _LIVES
            print(f"seed {number}, {level}: {lives} lives", file=sys.stderr, flush=True)
        number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
