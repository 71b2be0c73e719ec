"""A message is deleted only if its octets are here and this session has identified it.

The tests check this at the server: which messages it removed, and which commands it got.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from restante.client.asynchronous import connect
from restante.collect.account_ledger import AccountLedger
from restante.collect.accounts import Mailbox
from restante.collect.collector import Account, LooksMoved, Outcome, collect
from restante.collect.destinations.opening import open_destination
from restante.collect.ledger import Ledger
from restante.collect.plan import Budget, Policy, short_name
from restante.collect.run import Run
from restante.errors import ConnectionLost, TemporaryFailure
from restante.pop3.listing import Message
from restante.pop3.quirks import Quirks

from ..client.shells import NONE, UNUSED, scripted
from .odd import Odd

DAY = 86_400.0
KEEP_NONE, KEEP_ALL, KEEP_WEEK = Policy(keep=0.0), Policy(), Policy(keep=7 * DAY)


def letter(name: str, body: str = "", **more: str) -> bytes:
    """Return a message whose header identifies it, with the fields RFC 5322 §3.6 requires."""
    fields = {"Message-ID": f"<{name}@example.org>", "Date": "Mon, 30 Nov 2026 10:00:00 +0000"}
    fields |= {"From": "ann@example.org", "Subject": name, **more}
    lines = [f"{key}: {value}\r\n" for key, value in fields.items()]
    return "".join([*lines, "\r\n", body or name, "\r\n"]).encode()


class World:
    """One server, one ledger and one destination, over many sessions."""

    def __init__(self, path: Path) -> None:
        self.now = 1_800_000_000.0
        self.server = Odd({}, announced=("UIDL", "TOP", "PIPELINING"))
        self.place = f"maildir:{path}/Mail"
        self.name = "isp"
        self.address = "pop3 pop.example.org ann"
        self.label = ""
        self.configured: tuple[str, ...] = ("isp",)
        self.quirks = Quirks()
        self.timeout = 20.0
        self._path = path

    def collect(self, policy: Policy = KEEP_ALL, **options: Any) -> Outcome:
        """Run a session; its result is in ``outcome`` even if it fails."""
        self.server.heard.clear()
        self.outcome = Outcome()

        async def main() -> None:
            async with scripted(self.server) as (port, _):
                log_in = partial(
                    connect,
                    f"pop3://127.0.0.1:{port}",
                    user="ann",
                    password="pw",
                    tls=NONE,
                    context=UNUSED,
                    quirks=self.quirks,
                    timeout=self.timeout,
                )
                mailbox = Mailbox(self.name, self.address, self.label, self.configured)
                account = Account(self.name, log_in, policy, mailbox)
                with closing(self.ledger()) as ledger, closing(self._destination()) as destination:
                    await collect(
                        account,
                        ledger,
                        destination,
                        clock=lambda: self.now,
                        outcome=self.outcome,
                        **options,
                    )

        asyncio.run(main())
        return self.outcome

    def _destination(self) -> Any:
        return open_destination(self.place)

    def ledger(self) -> Ledger:
        return Ledger(self._path / "ledger")

    @property
    def mail(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in (self._path / "Mail" / "new").iterdir())

    def asked(self, word: str) -> list[str]:
        """Return the unique-ids in the commands with this verb."""
        return [each.partition(" ")[2] for each in self.server.heard if each.startswith(word)]

    def as_by_an_older_version(self) -> None:
        """Reduce the ledger to rows of an older version, which have only digests of messages."""
        with closing(sqlite3.connect(self._path / "ledger")) as database, database:
            database.execute("UPDATE messages SET likeness = NULL, body = NULL")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# Messages stored in an earlier session.


def test_the_header_shows_which_message_it_is(world: World) -> None:
    """With one round of TOP and no further download."""
    world.server.mail = {name: letter(name) for name in ("a", "b", "c")}
    assert world.collect(KEEP_WEEK).stored == 3
    world.now += DAY
    world.collect(KEEP_WEEK)
    assert (world.asked("TOP"), world.asked("RETR"), world.asked("DELE")) == ([], [], [])
    for _ in range(8):
        world.now += DAY
        world.collect(KEEP_WEEK)
        if world.server.removed:
            break
    assert world.asked("TOP") == world.asked("DELE") == ["a", "b", "c"]
    assert world.asked("RETR") == []
    assert world.outcome.deleted == 3


@pytest.mark.parametrize("size", [0, 7])
def test_another_message_under_a_known_unique_id_is_stored_before_it_is_deleted(
    size: int, world: World
) -> None:
    """RFC 1939 §7 allows reuse after a removal that we did not see; also with the same size."""
    world.server.mail = {"a": letter("old", "1")}
    world.collect(KEEP_ALL)
    world.server.mail = {"a": letter("new", "2" * (1 + size))}
    world.collect(KEEP_NONE)
    assert world.mail == sorted([letter("old", "1"), letter("new", "2" * (1 + size))])
    assert world.asked("RETR") == ["a"]
    assert world.server.removed == {"a": letter("new", "2" * (1 + size))}
    assert "its unique-id belonged to a different message before" in world.outcome.notes[-1]


def test_new_mail_under_a_known_unique_id_stays_as_long_as_all_new_mail(world: World) -> None:
    """The policy for the older message does not apply to the new one."""
    world.server.mail = {"a": letter("old", "1")}
    world.collect(KEEP_WEEK)
    for day in range(8):
        world.now += DAY
        if day == 7:
            world.server.mail = {"a": letter("new", "2")}
        else:
            world.collect(replace(KEEP_WEEK, keep=30 * DAY))
    assert world.collect(KEEP_WEEK).stored == 1
    assert world.asked("DELE") == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda said, usual: b"-ERR what?\r\n" if said.startswith("TOP") else usual,
        lambda said, usual: b"+OK\r\n\r\n.\r\n" if said.startswith("TOP") else usual,
        lambda said, usual: usual.replace(b"Subject", b"X-Subject") if "TOP" in said else usual,
    ],
    ids=["refused", "empty", "other"],
)
@pytest.mark.parametrize("announced", [("UIDL", "TOP", "PIPELINING"), ("UIDL", "TOP"), ()])
def test_without_a_good_header_it_is_downloaded_and_compared(
    announced: tuple[str, ...], answer: Callable[[str, bytes], bytes], world: World
) -> None:
    world.server.mail = {name: letter(name) for name in map(str, range(10))}
    world.server.announced, world.server.answer = announced, answer
    world.collect(KEEP_ALL)
    outcome = world.collect(KEEP_NONE)
    assert (outcome.stored, outcome.known, outcome.deleted) == (0, 10, 10)
    assert len(world.mail) == 10


@pytest.mark.parametrize(
    ("announced", "hidden"), [(("UIDL",), frozenset()), (("UIDL", "TOP"), frozenset({"TOP"}))]
)
def test_a_server_without_top_is_not_asked_for_headers(
    announced: tuple[str, ...], hidden: frozenset[str], world: World
) -> None:
    world.server.mail = {"a": letter("a")}
    world.server.announced, world.quirks = announced, Quirks(hidden=hidden)
    world.collect(KEEP_ALL)
    world.collect(KEEP_NONE)
    assert (world.asked("TOP"), world.asked("RETR"), world.asked("DELE")) == ([], ["a"], ["a"])


def test_a_server_that_refuses_headers_is_not_asked_for_all(world: World) -> None:
    world.server.mail = {name: letter(name) for name in map(str, range(30))}
    world.server.announced = ("UIDL", "TOP")
    world.server.answer = lambda said, usual: b"-ERR\r\n" if said.startswith("TOP") else usual
    world.collect(KEEP_ALL)
    assert world.collect(KEEP_NONE).deleted == 30
    assert len(world.asked("TOP")) <= 5


def test_messages_of_an_older_version_are_downloaded_once_and_compared(world: World) -> None:
    world.server.mail = {name: letter(name) for name in ("a", "b", "c")}
    world.collect(KEEP_ALL)
    world.as_by_an_older_version()
    budget = replace(KEEP_NONE, budget=Budget(messages=5))
    outcome = world.collect(budget)  # three of the day's five are used
    assert (outcome.deleted, outcome.later, world.asked("RETR")) == (2, 1, ["a", "b"])
    world.now += DAY
    assert world.collect(budget).deleted == 1
    assert len(world.mail) == 3


def test_other_message_under_an_older_versions_id_is_stored(world: World) -> None:
    world.server.mail = {"a": letter("old", "1")}
    world.collect(KEEP_ALL)
    world.as_by_an_older_version()
    world.server.mail = {"a": letter("new", "2")}
    world.collect(KEEP_NONE)
    assert world.mail == sorted([letter("old", "1"), letter("new", "2")])


@pytest.mark.parametrize("is_kept", [True, False])
def test_adopted_mail_is_never_deleted(is_kept: bool, world: World) -> None:
    world.server.mail = {"a": letter("a")}
    with closing(world.ledger()) as ledger:
        ledger.of("isp").adopt([("a", len(letter("a")))], world.now)
    for _ in range(3):
        world.collect(KEEP_ALL if is_kept else KEEP_NONE)
        assert world.server.heard[-1] == "QUIT"
        assert (world.asked("RETR"), world.asked("DELE")) == ([], [])


# Messages that are listed again after they were gone.


@pytest.mark.parametrize("is_ours", [True, False], ids=["deleted by us", "deleted by its owner"])
@pytest.mark.parametrize("policy", [KEEP_ALL, KEEP_NONE, KEEP_WEEK])
def test_a_message_that_reappears_is_known_and_stays_in_that_session(
    policy: Policy, is_ours: bool, world: World
) -> None:
    """For example restored from the trash.  Later the policy applies, counted from now."""
    mail = {"a": letter("a"), "b": letter("b")}
    world.server.mail = dict(mail)
    world.collect(KEEP_NONE if is_ours else KEEP_ALL)
    world.server.mail = {"c": letter("c")}
    world.collect(KEEP_ALL)
    world.now += 30 * DAY
    world.server.mail = mail
    again = world.collect(policy)
    assert (again.stored, again.known, again.deleted) == (0, 2, 0)
    assert world.asked("DELE") == []
    later = world.collect(policy)
    assert later.known == 0
    assert later.deleted == (2 if policy is KEEP_NONE else 0)
    assert len(world.mail) == 3


def test_a_message_that_reappeared_stays_for_as_long_as_a_new_one(world: World) -> None:
    world.server.mail = {"a": letter("a")}
    world.collect(KEEP_NONE)
    world.server.mail = {"a": letter("a")}
    world.collect(KEEP_WEEK)
    gone_after = []
    for day in range(1, 10):
        world.now += DAY
        world.collect(KEEP_WEEK)
        if not world.server.mail:
            gone_after.append(day)
    assert gone_after[0] == 7


@pytest.mark.parametrize("policy", [KEEP_ALL, KEEP_NONE])
def test_other_mail_under_a_unique_id_that_was_deleted(policy: Policy, world: World) -> None:
    """With the same size and the same header."""
    old, new = letter("a", "body 1"), letter("a", "body 2")
    world.server.mail = {"a": old}
    world.collect(KEEP_NONE)
    world.server.mail = {"a": new}
    outcome = world.collect(policy)
    assert (outcome.stored, world.mail) == (1, sorted([old, new]))
    assert (world.server.mail == {}) is (policy is KEEP_NONE)
    again = world.collect(policy)
    assert (again.stored, world.mail) == (0, sorted([old, new]))


def test_two_messages_that_take_turns_under_one_unique_id_are_each_stored_once(
    world: World,
) -> None:
    one, two = letter("one"), letter("two")
    for _ in range(3):
        for each in (one, two):
            world.server.mail = {"a": each}
            world.collect(KEEP_ALL)
            world.server.mail = {"b": letter("b")}
            world.collect(KEEP_ALL)
    assert world.mail == sorted([one, two, letter("b")])


def test_a_listing_in_parts_or_an_empty_one_shows_nothing_gone(world: World) -> None:
    world.server.mail = {name: letter(name) for name in ("a", "b")}
    world.collect()
    for quirks, mail in ((Quirks(), {}), (Quirks(in_parts=True), {"c": letter("c")})):
        whole, world.server.mail, world.quirks = world.server.mail, mail, quirks
        world.collect()
        world.server.mail, world.quirks = whole, Quirks()
        world.collect()
        assert world.asked("RETR") == []


# Servers that rewrite messages.


def test_a_server_that_adds_header_fields_at_quit_brings_nothing_twice(world: World) -> None:
    """GNU mailutils' pop3d adds Status: and X-UIDL:, so that the size changes."""
    world.server.mail = {name: letter(name) for name in ("a", "b")}
    world.collect()
    extra = b"Status: O\r\nX-UIDL: 1234\r\n"
    rewritten = {name: extra + octets for name, octets in world.server.mail.items()}
    world.server.mail = dict(rewritten)
    outcome = world.collect()
    assert (outcome.stored, outcome.known, outcome.notes) == (0, 2, [])
    assert world.collect().known == 0  # that is settled
    world.collect(Policy(keep=0.0, verified=True))
    assert world.outcome.deleted == 2  # the copy here is the message as first received
    assert world.server.removed == rewritten
    assert world.mail == sorted([letter("a"), letter("b")])


def test_a_server_that_rewrites_a_body_gives_another_message(world: World) -> None:
    world.server.mail = {"a": letter("a", "text")}
    world.collect()
    world.server.mail = {"a": letter("a", "text with a footer")}
    assert world.collect().stored == 1
    assert len(world.mail) == 2


# Bodies shorter than announced.


def test_a_part_is_stored_and_stays_until_a_later_session_has_compared_it(world: World) -> None:
    world.server.mail = {"a": letter("a"), "b": letter("b")}
    world.server.sizes = {"a": 100_000}
    first = world.collect(KEEP_NONE)
    assert (first.stored, first.deleted) == (2, 1)
    text = "received 108 of 100000 octets; the message will be compared in the next session"
    assert first.short == [f"message 1: {text}"]
    assert list(world.server.mail) == ["a"]
    second = world.collect(KEEP_NONE)  # so the server counts differently
    assert (second.stored, second.known, second.deleted) == (0, 1, 1)
    assert len(world.mail) == 2


@pytest.mark.parametrize("policy", [KEEP_ALL, KEEP_NONE, KEEP_WEEK])
def test_when_all_of_it_comes_later_that_is_stored(policy: Policy, world: World) -> None:
    """With every policy, because the copy here is incomplete."""
    whole = letter("a", "line\r\n" * 1000)
    world.server.sizes = {"a": len(whole)}
    world.server.mail = {"a": letter("a")}
    assert len(world.collect(policy).short) == 1
    world.server.mail = {"a": whole}
    second = world.collect(policy)
    assert (second.stored, second.short) == (1, [])
    assert world.mail == sorted([letter("a"), whole])
    assert world.asked("DELE") == (["a"] if policy is KEEP_NONE else [])
    assert world.collect(policy).stored == 0


def test_parts_of_one_message_are_not_all_stored(world: World) -> None:
    world.server.sizes = {"a": 100_000}
    for length in range(1, 20):
        world.server.mail = {"a": letter("a", "line\r\n" * length)}
        world.collect(KEEP_NONE)
        assert world.asked("DELE") == []
        world.now += 8 * DAY  # meanwhile it is set aside
    assert len(world.mail) == 1


def test_a_whole_message_that_comes_in_part_later_is_still_known(world: World) -> None:
    whole = letter("a", "line\r\n" * 1000)
    world.server.mail = {"a": whole}
    world.collect(KEEP_ALL)
    world.server.mail = {"b": letter("b")}
    world.collect(KEEP_ALL)
    world.server.mail, world.server.sizes = {"a": letter("a")}, {"a": len(whole)}
    outcome = world.collect(KEEP_NONE)
    assert outcome.refused == ["message 1: only part of the message was received"]
    assert (outcome.stored, outcome.deleted) == (0, 0)
    assert world.mail == sorted([whole, letter("b")])


@pytest.mark.parametrize(
    ("lines", "announced", "is_short"),
    [
        (100, 100, False),  # line ends counted twice: one octet per line
        (0, 1023, False),  # rounded up to the next KiB
        (0, 1100, True),
        (100, 1300, True),
    ],
)
def test_servers_that_count_a_little_more_are_believed(
    lines: int, announced: int, is_short: bool, world: World
) -> None:
    octets = letter("a", "x\r\n" * lines)
    world.server.mail, world.server.sizes = {"a": octets}, {"a": len(octets) + announced}
    outcome = world.collect(KEEP_NONE)
    assert (len(outcome.short), outcome.deleted) == ((1, 0) if is_short else (0, 1))


def test_the_notice_of_exchange_in_place_of_a_message_is_not_one(world: World) -> None:
    notice = (
        b"From: Microsoft Exchange Server\r\nSubject: Retrieval using the POP3 protocol failed for "
        b"the following message: 7\r\n\r\nThe server couldn't retrieve the following message:\r\n"
    )
    world.server.mail, world.server.sizes = {"a": notice, "b": letter("b")}, {"a": 40_000}
    outcome = world.collect(KEEP_NONE)
    assert (outcome.stored, list(world.server.mail), world.mail) == (1, ["a"], [letter("b")])
    assert "Exchange" in outcome.refused[0]


# Servers without unique-ids.


def nameless(said: str, usual: bytes) -> bytes:
    return b"-ERR what?\r\n" if said == "UIDL" else usual


def test_missing_unique_ids_do_not_mean_the_provider_moved(world: World) -> None:
    world.server.mail = {name: letter(name) for name in map(str, range(40))}
    world.server.announced, world.server.answer = (), nameless
    assert [world.collect().stored for _ in range(3)] == [40, 0, 0]


def test_without_unique_ids_only_verified_copies_are_deleted(world: World, tmp_path: Path) -> None:
    world.server.mail = {name: letter(name) for name in ("a", "b")}
    world.server.announced, world.server.answer = (), nameless
    policy = Policy(keep=0.0, verified=True)
    world.collect(policy)
    one = next((tmp_path / "Mail" / "new").iterdir())
    damaged = one.read_bytes()
    one.write_bytes(b"damaged")
    outcome = world.collect(policy)
    assert (outcome.deleted, outcome.unverified) == (1, 1)
    assert list(world.server.mail.values()) == [damaged]


def test_without_unique_ids_the_newest_stay(world: World) -> None:
    world.server.mail = {name: letter(name) for name in "abcd"}
    world.server.announced, world.server.answer = (), nameless
    policy = Policy(keep=0.0, newest=3)
    world.collect(policy)
    assert world.collect(policy).deleted == 1
    assert list(world.server.mail) == ["b", "c", "d"]
    assert world.collect(policy).deleted == 0


@pytest.mark.parametrize("policy", [KEEP_ALL, KEEP_NONE])
def test_without_unique_ids_a_message_that_reappears_is_known(policy: Policy, world: World) -> None:
    world.server.mail = {"a": letter("a")}
    world.server.announced, world.server.answer = (), nameless
    world.collect(KEEP_NONE)
    world.server.mail = {"a": letter("a")}
    again = world.collect(policy)
    assert (again.stored, again.known, again.deleted) == (0, 1, 0)


# After a crash, or without the ledger.


@pytest.mark.parametrize("is_begun", [True, False], ids=["begun", "ledger lost"])
def test_a_file_of_that_name_with_other_octets_is_no_proof(
    is_begun: bool, world: World, tmp_path: Path
) -> None:
    """The unique-id may have been reused for a message of the same size."""
    old, new = letter("a", "body 1"), letter("a", "body 2")
    world.server.mail = {"a": old}
    world.collect(KEEP_ALL)
    for each in tmp_path.glob("ledger*"):
        each.unlink()
    if is_begun:
        with closing(world.ledger()) as ledger:
            ledger.of("isp").intend([("a", len(old))])
    world.server.mail = {"a": new}
    outcome = world.collect(KEEP_NONE)
    assert (outcome.stored, outcome.deleted, world.mail) == (1, 1, sorted([old, new]))


def test_lost_ledger_repeats_nothing_and_deletes_equal_messages(
    world: World, tmp_path: Path
) -> None:
    world.server.mail = {"a": letter("a"), "b": letter("b")}
    world.collect(KEEP_ALL)
    for each in tmp_path.glob("ledger*"):
        each.unlink()
    outcome = world.collect(KEEP_NONE)
    assert (outcome.stored, outcome.known, outcome.deleted) == (0, 2, 2)


@pytest.mark.parametrize("is_removed", [True, False])
def test_after_a_lost_answer_to_quit_other_mail_is_not_taken_for_known(
    is_removed: bool, world: World
) -> None:
    """The message may have been removed and its unique-id reused unnoticed."""
    old, new = letter("a", "body 1"), letter("b", "body 2")
    world.server.mail = {"a": old}
    world.server.closes = lambda said: said == "QUIT"
    with pytest.raises(ConnectionLost):
        world.collect(KEEP_NONE)
    world.server.closes = lambda said: False
    if is_removed:
        world.server.mail = {"a": new}
    outcome = world.collect(KEEP_ALL)
    assert world.mail == (sorted([old, new]) if is_removed else [old])
    assert (outcome.deleted, world.asked("TOP")) == (0, ["a"])
    world.collect(KEEP_ALL)
    assert world.asked("TOP") == []  # that is settled


# Records of deletions.


def test_each_deletion_is_recorded_before_it_is_asked_for(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.server.mail = {name: letter(name) for name in ("a", "b", "c")}
    world.server.answer = lambda said, usual: b"-ERR no\r\n" if said == "DELE 2" else usual
    world.collect(KEEP_NONE)
    with closing(world.ledger()) as ledger:
        found = [(each.key, each.answer) for each in ledger.of("isp").removals()]
        assert found == [("a", "removed"), ("b", "refused"), ("c", "removed")]
        reasons = {each.why for each in ledger.of("isp").removals()}
        assert reasons == {"the account keeps no mail on the server"}
        assert {each.evidence for each in ledger.of("isp").removals()} == {
            "fetched and stored in this session"
        }
    logged = [each.fields for each in caplog.records if each.message == "deleted upstream"]  # type: ignore[attr-defined]
    assert [each["message"] for each in logged] == [
        short_name(Message(1, name, len(letter(name)))) for name in ("a", "c")
    ]
    assert all(each["account"] == "isp" and each["why"] for each in logged)


def test_a_deletion_whose_answer_is_lost_is_recorded_as_not_known(world: World) -> None:
    world.server.mail = {"a": letter("a")}
    world.server.closes = lambda said: said == "QUIT"
    with pytest.raises(ConnectionLost):
        world.collect(KEEP_NONE)
    with closing(world.ledger()) as ledger:
        assert [each.answer for each in ledger.of("isp").removals()] == [""]
    world.server.closes = lambda said: False
    world.collect(KEEP_NONE)
    with closing(world.ledger()) as ledger:
        assert [each.answer for each in ledger.of("isp").removals()] == ["not known", "removed"]


# The deletion limit.


LIMITED = Policy(keep=0.0, deletions=3)


def test_a_new_account_deletes_few_messages_on_its_first_day(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.server.mail = {name: letter(name) for name in "abcd"}
    outcome = world.collect(LIMITED)
    assert (outcome.stored, outcome.deleted, outcome.withheld) == (4, 0, 4)
    assert "deletions withheld" in caplog.text
    world.now += DAY - 1
    assert world.collect(LIMITED).withheld == 4
    world.now += 2
    assert world.collect(LIMITED).deleted == 4


def test_the_first_day_of_an_account_begins_when_its_mail_is_first_listed(world: World) -> None:
    """A failed login does not begin it."""
    world.server.mail = {name: letter(name) for name in "abcd"}
    world.server.closes = lambda said: said == "LIST"
    for _ in range(3):
        with pytest.raises(ConnectionLost):
            world.collect(LIMITED)
        world.now += DAY
    world.server.closes = lambda said: False
    assert world.collect(LIMITED).withheld == 4
    world.now += DAY - 1
    assert world.collect(LIMITED).withheld == 4
    world.now += 2
    assert world.collect(LIMITED).deleted == 4


def test_the_limit_is_for_all_sessions_of_that_day(world: World) -> None:
    for names, deleted in (("ab", 2), ("c", 1), ("d", 0), ("ef", 0)):
        world.server.mail |= {name: letter(name) for name in names}
        assert world.collect(LIMITED).deleted == deleted
    world.now += DAY + 1
    assert world.collect(LIMITED).deleted == 3


def test_a_changed_rule_begins_another_day(world: World) -> None:
    """Messages collected while all were kept are reported before deletion, and go in steps."""
    world.server.mail = {name: letter(name) for name in "abcd"}
    kept = replace(LIMITED, keep=None)
    for _ in range(3):
        world.collect(kept)
        world.now += DAY
    outcome = world.collect(LIMITED)
    assert (outcome.deleted, outcome.withheld) == (0, 4)
    assert outcome.notes == [
        "the deletion rule was changed from keep=all newest=0 to keep=0s newest=0; "
        "messages to delete: 4"
    ]
    assert world.collect(LIMITED).notes == []
    world.now += DAY + 1
    assert world.collect(LIMITED).deleted == 4


def test_few_messages_go_at_once_by_a_new_rule_and_are_reported(world: World) -> None:
    world.server.mail = {name: letter(name) for name in "ab"}
    world.collect(replace(LIMITED, keep=None))
    world.now += DAY
    outcome = world.collect(LIMITED)
    assert (outcome.deleted, len(outcome.notes)) == (2, 1)


def test_an_operator_can_let_all_deletions_go(world: World) -> None:
    world.server.mail = {name: letter(name) for name in "abcd"}
    assert world.collect(LIMITED).withheld == 4
    assert world.collect(replace(LIMITED, deletions=None)).deleted == 4
    world.server.mail = {name: letter(name) for name in "efgh"}
    assert world.collect(LIMITED).deleted == 4  # the answer is remembered


# Clocks.


def test_a_clock_that_jumps_makes_no_message_old(world: World) -> None:
    """The clock jumps by ten years for less than a day, with sessions every hour."""
    world.server.mail = {"a": letter("a")}
    world.collect(KEEP_WEEK)
    for hour in range(23):
        world.now += 3650 * DAY if hour == 0 else 3600
        assert world.collect(KEEP_WEEK).deleted == 0
    world.now -= 3650 * DAY
    for _ in range(4):
        world.now += DAY
        assert world.collect(KEEP_WEEK).deleted == 0


@pytest.mark.parametrize("hours", [24, 30])
def test_mail_that_came_after_a_long_absence_is_as_old_as_it_is(hours: int, world: World) -> None:
    """The time that the machine was off counts for mail that was there before."""
    world.server.mail = {"old": letter("old")}
    world.collect(KEEP_WEEK)
    world.now += 40 * DAY
    world.server.mail["new"] = letter("new")
    world.collect(KEEP_WEEK)
    began = world.now
    world.now += hours * 3600
    world.collect(KEEP_WEEK)
    assert world.asked("DELE") == ["old"]
    while world.now + DAY / 2 < began + 7 * DAY:
        world.now += DAY / 2
        assert world.collect(KEEP_WEEK).deleted == 0
    world.now = began + 7 * DAY + 1
    assert world.collect(KEEP_WEEK).deleted == 1


def test_a_day_of_few_deletions_is_a_day_after_a_long_absence(world: World) -> None:
    world.collect(LIMITED)
    world.now += 40 * DAY
    world.server.mail = {name: letter(name) for name in "abcd"}
    world.collect(replace(LIMITED, keep=None))
    world.now += DAY - 3600
    assert world.collect(LIMITED).withheld == 4
    world.now += DAY - 3600
    assert world.collect(LIMITED).withheld == 4
    world.now += 2 * 3600
    assert world.collect(LIMITED).deleted == 4


def test_a_clock_without_a_battery_makes_no_message_old(world: World) -> None:
    """The clock starts in 1970 after each reboot, and is corrected an hour later."""
    world.server.mail = {"a": letter("a")}
    for day in range(5):
        right, world.now = world.now, 100.0
        world.collect(KEEP_WEEK)
        world.now = right + 3600
        assert world.collect(KEEP_WEEK).deleted == 0, day


def test_a_time_stamp_from_the_future_uses_no_budget(world: World) -> None:
    world.server.mail = {"a": letter("a"), "b": letter("b")}
    world.now += 3650 * DAY
    world.collect(Policy(limit=1, budget=Budget(messages=1)))
    world.now -= 3650 * DAY
    assert world.collect(Policy(budget=Budget(messages=1))).stored == 1


# Has the provider moved?


def many(prefix: str, count: int = 25) -> dict[str, bytes]:
    return {f"{prefix}{at}": letter(f"{prefix}{at}") for at in range(count)}


def test_mail_that_its_owner_deleted_raises_no_question(world: World) -> None:
    """The headers show that the mail that looks new is new."""
    world.server.mail = many("old", 300)
    world.collect()
    for day in range(3):
        world.server.mail = many(f"day{day}-")
        assert world.collect().stored == 25
    assert len(world.mail) == 375


@pytest.mark.parametrize("again", ["fetch", "dedupe"])
def test_an_answer_is_remembered(again: str, world: World) -> None:
    """If the headers identify nothing, the operator is asked once."""
    world.server.mail = {f"old{at}": b"Subject: x\r\n\r\n%d\r\n" % at for at in range(300)}
    world.collect()
    world.server.mail = {f"a{at}": b"Subject: x\r\n\r\na %d\r\n" % at for at in range(25)}
    with pytest.raises(LooksMoved):
        world.collect()
    assert world.collect(again=again).stored == 25
    for day in range(3):
        mail = {f"{day} {at}": b"Subject: x\r\n\r\n%d %d\r\n" % (day, at) for at in range(25)}
        world.server.mail = mail
        assert world.collect().stored == 25
    moved = {f"moved{at}": octets for at, octets in enumerate(mail.values())}
    world.server.mail = moved
    outcome = world.collect()  # a provider that really moves causes no duplicates
    assert (outcome.stored, outcome.known) == (0, 25)


def test_a_provider_that_moved_is_seen_by_its_headers(world: World) -> None:
    world.server.mail = many("old")
    world.collect()
    world.server.mail = {f"new{at}": each for at, each in enumerate(world.server.mail.values())}
    with pytest.raises(LooksMoved):
        world.collect()
    assert world.asked("RETR") == []


def test_after_a_move_rewritten_headers_bring_nothing_twice(world: World) -> None:
    world.server.mail = many("old")
    world.collect()
    world.server.mail = {
        f"new{at}": b"Received: from the old server\r\n" + each
        for at, each in enumerate(world.server.mail.values())
    }
    outcome = world.collect(KEEP_NONE, again="dedupe")
    assert (outcome.stored, outcome.known, outcome.deleted) == (0, 25, 25)


def test_unique_ids_that_are_missing_for_once_bring_nothing_twice(world: World) -> None:
    world.server.mail = many("a", 5)
    world.server.announced = ("TOP",)
    world.collect()
    world.server.answer = nameless
    assert world.collect().stored == 0
    world.server.answer = lambda said, usual: usual
    assert world.collect().stored == 0
    assert len(world.mail) == 5


def _replaced(old: bytes, new: bytes, said: str, usual: bytes) -> bytes:
    return usual.replace(old, new)


@pytest.mark.parametrize("count", [9, 40])
def test_interrupted_migration_stores_no_duplicates(count: int, world: World) -> None:
    """After half of it, the other messages are still unknown."""
    world.server.mail = many("old", count)
    world.collect(KEEP_WEEK)
    world.server.mail = {f"new {name}": each for name, each in world.server.mail.items()}
    world.server.closes = lambda said: said == "RETR new old5"
    with pytest.raises(ConnectionLost):
        world.collect(KEEP_WEEK, again="dedupe")
    world.server.closes = lambda said: False
    assert world.collect(KEEP_WEEK).stored == 0
    assert len(world.mail) == count
    for _ in range(8):
        world.now += DAY
        world.collect(KEEP_WEEK)
    assert world.server.mail == {}


def test_a_message_with_another_unique_id_is_known_among_many_with_theirs(world: World) -> None:
    """And an equal message is not mistaken for it."""
    world.server.mail = many("a", 5) | {"old": letter("same"), "twin": letter("same")}
    world.collect()
    world.server.mail = many("a", 5) | {"new": letter("same"), "other": letter("same")}
    assert (world.collect().stored, world.outcome.known) == (0, 2)
    world.server.mail["third"] = letter("same")
    assert world.collect().stored == 1
    assert world.mail.count(letter("same")) == 3


def test_a_message_is_known_under_a_unique_id_that_another_had(world: World) -> None:
    world.server.mail = {"a": letter("one"), "b": letter("two")}
    world.collect()
    world.server.mail = {"a": letter("two", "two"), "c": letter("c")}
    world.collect(KEEP_NONE)
    world.server.mail = {"a": letter("one")}
    for _ in range(3):
        world.collect(KEEP_NONE)
    assert world.server.mail == {}
    assert world.mail == sorted(map(letter, ("one", "two", "c")))


@pytest.mark.parametrize("double", ["", "2"])
def test_unique_ids_of_which_one_stands_twice_bring_nothing_twice_after_none(
    double: str, world: World
) -> None:
    """Such a listing is incomplete; messages stored without unique-id are known by content."""
    world.server.mail = {each: letter(each) for each in "1234"}
    usual, world.server.answer = world.server.answer, nameless
    world.server.announced = ()
    assert world.collect().stored == 4
    world.server.answer, world.server.announced = usual, ("UIDL", "TOP")
    if double:
        world.server.answer = lambda said, usual: (
            usual.replace(b"2 2\r\n", b"2 1\r\n") if said == "UIDL" else usual
        )
    world.server.mail["5"] = letter("5")
    assert world.collect().stored == 1
    assert world.collect(KEEP_NONE).stored == 0
    assert len(world.mail) == 5


def test_unique_ids_that_a_server_adds_later_cause_no_duplicates(world: World) -> None:
    """The operator added the quirk, or the server was upgraded; equal messages are counted."""
    world.server.mail = {**many("a", 30), "same": letter("same"), "twin": letter("same")}
    world.server.announced, world.server.answer = ("TOP",), nameless
    assert world.collect().stored == 32
    world.server.announced, world.server.answer = ("UIDL", "TOP"), lambda said, usual: usual
    assert world.collect().stored == 0
    world.server.mail["third"] = letter("same")
    assert [world.collect().stored for _ in range(2)] == [1, 0]


def test_two_messages_that_share_a_unique_id_for_once_come_once(world: World) -> None:
    world.server.mail = many("a", 5)
    for other in (b"2 a0", b"2 a1", b"2 a0"):
        world.server.answer = partial(_replaced, b"2 a1", other)
        world.collect()
    assert len(world.mail) == 5


# Accounts with a new name or address.


def test_an_account_that_is_renamed_by_hand_is_recognised(world: World) -> None:
    world.server.mail = {name: letter(name) for name in "ab"}
    world.collect(KEEP_ALL)
    world.name, world.configured = "home", ("home",)
    world.server.mail["c"] = letter("c")
    outcome = world.collect(KEEP_ALL)
    assert (outcome.stored, world.asked("RETR")) == (1, ["c"])
    assert outcome.notes == [
        "the account was renamed from isp; its record of collected messages was kept"
    ]
    assert world.collect(Policy(keep=0.0, verified=True)).deleted == 3
    assert len(world.mail) == 3


def test_two_accounts_at_one_address_are_two(world: World) -> None:
    """As long as both are configured: they may have different destinations."""
    world.server.mail = {"a": letter("a")}
    world.collect()
    world.name, world.configured = "copy", ("isp", "copy")
    outcome = world.collect()
    assert (outcome.stored, outcome.notes) == (1, [])


def test_a_name_that_is_used_again_names_other_messages(world: World) -> None:
    """The renamed account keeps the names of its messages; the new one must use others."""
    world.server.mail = {"a": letter("a")}
    world.collect()
    world.name, world.configured = "home", ("home",)
    world.collect()
    world.name, world.configured = "isp", ("home", "isp")
    world.address = "pop3 pop.example.com bob"
    world.server.mail = {"a": letter("b")}
    assert world.collect(KEEP_NONE).stored == 1
    assert world.mail == sorted([letter("a"), letter("b")])


def test_an_account_at_another_address_knows_the_same_mail_by_its_headers(world: World) -> None:
    """The provider has given its server another name."""
    world.server.mail = {name: letter(name) for name in "ab"}
    world.collect()
    world.address = "pop3 mail.example.org ann"
    outcome = world.collect()
    assert (outcome.stored, world.asked("TOP"), world.asked("RETR")) == (0, ["a", "b"], [])
    world.collect()
    assert world.asked("TOP") == []


def test_an_account_that_leads_to_another_mailbox_takes_its_mail(world: World) -> None:
    """Even if it has the same unique-ids and sizes."""
    world.server.mail = {name: letter(f"{name}1") for name in "ab"}
    world.collect()
    world.address = "pop3 pop.example.com bob"
    world.server.mail = {name: letter(f"{name}2") for name in "ab"}
    assert world.collect().stored == 2
    assert len(world.mail) == 4


def test_a_label_outlives_the_ledger(world: World, tmp_path: Path) -> None:
    world.server.mail = {"a": letter("a")}
    world.collect()
    for each in tmp_path.glob("ledger*"):
        each.unlink()
    world.name, world.label, world.configured = "home", "isp", ("home",)
    outcome = world.collect()
    assert (outcome.stored, outcome.known) == (0, 1)


# Messages that end the connection.


def sessions(world: World, policy: Policy = KEEP_NONE, most: int = 3) -> list[str]:
    """Run `restante collect` once: if a connection is lost at a message, another session begins
    at once."""
    ends, run = [], Run()
    for at in range(most):
        run.is_last = at == 2
        try:
            world.collect(policy, run=run)
            ends.append("ended well")
        except ConnectionLost:
            ends.append("lost")
        if not world.outcome.may_go_on:
            break
    return ends


def breaks_at(*names: str) -> Callable[[str], bool]:
    """Close the connection at each RETR of these messages."""
    return lambda said: said in {f"RETR {each}" for each in names}


@pytest.mark.parametrize("announced", [("UIDL", "TOP", "PIPELINING"), ("UIDL", "TOP")])
@pytest.mark.parametrize("name", ["1", "3", "5"])
def test_a_message_that_ends_the_connection_is_set_aside(
    name: str, announced: tuple[str, ...], world: World
) -> None:
    world.server.mail = {each: letter(each) for each in "12345"}
    world.server.announced = announced
    world.server.closes = lambda said: said == f"RETR {name}"
    for _ in range(2):
        sessions(world)
    assert list(world.server.mail) == [name]
    assert world.mail == sorted(letter(each) for each in "12345" if each != name)
    assert world.outcome.skipped[0].startswith("message 1: set aside after 2 tries (the connection")


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("most", [1, 3])
def test_mail_is_fetched_in_the_next_run_after_a_short_outage(
    count: int, most: int, world: World
) -> None:
    """However often the connection was lost in the run before, at any message."""
    world.server.mail = {each: letter(each) for each in "12345"[:count]}
    world.server.closes = lambda said: said.startswith("RETR")
    sessions(world, most=most)
    world.server.closes = lambda said: False
    assert sessions(world) == ["ended well"]
    assert (len(world.mail), world.server.mail, world.outcome.skipped) == (count, {}, [])
    with closing(world.ledger()) as ledger:
        assert ledger.of("isp").aside() == {}


def test_two_losses_at_a_message_set_it_aside_for_the_rest_of_the_run(world: World) -> None:
    world.server.mail = {each: letter(each) for each in "123"}
    world.server.closes = breaks_at("2")
    assert sessions(world) == ["lost", "lost", "ended well"]
    assert list(world.server.mail) == ["2"]
    name = short_name(Message(2, "2", len(letter("2"))))
    reason = "the connection was lost during its download); tried again in the next run"
    assert world.outcome.skipped == [f"message 2: set aside ({reason}, or now: --whole {name}"]


def test_the_next_run_tries_it_last_and_if_that_fails_it_waits_a_day(world: World) -> None:
    world.server.mail = {each: letter(each) for each in "123"}
    world.server.closes = breaks_at("1")
    sessions(world)
    world.server.mail |= {each: letter(each) for each in "45"}
    assert sessions(world, most=1) == ["lost"]
    assert world.asked("RETR") == ["4", "5", "1"]
    assert sessions(world) == ["ended well"]
    assert list(world.server.mail) == ["1"]
    for _ in range(5):
        world.now += 4 * 3600
        assert sessions(world) == ["ended well"]
        assert world.asked("RETR") == []
        assert world.outcome.skipped[0].startswith("message 1: set aside after 2 tries (the conn")
    world.now += 4 * 3600
    assert sessions(world)[0] == "lost"


@pytest.mark.parametrize(
    "count", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4, 7))]
)
def test_messages_that_always_break_the_connection_do_not_block_others(
    count: int, world: World
) -> None:
    """At least every third session fetches new messages and deletes due ones; the bad ones are
    found in the least possible number of runs."""
    bad = [f"bad{at}" for at in range(count)]
    world.server.closes = breaks_at(*bad)
    world.server.mail = {each: letter(each) for each in bad}
    for at in range(20):
        good = [f"good{at}", f"fine{at}"]
        world.server.mail |= {each: letter(each) for each in good}
        ends = sessions(world)
        world.now += 3600
        if at >= count // 3:
            assert ends[-1] == "ended well"
            assert list(world.server.mail) == bad
    assert len(world.mail) == 40


@pytest.mark.slow
def test_bad_messages_are_rarely_retried(world: World) -> None:
    bad = [f"bad{at}" for at in range(4)]
    world.server.closes = breaks_at(*bad)
    world.server.mail = {each: letter(each) for each in bad}
    lost = 0
    for _ in range(24 * 7):
        lost += sessions(world).count("lost")
        world.now += 3600
    assert lost <= 5 * len(bad)  # two or three times on the first day; then after 1, 2 and 4 days


def test_a_run_of_many_sessions_tries_a_bad_message_twice(world: World) -> None:
    """A server that lists its mail in parts needs several sessions."""
    world.place = "command:/bin/false"
    world.server.mail = {"1": letter("1")}
    run = Run()
    asked = []
    for _ in range(5):
        world.collect(KEEP_NONE, run=run)
        asked += world.asked("RETR")
    assert asked == ["1", "1"]


def test_after_a_restart_a_run_begins(world: World) -> None:
    """The first run was killed after its connection was lost twice."""
    world.server.mail = {each: letter(each) for each in "12"}
    world.server.closes = breaks_at("1")
    run = Run()
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            world.collect(KEEP_NONE, run=run)
    world.server.closes = lambda said: False
    assert sessions(world) == ["ended well"]
    assert (len(world.mail), world.server.mail) == (2, {})


def test_the_clock_does_not_decide_which_run_it_is(world: World) -> None:
    world.server.mail = {each: letter(each) for each in "12"}
    world.server.closes = breaks_at("1")
    sessions(world)
    world.server.closes = lambda said: False
    world.now -= DAY
    assert sessions(world) == ["ended well"]
    assert world.server.mail == {}


def test_messages_set_aside_by_an_earlier_version_keep_waiting(world: World) -> None:
    world.server.mail = {each: letter(each) for each in "12"}
    world.collect(replace(KEEP_ALL, limit=0))
    with closing(world.ledger()) as ledger, ledger.transaction() as database:
        reason = "the connection was lost during its download"
        row = ("isp", b"1", 2, reason, world.now + DAY)
        database.execute("INSERT INTO aside VALUES (?, ?, ?, ?, ?)", row)
    sessions(world)
    assert list(world.server.mail) == ["1"]
    world.now += DAY + 1
    sessions(world)
    assert world.server.mail == {}


def test_messages_set_aside_are_tried_again_and_stored(world: World) -> None:
    world.server.mail = {each: letter(each) for each in "12"}
    world.server.closes = breaks_at("1")
    for _ in range(2):
        sessions(world)
    world.server.closes = lambda said: False
    world.now += DAY - 3600
    assert world.collect(KEEP_NONE).stored == 0
    world.now += 3601
    assert world.collect(KEEP_NONE).stored == 1
    assert world.server.mail == {}
    with closing(world.ledger()) as ledger:
        assert ledger.of("isp").aside() == {}


@pytest.mark.slow
def test_the_waits_grow_up_to_a_week(world: World) -> None:
    world.server.mail = {"1": letter("1")}
    world.server.closes = breaks_at("1")
    tries = []
    for at in range(4 * 30):
        if "lost" in sessions(world):
            tries.append(at / 4)
        world.now += DAY / 4
    assert [later - earlier for earlier, later in pairwise(tries)] == [0.25, 1, 2, 4, 7, 7, 7]


@pytest.mark.parametrize("runs", [1, 2])
def test_a_message_is_taken_by_its_name_although_it_was_set_aside(runs: int, world: World) -> None:
    world.server.mail = {each: letter(each) for each in "12"}
    world.server.closes = breaks_at("1")
    for _ in range(runs):
        sessions(world)
    world.server.closes = lambda said: False
    name = short_name(Message(1, "1", len(letter("1"))))
    assert world.collect(Policy(whole=frozenset([name]))).stored == 1


def test_a_message_named_by_hand_does_not_block_the_others_either(world: World) -> None:
    """And it is not reported as missing, since it is there."""
    world.server.mail = {each: letter(each) for each in "12"}
    world.server.closes = breaks_at("1")
    name = short_name(Message(1, "1", len(letter("1"))))
    ends = sessions(world, replace(KEEP_NONE, whole=frozenset([name])))
    assert ends == ["lost", "lost", "ended well"]
    assert (list(world.server.mail), world.outcome.refused) == (["1"], [])


def test_a_message_without_end_does_not_stop_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After twice its size it is abandoned, and the rest is discarded until the deadline."""
    monkeypatch.setattr("restante.collect.fetching._SIZE_TOLERANCE", 1000)
    world.server.mail = {each: letter(each) for each in "123"}
    world.timeout = 0.5
    world.server.answer = lambda said, usual: (
        b"+OK\r\n" + b"x" * 70_000 if said.startswith("RETR") and letter("2") in usual else usual
    )
    world.server.announced = ("UIDL", "TOP")
    for _ in range(2):
        sessions(world)
    assert list(world.server.mail) == ["2"]
    assert world.mail == sorted([letter("1"), letter("3")])


def test_a_header_that_ends_the_connection_sets_its_message_aside(world: World) -> None:
    world.server.mail = {each: letter(each) for each in "123"}
    world.collect(KEEP_ALL)
    world.server.closes = lambda said: said == "TOP 2"
    for _ in range(2):
        sessions(world)
    assert list(world.server.mail) == ["2"]


def test_header_that_ends_the_connection_does_not_block_new_mail(
    world: World,
) -> None:
    """All unique-ids are new, so headers must show whether the messages are."""
    world.server.mail = {f"old{at}": letter(f"old{at}") for at in range(25)}
    world.collect(KEEP_ALL)
    world.server.mail = {f"new{at}": letter(f"new{at}") for at in range(25)}
    world.server.closes = lambda said: said.endswith(" new3")
    assert sessions(world) == ["lost", "lost", "ended well"]
    assert list(world.server.mail) == ["new3"]


def test_message_without_unique_id_that_ends_the_connection_is_known_by_size(world: World) -> None:
    world.server.mail = {each: letter(each, each * int(each)) for each in "123"}
    world.server.announced, world.server.answer = (), nameless
    world.server.closes = lambda said: said == "RETR 2"
    for _ in range(2):
        sessions(world)
    assert list(world.server.mail) == ["2"]


def test_messages_the_destination_refuses_are_not_downloaded_every_session(
    world: World, tmp_path: Path
) -> None:
    words = f"cat > {tmp_path}/in", f"grep -q poison {tmp_path}/in && exit 65", "exit 0"
    program = tmp_path / "program"
    program.write_text("\n".join(["#!/bin/sh", *words, ""]))
    program.chmod(0o755)
    world.place = f"command:{program}"
    world.server.mail = {"1": letter("1"), "2": letter("poison"), "3": letter("3")}
    downloads = 0
    for _ in range(10):
        world.collect(KEEP_NONE)
        downloads += world.asked("RETR").count("2")
        assert world.outcome.refused or world.outcome.skipped
        world.now += 3600
    assert (downloads, list(world.server.mail)) == (2, ["2"])


# Pipelining.


class Hasty(Odd):
    """Announces PIPELINING, and closes the connection when commands are pipelined."""

    async def __call__(self, peer: Any) -> None:
        inner = peer.hear

        async def hear() -> bytes:
            line = await inner()
            is_of_one = line.split(b" ")[0] in (b"RETR", b"TOP", b"DELE")
            if is_of_one and peer.reader._buffer:
                raise ConnectionResetError
            return bytes(line)

        peer.hear = hear
        await super().__call__(peer)


@pytest.mark.parametrize("is_silent", [False, True], ids=["closes", "loses commands"])
def test_pipelining_that_does_not_work_is_given_up(is_silent: bool, world: World) -> None:
    mail = {each: letter(each) for each in "12345"}
    announced = ("UIDL", "TOP", "PIPELINING")
    world.server = Odd(mail, announced=announced) if is_silent else Hasty(mail, announced=announced)
    world.server.loses_commands = is_silent
    world.timeout = 0.5
    assert sessions(world, most=2) == ["lost", "ended well"]
    assert len(world.mail) == 5
    assert world.server.mail == {}


def test_the_quirk_is_named(world: World) -> None:
    world.server = Hasty({each: letter(each) for each in "12"}, announced=("UIDL", "PIPELINING"))
    with pytest.raises(ConnectionLost):
        world.collect()
    assert "hide:PIPELINING" in world.outcome.notes[0]


def test_after_a_week_pipelining_is_tried_again(world: World) -> None:
    world.server = Hasty({each: letter(each) for each in "12"}, announced=("UIDL", "PIPELINING"))
    assert sessions(world, KEEP_ALL) == ["lost", "ended well"]
    world.server.mail = {each: letter(each) for each in "34"}
    world.now += 6 * DAY
    assert sessions(world, KEEP_ALL) == ["ended well"]
    world.now += DAY
    sessions(world, KEEP_ALL)
    world.server.mail = {each: letter(each) for each in "56"}
    world.now += DAY + 1
    assert sessions(world, KEEP_ALL) == ["lost", "ended well"]


def test_a_connection_that_breaks_within_a_message_says_nothing_of_pipelining(
    world: World,
) -> None:
    """The network is a more likely cause."""
    world.server.mail = {each: letter(each) for each in "123"}
    world.server.answer = lambda said, usual: usual[:-20] if said == "RETR 1" else usual
    world.timeout = 0.5
    with pytest.raises(ConnectionLost):
        world.collect()
    assert world.outcome.notes == []


# QUIT.


@pytest.mark.parametrize("is_silent", [False, True])
def test_quit_without_an_answer_is_no_failure_when_nothing_was_marked(
    is_silent: bool, world: World
) -> None:
    """RFC 1939 §6: QUIT removes marked messages, and none were marked."""
    world.server.mail = {"a": letter("a")}
    world.timeout = 0.5
    if is_silent:
        world.server.answer = lambda said, usual: b"" if said == "QUIT" else usual
    else:
        world.server.closes = lambda said: said == "QUIT"
    assert [world.collect(KEEP_ALL).stored for _ in range(2)] == [1, 0]
    world.server.mail = {"b": letter("b")}
    with pytest.raises(ConnectionLost):
        world.collect(KEEP_NONE)


# Removed accounts in the ledger.


def test_forgetting_an_account_forgets_all_of_it(world: World) -> None:
    world.server.mail = {"a": letter("a"), "b": letter("b")}
    world.server.closes = lambda said: said == "RETR b"
    sessions(world, most=1)
    with closing(world.ledger()) as ledger:
        ledger.of("isp").forget()
        with ledger.reading() as database:
            for table in ("messages", "accounts", "removals", "aside", "sessions", "runs"):
                (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
                assert count == 0, table


def test_a_message_that_was_present_is_deleted_only_if_it_is_the_same(world: World) -> None:
    """For `restante fetch` too: a name and a size are not evidence."""
    world.server.mail = {"a": letter("a", "body 1"), "b": letter("b")}
    world.collect(KEEP_ALL, adopt_present=True)
    with closing(world.ledger()) as ledger:
        ledger.of("isp").forget()
    world.server.mail["a"] = letter("a", "body 2")
    outcome = world.collect(KEEP_NONE, adopt_present=True)
    assert (outcome.present, outcome.stored, outcome.deleted) == (2, 1, 2)
    assert world.mail == sorted([letter("a", "body 1"), letter("a", "body 2"), letter("b")])


@pytest.mark.parametrize("announced", [("UIDL", "TOP"), ("UIDL",), ("TOP",)])
@pytest.mark.parametrize("stubs", [False, True])
def test_a_message_that_is_left_there_is_reported_once_in_a_run(
    announced: tuple[str, ...], stubs: bool, world: World
) -> None:
    """Its number may change in the next session; the next run reports it again."""
    world.server.announced = announced
    world.server.mail = {"a": letter("a"), "large": letter("l" * 99), "larger": letter("m" * 99)}
    world.server.answer = lambda said, usual: (
        b"-ERR what?\r\n" if said == "UIDL" and said not in announced else usual
    )
    policy = Policy(keep=0.0, largest=300, stubs=stubs)
    is_stored = stubs and announced == ("UIDL", "TOP")
    for _ in range(2):
        run = Run()
        reports = [len(world.collect(policy, run=run).skipped) for _ in range(3)]
        assert reports == [0 if is_stored else 2, 0, 0]
    assert [*world.server.mail] == ["large", "larger"]


# Names of messages at the destination.


def dies(world: World) -> None:
    """Kill the process after a message is stored and before the ledger records it."""
    killed = mock.patch.object(AccountLedger, "took", side_effect=TemporaryFailure("killed"))
    with killed, pytest.raises(TemporaryFailure):
        world.collect()


@pytest.mark.parametrize("size", [0, 500])
@pytest.mark.parametrize("is_other", [False, True])
def test_size_that_changes_after_a_crash_causes_no_duplicates(
    size: int, is_other: bool, world: World
) -> None:
    """For new mail, and for other mail under a known unique-id."""
    policy = Policy(keep=0.0, verified=True)
    if is_other:
        world.server.mail = {"a": letter("before")}
        world.collect()
    world.server.mail = {"a": letter("a")}
    dies(world)
    assert letter("a") in world.mail
    world.server.sizes = {"a": size}
    world.collect(policy)
    assert world.mail.count(letter("a")) == 1
    world.collect(policy)
    assert (world.server.mail, world.outcome.unverified) == ({}, 0)


@pytest.mark.parametrize("body", ["", "a body of another size"])
def test_mail_with_a_reused_unique_id_is_recognised_after_the_ledger_is_lost(
    body: str, world: World, tmp_path: Path
) -> None:
    """Servers may reuse the unique-id of a message that is gone (RFC 1939 §7)."""
    world.server.mail = {"a": letter("a"), "b": letter("b")}
    world.collect()
    world.server.mail = {"b": letter("b")}
    world.collect()
    world.server.mail = {"a": letter("c", body), "b": letter("b")}
    world.collect()
    assert len(world.mail) == 3
    for each in tmp_path.glob("ledger*"):
        each.unlink()
    world.collect()
    assert len(world.mail) == 3
