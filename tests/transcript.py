"""Transcripts: dialogues in the form that the RFCs use, with several runners.

A transcript is a text file with these lines::

    # why, with the RFC's section
    # P-100 P-101             the requirements of docs/rfc.toml that it shows
    tls: no                   the session has no TLS (default: with TLS)
    password: tan staaf       of the user "mrose"; this one is the default
    mechanisms: PLAIN LOGIN   offered by the server; PLAIN is the default
    time stamp: <1896@a>      of the greeting, for APOP; none by default
    maildrop: 120 200         messages of these sizes, numbered from 1
    message:                  a message with the following lines, each after "| "
    login                     USER and PASS, both answered +OK
    C: STAT                   what the client sends, CRLF added; escapes as \\t or \\x00
    c: NOOP\\n                 the same without CRLF
    S: +OK *                  a line of the server; "*" stands for any text
    S: ~                      the rest of a multi-line response, termination octet included
    drop                      the client closes without QUIT
    closed                    the server closes

A last ``maildrop:`` after the dialogue gives the sizes of the remaining messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from restante.pop3.session import Policy

_SETTINGS = ("tls", "mechanisms", "time stamp", "password")
FOLDER = Path(__file__).parent / "transcripts"


def octets_of(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


def _filler(size: int) -> bytes:
    """Return a message with this number of octets on the wire."""
    head, line = b"Subject: filler\r\n\r\n", b"x" * 70 + b"\r\n"
    body = line * (size // len(line) + 1)
    return (head + body)[: size - 2] + b"\r\n"


@dataclass
class Step:
    """One line of the dialogue: ``kind`` is C, S, rest, drop or closed."""

    kind: str
    octets: bytes = b""

    def matches(self, line: bytes) -> bool:
        parts = (re.escape(part) for part in self.octets.split(b"*"))
        return re.fullmatch(b".*".join(parts), line, re.DOTALL) is not None


@dataclass
class Transcript:
    """A parsed file."""

    name: str
    tls: bool = True
    password: str = "tan staaf"
    mechanisms: tuple[str, ...] = ("PLAIN",)
    time_stamp: str = ""
    messages: list[bytes] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    left: list[int] | None = None
    """Sizes in the maildrop afterwards; None if the transcript does not give them."""

    @property
    def policy(self) -> Policy:
        return Policy(mechanisms=self.mechanisms)

    @property
    def sent(self) -> bytes:
        return b"".join(step.octets for step in self.steps if step.kind == "C")


def parse(path: Path) -> Transcript:
    transcript = Transcript(path.stem)
    lines = iter(path.read_text().splitlines())
    for line in lines:
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line or line.startswith("#"):
            continue
        if line.startswith("| ") or line == "|":
            transcript.messages[-1] += octets_of(line[2:]) + b"\r\n"
        elif key == "message":
            transcript.messages.append(b"")
        elif key in _SETTINGS:
            _set(transcript, key, value)
        elif key == "maildrop" and transcript.steps:
            transcript.left = [int(size) for size in value.split()]
        elif key == "maildrop":
            transcript.messages = [_filler(int(size)) for size in value.split()]
        else:
            transcript.steps += _steps(key, value, transcript.password)
    return transcript


def _set(transcript: Transcript, key: str, value: str) -> None:
    match key:
        case "tls":
            transcript.tls = value != "no"
        case "mechanisms":
            transcript.mechanisms = tuple(value.split())
        case "time stamp":
            transcript.time_stamp = value
        case "password":
            transcript.password = octets_of(value).decode()


def _steps(key: str, value: str, password: str) -> Iterator[Step]:
    match key:
        case "C":
            yield Step("C", octets_of(value) + b"\r\n")
        case "c":
            yield Step("C", octets_of(value))
        case "S" if value == "~":
            yield Step("rest")
        case "S":
            yield Step("S", octets_of(value))
        case "login":
            yield Step("C", b"USER mrose\r\n")
            yield Step("S", b"+OK *")
            yield Step("C", f"PASS {password}\r\n".encode())
            yield Step("S", b"+OK *")
        case "drop" | "closed":
            yield Step(key)
        case _:
            raise AssertionError(f"{key!r} is no word of a transcript")


def load(folder: str) -> list[Transcript]:
    found = [parse(path) for path in sorted((FOLDER / folder).glob("*.txt"))]
    assert found
    return found


def check(transcript: Transcript, lines: list[bytes], is_closed: bool) -> None:
    """Compare the server's output after the greeting with the transcript."""
    said = iter(lines)
    for step in transcript.steps:
        if step.kind == "S":
            line = next(said, b"(nothing)")
            assert step.matches(line), f"{transcript.name}: expected {step.octets!r}, got {line!r}"
        elif step.kind == "rest":
            assert b"." in said, f"{transcript.name}: no termination octet"
        elif step.kind == "closed":
            assert is_closed, f"{transcript.name}: not closed"
    assert list(said) == [], f"{transcript.name}: the server said more"
