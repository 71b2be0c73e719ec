"""The pauses between sessions of a running collector: shorter or longer, never too short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from restante.collect.collector import LoginTooSoon, Outcome
from restante.collect.ledger_file import AccountBusy
from restante.collect.pace import Pace, run_sessions
from restante.errors import ConnectionLost, LoginFailed, LoginWithheld

MAIL, NOTHING = Outcome(stored=1), Outcome()
LOST, REFUSED = ConnectionLost("pulled out"), LoginFailed("PASS", "no", "AUTH")


class Enough(Exception):
    pass


class Watch:
    """Runs sessions with scripted results; ``slept`` are the pauses without jitter."""

    def __init__(self, *results: Outcome | BaseException, pace: Pace | None = None) -> None:
        self._results: Iterator[Outcome | BaseException] = iter(results)
        self._pace = pace or Pace(60, 200)
        self.now = 1000.0
        self.may_begin = 0.0
        self.slept: list[float] = []

    async def _session(self) -> Outcome | BaseException:
        try:
            return next(self._results)
        except StopIteration:
            raise Enough from None

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def run(self, jitter: Callable[[float, float], float] = min) -> list[float]:
        following = run_sessions(
            self._session,
            lambda now: self.may_begin,
            self._pace,
            sleep=self._sleep,
            clock=lambda: self.now,
            jitter=jitter,
        )
        with pytest.raises(Enough):
            asyncio.run(following)
        return self.slept


def test_slower_while_nothing_comes_and_sooner_after_mail() -> None:
    watch = Watch(MAIL, NOTHING, NOTHING, NOTHING, NOTHING, MAIL, NOTHING)
    assert watch.run() == [60, 90, 135, 200, 200, 60, 90]


def test_a_header_is_mail_too() -> None:
    assert Watch(NOTHING, Outcome(stubs=1)).run() == [90, 60]


def test_pace_is_constant_without_a_maximum() -> None:
    watch = Watch(*[NOTHING] * 3, pace=Pace(60, 0))
    assert watch.run() == [60, 60, 60]


def test_failures_back_off_to_an_hour_and_end_with_a_success() -> None:
    watch = Watch(*[LOST] * 7, NOTHING, LOST)
    assert watch.run() == [120, 240, 480, 960, 1920, 3600, 3600, 90, 120]


def test_a_thousand_failures_are_no_large_number() -> None:
    watch = Watch(*[LOST] * 2000, *[NOTHING] * 2000)
    assert max(watch.run()) == 3600


def test_session_that_gave_way_has_not_failed() -> None:
    watch = Watch(AccountBusy("isp"), LoginTooSoon(500), MAIL)
    assert watch.run() == [60, 500, 60]


def test_refused_credentials_wait_as_long_as_the_ledger_says() -> None:
    watch = Watch(REFUSED, LoginWithheld("isp", 3, 2400.0))
    assert watch.run() == [120, 2400]


def test_login_waits_until_the_server_allows_it() -> None:
    watch = Watch(MAIL, MAIL)
    watch.may_begin = 1900.0
    assert watch.run() == [900, 60]


def test_jitter_is_never_less_than_the_pause() -> None:
    assert Watch(MAIL, LOST).run(max) == [pytest.approx(66), 180]
