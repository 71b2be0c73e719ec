"""Write a backup as a tar file, or as a directory that shares unchanged mail with others."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from ...client.sinks import fsync_directory
from ...errors import CannotCreate, TemporaryFailure
from ...posix import fcntl
from ...syncing import sync_files
from .manifest import COMPRESSED, MANIFEST, PIECE, Entry, Hashing, Manifest, Progress, latest

_BATCH = 128  # files that one call makes durable; they are open until then
_LEVEL = 6  # of gzip; 9 takes twice the time and saves 1 % of mail
_LOCK, _INCOMPLETE = "lock", "incomplete"  # in the directory of a tree


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Writable(Protocol):
    def write(self, octets: bytes, /) -> int: ...


class Writer(Protocol):
    """Writes a backup; ``finish`` makes it durable and visible, ``abort`` removes it."""

    manifest: Manifest

    def directory(self, entry: Entry) -> None: ...

    def file(self, entry: Entry, content: IO[bytes]) -> Entry: ...

    def link(self, entry: Entry) -> None: ...

    def reuse(self, entry: Entry) -> bool: ...

    def finish(self) -> Path: ...

    def abort(self) -> None: ...


class TarWriter:
    """Writes a tar file, compressed if its name ends with ``.gz`` or ``.tgz``."""

    def __init__(self, path: Path, *, replace: bool, progress: Progress) -> None:
        """
        Raises:
            CannotCreate: the file exists, and ``replace`` is false.
            TemporaryFailure: another process is writing this backup.
        """
        self.manifest = Manifest()
        self._path, self._replace, self._progress = path, replace, progress
        self._refuse_existing()
        self._temporary = path.with_name(f".{path.name}.part")
        self._file = _locked(self._temporary)
        try:
            is_compressed = path.name.endswith(COMPRESSED)
            self._gzip = (
                gzip.GzipFile("", "wb", _LEVEL, self._file, mtime=0) if is_compressed else None
            )
            self._output: _Writable = self._gzip or self._file
            self._size = 0  # octets of tar written
        except BaseException:
            self.abort()
            raise

    def _refuse_existing(self) -> None:
        if not self._replace and os.path.lexists(self._path):
            raise CannotCreate(f"{self._path} exists; to replace it, add --overwrite")

    def directory(self, entry: Entry) -> None:
        self._put(_head(entry, tarfile.DIRTYPE))
        self.manifest.add(entry)

    def file(self, entry: Entry, content: IO[bytes]) -> Entry:
        hashing = Hashing(content, self._progress)
        self._put_file(entry, hashing)
        entry = entry._replace(digest=hashing.sum.hexdigest())
        self.manifest.add(entry)
        return entry

    def link(self, entry: Entry) -> None:
        self._put(_head(entry, tarfile.LNKTYPE))
        self.manifest.add(entry)

    def reuse(self, entry: Entry) -> bool:
        return False

    def _put_file(self, entry: Entry, content: _Readable) -> None:
        self._put(_head(entry, tarfile.REGTYPE))
        for octets in _exactly(entry, content):
            self._put(octets)
        self._put(bytes(-self._size % tarfile.BLOCKSIZE))

    def _put(self, octets: bytes) -> None:
        self._output.write(octets)
        self._size += len(octets)

    def finish(self) -> Path:
        content, size = self.manifest.file()
        entry = Entry(MANIFEST, 0o600, time.time_ns(), size)
        self._put_file(entry, content)
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-self._size % tarfile.RECORDSIZE))
        if self._gzip is not None:
            self._gzip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._replace:
            self._temporary.replace(self._path)
        else:
            self._publish()
        try:
            fsync_directory(self._path.parent)
        except BaseException:
            if not self._replace:
                self._path.unlink()
            raise
        self._file.close()
        return self._path

    def _publish(self) -> None:
        """Rename the file without replacing one that was created in the meantime."""
        try:
            os.link(self._temporary, self._path)
        except FileExistsError:
            self._refuse_existing()
            raise
        except OSError:  # a file system without hard links
            self._refuse_existing()
            self._temporary.rename(self._path)
        else:
            self._temporary.unlink()

    def abort(self) -> None:
        self._temporary.unlink(missing_ok=True)
        with suppress(OSError):
            self._file.close()


def _locked(path: Path) -> IO[bytes]:
    """Open and lock a temporary file, which may be left from an interrupted backup.

    Raises:
        TemporaryFailure: another process has locked the file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        status = os.fstat(descriptor)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not is_ours or status.st_nlink != 1:  # a name that another user has prepared
            raise CannotCreate(f"{path} is not a file of this user; remove it")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            raise BlockingIOError
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
        return os.fdopen(descriptor, "wb", PIECE)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise TemporaryFailure(f"{path}: another process is writing this backup") from None
    except BaseException:
        os.close(descriptor)
        raise


def _head(entry: Entry, kind: bytes) -> bytes:
    member = tarfile.TarInfo(entry.path)
    member.type, member.mode, member.size = kind, entry.mode, entry.size
    member.mtime, member.linkname = entry.mtime // 10**9, entry.link
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _exactly(entry: Entry, content: _Readable) -> Iterator[bytes]:
    """Yield as many octets as the entry has; the file may have become longer."""
    left = entry.size
    while left:
        if not (octets := content.read(min(left, PIECE))):
            raise TemporaryFailure(f"{entry.path} has become shorter while it was read")
        yield octets
        left -= len(octets)


class TreeWriter:
    """Writes a directory for this backup into a directory of backups."""

    def __init__(self, path: Path, *, progress: Progress) -> None:
        """
        Raises:
            TemporaryFailure: another process is writing a backup into this directory.
        """
        self.manifest = Manifest()
        self._path, self._progress = path, progress
        self._stack = ExitStack()
        missing = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in missing:
            fsync_directory(each.parent)
        self._stack.enter_context(_directory_lock(path / _LOCK))
        try:
            previous = latest(path)
            self._known = _known(previous) if previous else {}
            self._previous = previous or path
            self._tree = path / _INCOMPLETE
            if self._tree.exists():
                shutil.rmtree(self._tree)
            self._tree.mkdir(mode=0o700)
            self._sync = self._stack.enter_context(Durable())
            self._directories = [self._tree]
        except BaseException:
            self._stack.close()
            raise

    def directory(self, entry: Entry) -> None:
        path = self._tree / entry.path
        self._make(path)
        self.manifest.add(entry)

    def file(self, entry: Entry, content: IO[bytes]) -> Entry:
        hashing = Hashing(content, self._progress)
        path = self._tree / entry.path
        self._make(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "wb", 0) as file:
            for octets in _exactly(entry, hashing):
                _write(file.fileno(), octets)
            os.utime(file.fileno(), ns=(entry.mtime, entry.mtime))
            self._sync.add(file.fileno())
        entry = entry._replace(digest=hashing.sum.hexdigest())
        self.manifest.add(entry)
        return entry

    def _make(self, path: Path) -> None:
        """Create a directory and its parents; ``Path.mkdir`` would let others read the parents."""
        if not path.exists():
            self._make(path.parent)
            path.mkdir(mode=0o700)
            self._directories.append(path)

    def link(self, entry: Entry) -> None:
        path = self._tree / entry.path
        os.link(self._tree / entry.link, path, follow_symlinks=False)
        self.manifest.add(entry)

    def reuse(self, entry: Entry) -> bool:
        """Link an unchanged message to the previous backup; return whether that was possible."""
        known = self._known.get((entry.inode, entry.size, entry.mtime))
        if known is None:
            return False
        old, digest = self._previous / known[0], known[1]
        try:
            status = os.lstat(old)
            if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime):
                return False
            path = self._tree / entry.path
            os.link(old, path, follow_symlinks=False)
        except OSError:  # missing, too many links, or a file system without links
            return False
        self.manifest.add(entry._replace(digest=digest))
        self._progress(entry.size)
        return True

    def finish(self) -> Path:
        self._sync.flush()
        for path in self._directories:
            fsync_directory(path)
        content, _ = self.manifest.file()
        with open(self._tree / MANIFEST, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            shutil.copyfileobj(content, file, PIECE)
            file.flush()
            os.fsync(file.fileno())
        fsync_directory(self._tree)
        name = stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
        number = 2
        while os.path.lexists(self._path / name):
            name, number = f"{stamp}-{number}", number + 1
        self._tree.rename(self._path / name)
        try:
            fsync_directory(self._path)
        except BaseException:
            (self._path / name).rename(self._tree)  # and ``abort`` removes it
            raise
        self._stack.close()
        return self._path / name

    def abort(self) -> None:
        shutil.rmtree(self._tree, ignore_errors=True)
        self._stack.close()


@contextmanager
def _directory_lock(path: Path) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        text = f"{path.parent}: another process is writing a backup into this directory"
        raise TemporaryFailure(text) from None
    finally:
        os.close(descriptor)


def _known(previous: Path) -> dict[tuple[int, int, int], tuple[str, str]]:
    """Return path and digest of the messages in a backup by inode number, size and mtime.

    A damaged backup shares nothing.
    """
    try:
        with open(previous / MANIFEST, "rb") as file:
            entries = list(Manifest.read(file))
    except (OSError, ValueError):
        return {}
    return {
        (each.inode, each.size, each.mtime): (each.path, each.digest)
        for each in entries
        if each.digest and each.inode
    }


class Durable:
    """Makes written files durable, many at a time."""

    def __init__(self) -> None:
        self._files: list[int] = []
        self._device = 0

    def __enter__(self) -> Durable:
        return self

    def add(self, file: int) -> None:
        """Make a file durable at the next ``flush`` or before.  The caller may close it."""
        device = os.fstat(file).st_dev
        if len(self._files) >= _BATCH or device != self._device:
            self.flush()
        self._device = device
        self._files.append(os.dup(file))

    def flush(self) -> None:
        """
        Raises:
            OSError: at least one file may not be durable.
        """
        try:
            sync_files(self._files)
        finally:
            self._close()

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def __exit__(self, *_: object) -> None:
        self._close()


def _write(file: int, octets: bytes) -> None:
    left = memoryview(octets)
    while left:
        left = left[os.write(file, left) :]
