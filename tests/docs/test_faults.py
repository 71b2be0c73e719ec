"""docs/faults.toml names tests that exist."""

from __future__ import annotations

from collections import Counter

from .. import faults


def test_every_test_that_is_named_exists() -> None:
    known = faults.known()
    lost = {fault.number: set(fault.tests) - known for fault in faults.faults()}
    assert {number: tests for number, tests in lost.items() if tests} == {}


def test_every_fault_is_shown_or_says_why_not() -> None:
    assert [each.number for each in faults.faults() if not (each.tests or each.reason)] == []


def test_every_fault_has_its_own_number_and_is_a_sentence() -> None:
    found = faults.faults()
    assert [n for n, count in Counter(each.number for each in found).items() if count > 1] == []
    assert [each.number for each in found if not each.text.endswith(".")] == []
