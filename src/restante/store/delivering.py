"""Messages that arrive under names of their senders', many of them in one go.

A name becomes the middle of the unique part, ``<seconds>.<name>.restante``, so it survives flags,
``held/``, a restore and the loss of every index.  The octets of a group wait in ``tmp/``; all of
them are durable before the first one is renamed into ``new/``, and the names become durable by one
fsync.  A group that fails as a whole leaves nothing behind, so nothing is half known.

Quota: a group is added to the count when it arrives, by one line.  Each message asks for room when
it is whole, because a message without room must not cost those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple

from ..errors import LargerThanQuota
from ..maildrop import Place
from ..message import Survey
from ..syncing import sync_files
from . import files, held, quota
from .files import storage_errors
from .folders import INBOX
from .names import fields, fresh_unique, given_name, scan, unique_of

_PARTS = ("new", "cur", files.HELD)  # in the order in which messages move
_LOOKS = 10  # at folders in which other programs keep moving mail about


class _Message(NamedTuple):
    """Whole, and not durable yet."""

    file: int
    unique: str
    """Its name in ``tmp/``."""
    name: str
    """Its name in ``new/``."""
    octets: int
    """As stored."""


class _Known(NamedTuple):
    """What a look at a maildrop finds, by the names of messages."""

    paths: dict[str, str]
    """In the maildrop."""
    purged: set[str]


class NamedDeliveries:
    """``maildrop.Deliveries`` of one user."""

    def __init__(self, base: str, names: Sequence[str], limit: Callable[[], int]) -> None:
        """``base`` and ``names``: see ``files.maildrop``.  ``limit``: the quota, octets; 0 is
        none.

        Raises:
            TemporaryFailure: there is no ``base``.
        """
        self._base, self._names, self._limit = base, names, limit
        self._seen: _Known | None = None
        self._group: _Group | None = None
        self._arriving = 0  # octets that are whole and not counted yet
        with storage_errors(), suppress(FileNotFoundError), files.maildrop(base, names):
            pass

    # What is here.

    def place(self, name: str) -> Place:
        known = self._known()
        path = known.paths.get(name)
        if path is not None:
            return Place.HELD if path.split("/")[-2] == files.HELD else Place.HERE
        return Place.GONE if name in known.purged else Place.UNKNOWN

    def digest(self, name: str) -> bytes | None:
        for _ in range(2):
            path = self._known().paths.get(name)
            if path is None:
                return None
            with storage_errors(), suppress(FileNotFoundError):
                return self._digest(path)
            self._seen = None  # another program has renamed it
        return None

    def _digest(self, path: str) -> bytes:
        *folders, name = path.split("/")
        digest, offset = hashlib.sha256(), 0
        with ExitStack() as opened:
            directory = opened.enter_context(files.maildrop(self._base, self._names))
            for folder in folders:
                directory = opened.enter_context(files.directory(folder, directory))
            file = opened.enter_context(files.reading(name, directory))
            while octets := files.read_at(file, offset):
                digest.update(octets)
                offset += len(octets)
        return digest.digest()

    def _known(self) -> _Known:
        if self._seen is None:
            self._seen = _Known({}, set())
            with (
                storage_errors(),
                suppress(FileNotFoundError),
                files.maildrop(self._base, self._names) as maildrop,
            ):
                self._seen = _look(maildrop)
        return self._seen

    # What comes.

    def begin(self, name: str) -> None:
        with storage_errors():
            if self._group is None:
                self._group = _Group(self._base, self._names, self._limit())
            self._group.begin(name)

    def write(self, octets: bytes) -> None:
        assert self._group is not None
        with storage_errors():
            self._group.write(octets)

    def end(self) -> None:
        assert self._group is not None
        with storage_errors():
            before = self._group.octets
            self._group.end(self._arriving)
            self._arriving += self._group.octets - before

    def group(self) -> Callable[[], None]:
        group, self._group = self._group, None
        return partial(self._deliver, group) if group is not None else lambda: None

    def _deliver(self, group: _Group) -> None:
        try:
            with storage_errors():
                arrived = group.deliver()
        finally:
            self._arriving -= group.octets
        self._known().paths.update(_by_name(f"new/{each}" for each in arrived))

    def abort(self) -> None:
        if self._group is not None:
            self._group.abort()

    def close(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


class _Group:
    """From the first message that is begun until all of them have arrived."""

    def __init__(self, base: str, names: Sequence[str], limit: int) -> None:
        self.octets = 0
        """As stored, of the messages that were ended."""
        self._limit = limit
        self._begun: tuple[str, str, int, Survey] | None = None  # name, unique, file
        self._whole: list[_Message] = []
        self._opened = ExitStack()
        try:
            take = self._opened.enter_context
            self._maildrop = take(files.maildrop(base, names, make=True))
            self._tmp = take(files.directory("tmp", self._maildrop))
            self._new = take(files.directory("new", self._maildrop))
        except BaseException:
            self._opened.close()
            raise

    def begin(self, name: str) -> None:
        unique = fresh_unique()
        self._begun = name, unique, files.create(unique, self._tmp), Survey()

    def write(self, octets: bytes) -> None:
        assert self._begun is not None
        _, _, file, survey = self._begun
        files.write(file, octets)
        survey.feed(octets)
        if self._limit and survey.stored > self._limit:
            raise LargerThanQuota(self._limit)

    def end(self, arriving: int) -> None:
        """``arriving``: octets that were ended in any group and are not counted yet."""
        assert self._begun is not None
        name, unique, file, survey = self._begun
        survey.finish()
        quota.look_for_room(self._maildrop, arriving + survey.stored, self._limit)
        final = unique_of(name) + fields(survey)
        self._whole.append(_Message(file, unique, final, survey.stored))
        self._begun = None
        self.octets += survey.stored

    def deliver(self) -> list[str]:
        """Make all durable; returns the names of their files in ``new/``."""
        try:
            if self._whole:
                sync_files([each.file for each in self._whole])
                with quota.room(self._maildrop, [each.octets for each in self._whole], self._limit):
                    return self._arrive()
            return []
        finally:
            self.close()

    def _arrive(self) -> list[str]:
        arrived: list[str] = []
        try:
            for each in self._whole:
                files.move(each.unique, self._tmp, each.name, self._new)
                arrived.append(each.name)
            files.sync_together(self._new)
        except BaseException:
            for name in arrived:
                with suppress(OSError):
                    files.unlink(name, self._new)
            raise
        return arrived

    def abort(self) -> None:
        if self._begun is not None:
            _, unique, file, _ = self._begun
            self._begun = None
            self._drop(file, unique)

    def close(self) -> None:
        """What has not arrived leaves no trace."""
        self.abort()
        while self._whole:
            whole = self._whole.pop()
            self._drop(whole.file, whole.unique)
        self._opened.close()

    def _drop(self, file: int, unique: str) -> None:
        files.close(file)
        with suppress(OSError):
            files.unlink(unique, self._tmp)


# What is here.


def _look(maildrop: int) -> _Known:
    """At every folder, and what is held there.

    A file that is renamed while its directory is read may be missed, so all is read until a look
    meets no change.  What one of the looks has seen is here: absence is no evidence of anything.
    The names are made durable, because what is here will be deleted where it came from, and a
    crash may have come between the rename and the fsync of an earlier delivery.
    """
    paths: dict[str, str] = {}
    purged: set[str] = set()
    for _ in range(_LOOKS):
        folders = [INBOX, *files.list_folders(maildrop)]
        before = _stamps(maildrop, folders)
        paths |= _by_name(path for folder in folders for path in _in_folder(maildrop, folder))
        if _stamps(maildrop, folders) == before:
            break
    for folder in folders:
        with suppress(FileNotFoundError), files.directory(folder, maildrop) as own:
            files.sync(*(name for name in _PARTS if files.exists(name, own)), parent=own)
            purged |= held.purged(own)
    return _Known(paths, purged)


def _in_folder(maildrop: int, folder: str) -> Iterator[str]:
    with suppress(FileNotFoundError, NotADirectoryError), files.directory(folder, maildrop) as own:
        for file in scan(own):
            yield f"{folder}/{file.directory}/{file.name}"
        for name, _ in files.list_files(files.HELD, own):  # the last place counts
            yield f"{folder}/{files.HELD}/{name}"


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    """Those of messages that were delivered under a name."""
    names = ((_name_in(path), path) for path in paths)
    return {name: path for name, path in names if name is not None}


def _name_in(path: str) -> str | None:
    *folders, name = path.split("/")
    return given_name(held.name_before(name) if folders[-1] == files.HELD else name)


def _stamps(maildrop: int, folders: Iterable[str]) -> list[tuple[int, int, int]]:
    """They change whenever a name does."""
    found = []
    for folder in folders:
        for name in _PARTS:
            with suppress(FileNotFoundError, NotADirectoryError):
                found.append(files.stamp(f"{folder}/{name}", maildrop))
    return found
