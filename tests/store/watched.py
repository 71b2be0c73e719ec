"""A stand-in for ``os`` below the store: it records every call, and fails or "dies" on demand.

Paths are told relative to the maildrop's parent.  Linux only (``/proc/self/fd``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from restante.store import files
from restante.store.index import INDEX

CHANGES = {"mkdir", "open", "write", "fsync", "rename", "unlink"}
READS = {"pread", "preadv", "read", "scandir", "stat", "fstat"}

Hook = Callable[["Call"], None]


class Crash(BaseException):
    """The process is dead: from here on no call does anything."""


class Call(tuple[str, ...]):
    """The name of a call and the paths it is about."""

    __slots__ = ()


class WatchedOs:
    """``calls`` are those that began, in order; ``hook`` sees each before it is carried out."""

    def __init__(self, base: Path, hook: Hook) -> None:
        self.calls: list[Call] = []
        self.base = base
        self._hook = hook
        self.unsynced: set[str] = set()
        """Files with octets, and directories with names, that a power failure may forget."""

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGES | READS:
            return real

        def watched(*args: Any, **kwargs: Any) -> Any:
            call = Call((name, *self._paths(name, args, kwargs)))
            self.calls.append(call)
            self._hook(call)
            was_there = name == "open" and os.path.lexists(self.base / call[1])
            result = real(*args, **kwargs)
            self._remember(call, args, was_there)
            return result

        return watched

    def _paths(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        if name == "rename":
            parents = kwargs["src_dir_fd"], kwargs["dst_dir_fd"]
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
            return  # whatever a power failure makes of it, nothing is lost
        if name == "fsync":
            self.unsynced.discard(path)
        elif name == "write" or (name == "open" and args[1] & os.O_TRUNC):
            self.unsynced.add(path)
        if name in ("mkdir", "unlink") or (name == "open" and not was_there):
            self.unsynced.add(os.path.dirname(path) or ".")
        if name == "unlink":
            self.unsynced.discard(path)
        if name == "rename":
            self.unsynced |= {os.path.dirname(each) or "." for each in call[1:]}
            if path in self.unsynced:
                self.unsynced.remove(path)
                self.unsynced.add(call[2])


@contextmanager
def watched(base: Path, hook: Hook = lambda call: None) -> Iterator[WatchedOs]:
    with pytest.MonkeyPatch.context() as patch:
        stand_in = WatchedOs(base, hook)
        patch.setattr(files, "os", stand_in)
        yield stand_in


def fail_at(number: int, error: int, among: set[str], *, once: bool = True) -> Hook:
    """The ``number``-th of these calls (from 0) fails, or it and all after it."""
    seen = 0

    def hook(call: Call) -> None:
        nonlocal seen
        if call[0] in among:
            seen += 1
            if seen == number + 1 or (seen > number and not once):
                raise OSError(error, os.strerror(error), "/secret/path/of/someone")

    return hook


def die_at(number: int, among: set[str] = CHANGES) -> Hook:
    """The process dies before the ``number``-th of these calls (from 0)."""
    seen = 0

    def hook(call: Call) -> None:
        nonlocal seen
        if call[0] in among:
            seen += 1
        if seen > number:
            raise Crash

    return hook
