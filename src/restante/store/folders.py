"""Folders of a Maildir (Maildir++), and views: several folders, or recent mail, as one maildrop.

A folder is a Maildir inside the user's Maildir, for example ``.Lists.Python`` for the folder
``Lists.Python``.  Each folder has its own lock, index, unique-ids and held mail.

Security: folder names come from the network.  A folder name must select a directory directly below
the Maildir, so it must not contain "/" or NUL, and none of its parts may be empty, which rules out
"..".
Standards: Maildir++, with the modified UTF-7 of IMAP (RFC 3501).
"""

from __future__ import annotations

import hashlib
import re
import time
from base64 import b64encode
from bisect import bisect_right
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import ExitStack, aclosing, suppress
from itertools import accumulate
from typing import NamedTuple, Protocol

from ..addons import offers
from ..clock import is_credible
from ..errors import MessageGone, PermanentFailure, RestanteError
from ..maildrop import (
    Entry,
    Journal,
    Maildrop,
    Paced,
    RawMessage,
    RawReading,
    SessionRecord,
)
from ..scanning import MAIL, list_folders, scan_for
from . import files
from .index import Index, Row
from .names import File, Identity, delivered_at, unique_part

INBOX = "."
"""Name of the Maildir itself, relative to the Maildir."""

_FOLDER_NAME_MAX = 255  # octets of a file name on nearly every file system
_ATTEMPTS = 5  # scans for files that another program is renaming


def directory_of(folder: str) -> str:
    """Return the directory name of a folder.  The folder need not exist.

    Raises:
        PermanentFailure: the folder name is invalid.
    """
    if folder.upper() == "INBOX":
        return INBOX
    parts = folder.split(".")
    if not all(parts) or "/" in folder or not folder.isprintable():
        raise PermanentFailure("invalid folder name")
    name = "." + ".".join(map(_modified_utf7, parts))
    if len(name) > _FOLDER_NAME_MAX:
        raise PermanentFailure("invalid folder name")
    return name


def _modified_utf7(text: str) -> str:
    def encode(match: re.Match[str]) -> str:
        octets = match[0].encode("utf-16-be")
        return "&" + b64encode(octets, b"+,").decode().rstrip("=") + "-"

    return re.sub("[^ -~]+", encode, text.replace("&", "&-"))


def each_folder(maildrop: int) -> Iterator[tuple[str, int]]:
    """Yield directory name and descriptor of the INBOX and of each folder with ``held/``."""
    yield INBOX, maildrop
    for name in list_folders(maildrop):
        with suppress(FileNotFoundError), files.directory(name, maildrop) as folder:
            if files.exists(files.HELD, folder):
                yield name, folder


def names_held(maildrop: int, names: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the descriptor of each folder that contains these held messages, and their names."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, rest = name.rpartition("/")
        by_folder.setdefault(folder or INBOX, []).append(rest)
    for directory, descriptor in each_folder(maildrop):
        if directory in by_folder:
            yield descriptor, by_folder[directory]


class FolderMaildrop(Maildrop, RawReading, Paced, Protocol):
    """The maildrop of one folder."""

    @property
    def listing(self) -> Index: ...


class Part(NamedTuple):
    """The part of a view that comes from one folder."""

    folder: str
    """Name of the folder's directory."""
    session: FolderMaildrop
    positions: Sequence[int]
    """Positions of the messages that are shown."""
    is_own: bool
    """Whether the folder's unique-ids are shown unchanged."""


def recent(maildrop: int, listing: Index, since: float) -> list[int]:
    """Return the positions of messages that arrived after ``since``.

    The time of arrival is read from the file name, or from the mtime if the name has no valid
    time.

    A file that another program keeps renaming is included, because its age cannot be determined.
    """
    with ExitStack() as stack:
        directories = {each: stack.enter_context(files.directory(each, maildrop)) for each in MAIL}
        positions: list[int] = []
        renamed: dict[Identity, int] = {}
        for directory in MAIL:
            for name, position in listing.files_in(directory).items():
                try:
                    if _arrival_time(name, directories[directory]) >= since:
                        positions.append(position)
                except FileNotFoundError:
                    renamed[unique_part(name), listing.inodes[position]] = position
        for _ in range(_ATTEMPTS):
            if not renamed:
                break
            seen, selected = scan_for(maildrop, renamed)
            remaining = {identity for identity, _ in selected} if seen.is_exact else set(renamed)
            for identity, file in selected:
                with suppress(FileNotFoundError):
                    if _arrival_time(file.name, directories[file.directory]) >= since:
                        positions.append(renamed[identity])
                    remaining.discard(identity)
            renamed = {each: renamed[each] for each in remaining}
    return sorted({*positions, *renamed.values()})


def _arrival_time(name: str, directory: int) -> float:
    arrived_at = delivered_at(name)
    is_time = is_credible(arrived_at, time.time())  # otherwise another number, or a wrong clock
    return arrived_at if is_time else files.status(name, directory).st_mtime


def joined(parts: Sequence[Part]) -> Index:
    """Return a single listing of all parts, in their order.

    The unique-ids of the INBOX, or of the only folder, are not changed.  Unique-ids of other
    folders are hashes of folder and id, so that copies of a message in two folders have different
    ids.
    """
    used_ids: set[str] = set()
    messages = []
    for part in parts:
        for entry in map(part.session.listing.__getitem__, part.positions):
            unique_id = entry.unique_id if part.is_own else _digest(part.folder, entry.unique_id)
            while unique_id in used_ids:
                unique_id = _digest(part.folder, unique_id)
            used_ids.add(unique_id)
            messages.append(Row(unique_id, File("new", unique_id, 0), entry.size))
    return Index(messages)


def _digest(folder: str, unique_id: str) -> str:
    return hashlib.sha256(f"{folder}/{unique_id}".encode()).hexdigest()[:40]


class ViewMaildrop:
    """Messages of one or more folders as one ``Maildrop``; the folders' sessions must be open."""

    def __init__(self, parts: Sequence[Part], listing: Index) -> None:
        """``listing``: the result of ``joined`` for these parts."""
        self.listing = listing
        self._parts = parts
        self._ends = list(accumulate(len(part.positions) for part in parts))

    def _find(self, entry: Entry) -> tuple[int, Entry]:
        """Return the index of the part, and the entry in its folder.

        Raises:
            MessageGone: the entry does not belong to this view.
        """
        position = self.listing.find(entry)
        if position is None:
            raise MessageGone
        part_index = bisect_right(self._ends, position)
        part = self._parts[part_index]
        first = self._ends[part_index] - len(part.positions)
        return part_index, part.session.listing[part.positions[position - first]]

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        part_index, own = self._find(entry)
        async with aclosing(self._parts[part_index].session.read(own)) as pieces:
            async for piece in pieces:
                yield piece

    def open_raw(self, entry: Entry) -> RawMessage | None:
        try:
            part_index, own = self._find(entry)
        except MessageGone:
            return None
        return self._parts[part_index].session.open_raw(own)

    def cached_texts(
        self, entries: Sequence[Entry], max_octets: int, lines: int | None = None
    ) -> list[bytes]:
        texts: list[bytes] = []
        with suppress(MessageGone):
            for entry in entries:
                part_index, own = self._find(entry)
                text = self._parts[part_index].session.cached_texts([own], max_octets, lines)
                if not text:
                    break
                texts += text
                max_octets -= len(text[0])
        return texts

    def record_form(self, entry: Entry, *, is_wire_ready: bool) -> None:
        with suppress(MessageGone):
            part_index, own = self._find(entry)
            self._parts[part_index].session.record_form(own, is_wire_ready=is_wire_ready)

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        """Remove messages, one folder at a time; in each folder, either all or none are removed."""
        pairs_by_part: list[list[tuple[Entry, Entry]]] = [[] for _ in self._parts]
        for entry in entries:
            part_index, own = self._find(entry)
            pairs_by_part[part_index].append((own, entry))
        remaining: list[Entry] = []
        for part, pairs in zip(self._parts, pairs_by_part, strict=True):
            if pairs:
                remaining += await _remove(part.session, pairs)
        return remaining

    async def pace(self, delay: float) -> float:
        return await self._parts[0].session.pace(delay)

    async def record(self, session: SessionRecord) -> None:
        """Record the session with the folders' own unique-ids, which held mail keeps."""
        first = self._parts[0].session
        if offers(first, Journal):
            retrieved = [self._find(entry)[1] for entry in session.retrieved]
            removed = [self._find(entry)[1] for entry in session.removed]
            await first.record(session._replace(retrieved=retrieved, removed=removed))

    async def past(self, credential: str) -> Sequence[SessionRecord]:
        first = self._parts[0].session
        return await first.past(credential) if offers(first, Journal) else ()


async def _remove(session: FolderMaildrop, pairs: Sequence[tuple[Entry, Entry]]) -> list[Entry]:
    """Remove messages from one folder, and return the view's entries of those not removed.

    ``pairs`` contains, for each message, its entry in the folder and its entry in the view.
    """
    own = [each for each, _ in pairs]
    try:
        remaining = await session.remove(own)
    except RestanteError:  # removals from other folders remain in effect
        remaining = own
    unremoved = {each.unique_id for each in remaining}
    return [entry for each, entry in pairs if each.unique_id in unremoved]
