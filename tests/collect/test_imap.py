"""An IMAP folder as a destination: messages are stored once, even if an answer is lost."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from restante.collect.destinations import Destination, imap, name_of
from restante.collect.destinations.opening import open_destination
from restante.collect.ledger import Ledger
from restante.collect.plan import Policy
from restante.errors import ConfigurationError, MessageRefused, TemporaryFailure, UnsafeArgument

from .imap import ImapStandIn, imap_server
from .shelf import Shelf
from .test_collector import Home, text

LETTER = b"Date: Tue, 3 Mar 2020 10:11:12 +0100\r\nSubject: x\r\n\r\nhello\r\n"


@pytest.fixture
def server(server_tls: ssl.SSLContext) -> Iterator[ImapStandIn]:
    with imap_server(server_tls) as running:
        yield running


def opened(server: ImapStandIn, ca_file: Path, folder: str = "") -> Destination:
    place = f"imaps://ann@127.0.0.1:{server.port}/{folder}"
    return open_destination(place, password=lambda: "tan staaf", ca_file=ca_file)


def give(destination: Destination, octets: bytes, identity: str = "any") -> None:
    assert destination.begin(identity)
    destination.write(octets)
    try:
        destination.commit()
    finally:
        destination.abort()


def test_a_message_keeps_its_octets_behind_our_mark_and_its_date(
    server: ImapStandIn, certificate: tuple[Path, Path]
) -> None:
    received = b"Received: by mx; Wed, 4 Mar 2020 10:00:00 +0000\r\n"
    with closing(opened(server, certificate[0])) as destination:
        give(destination, LETTER)
        give(destination, received + LETTER, "other")
        give(destination, b"no header\r\n", "odd")
    marks, rests = zip(*(each.split(b"\r\n", 1) for each in server.stored), strict=True)
    assert rests == (LETTER, received + LETTER, b"no header\r\n")
    assert len(set(marks)) == 3
    assert all(mark.startswith(b"X-Restante: ") for mark in marks)
    assert b'"03-Mar-2020 10:11:12 +0100"' in server.appended[0]
    assert b'"04-Mar-2020 10:00:00 +0000"' in server.appended[1]


def test_a_folder_that_is_missing_is_made(
    server: ImapStandIn, certificate: tuple[Path, Path]
) -> None:
    with closing(opened(server, certificate[0], "Old%20mail")) as destination:
        give(destination, LETTER)
    assert any(b'CREATE "Old mail"' in line for line in server.heard)
    assert b'"Old mail"' in server.appended[0]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"NO [OVERQUOTA] full", TemporaryFailure),
        (b"NO [UNAVAILABLE] later", TemporaryFailure),
        (b"NO something", MessageRefused),
        (b"NO [TOOBIG] too big", MessageRefused),
        (b"BAD a NUL, perhaps", MessageRefused),
        (b"lost", MessageRefused),
    ],
)
def test_failed_store_raises_an_error(
    answer: bytes, error: type[Exception], server: ImapStandIn, certificate: tuple[Path, Path]
) -> None:
    """The next message is stored, on a new connection if necessary."""
    server.answers = [answer]
    with closing(opened(server, certificate[0])) as destination:
        with pytest.raises(error):
            give(destination, LETTER)
        give(destination, LETTER, "next")
    assert len(server.stored) == 1


@pytest.fixture
def home(
    server: ImapStandIn,
    tmp_path: Path,
    server_tls: ssl.SSLContext,
    certificate: tuple[Path, Path],
) -> Iterator[Home]:
    with closing(Ledger(tmp_path / "ledger")) as ledger:
        shelf = Shelf(*((word, text(word)) for word in ("one", "two", "three")))
        place = f"imaps://ann@127.0.0.1:{server.port}/"
        yield Home(shelf, ledger, place, server_tls, certificate[0], "tan staaf")


def bodies(server: ImapStandIn) -> list[bytes]:
    return [each.split(b"\r\n", 1)[1] for each in server.stored]


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"lost", b"stored-and-lost"])
@pytest.mark.parametrize("search", ["honest", "all", "none", "BAD", "endless"])
def test_lost_response_to_append_causes_no_duplicates(
    answer: bytes, search: str, home: Home, server: ImapStandIn
) -> None:
    """It does not count as stored, and neither does an answer to SEARCH."""
    server.search = search
    server.answers = [b"", answer]
    first = home.collect(Policy(keep=0.0))
    assert (first.stored, first.deleted, len(first.refused)) == (2, 2, 1)
    outcome = home.collect(Policy(keep=0.0))
    assert (outcome.deleted, outcome.in_doubt) == (1, 0)
    assert sorted(bodies(server)) == sorted(text(word) for word in ("one", "two", "three"))
    assert home.shelf.rows == []


@pytest.mark.slow
@pytest.mark.parametrize("search", ["honest", "all", "none", "BAD", "endless"])
@pytest.mark.parametrize("older", [0, 3, 20])
def test_only_messages_the_server_shows_count_as_stored(
    search: str, older: int, server: ImapStandIn, certificate: tuple[Path, Path]
) -> None:
    """For any answer to SEARCH, and even if more mail has arrived since than is searched."""
    with closing(opened(server, certificate[0])) as destination:
        give(destination, LETTER, "there")
    server.stored += [b"Subject: other\r\n\r\n"] * older
    server.search = search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imap, "_NEWEST", 5)
        patch.setattr(imap, "_BLOCK", 2)
        with closing(opened(server, certificate[0])) as destination:
            assert destination.has("there") == (older < 5 or search == "honest")
            assert not destination.has("another")
            give(destination, LETTER, "another")  # the connection still works


def test_mark_in_a_received_message_is_not_proof(
    server: ImapStandIn, certificate: tuple[Path, Path]
) -> None:
    """Otherwise a sender who guesses a unique-id could cause the loss of another message."""
    forged = b"X-Restante: " + name_of("victim").encode() + b"\r\n" + LETTER
    with closing(opened(server, certificate[0])) as destination:
        give(destination, forged, "attack")
        assert destination.has("attack")
        assert not destination.has("victim")


@pytest.mark.parametrize("has_uidplus", [True, False])
@pytest.mark.parametrize("shows_late", [True, False])
@pytest.mark.parametrize("keeps_mark", [True, False])
def test_an_appended_message_counts_when_it_is_shown(
    has_uidplus: bool,
    shows_late: bool,
    keeps_mark: bool,
    server: ImapStandIn,
    certificate: tuple[Path, Path],
) -> None:
    server.has_uidplus, server.shows_late = has_uidplus, shows_late
    server.keeps_mark = keeps_mark
    with closing(opened(server, certificate[0])) as destination:
        for word in ("one", "two"):
            give(destination, LETTER.replace(b"x", word.encode()), word)
    assert len(server.stored) == 2


@pytest.mark.parametrize("has_uidplus", [True, False])
def test_server_that_stores_nothing_is_not_trusted(
    has_uidplus: bool,
    server: ImapStandIn,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may drop one message or all of them."""
    monkeypatch.setattr(imap, "_PAUSES", (0.0, 0.0))
    server.has_uidplus, server.forgets = has_uidplus, True
    with closing(opened(server, certificate[0])) as destination:
        for at in range(9):
            with pytest.raises(MessageRefused, match="does not list it"):
                give(destination, LETTER, str(at))
        with pytest.raises(TemporaryFailure, match="does not list it"):
            give(destination, LETTER, "last")


def test_a_connection_that_was_dropped_while_idle_is_made_again(
    server: ImapStandIn, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap, "_IDLE", 0.0)
    with closing(opened(server, certificate[0])) as destination:
        give(destination, LETTER, "one")
        server.hang_up()
        give(destination, LETTER, "two")
    assert len(server.stored) == 2


@pytest.mark.parametrize(
    "date", [b"", b"x", b"99999999999999999999", b"Mon, 1 Jan 0000 00:00:00 +9999", b"=?x?q?=ff?="]
)
def test_invalid_date_costs_no_message(
    date: bytes, server: ImapStandIn, certificate: tuple[Path, Path]
) -> None:
    with closing(opened(server, certificate[0])) as destination:
        give(destination, b"Date: " + date + b"\r\nReceived: " + date + b"\r\n\r\nx\r\n")
    assert len(server.stored) == 1


def test_a_message_that_is_refused_stays_and_does_not_stop_the_others(
    home: Home, server: ImapStandIn
) -> None:
    server.answers = [b"", b"NO [TOOBIG] too big"]
    outcome = home.collect(Policy(keep=0.0))
    assert (outcome.stored, len(outcome.refused)) == (2, 1)
    assert [row[0] for row in home.shelf.rows] == ["two"]


@pytest.mark.parametrize(
    "place",
    [
        "imaps://host/INBOX",
        "imaps://ann:secret@host/",
        "imaps://ann@host:x/",
        "imaps:ann@host",
        "imaps://ann@host/a%0d%0ab",
    ],
)
def test_invalid_destinations_are_refused(place: str) -> None:
    with pytest.raises(UnsafeArgument):
        open_destination(place, password=lambda: "tan staaf")


def test_a_destination_without_a_password_is_refused() -> None:
    with pytest.raises(UnsafeArgument, match="to_password"):
        open_destination("imaps://ann@host/")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imapclient", None)
    with pytest.raises(ConfigurationError, match=r"restante\[imap\]"):
        open_destination("imaps://ann@host/", password=lambda: "tan staaf")
