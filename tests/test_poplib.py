"""``restante.poplib``: differences from the module of the standard library.

CPython's own tests check that everything else is equal: ``interop/test_poplib.py``.
"""

from __future__ import annotations

import poplib as original
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from restante import poplib, tls
from restante.testing import Pop3Server

MESSAGE = b"Subject: one\r\n\r\n.dot\r\n..\r\n" + b"x" * 100_000 + b"\r\n\x85\x0b\x1c\r\n"


@contextmanager
def saying(*answers: bytes) -> Iterator[tuple[poplib.POP3, list[bytes]]]:
    """Yield a client of a server that greets, gives these answers in turn, then hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as commands:
            connection.sendall(b"+OK ready <1896.697170952@dbc.mtview.ca.us>\r\n")
            for answer in answers:
                heard.append(commands.readline())
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    client = poplib.POP3("127.0.0.1", listening.getsockname()[1], timeout=10)
    try:
        yield client, heard
    finally:
        client.close()
        thread.join(10)
        listening.close()


@contextmanager
def logged_in() -> Iterator[tuple[Pop3Server, poplib.POP3_SSL]]:
    with Pop3Server() as server:
        server.deliver("ann", MESSAGE)
        server.deliver("ann", b"\r\n" * 300)
        context = ssl.create_default_context(cafile=server.ca_file)
        client = poplib.POP3_SSL(server.host, server.port, context=context, timeout=10)
        try:
            client.user("ann")
            client.pass_("pw")
            yield server, client
        finally:
            client.close()


def test_the_names_are_those_of_the_standard_library() -> None:
    assert poplib.error_proto is original.error_proto
    assert set(original.__all__) == set(poplib.__all__)
    for ours, theirs in ((poplib.POP3, original.POP3), (poplib.POP3_SSL, original.POP3_SSL)):
        for name, thing in vars(theirs).items():
            if callable(thing) and (not name.startswith("_") or name == "__init__"):
                wanted = set(signature(thing).parameters) - {"keyfile", "certfile"}
                assert wanted <= set(signature(getattr(ours, name)).parameters), name


def test_a_session() -> None:
    with logged_in() as (server, client):
        assert client.stat() == (2, len(MESSAGE) + 600)
        response, lines, octets = client.retr(1)
        assert response.startswith(b"+OK")
        assert b"\r\n".join([*lines, b""]) == MESSAGE
        assert octets == len(MESSAGE)
        assert client.top("1", 0)[1] == [b"Subject: one", b""]
        assert client.retr(2)[1:] == ([b""] * 300, 600)
        listed = client.uidl()
        assert isinstance(listed, tuple)
        assert client.uidl(2) == b"+OK " + listed[1][1]
        client.dele(2)
        client.rset()
        client.dele(1)
        with pytest.raises(poplib.error_proto, match="-ERR"):
            client.retr(1)
        assert client.quit().startswith(b"+OK")
        assert len(server.held("ann")) == 1


@pytest.mark.rfc("P-130", "P-133")
def test_untrusted_certificate_is_refused() -> None:
    with Pop3Server() as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            poplib.POP3_SSL(server.host, server.port)
        client = poplib.POP3(server.host, server.stls_port)
        with pytest.raises(ssl.SSLCertVerificationError):
            client.stls()
        client.close()
        assert "USER" not in server.transcript


def test_pre_tls_capabilities_are_discarded() -> None:
    with Pop3Server() as server:
        client = poplib.POP3(server.host, server.stls_port)
        assert "SASL" not in client.capa()
        client.stls(ssl.create_default_context(cafile=server.ca_file))
        assert "SASL" in client.capa()
        client.quit()
    with (
        saying(b"+OK\r\nSTLS\r\n.\r\n", b"+OK\r\n+OK logged in\r\n") as (client, heard),
        pytest.raises(poplib.error_proto, match="before the TLS handshake"),
    ):
        client.stls()
    assert heard == [b"CAPA\r\n", b"STLS\r\n"]


def test_a_dot_between_bare_line_feeds_ends_no_message() -> None:
    text = b"x\n.\n+OK deleted\r\ny\r.\r\n\n.\r\n"
    with saying(b"+OK\r\n" + text + b".\r\n", b"+OK\r\n") as (client, heard):
        assert client.retr(1) == (b"+OK", [b"x\n.\n+OK deleted", b"y\r.", b"\n."], len(text))
        client.dele(1)
    assert heard == [b"RETR 1\r\n", b"DELE 1\r\n"]


def test_truncated_message_is_an_error() -> None:
    with (
        saying(b"+OK\r\nhalf a message\r\n") as (client, _),
        pytest.raises(poplib.error_proto, match="EOF"),
    ):
        client.retr(1)


def test_more_than_was_asked_for_is_no_response() -> None:
    with saying(b"+OK\r\n.\r\n+OK injected\r\n") as (client, heard):
        client.retr(1)
        with pytest.raises(poplib.error_proto, match="data without a command"):
            client.dele(1)
    assert heard == [b"RETR 1\r\n"]


@pytest.mark.rfc("P-014")
@pytest.mark.parametrize("character", ["\r\n", "\n", "\r", "\0", "\x1b", "\x7f"])
def test_argument_cannot_contain_a_second_argument(character: str) -> None:
    with saying() as (client, heard):
        for attempt in (
            lambda: client.user(f"ann{character}DELE 1"),
            lambda: client.pass_(f"pw{character}"),
            lambda: client.retr(f"1{character}"),
            lambda: client.apop(f"ann{character}", "pw"),
        ):
            with pytest.raises(ValueError, match="control character"):
                attempt()
    assert heard == []


@pytest.mark.rfc("P-041", "P-042")
def test_apop() -> None:
    with saying(b"+OK\r\n") as (client, heard):
        client.apop("mrose", "tanstaaf")
        client.welcome = b"+OK <\xff@evil>"
        with pytest.raises(poplib.error_proto, match="APOP not supported"):
            client.apop("mrose", "tanstaaf")
    assert heard == [b"APOP mrose c4c9334bac560ecc979e58001b3e22fb\r\n"]


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"+OK one 2\r\n", b"+OK 1\r\n", b"+OK -1 2\r\n"])
def test_stat_without_numbers(answer: bytes) -> None:
    with saying(answer) as (client, _), pytest.raises(poplib.error_proto):
        client.stat()


def test_a_greeting_that_refuses() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"-ERR [SYS/TEMP] too busy\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(poplib.error_proto, match="too busy"):
        poplib.POP3("127.0.0.1", listening.getsockname()[1], timeout=10)
    thread.join(10)
    listening.close()


def test_debugging_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with saying(b"+OK\r\n", b"+OK you said tan staaf\r\n", b"+OK 0 0\r\n") as (client, _):
        client.set_debuglevel(2)
        client.user("mrose")
        client.pass_("tan staaf")
        client.stat()
    shown = capsys.readouterr().out
    assert "staaf" not in shown
    assert "C: PASS ***" in shown
    assert "S: +OK 0 0" in shown


def test_a_certificate_of_ones_own_as_before_python_3_12(
    certificate: tuple[Path, Path],
) -> None:
    with Pop3Server() as server:

        class Trusts(poplib.POP3_SSL):
            default_context = staticmethod(partial(tls.client_context, server.ca_file))

        with pytest.warns(DeprecationWarning, match="custom context"):
            client = Trusts(
                server.host,
                server.port,
                certfile=str(certificate[0]),
                keyfile=str(certificate[1]),
            )
        with pytest.raises(poplib.error_proto, match="already established"):
            client.stls()
        client.quit()
        with pytest.raises(ValueError, match="mutually exclusive"):
            poplib.POP3_SSL(
                server.host, server.port, certfile="x", context=ssl.create_default_context()
            )


@pytest.mark.parametrize("answer", [b"+" + b"x" * 70_000 + b"\r\n", b"+" + b"x" * 200_000])
def test_a_first_line_without_end(answer: bytes) -> None:
    with saying(answer) as (client, _), pytest.raises(poplib.error_proto, match="too long"):
        client.noop()


def test_commands_that_few_servers_know() -> None:
    with saying(b"-ERR\r\n", b"+OK\r\n", b"-ERR\r\n", b"+OK\r\n.\r\n") as (client, heard):
        assert client.getwelcome().startswith(b"+OK ready")
        with pytest.raises(poplib.error_proto):
            client.rpop("ann")
        client.utf8()
        with pytest.raises(poplib.error_proto, match="CAPA not supported"):
            client.capa()
        with pytest.raises(poplib.error_proto, match="STLS not supported"):
            client.stls()
    assert heard == [b"RPOP ann\r\n", b"UTF8\r\n", b"CAPA\r\n", b"CAPA\r\n"]


def test_after_the_end() -> None:
    with saying(b"+OK bye\r\n") as (client, _):
        client.quit()
        client.close()
        with pytest.raises(poplib.error_proto, match="connection closed"):
            client.noop()


def test_a_server_that_is_silent() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(TimeoutError):
        poplib.POP3("127.0.0.1", listening.getsockname()[1], timeout=0.01)
    listening.close()


# Overriding methods in subclasses.

HOOKS = (
    *("_create_socket", "_putline", "_putcmd", "_getline", "_getresp", "_getlongresp"),
    *("_shortcmd", "_longcmd"),
)


def test_every_overridable_method_exists() -> None:
    """Every such method of the standard library."""
    theirs = {name for name in vars(original.POP3) if re.fullmatch(r"_[a-z]\w*", name)}
    assert theirs - {"_tls_established", "_debugging"} <= set(HOOKS)
    with saying() as (client, _):
        for name in ("sock", "file", "host", "port", "welcome", "_debugging", "_tls_established"):
            assert hasattr(client, name)


def session(module: Any, server: Pop3Server, name: str) -> list[str]:
    """Return the calls of an overridden method in a session, with arguments and results."""
    calls: list[str] = []
    base = module.POP3_SSL

    def override(self: Any, *arguments: Any) -> Any:
        found = getattr(super(kind, self), name)(*arguments)
        reported = "" if name == "_create_socket" else f"{arguments} {found}"
        calls.append(f"{name} {reported}")
        return found

    kind = type("Overriding", (base,), {name: override})
    context = ssl.create_default_context(cafile=server.ca_file)
    client = kind(server.host, server.port, context=context, timeout=10)
    client.user("ann")
    client.pass_("pw")
    client.stat()
    client.list()
    client.uidl(1)
    client.retr(1)
    client.top(1, 0)
    with pytest.raises(module.error_proto):
        client.dele(9)
    client.capa()
    client.rset()
    client.quit()
    return calls


@pytest.mark.parametrize("name", HOOKS)
def test_overridden_method_is_called_as_in_the_standard_library(name: str) -> None:
    """The same number of times, with the same arguments and results."""
    with Pop3Server() as server:
        server.deliver("ann", b"Subject: one\r\n\r\n.dot\r\n..\r\n")
        assert session(poplib, server, name) == session(original, server, name)


def test_an_override_that_reads_the_file_itself() -> None:
    """As in the standard library."""

    class Copied(poplib.POP3):
        def _getline(self) -> tuple[bytes, int]:
            line = self.file.readline(2048 + 1)
            if not line:
                raise poplib.error_proto("-ERR EOF")
            return line.removesuffix(b"\n").removesuffix(b"\r"), len(line)

    with Pop3Server(clear=True) as server:
        server.deliver("ann", b"Subject: one\r\n\r\n.dot\r\n..\r\n")
        client = Copied(server.host, server.stls_port, timeout=10)
        client.user("ann")
        client.pass_("pw")
        assert client.retr(1)[1] == [b"Subject: one", b"", b".dot", b".."]
        client.dele(1)
        client.quit()
        assert server.messages("ann") == []


def test_a_file_that_a_program_has_made_itself() -> None:
    """For example after its own handshake."""
    with Pop3Server(users={"ann": "pw"}) as server:
        client = poplib.POP3(server.host, server.stls_port, timeout=10)
        client._shortcmd("STLS")
        context = ssl.create_default_context(cafile=server.ca_file)
        client.sock = context.wrap_socket(client.sock, server_hostname=server.host)
        client.file = client.sock.makefile("rb")
        client.user("ann")
        client.pass_("pw")
        assert client.stat() == (0, 0)
        client.quit()


def test_default_timeout_is_that_of_create_connection() -> None:
    class Through(poplib.POP3):
        def _create_socket(self, timeout: Any) -> socket.socket:
            return socket.create_connection((self.host, self.port), timeout)

    with Pop3Server() as server:
        client = Through(server.host, server.stls_port)
        assert client.sock.gettimeout() == socket.getdefaulttimeout()
        client.quit()


@pytest.mark.parametrize(
    "said", [b"-ERR no tan staaf here", b"-ERR TAN STAAF", b"-ERR dGFuIHN0YWFm"], ids=str
)
def test_no_exception_repeats_the_password(said: bytes) -> None:
    with saying(b"+OK\r\n", said + b"\r\n", said + b"\r\n") as (client, _):
        client.user("mrose")
        for attempt in (lambda: client.pass_("tan staaf"), client.stat):
            with pytest.raises(poplib.error_proto) as caught:
                attempt()
            shown = f"{caught.value} {caught.value.args} {caught.value.__context__}"
            assert "***" in shown
            assert "staaf" not in shown.lower()
            assert "GFuIHN0" not in shown


def test_an_answer_without_a_password_comes_as_it_is() -> None:
    with saying(b"+OK\r\n", b"-ERR \xff\xe9 no\r\n") as (client, _):
        client.user("mrose")
        with pytest.raises(poplib.error_proto) as caught:
            client.pass_("tan staaf")
        assert caught.value.args == (b"-ERR \xff\xe9 no",)
