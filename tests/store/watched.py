"""A replacement for ``os`` below the store: it records calls, and fails or "dies" on demand.

Paths are relative to the maildrop's parent; calls for paths elsewhere are passed on and not
recorded.  Linux only (``/proc/self/fd``).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from restante import scanning, syncing
from restante.store import files
from restante.store.index import INDEX

TWO_NAMES = {"link", "rename", "replace"}
CHANGES = {"mkdir", "rmdir", "open", "write", "ftruncate", "fsync", "unlink", *TWO_NAMES}
READS = {"pread", "preadv", "read", "scandir", "stat", "fstat"}

Hook = Callable[["Call"], None]


class Crash(BaseException):
    """The simulated process has died: later calls have no effect."""


class Call(tuple[str, ...]):
    """The name of a call and its paths."""

    __slots__ = ()


def nothing(_: Call) -> None:
    """Do nothing: a hook that allows every call."""


class WatchedOs:
    """Records the calls that began, in order; ``hook`` is called before each."""

    def __init__(self, base: Path, hook: Hook) -> None:
        self.calls: list[Call] = []
        self.base = base
        self.hook = hook
        self._real = {name: getattr(os, name) for name in CHANGES | READS}
        self.unsynced: set[str] = set()
        """Files and directories with changes that a power failure may lose."""
        self.most: int | None = None
        """The most octets that one write accepts."""

    def __getattr__(self, name: str) -> Any:
        if name not in CHANGES | READS:
            return getattr(os, name)
        real = self._real[name]

        def watched(*args: Any, **kwargs: Any) -> Any:
            call = Call((name, *self._paths(name, args, kwargs)))
            if call[1].startswith(".."):
                return real(*args, **kwargs)
            self.calls.append(call)
            self.hook(call)
            if name == "write":
                args = args[0], args[1][: self.most]
            was_there = name == "open" and os.path.lexists(self.base / call[1])
            result = real(*args, **kwargs)
            self._remember(call, args, was_there)
            return result

        return watched

    def _paths(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        if name in TWO_NAMES:
            parents = kwargs.get("src_dir_fd"), kwargs.get("dst_dir_fd")
            return [self._path(*each) for each in zip(parents, args, strict=True)]
        if isinstance(args[0], int):
            return [self._path(args[0], "")]
        return [self._path(kwargs.get("dir_fd"), args[0])]

    def _path(self, parent: int | None, name: str) -> str:
        above = "/" if parent is None else os.readlink(f"/proc/self/fd/{parent}")
        return os.path.relpath(os.path.join(above, name), self.base)

    def _remember(self, call: Call, args: tuple[Any, ...], was_there: bool) -> None:
        name, path = call[0], call[1]
        if os.path.basename(path) in (INDEX, f"{INDEX}.tmp"):
            return  # a power failure that undoes it loses nothing
        if name == "fsync":
            self.unsynced.discard(path)
        elif name in ("write", "ftruncate") or (name == "open" and args[1] & os.O_TRUNC):
            self.unsynced.add(path)
        if name in ("mkdir", "rmdir", "unlink") or (name == "open" and not was_there):
            self.unsynced.add(os.path.dirname(path) or ".")
        if name == "unlink":
            self.unsynced.discard(path)
        if name in TWO_NAMES:
            self.unsynced |= {os.path.dirname(each) or "." for each in call[1:]}
            if path in self.unsynced and name != "link":
                self.unsynced.remove(path)
                self.unsynced.add(call[2])


W = TypeVar("W", bound=WatchedOs)


@contextmanager
def below_the_store(stand_in: W) -> Iterator[W]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", stand_in)
        patch.setattr(scanning, "os", stand_in)
        patch.setattr(syncing, "os", stand_in)
        yield stand_in


@contextmanager
def watched(base: Path, hook: Hook = nothing) -> Iterator[WatchedOs]:
    with below_the_store(WatchedOs(base, hook)) as stand_in:
        yield stand_in


@contextmanager
def everywhere(stand_in: W) -> Iterator[W]:
    """Replace ``os`` in the whole process, for code that uses ``pathlib`` and ``open``."""
    opened = io.open

    class Raw(io.FileIO):
        def write(self, octets: Any) -> int:
            return os.write(self.fileno(), octets)

        def truncate(self, size: int | None = None) -> int:
            size = self.tell() if size is None else size
            os.ftruncate(self.fileno(), size)
            return size

    def open_watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode in ("wb", "ab", "xb", "r+b"):
            raw = Raw(file, mode, opener=lambda path, flags: os.open(path, flags, 0o666))
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return opened(file, mode, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES | READS:
            patch.setattr(os, name, getattr(stand_in, name))
        patch.setattr(io, "open", open_watched)
        yield stand_in


def fail_at(number: int, error: int, among: set[str], *, once: bool = True) -> Hook:
    """Fail the ``number``-th of these calls (from 0), or it and all later ones."""
    seen = 0

    def hook(call: Call) -> None:
        nonlocal seen
        if call[0] in among:
            seen += 1
            if seen == number + 1 or (seen > number and not once):
                raise OSError(error, os.strerror(error), "/secret/path/of/someone")

    return hook


def die_at(number: int, among: set[str] = CHANGES) -> Hook:
    """Die before the ``number``-th of these calls (from 0)."""
    seen = 0

    def hook(call: Call) -> None:
        nonlocal seen
        if call[0] in among:
            seen += 1
        if seen > number:
            raise Crash

    return hook
