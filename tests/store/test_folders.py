"""Folders of a Maildir, several shown as one maildrop, and views of recent mail."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from restante.errors import MaildropInUse, MessageGone, PermanentFailure
from restante.maildrop import Entry, Journal, Rendered, SessionRecord, Usage, View
from restante.store.folders import directory_of
from restante.store.maildir import MaildirStore

from .helpers import deliver, listing, names, put, run, text_of
from .watched import Call, watched

JUNK = View(("Junk",))
BOTH = View(("INBOX", "Junk"))
MONTH = View(recent=30 * 86400)


@pytest.fixture
def full(place: Path) -> Path:
    put(place, "new/1000000001.a", b"a\r\n")
    put(place, "cur/1000000003.b:2,S", b"bb\r\n")
    put(place / ".Junk", "cur/1000000002.c:2,S", b"ccc\r\n")
    put(place / ".Junk", "new/1000000004.d", b"dddd\r\n")
    return place


async def seen(store: MaildirStore, view: View) -> list[tuple[str, bytes]]:
    async with store.open_view("ann", view) as maildrop:
        found = [(entry, await text_of(maildrop, entry)) for entry in maildrop.listing]
        assert all(entry.size == len(text) for entry, text in found)
        return [(entry.unique_id, text) for entry, text in found]


def texts(store: MaildirStore, view: View) -> list[bytes]:
    return [text for _, text in run(seen(store, view))]


async def remove(store: MaildirStore, view: View, *numbers: int) -> list[Entry]:
    async with store.open_view("ann", view) as maildrop:
        marked = [maildrop.listing[number - 1] for number in numbers]
        return list(await maildrop.remove(marked))


# -- Names


@pytest.mark.parametrize(
    ("folder", "directory"),
    [
        ("INBOX", "."),
        ("inbox", "."),
        ("Junk", ".Junk"),
        ("Lists.Python", ".Lists.Python"),
        ("with space", ".with space"),
        ("C++", ".C++"),
        ("A&B", ".A&-B"),
        ("Entwürfe", ".Entw&APw-rfe"),  # as Dovecot and Courier write it
        ("台北", ".&U,BTFw-"),
        ("~peter.mail.台北.日本語", ".~peter.mail.&U,BTFw-.&ZeVnLIqe-"),  # RFC 3501 §5.1.3
        ("😀", ".&2D3eAA-"),
    ],
)
def test_folder_is_where_maildirpp_puts_it(folder: str, directory: str) -> None:
    assert directory_of(folder) == directory


@pytest.mark.parametrize(
    "folder",
    ["", ".", "..", "...", "a..b", ".a", "a.", "/", "a/b", "../bob", "a\0b", "a\nb", "\udcff",
     "\u202e", "x" * 255, "ü" * 120],
    ids=repr,
)  # fmt: skip
def test_no_folder_name_leads_out_of_the_maildir(
    maildir: MaildirStore, full: Path, folder: str
) -> None:
    with pytest.raises(PermanentFailure, match="invalid folder name"):
        run(seen(maildir, View((folder,))))


def test_missing_folder_is_not_made(maildir: MaildirStore, full: Path) -> None:
    with pytest.raises(PermanentFailure, match="no such folder"):
        run(seen(maildir, View(("Spam",))))
    assert not (full / ".Spam").exists()


@pytest.mark.parametrize("what", ["file", "link", "directory", "half", "held"])
def test_directories_that_are_no_folders_are_not_touched(
    maildir: MaildirStore, full: Path, tmp_path: Path, what: str
) -> None:
    put(tmp_path / "bob", "new/1.bob", b"secret")
    match what:
        case "file":
            (full / ".Odd").write_text("")
        case "link":
            (full / ".Odd").symlink_to(tmp_path / "bob")
        case "directory":
            (full / ".Odd").mkdir()
        case "half":
            (full / ".Odd" / "cur").mkdir(parents=True)
        case _:
            (full / ".Odd" / "held").mkdir(parents=True)
    before = sorted(full.rglob(".Odd/*"))
    with pytest.raises(PermanentFailure, match="no such folder"):
        run(seen(maildir, View(("Odd",))))
    assert sorted(full.rglob(".Odd/*")) == before


# -- One folder


def test_a_folder_is_a_maildrop(maildir: MaildirStore, full: Path) -> None:
    assert run(seen(maildir, JUNK)) == [
        ("1000000002.c", b"ccc\r\n"),
        ("1000000004.d", b"dddd\r\n"),
    ]
    assert run(remove(maildir, JUNK, 1)) == []
    assert texts(maildir, JUNK) == [b"dddd\r\n"]
    assert len(run(listing(maildir, "ann"))) == 2


def test_a_folder_is_durable_before_its_lock_exists(maildir: MaildirStore, full: Path) -> None:
    """So a folder with a lock file is durable, even after a kill."""
    made: list[set[str]] = []

    def hook(call: Call) -> None:
        if call[0] == "open" and call[1].endswith(".Junk/restante.lock"):
            made.append({each for each in system.unsynced if ".Junk" in each})

    with watched(full.parent, hook) as system:
        run(seen(maildir, JUNK))
    assert made[0] == set()


def test_a_folder_has_a_lock_of_its_own(maildir: MaildirStore, full: Path) -> None:
    async def story() -> None:
        async with maildir.open_view("ann", JUNK):
            assert len(await listing(maildir, "ann")) == 2
            with pytest.raises(MaildropInUse):
                await seen(maildir, JUNK)
            with pytest.raises(MaildropInUse):
                await seen(maildir, BOTH)
        assert len(await seen(maildir, BOTH)) == 4

    run(story())


def test_held_mail_of_a_folder_is_restored_and_purged(maildir: MaildirStore, full: Path) -> None:
    run(remove(maildir, BOTH, 1, 3))
    held = run(maildir.held("ann"))
    assert {each.unique_id for each in held} == {"1000000001.a", "1000000002.c"}
    assert run(maildir.restore("ann", held, same_unique_ids=True)) == 2
    assert texts(maildir, JUNK) == [b"ccc\r\n", b"dddd\r\n"]
    run(remove(maildir, JUNK, 1, 2))
    assert run(maildir.purge("ann", time.time() + 5)) == 2
    assert run(maildir.held("ann")) == []


def test_held_mail_of_a_folder_can_be_read(maildir: MaildirStore, full: Path) -> None:
    run(remove(maildir, JUNK, 1))

    async def story() -> list[bytes]:
        (held,) = await maildir.held("ann")
        return [octets async for octets in maildir.read_held("ann", held)]

    assert run(story()) == [b"ccc\r\n"]


def test_a_folder_counts_for_the_quota_of_the_whole(tmp_path: Path, full: Path) -> None:
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: 10**6)
    assert run(store.usage("ann")) == Usage(18, 4, 10**6)
    run(remove(store, JUNK, 1))
    assert run(store.usage("ann")) == Usage(13, 3, 10**6)
    run(store.restore("ann", run(store.held("ann"))))
    assert run(store.usage("ann")) == Usage(18, 4, 10**6)
    assert not (full / ".Junk" / "maildirsize").exists()


# -- Several folders as one


def test_folders_are_listed_one_after_the_other(maildir: MaildirStore, full: Path) -> None:
    assert texts(maildir, BOTH) == [b"a\r\n", b"bb\r\n", b"ccc\r\n", b"dddd\r\n"]
    assert texts(maildir, View(("Junk", "INBOX"))) == [b"ccc\r\n", b"dddd\r\n", b"a\r\n", b"bb\r\n"]
    assert texts(maildir, View(("INBOX", "INBOX", "inbox"))) == [b"a\r\n", b"bb\r\n"]


def test_joined_listing_is_cached(maildir: MaildirStore, full: Path) -> None:
    async def story() -> None:
        async with maildir.open_view("ann", BOTH) as maildrop:
            found = maildrop.listing
            assert isinstance(found, Rendered)
            lines = [b"%d %s" % (n, e.unique_id.encode()) for n, e in enumerate(found, 1)]
            assert found.unique_id_listing().splitlines() == lines
            assert found.scan_listing() == b"1 3\r\n2 4\r\n3 5\r\n4 6\r\n"
            assert found.octets == 18
            first = found
        async with maildir.open_view("ann", BOTH) as maildrop:
            assert maildrop.listing is first, "nothing has changed"
        await deliver(maildir, "ann", b"e\r\n")
        async with maildir.open_view("ann", BOTH) as maildrop:
            assert [entry.size for entry in maildrop.listing] == [3, 4, 3, 5, 6]

    run(story())


def test_two_views_of_the_same_folders_are_not_confused(
    maildir: MaildirStore, tmp_path: Path
) -> None:
    for name in (".", ".Junk", ".Spam"):
        put(tmp_path / "ann" / name, "new/1.x", b"x\r\n")
    first = run(seen(maildir, View(("INBOX", "Junk"))))
    second = run(seen(maildir, View(("INBOX", "Spam"))))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_inbox_unique_ids_stay_and_copies_have_others(maildir: MaildirStore, full: Path) -> None:
    put(full / ".Junk", "cur/1000000001.a:2,S", b"copy\r\n")
    inbox = [entry.unique_id for entry in run(listing(maildir, "ann"))]
    shown = [unique_id for unique_id, _ in run(seen(maildir, BOTH))]
    assert shown[:2] == inbox
    assert len(set(shown)) == 5
    assert shown == [unique_id for unique_id, _ in run(seen(maildir, BOTH))]
    run(remove(maildir, BOTH, 1))
    after = [unique_id for unique_id, _ in run(seen(maildir, BOTH))]
    assert after == shown[1:], "the copy does not inherit the id"


def test_unique_ids_do_not_depend_on_which_folders_are_there(
    maildir: MaildirStore, full: Path
) -> None:
    two = View(("Junk", "Spam"))
    before = run(seen(maildir, two))
    put(full / ".Spam", "new/1000000005.e", b"e\r\n")
    assert run(seen(maildir, two))[:2] == before


def test_forged_unique_id_is_not_listed_twice(maildir: MaildirStore, full: Path) -> None:
    third = run(seen(maildir, BOTH))[2][0]
    put(full, f"new/{third}", b"forged\r\n")
    shown = [unique_id for unique_id, _ in run(seen(maildir, BOTH))]
    assert len(set(shown)) == 5


def test_marked_messages_leave_their_own_folders(maildir: MaildirStore, full: Path) -> None:
    assert run(remove(maildir, BOTH, 2, 3)) == []
    assert texts(maildir, BOTH) == [b"a\r\n", b"dddd\r\n"]
    assert [name[11:] for name in names(full / "held")] == ["1000000003.b:2,S"]
    assert [name[11:] for name in names(full / ".Junk" / "held")] == ["1000000002.c:2,S"]


def test_folder_that_cannot_be_changed_does_not_affect_the_others(
    maildir: MaildirStore, full: Path
) -> None:
    def hook(call: Call) -> None:
        if call[0] == "rename" and call[1].startswith("ann/.Junk/cur"):
            raise OSError(errno.EACCES, "no")

    with watched(full.parent, hook):
        left = run(remove(maildir, BOTH, 1, 3, 4))
    assert [entry.size for entry in left] == [5]
    assert texts(maildir, BOTH) == [b"bb\r\n", b"ccc\r\n"]


def test_missing_folder_is_skipped_among_several(maildir: MaildirStore, full: Path) -> None:
    assert texts(maildir, View(("INBOX", "Spam"))) == [b"a\r\n", b"bb\r\n"]


def test_store_may_show_several_folders_to_all_users(tmp_path: Path, full: Path) -> None:
    store = MaildirStore(f"{tmp_path}/%u", folders=("INBOX", "Junk"))
    assert [entry.size for entry in run(listing(store, "ann"))] == [3, 4, 5, 6]
    assert [entry.size for entry in run(listing(store, "bob"))] == []
    assert texts(store, View(("INBOX",))) == [b"a\r\n", b"bb\r\n"]
    with pytest.raises(PermanentFailure):
        MaildirStore(f"{tmp_path}/%u", folders=("../bob",))


def test_a_session_with_all_folders_is_not_disturbed(maildir: MaildirStore, full: Path) -> None:
    async def story() -> None:
        async with maildir.open_view("ann", BOTH) as maildrop:
            (full / ".Junk/new/1000000004.d").rename(full / ".Junk/cur/1000000004.d:2,S")
            (full / ".Junk/cur/1000000002.c:2,S").unlink()
            put(full, "new/1000000009.f", b"late\r\n")
            found = maildrop.listing
            assert await text_of(maildrop, found[3]) == b"dddd\r\n"
            with pytest.raises(MessageGone):
                await text_of(maildrop, found[2])
            assert await maildrop.remove(list(found)) == []
        assert len(await seen(maildir, BOTH)) == 1

    run(story())


def test_entry_of_another_view_has_no_message_here(maildir: MaildirStore, full: Path) -> None:
    async def story() -> None:
        async with maildir.open_view("ann", BOTH) as maildrop:
            junk = maildrop.listing[2]
        async with maildir.open_view("ann", View()) as maildrop:
            with pytest.raises(MessageGone):
                await text_of(maildrop, junk)
        async with maildir.open_view("ann", BOTH) as maildrop:
            for other in (replace(junk, unique_id="x"), replace(junk, unique_id="x", key=99)):
                with pytest.raises(MessageGone):
                    await maildrop.remove([other])
        assert len(await seen(maildir, BOTH)) == 4

    run(story())


# -- Recent mail


@pytest.fixture
def ages(place: Path) -> Path:
    now = int(time.time())
    for days in (1, 29, 31, 400):
        put(place, f"cur/{now - days * 86400}.{days}:2,S", b"%d\r\n" % days)
    put(place, "new/odd-name", b"odd\r\n")
    put(place, "new/old-name", b"old\r\n")
    os.utime(place / "new/old-name", (1, 1))
    return place


def test_recent_mail_arrived_in_the_last_days(maildir: MaildirStore, ages: Path) -> None:
    assert sorted(texts(maildir, MONTH)) == [b"1\r\n", b"29\r\n", b"odd\r\n"]


def test_file_name_with_a_future_time_does_not_make_mail_recent(
    maildir: MaildirStore, ages: Path
) -> None:
    """A clock that was ahead made the name; the time of the file counts instead."""
    for name, then in (("old", 1), ("new", time.time())):
        put(ages, f"cur/{int(time.time()) + 300 * 86400}.{name}:2,S", name.encode())
        (file,) = (ages / "cur").glob(f"*.{name}:2,S")
        os.utime(file, (then, then))
    assert sorted(texts(maildir, MONTH)) == [b"1\r\n", b"29\r\n", b"new\r\n", b"odd\r\n"]


def test_recent_mail_has_the_unique_ids_and_the_order_of_all(
    maildir: MaildirStore, ages: Path
) -> None:
    shown = run(seen(maildir, MONTH))
    every = run(seen(maildir, View()))
    assert shown == [each for each in every if each in shown]
    assert len(every) == 6


def test_older_mail_cannot_be_removed_in_a_view_of_recent_mail(
    maildir: MaildirStore, ages: Path
) -> None:
    assert run(remove(maildir, MONTH, 1, 2, 3)) == []
    assert sorted(texts(maildir, View())) == [b"31\r\n", b"400\r\n", b"old\r\n"]
    assert texts(maildir, MONTH) == []


def test_recent_mail_of_several_folders(maildir: MaildirStore, ages: Path, full: Path) -> None:
    put(full / ".Junk", f"new/{int(time.time())}.g", b"junk\r\n")
    shown = run(seen(maildir, View(("INBOX", "Junk"), recent=86400 * 2)))
    assert sorted(text for _, text in shown) == [b"1\r\n", b"junk\r\n", b"odd\r\n"]
    assert shown == [e for e in run(seen(maildir, BOTH)) if e in shown]


def test_the_whole_lock_is_taken_for_recent_mail(maildir: MaildirStore, ages: Path) -> None:
    async def story() -> None:
        async with maildir.open_view("ann", MONTH):
            with pytest.raises(MaildropInUse):
                await listing(maildir, "ann")

    run(story())


def test_the_journal_names_messages_as_their_folders_do(maildir: MaildirStore, full: Path) -> None:
    async def story() -> None:
        async with maildir.open_view("ann", BOTH) as maildrop:
            assert isinstance(maildrop, Journal)
            first, *_, last = maildrop.listing
            assert not await maildrop.remove([last])
            await maildrop.record(
                SessionRecord(1, 2, "192.0.2.7", "1.3", "phone", [first, last], [last], "quit")
            )

    run(story())
    (found,) = run(maildir.sessions("ann"))
    assert [entry.unique_id for entry in found.retrieved] == ["1000000001.a", "1000000004.d"]
    assert [entry.unique_id for entry in found.removed] == ["1000000004.d"]
    assert [each.unique_id for each in run(maildir.held("ann"))] == ["1000000004.d"]
