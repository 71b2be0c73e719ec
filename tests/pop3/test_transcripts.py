"""Every transcript with the protocol core: in step, in one segment, in single octets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.pop3.commands import VERBS
from restante.pop3.session import Policy, Session

from ..transcript import Transcript, check, load
from .core import Core, transcript_core

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
def test_any_split_gives_the_same_responses(data: st.DataObject) -> None:
    transcript = data.draw(st.sampled_from(TRANSCRIPTS))
    sent = transcript.sent
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)))))
    run(transcript, [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)])


@pytest.mark.rfc("P-007", "P-011")
@each
def test_responses_are_short_and_well_formed(transcript: Transcript) -> None:
    core = transcript_core(transcript)
    for step in transcript.steps:
        for line in core.send(step.octets).split(b"\r\n")[:-1] if step.kind == "C" else ():
            if line.startswith((b"+OK", b"-ERR")):
                assert len(line) <= 510  # and CRLF (RFC 2449 §4)
                assert RESPONSE.fullmatch(line), line


@pytest.mark.rfc("P-001", "P-010")
def test_the_greeting_is_one_positive_line_without_a_time_stamp() -> None:
    head = Session(VERBS, Policy(), is_secure=True).greeting().head()
    assert re.fullmatch(rb"\+OK [^<\[\r\n][^<\r\n]*\r\n", head)


STAMP = "<1896.697170952@dbc.mtview.ca.us>"


@pytest.mark.rfc("P-040")
@pytest.mark.parametrize(
    ("is_secure", "is_allowed", "is_told"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_greeting_has_a_time_stamp_if_a_login_is_allowed(
    is_secure: bool, is_allowed: bool, is_told: bool
) -> None:
    policy = Policy(banner="x" * 500)
    session = Session(
        VERBS,
        policy,
        is_secure=is_secure,
        allow_plaintext=is_allowed,
        time_stamp=STAMP,
        accepts_xclient=True,
    )
    head = session.greeting().head()
    assert head.endswith(f" {STAMP}\r\n".encode()) is is_told
    assert (b"<" in head) is is_told
    with_longest = Session(VERBS, policy, is_secure=True, time_stamp=f"<{'a' * 46}@{'b' * 253}>")
    assert len(with_longest.greeting().head()) <= 512  # RFC 2449 §4


@pytest.mark.rfc("P-040", "P-120")
@pytest.mark.parametrize("between", ["STLS", "XCLIENT"])
def test_apop_refuses_an_earlier_time_stamp(between: str) -> None:
    """CVE-2007-1558: an attacker may have chosen the time stamp in the greeting (RFC 2595 §4)."""
    core = Core([], password="tanstaaf", tls=False, allow_plaintext=True, time_stamp=STAMP)
    assert STAMP.encode() in core.session.greeting().head()
    if between == "STLS":
        core.send(b"STLS\r\n")
        core.shake_hands()
    else:
        core.session.accepts_xclient = True
        core.send(b"XCLIENT ADDR=192.0.2.7 CLIENT-TRANSPORT=TLS\r\n")
    said = core.send(b"APOP mrose c4c9334bac560ecc979e58001b3e22fb\r\n")
    assert said == b"-ERR unknown command\r\n"
    assert core.send(b"USER mrose\r\nPASS tanstaaf\r\n").count(b"+OK") == 2


@pytest.mark.rfc("P-030")
def test_apop_is_unknown_without_a_time_stamp() -> None:
    core = Core([], password="tanstaaf")
    for command in (b"APOP mrose c4c9334bac560ecc979e58001b3e22fb\r\n", b"APOP\r\n"):
        assert core.send(command) == b"-ERR unknown command\r\n"


@pytest.mark.rfc("P-043")
def test_apop_name_is_prepared() -> None:
    core = Core([], password="tanstaaf", time_stamp=STAMP)
    wide = "ｍrose".encode()
    assert core.send(b"APOP %s c4c9334bac560ecc979e58001b3e22fb\r\n" % wide).startswith(b"+OK")
