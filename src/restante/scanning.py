"""Read the directories of a Maildir while other programs rename files in them.

POSIX does not specify whether readdir returns an entry that is added or removed while a directory
is read.  A file that is renamed during one pass is therefore seen once, twice or not at all, and
IMAP servers rename a file whenever a flag changes.  In a test, logins listed 4,963 of 5,000
messages while an IMAP client marked them as read; clients forget the unique-ids that are missing
from a listing and download those messages again.

A scan is therefore the union of several passes, and ends with the first *clean* pass:

1. The stamp (inode number, mtime, ctime) of each directory is read before and after a pass.
   Adding, renaming or removing a file sets the mtime and ctime of its directory.
2. Equal stamps are not enough.  The clock of a file system is coarse (10 ms with some kernels),
   so a second change within the same tick does not change the stamp.  The stamp must also be
   older than the pass by at least one tick; then any change during the pass alters the stamp.
3. A pass that meets both conditions is clean: there was a moment at which the directories contained
   exactly these files.  Only a clean pass shows that a message has been removed.
4. Any other pass is joined with the previous passes.  Files are matched by the unique part of the
   name and the inode number, because a rename changes neither.  The later pass determines the name
   and the directory.  Files that only earlier passes saw are kept.  A union can therefore contain
   removed files, but with each pass it becomes less likely that a file is missing.
5. Callers choose how exact a scan must be.  A login adds messages from its index that a union lacks
   (``store.refresh``).  RETR and UPDATE stop as soon as their messages have been seen.  Callers
   that draw conclusions from a missing file require a clean pass (``scan_exactly``).

Neither a lock nor a count of entries can replace this: Maildir has no lock, and the effects of two
renames on a count can cancel out.  See docs/decisions/0200-holes.md.

Standards: POSIX.1-2008 (readdir); https://cr.yp.to/proto/maildir.html.
Limits: at most one pass for each entry of ``_PAUSES``, and 0.7 s of waiting.  All calls block.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import NamedTuple

from .errors import TemporaryFailure
from .posix import flags

MAIL = ("new", "cur")
"""The directories that contain mail, in the order in which programs move messages."""
HELD = "held"
"""The directory for removed mail in maildrops of restante."""

Identity = tuple[str, int]
"""Unique part and inode number."""
Names = Mapping[str, int]
"""Inode numbers by name."""
Stamp = tuple[int, int, int]
"""Inode number, mtime and ctime; the times in nanoseconds."""

NO_STAMP: Stamp = (0, 0, 1)
"""A stamp that no directory has."""
_MISSING: Stamp = (0, 0, 0)

# Seconds of waiting before each pass.  The second pass follows immediately, because most renames
# are over by then.  Later passes wait for a tick of the file system's clock, then for
# increasingly long times.  The total is 0.64 s, far below the timeout of any client.
_PAUSES = (0.0, 0.0, 0.02, 0.02, 0.04, 0.08, 0.16, 0.32)
# Nanoseconds by which the clock of a file system may be behind the clock of this process.  A kernel
# with HZ=100 sets time stamps every 10 ms; twice that leaves a margin.
_TICK = 20_000_000

_DIRECTORY = flags("O_RDONLY", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")


def unique_part(name: str) -> str:
    """Return the part of a message file's name that no program changes."""
    return name.partition(":")[0].partition(",")[0]


class File(NamedTuple):
    """A message file, as a pass saw it."""

    directory: str
    """``new`` or ``cur``."""
    name: str
    inode: int

    @property
    def identity(self) -> Identity:
        return unique_part(self.name), self.inode


class Scan(NamedTuple):
    """The files that were seen in some directories."""

    names: Mapping[str, Names]
    """File names by directory, for the directories that were read.  If the scan is not exact, a
    file that was renamed during the last pass may be listed twice."""
    is_exact: bool
    """Whether there was a moment at which the directories contained exactly these files.  Otherwise
    files may be missing, and listed files may have been removed."""
    stamps: Mapping[str, Stamp]
    """The stamp of each directory while it contained exactly these files; ``NO_STAMP`` if it has
    changed or may have changed."""

    def files(self) -> Iterator[File]:
        for directory, names in self.names.items():
            for name, inode in names.items():
                yield File(directory, name, inode)

    def select(self, identities: Collection[Identity]) -> list[tuple[Identity, File]]:
        """Return the files with these identities that were seen, including every link to them."""
        # The inode numbers rule out most files without parsing their names.
        inodes = {inode for _, inode in identities}
        return [
            (identity, File(directory, name, inode))
            for directory, names in self.names.items()
            for name, inode in names.items()
            if inode in inodes and (identity := (unique_part(name), inode)) in identities
        ]


def passes(
    maildir: int,
    directories: Sequence[str] = MAIL,
    *,
    known: Mapping[str, Stamp] | None = None,
    clock: int = 0,
) -> Iterator[Scan]:
    """Yield the union of all passes so far after each pass, until one is clean.

    The last scan is exact unless the directories kept changing.  Callers that do not need an exact
    scan may stop earlier.

    ``maildir``: the open directory.  ``known``: a directory that still has this stamp is not read,
    but its stamp is checked.  ``clock``: a time on the file system's clock that is earlier than
    this call, in nanoseconds since the epoch.

    Raises:
        OSError: a directory cannot be read, or ``new`` or ``cur`` is missing (a Maildir without
            them does not count as empty).
    """
    known = known or {}
    union: Mapping[str, Names] = {}
    stamps, since = dict[str, Stamp](), 0
    for pause in _PAUSES:
        if pause:
            time.sleep(pause)
        began = time.monotonic_ns()
        before = {name: _stamp(name, maildir) for name in directories}
        if before != stamps:
            stamps, since = before, began
        # Stamps before this time are older than the pass, so a later change results in a different
        # stamp.  A stamp that has not changed for a whole tick of this process's clock also
        # qualifies.
        settled = inf if began - since >= _TICK else max(clock, time.time_ns() - _TICK)
        read = [name for name in directories if before[name] != known.get(name)]
        names = {name: _list(name, maildir) for name in read}
        clean = {
            name: stamp if stamp == _stamp(name, maildir) and min(stamp[1:]) < settled else NO_STAMP
            for name, stamp in before.items()
        }
        if NO_STAMP not in clean.values():
            yield Scan(names, True, clean)
            return
        union = _merged(union, names)
        differing = [name for name in union if union[name] != names.get(name)]
        yield Scan(union, False, clean | dict.fromkeys(differing, NO_STAMP))


def scan(maildir: int, directories: Sequence[str] = MAIL) -> Scan:
    """Return the regular files in some directories, without dotfiles.  Exact if possible."""
    return deque(passes(maildir, directories), maxlen=1)[0]


def scan_for(
    maildir: int, identities: Collection[Identity]
) -> tuple[Scan, list[tuple[Identity, File]]]:
    """Scan a Maildir until all of these messages have been seen.

    Returns the scan and the files of these messages, as ``Scan.select`` does.  If the scan is
    exact, messages that were not seen have been removed; otherwise they may still exist.
    """
    for result in passes(maildir):
        selected = result.select(identities)
        if len(dict(selected)) == len(identities):
            break
    return result, selected


def scan_exactly(maildir: int, directories: Sequence[str] = MAIL) -> list[File]:
    """Scan directories exactly, for callers that draw conclusions from a missing file.

    Raises:
        TemporaryFailure: other programs changed the directories during each pass.
        OSError: a directory cannot be read.
    """
    result = scan(maildir, directories)
    if not result.is_exact:
        raise ChangingMaildir
    return list(result.files())


def scan_folders(maildir: int) -> Scan:
    """Scan ``new/``, ``cur/`` and ``held/`` of a Maildir and of its folders.

    The directories in the result are paths in the Maildir, such as ``./cur`` or ``.Junk/new``.
    """
    for _ in _PAUSES:
        folders = list_folders(maildir)
        paths = [f"{folder}/{name}" for folder in (".", *folders) for name in (*MAIL, HELD)]
        result = scan(maildir, paths)
        if not result.is_exact or list_folders(maildir) == folders:
            return result
    return result._replace(is_exact=False)


def list_folders(maildir: int) -> list[str]:
    """Return the names of the folders (Maildir++): directories that begin with a dot."""
    descriptor = os.open(".", _DIRECTORY, dir_fd=maildir)
    try:
        with os.scandir(descriptor) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    finally:
        os.close(descriptor)


@contextmanager
def open_maildir(path: Path) -> Iterator[int]:
    """Open the directory of a Maildir."""
    directory = os.open(path, flags("O_RDONLY", "O_DIRECTORY", "O_CLOEXEC"))
    try:
        yield directory
    finally:
        os.close(directory)


class ChangingMaildir(TemporaryFailure):
    """Other programs rename files so often that no scan can be exact."""

    def __init__(self) -> None:
        super().__init__("mail storage: changed by another program, try again")


def _merged(earlier: Mapping[str, Names], later: Mapping[str, Names]) -> Mapping[str, Names]:
    """Return the files of the later pass and the files that only earlier passes saw."""
    if not earlier:
        return later
    seen = {(unique_part(name), n) for names in later.values() for name, n in names.items()}
    joined = {directory: dict(later.get(directory, {})) for directory in (*earlier, *later)}
    for directory, names in earlier.items():
        for name, inode in names.items():
            if (unique_part(name), inode) not in seen:
                joined[directory][name] = inode
    return joined


# -- The file system


def _stamp(name: str, parent: int) -> Stamp:
    """Return the stamp of a directory.  Any change to a name in the directory alters the stamp."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        if name in MAIL:
            raise
        return _MISSING
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _list(name: str, parent: int) -> dict[str, int]:
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        if name in MAIL:
            raise
        return {}
    try:
        with os.scandir(descriptor) as entries:
            return {
                entry.name: entry.inode()
                for entry in entries
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
            }
    finally:
        os.close(descriptor)
