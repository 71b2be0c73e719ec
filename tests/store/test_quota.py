"""Quotas in ``maildirsize`` of Maildir++: counting, refusals and recounts."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from restante.clock import RELEASED
from restante.errors import LargerThanQuota, QuotaExceeded, TemporaryFailure
from restante.maildrop import Sweep, Usage
from restante.store import quota
from restante.store.maildir import MaildirStore

from .helpers import contents, deliver, listing, names, put, remove, run
from .watched import Call, Crash, die_at, fail_at, watched

TEN = b"ten octets"
LIMIT = 100


@pytest.fixture
def store(tmp_path: Path) -> MaildirStore:
    return MaildirStore(f"{tmp_path}/%u", limit=lambda _: LIMIT)


def reported(place: Path) -> list[str]:
    """Return the lines of the file."""
    return (place / "maildirsize").read_text().splitlines()


def write(place: Path, text: str, *, age: float = 0) -> None:
    """Write the file as another program does."""
    for each in ("cur", "new", "tmp"):
        (place / each).mkdir(parents=True, exist_ok=True)
    (place / "maildirsize").write_text(text)
    then = time.time() - age
    os.utime(place / "maildirsize", (then, then))


def really(place: Path) -> tuple[int, int]:
    """Return the octets and messages that are there."""
    found = [path.stat().st_size for each in ("new", "cur") for path in (place / each).iterdir()]
    return sum(found), len(found)


def total(place: Path) -> tuple[int, int]:
    """Return the octets and messages by the file."""
    changes = [tuple(map(int, line.split())) for line in reported(place)[1:]]
    return sum(octets for octets, _ in changes), sum(count for _, count in changes)


# -- What counts


@pytest.mark.rfc("P-177")
def test_limit_is_followed_by_a_line_for_each_delivery(store: MaildirStore, place: Path) -> None:
    run(deliver(store, "ann", TEN))
    run(deliver(store, "ann", TEN + TEN))
    assert reported(place) == ["100S", "0 0", "10 1", "20 1"]


def test_usage_shows_octets_messages_and_limit(store: MaildirStore) -> None:
    assert run(store.usage("ann")) == Usage(0, 0, LIMIT)
    run(deliver(store, "ann", TEN))
    assert run(store.usage("ann")) == Usage(10, 1, LIMIT)


@pytest.mark.rfc("P-178")
def test_removed_mail_frees_quota_immediately_although_it_is_held(
    store: MaildirStore, place: Path
) -> None:
    for _ in range(10):
        run(deliver(store, "ann", TEN))
    with pytest.raises(QuotaExceeded):
        run(deliver(store, "ann", TEN))
    assert run(remove(store, "ann", run(listing(store, "ann"))[:3])) == []
    assert total(place) == (70, 7) == really(place)
    assert len(run(store.held("ann"))) == 3
    for _ in range(3):
        run(deliver(store, "ann", TEN))


def test_messages_not_removed_are_still_counted(store: MaildirStore, place: Path) -> None:
    for _ in range(3):
        run(deliver(store, "ann", TEN))
    entries = run(listing(store, "ann"))
    with watched(place.parent, lambda call: refuse(call, entries[1].unique_id)):
        assert run(remove(store, "ann", entries)) == [entries[1]]
    assert total(place) == (10, 1) == really(place)


def test_expired_mail_is_not_counted_any_more(store: MaildirStore, place: Path) -> None:
    run(deliver(store, "ann", TEN))
    run(deliver(store, "ann", TEN))
    run(store.note_rules("ann", 30, RELEASED))
    now = time.time() + 31 * 86_400
    assert run(store.expire("ann", 30, until=now, now=now)) == Sweep(2)
    assert total(place) == (0, 0)


def refuse(call: Call, unique_id: str) -> None:
    if call[0] == "rename" and unique_id in call[1]:
        raise OSError(errno.EACCES, "no")


def test_removal_by_another_program_is_not_counted_twice(store: MaildirStore, place: Path) -> None:
    run(deliver(store, "ann", TEN))
    (file,) = (place / "new").iterdir()

    async def story() -> None:
        async with store.open("ann") as maildrop:
            file.unlink()  # the file itself:
            write(place, (place / "maildirsize").read_text() + "-10 -1\n")
            await maildrop.remove(maildrop.listing)

    run(story())
    assert total(place) == (0, 0)


def test_restored_mail_counts_again(store: MaildirStore) -> None:
    run(deliver(store, "ann", TEN))
    run(remove(store, "ann", run(listing(store, "ann"))))
    assert run(store.usage("ann")) == Usage(0, 0, LIMIT)
    run(store.restore("ann", run(store.held("ann"))))
    assert run(store.usage("ann")) == Usage(10, 1, LIMIT)


def test_restore_is_never_refused_by_the_quota(store: MaildirStore) -> None:
    for _ in range(10):
        run(deliver(store, "ann", TEN))
    run(remove(store, "ann", run(listing(store, "ann"))))
    for _ in range(10):
        run(deliver(store, "ann", TEN))
    assert run(store.restore("ann", run(store.held("ann")))) == 10
    assert run(store.usage("ann")) == Usage(200, 20, LIMIT)
    with pytest.raises(QuotaExceeded):
        run(deliver(store, "ann", b""))


def test_folders_and_marked_messages_count_as_dovecot_counts_them(
    store: MaildirStore, place: Path
) -> None:
    put(place, "new/1.a", TEN)
    put(place, "cur/2.a,S=11:2,ST", b"lies of it")  # S= is believed (Maildir++)
    put(place / ".Junk", "cur/3.a:2,S", TEN)
    put(place / ".Trash", "cur/4.a:2,S", TEN)
    put(place / "held", "cur/5.a", TEN)
    put(place, "tmp/6.a", TEN)
    (place / ".Strange").write_text("no folder")
    (place / ".Linked").symlink_to(place / ".Junk")
    (place / ".Empty").mkdir()
    assert run(store.usage("ann")) == Usage(41, 4, LIMIT)


# -- Refusals


def test_message_over_quota_is_refused_temporarily_and_leaves_no_file(
    store: MaildirStore, place: Path
) -> None:
    run(deliver(store, "ann", b"x" * 95))
    with pytest.raises(QuotaExceeded, match="its quota is 100 octets"):
        run(deliver(store, "ann", TEN))
    assert total(place) == (95, 1)
    assert names(place / "tmp") == []
    assert len(run(listing(store, "ann"))) == 1
    run(deliver(store, "ann", b"x" * 5))  # to the last octet


def test_a_message_larger_than_the_whole_quota_is_refused_for_ever(store: MaildirStore) -> None:
    with pytest.raises(LargerThanQuota, match="whole quota of 100 octets"):
        run(deliver(store, "ann", b"x" * 101))
    assert not LargerThanQuota.retry
    run(deliver(store, "ann", b"x" * 100))


def test_each_user_has_a_separate_limit(tmp_path: Path) -> None:
    store = MaildirStore(f"{tmp_path}/%u", limit={"ann": 10, "bob": 0}.__getitem__)
    run(deliver(store, "ann", TEN))
    with pytest.raises(QuotaExceeded):
        run(deliver(store, "ann", TEN))
    run(deliver(store, "bob", TEN * 1000))


def test_lowered_quota_stops_deliveries_and_removes_nothing(
    store: MaildirStore, place: Path
) -> None:
    run(deliver(store, "ann", TEN + TEN))
    store.limit = lambda _: 15
    with pytest.raises(QuotaExceeded):
        run(deliver(store, "ann", b"x"))
    assert run(contents(store, "ann")) == [TEN + TEN + b"\r\n"]
    assert reported(place) == ["15S", "20 1"]


def test_without_a_quota_no_file_is_made(maildir: MaildirStore, place: Path) -> None:
    run(deliver(maildir, "ann", TEN))
    run(remove(maildir, "ann", run(listing(maildir, "ann"))))
    assert run(maildir.usage("ann")) == Usage(0, 0, 0)
    assert not (place / "maildirsize").exists()


def test_without_a_quota_another_programs_count_stays_right(
    maildir: MaildirStore, place: Path
) -> None:
    write(place, "5S,1C\n0 0\n")
    run(deliver(maildir, "ann", TEN))
    run(deliver(maildir, "ann", TEN))
    run(remove(maildir, "ann", run(listing(maildir, "ann"))[:1]))
    assert reported(place) == ["5S,1C", "0 0", "10 1", "10 1", "-10 -1"]


# -- At 0, 1 and the limit


@pytest.mark.parametrize(
    ("limit", "there", "size", "refusal"),
    [
        (1, [], 0, None),
        (1, [], 1, None),
        (1, [], 2, LargerThanQuota),
        (1, [1], 0, None),  # an empty message needs no room
        (1, [1], 1, QuotaExceeded),
        (1, [0], 1, None),
        (100, [], 100, None),
        (100, [], 101, LargerThanQuota),
        (100, [99], 1, None),
        (100, [100], 1, QuotaExceeded),
        (100, [100], 0, None),
        (100, [40, 40], 20, None),
        (100, [40, 41], 20, QuotaExceeded),
        (0, [100], 10_000, None),  # 0 is no quota
    ],
)
@pytest.mark.parametrize("by", ["us", "another program"])
def test_quota_limits_are_exact(
    tmp_path: Path,
    place: Path,
    limit: int,
    there: list[int],
    size: int,
    refusal: type[Exception] | None,
    by: str,
) -> None:
    """Mail stored by another program is counted before a refusal."""
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: limit)
    put(place, "tmp/x", b"")
    for number, octets in enumerate(there):
        if by == "us":
            run(deliver(store, "ann", b"x" * octets))
        else:
            put(place, f"new/{number}.a", b"x" * octets)
    if refusal is None:
        run(deliver(store, "ann", b"x" * size))
        assert sum(really(place)) == sum(there) + size + len(there) + 1
    else:
        with pytest.raises(refusal):
            run(deliver(store, "ann", b"x" * size))
        assert really(place) == (sum(there), len(there))
    if limit and refusal is not LargerThanQuota:  # refused without a count
        assert total(place) == really(place)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_removals_by_other_programs_make_room_within_15_minutes(
    store: MaildirStore, place: Path, count: int
) -> None:
    """Maildir++: a count may be used for a refusal for that time."""
    for _ in range(10):
        run(deliver(store, "ann", TEN))
    for file in list((place / "new").iterdir())[:count]:
        file.unlink()
    for _ in range(count):
        then = time.time() - 16 * 60
        os.utime(place / "maildirsize", (then, then))
        run(deliver(store, "ann", TEN))
    with pytest.raises(QuotaExceeded):
        run(deliver(store, "ann", TEN))
    assert really(place) == (100, 10)


# -- Changed or removed quotas, and the file that other programs read


class Changing:
    """A store whose quota changes, and the hourly round that notices it."""

    def __init__(self, tmp_path: Path) -> None:
        self.limit = LIMIT
        self.store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: self.limit)

    def change(self, limit: int, *, notices: str) -> None:
        self.limit = limit
        if notices == "the round":
            run(self.store.note_rules("ann", None, time.time()))
        else:
            run(deliver(self.store, "ann", b"x"))


@pytest.fixture
def changing(tmp_path: Path) -> Changing:
    return Changing(tmp_path)


@pytest.mark.parametrize("notices", ["the round", "a delivery"])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_removed_quota_applies_nowhere(
    changing: Changing, place: Path, count: int, notices: str
) -> None:
    """Dovecot, Courier and mail filters refuse mail by the limit in the file."""
    put(place, "tmp/x", b"")
    for _ in range(count):
        run(deliver(changing.store, "ann", TEN))
    changing.change(0, notices=notices)
    assert not (place / "maildirsize").exists()
    run(deliver(changing.store, "ann", TEN * 100))
    assert not (place / "maildirsize").exists()


def test_a_quota_that_was_removed_leaves_the_number_that_another_program_allows(
    changing: Changing, place: Path
) -> None:
    write(place, "1000C\n0 0\n")
    run(deliver(changing.store, "ann", TEN))
    assert reported(place) == ["100S,1000C", "0 0", "10 1"]
    changing.change(0, notices="the round")
    assert reported(place) == ["1000C", "10 1"]


@pytest.mark.parametrize("notices", ["the round", "a delivery"])
@pytest.mark.parametrize("new", [1, 50, 500])
def test_changed_quota_is_written_for_other_programs(
    changing: Changing, place: Path, new: int, notices: str
) -> None:
    run(deliver(changing.store, "ann", TEN))
    if notices == "a delivery" and new < 11:
        changing.limit = new
        with pytest.raises(QuotaExceeded):
            run(deliver(changing.store, "ann", b"x"))
    else:
        changing.change(new, notices=notices)
    assert reported(place)[0] == f"{new}S"
    assert total(place) == really(place)


@pytest.mark.parametrize("first", ["5S,1C", "100S", "1000C", "S"])
def test_another_programs_quota_is_kept_and_its_file_is_bounded(
    maildir: MaildirStore, place: Path, first: str
) -> None:
    write(place, f"{first}\n0 0\n")
    for _ in range(3):
        run(deliver(maildir, "ann", TEN))
    with open(place / "maildirsize", "a") as file:
        file.write("5 1\n-5 -1\n" * 1000)
    run(deliver(maildir, "ann", TEN))
    assert reported(place) == [first, "30 3", "10 1"]


def test_without_a_quota_the_round_leaves_another_programs_file_alone(
    maildir: MaildirStore, place: Path
) -> None:
    write(place, "100S\n0 0\n")
    run(maildir.note_rules("ann", None, time.time()))
    assert reported(place) == ["100S", "0 0"]


# -- Recounts (Maildir++, "Calculating maildirsize")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100S",
        "100S\n",
        "100S\n5",
        "100S\n5 1",  # torn
        "100S\n5 1\n7",
        "100S\n5 1\nfive 1\n",
        "100S\n-5 1\n",
        "100S\n5 -1\n",
        "100S\n\0\0\0\0\0\n",
        "100S\n5 1\n\n",
        "1000S\n5 1\n",
        "100X\n5 1\n",
        "S\n5 1\n",
        "100S\n" + "0 0\n" * 1280,
        "100S\n" + "9" * 40 + " 1\n",
    ],
    ids=lambda text: repr(text[:16]),
)
def test_implausible_maildirsize_is_recounted(store: MaildirStore, place: Path, text: str) -> None:
    put(place, "new/1.a", TEN)
    write(place, text)
    run(deliver(store, "ann", b"x"))
    assert reported(place) == ["100S", "10 1", "1 1"]


@pytest.mark.parametrize("text", ["100S\n10 1\n", "100S,7C\n10 1\n", "7C,100S\n 12   3\n-2  -2\n"])
def test_plausible_maildirsize_is_believed(store: MaildirStore, place: Path, text: str) -> None:
    write(place, text)
    run(deliver(store, "ann", b"x"))
    assert (place / "maildirsize").read_text() == text + "1 1\n"


def test_the_number_of_messages_that_another_program_allows_is_kept(
    store: MaildirStore, place: Path
) -> None:
    write(place, "7S,1000C\n10 1\n")
    run(deliver(store, "ann", b"x"))
    assert reported(place) == ["100S,1000C", "0 0", "1 1"]


@pytest.mark.parametrize(
    ("text", "age"),
    [("100S\n95 1\n5 1\n", 0.0), ("100S\n100 2\n", 16 * 60.0), ("100S\n100 2\n", -3600.0)],
    ids=["changed since", "old", "from the future"],
)
def test_stale_count_refuses_no_mail(
    store: MaildirStore, place: Path, text: str, age: float
) -> None:
    write(place, text, age=age)
    run(deliver(store, "ann", TEN))
    assert reported(place) == ["100S", "0 0", "10 1"]


def test_a_fresh_count_may_refuse_without_another_look(store: MaildirStore, place: Path) -> None:
    write(place, "100S\n100 2\n")
    with pytest.raises(QuotaExceeded):
        run(deliver(store, "ann", TEN))


def test_count_of_a_changing_maildrop_is_not_written(store: MaildirStore, place: Path) -> None:
    put(place, "new/1.a", TEN)
    os.utime(place / "new", ns=(1, 1))

    def hook(call: Call) -> None:
        if call == ("rename", "ann/maildirsize.tmp", "ann/maildirsize"):
            put(place, "new/2.a", TEN)

    with watched(place.parent, hook):
        run(deliver(store, "ann", b"x"))
    assert not (place / "maildirsize").exists()
    assert run(store.usage("ann")) == Usage(21, 3, LIMIT)


def test_count_in_a_replaced_file_is_not_trusted(store: MaildirStore, place: Path) -> None:
    run(deliver(store, "ann", TEN))

    def hook(call: Call) -> None:
        if call[0] == "rename" and call[2].startswith("ann/new/"):
            (place / "maildirsize").rename(place / "old")
            write(place, "100S\n10 1\n")

    with watched(place.parent, hook):
        run(deliver(store, "ann", TEN))
    assert not (place / "maildirsize").exists()


# -- Faults


def test_a_delivery_that_fails_gives_its_room_back(store: MaildirStore, place: Path) -> None:
    run(deliver(store, "ann", TEN))
    with (
        watched(place.parent, fail_at(0, errno.ENOSPC, {"rename"})),
        pytest.raises(TemporaryFailure),
    ):
        run(deliver(store, "ann", TEN))
    assert total(place) == (10, 1)


@pytest.mark.parametrize("broken", ["directory", "unreadable", "link"])
def test_unusable_maildirsize_refuses_no_mail(
    store: MaildirStore, place: Path, broken: str
) -> None:
    run(deliver(store, "ann", TEN))
    (place / "maildirsize").unlink()
    if broken == "directory":
        (place / "maildirsize").mkdir()
    elif broken == "link":
        (place / "maildirsize").symlink_to("/etc/passwd")

    def hook(call: Call) -> None:
        if broken == "unreadable" and "maildirsize" in call[1] and call[0] in ("open", "stat"):
            raise OSError(errno.EIO, "broken")

    with watched(place.parent, hook):
        run(deliver(store, "ann", TEN))
        with pytest.raises(QuotaExceeded):
            run(deliver(store, "ann", b"x" * 85))
    assert len(run(listing(store, "ann"))) == 2


@pytest.mark.slow
def test_count_is_never_too_small_after_a_crash(
    tmp_path: Path, store: MaildirStore, place: Path
) -> None:
    """After a crash in a delivery, an UPDATE or a restore, no room is gained by mistake."""
    put(place, "new/1.a", TEN)
    put(place, "new/2.a", TEN)
    saved = tmp_path / "saved"
    shutil.copytree(place, saved)

    async def story(store: MaildirStore) -> None:
        await deliver(store, "ann", b"xyz")
        async with store.open("ann") as maildrop:
            await maildrop.remove(maildrop.listing[:2])
        await store.restore("ann", await store.held("ann"))
        await deliver(store, "ann", b"xyz")

    number, crashed = 0, True
    while crashed:
        shutil.rmtree(place)
        shutil.copytree(saved, place)
        crashed = False
        with watched(tmp_path, die_at(number)):
            try:
                run(story(MaildirStore(f"{tmp_path}/%u", limit=lambda _: LIMIT)))
            except Crash:
                crashed = True
        if (place / "maildirsize").exists() and len(reported(place)) > 1:
            octets, messages = really(place)
            assert total(place) >= (octets, messages), f"call {number}"
        number += 1
    assert number > 30
    assert run(store.usage("ann")) == Usage(*really(place), LIMIT)


# -- Concurrency


def test_deliveries_at_once_fill_the_quota_and_no_more(tmp_path: Path) -> None:
    stores = [MaildirStore(f"{tmp_path}/%u", limit=lambda _: LIMIT) for _ in range(25)]

    async def story() -> list[object]:
        return await asyncio.gather(
            *(deliver(store, "ann", TEN) for store in stores), return_exceptions=True
        )

    done = run(story())
    refused = [each for each in done if isinstance(each, QuotaExceeded)]
    assert (len(done), len(refused)) == (25, 15)
    assert really(tmp_path / "ann") == (100, 10)


def beside_a_count(store: MaildirStore, place: Path, work: Callable[[int], None]) -> None:
    """Run a function in another thread when a count has read all names but written nothing."""
    maildrop = os.open(place, os.O_RDONLY)
    other = threading.Thread(target=work, args=(maildrop,))

    def hook(call: Call) -> None:
        if call == ("open", "ann/maildirsize.tmp") and other.ident is None:
            other.start()
            other.join(0.2)  # it must wait for this thread

    with watched(place.parent, hook):
        run(store.usage("ann"))
    other.join()
    os.close(maildrop)


def test_forget_waits_for_a_running_count(store: MaildirStore, place: Path) -> None:
    write(place, "not a count\n")
    beside_a_count(store, place, quota.forget)
    assert not (place / "maildirsize").exists()


def test_delivery_waits_for_a_running_count(store: MaildirStore, place: Path) -> None:
    write(place, "not a count\n")
    status = (place / "new").stat()

    def arrive(maildrop: int) -> None:
        with quota.room(maildrop, [len(TEN)], LIMIT):
            put(place, "new/1.a", TEN)
            os.utime(place / "new", ns=(status.st_mtime_ns, status.st_mtime_ns))  # a coarse clock

    beside_a_count(store, place, arrive)
    assert total(place) == really(place) == (10, 1)


def test_maildirsize_is_recounted_before_it_grows_long(store: MaildirStore, place: Path) -> None:
    store.limit = lambda _: 10**9
    write(place, "1000000000S\n" + "0 0\n" * 1270)
    for _ in range(8):
        run(deliver(store, "ann", TEN))
    assert (place / "maildirsize").stat().st_size < quota._MAX_SIZE
    assert total(place) == (80, 8)
