"""Failures between two sessions of a collector: no mail is lost or duplicated."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from restante.collect.collector import Outcome
from restante.collect.destinations import spooled
from restante.collect.destinations.opening import open_destination
from restante.collect.ledger import Ledger
from restante.collect.plan import Collected, Due, Policy, plan
from restante.errors import (
    ClientError,
    LoginFailed,
    LoginWithheld,
    MessageRefused,
    TemporaryFailure,
)
from restante.pop3.listing import Message

from ..client.shells import ANSWERS, Peer, scripted
from .test_fetch import answering, run_fetch

ONE, TWO = b"one\r\n.\r\n", b"two\r\n"
SERVER = {
    **ANSWERS,
    b"LIST": b"+OK\r\n1 8\r\n2 5\r\n.\r\n",
    b"RETR 1": b"+OK\r\none\r\n..\r\n.\r\n",
    b"RETR 2": b"+OK\r\ntwo\r\n.\r\n",
}


def stored(mail: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (mail / "new").iterdir())


def collect(port: int, folder: Path, *, keep: bool = False) -> Outcome:
    with closing(Ledger(folder / "ledger")) as ledger:
        return asyncio.run(run_fetch(port, f"maildir:{folder}/Mail", keep=keep, ledger=ledger))


def forget(folder: Path) -> None:
    for path in folder.glob("ledger*"):
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_connection_lost_at_any_octet_and_another_session(keep: bool, tmp_path: Path) -> None:
    """Also before the answer to DELE or QUIT, when it is unknown which messages are gone."""
    limits = [0]

    async def script(peer: Peer) -> None:
        left = limits[-1]
        for command in (b"", *[b"?"] * 100):
            octets = b"+OK\r\n" if not command else SERVER.get(await peer.hear(), b"+OK\r\n")
            await peer.say(octets[:left])
            left -= len(octets)
            if left <= 0 or peer.heard[-1:] == [b"QUIT"]:
                return

    async def main() -> None:
        async with scripted(script) as (port, peers):
            for limit in range(0, 1000, 3):
                folder = tmp_path / str(limit)
                is_over = False
                for octets in (limit, 1_000_000):
                    limits.append(octets)
                    with suppress(ClientError):
                        await asyncio.to_thread(collect, port, folder, keep=keep)
                        is_over = is_over or octets == limit
                    deleted = [each for each in peers[-1].heard if each.startswith(b"DELE")]
                    if b"QUIT" in peers[-1].heard and deleted:
                        assert stored(folder / "Mail") == sorted([ONE, TWO])
                assert stored(folder / "Mail") == sorted([ONE, TWO]), limit
                if is_over:
                    return
        pytest.fail("never done")

    asyncio.run(main())


def test_messages_quit_did_not_remove_are_deleted_later(tmp_path: Path) -> None:
    """After -ERR to QUIT, some messages may still be there (RFC 1939 §6)."""

    async def main() -> None:
        refusing = answering({**SERVER, b"QUIT": b"-ERR some were not removed\r\n"})
        async with scripted(refusing) as (port, _):
            first = await asyncio.to_thread(collect, port, tmp_path)
        assert (first.stored, first.deleted) == (2, 0)
        assert first.refused == ["QUIT: some were not removed"]
        async with scripted(answering(SERVER)) as (port, _):
            second = await asyncio.to_thread(collect, port, tmp_path)
        assert (second.stored, second.known, second.deleted) == (
            0,
            2,
            2,
        )  # known by comparing: this server has no TOP

    asyncio.run(main())
    assert len(stored(tmp_path / "Mail")) == 2


@pytest.mark.parametrize(
    ("answer", "is_withheld"),
    [
        (b"-ERR [IN-USE] another session", False),
        (b"-ERR mailbox in use", False),
        (b"-ERR [SYS/TEMP] later", False),
        (b"-ERR [LOGIN-DELAY] too soon", False),
        (b"-ERR [AUTH] who are you", True),
        (b"-ERR [SYS/PERM] closed", True),
        (b"-ERR no", True),
    ],
)
def test_login_waits_only_after_permanent_failures(
    answer: bytes, is_withheld: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        async with scripted(answering({b"PASS tan staaf": answer + b"\r\n"})) as (port, _):
            with pytest.raises(LoginFailed):
                await asyncio.to_thread(collect, port, tmp_path)
            with pytest.raises(LoginWithheld if is_withheld else LoginFailed):
                await asyncio.to_thread(collect, port, tmp_path)

    asyncio.run(main())


@pytest.mark.parametrize("is_older", [False, True])
def test_lost_or_old_ledger_causes_no_duplicates(is_older: bool, tmp_path: Path) -> None:
    """The Maildir knows its messages by their names."""

    async def main() -> None:
        async with scripted(answering(SERVER)) as (port, _):
            if is_older:
                with closing(Ledger(tmp_path / "ledger")):
                    pass
                older = (tmp_path / "ledger").read_bytes()
            await asyncio.to_thread(collect, port, tmp_path, keep=True)
            forget(tmp_path)
            if is_older:
                (tmp_path / "ledger").write_bytes(older)
            again = await asyncio.to_thread(collect, port, tmp_path, keep=True)
        assert again.stored == 0

    asyncio.run(main())
    assert len(stored(tmp_path / "Mail")) == 2


def test_program_that_hangs_is_terminated_and_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "_TIMEOUT", 0.3)
    note = f'open("{tmp_path}/pid", "w").write(str(os.getpid()))'
    program = f"import os, time; {note}; time.sleep(60)"
    with closing(open_destination(f"command:{sys.executable} -c '{program}'")) as destination:
        for error in (MessageRefused, TemporaryFailure):  # this message, or a broken program
            destination.begin("any")
            destination.write(b"x\r\n" * 50_000)  # more than a pipe buffers
            with pytest.raises(error, match="still running"):
                destination.commit()
            destination.abort()
    if (tmp_path / "pid").exists():  # on a slow machine it may not have started
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(("now", "is_due"), [(6.9, False), (-300.0, False), (7.0, True)])
def test_a_clock_that_jumps_back_deletes_nothing_early(now: float, is_due: bool) -> None:
    """Days count from when the message was stored, independently of time zones."""
    day = 86_400.0
    message = Message(1, "u", 10)
    policy = Policy(keep=7 * day)
    taken = {"u": Collected(10, 1000 * day)}
    steps = list(plan([message], taken, policy, (1000 + now) * day))
    assert steps == ([Due(message, "u", "taken 7.0 days ago")] if is_due else [])
