"""``restante fetch`` with our server and with faulty ones: no mail is lost or duplicated."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import ssl
import stat
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from restante.cli.main import main as restante
from restante.client.asynchronous import connect
from restante.collect import fetching
from restante.collect.collector import Account, Outcome, collect
from restante.collect.destinations.opening import open_destination
from restante.collect.ledger import Ledger
from restante.collect.plan import Policy
from restante.errors import ConnectionLost
from restante.store.memory import MemoryStore

from ..client.shells import ANSWERS, NONE, UNUSED, Peer, scripted
from ..support import once, serving, sizes

MESSAGES = [b"Subject: one\r\n\r\n1\r\n", b"Subject: two\r\n\r\n.2\r\n", b"\r\n"]


async def filled() -> MemoryStore:
    store = MemoryStore()
    for message in MESSAGES:
        await store.deliver("mrose", once(message))
    return store


async def run_fetch(
    port: int,
    to: str,
    *,
    keep: bool = False,
    limit: int | None = None,
    largest: int | None = None,
    ledger: Ledger | None = None,
    **options: Any,
) -> Outcome:
    """Fetch as the command does, but without TLS."""
    url = f"pop3://127.0.0.1:{port}"
    log_in = partial(connect, url, user="mrose", password="tan staaf", tls=NONE, context=UNUSED)
    policy = Policy(keep=None if keep else 0.0, limit=limit, largest=largest)
    account = Account("a", log_in, policy)
    with closing(open_destination(to)) as destination, closing(Ledger(None)) as forgetful:
        return await collect(
            account, ledger or forgetful, destination, adopt_present=True, **options
        )


def files(path: Path) -> list[bytes]:
    return sorted(each.read_bytes() for each in path.glob("*.eml"))


def answering(answers: dict[bytes, bytes]) -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        await peer.say(b"+OK\r\n")
        while command := await peer.hear():
            await peer.say((ANSWERS | answers).get(command, b"+OK\r\n"))

    return script


def test_stored_messages_are_not_downloaded_again(tmp_path: Path) -> None:
    async def main() -> None:
        store = await filled()
        async with serving(store) as server:
            first = await run_fetch(server.port, str(tmp_path), keep=True, limit=2)
            assert (first.stored, first.present, first.deleted) == (2, 0, 0)
            second = await run_fetch(server.port, str(tmp_path), keep=True)
            assert (second.stored, second.present, second.octets) == (1, 2, 2)
            third = await run_fetch(server.port, str(tmp_path))
            assert (third.stored, third.present, third.deleted, third.octets) == (0, 3, 3, 0)
        assert await sizes(store) == []

    asyncio.run(main())
    assert files(tmp_path) == sorted(MESSAGES)


def test_progress_counts_every_octet(tmp_path: Path) -> None:
    async def main() -> None:
        seen: list[tuple[int, int]] = []
        async with serving(await filled()) as server:
            await run_fetch(
                server.port,
                str(tmp_path),
                progress=lambda messages, octets: seen.append((len(messages), octets)),
            )
        assert seen[0] == (3, 0)
        assert sum(octets for _, octets in seen) == sum(map(len, MESSAGES))

    asyncio.run(main())


@pytest.mark.parametrize(
    "unique_ids", [b"-ERR\r\n", b"+OK\r\n1 same\r\n2 same\r\n.\r\n", b"+OK\r\n1 \r\n2\r\n.\r\n"]
)
@pytest.mark.parametrize("is_equal", [False, True])
def test_without_good_unique_ids_the_content_decides(
    unique_ids: bytes, is_equal: bool, tmp_path: Path
) -> None:
    """Two messages are stored even if they are equal, and not again in the next run."""
    script = answering(
        {
            b"CAPA": b"-ERR\r\n",
            b"UIDL": unique_ids,
            b"RETR 1": b"+OK\r\none\r\n.\r\n",
            b"RETR 2": b"+OK\r\none\r\n.\r\n" if is_equal else b"+OK\r\ntwo\r\n.\r\n",
        }
    )

    async def main() -> None:
        async with scripted(script) as (port, _):
            first = await run_fetch(port, str(tmp_path), keep=True)
            assert first.stored == 2
            second = await run_fetch(port, str(tmp_path))
            assert (second.stored, second.known, second.deleted) == (0, 2, 2)

    asyncio.run(main())
    assert files(tmp_path) == [b"one\r\n", b"one\r\n" if is_equal else b"two\r\n"]


def test_a_full_disk_deletes_nothing(tmp_path: Path) -> None:
    class Full(Exception):
        pass

    async def main() -> None:
        store = await filled()
        real = os.fsync
        calls = 0

        def fsync(file: int) -> None:
            nonlocal calls
            calls += stat.S_ISREG(os.fstat(file).st_mode)
            if calls == 2:  # of the second message, or of the directory
                raise Full
            real(file)

        async with serving(store) as server:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", fsync)
                with pytest.raises(Full):
                    await run_fetch(server.port, str(tmp_path))
        assert await sizes(store) == [len(each) for each in MESSAGES]

    asyncio.run(main())
    assert len(list(tmp_path.iterdir())) < len(MESSAGES)


@pytest.mark.parametrize("to", ["{}", "maildir:{}", "mbox:{}/mbox"])
def test_a_connection_lost_at_any_octet_loses_nothing(to: str, tmp_path: Path) -> None:
    """Every stored message is complete, and every deleted one is stored."""
    answers = {**ANSWERS, b"LIST": b"+OK\r\n1 9\r\n2 9\r\n.\r\n"}
    answers |= {b"RETR 1": b"+OK\r\none\r\n..\r\n.\r\n", b"RETR 2": b"+OK\r\ntwo\r\n.\r\n"}
    limits: list[int] = []

    async def script(peer: Peer) -> None:
        left = limits[-1]
        await peer.say(b"+OK\r\n"[:left])
        left -= 5
        while left > 0 and (command := await peer.hear()):
            octets = answers.get(command, b"+OK\r\n")
            await peer.say(octets[:left])
            left -= len(octets)
            if command == b"QUIT":
                assert b"DELE 1" in peer.heard
                return

    async def main() -> None:
        async with scripted(script) as (port, _):
            for limit in range(10, 1000, 7):
                limits.append(limit)
                path = tmp_path / str(limit)
                path.mkdir()
                try:
                    await run_fetch(port, to.format(path))
                except ConnectionLost:
                    pass
                else:
                    break
                found = [each for each in path.rglob("*") if each.is_file()]
                text = b"".join(each.read_bytes() for each in found).replace(b"\r", b"")
                assert text.count(b"one\n.\n") == text.count(b"one")
                assert text.count(b"two\n") == text.count(b"tw")
            else:
                pytest.fail("never done")

    asyncio.run(main())


def test_a_refused_message_stays(tmp_path: Path) -> None:
    """The others are stored and deleted, and the refusal is reported."""

    async def main() -> None:
        script = answering({b"RETR 1": b"-ERR [SYS/TEMP] gone\r\n"})
        async with scripted(script) as (port, peers):
            outcome = await run_fetch(port, str(tmp_path))
        assert outcome.refused == ["message 1: gone"]
        assert (outcome.stored, outcome.deleted) == (1, 1)
        assert [each for each in peers[0].heard if b"DELE" in each] == [b"DELE 2"]
        assert peers[0].heard[-1] == b"QUIT"

    asyncio.run(main())


def test_a_size_of_0_is_a_lie_like_others(tmp_path: Path) -> None:
    answers = {b"LIST": b"+OK\r\n1 0\r\n.\r\n", b"RETR 1": b"+OK\r\nx\r\n.\r\n"}

    async def main() -> None:
        async with scripted(answering(answers)) as (port, _):
            assert (await run_fetch(port, str(tmp_path))).stored == 1

    asyncio.run(main())


@pytest.mark.parametrize(("largest", "room"), [(30, 0), (None, 10)])
def test_message_far_above_its_announced_size_is_abandoned(
    largest: int | None, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message without end would fill the disk; if it does end, the next ones are fetched."""
    monkeypatch.setattr(fetching, "_SIZE_TOLERANCE", room)
    answers = {
        b"LIST": b"+OK\r\n1 10\r\n2 10\r\n.\r\n",
        b"RETR 1": b"+OK\r\n" + b"x" * 31 + b"\r\n.\r\n",
        b"RETR 2": b"+OK\r\n" + b"y" * 28 + b"\r\n.\r\n",
    }

    async def main() -> None:
        async with scripted(answering(answers)) as (port, peers):
            outcome = await run_fetch(port, str(tmp_path), largest=largest)
        assert outcome.refused == ["message 1: announced as 10 octets, but longer than 30"]
        assert (outcome.stored, outcome.deleted) == (1, 1)
        assert b"DELE 1" not in peers[0].heard

    asyncio.run(main())
    assert files(tmp_path) == [b"y" * 28 + b"\r\n"]


@pytest.mark.parametrize("is_pipelined", [False, True])
def test_refused_deletion_does_not_prevent_others(is_pipelined: bool, tmp_path: Path) -> None:
    """A refused deletion is not recorded as done: the next session repeats it."""
    answers = {b"DELE 1": b"-ERR no\r\n"}
    if not is_pipelined:
        answers[b"CAPA"] = b"-ERR\r\n"

    async def main() -> None:
        with closing(Ledger(None)) as ledger:
            async with scripted(answering(answers)) as (port, peers):
                outcome = await run_fetch(port, str(tmp_path), ledger=ledger)
            assert outcome.refused == ["DELE: no"]
            assert (outcome.stored, outcome.deleted) == (2, 1)
            assert peers[0].heard[-1] == b"QUIT"
            known = ledger.of("a").known(["a", "b"])
            assert [known[key].is_gone for key in sorted(known)] == [False, True]

    asyncio.run(main())


# The command.


async def command(port: int, *arguments: str, password: str = "tan staaf") -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTANTE_PASSWORD", password)
        url = f"pop3s://mrose@localhost:{port}"
        return await asyncio.to_thread(restante, ["--json", "fetch", url, *arguments])


def test_command_stores_deletes_and_reports(
    tmp_path: Path,
    certificate: tuple[Path, Path],
    server_tls: ssl.SSLContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trust = ("--ca-file", str(certificate[0]))

    async def main() -> None:
        store = await filled()
        async with serving(store, tls=server_tls, implicit=True, clear=False) as server:
            to = ("--to", f"maildir:{tmp_path / 'Mail'}")
            assert await command(server.port, *to, "--keep", *trust) == os.EX_OK
            assert len(await sizes(store)) == 3
            assert await command(server.port, *to, *trust) == os.EX_OK
            assert await sizes(store) == []

    asyncio.run(main())
    kept, deleted = map(json.loads, capsys.readouterr().out.splitlines())
    assert (kept["stored"], kept["deleted"]) == (3, 0)
    assert (deleted["stored"], deleted["present"], deleted["deleted"]) == (0, 3, 3)


def test_refused_message_is_reported_as_temporary(
    tmp_path: Path,
    certificate: tuple[Path, Path],
    server_tls: ssl.SSLContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = {
        b"CAPA": b"-ERR\r\n",
        b"RETR 1": b"-ERR [SYS/TEMP] not now\r\n",
        b"RETR 2": b"+OK\r\ntwo\r\n.\r\n",
    }

    async def main() -> None:
        async with scripted(answering(answers), tls=server_tls) as (port, _):
            arguments = ("--to", str(tmp_path), "--ca-file", str(certificate[0]))
            assert await command(port, *arguments) == os.EX_TEMPFAIL

    asyncio.run(main())
    reported = json.loads(capsys.readouterr().out)
    assert (reported["stored"], reported["deleted"], len(reported["refused"])) == (1, 1, 1)
    assert "not now" in reported["refused"][0]
    assert files(tmp_path) == [b"two\r\n"]


@pytest.mark.parametrize("to", ["{}", "maildir:{}", "mbox:{}/x.mbox"])
def test_a_full_disk_is_named(
    to: str,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    server_tls: ssl.SSLContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is lost, so the error is temporary."""
    to = to.format(tmp_path / "new")
    (tmp_path / "new").mkdir()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        store = await filled()
        async with serving(store, tls=server_tls, implicit=True, clear=False) as server:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", full)
                arguments = ("--to", to, "--ca-file", str(certificate[0]))
                assert await command(server.port, *arguments) == os.EX_TEMPFAIL
        assert len(await sizes(store)) == 3

    asyncio.run(main())
    reported = capsys.readouterr().err
    assert reported == f"restante fetch: {to}: No space left on device\n"


def test_exit_codes_of_fetch(
    tmp_path: Path,
    certificate: tuple[Path, Path],
    server_tls: ssl.SSLContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """sysexits.h: 75 is temporary, 77 refused, 64 wrong usage; one line gives the reason."""
    trust = ("--ca-file", str(certificate[0]))
    to = ("--to", str(tmp_path / "new"))

    async def main() -> None:
        async with serving(await filled(), tls=server_tls, implicit=True, clear=False) as server:
            port = server.port
            assert await command(port, *to) == os.EX_NOPERM  # not trusted
            assert await command(port, *to, *trust, password="wrong") == os.EX_NOPERM
            assert await command(port, "--to", "imap:x", *trust) == os.EX_USAGE
            (tmp_path / "file").touch()
            assert await command(port, "--to", f"{tmp_path}/file/x", *trust) == os.EX_IOERR
        assert await command(port, *to, *trust) == os.EX_TEMPFAIL  # connection refused

    asyncio.run(main())
    reported = capsys.readouterr().err.splitlines()
    assert len(reported) == 5
    assert all(line.startswith("restante fetch: ") for line in reported)
    assert files(tmp_path / "new") == []


def test_a_password_in_the_url_is_refused(tmp_path: Path) -> None:
    url = "pop3s://mrose:secret@localhost"
    assert restante(["fetch", url, "--to", str(tmp_path)]) == os.EX_USAGE
