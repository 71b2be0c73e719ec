"""The index of a maildrop: the data that sessions need, so that they need not open messages.

An index contains the unique-id, the size, the form and the file of each message, the complete
responses to LIST and UIDL, and the stamps of the directories, which show whether the maildrop has
changed.  The index on disk is a cache.  It is rebuilt whenever it may be wrong, replaced
atomically, and never synced.  A checksum detects torn writes, and the inode number of the maildrop
detects an index that was copied from another maildrop.

How an index is updated
-----------------------
Building the index of 100,000 messages takes 1.4 s of processor time, and the most common change is
one new message.  Therefore an index is derived from its predecessor:

1. ``refresh`` compares the names and inode numbers in the directories that changed with those
   of the index, and sorts the messages into three groups, which form an ``IndexChange``: removed,
   replaced (another file or size), and added.
2. ``Index.changed`` finds the first row that differs.  Earlier rows are copied as octets.  Later
   rows are rebuilt, because their message-numbers in the responses to LIST and UIDL change.  They
   are rebuilt column by column, without one object per message.  New mail normally sorts to the
   end, so nearly everything is copied.
3. ``apply_change`` appends the change to the file.  An appended change is followed by a checksum
   that includes the previous checksum, so the change continues exactly one predecessor.  Reading
   stops at a change that is torn or that continues another index.  Everything before such a change
   is an older but complete index, and its stamps show that it is older.  Nothing is appended after
   a torn change.
4. Two processes may append at the same time.  Each process appends only to the file that it has
   read or written itself, identified by inode number and length; otherwise it writes a new file.
5. After 64 KiB of changes the whole file is written again.

A stamp is trusted only if it is older than the session that read the directory, both measured by
the clock of the file system.  In that case any later change must alter the stamp, however coarse
the clock is.  See docs/decisions/0060-index.md and 0062-index-changes.md.

Security: programs that can write into a maildrop can write its index, so a file name from the
index is only looked up in ``new/`` or ``cur/``, and must not contain a slash.
Limits: an index of 100,000 messages with restante's unique-ids takes about 10 MB.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from enum import IntEnum
from itertools import accumulate, compress
from os.path import commonprefix
from typing import NamedTuple, overload

from ..maildrop import Entry, Rendered
from ..scanning import NO_STAMP, Stamp
from . import files
from .adopted import ADOPTED
from .names import File, Identity, delivered_at, unique_part

INDEX = "restante.index"

_MAGIC = f"restante index 2 {sys.byteorder}\n".encode()
_MAGIC_PREFIX = b"restante index "  # of all versions
_HEADER = struct.Struct("=Q 9Q 6Q")  # maildrop, stamps, lengths
_OWNER = struct.Struct("=Q")
_CHANGE = struct.Struct("=9Q 3Q")  # stamps, lengths
_DIGEST = 16  # octets; detects accidental damage, not forgery
_NEW = 4  # flag in a form's octet: the file is in new/
_FILE_NAMES = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
# Octets of appended changes after which the whole file is written again, because the first login
# of each process must apply all changes.  A change with one message takes about 400 octets.
_MAX_APPENDED = 65_536

Stamps = tuple[int, ...]
"""Inode number, mtime and ctime of new/, of cur/, and of the file of adopted ids (zeros if that
file is missing).  ``NO_STAMP`` replaces a stamp that is not trusted."""

UNKNOWN: Stamps = NO_STAMP * 3
INCOMPLETE: Stamps = (0,) * 9
"""Replaces the stamps of an index that may lack messages that are in the maildrop."""


class Form(IntEnum):
    """How the stored octets of a message relate to those on the wire."""

    UNKNOWN = 0
    """The message must be converted, and its size is counted during the conversion."""
    CRLF = 1
    """Every line ends with CRLF."""
    READY = 2
    """Every line ends with CRLF, and no line begins with a dot."""
    GUESSED = 3
    """The message could not be read; its size is a guess."""


_FORMS = tuple(Form) * 2
_IN_NEW, _IN_CUR = (bytes((octet >= _NEW) == is_new for octet in range(256)) for is_new in (1, 0))


class Row(NamedTuple):
    """A message in an index."""

    unique_id: str
    file: File
    size: int
    """Octets on the wire."""
    form: Form = Form.UNKNOWN


class IndexChange(NamedTuple):
    """The difference between an index and its predecessor.

    Positions refer to the predecessor.
    """

    removed: Sequence[int] = ()
    """Positions of removed messages."""
    replaced: Mapping[int, Row] = {}
    """New rows of messages with another file or size, by position."""
    added: Sequence[Row] = ()
    """New messages.  ``changed`` inserts them in order, after the messages whose order comes from
    another server."""


class IndexFile(NamedTuple):
    """Describes the file of an index, so that changes can be appended to this file."""

    inode: int
    octets: int
    appended: int
    """The number of these octets that are appended changes."""
    digest: bytes
    """The last checksum in the file."""

    def extended(self, octets: int, digest: bytes) -> IndexFile:
        return IndexFile(self.inode, self.octets + octets, self.appended + octets, digest)


class _Columns:
    """Rows stored by column, used to build or change an index."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.packed: list[bytes] = []
        """Directory and name, without the part that repeats the unique-id."""
        self.sizes, self.inodes = array("Q"), array("Q")
        self.forms = bytearray()

    def insert(self, position: int, message: Row) -> None:
        self.ids.insert(position, message.unique_id)
        self.packed.insert(position, _packed(message))
        self.sizes.insert(position, message.size)
        self.inodes.insert(position, message.file.inode)
        self.forms.insert(position, message.form | _NEW * (message.file.directory == "new"))

    def remove(self, position: int) -> None:
        for column in (self.ids, self.packed, self.sizes, self.inodes, self.forms):
            del column[position]

    def key(self, position: int) -> tuple[int, str]:
        return _order(self.ids[position], self.packed[position])


class Index(Rendered):
    """The index of one maildrop, also used as the listing of each session.

    An index is immutable and shared by the sessions of a process.
    """

    def __init__(
        self, messages: Iterable[Row] = (), stamps: Stamps = UNKNOWN, ordered_count: int = 0
    ) -> None:
        self.stamps = stamps
        self.on_disk: IndexFile | None = None
        """The file that contains exactly this index, if known."""
        self._ordered_count = ordered_count  # messages at the start, in another server's order
        self._sizes, self._inodes = array("Q"), array("Q")
        self._id_ends, self._name_ends = array("I"), array("I")
        self._forms = self._ids = self._names = self._scan = b""
        self.octets = 0
        rows = _Columns()
        for position, message in enumerate(messages):
            rows.insert(position, message)
        self._extend(rows)

    def _extend(self, rows: _Columns) -> None:
        """Append rows.  Must be called only while the index is being built."""
        first = len(self) + 1
        ids = [f"{number} {unique_id}\r\n" for number, unique_id in enumerate(rows.ids, first)]
        scan = [f"{number} {size}\r\n" for number, size in enumerate(rows.sizes, first)]
        self._id_ends.extend(_ends(map(len, ids), len(self._ids)))
        self._name_ends.extend(_ends(map(len, rows.packed), len(self._names)))
        self._ids += "".join(ids).encode("ascii")
        self._scan += "".join(scan).encode("ascii")
        self._names += b"".join(rows.packed)
        self._sizes += rows.sizes
        self._inodes += rows.inodes
        self._forms += rows.forms
        self.octets += sum(rows.sizes)

    # The listing

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, position: int) -> Entry: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Entry]: ...
    def __getitem__(self, position: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(position, slice):
            positions = range(len(self))[position]
            if position.step not in (None, 1) or not positions:
                return [self[each] for each in positions]
            ids = self._unique_ids(positions.start, positions.stop)
            return list(map(Entry, ids, self._sizes[position], positions))
        if position < 0:
            position = range(len(self))[position]
        return Entry(self._unique_id(position), self._sizes[position], position)

    def scan_listing(self) -> bytes:
        return self._scan

    def unique_id_listing(self) -> bytes:
        return self._ids

    # Look-ups for the store

    def find(self, entry: Entry) -> int | None:
        """Return the position of an entry, found by its key or else by its unique-id."""
        position = entry.key
        if 0 <= position < len(self._sizes) and self._unique_id(position) == entry.unique_id:
            return position
        found_at = self._ids.find(f" {entry.unique_id}\r\n".encode("ascii", "replace"))
        if found_at < 0:
            return None
        return int(self._ids[self._ids.rfind(b"\n", 0, found_at) + 1 : found_at]) - 1

    def row(self, position: int) -> Row:
        """Return the message at this position.

        Raises:
            FileNotFoundError: the stored name cannot belong to a file in the maildrop.
        """
        unique_id = self._unique_id(position)
        return Row(
            unique_id, self.file(position, unique_id), self._sizes[position], self.form(position)
        )

    def file(self, position: int, unique_id: str) -> File:
        """Return the file of the message at this position, which has this unique-id.

        Raises:
            FileNotFoundError: the stored name cannot belong to a file in the maildrop.
        """
        begin = self._name_ends[position - 1] if position else 0
        packed = self._names[begin : self._name_ends[position]].decode(*_FILE_NAMES)
        name = packed[2:] if packed[1] == ":" else unique_id + packed[2:]
        if "/" in name:
            raise FileNotFoundError
        return File("new" if packed[0] == "n" else "cur", name, self._inodes[position])

    def files_in(self, directory: str) -> dict[str, int]:
        """Return the positions of the messages in this directory, by file name."""
        is_in = self._forms.translate(_IN_NEW if directory == "new" else _IN_CUR)
        first, end = is_in.find(1), is_in.rfind(1) + 1
        if not end:
            return {}
        is_in = is_in[first:end]
        positions = list(compress(range(first, end), is_in))
        ids = compress(self._unique_ids(first, end), is_in)
        begin = self._name_ends[first - 1] if first else 0
        packed = self._names[begin : self._name_ends[end - 1]].decode("latin-1")  # cut by octets
        ends = [each - begin for each in self._name_ends[first:end]]
        bounds = compress(zip([0, *ends[:-1]], ends, strict=True), is_in)
        rows = [packed[begin:end] for begin, end in bounds]
        names = [
            row[2:] if row[1] == ":" else unique_id + row[2:]
            for unique_id, row in zip(ids, rows, strict=True)
        ]
        if not packed.isascii():
            names = [os.fsdecode(name.encode("latin-1")) for name in names]
        return dict(zip(names, positions, strict=True))

    @property
    def inodes(self) -> Sequence[int]:
        return self._inodes

    def has(self, unique_ids: Iterable[str]) -> bool:
        """Return whether one of these unique-ids is in the index.

        The ids of new mail usually begin with the same digits of the time.  Few other ids begin
        with these digits, and only those are compared.
        """
        lines = {f" {each}\r\n" for each in unique_ids}
        if not lines:
            return False
        beginning = commonprefix(list(lines)).encode("ascii")  # noqa: RUF071  # of characters
        begin = self._ids.find(beginning)
        while begin >= 0:
            end = self._ids.index(b"\n", begin) + 1
            if self._ids[begin:end].decode("ascii") in lines:
                return True
            begin = self._ids.find(beginning, end)
        return False

    @property
    def is_complete(self) -> bool:
        """Whether every message that was ever listed is in this index or known to be removed."""
        return self.stamps != INCOMPLETE

    @property
    def directories(self) -> dict[str, Stamp]:
        """The stamps of new/ and cur/."""
        new, cur = self.stamps[:3], self.stamps[3:6]
        return {"new": (new[0], new[1], new[2]), "cur": (cur[0], cur[1], cur[2])}

    @property
    def is_guessed(self) -> bool:
        """Whether the size of some message is a guess."""
        return Form.GUESSED in self._forms or _NEW | Form.GUESSED in self._forms

    def form(self, position: int) -> Form:
        return _FORMS[self._forms[position]]

    def positions(self) -> dict[int, int]:
        """Return positions by inode number.

        The inode numbers may have been reused since; ``matches`` also compares the names.
        """
        return dict(zip(self._inodes, range(len(self)), strict=True))

    def matches(self, position: int, file: File) -> bool:
        """Return whether this message has the unique part and the inode number of ``file``."""
        return self._identity(position, self._unique_id(position)) == file.identity

    def victims(self, entries: Iterable[Entry]) -> dict[Identity, str]:
        """Return the unique-ids of these messages by identity.

        Messages that are not in the index are left out.
        """
        pairs = ((self.find(entry), entry.unique_id) for entry in entries)
        return {
            self._identity(position, unique_id): unique_id
            for position, unique_id in pairs
            if position is not None
        }

    def _identity(self, position: int, unique_id: str) -> Identity:
        """Return the identity of the message at this position, which has this unique-id."""
        begin = self._name_ends[position - 1] if position else 0
        if self._names.startswith(b"=", begin + 1):
            return unique_id, self._inodes[position]
        name = os.fsdecode(self._names[begin + 2 : self._name_ends[position]])
        return unique_part(name), self._inodes[position]

    def measured(self, position: int) -> tuple[int, Form]:
        return self._sizes[position], self.form(position)

    def with_forms(self, forms: Mapping[int, Form]) -> Index:
        """Return the same index with other forms at these positions."""
        new = copy(self)
        octets = bytearray(self._forms)
        for position, form in forms.items():
            octets[position] = octets[position] & _NEW | form
        new._forms = bytes(octets)
        return new

    def changed(self, change: IndexChange, stamps: Stamps) -> Index:
        """Return the index after a change; the module's docstring describes the steps."""
        added = sorted(change.added, key=_key)
        first = min(
            [
                *change.removed,
                *change.replaced,
                *(self._position_of(each) for each in added[:1]),
                len(self),
            ]
        )
        new, rows = self._first(first, stamps), self._columns(first, len(self))
        for position, message in change.replaced.items():
            rows.remove(position - first)
            rows.insert(position - first, message)
        for position in sorted(change.removed, reverse=True):
            rows.remove(position - first)
            new._ordered_count -= position < self._ordered_count
        position = max(0, new._ordered_count - first)
        for message in added:
            position = bisect_left(range(len(rows.ids)), _key(message), position, key=rows.key)
            rows.insert(position, message)
        new._extend(rows)
        return new

    def _position_of(self, message: Row) -> int:
        """Return the position of a new message in the order of the index."""
        return bisect_left(range(len(self)), _key(message), self._ordered_count, key=self._key_at)

    def _key_at(self, position: int) -> tuple[int, str]:
        begin = self._name_ends[position - 1] if position else 0
        return _order(self._unique_id(position), self._names[begin : self._name_ends[position]])

    def _first(self, count: int, stamps: Stamps) -> Index:
        """Return an index of the first messages, to be extended."""
        if count == len(self):
            scan_end, octets = len(self._scan), self.octets
        else:
            scan_end = self._scan.find(b"\n%d " % (count + 1)) + 1
            octets = sum(self._sizes[:count])
        new = Index((), stamps, self._ordered_count)
        new._sizes, new._inodes = self._sizes[:count], self._inodes[:count]
        new._id_ends, new._name_ends = self._id_ends[:count], self._name_ends[:count]
        new._forms, new._scan, new.octets = self._forms[:count], self._scan[:scan_end], octets
        if count:
            new._ids = self._ids[: self._id_ends[count - 1]]
            new._names = self._names[: self._name_ends[count - 1]]
        return new

    def _unique_ids(self, first: int, end: int) -> list[str]:
        if first == end:  # an empty index has no line endings to look up
            return []
        begin = self._id_ends[first - 1] if first else 0
        # Message-numbers and unique-ids in turn; neither contains white space (RFC 1939 §7).
        return self._ids[begin : self._id_ends[end - 1]].decode("ascii").split()[1::2]

    def _columns(self, first: int, end: int) -> _Columns:
        rows = _Columns()
        if first == end:
            return rows
        rows.ids = self._unique_ids(first, end)
        ends = self._name_ends[first:end]
        begins = [self._name_ends[first - 1] if first else 0, *ends[:-1]]
        rows.packed = [self._names[begin:end] for begin, end in zip(begins, ends, strict=True)]
        rows.sizes, rows.inodes = self._sizes[first:end], self._inodes[first:end]
        rows.forms = bytearray(self._forms[first:end])
        return rows

    @property
    def memory(self) -> int:
        """Approximate size in octets."""
        return 25 * len(self) + len(self._ids) + len(self._names) + len(self._scan)

    def _unique_id(self, position: int) -> str:
        begin = self._id_ends[position - 1] if position else 0
        return self._ids[begin + len(str(position + 1)) + 1 : self._id_ends[position] - 2].decode(
            "ascii"
        )

    # On disk

    def has_same_answers(self, messages: Iterable[Row]) -> bool:
        """Return whether an index built from these messages would result in the same responses."""
        other = Index(messages)
        return self._parts() == other._parts() and self.octets == other.octets

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
        """Return the file's content; ``maildrop`` is the inode number of its maildrop."""
        lengths = (len(self), len(self._ids), len(self._names), len(self._scan))
        header = _HEADER.pack(maildrop, *self.stamps, *lengths, self.octets, self._ordered_count)
        octets = b"".join([_MAGIC, header, *self._parts()])
        return octets + _digest(octets)

    @classmethod
    def decode(cls, octets: bytes | memoryview, maildrop: int) -> Index | None:
        """Read an index with all appended changes.

        The attribute ``on_disk`` of the result shows how much of the file is valid.  Returns None
        if the file is damaged, or if it has another version or belongs to another maildrop.
        """
        index = cls._decode(memoryview(octets), maildrop)
        return None if index is None else index.continued(memoryview(octets)[index._end :])

    @property
    def _end(self) -> int:
        """Number of octets in the file up to and including this index."""
        return self.on_disk.octets if self.on_disk is not None else 0

    def continued(self, octets: memoryview) -> Index:
        """Return the index after applying the complete changes that follow it in the file."""
        index, offset = self, 0
        while (successor := index._decode_change(octets[offset:])) is not None:
            offset += successor._end - index._end
            index = successor
        return index

    @classmethod
    def _decode(cls, octets: memoryview, maildrop: int) -> Index | None:
        begin = len(_MAGIC) + _HEADER.size
        if len(octets) < begin or octets[: len(_MAGIC)] != _MAGIC:
            return None
        owner, *rest = _HEADER.unpack(octets[len(_MAGIC) : begin])
        count, ids, names, scan, total, ordered_count = rest[9:]
        end_size = array("I").itemsize * count
        lengths = [8 * count, 8 * count, end_size, end_size, count, ids, names, scan]
        end = begin + sum(lengths)
        digest = bytes(octets[end : end + _DIGEST])
        if owner != maildrop or digest != _digest(octets[:end]):
            return None
        index = cls((), tuple(rest[:9]), ordered_count)
        index.octets = total
        index.on_disk = IndexFile(0, end + _DIGEST, 0, digest)
        parts = []
        for length in lengths:
            parts.append(bytes(octets[begin : begin + length]))
            begin += length
        numbers = (index._sizes, index._inodes, index._id_ends, index._name_ends)
        for column, part in zip(numbers, parts, strict=False):
            column.frombytes(part)
        index._forms, index._ids, index._names, index._scan = parts[4:]
        return index

    def _decode_change(self, octets: memoryview) -> Index | None:
        """Return the index after the change at the start of ``octets``.

        Returns None if the change is missing or torn.
        """
        assert self.on_disk is not None
        if len(octets) < _CHANGE.size:
            return None
        *new_stamps, removed, replaced, length = _CHANGE.unpack(octets[: _CHANGE.size])
        positions_end = _CHANGE.size + 8 * (removed + replaced)
        end = positions_end + length
        digest = bytes(octets[end : end + _DIGEST])
        if digest != _digest(self.on_disk.digest, octets[:end]):
            return None
        positions = array("Q", bytes(octets[_CHANGE.size : positions_end]))
        table = Index._decode(octets[positions_end:end], 0)
        if table is None:
            return None
        messages = list(map(table.row, range(len(table))))
        change = IndexChange(
            positions[:removed],
            dict(zip(positions[removed:], messages, strict=False)),
            messages[replaced:],
        )
        successor = self.changed(change, tuple(new_stamps))
        successor.on_disk = self.on_disk.extended(end + _DIGEST, digest)
        return successor


def _encode_change(change: IndexChange, stamps: Stamps, before: bytes) -> bytes:
    """Encode a change.  ``before`` is the checksum of the index to which the change applies."""
    positions = array("Q", [*change.removed, *change.replaced])
    rows = Index([*change.replaced.values(), *change.added]).encode(0)
    header = _CHANGE.pack(*stamps, len(change.removed), len(change.replaced), len(rows))
    octets = header + positions.tobytes() + rows
    return octets + _digest(before, octets)


def stamps(maildrop: int) -> Stamps:
    """Return the current stamps of a maildrop."""
    adopted: tuple[int, ...]
    try:
        adopted = files.stamp(ADOPTED, maildrop)
    except FileNotFoundError:
        adopted = (0, 0, 0)
    return (*files.stamp("new", maildrop), *files.stamp("cur", maildrop), *adopted)


def trusted(current: Stamps, began: int) -> Stamps:
    """Return the stamps with ``NO_STAMP`` in place of those that are not older than ``began``.

    ``began`` is a time of the same file system.
    """
    older: list[int] = []
    for start in range(0, 9, 3):
        stamp = current[start : start + 3]
        older += stamp if max(stamp[1:]) < began else NO_STAMP
    return tuple(older)


def load(maildrop: int, cached: Index | None = None) -> Index | None:
    """Return the index on disk, or None if it is missing or damaged.

    If the file still begins with the index ``cached``, only the changes appended after that index
    are read.
    """
    try:
        inode = files.status(INDEX, maildrop).st_ino
        index, end = _continuation(maildrop, cached) if cached is not None else (None, 0)
        if index is None:
            octets = files.read(INDEX, maildrop)
            index, end = Index.decode(octets, files.inode(maildrop)), len(octets)
    except OSError:
        return None
    if index is not None and index.on_disk is not None and index is not cached:
        is_complete = index.on_disk.octets == end
        index.on_disk = index.on_disk._replace(inode=inode) if is_complete else None
    return index


def _continuation(maildrop: int, cached: Index) -> tuple[Index | None, int]:
    """Return the index on disk, and the length of its file in octets.

    The index is None if the file does not begin with ``cached``.  The checksum shows whether it
    does, because a replacement file can get the same inode number.
    """
    if cached.on_disk is None:
        return None, 0
    begin = cached.on_disk.octets - _DIGEST
    octets = files.read(INDEX, maildrop, begin)
    if octets[:_DIGEST] != cached.on_disk.digest:
        return None, 0
    return cached.continued(memoryview(octets)[_DIGEST:]), begin + len(octets)


def is_damaged(maildrop: int) -> bool:
    """Return whether the file exists and is not a valid index.

    The index of another version, or of a maildrop with another inode number (a copy, or a restored
    backup), is not used, but it is not damaged.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        octets = files.read(INDEX, maildrop)
    except FileNotFoundError:
        return False
    if not octets.startswith(_MAGIC):
        return not octets.startswith(_MAGIC_PREFIX)
    owner = octets[len(_MAGIC) : len(_MAGIC) + _OWNER.size]
    return len(owner) < _OWNER.size or Index.decode(octets, *_OWNER.unpack(owner)) is None


def save(maildrop: int, index: Index, *, durably: bool = False) -> None:
    """Write the index.

    Failures are ignored, because a maildrop also works without an index file, for example on a full
    or read-only disk.
    """
    try:
        octets = index.encode(files.inode(maildrop))
        inode = files.replace_cache(INDEX, octets, maildrop, durably=durably)
        index.on_disk = IndexFile(inode, len(octets), 0, octets[-_DIGEST:])
    except OSError:
        with suppress(OSError):  # the file on disk is older than this index
            files.unlink(INDEX, maildrop)


def forget(maildrop: int) -> None:
    """Make every process rebuild its index at the next login."""
    with suppress(FileNotFoundError):
        files.unlink(INDEX, maildrop)
    files.renew_ctime("new", maildrop)


def apply_change(maildrop: int, old: Index, change: IndexChange, stamps: Stamps) -> Index:
    """Return the index after a change, and update the index file."""
    new = old.changed(change, stamps)
    on_disk = old.on_disk
    if on_disk is not None and on_disk.appended < _MAX_APPENDED:
        octets = _encode_change(change, stamps, on_disk.digest)
        with suppress(OSError):
            if files.append_cache(INDEX, octets, maildrop, (on_disk.inode, on_disk.octets)):
                new.on_disk = on_disk.extended(len(octets), octets[-_DIGEST:])
    if new.on_disk is None:
        save(maildrop, new)
    return new


def _packed(message: Row) -> bytes:
    """Return directory and name, without the part that repeats the unique-id."""
    unique, name = unique_part(message.file.name), message.file.name
    rest = f"={name[len(unique) :]}" if unique == message.unique_id else f":{name}"
    return os.fsencode(message.file.directory[0] + rest)


def _order(unique_id: str, packed: bytes) -> tuple[int, str]:
    """Return the key by which ``names.identify`` sorts."""
    rest = os.fsdecode(packed[2:])
    return delivered_at(unique_id + rest if packed[1:2] == b"=" else rest), unique_id


def _key(message: Row) -> tuple[int, str]:
    return delivered_at(message.file.name), message.unique_id


def _ends(lengths: Iterable[int], begin: int) -> Iterator[int]:
    ends = accumulate(lengths, initial=begin)
    next(ends)
    return ends


def _digest(*octets: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for each in octets:
        digest.update(each)
    return digest.digest()
