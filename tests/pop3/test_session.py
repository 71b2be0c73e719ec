"""The server's session without I/O: every verb in every state, floods, and hostile octets."""

from __future__ import annotations

import gc
import tracemalloc
from base64 import b64encode
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restante.errors import AuthenticationFailed
from restante.passdb import ScramKey, ScramSecrets, Terms, UserAccount
from restante.pop3.commands import VERBS
from restante.pop3.grammar import Response
from restante.pop3.session import Policy, Session
from restante.pop3.state import State
from restante.sasl import prepare
from restante.sasl.exchange import Lookup
from restante.sasl.mechanisms import MECHANISMS
from restante.wire import MAX_COMMAND

from .core import Core

MESSAGES = [b"Subject: one\r\n\r\n.hidden\r\n", b"Subject: two\r\n\r\n"]
PLAIN_LINE = MECHANISMS["PLAIN"].max_line + 2
MAX_LINE = max(mechanism.max_line for mechanism in MECHANISMS.values()) + 2
LOGIN = b"USER mrose\r\nPASS tan staaf\r\n"
ARGUMENTS = {"USER": b" mrose", "PASS": b" x", "AUTH": b" PLAIN", "TOP": b" 1 0"}
ARGUMENTS["XCLIENT"] = b" ADDR=192.0.2.7"
ARGUMENTS |= dict.fromkeys(("RETR", "DELE"), b" 1")


def plain(message: bytes) -> bytes:
    return b"AUTH PLAIN\r\n" + b64encode(message) + b"\r\n"


@pytest.mark.parametrize("state", [State.AUTHORIZATION, State.TRANSACTION])
@pytest.mark.parametrize("keyword", sorted(VERBS))
@pytest.mark.rfc("P-005", "P-030")
def test_command_in_the_wrong_state_changes_nothing(keyword: str, state: State) -> None:
    """RFC 1939 §3: a command in the wrong state gets a negative status."""
    core = Core(list(MESSAGES))
    if state is State.TRANSACTION:
        core.send(LOGIN)
    if state in VERBS[keyword].states:
        return
    said = core.send(keyword.encode() + ARGUMENTS.get(keyword, b"") + b"\r\n")
    assert said.startswith(b"-ERR ")
    assert said.count(b"\r\n") == 1
    assert core.session.state is state


def test_twenty_bad_commands_in_a_row_end_a_transaction() -> None:
    core = Core(list(MESSAGES))
    core.send(LOGIN + b"DELE 1\r\n")
    for _ in range(2):
        core.send(b"XYZ\r\n" * 19)
        assert not core.is_closed
        core.send(b"NOOP\r\n")
    core.send(b"XYZ\r\n" * 20 + b"QUIT\r\n")
    assert core.is_closed
    assert len(core.messages) == 2


@pytest.mark.parametrize(
    ("identity", "password"),
    [
        (b"%s%n", b"x"),
        (b"%{env:HOME}", b"x"),
        (b"../mrose", b"tan staaf"),
        (b"/etc/passwd", b"x"),
        (b"-oProxyCommand", b"x"),
        (b"mrose\tx", b"tan staaf"),
        (b"mrose\r\nDELE 1", b"tan staaf"),
        (b"mro\xffse", b"tan staaf"),
        (b"mrose", b"tan\xffstaaf"),
        (b"\xd0\xbcrose", b"tan staaf"),
    ],
)
def test_special_characters_in_names_have_no_effect(identity: bytes, password: bytes) -> None:
    """CVE-2017-2669, CVE-2019-10691 and others: SASL decodes a name and nothing else."""
    core = Core(list(MESSAGES))
    said = core.send(plain(b"\0" + identity + b"\0" + password))
    assert said == b"+ \r\n-ERR [AUTH] authentication failed\r\n"
    assert core.send(LOGIN).count(b"+OK") == 2


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"\0\0",
        b"mrose",
        b"\0mrose",
        b"\0mrose\0",
        b"\0\0x",
        b"a\0mrose\0x\0",
        b"\0" * 9,
    ],
)
@pytest.mark.rfc("P-070", "N-05")
def test_malformed_plain_message_is_refused(message: bytes) -> None:
    core = Core(list(MESSAGES))
    assert b"-ERR" in core.send(plain(message))
    assert core.session.state is State.AUTHORIZATION
    assert core.send(LOGIN).count(b"+OK") == 2


@pytest.mark.rfc("P-058")
def test_long_password_is_not_truncated() -> None:
    """RFC 5034 §4: a response of an exchange may be longer than a command."""
    password = "p" * 1024
    core = Core(list(MESSAGES), password=password)
    assert b"+OK" in core.send(plain(b"\0mrose\0" + password.encode()))


@pytest.mark.rfc("P-058", "N-05")
def test_a_response_of_100_kib_is_refused() -> None:
    core = Core(list(MESSAGES))
    said = core.send(b"AUTH PLAIN\r\n" + b"A" * 102_400 + b"\r\n" + LOGIN)
    assert said.startswith(b"+ \r\n-ERR line longer than %d octets\r\n" % PLAIN_LINE)
    assert said.count(b"+OK") == 2


@pytest.mark.rfc("P-006", "P-008")
def test_command_limit_applies_again_after_an_exchange() -> None:
    core = Core(list(MESSAGES))
    core.send(b"AUTH PLAIN\r\n*\r\n")
    said = core.send(b"NOOP" + b" " * MAX_COMMAND + b"\r\n")
    assert said == b"-ERR line longer than 255 octets\r\n"


@pytest.mark.rfc("P-091")
def test_hundred_commands_are_answered_in_order() -> None:
    core = Core(list(MESSAGES))
    core.send(LOGIN)
    said = core.send(b"".join(b"LIST %d\r\nRETR 9%d\r\n" % (1 + n % 2, n) for n in range(50)))
    lines = said.split(b"\r\n")
    assert [line[:6] for line in lines[:-1:2]] == [b"+OK %d " % (1 + n % 2) for n in range(50)]
    assert {line[:4] for line in lines[1:-1:2]} == {b"-ERR"}


def test_cancelled_exchanges_do_not_leak_memory() -> None:
    """CVE-2017-15132."""
    policy = Policy(refused_exchanges=10**6, commands_before_login=10**6)
    core = Core(list(MESSAGES), policy=policy)
    tracemalloc.start()
    for at in range(300):
        if at == 100:
            before, _ = tracemalloc.get_traced_memory()
        core.send(b"AUTH PLAIN\r\n*\r\n")
        core.said.clear()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 4096


_words = st.one_of(
    st.sampled_from([*(name.encode() for name in VERBS), b"PLAIN", b"1", b"2", b"0", b"*", b"="]),
    st.binary(max_size=12),
    st.sampled_from([b" ", b"\r\n", b"\n", b"\r", b"\0", b"tan staaf", b"mrose", b"A" * 300]),
)


@given(st.lists(_words, max_size=60), st.booleans())
@example([b"LANG", b"\r\n"], False)
@pytest.mark.rfc("P-117", "N-06")
def test_any_input_is_answered_or_ends_the_session(words: list[bytes], is_known: bool) -> None:
    """No octets raise an exception, exceed the buffer limits, or remove a message."""
    core = Core(list(MESSAGES))
    if is_known:
        core.send(LOGIN)
    asked = b"".join(words).upper()
    for word in words:
        core.send(word)
        assert core.is_closed or core.session.unread <= MAX_LINE
    for line in bytes(core.said).split(b"\r\n"):
        line.decode("utf-8" if b"LANG" in asked else "ascii")  # RFC 6856 §3.2
        assert len(line) <= 510
    assert b"DELE" in asked or core.messages == MESSAGES


@pytest.mark.parametrize(
    "first",
    [b"POST / HTTP/1.1", b"Host: pop.example.org", b"EHLO example.org", b"LHLO x", b"SSH-2.0-x"],
)
@pytest.mark.rfc("N-06")
def test_other_protocols_get_no_response(first: bytes) -> None:
    """ALPACA: no output could be taken by a browser for an answer to its request."""
    core = Core(list(MESSAGES))
    assert core.send(first + b"\r\nUSER mrose\r\n") == b""
    assert core.is_closed


@pytest.mark.rfc("P-121")
def test_octets_after_stls_are_not_run_as_commands() -> None:
    """RFC 2595 §4, CVE-2021-33515: nor are they kept and run after the handshake."""
    core = Core([], tls=False)
    assert core.send(b"STLS\r\nCAPA\r\n") == b""
    assert core.is_closed
    assert not core.is_handshaking


def test_stls_answers_in_the_language_of_the_client() -> None:
    """RFC 6856 §3.1: LANG is allowed in AUTHORIZATION."""
    core = Core([], tls=False)
    assert core.send(b"LANG de\r\n").startswith(b"+OK de")
    assert core.send(b"STLS\r\n") == b"+OK TLS-Aushandlung beginnen\r\n"


def test_weak_scram_secrets_refuse_the_login_only() -> None:
    """RFC 7677 §4: 4096 iterations at least; a passwd-file may hold fewer."""
    session = Session(VERBS, Policy(mechanisms=("SCRAM-SHA-256",)), is_secure=True)
    session.receive(b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=ann,r=nonce") + b"\r\n")
    assert isinstance(session.next(), Lookup)
    weak = ScramSecrets(b"salt", 1, (ScramKey("", bytes(32), bytes(32)),))
    refused = session.looked_up(weak)
    assert isinstance(refused, Response)
    assert not refused.is_ok
    session.receive(b"CAPA\r\n")
    assert isinstance(session.next(), Response)


@pytest.mark.rfc("P-032")
def test_empty_user_name_is_refused() -> None:
    assert Core([]).send(b"USER \r\n") == b"-ERR USER requires a user name\r\n"


def test_xclient_requires_named_attributes() -> None:
    core = Core([], tls=False)
    core.session.accepts_xclient = True
    assert core.send(b"XCLIENT ADDR=192.0.2.7 TLS\r\n") == b"-ERR XCLIENT requires NAME=VALUE\r\n"
    assert core.send(b"XCLIENT CLIENT-TRANSPORT=TLS\r\n").startswith(b"+OK")


def test_a_session_is_small() -> None:
    """A server may have ten thousand idle sessions."""
    tracemalloc.start()
    sessions = [Session(VERBS, Policy(), is_secure=True) for _ in range(100)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(sessions) < 2048


# Capabilities.

HURRIED = Policy(terms=Terms(60), announced=Terms(300, 7))


def capabilities(core: Core) -> set[bytes]:
    return set(core.send(b"CAPA\r\n").split(b"\r\n"))


@pytest.mark.rfc("P-087", "P-089")
def test_capa_announces_the_longest_delay_then_the_users_own() -> None:
    """RFC 2449 §6.5, §6.7: USER announces that values after login may differ."""
    core = Core(list(MESSAGES), policy=HURRIED)
    assert capabilities(core) >= {b"LOGIN-DELAY 300 USER", b"EXPIRE 7 USER"}
    core.send(b"USER mrose\r\nPASS tan staaf\r\n")
    assert capabilities(core) >= {b"LOGIN-DELAY 60", b"EXPIRE NEVER"}


@pytest.mark.rfc("P-087", "P-089")
def test_site_limits_are_announced_before_and_after_login() -> None:
    core = Core(list(MESSAGES), policy=Policy(terms=Terms(60, 30)))
    for _ in range(2):
        assert capabilities(core) >= {b"LOGIN-DELAY 60", b"EXPIRE 30"}
        core.send(LOGIN)
    assert not any(b"LOGIN-DELAY" in line for line in capabilities(Core([])))


@pytest.mark.parametrize(
    ("own", "terms"),
    [
        (UserAccount("a", "a"), Terms(60)),
        (UserAccount("a", "a", login_delay=10.5), Terms(11)),
        (UserAccount("a", "a", login_delay=300), Terms(300)),
        (UserAccount("a", "a", login_delay=9999), Terms(300)),  # until it is announced
        (UserAccount("a", "a", expire=7), Terms(60, 7)),
    ],
)
@pytest.mark.rfc("P-087")
def test_login_delay_never_exceeds_the_announced_one(own: UserAccount, terms: Terms) -> None:
    assert HURRIED.terms_of(own) == terms


@pytest.mark.rfc("P-012", "P-101", "P-106")
def test_nothing_follows_a_size_or_a_unique_id() -> None:
    """RFC 1939 §5, §7; 2 after DELE is still 2, for every form of the command."""
    core = Core([b"Subject: %d\r\n\r\n" % number for number in range(5)])
    core.send(LOGIN + b"DELE 1\r\nDELE 4\r\n")
    assert core.send(b"LIST\r\n").split(b"\r\n")[1:] == [b"2 14", b"3 14", b"5 14", b".", b""]
    assert core.send(b"UIDL\r\n").split(b"\r\n")[1:] == [b"2 u2", b"3 u3", b"5 u5", b".", b""]
    for number in (2, 3, 5):
        assert core.send(b"LIST %d\r\n" % number) == b"+OK %d 14\r\n" % number
        assert core.send(b"UIDL %d\r\n" % number) == b"+OK %d u%d\r\n" % (number, number)
    assert core.send(b"STAT\r\n") == b"+OK 3 42\r\n"


@pytest.mark.rfc("N-05", "P-006")
def test_auth_command_is_limited_to_255_octets() -> None:
    password = b"p" * 173
    core = Core(list(MESSAGES), password=password.decode())
    line = b"AUTH PLAIN " + b64encode(b"\0mrose\0" + password) + b"\r\n"
    assert len(line) == 253
    assert core.send(line).startswith(b"+OK")
    core = Core(list(MESSAGES))
    assert core.send(line[:-2] + b"A" * 3 + b"\r\n") == b"-ERR line longer than 255 octets\r\n"
    assert core.send(LOGIN).count(b"+OK") == 2


# -- Every command before login has a limit, which honest clients do not reach.


@pytest.mark.parametrize("line", [b"NOOP", b"CAPA", b"USER x", b"LANG de", b"UTF8"])
def test_commands_before_login_are_counted_right_or_wrong(line: bytes) -> None:
    policy = Policy(bad_commands=10**6)
    core = Core(list(MESSAGES), policy=policy)
    core.send((line + b"\r\n") * policy.commands_before_login)
    assert not core.is_closed
    core.said.clear()
    core.send(line + b"\r\n")
    assert core.is_closed
    assert bytes(core.said).startswith(b"-ERR ")
    assert core.said.count(b"\r\n") == 1


def test_login_ends_the_count_of_commands_before_login() -> None:
    core = Core(list(MESSAGES))
    core.send(b"CAPA\r\n" * 90 + LOGIN)
    assert core.send(b"NOOP\r\n" * 1000).count(b"+OK") == 1000
    assert not core.is_closed


def test_refused_mechanisms_are_negotiation() -> None:
    """RFC 5034 §4: after a refusal a client may try another mechanism, or USER and PASS."""
    core = Core(list(MESSAGES))
    policy = Policy()
    core.send(b"AUTH CRAM-MD5\r\nAUTH NTLM\r\nAUTH GSSAPI\r\nAUTH PLAIN\r\n*\r\n")
    assert core.send(LOGIN).count(b"+OK") == 2
    core = Core(list(MESSAGES))
    core.send(b"AUTH NTLM\r\n" * (policy.refused_exchanges - 1))
    assert not core.is_closed
    said = core.send(b"AUTH NTLM\r\n")
    assert said == b"-ERR too many refused or cancelled AUTH commands, closing the connection\r\n"
    assert core.is_closed


@pytest.mark.parametrize("name", MECHANISMS)
def test_each_mechanism_has_its_own_longest_line(name: str) -> None:
    """The limit is checked before anything is decoded."""
    limit = MECHANISMS[name].max_line
    core = Core(list(MESSAGES), policy=Policy(mechanisms=(name,)))
    if not core.send(b"AUTH " + name.encode() + b"\r\n").startswith(b"+ "):
        return  # not possible without a certificate or channel binding
    assert b"line longer" in core.send(b"A" * (limit + 1) + b"\r\n")
    core.send(b"AUTH " + name.encode() + b"\r\n")
    assert b"line longer" not in core.send(b"A" * limit + b"\r\n")


@pytest.mark.parametrize("size", [1024, 1025, 340 * 3, 340 * 3 + 6])
def test_names_and_passwords_are_measured_in_octets_before_they_are_normalised(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalised: list[str] = []

    def normalize(_: str, text: str) -> str:
        normalised.append(text)
        return text

    monkeypatch.setattr(prepare, "ucd_3_2_0", SimpleNamespace(normalize=normalize))
    text = "\u1e9b" * (size // 3) if size % 3 == 0 else "a" * (size - 2) + "é"
    if size <= 1024:
        prepare.saslprep(text)
    else:
        with pytest.raises(AuthenticationFailed):
            prepare.saslprep(text)
    assert bool(normalised) == (size <= 1024)


@pytest.mark.parametrize("name", ["OAUTHBEARER", "XOAUTH2"])
def test_tokens_are_neither_offered_nor_accepted_without_tls(name: str) -> None:
    """Not even where plaintext passwords are allowed (RFC 6750 §5.3)."""
    for is_secure in (False, True):
        core = Core(
            list(MESSAGES),
            policy=Policy(mechanisms=(name, "PLAIN")),
            tls=is_secure,
            allow_plaintext=True,
        )
        assert (name.encode() in core.send(b"CAPA\r\n")) == is_secure
        said = core.send(b"AUTH " + name.encode() + b"\r\n")
        assert said.startswith(b"+ " if is_secure else b"-ERR")
