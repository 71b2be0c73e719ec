"""The directive ``{demo}``: the output of ``restante demo``, run at each build to stay true."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

COMMAND = "restante demo"
COLUMNS, TEXT = 56, 11  # of a line, so that it fits on a phone; where text begins


def screenshot() -> str:
    """The prompt, the command and its output without what differs from run to run."""
    command = [sys.executable, "-m", *COMMAND.split()]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [
        line for line in output.splitlines() if not re.search("fingerprint|[0-9A-F]{4} ", line)
    ]
    # On a loopback address any free port is taken.
    lines = [re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", line) for line in lines]
    return "\n".join([f"$ {COMMAND}", *map(_wrapped, lines)])


def _wrapped(line: str) -> str:
    indent = " " * TEXT
    wrapped = textwrap.fill(line[TEXT:], COLUMNS, initial_indent=indent, subsequent_indent=indent)
    return line[:TEXT] + wrapped[TEXT:]


class Demo(SphinxDirective):
    """A text screenshot, as a block that cannot be copied by mistake."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # its source is elsewhere
        text = screenshot()
        return [nodes.literal_block(text, text, language="text", classes=["screenshot"])]
