"""Dialogues of our client with a scripted server, without sockets.

A transcript in ``transcripts/client`` has these lines::

    # why, with the RFC's section
    do: stat              an operation of ``Dialogue``, with its arguments
    C: STAT               the command it must send, without CRLF; escapes as \\t or \\x00
    S: +OK 2 320          the answer of the server, without CRLF
    s: +OK                an answer to which no CRLF is added
    result: (2, 320)      the result of the operation
    error: CommandFailed: text    or its exception; "*" stands for any text
    do: quirks gmail      the quirks from here on; see ``quirks``

If the first operation is missing, it is ``greeting`` with a positive answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restante.errors import RestanteError
from restante.pop3.dialogue import Answer, Capabilities, Dialogue, Procedure
from restante.pop3.listing import Listing, Message
from restante.pop3.quirks import PRESETS, Quirks
from restante.sasl.exchange import ClientLogin

from ..transcript import FOLDER, octets_of


@dataclass
class Operation:
    """One ``do``: the expected and sent octets in turn, and the result."""

    text: str
    turns: list[tuple[str, bytes]] = field(default_factory=list)
    result: str | None = None
    error: str | None = None


def parse(path: Path) -> list[Operation]:
    operations: list[Operation] = []
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line or line.startswith("#"):
            continue
        match key:
            case "do":
                operations.append(Operation(value))
            case "C" | "S":
                operations[-1].turns.append((key, octets_of(value) + b"\r\n"))
            case "s":
                operations[-1].turns.append(("S", octets_of(value)))
            case "result":
                operations[-1].result = value
            case "error":
                operations[-1].error = value
            case _:
                raise AssertionError(f"{key!r} is no word of a transcript")
    if operations[0].text != "greeting":
        operations.insert(0, Operation("greeting", [("S", b"+OK ready\r\n")]))
    return operations


def load() -> list[tuple[str, list[Operation]]]:
    found = [(path.stem, parse(path)) for path in sorted((FOLDER / "client").glob("*.txt"))]
    assert found
    return found


class Drive:
    """Runs operations; the server's octets arrive in the pieces that ``cut`` makes."""

    def __init__(self, cut: Callable[[bytes], list[bytes]]) -> None:
        self.dialogue = Dialogue()
        self._cut = cut

    def run(self, operation: Operation) -> None:
        try:
            result = self._exchange(self._begin(operation.text), operation.turns)
        except RestanteError as error:
            reported = f"{type(error).__name__}: {error}"
            pattern = ".*".join(re.escape(part) for part in (operation.error or "").split("*"))
            assert re.fullmatch(pattern, reported), f"{operation.text}: {reported}"
        else:
            assert operation.error is None, f"{operation.text} gave {result!r}"
            if operation.result is not None:
                result = list(result) if isinstance(result, Listing) else result
                assert repr(result) == operation.result

    def _exchange(self, procedure: Procedure[Any], turns: list[tuple[str, bytes]]) -> Any:
        said = self._said(turns)
        expected = iter([octets for kind, octets in turns if kind == "C"])
        pending = b""
        try:
            wanted = next(procedure)
            while True:
                if wanted is None:
                    assert not pending, f"did not send {pending!r}"
                    piece = next(said, None)
                    assert piece is not None, "waits for more"
                    wanted = procedure.send(piece)
                    continue
                while wanted:
                    pending = pending or next(expected, b"")
                    assert pending, f"sent {wanted!r}"
                    assert wanted.startswith(pending), f"sent {wanted!r}, expected {pending!r}"
                    wanted, pending = wanted.removeprefix(pending), b""
                wanted = procedure.send(b"")
        except StopIteration as end:
            assert next(expected, None) is None, "did not send it all"
            for piece in said:  # unsolicited, arrived with the last answer
                self.dialogue._unread += piece
            return end.value

    def _said(self, turns: list[tuple[str, bytes]]) -> Iterator[bytes]:
        """Join the octets that a server sends between two commands."""
        together = b""
        for kind, octets in [*turns, ("C", b"")]:
            if kind == "S":
                together += octets
            elif together:
                yield from self._cut(together)
                together = b""

    def _begin(self, text: str) -> Procedure[Any]:
        name, *arguments = text.split(" ")
        dialogue = self.dialogue
        match name:
            case "capabilities":
                return dialogue.request_capabilities()
            case "with":
                dialogue.capabilities = Capabilities({tag: () for tag in arguments})
                return nothing()
            case "quirks":
                dialogue.quirks = quirks(arguments)
                return nothing()
            case "log_in_by":
                mechanism, who = arguments
                user, secret = who.split("/")
                password, token = ("", secret) if "AUTH" in mechanism else (secret, "")
                return dialogue.log_in(ClientLogin(user, password, token, mechanism=mechanism))
            case "headers":
                return whole(dialogue, messages(arguments))
            case "log_in":
                user, password = octets_of(" ".join(arguments)).decode().split("/")
                return dialogue.log_in(ClientLogin(user, password))
            case "retrieve":
                return whole(dialogue, messages(arguments), "RETR")
            case "top":
                lines, *numbers = arguments
                return whole(dialogue, messages(numbers), octets_of(f"TOP {lines}").decode())
            case "delete":
                return dialogue.delete(messages(arguments))
        procedure: Procedure[Any] = getattr(dialogue, name)()
        return procedure


def messages(arguments: list[str]) -> list[Message]:
    """Parse messages such as ``1`` or ``1/320``: a number with a size."""
    parts = [text.partition("/") for text in arguments]
    return [Message(int(number), None, int(size or 100)) for number, _, size in parts]


def nothing() -> Procedure[None]:
    yield from ()


def quirks(arguments: list[str]) -> Quirks:
    """Parse the name of a preset, or fields: ``no_capa added=TOP,LOGIN-DELAY_60``."""
    if arguments[0] in PRESETS:
        return PRESETS[arguments[0]]
    given: dict[str, Any] = {}
    for name, _, value in (text.partition("=") for text in arguments):
        given[name] = tuple(value.replace("_", " ").split(",")) if value else True
    return Quirks(**given)


def whole(dialogue: Dialogue, wanted: list[Message], command: str = "") -> Procedure[list[object]]:
    """Read bodies as the clients do, or the error of the server."""
    found: list[object] = []
    asked = (
        dialogue.request_messages(wanted, command) if command else dialogue.request_headers(wanted)
    )
    retrieval = yield from asked
    while (answer := (yield from dialogue.next_message(retrieval))) is not None:
        if answer.error is not None:
            found.append(str(answer.error))
        else:
            found.append((yield from body(dialogue, answer)))
    return found


def body(dialogue: Dialogue, answer: Answer) -> Procedure[bytes]:
    octets = b""
    while piece := (yield from dialogue.piece(answer)):
        octets += piece
    return octets
