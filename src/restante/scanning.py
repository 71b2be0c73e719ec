"""Reading the directories of a Maildir while other programs rename files in them.

POSIX promises nothing of an entry that is added or removed while a directory is read.  A file
that is renamed during one pass, as an IMAP server does whenever a flag changes, is therefore seen
once, twice or not at all.  One pass proves nothing unless the directories stayed as they were.

So passes are joined, by what survives a rename (the unique part of the name and the inode
number), until one is clean.  A pass is clean if no directory has moved its stamp, and if none
could have changed without moving it: the clock of a file system is coarse (10 ms with some
kernels), so a stamp must be older than the pass.

Standards: POSIX.1-2008 (readdir); https://cr.yp.to/proto/maildir.html.
Limits: at most ``_PAUSES`` passes and 0.7 s of waiting.  All calls block.
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
"""In the order in which messages move."""
HELD = "held"
"""Where removed mail waits, in a maildrop of ours."""

Identity = tuple[str, int]
"""Unique part and inode number."""
Names = Mapping[str, int]
"""Inode numbers by name."""
Stamp = tuple[int, int, int]
"""Inode number, mtime and ctime; the times in nanoseconds."""

NO_STAMP: Stamp = (0, 0, 1)
"""No directory has this one."""
_MISSING: Stamp = (0, 0, 0)

_PAUSES = (0.0, 0.0, 0.02, 0.02, 0.04, 0.08, 0.16, 0.32)  # seconds before each pass
_TICK = 20_000_000  # nanoseconds; the clock of a file system is never further behind ours

_DIRECTORY = flags("O_RDONLY", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")


def unique_part(name: str) -> str:
    """What no program changes in the name of a message file."""
    return name.partition(":")[0].partition(",")[0]


class File(NamedTuple):
    """A message file, as it was found."""

    directory: str
    """``new`` or ``cur``."""
    name: str
    inode: int

    @property
    def identity(self) -> Identity:
        return unique_part(self.name), self.inode


class Scan(NamedTuple):
    """What was seen in some directories."""

    names: Mapping[str, Names]
    """For each directory that was read.  If the scan is not exact, a file that was renamed during
    the last pass may be there twice."""
    is_exact: bool
    """Exactly these files were there, at one moment.  Otherwise some may be missing, and some may
    be gone."""
    stamps: Mapping[str, Stamp]
    """Of each directory, while exactly these files were in it; ``NO_STAMP`` if it changed, or
    could have."""

    def files(self) -> Iterator[File]:
        for directory, names in self.names.items():
            for name, inode in names.items():
                yield File(directory, name, inode)

    def select(self, wanted: Collection[Identity]) -> list[File]:
        """Those that were seen, and every link to them."""
        inodes = {inode for _, inode in wanted}  # most files are ruled out without their names
        return [
            file
            for directory, names in self.names.items()
            for name, inode in names.items()
            if inode in inodes and (file := File(directory, name, inode)).identity in wanted
        ]


def passes(
    maildir: int,
    directories: Sequence[str] = MAIL,
    *,
    known: Mapping[str, Stamp] | None = None,
    clock: int = 0,
) -> Iterator[Scan]:
    """Read the directories, and read them again until a pass is clean; yields what was seen so far.

    The last one is exact unless the directories changed all the time.  A caller for whom less is
    enough takes no more of them.

    ``maildir``: the open directory.  ``known``: a directory that still has this stamp is not read,
    only watched.  ``clock``: a moment before this call by the clock of the file system, in
    nanoseconds since the epoch.

    Raises:
        OSError: also if ``new`` or ``cur`` is missing; that is not an empty Maildir.
    """
    known = known or {}
    found: Mapping[str, Names] = {}
    stamps, since = dict[str, Stamp](), 0
    for pause in _PAUSES:
        if pause:
            time.sleep(pause)
        began = time.monotonic_ns()
        before = {name: _stamp(name, maildir) for name in directories}
        if before != stamps:
            stamps, since = before, began
        # A change from here on gets another stamp than one that has been there for a tick.
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
        found = _joined(found, names)
        carried = [name for name in found if found[name] != names.get(name)]
        yield Scan(found, False, clean | dict.fromkeys(carried, NO_STAMP))


def scan(maildir: int, directories: Sequence[str] = MAIL) -> Scan:
    """The regular files in some directories of a Maildir, without dotfiles; exact if possible."""
    return deque(passes(maildir, directories), maxlen=1)[0]


def scan_for(maildir: int, wanted: Collection[Identity]) -> Scan:
    """As ``scan``, until all of these messages were seen.  Those that were not are gone only if
    the result is exact."""
    for found in passes(maildir):
        if len({file.identity for file in found.select(wanted)}) == len(wanted):
            break
    return found


def scan_exactly(maildir: int, directories: Sequence[str] = MAIL) -> list[File]:
    """As ``scan``, for callers that would draw conclusions from a file that is missing.

    Raises:
        TemporaryFailure: other programs changed the directories during every pass.
        OSError: as ``passes``.
    """
    found = scan(maildir, directories)
    if not found.is_exact:
        raise ChangingMaildir
    return list(found.files())


def scan_folders(maildir: int) -> Scan:
    """As ``scan``, in ``new/``, ``cur/`` and ``held/`` of a Maildir and of its folders.

    The directories are paths in it: ``./cur``, ``.Junk/new``.
    """
    for _ in _PAUSES:
        folders = list_folders(maildir)
        paths = [f"{folder}/{name}" for folder in (".", *folders) for name in (*MAIL, HELD)]
        found = scan(maildir, paths)
        if not found.is_exact or list_folders(maildir) == folders:
            return found
    return found._replace(is_exact=False)


def list_folders(maildir: int) -> list[str]:
    """Names of the folders (Maildir++): directories whose names begin with a dot."""
    opened = os.open(".", _DIRECTORY, dir_fd=maildir)
    try:
        with os.scandir(opened) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    finally:
        os.close(opened)


@contextmanager
def open_maildir(path: Path) -> Iterator[int]:
    """The directory of a Maildir."""
    directory = os.open(path, flags("O_RDONLY", "O_DIRECTORY", "O_CLOEXEC"))
    try:
        yield directory
    finally:
        os.close(directory)


class ChangingMaildir(TemporaryFailure):
    """Which messages are there cannot be known while another program renames them."""

    def __init__(self) -> None:
        super().__init__("mail storage: changed by another program, try again")


def _joined(earlier: Mapping[str, Names], later: Mapping[str, Names]) -> Mapping[str, Names]:
    """What the later pass saw, and what only the earlier ones saw."""
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
    """One that moves whenever a name in this directory does."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        if name in MAIL:
            raise
        return _MISSING
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _list(name: str, parent: int) -> dict[str, int]:
    try:
        opened = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        if name in MAIL:
            raise
        return {}
    try:
        with os.scandir(opened) as entries:
            return {
                entry.name: entry.inode()
                for entry in entries
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
            }
    finally:
        os.close(opened)
