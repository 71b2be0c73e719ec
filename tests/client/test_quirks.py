"""What a client must know of odd servers beforehand, or survives without; see also ``quirk_*.txt``
among the transcripts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.errors import CommandFailed, DeadlineExceeded, UnsafeArgument
from restante.net.blocking import connect_blocking
from restante.net.client import connect
from restante.net.remote import Remote
from restante.pop3.dialogue import Dialogue
from restante.pop3.quirks import PRESETS, LineEnds, Quirks, by_host, parse

from .shells import ANSWERS, NONE, UNUSED, Peer, Session, both, polite, scripted

IN_CLEAR: dict[str, Any] = {"user": "mrose", "password": "x", "tls": NONE, "context": UNUSED}


@pytest.mark.parametrize(
    ("host", "preset"),
    [
        ("pop.gmail.com", "gmail"),
        ("outlook.office365.com", "microsoft"),
        ("OUTLOOK.Office365.com.", "microsoft"),
        ("ssl0.ovh.net", "ovh"),
        ("pop.163.com", "netease"),
        ("pop.example.org", "none"),
        ("notgmail.com", "none"),
        ("gmail.com.example.org", "none"),
        ("127.0.0.1", "none"),
    ],
)
def test_what_is_known_goes_by_the_host(host: str, preset: str) -> None:
    assert by_host(host) == PRESETS[preset]
    assert Remote.parse(host, user="ann", password="x").quirks == PRESETS[preset]


def test_it_can_be_forced() -> None:
    mine = Quirks(no_capa=True)
    for chosen, found in ((mine, mine), ("ovh", PRESETS["ovh"]), ("none", Quirks())):
        remote = Remote.parse("pop.gmail.com", user="ann", password="x", quirks=chosen)
        assert remote.quirks == found
    with pytest.raises(UnsafeArgument, match="no such quirks"):
        Remote.parse("pop.gmail.com", user="ann", password="x", quirks="gmial")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], Quirks()),
        (["auto"], PRESETS["ovh"]),
        (["auto", "no-capa"], Quirks(no_capa=True, added=("LOGIN-DELAY 60",))),
        (["no-capa", "auto"], PRESETS["ovh"]),
        (["microsoft", "hide:top"], Quirks(two_step_auth=True, hidden=frozenset({"TOP"}))),
        (["add:LOGIN-DELAY:9", "add:TOP"], Quirks(added=("LOGIN-DELAY 9", "TOP"))),
    ],
)
def test_words_of_a_configuration(words: list[str], found: Quirks) -> None:
    assert parse(words, "ssl0.ovh.net") == found


@pytest.mark.parametrize("word", ["gmial", "hide:", "add", "codes", "NO-CAPA:", ""])
def test_words_that_mean_nothing(word: str) -> None:
    with pytest.raises(UnsafeArgument, match="wants auto"):
        parse([word])


@pytest.mark.parametrize(
    ("quirks", "text", "code", "retry"),
    [
        ("none", b"maildrop already locked", "IN-USE", True),
        ("none", b"Mailbox in use by another session", "IN-USE", True),
        ("none", b"[X-OWN] maildrop already locked", "X-OWN", False),
        ("none", b"bad password", None, False),
        ("none", b"Lockdown in sector 4", None, False),
        ("gmail", b"Lockdown in sector 4", "SYS/TEMP", True),
        ("netease", b"Download exceed limits", "SYS/TEMP", True),
    ],
)
def test_words_that_mean_a_response_code(
    quirks: str, text: bytes, code: str | None, retry: bool
) -> None:
    noop = Dialogue(quirks=PRESETS[quirks]).noop()
    next(noop)
    noop.send(b"")
    with pytest.raises(CommandFailed) as caught:
        noop.send(b"-ERR " + text + b"\r\n")
    assert (caught.value.code, caught.value.retry) == (code, retry)


def test_a_delay_between_logins_that_is_not_announced() -> None:
    dialogue = Dialogue(quirks=PRESETS["ovh"])
    asked = dialogue.ask_capabilities()
    next(asked)
    asked.send(b"")
    with pytest.raises(StopIteration):
        asked.send(b"-ERR\r\n")
    assert dialogue.capabilities.login_delay == 60


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"x", b"."]), min_size=1), st.data())
def test_line_ends_do_not_depend_on_the_pieces(parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    ends = LineEnds()
    found = ends.feed(text[:cut]) + ends.feed(text[cut:])
    assert found == text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def test_headers_by_whole_messages_where_top_does_not_work() -> None:
    text = b"+OK\r\nSubject: x\r\n\r\nbody\r\n" + b"y\r\n" * 50_000 + b".\r\n"

    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while command := await peer.hear():
            await peer.say(
                text if command.startswith(b"RETR") else ANSWERS.get(command, b"+OK\r\n")
            )

    def blocking(url: str) -> list[str]:
        with connect_blocking(url, quirks=Quirks(hidden=frozenset({"TOP"})), **IN_CLEAR) as client:
            found = [headers for _, headers in client.headers(client.messages())]
        return [headers["subject"] + headers.get_payload() for headers in found]

    async def main() -> None:
        async with scripted(script) as (port, peers):
            url = f"pop3://127.0.0.1:{port}"
            assert await asyncio.to_thread(blocking, url) == ["x", "x"]
            quirks = Quirks(hidden=frozenset({"TOP"}))
            async with connect(url, quirks=quirks, **IN_CLEAR) as client:
                listing = [message async for message in client.messages()]
                found = [headers async for _, headers in client.headers(listing)]
            assert [each["subject"] + each.get_payload() for each in found] == ["x", "x"]
            assert not any(line.startswith(b"TOP") for peer in peers for line in peer.heard)

    asyncio.run(main())


@both
def test_a_message_without_a_line_end_before_its_dot_is_never_whole(session: Session) -> None:
    """Exchange 2000. Whether the dot is the end nobody knows, so the wait ends by its time."""

    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while command := await peer.hear():
            if command.startswith(b"RETR"):
                await peer.say(b"+OK\r\nlast line.\r\n")
                await peer.until_gone()
            else:
                await peer.say(ANSWERS.get(command, b"+OK\r\n"))

    async def main() -> None:
        async with scripted(script) as (port, peers):
            with pytest.raises(DeadlineExceeded):
                await session(f"pop3://127.0.0.1:{port}", tls=NONE, timeout=0.2)
            assert b"QUIT" not in peers[0].heard

    asyncio.run(main())


@both
def test_a_server_that_is_silent_on_capa_is_asked_no_more(session: Session) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while (command := await peer.hear()) and command != b"CAPA":
            await peer.say(ANSWERS.get(command, b"+OK\r\n"))
        await peer.until_gone()

    async def main() -> None:
        async with scripted(script) as (port, _):
            url = f"pop3://127.0.0.1:{port}"
            with pytest.raises(DeadlineExceeded):
                await session(url, tls=NONE, timeout=0.2)
            assert len(await session(url, tls=NONE, quirks=Quirks(no_capa=True))) == 2

    asyncio.run(main())


async def fails_to_store(url: str) -> None:
    async with connect(url, **IN_CLEAR) as client:
        listing = [message async for message in client.messages()]
        async for _, body in client.retrieve_all(listing):
            await body.read()
            raise ZeroDivisionError  # a full disk, for instance


async def fails_to_store_blocking(url: str) -> None:
    def work() -> None:
        with connect_blocking(url, **IN_CLEAR) as client:
            for _, body in client.retrieve_all(client.messages()):
                body.read()
                raise ZeroDivisionError

    await asyncio.to_thread(work)


@pytest.mark.parametrize("work", [fails_to_store, fails_to_store_blocking])
def test_what_was_not_stored_is_not_hidden_by_quit(work: Any) -> None:
    """Gmail hides what RETR gave and QUIT ended, also without DELE: so no QUIT after a failure."""

    async def main() -> None:
        async with scripted(polite) as (port, peers):
            with pytest.raises(ZeroDivisionError):
                await work(f"pop3://127.0.0.1:{port}")
            assert b"QUIT" not in peers[0].heard

    asyncio.run(main())


def test_a_server_that_lists_its_messages_in_parts() -> None:
    """Gmail lists some hundreds; what comes next has other numbers, in another session."""
    parts = [b"1 a\r\n2 b\r\n", b"1 c\r\n", b""]

    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        part = parts.pop(0)
        while command := await peer.hear():
            answer = b"+OK\r\n" + part + b".\r\n" if command == b"UIDL" else None
            if command == b"LIST":
                answer = b"+OK\r\n" + part.translate(bytes.maketrans(b"abc", b"555")) + b".\r\n"
            await peer.say(answer or ANSWERS.get(command, b"+OK\r\n"))
            if command == b"QUIT":
                return

    async def main() -> None:
        found = []
        async with (
            scripted(script) as (port, _),
            connect(f"pop3://127.0.0.1:{port}", **IN_CLEAR) as client,
        ):
            while listing := [message async for message in client.messages()]:
                found += [message.unique_id for message in listing]
                await client.delete(*listing)
                await client.commit()
        assert found == ["a", "b", "c"]

    asyncio.run(main())
