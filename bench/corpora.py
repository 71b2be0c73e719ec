"""Maildirs to measure with: always the same mail, LF- and CRLF-stored.

Names carry S= and W=, which is the best case of every server that reads them.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import sys
from contextlib import suppress
from pathlib import Path

OWNER = 5000  # user and group of all mail, as Dovecot requires
SHAPES = {  # messages, octets of each on the wire
    "d4k": (20_000, 4096),
    "d100k": (2_000, 102_400),
    "d25m": (20, 25 * 2**20),
    "r25m": (20, 25 * 2**20),  # no line begins with a dot
    "c10k": (10_000, 4096),
    "n10": (10, 600),
    "n1k": (1_000, 600),
    "n10k": (10_000, 600),
    "n100k": (100_000, 600),
    "n1m": (1_000_000, 600),
}
SMALL_USERS = 100
SLOW_USERS = 10_000
_RAW = base64.b64encode(random.Random(1939).randbytes(2**20)).decode()
_LINES = [_RAW[at : at + 76] for at in range(0, len(_RAW) - 76, 76)]
for _at in range(7, len(_LINES), 997):
    _LINES[_at] = "." + _LINES[_at][1:]  # rare, as in real mail
for _at in range(29, len(_LINES), 97):
    _LINES[_at] = ""
_TEXT = ("\r\n".join(_LINES) + "\r\n").encode()


def message(number: int, size: int, *, dotted: bool = True) -> bytes:
    """CRLF text of ``size`` octets; another part of the same text for each number."""
    head = (
        f"Return-Path: <sender{number}@example.org>\r\nFrom: <sender{number}@example.org>\r\n"
        f"To: user@example.net\r\nSubject: benchmark message number {number}\r\n"
        "Date: Mon, 23 Nov 2026 10:00:00 +0000\r\n"
        f"Message-ID: <{number}.bench@example.org>\r\n\r\n"
    ).encode()
    begin = _TEXT.index(b"\r\n", number * 1309 % (len(_TEXT) // 2)) + 2
    text = head + _TEXT[begin : begin + size]
    if len(text) < size:
        text += _TEXT * (size // len(_TEXT) + 1)
    if not dotted:
        text = text.replace(b"\r\n.", b"\r\n,")
    return text[: size - 3].rstrip(b"\r\n") + b"!\r\n"


def maildir(path: Path, count: int, size: int, *, crlf: bool, dotted: bool = True) -> None:
    if path.exists():
        return
    making = path.with_name("making")
    shutil.rmtree(making, ignore_errors=True)
    for name in ("cur", "new", "tmp"):
        (making / name).mkdir(parents=True)
    for number in range(count):
        wire = message(number, size, dotted=dotted)
        stored = wire if crlf else wire.replace(b"\r\n", b"\n")
        name = f"{1_700_000_000 + number}.M{number:06}P1.bench,S={len(stored)},W={len(wire)}"
        name += ":2,S" if dotted else ",D=0:2,S"  # the fields that our own delivery writes
        (making / "cur" / name).write_bytes(stored)
    making.rename(path)
    give_to_owner(path)


def give_to_owner(path: Path) -> None:
    if os.geteuid() == 0:
        for folder, _, names in os.walk(path.parent):
            os.chown(folder, OWNER, OWNER)
            for name in names:
                os.chown(f"{folder}/{name}", OWNER, OWNER)


def make(root: Path, *names: str) -> None:
    """``small`` is many users with three messages, ``slow`` many with a large one.

    Others are one user each: ``d4k_lf``, ``d4k_crlf`` ...
    """
    for name in names:
        if name == "small":
            for at in range(SMALL_USERS):
                maildir(root / f"u{at}" / "Maildir", 3, 2048, crlf=False)
        elif name == "slow":  # a large message each, which is the same file
            make(root, "d25m_lf")
            source = min((root / "d25m_lf" / "Maildir" / "cur").iterdir())
            for at in range(SLOW_USERS):
                maildir(root / f"s{at}" / "Maildir", 0, 0, crlf=False)
                with suppress(FileExistsError):
                    os.link(source, root / f"s{at}" / "Maildir" / "cur" / source.name)
        else:
            shape, _, form = name.partition("_")
            dotted = not shape.startswith("r")
            maildir(root / name / "Maildir", *SHAPES[shape], crlf=form == "crlf", dotted=dotted)


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:])
