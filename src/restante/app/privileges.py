"""Become the server's user when root runs a command.

A command of root must not create files that the server cannot read, and must not use root's rights
on files that the server's user controls.  Call ``drop`` before opening any file of the server
except its configuration::

    config = load(path)
    privileges.drop(config)

Security: only root decides which user the command becomes.  The owners of the server's files name
this user, but a directory's owner proves nothing if other users could have created the directory.
The owner counts if only root can write to all directories above it, or if it is the owner of the
package's account.  A configuration that another user can change could point to the files of a
third user, so it must belong to root or to the server's user
(docs/decisions/0244-root-becomes-the-server.md).  The files that were read are checked, not only
their paths, because other users may exchange a path after the file was read.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import sysexits
from ..config import SYSTEM, Configuration
from ..errors import ConfigurationError, TemporaryFailure
from ..posix import pwd
from ..regular import RegularFile, read_regular
from ..store.paths import Template

if TYPE_CHECKING:
    from pwd import struct_passwd

ACCOUNT = "restante"
"""The account that the packages create for the server."""
UMASK = 0o077
"""As in contrib/systemd: all files of the server are private."""
_UNKNOWN = 65_534
"""The owner that the kernel reports for users outside a user namespace."""
_MAX_LINKS = 40  # as in path_resolution(7)

became = ""
"""The user that this process has become; empty if it has not changed its user."""


def drop(config: Configuration) -> None:
    """Become the server's user completely and irrevocably if root runs this process.

    Returns without a change if another user runs it, or if the server's files belong to root.
    Inherited descriptors, such as standard input, stay open.

    Raises:
        ConfigurationError: the server's user is uncertain, or the process cannot become this user.
    """
    if is_root() and (account := server_account(config)):
        become(account)


def is_root() -> bool:
    return getattr(os, "geteuid", lambda: 1)() == 0


def server_account(config: Configuration) -> struct_passwd | None:
    """Return the account of the server's user; None if the server runs as root.

    Only meaningful for root.

    Raises:
        ConfigurationError: the files belong to different users, or their owner is not credible.
    """
    package = _package_account(config)
    data = _Owners()
    for path in _data(config):
        data.add(path)
    files = _Owners()
    for path in _configuration_files(config):
        files.add(path)
    for file in config.files:
        files.add_read(file)
    owners = {**data.unproven, **data.proven}
    if len(owners) > 1:
        (first, one), (second, other), *_ = owners.items()
        raise ConfigurationError(
            f"root does not know which user the server runs as: {one} belongs to {_name(first)}, "
            f"{other} to {_name(second)}. {_owner_advice(config, owners, package)}"
        )
    uid, path = next(iter(owners.items()), (package.pw_uid if package else 0, Path()))
    if uid and uid not in data.proven and not (package and package.pw_uid == uid):
        raise ConfigurationError(
            f"{path} belongs to {_name(uid)}, but other users than root may have created it. "
            f"{_advice(_name(uid))}"
        )
    _check_configuration(files, uid)
    account = _account(uid, path) if uid else None
    if linked := [each for each in config.files if _is_chosen_by_another(each)]:
        run_as(account, lambda: _refuse_unreadable(linked))
    return account


def only_root_can_change(path: Path) -> bool:
    """Return whether all directories and links of a path, as far as it exists, belong to root.

    Root must not create anything elsewhere: another user could replace a directory by a link.
    A directory such as /tmp is permitted, because a file of root there cannot be replaced.
    """
    owners = _Owners()
    owners.add(path)
    return not (owners.proven or owners.unproven or owners.writable)


def become(account: struct_passwd) -> None:
    """Become this user completely and irrevocably: user, all groups, home directory and umask.

    Raises:
        ConfigurationError: the process lacks the right to do so, or could become root again.
    """
    from . import failures  # noqa: F401  # reports errors, and may be unreadable for this user

    uid, gid = account.pw_uid, account.pw_gid
    try:
        os.initgroups(account.pw_name, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise ConfigurationError(
            f"root cannot become {account.pw_name}: {error.strerror}"
        ) from error
    global became
    became = account.pw_name
    if _can_regain(uid, gid):
        raise ConfigurationError(f"root became {account.pw_name}, but could become root again")
    os.umask(UMASK)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    if not os.access(__file__, os.R_OK) or not os.access(os.__file__, os.R_OK):
        raise ConfigurationError(
            f"{account.pw_name} cannot read the program in {Path(__file__).parents[1]}; install it "
            "where all users can read it, such as /opt"
        )


def run_as(account: struct_passwd | None, work: Callable[[], Any]) -> Any:
    """Call ``work`` as another user in a child process, and return its result.

    The result must be a JSON value: root must not load objects from a process with fewer rights.
    Without ``account``, this process calls ``work``.  Must be called before threads start.

    Raises:
        OSError, TemporaryFailure, ConfigurationError: the error of ``work``, with its text.
    """
    if account is None:
        return work()
    readable, writable = os.pipe()
    if (child := os.fork()) == 0:
        _work_as(account, work, writable)
    os.close(writable)
    with open(readable, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise TemporaryFailure("a part of this command was killed")
    outcome = json.loads(answer)
    if "result" in outcome:
        return outcome["result"]
    if "errno" in outcome:
        raise OSError(outcome["errno"], outcome["text"], outcome["path"])
    is_temporary = outcome["code"] == sysexits.EX_TEMPFAIL
    raise (TemporaryFailure if is_temporary else ConfigurationError)(outcome["text"])


def _work_as(account: struct_passwd, work: Callable[[], Any], writable: int) -> NoReturn:
    """Do the work of a child process; the outcome is written to a pipe as JSON."""
    try:
        from . import failures

        outcome: dict[str, Any]
        try:
            become(account)
            outcome = {"result": work()}
        except OSError as error:
            path = error.filename and os.fsdecode(error.filename)
            outcome = {"errno": error.errno, "text": error.strerror, "path": path}
        except Exception as error:
            outcome = {"code": failures.exit_code(error), "text": failures.describe(error)}
        with open(writable, "w") as pipe:
            json.dump(outcome, pipe)
    finally:
        os._exit(0)  # without the cleanup of the parent process


def _can_regain(uid: int, gid: int) -> bool:
    """Return whether the process has kept any right of root."""
    try:
        os.setuid(0)
    except PermissionError:
        pass
    else:
        return True
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        return True
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux, which is the only system with capabilities
        return False
    names = ("CapPrm:", "CapEff:", "CapInh:", "CapAmb:")
    fields = (line.split() for line in status.splitlines() if line.startswith(names))
    return any(int(value, 16) for _, value in fields)


def _package_account(config: Configuration) -> struct_passwd | None:
    """Return the package's account if this is the configuration of a service."""
    if config.state != SYSTEM[1]:
        return None
    try:
        account = pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None
    return account if account.pw_uid else None


def _data(config: Configuration) -> Iterator[Path]:
    """Yield the paths at which the server writes."""
    yield Path(config.auth.users)
    yield config.state
    if config.store.kind != "memory":
        yield Path(Template(config.store.path).base)


def _configuration_files(config: Configuration) -> Iterator[Path]:
    if config.source is not None:
        yield config.source
    yield config.folder
    yield from sorted(config.folder.glob("*.toml"))


def _check_configuration(files: _Owners, uid: int) -> None:
    """Refuse a configuration that others than root and the server's user can change.

    Raises:
        ConfigurationError: for example, the file belongs to another user.
    """
    user = "root" if uid == 0 else f"root or {_name(uid)}"
    for owner, path in {**files.unproven, **files.proven}.items():
        if owner != uid:
            raise ConfigurationError(
                f"{path} belongs to {_name(owner)}, so root does not follow it. It must belong to "
                f"{user}"
            )
    if files.writable is not None:
        raise ConfigurationError(
            f"{files.writable} can be changed by other users, so root does not follow it. Run: "
            f"chmod go-w {files.writable}"
        )


def _is_chosen_by_another(file: RegularFile) -> bool:
    """Return whether another user could have made root read this file of root, with a link."""
    return file.status.st_uid == 0 and not only_root_can_change(file.path)


def _refuse_unreadable(files: Sequence[RegularFile]) -> None:
    """Refuse files that root has read for a user who cannot read them.

    Raises:
        ConfigurationError: this process cannot read a file, or reads another one.
    """
    for file in files:
        try:
            octets = read_regular(file.path)
        except OSError as error:
            raise ConfigurationError(f"{file.path}: {error.strerror}") from error
        if octets != file.octets:
            raise _changed(file)


def _changed(file: RegularFile) -> ConfigurationError:
    return ConfigurationError(f"{file.path} has changed while root read it; run the command again")


def _account(uid: int, path: Path) -> struct_passwd:
    if uid != _UNKNOWN:
        try:
            return pwd.getpwuid(uid)
        except KeyError:
            pass
    raise ConfigurationError(
        f"{path} belongs to user {uid}, who has no account here. Run the command as this user"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _owner_advice(
    config: Configuration, owners: dict[int, Path], package: struct_passwd | None
) -> str:
    """Return how to repair files of the server that belong to different users.

    Security: a link of the server's user may lead to a third user's file, which root must not give
    away.  So only paths that the configuration names get a command, and it follows no link.
    """
    if package:
        wrong = [path for uid, path in owners.items() if uid != package.pw_uid]
        if set(wrong) <= set(_data(config)):
            commands = (f"chown -h {package.pw_name} {shlex.quote(str(path))}" for path in wrong)
            return f"All must belong to {package.pw_name}. Run: {'; '.join(commands)}"
    return "All must belong to the user that the server runs as. Check the owners of both"


def _advice(name: str) -> str:
    return f"Run: runuser -u {name} -- restante …"


@dataclass
class _Owners:
    """The owners, other than root, of files and of all directories above them.

    Each owner is mapped to the first path that belongs to it.
    """

    proven: dict[int, Path] = field(default_factory=dict)
    """Owners of files in directories to which only root or the owner can write."""
    unproven: dict[int, Path] = field(default_factory=dict)
    """Owners of files that another user could have put in their place."""
    writable: Path | None = None
    """The first file or directory in which others than its owner can change everything."""

    def add(self, path: Path) -> None:
        """Add the owners of a path, as far as it exists; symbolic links are followed."""
        rest = list(reversed(path.absolute().parts))
        current, is_proven, is_sticky, links = Path(rest.pop()), True, False, 0
        while True:
            try:
                status = current.lstat()
            except OSError:  # the rest does not exist
                return
            if owner := status.st_uid:
                group = self.proven if is_proven and not is_sticky else self.unproven
                group.setdefault(owner, current)
                is_proven = is_proven and not is_sticky
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    return
                target = Path(os.readlink(current))
                rest += reversed(target.parts)
                current = current.parent
            else:
                is_sticky = _is_open(current, status) and bool(status.st_mode & stat.S_ISVTX)
                if _is_open(current, status) and not is_sticky:
                    is_proven = False
                    self.writable = self.writable or current
            if not rest:
                return
            # ".." in the target of a link; the path so far contains no links.
            name = rest.pop()
            current = current.parent if name == ".." else current / name

    def add_read(self, file: RegularFile) -> None:
        """Add the owner of a file that was read.

        Raises:
            ConfigurationError: the file is not at its path any more.
        """
        if owner := file.status.st_uid:
            self.unproven.setdefault(owner, file.path)
        if _is_open(file.path, file.status):
            self.writable = self.writable or file.path
        try:
            is_same = os.path.samestat(file.path.stat(), file.status)
        except OSError:
            is_same = False
        if not is_same:
            raise _changed(file)


def _is_open(path: Path, status: os.stat_result) -> bool:
    """Return whether others than the owner and root can write.

    With an access control list, the bits of the group are the most that any user of the list may
    do (acl(5)), so they say nothing about the group itself.
    """
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and (status.st_gid != 0 or _has_acl(path))


def _has_acl(path: Path) -> bool:
    try:
        os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)
    except AttributeError:  # not Linux: there is no way to know
        return True
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.ENOTSUP)
    return True
