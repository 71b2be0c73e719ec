"""The index of a maildrop: all that a session needs, without opening a message.

It holds the unique-id, the size, the form and the file of each message, the answers to LIST and
UIDL as they are sent, and the stamps of the directories, which show whether a maildrop has
changed.  On disk it is a cache: rebuilt in any doubt, replaced atomically, never synced.  A
checksum finds torn writes, and the inode number of the maildrop finds an index that was copied
from another one.

How an index follows a change
-----------------------------
Building the index of 100,000 messages takes 1.4 s of processor time, and the most common change is
one new message.  So an index is derived from its predecessor:

1. ``refresh`` compares the names and inode numbers in the directories that changed with those
   of the index, and sorts the result into messages that are gone, that have another file or
   size, and that are new: an ``IndexChange``.
2. ``Index.changed`` finds the first row that differs.  Rows before it are copied as octets.  Rows
   from there on are rebuilt, because the message-numbers in the answers to LIST and UIDL change
   there, but from columns, not from one object per message.  New mail normally sorts to the
   end, so nearly everything is copied.
3. ``follow`` appends the change to the file.  An appended change is followed by a checksum that
   includes the previous checksum, so it continues exactly one predecessor.  A torn change, or one
   that continues another index, ends what is believed; everything before it is an older index but
   a complete one, and its stamps show that it is older.  Nothing is appended behind a torn change.
4. Two processes may append at the same time.  Each appends only to the file that it has read
   or written itself, known by inode number and length; otherwise it writes a new file.
5. After 64 KiB of changes the whole file is written again.

A stamp is trusted only if it is older than the session that read the directory, both measured by
the clock of the file system: then any later change must move it, however coarse that clock is.
See docs/decisions/0060-index.md and 0062-index-changes.md.

Security: programs that can write into a maildrop can write its index, so a name in the index is
only looked up in ``new/`` or ``cur/`` and may contain no slash.
Limits: 100,000 messages with our unique-ids take some 10 MB.
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
from typing import NamedTuple, overload

from ..maildrop import Entry, Rendered
from ..scanning import NO_STAMP, Stamp
from . import files
from .adopted import ADOPTED
from .names import File, delivered_at, unique_part

INDEX = "restante.index"

_MAGIC = f"restante index 2 {sys.byteorder}\n".encode()
_MAGIC_OF_ANY = b"restante index "  # version
_HEADER = struct.Struct("=Q 9Q 6Q")  # maildrop, stamps, lengths
_OWNER = struct.Struct("=Q")
_CHANGE = struct.Struct("=9Q 3Q")  # stamps, lengths
_DIGEST = 16  # octets: finds accidents, not forgeries
_NEW = 4  # in the octet of a form: the file is in new/
_FILE_NAMES = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_FEW = 8  # unique-ids; searching the octets for each is faster than decoding all up to here
# Octets of appended changes after which the whole file is written again: the first login of each
# process must apply all of them.  A change with one message takes some 400 octets.
_APPENDED = 65_536

Stamps = tuple[int, ...]
"""Inode number, mtime and ctime of new/, of cur/, and of the file of adopted ids (zeros if that
file is missing).  ``NO_STAMP`` in place of a stamp that is not trusted."""

UNKNOWN: Stamps = NO_STAMP * 3
INCOMPLETE: Stamps = (0,) * 9
"""In place of stamps: this index may lack messages that are in the maildrop."""


class Form(IntEnum):
    """How the stored octets of a message relate to those on the wire."""

    UNKNOWN = 0
    """Must be converted, and its size counted meanwhile."""
    CRLF = 1
    """Every line ends with CRLF."""
    READY = 2
    """As CRLF, and no line begins with a dot."""
    GUESSED = 3
    """Could not be read; the size is a guess."""


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
    """The difference between an index and its predecessor.  Places refer to the predecessor."""

    gone: Sequence[int] = ()
    other: Mapping[int, Row] = {}
    """By place, the same messages with another file or size."""
    added: Sequence[Row] = ()
    """Sorted in by ``changed``, behind messages whose order comes from another server."""


class IndexFile(NamedTuple):
    """The file that holds an index, to append changes to it."""

    inode: int
    octets: int
    appended: int
    """The number of these octets that are appended changes."""
    digest: bytes
    """The last checksum in it."""

    def extended(self, octets: int, digest: bytes) -> IndexFile:
        return IndexFile(self.inode, self.octets + octets, self.appended + octets, digest)


class _Columns:
    """Rows as columns, on their way into an index or out of it."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.packed: list[bytes] = []
        """Directory and name; what repeats the unique-id is left out."""
        self.sizes, self.inodes = array("Q"), array("Q")
        self.forms = bytearray()

    def insert(self, at: int, message: Row) -> None:
        self.ids.insert(at, message.unique_id)
        self.packed.insert(at, _packed(message))
        self.sizes.insert(at, message.size)
        self.inodes.insert(at, message.file.inode)
        self.forms.insert(at, message.form | _NEW * (message.file.directory == "new"))

    def remove(self, at: int) -> None:
        for column in (self.ids, self.packed, self.sizes, self.inodes, self.forms):
            del column[at]

    def key(self, at: int) -> tuple[int, str]:
        return _order(self.ids[at], self.packed[at])


class Index(Rendered):
    """Immutable; sessions of one process share it.  Also the listing of each."""

    def __init__(
        self, messages: Iterable[Row] = (), stamps: Stamps = UNKNOWN, placed: int = 0
    ) -> None:
        self.stamps = stamps
        self.on_disk: IndexFile | None = None
        """The file that has exactly this index, if it is known."""
        self._placed = placed  # number of first messages, whose order is from another server
        self._sizes, self._inodes = array("Q"), array("Q")
        self._id_ends, self._name_ends = array("I"), array("I")
        self._forms = self._ids = self._names = self._scan = b""
        self.octets = 0
        rows = _Columns()
        for at, message in enumerate(messages):
            rows.insert(at, message)
        self._extend(rows)

    def _extend(self, rows: _Columns) -> None:
        """Append rows.  Only while the index is being made."""
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
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        if at < 0:
            at = range(len(self))[at]
        return Entry(self._unique_id(at), self._sizes[at], at)

    def scan_listing(self) -> bytes:
        return self._scan

    def unique_id_listing(self) -> bytes:
        return self._ids

    # What the store looks up.

    def find(self, entry: Entry) -> int | None:
        """Return the position of an entry, found by its key or else by its unique-id."""
        at = entry.key
        if 0 <= at < len(self._sizes) and self._unique_id(at) == entry.unique_id:
            return at
        position = self._ids.find(f" {entry.unique_id}\r\n".encode("ascii", "replace"))
        if position < 0:
            return None
        return int(self._ids[self._ids.rfind(b"\n", 0, position) + 1 : position]) - 1

    def row(self, at: int) -> Row:
        """Raises:
        FileNotFoundError: the name cannot be one of a file in the maildrop.
        """
        unique_id = self._unique_id(at)
        return Row(unique_id, self.file(at, unique_id), self._sizes[at], self.form(at))

    def file(self, at: int, unique_id: str) -> File:
        """Return the file of the message at this position, which has this unique-id.

        Raises:
            FileNotFoundError: as ``row``.
        """
        begin = self._name_ends[at - 1] if at else 0
        packed = self._names[begin : self._name_ends[at]].decode(*_FILE_NAMES)
        name = packed[2:] if packed[1] == ":" else unique_id + packed[2:]
        if "/" in name:
            raise FileNotFoundError
        return File("new" if packed[0] == "n" else "cur", name, self._inodes[at])

    def files_in(self, directory: str) -> dict[str, int]:
        """Return the places of the messages in that directory, by file name."""
        is_there = self._forms.translate(_IN_NEW if directory == "new" else _IN_CUR)
        first, end = is_there.find(1), is_there.rfind(1) + 1
        if not end:
            return {}
        places = list(compress(range(first, end), is_there[first:end]))
        ids = self._unique_ids(first, places[-1] + 1)
        ends = self._name_ends
        packed = self._names.decode("latin-1")  # so that octets are counted
        rows = [packed[ends[at - 1] if at else 0 : ends[at]] for at in places]
        names = [
            row[2:] if row[1] == ":" else ids[at - first] + row[2:]
            for at, row in zip(places, rows, strict=True)
        ]
        if not packed.isascii():
            names = [os.fsdecode(name.encode("latin-1")) for name in names]
        return dict(zip(names, places, strict=True))

    @property
    def inodes(self) -> Sequence[int]:
        return self._inodes

    def has(self, unique_ids: Iterable[str]) -> bool:
        """Return whether one of these unique-ids is in the index."""
        wanted = set(unique_ids)
        if len(wanted) > _FEW:
            return not wanted.isdisjoint(self._unique_ids(0, len(self)))
        return any(f" {each}\r\n".encode("ascii") in self._ids for each in wanted)

    @property
    def is_complete(self) -> bool:
        """Whether no message that was ever listed is missing unless it is known to be gone."""
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

    def form(self, at: int) -> Form:
        return _FORMS[self._forms[at]]

    def places(self) -> dict[int, int]:
        """Return places by inode number; see ``is_of``."""
        return dict(zip(self._inodes, range(len(self)), strict=True))

    def is_of(self, at: int, file: File) -> bool:
        """Return whether the message there has that unique part and inode number."""
        begin = self._name_ends[at - 1] if at else 0
        packed = self._names[begin + 1 : self._name_ends[at]]
        if packed.startswith(b"="):
            unique = self._unique_id(at)
        else:
            unique = unique_part(os.fsdecode(packed[1:]))
        return self._inodes[at] == file.inode and unique == unique_part(file.name)

    def measured(self, at: int) -> tuple[int, Form]:
        return self._sizes[at], self.form(at)

    def learned(self, forms: Mapping[int, Form]) -> Index:
        """Return the same index with other forms at these places."""
        new = copy(self)
        octets = bytearray(self._forms)
        for at, form in forms.items():
            octets[at] = octets[at] & _NEW | form
        new._forms = bytes(octets)
        return new

    def changed(self, change: IndexChange, stamps: Stamps) -> Index:
        """Return the index after a change; see the module for the steps."""
        added = sorted(change.added, key=_key)
        first = min(
            [*change.gone, *change.other, *(self._place(each) for each in added[:1]), len(self)]
        )
        new, rows = self._first(first, stamps), self._columns(first, len(self))
        for at, message in change.other.items():
            rows.remove(at - first)
            rows.insert(at - first, message)
        for at in sorted(change.gone, reverse=True):
            rows.remove(at - first)
            new._placed -= at < self._placed
        at = max(0, new._placed - first)
        for message in added:
            at = bisect_left(range(len(rows.ids)), _key(message), at, key=rows.key)
            rows.insert(at, message)
        new._extend(rows)
        return new

    def _place(self, message: Row) -> int:
        """Return where a new message belongs."""
        return bisect_left(range(len(self)), _key(message), self._placed, key=self._key_at)

    def _key_at(self, at: int) -> tuple[int, str]:
        begin = self._name_ends[at - 1] if at else 0
        return _order(self._unique_id(at), self._names[begin : self._name_ends[at]])

    def _first(self, count: int, stamps: Stamps) -> Index:
        """Return an index of the first messages, to be extended."""
        if count == len(self):
            scan_end, octets = len(self._scan), self.octets
        else:
            scan_end = self._scan.find(b"\n%d " % (count + 1)) + 1
            octets = sum(self._sizes[:count])
        new = Index((), stamps, self._placed)
        new._sizes, new._inodes = self._sizes[:count], self._inodes[:count]
        new._id_ends, new._name_ends = self._id_ends[:count], self._name_ends[:count]
        new._forms, new._scan, new.octets = self._forms[:count], self._scan[:scan_end], octets
        if count:
            new._ids = self._ids[: self._id_ends[count - 1]]
            new._names = self._names[: self._name_ends[count - 1]]
        return new

    def _unique_ids(self, first: int, end: int) -> list[str]:
        if first == end:  # an empty index has no end of a line to look up
            return []
        begin = self._id_ends[first - 1] if first else 0
        lines = self._ids[begin : self._id_ends[end - 1]].decode("ascii").split("\r\n")
        return [line.partition(" ")[2] for line in lines[:-1]]

    def _columns(self, first: int, end: int) -> _Columns:
        rows = _Columns()
        if first == end:
            return rows
        rows.ids = self._unique_ids(first, end)
        ends = self._name_ends[first:end]
        begins = [self._name_ends[first - 1] if first else 0, *ends[:-1]]
        rows.packed = [self._names[at:to] for at, to in zip(begins, ends, strict=True)]
        rows.sizes, rows.inodes = self._sizes[first:end], self._inodes[first:end]
        rows.forms = bytearray(self._forms[first:end])
        return rows

    @property
    def memory(self) -> int:
        """Approximate size in octets."""
        return 25 * len(self) + len(self._ids) + len(self._names) + len(self._scan)

    def _unique_id(self, at: int) -> str:
        begin = self._id_ends[at - 1] if at else 0
        return self._ids[begin + len(str(at + 1)) + 1 : self._id_ends[at] - 2].decode("ascii")

    # On disk

    def has_same_answers(self, messages: Iterable[Row]) -> bool:
        """Return whether this index is what these messages would give."""
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
        header = _HEADER.pack(maildrop, *self.stamps, *lengths, self.octets, self._placed)
        octets = b"".join([_MAGIC, header, *self._parts()])
        return octets + _digest(octets)

    @classmethod
    def decode(cls, octets: bytes | memoryview, maildrop: int) -> Index | None:
        """Read an index with all appended changes; ``on_disk`` shows how much of it is believed.

        None: damaged, of another version, or of another maildrop.
        """
        index = cls._decode(memoryview(octets), maildrop)
        return None if index is None else index.continued(memoryview(octets)[index._end :])

    @property
    def _end(self) -> int:
        """Octets of the file up to and with this index."""
        return self.on_disk.octets if self.on_disk is not None else 0

    def continued(self, octets: memoryview) -> Index:
        """Return the index after the whole changes that follow it in its file."""
        index, at = self, 0
        while (later := index._decode_change(octets[at:])) is not None:
            at += later._end - index._end
            index = later
        return index

    @classmethod
    def _decode(cls, octets: memoryview, maildrop: int) -> Index | None:
        begin = len(_MAGIC) + _HEADER.size
        if len(octets) < begin or octets[: len(_MAGIC)] != _MAGIC:
            return None
        owner, *rest = _HEADER.unpack(octets[len(_MAGIC) : begin])
        count, ids, names, scan, total, placed = rest[9:]
        wide = array("I").itemsize * count
        cuts = [8 * count, 8 * count, wide, wide, count, ids, names, scan]
        end = begin + sum(cuts)
        digest = bytes(octets[end : end + _DIGEST])
        if owner != maildrop or digest != _digest(octets[:end]):
            return None
        index = cls((), tuple(rest[:9]), placed)
        index.octets = total
        index.on_disk = IndexFile(0, end + _DIGEST, 0, digest)
        parts = []
        for length in cuts:
            parts.append(bytes(octets[begin : begin + length]))
            begin += length
        numbers = (index._sizes, index._inodes, index._id_ends, index._name_ends)
        for numbers_of, part in zip(numbers, parts, strict=False):
            numbers_of.frombytes(part)
        index._forms, index._ids, index._names, index._scan = parts[4:]
        return index

    def _decode_change(self, octets: memoryview) -> Index | None:
        """Return the index after the change that begins there; None if it is missing or torn."""
        assert self.on_disk is not None
        if len(octets) < _CHANGE.size:
            return None
        *now, gone, other, rows = _CHANGE.unpack(octets[: _CHANGE.size])
        places_end = _CHANGE.size + 8 * (gone + other)
        end = places_end + rows
        digest = bytes(octets[end : end + _DIGEST])
        if digest != _digest(self.on_disk.digest, octets[:end]):
            return None
        places = array("Q", bytes(octets[_CHANGE.size : places_end]))
        table = Index._decode(octets[places_end:end], 0)
        if table is None:
            return None
        messages = list(map(table.row, range(len(table))))
        change = IndexChange(
            places[:gone], dict(zip(places[gone:], messages, strict=False)), messages[other:]
        )
        later = self.changed(change, tuple(now))
        later.on_disk = self.on_disk.extended(end + _DIGEST, digest)
        return later


def _encode_change(change: IndexChange, stamps: Stamps, before: bytes) -> bytes:
    """``before``: the checksum of the index that it continues."""
    places = array("Q", [*change.gone, *change.other])
    rows = Index([*change.other.values(), *change.added]).encode(0)
    header = _CHANGE.pack(*stamps, len(change.gone), len(change.other), len(rows))
    octets = header + places.tobytes() + rows
    return octets + _digest(before, octets)


def stamps(maildrop: int) -> Stamps:
    """Return the current stamps."""
    adopted: tuple[int, ...]
    try:
        adopted = files.stamp(ADOPTED, maildrop)
    except FileNotFoundError:
        adopted = (0, 0, 0)
    return (*files.stamp("new", maildrop), *files.stamp("cur", maildrop), *adopted)


def trusted(current: Stamps, began: int) -> Stamps:
    """Return the stamps that are older than ``began``, a time of the same file system; ``NO_STAMP``
    for the others."""
    older: list[int] = []
    for at in range(0, 9, 3):
        one = current[at : at + 3]
        older += one if max(one[1:]) < began else NO_STAMP
    return tuple(older)


def load(maildrop: int, known: Index | None = None) -> Index | None:
    """Return the index on disk, or None if it is missing or damaged.

    ``known``: if its file still begins with it, only what was appended since then is read.
    """
    try:
        inode = files.status(INDEX, maildrop).st_ino
        index, end = _continuation(maildrop, known) if known is not None else (None, 0)
        if index is None:
            octets = files.read(INDEX, maildrop)
            index, end = Index.decode(octets, files.inode(maildrop)), len(octets)
    except OSError:
        return None
    if index is not None and index.on_disk is not None and index is not known:
        is_whole = index.on_disk.octets == end
        index.on_disk = index.on_disk._replace(inode=inode) if is_whole else None
    return index


def _continuation(maildrop: int, known: Index) -> tuple[Index | None, int]:
    """Return the index on disk, and the octets of its file; None if that does not begin with
    ``known``.

    The checksum decides, since a file that was replaced may have got the same inode number.
    """
    if known.on_disk is None:
        return None, 0
    begin = known.on_disk.octets - _DIGEST
    octets = files.read(INDEX, maildrop, begin)
    if octets[:_DIGEST] != known.on_disk.digest:
        return None, 0
    return known.continued(memoryview(octets)[_DIGEST:]), begin + len(octets)


def is_damaged(maildrop: int) -> bool:
    """Return whether the file exists and is not a valid index.

    The index of another version, or of a maildrop with another inode number (a copy, or a restored
    backup), is not used, but it is not damaged.

    Raises:
        OSError: it cannot be read.
    """
    try:
        octets = files.read(INDEX, maildrop)
    except FileNotFoundError:
        return False
    if not octets.startswith(_MAGIC):
        return not octets.startswith(_MAGIC_OF_ANY)
    owner = octets[len(_MAGIC) : len(_MAGIC) + _OWNER.size]
    return len(owner) < _OWNER.size or Index.decode(octets, *_OWNER.unpack(owner)) is None


def save(maildrop: int, index: Index, *, durably: bool = False) -> None:
    """Write the index.  Failures are ignored: a maildrop works without, on a full or read-only
    disk."""
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
    files.move_stamp("new", maildrop)


def follow(maildrop: int, old: Index, change: IndexChange, stamps: Stamps) -> Index:
    """Return the index after a change, and bring the file up to date."""
    new = old.changed(change, stamps)
    on_disk = old.on_disk
    if on_disk is not None and on_disk.appended < _APPENDED:
        octets = _encode_change(change, stamps, on_disk.digest)
        with suppress(OSError):
            if files.append_cache(INDEX, octets, maildrop, (on_disk.inode, on_disk.octets)):
                new.on_disk = on_disk.extended(len(octets), octets[-_DIGEST:])
    if new.on_disk is None:
        save(maildrop, new)
    return new


def _packed(message: Row) -> bytes:
    """Return directory and name; a part that repeats the unique-id is left out."""
    unique, name = unique_part(message.file.name), message.file.name
    rest = f"={name[len(unique) :]}" if unique == message.unique_id else f":{name}"
    return os.fsencode(message.file.directory[0] + rest)


def _order(unique_id: str, packed: bytes) -> tuple[int, str]:
    """Return the key that ``names.identify`` sorts by."""
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
