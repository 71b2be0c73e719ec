"""Back up configuration, state and mail while the server runs (docs/decisions/0246-backup.md).

The order matters: the ledger is copied before the mail.  It never lists a message as collected that
is missing from the backup, and a message that is collected twice is not stored twice.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ... import __version__
from ...config import Configuration, Secret
from ...config.schema import options
from ...config.section import Section
from ...errors import (
    ConfigurationError,
    Damaged,
    NoMaildrop,
    TemporaryFailure,
    UnsafeArgument,
)
from ...posix import pwd
from ...regular import MAX_SIZE
from ...scanning import MAIL
from ...store import files, snapshot
from ...store.paths import Template
from ...words import limit_size
from .. import stores
from ..interrupted import MARKER
from .manifest import CONF_D, FORMAT, HEADER, MODE, Entry, Progress
from .writing import TarWriter, TreeWriter, Writer

_MAGIC = b"SQLite format 3\0"
_PART_OF_DATABASE = ("-wal", "-shm", "-journal")
_LOCK_TIMEOUT = 30.0  # seconds for another process to finish writing to a database
_NAMES_OF_FILES = ("cert", "key", "client_ca", "ca_file", "path", "jwks")
"""Options that may name a file which is not part of the backup."""


@dataclass
class Report:
    """What a backup contains."""

    path: Path
    maildrops: int = 0
    messages: int = 0
    octets: int = 0
    """Octets of all messages."""
    reused: int = 0
    """Messages that are hard links to the previous backup."""
    destroyed: int = 0
    """Messages that were destroyed while the backup was made."""
    not_included: list[str] = field(default_factory=list)
    """Options that refer to files or secrets which are not in the backup, and variables of the
    environment that are part of the configuration."""


ConfigurationFiles = dict[str, tuple[os.stat_result, bytes]]
"""Status and content of the configuration files, by path in the backup; and of ``conf.d``, whose
path ends with a slash."""


def configuration_files(config: Configuration) -> ConfigurationFiles:
    """Return the configuration files as they were loaded.

    They are not read again: root has loaded them, and the server's user may lack permission.

    Raises:
        ConfigurationError: they are too large to be restored.
    """
    found: ConfigurationFiles = {}
    for each in config.files:
        name = "restante.toml" if each.path == config.source else f"conf.d/{each.path.name}"
        found[f"configuration/{name}"] = each.status, each.octets
    if sum(len(octets) for _, octets in found.values()) > MAX_SIZE:
        raise ConfigurationError(f"the configuration is larger than {limit_size(MAX_SIZE)}")
    with suppress(OSError):  # missing, or below a directory that only root can enter
        found[CONF_D] = config.folder.stat(), b""
    return dict(sorted(found.items()))


def make(
    config: Configuration, configuration: ConfigurationFiles, path: Path, *, is_tree: bool,
    with_mail: bool, replace: bool, progress: Progress,
) -> Report:  # fmt: skip
    """Make a backup.

    ``path`` is the tar file, or with ``is_tree`` the directory that gets a new subdirectory.

    Raises:
        CannotCreate: the file exists, and ``replace`` is false.
        UnsafeArgument: the path is in a directory that is backed up.
        OSError: something cannot be read or written; no part of the backup is left.
    """
    _refuse_inside(config, path)
    writer: Writer
    if is_tree:
        writer = TreeWriter(path, progress=progress)
    else:
        writer = TarWriter(path, replace=replace, progress=progress)
    try:
        report = _Backup(config, writer, Report(path)).make(configuration, with_mail=with_mail)
        report.path = writer.finish()
    except BaseException:
        writer.abort()
        raise
    return report


def _refuse_inside(config: Configuration, path: Path) -> None:
    target = os.path.realpath(path)
    for each in (config.state, Path(Template(config.store.path).base)):
        if Path(target).is_relative_to(os.path.realpath(each)):
            raise UnsafeArgument(f"{path} is inside {each}, which is backed up")


class _Backup:
    """Writes all parts of one backup."""

    def __init__(self, config: Configuration, writer: Writer, report: Report) -> None:
        self._config, self._writer, self._report = config, writer, report
        template = Template(config.store.path)
        self._base = template.base
        is_stored = config.store.kind == "maildir" and os.path.isdir(template.base)
        self._maildrops = _maildrops(config) if is_stored else []
        self._other_maildirs: list[Path] = []
        """Maildirs in the state directory, into which an account may be collected."""

    def make(self, configuration: ConfigurationFiles, *, with_mail: bool) -> Report:
        config = self._config
        header = {
            "format": FORMAT,
            "version": __version__,
            "made_at": round(time.time()),
            "configuration": None if config.source is None else str(config.source),
            "state": str(config.state),
            "owner": _owner(config.state),
            "users": config.auth.users,
            "store": config.store.path,
            "with_mail": with_mail and config.store.kind == "maildir",
        }
        self._octets(HEADER, json.dumps(header, indent=2).encode("ascii") + b"\n")
        for name, (status, octets) in configuration.items():
            self._configuration(name, octets, status)
        users = Path(config.auth.users)
        if not users.is_relative_to(config.state) and users.exists():
            self._file(f"users/{users.name}", users)
        self._state()
        for path in self._other_maildirs:
            self._maildir(f"state/{path.relative_to(config.state)}", str(path), ())
        if with_mail:
            for names in self._maildrops:
                self._maildir(f"mail/{'/'.join(names)}", self._base, names)
                self._report.maildrops += 1
        variables = [name for name in os.environ if name.startswith("RESTANTE__")]
        self._report.not_included = [*_references(config, config, ()), *sorted(variables)]
        return self._report

    def _configuration(self, name: str, octets: bytes, status: os.stat_result) -> None:
        owner = "root" if status.st_uid == 0 else "server"  # others are not accepted from root
        entry = Entry(name, status.st_mode & MODE, status.st_mtime_ns, len(octets), owner=owner)
        if entry.is_directory:
            self._writer.directory(entry)
        else:
            self._writer.file(entry, io.BytesIO(octets))

    # -- State

    def _state(self) -> None:
        state = self._config.state
        if not state.is_dir():
            return
        maildrops = {os.path.join(self._base, *names) for names in self._maildrops}
        if self._base != str(state):
            maildrops.add(self._base)
        paths = list(self._walk(state, maildrops))
        databases = {path: None for path in paths if not path.is_dir() and _is_database(path)}
        for path in (*databases, *(each for each in paths if each not in databases)):
            name = f"state/{path.relative_to(state)}"
            with suppress(FileNotFoundError):  # a temporary file
                if path.is_dir():
                    status = os.lstat(path)
                    mode = status.st_mode & MODE
                    self._writer.directory(Entry(f"{name}/", mode, status.st_mtime_ns))
                else:
                    self._file(name, path)

    def _walk(self, folder: Path, left_out: set[str]) -> Iterator[Path]:
        """Yield directories and regular files below a directory, except for disposable files."""
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        names = {entry.name for entry in found}
        for entry in found:
            is_temporary = entry.name.startswith(".") or entry.name.endswith(".lock")
            is_journal = any(
                entry.name.endswith(suffix) and entry.name.removesuffix(suffix) in names
                for suffix in _PART_OF_DATABASE
            )
            is_own = entry.path == str(self._config.state / "control") or entry.path in left_out
            if is_temporary or is_journal or is_own or entry.name == MARKER:
                continue
            if entry.is_dir(follow_symlinks=False):
                if all(os.path.isdir(f"{entry.path}/{each}") for each in MAIL):
                    self._other_maildirs.append(Path(entry.path))
                    continue
                yield Path(entry.path)
                yield from self._walk(Path(entry.path), left_out)
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)

    def _file(self, name: str, path: Path) -> None:
        """Write one file; a database is copied with SQLite's backup command."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return
            if file.peek(len(_MAGIC))[: len(_MAGIC)] == _MAGIC:
                self._octets(name, _database(path), status)
            else:
                self._write(name, status, file)

    def _octets(self, name: str, octets: bytes, status: os.stat_result | None = None) -> None:
        mode = 0o600 if status is None else status.st_mode & MODE
        mtime = time.time_ns() if status is None else status.st_mtime_ns
        self._writer.file(Entry(name, mode, mtime, len(octets)), io.BytesIO(octets))

    def _write(self, name: str, status: os.stat_result, file: IO[bytes]) -> Entry:
        return self._writer.file(_entry(name, status), file)

    # -- Mail

    def _maildir(self, prefix: str, base: str, names: Sequence[str]) -> None:
        """Write a Maildir; ``prefix`` is its path in the backup."""
        try:
            maildrop = files.maildrop(base, names)
        except FileNotFoundError:  # removed a moment ago
            return
        with maildrop as opened:
            listed = snapshot.snapshot(opened)
            for path, mode in listed.directories:
                name = prefix if path == "." else f"{prefix}/{path}"
                self._writer.directory(Entry(f"{name}/", mode & MODE, time.time_ns()))
            for each in listed.small:
                entry = Entry(f"{prefix}/{each.path}", each.mode & MODE, each.mtime)
                entry = entry._replace(size=len(each.octets))
                self._writer.file(entry, io.BytesIO(each.octets))
            for path in listed.others:
                with suppress(FileNotFoundError), snapshot.opened_other(opened, path) as file:
                    self._write(f"{prefix}/{path}", os.fstat(file), _reader(file))
            self._messages(opened, prefix, listed.messages)

    def _messages(self, maildrop: int, prefix: str, listed: list[snapshot.Listed]) -> None:
        links: dict[int, str] = {}
        number = 0
        for message, file in snapshot.opened(maildrop, listed):
            number += 1
            status = os.fstat(file)
            entry = _entry(f"{prefix}/{message.path}", status)
            if (first := links.get(status.st_ino)) is not None:
                self._writer.link(entry._replace(size=0, link=first))
                continue
            if self._writer.reuse(entry):
                self._report.reused += 1
            else:
                self._writer.file(entry, _reader(file))
            if status.st_nlink > 1:
                links[status.st_ino] = entry.path
            self._report.messages += 1
            self._report.octets += entry.size
        self._report.destroyed += len(listed) - number


def _maildrops(config: Configuration) -> list[tuple[str, ...]]:
    """Return the directory names of all maildrops below the base of their paths.

    Maildrops without a user in the database are found in the file system.  Those of users are
    checked, because a directory that cannot be read would be left out without an error.

    Raises:
        OSError: a maildrop cannot be read.
    """
    template = Template(config.store.path)
    found = dict.fromkeys(map(template.names, template.users()))
    for user in stores.users(config).list():
        with suppress(NoMaildrop, FileNotFoundError):
            names = template.names(user.account.maildrop)
            os.stat(os.path.join(template.base, *names, MAIL[0]))
            found[names] = None
    return list(found)


def _owner(path: Path) -> str | None:
    """Return the name of a directory's owner, if it has one."""
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except (FileNotFoundError, KeyError):
        return None


def _entry(name: str, status: os.stat_result) -> Entry:
    mode = status.st_mode & MODE
    return Entry(name, mode, status.st_mtime_ns, status.st_size, inode=status.st_ino)


def _reader(file: int) -> IO[bytes]:
    return open(file, "rb", 0, closefd=False)


def _is_database(path: Path) -> bool:
    with suppress(OSError), ExitStack() as stack:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        file = stack.enter_context(open(os.open(path, flags), "rb"))
        return file.read(len(_MAGIC)) == _MAGIC
    return False


def _database(path: Path) -> bytes:
    """Return a consistent copy of a database that other processes may be writing.

    Raises:
        Damaged: the database is damaged.
        TemporaryFailure: it cannot be read now.
    """
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with (
            closing(sqlite3.connect(address, uri=True, timeout=_LOCK_TIMEOUT)) as database,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            database.backup(copy)
            if copy.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise Damaged(f"{path} is damaged")
            return bytes(copy.serialize())
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise Damaged(f"{path} is damaged") from error
        raise TemporaryFailure(f"{path}: {error}") from error


# -- What a backup does not contain


def _references(config: Configuration, section: Section, path: tuple[str, ...]) -> Iterator[str]:
    """Yield the options that refer to something outside the backup."""
    for each in options(type(section)):
        value: Any = getattr(section, each.name)
        own = (*path, each.name)
        if isinstance(value, Section):
            yield from _references(config, value, own)
        elif isinstance(value, Secret):
            is_inside = value.kind == "file" and _is_inside(config, str(value.value))
            if value and value.kind != "text" and not is_inside:
                yield f"{'.'.join(own)} ({value.kind})"
        elif each.metadata.get("named"):
            for name, named in value.items():
                yield from _references(config, named, (*own, name))
        elif each.name in _NAMES_OF_FILES and own != ("store", "path") and value:
            is_unused = own[0] == "tls" and own[1] != "client_ca" and config.tls.mode != "files"
            if "://" not in value and not is_unused and not _is_inside(config, value):
                yield f"{'.'.join(own)} ({value})"


def _is_inside(config: Configuration, path: str) -> bool:
    return Path(path).expanduser().absolute().is_relative_to(config.state)
