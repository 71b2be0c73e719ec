"""Other programs in a Maildir: a mail server that delivers, an IMAP server, a careless operator."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from .model import Order
from .texts import key, on_the_wire

_YEAR = 365 * 86_400  # seconds
_LONGEST = 240  # octets of a name; leaves room for a number and flags
_SUBDIRECTORIES = ("cur", "new", "tmp")


def directory(maildir: Path, folder: str) -> Path:
    """Return the directory of a folder (Maildir++)."""
    return maildir if folder == "INBOX" else maildir / f".{folder}"


def make(place: Path) -> None:
    """Make a folder, as an IMAP server does."""
    for each in _SUBDIRECTORIES:
        (place / each).mkdir(parents=True, exist_ok=True, mode=0o700)


# -- File names, each of them new


def name(number: int) -> str:
    """Return a name in the form that Maildir recommends."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{seconds}.M{nanoseconds // 1000:06}P{os.getpid()}N{number}.other"


Namer = Callable[[int, bytes], str]
"""Makes a name from a number and the octets of the message."""

WRONG: dict[str, Namer] = {
    "W= too large in the names": lambda number, stored: f"{name(number)},W={10 * len(stored)}",
    "W= too small in the names": lambda number, stored: f"{name(number)},W={len(stored) // 2}",
}
"""Names that announce a wrong size."""

LAST_YEAR = "names of last year"

NAMES: dict[str, Namer] = {
    "plain names": lambda number, stored: name(number),
    "S= in the names": lambda number, stored: f"{name(number)},S={len(stored)}",
    "S= and W= in the names": lambda number, stored: (
        f"{name(number)},S={len(stored)},W={len(on_the_wire(stored))}"
    ),
    "names without a time": lambda number, stored: f"message-{number}-{secrets.token_hex(4)}.other",
    LAST_YEAR: lambda number, stored: (
        f"{int(time.time()) - _YEAR}.{number}.{secrets.token_hex(4)}.other"
    ),
    "names with umlauts": lambda number, stored: (
        f"{int(time.time())}.ü{number}.{secrets.token_hex(4)}"
    ),
    "names as long as can be": lambda number, stored: name(number).ljust(_LONGEST, "x"),
    **WRONG,
}


def unique_part(file: str) -> str:
    """Return the part of a name that no program changes."""
    return file.partition(":")[0].partition(",")[0]


def order(file: str) -> Order:
    """Return the order in a listing that follows from a name."""
    seconds = re.match("[0-9]+", file)
    return Order(earliest=int(seconds[0]), latest=int(seconds[0])) if seconds else Order()


def deliver(place: Path, file: str, stored: bytes, *, is_read: bool = False) -> None:
    """Store a message through tmp/, as a mail server does, or if ``is_read`` an IMAP server."""
    make(place)
    temporary = place / "tmp" / file[:100]
    temporary.write_bytes(stored)
    temporary.rename(place / "cur" / f"{file}:2,S" if is_read else place / "new" / file)


# -- An IMAP server


def files(place: Path) -> Iterator[Path]:
    """Yield the messages in new/ and cur/."""
    for directory in ("new", "cur"):
        if (place / directory).is_dir():
            yield from (path for path in (place / directory).iterdir() if path.name[0] != ".")


def by_key(place: Path) -> dict[bytes, Path]:
    """Return the files by the text in them."""
    paths = {}
    for path in files(place):
        with suppress(FileNotFoundError):  # removed by an UPDATE meanwhile
            paths[key(on_the_wire(path.read_bytes()))] = path
    return paths


def with_flags(path: Path, flags: str) -> Path:
    """Return the path after a reader has set these flags; it is in cur/."""
    return path.parent.parent / "cur" / f"{path.name.partition(':')[0]}:2,{flags}"


def set_flags(path: Path, flags: str) -> None:
    path.rename(with_flags(path, flags))


def copy(path: Path, place: Path, number: int) -> str:
    """Link a message into another folder under a new name; returns the name."""
    make(place)
    new = name(number)
    os.link(path, place / "cur" / f"{new}:2,S")
    return new


def move(path: Path, place: Path) -> None:
    """Move a message into another folder, under the same name."""
    make(place)
    path.rename(place / path.parent.name / path.name)


def count(maildir: Path, octets: int, messages: int) -> None:
    """Add a line to the count of Maildir++, if there is one."""
    size_file = maildir / "maildirsize"
    if size_file.exists():
        with size_file.open("a") as file:
            file.write(f"{octets} {messages}\n")


# -- A careless operator


def _lose(file: Path, old: Path) -> None:
    file.unlink(missing_ok=True)


def _restore(file: Path, old: Path) -> None:
    if old.exists():
        shutil.copy(old, old.with_suffix(".new"))
        old.with_suffix(".new").replace(file)


def _keep(file: Path, old: Path) -> None:
    if file.exists():
        shutil.copy(file, old)


def _tear(file: Path, old: Path) -> None:
    if file.exists():
        os.truncate(file, file.stat().st_size // 2)


def _garble(file: Path, old: Path) -> None:
    if file.exists():
        octets = bytearray(file.read_bytes())
        octets[len(octets) // 2 : len(octets) // 2 + 1] = b"?"
        file.write_bytes(octets)


def _empty(file: Path, old: Path) -> None:
    file.write_bytes(b"")


HARM: dict[str, Callable[[Path, Path], None]] = {
    "lost": _lose,
    "copied for later": _keep,
    "replaced by an older copy": _restore,
    "torn in the middle": _tear,
    "garbled": _garble,
    "emptied": _empty,
}
"""Ways to damage a cache; the arguments are its path and that of a copy."""
