"""What the name of a file in a Maildir tells, and which unique-id it gets.

A name is ``<unique>,S=<octets stored>,W=<octets on the wire>,D=<lines that begin with a
dot>:2,<flags>``; D= is ours and says besides that all lines end with CRLF.  Other programs
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
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from ..message import Survey
from ..scanning import File as File
from ..scanning import Identity as Identity
from ..scanning import unique_part as unique_part

Adopted = Mapping[Identity, str]
"""Unique-ids that do not follow from a name; see ``adopted``."""

_UNIQUE_ID = re.compile("[!-~]{1,70}")
_SECONDS = re.compile("[0-9]{1,18}")
_GIVEN = re.compile(r"[0-9]{1,18}\.([0-9a-f]{32})\.restante")


def identify(
    found: Iterable[File],
    adopted: Adopted | None = None,
    rank: Callable[[File], Any] = lambda _: 0,
) -> dict[str, File]:
    """The files by unique-id, in the order of their delivery, adopted ones first.

    Of several that claim one id, the lowest ``rank`` keeps it; ids depend neither on flags nor on
    the directory.  Two links to one inode are one message.
    """
    adopted = adopted or {}
    holders = {unique_id: inode for (_, inode), unique_id in adopted.items() if inode}
    by_id: dict[str, File] = {}
    rivals: dict[str, list[File]] = {}
    for file in _each_once(found):
        own_id = (adopted and adopted_id(file, adopted)) or unique_id_of(file.name)
        holder = by_id.setdefault(own_id, file)
        if holder is not file or holders.get(own_id, file.inode) != file.inode:
            rivals.setdefault(own_id, [holder]).append(file)
    losers: list[tuple[str, File]] = []
    for own_id, files in rivals.items():
        first, *others = sorted(
            set(files), key=lambda file: (not adopted_id(file, adopted), rank(file), file)
        )
        by_id[own_id] = first
        if holders.get(own_id, first.inode) != first.inode and not adopted_id(first, adopted):
            others.append(by_id.pop(own_id))
        losers += [(own_id, file) for file in others]
    for own_id, file in sorted(losers):
        unique_id = own_id
        while unique_id in by_id or unique_id in holders:
            unique_id = _digest(f"{unique_id} {own_id} {file.inode}")
        by_id[unique_id] = file
    listed = [unique_id for (_, inode), unique_id in adopted.items() if not inode]
    place = {unique_id: at for at, unique_id in enumerate(listed)}
    return dict(
        sorted(
            by_id.items(),
            key=lambda item: (place.get(item[0], len(place)), delivered_at(item[1].name), item[0]),
        )
    )


def _each_once(found: Iterable[File]) -> Iterable[File]:
    """Of two links to one message, the one in cur/, or else the first by name."""
    files = list(found)
    if len({file.inode for file in files}) < len(files):
        by_identity = {file.identity: file for file in sorted(files, reverse=True)}
        files = list(by_identity.values())
    return files


def contested(by_id: Mapping[str, File], adopted: Adopted) -> dict[Identity, str]:
    """Who has which unique-id after a quarrel: to be adopted, so that it is never fought again.

    Otherwise, when the message that keeps an id is gone, another would inherit it.
    """
    settled = {}
    for unique_id, file in by_id.items():
        if unique_id == unique_part(file.name):
            continue
        own_id = adopted_id(file, adopted) or unique_id_of(file.name)
        if own_id != unique_id:
            settled[file.identity] = unique_id
            if holder := by_id.get(own_id):
                settled[holder.identity] = own_id
    return settled


def adopted_id(file: File, adopted: Adopted) -> str:
    """The one that does not follow from its name; empty: the one that does."""
    unique, inode = file.identity
    return adopted.get((unique, inode)) or adopted.get((unique, 0)) or ""


def pack(ids: Mapping[Identity, str]) -> bytes:
    """Inode number, unique-id and unique part of each; NUL is in no file name."""
    return b"".join(
        os.fsencode(f"{inode} {unique_id} {unique}\0") for (unique, inode), unique_id in ids.items()
    )


def unpack(octets: bytes) -> dict[Identity, str]:
    parts = re.findall(rb"([0-9]{1,20}) ([!-~]{1,70}) ([^\0]*)\0", octets)
    return {(os.fsdecode(unique), int(inode)): name.decode() for inode, name, unique in parts}


def unique_id_of(name: str) -> str:
    """The unique part if it can be a unique-id (RFC 1939 §7), else a hash of it."""
    unique = unique_part(name)
    return unique if _UNIQUE_ID.fullmatch(unique) else _digest(unique)


def field(letter: str, name: str) -> int | None:
    """What the name tells: S= octets stored, W= on the wire, D= lines that begin with a dot.

    Of more than twelve digits it tells nothing: the sizes of all messages are a number, too."""
    match = re.search(rf",{letter}=([0-9]{{1,12}})(?:,|\Z)", name.partition(":")[0])
    return int(match[1]) if match else None


def fields(survey: Survey) -> str:
    """The fields of a message's name."""
    dotted = f",D={survey.dotted}" if survey.has_crlf else ""
    return f",S={survey.stored},W={survey.size}{dotted}"


def size_fields(name: str) -> str:
    """The fields S=, W= and D= of a name, to be put into another."""
    told = {letter: field(letter, name) for letter in "SWD"}
    return "".join(f",{letter}={size}" for letter, size in told.items() if size is not None)


def fresh_unique() -> str:
    """A unique part that nobody had before, at most 70 characters; 64 random bits see to that.

    Time and process only help people who look into the directory, and the order of listings.
    """
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    random = secrets.token_hex(8)
    return f"{seconds}.M{nanoseconds // 1000:06}P{os.getpid()}R{random}.{_host()}"


def unique_of(name: str, *, after: int = 0) -> str:
    """The unique part of a message that was delivered under a name of its sender's.

    ``after``: later than this, in seconds since the epoch, so that no unique-id comes back.
    """
    return f"{max(int(time.time()), after + 1)}.{name}.restante"


def given_name(name: str) -> str | None:
    """Under which a message was delivered whose file is called ``name``; None: under none."""
    match = _GIVEN.fullmatch(unique_part(name))
    return match[1] if match else None


@cache
def _host() -> str:
    return re.sub("[^A-Za-z0-9.-]", "", socket.gethostname())[:20] or "localhost"


def delivered_at(name: str) -> int:
    """Seconds since the epoch, as the field T= or else the unique part tells them; 0 if none does.

    T= is ours, in names whose unique part had to be replaced by the unique-id.
    """
    match = _SECONDS.match(name)
    seconds = int(match[0]) if match else 0
    told = field("T", name) if ",T=" in name else None
    return seconds if told is None else told


def renamed(name: str, unique_id: str) -> str:
    """A name with this unique-id as its unique part, and the same place in a listing."""
    seconds, rest = delivered_at(name), name[len(unique_part(name)) :]
    if ",T=" in name or delivered_at(unique_id + rest) == seconds:
        return unique_id + rest
    return f"{unique_id},T={seconds}{rest}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:40]
