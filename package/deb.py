"""Build a Debian package with all Python libraries that restante needs.

Debian's own packages of these libraries are too old (cryptography) or do not exist (scramp).  The
package is for the Debian release on which it is built, because the libraries with machine code are
for one minor version of Python.
"""

from __future__ import annotations

import platform
import shutil
from email.utils import formatdate
from pathlib import Path

import restante

from .common import BUILD, DIST, ROOT, SHARE, run, source_date

_PYTHON = "/usr/bin/python3"  # Debian's, for which the package is
_SOURCE = BUILD / f"deb/restante-{restante.__version__}"


def build() -> list[Path]:
    """Build from the wheel in build/dist and return the path of the package."""
    shutil.rmtree(_SOURCE.parent, ignore_errors=True)
    shutil.copytree(ROOT / "package/debian", _SOURCE / "debian")
    (_SOURCE / "debian/changelog").write_text(_changelog())
    shutil.copytree(SHARE, _SOURCE / "share")
    for path in DIST.glob("restante-*.whl"):
        shutil.copy(path, _SOURCE)
    shutil.copy(ROOT / "requirements/package.txt", _SOURCE / "requirements.txt")
    download(_SOURCE / "wheels", _PYTHON)
    run("dpkg-buildpackage", "-b", "-us", "-uc", cwd=_SOURCE)
    for old in DIST.glob("restante_*.deb"):
        old.unlink()
    return [Path(shutil.copy(path, DIST)) for path in _SOURCE.parent.glob("*.deb")]


def download(target: Path, python: str) -> None:
    """Download the wheels of all requirements for an interpreter, and verify their hashes."""
    pip = [python, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    exactly = ["--require-hashes", "--only-binary", ":all:"]
    run(*pip, *exactly, "-r", ROOT / "requirements/package.txt", "-d", target)


def _changelog() -> str:
    """Return the changelog, which states the version of the package (Debian Policy §4.4)."""
    release = platform.freedesktop_os_release()["VERSION_ID"]
    version = f"{restante.__version__}+deb{release}u1"
    date = formatdate(int(source_date()))
    return (
        f"restante ({version}) unstable; urgency=medium\n\n"
        f"  * Version {restante.__version__}; see CHANGELOG.md in the source.\n\n"
        f" -- The restante developers <maintainers@restante.example>  {date}\n"
    )
