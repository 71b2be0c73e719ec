"""A server that removes at QUIT what RETR sent (EXPIRE 0, RFC 2449 §6.7) removes only stored mail.

If a message was sent and is not stored, for any reason, the session must end without QUIT.  Due
messages are then deleted by another session of the same run, which does not retrieve it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from restante.collect.collector import LeftWithoutQuit
from restante.collect.destinations import Doubtful
from restante.collect.outcome import Outcome
from restante.collect.plan import Policy, short_name
from restante.collect.run import Run
from restante.errors import MessageRefused
from restante.pop3.listing import Message
from restante.pop3.quirks import Quirks

from .test_proof import KEEP_ALL, KEEP_NONE, KEEP_WEEK, World, letter

EXPIRES = ("UIDL", "TOP", "PIPELINING", "EXPIRE 0")
VERIFIED = Policy(keep=0.0, verified=True)
BAD = letter("bad", ("y" * 70 + "\r\n") * 60)


class Picky:
    """A destination that refuses some messages."""

    is_repeatable = True

    def __init__(self, inner: Any, poison: Collection[bytes], error: type[Exception]) -> None:
        self._inner, self._poison, self._error = inner, poison, error
        self.has, self.holds, self.abort = inner.has, inner.holds, inner.abort
        self.close = inner.close

    def begin(self, identity: str) -> bool:
        self._octets = b""
        return bool(self._inner.begin(identity))

    def write(self, octets: bytes) -> None:
        self._octets += octets
        self._inner.write(octets)

    def commit(self) -> None:
        if self._octets in self._poison:
            raise self._error("not this one")
        self._inner.commit()


class Expiring(World):
    """A world whose server removes sent messages, as it announces."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.server.announced = EXPIRES
        self.server.removes_what_was_read = True
        self.poison: set[bytes] = set()
        self.error: type[Exception] = MessageRefused
        self.largest: int | None = None

    def _destination(self) -> Any:
        inner = super()._destination()
        return Picky(inner, self.poison, self.error) if self.poison else inner

    def run(self, policy: Policy = KEEP_NONE, most: int = 2) -> Outcome:
        """Collect as `restante collect` does: with another session if it can delete anything."""
        total, run = Outcome(), Run()
        for at in range(most):
            run.is_last = at == most - 1
            try:
                self.collect(policy, run=run)
            except LeftWithoutQuit:
                assert self.outcome.may_go_on
            else:
                return total
            finally:
                total += self.outcome
        raise AssertionError("no session of the run could end")


@pytest.fixture
def world(tmp_path: Path) -> Expiring:
    return Expiring(tmp_path)


def _refused_for_good(world: Expiring) -> None:
    world.poison = {BAD}


def _refused_in_doubt(world: Expiring) -> None:
    world.poison, world.error = {BAD}, Doubtful


def _larger_than_announced(world: Expiring) -> None:
    world.server.sizes, world.largest = {"bad": 10}, 999


def _a_notice_in_its_place(world: Expiring) -> None:
    """The server sends a notice instead of a message, as Exchange does."""
    world.server.sizes = {"bad": 100_000}
    subject = "Retrieval using the POP3 protocol failed"
    text = letter("bad", Subject=subject, To="Microsoft Exchange")
    world.server.answer = lambda said, usual: usual.replace(BAD, text)


def _stored_short(world: Expiring) -> None:
    """Truncate at different octets: the same one twice would mean the message is complete."""
    ends = iter(range(400, 4000, 100))
    world.server.answer = lambda said, usual: (
        b"+OK\r\n" + BAD[: next(ends)] + b"\r\n.\r\n" if BAD in usual else usual
    )


@pytest.mark.parametrize("names", [("bad",), ("bad", "a", "b"), ("a", "b", "bad")])
@pytest.mark.parametrize(
    "make_unstored",
    [
        _refused_for_good,
        _refused_in_doubt,
        _larger_than_announced,
        _a_notice_in_its_place,
        _stored_short,
    ],
)
def test_only_stored_messages_are_deleted(
    make_unstored: Callable[[Expiring], None], names: Sequence[str], world: Expiring
) -> None:
    world.server.mail = {name: letter(name) for name in names} | {"bad": BAD}
    make_unstored(world)
    for _ in range(3):
        world.run(Policy(keep=0.0, largest=world.largest))
        assert world.server.mail == {"bad": BAD}
    others = [letter(name) for name in names if name != "bad"]
    assert [each for each in world.mail if not BAD.startswith(each[:300])] == sorted(others)


@pytest.mark.parametrize("policy", [KEEP_NONE, KEEP_WEEK, KEEP_ALL, VERIFIED])
def test_a_session_in_which_all_is_stored_ends_by_quit(policy: Policy, world: Expiring) -> None:
    world.server.mail = {name: letter(name) for name in "abc"}
    world.collect(policy)
    assert world.server.heard[-1] == "QUIT"
    assert (world.server.mail, len(world.mail)) == ({}, 3)


def test_a_message_that_the_server_refuses_was_not_sent(world: Expiring) -> None:
    world.server.mail = {name: letter(name) for name in "ab"}
    world.server.answer = lambda said, usual: b"-ERR no\r\n" if said == "RETR 1" else usual
    world.collect(KEEP_NONE)
    assert world.server.heard[-1] == "QUIT"


def test_without_anything_due_one_session_is_enough(world: Expiring) -> None:
    """And the run does not fail."""
    world.server.mail = {"bad": letter("bad")}
    world.poison = {letter("bad")}
    world.run(most=1)
    assert "QUIT" not in world.server.heard
    assert len(world.outcome.refused) == 1


def test_comparison_that_finds_no_complete_copy(world: Expiring, tmp_path: Path) -> None:
    """The copy was damaged later, and ``until-verified`` promises to check it."""
    world.server.removes_what_was_read = False
    world.server.mail = {"a": letter("a")}
    world.collect(VERIFIED)
    world.server.removes_what_was_read = True
    for path in (tmp_path / "Mail" / "new").iterdir():
        path.write_bytes(b"damaged")
    world.server.sizes = {"a": 7}  # so that it must be compared
    world.run(VERIFIED)
    assert world.server.mail == {"a": letter("a")}


QUIRKS = [Quirks(added=("EXPIRE 0",)), Quirks(reset_before_quit=True)]


@pytest.mark.parametrize("quirks", QUIRKS)
def test_quirk_declares_silent_deletion(quirks: Quirks, world: Expiring) -> None:
    world.server.announced = EXPIRES[:-1]
    world.quirks = quirks
    world.server.mail = {name: letter(name) for name in ("a", "bad")}
    world.poison = {letter("bad")}
    world.run()
    assert world.server.mail == {"bad": letter("bad")}


@pytest.mark.parametrize("expire", ["EXPIRE 1", "EXPIRE NEVER", "EXPIRE 30", "EXPIRE"])
def test_first_session_deletes_marked_mail_at_other_servers(expire: str, world: Expiring) -> None:
    world.server.announced = (*EXPIRES[:-1], expire)
    world.server.removes_what_was_read = False
    world.server.mail = {name: letter(name) for name in ("a", "bad")}
    world.poison = {letter("bad")}
    world.collect(KEEP_NONE)
    assert world.server.mail == {"bad": letter("bad")}


def test_a_large_message_that_was_asked_for_and_refused(world: Expiring) -> None:
    world.server.mail = {"a": letter("a"), "bad": BAD}
    world.poison = {BAD}
    name = short_name(Message(2, "bad", len(BAD)))
    world.run(Policy(keep=0.0, largest=1000, whole=frozenset({name})))
    assert world.server.mail == {"bad": BAD}
