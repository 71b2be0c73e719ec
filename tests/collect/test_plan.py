"""The policy of the collector as tables (docs/design.md)."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.collect.fingerprint import Content
from restante.collect.plan import (
    Allowance,
    Budget,
    Collected,
    Compare,
    Doubt,
    Due,
    Evidence,
    Fetch,
    Policy,
    Postpone,
    Proof,
    Record,
    Seen,
    SetAside,
    Skip,
    Step,
    Stub,
    Unproved,
    Used,
    looks_moved,
    plan,
    prove,
    short_name,
    stub_key,
)
from restante.pop3.listing import Message

NOW = 1_800_000_000.0
DAY = 86_400.0
WEEK = 7 * DAY
ONE = Message(1, "u", 100)


def steps(
    listing: list[Message],
    taken: dict[str, Collected],
    policy: Policy | None = None,
    aside: dict[str, SetAside] | None = None,
) -> list[Step]:
    return list(plan(listing, taken, policy or Policy(), NOW, aside=aside))


def kinds(found: list[Step]) -> list[str]:
    return [f"{type(each).__name__} {each.message.number}" for each in found]


@pytest.mark.parametrize(
    ("age", "keep", "step"),
    [
        (None, WEEK, [Fetch(ONE, "u")]),
        (None, 0.0, [Fetch(ONE, "u")]),  # never stored: fetched, not deleted
        (6 * DAY, WEEK, []),
        (WEEK, WEEK, [Due(ONE, "u", "taken 7.0 days ago")]),
        (0.0, 0.0, [Due(ONE, "u", "the account keeps no mail on the server")]),
        (9999 * DAY, None, []),  # keep for ever
        (-DAY, WEEK, []),  # a time stamp from the future is ignored
        (-9999 * DAY, 0.0, [Due(ONE, "u", "the account keeps no mail on the server")]),
    ],
)
def test_age_decides(age: float | None, keep: float | None, step: list[Step]) -> None:
    taken = {} if age is None else {"u": Collected(100, NOW - age)}
    assert steps([ONE], taken, Policy(keep=keep)) == step


def test_interrupted_messages_are_fetched_again() -> None:
    assert steps([ONE], {"u": Collected(100, None)}, Policy(keep=0.0)) == [
        Fetch(ONE, "u", was_begun=True)
    ]


@pytest.mark.parametrize("keep", [None, 0.0, WEEK])
def test_a_unique_id_that_is_listed_again_is_a_stranger(keep: float | None) -> None:
    """RFC 1939 §7 lets a server use it for another message, so it is fetched and compared."""
    for gone in (
        Collected(100, NOW - 9 * DAY, is_gone=True),
        Collected(100, NOW - 9 * DAY, is_expected=False),
        Collected(100, NOW - 9 * DAY, is_gone=True, is_adopted=True),
    ):
        assert kinds(steps([ONE], {"u": gone}, Policy(keep=keep))) == ["Compare 1"]


def test_message_listed_again_counts_from_then() -> None:
    known = Collected(100, NOW - 30 * DAY, seen_again=NOW - 6 * DAY)
    assert steps([ONE], {"u": known}, Policy(keep=WEEK)) == []
    known = replace(known, seen_again=NOW - WEEK)
    assert kinds(steps([ONE], {"u": known}, Policy(keep=WEEK))) == ["Due 1"]
    assert steps([ONE], {"u": known}, Policy(keep=None)) == []


def test_adopted_mail_is_neither_fetched_nor_deleted() -> None:
    assert steps([ONE], {"u": Collected(100, NOW - WEEK, is_adopted=True)}, Policy(keep=0.0)) == []


def test_a_known_unique_id_with_another_size_is_compared() -> None:
    for keep in (None, 0.0):
        found = steps([ONE], {"u": Collected(99, NOW - DAY)}, Policy(keep=keep))
        assert found == [Compare(ONE, "u", "its size was 99 octets before")]


@pytest.mark.parametrize(
    ("doubt", "size", "keep", "kind"),
    [
        (Doubt.SHORT, 100, None, "Compare 1"),
        (Doubt.SHORT, 100, 0.0, "Compare 1"),
        (Doubt.ANSWER, 100, None, "CheckHeader 1"),
        (Doubt.ANSWER, 100, 0.0, "Due 1"),  # its header is read in any case
        (Doubt.ANSWER, 99, 0.0, "Compare 1"),
        (Doubt.ADDRESS, 100, None, "CheckHeader 1"),
        (Doubt.ADDRESS, 100, 0.0, "Due 1"),
    ],
)
def test_doubts_are_settled_under_every_policy(
    doubt: Doubt, size: int, keep: float | None, kind: str
) -> None:
    known = {"u": Collected(size, NOW - DAY, doubt=doubt)}
    assert kinds(steps([ONE], known, Policy(keep=keep))) == [kind]


def test_new_mail_goes_before_comparisons() -> None:
    """Comparing old mail must not use up the budget for new mail."""
    listing = [Message(at, f"u{at}", 1) for at in range(1, 5)]
    taken = {"u1": Collected(1, NOW, is_gone=True), "u3": Collected(2, NOW)}
    found = steps(listing, taken, Policy(limit=3))
    assert kinds(found) == ["Fetch 2", "Fetch 4", "Compare 1", "Postpone 3"]


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(largest=99), "it was deleted before; 100 octets, more than 99"),
        (Policy(largest=99, stubs=True), "it was deleted before; 100 octets, more than 99"),
        (Policy(budget=Budget(octets=99)), "it was deleted before; 100 octets, more than the 99"),
    ],
)
def test_too_large_messages_are_not_compared(policy: Policy, reason: str) -> None:
    (step,) = steps([ONE], {"u": Collected(100, NOW, is_gone=True)}, policy)
    assert isinstance(step, Skip)
    assert step.reason.startswith(reason)


POISON = {"u": SetAside(2, "it did not end", NOW + 3600)}


def test_messages_set_aside_are_reported_and_not_tried() -> None:
    """In every state of the message: the connection would end again."""
    for taken in ({}, {"u": Collected(100, NOW - DAY)}, {"u": Collected(100, NOW, is_gone=True)}):
        (step,) = steps([ONE], taken, Policy(keep=0.0), POISON)
        name = short_name(ONE)
        reason = (
            f"set aside after 2 tries (it did not end); tried again in 1 h, or now: --whole {name}"
        )
        assert step == Skip(ONE, reason)


def test_messages_set_aside_are_tried_last_after_their_wait_or_by_name() -> None:
    listing = [ONE, Message(2, "v", 1)]
    over = {"u": SetAside(2, "it did not end", NOW)}
    assert kinds(steps(listing, {}, Policy(), over)) == ["Fetch 2", "Fetch 1"]
    wanted = Policy(whole=frozenset([short_name(ONE)]))
    assert kinds(steps(listing, {}, wanted, POISON)) == ["Fetch 2", "Fetch 1"]


@pytest.mark.parametrize(
    ("until", "whole", "reason"),
    [
        (NOW, False, "set aside (it did not end); tried again in the next run, or now: --whole "),
        (NOW, True, "set aside (it did not end); tried again in the next run, or now: --whole "),
        (NOW + 1, False, "set aside after 2 tries (it did not end); tried again in 1 h, or now: "),
        (NOW + 1, True, "set aside (it did not end); tried again in the next run, or now: "),
    ],
)
def test_postponed_messages_are_not_tried_even_by_name(
    until: float, whole: bool, reason: str
) -> None:
    listing, policy = [ONE, Message(2, "v", 1)], Policy()
    if whole:
        policy = Policy(whole=frozenset([short_name(ONE)]))
    aside = {"u": SetAside(2, "it did not end", until)}
    fetch, skip = plan(listing, {}, policy, NOW, aside=aside, postponed={"u"})
    assert isinstance(fetch, Fetch)
    assert isinstance(skip, Skip)
    assert skip.reason.startswith(reason)


def test_messages_without_unique_ids_are_set_aside_by_size() -> None:
    listing = [Message(1, None, 100), Message(2, None, 99)]
    found = steps(listing, {}, None, {" size 100": SetAside(2, "it did not end", NOW + 1)})
    assert kinds(found) == ["Fetch 2", "Skip 1"]


def test_repeated_or_missing_unique_ids_identify_nothing() -> None:
    listing = [Message(1, "u", 100), Message(2, "u", 100), Message(3, None, 7), Message(4, "", 7)]
    taken = {"u": Collected(100, NOW - WEEK), "": Collected(7, NOW - WEEK)}
    assert steps(listing, taken, Policy(keep=0.0)) == [Fetch(each, None) for each in listing]


def test_too_large_messages_stay_and_are_reported() -> None:
    reason = f"100 octets, more than 99; to fetch it: --whole {short_name(ONE)}"
    assert steps([ONE], {}, Policy(largest=99)) == [Skip(ONE, reason)]
    assert steps([ONE], {}, Policy(largest=100)) == [Fetch(ONE, "u")]
    nameless = Message(1, None, 100)
    for stubs in (False, True):  # a stub of it could not be recognised
        assert steps([nameless], {}, Policy(largest=99, stubs=stubs)) == [
            Skip(nameless, "100 octets, more than 99")
        ]


STUB = stub_key("u")
LARGE = Policy(keep=0.0, largest=99, stubs=True)


@pytest.mark.parametrize(
    ("taken", "policy", "step"),
    [
        ({}, LARGE, [Stub(ONE, STUB)]),
        ({STUB: Collected(100, None)}, LARGE, [Stub(ONE, STUB, was_begun=True)]),
        ({STUB: Collected(100, NOW, is_gone=True)}, LARGE, []),  # neither stored again nor deleted
        ({STUB: Collected(100, NOW)}, Policy(keep=0.0, largest=100), [Fetch(ONE, "u")]),
        (
            {STUB: Collected(100, NOW)},
            Policy(keep=0.0, largest=99, stubs=True, whole=frozenset([short_name(ONE)])),
            [Fetch(ONE, "u")],
        ),
        (
            {STUB: Collected(100, NOW), "u": Collected(100, NOW)},
            LARGE,
            [Due(ONE, "u", "the account keeps no mail on the server")],
        ),
        ({"u": Collected(100, None)}, LARGE, [Stub(ONE, STUB)]),  # the limit was lowered
    ],
)
def test_a_stub_stands_for_a_message_that_is_too_large(
    taken: dict[str, Collected], policy: Policy, step: list[Step]
) -> None:
    assert steps([ONE], taken, policy) == step


def test_stubs_count_as_known_where_everything_looks_new() -> None:
    listing = messages([str(at) for at in range(30)])
    taken = {stub_key(str(at)): Collected(1, NOW) for at in range(30)}
    assert not looks_moved(listing, taken, 25)
    assert looks_moved(listing, {}, 25)


def test_limit_counts_fetched_messages() -> None:
    listing = [Message(at, f"u{at}", 1) for at in range(1, 6)]
    taken = {"u1": Collected(1, NOW - WEEK)}
    assert steps(listing, taken, Policy(keep=0.0, limit=2)) == [
        Due(listing[0], "u1", "the account keeps no mail on the server"),
        Fetch(listing[1], "u2"),
        Fetch(listing[2], "u3"),
        Postpone(listing[3], "the limit"),
        Postpone(listing[4], "the limit"),
    ]


@pytest.mark.parametrize(
    ("sizes", "budget", "used", "fetched"),
    [
        ([5, 5, 5], Budget(), Used(99, 99), [1, 2, 3]),
        ([5, 5, 5], Budget(messages=3), Used(1, 99), [1, 2]),
        ([5, 5, 5], Budget(messages=3), Used(4, 99), []),
        ([5, 5, 5], Budget(octets=20), Used(9, 10), [1, 2]),
        ([5, 5, 5], Budget(octets=20), Used(9, 21), []),
        (
            [5, 9, 1],
            Budget(octets=20),
            Used(0, 10),
            [1],
        ),  # otherwise the large one would wait for ever
        ([5, 5, 5], Budget(messages=9, octets=10), Used(), [1, 2]),
    ],
)
def test_a_budget_is_for_all_sessions_of_a_day(
    sizes: list[int], budget: Budget, used: Used, fetched: list[int]
) -> None:
    listing = [Message(at, f"u{at}", size) for at, size in enumerate(sizes, 1)]
    policy = Policy(budget=budget)
    found = list(plan(listing, {}, policy, NOW, Allowance(policy, used)))
    assert [each.message.number for each in found if isinstance(each, Fetch)] == fetched
    left = [each.why for each in found if isinstance(each, Postpone)]
    assert left == ["the day's budget"] * (len(sizes) - len(fetched))


def test_message_beyond_the_daily_budget_is_reported_and_blocks_no_other() -> None:
    listing = [Message(1, "u1", 100), Message(2, "u2", 10)]
    found = steps(listing, {}, Policy(budget=Budget(octets=99)))
    reason = "100 octets, more than the 99 allowed per day"
    assert found == [Skip(listing[0], reason), Fetch(listing[1], "u2")]


def test_newest_are_those_taken_last_wherever_they_stand() -> None:
    listing = [Message(at, f"u{at}", 1) for at in range(1, 4)]
    taken = {"u1": Collected(1, NOW - 1), "u2": Collected(1, NOW - 3), "u3": Collected(1, NOW - 2)}
    assert steps(listing, taken, Policy(keep=0.0, newest=2)) == [
        Due(listing[1], "u2", "the account keeps no mail on the server")
    ]
    assert steps(listing, taken, Policy(keep=0.0, newest=3)) == []


def test_new_mail_counts_among_the_newest() -> None:
    listing = [Message(1, "old", 1), Message(2, "new", 1)]
    taken = {"old": Collected(1, NOW - WEEK)}
    assert steps(listing, taken, Policy(keep=0.0, newest=1)) == [
        Due(listing[0], "old", "the account keeps no mail on the server"),
        Fetch(listing[1], "new"),
    ]


TAKEN = st.builds(
    Collected,
    st.integers(1, 3),
    st.none() | st.floats(0, 2 * NOW),
    is_adopted=st.booleans(),
    was_held=st.booleans(),
    is_gone=st.booleans(),
    is_expected=st.booleans(),
    doubt=st.sampled_from(Doubt),
    seen_again=st.none() | st.floats(0, 2 * NOW),
)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.integers(1, 3))),
    st.dictionaries(st.sampled_from("abcd"), TAKEN),
    st.builds(
        Policy,
        st.none() | st.floats(0, NOW),
        st.integers(0, 3),
        st.booleans(),
        st.booleans(),
        st.none() | st.integers(1, 3),
        st.none() | st.integers(0, 3),
        st.booleans(),
    ),
)
def test_only_unchanged_collected_messages_are_due(
    rows: list[tuple[str | None, int]], taken: dict[str, Collected], policy: Policy
) -> None:
    listing = [Message(at, unique_id, size) for at, (unique_id, size) in enumerate(rows, 1)]
    found = steps(listing, taken, policy)
    assert len(found) == len({each.message.number for each in found})
    for step in found:
        if isinstance(step, Due):
            known = taken[step.key]
            assert known.at is not None
            assert policy.keep is not None
            assert known.is_expected
            assert True not in (known.is_adopted, known.is_gone, known.doubt is Doubt.SHORT)
            assert known.size == step.message.size
            assert [each.unique_id for each in listing].count(step.key) == 1


# Identifying messages.

WHOLE = Content(b"digest", b"body", b"likeness")
OTHER = Content(b"other", b"other body", b"other likeness")
REWRITTEN = Content(b"other", b"body", b"likeness")  # with Status: and X-UIDL:
KNOWN = Collected(100, NOW - DAY)
STORED = Record(100, WHOLE, "isp u 100")
SEEN = Seen(ONE, "u")


@pytest.mark.parametrize(
    ("seen", "known", "record", "result"),
    [
        # Messages stored in this session.
        (replace(SEEN, whole=WHOLE, is_new=True), KNOWN, STORED, Evidence.FETCHED),
        (replace(SEEN, whole=WHOLE), KNOWN, STORED, Evidence.COMPARED),
        (replace(SEEN, whole=REWRITTEN), KNOWN, STORED, Evidence.COMPARED),
        (replace(SEEN, whole=OTHER), KNOWN, STORED, Unproved.DIFFERENT),
        (replace(SEEN, whole=OTHER, header=b"likeness"), KNOWN, STORED, Unproved.DIFFERENT),
        # Shorter than announced: not in the session in which it was stored.
        (replace(SEEN, whole=WHOLE, is_new=True, is_short=True), KNOWN, STORED, Unproved.SHORT),
        (replace(SEEN, whole=WHOLE, is_short=True), KNOWN, STORED, Evidence.COMPARED),
        # Messages stored in an earlier session.
        (replace(SEEN, header=b"likeness"), KNOWN, STORED, Evidence.HEADER),
        (replace(SEEN, header=b"other likeness"), KNOWN, STORED, Unproved.DIFFERENT),
        (SEEN, KNOWN, STORED, Unproved.UNSEEN),
        (replace(SEEN, header=b"likeness"), KNOWN, replace(STORED, size=99), Unproved.DIFFERENT),
        (
            replace(SEEN, header=b"likeness"),
            replace(KNOWN, doubt=Doubt.SHORT),
            STORED,
            Unproved.UNSEEN,
        ),
        # A header without Message-ID and Date may be of any message.
        (
            replace(SEEN, header=None),
            KNOWN,
            replace(STORED, content=replace(WHOLE, header_digest=None)),
            Unproved.UNSEEN,
        ),
        # Nothing is removed because of another program, or after a crash.
        (replace(SEEN, whole=WHOLE), None, None, Unproved.NOT_STORED),
        (replace(SEEN, whole=WHOLE), replace(KNOWN, at=None), STORED, Unproved.NOT_STORED),
        (replace(SEEN, whole=WHOLE), replace(KNOWN, is_adopted=True), None, Unproved.NOT_STORED),
        (replace(SEEN, header=b"likeness"), KNOWN, None, Unproved.NOT_STORED),
        # Never in the session in which it reappeared, nor while it counts as gone.
        (replace(SEEN, whole=WHOLE, has_come_back=True), KNOWN, STORED, Unproved.CAME_BACK),
        (replace(SEEN, whole=WHOLE), replace(KNOWN, is_gone=True), STORED, Unproved.CAME_BACK),
        (
            replace(SEEN, header=b"likeness"),
            replace(KNOWN, is_gone=True),
            STORED,
            Unproved.CAME_BACK,
        ),
    ],
)
def test_only_messages_shown_in_this_session_are_proved(
    seen: Seen, known: Collected | None, record: Record | None, result: Evidence | Unproved
) -> None:
    proof = prove(seen, known, record, "why")
    if isinstance(result, Unproved):
        assert proof is result
    else:
        assert isinstance(proof, Proof)
        assert (proof.message, proof.key, proof.evidence) == (ONE, "u", result)


CONTENT = st.builds(
    Content,
    st.sampled_from([b"1", b"2"]),
    st.sampled_from([None, b"1", b"2"]),
    st.sampled_from([None, b"1", b"2"]),
)


@given(
    st.builds(
        Seen,
        st.builds(Message, st.just(1), st.just("u"), st.integers(1, 2)),
        st.just("u"),
        st.sampled_from([None, b"1", b"2"]),
        st.none() | CONTENT,
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    st.none() | TAKEN,
    st.none() | st.builds(Record, st.integers(1, 2), CONTENT, st.just("x")),
)
def test_no_proof_without_evidence_of_this_very_message(
    seen: Seen, known: Collected | None, record: Record | None
) -> None:
    if not isinstance(prove(seen, known, record, ""), Proof):
        return
    assert record is not None
    assert known is not None
    assert known.at is not None
    assert True not in (known.is_gone, seen.has_come_back, seen.is_new and seen.is_short)
    if seen.whole is None:
        assert record.content.header_digest == seen.header is not None
        assert record.size == seen.message.size
    elif seen.whole.digest != record.content.digest:
        assert seen.whole.body == record.content.body is not None
        assert seen.whole.header_digest == record.content.header_digest is not None


def test_nothing_else_makes_a_proof() -> None:
    with pytest.raises(TypeError, match="only prove"):
        Proof(object(), SEEN, Evidence.HEADER, "")  # type: ignore[arg-type]


def test_nothing_is_deleted_without_a_proof() -> None:
    """Only one module of the collector has a client that can delete, and it requires proofs."""
    source = Path(plan.__code__.co_filename).parent
    found = {
        path.name
        for path in source.rglob("*.py")
        if re.search(r"client\.(?:delete|_dialogue)|_SEAL\b", path.read_text())
    }
    assert found == {"deletions.py", "plan.py"}
    from restante.collect.deletions import Deletions, Reader

    assert not hasattr(Reader, "delete")
    assert Deletions.request.__annotations__["proofs"] == "Sequence[Proof]"


def test_a_rule_is_all_that_decides_about_deletions() -> None:
    """A new field of ``Policy`` requires a decision here."""
    usual, other = Policy(), {"keep": 1.0, "newest": 1, "verified": True, "until_deleted": True}
    for each in fields(Policy):
        changed = replace(usual, **{each.name: other.get(each.name, getattr(usual, each.name))})
        assert (changed.rule != usual.rule) == (each.name in other)


def messages(ids: list[str]) -> list[Message]:
    return [Message(at, unique_id, 1) for at, unique_id in enumerate(ids, 1)]


@pytest.mark.parametrize(
    ("listed", "known", "expected", "moved"),
    [
        (range(100, 200), range(100), 100, True),  # all ids are new
        (range(95, 195), range(100), 100, True),  # nearly all ids are new
        (range(50, 150), range(100), 100, False),  # half of the old mail is there
        (range(100, 110), range(100), 100, False),  # ten messages are too few
        (range(100, 200), range(5), 5, False),  # too few messages were known
        (range(0), range(100), 100, False),  # an empty listing is no sign
        (range(100, 200), range(100), 0, False),  # the collector deleted all of the old mail
    ],
)
def test_a_server_that_gave_new_ids_to_old_mail(
    listed: range, known: range, expected: int, moved: bool
) -> None:
    taken = {str(at): Collected(1, NOW) for at in known}
    assert looks_moved(messages([str(at) for at in listed]), taken, expected) is moved
