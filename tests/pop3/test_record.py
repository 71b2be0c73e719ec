"""The record of a session never contains a secret."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

from restante.pop3.record import Record

from ..client.shells import ANSWERS, NONE, Peer, Session, both, scripted

SECRET = "tan staaf"


def echoing(capabilities: bytes) -> Callable[[Peer], Any]:
    """Run a server that repeats everything it receives."""

    async def script(peer: Peer) -> None:
        await peer.say(b"+OK ready\r\n")
        while command := await peer.hear():
            answer = {**ANSWERS, b"CAPA": capabilities}.get(command)
            await peer.say(answer or b"+OK [X-1] you said " + command + b"\r\n")

    return script


@both
@pytest.mark.parametrize("capabilities", [b"-ERR\r\n", b"+OK\r\nSASL PLAIN\r\n.\r\n"])
def test_no_form_of_the_password_is_recorded(session: Session, capabilities: bytes) -> None:
    reported: list[str] = []

    async def main() -> None:
        async with scripted(echoing(capabilities)) as (port, _):
            await session(f"pop3://127.0.0.1:{port}", tls=NONE, record=reported.append)

    asyncio.run(main())
    text = "\n".join(reported)
    assert SECRET not in text
    assert b64encode(SECRET.encode()).decode()[:6] not in text
    assert b64encode(b"\0mrose\0" + SECRET.encode()).decode()[:6] not in text
    login = "C: AUTH PLAIN ***" if b"SASL" in capabilities else "C: PASS ***"
    assert f"{login}\nS: +OK [X-1] ***" in text
    assert "C: RETR 1\nS: +OK\n" in text
    assert reported[-2:] == ["C: QUIT", "S: +OK [X-1] you said QUIT"]


def test_a_server_that_repeats_the_password_later() -> None:
    reported: list[str] = []
    record = Record(reported.append)
    with record.login(SECRET):
        pass
    record.received(b"+OK remember: tan staaf")
    assert reported == ["S: +OK remember: ***"]


def test_control_characters_are_shown_as_such() -> None:
    reported: list[str] = []
    Record(reported.append).received("+OK \x1b[2J \u202e \r \xe9".encode() + b"\xff")
    assert reported == ["S: +OK \\x1b[2J \\u202e \\r \xe9\\xff"]


def test_a_record_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="record must be a function, not str"):
        Record("path")  # type: ignore[arg-type]
