"""Access to the files and directories of a maildrop; only this module calls the operating system.

Standards: POSIX.1-2008 (``openat`` and related functions), Linux ``preadv2``.
Security: a name is always looked up in an open directory, and symbolic links are not followed,
except in the fixed part of the path template.  Only regular files are read; opening any other file
never blocks.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import Event, Lock
from typing import ParamSpec, TypeVar

from .. import syncing, threads
from ..errors import MaildropInUse, TemporaryFailure
from ..message import Survey
from ..mounts import refuse_unmounted
from ..posix import fcntl, flags

PIECE = 32_766
"""Octets read at a time.  Converted to CRLF text, they at most double.  Even with a line ending
appended to the message, the result does not exceed 64 KiB."""

# The directory for removed mail.  It is created together with the maildrop; otherwise users could
# not delete mail on a full disk.
HELD = "held"
_SUBDIRECTORIES = ("cur", "new", "tmp", HELD)
LOCK = "restante.lock"  # in the maildrop

LOGIN = "restante.login"  # the file's mtime is the last login that counts (RFC 2449 §6.5)

_FLAGS = flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK")  # opening a FIFO must not block
_DIRECTORY = os.O_RDONLY | flags("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux
_UNCACHED = {errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}

P = ParamSpec("P")
T = TypeVar("T")
Status = os.stat_result


@contextmanager
def storage_errors() -> Iterator[None]:
    """Convert errors of the operating system to TemporaryFailure, without paths."""
    try:
        yield
    except OSError as error:
        raise _as_temporary_failure(error) from error


def _as_temporary_failure(error: OSError) -> TemporaryFailure:
    return TemporaryFailure(f"mail storage: {error.strerror or 'error'}")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call, and convert errors of the operating system to TemporaryFailure."""
    try:
        return await threads.in_thread(call, *args, **kwargs)
    except OSError as error:
        raise _as_temporary_failure(error) from error


# -- Directories


class OpenDescriptors:
    """Context manager that closes descriptors at the end of a block.

    It is not a generator, because a session may be idle for a long time and a frame takes five
    times the memory.
    """

    __slots__ = ("_descriptors", "_value")

    def __init__(self, *descriptors: int, value: int | None = None) -> None:
        """``value`` is the target of ``as``; the default is the first descriptor."""
        self._descriptors = descriptors
        self._value = descriptors[0] if value is None else value

    def __enter__(self) -> int:
        return self._value

    def __exit__(self, *_: object) -> None:
        for each in self._descriptors:
            os.close(each)


def directory(name: str, parent: int) -> OpenDescriptors:
    return OpenDescriptors(os.open(name, _DIRECTORY, dir_fd=parent))


def maildrop(base: str, names: Sequence[str], *, make: bool = False) -> OpenDescriptors:
    """Open the directory of a maildrop.

    With ``make``, missing directories below ``base`` are created durably (0700).  The lock file is
    created last, so a maildrop with a lock file is durable and need not be synced.

    Raises:
        TemporaryFailure: ``base`` is missing.
        FileNotFoundError: the maildrop is missing and ``make`` is false.
    """
    return OpenDescriptors(_open_maildrop(base, names, make))


def _open_maildrop(base: str, names: Sequence[str], make: bool) -> int:
    if not make:
        return _descend(base, names)
    with suppress(FileNotFoundError):
        descriptor, is_complete = _descend(base, names), False
        try:
            is_complete = all(exists(name, descriptor) for name in (*_SUBDIRECTORIES, LOCK))
        finally:
            if not is_complete:
                os.close(descriptor)
        if is_complete:
            return descriptor
    with ExitStack() as stack:
        descriptors = [_open_base(base)]
        stack.callback(os.close, descriptors[0])
        refuse_unmounted(base)
        was_created = False
        for name in names:
            was_created |= _make_directory(name, descriptors[-1])
            descriptors.append(stack.enter_context(directory(name, descriptors[-1])))
        for name in _SUBDIRECTORIES:
            was_created |= _make_directory(name, descriptors[-1])
        if was_created or not exists(LOCK, descriptors[-1]):
            for each in descriptors:
                os.fsync(each)
            os.close(os.open(LOCK, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=descriptors[-1]))
        return os.dup(descriptors[-1])


def _descend(base: str, names: Sequence[str]) -> int:
    descriptor = _open_base(base)
    for name in names:
        above = descriptor
        try:
            descriptor = os.open(name, _DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    return descriptor


def _open_base(base: str) -> int:
    try:
        return os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # not chained, so the error counts as temporary
        raise TemporaryFailure("mail storage: not found; is it mounted?") from None


@contextmanager
def folder(name: str, maildrop: int) -> Iterator[int]:
    """Open a folder inside a Maildir, and create the files that a session needs.

    Raises:
        FileNotFoundError: the folder is missing.  It is not created.
    """
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=maildrop)
    except NotADirectoryError as error:  # a file, or a symbolic link
        raise FileNotFoundError(errno.ENOENT, "not a directory") from error
    try:
        for each in ("cur", "new"):  # a home directory also has other directories with a dot
            if not exists(each, descriptor):
                raise FileNotFoundError(errno.ENOENT, "not a Maildir")
        was_created = [_make_directory(each, descriptor) for each in ("tmp", HELD)]
        if any(was_created) or not exists(LOCK, descriptor):
            os.fsync(descriptor)
            os.close(os.open(LOCK, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def _make_directory(name: str, parent: int) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def exists(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def status(name: str, parent: int) -> os.stat_result:
    """Return size, times and inode number, without following a symbolic link."""
    return os.stat(name, dir_fd=parent, follow_symlinks=False)


def descriptor_status(descriptor: int) -> os.stat_result:
    """Return size, times and inode number of an open file."""
    return os.fstat(descriptor)


def names(directory: int) -> list[str]:
    """Return all names in an open directory, in order."""
    return sorted(os.listdir(directory))


def touch(name: str, parent: int) -> None:
    """Set the mtime of a file to the current time.  A missing file is created."""
    file = os.open(name, os.O_WRONLY | os.O_CREAT | _FLAGS, 0o600, dir_fd=parent)
    try:
        set_time(file)
    finally:
        os.close(file)


@contextmanager
def locked_time_stamp(name: str, parent: int) -> Iterator[tuple[int, float | None]]:
    """Lock a file that is used only for its mtime.

    Yields the descriptor of the file and its mtime in seconds since the epoch.  A missing file is
    created, and None is yielded instead of the mtime.  The call waits for the lock, so the block
    must be short.
    """
    file, is_new = _open_or_create(name, parent)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file, None if is_new else os.fstat(file).st_mtime
    finally:
        os.close(file)


def set_time(file: int) -> None:
    """Set the mtime of an open file to the current time."""
    os.utime(file)


def _open_or_create(name: str, parent: int) -> tuple[int, bool]:
    """Return a descriptor, and whether this call has created the file."""
    while True:
        with suppress(FileNotFoundError):
            return os.open(name, os.O_RDWR | _FLAGS, dir_fd=parent), False
        with suppress(FileExistsError):
            create_flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            return os.open(name, create_flags | _FLAGS, 0o600, dir_fd=parent), True


def stamp(name: str, parent: int) -> tuple[int, int, int]:
    """Return inode number, mtime and ctime; the times change when a name in a directory changes."""
    entry = status(name, parent)
    return entry.st_ino, entry.st_mtime_ns, entry.st_ctime_ns


def renew_ctime(name: str, parent: int) -> None:
    """Set the ctime to the current time, as renaming a file does.  The mtime does not change."""
    entry = status(name, parent)
    times = entry.st_atime_ns, entry.st_mtime_ns
    os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)


def inode(file: int) -> int:
    return os.fstat(file).st_ino


def list_files(name: str, parent: int) -> list[tuple[str, int]]:
    """Return names and inode numbers of the regular files in a directory, without dotfiles."""
    with directory(name, parent) as descriptor, os.scandir(descriptor) as entries:
        return [
            (entry.name, entry.inode())
            for entry in entries
            if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
        ]


def list_others(name: str, parent: int) -> list[str]:
    """Return the names that ``list_files`` skips, without dotfiles."""
    with directory(name, parent) as descriptor, os.scandir(descriptor) as entries:
        return [
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and not entry.is_file(follow_symlinks=False)
        ]


def sync(*directories: str, parent: int) -> None:
    """Make all changes to names in these directories durable, one directory after the other."""
    for name in directories:
        with directory(name, parent) as descriptor:
            syncing.sync(descriptor)


class _SyncRound:
    """An fsync of a directory that several threads share."""

    def __init__(self, before: _SyncRound | None) -> None:
        self.before = before
        self.is_done = Event()
        self.error: BaseException | None = None


_rounds: dict[tuple[int, int], _SyncRound] = {}
"""Rounds that have not begun, by device and inode number of the directory."""
_running: dict[tuple[int, int], _SyncRound] = {}
_rounds_lock = Lock()


def sync_together(directory: int) -> None:
    """Sync an open directory.  Threads that wait for a running fsync share the next fsync.

    Changes made before the call are durable on return.  Therefore a caller never shares an fsync
    that has already begun, because it may have missed the changes.
    """
    entry = os.fstat(directory)
    key = entry.st_dev, entry.st_ino
    with _rounds_lock:
        sync_round = _rounds.get(key)
        is_first = sync_round is None
        if sync_round is None:
            sync_round = _rounds[key] = _SyncRound(_running.get(key))
    if is_first:
        _run_round(sync_round, key, directory)
    sync_round.is_done.wait()
    if sync_round.error is not None:
        raise sync_round.error


def _run_round(sync_round: _SyncRound, key: tuple[int, int], directory: int) -> None:
    if sync_round.before is not None:
        sync_round.before.is_done.wait()
        sync_round.before = None
    with _rounds_lock:
        del _rounds[key]
        _running[key] = sync_round
    try:
        syncing.sync(directory)
    except BaseException as error:
        sync_round.error = error
    with _rounds_lock:
        if _running[key] is sync_round:
            del _running[key]
    sync_round.is_done.set()


# -- Locks


def session_lock(maildrop: int) -> OpenDescriptors:
    """Acquire a session's exclusive-access lock.  The kernel releases it when the process ends.

    The lock file exists for older versions and for its time stamp.  If it is removed or replaced
    during a session (``rm restante.*``, a restore), the next session locks another file.  Therefore
    ``cur/``, which is never replaced, is locked as well.

    The value for the block is the start time of the session in nanoseconds, on the file
    system's clock.  On a read-only file system the value is an earlier time.

    Raises:
        MaildropInUse: another session holds the lock.  The exception contains the age of that
            session.  The call does not wait.
    """
    try:
        lock = os.open(LOCK, os.O_RDWR | _FLAGS, dir_fd=maildrop)
    except OSError:  # read-only file system; flock needs no write access except over NFS
        lock = os.open(LOCK, os.O_RDONLY | _FLAGS, dir_fd=maildrop)
    descriptors = [lock]
    try:
        descriptors.append(os.open("cur", _DIRECTORY, dir_fd=maildrop))
        try:
            for each in descriptors:
                fcntl.flock(each, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MaildropInUse(max(0.0, time.time() - os.fstat(lock).st_mtime)) from None
        with suppress(OSError):
            os.utime(lock)
        return OpenDescriptors(*descriptors, value=os.fstat(lock).st_mtime_ns)
    except BaseException:
        for each in descriptors:
            os.close(each)
        raise


@contextmanager
def lock(descriptor: int, *, shared: bool = False) -> Iterator[None]:
    """Lock an open directory, exclusively or ``shared``.

    The lock excludes other descriptors of the directory, but not other users of this descriptor.
    The call waits for the lock, so the block must be short.
    """
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def directory_lock(name: str, parent: int) -> Iterator[int]:
    """Open a directory and lock it exclusively.  A missing directory is created.

    The call waits for the lock, so the block must be short.
    """
    _make_directory(name, parent)
    with directory(name, parent) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


# -- Files


def create(name: str, parent: int) -> int:
    """Create a file and return its descriptor.  The caller must sync and close the file."""
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=parent)


def sync_file(file: int) -> None:
    """Make the octets of a file durable; see ``syncing.sync``."""
    syncing.sync(file)


class UndoneOnError:
    """Unlinks a file unless the block succeeds."""

    __slots__ = ("_name", "_parent")

    def __init__(self, name: str, parent: int) -> None:
        self._name = name
        self._parent = parent

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._parent)


def write(file: int, octets: bytes) -> None:
    left = memoryview(octets)
    while left:
        left = left[os.write(file, left) :]


def replace(name: str, octets: bytes, parent: int) -> None:
    """Replace a small file durably.  After a crash either the old or the new file exists."""
    replace_cache(name, octets, parent, durably=True)


def replace_cache(name: str, octets: bytes, parent: int, *, durably: bool = False) -> int:
    """Replace a file that contains a checksum, and return the inode number of the new file.

    After a crash the file may be old, torn or missing, unless ``durably`` is set and the call has
    returned.
    """
    temporary = f"{name}.tmp"
    with UndoneOnError(temporary, parent):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS
        file = os.open(temporary, flags, 0o600, dir_fd=parent)
        try:
            write(file, octets)
            number = inode(file)
            if durably:
                os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        if durably:
            os.fsync(parent)
    return number


def append_cache(name: str, octets: bytes, parent: int, expected: tuple[int, int]) -> bool:
    """Append to a file with checksums if its inode number and length equal ``expected``.

    Returns whether the octets were appended.
    """
    with appending(name, parent) as file:
        entry = os.fstat(file)
        if (entry.st_ino, entry.st_size) != expected:
            return False
        write(file, octets)
    return True


@contextmanager
def appending(name: str, parent: int) -> Iterator[int]:
    """Open a file for appending.

    Raises:
        FileNotFoundError: the file is missing.  It is not created.
    """
    file = os.open(name, os.O_WRONLY | os.O_APPEND | _FLAGS, dir_fd=parent)
    try:
        yield file
    finally:
        os.close(file)


def append(name: str, octets: bytes, parent: int, *, durably: bool) -> None:
    """Append to a file.  A missing file is created, but its name is not durable."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS
    file = os.open(name, flags, 0o600, dir_fd=parent)
    try:
        write(file, octets)
        if durably:
            os.fsync(file)
    finally:
        os.close(file)


def append_bounded(
    name: str, old: str, lines: bytes, parent: int, *, max_octets: int, durably: bool
) -> None:
    """Append complete lines to a file.  A missing file is created.

    A file of ``max_octets`` or more is first renamed to ``old``, replacing the previous old
    file.  With ``durably``, the lines are durable on return.  The name of a new file is always
    durable.
    """
    octets, is_complete = size_and_end(name, parent, b"\n")
    if octets >= max_octets:
        rename(name, old, parent)
        octets = 0
    # If a crash has torn the last line, end it first; otherwise the first new line would be lost.
    append(name, lines if is_complete else b"\n" + lines, parent, durably=durably)
    if not octets:
        sync(".", parent=parent)


def append_line(name: str, line: bytes, parent: int, *, max_octets: int) -> bool:
    """Append a line, not durably, and return True.

    If the file is empty, has ``max_octets`` or more, or does not end with a complete line, nothing
    is appended and False is returned.
    """
    file = os.open(name, os.O_RDWR | os.O_APPEND | _FLAGS, dir_fd=parent)
    try:
        size = os.fstat(file).st_size
        may_append = 0 < size < max_octets and os.pread(file, 1, size - 1) == b"\n"
        if may_append:
            write(file, line)
        return may_append
    finally:
        os.close(file)


def size_and_end(name: str, parent: int, end: bytes) -> tuple[int, bool]:
    """Return the size of a file, and whether it ends with ``end`` or is empty or missing."""
    try:
        with reading(name, parent) as file:
            size = os.fstat(file).st_size
            return size, not size or os.pread(file, len(end), size - len(end)) == end
    except FileNotFoundError:
        return 0, True


def rename(name: str, new_name: str, parent: int) -> None:
    """Rename a file within a directory.  An existing file with the new name is replaced."""
    os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=parent)


@contextmanager
def reading(name: str, parent: int) -> Iterator[int]:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: the file is missing or not a regular file.
    """
    file, _ = open_file(name, parent)
    try:
        yield file
    finally:
        os.close(file)


def open_directory(name: str, parent: int) -> int:
    """Open a directory and return its descriptor.  The caller must close it."""
    return os.open(name, _DIRECTORY, dir_fd=parent)


def open_file(name: str, parent: int) -> tuple[int, int]:
    """Open a regular file, and return its descriptor and size.  The caller must close it.

    Raises:
        FileNotFoundError: the file is missing or not a regular file.
    """
    try:
        file = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise FileNotFoundError(errno.ENOENT, "not a regular file") from error
        raise
    entry = os.fstat(file)
    if not stat.S_ISREG(entry.st_mode):
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, "not a regular file")
    return file, entry.st_size


def close(descriptor: int) -> None:
    os.close(descriptor)


def read_cached(name: str, parent: int, max_octets: int) -> bytes | None:
    """Return the first octets of a file that are in the page cache, at most ``max_octets``.

    Returns None if the system does not support such reads.

    Raises:
        OSError: the file is not a regular file, or cannot be read.
    """
    if not _NOWAIT:
        return None
    file = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=parent)
    try:
        buffer = bytearray(max_octets)
        del buffer[os.preadv(file, [buffer], 0, _NOWAIT) :]
        return bytes(buffer)
    finally:
        os.close(file)


def read(name: str, parent: int, offset: int = 0) -> bytes:
    """Return the octets of a file other than a message, starting at ``offset``."""
    with reading(name, parent) as file:
        if offset:
            os.lseek(file, offset, os.SEEK_SET)
        octets = os.read(file, max(os.fstat(file).st_size - offset, 1))
        return octets + b"".join(iter(partial(os.read, file, PIECE), b""))


def beginning(file: int, max_octets: int) -> bytes:
    """Return at most ``max_octets`` from the beginning of an open file."""
    return os.pread(file, max_octets, 0)


def survey(file: int) -> Survey:
    """Read a message to determine its size and form on the wire."""
    result = Survey()
    offset = 0
    while octets := os.pread(file, PIECE, offset):
        result.feed(octets)
        offset += len(octets)
    result.finish()
    return result


def unlink(name: str, parent: int) -> None:
    os.unlink(name, dir_fd=parent)


def move(name: str, source: int, new_name: str, target: int) -> None:
    """Move a file to another directory or name.

    Raises:
        FileExistsError: the name is taken.  The caller must ensure that the name is not taken
            between the check and the rename.
    """
    if exists(new_name, target):
        raise FileExistsError(errno.EEXIST, "name is taken")
    os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)


def read_at(file: int, offset: int) -> bytes:
    """Return at most ``PIECE`` octets, or an empty value at the end of the file.  Blocking."""
    return os.pread(file, PIECE, offset)


async def read_piece(file: int, offset: int) -> bytes:
    """Return at most ``PIECE`` octets, or an empty value at the end of the file.

    Octets in the page cache are read directly.  A thread reads other octets, so the event loop does
    not wait for the disk.
    """
    try:
        octets = _read_cached(file, offset)
    except OSError as error:
        raise _as_temporary_failure(error) from error
    return await in_thread(os.pread, file, PIECE, offset) if octets is None else octets


def _read_cached(file: int, offset: int) -> bytes | None:
    if not _NOWAIT:
        return None
    buffer = bytearray(PIECE)
    try:
        count = os.preadv(file, [buffer], offset, _NOWAIT)
    except OSError as error:
        if error.errno in _UNCACHED:
            return None
        raise
    # Linux 5.9 and 5.10 return 0 instead of EAGAIN (preadv2(2), BUGS).
    return bytes(buffer[:count]) if count or offset >= os.fstat(file).st_size else None
