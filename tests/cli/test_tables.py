"""Tables: alignment, wide characters, and columns that are shortened to fit."""

from __future__ import annotations

from rich.cells import cell_len

from restante.cli.tables import table

USER, ADDRESS = "ann.of.the.long.name@mail.example.org", "2001:db8:1234:5678:9abc:def0:1234:5678"
HEADINGS = ["id", "user", "ip", "proto", "state", "open", "sent"]


def row(user: str, address: str, state: str = "transaction") -> list[str]:
    return ["1f3a5c7e90", user, address, "pop3s", state, "59 min 59 s", "999.9 kB"]


def lines(*rows: list[str], width: int = 80) -> list[str]:
    return list(table(HEADINGS, rows, right="open sent", shorten="user ip state", width=width))


def test_short_cells_are_complete() -> None:
    assert lines(row("ann", "192.0.2.7"))[1] == (
        "1f3a5c7e90  ann   192.0.2.7  pop3s  transaction  59 min 59 s  999.9 kB"
    )


def test_long_cells_are_shortened_until_the_table_fits() -> None:
    for rows in (
        [row(USER, "192.0.2.7")],
        [row("ann", ADDRESS)],
        [row(USER, ADDRESS, "authorization"), row("-", "192.0.2.7")],
        [row("用户" * 40, ADDRESS)],
    ):
        shown = lines(*rows)
        # A cell of wide characters may be one column shorter.
        assert {cell_len(line) for line in shown} <= {79, 80}
        for line in shown[1:]:
            assert line.startswith("1f3a5c7e90  ")
            assert "59 min 59 s  999.9 kB" in line
    assert lines(row(USER, "192.0.2.7"))[1].split()[1:3] == ["ann.of.the.lo…", "192.0.2.7"]
    assert USER in lines(row(USER, ADDRESS), width=200)[1]


def test_columns_that_may_not_be_shortened_stay_complete() -> None:
    rows = [[USER, ADDRESS]]
    assert list(table(["user", "ip"], rows, width=20))[1] == f"{USER}  {ADDRESS}"
    assert list(table(["user", "ip"], rows, shorten="ip", width=20))[1] == f"{USER}  2001:db…"
    assert list(table(["user", "ip"], [], shorten="ip", width=1)) == ["USER  IP"]
