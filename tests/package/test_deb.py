"""The Debian package: lintian, piuparts, and a life in a booted system."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from package.common import ROOT, checksum

from . import booted
from .conftest import build
from .pages import page_commands

pytestmark = [pytest.mark.package, pytest.mark.timeout(900)]


def test_two_builds_are_equal(deb: Path) -> None:
    before = checksum(deb)
    build("deb")
    assert checksum(deb) == before


def test_lintian_reports_nothing(deb: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", deb],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_files_for_monitoring_are_where_the_guide_says(deb: Path) -> None:
    listed = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True)
    paths = {line.split()[5] for line in listed.stdout.splitlines()}
    guide = (ROOT / "docs" / "howto" / "monitoring.md").read_text()
    assert "/usr/share/restante/prometheus/restante.rules.yml" in guide
    assert "./usr/share/restante/prometheus/restante.rules.yml" in paths
    assert "./usr/share/restante/grafana/restante.json" in paths


def test_life_of_the_package(deb: Path, tmp_path: Path) -> None:
    """Install, serve, upgrade, roll back, remove and purge: see journey.py."""
    newer = _with_newer_version(deb, tmp_path)
    directory = tmp_path / "machine"
    directory.mkdir()
    script, commands = Path(__file__).with_name("journey.py"), tmp_path / "commands"
    commands.write_text("".join(f"{line}\n" for line in page_commands()))
    files = {"restante.deb": deb, "newer.deb": newer, "commands": commands}
    output = booted.boot(directory, script, files)
    assert output.splitlines()[-1:] == ["all steps succeeded"], output


def _with_newer_version(deb: Path, directory: Path) -> Path:
    """Return a package that differs only in its version, which is newer."""
    content, newer = directory / "content", directory / "newer.deb"
    subprocess.run(["dpkg-deb", "-R", deb, content], check=True)
    control = content / "DEBIAN/control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text(
        "".join(
            f"{line.rstrip()}+test\n" if line.startswith("Version:") else line for line in lines
        )
    )
    subprocess.run(["dpkg-deb", "-b", content, newer], check=True, stdout=subprocess.DEVNULL)
    return newer


def test_piuparts_finds_no_leftovers(deb: Path, tmp_path: Path) -> None:
    """Installing and purging leaves a system as it was."""
    # Its packages come from where this machine's apt gets them.
    base = ["--basetgz", str(booted.archive()), "--keep-sources-list", "-d", booted.RELEASE]
    log = tmp_path / "log"
    done = subprocess.run(
        ["piuparts", *base, "--no-eatmydata", "--log-file", log, deb],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, log.read_text()[-4000:]
