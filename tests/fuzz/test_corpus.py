"""The fuzzing targets with the kept corpus and with inputs that hypothesis makes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .corpus import KEPT, inputs
from .targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_inputs(target: str) -> None:
    found = inputs(target)
    assert found, "a target needs something to begin with"
    for octets in (b"", *found):  # fuzzers begin with the empty input
        TARGETS[target](octets)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_invented_inputs(target: str) -> None:
    seeds = [seed for seed in inputs(target) if len(seed) < 5000]

    @settings(max_examples=20)
    @given(st.sampled_from(seeds), st.data())
    def mutated(seed: bytes, data: st.DataObject) -> None:
        begin = data.draw(st.integers(0, len(seed)))
        end = data.draw(st.integers(begin, len(seed)))
        TARGETS[target](seed[:begin] + data.draw(st.binary(max_size=8)) + seed[end:])

    mutated()


def test_everything_kept_belongs_to_a_target() -> None:
    assert {path.name for path in KEPT.iterdir()} <= set(TARGETS)
