"""Mail collected into a maildrop of this server: stored once, and deleted as its user does."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from restante.collect.destinations import Destination
from restante.collect.destinations.maildrop import LocalMaildrop
from restante.collect.ledger import Ledger
from restante.collect.outcome import Outcome
from restante.collect.plan import Policy
from restante.collect.run import Run
from restante.errors import QuotaExceeded, TemporaryFailure
from restante.store.maildir import MaildirStore

from ..store.helpers import contents, listing, remove, run
from .shelf import Shelf
from .test_collector import Home, text
from .test_proof import World, letter

UNTIL_DELETED = Policy(keep=0.0, until_deleted=True)
WORDS = ("one", "two", "three")


class Maildrop(Home):
    """Collects into the maildrop of ``user``."""

    def __init__(self, base: Path, ledger: Ledger, context: ssl.SSLContext, ca_file: Path) -> None:
        shelf = Shelf(*((word, text(word)) for word in WORDS))
        super().__init__(shelf, ledger, "", context, ca_file)
        self.user = "ann"
        self.limit = 0
        self.base = base
        base.mkdir(exist_ok=True)
        self.store = MaildirStore(f"{base}/%u", limit=lambda _: self.limit)

    def opened(self) -> Destination:
        return LocalMaildrop(self.store.deliveries(self.user))

    def here(self) -> list[bytes]:
        return sorted(run(contents(self.store, self.user)))

    def delete(self, words: Collection[str]) -> None:
        """Delete messages as a POP3 client does."""

        async def story() -> None:
            entries = await listing(self.store, self.user)
            texts = await contents(self.store, self.user)
            chosen = set(map(text, words))
            victims = [each for each, its in zip(entries, texts, strict=True) if its in chosen]
            await remove(self.store, self.user, victims)

        run(story())

    def restore(self) -> None:
        async def story() -> None:
            await self.store.restore(self.user, await self.store.held(self.user))

        run(story())

    def purge(self) -> None:
        run(self.store.purge(self.user, time.time() + 10))

    def left(self) -> list[str]:
        """Return the messages left on their server."""
        return [row[0] for row in self.shelf.rows]


@pytest.fixture
def home(
    tmp_path: Path, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
) -> Iterator[Maildrop]:
    with closing(Ledger(tmp_path / "ledger")) as ledger:
        yield Maildrop(tmp_path / "mail", ledger, server_tls, certificate[0])


def test_deleted_there_when_it_was_purged_here_after_it_was_deleted(home: Maildrop) -> None:
    assert home.collect(UNTIL_DELETED).stored == 3
    home.delete(["one", "two"])
    assert home.collect(UNTIL_DELETED).deleted == 0
    home.restore()
    assert home.collect(UNTIL_DELETED).deleted == 0
    assert len(home.here()) == 3
    home.delete(["one"])
    assert home.collect(UNTIL_DELETED).deleted == 0
    home.purge()
    assert home.collect(UNTIL_DELETED).deleted == 1
    assert home.left() == ["two", "three"]


def restored(home: Maildrop) -> None:
    home.restore()


def another_maildrop(home: Maildrop) -> None:
    home.user = "bob"


def lost_disk(home: Maildrop) -> None:
    shutil.rmtree(home.base / "ann")


def older_backup(home: Maildrop) -> None:
    """Restore a backup from before the message arrived."""
    lost_disk(home)
    home.purge()


def another_program(home: Maildrop) -> None:
    for path in (home.base / "ann" / "held").iterdir():
        path.unlink()


def moved_by_imap(home: Maildrop) -> None:
    """Restore the message, and move it into a folder."""
    home.restore()
    folder = home.base / "ann" / ".Old" / "cur"
    folder.mkdir(parents=True)
    (folder.parent / "new").mkdir()
    for path in (home.base / "ann" / "new").iterdir():
        path.rename(folder / f"{path.name}:2,S")


@pytest.mark.parametrize(
    "change",
    [restored, another_maildrop, lost_disk, older_backup, another_program, moved_by_imap],
)
def test_nothing_is_deleted_there_because_it_is_not_held_any_more(
    change: object, home: Maildrop
) -> None:
    home.collect(UNTIL_DELETED)
    home.delete(WORDS)
    home.collect(UNTIL_DELETED)  # records that all of them are held
    assert callable(change)
    change(home)
    for _ in range(3):
        assert home.collect(UNTIL_DELETED).deleted == 0
    assert home.left() == list(WORDS)


def test_a_disk_that_is_not_mounted_deletes_nothing_there(home: Maildrop) -> None:
    home.collect(UNTIL_DELETED)
    home.delete(WORDS)
    home.collect(UNTIL_DELETED)
    home.base.rename(home.base.with_name("away"))
    with pytest.raises(TemporaryFailure, match="is it mounted"):
        home.collect(UNTIL_DELETED)
    assert home.left() == list(WORDS)
    assert not home.base.exists()


@pytest.mark.parametrize("policy", [Policy(), Policy(keep=0.0), UNTIL_DELETED])
def test_stored_and_held_mail_is_known_without_the_ledger(
    policy: Policy, home: Maildrop, tmp_path: Path
) -> None:
    home.collect(Policy())
    home.delete(["one"])
    with closing(Ledger(tmp_path / "another")) as ledger:
        home._ledger = ledger
        outcome = home.collect(policy)
    assert (outcome.stored, outcome.known) == (0, 3)
    assert home.here() == sorted([text("two"), text("three")])


def test_verified_against_stored_or_held_mail(home: Maildrop) -> None:
    """A copy changed by another program does not count."""
    policy = Policy(keep=0.0, verified=True)
    home.collect(policy)
    home.delete(["one"])
    (changed,) = (
        path for path in (home.base / "ann" / "new").iterdir() if path.read_bytes() == text("two")
    )
    changed.write_bytes(text("tw0"))
    outcome = home.collect(policy)
    assert (outcome.deleted, outcome.unverified) == (2, 1)
    assert home.left() == ["two"]


def test_no_room_stops_the_account_and_loses_nothing(home: Maildrop) -> None:
    home.limit = len(text("one")) + len(text("two"))
    for _ in range(2):
        with pytest.raises(QuotaExceeded):
            home.collect(Policy(keep=0.0))
    assert home.here() == sorted([text("one"), text("two")])
    assert "three" in home.left()
    home.delete(["one", "two"])
    home.collect(Policy(keep=0.0))
    assert home.here() == [text("three")]
    assert home.left() == []


class Small(World):
    """Collects into a maildrop with a quota, from a server that removes sent messages."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.limit = 0
        self.store = MaildirStore(f"{path}/%u", limit=lambda _: self.limit)
        self.server.removes_what_was_read = True

    def _destination(self) -> Destination:
        return LocalMaildrop(self.store.deliveries("ann"))

    def run_to_the_end(self, policy: Policy) -> list[Outcome]:
        """Collect as `restante collect` does: with another session for deletions if useful."""
        run = Run()
        with pytest.raises(QuotaExceeded):
            self.collect(policy, run=run)
        first = self.outcome
        return [first, self.collect(policy, run=run)] if first.may_go_on else [first]

    @property
    def here(self) -> list[bytes]:
        return sorted(run(contents(self.store, "ann")))


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_stored_mail_is_deleted_even_if_the_rest_does_not_fit(room: int, small: Small) -> None:
    """Messages without room stay there although they were sent."""
    mail = {word: letter(word) for word in ("one", "two", "six")}
    small.server.mail = {"old": letter("old")}
    small.collect(Policy())
    small.limit = sum(map(len, [letter("old"), *mail.values()][: room + 1]))
    small.server.mail = dict(mail)
    outcomes = small.run_to_the_end(Policy(keep=0.0))
    assert [each.deleted for each in outcomes] == ([0, room] if room else [0])
    assert outcomes[-1].later == (3 - room if room else 0)
    assert len(small.here) == 1 + room
    assert list(small.server.mail) == list(mail)[room:]


def test_earlier_mail_is_deleted_although_new_mail_has_no_room(
    small: Small,
) -> None:
    small.server.removes_what_was_read = False
    small.server.mail = {word: letter(word) for word in WORDS}
    assert small.collect(Policy()).stored == 3
    small.limit = sum(len(letter(word)) for word in WORDS)
    small.server.removes_what_was_read = True
    small.server.mail |= {"new": letter("new"), "more": letter("more")}
    outcomes = small.run_to_the_end(Policy(keep=0.0))
    assert [each.deleted for each in outcomes] == [0, 3]
    assert list(small.server.mail) == ["new", "more"]
    assert len(small.run_to_the_end(Policy(keep=0.0))) == 1
    assert list(small.server.mail) == ["new", "more"]


def test_a_message_that_never_has_room_stays_and_the_rest_comes(home: Maildrop) -> None:
    home.shelf.rows[1] = ("two", b"x" * 1000 + b"\r\n")
    home.limit = 200
    outcome = home.collect(Policy(keep=0.0))
    assert (outcome.stored, outcome.deleted, len(outcome.refused)) == (2, 2, 1)
    assert home.left() == ["two"]
