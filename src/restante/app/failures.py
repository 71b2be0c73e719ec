"""Turn an error into an exit code for the shell and a sentence for the user."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .. import sysexits
from ..auth.names import BadName
from ..auth.users import BadPassword, NameTaken, NoSuchAppPassword
from ..errors import (
    AuthenticationFailed,
    BackendMisconfigured,
    BackendUnavailable,
    CannotCreate,
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
    NotPermitted,
    NotRunning,
    PermanentFailure,
    ProtocolBroken,
    RestanteError,
    TLSUnavailable,
    UnsafeArgument,
)

# Exit codes (sysexits.h) by class of error.  The first row whose class matches applies.
_EXIT_CODES: tuple[tuple[type[RestanteError], int], ...] = (
    (CannotListen, sysexits.EX_UNAVAILABLE),
    (ConfigurationError, sysexits.EX_CONFIG),
    (NoSuchUser, sysexits.EX_NOUSER),
    (NoMaildrop, sysexits.EX_NOUSER),
    (NoSuchAppPassword, sysexits.EX_NOUSER),
    (NameTaken, sysexits.EX_CANTCREAT),
    (CannotCreate, sysexits.EX_CANTCREAT),
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
    (NotPermitted, sysexits.EX_NOPERM),
    (NotRunning, sysexits.EX_UNAVAILABLE),
    (ProtocolBroken, sysexits.EX_PROTOCOL),
    (BackendMisconfigured, sysexits.EX_CONFIG),
    (PermanentFailure, sysexits.EX_CONFIG),
)


# Exit codes, the most serious first.
_BY_SEVERITY = (70, 78, 77, 76, 74, 73, 69, 68, 67, 65, 64, 75)
# Errors that may go away: a full or failing disk, too many open files, a network that is down.
_TEMPORARY = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE),
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOLCK, errno.EDEADLK),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN),
}


# Errors that remain until an administrator removes the cause.
_PERMANENT = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EINVAL, errno.EFBIG),  # not a regular file, or too large
    errno.EEXIST,  # a file where a directory is expected
}


_PERMANENT_IN_SQLITE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOTADB,
}


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error (sysexits.h).  75 means that trying again can help."""
    if isinstance(error, KeyboardInterrupt | EOFError):
        return 130
    if isinstance(error, RestanteError):
        matching = (code for kind, code in _EXIT_CODES if isinstance(error, kind))
        if (code := next(matching, None)) is not None:
            return code
        if error.retry:
            return _code_of_cause(error.__cause__)
        return sysexits.EX_NOPERM if isinstance(error, LoginFailed) else sysexits.EX_UNAVAILABLE
    if isinstance(error, OSError):
        code = _code_of_os_error(error)
        return sysexits.EX_IOERR if code is None else code
    return sysexits.EX_SOFTWARE


def _code_of_cause(cause: BaseException | None) -> int:
    """Return the exit code for the cause of a temporary failure.

    Clients of the server may always try again after a temporary failure.  For a command, whether
    trying again can help depends on the cause.
    """
    code: int | None = None
    if isinstance(cause, RestanteError):
        code = exit_code(cause)
    elif isinstance(cause, OSError):
        code = _code_of_os_error(cause)
    elif getattr(cause, "sqlite_errorcode", 0) & 0xFF in _PERMANENT_IN_SQLITE:
        code = sysexits.EX_IOERR
    return sysexits.EX_TEMPFAIL if code is None else code


def _code_of_os_error(error: OSError) -> int | None:
    """Return the exit code of a system error; None if it is uncertain whether retrying helps."""
    if isinstance(error, socket.gaierror):
        is_unknown_host = error.errno == socket.EAI_NONAME
        return sysexits.EX_NOHOST if is_unknown_host else sysexits.EX_TEMPFAIL
    if isinstance(error, ssl.SSLError):  # its errno is an OpenSSL error number
        is_untrusted = isinstance(error, ssl.SSLCertVerificationError)
        return sysexits.EX_NOPERM if is_untrusted else sysexits.EX_TEMPFAIL
    if isinstance(error, TimeoutError | ConnectionError) or error.errno in _TEMPORARY:
        return sysexits.EX_TEMPFAIL
    # ENOENT without an absolute path is not permanent: the server of a Unix socket may not be
    # running, or another program may be moving mail.
    has_path = isinstance(error.filename, str | bytes) and os.path.isabs(
        os.fsdecode(error.filename)
    )
    is_permanent = error.errno in _PERMANENT or (error.errno == errno.ENOENT and has_path)
    return sysexits.EX_IOERR if is_permanent else None


@contextmanager
def adding_path(path: str) -> Iterator[None]:
    """Add ``path`` to system errors that do not name their file."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, RestanteError):  # ConnectionLost is an OSError without a file
            error.filename = error.filename or path
        raise


def describe(error: BaseException) -> str:
    """Return the text that is shown to the user instead of a traceback."""
    if isinstance(error, KeyboardInterrupt | EOFError):
        return "stopped"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, BackendUnavailable):  # the reason is never sent to clients
        return f"{error}: {error.reason}"
    if isinstance(error, RestanteError | OSError):
        return ": ".join((str(error), *getattr(error, "__notes__", ())))
    return f"a bug in restante: {type(error).__name__}: {error}"


def most_serious(codes: Iterable[int]) -> int:
    """Return the most serious exit code: 75 only if trying again can help with every failure."""
    distinct = set(codes)
    return next((code for code in _BY_SEVERITY if code in distinct), max(distinct, default=0))
