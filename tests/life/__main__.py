"""``./dev life``: one random life after the other, until time is up or a promise is broken."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from .running import LEVELS, BrokenPromise, live

_LIVES = 20  # of one seed
_STEPS = 60  # of one life


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev life", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long to go on; 5 by default")
    parser.add_argument("--seed", type=int, help="the seed to begin with, as a failure prints it")
    parser.add_argument(
        "--level", choices=list(LEVELS), help="only this way to run the server; by default both"
    )
    options = parser.parse_args()
    levels = [options.level] if options.level else list(LEVELS)
    number = random.randrange(10**6) if options.seed is None else options.seed
    deadline = time.monotonic() + options.minutes * 60
    lives = 0
    while time.monotonic() < deadline:
        for level in levels:
            try:
                live(level, number, lives=_LIVES, steps=_STEPS)
            except BrokenPromise as error:
                traceback.print_exception(error)
                return 1
            lives += _LIVES
            print(f"seed {number}, {level}: {lives} lives", file=sys.stderr, flush=True)
        number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
