"""What the name of a file in a Maildir tells, and which unique-id it gets.

A name is ``<unique>,S=<octets stored>,W=<octets on the wire>:2,<flags>``; other programs
leave parts out or add some, and they rename files whenever a flag changes.  So a message is
known by its unique part together with its inode number: both survive a rename, and two files
that share a unique part are never taken for each other.

Standards: https://cr.yp.to/proto/maildir.html; Maildir++ for S= and W=; RFC 1939 §7.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from . import files

Identity = tuple[str, int]
"""Unique part and inode number."""

_SCANS = 4  # how often a directory that keeps changing is read


@dataclass(frozen=True, slots=True)
class File:
    """A message file, as it was found."""

    directory: str
    """``new`` or ``cur``."""
    name: str
    inode: int

    @property
    def identity(self) -> Identity:
        return unique_part(self.name), self.inode


def scan(maildrop: int) -> list[File]:
    """Every message file of a maildrop.

    A file that is renamed while its directory is read may be seen twice or not at all, so a
    directory that changed meanwhile is read again.

    Raises:
        OSError: also when ``new`` or ``cur`` is missing; that is not an empty maildrop.
    """
    found: list[File] = []
    for _ in range(_SCANS):
        before = _stamps(maildrop)
        found = [
            File(directory, name, inode)
            for directory in ("new", "cur")  # in the order in which messages move
            for name, inode in files.list_files(directory, maildrop)
        ]
        if _stamps(maildrop) == before:
            break
    return found


def _stamps(maildrop: int) -> list[int]:
    """Change whenever a name does; coarse (some milliseconds on most kernels)."""
    return [files.status(name, maildrop).st_mtime_ns for name in ("new", "cur")]


def identify(found: Iterable[File]) -> dict[str, File]:
    """The files by unique-id, in the order of their delivery.

    The oldest inode number keeps the unique part, so the ids depend neither on flags nor on
    the directory.  Two links to one inode are one message.
    """
    by_id: dict[str, File] = {}
    for file in sorted(found, key=lambda file: (file.inode, file.directory, file.name)):
        unique_id = own_id = unique_id_of(file.name)
        while unique_id in by_id and by_id[unique_id].identity != file.identity:
            unique_id = _digest(f"{unique_id} {own_id} {file.inode}")
        by_id.setdefault(unique_id, file)
    return dict(sorted(by_id.items(), key=lambda item: (_delivered_at(item[1].name), item[0])))


def unique_part(name: str) -> str:
    return re.split("[,:]", name, maxsplit=1)[0]


def unique_id_of(name: str) -> str:
    """The unique part if it can be a unique-id (RFC 1939 §7), else a hash of it."""
    unique = unique_part(name)
    return unique if re.fullmatch("[!-~]{1,70}", unique) else _digest(unique)


def wire_size(name: str) -> int | None:
    """Octets on the wire as the name tells them, or None."""
    match = re.search(r",W=([0-9]{1,18})(?:,|\Z)", name.partition(":")[0])
    return int(match[1]) if match else None


def size_fields(name: str) -> str:
    """The fields S= and W= of a name, to be put into another."""
    return "".join(re.findall(r",[SW]=[0-9]{1,18}(?=,|\Z)", name.partition(":")[0]))


def fresh_unique() -> str:
    """A unique part that nobody had before, at most 70 characters; 64 random bits see to that.

    Time and process only help people who look into the directory, and the order of listings.
    """
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    random = secrets.token_hex(8)
    return f"{seconds}.M{nanoseconds // 1000:06}P{os.getpid()}R{random}.{_host()}"


@cache
def _host() -> str:
    return re.sub("[^A-Za-z0-9.-]", "", socket.gethostname())[:20] or "localhost"


def _delivered_at(name: str) -> int:
    match = re.match("[0-9]{1,18}", name)
    return int(match[0]) if match else 0


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:40]
