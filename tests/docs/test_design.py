"""docs/design.md describes the layers and actions of the source, and its pictures are complete."""

from __future__ import annotations

import re
import runpy
from itertools import chain, pairwise
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

from restante import maildrop
from restante.pop3.state import Action

from ..test_layers import LAYERS, SOURCE

DOCS = Path(__file__).parent.parent.parent / "docs"
DESIGN = (DOCS / "design.md").read_text()
PICTURES = runpy.run_path(str(DOCS / "pictures.py"))["PICTURES"]


def test_table_has_every_module_in_the_order_of_the_layers() -> None:
    table = DESIGN.partition("| layer | modules |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)/?`", row.split("|")[2]) for row in table.splitlines()[2:]]
    assert sorted(chain.from_iterable(rows)) == sorted(set(LAYERS) - {"__main__", "__init__"})
    for upper, lower in pairwise(rows):
        assert min(map(LAYERS.__getitem__, upper)) > max(map(LAYERS.__getitem__, lower))


def places_of_changes() -> list[tuple[str, list[str], list[str]]]:
    """Return each row of the table in CONTRIBUTING.md: its title, its paths and its other names."""
    text = (DOCS.parent / "CONTRIBUTING.md").read_text()
    table = text.partition("| to add |")[2].partition("\n\n")[0]
    rows = []
    for row in table.splitlines()[2:]:
        quoted = re.findall(r"`([^`]+)`", row)
        paths = [each for each in quoted if "/" in each or each.endswith(".py")]
        rows.append((row.split("|")[1].strip(), paths, sorted({*quoted} - {*paths})))
    return rows


@pytest.mark.parametrize(("title", "paths", "names"), places_of_changes())
def test_places_of_changes_exist(title: str, paths: list[str], names: list[str]) -> None:
    files = [SOURCE / each for each in paths]
    assert files[0].is_file()
    assert all(each.exists() for each in files)
    start = files[0].read_text()
    for name in names:
        if name in vars(maildrop):
            continue  # a contract
        assert re.search(rf"^(?:(?:async )?def )?{name}\b", start, re.MULTILINE), f"{title}: {name}"


def test_every_action_of_a_session_is_named() -> None:
    sentence = DESIGN.partition("Seven actions need I/O: ")[2].partition(". ")[0]
    assert re.findall(r"`(\w+)`", sentence) == [each.__name__ for each in get_args(Action)]


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_valid_and_shown(name: str) -> None:
    drawn = ElementTree.fromstring(PICTURES[name]())
    assert drawn.findtext("title")
    assert f"```{{picture}} {name}\n```" in DESIGN


def test_picture_of_the_layers_has_every_module() -> None:
    drawn = ElementTree.fromstring(PICTURES["layers"]())
    words = " ".join(each.text or "" for each in drawn.iter("text")).split()
    assert sorted(words) == sorted([*LAYERS, "imports"])
