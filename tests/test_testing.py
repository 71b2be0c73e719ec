"""The server for tests of other programs, tested with Python's poplib."""

from __future__ import annotations

import json
import poplib
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import restante
from restante import testing_command
from restante.errors import (
    ConnectionLost,
    DeadlineExceeded,
    LoginFailed,
    MaildropInUse,
    ProtocolBroken,
)
from restante.testing import SASL_MECHANISMS, Pop3Server, TranscriptLine, UnusedFault

from .malformed import BODIES

pytest_plugins = ["pytester"]
MESSAGE = b"Subject: hi\r\n\r\nx\r\n"


@pytest.fixture
def server() -> Iterator[Pop3Server]:
    with Pop3Server() as found:
        yield found


def logged_in(server: Pop3Server, user: str = "ann", *, stls: bool = False) -> poplib.POP3:
    context = ssl.create_default_context(cafile=server.ca_file)
    parts = urlsplit(server.url(user, stls=stls))
    assert parts.hostname
    assert parts.port
    client: poplib.POP3
    if stls:
        client = poplib.POP3(parts.hostname, parts.port, timeout=30)
        client.stls(context)
    else:
        client = poplib.POP3_SSL(parts.hostname, parts.port, timeout=30, context=context)
    client.user(unquote(parts.username or ""))
    client.pass_(unquote(parts.password or ""))
    return client


@pytest.mark.parametrize("stls", [False, True])
def test_deliver_fetch_delete_and_look(server: Pop3Server, stls: bool) -> None:
    server.deliver("ann", MESSAGE)
    client = logged_in(server, stls=stls)
    assert client.stat() == (1, 18)
    assert client.retr(1)[1] == [b"Subject: hi", b"", b"x"]
    with pytest.raises(MaildropInUse):
        server.messages("ann")
    client.dele(1)
    assert server.held("ann") == []
    client.quit()
    assert server.messages("ann") == []
    assert [each["subject"] for each in server.held("ann")] == ["hi"]


def test_deliver_accepts_every_form_of_a_message(server: Pop3Server, tmp_path: Path) -> None:
    message = EmailMessage()
    message["Subject"] = "made"
    message.set_content("text with ä\n")
    (tmp_path / "file.eml").write_bytes(b"Subject: file\n\ntext\n")
    file = tmp_path / "file.eml"
    for each in (MESSAGE, message, file, str(file), "Subject: text\n\nä\n"):
        server.deliver("ann", each)
    found = server.messages("ann")
    assert [each["subject"] for each in found] == ["hi", "made", "file", "file", "text"]
    assert found[1].get_content() == "text with ä\n"


def test_malformed_mail_is_shown(server: Pop3Server) -> None:
    for octets in BODIES.values():
        server.deliver("ann", octets)
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as maildrop:
        maildrop.delete(*maildrop.list())
        assert len(maildrop.list()) == 0
    for message, octets in zip(server.held("ann"), BODIES.values(), strict=True):
        message.items(), message.as_string()
        server.deliver("ann", octets)
    assert len(server.messages("ann")) == len(BODIES)


def test_users_and_their_passwords() -> None:
    with Pop3Server(users={"Bob Ü@example.org": "p:/@ss"}) as server:
        logged_in(server, "eve").quit()
        url = server.url("Bob Ü@example.org")
        with restante.connect_blocking(url, ca_file=server.ca_file) as client:
            assert client.stat() == (0, 0)
        with (
            pytest.raises(LoginFailed),
            restante.connect_blocking(url, password="other", ca_file=server.ca_file),
        ):
            pass


def test_servers_side_by_side() -> None:
    with Pop3Server() as one, Pop3Server() as two:
        one.deliver("ann", MESSAGE)
        assert len(one.messages("ann")) == 1
        assert two.messages("ann") == []


def test_the_transcript_shows_no_password(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE)
    client = logged_in(server)
    client.retr(1)
    client.quit()
    assert "1 C: PASS ***" in server.transcript
    assert "1 C: RETR 1\n1 S: +OK" in server.transcript
    assert "pw" not in server.transcript
    with restante.connect_blocking(server.url("ann", stls=True), ca_file=server.ca_file) as ours:
        ours.list()
    assert "2 C: LIST" in server.transcript
    assert "cHc=" not in server.transcript
    assert "pw" not in server.transcript


# Faults.


def test_drop_in_the_middle_of_a_message(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE * 100)
    server.fault.drop(after_bytes=100)
    with pytest.raises(ConnectionLost):
        retrieve_one(server)
    assert "1 S: +OK 1800 octets … 83 more octets\n1 S: (the connection ends)" in server.transcript
    assert retrieve_one(server) == MESSAGE * 100  # once only


@pytest.mark.parametrize("stls", [False, True])
def test_a_drop_says_nothing_more(
    server: Pop3Server, stls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault.drop("NOOP")
    with restante.connect_blocking(server.url("ann", stls=stls), ca_file=server.ca_file) as client:
        with pytest.raises(ConnectionLost):
            client.noop()
        assert client.reconnect() == 0
        client.noop()
    assert [each for each in caplog.records if each.name == "asyncio"] == []


def retrieve_one(server: Pop3Server, **limits: float) -> bytes:
    url, trust = server.url("ann"), server.ca_file
    with restante.connect_blocking(url, ca_file=trust, **limits) as client:  # type: ignore[arg-type]
        [message] = client.list()
        return client.retrieve(message).read()


def test_a_drip_takes_longer_than_any_deadline(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE * 1000)
    server.fault.drip(octets=8, seconds=0.02)
    with pytest.raises(DeadlineExceeded):
        retrieve_one(server, deadline=0.5)


def test_dripped_octets_arrive_whole_and_in_order(server: Pop3Server) -> None:
    for at in range(3):
        server.deliver("ann", b"%d\r\n" % at)
    server.fault.drip(octets=2, seconds=0.001)
    server.fault.drip("QUIT", octets=1, seconds=0.001)
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:
        found = [body.read() for _, body in client.retrieve_all(client.list())]
        client.noop()
    assert found == [b"0\r\n", b"1\r\n", b"2\r\n"]


@pytest.mark.parametrize("octets", [1000, -10, -1000])
def test_a_lie_about_sizes(server: Pop3Server, octets: int) -> None:
    server.deliver("ann", MESSAGE)
    server.fault.lie_about_size(octets)
    said = max(18 + octets, 0)
    client = logged_in(server)
    assert client.stat() == (1, said)
    assert client.list()[1] == [b"1 %d" % said]
    assert str(client.list(1)) == str(b"+OK 1 %d" % said)  # not what its types say
    client.quit()
    assert retrieve_one(server) == MESSAGE


def test_fault_of_an_unknown_command_is_refused(server: Pop3Server) -> None:
    with pytest.raises(ValueError, match="RTER"):
        server.fault.err("RTER")


def test_err_and_clear(server: Pop3Server) -> None:
    server.fault.err("stat", "[IN-USE] busy")
    client = logged_in(server)
    with pytest.raises(poplib.error_proto, match="IN-USE"):
        client.stat()
    server.fault.clear()
    assert client.stat() == (0, 0)
    client.quit()


def test_err_does_nothing(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE)
    server.fault.err("DELE", times=1)
    client = logged_in(server)
    with pytest.raises(poplib.error_proto):
        client.dele(1)
    client.quit()
    assert len(server.messages("ann")) == 1


def test_garbage(server: Pop3Server) -> None:
    server.fault.garbage("LIST")
    with (
        pytest.raises(ProtocolBroken),
        restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client,
    ):
        client.list()


def test_delay(server: Pop3Server) -> None:
    """The answer comes after those to other clients meanwhile."""
    server.fault.delay("NOOP", seconds=0.05)
    client = logged_in(server)
    client.noop()
    client.quit()
    assert "C: NOOP\n1 S: +OK" in server.transcript


def test_dup_uidl(server: Pop3Server) -> None:
    for _ in range(3):
        server.deliver("ann", MESSAGE)
    server.fault.dup_uidl()
    client = logged_in(server)
    lines = client.uidl()[1]
    client.quit()
    assert [each.split()[0] for each in lines] == [b"1", b"2", b"3"]
    assert len({each.split()[1] for each in lines}) == 1


def test_lose_quit(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE)
    server.fault.lose_quit()
    client = logged_in(server)
    client.dele(1)
    with pytest.raises(poplib.error_proto):
        client.quit()
    client.close()
    assert server.messages("ann") == []
    assert len(server.held("ann")) == 1


@pytest.mark.rfc("P-095")
def test_no_capa(server: Pop3Server) -> None:
    server.fault.no_capa()
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:
        assert client.capabilities.tags == {}


def test_pipelined_commands_keep_their_faults(server: Pop3Server) -> None:
    for at in range(5):
        server.deliver("ann", b"%d\r\n" % at)
    server.fault.err("RETR", "no", times=1)
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:
        answers = []
        for _, body in client.retrieve_all(client.list()):
            try:
                answers.append(body.read())
            except restante.CommandFailed:
                answers.append(b"refused")
    assert answers == [b"refused", b"1\r\n", b"2\r\n", b"3\r\n", b"4\r\n"]


def test_reset(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE)
    server.fault.drop("RETR", after_bytes=8, reset=True)
    client = logged_in(server)
    with pytest.raises((ConnectionResetError, poplib.error_proto, ssl.SSLError)):
        client.retr(1)
    client.close()
    assert len(server.messages("ann")) == 1


def test_short_list(server: Pop3Server) -> None:
    for _ in range(3):
        server.deliver("ann", MESSAGE)
    server.fault.short_list(1, times=1)
    client = logged_in(server)
    assert [len(client.list()[1]), len(client.uidl()[1])] == [1, 1]
    assert [len(client.list()[1]), len(client.uidl()[1])] == [3, 3]
    server.fault.short_list()
    assert [len(client.list()[1]), len(client.uidl()[1])] == [0, 0]
    for least in (3, 4, 100):
        server.fault.short_list(least)
        assert [len(client.list()[1]), len(client.uidl()[1])] == [3, 3]
    client.quit()
    server.fault._calls.clear()  # some have no effect on purpose


@pytest.mark.parametrize("mechanism", SASL_MECHANISMS)
def test_every_mechanism(mechanism: str) -> None:
    with Pop3Server(users={"ann": "secret"}, sasl=[mechanism]) as server:
        given: dict[str, Any] = {"mechanism": mechanism, "ca_file": server.ca_file}
        given |= {"user": "ann", "port": server.port}
        given["token" if "AUTH" in mechanism else "password"] = "secret"
        with restante.connect_blocking(server.host, **given) as client:
            assert client.capabilities.sasl == (mechanism,)
        given["token" if "AUTH" in mechanism else "password"] = "wrong"
        with pytest.raises(LoginFailed), restante.connect_blocking(server.host, **given):
            pass
        given["user"] = "nobody"
        with pytest.raises(LoginFailed), restante.connect_blocking(server.host, **given):
            pass


def test_unknown_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match="EXTERNAL"):
        Pop3Server(sasl=["EXTERNAL"])


def test_plaintext_login_must_be_requested() -> None:
    for clear in (False, True):
        with Pop3Server(clear=clear) as server:
            server.deliver("ann", MESSAGE)
            client = poplib.POP3(server.host, server.stls_port, timeout=30)
            if clear:
                client.user("ann")
                client.pass_("pw")
                client.quit()
            else:
                with pytest.raises(poplib.error_proto, match="TLS"):
                    client.user("ann")
                client.close()


# Typical use by tests: queried at once, disconnected, and abandoned.


@pytest.mark.slow
@pytest.mark.parametrize("stls", [False, True])
@pytest.mark.parametrize("end", ["close", "reset", "with commands on the way"])
def test_messages_wait_until_the_session_of_a_dead_client_ends(stls: bool, end: str) -> None:
    with Pop3Server() as server:
        for _ in range(20):
            server.deliver("ann", MESSAGE * 1000)
        for _ in range(10):
            client = logged_in(server, stls=stls)
            client.dele(1)
            assert client.sock is not None
            if end == "with commands on the way":
                client.sock.sendall(b"".join(b"RETR %d\r\n" % at for at in range(2, 21)))
            if end == "reset":
                linger = struct.pack("ii", 1, 0)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.file.close()
            client.sock.close()
            assert len(server.messages("ann")) == 20


def test_messages_of_a_user_who_is_logged_in_are_refused_soon(server: Pop3Server) -> None:
    client = logged_in(server)
    with pytest.raises(MaildropInUse):
        server.messages("ann")
    assert server.messages("bob") == []
    client.quit()
    assert server.messages("ann") == []


def test_killed_client_releases_the_maildrop(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE)
    program = """
import os, restante, signal, sys
with restante.connect_blocking(sys.argv[1], ca_file=sys.argv[2]) as maildrop:
    maildrop.delete(*maildrop.list())
    os.kill(os.getpid(), signal.SIGKILL)
"""
    url, trust = server.url("ann"), str(server.ca_file)
    done = subprocess.run([sys.executable, "-c", program, url, trust], timeout=60)
    assert done.returncode == -9
    assert len(server.messages("ann")) == 1


@pytest.mark.parametrize("stls", [False, True])
def test_transcript_contains_everything_the_client_received(server: Pop3Server, stls: bool) -> None:
    """Especially the last answer, which made a test fail."""
    server.deliver("ann", MESSAGE)
    for session in range(1, 20):
        client = logged_in(server, stls=stls)
        assert server.transcript.splitlines()[-2] == f"{session} C: PASS ***"
        assert server.transcript.splitlines()[-1].startswith(f"{session} S: +OK")
        client.stat()
        assert server.transcript.splitlines()[-2:] == [
            f"{session} C: STAT",
            f"{session} S: +OK 1 18",
        ]
        client.retr(1)
        last = f"{session} S: +OK 18 octets … 21 more octets"
        assert server.transcript.splitlines()[-1] == last
        client.quit()
        assert server.transcript.splitlines()[-2] == f"{session} C: QUIT"
        assert server.transcript.splitlines()[-1].startswith(f"{session} S: +OK")
    if stls:
        assert "1 C: STLS\n1 S: +OK" in server.transcript


def test_the_transcript_of_an_answer_that_is_under_way(server: Pop3Server) -> None:
    server.fault.delay("STAT", seconds=60)
    client = logged_in(server)
    assert client.sock is not None
    client.sock.sendall(b"STAT\r\n")
    wait_for(lambda: server.transcript.endswith("C: STAT"))
    client.close()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_the_transcript_outlives_the_server() -> None:
    with Pop3Server() as server:
        logged_in(server).quit()
    assert server.transcript.splitlines()[-2] == "1 C: QUIT"
    assert "+OK" in server.transcript.splitlines()[-1]
    with pytest.raises(RuntimeError, match="with block"):
        server.messages("ann")
    with pytest.raises(RuntimeError, match="with block"):
        Pop3Server().deliver("ann", MESSAGE)


FAULTS: dict[str, Callable[[Pop3Server], None]] = {
    "drop('RETR')": lambda server: server.fault.drop(),
    "drop('NOOP')": lambda server: server.fault.drop("NOOP", reset=True),
    "delay('STAT')": lambda server: server.fault.delay("STAT", seconds=0.01),
    "drip('RETR')": lambda server: server.fault.drip(octets=1000, seconds=0.001),
    "err('STAT')": lambda server: server.fault.err("STAT"),
    "garbage('STAT')": lambda server: server.fault.garbage("STAT"),
    "dup_uidl()": lambda server: server.fault.dup_uidl(),
    "short_list()": lambda server: server.fault.short_list(),
    "lie_about_size()": lambda server: server.fault.lie_about_size(),
    "drop('QUIT')": lambda server: server.fault.lose_quit(),
    "err('CAPA')": lambda server: server.fault.no_capa(),
}


def use_everything(server: Pop3Server) -> None:
    context = ssl.create_default_context(cafile=server.ca_file)
    client = poplib.POP3_SSL("localhost", server.port, context=context, timeout=10)
    with suppress(poplib.error_proto):
        client.capa()
    client.user("ann")
    client.pass_(server.password("ann"))
    with suppress(poplib.error_proto, OSError):
        for command in (client.stat, client.list, client.uidl, client.noop):
            with suppress(poplib.error_proto):
                command()
        client.retr(1)
        client.quit()
    client.close()


@pytest.mark.parametrize("call", FAULTS)
def test_fault_that_was_never_triggered_is_reported(call: str) -> None:
    """Such a test proves nothing."""

    def shows_nothing() -> None:
        with Pop3Server() as server:
            FAULTS[call](server)
            assert server.fault.unused == [call]
            server.fault.clear()

    with pytest.warns(UnusedFault, match=f"^fault.{re.escape(call)} never occurred$"):
        shows_nothing()


@pytest.mark.parametrize("call", FAULTS)
def test_a_fault_that_struck_is_not_reported(call: str) -> None:
    """Warnings are errors here."""
    with Pop3Server() as server:
        for _ in range(3):
            server.deliver("ann", MESSAGE)
        FAULTS[call](server)
        use_everything(server)
        assert server.fault.unused == []


def test_fault_without_an_effect_counts_as_not_triggered() -> None:
    def shows_nothing() -> None:
        with Pop3Server() as server:
            server.deliver("ann", MESSAGE)
            server.fault.drop("RETR", after_bytes=10**6)  # the message is shorter
            server.fault.dup_uidl()  # of one message
            server.fault.short_list(5)
            use_everything(server)

    with pytest.warns(UnusedFault) as reported:
        shows_nothing()
    assert sorted(str(each.message) for each in reported) == [
        "fault.drop('RETR') never occurred",
        "fault.dup_uidl() never occurred",
        "fault.short_list() never occurred",
    ]


def test_another_failure_is_not_hidden_by_unused_faults() -> None:
    def fails() -> None:
        with Pop3Server() as server:
            server.fault.drop()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"users": ["ann"]}, TypeError),
        ({"users": {"ann": 1}}, TypeError),
        ({"users": "ann"}, TypeError),
        ({"sasl": "PLAIN"}, TypeError),
        ({"sasl": 7}, TypeError),
        ({"sasl": ["plain"]}, ValueError),
        ({"clear": "yes"}, TypeError),
        ({"user": {"ann": "x"}}, TypeError),
    ],
    ids=str,
)
def test_an_option_that_is_not_understood(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        Pop3Server(**options)


QUIET = """
import contextlib, poplib, socket, ssl, struct, threading, warnings
import restante
from restante.testing import Pop3Server

def hard_end(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()

with Pop3Server(users={"ann": "secret"}, sasl=["SCRAM-SHA-256", "PLAIN"]) as server:
    server.deliver("ann", b"Subject: x\\r\\n\\r\\n" + b"y\\r\\n" * 100_000)
    trust = server.ca_file
    for options in ({"password": "wrong", "ca_file": trust}, {}):
        with contextlib.suppress(restante.ClientError):
            with restante.connect_blocking(server.url("ann"), **options):
                pass
    for port in (server.port, server.stls_port):
        for octets in (b"", b"garbage\\r\\n", b"GET / HTTP/1.0\\r\\n\\r\\n", b"NO\\0OP\\r\\n"):
            for end in (socket.socket.close, hard_end):
                connection = socket.create_connection(("localhost", port))
                connection.sendall(octets)
                end(connection)
    context = ssl.create_default_context(cafile=trust)
    for commands in (b"USER ann\\r\\nPASS secret\\r\\nRETR 1\\r\\nRETR 1\\r\\n", b"CAPA\\r\\n"):
        for end in (socket.socket.close, hard_end):
            connection = socket.create_connection(("localhost", server.port))
            inside = context.wrap_socket(connection, server_hostname="localhost")
            inside.sendall(commands)
            end(inside)
    fault = server.fault
    for set_up in (
        lambda: fault.drop("RETR", after_bytes=100, reset=True),
        lambda: fault.drop("RETR", after_bytes=100),
        lambda: fault.drop("STAT"),
        lambda: fault.garbage("STAT"),
        lambda: fault.err("RETR"),
        lambda: fault.drip("RETR", octets=1, seconds=0.01),
        lambda: fault.delay("STAT", seconds=0.5),
        lambda: fault.lose_quit(),
    ):
        for stls in (False, True):
            fault.clear()
            set_up()
            url = server.url("ann", stls=stls)
            with contextlib.suppress(restante.ClientError):
                with restante.connect_blocking(url, ca_file=trust, timeout=0.2, deadline=1) as box:
                    box.stat()
                    for _, body in box.retrieve_all(box.list()):
                        body.read()
    fault.clear()
    fault.drip("CAPA", octets=1, seconds=5)
    fault.delay("NOOP", seconds=60)
    left = poplib.POP3("localhost", server.stls_port)
    left.sock.sendall(b"CAPA\\r\\n")
    other = poplib.POP3_SSL("localhost", server.port, context=context)
    other.user("ann")
    other.pass_("secret")
    other.sock.sendall(b"NOOP\\r\\n")
    while not {"C: NOOP", "C: CAPA"} <= {line[-7:] for line in server.transcript.splitlines()}:
        pass
for client in (left, other):
    client.file.close()
    client.sock.close()
"""


@pytest.mark.slow
def test_no_output_is_printed_for_any_client() -> None:
    """Neither by logging without a handler, nor by asyncio, nor by remaining tasks."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET.replace("\\\\", "\\")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_bug_in_the_server_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    def meets_it() -> None:
        with Pop3Server() as server:
            client = logged_in(server)
            monkeypatch.setattr("restante.pop3.session.Session.next", broken)
            with suppress(poplib.error_proto):
                client.noop()
            monkeypatch.undo()
            client.close()

    with pytest.raises(RuntimeError, match="bug") as caught:
        meets_it()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# For other languages.


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "restante.testing", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    "end",
    [
        "end of input",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGTERM", "SIGINT", "both")),
    ],
)
def test_the_server_for_other_languages(tmp_path: Path, end: str) -> None:
    (tmp_path / "one.eml").write_bytes(MESSAGE)
    arguments = ["--user", "ann:p:w", "--user", "bob:", "--mail", f"ann:{tmp_path}/one.eml"]
    with started(*arguments, "--mail", f"eve:{tmp_path}/one.eml", "--json") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        found = json.loads(process.stdout.readline())
        assert found.keys() == {"host", "pop3s", "pop3", "ca", "users"}
        assert found["users"] == {"ann": "p:w", "bob": "", "eve": "pw"}
        context = ssl.create_default_context(cafile=found["ca"])
        client = poplib.POP3_SSL(found["host"], found["pop3s"], context=context, timeout=30)
        client.user("ann")
        client.pass_("p:w")
        assert client.stat() == (1, 18)
        client.quit()
        other = poplib.POP3(found["host"], found["pop3"], timeout=30)
        other.stls(context)
        other.quit()
        if end in ("SIGTERM", "both"):
            process.send_signal(signal.SIGTERM)
        if end == "SIGINT":
            process.send_signal(signal.SIGINT)
        if end in ("end of input", "both"):
            process.stdin.close()
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
    assert not Path(found["ca"]).exists()


def test_the_server_for_people() -> None:
    with started("--user", "ann:pw", "--sasl", "SCRAM-SHA-256") as process:
        out, err = process.communicate("", 60)
    lines = out.splitlines()
    assert lines[0].startswith("trust ")
    assert lines[1].startswith("pop3s://ann:pw@localhost:")
    assert lines[2].startswith("pop3://ann:pw@localhost:")
    assert (err, process.returncode) == ("", 0)


@pytest.mark.parametrize(
    "arguments",
    [["--user", "ann"], ["--user", ":pw"], ["--sasl", "NTLM"], ["--mail", "ann:/no/such/file"]],
    ids=str,
)
def test_arguments_that_make_no_sense(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        testing_command.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert (out, end.value.code) == ("", 2)
    assert arguments[0] in err


# The plugin.


def test_the_plugin_imports_nothing_until_it_is_used() -> None:
    """It is loaded in every pytest run of the environment."""
    program = (
        "import pytest, sys; before = set(sys.modules); import restante.testing_plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.decode().split() == ["restante", "restante.testing_plugin"]


PLUGIN_TESTS = """
import poplib, ssl
import pytest

def session(server):
    context = ssl.create_default_context(cafile=server.ca_file)
    client = poplib.POP3_SSL("localhost", server.port, context=context)
    client.user("ann")
    client.pass_(server.password("ann"))
    return client

@pytest.mark.pop3(users={"ann": "secret"}, sasl=["SCRAM-SHA-256"])
def test_marker(pop3_server):
    client = session(pop3_server)
    assert client.capa()["SASL"] == ["SCRAM-SHA-256"]
    client.quit()
    assert pop3_server.password("ann") == "secret"

def test_fails(pop3_server):
    session(pop3_server).quit()
    assert False

@pytest.mark.pop3(users={"ann": "secret", "bob": "b"}, sasl=["LOGIN"])
class TestMarkers:
    @pytest.mark.pop3(sasl=["PLAIN"], users={"bob": "other"})
    def test_merged(self, pop3_server):
        assert pop3_server.password("ann") == "secret"
        assert pop3_server.password("bob") == "other"
        client = session(pop3_server)
        assert client.capa()["SASL"] == ["PLAIN"]
        client.quit()

    def test_of_the_class(self, pop3_server):
        client = session(pop3_server)
        assert client.capa()["SASL"] == ["LOGIN"]
        client.quit()

@pytest.mark.pop3({"ann": "secret"})
def test_without_a_name(pop3_server):
    pass

@pytest.mark.pop3(user={"ann": "secret"})
def test_misspelt(pop3_server):
    pass

@pytest.mark.pop3(sasl="PLAIN")
def test_of_another_type(pop3_server):
    pass

def test_fails_with_an_unused_fault(pop3_server):
    pop3_server.fault.drop("RETR")
    assert False

@pytest.mark.pop3(users={"ann": "secret"}, sasl=["LOGIN"])
@pytest.mark.parametrize(
    "pop3_server", [{"users": {"bob": "b"}, "sasl": ["PLAIN"]}, {"clear": True}], indirect=True
)
def test_indirect(pop3_server):
    assert pop3_server.password("ann") == "secret"
    client = session(pop3_server)
    sasl = ["PLAIN"] if pop3_server.password("bob") == "b" else ["LOGIN"]
    assert client.capa()["SASL"] == sasl
    client.quit()

@pytest.mark.parametrize("pop3_server", [{"cleer": True}, [True]], indirect=True)
def test_wrong_indirect(pop3_server):
    pass

@pytest.fixture(scope="session")
def shared(pop3_server_factory):
    return pop3_server_factory(users={"ann": "pw"})

def test_factory(shared, pop3_server):
    assert shared.port != pop3_server.port
    session(shared).quit()

def test_fails_too(shared):
    session(shared).quit()
    assert False
"""


def test_the_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PLUGIN_TESTS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA", "-W", "default")
    result.assert_outcomes(passed=6, failed=3, errors=5, warnings=1)
    result.stdout.fnmatch_lines_random(
        [
            "*marker pop3: name the option, such as users={'ann': 'secret'}",
            "*marker pop3: unknown option 'user'; known options: users, sasl, clear",
            "*marker pop3: sasl must be a list of mechanisms",
            "*pop3_server: unknown option 'cleer'; known options: users, sasl, clear",
            "*pop3_server: an indirect parameter must be a dict, not ?True?",
            "(fault.drop('RETR') never occurred)",
            "*UnusedFault: fault.drop('RETR') never occurred",
        ]
    )
    result.stdout.fnmatch_lines(
        [
            *("*test_fails *", "*POP3 transcript*"),
            *("1 C: USER ann", "1 C: PASS ?*?*?", "1 C: QUIT"),
            *("*test_fails_too *", "*POP3 transcript*"),
            *("1 C: QUIT", "2 C: USER ann", "2 C: QUIT"),
        ]
    )


# Between tests.


def test_wait_idle_waits_for_running_sessions() -> None:
    with Pop3Server() as server:
        server.deliver("ann", b"Subject: one\r\n\r\nx\r\n")
        server.wait_idle()  # no client is connected
        client = restante.connect_blocking(server.url("ann"), ca_file=server.ca_file)
        with pytest.raises(TimeoutError, match="1 client"):
            server.wait_idle(timeout=0.05)
        client.delete(*client.list())
        server.fault.delay("QUIT", seconds=0.2)
        thread = threading.Thread(target=client.quit)
        thread.start()
        server.wait_idle()
        assert len(server.held("ann")) == 1
        thread.join(10)


def test_reset_leaves_a_server_as_if_it_were_new() -> None:
    with Pop3Server(users={"ann": "secret"}) as server:
        url, first = server.url("ann"), server.deliver("ann", b"Subject: one\r\n\r\nx\r\n")
        with restante.connect_blocking(url, ca_file=server.ca_file) as client:
            client.delete(*client.list())
        server.deliver("bob", b"Subject: two\r\n\r\nx\r\n")
        server.fault.err("STAT")
        server.fault.drop("NOOP")
        left = restante.connect_blocking(url, ca_file=server.ca_file)
        with pytest.raises(restante.CommandFailed):
            left.stat()
        with pytest.warns(UnusedFault, match="NOOP") as caught:
            server.reset()
        assert caught[0].filename == __file__
        with pytest.raises(restante.ConnectionLost):
            left.noop()
        assert (server.transcript, server.fault.unused) == ("", [])
        assert (server.messages("bob"), server.held("ann")) == ([], [])
        assert server.url("ann") == url
        assert server.deliver("ann", b"Subject: one\r\n\r\nx\r\n") != first
        with restante.connect_blocking(url, ca_file=server.ca_file) as client:
            assert client.stat() == (1, 19)
        assert server.transcript.startswith("1 ")


def test_a_transcript_as_objects() -> None:
    with Pop3Server() as server:
        server.deliver("ann", b"Subject: one\r\n\r\nx\r\n")
        for _ in range(2):
            with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:
                client.stat()
        lines = server.transcript_lines
    said = [line for line in lines if line.verb == "STAT"]
    assert said == [TranscriptLine(1, "C", "STAT"), TranscriptLine(2, "C", "STAT")]
    answer = lines[lines.index(said[0]) + 1]
    assert (answer.sender, answer.verb, answer.text) == ("S", "+OK", "+OK 1 19")
    assert "\n".join(map(str, lines)) == server.transcript
    assert lines == server.transcript_lines  # also after the block
    assert "pw" not in server.transcript


def test_a_forked_child_leaves_the_certificate_to_its_parent() -> None:
    program = """
import os, sys
from restante.testing import certificate
path = certificate()[0]
if os.fork() == 0:
    sys.exit()
os.wait()
print(path.exists(), path.parent)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    there, folder = done.stdout.split()
    assert (there, Path(folder).exists(), done.stderr) == ("True", False, "")
