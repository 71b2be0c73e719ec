"""Old addresses of pages forward to the pages that replaced them (``MOVED`` in docs/conf.py)."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
CONF = runpy.run_path(str(DOCS / "conf.py"))


@pytest.mark.parametrize(("old", "new"), CONF["MOVED"].items())
def test_moved_page_has_one_address(old: str, new: str) -> None:
    assert not (DOCS / f"{old}.md").exists()
    assert (DOCS / f"{new}.md").exists()


def test_forwarding_pages_lead_to_the_new_address(tmp_path: Path) -> None:
    (tmp_path / "howto").mkdir()
    app = SimpleNamespace(outdir=str(tmp_path), builder=SimpleNamespace(format="html"))
    CONF["write_forwards"](app, None)
    for old, new in CONF["MOVED"].items():
        page = tmp_path / f"{old}.html"
        for target in re.findall(r'(?:href="|url=|replace\(")([^"]+)"', page.read_text()):
            assert (page.parent / target).resolve() == tmp_path / f"{new}.html"


def test_other_formats_and_failed_builds_get_no_forwarding_pages(tmp_path: Path) -> None:
    for format, error in (("man", None), ("html", RuntimeError())):
        app = SimpleNamespace(outdir=str(tmp_path), builder=SimpleNamespace(format=format))
        CONF["write_forwards"](app, error)
    assert list(tmp_path.iterdir()) == []
