"""The policy against guessing: it delays attackers and no other users."""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from restante.auth.throttle import Priority, Throttle
from restante.passdb import Credentials, FailedProof, Proof, Token, UserAccount
from restante.shared import Weights

DAY = 86_400.0
MROSE = UserAccount("mrose", "mrose")
HERE, NEXT_DOOR, ELSEWHERE = "192.0.2.7", "192.0.2.8", "198.51.100.1"


@dataclass
class Clock:
    now: float = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Callable[..., Throttle]]:
    """A small one, without jitter."""
    with ExitStack() as stack:

        def make(**more: Any) -> Throttle:
            given = {"clock": clock, "jitter": lambda: 0.0, "entries": 1024, **more}
            return stack.enter_context(closing(Throttle(**given)))

        yield make


@pytest.fixture
def throttle(make: Callable[..., Throttle]) -> Throttle:
    return make()


def shown(password: str = "tan staaf", identity: str = "mrose", address: str = HERE) -> Credentials:
    return Credentials("PLAIN", identity, password, address=address)


def guess(throttle: Throttle, number: int, address: str = HERE, identity: str = "mrose") -> float:
    return throttle.record_failure(shown(f"guess {number}", identity, address))


# The answer to a wrong password.


def test_the_first_wrong_password_waits_two_seconds_and_later_ones_longer(
    throttle: Throttle,
) -> None:
    waits = [guess(throttle, number) for number in range(20)]
    assert waits == sorted(waits)
    assert 2.0 <= waits[0] <= 2.5
    assert waits[-1] == 7.0


def test_no_answer_waits_longer_than_eight_seconds(make: Callable[..., Throttle]) -> None:
    late = make(jitter=lambda: 1.0)
    assert max(guess(late, number) for number in range(50)) == 8.0
    assert make(delay=0.0, jitter=lambda: 1.0).record_failure(shown("wrong")) == 0.0


def test_the_same_wrong_password_again_counts_once(throttle: Throttle, clock: Clock) -> None:
    """I 188: a forgotten device tries it every minute for a day, and the delay stays the same."""
    first = throttle.record_failure(shown("old"))
    for _ in range(24 * 60):
        clock.now += 60
        assert throttle.record_failure(shown("old")) <= first
    throttle.record_success(shown(), MROSE)
    assert throttle.priority(shown())[0] is Priority.KNOWN


def test_guesses_are_forgotten(throttle: Throttle, clock: Clock) -> None:
    for number in range(8):
        guess(throttle, number)
    before = throttle.facts("mrose", HERE)
    clock.now += 600
    assert throttle.facts("mrose", HERE).guesses == pytest.approx(before.guesses / 2)
    clock.now += DAY
    assert throttle.facts("mrose", HERE).guesses == 0
    assert guess(throttle, 100) <= 2.5


@pytest.mark.parametrize(("back", "is_known"), [(60, True), (300 * DAY, False)])
def test_entries_made_while_the_clock_was_ahead_are_ignored(
    throttle: Throttle, clock: Clock, back: float, is_known: bool
) -> None:
    """Otherwise their weights would not decay until that time.  A small step is tolerated."""
    for number in range(8):
        guess(throttle, number)
    throttle.record_success(shown(address="198.51.100.9"), MROSE)
    clock.now -= back
    assert (throttle.facts("mrose", HERE).guesses > 7) is is_known
    assert throttle.facts("mrose", "198.51.100.9").is_known is is_known
    guess(throttle, 100)
    throttle.record_success(shown(address="198.51.100.9"), MROSE)
    assert throttle.facts("mrose", HERE).guesses == pytest.approx(9 if is_known else 1)
    assert throttle.facts("mrose", "198.51.100.9").is_known
    clock.now += 30 * DAY
    assert throttle.facts("mrose", HERE).guesses == 0


@pytest.mark.parametrize(
    ("attacker", "neighbour", "alone"),
    [
        ("192.0.2.{}", "192.0.2.250", "192.0.3.1"),
        ("2001:db8:0:{:x}::1", "2001:db8:0:ff00::1", "2001:db8:1::1"),
    ],
)
def test_guesses_in_a_wide_network_count_an_eighth(
    throttle: Throttle, attacker: str, neighbour: str, alone: str
) -> None:
    for number in range(1, 65):
        guess(throttle, number, attacker.format(number))
    assert throttle.facts("ann", attacker.format(1)).guesses == pytest.approx(8)
    assert throttle.facts("ann", neighbour).guesses == pytest.approx(8)
    assert throttle.facts("ann", alone).guesses == 0


def test_addresses_of_one_customer_are_one(throttle: Throttle) -> None:
    """A /64 of IPv6."""
    for number in range(4):
        guess(throttle, number, f"2001:db8::{number:x}:1")
    assert throttle.facts("mrose", "2001:db8::dead:beef").guesses == pytest.approx(4)


@pytest.mark.parametrize(
    "failed",
    [
        FailedProof("SCRAM-SHA-256", "mrose", HERE),
        Token("OAUTHBEARER", "mrose", "forged", HERE),
        Proof("EXTERNAL", "mrose", "certificate", address=HERE),
    ],
)
def test_other_mechanisms_count_too(
    throttle: Throttle, failed: FailedProof | Token | Proof
) -> None:
    for _ in range(3):
        throttle.record_failure(failed)
    assert throttle.facts("mrose", HERE).guesses == pytest.approx(3)


@pytest.mark.parametrize("address", ["", HERE])
def test_guesses_from_trusted_networks_are_not_counted(
    make: Callable[..., Throttle], address: str
) -> None:
    """The local machine is one."""
    throttle = make(trusted=[ip_network("192.0.2.0/24")])
    assert {guess(throttle, number, address) for number in range(50)} == {2.0}
    assert throttle.facts("mrose", address).guesses == 0
    assert throttle.facts("mrose", address).is_trusted


# One password at many users.


def spray(throttle: Throttle, users: int, password: str = "Winter2026") -> list[float]:
    """Each guess at another user from another network."""
    return [
        throttle.record_failure(shown(password, f"user{each}", f"10.{each // 256}.{each % 256}.1"))
        for each in range(users)
    ]


def test_password_that_fails_for_many_users_is_delayed_from_every_network(
    throttle: Throttle, clock: Clock
) -> None:
    """FAULTS.md §6: each network guesses once, so that none is slowed down for itself."""
    waits = spray(throttle, 9)
    clock.now += 600
    waits += spray(throttle, 20)[9:]
    assert waits == [2.5] * 9 + [7.0] * 11
    assert throttle.record_failure(shown("Winter2026", "ann", ELSEWHERE)) == 7.0
    assert throttle.record_failure(shown("Winter2027", "ann", NEXT_DOOR)) == 2.5, "another password"


def test_sprayed_password_is_logged_once_and_not_shown(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        spray(throttle, 30)
        clock.now += 60
        spray(throttle, 60)
    (record,) = caplog.records
    assert record.message == "password sprayed"
    assert record.__dict__["fields"] == {"ip": "10.0.9.1", "users": 10}


def test_the_same_users_again_are_no_more_users(throttle: Throttle) -> None:
    for _ in range(5):
        spray(throttle, 9)
    assert throttle.facts("ann", ELSEWHERE).sprayed == 0
    for number in range(100):
        throttle.record_failure(shown("Winter2026", "USER3", f"10.9.{number}.1"))
    assert throttle.facts("ann", ELSEWHERE).sprayed == 0


def test_sprayed_password_that_is_correct_is_not_delayed(throttle: Throttle) -> None:
    """The spray is not consulted before the check, so timing does not reveal its users: they do not
    wait, and priorities are unchanged."""
    priorities = [
        throttle.priority(shown("Winter2026", "ann", where)) for where in (HERE, ELSEWHERE)
    ]
    spray(throttle, 50)
    assert [
        throttle.priority(shown("Winter2026", "ann", where)) for where in (HERE, ELSEWHERE)
    ] == priorities
    throttle.record_success(shown("Winter2026", "ann"), UserAccount("ann", "ann"))
    assert throttle.priority(shown("Winter2026", "ann", ELSEWHERE))[0] is Priority.KNOWN


def test_a_spray_fades(throttle: Throttle, clock: Clock) -> None:
    spray(throttle, 12)
    assert throttle.facts("ann", ELSEWHERE).sprayed == pytest.approx(3)
    clock.now += DAY
    assert throttle.record_failure(shown("Winter2026", "ann", ELSEWHERE)) < 7.0


def test_a_slow_spray_is_seen(throttle: Throttle, clock: Clock) -> None:
    """One user an hour."""
    for number in range(48):
        clock.now += 3600
        wait = throttle.record_failure(shown("Winter2026", f"user{number}", f"10.0.{number}.1"))
    assert wait == 7.0


def test_spray_through_a_trusted_network_is_recognised(make: Callable[..., Throttle]) -> None:
    """A webmail has many users, and one of them may try one password with all names."""
    throttle = make(trusted=[ip_network("10.0.0.0/8")])
    assert spray(throttle, 12)[-1] == 7.0
    assert throttle.facts("ann", "10.0.0.1").guesses == 0


def test_flood_does_not_hide_a_spray(make: Callable[..., Throttle]) -> None:
    """Tables of fixed size: the entries with the highest counts stay."""
    throttle = make(entries=64)
    spray(throttle, 30)
    for number in range(1_000):
        throttle.record_failure(
            shown(f"flood {number}", f"user{number}", f"2001:db8:{number:x}::1")
        )
    assert throttle.record_failure(shown("Winter2026", "ann", ELSEWHERE)) == 7.0


def test_nothing_of_a_sprayed_password_outlives_a_restart(
    throttle: Throttle, make: Callable[..., Throttle], tmp_path: Path
) -> None:
    """Only the weight of the spray is saved, for ``restante auth why``."""
    spray(throttle, 12)
    throttle.save(tmp_path / "guesses")
    again = make()
    again.load(tmp_path / "guesses")
    assert again.facts("ann", ELSEWHERE).sprayed == pytest.approx(3)
    assert again.record_failure(shown("Winter2026", "ann", ELSEWHERE)) == 2.5


# Priorities for hashing.


def test_unknown_login_from_a_clean_network_is_behind_known_users(throttle: Throttle) -> None:
    assert throttle.priority(shown("wrong"))[0] is Priority.CLEAN
    throttle.record_success(shown(), MROSE)
    assert throttle.priority(shown("wrong"))[0] is Priority.KNOWN, (
        "from where they have been before"
    )
    assert throttle.priority(shown("wrong", address=NEXT_DOOR))[0] is Priority.KNOWN, "the same /24"
    assert throttle.priority(shown("wrong", address=ELSEWHERE))[0] is Priority.CLEAN
    assert throttle.priority(shown("wrong", "ann"))[0] is Priority.CLEAN
    assert throttle.priority(shown(address=ELSEWHERE))[0] is Priority.KNOWN, (
        "this very password was right"
    )


def test_a_network_that_guesses_is_last(throttle: Throttle) -> None:
    guess(throttle, 1)
    assert throttle.priority(shown("x", "ann")) == (Priority.DIRTY, "4 c0000207")
    assert throttle.priority(shown("x", "ann", NEXT_DOOR))[0] is Priority.CLEAN
    for number in range(8):
        guess(throttle, number, f"192.0.2.{number + 10}")
    assert throttle.priority(shown("x", "ann", NEXT_DOOR)) == (Priority.DIRTY, "4 c00002"), (
        "one turn for all"
    )


def test_correct_password_has_priority_in_a_guessing_network(
    throttle: Throttle,
) -> None:
    """I 187, 189: an attacker behind the same address guesses at the same user."""
    throttle.record_success(shown(), MROSE)
    for number in range(1000):
        guess(throttle, number)
    assert throttle.priority(shown())[0] is Priority.KNOWN
    assert throttle.priority(shown("guess"))[0] is Priority.DIRTY, "a home that guesses is none"
    assert throttle.priority(shown("x", "ann"))[0] is Priority.DIRTY


def test_a_user_is_at_home_for_thirty_days(throttle: Throttle, clock: Clock) -> None:
    throttle.record_success(shown(), MROSE)
    clock.now += 29 * DAY
    assert throttle.facts("mrose", HERE).is_known
    throttle.record_success(shown(), MROSE)
    clock.now += 29 * DAY
    assert throttle.facts("mrose", HERE).is_known
    clock.now += 2 * DAY
    assert not throttle.facts("mrose", HERE).is_known


def test_remembered_logins_keep_a_home(throttle: Throttle, clock: Clock) -> None:
    """As other logins do: at once in a new network, for another name, and for months."""
    throttle.record_success(shown(), MROSE)
    throttle.record_success(shown(address=ELSEWHERE), MROSE, is_cached=True)
    throttle.record_success(shown(identity="m.rose"), MROSE, is_cached=True)
    throttle.record_success(Proof("SCRAM-SHA-256", "rose", "phone", address=HERE), MROSE)
    for name, address in (("mrose", HERE), ("mrose", ELSEWHERE), ("m.rose", HERE), ("rose", HERE)):
        assert throttle.facts(name, address).is_known
    for _ in range(100):
        clock.now += DAY
        throttle.record_success(shown(), MROSE, is_cached=True)
    assert throttle.facts("mrose", HERE).is_known
    clock.now -= 90 * DAY  # an entry of a clock that was ahead is ignored, so it is made again
    throttle.record_success(shown(), MROSE, is_cached=True)
    assert throttle.facts("mrose", HERE).is_known
    throttle.record_success(
        shown("another"), MROSE
    )  # a password that was checked is always recorded
    assert throttle.priority(shown("another", address="203.0.113.7"))[0] is Priority.KNOWN


def test_recent_homes_are_bounded(throttle: Throttle) -> None:
    for number in range(10_000):
        throttle.record_success(shown(address=f"10.{number >> 8}.{number & 255}.1"), MROSE)
    assert len(throttle._recent_logins) <= 4096


def test_user_is_known_by_typed_and_own_name(throttle: Throttle) -> None:
    throttle.record_success(shown(identity="MRose@Example.org"), MROSE)
    for name in ("mrose@example.org", "mrose"):
        assert throttle.priority(shown("x", name))[0] is Priority.KNOWN


def test_network_is_known_after_a_login(throttle: Throttle, clock: Clock) -> None:
    throttle.record_success(shown(), MROSE)
    guess(throttle, 1, ELSEWHERE)
    assert throttle.is_known_network(NEXT_DOOR)
    assert not throttle.is_known_network(ELSEWHERE)
    clock.now += 31 * DAY
    assert not throttle.is_known_network(HERE)


def test_each_user_of_a_trusted_webmail_has_a_turn(throttle: Throttle) -> None:
    throttle.trusted = (ip_network("192.0.2.0/24"),)
    assert throttle.priority(shown("x", "ann")) == (Priority.CLEAN, "ann")
    assert throttle.priority(shown("x", "bob")) == (Priority.CLEAN, "bob")


@given(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.integers(0, 255)), max_size=60))
def test_guesses_of_others_never_lock_out_a_user(guesses: list[tuple[str, int]]) -> None:
    """I 189: no state refuses a right password, and a known user stays first."""
    home = shown("right", "ann")
    with closing(Throttle(clock=Clock(), entries=64)) as throttle:
        throttle.record_success(home, UserAccount("ann", "ann"))
        for number, (identity, host) in enumerate(guesses):
            guess(throttle, number, f"198.51.100.{host}", identity)
        assert throttle.priority(home)[0] is Priority.KNOWN
        assert throttle.priority(shown("x", "ann"))[0] is Priority.KNOWN
        assert throttle.facts("ann", HERE).guesses == 0


def test_flood_of_addresses_harms_no_user(make: Callable[..., Throttle]) -> None:
    """I 190: far more IPv6 networks than the tables have places."""
    throttle = make(entries=64)
    throttle.record_success(shown(), MROSE)
    for number in range(64):
        guess(throttle, number, ELSEWHERE)
    for number in range(1_000):
        guess(throttle, number, f"2001:db8:{number:x}::1")
    assert throttle.facts("mrose", HERE).is_known
    assert throttle.priority(shown())[0] is Priority.KNOWN
    assert throttle.priority(shown("x", address=HERE))[0] is Priority.KNOWN
    assert throttle.facts("mrose", HERE).guesses == 0
    assert throttle.facts("mrose", ELSEWHERE).guesses > 60, "who guessed most is remembered"


# Over a restart.


def test_homes_and_guesses_outlive_a_restart_and_passwords_do_not(
    throttle: Throttle, make: Callable[..., Throttle], tmp_path: Path
) -> None:
    throttle.record_success(shown(), MROSE)
    for number in range(3):
        guess(throttle, number, ELSEWHERE)
    throttle.save(tmp_path / "guesses")
    assert (tmp_path / "guesses").stat().st_mode & 0o077 == 0
    again = make()
    again.load(tmp_path / "guesses")
    assert again.facts("mrose", HERE) == throttle.facts("mrose", HERE)
    assert again.facts("mrose", ELSEWHERE) == throttle.facts("mrose", ELSEWHERE)
    assert again.priority(shown(address="203.0.113.1"))[0] is Priority.CLEAN
    assert list(tmp_path.iterdir()) == [tmp_path / "guesses"]


def test_unchanged_tables_are_not_written(throttle: Throttle, tmp_path: Path) -> None:
    path = tmp_path / "guesses"
    guess(throttle, 1)
    throttle.save(path)
    before = path.stat()
    throttle.save(path)
    assert path.stat() == before
    guess(throttle, 2)
    throttle.save(path)
    assert path.stat().st_ino != before.st_ino


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: b"",
        lambda saved: saved[: len(saved) // 2],
        lambda saved: b"x" + saved[1:],
        lambda saved: saved[:60] + bytes([saved[60] ^ 1]) + saved[61:],
    ],
)
def test_damaged_saved_tables_are_ignored(
    throttle: Throttle,
    make: Callable[..., Throttle],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
) -> None:
    path = tmp_path / "guesses"
    throttle.record_success(shown(), MROSE)
    throttle.save(path)
    path.write_bytes(damage(path.read_bytes()))
    again = make()
    again.load(path)
    assert not again.facts("mrose", HERE).is_known
    again.record_success(shown(), MROSE)
    assert again.facts("mrose", HERE).is_known


def test_tables_of_another_size_are_not_taken(
    throttle: Throttle, make: Callable[..., Throttle], tmp_path: Path
) -> None:
    throttle.record_success(shown(), MROSE)
    throttle.save(tmp_path / "guesses")
    again = make(entries=64)
    again.load(tmp_path / "guesses")
    assert not again.facts("mrose", HERE).is_known


# Workers.


def in_a_worker(work: Callable[[], object]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    return process.exitcode


@pytest.mark.slow
def test_two_workers_share_and_the_death_of_one_forgets_nothing(throttle: Throttle) -> None:
    """A worker that is killed, even while it holds the lock, takes nothing with it."""

    def guess_and_die(first: int) -> None:
        for number in range(first, first + 5):
            guess(throttle, number)
        throttle.record_success(shown(), MROSE)
        throttle._lock.__enter__()
        raise SystemExit(9)

    assert [in_a_worker(partial(guess_and_die, at)) for at in (0, 5)] == [9, 9]
    assert throttle.facts("mrose", HERE).guesses == pytest.approx(10)
    assert throttle.priority(shown())[0] is Priority.KNOWN
    assert guess(throttle, 0) == guess(throttle, 1), "what one heard, another does not count again"


@pytest.mark.slow
def test_workers_lose_no_count_to_one_another(throttle: Throttle) -> None:
    context = multiprocessing.get_context("fork")

    def work(first: int) -> None:
        for number in range(first, first + 500):
            throttle.record_failure(FailedProof("SCRAM-SHA-256", str(number), HERE))

    workers = [context.Process(target=work, args=(at,)) for at in (0, 1000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert throttle.facts("mrose", HERE).guesses == pytest.approx(1000)


# The table.


class Model(RuleBasedStateMachine):
    """Weights, beside all that was ever added."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = Weights(16, 100.0, clock=self.clock, secret=b"s" * 32)
        self.added: dict[bytes, float] = {}

    @rule(target=keys, key=st.binary(max_size=2))
    def key(self, key: bytes) -> bytes:
        return key

    @rule(key=keys, weight=st.floats(0.5, 100), maximum=st.sampled_from([1.0, math.inf]))
    def add(self, key: bytes, weight: float, maximum: float) -> None:
        before = self.table.weight(key)
        self.table.add(key, weight, maximum=maximum)
        assert self.table.weight(key) == pytest.approx(min(before + weight, maximum))
        self.added[key] = self.added.get(key, 0.0) + weight

    @rule(key=keys, seconds=st.floats(0, 1000))
    def wait(self, key: bytes, seconds: float) -> None:
        before = self.table.weight(key)
        self.clock.now += seconds
        faded = before * 0.5 ** (seconds / 100)
        assert faded - 0.01 <= self.table.weight(key) <= before  # a clock set back fades nothing

    @rule(seconds=st.floats(0, 50))
    def set_the_clock_back(self, seconds: float) -> None:
        self.clock.now -= seconds

    @rule()
    def keep(self) -> None:
        again = Weights(16, 100.0, clock=self.clock, secret=b"s" * 32)
        again.octets = self.table.octets
        self.table = again

    @invariant()
    def nothing_is_invented(self) -> None:
        """What was pushed out is less; nothing is ever more than what was added."""
        for key, added in self.added.items():
            assert 0.0 <= self.table.weight(key) <= added * (1 + 1e-9)
        assert self.table.weight(b"never added") == 0.0

    @invariant()
    def its_size_is_fixed(self) -> None:
        assert len(self.table.octets) == 16 * 24


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_the_table = Model.TestCase


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0.5, 50)), max_size=200))
def test_entry_with_the_highest_weight_stays(added: list[tuple[int, float]]) -> None:
    """Later entries never displace the one with the highest weight."""
    table = Weights(8, 1e9, clock=Clock())
    table.add(b"heavy", 1000.0)
    for key, weight in added:
        if key < 10:
            table.add(str(key).encode(), min(weight, 1.0), maximum=2.0)
        else:
            table.add(str(key).encode(), 1.0, maximum=1.0)
    assert table.weight(b"heavy") == pytest.approx(1000.0)
