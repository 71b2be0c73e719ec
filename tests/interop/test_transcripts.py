"""The transcripts with Dovecot: a second interpretation of the RFCs.

``DIFFERS`` gives the reasons for differences.  A transcript listed there without a difference fails
too, so that the table stays correct.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import closing
from typing import BinaryIO

import pytest

from restante import tls
from restante.message import LineEndings

from ..transcript import Step, Transcript, load
from .dovecot import Dovecot, dovecot

pytestmark = pytest.mark.interop

CLOSED = b"(closed)"
DIFFERS = {
    "apop": "is set up without APOP here",
    "apop_fails": "likewise",
    "auth_login": "is set up without LOGIN here",
    "auth_oauthbearer": "is set up without OAUTHBEARER here",
    "auth_oauthbearer_fails": "likewise",
    "auth_oauthbearer_malformed": "likewise, and slows guessing down instead of closing",
    "auth_unknown": "a bare AUTH lists the mechanisms, as old clients want; RFC 5034 knows no such",
    "auth_xoauth2": "is set up without XOAUTH2 here",
    "auth_xoauth2_at_once": "likewise",
    "bare_line_feed": "LF ends a command, so this is two; RFC 1939 §3 has CRLF only",
    "byte_stuffing": "a dot that begins the first line of a message is not doubled, so a client "
    "takes that for the end; RFC 1939 §3 has no such exception",
    "capa_with_tls": "announces CAPA itself and has another order, which RFC 2449 leaves free",
    "capa_without_tls": "likewise",
    "http_is_not_answered": "answers another protocol twice before it closes",
    "login_without_tls_is_refused": "accepts USER without TLS and refuses only PASS, "
    "when the client has already sent the password (RFC 8314 §4.1)",
    "no_argument_allowed": "ignores arguments that are too many, so QUIT x removes mail",
    "nul_ends_the_session": "answers NOOP with a NUL in it",
    "invalid_numbers": "takes 01 for 1",
    "overlong_command": "takes commands of more than 255 octets (RFC 2449 §4)",
    "pass_needs_user": "takes USER without a name",
    "pass_right_after_user": "lets other commands stand between USER and PASS (RFC 1939 §7)",
    "ssh_is_not_answered": "answers another protocol",
    "stls_arguments": "starts TLS at STLS with an argument",
    "three_failed_logins_end_the_session": "slows guessing down instead of closing",
    "tls_on_the_clear_port": "waits for the end of the line that a ClientHello has not",
    "top": "refuses a number of lines above 2^64 as malformed; RFC 1939 §7 has no upper limit",
    "unknown_commands": "closes at an unknown keyword after three others; which is lawful",
    "white_space_is_not_a_number": "skips white space before a number (RFC 1939 §3: one space)",
    "wrong_state_authorization": "says why before it closes, which is lawful",
}


@pytest.mark.parametrize("transcript", load("pop3"), ids=lambda transcript: transcript.name)
def test_dovecot_agrees(transcript: Transcript) -> None:
    with dovecot(transcript.messages, transcript.password) as server:
        difference = difference_of(transcript, server)
    if transcript.name in DIFFERS:
        assert difference, "agrees now: take it out of DIFFERS"
    else:
        assert not difference


def difference_of(transcript: Transcript, server: Dovecot) -> str:
    """Describe the first difference."""
    with closing(connect(transcript, server)) as connection, connection.makefile("rb") as heard:
        assert heard.readline().startswith(b"+OK")
        for step in transcript.steps:
            match step.kind:
                case "C":
                    connection.sendall(step.octets)
                case "S":
                    line = line_of(heard)
                    if not matches(step, line):
                        return f"expected {step.octets!r}, got {line!r}"
                case "rest":
                    while line_of(heard) not in (b".", CLOSED):
                        pass
                case "closed":
                    if (line := line_of(heard)) != CLOSED:
                        return f"expected the end, got {line!r}"
    left = [size_of(message) for message in server.stored()]
    if transcript.left is not None and left != transcript.left:
        return f"expected {transcript.left} to be left, found {left}"
    return ""


def matches(step: Step, line: bytes) -> bool:
    """Compare lines, ignoring the text after status indicator and response code."""
    if found := re.match(rb"\+OK ?\*$|-ERR( \[[^]]+\])?", step.octets):
        status = found[0].rstrip(b" *")
        return line == status or line.startswith(status + b" ")
    return step.matches(line)


def connect(transcript: Transcript, server: Dovecot) -> socket.socket:
    context = tls.client_context(server.ca)
    port = server.ports["pop3s" if transcript.tls else "pop3"]
    connection = socket.create_connection(("127.0.0.1", port), timeout=3)
    if transcript.tls:
        return context.wrap_socket(connection, server_hostname="localhost")
    return connection


def line_of(heard: BinaryIO) -> bytes:
    """Read a line without its end; or describe what happened instead."""
    try:
        line = heard.readline()
    except TimeoutError:
        return b"(silence)"
    except (ConnectionError, ssl.SSLError):
        return CLOSED
    return line.removesuffix(b"\r\n") if line else CLOSED


def size_of(message: bytes) -> int:
    ends = LineEndings()
    ends.feed(message)
    ends.finish()
    return ends.size
