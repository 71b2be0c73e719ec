"""Delivery under given names: in groups, completely, and found again after any move."""

from __future__ import annotations

import asyncio
import errno
import os
import pkgutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from restante import scanning
from restante.errors import LargerThanQuota, PermanentFailure, QuotaExceeded, TemporaryFailure
from restante.maildrop import Deliveries, NamedDelivery, Presence
from restante.store import held
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore

from .helpers import canonical, contents, deliver, listing, names, remove, run
from .watched import CHANGES, Crash, die_at, fail_at, watched

TEXTS = [b"Subject: %d\r\n\r\n.body\r\n" % at for at in range(300)]


def name(at: int) -> str:
    return f"{at:032x}"


def put(deliveries: Deliveries, at: int, octets: bytes | None = None) -> None:
    """Write a message completely, before its group is delivered."""
    octets = TEXTS[at] if octets is None else octets
    deliveries.begin(name(at))
    deliveries.write(octets[:7])
    deliveries.write(octets[7:])
    deliveries.end()


def put_all(store: MaildirStore, numbers: Iterable[int]) -> None:
    """Deliver the messages that are not here yet."""
    with closing(store.deliveries("ann")) as deliveries:
        for at in numbers:
            if deliveries.presence(name(at)) is not Presence.HERE:
                put(deliveries, at)
        deliveries.group()()


def files_of(place: Path) -> list[str]:
    """Return every file in the Maildir that is or may become a message."""
    return sorted(path.name for part in ("new", "cur", "tmp") for path in place.glob(f"{part}/*"))


def test_only_the_maildir_store_offers_named_delivery() -> None:
    """A store in memory would lose messages that are then deleted elsewhere."""
    assert issubclass(MaildirStore, NamedDelivery)
    assert not issubclass(MemoryStore, NamedDelivery)


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 300])
def test_a_group_arrives_as_it_was_given(count: int, maildir: MaildirStore, place: Path) -> None:
    put_all(maildir, range(count))
    assert sorted(run(contents(maildir, "ann"))) == sorted(TEXTS[:count])
    assert all(",S=" in each and ",W=" in each and ",D=" in each for each in files_of(place))
    with closing(maildir.deliveries("ann")) as deliveries:
        assert {deliveries.presence(name(at)) for at in range(count)} <= {Presence.HERE}
        assert deliveries.presence(name(count)) is Presence.UNKNOWN
        assert deliveries.digest(name(count)) is None
        if count:
            assert deliveries.digest(name(0)) == sha256(TEXTS[0]).digest()


def test_any_octets_are_stored_as_they_come(maildir: MaildirStore) -> None:
    for at, octets in enumerate((b"", b"a\nb", b"\r", b"\0\xff", b"x" * 100_000)):
        with closing(maildir.deliveries("ann")) as deliveries:
            put(deliveries, at, octets)
            deliveries.group()()
            assert deliveries.digest(name(at)) == sha256(octets).digest()
            assert canonical(octets) in run(contents(maildir, "ann"))


def test_the_next_group_is_begun_before_the_last_one_arrives(maildir: MaildirStore) -> None:
    with closing(maildir.deliveries("ann")) as deliveries:
        put(deliveries, 0)
        first = deliveries.group()
        put(deliveries, 1)
        assert deliveries.presence(name(0)) is Presence.UNKNOWN
        first()
        assert deliveries.presence(name(0)) is Presence.HERE
        assert run(contents(maildir, "ann")) == [TEXTS[0]]
        deliveries.group()()
    assert sorted(run(contents(maildir, "ann"))) == TEXTS[:2]


def test_undelivered_messages_leave_no_file(maildir: MaildirStore, place: Path) -> None:
    with closing(maildir.deliveries("ann")) as deliveries:
        put(deliveries, 0)
        deliveries.begin(name(1))
        deliveries.write(b"half")
        deliveries.abort()
        deliveries.begin(name(2))
        deliveries.write(b"half")
    assert files_of(place) == []


# Finding messages again.


def test_message_is_found_in_its_new_folder(maildir: MaildirStore, place: Path) -> None:
    async def story() -> list[Presence]:
        seen = []

        def look() -> None:
            with closing(maildir.deliveries("ann")) as deliveries:
                seen.append(deliveries.presence(name(0)))

        look()
        put_all(maildir, [0])
        look()
        await remove(maildir, "ann", await listing(maildir, "ann"))
        look()
        await maildir.restore("ann", await maildir.held("ann"))
        look()
        await remove(maildir, "ann", await listing(maildir, "ann"))
        look()
        await maildir.purge("ann", time.time() + 10)
        look()
        return seen

    assert run(story()) == [
        Presence.UNKNOWN,
        Presence.HERE,
        Presence.HELD,
        Presence.HERE,
        Presence.HELD,
        Presence.GONE,
    ]


@pytest.mark.parametrize("end", ["unlinked", "purged elsewhere", "lost", "restored"])
def test_absence_of_a_message_is_not_evidence(end: str, maildir: MaildirStore, place: Path) -> None:
    """Only messages that the store destroyed count as gone: not those that another program removed,
    and not on a new disk or one restored from a backup."""
    put_all(maildir, [0])
    run(_remove_all(maildir))
    (waiting,) = (place / "held").iterdir()
    octets = waiting.read_bytes()
    if end == "purged elsewhere":
        run(maildir.purge("ann", time.time() + 10))
        (place / "restante.purged").unlink()
    elif end == "lost":
        place.rename(place.with_name("lost"))
    else:
        waiting.unlink()
    if end == "restored":
        (place / "held" / waiting.name).write_bytes(octets)
    with closing(maildir.deliveries("ann")) as deliveries:
        expected = Presence.HELD if end == "restored" else Presence.UNKNOWN
        assert deliveries.presence(name(0)) is expected


async def _remove_all(store: MaildirStore) -> None:
    await remove(store, "ann", await listing(store, "ann"))


def test_a_message_that_was_purged_and_came_again_is_here(maildir: MaildirStore) -> None:
    put_all(maildir, [0])
    run(_remove_all(maildir))
    run(maildir.purge("ann", time.time() + 10))
    put_all(maildir, [0])
    with closing(maildir.deliveries("ann")) as deliveries:
        assert deliveries.presence(name(0)) is Presence.HERE


@pytest.mark.parametrize("torn", [b"", b"\n", b"0123", b"\0\0\0"])
def test_a_torn_record_of_purges_costs_no_other_line(
    torn: bytes, maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_PURGED_MAX", 100)
    for at in range(8):
        put_all(maildir, [at])
        run(_remove_all(maildir))
        run(maildir.purge("ann", time.time() + 10))
        with (place / "restante.purged").open("ab") as file:
            file.write(torn)
    with closing(maildir.deliveries("ann")) as deliveries:
        known = [deliveries.presence(name(at)) is Presence.GONE for at in range(8)]
    assert known[-3:] == [True] * 3  # only the most recent ones are remembered
    assert (place / "restante.purged.1").stat().st_size < 200


def test_a_restored_message_has_an_id_that_no_client_has_seen(
    maildir: MaildirStore, place: Path
) -> None:
    """It keeps its name; also if an older version collected it twice in one second."""
    put_all(maildir, [0])
    (first,) = (place / "new").iterdir()
    unique = first.name.partition(",")[0]
    (place / "new" / f"1{unique}").write_bytes(TEXTS[0])
    ids = {unique, f"1{unique}"}
    for _ in range(4):
        run(_remove_all(maildir))
        assert run(_restore(maildir)) == 2
        found = [entry.unique_id for entry in run(listing(maildir, "ann"))]
        assert len(set(found)) == 2
        assert ids.isdisjoint(found)
        ids.update(found)
        assert {each.split(".")[1] for each in found} == {name(0)}


async def _restore(store: MaildirStore) -> int:
    return await store.restore("ann", await store.held("ann"))


def test_mail_moved_by_an_imap_client_is_never_mistaken_for_new(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages may move while directories are read: each lookup finds them."""
    put_all(maildir, range(3))
    folder = place / ".Old"
    for part in ("new", "cur", "tmp"):
        (folder / part).mkdir(parents=True)
    listed = scanning._list
    moves = iter([("new", ".Old/cur"), (".Old/cur", "cur"), ("cur", ".Old/new")])

    def list_files(where: str, parent: int) -> dict[str, int]:
        found = listed(where, parent)
        for source, target in moves:
            time.sleep(0.02)  # longer than a tick of the file system's clock
            for each in list((place / source).iterdir()):
                each.rename(place / target / each.name)
            break
        return found

    monkeypatch.setattr(scanning, "_list", list_files)
    with closing(maildir.deliveries("ann")) as deliveries:
        assert [deliveries.presence(name(at)) for at in range(3)] == [Presence.HERE] * 3
        assert deliveries.digest(name(1)) == sha256(TEXTS[1]).digest()


def test_a_message_that_was_renamed_since_is_still_read(maildir: MaildirStore, place: Path) -> None:
    put_all(maildir, [0])
    with closing(maildir.deliveries("ann")) as deliveries:
        assert deliveries.presence(name(0)) is Presence.HERE
        (found,) = (place / "new").iterdir()
        found.rename(place / "cur" / f"{found.name}:2,S")
        assert deliveries.digest(name(0)) == sha256(TEXTS[0]).digest()


# Quota.


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_messages_that_fit_are_stored_and_counted(limit: int, tmp_path: Path) -> None:
    """Exactly, and together with mail that other senders deliver."""
    octets = len(TEXTS[0])
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: limit * octets)
    stored = 0
    with closing(store.deliveries("ann")) as deliveries:
        try:
            for at in range(10):
                if at == 2:
                    run(deliver(store, "ann", TEXTS[0]))
                    stored += 1
                put(deliveries, at)
                stored += 1
                if at % 3 == 2:
                    deliveries.group()()
        except QuotaExceeded:
            deliveries.abort()
        deliveries.group()()
    usage = run(store.usage("ann"))
    assert (usage.messages, usage.octets) == (stored, stored * octets)
    assert stored == min(limit, 11)
    assert files_of(tmp_path / "ann") == names(tmp_path / "ann" / "new")


def test_a_message_larger_than_the_quota_is_refused_for_ever(tmp_path: Path) -> None:
    """As soon as that is known; earlier messages stay."""
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: 50)
    with closing(store.deliveries("ann")) as deliveries:
        put(deliveries, 0)
        deliveries.begin(name(1))
        deliveries.write(b"x" * 50)
        with pytest.raises(LargerThanQuota):
            deliveries.write(b"x")
        deliveries.abort()
        deliveries.group()()
    assert run(contents(store, "ann")) == [TEXTS[0]]


def test_group_is_refused_if_another_delivery_took_the_room(tmp_path: Path) -> None:
    """The whole group is refused, and the count is unchanged."""
    octets = len(TEXTS[0])
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: 3 * octets)
    with closing(store.deliveries("ann")) as deliveries:
        for at in range(3):
            put(deliveries, at)
        run(deliver(store, "ann", TEXTS[0]))
        with pytest.raises(QuotaExceeded):
            deliveries.group()()
        assert deliveries.presence(name(0)) is Presence.UNKNOWN
        for at in range(2):
            put(deliveries, at)
        deliveries.group()()
    assert run(store.usage("ann")).octets == 3 * octets


@pytest.mark.parametrize("moment", ["sync_files", "files.move", "_Group.close"])
def test_a_message_that_fits_exactly_while_a_group_arrives(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is never counted twice while waiting, arriving, or already in the count."""
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: 2 * len(TEXTS[0]))
    where = f"restante.store.delivery.{moment}"
    usual = pkgutil.resolve_name(where)

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(where, usual)
        with monkeypatch.context() as looking:  # a recount would wait until the group has arrived
            looking.setattr("restante.store.quota._recount", lambda *_: pytest.fail("no room"))
            put(deliveries, 1)
        return usual(*arguments, **options)

    with closing(store.deliveries("ann")) as deliveries:
        put(deliveries, 0)
        deliver_first = deliveries.group()
        monkeypatch.setattr(where, meanwhile)
        deliver_first()
        with pytest.raises(QuotaExceeded):
            put(deliveries, 2)
        deliveries.abort()
        deliveries.group()()
    assert run(store.usage("ann")).messages == 2


def test_a_message_that_waits_for_its_group_delays_no_other_delivery(tmp_path: Path) -> None:
    """No lock is held while the sender is slow."""
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: 10_000)
    with closing(store.deliveries("ann")) as deliveries:
        put(deliveries, 0)
        deliveries.begin(name(1))
        (tmp_path / "ann" / "maildirsize").unlink(missing_ok=True)

        async def others() -> None:
            async with asyncio.timeout(20):
                await deliver(store, "ann", TEXTS[2])
                await store.usage("ann")

        run(others())
        deliveries.abort()
        deliveries.group()()
    assert run(store.usage("ann")).messages == 2


# Faults.


def test_missing_base_directory_is_not_made(tmp_path: Path) -> None:
    store = MaildirStore(f"{tmp_path}/disk/mail/%u")
    with pytest.raises(TemporaryFailure, match="is it mounted"):
        store.deliveries("ann")
    assert list(tmp_path.iterdir()) == []


def test_disk_unmounted_before_the_first_message(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    store = MaildirStore(f"{tmp_path}/mail/%u")
    with closing(store.deliveries("ann")) as deliveries:
        (tmp_path / "mail").rmdir()
        with pytest.raises(TemporaryFailure, match="is it mounted"):
            deliveries.begin(name(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("user", ["", "../x", "a/b", ".x"])
def test_a_user_who_can_have_no_maildrop(user: str, maildir: MaildirStore) -> None:
    with pytest.raises(PermanentFailure):
        maildir.deliveries(user)


def three(store: MaildirStore) -> None:
    put_all(store, range(3))


def calls_of(base: Path, work: Callable[[MaildirStore], None]) -> int:
    base.mkdir()
    with watched(base) as system:
        work(MaildirStore(f"{base}/%u", limit=lambda _: 10_000))
    return sum(call[0] in CHANGES for call in system.calls)


@contextmanager
def limited(base: Path) -> Iterator[MaildirStore]:
    base.mkdir()
    yield MaildirStore(f"{base}/%u", limit=lambda _: 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("once", [True, False])
def test_any_fault_delivers_all_or_none(error: int, once: bool, tmp_path: Path) -> None:
    for number in range(calls_of(tmp_path / "first", three)):
        with limited(tmp_path / str(number)) as store:
            try:
                with watched(tmp_path / str(number), fail_at(number, error, CHANGES, once=once)):
                    three(store)
            except TemporaryFailure:
                expected = 0
            else:
                expected = 3
            place = tmp_path / str(number) / "ann"
            if once:  # otherwise the arrived messages could not be removed
                assert len(files_of(place)) == len(list(place.glob("new/*"))) == expected
            three(store)  # and again
            assert sorted(run(contents(store, "ann"))) == TEXTS[:3]


@pytest.mark.slow
def test_death_at_any_call_and_doing_it_again(tmp_path: Path) -> None:
    """Stored messages are recognised, so each message is there once."""
    for number in range(calls_of(tmp_path / "first", three)):
        with limited(tmp_path / str(number)) as store:
            # The number of passes of a scan varies, so the last calls may not happen.
            with watched(tmp_path / str(number), die_at(number)), suppress(Crash):
                three(store)
            three(store)
            assert sorted(run(contents(store, "ann"))) == TEXTS[:3]
            usage = run(store.usage("ann"))
            assert usage.octets >= 3 * len(TEXTS[0]), "a crash counts too much, never too little"


def test_names_of_a_killed_delivery_are_durable_before_they_are_known(
    maildir: MaildirStore, tmp_path: Path
) -> None:
    """Known messages are deleted elsewhere, so they must survive a power failure."""
    put_all(maildir, [0])
    with watched(tmp_path) as system, closing(maildir.deliveries("ann")) as deliveries:
        assert deliveries.presence(name(0)) is Presence.HERE
    assert {("fsync", f"ann/{part}") for part in ("new", "cur", "held")} <= set(system.calls)


def test_files_of_a_killed_delivery_are_swept(maildir: MaildirStore, place: Path) -> None:
    with closing(maildir.deliveries("ann")) as deliveries:
        put(deliveries, 0)
        (left,) = (place / "tmp").iterdir()
        os.utime(left, (1, 1))
        run(maildir.purge("ann", 0))
        assert files_of(place) == []


def test_scans_end_although_files_keep_being_renamed(
    maildir: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a maildrop that changes constantly, only the messages that were seen are known."""
    put_all(maildir, [0])
    stamps = count()
    with closing(maildir.deliveries("ann")) as deliveries:
        with monkeypatch.context() as patch:
            patch.setattr(scanning, "_stamp", lambda *_: (1, next(stamps), 1))
            assert deliveries.presence(name(0)) is Presence.HERE
            with pytest.raises(TemporaryFailure):
                deliveries.presence(name(1))
        assert deliveries.presence(name(1)) is Presence.UNKNOWN
