"""Restore a backup, on the machine that it was made on or on a new one.

1. The whole backup is read and checked, and the targets must be empty.  Nothing is written before.
2. A marker is created in the state directory.  No command works with this state until it is gone.
3. The files are written and made durable.  Then the marker is removed.

If a restore is interrupted, the same restore can be run again; the marker names its backup.

Unique-ids that two files claim are recorded with inode numbers, which are different after a
restore.  They are replaced, so that no client downloads a message again.

Security: the content of a backup does not decide where the configuration is written, and nothing is
written outside the directories of this configuration.  As root, the command becomes the server's
user before it writes state and mail.  No link is followed below the targets.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ... import config as config_module
from ...client.sinks import fsync_directory
from ...config import Configuration
from ...errors import (
    CannotCreate,
    ConfigurationError,
    Damaged,
    TemporaryFailure,
)
from ...mounts import refuse_unmounted
from ...posix import fcntl, flags
from ...regular import MAX_SIZE
from ...scanning import HELD, MAIL, Identity
from ...server.address import socket_path
from ...store import adopted
from ...store.held import name_before_removal
from ...store.names import unique_part
from ...store.paths import Template
from .. import privileges
from ..control_paths import folder_of
from ..interrupted import MARKER
from .manifest import CONF_D, HEADER, Entry, Manifest, Progress, parse_header
from .reading import Source, checked
from .writing import Durable

if TYPE_CHECKING:
    from pwd import struct_passwd

_DIRECTORY = flags("O_RDONLY", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
_MAX_MARKER = 65_536  # octets
_IGNORED = {"lost+found"}  # in the directory of the maildrops, which may be a file system
_CONFIGURATION = "configuration/restante.toml"


@dataclass
class Backup:
    """A backup that was read and checked completely."""

    source: Source
    manifest: Manifest
    header: dict[str, Any]
    configuration: dict[str, tuple[Entry, bytes]]
    """The files of the configuration by path in the backup."""
    messages: int = 0
    octets: int = 0

    @property
    def with_mail(self) -> bool:
        return bool(self.header.get("with_mail"))


def verify(source: Source, progress: Progress) -> Backup:
    """Read the whole backup and check it.

    Raises:
        Damaged: it is damaged or incomplete.
        ConfigurationError: it was written by a newer version.
    """
    manifest = source.verify(progress)
    backup = Backup(source, manifest, {}, {})
    left = octets = 0  # configuration files that were not read yet; size of all of them
    for entry in manifest:
        if entry.part == "configuration" and not entry.is_directory:
            left += 1
            octets += entry.size
            if not _is_configuration(entry) or octets > MAX_SIZE:
                raise Damaged(f"{source.name} is damaged: {entry.path} is no configuration file")
        elif entry.digest and _is_message(entry.path):
            backup.messages += 1
            backup.octets += entry.size
    for entry, file in source.contents(manifest):
        if entry.path == HEADER:
            header = b"".join(checked(source.name, entry, file))
            backup.header = parse_header(header, source.name)
        elif entry.part == "configuration" and not entry.is_directory:
            backup.configuration[entry.path] = entry, b"".join(checked(source.name, entry, file))
            left -= 1
        if backup.header and not left:
            break
    return backup


def _is_configuration(entry: Entry) -> bool:
    name = entry.path.removeprefix(CONF_D)
    is_part = entry.path.startswith(CONF_D) and "/" not in name and name.endswith(".toml")
    return bool(entry.digest) and (is_part or entry.path == _CONFIGURATION)


def _is_message(path: str) -> bool:
    return path.rpartition("/")[0].rpartition("/")[2] in (*MAIL, HELD)


# -- Where the files belong


@dataclass
class Plan:
    """Where the parts of a backup are written."""

    config: Configuration | None
    """The restored configuration; None if everything is written to another directory."""
    source: Path | None
    """The configuration file; None for private mode."""
    folder: Path
    """The directory ``conf.d``."""
    state: Path
    users: Path
    """The directory of the user database, if it is not in the state directory."""
    mail: Path
    marker: Path

    def root(self, part: str) -> Path:
        return {"state": self.state, "users": self.users, "mail": self.mail}[part]


def plan(backup: Backup, file: Path | None) -> Plan:
    """Return the plan for restoring in place; ``file`` is the configuration file, if it was given.

    Raises:
        ConfigurationError: the place of the configuration file must be given, or the configuration
            in the backup is invalid or missing.
        Damaged: the parts of the backup contradict each other.
    """
    recorded = backup.header.get("configuration")
    source = config_module.place(file, Path(recorded) if isinstance(recorded, str) else None)
    texts = {path: octets for path, (_, octets) in sorted(backup.configuration.items())}
    first = texts.pop(_CONFIGURATION, None)
    if first is None and source is not None:
        raise ConfigurationError(
            f"the backup contains no configuration file, so it cannot be restored for {source}"
        )
    if first is not None and source is None:
        raise Damaged(f"{backup.source.name} is damaged: the place of its configuration is missing")
    config = config_module.preview(source, first, list(texts.values()))
    users, base = Path(config.auth.users), Path(Template(config.store.path).base)
    if any(each.part == "users" and each.path != f"users/{users.name}" for each in backup.manifest):
        raise Damaged(f"{backup.source.name} is damaged: users/ contains more than the database")
    return Plan(
        config, source, config.folder, config.state, users.parent, base, config.state / MARKER
    )


def plan_beside(path: Path) -> Plan:
    """Return the plan for restoring everything below another directory."""
    configuration = path / "configuration"
    return Plan(
        None,
        configuration / "restante.toml",
        configuration / "conf.d",
        path / "state",
        path / "users",
        path / "mail",
        path / MARKER,
    )


# -- Checks before the first change


def check(backup: Backup, plan: Plan) -> None:
    """Check that a restore would overwrite nothing and disturb no server.

    Raises:
        CannotCreate: a target exists and is not empty.
        TemporaryFailure: a server is running, or a disk is not mounted.
    """
    if plan.config is not None and is_running(plan.config):
        raise TemporaryFailure("the server is running; stop it first. Nothing was changed")
    place, begun = plan.marker.parent, _begun(plan.marker)
    if begun and begun != backup.manifest.digest:
        raise CannotCreate(
            f"{place} contains an interrupted restore of another backup; run that "
            "restore again, or empty the directory"
        )
    if plan.config is None and not begun and place.exists() and set(os.listdir(place)) - {MARKER}:
        raise CannotCreate(f"{place} is not empty")
    _check_configuration(backup, plan)
    parts = {entry.part for entry in backup.manifest} - {HEADER, "configuration"}
    for root in {place, *map(plan.root, parts)}:
        _refuse_unwritable(root)
    for part in sorted(parts):
        if plan.root(part).exists() and not begun:
            _refuse_content(plan.root(part), part, backup)


def _check_configuration(backup: Backup, plan: Plan) -> None:
    """Refuse existing files that would be overwritten, or would change the configuration."""
    restored = dict(_configuration_files(backup, plan))
    for path, (_, octets) in restored.items():
        with suppress(FileNotFoundError):
            if path.read_bytes() != octets:
                raise CannotCreate(f"{path} exists and differs from the backup; move it away")
        _refuse_unwritable(path.parent)
    for path in sorted(plan.folder.glob("*.toml")):
        if path not in restored:
            raise CannotCreate(f"{path} is not in the backup; move it away")


def _refuse_unwritable(path: Path) -> None:
    existing = next(each for each in (path, *path.parents) if each.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
    if existing != path:
        refuse_unmounted(str(existing))


def _begun(marker: Path) -> str:
    """Return the digest of the backup of an interrupted restore, or an empty string.

    The marker is durable before any other file is written.  If it has no digest, nothing else was
    written.
    """
    try:
        with open(os.open(marker, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return str(json.loads(file.read(_MAX_MARKER))["backup"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return ""


def _refuse_content(root: Path, part: str, backup: Backup) -> None:
    if part == "users":
        names = [each.path.removeprefix("users/") for each in backup.manifest if each.part == part]
        taken = [root / each for each in names if os.path.lexists(root / each)]
    else:
        taken = [] if _is_empty(root) else [root]
    for path in taken:
        text = "exists" if part == "users" else "is not empty"
        raise CannotCreate(f"{path} {text}; move it away, or restore elsewhere with --to")


def _is_empty(root: Path) -> bool:
    """Return whether a directory contains no file but stale sockets and an unused marker."""
    for folder, folders, names in os.walk(root):
        if folder == str(root):
            folders[:] = [each for each in folders if each not in _IGNORED]
        paths = [os.path.join(folder, each) for each in names if each != MARKER]
        if any(not stat.S_ISSOCK(os.lstat(each).st_mode) for each in paths):
            return False
    return True


def is_running(config: Configuration) -> bool:
    """Return whether a server answers on the control sockets of a configuration."""
    for path in folder_of(config.runtime).glob("*.sock"):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(5)
            with socket_path(path) as name:
                connected.connect(name)
            return True
    return False


# -- Writing


def restore(backup: Backup, plan: Plan, progress: Progress) -> None:
    """Restore a backup after ``check``.  As root, the process becomes the server's user.

    Raises:
        OSError: a file could not be written.  Run the same restore again.
    """
    account = _account(backup, plan)
    state = plan.marker.parent
    parts = {entry.part for entry in backup.manifest} - {HEADER, "configuration"}
    roots = {state, *map(plan.root, parts)}
    for path in sorted(roots, key=lambda root: len(root.parts)):  # before directories inside it
        _make_directory(path, account)
    with _marker(plan.marker, backup, account) as remove:
        _make_configuration_directories(backup, plan, account)
        for path, (entry, octets) in _configuration_files(backup, plan):
            _write_configuration(path, entry, octets, account)
        if account is not None:
            privileges.become(account)
        _Writing(backup, plan, progress).run()
        remove()


def _account(backup: Backup, plan: Plan) -> struct_passwd | None:
    """Return the account of the server's user, which root becomes; None for no change.

    Raises:
        ConfigurationError: the files of another user would belong to root.
    """
    if plan.config is None or not privileges.is_root():
        return None
    account = privileges.server_account(plan.config)
    owner = backup.header.get("owner")
    if account is None and isinstance(owner, str) and owner != "root":
        raise ConfigurationError(
            f"the server's files belonged to {owner}, and nothing here belongs to this user. "
            f"Create the user if necessary, and run: install -d -o {owner} -m 0700 {plan.state}"
        )
    return account


def _make_directory(path: Path, account: struct_passwd | None) -> None:
    """Create a directory of the server's user.

    Root creates it only where no other user could have put a link.
    """
    if account is not None and not privileges.only_root_can_change(path):
        privileges.run_as(account, lambda: _make_directory(path, None))
        return
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700 if each == path or account is None else 0o755)
        if account is not None and each == path:
            os.chown(each, account.pw_uid, account.pw_gid, follow_symlinks=False)
        fsync_directory(each.parent)


@contextmanager
def _marker(path: Path, backup: Backup, account: struct_passwd | None) -> Iterator[Any]:
    """Create and lock the marker; the yielded function removes it.

    Root only opens and locks it: the server's user could have put a link above it.
    """
    digest = backup.manifest.digest
    privileges.run_as(account, lambda: _write_marker(path, digest))
    with _locked_marker(path) as (_, directory):

        def remove() -> None:
            os.unlink(path.name, dir_fd=directory)
            os.fsync(directory)

        yield remove


def _write_marker(path: Path, digest: str) -> None:
    with _locked_marker(path, os.O_CREAT) as (file, directory):
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"backup": digest}).encode("ascii"), 0)
        os.fsync(file)
        os.fsync(directory)


@contextmanager
def _locked_marker(path: Path, how: int = 0) -> Iterator[tuple[int, int]]:
    """Open and lock the marker; yields the descriptors of the file and its directory.

    Raises:
        TemporaryFailure: another restore holds the lock.
    """
    with ExitStack() as stack:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, directory)
        how |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        file = os.open(path.name, how, 0o600, dir_fd=directory)
        stack.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TemporaryFailure(f"another restore into {path.parent} is running") from None
        yield file, directory


def _configuration_files(backup: Backup, plan: Plan) -> Iterator[tuple[Path, tuple[Entry, bytes]]]:
    for name, content in backup.configuration.items():
        if name != _CONFIGURATION:
            yield plan.folder / name.removeprefix(CONF_D), content
        elif plan.source is not None:
            yield plan.source, content


def _make_configuration_directories(
    backup: Backup, plan: Plan, account: struct_passwd | None
) -> None:
    """Create the missing directories as ``restante init`` does, or with their recorded owner."""
    if backup.configuration and plan.source is not None:
        _make_owned(plan.source.parent, "root", 0o700 if account is None else 0o750, account)
    recorded = [each for each in backup.manifest if each.path == CONF_D]
    if recorded and recorded[0].owner == "root":
        _make_owned(plan.folder, "root", recorded[0].mode, account)
    elif recorded or any(each.startswith(CONF_D) for each in backup.configuration):
        _make_owned(plan.folder, "server", 0o700, account)


def _make_owned(path: Path, owner: str, mode: int, account: struct_passwd | None) -> None:
    if path.exists():
        return
    if account is not None and not privileges.only_root_can_change(path.parent):
        privileges.run_as(account, lambda: _make_owned(path, owner, mode, None))
        return
    missing = [each for each in path.parents if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o755)
        fsync_directory(each.parent)
    path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, _uid(owner, account), account.pw_gid, follow_symlinks=False)
    path.chmod(mode)
    fsync_directory(path.parent)


def _uid(owner: str, account: struct_passwd) -> int:
    return account.pw_uid if owner == "server" else 0


def _owner(entry: Entry) -> str:
    """Return the owner of a configuration file.

    Format 1 has no owners.  There, ``account add`` of root had written the private files in conf.d,
    as the server's user.
    """
    is_private = entry.path.startswith(CONF_D) and not entry.mode & 0o077
    return entry.owner or ("server" if is_private else "root")


def _write_configuration(
    path: Path, entry: Entry, octets: bytes, account: struct_passwd | None
) -> None:
    """Write one file; root's file belongs to the group of the server's user.

    If another user could replace its directory by a link, the server's user writes the file.
    """
    above = (path.parent.parent, path.parent.resolve().parent)
    if account is not None and not all(map(privileges.only_root_can_change, above)):
        privileges.run_as(account, lambda: _write_configuration(path, entry, octets, None))
        return
    if path.exists():
        return  # ``check`` has compared it
    temporary = path.with_name(f".{path.name}.restored")
    temporary.unlink(missing_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(octets)
            file.flush()
            if account is not None:
                os.fchown(file.fileno(), _uid(_owner(entry), account), account.pw_gid)
            os.fchmod(file.fileno(), entry.mode)
            os.utime(file.fileno(), ns=(entry.mtime, entry.mtime))
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


class _Writing:
    """Writes state, users and mail."""

    def __init__(self, backup: Backup, plan: Plan, progress: Progress) -> None:
        self._backup, self._plan, self._progress = backup, plan, progress
        self._directories: dict[str, int] = {}  # descriptors of the directories in use, by path
        self._folder = ""  # the maildrop or folder whose messages are written
        self._inodes: dict[Identity, int] = {}  # new inode numbers of its messages

    def run(self) -> None:
        source, manifest = self._backup.source, self._backup.manifest
        times: list[Entry] = []
        self._ids = {
            each.path.rpartition("/")[0]
            for each in manifest
            if each.path.endswith(f"/{adopted.ADOPTED}")
        }
        with ExitStack() as stack:
            stack.callback(self._close)
            durable = stack.enter_context(Durable())
            for entry, file in source.contents(manifest):
                if entry.part in (HEADER, "configuration"):
                    continue
                if entry.is_directory:
                    self._set_mode(entry)
                elif entry.link:
                    self._link(entry)
                else:
                    self._write(entry, file, durable)
            self._renumber()
            durable.flush()
        for entry in manifest:
            if entry.is_directory and entry.part != "configuration":
                times.append(entry)
        self._sync(times)

    def _set_mode(self, entry: Entry) -> None:
        directory = self._directory(entry.path.removesuffix("/"))
        os.fchmod(directory, entry.mode | stat.S_IRWXU)

    def _write(self, entry: Entry, file: IO[bytes], durable: Durable) -> None:
        directory, name = self._parent(entry.path)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)  # from an interrupted restore
        how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, how, 0o600, dir_fd=directory), "wb", 0) as written:
            for octets in checked(self._backup.source.name, entry, file, self._progress):
                left = memoryview(octets)
                while left:
                    left = left[os.write(written.fileno(), left) :]
            os.fchmod(written.fileno(), entry.mode)
            os.utime(written.fileno(), ns=(entry.mtime, entry.mtime))
            self._note_inode(entry, os.fstat(written.fileno()).st_ino)
            durable.add(written.fileno())

    def _link(self, entry: Entry) -> None:
        directory, name = self._parent(entry.path)
        target, old = self._parent(entry.link)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        os.link(old, name, src_dir_fd=target, dst_dir_fd=directory, follow_symlinks=False)
        self._note_inode(entry, os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino)

    # -- Unique-ids with inode numbers

    def _note_inode(self, entry: Entry, inode: int) -> None:
        folder, _, rest = entry.path.rpartition("/")[0].rpartition("/")
        if folder not in self._ids or rest not in (*MAIL, HELD):
            return
        if folder != self._folder:
            self._renumber()
            self._folder = folder
        name = entry.path.rpartition("/")[2]
        if rest == HELD:
            name = name_before_removal(name)
        self._inodes[unique_part(name), entry.inode] = inode

    def _renumber(self) -> None:
        """Replace the inode numbers in the file of adopted unique-ids of one folder."""
        if self._folder:
            adopted.renumber(self._directory(self._folder), self._inodes)
        self._folder, self._inodes = "", {}

    # -- Directories

    def _parent(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        return self._directory(parent), name

    def _directory(self, path: str) -> int:
        """Return a descriptor of a directory, which is created if it is missing.

        No link is followed below the root of a part.
        """
        if path in self._directories:
            return self._directories[path]
        if len(self._directories) > 100:
            self._close()
        parent, _, name = path.rpartition("/")
        if not parent:
            root = self._plan.root(path)
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            above = self._directory(parent)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=above)
            descriptor = os.open(name, _DIRECTORY, dir_fd=above)
        self._directories[path] = descriptor
        return descriptor

    def _close(self) -> None:
        while self._directories:
            os.close(self._directories.popitem()[1])

    def _sync(self, directories: list[Entry]) -> None:
        """Make all names durable."""
        parts = {entry.part for entry in self._backup.manifest} - {HEADER, "configuration"}
        paths = [entry.path.removesuffix("/") for entry in directories]
        above = {path.rpartition("/")[0] for path in paths} - {"", *paths}
        try:
            for path in dict.fromkeys((*paths, *above, *sorted(parts))):
                os.fsync(self._directory(path))
        finally:
            self._close()
