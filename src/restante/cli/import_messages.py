"""Messages of an import, and where their octets are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import PermanentFailure, TemporaryFailure
from ..message import Survey
from ..store import mbox
from ..store.coded import PREFIX_LENGTH, UNPACKED, encoding_of, unpacked
from ..words import counted
from . import common

_PIECE = 65_536  # octets read at once


Stamp = tuple[int, int, int]
"""Inode number, size and time of the last change (nanoseconds)."""


def stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message of the old server."""

    name: str
    """Name of its file in our Maildir."""
    unique_id: str
    path: Path
    begin: int = 0
    end: int | None = None
    """End in octets of the file; None for the end of the file."""
    coding: str = ""
    """Compression of the file, or empty."""
    limit: int = 0
    """Maximum number of octets when unpacked."""
    unquotes: bool = False
    """Whether ``>From`` is replaced by ``From``."""
    stamp: Stamp | None = None
    """State of the file when its messages were found; None if it cannot change."""

    def octets(self) -> Iterator[bytes]:
        """Yield the octets of the message.

        Raises:
            TemporaryFailure: the file has changed, so they may belong to another message.
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
                raise TemporaryFailure(
                    f"{self.path} was changed by another program; repeat the import"
                )

    def size(self) -> int:
        """Octets on the wire (RFC 1939 §11)."""
        survey = Survey()
        for piece in self.octets():
            survey.feed(piece)
        survey.finish()
        return survey.size


@dataclass(slots=True)
class Found:
    """The messages that the files of another server or program have."""

    arrivals: list[Arrival]
    """Messages in the order of the old server."""
    unlisted: int = 0
    """How many of them, the last ones, the old server has not listed yet."""
    made: int = 0
    """Number of messages without a unique-id, which get a new one."""
    notes: list[str] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    """Numbers of messages that were left out, and of those that they equal."""

    def as_json(self) -> dict[str, Any]:
        return {"messages": len(self.arrivals), "new_ids": self.made, "duplicates": self.duplicates}


def name_of(unique_id: str, arrived: int = 0) -> str:
    """Return a file name that is always the same, so that an import can be repeated.

    ``arrived`` is in seconds since the epoch, if the file's time is that of the arrival.
    """
    return f"{arrived}.I{hashlib.sha256(unique_id.encode()).hexdigest()[:32]}"


_PLAIN_COPY = (
    "nothing was changed. With Dovecot, run: doveadm -o maildir_copy_with_hardlinks=no "
    "-o plugin/zlib_save= -o plugin/mail_crypt_save_version=0 backup -u USER maildir:/NEW/PLACE; "
    "then import that Maildir"
)


def decoded(arrivals: list[Arrival], own: Path, limit: int) -> list[Arrival]:
    """Return the messages with their compression.

    Each compressed message is unpacked once, so that errors are found before anything changes.
    ``own`` is the maildrop, whose own files are not copied; ``limit`` is in octets per message.

    Raises:
        PermanentFailure: some are encrypted, or cannot be unpacked.
    """
    coded = {at: how for at, each in enumerate(arrivals) if (how := _coding(each))}
    refused = [at for at, how in coded.items() if how not in UNPACKED or _is_in(arrivals[at], own)]
    if refused:
        raise PermanentFailure(
            f"{counted(len(refused), 'file')} cannot be read by restante "
            f"({', '.join(sorted({coded[at] for at in refused}))}), such as "
            f"{arrivals[refused[0]].path}; {_PLAIN_COPY}"
        )
    result = list(arrivals)
    for at, how in coded.items():
        name = _without_z(arrivals[at].name)
        result[at] = replace(arrivals[at], name=name, coding=how, limit=limit)
        try:
            result[at].size()
        except PermanentFailure as error:
            raise PermanentFailure(
                f"{arrivals[at].path}: {error} (limits.message); nothing was changed"
            ) from error
    if coded:
        common.say(f"{counted(len(coded), 'message')} will be unpacked.")
    return result


def _coding(arrival: Arrival) -> str:
    with arrival.path.open("rb") as file:
        file.seek(arrival.begin)
        return encoding_of(file.read(PREFIX_LENGTH))


def _is_in(arrival: Arrival, maildrop: Path) -> bool:
    directory = maildrop / arrival.path.parent.name
    return directory.is_dir() and directory.samefile(arrival.path.parent)


def _without_z(name: str) -> str:
    """Remove Dovecot's flag Z, which marks compressed files."""
    base, colon, flags = name.partition(":2,")
    return f"{base}{colon}{flags.replace('Z', '')}"
