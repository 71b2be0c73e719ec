"""The wheel and the sdist: complete, reproducible, and of use without a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from package import common
from package.common import checksum
from restante.cli.command import _GROUPS

from .conftest import ROOT, build

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
VERBS = [verb for summaries in _GROUPS.values() for verb in summaries]


def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def metadata(wheel: Path) -> bytes:
    (name,) = [each for each in names(wheel) if each.endswith(".dist-info/METADATA")]
    return zipfile.ZipFile(wheel).read(name)


def test_wheel_has_every_module_and_every_shared_file(wheel: Path) -> None:
    """hatchling leaves out shared files that are missing, without a warning."""
    source = ROOT / "src"
    modules = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    share = {name.partition(".data/data/share/")[2] for name in names(wheel)} - {""}
    assert {name for name in names(wheel) if name.startswith("restante/")} == modules
    assert share == {
        "bash-completion/completions/restante",
        "fish/vendor_completions.d/restante.fish",
        "zsh/site-functions/_restante",
        *(f"man/man1/{page}.1" for page in ["restante", *(f"restante-{verb}" for verb in VERBS)]),
        "man/man5/restante.toml.5",
        "restante/fail2ban/restante.conf",
        "restante/grafana/restante.json",
        "restante/prometheus/restante.rules.yml",
        *(f"restante/systemd/{path.name}" for path in ROOT.glob("contrib/systemd/*")),
    }


def test_two_builds_are_equal(wheel: Path) -> None:
    before = {path.name: checksum(path) for path in wheel.parent.glob("restante-*")}
    assert len(before) == 2
    build("wheel")
    assert {path.name: checksum(path) for path in wheel.parent.glob("restante-*")} == before


def test_metadata_is_complete_and_links_nowhere_relative(wheel: Path) -> None:
    fields = BytesParser().parsebytes(metadata(wheel))
    for name in ("Summary", "Author", "License-Expression", "Keywords", "Requires-Python"):
        assert fields[name], name
    addresses = dict(each.split(", ", 1) for each in fields.get_all("Project-URL", []))
    assert set(addresses) == {"Documentation", "Source", "Changelog", "Issues"}
    # No address exists yet.  Reserved names make sure that none leads to another site.
    assert all(".example/" in address for address in addresses.values())
    description = fields.get_payload()
    assert isinstance(description, str)
    assert re.findall(r"\]\((?!https://)[^)]*\)", description) == []
    assert "./dev" not in description


def test_sdist_has_the_files_that_packagers_need(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("restante-*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["LICENSE", "README.md", "build/share/man/man1/restante.1", "package/deb.py"]
    assert set(wanted) <= files
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]


@pytest.fixture(scope="session")
def home(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which the wheel was installed, as by the page "Install"."""
    place = tmp_path_factory.mktemp("installed")
    common.run(sys.executable, "-m", "venv", place)
    pip = (place / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
    common.run(*pip, "--require-hashes", "-r", ROOT / "requirements/package.txt")
    common.run(*pip, "--no-deps", wheel)
    return place


def run(home: Path, *command: str, **environment: str) -> str:
    clean = {name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL") if name in os.environ}
    variables = {**clean, "PATH": f"{home}/bin:/usr/bin:/bin", **environment}
    done = subprocess.run(
        command, cwd=home, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_installed_wheel_does_the_main_job(home: Path) -> None:
    assert run(home, "restante", "--version").startswith("restante ")
    assert "restored" in run(home, "restante", "demo").lower()
    assert "[server]" in run(home, "restante", "check", "--example")


def test_commands_of_the_pages_work_with_the_wheel(home: Path) -> None:
    """What README and docs show is in the wheel, and not only in the checkout."""
    environment = {**os.environ, "RESTANTE_PAGES_BIN": f"{home}/bin"}
    pages = ["-m", "slow", "tests/docs/test_pages.py", "-k", "commands_on_pages or readme"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *pages]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_installed_wheel_brings_the_pytest_fixture(home: Path) -> None:
    plugins = "from importlib.metadata import entry_points as e; print(e(group='pytest11').names)"
    assert "restante" in run(home, "python", "-c", plugins)


def test_installed_wheel_brings_manual_pages(home: Path) -> None:
    path = run(home, "man", "-M", f"{home}/share/man", "-w", "restante-user").strip()
    assert path.startswith(str(home))


COMPLETIONS = {
    "bash": "source share/bash-completion/completions/restante; COMP_WORDS=(restante us);"
    " COMP_CWORD=1; _shtab_restante; echo ${COMPREPLY[@]}",
    "fish": "source share/fish/vendor_completions.d/restante.fish; complete -C 'restante us'",
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_completions_complete_a_verb(home: Path, shell: str) -> None:
    assert run(home, shell, "-c", COMPLETIONS[shell]).split()[0] == "user"


def test_zsh_loads_the_completion(home: Path) -> None:
    """zsh has no way to ask for completions without a terminal."""
    script = "fpath=($PWD/share/zsh/site-functions $fpath); autoload -U compinit; compinit -u -d x"
    assert run(home, "zsh", "-c", f"{script}; print $_comps[restante]").split() == ["_restante"]
    function = Path(home, "share/zsh/site-functions/_restante")
    run(home, "zsh", "-n", str(function))
    assert "user:'" in function.read_text()
