"""A few cycles of the long loops; ``./dev crash --cycles N`` runs any number."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def crash(*arguments: str) -> None:
    """Run the loops in a separate process: the children it forks must not have our threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def can_mount(tmp_path: Path) -> bool:
    """Try it: in a container even root may be forbidden to mount."""
    image = tmp_path / "try"
    with image.open("wb") as file:
        file.truncate(2**21)
    commands = [
        ["mkfs.ext4", "-q", "-F", str(image)],
        ["mount", "-o", "loop", str(image), str(tmp_path)],
        ["umount", str(tmp_path)],
    ]
    return os.geteuid() == 0 and all(
        subprocess.run(command, capture_output=True, check=False).returncode == 0
        for command in commands
    )


@pytest.mark.timeout(900)
def test_process_is_killed_at_every_call() -> None:
    crash("--calls")


def test_server_is_killed_under_load() -> None:
    crash("--cycles", "100")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_of_a_disk_is_cut(kind: str, tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("this machine forbids loop mounts: no power was cut")
    if not shutil.which(f"mkfs.{kind}"):
        assert not os.environ.get("CI"), f"CI must install mkfs.{kind}"
        pytest.skip(f"no mkfs.{kind}")
    crash("--power", "--fs", kind, "--cycles", "50")
