"""The directive ``{picture} NAME``: pictures drawn at each build, in the colours of the page.

They are inline SVG, so that they follow the light and the dark theme (``_static/pages.css``), and
narrow, so that they can be read on a phone.  All lengths are in units of the picture.
"""

from __future__ import annotations

import runpy
import sys
import textwrap
from collections.abc import Callable
from html import escape
from itertools import groupby
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

HOUSE = Path(__file__).parent.parent
TESTS = HOUSE / "tests"
WIDTH = 460
LINE = 20  # height of a line of text


def box(x: int, y: int, width: int, height: int, text: str, kind: str = "box") -> str:
    """A rectangle with centred lines of text; the first one is bold if there are several."""
    lines = text.split("\n")
    top = y + height / 2 - (len(lines) - 1) * LINE / 2 + 5
    spans = "".join(
        label(x + width // 2, top + at * LINE, line, "name" if at == 0 and lines[1:] else "")
        for at, line in enumerate(lines)
    )
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>{spans}'


def label(x: int, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def arrow(*points: tuple[int, int]) -> str:
    """A line through these points, with a head at the last one."""
    path = " L".join(f"{x} {y}" for x, y in points)
    return f'<path d="M{path}" marker-end="url(#head)"/>'


def picture(name: str, height: int, parts: list[str]) -> str:
    return (
        f'<svg class="picture" role="img" viewBox="0 0 {WIDTH} {height}">'
        f"<title>{escape(name)}</title>"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0 0 L10 5 L0 10 z"/></marker></defs>'
        f"{''.join(parts)}</svg>"
    )


def layers() -> str:
    """The layers of tests/test_layers.py, the highest first."""
    known: dict[str, int] = runpy.run_path(str(TESTS / "test_layers.py"))["LAYERS"]
    ordered = sorted(known, key=lambda room: (-known[room], room))
    parts, y = [], 4
    for _, rooms in groupby(ordered, key=known.__getitem__):
        lines = textwrap.wrap("   ".join(rooms), 46)
        height = len(lines) * LINE + 10
        parts.append(f'<rect class="box" x="40" y="{y}" width="416" height="{height}" rx="5"/>')
        parts += [label(248, y + 20 + at * LINE, line) for at, line in enumerate(lines)]
        y += height + 6
    parts.append(arrow((24, 8), (24, y - 10)))
    parts.append(f'<g transform="rotate(-90 14 {y // 2})">{label(14, y // 2, "imports")}</g>')
    return picture("The layers: each may import only those below it", y, parts)


def message() -> str:
    parts = [
        box(10, 5, 200, 50, "mail server, device\nLMTP, SMTP, deliver", "other"),
        box(250, 5, 200, 50, "another POP3 server\nrestante collect", "other"),
        arrow((110, 55), (110, 100)),
        arrow((350, 55), (350, 80), (200, 80), (200, 100)),
        box(10, 100, 240, 50, "tmp/\nwritten and synced"),
        arrow((110, 150), (110, 200)),
        label(122, 180, "rename, sync; then 250 to the sender", anchor="start"),
        box(10, 200, 240, 50, "new/, cur/\nlisted to clients"),
        arrow((250, 225), (340, 225)),
        label(295, 217, "RETR"),
        box(340, 200, 110, 50, "client", "other"),
        arrow((70, 250), (70, 310)),
        label(80, 285, "DELE, QUIT", anchor="start"),
        arrow((200, 310), (200, 250)),
        label(210, 285, "restore", anchor="start"),
        box(10, 310, 240, 50, "held/\nfor 14 days"),
        arrow((250, 335), (340, 335)),
        label(295, 327, "purge"),
        box(340, 310, 110, 50, "destroyed", "other"),
    ]
    return picture("The life of a message", 366, parts)


TRUST = (
    ("anyone who connects", "nothing"),
    ("logged-in user", "one maildrop"),
    ("mail server on LMTP", "recipients"),
    ("program in the Maildir", "files, no links"),
    ("remote POP3 server", "its mail"),
    ("operator", "everything"),
)
"""Each party, and what restante trusts it with."""


def trust() -> str:
    parts, height = [], len(TRUST) * 50
    for at, (party, trusted) in enumerate(TRUST):
        y = 5 + at * 50
        parts.append(box(5, y, 190, 40, party, "other"))
        parts.append(arrow((195, y + 20), (335, y + 20)))
        parts.append(label(263, y + 13, trusted))
    parts.append(box(335, 5, 120, height - 10, "restante\nruns as one\nsystem user"))
    return picture("What restante trusts each party with", height, parts)


def bars(title: str, groups: list[tuple[str, dict[str, float]]]) -> str:
    """Horizontal bars, a group for each question; those of restante are filled."""
    left, longest = 130, 230  # of a bar
    parts = [label(5, 20, title, "name", "start")]
    y, most = 34, max(value for _, values in groups for value in values.values())
    for question, values in groups:
        parts.append(label(5, y + 18, question, anchor="start"))
        y += 26
        for contender, value in values.items():
            width = max(round(longest * value / most), 1)
            kind = "bar" if contender == "restante" else "bar peer"
            parts.append(label(left - 8, y + 14, contender, anchor="end"))
            parts.append(
                f'<rect class="{kind}" x="{left}" y="{y}" width="{width}" height="{LINE - 3}"/>'
            )
            figure = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            parts.append(label(left + width + 6, y + 14, figure, anchor="start"))
            y += LINE
        y += 6
    return picture(title, y + 4, parts)


def chart(name: str) -> str:
    """A chart of what was measured.

    Raises:
        Missing: one of its figures was not measured (bench/measured.py).
    """
    sys.path.insert(0, str(HOUSE / "bench"))  # its modules import each other so
    try:
        charts = runpy.run_path(str(HOUSE / "bench" / "charts.py"))
    finally:
        sys.path.pop(0)
    return bars(*charts["drawn"](charts["read"](), [name])[name])


PICTURES: dict[str, Callable[[], str]] = {"layers": layers, "message": message, "trust": trust}


class Picture(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # its source is elsewhere
        name = self.arguments[0]
        drawn = PICTURES[name]() if name in PICTURES else chart(name)
        return [nodes.raw("", drawn, format="html")]
