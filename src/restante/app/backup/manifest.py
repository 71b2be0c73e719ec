"""The entries of a backup, and the manifest that lists them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple

from ...errors import ConfigurationError, Damaged

FORMAT = 2  # 1: without the owners of configuration files
HEADER = "restante-backup.json"
MANIFEST = "MANIFEST"
PARTS = ("configuration", "users", "state", "mail")
"""The directories in a backup."""
CONF_D = "configuration/conf.d/"
COMPRESSED = (".gz", ".tgz")
"""The ends of the names of compressed tar files."""
PIECE = 262_144
"""Octets read at a time."""
MAX_HEADER = 65_536
"""Maximum size of HEADER and of a pax header, in octets."""
MODE = 0o777
"""The bits of a mode that are stored."""

_SPOOL = 16_777_216  # octets of a manifest in memory; a longer one is in a temporary file
_MAX_LINE = 65_536  # octets of a line in a manifest; two paths of 4096 octets fit, escaped
_MAX_DEPTH, _NAME_MAX = 40, 255  # names in a path; octets in a name
_OWNERS = ("", "root", "server")
_STAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}Z(-[0-9]+)?")

Progress = Callable[[int], None]
"""Called with the number of octets that were read or written."""


class Entry(NamedTuple):
    """A file or directory in a backup."""

    path: str
    mode: int
    mtime: int
    """In nanoseconds."""
    size: int = 0
    digest: str = ""
    """SHA-256 in hexadecimal; empty for directories and second links."""
    inode: int = 0
    """The inode number when the backup was made."""
    link: str = ""
    """The path of an earlier entry of the same file, or empty."""
    owner: str = ""
    """Of a file or directory of the configuration: "server" for the server's user, or "root"; empty
    if that is unknown."""

    @property
    def is_directory(self) -> bool:
        return self.path.endswith("/")

    @property
    def part(self) -> str:
        return self.path.partition("/")[0]

    @property
    def content(self) -> tuple[str, int, str, str]:
        """What the octets of a backup show of this entry: path, size, digest and link."""
        return self.path, self.size, self.digest, self.link


def _line(entry: Entry) -> bytes:
    fields = entry if entry.owner else entry[:-1]  # as in format 1
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def _parse(line: bytes) -> Entry:
    """
    Raises:
        ValueError: the line is invalid.
    """
    path, mode, mtime, size, digest, inode, link, *rest = json.loads(line)
    (owner,) = rest or ("",)
    numbers = (mode, mtime, size, inode)
    if not all(type(each) is int for each in numbers) or min(mode, size, inode) < 0:
        raise ValueError("not a number")
    if mode & ~MODE or not -(2**63) <= mtime < 2**63:
        raise ValueError("mode or time out of range")
    for each in (path, digest, link):
        if not isinstance(each, str):
            raise ValueError("not text")
    if owner not in _OWNERS:
        raise ValueError("an unknown owner")
    entry = Entry(path, mode, mtime, size, digest, inode, link, owner)
    _check_path(path.removesuffix("/"))
    if (link or entry.is_directory) and (size or digest):
        raise ValueError("a directory or link with content")
    if not link and not entry.is_directory and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("no digest")
    return entry


def _check_path(path: str) -> None:
    names = path.split("/")
    if len(names) > _MAX_DEPTH:
        raise ValueError("a path that is too long")
    for name in names:
        if name in ("", ".", "..") or "\0" in name or len(os.fsencode(name)) > _NAME_MAX:
            raise ValueError("an invalid path")


class _Paths:
    """All paths of a backup, to find two entries that would be the same file."""

    def __init__(self) -> None:
        self._files: set[bytes] = set()
        self._directories: set[bytes] = set()

    def add(self, entry: Entry) -> None:
        """
        Raises:
            ValueError: the path or link contradicts an earlier entry.
        """
        parent = entry.path.removesuffix("/")
        key = _short(parent)
        if key in self._files or (not entry.is_directory and key in self._directories):
            raise ValueError("a path that occurs twice")
        (self._directories if entry.is_directory else self._files).add(key)
        while parent := parent.rpartition("/")[0]:
            if (key := _short(parent)) in self._files:
                raise ValueError("a file in a file")
            if key in self._directories:
                break  # and so are all directories above it
            self._directories.add(key)
        if entry.link and (entry.link == entry.path or _short(entry.link) not in self._files):
            raise ValueError("a link to no earlier file")


def _short(path: str) -> bytes:
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).digest()


class Manifest:
    """The entries of a backup."""

    def __init__(self) -> None:
        self._file: IO[bytes] = SpooledTemporaryFile(_SPOOL)  # noqa: SIM115 - closed with self
        self._sum = hashlib.sha256()
        self.entries = 0

    def add(self, entry: Entry) -> None:
        line = _line(entry)
        self._file.write(line)
        self._sum.update(line)
        self.entries += 1

    @property
    def digest(self) -> str:
        """Identifies the backup."""
        return self._sum.hexdigest()

    def __iter__(self) -> Iterator[Entry]:
        self._file.seek(0)
        for line in self._file:
            yield Entry(*json.loads(line))
        self._file.seek(0, os.SEEK_END)

    def file(self) -> tuple[IO[bytes], int]:
        """Return the file to be stored, at its beginning, and its size."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(self._end())
        size = self._file.tell()
        self._file.seek(0)
        return self._file, size

    def close(self) -> None:
        self._file.close()

    __del__ = close  # a manifest is used until its backup has been written or restored

    def _end(self) -> bytes:
        """Return the last line."""
        return json.dumps({"entries": self.entries, "sha256": self.digest}).encode("ascii") + b"\n"

    @classmethod
    def read(cls, file: IO[bytes], seen: Manifest | None = None) -> Manifest:
        """Read a stored manifest and check it.

        It must list exactly the entries in ``seen`` if this is given.  Each line is compared as
        soon as it is read, because a manifest that is much longer than its backup would take a lot
        of memory.

        Raises:
            ValueError: it is damaged, or differs from ``seen``.
        """
        manifest, paths = cls(), _Paths()
        expected = None if seen is None else iter(seen)
        while (line := file.readline(_MAX_LINE)).startswith(b"["):
            try:
                entry = _parse(line)
            except RecursionError as error:
                raise ValueError("nested too deeply") from error
            if expected is not None:
                _compare(next(expected, None), entry)
            paths.add(entry)
            if (entry.path == HEADER) != (manifest.entries == 0):
                raise ValueError("not in order")
            if entry.part not in (HEADER, *PARTS):
                raise ValueError("unknown part")
            manifest.add(entry)
        if line != manifest._end():
            raise ValueError("wrong checksum")
        if file.read(1):
            raise ValueError("more after the end")
        if seen is not None and seen.entries != manifest.entries:
            raise ValueError("entries are missing")
        return manifest


def _compare(seen: Entry | None, listed: Entry) -> None:
    """
    Raises:
        ValueError: they differ.
    """
    if seen is None:
        raise ValueError("entries are missing")
    if seen.content != listed.content:
        raise ValueError(f"{listed.path} differs from the manifest")


class Hashing(io.RawIOBase):
    """Reads a file and computes its SHA-256."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress
        self.sum = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        octets = self._file.read(size)
        self.sum.update(octets)
        self._progress(len(octets))
        return octets


def no_progress(_: int) -> None:
    """Show nothing."""


def parse_header(octets: bytes, name: str) -> dict[str, Any]:
    """Return the header.

    Raises:
        ConfigurationError: the backup has a newer format.
        Damaged: it is not a backup.
    """
    try:
        header = json.loads(octets)
        version = header["format"]
        assert isinstance(version, int)
    except (ValueError, TypeError, KeyError, AssertionError, RecursionError):
        raise Damaged(f"{name} is not a backup of restante") from None
    if version > FORMAT:
        raise ConfigurationError(
            f"{name} was written by a newer restante, in format {version}; this version reads "
            f"formats up to {FORMAT}. Nothing was changed. Install the newer version"
        )
    return dict(header)


def latest(path: Path) -> Path | None:
    """Return the newest complete backup in a directory of backups."""
    names = [each for each in os.listdir(path) if _STAMP.fullmatch(each)]
    trees = (path / each for each in sorted(names, key=_order, reverse=True))
    return next((each for each in trees if (each / MANIFEST).is_file()), None)


def _order(name: str) -> tuple[str, int]:
    stamp, _, number = name.partition("Z-")
    return stamp.removesuffix("Z"), int(number or 0)
