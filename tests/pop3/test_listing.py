"""A session's messages as a sequence that also knows unique-ids."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

import restante
from restante.pop3.listing import Listing, ListingBuilder, Message


def listed(*unique_ids: str | None, first: int = 1) -> Listing:
    builder = ListingBuilder(session := object())
    for number, each in enumerate(unique_ids, first):
        assert builder.add(number, 100 * number)
        assert each is None or builder.set_unique_id(
            number, each.encode("utf-8", "surrogateescape")
        )
    assert all(message.session is session for message in builder)
    return builder


def test_is_a_sequence() -> None:
    listing = listed("a", "b", None)
    assert isinstance(listing, Sequence)
    assert isinstance(listing, restante.Listing)
    assert [each.unique_id for each in listing] == ["a", "b", None]
    assert listing[-1] == Message(3, None, 300)
    assert listing[1:] == [Message(2, "b", 200), Message(3, None, 300)]
    assert next(reversed(listing)).number == 3
    assert (len(listing), bool(listed())) == (3, False)
    with pytest.raises(IndexError):
        listing[3]


def test_is_indexed_by_unique_id() -> None:
    listing = listed("c", "a", "b", None, "\udce9", first=7)
    for number, unique_id in ((7, "c"), (8, "a"), (9, "b"), (11, "\udce9")):
        assert listing[unique_id] == listing.get(unique_id) == listing[number - 7]
        assert unique_id in listing
    for missing in ("", "A", "ab", "d", "\ud800", "é"):
        assert missing not in listing
        assert listing.get(missing) is None
        with pytest.raises(KeyError):
            listing[missing]
    assert "a" not in listed()


def test_copies_with_one_unique_id_are_not_mistaken_for_each_other() -> None:
    """RFC 1939 §7 allows them; deleting by unique-id must not delete the wrong one."""
    listing = listed("a", "b", "a", "a")
    assert "a" in listing
    assert listing["b"].number == 2
    for look in (listing.__getitem__, listing.get):
        with pytest.raises(LookupError, match="3 messages") as caught:
            look("a")
        assert not isinstance(caught.value, KeyError)


def test_a_message_is_listed_only_in_its_own_session() -> None:
    """Another session's message may have the same number, unique-id and size."""
    listing, other = listed("a"), listed("a")
    assert listing[0] in listing
    assert listing[0] == other[0]
    assert other[0] not in listing
    assert Message(1, "b", 100, listing[0].session) not in listing
    assert 1 not in listing


def test_entries_added_after_a_lookup_are_found() -> None:
    builder = ListingBuilder()
    assert "a" not in builder
    assert builder.add(1, 1)
    builder.set_unique_id(1, b"a")
    assert builder["a"].number == 1


def test_many_unique_ids_in_any_order_are_all_found() -> None:
    names = [f"{number:x}" for number in range(5000)]
    Random(7).shuffle(names)
    listing = listed(*names)
    assert all(listing[name].number == at for at, name in enumerate(names, 1))


def test_message_equals_only_a_message_with_the_same_values() -> None:
    message = Message(1, "a", 100)
    assert message == Message(1, "a", 100, session=object())
    assert message != Message(1, "a", 101)
    assert message != (1, "a", 100)


def test_a_repr_says_how_many_messages_there_are() -> None:
    assert repr(listed("a", "b")) == "<ListingBuilder of 2 messages>"
