"""Every client transcript: answers in one piece, in single octets, or split anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .script import Drive, Operation, load

TRANSCRIPTS = load()
each = pytest.mark.parametrize(
    "operations", [found for _, found in TRANSCRIPTS], ids=[name for name, _ in TRANSCRIPTS]
)


@each
def test_in_step(operations: list[Operation]) -> None:
    drive = Drive(lambda octets: [octets])
    for operation in operations:
        drive.run(operation)


@each
def test_one_octet_at_a_time(operations: list[Operation]) -> None:
    drive = Drive(lambda octets: [octets[at : at + 1] for at in range(len(octets))])
    for operation in operations:
        drive.run(operation)


@given(st.data())
def test_any_split_gives_the_same_results(data: st.DataObject) -> None:
    def cut(octets: bytes) -> list[bytes]:
        cuts = sorted(data.draw(st.lists(st.integers(1, len(octets)), max_size=3)))
        pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
        return [piece for piece in pieces if piece]

    drive = Drive(cut)
    for operation in data.draw(st.sampled_from(TRANSCRIPTS))[1]:
        drive.run(operation)
