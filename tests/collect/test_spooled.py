"""Messages for a server or program: spooled first, never delivered in part."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from io import BufferedRWPair
from pathlib import Path

import pytest

from restante.collect.destinations import Destination
from restante.collect.destinations.opening import open_destination
from restante.errors import (
    ConfigurationError,
    MessageRefused,
    PermanentFailure,
    TemporaryFailure,
    UnsafeArgument,
)
from restante.server.intake import Intake
from restante.store.memory import MemoryStore

from ..server.test_intake import Ann, FailsFor
from ..support import listening, sizes

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


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("sys.exit(64)", MessageRefused),
        ("sys.exit(65)", MessageRefused),
        ("sys.exit(77)", MessageRefused),
        ("sys.exit(78)", MessageRefused),
        ("sys.exit(71)", TemporaryFailure),
        ("sys.exit(74)", TemporaryFailure),
        ("sys.exit(75)", TemporaryFailure),
        ("sys.exit(1)", MessageRefused),
        ("os.kill(os.getpid(), 9)", MessageRefused),
    ],
)
def test_exit_codes_by_sysexits(end: str, error: type[Exception]) -> None:
    """Only 0 counts as stored; 75 stops all mail, other codes may be due to the message."""
    with (
        closing(open_destination(program(f"import os, sys; {end}"))) as destination,
        pytest.raises(error, match="exit code"),
    ):
        give(destination, b"x" * 1_000_000)  # a program that reads nothing does not block


def outcomes(destination: Destination, letters: list[bytes]) -> list[str]:
    """Return the outcome of each letter, until the destination stops all of them."""
    reported = []
    for letter in letters:
        try:
            give(destination, letter)
        except MessageRefused:
            reported.append("refused")
        except TemporaryFailure:
            return [*reported, "stopped"]
        else:
            reported.append("stored")
    return reported


READS = "import sys; code = int(sys.stdin.read().split()[-1])"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ("65 " * 30, ["refused"] * 30),
        ("1 " * 30, ["refused"] * 9 + ["stopped"]),
        ("1 1 1 1 1 1 1 1 1 0 " * 2, ([*["refused"] * 9, "stored"]) * 2),
        ("1 65 75 0", ["refused", "refused", "stopped"]),
    ],
)
def test_consecutive_temporary_failures_stop_all_mail_but_refusals_do_not(
    codes: str, expected: list[str]
) -> None:
    """A program that always crashes costs ten downloads, not the whole maildrop."""
    place = program(f"{READS}; sys.exit(code)")
    with closing(open_destination(place)) as destination:
        letters = [f"Subject: x\r\n\r\n{code}\r\n".encode() for code in codes.split()]
        assert outcomes(destination, letters) == expected


def test_a_program_that_is_missing_is_refused_before_any_mail() -> None:
    with pytest.raises(ConfigurationError, match="program not found"):
        open_destination("command:/nowhere/at/all --option")


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
        with listening(factory) as port:
            await asyncio.to_thread(use, port)

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


def test_refusal_and_temporary_failure_are_distinguished() -> None:
    store = FailsFor(MemoryStore(), "eve")

    def use(port: int) -> None:
        def to(recipient: str) -> Destination:
            return open_destination(f"lmtp:127.0.0.1:{port}", recipient=recipient)

        with (
            closing(to("nobody@example.org")) as destination,
            pytest.raises(PermanentFailure, match=r"nobody@example.org: 550 5\.1\.1"),
        ):
            give(destination, LETTER)
        with (
            closing(to("slow@example.org")) as destination,
            pytest.raises(TemporaryFailure, match=r"^451"),
        ):
            give(destination, LETTER)
        with (
            closing(to("eve@example.org")) as destination,
            pytest.raises(MessageRefused, match=r"^451"),
        ):
            give(destination, LETTER)
        with closing(to("ann@example.org")) as destination:
            with pytest.raises(MessageRefused, match=r"^552"):
                give(destination, b"x" * 99_998 + b"\r\n\r\n")
            give(destination, LETTER)  # the next one is accepted on a new connection

    served(store, use, smtp=False)
    assert len(asyncio.run(sizes(store.store, "ann"))) == 1


@contextmanager
def answering(replies: dict[bytes, bytes], *, hangs_up_after: int = 1000) -> Iterator[str]:
    """Run a mail server with these replies; it hangs up if it has none, or after
    ``hangs_up_after`` messages on one connection."""
    usual = {b"LHLO": b"250", b"MAIL": b"250", b"RCPT": b"250", b"DATA": b"354", b"QUIT": b"221"}
    replies = usual | replies

    def talk(stream: BufferedRWPair) -> None:
        left = hangs_up_after
        stream.write(b"220 ready\r\n")
        stream.flush()
        for line in stream:
            if line == b".\r\n" or line[:4].upper() in replies:
                reply = replies.get(line.strip()[:4].upper())
                if reply is None:
                    return
                stream.write(reply + b" so\r\n")
                stream.flush()
                left -= line == b".\r\n"
                if not left or reply.startswith(b"421"):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connected, _ = listening.accept()
                    with suppress(OSError), connected, connected.makefile("rwb") as stream:
                        talk(stream)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        try:
            yield f"lmtp:127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join(10)


@pytest.mark.rfc("P-173")
@pytest.mark.parametrize(
    ("command", "reply", "error"),
    [
        # Before the message: the error affects all mail, which waits or needs an administrator.
        (b"LHLO", b"421 4.3.2", TemporaryFailure),
        (b"MAIL", b"451 4.3.0", TemporaryFailure),
        (b"MAIL", b"550 5.7.1", PermanentFailure),
        (b"RCPT", b"452 4.2.2", TemporaryFailure),
        (b"RCPT", b"550 5.1.1", PermanentFailure),
        (b"DATA", b"451 4.3.0", TemporaryFailure),
        (b"DATA", b"554 5.5.1", PermanentFailure),
        # After the message: the error may be due to it.
        (b".", b"552 5.2.3", MessageRefused),
        (b".", b"554 5.6.0", MessageRefused),
        (b".", b"451 4.3.0", MessageRefused),
        (b".", b"452 4.2.2", TemporaryFailure),
        (b".", b"354", MessageRefused),
        (b".", None, MessageRefused),
    ],
)
def test_refusal_concerns_the_message_only_after_it_was_sent(
    command: bytes, reply: bytes | None, error: type[Exception]
) -> None:
    """Without an answer it is unknown whether the server has it: it counts as not stored."""
    replies = {b".": b"250"} | ({command: reply} if reply is not None else {})
    if reply is None:
        del replies[command]
    with (
        answering(replies) as place,
        closing(open_destination(place, recipient="a@b")) as destination,
        pytest.raises(error),
    ):
        give(destination, LETTER)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({b".": b"554 5.6.0"}, ["refused"] * 30),
        ({b".": b"451 4.3.0"}, ["refused"] * 9 + ["stopped"]),
        ({}, ["refused", "stopped"]),
        ({b".": b"452 4.2.2"}, ["stopped"]),
    ],
)
def test_outcomes_if_the_server_gives_all_mail_the_same_reply(
    reply: dict[bytes, bytes], expected: list[str]
) -> None:
    with (
        answering(reply) as place,
        closing(open_destination(place, recipient="a@b")) as destination,
    ):
        assert outcomes(destination, [LETTER] * 30) == expected


def test_a_connection_that_was_dropped_while_idle_is_made_again() -> None:
    with (
        answering({b".": b"250"}, hangs_up_after=1) as place,
        closing(open_destination(place, recipient="a@b")) as destination,
    ):
        assert outcomes(destination, [LETTER] * 3) == ["stored"] * 3


@pytest.mark.parametrize(
    ("replies", "is_taken"),
    [
        ({b"RCPT": b"251", b".": b"250"}, True),
        ({b"RCPT": b"252", b".": b"200"}, True),
        ({b"DATA": b"250", b".": b"250"}, False),
    ],
)
def test_the_first_digit_of_a_reply_decides(replies: dict[bytes, bytes], is_taken: bool) -> None:
    """RFC 5321 §4.3.2: 251 accepts a recipient too."""
    with (
        answering(replies) as place,
        closing(open_destination(place, recipient="a@b")) as destination,
        nullcontext() if is_taken else pytest.raises(TemporaryFailure),
    ):
        give(destination, LETTER)


def test_unreachable_server_is_a_temporary_failure() -> None:
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
