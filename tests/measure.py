"""``./dev coverage``: lines and branches that no test reaches.

The layers without I/O (0 and 1 in ``test_layers``) must be covered completely: a branch without a
test there is a rule of a protocol without a test.  Other layers are only reported.  Processes that
tests start are measured too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .test_layers import LAYERS, SOURCE

HOUSE = Path(__file__).parent.parent
DATA = HOUSE / "build" / "coverage"  # as in pyproject.toml
PURE = 1  # the highest layer without I/O


def main(arguments: list[str]) -> int:
    """Run pytest with ``arguments``; complete coverage is required only of the whole suite."""
    DATA.mkdir(parents=True, exist_ok=True)
    _coverage("erase")
    # Failures do not matter here: some tests limit the time or memory of a process.
    _coverage("run", "-m", "pytest", *(arguments or ["-n", "auto"]))
    _coverage("combine", "--quiet")
    layers = ",".join(pure())
    print("\nAll but the layers without I/O:\n", flush=True)
    _coverage("report", f"--omit={layers}", "--skip-covered", "--sort=cover")
    print("\nThe layers without I/O, all of whose branches a test must take:\n", flush=True)
    least = [] if arguments else ["--fail-under=100"]
    return _coverage("report", f"--include={layers}", "--skip-covered", "--show-missing", *least)


def pure() -> Iterator[str]:
    """Return patterns of the modules in the layers without I/O."""
    for room, layer in LAYERS.items():
        if layer <= PURE:
            path = SOURCE / room
            yield f"{path}/*" if path.is_dir() else f"{path}.py"


def _coverage(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=HOUSE).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
