"""The messages of the life test: each is unique, and they have every shape of mail."""

from __future__ import annotations

from collections.abc import Callable

COUNTS = (0, 1, 7, 8, 9, 10, 63, 64, 65, 100, 1000)
"""Numbers of messages: zero, one, many, and both sides of every threshold of the store."""

_MARK = b"X-Life: "
_LONG_LINE = 5000  # octets; far beyond the 998 of RFC 5322
_LARGE = 150_000  # octets; more than two pieces of the size in which messages are read


def text(number: int, shape: str) -> bytes:
    """Return a message with CRLF line ends; ``number`` must be unique in a life."""
    head = _MARK + b"%d\r\nFrom: bob@example.net\r\nSubject: number %d\r\n" % (number, number)
    return head + SHAPES[shape](number)


def key(wire: bytes) -> bytes:
    """Return a message without the trace fields that the server puts before it."""
    begin = wire.find(_MARK)
    return wire[begin:] if begin > 0 else wire


def on_the_wire(stored: bytes) -> bytes:
    """Return what a client must get for a file with these octets (RFC 1939 §11)."""
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
"""The rest of a message after the first header fields, by shape."""

LINE_ENDS: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda wire: wire,
    "LF": lambda wire: wire.replace(b"\r\n", b"\n"),
    "LF, the last one missing": lambda wire: wire.replace(b"\r\n", b"\n").removesuffix(b"\n"),
    "CRLF, the last one missing": lambda wire: wire.removesuffix(b"\r\n"),
    "mixed": lambda wire: wire.replace(b"\r\n", b"\n", 2),
}
"""The forms in which other programs store a message."""
