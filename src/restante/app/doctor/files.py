"""Check the configuration, the server's own files, the mail directory and the user database."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from ... import sysexits
from ...config import Configuration
from ...errors import ConfigurationError, RestanteError
from ...posix import pwd
from ...server.binding import is_dead_socket
from ...store.paths import Template
from ...words import counted, size
from .. import stores
from ..control_paths import folder_of
from ..disk import write_test
from ..job import all_jobs
from ..warnings import configuration_warnings, unreadable_files, world_accessible_files
from .findings import Finding, Subject, error, not_checked, ok, warning
from .repairs import Repair

_MAX_FILES = 10_000  # files of the state directory whose owner is checked
# Files in the state directory with keys and passwords; the server creates them with mode 600.
_SECRETS = ("tls/key.pem", "tokens/*", "passwords/*", "first-password")
# What the server must be able to open, besides the state directory and the secrets.
_NEEDED = ("tls", "tokens", "passwords", "tls/certificate.pem")
_MAX_NAMED = 5  # files that are named one by one; more than that have one common cause
_FREE_PERCENT = 5  # below this, the operator is warned; deliveries fail only at 0
# File systems on which mail is less safe, and why (filesystems(5)).
_UNSUITABLE = {
    **dict.fromkeys(
        ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"),
        "a network file system, where locks and renames are less reliable",
    ),
    "overlay": "a layer of a container, which is lost together with the container",
    **dict.fromkeys(("tmpfs", "ramfs"), "in memory, so all mail is lost at a restart"),
}


# Configuration


def configuration(subject: Subject) -> Iterator[Finding]:
    """Check the configuration, as ``restante check`` does."""
    config, mistakes = subject.config, list[str]()
    for validate in (stores.validate, stores.validate_users):
        try:
            validate(config)
        except ConfigurationError as failure:
            mistakes += str(failure).splitlines()
        except RestanteError:  # the check ``users`` reports an unusable database
            pass
    mistakes += [text for job in all_jobs(config) for text in job.mistakes(strict=True)]
    # Other checks report problems of the mail directory and of the user database.
    mistakes = [text for text in mistakes if not text.startswith(_reported(config))]
    yield from (error(sysexits.EX_CONFIG, text, "restante check") for text in mistakes)
    if mistakes:
        return
    found = [*_warnings(config)]
    yield from (warning(text) for text in found)
    if not found:
        yield ok(str(config.source or "no configuration file, private mode"))


def _reported(config: Configuration) -> tuple[str, ...]:
    """Return how lines about the mail directory itself and the user database begin."""
    begins = ("auth.users:", f"{config.auth.users} is empty")
    with suppress(ConfigurationError):
        return *begins, f"store.path: {Template(config.store.path).base} "
    return begins


def _warnings(config: Configuration) -> Iterator[str]:
    with suppress(RestanteError):  # the user database cannot be read
        yield from configuration_warnings(config, with_files=False)


# The server's own files


def files(subject: Subject) -> Iterator[Finding]:
    """Check owner and permissions of the configuration, the secrets and the state directory."""
    found = [
        *_unreadable(subject),
        *_writable_by_others(subject),
        *_readable_secrets(subject.config),
        *_closed_files(subject),
        *_foreign_files(subject),
        *_stale_sockets(subject),
    ]
    yield from found
    if not found:
        yield ok(f"{subject.config.state} belongs to {user_name(subject.owner)}")


def _unreadable(subject: Subject) -> Iterator[Finding]:
    name = user_name(subject.owner)
    for path in unreadable_files(subject.config):
        yield error(sysexits.EX_NOPERM, f"{name} cannot read {path}", f"ls -ld {path}")


def _writable_by_others(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    for path in (config.source, *sorted(config.folder.glob("*.toml")), config.state):
        if path is None:
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:  # the configuration file has been read
            repair = Repair("mkdir", str(path), 0o700, subject.owner)
            yield warning(f"{path} does not exist", repair=repair)
        else:
            if mode & 0o022:
                repair = Repair("chmod", str(path), mode & ~0o022)
                yield error(sysexits.EX_NOPERM, f"other users can write to {path}", repair=repair)


def _readable_secrets(config: Configuration) -> Iterator[Finding]:
    for key, path in world_accessible_files(config):
        mode = stat.S_IMODE(Path(path).stat().st_mode)
        text = f"all users of this machine can read {path} ({key})"
        yield error(sysexits.EX_NOPERM, text, repair=Repair("chmod", path, mode & ~0o007))
    for pattern in _SECRETS:
        for each in sorted(config.state.glob(pattern)):
            mode = each.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                text = f"other users may read {each}, which contains a secret"
                yield error(sysexits.EX_NOPERM, text, repair=Repair("chmod", str(each), 0o600))


def _closed_files(subject: Subject) -> Iterator[Finding]:
    """Yield files of the server that belong to it, but that it has no right to open."""
    state = subject.config.state
    found = [each for pattern in (*_NEEDED, *_SECRETS) for each in sorted(state.glob(pattern))]
    for path in (subject.config.folder, state, *found):
        needed = 0o500 if path == subject.config.folder else 0o700
        if finding := _closed(path, subject.owner, needed):
            yield finding


def permission_denied(path: Path, owner: int) -> Finding:
    """Return the finding for a path that the server's user cannot open, with the cause."""
    for each in (*reversed(path.absolute().parents), path):
        if finding := _closed(each, owner, 0o500):
            return finding
    return error(sysexits.EX_NOPERM, f"{path}: Permission denied", f"namei -l {path}")


def _closed(path: Path, owner: int, needed: int) -> Finding | None:
    """Return a finding if the owner of a path has not these rights; files need only to be read."""
    try:
        status = path.lstat()
    except OSError:  # a directory above it is the cause, or it is missing
        return None
    is_directory, mode = stat.S_ISDIR(status.st_mode), stat.S_IMODE(status.st_mode)
    if not is_directory:
        needed = 0o400
    if status.st_uid != owner or stat.S_ISLNK(status.st_mode) or mode & needed == needed:
        return None
    repair = Repair("chmod", str(path), mode | (0o700 if is_directory else 0o600))
    return error(sysexits.EX_NOPERM, f"{user_name(owner)} cannot open {path}", repair=repair)


def _foreign_files(subject: Subject) -> Iterator[Finding]:
    """Yield files in the state directory that the server may be unable to open."""
    name, foreign = user_name(subject.owner), []
    for path in _state_files(subject.config):
        with suppress(OSError):  # the server removes temporary files
            if path.lstat().st_uid != subject.owner:
                foreign.append(path)
    for path in foreign[:_MAX_NAMED]:
        repair = Repair("chown", str(path), owner=subject.owner)
        yield error(sysexits.EX_NOPERM, f"{path} does not belong to {name}", repair=repair)
    if more := foreign[_MAX_NAMED:]:
        text = f"{counted(len(more), 'other file')} in {subject.config.state} do not belong to"
        command = f"chown -R {name} {subject.config.state}"
        yield error(sysexits.EX_NOPERM, f"{text} {name}", command)


def _state_files(config: Configuration) -> Iterator[Path]:
    """Yield the files of the state directory, without mail."""
    mail, number = Path(Template(config.store.path).base), 0
    for folder, below, names in os.walk(config.state):
        place = Path(folder)
        below[:] = [each for each in below if place / each != mail]
        for each in (*below, *names):
            number += 1
            if number > _MAX_FILES:
                return
            yield place / each


def _stale_sockets(subject: Subject) -> Iterator[Finding]:
    """Yield control sockets on which no process of a running server listens."""
    if subject.status is None:
        return
    numbers = {str(each["worker"]) for each in subject.status["workers"]}
    for path in sorted(folder_of(subject.config.runtime).glob("*.sock")):
        if path.stem not in numbers and is_dead_socket(str(path)):
            yield warning(f"no process listens on {path}", repair=Repair("rm", str(path)))


def user_name(uid: int) -> str:
    """Return the name of a user of the operating system, or the number if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# The mail directory


def store(subject: Subject) -> Iterator[Finding]:
    """Check that the mail directory can be written, has space, and is on a suitable disk."""
    config = subject.config
    if config.store.kind == "memory":
        yield not_checked("mail is kept in memory (store.kind)")
        return
    base = Path(Template(config.store.path).base)
    found = [*_directory(base, subject)]
    if not found:
        found = [*_write(base), *_space(base, config.limits.message), *_file_system(base, subject)]
    yield from found
    if not found:
        usage = os.statvfs(base)
        free = size(usage.f_bavail * usage.f_frsize)
        yield ok(f"{base} is on {_kind(base, subject)} and has {free} free")


def _directory(base: Path, subject: Subject) -> Iterator[Finding]:
    """Check existence, owner and permissions."""
    try:
        found = base.stat()
    except PermissionError:
        yield permission_denied(base, subject.owner)
        return
    except OSError as failure:
        # A missing directory may be the mount point of a disk, so it is not created.
        is_default = base == subject.config.state / "mail"
        is_missing = isinstance(failure, FileNotFoundError)
        can_create = is_default and is_missing
        repair = Repair("mkdir", str(base), 0o700, subject.owner) if can_create else None
        text = f"store.path: {base}: {failure.strerror}"
        if repair and subject.status is None:  # the server creates it when it starts
            yield warning(text, repair=repair)
        else:
            command = f"findmnt --verify; mkdir -p {base}" if is_missing else f"namei -l {base}"
            command = "" if repair else command
            yield error(sysexits.EX_CONFIG, text, command, repair)
        return
    if not stat.S_ISDIR(found.st_mode):
        yield error(sysexits.EX_CONFIG, f"store.path: {base} is not a directory")
    elif found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        repair = Repair("chmod", str(base), stat.S_IMODE(found.st_mode) & ~0o022)
        yield error(sysexits.EX_NOPERM, f"other users can write to {base}", repair=repair)
    elif not os.access(base, os.R_OK | os.W_OK | os.X_OK):
        name = user_name(subject.owner)
        repair = Repair("chmod", str(base), stat.S_IMODE(found.st_mode) | 0o700)
        is_owned = found.st_uid == subject.owner
        yield error(
            sysexits.EX_NOPERM,
            f"{name} cannot write to {base}",
            "" if is_owned else f"chown {name} {base}",
            repair if is_owned else None,
        )


def _write(base: Path) -> Iterator[Finding]:
    """Write, sync, rename and remove a file, as a delivery does."""
    try:
        write_test(base, ".restante-doctor")
    except OSError as failure:
        text = f"a file cannot be written and synced in {base}: {failure.strerror}"
        yield error(sysexits.EX_IOERR, text, f"df -h {base}")


def _space(base: Path, largest: int) -> Iterator[Finding]:
    """Check free space and inodes; ``largest`` is the maximum size of a message."""
    usage = os.statvfs(base)
    free, total = usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize
    if free < largest:
        text = f"only {size(free)} free on the disk of {base}: large messages are deferred"
        yield error(sysexits.EX_IOERR, text, f"df -h {base}")
    elif free * 100 < total * _FREE_PERCENT:
        text = f"only {size(free)} of {size(total)} free on the disk of {base}"
        yield warning(text, f"df -h {base}")
    if usage.f_files and usage.f_favail * 100 < usage.f_files * _FREE_PERCENT:
        text = f"only {counted(usage.f_favail, 'free inode')} on the disk of {base}"
        yield warning(text, f"df -i {base}")


def _file_system(base: Path, subject: Subject) -> Iterator[Finding]:
    kind = _kind(base, subject)
    if reason := _UNSUITABLE.get(kind):
        yield warning(f"{base} is on {kind}: {reason}", f"findmnt --target {base}")


def _kind(base: Path, subject: Subject) -> str:
    """Return the type of the file system (proc_pid_mountinfo(5))."""
    real, best = os.path.realpath(base), ("", "an unknown file system")
    with suppress(OSError, ValueError):
        for line in (subject.system / "proc/self/mountinfo").read_text().splitlines():
            words = line.split()
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
            kind = words[words.index("-") + 1]
            # The last mount at a path hides the earlier ones.
            if os.path.commonpath([real, point]) == point and len(point) >= len(best[0]):
                best = point, kind
    return best[1]


# The user database


def users(subject: Subject) -> Iterator[Finding]:
    """Check that the user database is intact and has users."""
    config = subject.config
    path = Path(config.auth.users)
    if "users" not in config.auth.chain:
        yield not_checked("auth.chain does not contain users")
        return
    if finding := _unusable_database(path, subject):
        yield finding
        return
    try:
        _quick_check(path, subject.timeout)
        number = len(stores.users(config).list())
    except (OSError, sqlite3.Error) as failure:
        yield error(sysexits.EX_IOERR, f"{path} cannot be read: {failure}", _restoration(path))
    except RestanteError as failure:
        text = ": ".join((str(failure), *getattr(failure, "__notes__", ())))
        yield error(sysexits.EX_IOERR, text, _restoration(path))
    else:
        if number:
            yield ok(f"{path} is intact and has {counted(number, 'user')}")
        else:
            yield warning("there are no users", "restante user add NAME")


def _unusable_database(path: Path, subject: Subject) -> Finding | None:
    """Return why the server cannot open the user database; None if it can."""
    try:
        status = path.stat()
    except PermissionError:
        return permission_denied(path, subject.owner)
    except FileNotFoundError:
        return warning(f"{path} does not exist: there are no users", "restante user add NAME")
    if os.access(path, os.R_OK | os.W_OK):
        return None
    if status.st_uid == subject.owner:
        repair = Repair("chmod", str(path), stat.S_IMODE(status.st_mode) | 0o600)
        return error(sysexits.EX_NOPERM, f"{path} cannot be read and written", repair=repair)
    name = user_name(subject.owner)
    text = f"{path} does not belong to {name}"
    if path.is_relative_to(subject.config.state):  # the check ``files`` reports and repairs it
        return not_checked(text)
    return error(sysexits.EX_NOPERM, text, f"chown {name} {path}")


def _quick_check(path: Path, seconds: float) -> None:
    """Run SQLite's own check.

    Raises:
        sqlite3.Error: the file is damaged, or is not a database.
    """
    deadline = time.monotonic() + seconds
    name = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(name, uri=True, timeout=seconds)) as database:
        database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        [result] = database.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(result)


def _restoration(path: Path) -> str:
    """Return how to replace a damaged database; a restore never overwrites files."""
    backup = f"stop the server; restante restore --to DIRECTORY BACKUP; copy {path.name} from there"
    if not path.stat().st_size:
        return backup
    recover = f"mv {path} {path}.damaged; sqlite3 {path}.damaged .recover | sqlite3 {path}"
    return f"{backup}; or without a backup, as the server's user: {recover}"
