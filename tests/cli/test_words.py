"""Readable sizes and tables."""

from __future__ import annotations

import pytest

from restante.cli.tables import table
from restante.words import limit_size, size


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1234, "1.2 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (999_600, "1.0 MB"),
        (2**31, "2.1 GB"),
        (10**15, "1000 TB"),
    ],
)
def test_sizes_have_a_unit_and_two_digits(octets: int, text: str) -> None:
    assert size(octets) == text


@pytest.mark.parametrize(
    ("octets", "text"), [(2**31, "2 GiB"), (500 * 2**20, "500 MiB"), (1000, "1000 bytes")]
)
def test_limits_are_shown_as_they_are_configured(octets: int, text: str) -> None:
    assert limit_size(octets) == text


def test_columns_of_a_table_are_aligned_in_cells_of_a_terminal() -> None:
    rows = [("ann", "9 kB", "x"), ("王小明", "12 kB", "")]
    assert list(table(("user", "size", "note"), rows, right="size")) == [
        "USER     SIZE  NOTE",
        "ann      9 kB  x",
        "王小明  12 kB",
    ]
