"""Every transcript against the protocol core: in step, in one segment, in single octets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.pop3.session import Policy, Session

from ..transcript import Transcript, check, load
from .core import transcript_core

TRANSCRIPTS = load("pop3")
CODES = rb"IN-USE|LOGIN-DELAY|AUTH|UTF8|SYS/TEMP|SYS/PERM"
RESPONSE = re.compile(rb"(\+OK|-ERR)( \[(%s)\])?( [^\[\r\n][^\r\n]*)?" % CODES)
each = pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda t: t.name)


def run(transcript: Transcript, pieces: list[bytes]) -> None:
    core = transcript_core(transcript)
    for piece in pieces:
        core.send(piece)
    lines = bytes(core.said).split(b"\r\n")
    assert lines.pop() == b""
    check(transcript, lines, core.is_closed)
    if transcript.left is not None:
        assert [len(message) for message in core.messages] == transcript.left


@each
def test_in_step(transcript: Transcript) -> None:
    run(transcript, [step.octets for step in transcript.steps if step.kind == "C"])


@each
def test_all_commands_in_one_segment(transcript: Transcript) -> None:
    run(transcript, [transcript.sent])


@each
def test_one_octet_at_a_time(transcript: Transcript) -> None:
    run(transcript, [bytes([octet]) for octet in transcript.sent])


@given(st.data())
def test_any_cut_gives_the_same_answers(data: st.DataObject) -> None:
    transcript = data.draw(st.sampled_from(TRANSCRIPTS))
    sent = transcript.sent
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)))))
    run(transcript, [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)])


@pytest.mark.rfc("P-007", "P-011")
@each
def test_responses_are_short_and_begin_as_they_should(transcript: Transcript) -> None:
    core = transcript_core(transcript)
    for step in transcript.steps:
        for line in core.send(step.octets).split(b"\r\n")[:-1] if step.kind == "C" else ():
            if line.startswith((b"+OK", b"-ERR")):
                assert len(line) <= 510  # and CRLF (RFC 2449 §4)
                assert RESPONSE.fullmatch(line), line


@pytest.mark.rfc("P-001", "P-010")
def test_the_greeting_is_one_positive_line_without_a_time_stamp() -> None:
    head = Session(Policy(), is_secure=True).greeting().head()
    assert re.fullmatch(rb"\+OK [^<\[\r\n][^<\r\n]*\r\n", head)
