"""The changes of ``restante doctor --fix``: safe, unambiguous, and never to mail.

Security: root may run this in directories in which another user can create links.  So a path is
opened one component after the other without following links, and a file with several names is left
alone: it could be another user's file.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ...errors import RestanteError
from ...posix import flags
from ...server.binding import is_dead_socket

_LINK = "a symbolic link or a file is in the place of a directory"
_TIMEOUT = 30.0  # seconds for systemctl


class CannotRepair(RestanteError):
    """A repair was not made; the text states why."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One change.  It consists of plain values, so that it can be sent to another process."""

    action: str
    """``chmod``, ``chown``, ``mkdir``, ``rm`` (a socket without a process) or ``enable``."""
    target: str
    """An absolute path, or the name of a unit."""
    mode: int = 0
    """The new permissions, for ``chmod`` and ``mkdir``."""
    owner: int = -1
    """The user ID of the new owner, for ``chown``, and for ``mkdir`` by root."""

    @property
    def command(self) -> str:
        """The command with which the operator can make the change."""
        target = shlex.quote(self.target)
        match self.action:
            case "chmod":
                return f"chmod {self.mode:o} {target}"
            case "chown":
                return f"chown {self.owner} {target}"
            case "mkdir":
                return f"mkdir -m {self.mode:o} {target}"
            case "rm":
                return f"rm {target}"
        return f"systemctl enable {target}"

    def make(self) -> None:
        """Make the change.

        Raises:
            CannotRepair: nothing was changed, for example because a link is in the way.
        """
        try:
            if self.action == "enable":
                self._enable()
            else:
                self._change_file()
        except OSError as error:
            reason = _LINK if error.errno in (errno.ELOOP, errno.ENOTDIR) else error.strerror
            raise CannotRepair(f"{self.target}: {reason}") from error

    def _change_file(self) -> None:
        path = Path(self.target)
        parent = _open_directory(path.parent)
        try:
            match self.action:
                case "mkdir":
                    os.mkdir(path.name, self.mode, dir_fd=parent)
                    if os.geteuid() == 0 and self.owner >= 0:
                        os.chown(path.name, self.owner, -1, dir_fd=parent, follow_symlinks=False)
                case "rm":
                    if not is_dead_socket(self.target):
                        raise CannotRepair(f"{path} is in use, or is not a socket")
                    os.unlink(path.name, dir_fd=parent)
                case "chmod" | "chown":
                    self._change_rights(path, parent)
        finally:
            os.close(parent)

    def _change_rights(self, path: Path, parent: int) -> None:
        # With O_PATH, files can be opened that must not be read, and the link in /proc leads to the
        # opened file even if another process replaces its name.
        how = getattr(os, "O_PATH", os.O_RDONLY) | flags("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC")
        descriptor = os.open(path.name, how, dir_fd=parent)
        try:
            found = os.fstat(descriptor)
            file = f"/proc/self/fd/{descriptor}" if hasattr(os, "O_PATH") else descriptor
            is_directory = stat.S_ISDIR(found.st_mode)
            if not is_directory and (not stat.S_ISREG(found.st_mode) or found.st_nlink != 1):
                raise CannotRepair(f"{path} is not a regular file with only one name")
            if self.action == "chmod":
                os.chmod(file, self.mode)
            else:
                os.chown(file, self.owner, -1)
        finally:
            os.close(descriptor)

    def _enable(self) -> None:
        command = ["systemctl", "--no-ask-password", "enable", "--", self.target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise CannotRepair(f"systemctl has not finished within {_TIMEOUT:.0f} s") from None
        if done.returncode:
            raise CannotRepair(done.stderr.strip() or f"systemctl failed with {done.returncode}")


def _open_directory(path: Path) -> int:
    """Open a directory without following links.

    Raises:
        OSError: the directory does not exist, or its path contains a link.
    """
    how = getattr(os, "O_PATH", os.O_RDONLY) | flags("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
    descriptor = os.open(path.anchor or ".", how)
    for name in path.parts[1:]:
        try:
            below = os.open(name, how, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor
