"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

_MIN_WIDTH = 8  # columns of a shortened cell


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: str = "",
    shorten: str = "",
    width: int = 80,
) -> Iterator[str]:
    """Yield the lines of a table, with headings in capital letters as in the output of ``ps``.

    ``right`` has the headings of the columns that are aligned to the right, and ``shorten`` those
    of the columns whose cells are shortened if the table would be wider than ``width``.  Widths are
    counted in terminal cells; a Chinese character takes two cells.
    """
    from rich.cells import cell_len  # imported late, because the import takes time

    lines = [[heading.upper() for heading in headings], *rows]
    widths = [max(map(cell_len, column)) for column in zip_longest(*lines, fillvalue="")]
    _reduce(widths, [at for at, each in enumerate(headings) if each in shorten.split()], width)
    right_aligned = [heading in right.split() for heading in headings]
    for line in lines:
        cells = []
        for text, columns, is_right in zip(line, widths, right_aligned, strict=True):
            cell = _fitted(text, columns)
            space = " " * (columns - cell_len(cell))
            cells.append(space + cell if is_right else cell + space)
        yield "  ".join(cells).rstrip()


def _reduce(widths: list[int], shortened: list[int], width: int) -> None:
    """Reduce the widest of the shortened columns until the table fits, if it can."""
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    while excess > 0:
        widest = max(shortened, key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= _MIN_WIDTH:
            return
        widths[widest] -= 1
        excess -= 1


def _fitted(text: str, columns: int) -> str:
    """Return a text, or its beginning and "…" if it is too long."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= columns else f"{set_cell_size(text, columns - 1)}…"
