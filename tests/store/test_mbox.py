"""mbox files of servers, Thunderbird and Google Takeout: where each message begins and ends."""

from __future__ import annotations

import json
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.cli.main import main
from restante.collect.destinations.opening import open_destination
from restante.errors import PermanentFailure
from restante.store import mbox
from restante.store.maildir import MaildirStore

from .helpers import contents, listing, names, remove, run

DATE = b"Fri Jan  1 00:00:00 2021"


def read(octets: bytes) -> mbox.Mbox:
    return mbox.read(BytesIO(octets))


def messages(octets: bytes) -> list[bytes]:
    return [octets[each.begin : each.end] for each in read(octets).messages]


# -- Mboxes of servers

INTERNAL = (  # from c-client, unix.c
    b"Date: Mon, 2 Nov 2026 10:00:00 +0000\n"
    b"From: Mail System Internal Data <MAILER-DAEMON@host>\n"
    b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\n"
    b"Message-ID: <1793613600@host>\nX-IMAP: 1275660208 0000000009\nStatus: RO\n\ndata\n\n"
)


def test_a_servers_mbox() -> None:
    octets = (
        b"From MAILER-DAEMON %b\n%b"
        b"From a@b %b\nX-UID: 12\n\nGreetings\nFrom here\n>From there\n\n"
        b"From c %b\nX-UIDL: given\nX-UID: 13\n\n\nFrom d\nS: x\n\nend"
        % (DATE, INTERNAL, DATE, DATE)
    )
    found = read(octets)
    assert [each.unique_id for each in found.messages] == ["4c0907b00000000c", "given", ""]
    assert messages(octets) == [
        b"X-UID: 12\n\nGreetings\nFrom here\n>From there\n",
        b"X-UIDL: given\nX-UID: 13\n\n",
        b"S: x\n\nend",
    ]
    assert (found.has_server_ids, found.doubtful) == (True, [])


@pytest.mark.parametrize("field", [b"X-IMAP", b"X-IMAPbase"])
def test_sender_cannot_make_mail_disappear(field: bytes) -> None:
    """Only the first message can be internal to the server, or give its UIDVALIDITY."""
    octets = (
        b"From MAILER-DAEMON\n%b"
        b"From a\nX-UID: 12\n%b: 1 1\n\none\n\nFrom b\nX-UID: 13\n\ntwo\n" % (INTERNAL, field)
    )
    found = read(octets).messages
    assert [each.unique_id for each in found] == ["4c0907b00000000c", "4c0907b00000000d"]


@pytest.mark.parametrize("field", [b"X-IMAP", b"X-IMAPbase", b"X-UIDL", b"X-UID", b"Status"])
@pytest.mark.parametrize("kind", [b"", b"- "])
def test_a_sender_cannot_make_the_first_message_vanish(field: bytes, kind: bytes) -> None:
    """In an export the first message is never internal to a server."""
    octets = b"From %b%b\n%b: 1275660208 9\n%bFrom b %b\n%b" % (kind, DATE, field, ONE, DATE, TWO)
    assert len(messages(octets)) == 2


# -- Where messages begin

ONE = b"Subject: one\n\nfirst\n"
TWO = b"Subject: two\n\nsecond\n"
SEPARATORS = [
    b"From ann@example.org " + DATE,
    b"From ann@example.org Fri Jan  1 00:00:00 2021 +0100",
    b"From 1700000000000000001@xxx Fri Jan 15 10:45:33 +0000 2021",  # Takeout
    b"From - " + DATE,  # Thunderbird
    b"From - Sat Apr 12 2025 15:59:28",
    b"From - ",
    b"From ",
    b"From",
    b"From ???@??? " + DATE,  # Eudora
    b"From MAILER-DAEMON Fri Jan 01 00:00 2021",
    b"From ann@example.org",
    b'From "Ann B"@example.org Fri, 1 Jan 2021 00:00:00 +0000',
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_forms_of_from_lines(separator: bytes, mark: bytes, end: bytes) -> None:
    one, two, line = (text.replace(b"\n", end) for text in (ONE, TWO, separator + b"\n"))
    octets = mark + line + one + end + line + two + end
    assert messages(octets) == [one, two]
    assert read(octets).doubtful == []


@pytest.mark.parametrize("lead", [b"", b"\n", b"\r\n\r\n"])
def test_empty_lines_before_the_first_message(lead: bytes) -> None:
    assert messages(lead + b"From - \n" + ONE) == [ONE]


def test_a_missing_empty_line_before_a_dated_from_line() -> None:
    line = b"From ann " + DATE + b"\n"
    assert messages(line + ONE + line + TWO) == [ONE, TWO]


@pytest.mark.parametrize(
    ("body", "doubtful"),
    [
        (b"a\nFrom here on\nb\n", []),
        (b"a\n\nFrom here on\nit goes\n", [6]),
        (b"a\n\nFrom the docs:\nNote: this is text\n", [6]),
        (b"a\n\n>From here on\nSubject: x\n", []),
        (b"a\nFrom ann " + DATE + b"\nno field\n", [5]),
        (b"a\n\nFrom\nhere on\n", [6]),
        (b"a\n\nFromage: x\n", []),
    ],
)
def test_text_is_not_taken_for_a_message(body: bytes, doubtful: list[int]) -> None:
    octets = b"From - \nSubject: x\n\n" + body
    assert messages(octets) == [b"Subject: x\n\n" + body]
    assert read(octets).doubtful == doubtful


def test_a_dated_line_after_an_empty_one_begins_a_message_that_has_no_header() -> None:
    """It may be text, which is reported; no message is hidden inside another."""
    octets = b"From - \nSubject: x\n\na\n\nFrom ann " + DATE + b"\nno field\n"
    assert messages(octets) == [b"Subject: x\n\na\n", b"no field\n"]
    assert read(octets).doubtful == [6]


@pytest.mark.parametrize("length", [b"0", b"5", b"21", b"100000", b"-1", b"x"])
def test_content_length_does_not_affect_where_messages_end(length: bytes) -> None:
    """Any sender can write it."""
    one = b"Content-Length: %b\n\nfirst\n" % length
    line = b"From ann " + DATE + b"\n"
    assert messages(line + one + b"\n" + line + TWO) == [one, TWO]


def test_a_second_from_line_is_no_field() -> None:
    """Exports of Thunderbird have such lines."""
    octets = b"From a@b " + DATE + b"\n>From - Sat Apr 12 2025 15:59:28\n" + ONE
    assert messages(octets) == [ONE]


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"no mbox\n", "does not begin with a From_ line"),
        (b"From my diary\nToday I went\n", "does not begin with a From_ line"),
        ("From - \n".encode("utf-16"), "UTF-16"),
        (b"From - \rSubject: x\r\rtext\r", "lines end with CR;"),
    ],
)
def test_file_that_is_not_an_mbox_is_refused_with_a_hint(octets: bytes, words: str) -> None:
    with pytest.raises(PermanentFailure, match=words):
        read(octets)


def test_an_empty_file_has_no_messages() -> None:
    assert [read(each).messages for each in (b"", b"\n", b"\xef\xbb\xbf")] == [[], [], []]


@given(st.lists(st.sampled_from([b"From a@b " + DATE + b"\n", b"\n", b"Subject: x\n", b" x" * 25])))
def test_long_lines_may_come_in_pieces(lines: list[bytes]) -> None:
    octets = b"From - \nSubject: x\n" + b"".join(lines)
    pieces = iter(partial(BytesIO(octets).readline, 40), b"")  # a From_ line comes in one piece
    assert mbox.read(pieces).messages == read(octets).messages


LINES = [b"\n", b"From - \n", b">From x\n", b"a\n", b"X: y\n"]


@given(st.lists(st.sampled_from(LINES), max_size=30))
def test_no_octet_of_a_message_is_lost(lines: list[bytes]) -> None:
    """Only From_ lines and the empty line before each belong to no message."""
    octets = b"From - \nX: first\n" + b"".join(lines)
    found = read(octets)
    at, left = 0, b""
    for each in found.messages:
        left += octets[at : each.begin]
        assert at <= each.begin <= each.end
        at = each.end
    left += octets[at:]
    assert set(left.splitlines()) <= {b"", b"From - ", b">From x"}
    assert left.splitlines().count(b"") <= len(found.messages)


# -- Quoting


@given(
    st.lists(st.sampled_from([b">", b"From ", b"\n", b"x", b" ", b"\r\n", b">>From here\n"])),
    st.integers(1, 7),
)
def test_unquoted_in_any_pieces(parts: list[bytes], cut: int) -> None:
    octets = b"".join(parts)
    pieces = [octets[at : at + cut] for at in range(0, len(octets), cut)]
    expected = b"".join(
        line[1:] if line.lstrip(b">").startswith(b"From ") and line.startswith(b">") else line
        for line in octets.splitlines(keepends=True)
    )
    if b"\r\n" in octets or b"\r" not in octets:
        assert b"".join(mbox.unquoted(pieces)) == expected


def test_a_long_line_is_not_kept() -> None:
    pieces = [b"x" * 60_000] * 50
    sizes = [len(each) for each in mbox.unquoted([*pieces, b"\n>From\n>From x\n"])]
    assert max(sizes) <= 130_000


# -- Import


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MaildirStore:
    (tmp_path / "mail").mkdir()
    monkeypatch.setenv("RESTANTE__STORE__PATH", f"{tmp_path}/mail/%u")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return MaildirStore(f"{tmp_path}/mail/%u")


def taken(store: MaildirStore) -> list[bytes]:
    return [each.replace(b"\r\n", b"\n") for each in run(contents(store, "ann"))]


def load(box: Path, *words: str) -> int:
    return main(["import", "mbox", str(box), "ann", *words])


TAKEOUT = b"".join(
    b"From 17%03d@xxx Fri Jan 15 10:45:33 +0000 2021\nX-GM-THRID: %d\nX-Gmail-Labels: Inbox\n"
    b"Subject: %d\n\n>From the start\n\n" % (number, number, number)
    for number in range(3)
)


def test_mbox_without_ids_can_be_imported_repeatedly(
    store: MaildirStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "box").write_bytes(TAKEOUT)
    assert load(tmp_path / "box", "--dry-run") == 0
    assert "Would import 3 messages with new unique-ids. Nothing" in capsys.readouterr().out
    assert load(tmp_path / "box") == 0
    assert capsys.readouterr().out == (
        "Imported 3 messages with new unique-ids. This run copied 3 messages.\n"
    )
    assert [each.splitlines()[-1] for each in taken(store)] == [b"From the start"] * 3
    before = run(listing(store, "ann"))
    assert load(tmp_path / "box") == 0
    assert "copied 0 messages" in capsys.readouterr().out
    assert run(listing(store, "ann")) == before
    assert run(remove(store, "ann", before[:1])) == []
    (tmp_path / "box").write_bytes(TAKEOUT[TAKEOUT.index(b"From 17001") :] + TAKEOUT)
    assert load(tmp_path / "box") == 0  # messages deleted here stay deleted
    assert set(run(listing(store, "ann"))) == set(before[1:])


@pytest.mark.parametrize(("option", "line"), [("--unquote", b"From"), ("--no-unquote", b">From")])
def test_quoting_may_be_chosen(
    option: str, line: bytes, store: MaildirStore, tmp_path: Path
) -> None:
    (tmp_path / "box").write_bytes(TAKEOUT)
    assert load(tmp_path / "box", option) == 0
    assert {each.splitlines()[-1] for each in taken(store)} == {line + b" the start"}


def test_a_servers_mbox_is_not_unquoted(store: MaildirStore, tmp_path: Path) -> None:
    """Sizes and octets are the same as on the old server."""
    (tmp_path / "box").write_bytes(b"From - \nX-UIDL: a\n\n>From x\n")
    assert load(tmp_path / "box") == 0
    assert taken(store) == [b"X-UIDL: a\n\n>From x\n"]


def test_duplicates_are_imported_once_and_reported(
    store: MaildirStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages that differ only in flags are duplicates."""
    line = b"From - " + DATE + b"\n"
    flagged = b"X-Mozilla-Status: 0001\nX-Mozilla-Status2: 00000000\n"
    read_ = b"X-Mozilla-Status: 0013\nX-Mozilla-Status2: 10000000\nX-Mozilla-Keys: a\n"
    box = line + flagged + ONE + b"\n" + line + flagged + TWO + b"\n" + line + read_ + ONE
    (tmp_path / "box").write_bytes(box)
    assert load(tmp_path / "box", "--json") == 0
    reported = capsys.readouterr()
    assert json.loads(reported.out)["duplicates"] == [[3, 1]]
    assert "left out 1 message identical to another message: 3 (same as 1)" in reported.err
    assert taken(store) == [flagged + ONE, flagged + TWO]


def test_messages_deleted_in_thunderbird_are_skipped_and_counted(
    store: MaildirStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = b"From - " + DATE + b"\n"
    box = (
        line + b"X-Mozilla-Status: 0009\n" + ONE + b"\n"
        + line + b"X-Mozilla-Status: 0001\nX-UIDL: on the provider's server\n" + TWO + b"\n"
        + line + b"X-Mozilla-Status: 0001\nX-UIDL: 7\n" + ONE + b"\n"
    )  # fmt: skip
    (tmp_path / "box").write_bytes(box)
    assert load(tmp_path / "box") == 0
    reported = capsys.readouterr()
    assert "left out 1 message deleted in Thunderbird" in reported.err
    assert "2 messages with new unique-ids" in reported.out
    assert len(taken(store)) == 2


def test_sender_cannot_cause_a_message_to_be_skipped(store: MaildirStore, tmp_path: Path) -> None:
    """Neither after another field, nor in a file that is not of Thunderbird."""
    status = b"X-Mozilla-Status: 0009\n"
    box = (
        b"From - " + DATE + b"\nX-Mozilla-Status: 0001\n" + status + ONE + b"\n"
        b"From eve@example.net " + DATE + b"\n" + status + TWO
    )
    (tmp_path / "box").write_bytes(box)
    assert load(tmp_path / "box") == 0
    assert len(taken(store)) == 2


def test_unique_id_of_two_messages_is_used_for_neither(
    store: MaildirStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = b"From a\nX-UIDL: x\n\n1\n\nFrom b\nX-UIDL: y\n\n2\n\nFrom c\nX-UIDL: x\n\n3\n"
    (tmp_path / "box").write_bytes(box)
    assert load(tmp_path / "box") == 0
    reported = capsys.readouterr()
    assert "these messages had the same unique-id, so each gets a new one: 1, 3" in reported.err
    assert reported.out == (
        "Imported 1 message with the unique-id of the old server and 2 messages with new "
        "unique-ids. This run copied 3 messages.\n"
    )
    assert [each.unique_id == "y" for each in run(listing(store, "ann"))] == [False, True, False]


def test_doubtful_lines_are_reported(
    store: MaildirStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "box").write_bytes(b"From - \nS: x\n\na\n\nFrom here on\n" * 20)
    assert load(tmp_path / "box") == 0
    assert "lines beginning with" in capsys.readouterr().err


def test_file_that_changes_during_an_import_stops_the_import(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thunderbird may compact it, which changes all offsets."""
    box = tmp_path / "box"
    box.write_bytes(TAKEOUT)
    find = mbox.read

    def compact(lines: object) -> mbox.Mbox:
        found = find(lines)  # type: ignore[arg-type]
        box.write_bytes(TAKEOUT[100:])
        return found

    monkeypatch.setattr(mbox, "read", compact)
    assert load(box) == 75
    assert [
        name for name in names(tmp_path / "mail/ann") if name.startswith(("cur/", "new/"))
    ] == []


def test_mbox_written_by_restante_can_be_read(store: MaildirStore, tmp_path: Path) -> None:
    texts = [
        b"Subject: x\r\n\r\nFrom me\r\n>From you\r\n\r\nFrom a@b %b\r\nX: y\r\n" % DATE,
        b"\r\nb\r\n",
    ]
    destination = open_destination(f"mbox:{tmp_path}/box")
    for number, text in enumerate(texts):
        destination.begin(str(number))
        destination.write(text)
        destination.commit()
    destination.close()
    assert load(tmp_path / "box") == 0
    assert run(contents(store, "ann")) == texts
