"""What a power failure may leave on a disk: every state that the file system's rules allow.

``Recorder`` watches a transaction and keeps, for each file, the contents since its last fsync,
and for each directory the changes to its names.  After each call it enumerates what the disk
may hold if the power fails now; ``Arena`` makes such a disk, so that the store can be opened
on it.

What is assumed (docs/decisions/0070-crash-tests.md):
- fsync of a file makes its octets durable, fsync of a directory its names, and nothing else.
- Later changes to a directory reach the disk in order, and any number of them may be missing at
  the end: for each directory independently (``LOOSE``), or in one order for all directories, as
  with a journal (``ORDERED``).
- Unsynced octets may be there, torn, zeros or missing.
- A rename is never torn: the old name disappears only if the new one is there.  ``harsh`` (no
  journal, as ext2): an fsync of the old directory alone is enough for it to disappear.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from ..store.watched import TWO_NAMES, Call, Hook, WatchedOs, nothing

T = TypeVar("T")

LOOSE, ORDERED = "loose", "ordered"
_MOST = 100  # combinations of independent choices; of more, this many are sampled


@dataclass(eq=False)
class File:
    inode: int
    contents: list[bytes]
    """Content at the last fsync and after each later change."""

    def possible(self) -> list[bytes]:
        """Return what a power failure may leave; of many changes the first and the last."""
        found = dict.fromkeys([*self.contents[:2], *self.contents[-2:]])
        if len(self.contents) > 1:
            old, new = self.contents[-2:]
            same = len(old) if new.startswith(old) else 0
            half = new[: same + (len(new) - same) // 2]
            found[half] = None
            found[half.ljust(len(new), b"\0")] = None
            found[new[:same].ljust(len(new), b"\0")] = None
        return list(found)


@dataclass(eq=False)
class Change:
    """One call's effect on the names of one directory."""

    moment: int
    names: dict[str, Node | None]
    stamp: int
    """Time stamp of the directory after the change, in nanoseconds."""
    after: tuple[Directory, int] | None = None
    """The number of changes of another directory that must be on the disk as well."""


@dataclass(eq=False)
class Directory:
    path: str
    changes: list[Change] = field(default_factory=list)
    durable: int = 0
    """Number of changes that an fsync has made durable."""

    def names(self, count: int) -> dict[str, Node]:
        found: dict[str, Node | None] = {}
        for change in self.changes[:count]:
            found |= change.names
        return {name: node for name, node in found.items() if node is not None}

    def now(self) -> dict[str, Node]:
        return self.names(len(self.changes))

    def change(
        self,
        moment: int,
        names: dict[str, Node | None],
        stamp: int,
        after: tuple[Directory, int] | None = None,
    ) -> None:
        self.changes.append(Change(moment, names, stamp, after))


Node = File | Directory
Disk = tuple[tuple[str, int, bytes | None], ...]
"""Path, inode number and content of each file; path, time stamp and None of each directory."""


class Recorder(WatchedOs):
    """Records every state that a crash may leave, each with what ``expected`` returned then."""

    def __init__(
        self,
        base: Path,
        pool: Path,
        expected: Callable[[], Any],
        *,
        hook: Hook = nothing,
        harsh: bool = False,
    ) -> None:
        super().__init__(base, hook)
        self.enumerated = 0
        self.states: dict[tuple[str, Any, Disk], None] = {}
        """Kind of file system, expectation, and content of the disk."""
        self._pool = pool
        self._expected = expected
        self._harsh = harsh
        self._random = random.Random(0)
        self._moment = 0
        self._durable_moment = 0
        self._files: dict[int, File] = {}
        self._root = self._directory("")
        self._durable_from_the_start(self._root)

    # -- Recording

    def _directory(self, path: str) -> Directory:
        made = Directory(path)
        made.change(0, {}, self._stamp(path))
        made.durable = 1
        return made

    def _durable_from_the_start(self, directory: Directory) -> None:
        nodes: dict[str, Node | None] = {}
        for name in sorted(os.listdir(self.base / directory.path)):
            path = os.path.join(directory.path, name)
            if (self.base / path).is_dir():
                below = self._directory(path)
                self._durable_from_the_start(below)
                nodes[name] = below
            else:
                nodes[name] = self._file(path)
        directory.changes[0].names |= nodes

    def _stamp(self, path: str) -> int:
        return os.lstat(self.base / path).st_mtime_ns

    def _file(self, path: str) -> File:
        """Return the file at this path; a link in the pool keeps its inode number in use."""
        inode = os.lstat(self.base / path).st_ino
        if inode not in self._files:
            kept = self._pool / str(inode)
            with suppress(FileExistsError):  # made by another recorder
                self._real["link"](self.base / path, kept)
            self._files[inode] = File(inode, [kept.read_bytes()])
        return self._files[inode]

    def _node(self, path: str) -> Node:
        node: Node = self._root
        for name in path.split("/") if path != "." else []:
            assert isinstance(node, Directory)
            node = node.now()[name]
        return node

    def _above(self, path: str) -> tuple[Directory, str]:
        node = self._node(os.path.dirname(path) or ".")
        assert isinstance(node, Directory)
        return node, os.path.basename(path)

    def _remember(self, call: Call, args: tuple[Any, ...], was_there: bool) -> None:
        super()._remember(call, args, was_there)
        name, path = call[0], call[1]
        self._moment += 1
        if name == "open":
            if was_there and not args[1] & os.O_TRUNC:
                return
            if not was_there:
                self._put(path, self._file(path))
            else:
                self._wrote(path)
        elif name == "mkdir":
            self._put(path, self._directory(path))
        elif name in ("write", "ftruncate"):
            self._wrote(path)
        elif name in ("unlink", "rmdir"):
            self._put(path, None)
        elif name in TWO_NAMES:
            self._put_elsewhere(call)
        elif name == "fsync":
            self._synced(self._node(path))
        else:
            return
        self.collect()

    def _put(self, path: str, node: Node | None) -> None:
        above, name = self._above(path)
        above.change(self._moment, {name: node}, self._stamp(above.path))

    def _put_elsewhere(self, call: Call) -> None:
        (source, name), (target, new_name) = self._above(call[1]), self._above(call[2])
        node = source.now()[name]
        assert isinstance(node, File), "directories are not moved"
        stamps = self._stamp(source.path), self._stamp(target.path)
        if call[0] == "link":
            target.change(self._moment, {new_name: node}, stamps[1])
        elif source is target:
            source.change(self._moment, {name: None, new_name: node}, stamps[0])
        else:
            target.change(self._moment, {new_name: node}, stamps[1])
            source.change(self._moment, {name: None}, stamps[0], (target, len(target.changes)))

    def _wrote(self, path: str) -> None:
        file = self._node(path)
        assert isinstance(file, File)
        file.contents.append((self.base / path).read_bytes())

    def _synced(self, node: Node) -> None:
        if isinstance(node, Directory):
            for change in node.changes[node.durable :]:
                if change.after and not self._harsh:
                    target, count = change.after
                    target.durable = max(target.durable, count)
            node.durable = len(node.changes)
        else:
            del node.contents[:-1]
        self._durable_moment = self._moment

    # -- Enumerating

    def collect(self) -> None:
        """Record every state that the disk may be in now."""
        expected = self._expected()
        for kind, counts in self._counts():
            for disk in self._disks(counts):
                self.enumerated += 1
                self.states[kind, expected, disk] = None

    def _directories(self) -> list[Directory]:
        found = [self._root]
        for directory in found:
            seen = {node for change in directory.changes for node in change.names.values()}
            found += [node for node in seen if isinstance(node, Directory)]
        return sorted(found, key=lambda directory: directory.path)

    def _counts(self) -> Iterator[tuple[str, dict[Directory, int]]]:
        """Yield how many changes of each directory may be on the disk."""
        directories = self._directories()
        for moment in range(self._durable_moment, self._moment + 1):
            yield (
                ORDERED,
                {
                    each: sum(change.moment <= moment for change in each.changes)
                    for each in directories
                },
            )
        ranges = [range(each.durable, len(each.changes) + 1) for each in directories]
        for numbers in self._some(ranges):
            counts = dict(zip(directories, numbers, strict=True))
            if self._is_legal(counts):
                yield LOOSE, counts

    def _some(self, choices: Sequence[Sequence[T]]) -> Iterator[tuple[T, ...]]:
        """Return every combination, or a sample of ``_MOST``."""
        if prod(map(len, choices)) <= _MOST:
            return product(*choices)
        return (tuple(map(self._random.choice, choices)) for _ in range(_MOST))

    @staticmethod
    def _is_legal(counts: dict[Directory, int]) -> bool:
        return all(
            change.after is None or counts[change.after[0]] >= change.after[1]
            for each, count in counts.items()
            for change in each.changes[each.durable : count]
        )

    def _disks(self, counts: dict[Directory, int]) -> Iterator[Disk]:
        directories: list[tuple[str, int, None]] = []
        found: list[tuple[str, File]] = []
        ways = [("", self._root)]
        for path, directory in ways:
            count = counts[directory]
            directories.append((path, directory.changes[count - 1].stamp, None))
            for name, node in directory.names(count).items():
                if isinstance(node, Directory):
                    ways.append((os.path.join(path, name), node))
                else:
                    found.append((os.path.join(path, name), node))
        files = list({file: None for _, file in found})
        for contents in self._some([file.possible() for file in files]):
            content = dict(zip(files, contents, strict=True))
            yield (
                *sorted(directories),
                *sorted((path, file.inode, content[file]) for path, file in found),
            )


class Arena:
    """A directory in which disks are made; the files keep their inode numbers."""

    def __init__(self, place: Path, pool: Path) -> None:
        self.place = place
        self._pool = pool

    def make(self, disk: Disk) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        stamps = []
        for path, number, content in disk:
            if content is None:
                (self.place / path).mkdir(mode=0o700)
                stamps.append((path, number))
            else:
                kept = self._pool / str(number)
                if kept.read_bytes() != content:
                    kept.write_bytes(content)
                os.link(kept, self.place / path)
        for path, stamp in stamps:
            os.utime(self.place / path, ns=(stamp, stamp))
