"""Build the sdist, and the wheel from the sdist."""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from . import completions, manual
from .common import DIST, ROOT, SHARE, run


def build() -> list[Path]:
    """Return the paths of the sdist and of the wheel."""
    stage()
    DIST.mkdir(parents=True, exist_ok=True)
    for old in [*DIST.glob("restante-*.tar.gz"), *DIST.glob("restante-*.whl")]:
        old.unlink()
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", DIST)
    (sdist,) = DIST.glob("restante-*.tar.gz")
    # From the sdist, because packagers build from it: a file that it lacks is then noticed here.
    with TemporaryDirectory() as scratch:
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        (source,) = Path(scratch).iterdir()
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", DIST, cwd=source)
    return [sdist, *DIST.glob("restante-*.whl")]


def stage() -> None:
    """Collect the files for ``share`` in build/share.

    These are manual pages, completions, units, the filter of fail2ban, and files for monitoring.
    """
    shutil.rmtree(SHARE, ignore_errors=True)
    manual.build()
    for page in manual.PAGES.glob("*.[1-9]"):
        _copy(page, SHARE / f"man/man{page.suffix[1:]}")
    completions.write(SHARE)
    for unit in ROOT.glob("contrib/systemd/*"):
        _copy(unit, SHARE / "restante/systemd")
    for folder in ("fail2ban", "prometheus", "grafana"):
        for path in ROOT.glob(f"contrib/{folder}/*"):
            _copy(path, SHARE / "restante" / folder)


def _copy(source: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, directory)
