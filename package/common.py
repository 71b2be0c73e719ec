"""What the builds of all packages share."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
DIST = BUILD / "dist"
SHARE = BUILD / "share"
"""Files for ``<prefix>/share``."""


@cache
def source_date() -> str:
    """Return the time stamp of all packaged files, in seconds since 1970, as a string.

    Packages are reproducible because nothing in them depends on the time of the build
    (reproducible-builds.org, SOURCE_DATE_EPOCH).  Without that variable, it is the time of the last
    commit, or, in an unpacked sdist, the time of its files, which the build of the sdist has set.
    """
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip()
    return str(int((ROOT / "pyproject.toml").stat().st_mtime))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command.

    Raises:
        CalledProcessError: the command failed; it has printed the reason.
    """
    variables = {**os.environ, "SOURCE_DATE_EPOCH": source_date(), **environment}
    subprocess.run([str(each) for each in command], cwd=cwd, env=variables, check=True)


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def debian_sources() -> list[Path]:
    """Return the files that name the Debian mirrors of this machine, for mmdebstrap."""
    apt = Path("/etc/apt")
    paths = [apt / "sources.list.d/debian.sources", apt / "sources.list"]
    return [path for path in paths if path.exists()]
