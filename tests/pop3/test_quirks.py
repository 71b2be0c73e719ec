"""Quirks of servers, configured or detected; see also the transcripts ``quirk_*.txt``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.client.asynchronous import connect
from restante.client.blocking import connect_blocking
from restante.client.remote import Remote
from restante.errors import CommandFailed, DeadlineExceeded, RestanteError, UnsafeArgument
from restante.pop3.dialogue import Dialogue
from restante.pop3.quirks import PRESETS, LineEndings, Quirks, by_host, parse

from ..client.shells import ANSWERS, NONE, UNUSED, Peer, Session, both, opened, polite, scripted

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
def test_known_quirks_depend_on_the_host(host: str, preset: str) -> None:
    assert by_host(host) == PRESETS[preset]
    assert Remote.parse(host, user="ann", password="x").quirks == PRESETS[preset]


def test_it_can_be_forced() -> None:
    mine = Quirks(no_capa=True)
    for chosen, found in ((mine, mine), ("ovh", PRESETS["ovh"]), ("none", Quirks())):
        remote = Remote.parse("pop.gmail.com", user="ann", password="x", quirks=chosen)
        assert remote.quirks == found
    with pytest.raises(UnsafeArgument, match="unknown quirks"):
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
    with pytest.raises(UnsafeArgument, match="must be auto"):
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
def test_texts_that_imply_a_response_code(
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
    asked = dialogue.request_capabilities()
    next(asked)
    asked.send(b"")
    with pytest.raises(StopIteration):
        asked.send(b"-ERR\r\n")
    assert dialogue.capabilities.login_delay == 60


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"x", b"."]), min_size=1), st.data())
def test_line_ends_do_not_depend_on_the_pieces(parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    ends = LineEndings()
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
            found = [headers for _, headers in client.headers(client.list())]
        return [headers["subject"] + headers.get_payload() for headers in found]

    async def main() -> None:
        async with scripted(script) as (port, peers):
            url = f"pop3://127.0.0.1:{port}"
            assert await asyncio.to_thread(blocking, url) == ["x", "x"]
            quirks = Quirks(hidden=frozenset({"TOP"}))
            async with connect(url, quirks=quirks, **IN_CLEAR) as client:
                listing = await client.list()
                found = [headers async for _, headers in client.headers(listing)]
            assert [each["subject"] + each.get_payload() for each in found] == ["x", "x"]
            assert not any(line.startswith(b"TOP") for peer in peers for line in peer.heard)

    asyncio.run(main())


@both
def test_a_message_without_a_line_end_before_its_dot_is_never_whole(session: Session) -> None:
    """Exchange 2000. It is unknown whether the dot is the end, so the read times out."""

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
        listing = await client.list()
        async for _, body in client.retrieve_all(listing):
            await body.read()
            raise ZeroDivisionError  # a full disk, for instance


async def fails_to_store_blocking(url: str) -> None:
    def work() -> None:
        with connect_blocking(url, **IN_CLEAR) as client:
            for _, body in client.retrieve_all(client.list()):
                body.read()
                raise ZeroDivisionError

    await asyncio.to_thread(work)


@pytest.mark.parametrize("work", [fails_to_store, fails_to_store_blocking])
def test_quit_hides_no_unstored_message(work: Any) -> None:
    """Gmail hides retrieved messages after QUIT even without DELE: so no QUIT after a failure."""

    async def main() -> None:
        async with scripted(polite) as (port, peers):
            with pytest.raises(ZeroDivisionError):
                await work(f"pop3://127.0.0.1:{port}")
            assert b"QUIT" not in peers[0].heard

    asyncio.run(main())


def test_a_server_that_lists_its_messages_in_parts() -> None:
    """Gmail lists a few hundred messages; the next session lists others, with new numbers."""
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
            while listing := await client.list():
                found += [message.unique_id for message in listing]
                await client.delete(*listing)
                await client.commit()
        assert found == ["a", "b", "c"]

    asyncio.run(main())


# -- The error names the quirk that helps

Script = Callable[[Peer], Awaitable[None]]
CAN = {"SASL": b"+OK\r\nSASL PLAIN\r\n.\r\n", "TOP": b"+OK\r\nTOP\r\nUIDL\r\n.\r\n"}
HEADERS = b"+OK\r\nSubject: x\r\n\r\n.\r\n"


def silent_on_capa(command: bytes) -> bytes | None:
    return b"" if command == b"CAPA" else None


def auth_on_its_line(command: bytes) -> bytes | None:
    """Answers AUTH only without an initial response, like Exchange Online."""
    if command == b"CAPA":
        return CAN["SASL"]
    if command.startswith(b"AUTH PLAIN "):
        return b"-ERR Protocol error. Connection is closed.\r\n"
    return b"+ \r\n" if command == b"AUTH PLAIN" else None


def no_auth_at_all(command: bytes) -> bytes | None:
    if command == b"CAPA":
        return CAN["SASL"]
    return b"-ERR unknown command\r\n" if command.startswith(b"AUTH") else None


def once_a_minute(command: bytes) -> bytes | None:
    is_password = command.startswith(b"PASS")
    return b"-ERR login interval is 60 seconds\r\n" if is_password else None


def no_top(command: bytes) -> bytes | None:
    if command == b"CAPA":
        return CAN["TOP"]
    if command.startswith(b"RETR"):
        return HEADERS
    return b"-ERR command not implemented\r\n" if command.startswith(b"TOP") else None


def top_twice(command: bytes) -> bytes | None:
    if command == b"CAPA":
        return CAN["TOP"]
    if command.startswith(b"RETR"):
        return HEADERS
    return HEADERS + HEADERS if command.startswith(b"TOP") else None


def sasl_only(command: bytes) -> bytes | None:
    return b"+OK\r\nSASL CRAM-MD5\r\n.\r\n" if command == b"CAPA" else None


def odd(answer: Callable[[bytes], bytes | None]) -> Script:
    """Return a server with this answer to a command; b"" hangs, None is the usual answer."""

    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while command := await peer.hear():
            said = answer(command)
            if said == b"":
                await peer.until_gone()
                return
            await peer.say(said or ANSWERS.get(command, b"+OK\r\n"))
            if command == b"QUIT":
                return

    return script


async def loses_commands(peer: Peer) -> None:
    """Answer only the first command of each segment."""
    await peer.say(b"+OK ready\r\n")
    while segment := await peer.reader.read(65_536):
        command = segment.partition(b"\r\n")[0]
        await peer.say(ANSWERS.get(command, b"+OK\r\n"))


async def ends_lines_with_lf(peer: Peer) -> None:
    await peer.say(b"+OK ready\n")
    while command := await peer.hear():
        answer = HEADERS if command.startswith(b"RETR") else ANSWERS.get(command, b"+OK\r\n")
        await peer.say(answer.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("kind", ["asyncio", "blocking"])
@pytest.mark.parametrize(
    ("script", "before", "word"),
    [
        (odd(silent_on_capa), [], "no-capa"),
        (odd(auth_on_its_line), [], "two-step-auth"),
        (odd(no_auth_at_all), ["two-step-auth"], "hide:SASL"),
        (odd(once_a_minute), [], "add:LOGIN-DELAY:60"),
        (odd(no_top), [], "hide:TOP"),
        (odd(top_twice), [], "hide:TOP"),
        (odd(sasl_only), [], "add:USER"),
        (loses_commands, [], "hide:PIPELINING"),
        (ends_lines_with_lf, [], "bare-line-feeds"),
    ],
)
def test_an_error_names_the_quirk_that_helps(
    script: Script, before: list[str], word: str, kind: str
) -> None:
    """The configuration and Python get equivalent hints; with the quirk the session works, or
    the collector waits before the next one."""

    async def visit(port: int, quirks: Quirks) -> None:
        url = f"pop3://127.0.0.1:{port}"
        async with opened(kind, url, quirks=quirks, timeout=0.3, **IN_CLEAR) as client:
            listing = await client.listing()
            async for _ in client.each("headers" if "TOP" in word else "retrieve_all", listing):
                pass
            await client.call("noop")

    async def main() -> None:
        async with scripted(script) as (port, _):
            with pytest.raises(RestanteError) as caught:
                await visit(port, parse(before))
            found = re.search(
                r"set the quirk (\S+) \(in Python (Quirks\(.*?\))\)(?:;|$)", str(caught.value)
            )
            assert found is not None, str(caught.value)
            assert found[1] == word
            assert parse([word]) == eval(found[2], {"Quirks": Quirks})
            if not word.startswith("add:LOGIN-DELAY"):
                await visit(port, parse([*before, word]))

    asyncio.run(main())


def test_a_password_that_is_not_ascii_names_the_quirk() -> None:
    async def main() -> None:
        async with scripted(polite) as (port, _):
            url, options = f"pop3://127.0.0.1:{port}", {**IN_CLEAR, "password": "pässword"}
            with pytest.raises(UnsafeArgument, match="set the quirk utf8-login "):
                async with connect(url, **options):
                    pass
            async with connect(url, quirks=parse(["utf8-login"]), **options):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    "said",
    [
        b"-ERR [AUTH] syntax error, too often\r\n",  # its response code is clear
        b"-ERR authentication failed\r\n",
        b"-ERR maildrop is already locked, wait\r\n",
        b"-ERR\r\n",
        b"",
    ],
)
@both
def test_other_failures_name_no_quirk(said: bytes, session: Session) -> None:
    def refuses(command: bytes) -> bytes | None:
        return said if command.startswith(b"PASS") else None

    async def main() -> None:
        async with scripted(odd(refuses)) as (port, _):
            with pytest.raises(RestanteError) as caught:
                await session(f"pop3://127.0.0.1:{port}", tls=NONE, timeout=0.2)
        assert "quirk" not in str(caught.value)

    asyncio.run(main())


@both
def test_an_end_after_capa_is_not_of_capa(session: Session) -> None:
    def ends(command: bytes) -> bytes | None:
        return ANSWERS[b"CAPA"] + b"-ERR idle\r\n" if command == b"CAPA" else None

    async def main() -> None:
        async with scripted(odd(ends)) as (port, _):
            with pytest.raises(RestanteError, match="ended the session") as caught:
                await session(f"pop3://127.0.0.1:{port}", tls=NONE, timeout=0.2)
        assert "quirk" not in str(caught.value)

    asyncio.run(main())
