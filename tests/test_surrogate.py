"""Surrogates (RFC 6858): ASCII, without usable addresses, and of the original size."""

from __future__ import annotations

from email import message_from_bytes
from email.header import decode_header, make_header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.errors import NeedsUTF8
from restante.surrogate import INVALID_ADDRESS, Downgrade, surrogate
from restante.wire import CRLF

from .malformed import VALUES

TRACE = b"Received: by mx.example.org (restante) with LMTP\r\n\tfor <ann@example.org>; Tue\r\n" * 4


def made(*fields: str, trace: bytes = TRACE) -> bytes:
    """Return the surrogate of a header with these fields."""
    header = trace + "".join(f"{field}\r\n" for field in fields).encode()
    found = surrogate(header)
    assert len(found) == len(header)
    assert found.isascii()
    return found


def value(header: bytes, name: str) -> str | None:
    found = message_from_bytes(header + b"\r\n")[name]
    return None if found is None else str(make_header(decode_header(found))).rstrip()


@pytest.mark.rfc("P-144")
def test_subject_is_encoded_by_rfc_2047() -> None:
    for subject in (
        "Gr\u00fc\u00dfe",
        "\u4f60\u597d " * 20,
        "a \u00fc " + "b" * 200,
        "fold\r\n \u00e4",
    ):
        shown = made("From: ann@example.org", f"Subject: {subject}")
        assert value(shown, "Subject") == " ".join(subject.split())
        assert max(map(len, shown.split(b"\r\n"))) < 100


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("From: J\u00f6rg <joerg@example.org>", "J\u00f6rg <joerg@example.org>"),
        ("From: j\u00f6rg@example.org", f"j\u00f6rg@example.org <{INVALID_ADDRESS}>"),
        ("To: Ann <\u00e4nn@example.org>", f'"Ann" <{INVALID_ADDRESS}>'),
        ("Cc: ann@\u00e4.example", f"ann@\u00e4.example <{INVALID_ADDRESS}>"),
        ("Reply-To: \u00e4 <a@b.c>, x@y.z", "\u00e4 <a@b.c>,\n x@y.z"),
        ("Sender: <\u00fc@example.org>", f"\u00fc@example.org <{INVALID_ADDRESS}>"),
    ],
)
@pytest.mark.rfc("P-144")
def test_replaced_addresses_are_invalid(field: str, shown: str) -> None:
    """An address that cannot be shown becomes text with an invalid address."""
    name = field.partition(":")[0]
    found = made(field) if name == "From" else made("From: ann@example.org", field)
    reported = value(found, name)
    assert reported is not None
    assert " ".join(reported.replace("<x@y.z>", "x@y.z").split()) == " ".join(shown.split())


@pytest.mark.rfc("P-144")
def test_undisplayable_fields_are_omitted() -> None:
    shown = made(
        "From: ann@example.org",
        "X-Who: \u00e4",
        'Content-Type: text/plain; charset=utf-8; name="\u00e4.txt"',
        "Keywords: plain",
    )
    assert value(shown, "X-Who") is None
    assert value(shown, "Content-Type") == "text/plain; charset=utf-8"
    assert value(shown, "Keywords") == "plain"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Subject: x\r\n",
        "Subject: \u00e4\r\n".encode("latin-1"),
        "Subject: \u4f60\r\n".encode("gbk"),
    ],
)
def test_another_encoding_is_left_alone(header: bytes) -> None:
    """RFC 6856 is about UTF-8; other encodings are unknown."""
    assert surrogate(header) == header


@pytest.mark.rfc("P-025", "P-145")
def test_surrogate_can_have_any_size() -> None:
    """A short header is padded with a comment or spaces; a long one loses fields, never From."""
    for octets in range(8, 260, 3):
        trace = b"Received: " + b"x" * octets + b"\r\n"
        shown = made("From: \u00e4 <a@example.org>", "Subject: \u00fc" + "x" * 20, trace=trace)
        assert value(shown, "From") is not None, octets
        assert b"a@example.org" in shown, octets


@pytest.mark.rfc("P-143")
def test_too_little_space_raises_needs_utf8() -> None:
    for header in (
        "From: \u00e4@b\r\n",
        "Subject: \u00e4\r\n",
        "X: \u00e4\r\n",
        "From: \u00e4\n b\r\n",
    ):
        with pytest.raises(NeedsUTF8):
            surrogate(header.encode())


@pytest.mark.parametrize("kind", ["To", "Subject", "Content-Type", "X-Any"])
def test_a_malformed_value_is_shown_or_refused(kind: str) -> None:
    for value in (*VALUES, "é:" * 15_000, ",é" * 15_000, "é " * 15_000):
        field = f"{kind}: {value} é <a@b>\r\n".encode("utf-8", "replace")
        header = TRACE * 20 + b"From: ann@example.org\r\n" + field
        try:
            shown = surrogate(header)
        except NeedsUTF8:
            continue
        assert len(shown) == len(header), value
        assert shown.isascii(), value
        assert b"\r\nFrom: ann@example.org" in CRLF + shown, value


def test_an_address_that_is_too_odd_spoils_no_other() -> None:
    odd = "(" * 500 + ")" * 500
    to = f"To: Jörg <joerg@example.org>, {odd} <x@y.z>, ann@example.org"
    reported = value(made("From: a@b", to, trace=TRACE * 20), "To")
    assert reported is not None
    assert "<joerg@example.org>" in reported
    assert "<ann@example.org>" in reported
    assert INVALID_ADDRESS in reported


def test_a_fault_of_the_library_refuses_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("restante.surrogate.getaddresses", fail)
    with pytest.raises(NeedsUTF8):
        surrogate(TRACE + "To: é <a@b>\r\n".encode())


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=80), st.data())
def test_pieces_do_not_matter_and_the_body_stays(words: str, data: st.DataObject) -> None:
    message = TRACE + f"Subject: \u00e4{words}\r\n\r\nB\u00f6dy\r\n.\r\n\r\n".encode()
    cut = data.draw(st.integers(0, len(message)))
    downgrade = Downgrade()
    found = downgrade.feed(message[:cut]) + downgrade.feed(message[cut:]) + downgrade.finish()
    assert len(found) == len(message)
    header, _, body = found.partition(b"\r\n\r\n")
    assert header.isascii()
    assert body == "B\u00f6dy\r\n.\r\n\r\n".encode()


@pytest.mark.parametrize("message", [b"", b"\r\n", "\r\n\u00e4\r\n".encode(), b"x" * 200_000])
def test_text_without_header_is_unchanged(message: bytes) -> None:
    downgrade = Downgrade()
    assert downgrade.feed(message) + downgrade.finish() == message
