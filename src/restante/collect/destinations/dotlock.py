"""``FILE.lock``, the lock file that programs use to share an mbox, even over NFS.

It follows Debian policy 11.6.  The file contains the ID of the process that created it.  The age of
the lock is measured by the file system's clock.  The rules are those of liblockfile, with one
exception: a lock that another program created may belong to a process on another machine, so it is
removed only when it is old, even if no local process has its ID.
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

_STALE = 300.0  # seconds without a touch after which a lock is stale: lockfile_create(3)
_TOUCH = 30.0  # seconds between touches; at most a minute is allowed
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_thread_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def thread_lock(path: Path) -> threading.Lock:
    """Return the lock that the threads of this process must hold to use the file.

    This lock is necessary because the process loses all its fcntl locks on a file when one thread
    closes the file.
    """
    return _thread_locks[os.path.realpath(path)]


class Dotlock:
    """The lock file of one mbox.

    Before ``take``, the caller must hold the ``thread_lock`` and the other locks of the mbox.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f"{path.name}.lock")
        self._temporary = path.with_name(f".{path.name}.{token_hex(8)}.part")
        self._is_held = False
        self._inode = 0
        self._touched_at = 0.0  # on the monotonic clock

    def take(self) -> bool:
        """Take the lock if it is free or stale; return whether it was taken.

        Raises:
            OSError: the lock file cannot be created.
        """
        file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(file, f"{os.getpid()}\n{_creator()}\n".encode())
            now = os.fstat(file).st_mtime
            self._is_held = self._create()
            if not self._is_held and self._remove_stale(now):
                self._is_held = self._create()
        finally:
            os.close(file)
            self._temporary.unlink()
        if self._is_held:
            self._inode, self._touched_at = self._path.stat().st_ino, time.monotonic()
        return self._is_held

    def touch(self) -> None:
        """Keep the lock from becoming stale; call this regularly while the lock is held."""
        if time.monotonic() > self._touched_at + _TOUCH:
            self._touched_at = time.monotonic()
            with suppress(OSError):
                os.utime(self._path)

    def release(self) -> None:
        """Release the lock.

        If the lock file cannot be removed, the next program that needs the lock removes it as
        stale; the work done under the lock is already complete.
        """
        if self._is_held:
            self._is_held = False
            with suppress(OSError):
                if self._path.stat().st_ino == self._inode:  # no other program has replaced it
                    self._path.unlink()

    def _create(self) -> bool:
        """Create the lock file; return False if another program holds the lock.

        A hard link is atomic even over NFS.  If hard links are not supported, O_EXCL is used.
        """
        try:
            os.link(self._temporary, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                with open(self._path, "xb") as file:
                    file.write(self._temporary.read_bytes())
            except FileExistsError:
                return False
        return True

    def _remove_stale(self, now: float) -> bool:
        """Remove a stale lock; return whether the lock can now be taken.

        ``now`` is the current time on the file system's clock.
        """
        removed = self._temporary.with_name(f"{self._temporary.name}.part")
        try:
            before = self._path.stat()
            if now - before.st_mtime < _STALE and not self._owner_has_ended():
                return False
            self._path.rename(removed)
        except FileNotFoundError:
            return True
        try:
            after = removed.stat()
            # The inode number alone is not enough, because the file system may reuse it.
            if (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns):
                return True
            # Another program had already replaced the stale lock, so its new lock is put back.
            with suppress(FileExistsError):  # a third program has taken the lock
                os.link(removed, self._path)
            return False
        finally:
            removed.unlink()

    def _owner_has_ended(self) -> bool:
        """Return whether a restante process on this machine created the lock and has ended.

        The caller must make sure that the current process does not hold the lock.
        """
        try:
            process_id, creator, *_ = self._path.read_text("ascii").split("\n")
            if creator != _creator():
                return False
            if int(process_id) != os.getpid():
                os.kill(int(process_id), 0)
                return False
        except ProcessLookupError:
            pass
        except (OSError, ValueError):
            return False
        return True


def _creator() -> str:
    return f"restante on {socket.gethostname()}"
