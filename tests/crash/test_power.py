"""Power failures: every state in which a disk may be left (model.py) is opened and compared.

The tests here take a sample, so that they take seconds; ``./dev crash --states`` tries all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .laboratory import Laboratory
from .scenarios import SCENARIOS

bounded = pytest.mark.parametrize(
    ("calls", "disks"), [(2, 4), pytest.param(20, 20, marks=pytest.mark.slow)]
)
each_transaction = pytest.mark.parametrize("name", SCENARIOS)


@pytest.fixture
def laboratory(name: str, memory: Path) -> Iterator[Laboratory]:
    with Laboratory(SCENARIOS[name], memory) as made:
        yield made
    assert made.disks > 1


@each_transaction
@pytest.mark.parametrize(
    ("disks", "again"), [(6, 1), pytest.param(None, 10, marks=pytest.mark.slow)]
)
def test_power_failure(laboratory: Laboratory, disks: int | None, again: int) -> None:
    laboratory.power_fails(disks=disks, again=again)


@pytest.mark.slow
@each_transaction
@bounded
def test_power_failure_after_a_kill(laboratory: Laboratory, calls: int, disks: int) -> None:
    laboratory.power_fails_after_kill(calls=calls, disks=disks)


@pytest.mark.slow
@each_transaction
@bounded
@pytest.mark.parametrize("once", [True, False])
def test_power_failure_after_a_fault(
    laboratory: Laboratory, calls: int, disks: int, once: bool
) -> None:
    laboratory.power_fails_after_fault(once=once, calls=calls, disks=disks)


@pytest.mark.slow
@each_transaction
def test_power_failure_when_writes_are_short(laboratory: Laboratory) -> None:
    laboratory.power_fails_when_writes_are_short()
