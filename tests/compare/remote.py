"""A remote maildrop that persists between sessions, each of which has its own attack."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from restante.testing_hostile import Attack, HostileServer, _listing, _Responses

_POLITE = Attack(what="")
_ALL_OF_IT = re.compile(r"TOP (\d+) \d{5,}")  # fetchmail's RETR
_PAUSE = 0.25  # seconds between two slow octets
_FLOOD = 65_536  # octets sent at once
_BREATH = 0.005  # seconds between two floods
_TILL_IT_IS_DONE = 0.05  # seconds, for what a client does with half an answer


@dataclass(frozen=True, slots=True)
class Kill:
    """Kills the client after a number of commands."""

    at: int
    is_half: bool
    """Whether after half of the answer instead of before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The behaviour of the server in one session."""

    attack: Attack = _POLITE
    removes: bool = True
    """Whether QUIT removes marked messages."""
    renames: bool = False
    """Whether every message has a new unique-id."""
    names: Callable[[int], bytes] | None = None
    """Wrong unique-ids, by message-number."""
    notifies: bool = False
    """Whether TLS is closed first, so that the end looks intended."""
    silent: str = ""
    """The command after which the server is silent."""
    drips: str = ""
    """The command whose answer is sent octet by octet from its middle on."""
    floods: str = ""
    """The command that is answered by an endless line."""
    kill: Kill | None = None


@dataclass(slots=True)
class Fate:
    """The state of the client's process."""

    kill: Callable[[], None] = field(default=lambda: None)
    was_reached: bool = False
    """The point at which the session is disturbed."""


class Remote(HostileServer):
    """A maildrop: unique-ids in order, with octets in wire form."""

    def __init__(self, messages: Mapping[str, bytes]) -> None:
        super().__init__(_POLITE)
        self.left = {
            unique_id: text if text.endswith(b"\r\n") or not text else text + b"\r\n"
            for unique_id, text in messages.items()
        }
        self.session = Session()
        self.fate = Fate()

    def _serve(self, connection: socket.socket) -> None:
        session, ids = self.session, list(self.left)
        self._politely(session)
        responses = _Responses(connection, self.attack)
        marked: set[int] = set()
        try:
            responses.send(self._answer("greeting", b"", marked))
            with connection.makefile("rb") as commands:
                for count, line in enumerate(commands):
                    command = line.removesuffix(b"\r\n")
                    self.heard.append(command)
                    text = self._understood(command)
                    answer = self._answer(text, command, marked)
                    if session.kill is not None and session.kill.at == count:
                        self._kill(session.kill, text, answer, marked, responses)
                        return
                    if text == session.silent:
                        while connection.recv(_FLOOD):
                            pass
                    _trickle(text, answer or b"", session, responses)
                    if text == "QUIT" and session.removes:
                        self.removed |= marked
                    responses.send(answer)
                    if text in ("QUIT", self.attack.ends_at):
                        return
        except ConnectionAbortedError:
            self.fate.was_reached = True  # the cut
            if session.notifies and isinstance(connection, ssl.SSLSocket):
                connection.settimeout(1)
                with suppress(OSError, ValueError):
                    connection.unwrap()
        finally:
            for number in self.removed:
                del self.left[ids[number - 1]]
            self.removed.clear()

    def _politely(self, session: Session) -> None:
        """Return the normal answer to a command, and the failure to cause."""
        texts = tuple(self.left.values())
        self.attack = replace(session.attack, messages=texts)
        names = [
            session.names(at)
            if session.names is not None
            else b"another-" * session.renames + unique_id.encode()
            for at, unique_id in enumerate(self.left, 1)
        ]
        self._correct_responses |= {
            "STAT": b"+OK %d %d\r\n" % (len(texts), sum(map(len, texts))),
            "LIST": _listing(*(b"%d %d" % (at, len(text)) for at, text in enumerate(texts, 1))),
            "UIDL": _listing(*(b"%d %s" % each for each in enumerate(names, 1))),
        }

    def _understood(self, command: bytes) -> str:
        text = command.decode("latin-1")
        whole = None if "TOP" in self.attack.says else _ALL_OF_IT.fullmatch(text)
        return text if whole is None else f"RETR {whole[1]}"

    def _kill(
        self, kill: Kill, text: str, answer: bytes | None, marked: set[int], responses: _Responses
    ) -> None:
        self.fate.was_reached = True
        if kill.is_half:
            if text == "QUIT":
                self.removed |= marked
            responses.send(answer and answer[: len(answer) // 2])
            time.sleep(_TILL_IT_IS_DONE)
        self.fate.kill()


def _trickle(text: str, answer: bytes, session: Session, responses: _Responses) -> None:
    """Send half of an answer, then continue until the client ends."""
    if text not in (session.drips, session.floods):
        return
    half = len(answer) // 2
    responses.send(answer[:half])
    while text == session.floods:
        responses.send(b"x" * _FLOOD)
        time.sleep(_BREATH)
    for octet in answer[half:]:
        responses.send(bytes([octet]))
        time.sleep(_PAUSE)
