"""A pre-rendered listing gives the same answers as a plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.maildrop import Entry, Rendered
from restante.pop3.commands import VERBS
from restante.pop3.grammar import Repeated, Response
from restante.pop3.session import Policy, Session
from restante.pop3.state import Close

ENTRIES = [Entry(f".u{at}", 10**at) for at in range(12)]


class Ready(Rendered):
    """A pre-rendered listing of ``ENTRIES``."""

    octets = sum(entry.size for entry in ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | Sequence[Entry]:
        return ENTRIES[at]

    def scan_listing(self) -> bytes:
        return b"".join(b"%d %d\r\n" % (at, entry.size) for at, entry in enumerate(ENTRIES, 1))

    def unique_id_listing(self) -> bytes:
        return b"".join(
            b"%d %s\r\n" % (at, entry.unique_id.encode()) for at, entry in enumerate(ENTRIES, 1)
        )


def dialogue(listing: Sequence[Entry], commands: bytes) -> bytes:
    session = Session(VERBS, Policy(), is_secure=True)
    session.receive(b"USER ann\r\nPASS secret\r\n" + commands)
    session.next(), session.next()
    said = session.opened(listing).head()
    while (event := session.next()) is not None and not isinstance(event, Close):
        assert isinstance(event, Response | Repeated)
        said += b"".join(event.encode())
    return said


@given(
    st.lists(
        st.sampled_from([b"STAT", b"LIST", b"UIDL", b"RSET", b"DELE 1", b"DELE 12", b"LIST 3"]),
        max_size=12,
    )
)
def test_dialogue_is_the_same(commands: list[bytes]) -> None:
    octets = b"".join(each + b"\r\n" for each in commands)
    assert dialogue(Ready(), octets) == dialogue(ENTRIES, octets)


@pytest.mark.parametrize("size", [0, 1, 32_768, 100_000])
def test_ready_lines_end_with_the_termination_octet(size: int) -> None:
    pieces = list(Response("text", lines=b"x" * size).encode())
    assert b"".join(pieces) == b"+OK text\r\n" + b"x" * size + b".\r\n"
    assert max(map(len, pieces)) <= 32_768
