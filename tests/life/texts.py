"""The messages of the life test: each with a text of its own, in every shape that mail has."""

from __future__ import annotations

from collections.abc import Callable

COUNTS = (0, 1, 7, 8, 9, 10, 63, 64, 65, 100, 1000)
"""Messages at once: zero, one, many, and both sides of every threshold that the store has."""

_MARK = b"X-Life: "
_LONG_LINE = 5000  # octets; far beyond the 998 of RFC 5322
_LARGE = 150_000  # octets; more than two of the pieces in which messages are read


def text(number: int, shape: str) -> bytes:
    """A message in CRLF text; ``number`` is in no other message of the same life."""
    head = _MARK + b"%d\r\nFrom: bob@example.net\r\nSubject: number %d\r\n" % (number, number)
    return head + SHAPES[shape](number)


def key(wire: bytes) -> bytes:
    """The text of a message, without the trace fields that a door puts before it."""
    begin = wire.find(_MARK)
    return wire[begin:] if begin > 0 else wire


def on_the_wire(stored: bytes) -> bytes:
    """What a client must get for a file with these octets: CRLF everywhere (RFC 1939 §11)."""
    lines = stored.replace(b"\r\n", b"\n").split(b"\n")
    last = lines.pop()
    return b"".join(line + b"\r\n" for line in (*lines, *filter(None, [last])))


SHAPES: dict[str, Callable[[int], bytes]] = {
    "short": lambda number: b"\r\nhello\r\n",
    "dots": lambda number: b"\r\n.\r\n..\r\n.begins with a dot\r\n\r\n.\r\n",
    "long lines": lambda number: b"\r\n" + b"x" * _LONG_LINE + b"\r\n.\r\n",
    "headers only": lambda number: b"",
    "8 bit": lambda number: b"\r\n" + bytes(range(0x80, 0x100)) + b"\r\n",
    "many lines": lambda number: b"\r\n" + b"line\r\n" * (number % 50),
    "large": lambda number: b"\r\n" + (b"." * 900 + b"\r\n") * (_LARGE // 902),
}
"""What follows the first header fields."""

LINE_ENDS: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda wire: wire,
    "LF": lambda wire: wire.replace(b"\r\n", b"\n"),
    "LF, the last one missing": lambda wire: wire.replace(b"\r\n", b"\n").removesuffix(b"\n"),
    "CRLF, the last one missing": lambda wire: wire.removesuffix(b"\r\n"),
    "mixed": lambda wire: wire.replace(b"\r\n", b"\n", 2),
}
"""How another program stores it."""
