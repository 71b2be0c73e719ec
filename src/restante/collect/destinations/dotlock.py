"""``FILE.lock``: the lock of programs that share an mbox, also over NFS (Debian policy 11.6).

The file contains the number of the process that created it.  Its age is measured by the clock of
the file system.  This follows liblockfile with one exception: a lock that we did not create on this
machine is broken only because of its age, since its process may run on another machine.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

_STALE = 300.0  # seconds without a touch: lockfile_create(3)
_TOUCH = 30.0  # seconds; a lock must be touched at least once a minute
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def one_at_a_time(path: Path) -> threading.Lock:
    """Return a lock for the threads of this process.

    It is necessary because fcntl drops all locks of the process when one thread closes the file.
    """
    return _turns[os.path.realpath(path)]


class Dotlock:
    """The lock of one file.  The caller is the only one in this process and holds the other
    locks."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f"{path.name}.lock")
        self._aside = path.with_name(f".{path.name}.{token_hex(8)}.part")
        self._is_ours = False
        self._inode = 0
        self._touched_at = 0.0  # on the monotonic clock

    def take(self) -> bool:
        """Take the lock, breaking a stale one; return whether that succeeded.

        Raises:
            OSError: no lock can be created there.
        """
        file = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(file, f"{os.getpid()}\n{_maker()}\n".encode())
            now = os.fstat(file).st_mtime
            self._is_ours = self._link()
            if not self._is_ours and self._break(now):
                self._is_ours = self._link()
        finally:
            os.close(file)
            self._aside.unlink()
        if self._is_ours:
            self._inode, self._touched_at = self._path.stat().st_ino, time.monotonic()
        return self._is_ours

    def touch(self) -> None:
        """Keep the lock from becoming stale; call this while it is held."""
        if time.monotonic() > self._touched_at + _TOUCH:
            self._touched_at = time.monotonic()
            with suppress(OSError):
                os.utime(self._path)

    def release(self) -> None:
        """Release the lock.

        If its file cannot be removed, the next program that locks breaks it as stale; the work
        done under the lock is complete.
        """
        if self._is_ours:
            self._is_ours = False
            with suppress(OSError):
                if self._path.stat().st_ino == self._inode:  # or another program broke it
                    self._path.unlink()

    def _link(self) -> bool:
        """Create the lock by a hard link, which is atomic over NFS too; else by O_EXCL."""
        try:
            os.link(self._aside, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                with open(self._path, "xb") as file:
                    file.write(self._aside.read_bytes())
            except FileExistsError:
                return False
        return True

    def _break(self, now: float) -> bool:
        """Remove a stale lock; ``now`` is by the clock of the file system."""
        broken = self._aside.with_name(f"{self._aside.name}.part")
        try:
            before = self._path.stat()
            if now - before.st_mtime < _STALE and not self._is_of_the_dead():
                return False
            self._path.rename(broken)
        except FileNotFoundError:
            return True
        try:
            same = broken.stat()
            # An inode number may be used again at once.
            if (same.st_ino, same.st_mtime_ns) == (before.st_ino, before.st_mtime_ns):
                return True
            with suppress(FileExistsError):  # another program has taken the lock meanwhile
                os.link(broken, self._path)
            return False
        finally:
            broken.unlink()

    def _is_of_the_dead(self) -> bool:
        """Return whether a process of restante on this machine created it and has ended.

        The current process does not hold the lock."""
        try:
            number, maker, *_ = self._path.read_text("ascii").split("\n")
            if maker != _maker():
                return False
            if int(number) != os.getpid():
                os.kill(int(number), 0)
                return False
        except ProcessLookupError:
            pass
        except (OSError, ValueError):
            return False
        return True


def _maker() -> str:
    return f"restante on {socket.gethostname()}"
