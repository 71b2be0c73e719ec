"""Fingerprints distinguish messages, and survive the changes that servers make to headers."""

from __future__ import annotations

from email.message import EmailMessage
from email.policy import SMTP
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.collect.fingerprint import (
    LONGEST_HEADER,
    Content,
    ContentReader,
    header_digest,
    header_of,
)

HEADER = (
    b"Received: from a\r\nMessage-ID: <1@x>\r\nDate: Mon, 30 Nov 2026 10:00:00 +0000\r\n"
    b"From: Ann <ann@example.org>\r\nTo: bob@example.org\r\nSubject: a long\r\n subject\r\n"
)
BODY = b"text\r\n\r\nmore\r\n"


def read(*pieces: bytes) -> ContentReader:
    reader = ContentReader()
    for piece in pieces:
        reader.feed(piece)
    return reader


def content(*pieces: bytes) -> Content:
    return read(*pieces).content()


@pytest.mark.parametrize(
    "changed",
    [
        HEADER.replace(b"\r\n", b"\n"),
        HEADER.replace(b"long\r\n subject", b"long subject"),
        HEADER.replace(b"long\r\n subject", b"long\r\n\t subject"),
        b"Status: RO\r\nX-UIDL: abc\r\n" + HEADER,
        HEADER + b"X-Spam: no\r\n",
        HEADER.replace(b"Received: from a\r\n", b""),
        HEADER.replace(b"Subject:", b"SUBJECT :"),
    ],
)
def test_changes_by_servers_and_programs_make_no_difference(changed: bytes) -> None:
    assert header_digest(changed) == header_digest(HEADER) is not None


@pytest.mark.parametrize(
    "changed",
    [
        HEADER.replace(b"<1@x>", b"<2@x>"),
        HEADER.replace(b"10:00", b"10:01"),
        HEADER.replace(b"ann@", b"eve@"),
        HEADER.replace(b"bob@", b"eve@"),
        HEADER.replace(b" subject", b" other"),
        HEADER + b"Cc: eve@example.org\r\n",
        HEADER + b"Subject: another\r\n",
    ],
)
def test_changes_by_the_sender_make_a_difference(changed: bytes) -> None:
    assert header_digest(changed) not in (header_digest(HEADER), None)


@pytest.mark.parametrize(
    "header", [b"", b"Subject: x\r\n", b"From: a@b\r\nX-Message-ID: <1@x>\r\n"]
)
def test_a_header_without_a_name_and_a_date_is_that_of_any_message(header: bytes) -> None:
    assert header_digest(header) is None
    assert content(header + b"\r\n" + BODY).header_digest is None


def test_a_value_cannot_pass_for_another_field() -> None:
    one = header_digest(b"Message-ID: <1@x>\r\nSubject: a\0b\r\n")
    assert one != header_digest(b"Message-ID: <1@x>\r\nSubject: b\r\nCc: a\r\n")
    assert header_digest(b"Message-ID: <1@x>\r\nTo: a\r\nTo: b\r\n") != header_digest(
        b"Message-ID: <1@x>\r\nTo: a b\r\n"
    )


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_pieces_make_no_difference(noise: bytes, cuts: list[int], has_header: bool) -> None:
    octets = (HEADER + b"\r\n" if has_header else b"") + noise
    pieces, last = [], 0
    for cut in sorted(cuts):
        pieces.append(octets[last:cut])
        last = max(cut, last)
    pieces.append(octets[last:])
    assert b"".join(pieces) == octets
    assert content(*pieces) == content(octets)
    assert content(octets).digest == sha256(octets).digest()
    assert content(octets).header_digest == header_digest(header_of(octets))


@pytest.mark.parametrize(
    ("octets", "body"),
    [
        (HEADER + b"\r\n" + BODY, BODY),
        (HEADER.replace(b"\r\n", b"\n") + b"\n" + BODY, BODY),
        (b"\r\n" + BODY, BODY),
        (b"\n" + BODY, BODY),
        (HEADER, b""),
        (b"", b""),
    ],
)
def test_body_begins_after_the_first_blank_line(octets: bytes, body: bytes) -> None:
    found = [content(octets), content(*(bytes([each]) for each in octets))]
    if octets == HEADER or not octets:
        body = b""
    assert [each.body for each in found] == [sha256(body).digest()] * 2


def test_a_header_without_end_is_bounded() -> None:
    reader = ContentReader()
    for _ in range(3 * LONGEST_HEADER // 1000):
        reader.feed(b"x: " + b"y" * 995 + b"\r\n")
    assert len(reader._header) <= LONGEST_HEADER
    assert reader.content().header_digest is None
    octets = b"Date: now\r\n" + b"x" * 2 * LONGEST_HEADER
    assert content(octets).header_digest == header_digest(header_of(octets)) is not None


@given(st.binary())
def test_no_octets_raise_and_a_header_is_as_the_whole(octets: bytes) -> None:
    """Senders choose the octets.  A header from TOP must have the fingerprint of that from RETR."""
    assert content(octets).header_digest == content(header_of(octets) + b"\n\n").header_digest


def test_message_of_the_standard_library_is_known_by_its_fields() -> None:
    message = EmailMessage(SMTP)
    message["Subject"] = "A subject that is folded " * 10
    message["Message-ID"] = "<1@example.org>"
    message.set_content("text\n")
    whole = message.as_bytes()
    message["Received"] = "from elsewhere"
    assert content(whole).is_same(content(message.as_bytes()))
    assert content(whole) != content(message.as_bytes())
    message["Cc"] = "eve@example.org"
    assert not content(whole).is_same(content(message.as_bytes()))


def test_only_known_fingerprints_make_messages_the_same() -> None:
    whole = content(HEADER + b"\r\n" + BODY)
    assert not Content(b"1").is_same(Content(b"2"))
    assert not Content(b"1", None, whole.header_digest).is_same(
        Content(b"2", None, whole.header_digest)
    )
    assert not Content(b"1", whole.body, None).is_same(Content(b"2", whole.body, None))
    assert Content(b"1").is_same(Content(b"1", whole.body, whole.header_digest))


NOTICE = (
    b"From: Microsoft Exchange Server\r\nSubject: Retrieval using the POP3 protocol failed\r\n\r\n"
)


@pytest.mark.parametrize(
    ("octets", "announced", "is_substitute"),
    [
        (NOTICE, 10_000, True),
        (NOTICE.lower(), 10_000, True),
        (NOTICE.replace(b"POP3", b"IMAP4"), 10_000, True),
        (NOTICE, len(NOTICE), False),  # forwarded
        (NOTICE.replace(b"Microsoft Exchange", b"ann"), 10_000, False),
        (HEADER + b"\r\n" + NOTICE, 10_000, False),  # inside a body
    ],
)
def test_the_notice_of_exchange(octets: bytes, announced: int, is_substitute: bool) -> None:
    assert read(octets).is_substitute(announced) is is_substitute
