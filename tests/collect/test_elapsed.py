"""The ledger's clock never goes back, and accepts a jump only after a day."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.collect.elapsed import Elapsed, Reading, advance
from restante.collect.ledger import Ledger

HOUR, DAY = 3600.0, 86_400.0
BEGIN = 1_800_000_000.0


def after(*moments: float) -> float:
    """Return the ledger's clock in seconds since the first reading."""
    reading = None
    for moment in (0.0, *moments):
        reading = advance(reading, BEGIN + moment)
    assert reading is not None
    return reading.time - BEGIN


@pytest.mark.parametrize(
    ("moments", "shown"),
    [
        ([HOUR], HOUR),
        ([DAY], DAY),
        ([HOUR, 2 * HOUR, 3 * HOUR], 3 * HOUR),
        ([-HOUR], 0),  # clock set back
        ([-HOUR, 0, HOUR], 2 * HOUR),
        ([10 * DAY], DAY),  # switched off, or wrong
        ([10 * DAY, 10 * DAY + HOUR], DAY + HOUR),
        ([10 * DAY, 11 * DAY - 1], 2 * DAY - 1),
        ([10 * DAY, 11 * DAY], 11 * DAY),  # a day later: the machine was off
        ([3650 * DAY, 3650 * DAY + HOUR, 2 * HOUR], DAY + HOUR),  # it was corrected
        ([3650 * DAY, 2 * HOUR, 3 * DAY], 2 * DAY),
        ([7 * DAY, 14 * DAY, 21 * DAY], 15 * DAY),  # collected once a week: a week behind
    ],
)
def test_elapsed_time_between_sessions_is_counted(moments: list[float], shown: float) -> None:
    assert after(*moments) == shown


@given(st.lists(st.floats(-20 * 365 * DAY, 20 * 365 * DAY), max_size=20))
def test_it_never_goes_back(moments: list[float]) -> None:
    reading = Reading(BEGIN, BEGIN)
    for moment in moments:
        later = advance(reading, BEGIN + moment)
        assert later.time >= reading.time
        reading = later


@given(st.lists(st.floats(0, 20 * 365 * DAY), max_size=20), st.floats(1, 20 * 365 * DAY))
def test_a_jump_that_is_put_right_within_a_day_adds_a_day_at_most(
    moments: list[float], jump: float
) -> None:
    reading = Reading(BEGIN, BEGIN)
    for moment in sorted(moments):
        reading = advance(reading, BEGIN + moment)
    wrong = advance(reading, reading.wall + jump)
    right = advance(wrong, reading.wall)
    assert right.time - reading.time <= DAY + reading.pending
    assert right.pending == 0


def test_sessions_and_accounts_share_one_clock_over_restarts(tmp_path: Path) -> None:
    shown = []
    for moment in (0.0, HOUR, 3650 * DAY, 2 * HOUR):
        with closing(Ledger(tmp_path / "ledger")) as ledger:
            shown.append(ledger.now(BEGIN + moment) - BEGIN)
    assert shown == [0, HOUR, HOUR + DAY, HOUR + DAY]


def test_a_jump_within_a_session_counts_as_a_day_at_most() -> None:
    wall = [BEGIN]
    now = Elapsed(7.0, lambda: wall[0])
    assert now() == 7
    for moment, shown in ((HOUR, HOUR), (-HOUR, 0), (3650 * DAY, DAY)):
        wall[0] = BEGIN + moment
        assert now() == 7 + shown
