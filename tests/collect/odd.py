"""A server with quirks that a test chooses; it removes marked messages at QUIT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..client.shells import Peer

MAIL = {word: f"Subject: {word}\r\n\r\n{word}\r\n".encode() for word in ("one", "two", "three")}


@dataclass
class Odd:
    """Messages by unique-id."""

    mail: dict[str, bytes] = field(default_factory=lambda: dict(MAIL))
    part: int | None = None
    """Most messages that it lists of those that were not read before."""
    announced: tuple[str, ...] = ("UIDL", "TOP")
    sizes: dict[str, int] = field(default_factory=dict)
    """Wrong sizes that are announced, by unique-id."""
    answer: Callable[[str, bytes], bytes] = lambda command, usual: usual
    """Returns the answer for a command and its usual answer; empty is silence."""
    closes: Callable[[str], bool] = lambda command: False
    """Returns whether it closes the connection instead of answering."""
    loses_commands: bool = False
    """Loses all pipelined commands but the first."""
    removes_what_was_read: bool = False
    logins: int = 0
    read: list[str] = field(default_factory=list)
    """Retrieved unique-ids in order."""
    heard: list[str] = field(default_factory=list)
    """All commands, with unique-ids instead of message-numbers."""
    removed: dict[str, bytes] = field(default_factory=dict)
    """The messages removed last, by unique-id."""

    async def __call__(self, peer: Peer) -> None:
        hidden = set(self.read) if self.part is not None else set()
        listed = [each for each in self.mail if each not in hidden][: self.part]
        gone: set[str] = set()
        await peer.say(b"+OK ready\r\n")
        while heard := (await peer.hear()).decode():
            if self.loses_commands:
                peer.reader._buffer.clear()  # type: ignore[attr-defined]
            word, _, argument = heard.partition(" ")
            named = listed[int(argument.split()[0]) - 1] if argument[:1].isdigit() else ""
            self.heard.append(f"{word} {named}" if named else heard)
            if self.closes(self.heard[-1]):
                return
            usual = self._usual(word, named, listed, gone)
            await peer.say(self.answer(heard, usual))
            if heard == "QUIT":
                self._update(gone)
                return

    def _update(self, gone: set[str]) -> None:
        self.removed = {key: each for key, each in self.mail.items() if key in gone}
        self.mail = {key: each for key, each in self.mail.items() if key not in gone}

    def _usual(self, word: str, named: str, listed: Sequence[str], gone: set[str]) -> bytes:
        match word:
            case "CAPA":
                return "\r\n".join(["+OK", *self.announced, ".", ""]).encode()
            case "LIST":
                sizes = [self.sizes.get(each, len(self.mail[each])) for each in listed]
                return _listing(sizes)
            case "UIDL":
                return _listing(listed)
            case "RETR":
                self.read.append(named)
                gone |= {named} if self.removes_what_was_read else set()
                return b"+OK\r\n" + self.mail[named] + b".\r\n"
            case "TOP":
                return b"+OK\r\n" + self.mail[named].partition(b"\r\n\r\n")[0] + b"\r\n\r\n.\r\n"
            case "DELE":
                gone.add(named)
            case "RSET":
                gone.clear()
        self.logins += word in ("PASS", "AUTH")
        return b"+OK\r\n"


def _listing(rows: Sequence[object]) -> bytes:
    return "\r\n".join(
        ["+OK", *(f"{at} {each}" for at, each in enumerate(rows, 1)), ".", ""]
    ).encode()
