"""The policy of the collector, as a table (docs/design.md)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.collect.plan import (
    Budget,
    Delete,
    Fetch,
    Later,
    Policy,
    Skip,
    Step,
    Stub,
    Taken,
    Used,
    looks_moved,
    plan,
    short_name,
    stub_key,
)
from restante.pop3.listing import Message

NOW = 1_800_000_000.0
DAY = 86_400.0
WEEK = 7 * DAY
ONE = Message(1, "u", 100)


def steps(
    listing: list[Message], taken: dict[str, Taken], policy: Policy | None = None
) -> list[Step]:
    return list(plan(listing, taken, policy or Policy(), NOW))


@pytest.mark.parametrize(
    ("age", "keep", "step"),
    [
        (None, WEEK, [Fetch(ONE, "u")]),
        (None, 0.0, [Fetch(ONE, "u")]),  # never taken: fetched, never deleted
        (6 * DAY, WEEK, []),
        (WEEK, WEEK, [Delete(ONE, "u")]),
        (0.0, 0.0, [Delete(ONE, "u")]),
        (9999 * DAY, None, []),  # keep for ever
        (-DAY, WEEK, []),  # a clock that was set back deletes nothing early
    ],
)
def test_age_decides(age: float | None, keep: float | None, step: list[Step]) -> None:
    taken = {} if age is None else {"u": Taken(100, NOW - age)}
    assert steps([ONE], taken, Policy(keep=keep)) == step


def test_what_was_only_begun_is_fetched_again() -> None:
    assert steps([ONE], {"u": Taken(100, None)}, Policy(keep=0.0)) == [
        Fetch(ONE, "u", was_begun=True)
    ]


def test_deleted_mail_that_is_listed_again_is_deleted_again_and_not_fetched() -> None:
    gone = {"u": Taken(100, NOW - DAY, is_gone=True)}
    assert steps([ONE], gone, Policy(keep=None)) == [Delete(ONE, "u")]


def test_adopted_mail_is_neither_fetched_nor_deleted() -> None:
    assert steps([ONE], {"u": Taken(100, NOW - WEEK, is_adopted=True)}, Policy(keep=0.0)) == []


def test_an_old_unique_id_with_another_size_is_looked_at() -> None:
    assert steps([ONE], {"u": Taken(99, NOW - DAY)}, Policy(keep=0.0)) == [Fetch(ONE, "u")]


def test_unique_ids_that_stand_twice_or_are_missing_tell_nothing() -> None:
    listing = [Message(1, "u", 100), Message(2, "u", 100), Message(3, None, 7), Message(4, "", 7)]
    taken = {"u": Taken(100, NOW - WEEK), "": Taken(7, NOW - WEEK)}
    assert steps(listing, taken, Policy(keep=0.0)) == [Fetch(each, None) for each in listing]


def test_too_large_is_left_and_told() -> None:
    reason = f"100 octets, more than 99; to have it: --whole {short_name(ONE)}"
    assert steps([ONE], {}, Policy(largest=99)) == [Skip(ONE, reason)]
    assert steps([ONE], {}, Policy(largest=100)) == [Fetch(ONE, "u")]
    nameless = Message(1, None, 100)
    for stubs in (False, True):  # a stub of it could not be known again
        assert steps([nameless], {}, Policy(largest=99, stubs=stubs)) == [
            Skip(nameless, "100 octets, more than 99")
        ]


STUB = stub_key("u")
LARGE = Policy(keep=0.0, largest=99, stubs=True)


@pytest.mark.parametrize(
    ("taken", "policy", "step"),
    [
        ({}, LARGE, [Stub(ONE, STUB)]),
        ({STUB: Taken(100, None)}, LARGE, [Stub(ONE, STUB, was_begun=True)]),
        ({STUB: Taken(100, NOW, is_gone=True)}, LARGE, []),  # neither again, nor deleted
        ({STUB: Taken(100, NOW)}, Policy(keep=0.0, largest=100), [Fetch(ONE, "u")]),
        (
            {STUB: Taken(100, NOW)},
            Policy(keep=0.0, largest=99, stubs=True, whole=frozenset([short_name(ONE)])),
            [Fetch(ONE, "u")],
        ),
        ({STUB: Taken(100, NOW), "u": Taken(100, NOW)}, LARGE, [Delete(ONE, "u")]),
        ({"u": Taken(100, None)}, LARGE, [Stub(ONE, STUB)]),  # the limit was lowered
    ],
)
def test_a_stub_stands_for_a_message_that_is_too_large(
    taken: dict[str, Taken], policy: Policy, step: list[Step]
) -> None:
    assert steps([ONE], taken, policy) == step


def test_stubs_count_as_known_where_everything_looks_new() -> None:
    listing = messages([str(at) for at in range(30)])
    taken = {stub_key(str(at)): Taken(1, NOW) for at in range(30)}
    assert not looks_moved(listing, taken, 25)
    assert looks_moved(listing, {}, 25)


def test_limit_counts_what_is_fetched() -> None:
    listing = [Message(at, f"u{at}", 1) for at in range(1, 6)]
    taken = {"u1": Taken(1, NOW - WEEK)}
    assert steps(listing, taken, Policy(keep=0.0, limit=2)) == [
        Delete(listing[0], "u1"),
        Fetch(listing[1], "u2"),
        Fetch(listing[2], "u3"),
        Later(listing[3], "the limit"),
        Later(listing[4], "the limit"),
    ]


@pytest.mark.parametrize(
    ("sizes", "budget", "used", "fetched"),
    [
        ([5, 5, 5], Budget(), Used(99, 99), [1, 2, 3]),
        ([5, 5, 5], Budget(messages=3), Used(1, 99), [1, 2]),
        ([5, 5, 5], Budget(messages=3), Used(4, 99), []),
        ([5, 5, 5], Budget(octets=20), Used(9, 10), [1, 2]),
        ([5, 5, 5], Budget(octets=20), Used(9, 21), []),
        ([5, 9, 1], Budget(octets=20), Used(0, 10), [1]),  # or the large one waited for ever
        ([5, 5, 5], Budget(messages=9, octets=10), Used(), [1, 2]),
    ],
)
def test_a_budget_is_for_all_sessions_of_a_day(
    sizes: list[int], budget: Budget, used: Used, fetched: list[int]
) -> None:
    listing = [Message(at, f"u{at}", size) for at, size in enumerate(sizes, 1)]
    found = list(plan(listing, {}, Policy(budget=budget), NOW, used))
    assert [each.message.number for each in found if isinstance(each, Fetch)] == fetched
    left = [each.why for each in found if isinstance(each, Later)]
    assert left == ["the day's budget"] * (len(sizes) - len(fetched))


def test_what_no_day_has_room_for_is_told_and_keeps_nothing_else_waiting() -> None:
    listing = [Message(1, "u1", 100), Message(2, "u2", 10)]
    found = list(plan(listing, {}, Policy(budget=Budget(octets=99)), NOW, Used()))
    reason = "100 octets, more than the 99 of a day"
    assert found == [Skip(listing[0], reason), Fetch(listing[1], "u2")]


def test_newest_are_those_taken_last_wherever_they_stand() -> None:
    listing = [Message(at, f"u{at}", 1) for at in range(1, 4)]
    taken = {"u1": Taken(1, NOW - 1), "u2": Taken(1, NOW - 3), "u3": Taken(1, NOW - 2)}
    assert steps(listing, taken, Policy(keep=0.0, newest=2)) == [Delete(listing[1], "u2")]
    assert steps(listing, taken, Policy(keep=0.0, newest=3)) == []


def test_new_mail_counts_among_the_newest() -> None:
    listing = [Message(1, "old", 1), Message(2, "new", 1)]
    taken = {"old": Taken(1, NOW - WEEK)}
    assert steps(listing, taken, Policy(keep=0.0, newest=1)) == [
        Delete(listing[0], "old"),
        Fetch(listing[1], "new"),
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.integers(1, 3))),
    st.dictionaries(
        st.sampled_from("abcd"),
        st.builds(
            Taken,
            st.integers(1, 3),
            st.none() | st.floats(0, NOW),
            st.booleans(),
            st.booleans(),
        ),
    ),
    st.builds(
        Policy,
        st.none() | st.floats(0, NOW),
        st.integers(0, 3),
        st.booleans(),
        st.none() | st.integers(1, 3),
        st.none() | st.integers(0, 3),
        st.booleans(),
    ),
)
def test_only_what_was_taken_is_deleted(
    rows: list[tuple[str | None, int]], taken: dict[str, Taken], policy: Policy
) -> None:
    listing = [Message(at, unique_id, size) for at, (unique_id, size) in enumerate(rows, 1)]
    for step in plan(listing, taken, policy, NOW):
        if isinstance(step, Delete):
            assert taken[step.key].at is not None
            assert taken[step.key].is_gone or not taken[step.key].is_adopted
            assert [each.unique_id for each in listing].count(step.key) == 1


def messages(ids: list[str]) -> list[Message]:
    return [Message(at, unique_id, 1) for at, unique_id in enumerate(ids, 1)]


@pytest.mark.parametrize(
    ("listed", "known", "expected", "moved"),
    [
        (range(100, 200), range(100), 100, True),  # all ids are new
        (range(95, 195), range(100), 100, True),  # nearly all
        (range(50, 150), range(100), 100, False),  # half of the old mail is there
        (range(100, 110), range(100), 100, False),  # ten letters prove nothing
        (range(100, 200), range(5), 5, False),  # nor does a server that we hardly know
        (range(0), range(100), 100, False),  # an empty listing is only empty
        (range(100, 200), range(100), 0, False),  # all of the old mail was deleted by us
    ],
)
def test_a_server_that_gave_new_ids_to_old_mail(
    listed: range, known: range, expected: int, moved: bool
) -> None:
    taken = {str(at): Taken(1, NOW) for at in known}
    assert looks_moved(messages([str(at) for at in listed]), taken, expected) is moved
