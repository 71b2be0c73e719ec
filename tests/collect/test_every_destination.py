"""Guarantees of every destination, with no message, one and many, for every failure."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from restante.addons import offers
from restante.collect.destinations import Destination, Tracing, Verifying
from restante.collect.destinations.opening import TRACING, VERIFYING
from restante.collect.ledger import Ledger
from restante.collect.outcome import Outcome
from restante.collect.plan import Policy
from restante.errors import ConfigurationError, TemporaryFailure

from .places import PLACES, Place, place
from .shelf import Shelf
from .test_collector import Home

ALL = Policy(keep=0.0)
WEEK = 7 * 86_400.0
COUNTS = [0, 1, 2, 20]  # none, one, several, and more than the limit of failures in a row
each_kind = pytest.mark.parametrize("kind", PLACES)
each_count = pytest.mark.parametrize("count", COUNTS)


class Account(Home):
    """An account that collects into a place."""

    def __init__(self, there: Place, ledger: Ledger) -> None:
        super().__init__(Shelf(), ledger, "", there.context, there.ca_file)
        self.there = there
        self.dies_at: int | None = None

    def opened(self) -> Destination:
        opened = self.there.opened()
        if self.dies_at is None:
            return opened
        return Mortal(opened, self.dies_at)

    def fill(self, count: int) -> list[str]:
        words = [f"w{at}" for at in range(count)]
        self.shelf.rows = [(word, self.there.text(word)) for word in words]
        return words

    def left(self) -> list[str]:
        return [row[0] for row in self.shelf.rows]

    def fails(self) -> bool:
        """Return whether a run ends with an expected error; any other exception is raised."""
        try:
            self.collect(ALL)
        except (TemporaryFailure, ConfigurationError, OSError):
            return True
        return False

    def check(self, words: list[str]) -> None:
        """Check that no message is lost, and none is stored too often."""
        stored, left = Counter(self.there.words()), set(self.left())
        assert set(words) - left <= stored.keys() <= set(words)
        assert not self.there.is_exact or max(stored.values(), default=1) == 1


@pytest.fixture
def account(
    kind: str, tmp_path: Path, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
) -> Iterator[Account]:
    with (
        closing(Ledger(tmp_path / "ledger")) as ledger,
        place(kind, tmp_path / "place", server_tls, certificate[0]) as there,
    ):
        yield Account(there, ledger)


@each_kind
def test_add_ons_of_a_kind_are_known_before_it_is_opened(kind: str, account: Account) -> None:
    """``keep`` is checked against them when the configuration is read."""
    name = "" if kind == "directory" else kind.partition(" ")[0]
    with closing(account.opened()) as destination:
        assert offers(destination, Verifying) == (name in VERIFYING)
        assert offers(destination, Tracing) == (name in TRACING)


@each_kind
@pytest.mark.parametrize("count", [0, 1, pytest.param(2, marks=pytest.mark.slow), 20])
def test_all_mail_is_stored_once_and_then_deleted(kind: str, count: int, account: Account) -> None:
    words = account.fill(count)
    outcome = account.collect(ALL)
    assert (outcome.stored, outcome.deleted, outcome.refused) == (count, count, [])
    assert account.collect(ALL) == Outcome()
    assert account.there.words() == sorted(words)


@pytest.mark.slow
@each_kind
@each_count
@pytest.mark.parametrize("bad", ["first", "last"])
def test_a_message_that_is_refused_stays_and_the_rest_comes(
    kind: str, count: int, bad: str, account: Account
) -> None:
    if not account.there.can_refuse or not count:
        return  # there is nothing to refuse
    poison = "w0" if bad == "first" else f"w{count - 1}"
    account.there.poison = poison
    words = account.fill(count)
    outcome = account.collect(ALL)
    account.check(words)
    assert (outcome.stored, len(outcome.refused)) == (count - 1, 1)
    assert account.left() == [poison]
    for _ in range(2):
        assert account.collect(ALL).stored == 0
    account.there.poison = ""
    account.shelf.rows = [(poison, account.there.text(poison))]
    account.now += WEEK
    assert account.collect(ALL).stored == 1
    assert account.there.words() == sorted(words)
    assert account.left() == []


@pytest.mark.slow
@each_kind
@each_count
@pytest.mark.parametrize("trouble", ["is_full", "is_away"])
def test_a_place_that_takes_nothing_loses_nothing(
    kind: str, count: int, trouble: str, account: Account
) -> None:
    """And no message has to wait once the place works again; also if mail was there before."""
    before = count % 2
    first = account.fill(before)
    account.collect(ALL)
    words = [*first, *account.fill(before + count)[before:]]
    account.shelf.rows = account.shelf.rows[before:]
    setattr(account.there, trouble, True)
    for _ in range(3):
        assert account.fails() or not count
        setattr(account.there, trouble, False)
        account.check(words)
        assert account.there.words() == first
        assert len(account.left()) == count
        setattr(account.there, trouble, True)
    setattr(account.there, trouble, False)
    outcome = account.collect(ALL)
    assert (outcome.stored, outcome.deleted) == (count, count)
    assert account.there.words() == sorted(words)


class Dead(BaseException):
    """Raised when the simulated process has died."""


class Mortal:
    """A destination at whose n-th call the process dies, before or after the call in turn."""

    def __init__(self, destination: Destination, moment: int) -> None:
        self._destination, self._left = destination, moment

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._destination, name)
        if not callable(real):
            return real

        def call(*arguments: Any) -> Any:
            self._die()
            result = real(*arguments)
            self._die()
            return call_later(result) if name == "group" else result

        def call_later(real: Any) -> Any:
            def called() -> None:
                self._die()
                real()
                self._die()

            return called

        return call

    def close(self) -> None:
        self._destination.close()

    def abort(self) -> None:
        if self._left >= 0:
            self._destination.abort()

    def _die(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Dead


@pytest.mark.slow
@each_kind
def test_an_end_at_any_call_and_another_run(kind: str, account: Account) -> None:
    """A message whose storing was interrupted is found, or is there twice and counted."""
    for moment in range(200):
        before = Counter(account.there.words())
        words = [f"m{moment}.{at}" for at in range(3)]
        account.shelf.rows = [(word, account.there.text(word)) for word in words]
        account.dies_at, is_over = moment, False
        with suppress(Dead):
            account.collect(ALL)
            is_over = True
        account.dies_at = None
        outcome = account.collect(ALL)
        account.now += WEEK
        account.collect(ALL)
        found = Counter(account.there.words()) - before
        assert found.keys() == set(words), moment
        twice = sum(found.values()) - len(words)
        assert twice <= (0 if account.there.is_exact else outcome.in_doubt), moment
        assert account.left() == [], moment
        if is_over:
            return
    pytest.fail("never over")
