"""``./dev fuzz``: run the targets with a coverage-guided fuzzer, each for a limited time."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent.parent / "build" / "fuzz"
MAX_INPUT = 4096  # octets


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return fuzz(options.targets[0], options.seconds)

    from .targets import TARGETS

    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(
            f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}"
        )
    broken, total = [], 0
    for target in options.targets or TARGETS:
        executions, is_good = watch(target, options.seconds)
        total += executions
        print(f"{target:15} {executions:>10,} executions  {'good' if is_good else 'BROKEN'}")
        if not is_good:
            broken.append(target)
        elif options.keep:
            keep(target)
    print(f"{'in all':15} {total:>10,} executions  {len(broken)} targets broken")
    return 1 if broken else 0


def watch(target: str, seconds: int) -> tuple[int, bool]:
    """Return the executions, and whether the promise held.  The fuzzer ends its process itself."""
    log = WORK / f"{target}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        command = [sys.executable, "-m", "tests.fuzz", "--inside", "--seconds", str(seconds)]
        done = subprocess.run([*command, target], stdout=file, stderr=file, check=False)
    text = log.read_text(errors="replace")
    if done.returncode:
        print(text[-4000:], file=sys.stderr)
    found = re.findall(r"number_of_executed_units: (\d+)", text)
    return int(found[-1]) if found else 0, done.returncode == 0


def fuzz(target: str, seconds: int) -> int:
    import atheris

    with atheris.instrument_imports(include=["restante", "scramp"]):
        from .corpus import inputs
        from .targets import TARGETS

    found, seeds = WORK / target, WORK / f"{target}.seeds"
    for folder in (found, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, octets in enumerate(inputs(target)):
        (seeds / str(number)).write_bytes(octets)
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT}",
        "-timeout=20",
        "-print_final_stats=1",
        f"-artifact_prefix={WORK}/{target}-",
        str(found),
        str(seeds),
    ]
    atheris.Setup(arguments, TARGETS[target])
    atheris.Fuzz()
    return 0


def keep(target: str) -> None:
    """Keep the shortest inputs for the same coverage, at most 15; others are found again."""
    from .corpus import KEPT

    folder = KEPT / target
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted((WORK / target).iterdir(), key=lambda path: path.stat().st_size)
    for path in found[: max(0, 15 - len(list(folder.iterdir())))]:
        (folder / path.name[:16]).write_bytes(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
