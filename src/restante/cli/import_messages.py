"""Messages that an import takes over, and where their octets are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..app.words import counted
from ..errors import PermanentFailure, TemporaryFailure
from ..message import Survey
from ..store import mbox
from ..store.coded import LONGEST, UNPACKED, coding, unpacked
from . import common

_PIECE = 65_536  # octets read at once


Stamp = tuple[int, int, int]
"""Inode number, size and time of the last change."""


def stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message of the old server."""

    name: str
    """Of its file in our Maildir."""
    unique_id: str
    path: Path
    begin: int = 0
    end: int | None = None
    """Octets of the file; None: to its end."""
    coding: str = ""
    """How the file is compressed; empty: it is plain."""
    limit: int = 0
    """Octets that it may have when unpacked."""
    unquotes: bool = False
    """Whether ``>From`` becomes ``From``."""
    stamp: Stamp | None = None
    """Of the file when its messages were found; None: it cannot change."""

    def octets(self) -> Iterator[bytes]:
        """
        Raises:
            TemporaryFailure: the file has changed, so these were perhaps not of this message.
        """
        pieces = self._stored()
        if self.coding:
            pieces = unpacked(pieces, self.coding, self.limit)
        return mbox.unquoted(pieces) if self.unquotes else pieces

    def _stored(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.begin)
            left = os.fstat(file.fileno()).st_size if self.end is None else self.end - self.begin
            while left > 0 and (piece := file.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece
            if self.stamp is not None and stamp(self.path) != self.stamp:
                raise TemporaryFailure(f"{self.path} was changed by another program; next: again")

    def size(self) -> int:
        """Octets on the wire (RFC 1939 §11)."""
        survey = Survey()
        for piece in self.octets():
            survey.feed(piece)
        survey.finish()
        return survey.size


@dataclass(slots=True)
class Found:
    """What the files of another server or program hold."""

    arrivals: list[Arrival]
    """In their order."""
    unlisted: int = 0
    """How many of them, the last ones, the old server has not listed yet."""
    made: int = 0
    """How many have unique-ids of ours, because there are none."""
    notes: list[str] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    """Numbers of messages that were left out, and of those that they equal."""

    def as_json(self) -> dict[str, Any]:
        return {"messages": len(self.arrivals), "new_ids": self.made, "duplicates": self.duplicates}


def name_of(unique_id: str, arrived: int = 0) -> str:
    """A file name that is the same each time, so that an import can be repeated.  ``arrived``:
    seconds since the epoch, where nothing but the arrival changes the time of the file."""
    return f"{arrived}.I{hashlib.sha256(unique_id.encode()).hexdigest()[:32]}"


_PLAIN_COPY = (
    "nothing was changed; next, with Dovecot: doveadm -o maildir_copy_with_hardlinks=no "
    "-o plugin/zlib_save= -o plugin/mail_crypt_save_version=0 backup -u USER maildir:/NEW/PLACE, "
    "and import that"
)


def decoded(arrivals: list[Arrival], own: Path, limit: int) -> list[Arrival]:
    """The same, with what must be unpacked.  Each of these is unpacked once now, so that what
    cannot be is found before anything changes.

    ``own``: the maildrop, whose own files are not copied.  ``limit``: octets of one message.

    Raises:
        PermanentFailure: some are encrypted, or compressed so that they cannot be unpacked.
    """
    coded = {at: how for at, each in enumerate(arrivals) if (how := _coding(each))}
    refused = [at for at, how in coded.items() if how not in UNPACKED or _is_in(arrivals[at], own)]
    if refused:
        raise PermanentFailure(
            f"{counted(len(refused), 'file')} cannot be read by restante "
            f"({', '.join(sorted({coded[at] for at in refused}))}), such as "
            f"{arrivals[refused[0]].path}; {_PLAIN_COPY}"
        )
    found = list(arrivals)
    for at, how in coded.items():
        name = _without_z(arrivals[at].name)
        found[at] = replace(arrivals[at], name=name, coding=how, limit=limit)
        try:
            found[at].size()
        except PermanentFailure as error:
            raise PermanentFailure(
                f"{arrivals[at].path}: {error} (limits.message); nothing was changed"
            ) from error
    if coded:
        common.say(f"{counted(len(coded), 'message')} compressed there, to be unpacked here")
    return found


def _coding(arrival: Arrival) -> str:
    with arrival.path.open("rb") as file:
        file.seek(arrival.begin)
        return coding(file.read(LONGEST))


def _is_in(arrival: Arrival, maildrop: Path) -> bool:
    directory = maildrop / arrival.path.parent.name
    return directory.is_dir() and directory.samefile(arrival.path.parent)


def _without_z(name: str) -> str:
    """By Dovecot's flag Z programs know compressed files."""
    base, colon, flags = name.partition(":2,")
    return f"{base}{colon}{flags.replace('Z', '')}"
