"""The server for other people's tests, held by what a stranger uses: Python's own poplib."""

from __future__ import annotations

import poplib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import restante
from restante.errors import (
    ConnectionLost,
    DeadlineExceeded,
    LoginFailed,
    MaildropInUse,
    ProtocolBroken,
)
from restante.testing import SASL_MECHANISMS, Pop3Server

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


def test_what_may_be_delivered(server: Pop3Server, tmp_path: Path) -> None:
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
        list(ours.messages())
    assert "2 C: LIST" in server.transcript
    assert "cHc=" not in server.transcript
    assert "pw" not in server.transcript


# Faults.


def test_drop_in_the_middle_of_a_message(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE * 100)
    server.fault.drop(after_bytes=100)
    with pytest.raises(ConnectionLost):
        retrieve_one(server)
    assert "1 S: +OK 1800 octets … 83 octets more\n1 S: (the connection ends)" in server.transcript
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
        [message] = client.messages()
        return client.retrieve(message).read()


def test_a_drip_takes_longer_than_any_deadline(server: Pop3Server) -> None:
    server.deliver("ann", MESSAGE * 1000)
    server.fault.drip(octets=8, seconds=0.02)
    with pytest.raises(DeadlineExceeded):
        retrieve_one(server, deadline=0.5)


def test_what_drips_comes_whole_and_in_its_order(server: Pop3Server) -> None:
    for at in range(3):
        server.deliver("ann", b"%d\r\n" % at)
    server.fault.drip(octets=2, seconds=0.001)
    server.fault.drip("QUIT", octets=1, seconds=0.001)
    with restante.connect_blocking(server.url("ann"), ca_file=server.ca_file) as client:
        found = [body.read() for _, body in client.retrieve_all(list(client.messages()))]
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


def test_a_fault_of_a_command_that_there_is_not(server: Pop3Server) -> None:
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
        list(client.messages())


def test_delay(server: Pop3Server) -> None:
    """The answer comes after what other clients are told meanwhile."""
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
        for _, body in client.retrieve_all(list(client.messages())):
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
    client.quit()


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


def test_a_mechanism_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="EXTERNAL"):
        Pop3Server(sasl=["EXTERNAL"])


def test_a_login_in_clear_is_only_for_who_asks_for_it() -> None:
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
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            *("*test_fails *", "*POP3 transcript*"),
            *("1 C: USER ann", "1 C: PASS ?*?*?", "1 C: QUIT"),
            *("*test_fails_too *", "*POP3 transcript*"),
            *("1 C: QUIT", "2 C: USER ann", "2 C: QUIT"),
        ]
    )
