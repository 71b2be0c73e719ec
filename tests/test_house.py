"""Consistency of the files of the project."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import restante

HOUSE = Path(__file__).parent.parent
# Split, so that this file does not contain them.
HOSTS = [".".join(parts) for parts in (
    ("pypi", "org"), ("files", "pythonhosted", "org"), ("registry", "npmjs", "org"),
    ("deb", "debian", "org"),
)]  # fmt: skip


def tracked() -> list[Path]:
    """Return the files of the project; without git, all that are not ignored."""
    listed = subprocess.run(["git", "ls-files"], cwd=HOUSE, capture_output=True, text=True)
    if listed.returncode == 0:
        found = [HOUSE / name for name in listed.stdout.splitlines()]
        return [path for path in found if path.is_file()]
    skipped = {".venv", "build", "dist", "__pycache__"}
    return [p for p in HOUSE.rglob("*") if p.is_file() and not skipped & set(p.parts)]


def test_no_file_names_a_registry_or_a_place_on_one_machine() -> None:
    bad = re.compile("|".join(map(re.escape, HOSTS)) + r"|(?<![\w.])/(?:root|work)/")
    found = [
        f"{path.relative_to(HOUSE)}: {match[0]}"
        for path in tracked()
        if path.name != ".gitignore" and (match := bad.search(path.read_text(errors="replace")))
    ]
    assert found == []


def test_every_requirement_is_pinned_with_its_hashes() -> None:
    for path in (HOUSE / "requirements").glob("*.txt"):
        wanted = re.split(r"\n(?=[a-z0-9])", path.read_text())[1:]
        assert wanted, path.name
        for requirement in wanted:
            assert re.match(r"[\w.-]+==\S+", requirement), requirement
            assert "--hash=sha256:" in requirement, requirement


def test_packages_contain_every_library_that_restante_requires() -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    packaged = re.findall(r"^([\w.-]+)==", (HOUSE / "requirements/package.txt").read_text(), re.M)
    required = [re.split(r"[<>=!;\[ ]", each)[0] for each in project["dependencies"]]
    assert required
    assert set(required) <= set(packaged)


def test_the_versions_agree() -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    assert project["version"] == restante.__version__
    assert f"## {restante.__version__}" in (HOUSE / "CHANGELOG.md").read_text()


def test_the_commands_of_the_readme_exist() -> None:
    commands = re.findall(r"\./dev (\w+)", (HOUSE / "README.md").read_text())
    assert {"demo", "test"} <= set(commands)
    table = (HOUSE / "dev").read_text().split("COMMANDS = {")[1].split("}")[0]
    assert set(commands) <= set(re.findall(r'"(\w+)"', table))


def test_links_in_the_documents_lead_somewhere() -> None:
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize(
    "command", ["test", "coverage", "lint", "types", "docs", "bench", "lock", "ci"]
)
def test_every_dev_command_has_help(command: str) -> None:
    """Other commands pass --help on, and would prepare .venv first."""
    run = [sys.executable, str(HOUSE / "dev"), command, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.startswith(f"./dev {command}: ")
    assert len(done.stdout.splitlines()) <= 4
