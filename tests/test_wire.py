"""Lines, byte-stuffing and its reverse do not depend on how octets are split."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restante import wire
from restante.errors import BareLineFeed, HostileInput, NulOctet, OverlongLine
from restante.wire import MAX_COMMAND, MAX_DISCARD, LineBuffer, Stuffer, Unstuffer

texts = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"\n", b"\r", b"a", b"+OK x"])).map(
    b"".join
)
crlf_texts = st.lists(st.sampled_from([b"", b".", b"..", b".x", b"a", b"\r.", b"a.\n."])).map(
    lambda lines: b"".join(line.replace(b"\n", b"") + b"\r\n" for line in lines)
)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


cuts = st.lists(st.integers(0, 1000))


def stuffed(pieces: list[bytes]) -> bytes:
    stuffer = Stuffer()
    return b"".join([stuffer.feed(piece) for piece in pieces]) + stuffer.finish()


def unstuffed(pieces: list[bytes]) -> tuple[bytes, Unstuffer]:
    reader = Unstuffer()
    content = b""
    for piece in pieces:
        if reader.is_finished:
            reader.rest += piece
        else:
            content += reader.feed(piece)
    return content, reader


@given(st.lists(texts))
@example([b"a\r", b"\n", b".b"])
@example([b"\r", b"\n", b"."])
def test_pieces_do_not_matter(pieces: list[bytes]) -> None:
    """However a message is split, the client gets the same octets."""
    assert stuffed(pieces) == stuffed([b"".join(pieces)])


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        (b"", b".\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\r\n.b\r\n", b"a\r\n..b\r\n.\r\n"),
        (b"..\r\n", b"...\r\n.\r\n"),
        (b"a.b\r\n", b"a.b\r\n.\r\n"),
        (b"a\r\n\r\n", b"a\r\n\r\n.\r\n"),
    ],
)
@pytest.mark.rfc("P-021")
def test_stuffing_of_rfc1939(text: bytes, sent: bytes) -> None:
    """RFC 1939 §3: only a dot at the beginning of a line is doubled."""
    assert stuffed([text]) == wire.stuffed(text) + wire.TERMINATION == sent


@given(crlf_texts)
@example(b"")
def test_a_whole_message_is_stuffed_alike(text: bytes) -> None:
    assert wire.stuffed(text) + wire.TERMINATION == stuffed([text])


@given(crlf_texts, cuts, cuts, texts)
def test_unstuffing_restores_stuffed_text(
    text: bytes, here: list[int], there: list[int], after: bytes
) -> None:
    wire = stuffed(cut(text, here)) + after
    content, reader = unstuffed(cut(wire, there))
    assert content == text
    assert reader.is_finished
    assert reader.rest == after


@given(texts, cuts)
@example(b"Subject: x\r\n\r\nhi\n.\n+OK 1\r\n+OK bye\r\n", [])
@example(b"a\n.\r\n", [])
@example(b"a\r.\r\n", [3])
@pytest.mark.rfc("P-020")
def test_only_crlf_dot_crlf_ends_a_response(text: bytes, places: list[int]) -> None:
    """All octets before the first CRLF.CRLF are content, split anywhere."""
    end = (b"\r\n" + text).find(b"\r\n.\r\n")
    content, reader = unstuffed(cut(text, places))
    assert reader.is_finished == (end >= 0)
    if end >= 0:
        assert reader.rest == text[end + 3 :]
        assert content == (b"\r\n" + text[:end]).replace(b"\r\n.", b"\r\n")[2:]
    else:
        assert (b"\r\n" + text).replace(b"\r\n.", b"\r\n")[2:].startswith(content)


def lines_of(octets: bytes, places: list[int]) -> list[bytes | type[Exception]]:
    buffer, found = LineBuffer(), list[bytes | type[Exception]]()
    for piece in cut(octets, places):
        buffer.feed(piece)
        while True:
            try:
                line = buffer.next_line()
            except (OverlongLine, BareLineFeed, NulOctet, HostileInput) as error:
                found.append(type(error))
                if not isinstance(error, OverlongLine):
                    return found
                continue
            if line is None:
                break
            found.append(line)
    return found


@given(cuts)
@pytest.mark.rfc("P-006", "P-008")
def test_rest_of_an_overlong_line_is_not_a_command(places: list[int]) -> None:
    """RFC 2449 §4: 255 octets with CRLF are a command; 256 are not, nor is the rest of them."""
    longest = b"x" * (MAX_COMMAND - 2)
    octets = longest + b"\r\n" + longest + b"y\r\nSTAT\r\n" + b"z" * 600 + b"\n\r\r\nQUIT\r\n"
    assert lines_of(octets, places) == [longest, OverlongLine, b"STAT", OverlongLine, b"QUIT"]


@given(cuts)
@pytest.mark.rfc("P-013")
def test_bare_line_feed_is_not_a_line_ending(places: list[int]) -> None:
    assert lines_of(b"NOOP\nDELE 1\r\n", places) == [BareLineFeed]


@given(texts, cuts)
@example(b"a\0\n", [])
@example(b"a" * 300 + b"\0\n" + b"b\r\n", [260])
def test_lines_do_not_depend_on_the_cut(text: bytes, places: list[int]) -> None:
    assert lines_of(text, places) == lines_of(text, [])


@pytest.mark.parametrize("at", [300, 301, 302])
@pytest.mark.rfc("P-008")
def test_end_of_an_overlong_line_may_arrive_in_two_pieces(at: int) -> None:
    text = b"x" * 300 + b"\r\nSTAT\r\n"
    assert lines_of(text, [290, at]) == [OverlongLine, b"STAT"]


@given(cuts)
@pytest.mark.rfc("P-013")
def test_nul_is_hostile(places: list[int]) -> None:
    assert lines_of(b"STAT\r\nNO\0P\r\n", places) == [b"STAT", NulOctet]


@pytest.mark.parametrize("octets", [b"\0", b"NO\0P", b"\0" + b"x" * MAX_COMMAND])
@pytest.mark.rfc("P-013")
def test_nul_in_an_incomplete_line_is_hostile(octets: bytes) -> None:
    buffer = LineBuffer()
    buffer.feed(octets)
    with pytest.raises(NulOctet):
        buffer.next_line()


def flood(buffer: LineBuffer, octets: bytes, limit: int) -> None:
    """Feed the same octets repeatedly, as long as they are accepted."""
    for _ in range(0, limit + len(octets), len(octets)):
        buffer.feed(octets)
        assert buffer.next_line() is None
        assert buffer.unread < MAX_COMMAND


@pytest.mark.rfc("P-008", "N-06")
@pytest.mark.parametrize("more", [b"x" * 1000, b"x" * 999 + b"\r", b"\n" * 1000])
def test_endless_line_uses_bounded_memory_and_is_refused(more: bytes) -> None:
    """A bare CR or LF does not end it either.  CVE-2025-61600: the amount of memory must not depend
    on what a peer announces or sends."""
    buffer = LineBuffer()
    with pytest.raises(OverlongLine):
        flood(buffer, b"x" * 100, MAX_COMMAND)
    with pytest.raises(HostileInput):
        flood(buffer, more, MAX_DISCARD + 1000)
