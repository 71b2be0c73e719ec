"""A changed rule also applies to mail from before the change: each rule, change and kind of
message."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.clock import RELEASED, UNKNOWN
from restante.maildrop import Forecast, Sweep
from restante.store import files, rules
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore
from restante.store.rules import DEFAULT_HOLD, GRACE, RuleChange, Rules

from .conftest import HoldingStore
from .helpers import deliver, listing, put, remove, run

DAY = 86_400.0
KEEP = NEVER = math.inf
CHANGED = int(RELEASED + 1000 * DAY)
"""The time of the change."""

# None: no rule was recorded, as in maildrops of an earlier version.
HOLDS: list[float | None] = [None, 0.0, DAY, 14 * DAY, 365 * DAY, KEEP]
EXPIRIES: list[float | None] = [None, DAY, 30 * DAY, 365 * DAY, NEVER]
AGES = [-400 * DAY, -30 * DAY, -20 * DAY, -2 * DAY, -3600.0, -1.0, 0.0, 1.0, 5 * DAY]
"""Ages of messages, in seconds relative to the change."""


def changed(old: float | None, new: float, rule: str) -> Rules:
    """Return rules whose old value was in force for three years."""
    known = Rules() if old is None else Rules().changed(int(RELEASED), **{rule: old})
    return known.changed(CHANGED, **{rule: new})


def promised(old: float | None, new: float, begun: float) -> float:
    """Return the time that the manual promises, for finite times."""
    if begun > CHANGED or (old is None and begun == CHANGED):
        return begun + new
    if old is None:  # an unknown rule may have been anything
        return max(begun + new, CHANGED + GRACE)
    if new >= old:  # longer: takes effect at once
        return begun + new
    # Shorter: not before a day has passed, unless its time was over earlier by the old rule.
    return max(begun + new, min(begun + old, CHANGED + GRACE))


def hold_cases() -> Iterator[tuple[float | None, float, float, float]]:
    for old, new, age in product(HOLDS, HOLDS[1:], AGES):
        begun = CHANGED + age
        assert new is not None
        before = DEFAULT_HOLD if old == KEEP else old
        if new == KEEP:  # as under the previous rule
            after = before or DEFAULT_HOLD
            if before == 0 and age <= 0:
                continue  # destroyed at QUIT: no earlier mail can be held
        else:
            after = new
        yield old, new, age, promised(before, after, begun)


def test_how_long_a_message_is_held() -> None:
    for old, new, age, end in hold_cases():
        assert changed(old, new, "hold").held_until(CHANGED + age) == end, (old, new, age)


def test_when_a_message_expires() -> None:
    for old, new, age in product(EXPIRIES, EXPIRIES[1:], AGES):
        begun = CHANGED + age
        before = NEVER if old is None else old
        assert new is not None
        end = NEVER if new == NEVER else promised(before, new, begun)
        assert changed(old, new, "expire").kept_until(begun) == end, (old, new, age)


_changes = st.lists(st.tuples(st.integers(0, 400), st.sampled_from([0, 1, 7, 14, 90])), max_size=8)


@given(_changes, st.integers(0, 400))
def test_any_sequence_of_rule_changes(changes: list[tuple[int, int]], day: int) -> None:
    """A message is removed no earlier than the current rule allows, within a day of a change only
    if the old rule would have removed it too, and at most a day late."""
    known, at = Rules(), int(RELEASED)
    begun = RELEASED + day * DAY + 1
    for pause, days in changes:
        at += int(pause * DAY)
        before, known = known, known.changed(at, hold=days * DAY)
        end = known.held_until(begun)
        natural = begun + days * DAY
        assert end >= natural
        if begun < at:
            assert end >= min(before.held_until(begun), at + GRACE)
        assert end <= max(natural, at + GRACE)


def test_repeated_note_of_a_rule_is_not_a_change() -> None:
    known = Rules().changed(CHANGED, hold=14 * DAY, expire=30 * DAY)
    assert known.changed(CHANGED + 100, hold=14 * DAY, expire=30 * DAY) == known
    assert known.changed(CHANGED + 100) == known


def test_change_in_the_future_counts_as_made_now() -> None:
    """It was noted while the clock was wrong; no mail is removed before a day has passed."""
    known = Rules().changed(int(RELEASED), hold=14 * DAY)
    for since in (UNKNOWN, int(CHANGED + 9000 * DAY)):
        wrong = known.changed(since, hold=0)
        right = wrong.changed(CHANGED, hold=0)
        assert right.hold == (RuleChange(int(RELEASED), 14 * DAY), RuleChange(CHANGED, 0))
        assert right.held_until(CHANGED - DAY) == CHANGED + GRACE


def test_a_message_of_the_second_of_a_change_is_of_the_old_rule() -> None:
    known = Rules().changed(CHANGED, hold=14 * DAY)
    assert known.held_until(CHANGED) == CHANGED + 14 * DAY
    known = known.changed(CHANGED + 5, hold=0)
    assert known.held_until(CHANGED + 5) >= CHANGED + 5 + GRACE


def test_no_number_of_changes_fills_the_disk() -> None:
    known = Rules()
    for n in range(1000):
        known = known.changed(CHANGED + n, hold=float(n))
    assert len(known.hold) <= 100
    end = known.held_until(CHANGED - 400 * DAY)
    assert CHANGED + GRACE <= end <= CHANGED + 999 + GRACE


# -- The file


@pytest.fixture
def opened(place: Path) -> Iterator[int]:
    put(place, "new/1.a", b"x")
    with files.maildrop(str(place.parent), ["ann"]) as maildrop:
        yield maildrop


def test_noted_rules_are_remembered(opened: int) -> None:
    rules.record_change(opened, CHANGED - 100, hold=14 * DAY, expire=30 * DAY)
    before, after = rules.record_change(opened, CHANGED, hold=KEEP, expire=NEVER)
    assert rules.read(opened) == after != before
    assert after.hold == (RuleChange(CHANGED - 100, 14 * DAY), RuleChange(CHANGED, KEEP))
    assert after.expire == (RuleChange(CHANGED - 100, 30 * DAY), RuleChange(CHANGED, NEVER))


@pytest.mark.parametrize(
    "damage", [b"", b"x", b"\0" * 200, b'0011223344556677\n{"hold": [], "expire": []}']
)
def test_a_damaged_file_makes_mail_stay_longer(opened: int, place: Path, damage: bytes) -> None:
    rules.record_change(opened, CHANGED, hold=DAY)
    (place / rules.RULES).write_bytes(damage)
    assert rules.read(opened) == Rules()
    _, after = rules.record_change(opened, CHANGED + 100, hold=DAY)
    assert after.held_until(CHANGED - 400 * DAY) == CHANGED + 100 + GRACE


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"hold": 1, "expire": 1}', b'{"hold": [[1]], "expire": []}', b"x"]
)
def test_a_file_of_another_version_is_an_unknown_rule(
    opened: int, place: Path, content: bytes
) -> None:
    (place / rules.RULES).write_bytes(rules._checksum(content) + b"\n" + content)
    assert rules.read(opened) == Rules()


# -- Both stores: each rule, each change, each kind of mail


class Rule:
    """The hold or the expiry of user ann, which a test changes."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.hold = 14 * DAY
        self.store: HoldingStore
        if kind == "memory":
            self.store = MemoryStore(hold=lambda _: self.hold)
        else:
            self.store = MaildirStore(f"{tmp_path}/%u", hold=lambda _: self.hold)

    async def fill(self, count: int) -> None:
        """Deliver messages, and delete them as a client does."""
        for n in range(count):
            await deliver(self.store, "ann", b"%d\r\n" % n)
        async with self.store.open("ann") as maildrop:
            assert list(await maildrop.remove(list(maildrop.listing))) == []

    async def purge(self, now: float) -> int:
        return (await self.store.purge_due("ann", until=now, now=now)).messages


@pytest.fixture(params=["memory", "maildir"])
def rule(request: pytest.FixtureRequest, tmp_path: Path) -> Rule:
    return Rule(request.param, tmp_path)


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("is_noted", [True, False])
@pytest.mark.parametrize("new", [0.0, DAY, 14 * DAY, 90 * DAY, KEEP])
def test_held_mail_after_a_change(rule: Rule, new: float, is_noted: bool, count: int) -> None:
    """``is_noted``: the change is noted at once, as by a command, or only at the purge."""

    async def story() -> None:
        await rule.fill(count)
        removed = time.time()
        rule.hold = new
        at = removed + 2 * DAY  # the time of the change
        if is_noted:
            forecast = await rule.store.note_rules("ann", None, at)
            goes = count if new <= 2 * DAY else 0
            assert forecast.held == goes
            assert forecast.at == (int(at) + GRACE if goes else math.inf)
        end = removed + (14 * DAY if new == KEEP else new)
        if new < 14 * DAY:
            end = max(end, at + GRACE)
        assert await rule.purge(at) == 0
        if is_noted:
            assert await rule.purge(end - 2) == 0
            assert await rule.purge(end + 2) == count
        elif new < 14 * DAY:
            # The purge takes the change as made now, so the old time applies.
            assert await rule.purge(removed + 14 * DAY - 5) == 0
            assert await rule.purge(removed + 14 * DAY + 5) == count
        else:
            assert await rule.purge(end - 2) == 0
            assert await rule.purge(end + 2) == count

    run(story())


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("new", [0.0, DAY, 90 * DAY, KEEP])
def test_mail_that_is_deleted_after_a_change(rule: Rule, new: float, count: int) -> None:
    async def story() -> None:
        await rule.fill(1)
        await rule.purge(time.time() + 15 * DAY)
        rule.hold = new
        await rule.fill(count)
        removed = time.time()
        if new in (0, KEEP):
            assert len(await rule.store.held("ann")) == 0
            assert len(await listing(rule.store, "ann")) == (count if new else 0)
            return
        assert await rule.purge(removed + new - 5) == 0
        assert await rule.purge(removed + new + 5) == count

    run(story())


def test_a_hold_that_is_made_longer_in_the_day_of_grace_keeps_all(rule: Rule) -> None:
    async def story() -> None:
        await rule.fill(3)
        removed = time.time()
        rule.hold = 0.0
        await rule.store.note_rules("ann", None, removed + 1)
        rule.hold = 14 * DAY
        await rule.store.note_rules("ann", None, removed + GRACE - 10)
        assert await rule.purge(removed + 14 * DAY - 5) == 0
        assert await rule.purge(removed + 14 * DAY + 5) == 3

    run(story())


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("before", [None, 30, 3])
@pytest.mark.parametrize("after", [None, 1, 10, 90])
def test_old_mail_after_a_change_of_the_expiry(
    rule: Rule, before: int | None, after: int | None, count: int
) -> None:
    """An expiry is added, removed, shortened or lengthened; None is never."""

    async def story() -> None:
        for n in range(count):
            await deliver(rule.store, "ann", b"%d\r\n" % n)
        arrived = time.time()
        if count:
            await rule.store.note_rules("ann", before, RELEASED)
        at = arrived + 2 * DAY
        forecast = await rule.store.note_rules("ann", after, at)

        async def expire(now: float) -> int:
            return (await rule.store.expire("ann", after, until=now, now=now)).messages

        if after is None:
            assert forecast == Forecast()
            assert await expire(arrived + 9000 * DAY) == 0
            return
        end = arrived + after * DAY
        if before is None or after < before:
            end = max(end, min(at + GRACE, arrived + before * DAY if before else math.inf))
        assert await expire(end - 5) == 0
        assert await expire(end + 5) == count
        assert len(await listing(rule.store, "ann")) == 0

    run(story())


def test_expired_mail_is_held_although_deleted_mail_is_kept(rule: Rule) -> None:
    """But not for ever, because it would never be destroyed."""

    async def story() -> None:
        rule.hold = KEEP
        await deliver(rule.store, "ann", b"old\r\n")
        await rule.store.note_rules("ann", 1, RELEASED)
        now = time.time()
        swept = await rule.store.expire("ann", 1, until=now + 2 * DAY, now=now + 2 * DAY)
        assert swept == Sweep(1)
        assert len(await rule.store.held("ann")) == 1
        await rule.store.note_rules("ann", 1, now + 2 * DAY)
        assert await rule.purge(now + DEFAULT_HOLD - 5) == 0
        assert await rule.purge(now + DEFAULT_HOLD + 5) == 1

    run(story())


def test_mail_due_only_by_the_clock_is_counted_and_stays(rule: Rule) -> None:
    async def story() -> None:
        await rule.fill(5)
        await deliver(rule.store, "ann", b"old\r\n")
        await rule.store.note_rules("ann", 3, RELEASED)
        now = time.time()
        ahead = now + 300 * DAY
        assert await rule.store.purge_due("ann", until=now, now=ahead) == Sweep(0, 5)
        assert await rule.store.expire("ann", 3, until=now, now=ahead) == Sweep(0, 1)
        assert len(await rule.store.held("ann")) == 5
        assert len(await listing(rule.store, "ann")) == 1

    run(story())


def test_a_forecast_changes_nothing(rule: Rule) -> None:
    async def story() -> None:
        await rule.fill(5)
        now = time.time()
        rule.hold = 0.0
        for _ in range(2):
            found = await rule.store.forecast("ann", None, now + 100)
            assert found == Forecast(5, 0, int(now + 100) + GRACE)
        await rule.store.note_rules("ann", None, now + 200)
        assert await rule.store.note_rules("ann", None, now + 300) == Forecast()
        # During the day of grace `restante check` still reports it.
        assert (await rule.store.forecast("ann", None, now + 300)).at == int(now + 200) + GRACE
        assert await rule.store.forecast("ann", None, now + 201 + GRACE) == Forecast()

    run(story())


@pytest.mark.parametrize(("age", "is_told"), [(15 * DAY, 12), (13.5 * DAY, 0)])
def test_first_round_of_this_version_reports_only_unexplained_removals(
    maildir: MaildirStore, place: Path, age: float, is_told: int
) -> None:
    """Mail that the unchanged hold destroys within a day is not reported."""
    (place / "held").mkdir(parents=True)
    put(place, "new/1.a", b"x")
    for n in range(12):
        put(place, f"held/{int(CHANGED - age)}.{n}.b", b"y")
    forecast = run(maildir.note_rules("ann", None, CHANGED))
    assert forecast.held == is_told


# -- Maildirs only


def test_mail_that_an_earlier_version_holds_is_purged(maildir: MaildirStore, place: Path) -> None:
    """That version recorded no rule, so its users get a day of grace."""
    (place / "held").mkdir(parents=True)
    put(place, "new/1.a", b"x")
    put(place, f"held/{CHANGED - 100 * int(DAY)}.2.b", b"y")

    async def story() -> None:
        for now, gone in ((CHANGED, 0), (CHANGED + GRACE - 1, 0), (CHANGED + GRACE, 1)):
            await maildir.note_rules("ann", None, now)
            assert (await maildir.purge_due("ann", until=now, now=now)).messages == gone

    run(story())


def test_where_nothing_was_held_nothing_is_remembered(maildir: MaildirStore, place: Path) -> None:
    run(deliver(maildir, "ann", b"x"))
    run(maildir.note_rules("ann", None, CHANGED))
    assert not (place / rules.RULES).exists()
    run(maildir.note_rules("ann", 30, CHANGED))
    assert (place / rules.RULES).exists()


@pytest.mark.parametrize("stamp", [UNKNOWN, UNKNOWN + 5, CHANGED + int(9000 * DAY), 0, 1000, 10**8])
def test_mail_that_was_removed_while_the_clock_was_wrong(
    maildir: MaildirStore, place: Path, stamp: int
) -> None:
    """In the future or in 1970: its hold begins when the clock is right again."""
    (place / "held").mkdir(parents=True)
    put(place, "new/1.a", b"x")
    put(place, f"held/{stamp}.2.b", b"y")
    put(place, f"held/{stamp}.3.c", b"z")

    async def story() -> None:
        await maildir.note_rules("ann", None, RELEASED)
        assert await maildir.purge_due("ann", until=CHANGED, now=CHANGED) == Sweep()
        end = CHANGED + 14 * DAY
        assert await maildir.purge_due("ann", until=end - 1, now=end - 1) == Sweep()
        assert await maildir.purge_due("ann", until=end + 1, now=end + 1) == Sweep(2)

    run(story())


def test_a_wrong_date_is_corrected_without_losing_a_message(
    maildir: MaildirStore, place: Path
) -> None:
    (place / "held").mkdir(parents=True)
    put(place, "new/1.a", b"x")
    put(place, f"held/{UNKNOWN}.2.b", b"first")
    put(place, f"held/{UNKNOWN + 1}.2.b", b"second")
    put(place, f"held/{CHANGED}.2.b", b"third")
    run(maildir.purge_due("ann", until=CHANGED, now=CHANGED))
    assert sorted(each.read_bytes() for each in (place / "held").iterdir()) == [
        *(b"first", b"second", b"third")
    ]


def test_file_dated_in_the_future_expires_from_now_on(maildir: MaildirStore, place: Path) -> None:
    """A clock that was ahead made its times (here the current clock is behind)."""
    put(place, "new/1.a", b"x")
    before = (place / "new/1.a").stat()

    async def story() -> None:
        past = time.time() - 200 * DAY
        await maildir.note_rules("ann", 30, RELEASED)
        for days in (0, 31, 60):
            now = past + days * DAY
            assert await maildir.expire("ann", 30, until=now, now=now) == Sweep()

    run(story())
    after = (place / "new/1.a").stat()
    assert after.st_ctime_ns > before.st_ctime_ns, "it has a time from which to count"
    assert after.st_mtime_ns == before.st_mtime_ns


def test_interrupted_update_is_completed_with_its_original_rule(
    tmp_path: Path, place: Path
) -> None:
    """A message that was to be held is not destroyed although the hold is now 0."""
    rule = Rule("maildir", tmp_path)
    (entry,) = [run(deliver(rule.store, "ann", b"x"))]
    run(remove(rule.store, "ann", []))
    with files.maildrop(str(tmp_path), ["ann"]) as opened:
        rules.record_change(opened, CHANGED, hold=14 * DAY)
        (file,) = (place / "new").iterdir()
        victims = f"{file.stat().st_ino} {entry.unique_id} {entry.unique_id}\0".encode()
        (place / "restante.removing").write_bytes(victims)
    rule.hold = 0.0
    assert run(listing(rule.store, "ann")) == []
    assert len(run(rule.store.held("ann"))) == 1
