"""The packages under test, built once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import booted

ROOT = booted.ROOT


def build(*kinds: str) -> None:
    subprocess.run([sys.executable, "-m", "package", *kinds], cwd=ROOT, check=True, timeout=600)


@pytest.fixture(scope="session")
def wheel() -> Path:
    build("wheel")
    (path,) = ROOT.glob("build/dist/restante-*.whl")
    return path


@pytest.fixture(scope="session")
def deb(wheel: Path) -> Path:
    if reason := booted.needs():
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    build("deb")
    (path,) = ROOT.glob("build/dist/restante_*.deb")
    return path
