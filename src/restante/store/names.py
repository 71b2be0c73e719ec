"""File names in a Maildir: their parts, and the unique-ids that are derived from them.

A name is ``<unique>,S=<octets stored>,W=<octets on the wire>,D=<lines that begin with a
dot>:2,<flags>``.  Only restante writes D=, which means that all lines end with CRLF.  Other
programs omit or add parts, and they rename files whenever a flag changes.  Therefore a message is
identified by its unique part together with its inode number.  A rename changes neither, and two
files with the same unique part are never confused.

Standards: https://cr.yp.to/proto/maildir.html; Maildir++ for S= and W=; RFC 1939 §7.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from ..message import Survey
from ..posix import host_name
from ..scanning import File as File
from ..scanning import Identity as Identity
from ..scanning import unique_part as unique_part

Adopted = Mapping[Identity, str]
"""Unique-ids that cannot be derived from a file name (see the module ``adopted``)."""

_UNIQUE_ID = re.compile("[!-~]{1,70}")
_SECONDS = re.compile("[0-9]{1,18}")
_GIVEN = re.compile(r"[0-9]{1,18}\.([0-9a-f]{32})\.restante")


def identify(
    candidates: Iterable[File],
    adopted: Adopted | None = None,
    rank: Callable[[File], Any] = lambda _: 0,
) -> dict[str, File]:
    """Return the files by unique-id, in the order of delivery, adopted ids first.

    If several files claim the same id, the file with the lowest ``rank`` keeps it.  Ids depend
    neither on flags nor on the directory.  Two links to the same inode count as one message.
    """
    adopted = adopted or {}
    inode_of_adopted = {unique_id: inode for (_, inode), unique_id in adopted.items() if inode}
    by_id: dict[str, File] = {}
    conflicts: dict[str, list[File]] = {}
    for file in _without_second_links(candidates):
        own_id = (adopted and adopted_id(file, adopted)) or unique_id_of(file.name)
        holder = by_id.setdefault(own_id, file)
        if holder is not file or inode_of_adopted.get(own_id, file.inode) != file.inode:
            conflicts.setdefault(own_id, [holder]).append(file)
    unassigned: list[tuple[str, File]] = []
    for own_id, files in conflicts.items():
        first, *others = sorted(
            set(files), key=lambda file: (not adopted_id(file, adopted), rank(file), file)
        )
        by_id[own_id] = first
        if inode_of_adopted.get(own_id, first.inode) != first.inode and not adopted_id(
            first, adopted
        ):
            others.append(by_id.pop(own_id))
        unassigned += [(own_id, file) for file in others]
    for own_id, file in sorted(unassigned):
        unique_id = own_id
        while unique_id in by_id or unique_id in inode_of_adopted:
            unique_id = _digest(f"{unique_id} {own_id} {file.inode}")
        by_id[unique_id] = file
    imported = [unique_id for (_, inode), unique_id in adopted.items() if not inode]
    order = {unique_id: index for index, unique_id in enumerate(imported)}
    return dict(
        sorted(
            by_id.items(),
            key=lambda item: (order.get(item[0], len(order)), delivered_at(item[1].name), item[0]),
        )
    )


def _without_second_links(candidates: Iterable[File]) -> Iterable[File]:
    """Drop second links to a message.  The link in cur/ is kept, or else the first by name."""
    files = list(candidates)
    if len({file.inode for file in files}) < len(files):
        by_identity = {file.identity: file for file in sorted(files, reverse=True)}
        files = list(by_identity.values())
    return files


def contested(by_id: Mapping[str, File], adopted: Adopted) -> dict[Identity, str]:
    """Return the ids of files that claim the same id.

    These ids must be adopted so that they never change.  Otherwise another file would inherit an id
    when the message with this id is removed.
    """
    ids = {}
    for unique_id, file in by_id.items():
        if unique_id == unique_part(file.name):
            continue
        own_id = adopted_id(file, adopted) or unique_id_of(file.name)
        if own_id != unique_id:
            ids[file.identity] = unique_id
            if holder := by_id.get(own_id):
                ids[holder.identity] = own_id
    return ids


def adopted_id(file: File, adopted: Adopted) -> str:
    """Return the adopted id of a file, or an empty string if it has none."""
    unique, inode = file.identity
    return adopted.get((unique, inode)) or adopted.get((unique, 0)) or ""


def pack(ids: Mapping[Identity, str]) -> bytes:
    """Encode inode number, unique-id and unique part of each message.

    NUL is the separator, because file names never contain NUL.
    """
    lines = [f"{inode} {unique_id} {unique}\0" for (unique, inode), unique_id in ids.items()]
    return os.fsencode("".join(lines))


def unpack(octets: bytes) -> dict[Identity, str]:
    parts = re.findall(rb"([0-9]{1,20}) ([!-~]{1,70}) ([^\0]*)\0", octets)
    return {(os.fsdecode(unique), int(inode)): name.decode() for inode, name, unique in parts}


def unique_id_of(name: str) -> str:
    """Return the unique part if it is a valid unique-id (RFC 1939 §7), otherwise its hash."""
    unique = unique_part(name)
    return unique if _UNIQUE_ID.fullmatch(unique) else _digest(unique)


def field(letter: str, name: str) -> int | None:
    """Return a field of the name: S octets stored, W octets on the wire, D lines with a dot.

    A field with more than twelve digits counts as missing, because the sum of all sizes must also
    fit in 64 bits.
    """
    match = re.search(rf",{letter}=([0-9]{{1,12}})(?:,|\Z)", name.partition(":")[0])
    return int(match[1]) if match else None


def fields(survey: Survey) -> str:
    """Return the fields for the name of a surveyed message."""
    dotted = f",D={survey.dotted}" if survey.has_crlf else ""
    return f",S={survey.stored},W={survey.size}{dotted}"


def size_fields(name: str) -> str:
    """Return the fields S=, W= and D= of a name, for use in another name."""
    sizes = {letter: field(letter, name) for letter in "SWD"}
    return "".join(f",{letter}={size}" for letter, size in sizes.items() if size is not None)


def fresh_unique() -> str:
    """Return a new unique part of at most 70 characters; 64 random bits make it unique.

    The time determines the order of the listing.  Time and process also help operators who inspect
    the directory.
    """
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    random = secrets.token_hex(8)
    return f"{seconds}.M{nanoseconds // 1000:06}P{os.getpid()}R{random}.{_host()}"


def unique_of(name: str, *, after: int = 0) -> str:
    """Return the unique part of a message that is delivered under a given name.

    The time in the result is later than ``after`` (seconds since the epoch), so that no unique-id
    is reused.
    """
    return f"{max(int(time.time()), after + 1)}.{name}.restante"


def given_name(name: str) -> str | None:
    """Return the name under which the message in this file was delivered, or None."""
    match = _GIVEN.fullmatch(unique_part(name))
    return match[1] if match else None


@cache
def _host() -> str:
    return re.sub("[^A-Za-z0-9.-]", "", host_name())[:20] or "localhost"


def delivered_at(name: str) -> int:
    """Return the time of delivery in seconds since the epoch, or 0 if the name has none.

    The time is read from the field T=, or else from the unique part.  Only restante writes T=, into
    names whose unique part had to be replaced by the unique-id.
    """
    match = _SECONDS.match(name)
    seconds = int(match[0]) if match else 0
    recorded = field("T", name) if ",T=" in name else None
    return seconds if recorded is None else recorded


def renamed(name: str, unique_id: str) -> str:
    """Return a name with this unique-id as its unique part, at the same position in the listing."""
    seconds, rest = delivered_at(name), name[len(unique_part(name)) :]
    if ",T=" in name or delivered_at(unique_id + rest) == seconds:
        return unique_id + rest
    return f"{unique_id},T={seconds}{rest}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:40]
