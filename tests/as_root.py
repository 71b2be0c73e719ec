"""Run Python as root so that a command can become another user."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory


def python(*arguments: str | Path, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run Python as root; return its exit code and output.

    All users can read the interpreter, which may be in root's home directory.
    """
    command = [*prefix, sys.executable, *map(str, arguments)]
    closed = [path for path in Path(os.__file__).parents if not path.stat().st_mode & 0o001]
    if closed:
        # In a mount namespace, the directory gets the mode of an upper layer.
        with TemporaryDirectory() as layers:
            return _execute(["unshare", "-m", "sh", "-c", _OPEN, closed[-1], layers, *command])
    return _execute(command)


_OPEN = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir -m 755 "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=$0,upperdir=$1/upper,workdir=$1/work" "$0"
shift
exec "$@"
"""


def _execute(command: Sequence[str | Path]) -> tuple[int, str]:
    # A measured process could not write its data as another user.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout + done.stderr
