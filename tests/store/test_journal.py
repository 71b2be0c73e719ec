"""The journal of retrieved and removed messages; a crash can only truncate it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from restante.maildrop import Entry, Remembering, SessionRecord
from restante.store import journal
from restante.store.journal import JOURNAL, OLD
from restante.store.maildir import MaildirStore

from .helpers import deliver, listing, names, run
from .watched import Crash, die_at, watched


def session(
    removed: int = 0, retrieved: int = 0, *, credential: str = "phone", end: str = "quit"
) -> SessionRecord:
    return SessionRecord(
        began_at=1_764_000_000.125,
        ended_at=1_764_000_001.5,
        address="192.0.2.7",
        tls="1.3",
        credential=credential,
        retrieved=tuple(Entry(f"r{at}", 100 + at) for at in range(retrieved)),
        removed=tuple(Entry(f"d{at}", 200 + at) for at in range(removed)),
        end=end,
    )


async def record(store: Any, *sessions: SessionRecord) -> None:
    for each in sessions:
        async with store.open("ann") as maildrop:
            await maildrop.record(each)


def remembered(store: Remembering) -> list[SessionRecord]:
    return list(run(store.sessions("ann")))


def test_sessions_are_remembered_in_their_order(store: Any) -> None:
    done = [session(2, 1), session(0, 3, end="dropped"), session(1, credential="ä 'x'\n\x1b")]
    run(record(store, *done))
    assert remembered(store) == done
    assert list(run(store.sessions("bob"))) == []


def test_poll_that_retrieved_nothing_is_not_recorded(store: Any) -> None:
    run(record(store, session(), session(end="dropped")))
    assert remembered(store) == []


def test_poll_that_retrieved_nothing_makes_no_system_call(
    maildir: MaildirStore, place: Path
) -> None:
    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            with watched(place.parent) as system:
                await maildrop.record(session())  # type: ignore[attr-defined]
            assert system.calls == []

    run(story())


def test_removed_messages_are_in_the_journal_durably(maildir: MaildirStore, place: Path) -> None:
    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            for _ in range(2):
                with watched(place.parent) as system:
                    await maildrop.record(session(1))  # type: ignore[attr-defined]
                    assert system.unsynced == set()

    run(story())


def test_journal_is_readable_by_its_owner_only(maildir: MaildirStore, place: Path) -> None:
    run(record(maildir, session(1)))
    assert (place / JOURNAL).stat().st_mode & 0o777 == 0o600


def test_journal_is_bounded(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_MAX_SIZE", 2000)
    done = [session(1, credential=f"c{number}") for number in range(40)]
    run(record(maildir, *done))
    assert (place / JOURNAL).stat().st_size + (place / OLD).stat().st_size < 5000
    found = remembered(maildir)
    assert found == done[-len(found) :]
    assert len(found) > 8


@pytest.mark.slow
@pytest.mark.parametrize("tail", [b"", b"\0" * 50, b"garbage", b"\xff\n\n{}"])
def test_torn_journal_line_does_not_damage_others(
    maildir: MaildirStore, place: Path, tail: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run(record(maildir, session(1)))
    first = (place / JOURNAL).read_bytes()
    run(record(maildir, session(2)))
    whole = (place / JOURNAL).read_bytes()
    for length in range(len(first), len(whole)):
        (place / JOURNAL).write_bytes(whole[:length] + tail)
        run(record(maildir, session(3)))
        found = remembered(maildir)
        survived = [session(2)] if length == len(whole) - 1 and tail[:1] != b"g" else []
        assert [each for each in found if each != session(2)] == [session(1), session(3)]
        assert len(found) <= 2 + len(survived)
    assert "journal damaged" in {record.message for record in caplog.records}


def test_flipped_octet_damages_one_line(maildir: MaildirStore, place: Path) -> None:
    run(record(maildir, session(1), session(2), session(3)))
    octets = bytearray((place / JOURNAL).read_bytes())
    octets[len(octets) // 2] ^= 1
    (place / JOURNAL).write_bytes(octets)
    assert remembered(maildir) == [session(1), session(3)]


def test_fields_of_later_versions_are_ignored(maildir: MaildirStore, place: Path) -> None:
    run(record(maildir, session(1)))
    line = (place / JOURNAL).read_bytes().partition(b" ")[2].strip()
    for octets in (line.replace(b"{", b'{"later":1,', 1), b"[]", b'{"end":"quit"}', b"{"):
        with (place / JOURNAL).open("ab") as file:
            file.write(journal._digest(octets) + b" " + octets + b"\n")
    assert remembered(maildir) == [session(1)] * 2


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_journal_that_cannot_be_written_stops_no_session(
    maildir: MaildirStore,
    place: Path,
    call: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(record(maildir, session(1)))
    if call == "rename":
        monkeypatch.setattr(journal, "_MAX_SIZE", 1)

    def full_disk(each: tuple[str, ...]) -> None:
        if each[0] == call and JOURNAL in each[1]:
            raise OSError(28, "No space left on device")

    with watched(place.parent, full_disk):
        run(record(maildir, session(2)))
    assert "journal not written" in {record.message for record in caplog.records}
    run(record(maildir, session(3)))
    assert session(3) in remembered(maildir)


def test_symbolic_link_as_journal_is_not_followed(
    maildir: MaildirStore, place: Path, tmp_path: Path
) -> None:
    run(record(maildir, session()))
    (place / JOURNAL).symlink_to(tmp_path / "elsewhere")
    run(record(maildir, session(1)))
    assert "elsewhere" not in names(tmp_path)


def test_removal_finished_after_a_crash_is_in_the_journal(
    maildir: MaildirStore, place: Path
) -> None:
    unique_id = run(deliver(maildir, "ann", b"x")).unique_id

    async def quit_and_die() -> None:
        async with maildir.open("ann") as maildrop:
            with watched(place.parent, die_at(2, {"rename"})):  # rules and list are there
                await maildrop.remove(list(maildrop.listing))

    with pytest.raises(Crash):
        run(quit_and_die())
    assert "restante.removing" in names(place)
    store = MaildirStore(f"{place.parent}/%u")
    run(record(store, session()))
    (found,) = remembered(store)
    assert [entry.unique_id for entry in found.removed] == [unique_id]
    assert found.end == "crash"


def test_messages_kept_by_hold_are_not_recorded_as_removed(tmp_path: Path) -> None:
    """``keep``: messages that a client deletes stay."""
    kept = {"ann": math.inf, "bob": 60.0}
    store = MaildirStore(f"{tmp_path}/%u", hold=lambda user: kept[user])
    for user in kept:
        run(deliver(store, user, b"x"))

        async def quit(user: str = user) -> None:
            async with store.open(user) as maildrop:
                marked = list(maildrop.listing)
                assert not await maildrop.remove(marked)
                done = session()._replace(removed=marked, retrieved=marked)
                await maildrop.record(done)  # type: ignore[attr-defined]

        run(quit())
    assert [len(run(listing(store, user))) for user in kept] == [1, 0]
    assert [len(run(store.held(user))) for user in kept] == [0, 1]
    assert [len(run(store.sessions(user))[0].removed) for user in kept] == [0, 1]
    kept["ann"] = 0
    run(quit("ann"))
    assert (len(run(listing(store, "ann"))), len(run(store.held("ann")))) == (0, 0)


def test_the_past_of_a_credential(store: Any) -> None:
    done = [session(1), session(1, credential="laptop"), session(2), session(end="braked")]
    run(record(store, *done))

    async def past(credential: str) -> list[SessionRecord]:
        async with store.open("ann") as maildrop:
            return list(await maildrop.past(credential))

    assert run(past("phone")) == [done[0], done[2], done[3]]
    assert run(past("never")) == []
