"""SMTP and LMTP without sockets: the commands and their replies."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.errors import (
    BadCommand,
    MessageRefused,
    NoSuchUser,
    QuotaExceeded,
    RestanteError,
    TemporaryFailure,
    UnsafeArgument,
)
from restante.smtp.commands import VERBS
from restante.smtp.content import Incoming
from restante.smtp.grammar import failure
from restante.smtp.session import Policy, Session
from restante.smtp.state import BeginData, Close, Content, Deliver, Resolve, StartTLS

SMTP = Policy("mx.example.org", 10_000, domains=frozenset({"example.org"}))
LMTP = Policy("mx.example.org", 10_000, is_lmtp=True)
LETTER = b"Subject: x\r\n\r\nhello\r\n"


class Driver:
    """Answers the actions of a session without I/O: ann and eve exist, eve has no room."""

    def __init__(self, policy: Policy = SMTP, *, may_start_tls: bool = False) -> None:
        self.session = Session(VERBS, policy, may_start_tls=may_start_tls)
        self.said: list[bytes] = []
        self.messages: list[tuple[Deliver, bytes]] = []
        self.closed = ""
        self._content = b""

    def feed(self, octets: bytes) -> list[bytes]:
        """Feed octets; returns the lines of the answer."""
        before = len(self.said)
        self.session.receive(octets)
        while (event := self.session.next()) is not None:
            match event:
                case Close(reason):
                    self.closed = reason
                case Resolve(address):
                    self._resolve(address)
                case BeginData(reply):
                    self._content = b""
                    self._say(reply.encode())
                case Content(octets):
                    self._content += octets
                case Deliver():
                    self._deliver(event)
                case StartTLS(reply):
                    self._say(reply.encode())
                    self.session.secured()
                case _:
                    self._say(event.encode())
        return self.said[before:]

    def _say(self, octets: bytes) -> None:
        assert octets.endswith(b"\r\n")
        self.said += octets[:-2].split(b"\r\n")

    def _resolve(self, address: str) -> None:
        name = address.partition("@")[0].casefold()
        if name == "slow":
            self._say(self.session.refused(TemporaryFailure("directory is down")).encode())
        elif name in ("ann", "eve", "postmaster"):
            self._say(self.session.resolved(name).encode())
        else:
            self._say(self.session.refused(NoSuchUser(address)).encode())

    def _deliver(self, event: Deliver) -> None:
        self.messages.append((event, self._content))
        for each in event.recipients:
            error = QuotaExceeded(10) if each.maildrop == "eve" else None
            if reply := self.session.delivered(error):
                self._say(reply.encode())

    def begin(self, *recipients: bytes) -> None:
        """Send EHLO, MAIL, RCPT for each recipient, and DATA; all must be accepted."""
        hello = b"LHLO" if self.session.policy.is_lmtp else b"EHLO"
        octets = hello + b" client.example.net\r\nMAIL FROM:<bob@example.net>\r\n"
        octets += b"".join(b"RCPT TO:<%s>\r\n" % each for each in recipients) + b"DATA\r\n"
        assert self.feed(octets)[-1].startswith(b"354")


def codes(lines: list[bytes]) -> list[bytes]:
    return [line[:9] if line[4:5].isdigit() else line[:3] for line in lines if line[3:4] == b" "]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # RFC 5321 §4.1.1.1, §4.1.4: a greeting first, and RSET, NOOP, VRFY, HELP, QUIT at any time.
        ([b"MAIL FROM:<b@x>"], [b"503 5.5.1"]),
        ([b"NOOP", b"RSET", b"VRFY ann", b"HELP"],
         [b"250 2.0.0", b"250 2.0.0", b"252 2.5.0", b"214 2.0.0"]),
        ([b"RSET x", b"QUIT x", b"QUIT"], [b"501 5.5.4", b"501 5.5.4", b"221 2.0.0"]),
        # The argument of EHLO goes into Received: only a domain or an address literal.
        *(([b"EHLO " + name], [b"501 5.5.4"])
          for name in (b"", b"a b", b"x (by y)", b"a;b", b"-a", b"a" * 256, b"[1.2.3.4", b"\xff")),
        *(([b"EHLO " + name], [b"250"])
          for name in (b"localhost", b"my_host", b"[127.0.0.1]", b"[IPv6:::1]", b"a.example.")),
        ([b"LHLO x"], [b"500 5.5.1"]),
        # Addresses (§4.1.2, §4.1.1.3): source routes are ignored, spaces and bare forms are common.
        *(([b"EHLO x", b"MAIL FROM:" + path], [b"250", b"250 2.1.0"])
          for path in (b"<>", b"<b@x>", b" <b@x>", b"b@x", b"<@a,@c.d:b@x>", b'<"a b\\""@x>',
                       b"<" + b"a" * 300 + b"@x>",
                       b"<a..b.@docomo.example>", b"<b@[192.0.2.1]>", b"<b@x> SIZE=10",
                       b"<b@x> BODY=8BITMIME", b"<b@x> SMTPUTF8",
                       "<å@ø.example> SMTPUTF8".encode())),
        *(([b"EHLO x", b"MAIL FROM:" + path], [b"250", reply])
          for path, reply in (
              (b"<b@x", b"501 5.5.4"), (b"b@x>", b"501 5.5.4"), (b"<b@x>y", b"501 5.5.4"),
              (b"<b@x>> <c@y>", b"501 5.5.4"), (b"<b\x07@x>", b"553 5.1.7"),
              (b"<b@x(<c@y>)>", b"501 5.5.4"), (b"<b(c)@x>", b"553 5.1.7"),
              (b"<b@x> SIZE=x", b"501 5.5.4"),
              (b"<b@x> SIZE=10001", b"552 5.3.4"), (b"<b@x> BODY=BINARYMIME", b"501 5.5.4"),
              (b"<b@x> SMTPUTF8=yes", b"501 5.5.4"), (b"<b@x> =", b"501 5.5.4"),
              (b"<b@x> RET=FULL", b"555 5.5.4"), ("<å@x>".encode(), b"553 5.6.7"),
              (b"<\xff@x> SMTPUTF8", b"553 5.1.7"))),
        ([b"EHLO x", b"MAIL TO:<b@x>", b"MAIL"], [b"250", b"501 5.5.4", b"501 5.5.4"]),
        # HELO has no extensions (§4.1.1.2).
        ([b"HELO x", b"MAIL FROM:<b@x> SIZE=10"], [b"250", b"555 5.5.4"]),
        # One transaction at a time (§4.1.4), and none without recipients (§3.3).
        ([b"EHLO x", b"MAIL FROM:<b@x>", b"MAIL FROM:<b@x>"], [b"250", b"250 2.1.0", b"503 5.5.1"]),
        ([b"EHLO x", b"RCPT TO:<ann@example.org>"], [b"250", b"503 5.5.1"]),
        ([b"EHLO x", b"MAIL FROM:<b@x>", b"DATA", b"RCPT TO:<ann@example.org>", b"DATA x", b"DATA"],
         [b"250", b"250 2.1.0", b"503 5.5.1", b"250 2.1.5", b"501 5.5.4", b"354"]),
        ([b"EHLO x", b"MAIL FROM:<b@x>", b"EHLO x", b"DATA"],
         [b"250", b"250 2.1.0", b"250", b"503 5.5.1"]),
        # Recipients: no relaying; postmaster exists in every domain and without one (§4.5.1).
        ([b"EHLO x", b"MAIL FROM:<b@x>", b"RCPT TO:<ann@example.com>", b"RCPT TO:<ann>",
          b"RCPT TO:<>", b"RCPT TO:<x@example.org>", b"RCPT TO:<slow@example.org>",
          b"RCPT TO:<ann@example.org> NOTIFY=NEVER",
          b"RCPT TO:<Postmaster>", b"RCPT TO:<POSTMASTER@Example.ORG>"],
         [b"250", b"250 2.1.0", b"550 5.7.1", b"550 5.7.1", b"553 5.1.3", b"550 5.1.1",
          b"451 4.3.0", b"555 5.5.4", b"250 2.1.5", b"250 2.1.5"]),
        # No command may change how later octets are read (CVE-2021-38371).
        ([b"BDAT 10 LAST", b"AUTH PLAIN AAA=", b"TURN", b"ETRN x", b"EXPN x", b"XCLIENT A=b"],
         [b"500 5.5.1"] * 6),
        ([b"EHLO x", b"STARTTLS"], [b"250", b"500 5.5.1"]),
        ([b"NOOP x\ry"], [b"500 5.5.2"]),
        ([b"x" * 2000, b"NOOP"], [b"500 5.5.2", b"250 2.0.0"]),
    ],
)  # fmt: skip
@pytest.mark.rfc("P-201", "P-202", "P-203", "P-204", "P-207", "P-209", "P-210")
def test_commands(lines: list[bytes], expected: list[bytes]) -> None:
    driver = Driver()
    said = codes(driver.feed(b"".join(line + b"\r\n" for line in lines)))
    assert said == expected
    for whole in driver.said:
        assert whole.isascii(), "no reply repeats what the client sent"
        assert re.match(rb"2\d\d|354|[45]\d\d[ -][45]\.\d\.\d ", whole), whole


def test_replies_do_not_depend_on_how_the_octets_arrive() -> None:
    dialogue = (
        b"EHLO x\r\nMAIL FROM:<b@x>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n"
        b"Received: a\r\nSubject: x\r\n\r\n..dots\r\n...\r\n.\r\nNOOP\r\nBAD\r\nQUIT\r\n"
    )
    whole = Driver()
    expected = whole.feed(dialogue)
    assert codes(expected)[-3:] == [b"250 2.0.0", b"500 5.5.1", b"221 2.0.0"]
    assert whole.messages[0][1] == b"Received: a\r\nSubject: x\r\n\r\n.dots\r\n..\r\n"
    for size in (1, 2, 3, 7):
        pieces = Driver()
        for at in range(0, len(dialogue), size):
            pieces.feed(dialogue[at : at + size])
        assert (pieces.said, pieces.messages) == (expected, whole.messages)
        assert pieces.closed == "quit"


@pytest.mark.rfc("P-171")
def test_lmtp_answers_once_for_each_recipient() -> None:
    """RFC 2033 §4.2: in their order, duplicates included."""
    driver = Driver(LMTP)
    driver.begin(b"ann@a", b"eve@a", b"ann")
    said = codes(driver.feed(LETTER + b".\r\nNOOP\r\n"))
    assert said == [b"250 2.0.0", b"452 4.2.2", b"250 2.0.0", b"250 2.0.0"]
    driver.begin(b"ann@a", b"eve@a")
    said = codes(driver.feed(b"x" * 20_000 + b"\r\n.\r\nNOOP\r\n"))
    assert said == [b"552 5.3.4", b"552 5.3.4", b"250 2.0.0"]


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (MessageRefused("x"), 554, "5.6.0"),
        (UnsafeArgument("x"), 553, "5.1.3"),
        (BadCommand("x"), 500, "5.5.2"),
        (RestanteError("x"), 451, "4.3.5"),
    ],
)
def test_every_error_has_a_reply(error: RestanteError, code: int, status: str) -> None:
    """RFC 5321 §4.2.1: an error not known to be permanent is temporary."""
    assert failure(error)[:2] == (code, status)


def test_a_message_that_cannot_be_kept_is_refused_once() -> None:
    driver = Driver()
    driver.session.storing_failed()
    driver.begin(b"ann@example.org")
    driver.session.storing_failed()
    driver.session.storing_failed()
    assert codes(driver.feed(LETTER + b".\r\n")) == [b"451 4.3.0"]
    assert driver.messages == []


def test_helo_is_plain_smtp_in_received() -> None:
    """RFC 3848: ESMTP is for EHLO."""
    driver = Driver()
    driver.feed(b"HELO x\r\nMAIL FROM:<b@x>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
    driver.feed(LETTER + b".\r\n")
    assert driver.messages[0][0].protocol == "SMTP"


def test_a_long_line_of_a_header_may_end_between_cr_and_lf() -> None:
    """The next field counts as one, in any pieces."""
    driver = Driver()
    driver.begin(b"ann@example.org")
    for piece in (b"Subject: " + b"x" * 100 + b"\r", b"\n" + b"Received: a\r\n" * 2, b"\r\n.\r\n"):
        said = driver.feed(piece)
    assert codes(said) == [b"250 2.0.0"]


def test_smtp_answers_once_and_reports_a_failure() -> None:
    """RFC 5321 §6.1: 250 makes the server responsible for all recipients."""
    driver = Driver()
    driver.begin(b"ann@example.org", b"eve@example.org")
    assert codes(driver.feed(LETTER + b".\r\nNOOP\r\n")) == [b"452 4.2.2", b"250 2.0.0"]
    driver.begin(b"ann@example.org")
    assert codes(driver.feed(LETTER + b".\r\n")) == [b"250 2.0.0"]


FALSE_ENDS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n\n.\n\n",
]  # fmt: skip


@pytest.mark.parametrize("end", FALSE_ENDS)
@pytest.mark.parametrize("policy", [SMTP, LMTP])
@pytest.mark.rfc("P-174", "P-200")
def test_only_crlf_dot_crlf_ends_a_message(end: bytes, policy: Policy) -> None:
    """CVE-2023-51764 and its siblings.  LMTP keeps bare CR and LF: refusing them loses mail."""
    driver = Driver(policy)
    driver.begin(b"ann@example.org")
    message = b"Subject: x\r\n\r\nhi" + end + b"MAIL FROM:<forged@x>\r\n"
    expected = [b"250 2.0.0"] if policy.is_lmtp else [b"554 5.6.0"]
    assert codes(driver.feed(message + b".\r\n")) == expected
    assert [octets for _, octets in driver.messages] == [message.replace(b"\r\n.", b"\r\n")] * (
        policy.is_lmtp
    )


@pytest.mark.rfc("P-208")
def test_pre_tls_state_is_discarded() -> None:
    """RFC 3207 §4.2; a second STARTTLS is refused and no longer announced."""
    driver = Driver(may_start_tls=True)
    said = driver.feed(b"EHLO x\r\nMAIL FROM:<b@x>\r\n")
    assert b"250-STARTTLS" in said
    assert codes(driver.feed(b"STARTTLS x\r\n")) == [b"501 5.5.4"]
    assert codes(driver.feed(b"STARTTLS\r\n")) == [b"220 2.0.0"]
    assert codes(driver.feed(b"RCPT TO:<ann@example.org>\r\nMAIL FROM:<b@x>\r\n")) == [
        b"503 5.5.1",
        b"503 5.5.1",
    ]
    assert b"250-STARTTLS" not in driver.feed(b"EHLO x\r\n")
    assert codes(driver.feed(b"STARTTLS\r\n")) == [b"503 5.5.1"]
    driver.begin(b"ann@example.org")
    driver.feed(LETTER + b".\r\n")
    assert driver.messages[0][0].protocol == "ESMTPS"


@pytest.mark.parametrize("octets", [b"STARTTLS\r\nMAIL FROM:<b@x>\r\n", b"STARTTLS\r\n\x16\x03"])
@pytest.mark.rfc("P-208")
def test_octets_after_starttls_end_the_session(octets: bytes) -> None:
    """CVE-2011-0411."""
    driver = Driver(may_start_tls=True)
    driver.feed(b"EHLO x\r\n")
    assert driver.feed(octets) == []
    assert driver.closed == "octets after STARTTLS"


def _without_a_message() -> Iterator[tuple[str, bytes, int, str]]:
    begin = b"EHLO x\r\nMAIL FROM:<b@x>\r\n"
    policy = SMTP
    yield "NOOP", b"NOOP\r\n", policy.commands + 1, "too many commands without a message"
    yield "MAIL", b"MAIL FROM:<b@x>\r\nRSET\r\n", policy.commands // 2 + 1, "too many commands"
    yield "bad", b"BAD\r\n", policy.bad_commands, "too many bad commands"
    yield "unknown", begin + b"RCPT TO:<x@example.org>\r\n", 100, "too many unknown recipients"
    recipients = b"RCPT TO:<ann@example.org>\r\n"
    yield "RCPT", begin + recipients, policy.recipient_commands + 1, "too many commands"


@pytest.mark.parametrize(("octets", "times", "reason"), [case[1:] for case in _without_a_message()])
@pytest.mark.rfc("P-206")
def test_commands_without_a_message_are_bounded(octets: bytes, times: int, reason: str) -> None:
    """The last reply says so (RFC 5321 §3.8), then the connection closes."""
    driver = Driver()
    first, _, repeated = octets.rpartition(b"\r\n" if octets.count(b"\r\n") < 2 else b"<b@x>\r\n")
    if octets.startswith(b"EHLO"):
        driver.feed(first + b"<b@x>\r\n")
    else:
        driver.feed(b"EHLO x\r\n")
        repeated = octets
    said = driver.feed(repeated * (times - 2))
    assert not driver.closed, "one less than the limit is allowed"
    said = driver.feed(repeated * 3)
    assert driver.closed.startswith(reason)
    assert said[-1].startswith(b"421 4.7.0 too many")


def test_a_delivered_message_gives_new_credit() -> None:
    driver = Driver()
    for _ in range(5):
        driver.begin(b"ann@example.org")
        driver.feed(LETTER + b".\r\n")
        assert len(driver.feed(b"NOOP\r\n" * (SMTP.commands - 5))) == SMTP.commands - 5
    assert not driver.closed
    assert driver.session.messages == 5


def test_unknown_recipients_are_counted_over_all_messages_of_smtp() -> None:
    """A message between guesses allows no more guesses, except for a local mail server."""
    for policy, hello in ((SMTP, b"EHLO"), (LMTP, b"LHLO")):
        driver = Driver(policy)
        driver.feed(hello + b" x\r\n")
        for _ in range(12):
            driver.feed(b"MAIL FROM:<b@x>\r\n" + b"RCPT TO:<x@example.org>\r\n" * 10)
            driver.feed(b"RCPT TO:<ann@example.org>\r\nDATA\r\n" + LETTER + b".\r\n")
        assert driver.closed == ("" if policy.is_lmtp else "too many unknown recipients")
        assert driver.session.messages == (12 if policy.is_lmtp else 9)


@pytest.mark.rfc("P-205")
def test_recipients_beyond_the_limit_wait_for_another_message() -> None:
    """RFC 5321 §4.5.3.1.8, §4.5.3.1.10."""
    driver = Driver(LMTP)
    said = codes(
        driver.feed(b"LHLO x\r\nMAIL FROM:<b@x>\r\n" + b"RCPT TO:<ann@a>\r\n" * 103 + b"DATA\r\n")
    )
    assert said[-104:] == [b"250 2.1.5"] * 100 + [b"452 4.5.3"] * 3 + [b"354"]
    assert len(driver.feed(LETTER + b".\r\n")) == 100


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"NOOP\n", "lines must end with CRLF, but this line has a bare LF"),
        (b"NO\0OP\r\n", "NUL in a command"),
        (b"\x16\x03\x01\0", "NUL in a command"),
    ],
)
@pytest.mark.rfc("P-200")
def test_malformed_input_is_answered_and_closes(octets: bytes, reason: str) -> None:
    driver = Driver()
    assert codes(driver.feed(octets + b"NOOP\r\n")) == [b"500 5.5.2"]
    assert driver.closed == reason


@pytest.mark.parametrize("word", [b"GET / HTTP/1.1", b"Host: x", b"PROXY TCP4 x"])
def test_other_protocols_get_no_answer(word: bytes) -> None:
    driver = Driver()
    assert driver.feed(word + b"\r\n") == []
    assert driver.closed == "another protocol"


def test_endless_message_is_cut() -> None:
    driver = Driver()
    driver.begin(b"ann@example.org")
    for _ in range(40):
        driver.feed(b"x" * 65_536)
    assert driver.closed == "message without end"


def test_message_that_cannot_be_kept_is_read_to_its_end() -> None:
    driver = Driver(LMTP)
    driver.begin(b"ann@a", b"eve@a")
    driver.feed(b"Subject: x\r\n")
    driver.session.storing_failed()
    said = codes(driver.feed(b"\r\nhello\r\n.\r\nNOOP\r\n"))
    assert said == [b"451 4.3.0", b"451 4.3.0", b"250 2.0.0"]
    assert driver.messages == []


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_loops_are_refused(end: bytes) -> None:
    """RFC 5321 §6.3; fields in the body do not count."""
    for hops, expected in ((100, None), (101, "loop")):
        incoming = Incoming(10**6, refuses_bare=False)
        header = (b"ReceiveD : x" + end) * hops + b"X-Received: x" + end
        incoming.feed(header + end + (b"Received: x" + end) * 200 + b"\r\n.\r\n")
        assert incoming.is_finished
        assert (incoming.failure is None) == (expected is None)


@given(st.lists(st.binary(max_size=5), max_size=40), st.integers(0, 3))
def test_count_of_received_fields_does_not_depend_on_pieces(pieces: list[bytes], at: int) -> None:
    unit = (b"Received: x\r\n", b"X: y\r\n", b"\n", b"\r")
    octets = b"".join(unit[piece[0] % 4] * (piece[0] % 3 + 1) for piece in pieces if piece)
    whole, cut = (Incoming(10**6, refuses_bare=True) for _ in range(2))
    whole.feed(octets)
    for start in range(0, len(octets), at + 1):
        cut.feed(octets[start : start + at + 1])
    assert cut._hops.count == whole._hops.count
    assert (cut.failure is None) == (whole.failure is None)
