"""The hourly round: expired mail, jumps of the clock, and changed rules."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restante.app import upkeep
from restante.app.upkeep import Upkeep
from restante.auth.chain import Chain
from restante.auth.passwd_file import PasswdFile
from restante.auth.users import Users
from restante.clock import RELEASED, SETTLING_TIME, SLACK
from restante.maildrop import ServableStore
from restante.passdb import Terms, UserAccount
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore

from ..cli.conftest import Restante
from ..machine import DAY, Machine
from ..support import once, until

HOLD = 14 * DAY


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story, 60))


@dataclass
class House:
    """A store, its users and a machine; each round runs like in a new process."""

    place: Path
    machine: Machine
    hold: float = HOLD
    expire: int | None = None
    holds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.users = Users(self.place / "users.sqlite3")
        (self.place / "mail").mkdir()
        self.machine.clock().advance()

    def store(self) -> MaildirStore:
        hold = lambda user: self.holds.get(user, self.hold)  # noqa: E731
        clock = self.machine.clock()
        return MaildirStore(f"{self.place}/mail/%u", hold=hold, clock=clock)

    def round(self) -> None:
        def terms(account: UserAccount) -> Terms:
            days = account.expire
            return Terms(0, self.expire if days is None else days)

        run(
            Upkeep(
                self.store(),
                self.users,
                Chain({"users": self.users}),
                self.machine.clock(),
                terms=terms,
                site_expires=lambda: self.expire is not None,
            ).run()
        )

    def user(self, name: str) -> None:
        self.users.add(name, "tan staaf")
        for each in ("new", "cur", "tmp", "held"):
            (self.place / "mail" / name / each).mkdir(parents=True)
        run(self.store().note_rules(name, self.expire, RELEASED))

    def remove(self, name: str, count: int, *, ago: float = 0.0) -> None:
        """Make held messages that a client deleted ``ago`` seconds before now."""
        moment = int(self.machine.now - ago)
        for n in range(count):
            (self.place / "mail" / name / "held" / f"{moment}.{count}x{n}.{ago:g}").write_text("x")
        run(self.store().note_rules(name, self.expire, RELEASED))

    def held(self, name: str = "ann") -> int:
        return len(list((self.place / "mail" / name / "held").iterdir()))

    def mail(self, name: str = "ann") -> int:
        return len(list((self.place / "mail" / name / "new").iterdir()))

    def deliver(self, name: str, count: int) -> None:
        for n in range(count):
            run(self.store().deliver(name, once(b"Subject: %d\r\n\r\n" % n)))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    now = time.time()
    made = House(tmp_path, Machine(tmp_path / "clock", now, now))
    for name in ("ann", "bob"):
        made.user(name)
    yield made
    made.users.close()


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Mapping[str, Any]]]:
    found = [(each.message, vars(each)["fields"]) for each in caplog.records]
    caplog.clear()
    return found


# -- Due mail


def test_all_mail_held_long_enough_is_destroyed(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    house.remove("ann", 500)
    house.remove("bob", 3, ago=DAY)
    house.machine.run(HOLD - 60)
    house.round()
    assert (house.held("ann"), house.held("bob")) == (500, 0)
    house.machine.run(120)
    house.round()
    assert (house.held("ann"), house.held("bob")) == (0, 0)
    assert events(caplog) == [("purged", {"messages": 3}), ("purged", {"messages": 500})]


@pytest.mark.parametrize("hold", [0.0, 3600.0, HOLD, 9000 * DAY, float("inf")])
def test_a_round_finds_nothing_to_do(
    house: House, hold: float, caplog: pytest.LogCaptureFixture
) -> None:
    house.hold, house.expire = hold, 1
    house.round()
    assert events(caplog) == []


# -- Jumps of the clock


@pytest.mark.parametrize("jump", [HOLD + 60, 300 * DAY, 50 * 365 * DAY])
@pytest.mark.parametrize(
    ("ann", "bob", "goes"),
    [(0, 0, True), (1, 0, True), (100, 0, True), (101, 0, False), (50, 50, True), (51, 50, False)],
)
def test_clock_jump_destroys_only_a_few_messages(
    house: House,
    ann: int,
    bob: int,
    goes: bool,
    jump: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """More than 100 messages in all maildrops together wait for a day."""
    house.remove("ann", ann)
    house.remove("bob", bob)
    house.machine.set(house.machine.now + jump)
    house.round()
    assert (house.held("ann"), house.held("bob")) == ((0, 0) if goes else (ann, bob))
    reported = dict(events(caplog))
    assert "clock jumped" in reported
    assert ("purge withheld" in reported) is not goes
    if goes:
        return
    assert reported["purge withheld"] == {"messages": ann + bob, "seconds": round(jump)}
    house.machine.run(SETTLING_TIME - 60)
    house.round()
    assert (house.held("ann"), house.held("bob")) == (ann, bob)
    house.machine.run(120)
    house.round()
    assert (house.held("ann"), house.held("bob")) == (0, 0)


@pytest.mark.parametrize(("due", "doubtful", "goes"), [(11, 99, True), (11, 100, False)])
def test_ten_times_the_expected_removals_are_too_many(
    house: House, due: int, doubtful: int, goes: bool
) -> None:
    """Mail that is certainly due is destroyed in any case."""
    house.remove("ann", due, ago=HOLD)
    house.remove("ann", doubtful)
    house.machine.set(house.machine.now + 30 * DAY)
    house.round()
    assert house.held() == (0 if goes else doubtful)


def test_a_clock_that_is_put_right_in_time_costs_nothing(house: House) -> None:
    house.remove("ann", 200)
    house.machine.set(house.machine.now + 300 * DAY)
    for _ in range(20):
        house.round()
        house.machine.run(3600)
    house.machine.set(house.machine.true)
    house.round()
    assert house.held() == 200
    house.machine.run(HOLD)
    house.round()
    assert house.held() == 0


def test_restart_does_not_make_the_clock_trusted(house: House) -> None:
    house.remove("ann", 200)
    house.machine.set(house.machine.now + 300 * DAY)
    for _ in range(5):
        house.machine.reboot()
        house.round()
    assert house.held() == 200


def test_lost_state_file_does_not_make_the_clock_trusted(house: House) -> None:
    house.remove("ann", 200)
    house.machine.now += 300 * DAY
    (house.place / "clock").unlink()
    house.round()
    assert house.held() == 200


def test_restored_backup_is_not_purged_immediately(house: House) -> None:
    """Mail and state are three weeks old: there is a day to restore held mail."""
    house.remove("ann", 200)
    house.machine.now += 21 * DAY
    house.machine.true += 21 * DAY
    house.machine.reboot()
    house.round()
    assert house.held() == 200
    house.machine.run(SETTLING_TIME)
    house.round()
    assert house.held() == 0


def test_machine_without_a_clock_battery(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """It boots in 1970; mail deleted before the clock is right is held for the usual time."""
    house.remove("ann", 2)
    house.machine.now = 0.0
    house.machine.reboot()
    house.round()
    assert house.held() == 2
    assert [name for name, _ in events(caplog)] == ["clock jumped"]
    house.deliver("ann", 1)
    store = house.store()

    async def delete() -> None:
        async with store.open("ann") as maildrop:
            assert list(await maildrop.remove(list(maildrop.listing))) == []

    run(delete())
    house.machine.set(house.machine.true)
    house.round()
    assert house.held() == 3
    house.machine.run(HOLD - 3600)
    house.round()
    assert house.held() == 3
    house.machine.run(2 * 3600)
    house.round()
    assert house.held() == 0


@pytest.mark.parametrize("behind", [2 * SLACK, DAY, 200 * DAY])
def test_nothing_is_due_while_the_clock_is_behind(house: House, behind: float) -> None:
    """Nor does mail get a date of that clock, by which it would be due afterwards."""
    house.hold = DAY
    house.remove("ann", 3)
    house.machine.run(DAY - 60)
    house.machine.set(house.machine.now - behind)
    house.round()
    house.machine.set(house.machine.true)
    house.round()
    assert house.held() == 3
    house.machine.run(120)
    house.round()
    assert house.held() == 0


def test_mail_stored_while_the_clock_was_ahead(house: House) -> None:
    """Its hold begins when the clock is right again, and does not last until that year."""
    house.machine.set(house.machine.now + 300 * DAY)
    house.remove("ann", 200)
    house.machine.set(house.machine.true)
    house.round()
    assert house.held() == 200
    house.machine.run(HOLD - 60)
    house.round()
    assert house.held() == 200
    house.machine.run(120)
    house.round()
    assert house.held() == 0


@pytest.mark.parametrize("hold", [0.0, HOLD])
@pytest.mark.parametrize(("count", "goes"), [(0, True), (1, True), (100, True), (101, False)])
def test_clock_jump_makes_only_a_few_messages_expire(
    house: House, count: int, goes: bool, hold: float, caplog: pytest.LogCaptureFixture
) -> None:
    house.hold, house.expire = hold, 30
    house.round()
    house.deliver("ann", count)
    run(house.store().note_rules("ann", 30, RELEASED))
    house.machine.set(house.machine.now + 300 * DAY)
    caplog.clear()
    house.round()
    assert house.mail() == (0 if goes else count)
    assert ("expiry withheld" in dict(events(caplog))) is not goes
    house.machine.run(SETTLING_TIME + 60)
    house.round()
    assert house.mail() == 0


_steps = st.one_of(
    st.tuples(st.just("run"), st.sampled_from([600.0, 8 * 3600.0, 3 * DAY, 15 * DAY])),
    st.tuples(st.just("jump"), st.sampled_from([-400 * DAY, -DAY, 2 * DAY, 13 * DAY, 400 * DAY])),
    st.tuples(st.just("right"), st.just(0.0)),
    st.tuples(st.just("reboot"), st.sampled_from([0.0, 60.0, DAY])),
    st.tuples(st.just("remove"), st.just(0.0)),
)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_steps, max_size=10))
def test_no_sequence_of_restarts_and_clock_jumps_shortens_a_hold(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[str, float]],
) -> None:
    """Except by an hour of tolerance, or if a clock was wrong for a day of running."""
    monkeypatch.setattr(upkeep, "_MAX_MESSAGES", 0)
    now = time.time()
    place = tmp_path_factory.mktemp("house")
    house = House(place, Machine(place / "clock", now, now))
    house.user("ann")
    machine, removed, wrong_for = house.machine, dict[str, float](), 0.0
    for what, amount in steps:
        if what == "run":
            machine.run(amount)
            wrong_for += amount
        elif what == "jump":
            machine.set(max(RELEASED + DAY, machine.now + amount))
        elif what == "right":
            machine.set(machine.true)
        elif what == "reboot":
            machine.reboot(amount)
        else:
            name = f"{machine.clock().stamp()}.{len(removed)}"
            (place / "mail/ann/held" / name).write_text("x")
            removed[str(len(removed))] = machine.true
        if abs(machine.now - machine.true) <= SLACK:
            wrong_for = 0.0
        if wrong_for >= SETTLING_TIME:
            break
        house.round()
        there = {each.name.partition(".")[2] for each in (place / "mail/ann/held").iterdir()}
        gone = removed.keys() - there
        assert not [n for n in gone if machine.true < removed[n] + HOLD - 2 * SLACK]
    house.users.close()


# -- Faults


def test_a_disk_that_is_not_there_ends_no_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mail held long enough is destroyed when the disk is back."""
    disk = tmp_path / "disk"
    monkeypatch.setattr(upkeep, "_EVERY", 0.01)
    monkeypatch.setattr(upkeep, "_READ_CLOCK_EVERY", 0.01)
    machine = Machine(tmp_path / "clock", time.time(), time.time())
    users = Users(tmp_path / "users.sqlite3")
    store = MaildirStore(f"{disk}/%u", hold=DAY, clock=machine.clock())
    rounds = _upkeep(store, users, machine)

    async def main() -> None:
        task = asyncio.create_task(rounds.run_for_ever())
        try:
            await until(lambda: "purge failed" in caplog.text)
            for name in "new", "cur", "tmp", "held":
                (disk / "ann" / name).mkdir(parents=True)
            (disk / f"ann/held/{int(machine.now - 2 * DAY)}.1.a").write_text("x")
            await until((disk / "ann/restante.rules").exists)
            machine.now += 2 * DAY
            machine.running += 2 * DAY
            await until(lambda: not list((disk / "ann/held").iterdir()))
        finally:
            task.cancel()

    with closing(users):
        run(main())


def _upkeep(store: ServableStore, users: Users, machine: Machine) -> Upkeep:
    return Upkeep(
        store,
        users,
        Chain({"users": users}),
        machine.clock(),
        terms=lambda _: Terms(0, None),
        site_expires=lambda: False,
    )


def test_a_bug_ends_no_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "_EVERY", 0.01)
    monkeypatch.setattr(upkeep, "_READ_CLOCK_EVERY", 0.01)
    users, store = Users(tmp_path / "users.sqlite3"), MemoryStore()
    rounds, count = _upkeep(store, users, Machine(tmp_path / "clock")), 0

    async def broken() -> None:
        nonlocal count
        count += 1
        raise ZeroDivisionError

    monkeypatch.setattr(rounds, "run", broken)

    async def main() -> None:
        task = asyncio.create_task(rounds.run_for_ever())
        await until(lambda: count > 2)
        task.cancel()

    with closing(users):
        run(main())
    assert "bug" in dict(events(caplog))


def test_mail_expires_for_users_of_every_back_end(home: Path, ann: str) -> None:
    """EXPIRE is announced to all of them; mail of unknown users stays."""
    (home / "passwd").write_text("bob:{PLAIN}p\n")
    users = Users(home / "state" / "restante" / "users.sqlite3")
    chain = Chain({"users": users, "passwd-file": PasswdFile(home / "passwd")})
    machine = Machine(None, time.time(), time.time())
    store = MemoryStore()
    rounds = Upkeep(
        store,
        users,
        chain,
        machine.clock(),
        terms=lambda _: Terms(0, 30),
        site_expires=lambda: True,
    )

    async def main() -> list[str]:
        for user in "ann", "bob", "eve":
            await store.deliver(user, once(b"Subject: x\r\n\r\n"))
        await rounds.run()
        machine.now += 31 * DAY
        machine.running += 31 * DAY
        await rounds.run()
        found = []
        for user in "ann", "bob", "eve":
            async with store.open(user) as maildrop:
                if not maildrop.listing:
                    found.append(user)
        return found

    with closing(chain):
        assert run(main()) == ["ann", "bob"]


def test_a_mark_that_cannot_be_written_ends_no_round(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.remove("ann", 200)
    house.machine.run(HOLD + 60)
    (house.place / "clock").unlink()
    (house.place / "clock").mkdir()
    house.round()
    assert "clock not saved" in dict(events(caplog))


# -- A changed rule


def test_shorter_hold_is_announced_and_takes_effect_after_a_day(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.remove("ann", 200, ago=3 * DAY)
    house.remove("bob", 300, ago=3600)
    house.round()
    house.hold = DAY
    house.round()
    reported = dict(events(caplog))
    at = upkeep.format_time(int(house.machine.now) + 86_400)
    assert reported["rule changed"] == {"held": 500, "expiring": 0, "at": at}
    house.round()
    assert events(caplog) == [], "only once"
    house.machine.run(DAY - 60)
    house.round()
    assert (house.held("ann"), house.held("bob")) == (200, 300)
    house.machine.run(120)
    house.round()
    assert (house.held("ann"), house.held("bob")) == (0, 0)


@pytest.mark.parametrize("is_down", [True, False])
def test_a_back_end_that_is_down_changes_no_rule(house: House, is_down: bool) -> None:
    """Otherwise all mail would be held another day whenever it comes back."""

    class Down:
        async def account(self, identity: str) -> UserAccount | None:
            from restante.errors import BackendUnavailable

            if is_down:
                raise BackendUnavailable("down")
            return UserAccount(identity, identity)

    (house.place / "mail/eve/new").mkdir(parents=True)
    for name in ("cur", "tmp"):
        (house.place / "mail/eve" / name).mkdir()
    run(house.store().note_rules("eve", 30, RELEASED))
    before = (house.place / "mail/eve/restante.rules").read_bytes()
    rounds = Upkeep(
        house.store(),
        house.users,
        Down(),
        house.machine.clock(),
        terms=lambda _: Terms(0, 7),
        site_expires=lambda: True,
    )
    run(rounds.run())
    assert ((house.place / "mail/eve/restante.rules").read_bytes() == before) is is_down


# -- Commands


@pytest.fixture
def waiting(
    restante: Restante, ann: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], None]:
    """Hold 150 messages deleted by ann; returns a function that sets the clock ahead."""
    assert restante("deliver", "ann", stdin=b"Subject: x\r\n\r\n").code == 0
    held = state / "mail/ann/held"
    for n in range(150):
        (held / f"{int(time.time())}.{n}.a").write_text("x")
    restante("user", "hold", "ann", "14d")
    real = time.time

    def shift(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return shift


def test_purge_destroys_mail_that_waits_for_the_clock(
    restante: Restante, waiting: Callable[[float], None], state: Path
) -> None:
    assert restante("maildrop", "purge", "--yes").out == "Destroyed 0 messages.\n"
    waiting(20 * DAY)
    asked = restante("maildrop", "purge")
    assert (asked.code, asked.out) == (64, "")
    assert "Destroy 150 held messages whose hold time is over? Confirm with --yes." in asked.err
    done = restante("maildrop", "purge", "--yes", "--json").json
    assert done == {"schema": "restante/maildrop-purge/1", "purged": {"ann": 150}}
    assert list((state / "mail/ann/held").iterdir()) == []
    assert json.loads((state / "clock").read_text())["claim"] is None, "the server believes it too"


def test_purge_destroys_nothing_by_a_clock_that_is_behind(
    restante: Restante, waiting: Callable[[float], None], state: Path
) -> None:
    assert restante("maildrop", "purge", "--yes").code == 0
    waiting(-90 * DAY)
    refused = restante("maildrop", "purge", "--yes")
    assert refused.code == 75
    assert "which is in the past; set the clock first" in refused.err
    assert len(list((state / "mail/ann/held").iterdir())) == 150


def test_shortened_hold_announces_deletions(
    restante: Restante, waiting: Callable[[float], None]
) -> None:
    reported = restante("user", "hold", "ann", "0").err
    assert "ann: 150 held messages will be destroyed, the first on 20" in reported
    assert "ann: " not in restante("user", "hold", "ann", "0").err, "it has been said"
    found = restante("check", "--json").json["goes"]
    assert (found["held"], found["expiring"]) == (150, 0)
    assert "150 held messages will be destroyed" in restante("check").out
    waiting(2 * DAY)
    assert restante("check", "--json").json["goes"] == {"held": 0, "expiring": 0, "at": None}


@pytest.mark.parametrize("many", [1, 3])
def test_new_expiry_announces_deletions(
    restante: Restante, ann: str, state: Path, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(many):
        restante("deliver", "ann", stdin=b"Subject: x\r\n\r\n")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 40 * DAY)
    reported = restante("user", "permit", "ann", "--expire", "30d").err
    assert f"ann: {many} message{'s' * (many > 1)} will expire, the first on 20" in reported


def test_check_announces_deletions(
    restante: Restante, waiting: Callable[[float], None], home: Path, state: Path
) -> None:
    restante("user", "hold", "ann", "default")
    (home / "restante.toml").write_text('[store]\nhold = "0"\n')
    before = sorted((state / "mail/ann").rglob("*"))
    checked = restante("-c", home / "restante.toml", "check")
    assert checked.code == 0
    assert "  removal  150 held messages will be destroyed, the first on 20" in checked.out
    assert sorted((state / "mail/ann").rglob("*")) == before
    (home / "restante.toml").write_text('[store]\nhold = "14d"\n')
    assert "removal" not in restante("-c", home / "restante.toml", "check").out


def test_check_makes_nothing(restante: Restante, home: Path, state: Path) -> None:
    assert restante("check").code == 0
    assert not state.exists()
