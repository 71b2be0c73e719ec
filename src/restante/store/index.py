"""The index of a maildrop: what a session needs to know, without a look at any message.

Per message its unique-id, its size, how it can go to the wire, and its file; the answers to
LIST and UIDL as they go out; and the stamps of the directories, by which an unchanged maildrop
is known.  On disk it is a cache: rebuilt at any doubt, replaced atomically, never synced.  A
checksum finds torn writes, the inode number of the maildrop another maildrop's index.

A stamp is trusted only if it is older than the session that read the directory, both told by
the clock of the file system: then any later change must move it, however coarse that clock.

Security: who can write into a maildrop can write its index; a name in it leads nowhere else.
Limits: 100,000 messages with our unique-ids take some 10 MB.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple, overload

from ..maildrop import Entry, Rendered
from . import files
from .adopted import ADOPTED
from .names import File, unique_part

INDEX = "restante.index"

_MAGIC = f"restante index 1 {sys.byteorder}\n".encode()
_HEADER = struct.Struct("=Q 9Q 5Q")  # maildrop, stamps, lengths
_DIGEST = 16  # octets

Stamps = tuple[int, ...]
"""Inode number, mtime and ctime of new/, of cur/, and of the file of adopted ids if there is
one.  Empty: not to be trusted."""


class Form(IntEnum):
    """How the stored octets of a message relate to those on the wire."""

    UNKNOWN = 0
    """Must be converted, and watched while it is."""
    CRLF = 1
    """CRLF throughout and at the end."""
    READY = 2
    """So, and no line begins with a dot."""
    GUESSED = 3
    """It could not be read, and even its size is not known."""


_FORMS = tuple(Form)


class Message(NamedTuple):
    """One row."""

    unique_id: str
    file: File
    size: int
    """Octets on the wire."""
    form: Form = Form.UNKNOWN


class Index(Rendered):
    """Immutable; sessions of one process share it.  Also the listing of each."""

    def __init__(self, messages: Iterable[Message] = (), stamps: Stamps = ()) -> None:
        self.stamps = stamps
        self._sizes, self._inodes = array("Q"), array("Q")
        self._id_ends, self._name_ends = array("I"), array("I")
        forms, ids, names, scan = bytearray(), bytearray(), bytearray(), bytearray()
        for number, message in enumerate(messages, 1):
            self._sizes.append(message.size)
            self._inodes.append(message.file.inode)
            forms.append(message.form)
            ids += b"%d %s\r\n" % (number, message.unique_id.encode("ascii"))
            scan += b"%d %d\r\n" % (number, message.size)
            names += _packed(message)
            self._id_ends.append(len(ids))
            self._name_ends.append(len(names))
        self._forms, self._ids = bytes(forms), bytes(ids)
        self._names, self._scan = bytes(names), bytes(scan)
        self.octets = sum(self._sizes)

    # The listing.

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return Entry(self._unique_id(at), self._sizes[at], at)

    def scan_listing(self) -> bytes:
        return self._scan

    def unique_id_listing(self) -> bytes:
        return self._ids

    # What the store looks up.

    def find(self, entry: Entry) -> int | None:
        """Where an entry stands, by its key or else by its unique-id."""
        if 0 <= entry.key < len(self) and self._unique_id(entry.key) == entry.unique_id:
            return entry.key
        found = self._ids.find(f" {entry.unique_id}\r\n".encode("ascii", "replace"))
        if found < 0:
            return None
        return int(self._ids[self._ids.rfind(b"\n", 0, found) + 1 : found]) - 1

    def message(self, at: int) -> Message:
        """Raises:
        FileNotFoundError: the name cannot be one of a file in the maildrop.
        """
        unique_id = self._unique_id(at)
        return Message(unique_id, self.file(at, unique_id), self._sizes[at], self.form(at))

    def file(self, at: int, unique_id: str) -> File:
        """Its file, for who knows its unique-id.

        Raises:
            FileNotFoundError: as ``message``.
        """
        begin = self._name_ends[at - 1] if at else 0
        packed = os.fsdecode(self._names[begin : self._name_ends[at]])
        name = packed[2:] if packed[1] == ":" else unique_id + packed[2:]
        if "/" in name:
            raise FileNotFoundError
        return File("new" if packed[0] == "n" else "cur", name, self._inodes[at])

    def form(self, at: int) -> Form:
        return _FORMS[self._forms[at]]

    def places(self) -> dict[int, int]:
        """Where each stands, by inode number; see ``is_of``."""
        return dict(zip(self._inodes, range(len(self)), strict=True))

    def is_of(self, at: int, file: File) -> bool:
        """Whether this one is known by that unique part and inode number."""
        begin = self._name_ends[at - 1] if at else 0
        packed = self._names[begin + 1 : self._name_ends[at]]
        if packed.startswith(b"="):
            unique = self._unique_id(at)
        else:
            unique = unique_part(os.fsdecode(packed[1:]))
        return self._inodes[at] == file.inode and unique == unique_part(file.name)

    def measured(self, at: int) -> tuple[int, Form]:
        return self._sizes[at], self.form(at)

    def corrected(self, sizes: Mapping[int, int]) -> Index:
        """The same with other sizes of messages that turned out to have another one."""
        messages = list(map(self.message, range(len(self))))
        for at, size in sizes.items():
            messages[at] = messages[at]._replace(size=size, form=Form.UNKNOWN)
        return Index(messages, self.stamps)

    @property
    def memory(self) -> int:
        """Octets that it takes, nearly."""
        return 25 * len(self) + len(self._ids) + len(self._names) + len(self._scan)

    def _unique_id(self, at: int) -> str:
        begin = self._id_ends[at - 1] if at else 0
        return self._ids[begin + len(str(at + 1)) + 1 : self._id_ends[at] - 2].decode("ascii")

    # On disk.

    def _parts(self) -> list[bytes]:
        arrays = (self._sizes, self._inodes, self._id_ends, self._name_ends)
        return [
            *(each.tobytes() for each in arrays),
            self._forms,
            self._ids,
            self._names,
            self._scan,
        ]

    def encode(self, maildrop: int) -> bytes:
        """``maildrop``: the inode number of the directory it is for."""
        lengths = (len(self), len(self._ids), len(self._names), len(self._scan), self.octets)
        stamps = self.stamps or (0,) * 9
        octets = b"".join([_MAGIC, _HEADER.pack(maildrop, *stamps, *lengths), *self._parts()])
        return octets + _digest(octets)

    @classmethod
    def decode(cls, octets: bytes, maildrop: int) -> Index | None:
        """None: damaged, of another version, or another maildrop's."""
        begin = len(_MAGIC) + _HEADER.size
        body = memoryview(octets)[:-_DIGEST]
        if len(body) < begin or not octets.startswith(_MAGIC) or octets[-_DIGEST:] != _digest(body):
            return None
        owner, *rest = _HEADER.unpack(body[len(_MAGIC) : begin])
        count, ids, names, scan, total = rest[9:]
        index = cls((), tuple(rest[:9]) if any(rest[:9]) else ())
        index.octets = total
        wide = array("I").itemsize * count
        cuts = [8 * count, 8 * count, wide, wide, count, ids, names, scan]
        if owner != maildrop or begin + sum(cuts) != len(body):
            return None
        parts = []
        for length in cuts:
            parts.append(bytes(body[begin : begin + length]))
            begin += length
        numbers = (index._sizes, index._inodes, index._id_ends, index._name_ends)
        for numbers_of, part in zip(numbers, parts, strict=False):
            numbers_of.frombytes(part)
        index._forms, index._ids, index._names, index._scan = parts[4:]
        return index


def stamps(maildrop: int) -> Stamps:
    """What they are now."""
    adopted: tuple[int, ...]
    try:
        adopted = files.stamp(ADOPTED, maildrop)
    except FileNotFoundError:
        adopted = (0, 0, 0)
    return (*files.stamp("new", maildrop), *files.stamp("cur", maildrop), *adopted)


def trusted(found: Stamps, began: int) -> Stamps:
    """These, if they are older than ``began``, a time of the same file system; else none."""
    times = [*found[1::3], *found[2::3]]
    return found if max(times, default=began) < began else ()


def load(maildrop: int) -> Index | None:
    """What lies on disk, if it can be believed."""
    try:
        return Index.decode(files.read(INDEX, maildrop), files.inode(maildrop))
    except OSError:
        return None


def save(maildrop: int, index: Index) -> None:
    """A maildrop goes on without: on a full disk, or one that is read only."""
    with suppress(OSError):
        files.replace_cache(INDEX, index.encode(files.inode(maildrop)), maildrop)


def _packed(message: Message) -> bytes:
    """Directory and name; what repeats the unique-id is left out."""
    unique, name = unique_part(message.file.name), message.file.name
    told = f"={name[len(unique) :]}" if unique == message.unique_id else f":{name}"
    return os.fsencode(message.file.directory[0] + told)


def _digest(octets: bytes | memoryview) -> bytes:
    return hashlib.blake2b(octets, digest_size=_DIGEST).digest()
