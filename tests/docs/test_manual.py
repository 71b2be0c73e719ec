"""The manual pages: their sections, and what ``man`` says to them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from package import manual
from restante import config
from restante.cli.examples import EXAMPLES

HOUSE = Path(__file__).parent.parent.parent
SOURCES = sorted((HOUSE / "docs" / "man").glob("*.md"))
VERBS = {verb.split()[0] for verb in EXAMPLES}
SECTIONS = ["Synopsis", "Description", "Examples", "Files", "See also"]
HAS_MAN = shutil.which("man") is not None or "CI" in os.environ  # CI fails without it


def sections(text: str) -> dict[str, str]:
    """The text of each section, by its title."""
    pieces = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_every_verb_and_the_configuration_have_a_manual_page() -> None:
    pages = {"restante", "restante.toml", *(f"restante-{verb}" for verb in VERBS)}
    assert {path.stem for path in SOURCES} == pages


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_manual_page_has_every_section_with_a_text(path: Path) -> None:
    found = sections(path.read_text())
    assert [title for title in found if title in SECTIONS] == SECTIONS
    for title in SECTIONS:
        assert found[title].strip(), title
    known = {each.stem for each in SOURCES}
    others = re.findall(r"(\S+)\([15]\)", found["See also"])
    assert set(others) <= known - {path.stem}


@pytest.mark.parametrize("verb", EXAMPLES)
def test_a_manual_page_has_the_examples_of_the_help(verb: str) -> None:
    page = (HOUSE / "docs" / "man" / f"restante-{verb.split()[0]}.md").read_text()
    lines = sections(page)["Examples"].splitlines()
    assert set(EXAMPLES[verb]) <= set(lines)


def test_example_in_the_page_of_the_configuration_is_valid(tmp_path: Path) -> None:
    page = (HOUSE / "docs" / "man" / "restante.toml.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", sections(page)["Examples"], re.DOTALL)
    path = tmp_path / "restante.toml"
    path.write_text(example)
    assert config.load(path).tls.cert == "/etc/restante/fullchain.pem"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MAN, reason="requires man-db")
def test_man_renders_every_page_without_a_warning(tmp_path: Path) -> None:
    manual.build(tmp_path)
    pages = sorted(tmp_path.glob("*.[15]"))
    assert {page.stem for page in pages} == {path.stem for path in SOURCES}
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    for page in pages:
        done = subprocess.run(
            ["man", "--warnings", "-l", page], capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, ""), page.name
        heads = re.findall(r"^[A-Z][A-Z ]+$", done.stdout, re.MULTILINE)
        wanted = ["NAME", *(title.upper() for title in SECTIONS)]
        assert [head for head in heads if head in wanted] == wanted
