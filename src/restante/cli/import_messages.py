"""The messages of an import, and access to their octets in the files of the old server."""

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

_PIECE = 65_536  # octets read at a time

Stamp = tuple[int, int, int]
"""Inode number, size and time of the last change (nanoseconds)."""


def stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True)
class ImportedMessage:
    """One message of the old server."""

    name: str
    """File name in restante's Maildir."""
    unique_id: str
    path: Path
    begin: int = 0
    end: int | None = None
    """Offset in the file after the last octet; None for the end of the file."""
    encoding: str = ""
    """Compression of the file, or empty."""
    limit: int = 0
    """Maximum number of octets after unpacking."""
    unquotes: bool = False
    """Whether ``>From`` at the beginning of a line is replaced by ``From``."""
    stamp: Stamp | None = None
    """State of the file when its messages were found; None if it cannot change."""

    def octets(self) -> Iterator[bytes]:
        """Yield the octets of the message.

        Raises:
            TemporaryFailure: the file has changed, so the octets may belong to another message.
        """
        pieces = self._stored()
        if self.encoding:
            pieces = unpacked(pieces, self.encoding, self.limit)
        return mbox.unquoted(pieces) if self.unquotes else pieces

    def _stored(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.begin)
            remaining = (
                os.fstat(file.fileno()).st_size if self.end is None else self.end - self.begin
            )
            while remaining > 0 and (piece := file.read(min(remaining, _PIECE))):
                remaining -= len(piece)
                yield piece
            if self.stamp is not None and stamp(self.path) != self.stamp:
                raise TemporaryFailure(
                    f"{self.path} was changed by another program; repeat the import"
                )

    def size(self) -> int:
        """Return the number of octets on the wire (RFC 1939 §11)."""
        survey = Survey()
        for piece in self.octets():
            survey.feed(piece)
        survey.finish()
        return survey.size


@dataclass(slots=True)
class ImportedFiles:
    """The messages in the files of another server or program."""

    messages: list[ImportedMessage]
    """Messages in the order of the old server."""
    unlisted: int = 0
    """Number of messages at the end that the old server has not listed yet."""
    new_ids: int = 0
    """Number of messages that get a new unique-id because they had none."""
    notes: list[str] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of message numbers: a message that is left out, and the identical message before it."""

    def as_json(self) -> dict[str, Any]:
        return {
            "messages": len(self.messages),
            "new_ids": self.new_ids,
            "duplicates": self.duplicates,
        }


def name_of(unique_id: str, arrived_at: int = 0) -> str:
    """Return a file name that is the same in each import, so that an import can be repeated.

    ``arrived_at`` is the time of arrival in seconds since the epoch; 0 if it is unknown.
    """
    return f"{arrived_at}.I{hashlib.sha256(unique_id.encode()).hexdigest()[:32]}"


_PLAIN_COPY = (
    "nothing was changed. With Dovecot, run: doveadm -o maildir_copy_with_hardlinks=no "
    "-o plugin/zlib_save= -o plugin/mail_crypt_save_version=0 backup -u USER maildir:/NEW/PLACE; "
    "then import that Maildir"
)


def decoded(messages: list[ImportedMessage], maildrop: Path, limit: int) -> list[ImportedMessage]:
    """Return the messages with their compression.

    Each compressed message is unpacked once, so that errors are found before anything changes.
    Files that are already in ``maildrop`` are not copied and therefore must not be compressed.
    ``limit`` is in octets per message.

    Raises:
        PermanentFailure: some messages are encrypted, or cannot be unpacked.
    """
    encodings = {
        index: encoding for index, each in enumerate(messages) if (encoding := _encoding(each))
    }
    refused = [
        index
        for index, encoding in encodings.items()
        if encoding not in UNPACKED or _is_in(messages[index], maildrop)
    ]
    if refused:
        raise PermanentFailure(
            f"{counted(len(refused), 'file')} cannot be read by restante "
            f"({', '.join(sorted({encodings[index] for index in refused}))}), such as "
            f"{messages[refused[0]].path}; {_PLAIN_COPY}"
        )
    result = list(messages)
    for index, encoding in encodings.items():
        name = _without_z(messages[index].name)
        result[index] = replace(messages[index], name=name, encoding=encoding, limit=limit)
        try:
            result[index].size()
        except PermanentFailure as error:
            raise PermanentFailure(
                f"{messages[index].path}: {error} (limits.message); nothing was changed"
            ) from error
    if encodings:
        common.say(f"{counted(len(encodings), 'message')} will be unpacked.")
    return result


def _encoding(message: ImportedMessage) -> str:
    with message.path.open("rb") as file:
        file.seek(message.begin)
        return encoding_of(file.read(PREFIX_LENGTH))


def _is_in(message: ImportedMessage, maildrop: Path) -> bool:
    directory = maildrop / message.path.parent.name
    return directory.is_dir() and directory.samefile(message.path.parent)


def _without_z(name: str) -> str:
    """Remove the flag Z, with which Dovecot marks compressed files."""
    base, colon, flags = name.partition(":2,")
    return f"{base}{colon}{flags.replace('Z', '')}"
