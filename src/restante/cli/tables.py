"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> Iterator[str]:
    """Yield the lines of a table, with heads in capitals as ``ps`` has them.

    ``right`` names the columns that are aligned to the right.  Columns are counted in cells of a
    terminal, in which Chinese characters take two.
    """
    from rich.cells import cell_len  # only tables need it, and importing it takes time

    lines = [[head.upper() for head in heads], *rows]
    widths = [max(map(cell_len, column)) for column in zip_longest(*lines, fillvalue="")]
    is_right = [head in right.split() for head in heads]
    for line in lines:
        cells = []
        for cell, width, is_number in zip(line, widths, is_right, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if is_number else cell + space)
        yield "  ".join(cells).rstrip()
