"""List and read the files of a maildrop for a backup, while the maildrop is in use.

The backup of a maildrop shows it at one moment:

1. The lock of ``held/`` is acquired in each folder.  UPDATE, restoring and purging wait for it, so
   restante moves and destroys no message.  Senders may still deliver messages, and other programs
   may rename files.
2. All folders are scanned, and each message is identified by inode number, size and mtime.
   restante's own small files are read.  Then the locks are released.
3. The messages are read, which may take hours.  Their content never changes, but a message may be
   moved or renamed: by a client that deletes it, by the operator who restores it, or by an IMAP
   server.  A message that is missing under its name is therefore looked up in new scans of all
   folders, and the backup stores it under the name that it had in step 2.  Only a message that was
   destroyed meanwhile is missing from the backup.

A message that arrives after step 2 is not part of the backup.

The list of a crashed UPDATE is left out: its client has not got +OK, so its messages may be listed
again.  The index, the locks and ``maildirsize`` are left out, because they are made again.
All calls block.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from ..scanning import MAIL, list_folders, scan_folders
from . import files
from .folders import INBOX
from .held import VICTIMS
from .index import INDEX
from .quota import MAILDIRSIZE

_TEMPORARY = "tmp"
_OWN = "restante."  # the beginning of the names of restante's own files
_LEFT_OUT = {INDEX, files.LOCK, MAILDIRSIZE, VICTIMS}
_ATTEMPTS = 3  # scans for messages that other programs rename or move

Mark = tuple[int, int, int]
"""Inode number, size and mtime of a message.  A new file that gets the inode number of a destroyed
message has a later mtime."""


class Small(NamedTuple):
    """One of restante's own files."""

    path: str
    """Path in the maildrop."""
    mode: int
    mtime: int
    """In nanoseconds."""
    octets: bytes


class Listed(NamedTuple):
    """A message at the moment of the snapshot."""

    path: str
    """Path in the maildrop, such as ``new/1`` or ``.Junk/cur/1:2,S``."""
    mark: Mark
    """Identifies the file for as long as it exists."""


class Snapshot(NamedTuple):
    """A maildrop at one moment."""

    directories: list[tuple[str, int]]
    """Paths and modes; the maildrop itself is ``.``.  Parents are listed first."""
    small: list[Small]
    others: list[str]
    """Paths of the files of other programs; they are read later, as they are then."""
    messages: list[Listed]


def snapshot(maildrop: int) -> Snapshot:
    """Return the content of a maildrop, without the octets of its messages.

    Raises:
        OSError: a file or directory cannot be read.
    """
    with _held_locks(maildrop):
        messages = _messages(maildrop)
        directories, small = [(INBOX, _mode(maildrop, INBOX))], list[Small]()
        others = list[str]()
        for path, is_directory in _walk(maildrop, "", depth=0):
            with suppress(FileNotFoundError):
                if is_directory:
                    directories.append((path, _mode(maildrop, path)))
                elif path.rpartition("/")[2].startswith(_OWN):
                    small.append(_small(maildrop, path))
                else:
                    others.append(path)
    return Snapshot(directories, small, others, messages)


@contextmanager
def _held_locks(maildrop: int) -> Iterator[None]:
    with ExitStack() as stack:
        for folder in (INBOX, *list_folders(maildrop)):
            with suppress(FileNotFoundError):
                parent = stack.enter_context(files.directory(folder, maildrop))
                held = stack.enter_context(files.directory(files.HELD, parent))
                stack.enter_context(files.lock(held))
        yield


def _messages(maildrop: int) -> list[Listed]:
    """Return all messages.  Each is listed once, unless its file has several links."""
    marks: dict[str, tuple[Mark, int]] = {}
    for _ in range(_ATTEMPTS):
        seen = scan_folders(maildrop)
        has_missed = False
        for file in seen.files():
            path = _joined(file.directory, file.name)
            if path not in marks:
                try:
                    status = _status(maildrop, path)
                except FileNotFoundError:
                    has_missed = True
                else:
                    marks[path] = _mark(status), status.st_nlink
        if not has_missed:
            break
    last_path = {mark: path for path, (mark, _) in marks.items()}
    return [
        Listed(path, mark)
        for path, (mark, links) in marks.items()
        if links > 1 or last_path[mark] == path  # other paths are from before a rename
    ]


def _walk(maildrop: int, path: str, depth: int) -> Iterator[tuple[str, bool]]:
    """Yield each directory, and each file other than a message, and whether it is a directory."""
    with suppress(FileNotFoundError):
        for name, mode in _entries(maildrop, path or INBOX):
            is_folder = depth == 0 or (depth == 1 and path.startswith("."))
            below = f"{path}/{name}" if path else name
            if stat.S_ISDIR(mode):
                yield below, True
                if not is_folder or name not in (*MAIL, files.HELD, _TEMPORARY):
                    yield from _walk(maildrop, below, depth + 1)
            elif stat.S_ISREG(mode) and not _is_left_out(name):
                yield below, False


def _is_left_out(name: str) -> bool:
    return name in _LEFT_OUT or (name.startswith(_OWN) and name.endswith(".tmp"))


def _entries(maildrop: int, path: str) -> list[tuple[str, int]]:
    with _opened(maildrop, path) as directory:
        entries = []
        for name in files.names(directory):
            with suppress(FileNotFoundError):
                entries.append((name, files.status(name, directory).st_mode))
        return entries


def _small(maildrop: int, path: str) -> Small:
    parent, _, name = path.rpartition("/")
    with _opened(maildrop, parent or INBOX) as directory:
        status = files.status(name, directory)
        return Small(path, status.st_mode, status.st_mtime_ns, files.read(name, directory))


# -- Messages


def opened(maildrop: int, messages: list[Listed]) -> Iterator[tuple[Listed, int]]:
    """Yield each message with a descriptor of its file, which is closed afterwards.

    Messages that were destroyed after the snapshot are not yielded.

    Raises:
        OSError: a file cannot be opened.
    """
    moved = []
    for message in messages:
        file = _open(maildrop, message.path, message.mark)
        if file < 0:
            moved.append(message)
        else:
            with files.OpenDescriptors(file):
                yield message, file
    for _ in range(_ATTEMPTS):
        if not moved:
            break
        found, missing = _find(maildrop, moved), []
        for message in moved:
            file = _open(maildrop, found.get(message.mark, ""), message.mark)
            if file < 0:
                missing.append(message)
            else:
                with files.OpenDescriptors(file):
                    yield message, file
        moved = missing


@contextmanager
def opened_other(maildrop: int, path: str) -> Iterator[int]:
    """Open a file that is not a message.

    Raises:
        FileNotFoundError: the file was removed.
    """
    parent, _, name = path.rpartition("/")
    with _opened(maildrop, parent or INBOX) as directory, files.reading(name, directory) as file:
        yield file


def _find(maildrop: int, messages: list[Listed]) -> dict[Mark, str]:
    """Return the current paths of messages that were moved or renamed."""
    inodes = {message.mark[0] for message in messages}
    paths = {}
    for file in scan_folders(maildrop).files():
        if file.inode in inodes:
            path = _joined(file.directory, file.name)
            with suppress(FileNotFoundError):
                paths[_mark(_status(maildrop, path))] = path
    return paths


def _open(maildrop: int, path: str, mark: Mark) -> int:
    """Return a descriptor, or -1 if the file is missing or another one."""
    try:
        parent, _, name = path.rpartition("/")
        with _opened(maildrop, parent) as directory:
            file, _ = files.open_file(name, directory)
    except FileNotFoundError:
        return -1
    if _mark(files.descriptor_status(file)) == mark:
        return file
    files.close(file)
    return -1


def _mark(status: files.Status) -> Mark:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _status(maildrop: int, path: str) -> files.Status:
    parent, _, name = path.rpartition("/")
    with _opened(maildrop, parent or INBOX) as directory:
        return files.status(name, directory)


def _mode(maildrop: int, path: str) -> int:
    return _status(maildrop, path).st_mode if path != INBOX else files.status(".", maildrop).st_mode


def _joined(directory: str, name: str) -> str:
    """Return a path in the maildrop; ``scan_folders`` calls the INBOX ``./new`` and ``./cur``."""
    return f"{directory.removeprefix('./')}/{name}"


@contextmanager
def _opened(maildrop: int, path: str) -> Iterator[int]:
    """Open a directory in the maildrop without following links in any part of its path."""
    with ExitStack() as stack:
        directory = maildrop
        for name in path.split("/"):
            directory = stack.enter_context(files.directory(name, directory))
        yield directory
