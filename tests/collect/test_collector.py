"""The collector with our own server: it stores mail once, and deletes it only when safe."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest

from restante.collect import fetching
from restante.collect.collector import LoginTooSoon, LooksMoved, Outcome, collect
from restante.collect.destinations import Destination
from restante.collect.destinations.opening import open_destination
from restante.collect.destinations.spooled import Spooled
from restante.collect.ledger import Ledger
from restante.collect.ledger_file import AccountBusy
from restante.collect.pace import Pace, run_sessions
from restante.collect.plan import Budget, Policy, short_name
from restante.errors import (
    ConfigurationError,
    ConnectionLost,
    LoginFailed,
    LoginWithheld,
    TemporaryFailure,
)
from restante.passdb import Terms
from restante.pop3.dialogue import WINDOW_COMMANDS
from restante.pop3.listing import Message
from restante.pop3.session import Policy as Session

from .shelf import Shelf, account, remote

DAY = 86_400.0


def text(word: str) -> bytes:
    return f"Subject: {word}\r\n\r\n{word}\r\n".encode()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger")
    yield opened
    opened.close()


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    return tmp_path / "Mail"


class Home:
    """Collects from a shelf, any number of times."""

    def __init__(
        self,
        shelf: Shelf,
        ledger: Ledger,
        place: str,
        context: ssl.SSLContext,
        ca_file: Path,
        password: str = "",
    ) -> None:
        self.shelf = shelf
        self.now = 1_800_000_000.0
        self.login_delay = 0
        self.remote_password = "tan staaf"
        self._ledger, self.place, self._context, self._ca = ledger, place, context, ca_file
        self._password = password  # of the destination

    def opened(self) -> Destination:
        return open_destination(self.place, password=lambda: self._password, ca_file=self._ca)

    def collect(self, policy: Policy | None = None, **options: Any) -> Outcome:
        async def main() -> Outcome:
            async with remote(self.shelf, self._context) as server:
                server.service.policy = Session(terms=Terms(self.login_delay))
                with closing(self.opened()) as destination:
                    return await collect(
                        account(server.port, self._ca, policy, self.remote_password),
                        self._ledger,
                        destination,
                        clock=lambda: self.now,
                        **options,
                    )

        return asyncio.run(main())


@pytest.fixture
def home(
    ledger: Ledger, mail: Path, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
) -> Home:
    rows = [(word, text(word)) for word in ("one", "two", "three")]
    return Home(Shelf(*rows), ledger, f"maildir:{mail}", server_tls, certificate[0])


def stored(mail: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (mail / "new").iterdir())


def test_taken_once_and_kept(home: Home, mail: Path) -> None:
    assert home.collect().stored == 3
    assert stored(mail) == sorted(map(text, ("one", "two", "three")))
    home.shelf.read.clear()
    second = home.collect()
    assert (second.stored, home.shelf.read) == (0, [])
    assert len(home.shelf.rows) == 3


def test_message_moved_away_locally_is_not_fetched_again(home: Home, mail: Path) -> None:
    home.collect()
    for path in (mail / "new").iterdir():
        path.unlink()
    assert home.collect().stored == 0


def test_deleted_at_once_when_nothing_is_kept(home: Home, mail: Path) -> None:
    outcome = home.collect(Policy(keep=0.0))
    assert (outcome.stored, outcome.deleted) == (3, 3)
    assert home.shelf.rows == []
    assert len(stored(mail)) == 3


def test_deleted_after_its_days(home: Home) -> None:
    home.collect(Policy(keep=7 * DAY))
    home.now += 6 * DAY
    assert home.collect(Policy(keep=7 * DAY)).deleted == 0
    home.now += DAY
    assert home.collect(Policy(keep=7 * DAY)).deleted == 3
    assert home.shelf.rows == []


@pytest.mark.rfc("P-190")
def test_forgotten_deletions_are_repeated(home: Home, mail: Path) -> None:
    """Only after comparing the messages listed again: they may be other mail (RFC 1939 §7)."""
    home.shelf.forgets_deletions = True
    home.collect(Policy(keep=0.0))
    again = home.collect(Policy(keep=0.0))
    assert (again.stored, again.known, again.deleted) == (0, 3, 0)
    assert home.collect(Policy(keep=0.0)).deleted == 3
    assert len(stored(mail)) == 3


def test_verified_deletion_needs_an_unchanged_copy(home: Home, mail: Path) -> None:
    policy = Policy(keep=0.0, verified=True)
    assert home.collect(policy).deleted == 0
    one, two, three = sorted((mail / "new").iterdir(), key=lambda path: path.read_bytes())
    one.write_bytes(b"changed")
    two.rename(mail / "cur" / f"{two.name}:2,S")  # read by a mail client: still there
    three.unlink()
    outcome = home.collect(policy)
    assert (outcome.deleted, outcome.unverified) == (1, 2)
    assert len(home.shelf.rows) == 2


@pytest.mark.parametrize(
    ("place", "policy", "words"),
    [
        ("maildir:{}/Mail", Policy(keep=0.0, until_deleted=True), "until-deleted"),
        ("mbox:{}/mbox", Policy(keep=0.0, until_deleted=True), "until-deleted"),
        ("mbox:{}/mbox", Policy(keep=0.0, verified=True), "until-verified"),
        ("command:true", Policy(keep=0.0, verified=True), "until-verified"),
    ],
)
def test_a_keep_that_the_destination_cannot_support_is_refused(
    place: str, policy: Policy, words: str, home: Home, tmp_path: Path
) -> None:
    """It is not reported as a damaged copy."""
    home.place = place.format(tmp_path)
    with pytest.raises(ConfigurationError, match=words):
        home.collect(policy)
    assert home.shelf.read == []


def test_a_short_listing_forgets_nothing(home: Home) -> None:
    home.collect()
    whole, home.shelf.rows = home.shelf.rows, home.shelf.rows[:1]
    home.collect()
    home.shelf.rows = []
    home.collect()
    home.shelf.rows = whole
    assert home.collect().stored == 0


def test_refused_message_stays_and_is_reported(home: Home, mail: Path) -> None:
    home.shelf.unreadable = {"two"}
    outcome = home.collect(Policy(keep=0.0))
    assert (outcome.stored, len(outcome.refused)) == (2, 1)
    assert [row[0] for row in home.shelf.rows] == ["two"]
    home.shelf.unreadable = set()
    assert home.collect(Policy(keep=0.0)).stored == 1
    assert stored(mail) == sorted(map(text, ("one", "two", "three")))


@pytest.mark.slow
def test_a_server_that_gives_nothing_more_is_not_asked_for_all(home: Home, mail: Path) -> None:
    """For example a server with a daily limit; the rest waits for the next session.

    At most WINDOW_COMMANDS requests are sent before the first refusal arrives.
    """
    count = WINDOW_COMMANDS + 200
    home.shelf.rows = [(f"u{at}", text(f"letter {at}")) for at in range(count)]
    home.shelf.unreadable = {f"u{at}" for at in range(1, count)}
    outcome = home.collect()
    assert outcome.stored == 1
    assert outcome.later >= 100
    assert outcome.later_for == "refusals"
    assert len(outcome.refused) + outcome.later == count - 1
    home.shelf.unreadable = set()
    assert home.collect().stored == count - 1


@pytest.mark.rfc("P-107")
def test_two_messages_with_one_unique_id_are_both_kept(home: Home, mail: Path) -> None:
    """RFC 1939 §7 lets a server do so."""
    home.shelf.rows = [("u", text("one")), ("u", text("two")), ("u", text("two"))]
    assert home.collect().stored == 3
    assert stored(mail) == [text("one"), text("two"), text("two")]
    again = home.collect()
    assert (again.stored, again.known) == (0, 3)
    assert home.collect(Policy(keep=0.0)).deleted == 3
    assert len(stored(mail)) == 3


def test_equal_messages_with_their_own_unique_ids_are_both_stored(home: Home, mail: Path) -> None:
    home.shelf.rows = [("u", text("one")), ("v", text("one"))]
    assert home.collect().stored == 2
    assert stored(mail) == [text("one"), text("one")]


def test_new_mail_with_an_old_unique_id_is_stored(home: Home, mail: Path) -> None:
    home.shelf.rows = [("u", text("one"))]
    home.collect()
    home.shelf.rows = [("u", text("another"))]
    assert home.collect(Policy(keep=0.0)).stored == 1
    assert stored(mail) == [text("another"), text("one")]
    assert home.shelf.rows == []


def many(prefix: str, count: int = 30) -> list[tuple[str, bytes]]:
    return [(f"{prefix}{at}", text(f"letter {at}")) for at in range(count)]


def test_collector_stops_if_nearly_all_messages_look_new(home: Home, mail: Path) -> None:
    home.shelf.rows = many("old")
    home.collect()
    home.shelf.rows = [*many("new"), ("really", text("new"))]
    home.shelf.read.clear()
    with pytest.raises(LooksMoved, match="31 of 31"):
        home.collect(Policy(keep=0.0))
    assert home.shelf.read == []
    assert len(home.shelf.rows) == 31


def test_dedupe_stores_only_new_content(home: Home, mail: Path) -> None:
    home.shelf.rows = many("old")
    home.collect()
    home.shelf.rows = [*many("new"), ("really", text("new"))]
    outcome = home.collect(Policy(keep=0.0), again="dedupe")
    assert (outcome.stored, outcome.known, outcome.deleted) == (1, 30, 31)
    assert len(stored(mail)) == 31


@pytest.mark.parametrize("keep", [None, 0.0])
def test_few_messages_with_new_unique_ids_are_recognised_by_content(
    keep: float | None, home: Home, mail: Path
) -> None:
    """They are too few to ask the operator, but can always be compared."""
    home.shelf.rows = many("old")[:5]
    home.collect()
    home.shelf.rows = [*many("new")[:5], ("really", text("new"))]
    outcome = home.collect(Policy(keep=keep))
    assert (outcome.stored, outcome.known) == (1, 5)
    assert outcome.deleted == (6 if keep == 0 else 0)
    assert len(stored(mail)) == 6
    assert home.collect(Policy(keep=keep)).stored == 0


def test_fetch_stores_all_of_it_again(home: Home, mail: Path) -> None:
    home.shelf.rows = many("old")
    home.collect()
    home.shelf.rows = many("new")
    assert home.collect(again="fetch").stored == 30
    home.shelf.rows = many("newer")[:5]
    assert home.collect(again="fetch").stored == 5
    assert len(stored(mail)) == 65


def test_dry_run_changes_nothing(home: Home, mail: Path) -> None:
    outcome = home.collect(Policy(keep=0.0), dry_run=True)
    assert outcome.stored == 3
    assert (stored(mail), home.shelf.read, len(home.shelf.rows)) == ([], [], 3)
    assert home.collect(Policy(keep=0.0)).stored == 3


def test_large_mail_stays_and_is_reported_every_time(home: Home) -> None:
    policy = Policy(keep=0.0, largest=len(text("two")))
    skipped = [home.collect(policy).skipped for _ in range(2)]
    sizes = f"{len(text('three'))} octets, more than {len(text('two'))}"
    limit = f"{sizes}; to fetch it: --whole {name_of('three')}"
    assert skipped == [[f"message 3: {limit}"], [f"message 1: {limit}"]]
    assert [row[0] for row in home.shelf.rows] == ["three"]


def name_of(word: str) -> str:
    return short_name(Message(1, word, len(text(word))))


def test_a_stub_is_stored_once_and_its_message_stays(home: Home, mail: Path) -> None:
    policy = Policy(keep=0.0, largest=len(text("two")), stubs=True)
    first = home.collect(policy)
    assert (first.stored, first.stubs, first.deleted, first.skipped) == (2, 1, 2, [])
    second = home.collect(policy)
    assert (second.stored, second.stubs, second.deleted) == (0, 0, 0)
    assert [row[0] for row in home.shelf.rows] == ["three"]
    (found,) = [each for each in stored(mail) if each.startswith(b"X-Restante-Stub: isp ")]
    assert f"collect isp --whole {name_of('three')}\r\n".encode() in found
    assert b"\r\nSubject: three\r\n" in found


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_whole_message_is_stored_once_after_its_stub(
    is_asked_for: bool, home: Home, mail: Path
) -> None:
    """It is fetched by name or after the limit was raised, and only then may be deleted."""
    largest = len(text("two"))
    home.collect(Policy(keep=0.0, largest=largest, stubs=True))
    name = name_of("three")
    wanted = Policy(largest=largest, stubs=True, whole=frozenset([name])) if is_asked_for else None
    assert home.collect(wanted).stored == 1
    assert text("three") in stored(mail)
    again = home.collect(wanted)
    assert again.stored == 0
    refused = [f"{name}: not on the server, or already collected"]
    assert again.refused == (refused if is_asked_for else [])
    assert home.collect(Policy(keep=0.0, largest=largest, stubs=True)).deleted == 1
    assert (home.shelf.rows, len(stored(mail))) == ([], 4)


def test_stubs_are_not_expected_to_be_listed(home: Home, ledger: Ledger) -> None:
    """Otherwise thirty stubs would look as if the provider had moved."""
    home.collect(Policy(largest=1, stubs=True))
    assert ledger.of("isp").expected() == 0


def test_after_a_move_a_stub_is_known_by_its_header(home: Home, mail: Path) -> None:
    home.shelf.rows = [*many("old"), ("large", text("large" * 100))]
    policy = Policy(largest=400, stubs=True)
    assert home.collect(policy).stubs == 1
    home.shelf.rows = [*many("new"), ("moved", text("large" * 100))]
    assert home.collect(policy, again="dedupe").stubs == 0
    assert home.collect(policy).stubs == 0
    assert len(stored(mail)) == 31


def test_no_stub_is_made_of_a_header_that_the_server_does_not_give(home: Home, mail: Path) -> None:
    home.shelf.unreadable = {"three"}
    policy = Policy(largest=len(text("two")), stubs=True)
    assert [len(home.collect(policy).refused) for _ in range(2)] == [1, 1]
    assert len(stored(mail)) == 2
    home.shelf.unreadable = set()
    assert home.collect(policy).stubs == 1


def test_a_used_up_budget_leaves_the_rest_for_the_next_day(home: Home, mail: Path) -> None:
    policy = Policy(keep=0.0, budget=Budget(messages=2))
    first = home.collect(policy)
    assert (first.stored, first.later, first.deleted) == (2, 1, 2)
    home.now += DAY - 1
    second = home.collect(policy)
    assert (second.stored, second.later, len(stored(mail))) == (0, 1, 2)
    home.now += 1
    assert home.collect(policy).stored == 1


def test_octets_count_however_the_session_ends(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Octets that the server sent are counted even if the connection is lost."""
    monkeypatch.setattr(fetching, "_GROUP_SIZE", 1)
    came: list[int] = []

    def progress(messages: object, octets: int) -> None:
        came.append(octets)
        if sum(came) > len(text("one")):
            raise ConnectionLost("pulled out")

    with pytest.raises(ConnectionLost):
        home.collect(progress=progress)
    used = ledger.of("isp").used_in_a_day(home.now)
    assert (used.messages, used.octets) == (2, len(text("one")) + len(text("two")))


def test_headers_count_too(home: Home, ledger: Ledger) -> None:
    home.collect(Policy(largest=1, stubs=True))
    assert ledger.of("isp").used_in_a_day(home.now).octets == sum(
        len(f"Subject: {word}\r\n\r\n") for word in ("one", "two", "three")
    )


def test_logins_have_a_budget_also_when_they_fail(home: Home, ledger: Ledger) -> None:
    policy = Policy(budget=Budget(logins=2))
    ledger.of("isp").record_attempt(home.now - 10)
    home.collect(policy)
    with pytest.raises(LoginTooSoon) as caught:
        home.collect(policy)
    assert caught.value.seconds == 3590
    home.now += 3590
    home.collect(policy)


@pytest.mark.parametrize(("group", "safe"), [(64, 0), (1, 2)])
def test_full_disk_deletes_only_stored_messages(
    group: int, safe: int, home: Home, mail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third message has no room: its whole group fails, and nothing else."""
    real, synced = os.fsync, [0]

    def full(file: int) -> None:
        if stat.S_ISREG(os.fstat(file).st_mode):
            synced[0] += 1
            if synced[0] == 3:
                raise OSError(28, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_GROUP_SIZE", group)
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            home.collect(Policy(keep=0.0))
    assert len(home.shelf.rows) == 3  # QUIT was never sent
    assert len(stored(mail)) == safe
    assert list((mail / "tmp").iterdir()) == []
    outcome = home.collect(Policy(keep=0.0))
    assert stored(mail) == sorted(map(text, ("one", "two", "three")))
    assert outcome.deleted == 3


def test_second_collector_of_one_account_does_nothing(home: Home, ledger: Ledger) -> None:
    with ledger.of("isp").alone(), pytest.raises(AccountBusy):
        home.collect()
    assert home.shelf.read == []


def test_crash_of_an_mbox_run_is_counted_as_doubt(
    ledger: Ledger, tmp_path: Path, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
) -> None:
    """An mbox has no names, so an interrupted message may or may not be in it."""
    home = Home(
        Shelf(("u", text("one")), ("v", text("two"))),
        ledger,
        f"mbox:{tmp_path}/mbox",
        server_tls,
        certificate[0],
    )
    ledger.of("isp").intend([("u", len(text("one")))])
    outcome = home.collect()
    assert (outcome.stored, outcome.in_doubt) == (2, 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_session_that_is_ended_waits_for_the_destination(
    fails: bool, home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended by SIGTERM or the deadline while a thread delivers a message: closing its connection
    would corrupt the message, and the result must be recorded."""
    deeds: list[str] = []
    working, may_end = threading.Event(), threading.Event()

    class Slow(Spooled):
        def _deliver(self, message: IO[bytes]) -> None:
            working.set()
            assert may_end.wait(10)
            deeds.append(str(len(message.read())))
            if fails:
                raise TemporaryFailure("not now")

        def abort(self) -> None:
            deeds.append("abort")
            super().abort()

    async def main() -> None:
        async with remote(home.shelf, home._context) as server:
            with closing(Slow()) as slow:
                work = asyncio.ensure_future(collect(account(server.port, home._ca), ledger, slow))
                await asyncio.to_thread(working.wait, 10)
                for _ in range(2):  # an impatient operator
                    work.cancel()
                    await asyncio.sleep(0.01)
                may_end.set()
                with pytest.raises(asyncio.CancelledError):
                    await work

    asyncio.run(main())
    assert deeds[:2] == [str(len(text("one"))), "abort"]
    known = ledger.of("isp").known(["one"])["one"].at
    assert (known is None) == fails


@pytest.mark.parametrize("group", [1, 2, 256])
def test_lost_connection_keeps_stored_messages(
    group: int, home: Home, mail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete messages are kept, so each attempt makes progress."""
    monkeypatch.setattr(fetching, "_GROUP_SIZE", group)
    taken: list[int] = []

    def progress(messages: object, octets: int) -> None:
        if octets:
            taken.append(octets)
        if len(taken) == 3:
            raise ConnectionLost("pulled out")

    with pytest.raises(ConnectionLost):
        home.collect(Policy(keep=0.0), progress=progress)
    assert (len(stored(mail)), len(home.shelf.rows)) == (2, 3)
    assert home.collect(Policy(keep=0.0)).deleted == 3
    assert stored(mail) == sorted(map(text, ("one", "two", "three")))


@pytest.mark.rfc("P-088")
def test_login_waits_for_login_delay(home: Home) -> None:
    """RFC 2449 §6.5: the delay counts from the login, even if the session fails."""
    home.login_delay = 900
    assert home.collect().stored == 3
    home.now += 899
    with pytest.raises(LoginTooSoon):
        home.collect()
    home.now += 1
    assert home.collect().stored == 0


def test_next_session_of_a_run_waits_for_login_delay(home: Home, ledger: Ledger) -> None:
    home.login_delay = 900
    outcomes: list[Outcome] = []
    slept: list[float] = []

    async def session() -> Outcome:
        outcomes.append(await asyncio.to_thread(home.collect))
        return outcomes[-1]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        home.now += seconds
        if len(slept) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(
            run_sessions(
                session,
                lambda now: ledger.of("isp").may_begin(now),
                Pace(60, 60),
                sleep=sleep,
                clock=lambda: home.now,
                jitter=min,
            )
        )
    assert slept == [900, 900, 900]
    assert [each.stored for each in outcomes] == [3, 0, 0]


@pytest.mark.slow
def test_refused_credentials_are_tried_seldom(home: Home, ledger: Ledger) -> None:
    """However often it is started, so that the server does not lock the owner out."""
    home.remote_password = "wrong"
    with pytest.raises(LoginFailed):
        home.collect()
    tries = []
    for _ in range(24 * 60):
        home.now += 60
        try:
            home.collect()
        except LoginFailed:
            tries.append(home.now)
        except LoginWithheld:
            pass
    assert len(tries) == 7
    home.remote_password = "tan staaf"
    with pytest.raises(LoginWithheld, match=r"refused 8 times; .*restante account test isp"):
        home.collect()
    home.now += DAY
    assert home.collect().stored == 3
    assert home.collect().stored == 0


def test_refusal_dated_in_the_future_is_ignored(home: Home, ledger: Ledger) -> None:
    ledger.of("isp").record_refusal(home.now + 1)  # the clock was put back
    assert home.collect().stored == 3
