"""An IMAP folder as a destination: once, even if nobody heard the answer."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from restante.collect.destinations import Destination, open_destination
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
    return open_destination(place, password="tan staaf", ca_file=ca_file)


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
        (b"NO something", TemporaryFailure),
        (b"NO [TOOBIG] too big", MessageRefused),
        (b"BAD a NUL, perhaps", MessageRefused),
        (b"lost", TemporaryFailure),
    ],
)
def test_what_is_not_stored_is_told(
    answer: bytes, error: type[Exception], server: ImapStandIn, certificate: tuple[Path, Path]
) -> None:
    """And the next message is stored, by a new connection where one is needed."""
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


@pytest.mark.parametrize("answer", [b"lost", b"stored-and-lost"])
def test_a_lost_answer_to_append_stores_nothing_twice(
    answer: bytes, home: Home, server: ImapStandIn
) -> None:
    """Nothing is deleted on the strength of it either."""
    server.answers = [b"", answer]
    with pytest.raises(TemporaryFailure):
        home.collect(Policy(keep=0.0))
    assert len(home.shelf.rows) == 3
    outcome = home.collect(Policy(keep=0.0))
    assert (outcome.deleted, outcome.in_doubt) == (3, 0)
    assert bodies(server) == [text(word) for word in ("one", "two", "three")]
    assert home.shelf.rows == []


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
def test_what_is_no_destination_is_refused(place: str) -> None:
    with pytest.raises(UnsafeArgument):
        open_destination(place, password="tan staaf")


def test_a_destination_without_a_password_is_refused() -> None:
    with pytest.raises(UnsafeArgument, match="to_password"):
        open_destination("imaps://ann@host/")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imapclient", None)
    with pytest.raises(ConfigurationError, match=r"restante\[imap\]"):
        open_destination("imaps://ann@host/", password="tan staaf")
