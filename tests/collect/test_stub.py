"""A stub is a message that any mail reader shows: with the sender, and what is missing."""

from __future__ import annotations

from email import message_from_bytes
from email.policy import default

from hypothesis import given
from hypothesis import strategies as st

from restante.collect.stub import stub

HEADER = (
    b"Received: from x\r\n\tby y\r\nFrom: Ann <ann@example.org>\r\nSubject: Film\r\n"
    b"mime-version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary=b\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n--b\r\n"
)


def test_stub_has_the_header_and_a_note_as_body() -> None:
    found = message_from_bytes(stub(HEADER, "isp", "3f9a2b7c01d4", 31457280), policy=default)
    assert found["Subject"] == "Film"
    assert found["From"] == "Ann <ann@example.org>"
    assert found["X-Restante-Stub"] == "isp 3f9a2b7c01d4; octets=31457280"
    assert found["X-Restante-Was-Content-Type"] == "multipart/mixed; boundary=b"
    assert found.get_content_type() == "text/plain"
    assert found["Content-Transfer-Encoding"] is None
    assert "restante collect isp --whole 3f9a2b7c01d4" in found.get_content()
    assert not found.defects


@given(
    st.lists(
        st.sampled_from([b"a: b\r\n", b" c\r\n", b"\r\n", b"\n", b"d\r\n", b"\0", b"MIME-Version:"])
    )
)
def test_nothing_in_a_header_becomes_part_of_the_note(pieces: list[bytes]) -> None:
    found = stub(b"".join(pieces), "isp", "name", 7)
    head, _, note = found.partition(b"\r\n\r\n")
    assert note == stub(b"", "isp", "name", 7).partition(b"\r\n\r\n")[2]
    assert head.startswith(b"X-Restante-Stub: isp name; octets=7\r\n")
    assert not head.split(b"\r\n")[1].startswith((b" ", b"\t"))
