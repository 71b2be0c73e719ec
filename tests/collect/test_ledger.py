"""The ledger records everything durably, and forgets nothing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from restante.collect.account_ledger import Stored
from restante.collect.fingerprint import Content
from restante.collect.health import AccountHealth, Health
from restante.collect.ledger import Ledger
from restante.collect.ledger_file import AccountBusy
from restante.collect.plan import Collected, Record, Used
from restante.errors import ConfigurationError, LoginWithheld, TemporaryFailure

DIGEST = bytes(32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path)
    yield opened
    opened.close()


def test_life_of_a_message(ledger: Ledger) -> None:
    assert ledger.of("ann").known(["u"]) == {}
    ledger.of("ann").intend([("u", 100)])
    assert ledger.of("ann").known(["u"]) == {"u": Collected(100, None)}
    ledger.of("ann").took([Stored("u", 100, Content(DIGEST))], 7.5)
    assert ledger.of("ann").known(["u"]) == {"u": Collected(100, 7.5)}
    ledger.of("ann").gone(["u"])
    assert ledger.of("ann").known(["u"]) == {"u": Collected(100, 7.5, is_gone=True)}


def test_intent_does_not_undo_a_stored_message(ledger: Ledger) -> None:
    ledger.of("ann").took([Stored("u", 100, Content(DIGEST))], 7.5)
    ledger.of("ann").intend([("u", 99)])
    assert ledger.of("ann").known(["u"]) == {"u": Collected(100, 7.5)}


def test_accounts_know_nothing_of_each_other(ledger: Ledger) -> None:
    ledger.of("ann").took([Stored("u", 100, Content(DIGEST))], 7.5)
    assert ledger.of("bob").known(["u"]) == {}
    assert not ledger.of("bob").has_content(Content(DIGEST))
    ledger.of("bob").gone(["u"])
    assert not ledger.of("ann").known(["u"])["u"].is_gone


def test_content_is_known_under_any_unique_id_once_it_was_taken(ledger: Ledger) -> None:
    ledger.of("ann").intend([("u", 100)])
    assert not ledger.of("ann").has_content(Content(DIGEST))
    ledger.of("ann").took([Stored("u", 100, Content(DIGEST))], 7.5)
    assert ledger.of("ann").has_content(Content(DIGEST))
    assert ledger.of("ann").records(["u", "v"]) == {"u": Record(100, Content(DIGEST), "")}


def test_expected_counts_messages_still_on_the_server(ledger: Ledger) -> None:
    ledger.of("ann").intend([("begun", 1)])
    ledger.of("ann").took([Stored(f"u{at}", 1, None) for at in range(5)], 7.5)
    ledger.of("ann").gone(["u0", "u1"])
    assert ledger.of("ann").expected() == 3


def test_adopted_messages_are_marked_as_adopted(ledger: Ledger) -> None:
    ledger.of("ann").intend([("u", 2)])
    ledger.of("ann").adopt([("u", 1)], 7.5)
    assert ledger.of("ann").known(["u"]) == {"u": Collected(1, 7.5, is_adopted=True)}


def test_collected_messages_are_not_adopted(ledger: Ledger) -> None:
    """Otherwise they would never be deleted there."""
    ledger.of("ann").took([Stored("u", 1, Content(b"digest"))], 7.5)
    ledger.of("ann").adopt([("u", 1)], 9.5)
    assert ledger.of("ann").known(["u"]) == {"u": Collected(1, 7.5)}
    assert ledger.of("ann").records(["u"]) == {"u": Record(1, Content(b"digest"), "")}


def test_any_unique_id_is_a_key(ledger: Ledger) -> None:
    odd = ["../../etc/passwd", "a b", "\udc80\udcff", "'; DROP TABLE messages; --", "x" * 1000]
    ledger.of("ann").took([Stored(key, 1, None) for key in odd], 7.5)
    assert set(ledger.of("ann").known([*odd, "other"])) == set(odd)


def test_more_keys_than_one_query_takes(ledger: Ledger) -> None:
    keys = [f"u{at}" for at in range(2000)]
    ledger.of("ann").took([Stored(key, 1, None) for key in keys], 7.5)
    assert len(ledger.of("ann").known(keys)) == 2000


def test_all_of_it_survives_the_process(path: Path) -> None:
    """Without close() and exit handlers, as after kill -9."""
    child = os.fork()
    if child == 0:
        Ledger(path).of("ann").took([Stored("u", 100, Content(DIGEST))], 7.5)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    ledger = Ledger(path)
    assert ledger.of("ann").known(["u"]) == {"u": Collected(100, 7.5)}
    ledger.close()


def test_every_commit_is_synced(ledger: Ledger) -> None:
    """SQLite documents that with 2 (FULL) a commit is on disk when it returns."""
    assert ledger._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_only_the_owner_can_read_the_ledger(ledger: Ledger, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_one_collector_at_a_time_for_one_account(ledger: Ledger, path: Path) -> None:
    other = Ledger(path)
    with ledger.of("ann").alone():
        with pytest.raises(AccountBusy), other.of("ann").alone():
            pass
        with other.of("bob").alone():
            pass
    with other.of("ann").alone():
        pass
    other.close()


def test_login_delay_is_remembered(ledger: Ledger) -> None:
    assert ledger.of("ann").may_begin(1000.0) == 0
    ledger.of("ann").record_login(1000.0, 900.0)
    assert ledger.of("ann").may_begin(1000.0) == 1900
    assert ledger.of("ann").may_begin(999.0) == 0  # the clock was put back
    assert ledger.of("ann").last_success() is None
    ledger.of("ann").record_success(1001.0)
    ledger.of("ann").record_login(2000.0)
    assert ledger.of("ann").may_begin(2000.0) == 2000
    assert ledger.of("ann").last_success() == 1001


def test_refusals_are_counted_until_a_login_works(ledger: Ledger) -> None:
    ledger.of("ann").withhold(0.0)
    for at, wait in ((1000.0, 600.0), (2000.0, 1200.0), (4000.0, 2400.0)):
        ledger.of("ann").record_refusal(at)
        ledger.of("bob").withhold(at)
        with pytest.raises(LoginWithheld) as caught:
            ledger.of("ann").withhold(at)
        assert caught.value.seconds == wait
        ledger.of("ann").withhold(at + wait)
    ledger.of("ann").record_login(7000.0)
    ledger.of("ann").withhold(7000.0)
    ledger.of("ann").record_refusal(8000.0)
    ledger.of("ann").withhold(8600.0)


def test_used_budget_counts_for_a_day(ledger: Ledger, path: Path) -> None:
    hour, day = 3600.0, 86_400.0
    first = ledger.of("ann").record_attempt(0.0)
    ledger.of("ann").add_usage(first, Used(1, 100), 1.0)
    ledger.of("ann").add_usage(first, Used(2, 200), hour)  # a long session counts by its end
    ledger.of("bob").add_usage(ledger.of("bob").record_attempt(0.0), Used(7, 7), hour)
    second = ledger.of("ann").record_attempt(2 * hour)
    ledger.of("ann").add_usage(second, Used(4, 400), 2 * hour)
    with closing(Ledger(path)) as again:
        assert again.of("ann").used_in_a_day(2 * hour) == Used(7, 700)
        assert again.of("ann").used_in_a_day(day + hour) == Used(4, 400)
        assert again.of("ann").used_in_a_day(day + 2 * hour) == Used(0, 0)
    assert ledger.of("eve").used_in_a_day(0.0) == Used(0, 0)


def test_logins_per_hour_are_limited(ledger: Ledger) -> None:
    for at in (100.0, 200.0, 300.0):
        ledger.of("ann").record_attempt(at)
    assert ledger.of("ann").may_begin(400.0, 4) == 0
    assert ledger.of("ann").may_begin(400.0, 3) == 3700
    assert ledger.of("ann").may_begin(400.0, 1) == 3900
    assert ledger.of("ann").may_begin(99.0, 1) == 0  # the clock was put back
    assert ledger.of("bob").may_begin(400.0, 1) == 0


def test_health_has_streaks_and_totals(ledger: Ledger) -> None:
    health = Health(ledger.of("ann"))
    assert health.state() == AccountHealth()
    health.record_success(3, 300)
    for at in (10.0, 20.0):
        health.record_failure(at)
    assert health.state() == AccountHealth(2, 10.0, good=1, bad=2, messages=3, octets=300)
    health.record_success(1, 100)
    assert health.state() == AccountHealth(0, None, good=2, bad=2, messages=4, octets=400)
    health.record_failure(30.0, 5, 500)
    health.record_stop(1, 100)
    assert health.state() == AccountHealth(1, 30.0, good=2, bad=3, messages=10, octets=1000)
    assert health.state().failing_since == 30.0
    assert Health(ledger.of("bob")).state() == AccountHealth()


def test_forgetting_is_only_by_command(ledger: Ledger) -> None:
    ledger.of("ann").took([Stored("u", 1, None), Stored("v", 1, None)], 7.5)
    ledger.of("bob").took([Stored("u", 1, None)], 7.5)
    assert ledger.of("ann").forget() == 2
    assert ledger.of("ann").known(["u", "v"]) == {}
    assert "u" in ledger.of("bob").known(["u"])


def test_file_that_is_not_a_ledger_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigurationError, match="damaged"):
        Ledger(path)
    assert path.read_bytes() == b"no database at all" * 100


def test_a_newer_ledger_and_a_foreign_database_are_refused(path: Path, tmp_path: Path) -> None:
    Ledger(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigurationError, match="newer"):
        Ledger(path)
    foreign = tmp_path / "foreign.sqlite3"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    with pytest.raises(ConfigurationError, match="another program"):
        Ledger(foreign)


def test_a_failed_call_changes_nothing(ledger: Ledger, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    ledger._database.execute("PRAGMA busy_timeout = 1")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TemporaryFailure):
        ledger.of("ann").took([Stored("u", 1, None)], 7.5)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.of("ann").known(["u"]) == {}


def test_threads_take_turns(ledger: Ledger) -> None:
    def write(at: int) -> None:
        ledger.of("ann").intend([(f"u{at}", 1)])
        ledger.of("ann").took([Stored(f"u{at}", 1, Content(DIGEST))], 7.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(64)))
    assert ledger.of("ann").expected() == 64
