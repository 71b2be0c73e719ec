"""Maildirs with the names, files and habits of other programs."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.clock import RELEASED
from restante.errors import MessageGone, TemporaryFailure
from restante.maildrop import Entry, Paced, Sweep
from restante.message import Survey
from restante.scanning import ChangingMaildir
from restante.store import files
from restante.store.maildir import MaildirStore
from restante.store.names import File, field, fresh_unique, identify, unique_id_of

from .helpers import (
    canonical,
    contents,
    deliver,
    listing,
    names,
    pieces,
    put,
    remove,
    rename,
    run,
    text_of,
    unlink,
    whole,
)
from .test_conformance import MESSAGES
from .watched import Call, watched

LARGE = b"0123456789abcde\n" * 20_000  # 320 000 octets stored, 340 000 on the wire


def ids(entries: list[Entry]) -> list[str]:
    return [entry.unique_id for entry in entries]


async def what_comes(reading: AsyncIterator[bytes]) -> bytes:
    """Return the octets of a message before the error."""
    sent = b""
    try:
        async for piece in reading:
            sent += piece
    except TemporaryFailure:
        return sent
    raise AssertionError("it was read to its end")


# -- Delivery


@pytest.mark.rfc("P-175")
def test_delivered_file(maildir: MaildirStore, place: Path) -> None:
    entry = run(deliver(maildir, "ann", b"a\n", b"b\r\n"))
    assert names(place) == ["cur", "held", "new", "restante.lock", "tmp"]
    (name,) = names(place / "new")
    assert name == f"{entry.unique_id},S=5,W=6"
    assert (place / "new" / name).read_bytes() == b"a\nb\r\n"
    assert stat.S_IMODE((place / "new" / name).stat().st_mode) == 0o600
    assert all(stat.S_IMODE((place / each).stat().st_mode) == 0o700 for each in ("", "cur", "tmp"))
    assert names(place / "tmp") == []


def test_unique_part_does_not_need_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    assert len({fresh_unique() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("host", ["", "a/b:c,d\n", "x" * 300, "müller", "mail.example.org"])
def test_unique_part_suits_file_names_and_unique_ids(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    from restante.store import names as module

    monkeypatch.setattr(module, "host_name", lambda: host)
    monkeypatch.setattr(os, "getpid", lambda: 4_194_304)
    module._host.cache_clear()
    unique = fresh_unique()
    module._host.cache_clear()
    assert len(unique) <= 70
    assert not set(unique) & set(",:/ ")
    assert unique_id_of(f"{unique},S=1,W=1:2,S") == unique


def test_cancelled_delivery_leaves_nothing(maildir: MaildirStore, place: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        await asyncio.sleep(60)

    async def story() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(maildir.deliver("ann", endless()), 0.1)

    run(story())
    assert names(place / "tmp") + names(place / "new") == []


def test_delivery_does_not_follow_a_symbolic_link(
    maildir: MaildirStore, place: Path, tmp_path: Path
) -> None:
    """CVE-2004-0880, CVE-2025-59031."""
    run(deliver(maildir, "ann", b"x"))
    (tmp_path / "elsewhere").mkdir()
    (place / "new").rename(place / "old")
    (place / "new").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "eve").symlink_to(place)
    for user in ("ann", "eve"):
        with pytest.raises(TemporaryFailure):
            run(deliver(maildir, user, b"x"))
        with pytest.raises(TemporaryFailure):
            run(listing(maildir, user))
    assert names(tmp_path / "elsewhere") == []
    assert len(names(place / "old")) == 1
    assert names(place / "tmp") == []


# -- Files of other programs


@pytest.mark.parametrize("octets", MESSAGES.values(), ids=MESSAGES.keys())
@pytest.mark.parametrize("name", ["new/1.a.host", "cur/1.a.host,S=3:2,S", "cur/1.a,W=:2,FS"])
@pytest.mark.rfc("P-026", "P-176")
def test_unknown_size_is_measured(
    maildir: MaildirStore, place: Path, name: str, octets: bytes
) -> None:
    put(place, name, octets)
    (entry,) = run(listing(maildir, "ann"))
    assert entry.size == len(canonical(octets))
    assert run(contents(maildir, "ann")) == [canonical(octets)]


def test_measured_size_is_remembered(maildir: MaildirStore, place: Path) -> None:
    put(place, "cur/1.a:2,S", LARGE)
    first = run(listing(maildir, "ann"))
    rename(place, "cur/1.a:2,S", "cur/1.a:2,RS")
    with watched(place.parent) as system:
        assert run(listing(maildir, "ann")) == first
    assert not [call for call in system.calls if call[0] in ("pread", "preadv")]


def test_indexes_in_memory_are_bounded(
    maildir: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restante.store import maildir as module

    monkeypatch.setattr(module, "_CACHE", 200)
    for user in ("a", "b", "a", "c", "d"):
        run(deliver(maildir, user, b"x"))
        run(listing(maildir, user))
        assert sum(index.memory for index in maildir._indexes.values()) <= 200
    assert list(maildir._indexes) == ["c", "d"]


@pytest.mark.parametrize("gone", ["", "new", "cur", "held", "restante.lock"])
def test_directories_removed_between_sessions_are_created_again(
    maildir: MaildirStore, place: Path, gone: str
) -> None:
    """A store that knows the maildrop makes few checks, but notices it."""

    async def story() -> None:
        for _ in range(2):
            await listing(maildir, "ann")
        if (place / gone).is_dir():
            shutil.rmtree(place / gone)
        else:
            (place / gone).unlink()
        await listing(maildir, "ann")
        entry = await deliver(maildir, "ann", b"hello\r\n")
        assert await listing(maildir, "ann") == [entry]
        assert await remove(maildir, "ann", [entry]) == []

    run(story())


@pytest.mark.parametrize("octets", [b"one\ntwo\n", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("wrong", [0, 1, 5, 339_999, 340_001, 999_999_999_999])
@pytest.mark.rfc("P-025")
def test_wrong_size_is_not_sent_and_is_corrected(
    maildir: MaildirStore, place: Path, octets: bytes, wrong: int
) -> None:
    put(place, f"cur/1.a,S=1,W={wrong}:2,", octets)
    text = canonical(octets)

    async def session() -> None:
        async with maildir.open("ann") as maildrop:
            (entry,) = maildrop.listing
            assert entry.size == wrong
            sent = await what_comes(maildrop.read(entry))
            assert len(sent) <= wrong
            assert text.startswith(sent)
            assert sent != text

    run(session())
    assert run(listing(maildir, "ann")) == [Entry("1.a", len(text))]
    assert run(contents(maildir, "ann")) == [text]


def test_small_message_of_wrong_size_is_refused_before_its_first_octet(
    maildir: MaildirStore, place: Path
) -> None:
    put(place, "cur/1.a,S=1,W=7:2,", b"one\n")

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            with pytest.raises(TemporaryFailure):
                await anext(maildrop.read(maildrop.listing[0]))

    run(story())


@pytest.mark.parametrize("change", [b"", b"cut", LARGE + b"more\n"])
def test_file_changed_by_another_program_gets_no_final_dot(
    maildir: MaildirStore, place: Path, change: bytes
) -> None:
    put(place, "new/1.a", LARGE)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            (entry,) = maildrop.listing
            put(place, "new/1.a", change)
            with pytest.raises(TemporaryFailure):
                await text_of(maildrop, entry)

    run(story())
    assert run(contents(maildir, "ann")) == [canonical(change)]


def test_file_truncated_while_it_is_read(maildir: MaildirStore, place: Path) -> None:
    put(place, "new/1.a", LARGE)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            (entry,) = maildrop.listing
            reading = maildrop.read(entry)
            sent = len(await anext(reading))
            os.truncate(place / "new/1.a", 100_000)
            with pytest.raises(TemporaryFailure):
                sent += len(await whole(reading))
            assert sent < entry.size

    run(story())


def test_listing_is_in_the_order_of_delivery(maildir: MaildirStore, place: Path) -> None:
    for name in ("new/10.a", "cur/9.z:2,S", "new/9.a", "cur/100.b:2,", "new/no-time", "new/9"):
        put(place, name, b"x")
    assert ids(run(listing(maildir, "ann"))) == ["no-time", "9", "9.a", "9.z", "10.a", "100.b"]
    run(deliver(maildir, "ann", b"x"))
    assert ids(run(listing(maildir, "ann")))[:-1] == ["no-time", "9", "9.a", "9.z", "10.a", "100.b"]


@pytest.mark.rfc("P-106", "P-175")
def test_unique_id_survives_flags_and_directories(maildir: MaildirStore, place: Path) -> None:
    entry = run(deliver(maildir, "ann", b"x"))
    (name,) = names(place / "new")
    rename(place, f"new/{name}", f"cur/{name}:2,")
    assert run(listing(maildir, "ann")) == [entry]
    rename(place, f"cur/{name}:2,", f"cur/{name}:2,FRSTab")
    assert run(listing(MaildirStore(f"{place.parent}/%u"), "ann")) == [entry]
    assert run(contents(maildir, "ann")) == [b"x\r\n"]


@pytest.mark.parametrize(
    "name",
    ["1." + "x" * 69, "1.a b", "1.jörg", "1.\udcff", "1.\n", ",S=1", ":2,S", "1.a\x7f:2,S"],
)
@pytest.mark.rfc("P-106")
def test_name_that_is_not_a_valid_unique_id_is_hashed(
    maildir: MaildirStore, place: Path, name: str
) -> None:
    put(place, f"cur/{name}", b"x")
    ((unique_id, size),) = [(e.unique_id, e.size) for e in run(listing(maildir, "ann"))]
    assert size == 3
    assert unique_id.isalnum()
    assert len(unique_id) == 40
    assert run(contents(maildir, "ann")) == [b"x\r\n"]
    assert run(remove(maildir, "ann", run(listing(maildir, "ann")))) == []
    (held,) = run(maildir.held("ann"))
    assert held.unique_id == unique_id
    assert run(maildir.restore("ann", [held], same_unique_ids=True)) == 1
    assert ids(run(listing(maildir, "ann"))) == [unique_id]


@pytest.mark.parametrize("length", [243, 244, 245, 255])
@pytest.mark.parametrize("unique_id", ["a:b", ".a", "a"])
def test_name_without_end_and_fields_can_be_held(
    maildir: MaildirStore, place: Path, unique_id: str, length: int
) -> None:
    """Also with an adopted id that cannot replace the name."""
    name = "1." + "x" * (length - 2)
    put(place, f"cur/{name}", b"x")
    run(maildir.adopt("ann", {name: unique_id}, lambda _: pieces()))
    (entry,) = run(listing(maildir, "ann"))
    assert entry.unique_id == unique_id
    assert run(remove(maildir, "ann", [entry])) == []
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 1
    assert run(contents(maildir, "ann")) == [b"x\r\n"]


def test_longest_name_can_be_held(maildir: MaildirStore, place: Path) -> None:
    name = "1.a,W=3," + "x" * (255 - 8)
    put(place, f"cur/{name}", b"x")
    entries = run(listing(maildir, "ann"))
    assert entries == [Entry("1.a", 3)]
    assert run(remove(maildir, "ann", entries)) == []
    assert run(maildir.restore("ann", run(maildir.held("ann")), same_unique_ids=True)) == 1
    assert run(listing(maildir, "ann")) == entries


@pytest.mark.rfc("P-106")
def test_two_files_with_the_same_unique_part(maildir: MaildirStore, place: Path) -> None:
    """They stay two messages with their own ids, after any change of flags and directories."""
    put(place, "cur/1.a:2,S", b"first")
    put(place, "new/1.a", b"second")
    put(place, "cur/1.a:2,FS", b"third")

    async def by_id() -> dict[str, bytes]:
        async with maildir.open("ann") as maildrop:
            return {e.unique_id: await text_of(maildrop, e) for e in maildrop.listing}

    before = run(by_id())
    assert sorted(before.values()) == [b"first\r\n", b"second\r\n", b"third\r\n"]
    assert "1.a" in before
    rename(place, "cur/1.a:2,S", "cur/1.a:2,T")
    rename(place, "new/1.a", "cur/1.a:2,S")
    assert run(by_id()) == before
    (second,) = [e for e in run(listing(maildir, "ann")) if before[e.unique_id] == b"second\r\n"]
    assert run(remove(maildir, "ann", [second])) == []
    assert sorted(run(contents(maildir, "ann"))) == [b"first\r\n", b"third\r\n"]
    (held,) = run(maildir.held("ann"))
    assert held.unique_id == second.unique_id
    assert run(whole(maildir.read_held("ann", held))) == b"second"


def test_two_links_to_one_file_are_one_message(maildir: MaildirStore, place: Path) -> None:
    """Some programs move by link and unlink; a crash may leave both names."""
    put(place, "new/1.a", b"x")
    os.link(place / "new/1.a", place / "cur/1.a:2,S")
    entries = run(listing(maildir, "ann"))
    assert ids(entries) == ["1.a"]
    assert run(remove(maildir, "ann", entries)) == []
    assert run(listing(maildir, "ann")) == []


names_of_files = st.text(st.sampled_from("12.a,:SW=é \n"), min_size=1, max_size=6)


@given(st.lists(st.tuples(names_of_files, st.sampled_from(["new", "cur"])), unique=True))
def test_every_file_has_its_own_unique_id(found: list[tuple[str, str]]) -> None:
    listed = [File(directory, name, n) for n, (name, directory) in enumerate(found)]
    by_id = identify(listed)
    assert sorted(f.inode for f in by_id.values()) == list(range(len(found)))
    assert all(0 < len(each) <= 70 and each.isascii() and each.isprintable() for each in by_id)
    assert identify(reversed(listed)) == by_id


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("1.a,S=5,W=6:2,S", 6),
        ("1.a,W=06", 6),
        ("1.a,W=0", 0),
        ("1.a,W=6x", None),
        ("1.a,W=-6", None),
        ("1.a,W=٣", None),
        ("1.a,W=6\n", None),
        ("1.aW=6", None),
        ("1.a:2,W=6", None),
        ("1.a,W=" + "9" * 12, 10**12 - 1),
        ("1.a,W=" + "9" * 13, None),
    ],
)
def test_size_in_a_name(name: str, size: int | None) -> None:
    assert field("W", name) == size


def test_huge_sizes_in_names_do_not_prevent_logins(maildir: MaildirStore, place: Path) -> None:
    for number in range(20):
        put(place, f"cur/{number}.a,W={'9' * 18}", b"x")
    assert [entry.size for entry in run(listing(maildir, "ann"))] == [3] * 20


def test_files_that_are_not_messages_are_skipped(maildir: MaildirStore, place: Path) -> None:
    put(place, "new/1.a", b"x")
    (place / "new/2.directory").mkdir()
    (place / "new/3.link").symlink_to("1.a")
    (place / "new/4.dangling").symlink_to("nowhere")
    os.mkfifo(place / "new/5.fifo,W=5")
    (place / "new/.hidden").write_bytes(b"x")
    (place / "cur/.nfs0001:2,S").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(place / "cur/6.socket:2,S"))
    assert ids(run(listing(maildir, "ann"))) == ["1.a"]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "socket", "directory"])
def test_message_replaced_by_another_kind_of_file_is_gone(
    maildir: MaildirStore, place: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "secret").write_bytes(b"xx")
    put(place, "new/1.a,W=4", b"xx")

    def replace() -> None:
        path = place / "new/1.a,W=4"
        path.unlink()
        if kind == "symlink":
            path.symlink_to(tmp_path / "secret")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(str(path))

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            (entry,) = maildrop.listing
            replace()
            with pytest.raises(MessageGone):
                await text_of(maildrop, entry)

    run(story())


# -- During a session


def test_renamed_message_is_found_by_one_scan(maildir: MaildirStore, place: Path) -> None:
    for number in range(5):
        put(place, f"new/{number}.a", b"%d" % number)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            for number in range(5):
                rename(place, f"new/{number}.a", f"cur/{number}.a:2,S")
            with watched(place.parent) as system:
                for number, entry in enumerate(maildrop.listing):
                    assert await text_of(maildrop, entry) == b"%d\r\n" % number
            assert sum(call[0] == "scandir" for call in system.calls) == 2

    run(story())


@pytest.mark.rfc("P-110")
def test_missing_message_is_an_error_and_the_others_are_kept(
    maildir: MaildirStore, place: Path
) -> None:
    for number in range(3):
        put(place, f"new/{number}.a", b"%d" % number)

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            unlink(place, "new/1.a")
            first, second, third = maildrop.listing
            for _ in range(2):
                with pytest.raises(MessageGone):
                    await text_of(maildrop, second)
            assert await text_of(maildrop, third) == b"2\r\n"
            assert list(await maildrop.remove([first, second])) == []

    run(story())
    assert ids(run(listing(maildir, "ann"))) == ["2.a"]


def test_message_that_keeps_being_renamed_is_not_reported_gone(
    maildir: MaildirStore, place: Path
) -> None:
    put(place, "new/1.a", b"x")
    files_are = ["new/1.a", "cur/1.a:2,S"]

    def hook(call: Call) -> None:
        if call[0] == "open" and call[1].endswith(files_are[0].partition("/")[2]):
            rename(place, *files_are)
            files_are.reverse()

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            with watched(place.parent, hook), pytest.raises(ChangingMaildir):
                await text_of(maildrop, maildrop.listing[0])
            assert await text_of(maildrop, maildrop.listing[0]) == b"x\r\n"

    run(story())


def test_message_of_another_session_is_gone(maildir: MaildirStore, place: Path) -> None:
    put(place, "new/1.a", b"x")

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            with pytest.raises(MessageGone):
                await text_of(maildrop, Entry("2.a", 3))

    run(story())


def test_message_with_the_name_of_another_is_not_confused_with_it(
    maildir: MaildirStore, place: Path
) -> None:
    """It has the same unique part but is another file, which the user has not seen: it stays."""
    put(place, "new/1.a", b"seen")

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            put(place, "cur/1.a:2,S", b"unseen")
            unlink(place, "new/1.a")
            with pytest.raises(MessageGone):
                await text_of(maildrop, maildrop.listing[0])
            assert list(await maildrop.remove(maildrop.listing)) == []

    run(story())
    assert run(contents(maildir, "ann")) == [b"unseen\r\n"]


def test_session_that_is_over_touches_nothing(maildir: MaildirStore) -> None:
    """Its descriptor may belong to another maildrop by now."""

    async def story() -> None:
        await deliver(maildir, "ann", b"x")
        async with maildir.open("ann") as maildrop:
            pass
        with pytest.raises(TemporaryFailure):
            await text_of(maildrop, maildrop.listing[0])
        assert list(await maildrop.remove(maildrop.listing)) == list(maildrop.listing)

    run(story())
    assert len(run(listing(maildir, "ann"))) == 1


# -- Cost of reading


def test_cached_message_needs_no_thread_per_piece(
    maildir: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(deliver(maildir, "ann", LARGE))
    real = files.in_thread
    hops = 0

    async def counted(*args: object, **kwargs: object) -> object:
        nonlocal hops
        hops += 1
        return await real(*args, **kwargs)  # type: ignore[arg-type]

    async def story() -> None:
        async with maildir.open("ann") as maildrop:
            with monkeypatch.context() as patch:
                patch.setattr(files, "in_thread", counted)
                assert await text_of(maildrop, maildrop.listing[0]) == canonical(LARGE)

    run(story())
    assert hops == 0


@pytest.mark.parametrize("answer", [errno.EAGAIN, errno.EOPNOTSUPP, 0, None])
def test_uncached_message_is_read_in_a_thread(
    maildir: MaildirStore, monkeypatch: pytest.MonkeyPatch, answer: int | None
) -> None:
    """0: Linux 5.9 returns it before the end; None: a system without RWF_NOWAIT."""

    class Uncached:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def preadv(self, *_: object) -> int:
            if answer:
                raise OSError(answer, os.strerror(answer))
            return 0

    run(deliver(maildir, "ann", LARGE))
    monkeypatch.setattr(files, "os", Uncached())
    if answer is None:
        monkeypatch.setattr(files, "_NOWAIT", 0)
    assert run(contents(maildir, "ann")) == [canonical(LARGE)]


def test_measuring_can_be_cancelled_and_is_continued_later(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restante.store import refresh as module

    monkeypatch.setattr(module, "_BATCH", 1)
    for number in range(5):
        put(place, f"new/{number}.a", b"x")
    real = files.survey
    measured = 0

    def measure(file: int) -> Survey:
        nonlocal measured
        measured += 1
        if measured == 3:
            cancel[0]()
            time.sleep(0.05)
        return real(file)

    async def story() -> None:
        login = asyncio.create_task(listing(maildir, "ann"))
        cancel.append(partial(asyncio.get_running_loop().call_soon_threadsafe, login.cancel))
        with pytest.raises(asyncio.CancelledError):
            await login

    cancel: list[Callable[[], object]] = []
    monkeypatch.setattr(files, "survey", measure)
    run(story())
    assert measured == 3
    assert len(run(listing(maildir, "ann"))) == 5
    assert measured == 5


def test_mailbox_that_changes_while_it_is_measured(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        put(place, f"new/{number}.a", b"x")
    real = files.survey

    def measure(file: int) -> Survey:
        if (place / "new/0.a").exists():
            unlink(place, "new/0.a")  # the message that is being read
            unlink(place, "new/1.a")
            unlink(place, "new/2.a")
            rename(place, "new/3.a", "cur/3.a:2,S")
        return real(file)

    monkeypatch.setattr(files, "survey", measure)
    assert ids(run(listing(maildir, "ann"))) == ["0.a", "3.a", "4.a"]
    assert ids(run(listing(maildir, "ann"))) == ["3.a", "4.a"]


@pytest.mark.rfc("P-087")
def test_clock_set_back_does_not_prevent_logins(maildir: MaildirStore, place: Path) -> None:
    async def pace() -> float:
        async with maildir.open("ann") as maildrop:
            assert isinstance(maildrop, Paced)
            return await maildrop.pace(100)

    assert run(pace()) == 0
    os.utime(place / "restante.login", (0, time.time() + 5000))
    assert run(pace()) == 0
    assert run(pace()) > 99


@pytest.mark.rfc("P-089")
def test_mail_moved_here_with_an_old_mtime_counts_as_new(
    maildir: MaildirStore, place: Path
) -> None:
    """A new user must not lose mail of 1999 at once."""
    put(place, "new/1.a", b"x")
    os.utime(place / "new" / "1.a", (0, 0))
    run(maildir.note_rules("ann", 30, RELEASED))
    now = time.time() + 30 * 86_400 - 5
    assert run(maildir.expire("ann", 30, until=now, now=now)) == Sweep()


def test_file_with_the_same_name_in_tmp_is_not_touched(
    maildir: MaildirStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restante.store import single_delivery as module

    put(place, "tmp/1.a", b"another's")
    monkeypatch.setattr(module, "fresh_unique", lambda: "1.a")
    with pytest.raises(TemporaryFailure):
        run(deliver(maildir, "ann", b"x"))
    assert (place / "tmp/1.a").read_bytes() == b"another's"


def test_an_adoption_that_fails_leaves_no_trace(maildir: MaildirStore, place: Path) -> None:
    async def read(name: str) -> AsyncIterator[bytes]:
        yield b"half of it" * 30_000  # more than is buffered before the first write
        raise TemporaryFailure("the old server is gone")

    with pytest.raises(TemporaryFailure):
        run(maildir.adopt("ann", {"1.a": "old-1"}, read))
    assert (names(place / "tmp"), names(place / "new")) == ([], [])
