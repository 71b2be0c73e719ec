"""A hostile server cannot make the collector lose mail or store it twice: random lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..life.running import live

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("loggers")
def test_no_mail_is_lost_with_a_hostile_server() -> None:
    live("collector", 1, lives=2, steps=8)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_mail_is_lost_in_many_lives() -> None:
    """Run in a separate process: the children it forks must not have our threads."""
    command = [sys.executable, "-m", "tests.life", "--level", "collector", "--minutes", "0.7"]
    command += ["--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
