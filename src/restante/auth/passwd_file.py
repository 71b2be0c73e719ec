"""Users in a text file in the format of Dovecot's passwd-file, one line for each user:
``user:{SCHEME}hash:uid:gid:gecos:home:shell:extra fields``.

Security: names are compared in their normal form.  If several lines have the same name, all of them
are refused.  A line with an unknown field is refused, because the field may be a restriction.  A
login of an unknown user computes the hash of another user as a decoy, which is the same for each
login under this name.  The same applies to users whose line is refused or whose hash cannot match.
The file must be writable only by the operator: a program that can write to it can log in as any
user.
Limits: ``uid``, ``gid``, ``home`` and ``shell`` are ignored; ``store.path`` determines where mail
is stored.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import md5, sha256
from ipaddress import ip_network
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from ..errors import (
    AuthenticationFailed,
    BackendMisconfigured,
    BackendUnavailable,
    RestanteError,
)
from ..passdb import Credentials, Digest, MustWait, Network, UserAccount
from ..regular import open_regular
from ..threads import Threads
from . import passwords, schemes
from .names import BadName, check_name
from .names import key as _key

_log = logging.getLogger("restante.auth")
_MAX_LOCKED = 2  # maximum length of "*", "!" and "!!", which mean that the user has no password
_MAX_FILE = 64 * 2**20  # octets; enough for about 400,000 lines
# Seconds after which another change certainly results in a different time stamp.  The time stamps
# of FAT have a resolution of 2 s; those of other file systems are finer.
_SETTLING_TIME = 2.0
# Prefixes of extra fields that do not restrict logins.
_HARMLESS_PREFIXES = ("userdb_", "event_", "forward_")
_UNKNOWN_PASSWORD = b"sixteen octets.."  # used for the digest if only a hash is stored
_LOOKUP_THREADS = 4  # few, because a look-up rarely has to read the file again
# Maximum number of attempts to read the file while it is being written, and seconds between them.
_ATTEMPTS, _PAUSE = 5, 0.01


class _BadLine(Exception):
    """A line is refused; contains the reason, and the user if the name is known."""

    def __init__(self, text: str, user: str = "") -> None:
        super().__init__(text)
        self.user = user


class _Stamp(NamedTuple):
    """Identifies a version of the file."""

    modified: int
    """Modification time in nanoseconds since the epoch."""
    size: int
    inode: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the file."""

    account: UserAccount
    stored_hash: str = field(repr=False)
    is_refused: bool = False
    """The line is malformed or the user has several lines, so the user cannot log in."""


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of the file at one moment."""

    entries: dict[str, _Entry]
    hashes: dict[str, str] = field(repr=False)
    """The hashes that can match a password, by user.  Hashes that are malformed, too expensive or
    in a refused line are not included."""
    decoys: tuple[str, ...] = field(repr=False)
    """The same hashes; a decoy is chosen from them."""
    digest: bytes
    stamp: _Stamp
    is_settled: bool
    """Whether every later change will result in a different stamp."""

    def decoy(self, name: str) -> str:
        """Return the hash to compute for a user without a hash; it depends only on the name."""
        if not self.decoys:
            return passwords.decoy_hash()
        key = self.decoys[0].encode("utf-8", "surrogateescape")
        digest = hmac.digest(key, name.encode("utf-8", "surrogateescape"), "sha256")
        return self.decoys[int.from_bytes(digest) % len(self.decoys)]


class PasswdFile:
    """The users of one file, which is read again when it changes.

    Implements ``Passdb``, ``Accounts``, ``ImmediateAccounts``, ``Digests``, ``Generations`` and
    ``ImmediateGenerations``.
    ``Digests`` works only for users whose password is stored in clear text.
    """

    def __init__(self, path: Path, *, scheme: str = "CRYPT") -> None:
        """``scheme`` is the scheme of hashes without a prefix ``{SCHEME}``."""
        self._path = path
        self._scheme = scheme
        self._content: _Content | None = None
        self._hashers = passwords.Hashers("passwd-file")
        # Separate threads, so that a file system that hangs does not block threads that read mail.
        self._lookups = Threads("passwd-file", _LOOKUP_THREADS)
        self._reading = Lock()  # simultaneous logins must read a large file only once

    async def verify(self, credentials: Credentials) -> UserAccount:
        return await self._hashers.run(self._verify, credentials)

    def _verify(self, credentials: Credentials) -> UserAccount:
        password = credentials.password
        if not passwords.is_possible(password):
            raise AuthenticationFailed("impossible-password")
        name, content = _key(credentials.identity), self._read()
        entry, stored_hash = content.entries.get(name), content.hashes.get(name)
        is_match = schemes.matches(password, stored_hash or content.decoy(name), self._scheme)
        if entry is None:
            raise AuthenticationFailed("unknown-user")
        if entry.is_refused:
            raise AuthenticationFailed("line-refused")
        if not is_match or stored_hash is None:  # a decoy may match, but must not admit the user
            raise AuthenticationFailed("bad-password")
        if credentials.authorization and _key(credentials.authorization) != name:
            raise AuthenticationFailed("authorization")  # RFC 4616 §2
        return entry.account

    async def digested(self, login: Digest) -> UserAccount:
        return await self._lookups.run(partial(self._digested, login))

    def _digested(self, login: Digest) -> UserAccount:
        name, content = _key(login.identity), self._read()
        entry = content.entries.get(name)
        stored_hash = entry.stored_hash if entry and not entry.is_refused else content.decoy(name)
        secret = schemes.secret(stored_hash, self._scheme)
        octets = login.time_stamp.encode() + (secret or _UNKNOWN_PASSWORD)
        expected = md5(octets, usedforsecurity=False).hexdigest()
        digest = login.digest.encode("utf-8", "surrogatepass")
        is_match = hmac.compare_digest(expected.encode(), digest)
        if entry is None:
            raise AuthenticationFailed("unknown-user")
        if entry.is_refused:
            raise AuthenticationFailed("line-refused")
        if secret is None:
            raise AuthenticationFailed("no-plain-password")
        if not is_match:
            raise AuthenticationFailed("bad-password")
        return entry.account

    async def account(self, identity: str) -> UserAccount | None:
        entry = (await self._current_content()).entries.get(_key(identity))
        return entry.account if entry else None

    def account_now(self, identity: str) -> UserAccount | None:
        content = self._cached_content_or_none()
        if content is None:
            raise MustWait
        entry = content.entries.get(_key(identity))
        return entry.account if entry else None

    def has_password(self, identity: str) -> bool:
        """Return whether any password can match.

        Returns False if the user is unknown, locked or refused, or if the user's hash is malformed
        or too expensive.

        Raises:
            BackendUnavailable: the file cannot be read.
        """
        return _key(identity) in self._read().hashes

    async def generation(self, identity: str) -> bytes:
        del identity  # any change to the file changes the generation of all users
        return (await self._current_content()).digest

    def generation_now(self, identity: str) -> bytes | None:
        del identity
        content = self._cached_content_or_none()
        return content.digest if content else None

    def read_ahead(self) -> None:
        """Read the file before it is needed.  Errors are ignored; the next login reports them."""
        with suppress(RestanteError):
            self._read()

    def close(self) -> None:
        self._hashers.close()

    # The file.

    async def _current_content(self) -> _Content:
        """Return the current content.  A file that has changed is read in a thread."""
        content = self._cached_content_or_none()  # one stat, which takes less time than a thread
        return await self._lookups.run(self._read) if content is None else content

    def _cached_content_or_none(self) -> _Content | None:
        with suppress(OSError):  # ``_read`` reports the reason
            return self._cached_content()
        return None

    def _read(self) -> _Content:
        """Return the current content.

        Raises:
            BackendUnavailable: the file cannot be read, or is still being written after several
                attempts.
        """
        with self._reading:
            try:
                if (content := self._cached_content()) is not None:
                    return content
                self._content = self._read_again()
            except OSError as error:
                raise BackendUnavailable(f"{self._path}: {error.strerror}") from error
            return self._content

    def _cached_content(self) -> _Content | None:
        """Return the cached content if the file has certainly not changed since it was read."""
        content = self._content
        is_current = content and content.is_settled and content.stamp == _stamp(os.stat(self._path))
        return content if is_current else None

    def _read_whole(self) -> tuple[bytes, _Stamp]:
        """Read the file.  If it changes while it is being read, read it again."""
        for _ in range(_ATTEMPTS):
            with open_regular(self._path) as file:
                stamp = _stamp(os.fstat(file.fileno()))
                octets = file.read(_MAX_FILE + 1)
                is_complete = stamp == _stamp(os.fstat(file.fileno())) and len(octets) == stamp.size
            if len(octets) > _MAX_FILE:
                raise BackendMisconfigured(f"{self._path} is larger than {_MAX_FILE} octets")
            if is_complete:
                return octets, stamp
            time.sleep(_PAUSE)
        raise BackendUnavailable(f"{self._path} is being written")

    def _read_again(self) -> _Content:
        octets, stamp = self._read_whole()
        is_settled = time.time() - stamp.modified / 1e9 > _SETTLING_TIME
        digest = sha256(octets).digest()
        if self._content and self._content.digest == digest:
            return replace(self._content, stamp=stamp, is_settled=is_settled)
        entries = self._parse(octets)
        hashes = {
            name: each.stored_hash
            for name, each in entries.items()
            if not each.is_refused and schemes.is_sane(each.stored_hash, self._scheme)
        }
        return _Content(entries, hashes, tuple(hashes.values()), digest, stamp, is_settled)

    def review(self) -> tuple[list[UserAccount], list[str]]:
        """Return the users of the accepted lines, and the problems in the file.

        A problem is a sentence about a line that is refused, or about a hash that cannot match.

        Raises:
            BackendUnavailable: the file cannot be read.
        """
        try:
            octets, _ = self._read_whole()
        except OSError as error:
            raise BackendUnavailable(f"{self._path}: {error.strerror}") from error
        problems: list[str] = []
        entries = _parse_all(
            octets, lambda line, reason: problems.append(f"{self._path}: line {line} {reason}")
        )
        problems += [
            f"{self._path}: the hash of {name} is malformed or too expensive, so no password "
            "matches it"
            for name, entry in entries.items()
            if len(entry.stored_hash) > _MAX_LOCKED
            and not schemes.is_sane(entry.stored_hash, self._scheme)
        ]
        return [each.account for each in entries.values() if not each.is_refused], problems

    def _parse(self, octets: bytes) -> dict[str, _Entry]:
        def warn(line: int, reason: str) -> None:
            fields = {"file": str(self._path), "line": line, "reason": reason}
            _log.warning("line refused", extra={"fields": fields})

        return _parse_all(octets, warn)


def _parse_all(octets: bytes, warn: Callable[[int, str], None]) -> dict[str, _Entry]:
    """Parse all lines.  A malformed line affects only its own user.

    Logins of this user are refused.  If the user were unknown instead, the next back end might
    admit a user that this file was meant to exclude.
    """
    entries: dict[str, _Entry] = {}
    for number, line in enumerate(octets.decode("utf-8", "surrogateescape").split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        try:
            entry = _parse(line)
        except _BadLine as error:
            warn(number, str(error))
            if not error.user:
                continue
            entry = _refused(error.user)
        name = entry.account.user
        if name in entries:
            warn(number, "has the same user as another line; both lines are refused")
            entry = _refused(name)
        entries[name] = entry
    return entries


def _refused(user: str) -> _Entry:
    return _Entry(UserAccount(user, user, is_enabled=False), "", is_refused=True)


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def _parse(line: str) -> _Entry:
    """Parse one line.

    Raises:
        _BadLine: the line is refused.
    """
    name, _, rest = line.partition(":")
    fields = rest.split(":", 6)  # the password, five fields of passwd(5), and the extra fields
    if (decoded := _from_latin_1(name)) != name:
        text = "begins with a name that is not UTF-8; convert the file with iconv"
        raise _BadLine(text, _intended_user(decoded))
    try:
        user = check_name(name)
    except BadName:
        raise _BadLine("begins with an invalid user name", _intended_user(name)) from None
    if not schemes.is_known(fields[0]):
        raise _BadLine("has no password hash of a known scheme", user)
    if any(map(_is_restriction, fields[1:6])):
        raise _BadLine("has an extra field too early; six colons must precede it", user)
    account = UserAccount(user, user)
    for extra in fields[6].split() if len(fields) > 6 else []:
        key, _, value = extra.partition("=")
        if key == "nologin":
            account = account._replace(is_enabled=False)
        elif key == "allow_nets" and not account.networks:
            account = account._replace(networks=tuple(_networks(value, user)))
        elif not key.startswith(_HARMLESS_PREFIXES):
            raise _BadLine("has an unknown extra field", user)
    return _Entry(account, fields[0])


def _intended_user(name: str) -> str:
    """Return the user name that a malformed name was probably meant to be.

    White space and invisible characters, such as a byte order mark, are removed, because editors
    and web pages add them.
    """
    return _key("".join(each for each in name if unicodedata.category(each) != "Cf").strip())


def _from_latin_1(name: str) -> str:
    """Decode a name that is not UTF-8 as Latin-1, which older editors and systems write.

    Other names are returned unchanged.
    """
    octets = name.encode("utf-8", "surrogateescape")
    return octets.decode("latin-1") if any("\udc80" <= each <= "\udcff" for each in name) else name


def _is_restriction(field: str) -> bool:
    """Return whether a field restricts logins."""
    return field.strip().partition("=")[0] in ("nologin", "allow_nets")


def _networks(text: str, user: str) -> Iterator[Network]:
    for each in text.split(","):
        try:
            yield ip_network(each.strip(), strict=False)
        except ValueError:
            raise _BadLine("has an invalid network in allow_nets", user) from None
