"""Deliver messages in groups, each message under a name given by the caller.

The name becomes the middle of the unique part, ``<seconds>.<name>.restante``, so it is preserved
when flags change, when the message is held or restored, and when an index is lost.  The messages
of a group are first written to ``tmp/``.  All of them are durable before the first message is
renamed into ``new/``, and one fsync makes their names durable.  A group that fails leaves no files,
so no group is delivered in part.

Quota: one line adds a whole group to the count when the group is delivered.  The free space for
each message is checked when the message is complete, so that a message that exceeds the quota does
not affect the messages before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple

from ..errors import LargerThanQuota
from ..maildrop import Presence
from ..message import Survey
from ..scanning import ChangingMaildir, list_folders, scan_folders
from ..syncing import sync_files
from . import files, held, quota
from .files import storage_errors
from .folders import INBOX
from .names import fields, fresh_unique, given_name, unique_of


class _Message(NamedTuple):
    """A message that is complete but not yet durable."""

    file: int
    unique: str
    """Name of the file in ``tmp/``."""
    name: str
    """Name of the file in ``new/``."""
    octets: int
    """Size of the file."""


class _Contents(NamedTuple):
    """The content of a maildrop, by the names that callers have given to messages."""

    paths: dict[str, str]
    """Paths relative to the maildrop, by name."""
    purged: set[str]
    is_exact: bool
    """Whether the scan was exact, so that ``paths`` contains every message."""


class NamedDeliveries:
    """Implements ``maildrop.Deliveries`` for one user."""

    def __init__(self, base: str, names: Sequence[str], limit: Callable[[], int]) -> None:
        """``base`` and ``names``: see ``files.maildrop``.  ``limit``: returns the quota in octets,
        or 0 for no quota.

        Raises:
            TemporaryFailure: ``base`` is missing.
        """
        self._base, self._names, self._limit = base, names, limit
        self._cached: _Contents | None = None
        self._group: _Group | None = None
        self._closed: list[_Group] = []  # closed groups that have not been delivered yet
        with storage_errors(), suppress(FileNotFoundError), files.maildrop(base, names):
            pass

    # Content

    def presence(self, name: str) -> Presence:
        path = self._path(name)
        if path is not None:
            return Presence.HELD if path.split("/")[-2] == files.HELD else Presence.HERE
        return Presence.GONE if name in self._contents().purged else Presence.UNKNOWN

    def digest(self, name: str) -> bytes | None:
        for _ in range(2):
            path = self._path(name)
            if path is None:
                return None
            with storage_errors(), suppress(FileNotFoundError):
                return self._digest(path)
            self._cached = None  # another program has renamed the file
        return None

    def _path(self, name: str) -> str | None:
        """Return the path of a message, or None if it is not in the maildrop.

        Raises:
            TemporaryFailure: another program keeps renaming files, so the message may have been
                missed.
        """
        contents = self._contents()
        if name not in contents.paths and not contents.is_exact:
            self._cached = None  # so that the next call scans again
            raise ChangingMaildir
        return contents.paths.get(name)

    def _digest(self, path: str) -> bytes:
        *folders, name = path.split("/")
        digest, offset = hashlib.sha256(), 0
        with ExitStack() as stack:
            directory = stack.enter_context(files.maildrop(self._base, self._names))
            for folder in folders:
                directory = stack.enter_context(files.directory(folder, directory))
            file = stack.enter_context(files.reading(name, directory))
            while octets := files.read_at(file, offset):
                digest.update(octets)
                offset += len(octets)
        return digest.digest()

    def _contents(self) -> _Contents:
        if self._cached is None:
            seen = _Contents({}, set(), is_exact=True)
            with (
                storage_errors(),
                suppress(FileNotFoundError),
                files.maildrop(self._base, self._names) as maildrop,
            ):
                seen = _scan(maildrop)
            self._cached = seen  # only after success: after an error nothing is cached
        return self._cached

    # Delivery

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
            self._group.end(self._uncounted)

    def _uncounted(self) -> int:
        """Return the octets of complete messages that the maildrop's count does not include yet."""
        groups = (*self._closed, self._group)
        return sum(each.uncounted for each in groups if each is not None)

    def group(self) -> Callable[[], None]:
        group, self._group = self._group, None
        if group is None:
            return lambda: None
        self._closed.append(group)
        return partial(self._deliver, group)

    def _deliver(self, group: _Group) -> None:
        try:
            with storage_errors():
                arrived = group.deliver()
        finally:
            self._closed.remove(group)
        self._contents().paths.update(_by_name(f"new/{each}" for each in arrived))

    def abort(self) -> None:
        if self._group is not None:
            self._group.abort()

    def close(self) -> None:
        for group in (*self._closed, self._group):
            if group is not None:
                group.close()
        self._closed, self._group = [], None


class _Group:
    """Messages that become visible and durable together."""

    def __init__(self, base: str, names: Sequence[str], limit: int) -> None:
        self.uncounted = 0
        """Stored octets of complete messages that the maildrop's count does not include yet."""
        self._limit = limit
        # The message being written: its name, unique part, descriptor and survey.
        self._begun: tuple[str, str, int, Survey] | None = None
        self._complete: list[_Message] = []
        self._stack = ExitStack()
        try:
            enter = self._stack.enter_context
            self._maildrop = enter(files.maildrop(base, names, make=True))
            self._tmp = enter(files.directory("tmp", self._maildrop))
            self._new = enter(files.directory("new", self._maildrop))
        except BaseException:
            self._stack.close()
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

    def end(self, uncounted: Callable[[], int]) -> None:
        """End the message.

        ``uncounted`` returns the octets, in all groups, that the maildrop's count does not include.
        """
        assert self._begun is not None
        name, unique, file, survey = self._begun
        survey.finish()
        quota.check_room(self._maildrop, lambda: uncounted() + survey.stored, self._limit)
        final = unique_of(name) + fields(survey)
        self._complete.append(_Message(file, unique, final, survey.stored))
        self._begun = None
        self.uncounted += survey.stored

    def deliver(self) -> list[str]:
        """Make all messages durable.  Returns the names of their files in ``new/``."""
        try:
            if self._complete:
                sync_files([each.file for each in self._complete])
                sizes = [each.octets for each in self._complete]
                with quota.room(self._maildrop, sizes, self._limit, self._mark_counted):
                    return self._move_into_new()
            return []
        finally:
            self.close()

    def _mark_counted(self) -> None:
        self.uncounted = 0

    def _move_into_new(self) -> list[str]:
        arrived: list[str] = []
        try:
            for each in self._complete:
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
        """Remove the messages that were not delivered."""
        self.abort()
        while self._complete:
            message = self._complete.pop()
            self._drop(message.file, message.unique)
        self._stack.close()

    def _drop(self, file: int, unique: str) -> None:
        files.close(file)
        with suppress(OSError):
            files.unlink(unique, self._tmp)


# Content


def _scan(maildrop: int) -> _Contents:
    """Scan all folders and their held mail.

    The directories are synced, because an earlier delivery may have crashed between its rename and
    its fsync, and the collector deletes from its server the messages that this scan finds.
    """
    seen = scan_folders(maildrop)
    for directory in seen.names:
        with suppress(FileNotFoundError):
            files.sync(directory, parent=maildrop)
    purged: set[str] = set()
    for folder in (INBOX, *list_folders(maildrop)):
        with suppress(FileNotFoundError), files.directory(folder, maildrop) as own:
            purged |= held.purged(own)
    paths = _by_name(f"{file.directory}/{file.name}" for file in seen.files())
    return _Contents(paths, purged, seen.is_exact)


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    """Return the paths of messages by the names under which they were delivered.

    Messages delivered without a name are left out.
    """
    names = ((_delivered_name(path), path) for path in paths)
    return {name: path for name, path in names if name is not None}


def _delivered_name(path: str) -> str | None:
    *folders, name = path.split("/")
    return given_name(held.name_before_removal(name) if folders[-1] == files.HELD else name)
