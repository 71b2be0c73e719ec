"""Build the manual pages into build/man: ``python -m package.manual``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .common import BUILD, run

PAGES = BUILD / "man"


def build(pages: Path = PAGES) -> None:
    """Build all pages; no page of an earlier build remains."""
    shutil.rmtree(pages, ignore_errors=True)
    only_man = ("-D", "exclude_patterns=[!m]*", "-D", "root_doc=man/restante")
    strict = ("-q", "-W", "--keep-going", "-E")
    run(sys.executable, "-m", "sphinx", *strict, "-b", "man", *only_man, "docs", pages)


if __name__ == "__main__":
    build()
