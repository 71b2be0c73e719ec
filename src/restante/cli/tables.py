"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = ""
) -> Iterator[str]:
    """Yield the lines of a table, with headings in capital letters as in the output of ``ps``.

    ``right`` has the headings of the columns that are aligned to the right.  Widths are counted in
    terminal cells; a Chinese character takes two cells.
    """
    from rich.cells import cell_len  # imported late, because the import takes time

    lines = [[heading.upper() for heading in headings], *rows]
    widths = [max(map(cell_len, column)) for column in zip_longest(*lines, fillvalue="")]
    right_aligned = [heading in right.split() for heading in headings]
    for line in lines:
        cells = []
        for cell, width, is_right in zip(line, widths, right_aligned, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if is_right else cell + space)
        yield "  ".join(cells).rstrip()
