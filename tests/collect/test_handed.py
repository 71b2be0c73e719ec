"""Messages handed to a server or a program: whole, once answered, never half."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest

from restante.collect.destinations import Destination, open_destination
from restante.errors import MessageRefused, TemporaryFailure, UnsafeArgument
from restante.net.intake import Intake
from restante.store.memory import MemoryStore

from ..net.test_intake import Ann, FailsFor
from ..support import sizes

LETTER = b"Subject: x\r\n\r\n.dot\r\n..\r\nhello\r\n"


def give(destination: Destination, *pieces: bytes) -> None:
    assert destination.begin("any")
    for piece in pieces:
        destination.write(piece)
    try:
        destination.commit()
    finally:
        destination.abort()


def program(text: str) -> str:
    return f"command:{sys.executable} -c '{text}'"


def test_a_command_reads_the_whole_message_with_its_line_ends(tmp_path: Path) -> None:
    write = f'import sys; open("{tmp_path}/out", "wb").write(sys.stdin.buffer.read())'
    with closing(open_destination(program(write))) as destination:
        give(destination, b"a\r", b"\nb\rc\r\n", b"\r\n", b"d\r")
    assert (tmp_path / "out").read_bytes() == b"a\nb\rc\n\nd\r"


@pytest.mark.parametrize("end", ["sys.exit(1)", "sys.exit(75)", "os.kill(os.getpid(), 9)"])
def test_only_exit_code_0_counts_as_stored(end: str) -> None:
    with (
        closing(open_destination(program(f"import os, sys; {end}"))) as destination,
        pytest.raises(TemporaryFailure, match="ended with"),
    ):
        give(destination, b"x" * 1_000_000)  # and one that reads nothing does not block


def test_nothing_is_run_before_the_message_is_whole(tmp_path: Path) -> None:
    touch = f'open("{tmp_path}/out", "w")'
    with closing(open_destination(program(touch))) as destination:
        destination.begin("any")
        destination.write(b"half")
        destination.abort()
    assert not (tmp_path / "out").exists()


def served(store: MemoryStore | FailsFor, use: Callable[[int], None], *, smtp: bool) -> None:
    async def main() -> None:
        intake = Intake(store, Ann(), "mail.example.org", 100_000)
        factory = intake.smtp(["example.org"]) if smtp else intake.lmtp()
        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        async with server:
            await asyncio.to_thread(use, server.sockets[0].getsockname()[1])

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["lmtp", "smtp"])
def test_a_mail_server_gets_it_octet_for_octet(kind: str) -> None:
    store = MemoryStore()

    def use(port: int) -> None:
        place = f"{kind}:127.0.0.1:{port}"
        with closing(open_destination(place, recipient="ann@example.org")) as destination:
            give(destination, LETTER[:7], LETTER[7:])
            give(destination, LETTER)

    async def texts() -> list[bytes]:
        async with store.open("ann") as maildrop:
            return [
                b"".join([piece async for piece in maildrop.read(entry)])
                for entry in maildrop.listing
            ]

    served(store, use, smtp=kind == "smtp")
    found = asyncio.run(texts())
    assert len(found) == 2
    assert all(text.endswith(b"\r\n" + LETTER) for text in found)
    assert all(text.startswith(b"Return-Path: <>\r\n") for text in found)


def test_refusals_are_told_apart() -> None:
    store = FailsFor(MemoryStore(), "eve")

    def use(port: int) -> None:
        def to(recipient: str) -> Destination:
            return open_destination(f"lmtp:127.0.0.1:{port}", recipient=recipient)

        with (
            closing(to("nobody@example.org")) as destination,
            pytest.raises(MessageRefused, match=r"^550 5\.1\.1"),
        ):
            give(destination, LETTER)
        with (
            closing(to("slow@example.org")) as destination,
            pytest.raises(TemporaryFailure, match=r"^451"),
        ):
            give(destination, LETTER)
        with (
            closing(to("eve@example.org")) as destination,
            pytest.raises(TemporaryFailure, match=r"^451"),
        ):
            give(destination, LETTER)
        with closing(to("ann@example.org")) as destination:
            with pytest.raises(MessageRefused, match=r"^552"):
                give(destination, b"x" * 99_998 + b"\r\n\r\n")
            give(destination, LETTER)  # the next one is taken, on a new connection

    served(store, use, smtp=False)
    assert len(asyncio.run(sizes(store.store, "ann"))) == 1


@contextmanager
def answering(replies: dict[bytes, bytes]) -> Iterator[str]:
    """A mail server for one connection that answers so, and hangs up where it has no answer."""
    usual = {b"LHLO": b"250", b"MAIL": b"250", b"RCPT": b"250", b"DATA": b"354", b"QUIT": b"221"}
    replies = usual | replies
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connected, _ = listening.accept()
            with connected, connected.makefile("rwb") as stream:
                stream.write(b"220 ready\r\n")
                stream.flush()
                for line in stream:
                    if line == b".\r\n" or line[:4].upper() in replies:
                        reply = replies.get(line.strip()[:4].upper())
                        if reply is None:
                            return
                        stream.write(reply + b" so\r\n")
                        stream.flush()

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"lmtp:127.0.0.1:{listening.getsockname()[1]}"
        serving.join(10)


@pytest.mark.rfc("P-173")
def test_a_reply_that_is_missing_is_a_reason_to_try_again() -> None:
    """The mail server goes away after the data, so nobody knows whether it has them."""
    with (
        answering({}) as place,
        closing(open_destination(place, recipient="a@b")) as destination,
        pytest.raises(TemporaryFailure, match="the mail server"),
    ):
        give(destination, LETTER)


@pytest.mark.parametrize(
    ("replies", "is_taken"),
    [
        ({b"RCPT": b"251", b".": b"250"}, True),
        ({b"RCPT": b"252", b".": b"200"}, True),
        ({b".": b"354"}, False),
        ({b"DATA": b"250", b".": b"250"}, False),
    ],
)
def test_the_first_digit_of_a_reply_decides(replies: dict[bytes, bytes], is_taken: bool) -> None:
    """RFC 5321 §4.3.2: a recipient is accepted with 251, too."""
    with (
        answering(replies) as place,
        closing(open_destination(place, recipient="a@b")) as destination,
        nullcontext() if is_taken else pytest.raises(TemporaryFailure),
    ):
        give(destination, LETTER)


def test_no_server_is_a_reason_to_try_again() -> None:
    with (
        closing(open_destination("lmtp:127.0.0.1:1", recipient="a@b")) as destination,
        pytest.raises(TemporaryFailure, match="the mail server"),
    ):
        give(destination, LETTER)


@pytest.mark.parametrize(
    ("place", "recipient"),
    [
        ("lmtp:127.0.0.1:24", ""),
        ("lmtp:nowhere", "a@b"),
        ("lmtp:127.0.0.1:24", "a@b>\r\nDATA"),
        ("lmtp:127.0.0.1:24", "a b@c"),
        ("command:", "a@b"),
        ("maildir:", "a@b"),
        ("imap:x", "a@b"),
    ],
)
def test_impossible_destinations(place: str, recipient: str) -> None:
    with pytest.raises(UnsafeArgument):
        open_destination(place, recipient=recipient)
