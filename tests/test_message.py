"""Line ends, TOP and trace fields, in any pieces."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restante.errors import UnsafeArgument
from restante.message import Envelope, LineEndings, Top, crlf_text, header_insertion

from .test_wire import cut, cuts, texts

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def on_the_wire(pieces: list[bytes]) -> tuple[bytes, int]:
    ends = LineEndings()
    text = b"".join([ends.feed(piece) for piece in pieces]) + ends.finish()
    return text, ends.size


@pytest.mark.parametrize(
    ("stored", "wire"),
    [
        (b"", b""),
        (b"a\n", b"a\r\n"),
        (b"a\r\n", b"a\r\n"),
        (b"a\r\nb\nc\r\n", b"a\r\nb\r\nc\r\n"),
        (b"no end", b"no end\r\n"),
        (b"\n\n", b"\r\n\r\n"),
        (b"a\rb\n", b"a\rb\r\n"),
        (b"a\r", b"a\r\r\n"),
        (b"a\r\r\n", b"a\r\r\n"),
        (b"\0\xff\n", b"\0\xff\r\n"),
    ],
)
@pytest.mark.rfc("P-023", "P-026", "P-027")
def test_line_endings_of_rfc1939(stored: bytes, wire: bytes) -> None:
    """RFC 1939 §11: every line end counts two octets; RETR must add a missing one."""
    assert on_the_wire([stored]) == (wire, len(wire))


@given(texts, cuts)
@example(b"a\r\n", [2])
@example(b"a\r\nb\nc\r\r\n\n", [3])
def test_the_cut_does_not_matter(text: bytes, places: list[int]) -> None:
    assert on_the_wire(cut(text, places)) == on_the_wire([text])
    assert crlf_text(text) == on_the_wire([text])[0]


@given(texts)
def test_wire_text_stays_as_it_is(text: bytes) -> None:
    wire, size = on_the_wire([text])
    assert on_the_wire([wire]) == (wire, size)
    assert not re.search(rb"(?<!\r)\n", wire)
    assert wire == b"" or wire.endswith(b"\r\n")


def top_of(pieces: list[bytes], lines: int) -> bytes:
    top = Top(lines)
    return b"".join([top.feed(piece) for piece in pieces])


@given(st.lists(st.sampled_from([b"", b"a", b".", b"\rb", b"Subject: x"])), st.integers(0, 6), cuts)
@pytest.mark.rfc("P-105")
def test_top_is_header_blank_line_and_n_lines(
    lines: list[bytes], count: int, places: list[int]
) -> None:
    """RFC 1939 §7, compared with a second implementation by lines."""
    message = b"".join(line + b"\r\n" for line in lines)
    whole = message.split(b"\r\n")[:-1]
    blank = whole.index(b"") if b"" in whole else len(whole)
    expected = b"".join(line + b"\r\n" for line in whole[: blank + 1 + count])
    assert top_of(cut(message, places), count) == expected


@pytest.mark.parametrize("count", [2**63, 10**20 - 1])
def test_top_of_any_number_of_lines_is_the_whole_message(count: int) -> None:
    message = b"S: x\r\n\r\none\r\n\r\n"
    assert top_of(cut(message, [3, 9, 15]), count) == message


def test_top_costs_no_more_than_a_few_passes() -> None:
    """A message of empty lines took 13 ms for 64 KiB: a client could hold up all others."""
    message = b"S: x\r\n\r\n" + b"\r\n" * 32_000

    def cost(work: Callable[[], object]) -> float:
        """The least processor time of some runs."""
        spent = []
        for _ in range(7):
            began = time.thread_time()
            work()
            spent.append(time.thread_time() - began)
        return min(spent)

    one_pass = cost(lambda: message.split(b"\r\n"))
    assert cost(lambda: top_of([message], 10**9)) < 8 * one_pass  # 2 was measured, and before 18


def test_top_reports_when_it_is_finished() -> None:
    top = Top(1)
    assert top.feed(b"S: x\r\n\r\none\r\ntwo\r\n") == b"S: x\r\n\r\none\r\n"
    assert top.is_finished


def test_trace_fields() -> None:
    """RFC 5321 §4.4."""
    envelope = Envelope("bob@example.net", "ann@example.org", "LMTP", "mx.example.net (192.0.2.1)")
    assert envelope.trace_fields("mail.example.org", NOON) == (
        b"Return-Path: <bob@example.net>\r\n"
        b"Delivered-To: ann@example.org\r\n"
        b"Received: from mx.example.net (192.0.2.1) by mail.example.org (restante) with LMTP\r\n"
        b"\tfor <ann@example.org>; Tue, 24 Nov 2026 12:00:00 +0000\r\n"
    )


@pytest.mark.parametrize("day", range(0, 730, 13))
def test_date_is_that_of_the_library(day: int) -> None:
    at = datetime(2026, 1, 1, 9, 5, 3, tzinfo=UTC) + timedelta(day)
    fields = Envelope("", "ann").trace_fields("mail.example.org", at)
    assert fields.endswith(f"; {format_datetime(at)}\r\n".encode())


@pytest.mark.parametrize("part", ["a\r\nX: y", "a\nb", "a\0", "a\x7f"])
def test_an_envelope_cannot_forge_a_field(part: str) -> None:
    with pytest.raises(UnsafeArgument):
        Envelope(part, "ann").trace_fields("host", NOON)
    with pytest.raises(UnsafeArgument):
        Envelope("", part).trace_fields("host", NOON)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"Subject: x\r\n\r\n", (0, b"")),
        (b"\r\nbody\r\n", (0, b"")),
        (b"\nbody\n", (0, b"")),
        (b"From x@y Mon Jan  5\r\nSubject: x\r\n", (21, b"")),
        (b">From x@y\nSubject: x\n", (10, b"")),
        (b"From: x\r\n", (0, b"")),
        (b"hello\r\n", (0, b"\r\n")),
        (b" folded\r\n", (0, b"\r\n")),
        (b"From x\r\nhello\r\n", (8, b"\r\n")),
        (b"", (0, b"\r\n")),
    ],
)
def test_header_fields_can_be_put_before_any_message(
    message: bytes, expected: tuple[int, bytes]
) -> None:
    """RFC 5322 §2.2: every line of a header is a field; text is not a header."""
    assert header_insertion(message) == expected
