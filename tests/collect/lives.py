"""Random lives of the collector with a hostile server; ``oracle`` checks them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from .copies import DESTINATIONS
from .hostile import Lies, Mail
from .oracle import DAY, HOUR, World


def _lie(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(name), values)


_AT = st.integers(0, 5)
_SOME = st.frozensets(_AT, min_size=1, max_size=3)
_LIES = st.one_of(
    _lie("ends_at_command", st.integers(1, 25)),
    _lie("ends_at_octet", st.integers(1, 6000)),
    _lie("quit", st.sampled_from(["says nothing", "closes first", "refuses", "forgets"])),
    _lie("removes_without_quit", st.just(True)),
    _lie("expires", st.just(True)),
    _lie("rewrites", st.just(True)),
    _lie("has_uidl", st.just(False)),
    _lie("has_top", st.just(False)),
    _lie("pipelining", st.sampled_from(["works", "breaks"])),
    _lie("sizes", st.dictionaries(_AT, st.sampled_from([-3, 1, 40, 5000]), min_size=1)),
    _lie("short", st.dictionaries(_AT, st.integers(10, 60), min_size=1)),
    _lie("hidden", _SOME),
    _lie("refused", _SOME),
    _lie("undeletable", _SOME),
    _lie("same_id", st.just(True)),
    _lie("delivers_at_command", st.integers(1, 20)),
)
LIES = st.lists(_LIES, max_size=3).map(lambda lies: Lies(**dict(lies)))
KINDS = st.sampled_from(["usual", "usual", "long", "without marks"])
KEEPS = st.sampled_from(["none", "none", "7d", "until-verified", "until-deleted", "all"])


class Collecting(RuleBasedStateMachine):
    """Between two steps, anything may happen at the server, here and to the collector."""

    world: World

    @initialize(
        kind=st.sampled_from(sorted(DESTINATIONS)), keep=KEEPS, mails=st.lists(KINDS, max_size=4)
    )
    def begin(self, kind: str, keep: str, mails: list[str]) -> None:
        self.world = World(kind, keep)
        for each in mails:
            self.world.deliver(each)
        self._is_well = True

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if self._is_well:
                self.world.become_honest()
        finally:
            self.world.end()

    @contextmanager
    def _step(self) -> Iterator[World]:
        self._is_well = False
        yield self.world
        self._is_well = True

    def _mail(self, at: int) -> Mail | None:
        """Choose a message of the server, if it has any."""
        mails = self.world.server.mails
        return mails[at % len(mails)] if mails else None

    # The collector runs.

    @rule(lies=LIES)
    def collect(self, lies: Lies) -> None:
        with self._step() as world:
            world.collect(lies)

    @rule()
    def collect_from_an_honest_server(self) -> None:
        with self._step() as world:
            world.collect()

    @rule(again=st.sampled_from(["dedupe", "fetch"]))
    def collect_again(self, again: str) -> None:
        with self._step() as world:
            if again == "fetch":
                world.forgot()
            world.collect(None, "--again", again)

    @rule(lies=LIES, moment=st.integers(0, 60), power=st.booleans())
    def collect_and_die(self, lies: Lies, moment: int, power: bool) -> None:
        with self._step() as world:
            world.collect_and_die(lies, moment, power=power)

    @rule(hours=st.sampled_from([1, 5, 24, 30, 7 * 24, 40 * 24]))
    def wait(self, hours: int) -> None:
        self.world.passed += hours * HOUR

    # Sequences that random choice would rarely produce.

    @rule(
        at=_AT,
        change=st.sampled_from(["other", "twin", "reused", "renumbered"]),
        keep=KEEPS,
        lies=LIES,
    )
    def change_what_was_taken(self, at: int, change: str, keep: str, lies: Lies) -> None:
        """All kept messages are due at once, and some may have been replaced."""
        with self._step() as world:
            world.set_policy("all", 0, 0)
            world.deliver()
            world.collect()
            mail = self._mail(at)
            assert mail is not None
            if change == "twin":
                world.exchange(mail, world.twin(mail.letter))
            elif change == "renumbered":
                world.renumber()
            else:
                if change == "reused":
                    world.server.take_away(mail)
                    world.collect()
                    world.deliver("usual", mail.unique_id)
                else:
                    world.exchange(mail, world.write())
            world.set_policy(keep, 0, 0)
            world.passed += DAY
            world.collect(lies)
            world.collect()

    @rule(percent=st.integers(10, 60), keep=KEEPS, has_top=st.booleans())
    def give_a_part(self, percent: int, keep: str, has_top: bool) -> None:
        """Send only part of a message, perhaps another part before it is due."""
        with self._step() as world:
            world.set_policy(keep, 0, 0)
            world.deliver("long")
            at = len(world.server.mails) - 1
            world.collect(Lies(short={at: percent}))
            world.collect(Lies(short={at: percent + 1}, has_top=has_top))

    @rule(percent=st.integers(10, 60), keep=KEEPS, refuses=st.booleans())
    def expire(self, percent: int, keep: str, refuses: bool) -> None:
        """The server removes at QUIT what it sent, although some of it is not stored here."""
        with self._step() as world:
            world.set_policy(keep, 0, 0)
            world.deliver("long")
            world.deliver()
            world.here.refuse(refuses)
            world.collect(Lies(expires=True, short={len(world.server.mails) - 2: percent}))
            world.here.refuse(False)

    # Mail arrives, changes and disappears.

    @rule(kind=KINDS, count=st.sampled_from([1, 1, 2, 2, 3, 3, 25]))
    def deliver(self, kind: str, count: int) -> None:
        for _ in range(count if len(self.world.server.mails) < 40 else 1):
            self.world.deliver(kind)

    @rule(at=_AT)
    def deliver_the_same(self, at: int) -> None:
        if mail := self._mail(at):
            self.world.put(mail.letter)

    @rule(kind=KINDS, at=st.integers(0, 9))
    def reuse_an_id(self, kind: str, at: int) -> None:
        if past := self.world.server.past_ids():
            self.world.deliver(kind, past[-1 - at % len(past)])

    @rule(at=_AT, kind=KINDS)
    def exchange(self, at: int, kind: str) -> None:
        if mail := self._mail(at):
            self.world.exchange(mail, self.world.write(kind))

    @rule(at=_AT)
    def exchange_for_its_twin(self, at: int) -> None:
        if mail := self._mail(at):
            self.world.exchange(mail, self.world.twin(mail.letter))

    @rule(one=_AT, other=_AT)
    def swap_ids(self, one: int, other: int) -> None:
        first, second = self._mail(one), self._mail(other)
        if first and second:
            self.world.swap_ids(first, second)

    @rule(at=_AT)
    def lose(self, at: int) -> None:
        """Another client deletes a message there."""
        if mail := self._mail(at):
            self.world.server.take_away(mail)

    @rule(at=st.integers(0, 9), is_same=st.booleans())
    def bring_back(self, at: int, is_same: bool) -> None:
        """A message that was deleted there is there again."""
        if gone := self.world.server.gone:
            self.world.bring_back(gone[-1 - at % len(gone)], is_same=is_same)

    @rule()
    def renumber(self) -> None:
        """All messages get new unique-ids, as when a provider moves."""
        self.world.renumber()

    @rule(at=_AT)
    def rewrite(self, at: int) -> None:
        if mail := self._mail(at):
            self.world.rewrite(mail)

    # Here.

    @rule(is_refusing=st.booleans())
    def refuse(self, is_refusing: bool) -> None:
        self.world.here.refuse(is_refusing)

    @rule(at=st.integers(0, 9), is_purged=st.booleans())
    def delete_here(self, at: int, is_purged: bool) -> None:
        with self._step() as world:
            if world.letters:
                world.delete_here(world.letters[-1 - at % len(world.letters)])
            if is_purged:
                world.purge()

    @rule()
    def give_back(self) -> None:
        self.world.give_back()

    @rule()
    def purge(self) -> None:
        self.world.purge()

    @rule(keep=KEEPS, limit=st.sampled_from([0, 2, 5]), newest=st.sampled_from([0, 0, 1, 3]))
    def set_policy(self, keep: str, limit: int, newest: int) -> None:
        self.world.set_policy(keep, limit, newest)

    @rule(by_hand=st.booleans())
    def rename(self, by_hand: bool) -> None:
        self.world.rename(by_hand=by_hand)

    @rule()
    def lose_ledger(self) -> None:
        self.world.lose_ledger()

    @rule()
    def back_up(self) -> None:
        self.world.back_up()

    @precondition(lambda self: (self.world.place / "backup").exists())
    @rule()
    def restore(self) -> None:
        self.world.restore()
