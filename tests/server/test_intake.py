"""LMTP and SMTP over real sockets: acceptance, refusals and the end of a message."""

from __future__ import annotations

import asyncio
import re
import smtplib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from restante.errors import (
    LargerThanQuota,
    NoSuchUser,
    QuotaExceeded,
    RestanteError,
    TemporaryFailure,
)
from restante.maildrop import Entry, Store
from restante.message import crlf_text
from restante.passdb import Directory
from restante.server import intake as module
from restante.server.connection import BaseService
from restante.server.intake import Intake
from restante.smtp.content import Incoming
from restante.store.memory import MemoryStore
from restante.store.partial import PartialDeliveries

from ..support import Client, Run, listening

MAIL = b"MAIL FROM:<bob@example.net>\r\n"
ANN = b"RCPT TO:<ann@example.org>\r\n"
LETTER = b"Subject: x\r\n\r\nhello\r\n"


class Ann:
    """A user directory with two users."""

    async def maildrop_of(self, recipient: str) -> str:
        user = recipient.partition("@")[0]
        if user == "slow":
            raise TemporaryFailure("directory is down")
        if user not in ("ann", "eve"):
            raise NoSuchUser(recipient)
        return user


class AnnNow(Ann):
    """The same directory, which finds ann without waiting."""

    def maildrop_now(self, recipient: str) -> str | None:
        return "ann" if recipient.partition("@")[0] == "ann" else None


class FailsFor:
    """A store that has no room for one user."""

    def __init__(self, store: MemoryStore, user: str, error: RestanteError | None = None) -> None:
        self.store = store
        self.open = store.open
        self.user = user
        self.error = error or TemporaryFailure("disk full")

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        if user == self.user:
            raise self.error
        return await self.store.deliver(user, message)


@asynccontextmanager
async def taking(
    store: Store,
    *,
    smtp: bool = False,
    most: int = 100_000,
    partial: PartialDeliveries | None = None,
    directory: Directory | None = None,
) -> AsyncIterator[tuple[Client, int]]:
    """Open a connection and send the greeting."""
    intake = Intake(store, directory or Ann(), "mail.example.org", most, partial=partial)
    factory = intake.smtp(["example.org"]) if smtp else intake.lmtp()
    with listening(factory) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = Client(reader, writer)
        try:
            assert (await client.line()).startswith(b"220 mail.example.org ")
            client.send(b"EHLO tests\r\n" if smtp else b"LHLO tests\r\n")
            while (await client.line())[3:4] == b"-":
                pass
            yield client, port
        finally:
            writer.transport.abort()
        await asyncio.sleep(0)


async def replies(client: Client, octets: bytes, count: int) -> list[bytes]:
    client.send(octets)
    return [await client.line() for _ in range(count)]


async def letters(store: MemoryStore, user: str = "ann") -> list[bytes]:
    async with store.open(user) as maildrop:
        return [b"".join([p async for p in maildrop.read(e)]) for e in maildrop.listing]


def without_trace(letter: bytes) -> bytes:
    match = re.match(rb"(Return-Path|Delivered-To|Received): (.|\r\n\t)*?\r\n(?!\t)", letter)
    return without_trace(letter[match.end() :]) if match else letter


@pytest.mark.rfc("P-171")
def test_one_reply_for_each_recipient(run: Run[None]) -> None:
    """RFC 2033 §4.2: in order, for duplicates too; a failure does not affect the others."""

    async def main() -> None:
        memory = MemoryStore()
        async with taking(FailsFor(memory, "eve")) as (client, _):
            eve, nobody = b"RCPT TO:<eve@example.org>\r\n", b"RCPT TO:<x@example.org>\r\n"
            got = await replies(client, MAIL + ANN + eve + nobody + ANN + b"DATA\r\n", 6)
            assert [line[:9] for line in got[1:5]] == [
                b"250 2.1.5", b"250 2.1.5", b"550 5.1.1", b"250 2.1.5",
            ]  # fmt: skip
            assert got[5].startswith(b"354")
            got = await replies(client, LETTER + b".\r\n", 3)
            assert [line[:9] for line in got] == [b"250 2.0.0", b"451 4.3.0", b"250 2.0.0"]
        assert [without_trace(each) for each in await letters(memory)] == [LETTER]

    run(main())


@pytest.mark.parametrize("smtp", [False, True])
def test_recipient_found_without_waiting_needs_no_task(
    smtp: bool, run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned = []
    spawn = BaseService.spawn

    def counting(service: BaseService, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        spawned.append(work)
        return spawn(service, work)

    monkeypatch.setattr(BaseService, "spawn", counting)

    async def main() -> None:
        memory = MemoryStore()
        async with taking(memory, smtp=smtp, directory=AnnNow()) as (client, _):
            got = await replies(client, MAIL + ANN, 2)
            assert got[1].startswith(b"250 2.1.5")
            assert not spawned
            # All others take the slow path, whose replies say what is wrong.
            others = b"RCPT TO:<x@example.org>\r\n", b"RCPT TO:<slow@example.org>\r\n"
            got = await replies(client, b"".join(others), 2)
            assert [line[:3] for line in got] == [b"550", b"451"]
            assert spawned
            got = await replies(client, b"DATA\r\n" + LETTER + b".\r\n", 2)
            assert got[1].startswith(b"250 2.0.0")
        assert [without_trace(each) for each in await letters(memory)] == [LETTER]

    run(main())


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (QuotaExceeded(10), b"452 4.2.2 maildrop is full: its quota is 10 octets"),
        (LargerThanQuota(10), b"552 5.2.3 message larger than the whole quota of 10 octets"),
    ],
)
def test_full_maildrop_is_reported_to_the_sender(
    run: Run[None], error: RestanteError, reply: bytes
) -> None:
    """RFC 3463 §3.3: a full maildrop is a temporary error, a too large message a permanent one."""

    async def main() -> None:
        memory = MemoryStore()
        async with taking(FailsFor(memory, "eve", error)) as (client, _):
            await replies(client, MAIL + b"RCPT TO:<eve@example.org>\r\n" + ANN + b"DATA\r\n", 4)
            got = await replies(client, LETTER + b".\r\n", 2)
            assert [got[0].rstrip(), got[1][:9]] == [reply, b"250 2.0.0"]

    run(main())


@pytest.mark.parametrize("smtp", [False, True])
def test_full_disk_at_the_end_of_data_gets_one_reply(
    smtp: bool,
    run: Run[None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An extra reply would be taken for that of the next command, and finally for a 250."""
    full = partial(Path("/dev/full").open, "w+b")
    monkeypatch.setattr(module, "SpooledTemporaryFile", lambda _: full())

    async def main() -> None:
        memory = MemoryStore()
        async with taking(memory, smtp=smtp) as (client, _):
            for _ in range(2):
                await replies(client, MAIL + ANN + ANN + b"DATA\r\n", 4)
                got = await replies(client, LETTER + b".\r\nNOOP\r\n", 2 if smtp else 3)
                reported = [b"451 4.3.0"] * (1 if smtp else 2)
                assert [line[:9] for line in got] == [*reported, b"250 2.0.0"]

    run(main())
    assert "bug" not in caplog.text


def test_exception_during_data_aborts_the_connection(
    run: Run[None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After some of the replies, another one would be ambiguous."""
    monkeypatch.setattr(Incoming, "_check", lambda _: 1 // 0)

    async def main() -> None:
        async with taking(MemoryStore()) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            client.send(LETTER + b".\r\nNOOP\r\n")
            assert await client.rest() == b""

    run(main())
    assert [each.message for each in caplog.records] == ["bug"]


@pytest.mark.rfc("P-173")
def test_lmtp_replies_do_not_wait_for_other_recipients(run: Run[None]) -> None:
    """RFC 2033 §5; the one reply of SMTP comes only after everything is stored."""

    async def main(smtp: bool) -> None:
        memory = MemoryStore()
        slow = SlowStore(memory, "eve")
        async with taking(slow, smtp=smtp) as (client, _):
            eve = b"RCPT TO:<eve@example.org>\r\n"
            await replies(client, MAIL + ANN + eve + ANN + b"DATA\r\n", 5)
            client.send(LETTER + b".\r\n")
            if not smtp:
                assert (await client.line()).startswith(b"250 2.0.0")
            await slow.begun.wait()
            assert client.reader._buffer == b""  # type: ignore[attr-defined]
            slow.may_end.set()
            for _ in range(1 if smtp else 2):
                assert (await client.line()).startswith(b"250 2.0.0")
            assert (await replies(client, b"NOOP\r\n", 1))[0].startswith(b"250")
        assert len(await letters(memory)) == 1

    run(main(smtp=False))
    run(main(smtp=True))


@pytest.mark.rfc("P-172")
def test_lmtp_announces_its_required_extensions(run: Run[None]) -> None:
    """RFC 2033 §5."""

    async def main() -> None:
        async with taking(MemoryStore()) as (client, _):
            client.send(b"LHLO again\r\nNOOP\r\n")
            said = []
            while not (line := await client.line()).startswith(b"250 2.0.0"):
                said.append(line[4:])
            assert {b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME"} <= set(said)

    run(main())


def test_trace_fields_precede_the_message(run: Run[None]) -> None:
    """RFC 5321 §4.4; the octets after them are unchanged."""
    odd = b"Subject: \xe9\0\r\n\r\n..dots\r\n.\xff\r\n" + b"y" * 90_000 + b"\r\n"

    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            stuffed = odd.replace(b"\r\n.", b"\r\n..")
            assert (await replies(client, stuffed + b".\r\n", 1))[0].startswith(b"250")
        (letter,) = await letters(store)
        assert letter.startswith(
            b"Return-Path: <bob@example.net>\r\n"
            b"Delivered-To: ann@example.org\r\n"
            b"Received: from tests"
        )
        assert without_trace(letter) == odd

    run(main())


def test_null_reverse_path(run: Run[None]) -> None:
    """RFC 5321 §4.5.5: notifications come from <>."""

    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            got = await replies(client, b"MAIL FROM:<>\r\n" + ANN + b"DATA\r\n", 3)
            assert got[2].startswith(b"354"), got
            await replies(client, LETTER + b".\r\n", 1)
        assert (await letters(store))[0].startswith(b"Return-Path: <>\r\n")

    run(main())


NO_END = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n\n.\n\n",
    b"\r\n\0.\r\n",
]  # fmt: skip


@pytest.mark.parametrize("end", NO_END)
@pytest.mark.parametrize("smtp", [False, True])
@pytest.mark.rfc("P-174", "P-200")
def test_only_crlf_dot_crlf_ends_the_data(end: bytes, smtp: bool, run: Run[None]) -> None:
    """CVE-2023-51764, CVE-2024-27305 and similar: a false end begins no second message.

    SMTP refuses a bare CR or LF.  LMTP stores them: a refusal at the last hop loses the mail.
    """
    smuggled = MAIL + ANN + b"DATA\r\nSubject: forged\r\n\r\nx"

    async def main() -> None:
        store = MemoryStore()
        async with taking(store, smtp=smtp) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            client.send(b"Subject: x\r\n\r\nhi" + end + smuggled)
            await asyncio.sleep(0.01)
            got = await replies(client, b"\r\n.\r\nNOOP\r\n", 2)
            is_stored = not smtp or end == b"\r\n\0.\r\n"
            assert got[0].startswith(b"250" if is_stored else b"554 5.6.0")
            assert got[1].startswith(b"250")
        stored = await letters(store)
        assert len(stored) == is_stored
        if is_stored:
            unstuffed = end.replace(b"\r\n.", b"\r\n")
            whole = b"Subject: x\r\n\r\nhi" + unstuffed + smuggled + b"\r\n"
            assert without_trace(stored[0]) == crlf_text(whole)

    run(main())


def test_end_of_data_may_arrive_in_pieces(run: Run[None]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            for at in range(len(LETTER + b".\r\n")):
                client.send((LETTER + b".\r\n")[at : at + 1])
                await asyncio.sleep(0)
            assert (await client.line()).startswith(b"250")
            # The next message may come in the same segment (PIPELINING).
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            got = await replies(client, LETTER + b".\r\n" + MAIL + ANN + b"DATA\r\n", 4)
            assert [line[:3] for line in got] == [b"250", b"250", b"250", b"354"]
        assert len(await letters(store)) == 2

    run(main())


@pytest.mark.parametrize("smtp", [False, True])
def test_message_that_is_too_large_is_read_to_its_end(smtp: bool, run: Run[None]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with taking(store, smtp=smtp, most=1000) as (client, _):
            got = await replies(client, b"MAIL FROM:<bob@example.net> SIZE=1001\r\n", 1)
            assert got[0].startswith(b"552 5.3.4")
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            got = await replies(client, b"x" * 500_000 + b"\r\n.\r\nNOOP\r\n", 2)
            assert [line[:9] for line in got] == [b"552 5.3.4", b"250 2.0.0"]
        assert await letters(store) == []

    run(main())


def test_dropped_connection_stores_nothing(run: Run[None]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            client.send(LETTER)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert await letters(store) == []

    run(main())


def test_comments_in_an_address_are_refused(run: Run[None]) -> None:
    """CVE-2023-27043: text in a comment, or after a bracket, was taken for the address."""

    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            both = b"RCPT TO:<ann@example.org(<eve@example.org>)>\r\n"
            both += b"RCPT TO:<eve@example.org)ann@example.org>\r\n"
            got = await replies(client, MAIL + both + b"DATA\r\n", 4)
            assert [line[:3] for line in got] == [b"250", b"501", b"553", b"503"]

    run(main())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"HELO x", b"EHLO x"], [b"500", b"500"]),  # RFC 2033 §4.1
        ([b"DATA"], [b"503"]),
        ([b"MAIL FROM:<b@x>", b"DATA"], [b"250", b"503"]),
        ([b"MAIL FROM:<b@x>", b"RCPT TO:<slow@example.org>", b"DATA"], [b"250", b"451", b"503"]),
        ([b"EXPN ann", b"AUTH PLAIN", b"STARTTLS"], [b"500", b"500", b"500"]),
        ([b"VRFY ann"], [b"252"]),
        ([b"MAIL FROM:<b\x07@x>"], [b"553"]),
        ([b"MAIL FROM:<b@x>", b"RCPT TO:<ann@exam\x07ple.org>"], [b"250", b"553"]),
        ([MAIL[:-2], ANN[:-2], b"DATA now", b"DATA"], [b"250", b"250", b"501", b"354"]),
        (
            [b"MAIL FROM:<b@x>"]
            + [
                b"RCPT TO:<" + bad + b">"
                for bad in (b"../x", b"a/b", b'"x y"@d', b'""@d', b"\xff", b"%n", b"-x", b"a" * 300)
            ],
            [b"250"] + [b"55"] * 8,
        ),
    ],
)
@pytest.mark.rfc("P-170", "P-171")
def test_refusals(lines: list[bytes], expected: list[bytes], run: Run[None]) -> None:
    """CVE-2020-10967: one recipient has no local part."""

    async def main() -> None:
        async with taking(MemoryStore()) as (client, _):
            for line, reply in zip(lines, expected, strict=True):
                got = await client.ask(line)
                assert got.startswith(reply), (line, got)
                if got[:1] in b"45":
                    assert re.match(rb"[45]\d\d [45]\.\d\.\d ", got), got

    run(main())


def test_mail_loop_is_refused(run: Run[None]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            for hops, reply in ((100, b"250"), (101, b"554 5.4.6")):
                await replies(client, MAIL + ANN + b"DATA\r\n", 3)
                octets = b"Received: x\r\n" * hops + b"\r\nReceived: in the body\r\n.\r\n"
                assert (await replies(client, octets, 1))[0].startswith(reply)

    run(main())


def test_smtp_accepts_mail_for_its_domains_only(run: Run[None]) -> None:
    async def main() -> None:
        async with taking(MemoryStore(), smtp=True) as (client, _):
            got = await replies(client, MAIL + b"RCPT TO:<ann@example.com>\r\nDATA\r\n", 3)
            assert [line[:9] for line in got[1:]] == [b"550 5.7.1", b"503 5.5.1"]

    run(main())


def test_partial_smtp_delivery_is_repeated_not_lost(run: Run[None]) -> None:
    async def main() -> None:
        memory = MemoryStore()
        async with taking(FailsFor(memory, "eve"), smtp=True) as (client, _):
            await replies(client, MAIL + ANN + b"RCPT TO:<eve@example.org>\r\nDATA\r\n", 4)
            got = await replies(client, LETTER + b".\r\nNOOP\r\n", 2)
            assert got[0].startswith(b"451 4.3.0")
            assert got[1].startswith(b"250 2.0.0")

    run(main())


def test_repeated_smtp_delivery_makes_no_second_copies(run: Run[None], tmp_path: Path) -> None:
    """RFC 5321 §4.2.5, §4.5.4.1: the sender repeats the message for all until all have it.

    Two equal messages that were sent separately stay two.
    """
    both = MAIL + ANN + b"RCPT TO:<eve@example.org>\r\nDATA\r\n"

    async def main() -> None:
        memory, place = MemoryStore(), tmp_path / "intake.sqlite3"
        full = FailsFor(memory, "eve")
        for _ in range(5):  # also after a restart
            async with taking(full, smtp=True, partial=PartialDeliveries(place)) as (client, _):
                await replies(client, both, 4)
                got = await replies(client, LETTER + b".\r\n", 1)
                assert got[0].startswith(b"451")
        full.user = "no one"
        async with taking(full, smtp=True, partial=PartialDeliveries(place)) as (client, _):
            await replies(client, both, 4)
            assert (await replies(client, LETTER + b".\r\n", 1))[0].startswith(b"250")
            assert [len(await letters(memory, user)) for user in ("ann", "eve")] == [1, 1]
            await replies(client, both, 4)
            assert (await replies(client, LETTER + b".\r\n", 1))[0].startswith(b"250")
        assert [len(await letters(memory, user)) for user in ("ann", "eve")] == [2, 2]

    run(main())


def test_no_endless_command(run: Run[None]) -> None:
    async def main() -> None:
        async with taking(MemoryStore()) as (client, _):
            client.send(b"x" * 100_000)
            assert (await client.ask(b"")).startswith(b"500 5.5.2")
            assert (await client.ask(b"NOOP")).startswith(b"250")
            client.send(b"x" * 1_000_000)
            assert (await client.line()).startswith(b"500 5.5.2")
            assert await client.rest() == b""

    run(main())


def test_smtplib_can_deliver(run: Run[None]) -> None:
    def deliver(port: int) -> None:
        with smtplib.LMTP("127.0.0.1", port) as lmtp:
            for recipient in ("ann@example.org", "eve@example.org"):  # smtplib reads only one reply
                assert lmtp.sendmail("bob@example.net", recipient, LETTER) == {}

    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (_, port):
            await asyncio.to_thread(deliver, port)
        for user in ("ann", "eve"):
            assert [without_trace(each) for each in await letters(store, user)] == [LETTER]

    run(main())


# -- FAULTS: hostile or broken senders


@pytest.mark.parametrize("smtp", [False, True])
def test_dots_are_unstuffed_once(smtp: bool, run: Run[None]) -> None:
    """RFC 5321 §4.5.2."""

    async def main() -> None:
        store = MemoryStore()
        async with taking(store, smtp=smtp) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            got = await replies(client, b"S: x\r\n\r\n..a\r\n...\r\n..\r\n.b\r\n.\r\n", 1)
            assert got[0].startswith(b"250")
        assert without_trace((await letters(store))[0]) == b"S: x\r\n\r\n.a\r\n..\r\n.\r\nb\r\n"

    run(main())


@pytest.mark.parametrize("octets", [998, 999, 1_000_000])
def test_lines_may_have_any_length(octets: int, run: Run[None]) -> None:
    """More than RFC 5321 §4.5.3.1.6 requires; splitting a line would change the message."""
    letter = b"Subject: x\r\n\r\n" + b"x" * octets + b"\r\nend\r\n"

    async def main() -> None:
        store = MemoryStore()
        async with taking(store, most=2_000_000) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            assert (await replies(client, letter + b".\r\n", 1))[0].startswith(b"250")
        assert without_trace((await letters(store))[0]) == letter

    run(main())


def test_wrong_size_parameter_does_not_bypass_the_limit(run: Run[None]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with taking(store, most=1000) as (client, _):
            small = b"MAIL FROM:<bob@example.net> SIZE=10\r\n"
            await replies(client, small + ANN + b"DATA\r\n", 3)
            got = await replies(client, b"x" * 2000 + b"\r\n.\r\n", 1)
            assert got[0].startswith(b"552 5.3.4")
        assert await letters(store) == []

    run(main())


def test_sender_that_disconnects_before_the_reply_can_send_again(run: Run[None]) -> None:
    """RFC 2033 §4.2: the message may then be there twice, but it is not lost."""

    async def main() -> None:
        memory = MemoryStore()
        slow = SlowStore(memory)
        async with taking(slow) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            client.send(LETTER + b".\r\n")
            await slow.begun.wait()
        slow.may_end.set()
        await asyncio.wait_for(slow.ended.wait(), 10)
        stored = len(await letters(memory))
        assert stored <= 1
        async with taking(memory) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            assert (await replies(client, LETTER + b".\r\n", 1))[0].startswith(b"250")
        assert len(await letters(memory)) == stored + 1

    run(main())


class SlowStore:
    """A store that is slow for one user or for all."""

    def __init__(self, store: MemoryStore, user: str = "") -> None:
        self.store = store
        self.user = user
        self.open = store.open
        self.begun, self.may_end, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        if self.user not in ("", user):
            return await self.store.deliver(user, message)
        self.begun.set()
        try:
            await self.may_end.wait()
            return await self.store.deliver(user, message)
        finally:
            self.ended.set()


@pytest.mark.parametrize("command", [b"BDAT 10 LAST", b"STARTTLS", b"AUTH PLAIN AAA=", b"TURN"])
def test_chunking_and_other_extensions_are_unknown(command: bytes, run: Run[None]) -> None:
    """No command may change how later octets are read (CVE-2021-38371)."""

    async def main() -> None:
        store = MemoryStore()
        async with taking(store, smtp=True) as (client, _):
            got = await replies(client, MAIL + ANN + command + b"\r\nNOOP\r\n", 4)
            assert [line[:3] for line in got] == [b"250", b"250", b"500", b"250"]
        assert await letters(store) == []

    run(main())


def test_recipients_beyond_one_hundred_are_deferred(run: Run[None]) -> None:
    """RFC 5321 §4.5.3.1.8, §4.5.3.1.10: the sender repeats the message for the others."""

    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            got = await replies(client, MAIL + ANN * 1000, 1001)
            assert {line[:9] for line in got[:101]} <= {b"250 2.1.0", b"250 2.1.5"}
            assert {line[:9] for line in got[101:]} == {b"452 4.5.3"}
            await replies(client, b"DATA\r\n", 1)
            got = await replies(client, LETTER + b".\r\nNOOP\r\n", 101)
            assert all(line.startswith(b"250") for line in got)
        assert len(await letters(store)) == 1, "a maildrop that is named twice gets one copy"

    run(main())


def test_endless_header_takes_bounded_work(run: Run[None]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with taking(store, most=5_000_000) as (client, _):
            for head, reply in ((b"X: y\r\n" * 500_000, b"250"), (b"X: y\r\n" * 900_000, b"552")):
                await replies(client, MAIL + ANN + b"DATA\r\n", 3)
                assert (await replies(client, head + b".\r\n", 1))[0].startswith(reply)

    run(main())


def test_nul_in_a_message_is_kept(run: Run[None]) -> None:
    """Octets are stored unchanged; programs that display them must cope."""
    letter = b"Subject: a\0b\r\n\r\n\0\0c\r\n"

    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            await replies(client, MAIL + ANN + b"DATA\r\n", 3)
            assert (await replies(client, letter + b".\r\n", 1))[0].startswith(b"250")
        assert without_trace((await letters(store))[0]) == letter

    run(main())


@pytest.mark.parametrize(
    "line",
    [
        b"MAIL FROM:<bob@example.net\rX-Injected: y>",
        b"MAIL FROM:<bob\x0b@example.net>",
        b"MAIL FROM:<bob@example.net>\rRCPT TO:<ann@example.org>",
    ],
)
def test_envelope_cannot_inject_header_fields(line: bytes, run: Run[None]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with taking(store) as (client, _):
            got = await replies(client, line + b"\r\nRSET\r\n" + MAIL + ANN + b"DATA\r\n", 5)
            assert got[0][:1] == b"5", got
            assert (await replies(client, LETTER + b".\r\n", 1))[0].startswith(b"250")
        (letter,) = await letters(store)
        assert b"Injected" not in letter
        assert letter.count(b"\r\n\r\n") == 1

    run(main())


@pytest.mark.parametrize("smtp", [False, True])
def test_connection_ended_by_the_operator_gets_the_reply_to_its_message(
    smtp: bool, run: Run[None]
) -> None:
    """Without the reply the sender would send the message again, and the user would get two."""

    async def main() -> None:
        memory = MemoryStore()
        store = SlowStore(memory)
        intake = Intake(store, Ann(), "mail.example.org", 100_000)
        factory = intake.smtp(["example.org"]) if smtp else intake.lmtp()
        with listening(factory) as port:
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
            client.send(b"EHLO x\r\n" if smtp else b"LHLO x\r\n")
            client.send(b"MAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
            while not (await client.line()).startswith(b"354"):
                pass
            client.send(b"Subject: hello\r\n\r\nhi\r\n.\r\n")
            await store.begun.wait()
            [connection] = intake.connections
            assert connection.end()
            store.may_end.set()
            assert (await client.rest()).startswith(b"250 ")
            assert len(await letters(memory)) == 1
            client.writer.close()

    run(main())
