"""What the verbs share: configuration, stores, exit codes, ways to speak."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import socket
import sqlite3
import ssl
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

from .. import config, sysexits, tls
from ..auth.http import is_readable
from ..auth.names import BadName
from ..auth.users import BadPassword, NameTaken, NoSuchAppPassword, Users
from ..clock import Clock
from ..config import Configuration
from ..errors import (
    AuthenticationFailed,
    BackendMisconfigured,
    BackendUnavailable,
    CannotListen,
    ConfigurationError,
    ConsentNeeded,
    CredentialsRefused,
    Damaged,
    LoginFailed,
    LoginWithheld,
    MessageRefused,
    NoMaildrop,
    NoSuchUser,
    PermanentFailure,
    ProtocolBroken,
    RestanteError,
    TLSUnavailable,
    UnsafeArgument,
)
from ..posix import pwd
from ..store.maildir import MaildirStore
from ..store.memory import MemoryStore
from ..store.place import Template
from . import identities

# The first row that fits decides (sysexits.h).
_EXIT_CODES: tuple[tuple[type[RestanteError], int], ...] = (
    (CannotListen, sysexits.EX_UNAVAILABLE),
    (ConfigurationError, sysexits.EX_CONFIG),
    (NoSuchUser, sysexits.EX_NOUSER),
    (NoMaildrop, sysexits.EX_NOUSER),
    (NoSuchAppPassword, sysexits.EX_NOUSER),
    (NameTaken, sysexits.EX_CANTCREAT),
    (BadName, sysexits.EX_USAGE),
    (BadPassword, sysexits.EX_USAGE),
    (UnsafeArgument, sysexits.EX_USAGE),
    (MessageRefused, sysexits.EX_DATAERR),
    (Damaged, sysexits.EX_DATAERR),
    (TLSUnavailable, sysexits.EX_NOPERM),
    (AuthenticationFailed, sysexits.EX_NOPERM),
    (LoginWithheld, sysexits.EX_NOPERM),
    (ConsentNeeded, sysexits.EX_NOPERM),
    (CredentialsRefused, sysexits.EX_NOPERM),
    (ProtocolBroken, sysexits.EX_PROTOCOL),
    (BackendMisconfigured, sysexits.EX_CONFIG),
    (PermanentFailure, sysexits.EX_CONFIG),
)
_GRAVITY = (70, 78, 77, 76, 74, 73, 69, 68, 67, 65, 64, 75)  # the gravest first
# Once there is room, another disk, less work, or a network.
_MAY_PASS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE),
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOLCK, errno.EDEADLK),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN),
}
# Trying again does not help until an administrator has repaired something.
_LASTING = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EINVAL, errno.EFBIG),  # not a regular file, or too large
}
_LASTING_IN_SQLITE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOTADB,
}


def exit_code(error: BaseException) -> int:
    """The code for the shell (sysexits.h).  75 means that trying again can help."""
    if isinstance(error, KeyboardInterrupt | EOFError):
        return 130
    if isinstance(error, RestanteError):
        found = (code for kind, code in _EXIT_CODES if isinstance(error, kind))
        if (code := next(found, None)) is not None:
            return code
        if error.retry:
            return _code_of_cause(error.__cause__)
        return sysexits.EX_NOPERM if isinstance(error, LoginFailed) else sysexits.EX_UNAVAILABLE
    if isinstance(error, OSError):
        code = _code_of_system(error)
        return sysexits.EX_IOERR if code is None else code
    return sysexits.EX_SOFTWARE


def gravest(codes: Iterable[int]) -> int:
    """Of several accounts or maildrops: 75 only if trying again can help all that failed."""
    found = set(codes)
    return next((code for code in _GRAVITY if code in found), max(found, default=0))


def _code_of_cause(cause: BaseException | None) -> int:
    """Clients and mail servers may try again whatever the cause is; at the shell it decides."""
    code: int | None = None
    if isinstance(cause, RestanteError):
        code = exit_code(cause)
    elif isinstance(cause, OSError):
        code = _code_of_system(cause)
    elif getattr(cause, "sqlite_errorcode", 0) & 0xFF in _LASTING_IN_SQLITE:
        code = sysexits.EX_IOERR
    return sysexits.EX_TEMPFAIL if code is None else code


def _code_of_system(error: OSError) -> int | None:
    """None: it does not show whether trying again can help."""
    if isinstance(error, socket.gaierror):
        is_unknown = error.errno == socket.EAI_NONAME
        return sysexits.EX_NOHOST if is_unknown else sysexits.EX_TEMPFAIL
    if isinstance(error, ssl.SSLError):  # its numbers are those of OpenSSL
        is_refused = isinstance(error, ssl.SSLCertVerificationError)
        return sysexits.EX_NOPERM if is_refused else sysexits.EX_TEMPFAIL
    if isinstance(error, TimeoutError | ConnectionError) or error.errno in _MAY_PASS:
        return sysexits.EX_TEMPFAIL
    # Without an absolute path it is a socket whose server is not started, or mail in motion.
    is_named = isinstance(error.filename, str | bytes) and os.path.isabs(
        os.fsdecode(error.filename)
    )
    is_lasting = error.errno in _LASTING or (error.errno == errno.ENOENT and is_named)
    return sysexits.EX_IOERR if is_lasting else None


@contextmanager
def naming(place: str) -> Iterator[None]:
    """The system's error about a file that is open does not tell which: here it does."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, RestanteError):  # a lost connection has no file
            error.filename = error.filename or place
        raise


def describe(error: BaseException) -> str:
    """What a person is told, without a trace."""
    if isinstance(error, KeyboardInterrupt | EOFError):
        return "stopped"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, BackendUnavailable):  # the reason, which clients do not see
        return f"{error}: {error.reason}"
    if isinstance(error, RestanteError | OSError):
        return ": ".join((str(error), *getattr(error, "__notes__", ())))
    return f"a bug in restante: {type(error).__name__}: {error}"


def configuration(options: argparse.Namespace, **overrides: Any) -> Configuration:
    """The configuration in force for this command."""
    given = {key.replace("__", "."): value for key, value in overrides.items() if value}
    found = config.load(options.config, overrides=given)
    if options.verb not in ("serve", "check") and getattr(os, "geteuid", lambda: 1)() == 0:
        _refuse_root(found)
    return found


def _refuse_root(found: Configuration) -> None:
    """What root makes among the files of the server's user, the server cannot open.

    Raises:
        ConfigurationError: they are another user's.
    """
    for place in (Path(found.auth.users).parent, Path(Template(found.store.path).base)):
        with suppress(FileNotFoundError):
            if owner := place.stat().st_uid:
                try:
                    name = pwd.getpwuid(owner).pw_name
                except KeyError:
                    name = str(owner)
                raise ConfigurationError(
                    f"{place} belongs to {name}, who could not read what root makes there; "
                    f"next: runuser -u {name} -- restante …"
                )


def look_over(found: Configuration) -> None:
    """
    Raises:
        ConfigurationError: what the configuration names is not there, a line each.
    """
    if missing := list(_missing(found)):
        raise ConfigurationError("\n".join(missing))


def _missing(found: Configuration) -> Iterator[str]:
    if found.tls.mode == "files":
        try:
            tls.server_context(Path(found.tls.cert), Path(found.tls.key), found.tls.min_version)
        except ConfigurationError as error:
            yield str(error)
    if found.store.kind == "maildir" and not found.store.path.startswith(f"{found.state}/"):
        try:
            base = Path(Template(found.store.path).base)
        except ConfigurationError as error:
            yield f"store.path: {error}"
        else:
            if not base.is_dir():
                yield f"store.path: {base} is not there; next: mkdir -p {base}"
            elif not os.access(base, os.W_OK | os.X_OK):
                yield f"store.path: {base} cannot be written by this user"
    if found.tls.client_ca and not is_readable(found.tls.client_ca):
        yield f"tls.client_ca: {found.tls.client_ca}: no certificates can be read there"
    yield from identities.missing(found)


def look_over_users(config: Configuration) -> None:
    """
    Raises:
        ConfigurationError: some users cannot have a maildrop, a line each.
    """
    check_place, mistakes = identities.place_check(config), []
    for user in users(config).list():
        try:
            check_place(user.account.maildrop)
        except NoMaildrop as error:
            mistakes.append(f"store.path: {config.store.path}: the user {user.name} {error.reason}")
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def users(found: Configuration) -> Users:
    return Users(Path(found.auth.users), domains=identities.domains(found))


def clock(found: Configuration) -> Clock:
    return Clock(found.state / "clock")


def store(found: Configuration, own: Users | None = None) -> MaildirStore | MemoryStore:
    """``own``: our database, if it is open already, for the quota and the hold of each user."""
    if found.store.kind == "memory":
        return MemoryStore(hold=lambda _: found.store.hold)
    if found.store.path == f"{found.state}/mail/%u":  # ours to make; any other may be a mount
        for place in (found.state, found.state / "mail"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = MaildirStore(found.store.path, folders=found.store.maildrop, clock=clock(found))
    set_rules(made, found, own or users(found))
    return made


def set_rules(store: MaildirStore | MemoryStore, found: Configuration, users: Users) -> None:
    """Put hold and quota in force, which each user may have of their own."""

    def hold(user: str) -> float:
        seconds = users.hold(user)
        return found.store.hold if seconds is None else seconds

    def limit(user: str) -> int:
        octets = users.quota(user)
        return found.store.quota if octets is None else octets

    if isinstance(store, MaildirStore):
        store.hold, store.limit = hold, limit
    else:
        store.hold = lambda _: found.store.hold


def maildrop_path(config: Configuration, user: str) -> Path:
    """The Maildir of a user, which need not exist.

    Raises:
        NoMaildrop: the user cannot have one.
    """
    template = Template(config.store.path)
    return Path(template.base, *template.names(user))


def told_hold(hold: float) -> str:
    """What becomes of mail that a client deletes; ``hold`` in seconds."""
    if hold == inf:
        return "kept in the maildrop"
    return f"held {hold / 86_400:g} days" if hold else "destroyed at once"


def say(text: str) -> None:
    """Talk; results go to standard output.  Where it cannot be written nothing else fails."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def columns() -> int:
    """For prose; a terminal may be wider than it is easy to read."""
    return min(shutil.get_terminal_size().columns, 100)


def seconds(text: str) -> float:
    try:
        return config.duration(text)
    except Exception as error:
        raise UnsafeArgument('a time is "90s", "10min", "2h" or "14d"') from error


def days(text: str) -> int:
    """Whole days, one at least: what is removed by itself was there long enough to be seen."""
    found = seconds(text)
    if found < 86_400 or found % 86_400:
        raise UnsafeArgument('a time to keep mail is one in whole days, such as "90d"')
    return int(found) // 86_400


def octets(text: str) -> int:
    try:
        return config.octets(text)
    except Exception as error:
        raise UnsafeArgument('a size is "500MiB", "2GiB", or a number of octets') from error


def halves(fingerprint: str) -> tuple[str, str]:
    """A fingerprint in two parts, for lines of 80 columns."""
    groups = fingerprint.split()
    return " ".join(groups[:8]), " ".join(groups[8:])


def print_json(verb: str, **values: Any) -> None:
    """One object; every verb's has a schema."""
    print(json.dumps({"schema": f"restante/{verb}/1", **values}), flush=True)


def refuse_json(options: argparse.Namespace) -> None:
    """
    Raises:
        UnsafeArgument: JSON is asked of a command that has none, so that no program waits for it.
    """
    if options.json:
        raise UnsafeArgument("this command has no --json")


def confirm(question: str, options: argparse.Namespace) -> bool:
    """Whether ``--yes`` was given, or the user agrees.

    Raises:
        UnsafeArgument: there is no terminal to ask at.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise UnsafeArgument(f"{question} Not without --yes.")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    say("Nothing was changed.")
    return False
