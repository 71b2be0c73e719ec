"""Limits on connections, and which connection is evicted for a new one."""

from __future__ import annotations

from functools import partial

from restante.server.admission import Admission


def test_addresses_in_one_ipv6_64_share_a_limit() -> None:
    """A client with one IPv6 address has 2^64 of them."""
    admission = Admission(100, 2)
    assert admission.admit("2001:db8:0:1::1")
    assert admission.admit("2001:db8:0:1:ffff::2")
    assert admission.admit("2001:db8:0:1::3") is None
    assert admission.admit("2001:db8:0:2::1")
    assert all(admission.admit("192.0.2.1") for _ in range(2))
    assert admission.admit("192.0.2.1") is None
    assert admission.admit("192.0.2.2")


def test_source_at_its_limit_evicts_only_its_own() -> None:
    admission, left = Admission(10, 2), list[str]()
    slots = [admission.admit(each) for each in ("192.0.2.1", "192.0.2.2", "192.0.2.2")]
    for name, slot in zip(("other", "first", "second"), slots, strict=True):
        assert slot is not None
        slot.make_evictable(partial(left.append, name))
    assert admission.admit("192.0.2.2")
    assert left == ["first"]
    assert slots[2] is not None
    slots[2].protect()
    assert admission.admit("192.0.2.2") is None
    assert admission.admit("192.0.2.1")
    assert left == ["first"]
    assert admission._tally.count("192.0.2.2") == 2


def test_full_server_evicts_the_oldest_before_login() -> None:
    """Silent connections from any number of addresses keep no client out, and no more connections
    are admitted than there are slots.  The reserved tenth stays reserved."""
    admission, left = Admission(10, 100), list[int]()
    admission.reserved = lambda address: address == "192.0.2.1"
    for number in range(9):
        slot = admission.admit(f"198.51.100.{number}")
        assert slot is not None
        slot.make_evictable(partial(left.append, number))
    assert admission.admit("192.0.2.1")
    assert left == [], "a free slot was left"
    for number in range(5):
        assert admission.admit("203.0.113.1")
        assert left == list(range(number + 1))
        assert admission._tally.total() == 10


def test_moved_slot_is_evictable_at_its_new_source() -> None:
    admission, left = Admission(10, 1), list[str]()
    moved = admission.admit("192.0.2.1")
    assert moved is not None
    moved.make_evictable(partial(left.append, "moved"))
    assert moved.move("192.0.2.1"), "to its own source"
    assert moved.move("192.0.2.2")
    assert admission.admit("192.0.2.1")
    assert left == []
    assert admission.admit("192.0.2.2")
    assert left == ["moved"]
    moved.release()
    moved.make_evictable(partial(left.append, "again"))
    assert admission.admit("192.0.2.2") is None
