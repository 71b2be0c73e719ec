"""A Debian system with a real systemd, booted in a container, in which a test runs a script.

The file system of an empty Debian is built once, by mmdebstrap from the mirrors that this machine's
apt uses, and kept in build/.  Each boot works on an overlay and leaves it unchanged.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from package.common import debian_sources, run

ROOT = Path(__file__).resolve().parents[2]
_INCLUDED = (
    *("systemd", "systemd-sysv", "dbus", "python3", "adduser", "procps", "iproute2"),
    *("ca-certificates", "curl", "openssl"),
    "debfoster",  # for piuparts
)
RELEASE = "bookworm"
_SECONDS = 240
_UNIT = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /test/{script}
StandardOutput=file:/test/output
StandardError=inherit
ExecStopPost=/usr/bin/systemctl poweroff
[Install]
WantedBy=default.target
"""


def empty_debian() -> Path:
    """Return the directory of an empty Debian system, which is built once."""
    target = ROOT / "build/root"
    if not (target / "complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        include = "--include=" + ",".join(_INCLUDED)
        options = ("--quiet", "--variant=minbase", include, RELEASE)
        run("mmdebstrap", *options, target, *debian_sources())
        (target / "complete").touch()
    return target


def archive() -> Path:
    """Return the empty system as a compressed tar file, for piuparts."""
    root, target = empty_debian(), ROOT / "build/root.tar.gz"
    run("tar", "-C", root, "--exclude=./complete", "-czf", target, ".")
    return target


def boot(directory: Path, script: Path, files: Mapping[str, Path]) -> str:
    """Boot an empty Debian, run a Python script as root, and return its output.

    Args:
        directory: for the changes that are made in the container.
        script: the script; the container is switched off when it ends.
        files: what the script finds in /test, by name.
    """
    with _overlay(empty_debian(), directory) as root:
        place = root / "test"
        place.mkdir()
        for name, path in {script.name: script, **files}.items():
            shutil.copy(path, place / name)
        unit = root / "etc/systemd/system/test.service"
        unit.write_text(_UNIT.format(script=script.name))
        wanted = root / "etc/systemd/system/default.target.wants"
        wanted.mkdir(exist_ok=True)
        (wanted / "test.service").symlink_to("/etc/systemd/system/test.service")
        # There is no system bus to register the container with.  Its network is its own.
        command = ["systemd-nspawn", "--quiet", "-b", "-D", root, "--private-network"]
        with open(directory / "console", "wb") as console:
            subprocess.run(
                [*map(str, command), "--register=no", "--keep-unit", "--console=pipe"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                timeout=_SECONDS,
                check=False,
            )
        output = place / "output"
        return output.read_text() if output.exists() else (directory / "console").read_text()


@contextmanager
def _overlay(lower: Path, directory: Path) -> Iterator[Path]:
    """Mount a copy of ``lower`` whose changes go to ``directory``."""
    # A tmpfs, because the directory itself may be on an overlay, which cannot be a lower layer.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    try:
        upper, work, root = (directory / name for name in ("upper", "work", "root"))
        for each in (upper, work, root):
            each.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", "-l", root], check=True)
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def needs() -> str:
    """Return why no system can be booted here; empty if it can."""
    if os.geteuid() != 0:
        return "only root can boot a container"
    missing = [name for name in ("mmdebstrap", "systemd-nspawn") if shutil.which(name) is None]
    return f"missing: {', '.join(missing)}" if missing else ""
