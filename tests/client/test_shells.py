"""Both clients over real sockets, with our server and with hostile ones."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest

from restante import tls
from restante.client import asynchronous as client_module
from restante.client import blocking as blocking_module
from restante.client.asynchronous import Client, _Stream, connect
from restante.client.blocking import connect_blocking
from restante.client.remote import TLS, Remote, explain
from restante.errors import (
    BodySkipped,
    CannotConnect,
    CommandFailed,
    ConnectionLost,
    DeadlineExceeded,
    LoginFailed,
    ProtocolBroken,
    TLSUnavailable,
    UnsafeArgument,
)
from restante.store.memory import MemoryStore

from ..malformed import BODIES
from ..support import Run, Server, once, serving, sizes, until
from . import certificates
from .shells import ANSWERS, NONE, UNUSED, Peer, Session, both, polite, scripted

MESSAGES = [b"Subject: one\r\n\r\n.dot\r\n..\r\n", b"x\n.\n+OK\r\n", b"\r\n" * 300]

IN_CLEAR: dict[str, Any] = {
    "user": "mrose",
    "password": "tan staaf",
    "tls": NONE,
    "context": UNUSED,
}


async def filled(*messages: bytes) -> MemoryStore:
    store = MemoryStore()
    for message in messages or MESSAGES:
        await store.deliver("mrose", once(message))
    return store


@asynccontextmanager
async def our_server(
    server_tls: ssl.SSLContext, *messages: bytes, implicit: bool = True
) -> AsyncIterator[tuple[str, Server, MemoryStore]]:
    store = await filled(*messages)
    async with serving(store, tls=server_tls, implicit=implicit, clear=False) as server:
        scheme = "pop3s" if implicit else "pop3"
        yield f"{scheme}://localhost:{server.port}", server, store


# Our own server.


@both
@pytest.mark.parametrize("implicit", [True, False])
def test_fetch_and_delete(
    session: Session,
    implicit: bool,
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    """LF becomes CRLF on the wire (RFC 1939 §11), and nothing else changes."""

    async def main() -> None:
        async with our_server(server_tls, implicit=implicit) as (url, _, store):
            found = await session(url, context=client_tls, keep=True)
            assert found == [each.replace(b"x\n.\n", b"x\r\n.\r\n") for each in MESSAGES]
            assert len(await sizes(store)) == 3
            assert await session(url, context=client_tls) == found
            assert await sizes(store) == []

    run(main())


def test_all_operations(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            our_server(server_tls) as (url, _, store),
            connect(url, user="mrose", password="tan staaf", context=client_tls) as client,
        ):
            assert client.capabilities.pipelining
            assert await client.stat() == (3, 637)
            first, second, third = await client.list()
            assert (first.number, first.size) == (1, 26)
            seen: list[int] = []
            body = client.retrieve(first, progress=lambda message, octets: seen.append(octets))
            assert b"".join([piece async for piece in body]) == MESSAGES[0]
            assert seen == [26]
            with pytest.raises(BodySkipped):
                await body.read()
            assert (await client.retrieve(first).email())["subject"] == "one"
            assert await client.top(first).read() == b"Subject: one\r\n\r\n"
            headers = [each["subject"] async for _, each in client.headers([first, third])]
            assert headers == ["one", None]
            await client.retrieve(third).save(tmp_path / "third")
            assert (tmp_path / "third").read_bytes() == MESSAGES[2]
            with pytest.raises(FileExistsError):
                await client.retrieve(first).save(tmp_path / "third")
            await client.delete(first)
            await client.reset()
            await client.noop()
            await client.delete(second)
            with pytest.raises(CommandFailed, match="RETR"):
                await client.retrieve(second).read()
            await client.commit()
            assert await sizes_while_open(client) == [26, 600]
            await client.delete(*await client.list())
            assert await client.reconnect() == 2
            assert await sizes_while_open(client) == [26, 600]
            with pytest.raises(UnsafeArgument):
                await client.delete(first)
        assert await sizes(store) == [26, 600]

    run(main())
    assert list(tmp_path.iterdir()) == [tmp_path / "third"]


ODD_VALUES = [
    "unlisted-recipients:; (no To-header on input)",
    '"',
    "(" * 500,
    "<[1@b]>",
    "a:" * 900,
]
MALFORMED = [*BODIES.values(), *(f"To: {each}\r\n\r\nx\r\n".encode() for each in ODD_VALUES)]


@pytest.mark.slow
def test_malformed_mail_is_read_to_the_end(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """And can be deleted, so that no message stops a program that fetches everything."""

    def read(email: EmailMessage) -> None:
        email.items(), email.as_bytes(), [part.get_filename() for part in email.walk()]

    async def main() -> None:
        async with our_server(server_tls, *MALFORMED) as (url, _, store):
            options: Any = {"user": "mrose", "password": "tan staaf", "context": client_tls}
            async with connect(url, **options) as client:
                messages = await client.list()
                async for _, header in client.headers(messages):
                    read(header)
                async for _, body in client.retrieve_all(messages):
                    read(await body.email())

            def blocking() -> None:
                with connect_blocking(url, **options) as client:
                    messages = client.list()
                    for _, header in client.headers(messages):
                        read(header)
                    for message, body in client.retrieve_all(messages):
                        read(body.email())
                        client.delete(message)

            await asyncio.to_thread(blocking)
            assert await sizes(store) == []

    run(main())


def test_mail_is_parsed_outside_the_event_loop(
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: set[int] = set()

    def noted(octets: bytes, **_: bool) -> EmailMessage:
        threads.add(get_ident())
        return EmailMessage()

    monkeypatch.setattr("restante.mime.parse", noted)

    async def main() -> None:
        async with (
            our_server(server_tls) as (url, _, _),
            connect(url, user="mrose", password="tan staaf", context=client_tls) as client,
        ):
            messages = await client.list()
            await client.retrieve(messages[0]).email()
            assert len([header async for header in client.headers(messages)]) == 3
        assert threads
        assert get_ident() not in threads

    run(main())


async def sizes_while_open(client: Client) -> list[int]:
    return [message.size for message in await client.list()]


def test_all_operations_blocking(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    def work(url: str) -> None:
        with connect_blocking(
            url, user="mrose", password="tan staaf", context=client_tls, deadline=60
        ) as client:
            assert client.capabilities.pipelining
            assert client.stat() == (3, 637)
            first, second, third = client.list()
            seen: list[int] = []
            body = client.retrieve(first, progress=lambda message, octets: seen.append(octets))
            assert b"".join(body) == MESSAGES[0]
            assert seen == [26]
            with pytest.raises(BodySkipped):
                body.read()
            assert client.retrieve(first).email()["subject"] == "one"
            assert client.top(first).read() == b"Subject: one\r\n\r\n"
            assert [each["subject"] for _, each in client.headers([first, third])] == ["one", None]
            client.retrieve(third).save(tmp_path / "third")
            assert (tmp_path / "third").read_bytes() == MESSAGES[2]
            client.delete(first)
            client.reset()
            client.noop()
            client.delete(second)
            client.commit()
            client.delete(*client.list())
            assert client.reconnect() == 2
            assert [message.size for message in client.list()] == [26, 600]
        with pytest.raises(ConnectionLost, match="closed"):
            client.stat()

    async def main() -> None:
        async with our_server(server_tls) as (url, _, store):
            await asyncio.to_thread(work, url)
            assert await sizes(store) == [26, 600]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), TLSUnavailable, "TLS with host failed: "),
        (TimeoutError(), DeadlineExceeded, "host does not answer"),
        (ConnectionRefusedError(111, "by asyncio"), CannotConnect, "host: Connection refused"),
        (OSError("no number"), CannotConnect, "host: no number"),
    ],
)
def test_connection_failure_is_explained_in_words(
    error: OSError, kind: type[Exception], words: str
) -> None:
    found = explain(error, "host")
    assert (type(found), str(found)[: len(words)]) == (kind, words)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check early whether a silent port speaks TLS."""
    for module in (client_module, blocking_module):
        monkeypatch.setattr(module, "SILENCE", 0.2)


@both
def test_tls_port_used_without_tls(
    session: Session, impatient: None, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with our_server(server_tls) as (_, server, store):
            words = f"use pop3s://localhost:{server.port}"
            with pytest.raises(TLSUnavailable, match=words):
                await session(f"pop3://localhost:{server.port}", context=client_tls)
            assert len(await sizes(store)) == len(MESSAGES)

    asyncio.run(main())


@both
def test_clear_text_port_used_with_tls(session: Session, client_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with scripted(polite) as (port, _):
            with pytest.raises(TLSUnavailable, match=r"use pop3:// \(STLS\)"):
                await session(f"pop3s://localhost:{port}", context=client_tls)

    asyncio.run(main())


@both
def test_client_waits_for_a_slow_greeting(session: Session, impatient: None) -> None:
    """Checking whether it speaks TLS does not disturb it."""

    async def slow(peer: Peer) -> None:
        await asyncio.sleep(0.6)
        await polite(peer)

    async def main() -> None:
        async with scripted(slow) as (port, peers):
            found = await session(f"pop3://127.0.0.1:{port}", tls=NONE)
            assert (len(found), len(peers)) == (2, 2)

    asyncio.run(main())


@both
def test_a_wrong_password(
    session: Session, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        store = await filled()
        async with serving(store, password="other", tls=server_tls, implicit=True) as server:
            with pytest.raises(LoginFailed) as caught:
                await session(f"pop3s://localhost:{server.port}", context=client_tls)
            assert (caught.value.code, caught.value.retry) == ("AUTH", False)

    asyncio.run(main())


def test_an_exception_in_the_block_removes_nothing(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """RFC 1939 §6: only QUIT removes messages, and it is not sent."""

    async def main() -> None:
        async def fails(url: str) -> None:
            async with connect(
                url, user="mrose", password="tan staaf", context=client_tls
            ) as client:
                await client.delete(*await client.list())
                raise ZeroDivisionError

        async with our_server(server_tls) as (url, _, _):
            with pytest.raises(ZeroDivisionError):
                await fails(url)
            async with connect(
                url, user="mrose", password="tan staaf", context=client_tls
            ) as client:
                assert (await client.stat())[0] == 3

    run(main())


# Interrupted sessions.


async def says(limit: int, reset: bool, peer: Peer) -> None:
    """Act as a normal server that closes after a number of octets."""
    left = limit
    await peer.say(b"+OK ready\r\n"[:left])
    left -= len(b"+OK ready\r\n")
    while left > 0 and (command := await peer.hear()):
        octets = ANSWERS.get(command, b"+OK\r\n")
        await peer.say(octets[:left])
        left -= len(octets)
    if reset:
        peer.reset()


@both
@pytest.mark.parametrize("reset", [False, True])
def test_connection_lost_at_any_octet(session: Session, reset: bool) -> None:
    """By FIN or RST: there is an exception, and no incomplete message."""

    async def main() -> None:
        async with scripted(polite) as (port, peers):
            url = f"pop3://127.0.0.1:{port}"
            assert await session(url, tls=NONE) == [b"x\n.\n+OK\n..y\r\n", b".\r\n"]
        commands = peers[0].heard
        assert commands[-1] == b"QUIT"
        octets = 11 + sum(len(ANSWERS.get(each, b"+OK\r\n")) for each in commands)
        limits = iter(range(octets))
        async with scripted(lambda peer: says(next(limits), reset, peer)) as (port, peers):
            for _ in range(octets):
                with pytest.raises(ConnectionLost):
                    await session(f"pop3://127.0.0.1:{port}", tls=NONE)
        assert len(peers) == octets

    asyncio.run(main())


@both
def test_lost_answer_to_quit_raises_connection_lost(session: Session) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while (command := await peer.hear()) != b"QUIT":
            await peer.say(ANSWERS.get(command, b"+OK\r\n"))

    async def main() -> None:
        async with scripted(script) as (port, _):
            with pytest.raises(ConnectionLost) as caught:
                await session(f"pop3://127.0.0.1:{port}", tls=NONE)
        assert (caught.value.lost_deletions, caught.value.is_known) == (2, False)

    asyncio.run(main())


# TLS.


def certificate_for(folder: Path, names: list[str], lifetime: timedelta) -> tuple[Path, Path]:
    """Make a self-signed certificate, valid from an hour ago until this time from now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "_LIFETIME", lifetime)
        return tls.make_self_signed(folder, names)


@both
@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("wrong", ["name", "expired", "unknown"])
def test_invalid_certificate_is_refused(
    session: Session, implicit: bool, wrong: str, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """No credential is sent (RFC 7817 §3, CVE-2014-7273)."""
    names = ["other.example.org"] if wrong == "name" else ["localhost"]
    pair = certificate_for(tmp_path, names, timedelta(minutes=-30 if wrong == "expired" else 30))
    trusted = certificate[0] if wrong == "unknown" else pair[0]

    async def main() -> None:
        async with our_server(tls.server_context(*pair), implicit=implicit) as (url, _, _):
            with pytest.raises(TLSUnavailable, match="not trusted"):
                await session(url, ca_file=trusted)

    asyncio.run(main())


@both
@pytest.mark.rfc("P-131", "P-132", "P-133")
@pytest.mark.parametrize(
    "names",
    [[], ["*"], ["local*"], ["localhost\0.example.org"], ["example.org"]],
    ids=["common name only", "wildcard for all", "fragment", "NUL", "another"],
)
def test_certificate_for_another_name_is_refused(
    session: Session, names: list[str], tmp_path: Path
) -> None:
    """No credential is sent; the common name never counts (RFC 7817 §3, CVE-2009-2666)."""
    pair = certificates.make(tmp_path, [*map(certificates.dns_name, names)], common="localhost")

    async def main() -> None:
        async with our_server(tls.server_context(*pair)) as (url, _, _):
            with pytest.raises(TLSUnavailable, match="not trusted"):
                await session(url, ca_file=pair[0])

    asyncio.run(main())


@both
@pytest.mark.rfc("P-127")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_server_is_refused(session: Session, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(*certificate)

    async def main() -> None:
        async with our_server(context) as (url, _, _):
            with pytest.raises((TLSUnavailable, ConnectionLost)):
                await session(url, ca_file=certificate[0])

    asyncio.run(main())


async def says_no_to_stls(peer: Peer) -> None:
    await peer.say(b"+OK ready\r\n")
    while await peer.hear():
        await peer.say(b"-ERR what\r\n")


async def injects_a_line(peer: Peer) -> None:
    await peer.say(b"+OK ready\r\n")
    await peer.hear()
    await peer.say(b"+OK begin\r\n+OK 99 0\r\n")
    await peer.until_gone()


async def injects_a_fragment(peer: Peer) -> None:
    await peer.say(b"+OK ready\r\n")
    await peer.hear()
    await peer.say(b"+OK begin\r\n+O")
    await peer.until_gone()


async def goes_on_in_clear(peer: Peer) -> None:
    await peer.say(b"+OK ready\r\n")
    await peer.hear()
    await peer.say(b"+OK begin\r\n")
    await peer.hear()
    await peer.say(b"+OK\r\n" * 200)
    await peer.until_gone()


async def has_gone(peer: Peer) -> None:
    await peer.say(b"+OK ready\r\n")
    await peer.hear()


@both
@pytest.mark.parametrize(
    ("script", "error"),
    [
        (says_no_to_stls, TLSUnavailable),
        (injects_a_line, ConnectionLost),
        (injects_a_fragment, (ConnectionLost, TLSUnavailable)),
        (goes_on_in_clear, (ConnectionLost, TLSUnavailable)),
        (has_gone, ConnectionLost),
    ],
)
@pytest.mark.rfc("P-065", "P-122", "P-123", "P-135")
def test_no_credential_without_tls(
    session: Session,
    script: Callable[[Peer], Awaitable[None]],
    error: Any,
    client_tls: ssl.SSLContext,
) -> None:
    """RFC 2595 §2.2, CVE-2021-22947: whatever a server sends without TLS."""

    async def main() -> None:
        async with scripted(script) as (port, peers):
            with pytest.raises(error):
                await session(f"pop3://localhost:{port}", context=client_tls)
        assert peers[0].heard[0] == b"STLS"
        assert not any(b"USER" in each or b"AUTH" in each for each in peers[0].heard)

    asyncio.run(main())


@both
def test_a_server_without_tls_on_the_tls_port(session: Session, client_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with scripted(polite) as (port, _):
            with pytest.raises((TLSUnavailable, ConnectionLost)):
                await session(f"pop3s://localhost:{port}", context=client_tls)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("pop3s://mail.example.org", {"tls": TLS.NONE}, TLSUnavailable),
        ("mail.example.org", {"tls": TLS.NONE}, TLSUnavailable),
        ("mail example", {}, UnsafeArgument),
        ("pop3s://mail.example.org", {"token": "t"}, UnsafeArgument),
        ("pop3s://mail.example.org", {"user": "", "password": ""}, UnsafeArgument),
        ("mail.example.org", {"certificate": Path("x"), "context": UNUSED}, UnsafeArgument),
        ("imap://mail.example.org", {}, UnsafeArgument),
        ("pop3s://mail.example.org/INBOX", {}, UnsafeArgument),
        ("pop3s://mail.example.org:x", {}, UnsafeArgument),
        ("pop3s://", {}, UnsafeArgument),
    ],
)
@pytest.mark.rfc("P-164")
def test_invalid_urls_are_refused(
    url: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Remote.parse(url, **{"user": "mrose", "password": "secret", **options})


@pytest.mark.rfc("P-164")
@pytest.mark.parametrize(
    ("where", "options", "port", "begins", "mechanism"),
    [
        ("pop3s://ann:x@mail.example.org", {}, 995, TLS.IMPLICIT, ""),
        ("pop3s://ann:x@mail.example.org:1995", {"port": 2995}, 2995, TLS.IMPLICIT, ""),
        ("pop3://ann:x@mail.example.org", {}, 110, TLS.STARTTLS, ""),
        ("pop://ann;AUTH=*:x@mail.example.org", {}, 110, TLS.STARTTLS, ""),
        ("pop3s://ann;auth=PLAIN:x@mail.example.org", {}, 995, TLS.IMPLICIT, "PLAIN"),
        ("pop://ann;AUTH=+APOP:x@mail.example.org", {}, 110, TLS.STARTTLS, "APOP"),
        ("mail.example.org", {"user": "ann", "password": "x"}, 995, TLS.IMPLICIT, ""),
        ("::1", {"user": "ann", "token": "x", "tls": TLS.NONE}, 110, TLS.NONE, ""),
        ("mail.example.org", {"certificate": Path("own.pem")}, 995, TLS.IMPLICIT, ""),
        ("mail.example.org", {"mechanism": "EXTERNAL"}, 995, TLS.IMPLICIT, "EXTERNAL"),
    ],
)
def test_url_contains_host_port_and_tls(
    where: str, options: dict[str, Any], port: int, begins: TLS, mechanism: str
) -> None:
    """By a URL (RFC 2384 §3) or the same in arguments."""
    remote = Remote.parse(where, **options)
    assert (remote.port, remote.tls, remote.login.mechanism) == (port, begins, mechanism)
    assert remote.host in ("mail.example.org", "::1")


def test_the_password_is_not_shown() -> None:
    remote = Remote.parse("pop3s://ann:s%C3%A9cret@mail.example.org")
    assert (remote.login.user, remote.login.password, remote.port) == ("ann", "sécret", 995)
    assert "cret" not in repr(remote)


# Time.


async def silent(peer: Peer) -> None:
    await peer.until_gone()


async def silent_after_the_greeting(peer: Peer) -> None:
    await peer.say(b"+OK ready\r\n")
    await peer.until_gone()


@both
@pytest.mark.parametrize("script", [silent, silent_after_the_greeting])
def test_silent_server_times_out(
    session: Session, script: Callable[[Peer], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with scripted(script) as (port, _):
            with pytest.raises(DeadlineExceeded):
                await session(f"pop3://127.0.0.1:{port}", tls=NONE, timeout=0.05)

    asyncio.run(main())


@both
@pytest.mark.parametrize("scheme", ["pop3", "pop3s"])
def test_silent_handshake_times_out(
    session: Session, scheme: str, client_tls: ssl.SSLContext
) -> None:
    async def says_yes_and_nothing_more(peer: Peer) -> None:
        if scheme == "pop3":
            await peer.say(b"+OK ready\r\n")
            await peer.hear()
            await peer.say(b"+OK begin\r\n")
        await peer.reader.read()

    async def main() -> None:
        async with scripted(says_yes_and_nothing_more) as (port, _):
            with pytest.raises((DeadlineExceeded, ConnectionLost)):
                await session(f"{scheme}://localhost:{port}", context=client_tls, timeout=0.2)

    asyncio.run(main())


async def noops_for_ever(url: str, *, is_blocking: bool, **options: Any) -> None:
    if is_blocking:
        await asyncio.to_thread(noops_for_ever_blocking, url, **options)
    async with connect(url, **options) as client:
        while True:
            await client.noop()


def noops_for_ever_blocking(url: str, **options: Any) -> None:
    with connect_blocking(url, **options) as client:
        while True:
            client.noop()


@pytest.mark.parametrize("is_blocking", [False, True])
def test_deadline_applies_to_the_whole_session(is_blocking: bool) -> None:
    """Even if the server is never silent for ``timeout`` seconds."""
    options = {**IN_CLEAR, "timeout": 10, "deadline": 0.2}

    async def main() -> None:
        async with scripted(polite) as (port, _):
            url = f"pop3://127.0.0.1:{port}"
            with pytest.raises(DeadlineExceeded, match="deadline"):
                await noops_for_ever(url, is_blocking=is_blocking, **options)

    asyncio.run(main())


@both
def test_message_that_arrives_slowly_ends_at_the_deadline(session: Session) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while command := await peer.hear():
            await peer.say(ANSWERS.get(command, b"+OK\r\n") if command != b"RETR 1" else b"+OK\r\n")
            while command == b"RETR 1":
                await peer.say(b"x")
                await asyncio.sleep(0.01)

    async def main() -> None:
        async with scripted(script) as (port, peers):
            with pytest.raises(DeadlineExceeded, match="deadline"):
                await session(f"pop3://127.0.0.1:{port}", tls=NONE, timeout=10, deadline=0.2)
            assert b"QUIT" not in peers[0].heard

    asyncio.run(main())


@both
@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (b"-ERR [SYS/TEMP] no\r\n", CommandFailed),
        (b"\r\n", ProtocolBroken),
        (b"\x00\xff\x16\x03" * 100_000, ProtocolBroken),
        (b"x" * 1_000_000, ProtocolBroken),
    ],
    ids=["err", "empty", "binary", "endless"],
)
def test_invalid_greeting_is_refused(
    session: Session, greeting: bytes, error: type[Exception]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(greeting)
        await peer.until_gone()

    async def main() -> None:
        async with scripted(script) as (port, _):
            with pytest.raises(error):
                await session(f"pop3://127.0.0.1:{port}", tls=NONE)

    asyncio.run(main())


@both
def test_refused_connection_raises_connection_lost(session: Session) -> None:
    async def main() -> None:
        async with scripted(polite) as (port, _):
            pass
        with pytest.raises(ConnectionLost, match="refused"):
            await session(f"pop3://127.0.0.1:{port}", tls=NONE)

    asyncio.run(main())


@both
def test_a_host_without_an_address(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with pytest.raises(ConnectionLost, match="no-such-host: Name or service not known"):
        asyncio.run(session("pop3s://no-such-host"))  # type: ignore[arg-type]  # it is a coroutine
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(ConnectionLost, match="no address"):
        asyncio.run(session("pop3s://no-such-host"))  # type: ignore[arg-type]


# Cancellation.


def test_session_cancelled_at_any_await_removes_nothing(run: Run[None]) -> None:
    """The connection is dropped at any point, without QUIT."""

    async def works(port: int) -> None:
        async with connect(f"pop3://127.0.0.1:{port}", **IN_CLEAR) as client:
            listing = await client.list()
            async for message, body in client.retrieve_all(listing):
                await body.read()
                await client.delete(message)
            await asyncio.Event().wait()

    async def cancelled_after(commands: int) -> bytes:
        """Return the command that was unanswered then."""
        waits = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.say(b"+OK ready\r\n")
            for _ in range(commands):
                await peer.say(ANSWERS.get(await peer.hear(), b"+OK\r\n"))
            await peer.hear()
            waits.set()
            await peer.until_gone()

        async with scripted(script) as (port, peers):
            task = asyncio.create_task(works(port))
            await waits.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert b"QUIT" not in peers[0].heard
        return peers[0].heard[commands]

    async def main() -> None:
        unanswered = [await cancelled_after(commands) for commands in range(8)]
        assert unanswered == [
            *(b"CAPA", b"USER mrose", b"PASS tan staaf", b"CAPA"),
            *(b"LIST", b"UIDL", b"RETR 1", b"RETR 2"),
        ]

    run(main())


def test_after_cancellation_the_client_is_closed(run: Run[None]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while (command := await peer.hear()) and command != b"NOOP":
            await peer.say(ANSWERS.get(command, b"+OK\r\n"))
        await peer.until_gone()

    async def main() -> None:
        async with (
            scripted(script) as (port, _),
            connect(
                f"pop3://127.0.0.1:{port}",
                user="mrose",
                password="tan staaf",
                tls=NONE,
                context=UNUSED,
            ) as client,
        ):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.noop()
            with pytest.raises(ConnectionLost, match="closed"):
                await client.stat()

    run(main())


def test_timeout_of_the_caller_is_not_converted() -> None:
    async def fails(port: int) -> None:
        options: dict[str, Any] = {"user": "mrose", "password": "x", "tls": NONE, "context": UNUSED}
        async with connect(f"pop3://127.0.0.1:{port}", deadline=60, **options):
            raise TimeoutError("of their own")

    async def main() -> None:
        async with scripted(polite) as (port, _):
            with pytest.raises(TimeoutError, match="of their own"):
                await fails(port)

    asyncio.run(main())


@pytest.mark.rfc("P-122")
def test_octets_from_before_the_handshake_are_not_a_response(client_tls: ssl.SSLContext) -> None:
    """They arrive in a separate segment just before TLS begins."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            _, stream = await asyncio.get_running_loop().create_connection(_Stream, sock=ours)
            theirs.sendall(b"+OK injected\r\n")
            await until(lambda: len(stream._octets) > 0)
            with pytest.raises(ConnectionResetError, match="before the TLS handshake"):
                await stream.start_tls(client_tls, "localhost", 1)
            stream.transport.abort()

    asyncio.run(main())


def test_two_tasks_cannot_share_a_session(run: Run[None]) -> None:
    async def main() -> None:
        async with (
            scripted(polite) as (port, _),
            connect(
                f"pop3://127.0.0.1:{port}",
                user="mrose",
                password="tan staaf",
                tls=NONE,
                context=UNUSED,
            ) as client,
        ):
            results = await asyncio.gather(client.noop(), client.noop(), return_exceptions=True)
            assert [type(each) for each in results] == [type(None), RuntimeError]

    run(main())


# Many commands.


@both
@pytest.mark.parametrize("count", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_deadlock_with_a_server_that_waits_to_be_read(session: Session, count: int) -> None:
    """The server reads a command only after sending its last answer; clients use a window."""

    async def script(peer: Peer) -> None:
        peer.writer.transport.set_write_buffer_limits(0)
        await peer.say(b"+OK ready\r\n")
        while command := await peer.hear():
            if command in (b"LIST", b"UIDL"):
                lines = b"".join(b"%d 2000\r\n" % at for at in range(1, count + 1))
                await peer.say(b"+OK\r\n" + lines + b".\r\n")
            elif command.startswith(b"RETR"):
                await peer.say(b"+OK\r\n" + b"x" * 1998 + b"\r\n.\r\n")
            else:
                await peer.say(ANSWERS.get(command, b"+OK\r\n"))

    async def main() -> None:
        async with scripted(script, buffers=4096) as (port, peers):
            found = await session(f"pop3://127.0.0.1:{port}", tls=NONE)
        assert len(found) == count
        assert set(found) == {b"x" * 1998 + b"\r\n"}
        assert sum(each.startswith(b"DELE") for each in peers[0].heard) == count

    asyncio.run(main())
