"""The storage contract (maildrop.py) as tests that every store must pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from restante.clock import RELEASED
from restante.errors import MaildropInUse, MessageGone
from restante.maildrop import HeldMessage, Paced

from .conftest import HoldingStore
from .helpers import canonical, contents, deliver, listing, pieces, remove, run, text_of, whole

TEXT = b"Subject: one\r\n\r\nbody\r\n"
MESSAGES = {
    "crlf": TEXT,
    "lf": b"Subject: one\n\nbody\n",
    "mixed": b"a\r\nb\nc\r\n\nd\r\r\n",
    "no last line end": b"a\r\nb",
    "ends with cr": b"a\r\nb\r",
    "nul": b"a\0b\r\n\0",
    "8-bit": bytes(range(256)) + b"\xff\r\n",
    "long line": b"x" * 100_000 + b"\n",
    "many short lines": b"\n" * 100_000,
    "leading dots": b".\n..\r\n.a\n.",
    "empty": b"",
    "only cr": b"\r",
    "only lf": b"\n",
}


def test_user_without_mail_has_an_empty_maildrop(store: HoldingStore) -> None:
    assert run(listing(store, "ann")) == []


@pytest.mark.parametrize("octets", MESSAGES.values(), ids=MESSAGES.keys())
@pytest.mark.rfc("P-023", "P-025", "P-026", "P-027")
def test_size_is_that_of_the_wire_form(store: HoldingStore, octets: bytes) -> None:
    async def story() -> None:
        delivered = await deliver(store, "ann", octets)
        async with store.open("ann") as maildrop:
            (entry,) = maildrop.listing
            text = await text_of(maildrop, entry)
        assert entry == delivered
        assert text == canonical(octets)
        assert entry.size == len(text)

    run(story())


@pytest.mark.parametrize("octets", MESSAGES.values(), ids=MESSAGES.keys())
def test_pieces_are_at_most_64_kib(store: HoldingStore, octets: bytes) -> None:
    async def story() -> None:
        entry = await deliver(store, "ann", octets)
        async with store.open("ann") as maildrop:
            async for piece in maildrop.read(entry):
                assert 0 < len(piece) <= 65_536

    run(story())


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\r", b"\n", b"\r\n", b"."])))
@example([b"a\r", b"\n", b".b"])
def test_cuts_of_a_delivery_do_not_matter(store: HoldingStore, cut: list[bytes]) -> None:
    """Any octets, in any pieces, are returned as canonical text of the announced size."""

    async def story() -> None:
        entry = await deliver(store, "ann", *cut)
        async with store.open("ann") as maildrop:
            text = await text_of(maildrop, entry)
            await maildrop.remove(maildrop.listing)
        assert text == canonical(b"".join(cut))
        assert len(text) == entry.size

    run(story())


def test_users_do_not_see_each_other(store: HoldingStore) -> None:
    async def story() -> None:
        await deliver(store, "ann", b"for ann\r\n")
        await deliver(store, "bob@example.org", b"for bob\r\n")
        assert await contents(store, "ann") == [b"for ann\r\n"]
        assert await contents(store, "bob@example.org") == [b"for bob\r\n"]
        assert sorted([user async for user in store.users()]) == ["ann", "bob@example.org"]

    run(story())


def test_new_mail_comes_last(store: HoldingStore) -> None:
    async def story() -> None:
        delivered = [await deliver(store, "ann", TEXT) for _ in range(20)]
        assert len({entry.unique_id for entry in delivered}) == 20
        assert [e.unique_id for e in await listing(store, "ann")] == [
            e.unique_id for e in delivered
        ]

    run(story())


@pytest.mark.rfc("P-039")
def test_mail_delivered_during_a_session_is_listed_in_the_next(store: HoldingStore) -> None:
    async def story() -> None:
        first = await deliver(store, "ann", TEXT)
        async with store.open("ann") as maildrop:
            second = await deliver(store, "ann", TEXT)
            assert list(maildrop.listing) == [first]
        assert await listing(store, "ann") == [first, second]

    run(story())


@pytest.mark.rfc("P-106")
def test_unique_ids_fit_the_wire_and_stay(store: HoldingStore) -> None:
    async def story() -> None:
        await deliver(store, "ann", TEXT)
        (entry,) = await listing(store, "ann")
        assert 1 <= len(entry.unique_id) <= 70
        assert all("!" <= character <= "~" for character in entry.unique_id)
        assert await listing(store, "ann") == [entry]

    run(story())


@pytest.mark.rfc("P-035")
def test_second_session_is_refused_immediately(store: HoldingStore) -> None:
    async def story() -> None:
        await deliver(store, "ann", TEXT)
        async with store.open("ann") as first:
            began = time.monotonic()
            with pytest.raises(MaildropInUse) as refused:
                async with store.open("ann"):
                    pytest.fail("two sessions")
            assert time.monotonic() - began < 1
            assert 0 <= refused.value.held_for < 5
            assert len(first.listing) == 1
            async with store.open("bob"):
                pass
        assert len(await listing(store, "ann")) == 1

    run(story())


def test_lock_is_freed_by_an_exception(store: HoldingStore) -> None:
    async def story() -> None:
        with pytest.raises(ConnectionError):
            async with store.open("ann"):
                raise ConnectionError
        assert await listing(store, "ann") == []

    run(story())


def test_only_one_of_many_simultaneous_logins_succeeds(store: HoldingStore) -> None:
    async def story() -> None:
        async def login() -> bool:
            try:
                async with store.open("ann"):
                    await asyncio.sleep(0.1)
            except MaildropInUse:
                return False
            return True

        assert sum(await asyncio.gather(*[login() for _ in range(10)])) == 1

    run(story())


@pytest.mark.rfc("P-117")
def test_session_without_remove_removes_nothing(store: HoldingStore) -> None:
    async def story() -> None:
        entry = await deliver(store, "ann", TEXT)
        async with store.open("ann") as maildrop:
            await text_of(maildrop, entry)
        assert await listing(store, "ann") == [entry]

    run(story())


def test_removed_mail_is_gone_and_held(store: HoldingStore) -> None:
    async def story() -> None:
        one, two, three = [await deliver(store, "ann", t) for t in (b"1\n", b"2\n", b"3\n")]
        began = time.time()
        assert await remove(store, "ann", [one, three]) == []
        assert await listing(store, "ann") == [two]
        held = await store.held("ann")
        assert {(h.unique_id, h.size) for h in held} == {(one.unique_id, 2), (three.unique_id, 2)}
        assert all(began - 2 <= h.removed_at <= time.time() + 2 for h in held)
        by_id = {h.unique_id: h for h in held}
        assert await whole(store.read_held("ann", by_id[one.unique_id])) == b"1\n"

    run(story())


def test_held_mail_is_read_as_stored(store: HoldingStore) -> None:
    async def story() -> None:
        octets = b"a\nb\r\nc" * 50_000
        await remove(store, "ann", [await deliver(store, "ann", octets)])
        (held,) = await store.held("ann")
        assert held.size == len(octets)
        read = [piece async for piece in store.read_held("ann", held)]
        assert b"".join(read) == octets
        assert max(map(len, read)) <= 65_536

    run(story())


def test_removing_a_message_twice_succeeds(store: HoldingStore) -> None:
    async def story() -> None:
        entry = await deliver(store, "ann", TEXT)
        async with store.open("ann") as maildrop:
            assert list(await maildrop.remove([entry])) == []
            assert list(await maildrop.remove([entry])) == []
        assert len(await store.held("ann")) == 1

    run(story())


def test_message_removed_in_this_session_is_gone(store: HoldingStore) -> None:
    async def story() -> None:
        entry = await deliver(store, "ann", TEXT)
        async with store.open("ann") as maildrop:
            await maildrop.remove([entry])
            with pytest.raises(MessageGone):
                await text_of(maildrop, entry)
            assert list(maildrop.listing) == [entry]

    run(story())


def test_removing_nothing_is_harmless(store: HoldingStore) -> None:
    async def story() -> None:
        entry = await deliver(store, "ann", TEXT)
        assert await remove(store, "ann", []) == []
        assert await listing(store, "ann") == [entry]
        assert list(await store.held("ann")) == []

    run(story())


def test_restore_gives_new_unique_ids(store: HoldingStore) -> None:
    async def story() -> None:
        old = [await deliver(store, "ann", t) for t in (b"1\n", b"2\n")]
        await remove(store, "ann", old)
        assert await store.restore("ann", await store.held("ann")) == 2
        new = await listing(store, "ann")
        assert not {e.unique_id for e in new} & {e.unique_id for e in old}
        assert [e.size for e in new] == [3, 3]
        assert sorted(await contents(store, "ann")) == [b"1\r\n", b"2\r\n"]
        assert list(await store.held("ann")) == []

    run(story())


def test_restore_can_keep_unique_ids(store: HoldingStore) -> None:
    async def story() -> None:
        old = [await deliver(store, "ann", t) for t in (b"1\n", b"2\n")]
        await remove(store, "ann", old)
        held = await store.held("ann")
        assert await store.restore("ann", held[:1], same_unique_ids=True) == 1
        assert await store.restore("ann", held, same_unique_ids=True) == 1
        assert await listing(store, "ann") == old

    run(story())


def test_restored_message_can_be_removed_again(store: HoldingStore) -> None:
    """If a message is held, restored and held again within a second, none is overwritten."""

    async def story() -> None:
        entry = await deliver(store, "ann", TEXT)
        for _ in range(3):
            assert await remove(store, "ann", [entry]) == []
            assert await store.restore("ann", await store.held("ann"), same_unique_ids=True) == 1
        assert await listing(store, "ann") == [entry]

    run(story())


def test_restore_during_a_session_waits_for_the_next(store: HoldingStore) -> None:
    async def story() -> None:
        await remove(store, "ann", [await deliver(store, "ann", TEXT)])
        async with store.open("ann") as maildrop:
            assert await store.restore("ann", await store.held("ann")) == 1
            assert list(maildrop.listing) == []
        assert len(await listing(store, "ann")) == 1

    run(story())


def test_restore_skips_messages_that_are_not_held(store: HoldingStore) -> None:
    async def story() -> None:
        ghost = HeldMessage("1.ghost", "ghost", 1, 1.0)
        assert await store.restore("ann", [ghost]) == 0
        await remove(store, "ann", [await deliver(store, "ann", TEXT)])
        assert await store.restore("ann", [ghost]) == 0
        with pytest.raises(MessageGone):
            await whole(store.read_held("ann", ghost))

    run(story())


def test_purge_destroys_old_enough_mail(store: HoldingStore) -> None:
    async def story() -> None:
        await remove(store, "ann", [await deliver(store, "ann", TEXT)])
        kept = await deliver(store, "ann", TEXT)
        assert await store.purge("ann", time.time() - 60) == 0
        assert len(await store.held("ann")) == 1
        assert await store.purge("ann", time.time() + 60) == 1
        assert list(await store.held("ann")) == []
        assert await listing(store, "ann") == [kept]

    run(story())


def test_unknown_users_have_no_held_mail(store: HoldingStore) -> None:
    async def story() -> None:
        assert list(await store.held("nobody")) == []
        assert await store.purge("nobody", time.time()) == 0
        assert await store.restore("nobody", []) == 0
        assert [user async for user in store.users()] == []

    run(story())


def test_broken_delivery_leaves_nothing(store: HoldingStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half a mess"
        raise ConnectionError

    async def story() -> None:
        with pytest.raises(ConnectionError):
            await store.deliver("ann", broken())
        assert await listing(store, "ann") == []

    run(story())


def test_hundred_simultaneous_deliveries(store: HoldingStore) -> None:
    async def story() -> None:
        await asyncio.gather(*[store.deliver("ann", pieces(b"%d\n" % n)) for n in range(100)])
        assert sorted(await contents(store, "ann")) == sorted(b"%d\r\n" % n for n in range(100))

    run(story())


# Delays and expiry.


async def paced(store: HoldingStore, delay: float) -> float:
    async with store.open("ann") as maildrop:
        assert isinstance(maildrop, Paced)
        return await maildrop.pace(delay)


@pytest.mark.rfc("P-087")
def test_early_login_gets_the_seconds_to_wait(store: HoldingStore) -> None:
    """The delay does not start again, so a client that polls too often does get in."""
    assert run(paced(store, 100)) == 0
    first, second = run(paced(store, 100)), run(paced(store, 100))
    assert 99 < second < first <= 100
    assert run(paced(store, 0.0001)) == 0


@pytest.mark.parametrize("before", [0.0, 0.0001, 100.0])
@pytest.mark.parametrize(("after", "waits"), [(0.0001, 0), (50.0, 50), (500.0, 500)])
def test_changed_login_delay_counts_from_the_last_login(
    store: HoldingStore, before: float, after: float, waits: float
) -> None:
    """For a shorter, longer or added delay: logins without a delay are not recorded."""
    if before:
        assert run(paced(store, before)) == 0
    wait = run(paced(store, after))
    assert wait == pytest.approx(waits if before else 0, abs=10)


DAY = 86_400.0


async def expire(store: HoldingStore, user: str, now: float) -> int:
    """Expire mail after 30 days."""
    return (await store.expire(user, 30, until=now, now=now)).messages


@pytest.mark.rfc("P-089", "P-191")
def test_old_mail_is_removed_and_held(store: HoldingStore) -> None:
    async def story() -> None:
        await deliver(store, "ann", TEXT)
        await store.note_rules("ann", 30, RELEASED)
        between = time.time()
        await asyncio.sleep(0.05)  # the clock of a file system is coarse
        assert await expire(store, "ann", between - 10 + 30 * DAY) == 0
        assert await expire(store, "ann", time.time() - 0.01 + 30 * DAY) == 1
        await deliver(store, "ann", b"new\r\n")
        assert await contents(store, "ann") == [b"new\r\n"]
        (held,) = await store.held("ann")
        assert await store.restore("ann", [held]) == 1
        assert await expire(store, "ann", between + 30 * DAY) == 0, "given back, it has come again"
        assert await expire(store, "unknown", time.time() + 90 * DAY) == 0

    run(story())


@pytest.mark.rfc("P-089")
def test_no_mail_expires_during_a_session(store: HoldingStore) -> None:
    async def story() -> None:
        await deliver(store, "ann", TEXT)
        await store.note_rules("ann", 30, RELEASED)
        later = time.time() + 30 * DAY + 10
        async with store.open("ann") as maildrop:
            with pytest.raises(MaildropInUse):
                await expire(store, "ann", later)
            assert await text_of(maildrop, maildrop.listing[0]) == TEXT
        assert await expire(store, "ann", later) == 1

    run(story())
