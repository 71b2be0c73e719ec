#!/usr/bin/env python3
"""Writes the pages of ``docs/reference`` from the code, so that they cannot differ from it.

``--check`` writes nothing and fails when a page is not what the code says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from restante import config

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Made by docs/generate.py from the code; change it there. -->\n"


def configuration() -> Iterator[str]:
    """Every section and option, from ``restante.config``."""
    yield """# Configuration

One TOML file: the one named by `-c`, else the one that `RESTANTE_CONFIG` names, else
`~/.config/restante/restante.toml`, else `/etc/restante/restante.toml`. An option of the
environment, such as `RESTANTE__SERVER__HOSTNAME`, counts more than the file, the command line more
than both. An option that does not exist is an error. `restante check` looks the file over,
`restante check --example` prints one with every option.

Times are written `90s`, `10min`, `2h`, `14d` or `1w`, sizes `64KiB`, `50MiB` or `1GiB`.
"""
    for name, kind, options in config.sections():
        yield f"## [{name}]\n\n{kind.__doc__}\n"
        for each in options:
            example = config.toml(each.metadata["example"])
            yield f"`{each.name}` = `{example}`\n: {each.metadata['doc']}\n"


PAGES: dict[str, Callable[[], Iterator[str]]] = {"configuration.md": configuration}


def main(arguments: list[str]) -> int:
    stale = []
    for name, page in PAGES.items():
        path = REFERENCE / name
        text = NOTE + "\n" + "\n".join(page())
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if arguments != ["--check"]:
                path.write_text(text)
    if stale and arguments == ["--check"]:
        print(f"not what the code says: {' '.join(stale)}; run docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
