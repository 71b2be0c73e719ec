"""Equal commands that arrive together are answered as if they had come one by one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restante.maildrop import Entry
from restante.pop3.commands import VERBS
from restante.pop3.grammar import Repeated, Response
from restante.pop3.session import Policy, Session
from restante.pop3.state import Retrieve, Update

from .core import Core

MESSAGES = [b"Subject: 1\r\n\r\none\r\ntwo\r\n", b"", b".a\r\n\r\n.\r\n..\r\n"]
NUMBERS = ["1", "2", "3", "4", "0", "01", "4294967296", "1 2", " 1", ""]
LINES = ["0", "1", "x", "00", "01", "", "9" * 10, "9" * 20, "9" * 21]
commands = st.lists(
    st.one_of(
        st.builds("{} {}".format, st.sampled_from(["RETR", "DELE"]), st.sampled_from(NUMBERS)),
        st.builds("TOP {} {}".format, st.sampled_from(NUMBERS), st.sampled_from(LINES)),
        st.sampled_from(["RSET", "NOOP", "STAT", "retr 1", "Dele 2", "TOP 1", "LANG de", "QUIT"]),
    )
)


@given(commands)
@example(["DELE 1", "DELE 1", "DELE 2"])
@example(["RETR 1"] * 40)
@example(["TOP 1 0"] * 15 + ["TOP 1 1", "RETR 4", "RETR 1", "RETR 9"])
@example(["TOP 1 00", "TOP 1 01"])  # leading zeros are refused
@example(["DELE 4"] * 25)  # too many bad commands
@pytest.mark.rfc("P-091")
def test_pipelined_commands_get_the_same_responses(lines: list[str]) -> None:
    """RFC 2449 §6.6: a client may send commands ahead."""
    octets = [line.encode() + b"\r\n" for line in [*lines, "QUIT"]]
    together, one_by_one = Core(list(MESSAGES)), Core(list(MESSAGES))
    for core in (together, one_by_one):
        core.send(b"USER mrose\r\nPASS tan staaf\r\n")
    together.send(b"".join(octets))
    for line in octets:
        one_by_one.send(line)
    assert bytes(together.said) == bytes(one_by_one.said)
    assert together.messages == one_by_one.messages


def opened(count: int, *, is_read_only: bool = False) -> Session:
    session = Session(VERBS, Policy(), is_secure=True)
    listing = [Entry(f"u{number}", 2) for number in range(1, count + 1)]
    session.opened(listing, is_read_only=is_read_only)
    return session


def test_a_run_is_one_event_of_a_bounded_number_of_messages() -> None:
    session = opened(100)
    session.receive(b"".join(b"RETR %d\r\n" % number for number in range(1, 101)))
    numbers: list[int] = []
    events = 0
    while (event := session.next()) is not None:
        assert isinstance(event, Retrieve)
        assert session.next() is None  # not before it is answered
        assert 1 < len(event.entries) <= 16 or len(numbers) > 90
        assert len(event.entries) == len(event.heads) == len(event.numbers)
        numbers += event.numbers
        events += 1
        session.retrieved(len(event.entries))
    assert numbers == list(range(1, 101))
    assert events < 10


def test_unsent_messages_of_a_run_are_requested_again() -> None:
    session = opened(9)
    session.receive(b"TOP 1 5\r\nTOP 3 5\r\nTOP 2 5\r\nDELE 1\r\nDELE 9\r\n")
    first = session.next()
    assert isinstance(first, Retrieve)
    assert (first.numbers, first.lines) == ([1, 3, 2], 5)
    session.retrieved(1)
    rest = session.next()
    assert isinstance(rest, Retrieve)
    assert rest == first.after(1)
    assert (rest.numbers, rest.lines) == ([3, 2], 5)
    session.retrieved(2)
    assert session.next() == Repeated(Response("marked as deleted"), 2)
    assert session.next() is None
    assert session.unread == 0


def test_a_read_only_login_may_delete_nothing_in_a_run() -> None:
    session = opened(3, is_read_only=True)
    session.receive(b"DELE 1\r\nDELE 2\r\nSTAT\r\n")
    for _ in range(2):
        event = session.next()
        assert isinstance(event, Response)
        assert not event.is_ok
    assert session.next() == Response("3 6", is_data=True)


def test_quit_requests_the_removal_of_marked_messages_in_order() -> None:
    session = opened(5)
    session.receive(b"DELE 4\r\nDELE 1\r\nDELE 3\r\nQUIT\r\n")
    assert session.next() == Repeated(Response("marked as deleted"), 3)
    event = session.next()
    assert isinstance(event, Update)
    assert [entry.unique_id for entry in event.entries] == ["u1", "u3", "u4"]
    assert [entry.unique_id for entry in event.entries[1:]] == ["u3", "u4"]
    assert event.entries[-1].unique_id == "u4"
    assert len(event.entries) == 3
