"""Read a backup that may be damaged or hostile."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from ...errors import Damaged
from .manifest import (
    HEADER,
    MANIFEST,
    MAX_HEADER,
    MODE,
    PIECE,
    Entry,
    Hashing,
    Manifest,
    Progress,
    latest,
    no_progress,
    parse_header,
)

_MAX_PADDING = 65_536  # octets of zeros after the last entry; tar pads to 10,240


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Source(Protocol):
    """A backup that is read."""

    name: str

    def verify(self, progress: Progress) -> Manifest:
        """Read everything and check it."""

    def contents(self, manifest: Manifest) -> Iterator[tuple[Entry, IO[bytes]]]:
        """Yield the entries with their octets, which must be read before the next entry."""


def source(path: Path) -> Source:
    """Open a backup: a tar file, a tree, or the newest tree in a directory of backups.

    Raises:
        Damaged: the path is not a complete backup.
        OSError: the path cannot be read.
    """
    if not path.is_dir():
        return TarSource(path)
    if (path / MANIFEST).is_file():
        return TreeSource(path)
    if (tree := latest(path)) is None:
        raise Damaged(f"{path} contains no complete backup")
    return TreeSource(tree)


class TreeSource:
    """One backup in a directory of backups."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def verify(self, progress: Progress) -> Manifest:
        with self._file(HEADER) as file:
            parse_header(file.read(MAX_HEADER), self.name)
        with self._file(MANIFEST) as file:
            try:
                manifest = Manifest.read(file)
            except ValueError as error:
                raise Damaged(f"{self.name} is damaged: {MANIFEST}: {error}") from error
        for entry, file in self.contents(manifest):
            if entry.digest:
                _check(self.name, entry, file, progress)
        return manifest

    def contents(self, manifest: Manifest) -> Iterator[tuple[Entry, IO[bytes]]]:
        for entry in manifest:
            if entry.digest:
                with self._file(entry.path) as file:
                    yield entry, file
            else:
                yield entry, io.BytesIO()

    @contextmanager
    def _file(self, path: str) -> Iterator[IO[bytes]]:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self._path / path, flags)
        except FileNotFoundError:
            raise Damaged(f"{self.name} is damaged: {path} is missing") from None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise Damaged(f"{self.name} is damaged: {path} is a link") from error
        with open(descriptor, "rb", PIECE) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Damaged(f"{self.name} is damaged: {path} is not a regular file")
            yield file


def _check(name: str, entry: Entry, file: IO[bytes], progress: Progress) -> None:
    for _ in checked(name, entry, file, progress):
        pass


def checked(
    name: str, entry: Entry, file: IO[bytes], progress: Progress = no_progress
) -> Iterator[bytes]:
    """Yield the octets of an entry, and check size and digest at the end.

    Raises:
        Damaged: the octets differ.  This is raised before an octet too many is yielded.
    """
    hashing, left = Hashing(file, progress), entry.size
    while octets := hashing.read(PIECE):
        left -= len(octets)
        if left < 0:
            break
        yield octets
    if left or hashing.sum.hexdigest() != entry.digest:
        raise Damaged(f"{name} is damaged: {entry.path} differs from the manifest")


class _Member(tarfile.TarInfo):
    """A member of a tar file.  Kinds that restante does not write are refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        kinds = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE)
        if member.type not in kinds:
            raise Damaged("an entry is neither a file nor a directory")
        if member.type == tarfile.XHDTYPE and member.size > MAX_HEADER:
            raise Damaged("an entry has a header that is too long")
        return member


class TarSource:
    """A backup in a tar file.

    The file is opened once, because the server's user may be unable to open a file of root.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = -1
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    __del__ = close  # most commands do not close it

    def verify(self, progress: Progress) -> Manifest:
        seen, manifest = Manifest(), None
        with self._damage():
            for entry, file in self._members(progress):
                if manifest is not None:
                    raise Damaged("there is more after the last entry")
                if not seen.entries:
                    self._check_header(entry, file, seen)
                elif entry.path == MANIFEST:
                    manifest = Manifest.read(file, seen)
                else:
                    seen.add(self._digested(entry, file))
            if manifest is None:
                raise Damaged("it is incomplete")
            return manifest

    def _check_header(self, entry: Entry, file: IO[bytes], seen: Manifest) -> None:
        if entry.path != HEADER or entry.size > MAX_HEADER:
            raise Damaged(f"{self.name} is not a backup of restante")
        octets = file.read(MAX_HEADER)
        parse_header(octets, self.name)
        seen.add(self._digested(entry, io.BytesIO(octets)))

    def _digested(self, entry: Entry, file: IO[bytes]) -> Entry:
        if entry.link or entry.is_directory:
            return entry
        hashing = Hashing(file, no_progress)
        while hashing.read(PIECE):
            pass
        return entry._replace(digest=hashing.sum.hexdigest())

    def contents(self, manifest: Manifest) -> Iterator[tuple[Entry, IO[bytes]]]:
        with self._damage():
            members = self._members(no_progress)
            for entry, (member, file) in zip(manifest, members, strict=False):
                if entry.path != member.path:
                    raise Damaged(f"{self.name} has changed while it was read")
                yield entry, file

    def _members(self, progress: Progress) -> Iterator[tuple[Entry, IO[bytes]]]:
        with ExitStack() as stack:
            raw = stack.enter_context(open(self._file, "rb", PIECE, closefd=False))
            if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                raise Damaged(f"{self.name} is not a regular file")
            raw.seek(0)
            is_compressed = os.pread(raw.fileno(), 2, 0) == b"\x1f\x8b"
            file = _Counting(raw, progress)
            content = stack.enter_context(gzip.GzipFile(fileobj=file)) if is_compressed else file
            tar = stack.enter_context(
                tarfile.open(
                    fileobj=content,
                    mode="r|",
                    bufsize=PIECE,
                    tarinfo=_Member,
                    encoding="utf-8",
                    errors="surrogateescape",
                )
            )
            while (member := tar.next()) is not None:
                # tarfile would keep all members in memory.
                tar.members.clear()  # type: ignore[attr-defined]
                path = member.name + "/" * member.isdir()
                link = member.linkname if member.islnk() else ""
                size = member.size if member.isreg() else 0
                opened = tar.extractfile(member) if member.isreg() else None
                if member.size < 0 or member.issparse() or (member.size and not member.isreg()):
                    raise Damaged("an entry has an impossible size")
                yield Entry(path, member.mode & MODE, 0, size, link=link), opened or io.BytesIO()
            self._check_end(content)

    def _check_end(self, file: _Readable) -> None:
        """Read to the end, where gzip has a checksum."""
        rest = file.read(_MAX_PADDING)
        if rest.strip(b"\0") or file.read(1):
            raise Damaged("there is more after the last entry")

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Translate the errors of damaged files."""
        try:
            yield
        except Damaged as error:
            text = str(error)
            raise Damaged(
                text if text.startswith(self.name) else f"{self.name} is damaged: {text}"
            ) from error
        except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError) as error:
            raise Damaged(f"{self.name} is damaged: {error}") from error
        except (RecursionError, OverflowError) as error:
            # tarfile calls itself for a pax header that follows a pax header, and computes with the
            # lengths of their records.
            raise Damaged(f"{self.name} is damaged: an entry has invalid headers") from error


class _Counting(io.RawIOBase):
    """Reports how much of a file has been read."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        octets = self._file.read(size)
        self._progress(len(octets))
        return octets
