"""Users in a text file in the format of Dovecot's passwd-file, one line for each user:
``user:{SCHEME}hash:uid:gid:gecos:home:shell:extra fields``.

Security: names are compared in one normal form; all lines with the same normal form are refused.
A line with an unknown field is refused, because the field may be a restriction.  A login of an
unknown user computes the hash of a line of the file, the same line each time; so does a login of a
user whose line is refused or whose hash is never computed.  The file belongs to the operator: a
program that can write to it can log in as any user.
Limits: ``uid``, ``gid``, ``home`` and ``shell`` are ignored; the store decides where mail is.
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
from ..passdb import Credentials, Digest, Network, UserAccount
from ..regular import open_regular
from ..threads import Threads
from . import passwords, schemes
from .names import BadName, check_name
from .names import key as _key

_log = logging.getLogger("restante.auth")
_LOCKED = 2  # maximum characters of "*", "!" and "!!", which mean: no password
_MAX_FILE = 64 * 2**20  # octets; an estimate, some 400,000 lines
# Seconds after which another change certainly results in a different time stamp; FAT has a
# resolution of 2 s, other file systems a finer one.
_SETTLED = 2.0
_HARMLESS = ("userdb_", "event_", "forward_")  # prefixes of fields that do not restrict logins
_UNKNOWN = b"sixteen octets.."  # replaces a password that is not stored, in the digest
_LOOKUPS = 4  # threads; a look-up that must read the file again is rare
_ATTEMPTS, _PAUSE = 5, 0.01  # tries and seconds between them, while the file is being written


class _BadLine(Exception):
    """The reason why a line is refused, and its user if that is known."""

    def __init__(self, text: str, user: str = "") -> None:
        super().__init__(text)
        self.user = user


class _Stamp(NamedTuple):
    """Distinguishes different contents of a file."""

    modified: int
    """Nanoseconds."""
    size: int
    inode: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line."""

    account: UserAccount
    stored: str = field(repr=False)
    is_refused: bool = False
    """Whether the line is malformed or the user has several lines; the user cannot log in."""


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of the file at one moment."""

    entries: dict[str, _Entry]
    hashes: dict[str, str] = field(repr=False)
    """Hashes that are computed, by user; excludes refused, malformed and too costly ones."""
    decoys: tuple[str, ...] = field(repr=False)
    """The same hashes, to choose a decoy from."""
    digest: bytes
    stamp: _Stamp
    is_settled: bool
    """Whether any later change will have another stamp."""

    def decoy(self, name: str) -> str:
        """Return a hash to check for a name without a hash; always the same hash for a name."""
        if not self.decoys:
            return passwords.decoy_hash()
        key = self.decoys[0].encode("utf-8", "surrogateescape")
        drawn = hmac.digest(key, name.encode("utf-8", "surrogateescape"), "sha256")
        return self.decoys[int.from_bytes(drawn) % len(self.decoys)]


class PasswdFile:
    """Implements ``Passdb``, ``Accounts``, ``Digests``, ``Generations`` and ``PromptGenerations``
    over one file, which is read again when it changes.

    ``Digests`` works only for lines with a password in clear text.
    """

    def __init__(self, path: Path, *, scheme: str = "CRYPT") -> None:
        """``scheme`` is the scheme of hashes without a prefix ``{SCHEME}``."""
        self._path = path
        self._scheme = scheme
        self._content: _Content | None = None
        self._hashers = passwords.Hashers("passwd-file")
        # Its own threads, so that a file system that hangs blocks no thread that reads mail.
        self._lookups = Threads("passwd-file", _LOOKUPS)
        self._reading = Lock()  # logins that arrive together read a large file once

    async def verify(self, credentials: Credentials) -> UserAccount:
        return await self._hashers.run(self._verify, credentials)

    def _verify(self, credentials: Credentials) -> UserAccount:
        password = credentials.password
        if not passwords.is_possible(password):
            raise AuthenticationFailed("impossible-password")
        name, content = _key(credentials.identity), self._read()
        entry, stored = content.entries.get(name), content.hashes.get(name)
        is_right = schemes.matches(password, stored or content.decoy(name), self._scheme)
        if entry is None:
            raise AuthenticationFailed("unknown-user")
        if entry.is_refused:
            raise AuthenticationFailed("line-refused")
        if not is_right or stored is None:  # a decoy may match, and must not admit the user
            raise AuthenticationFailed("bad-password")
        if credentials.authorization and _key(credentials.authorization) != name:
            raise AuthenticationFailed("authorization")  # RFC 4616 §2
        return entry.account

    async def digested(self, shown: Digest) -> UserAccount:
        return await self._lookups.run(partial(self._digested, shown))

    def _digested(self, shown: Digest) -> UserAccount:
        name, content = _key(shown.identity), self._read()
        entry = content.entries.get(name)
        stored = entry.stored if entry and not entry.is_refused else content.decoy(name)
        secret = schemes.secret(stored, self._scheme)
        octets = shown.time_stamp.encode() + (secret or _UNKNOWN)
        made = md5(octets, usedforsecurity=False).hexdigest()
        digest = shown.digest.encode("utf-8", "surrogatepass")
        is_right = hmac.compare_digest(made.encode(), digest)
        if entry is None:
            raise AuthenticationFailed("unknown-user")
        if entry.is_refused:
            raise AuthenticationFailed("line-refused")
        if secret is None:
            raise AuthenticationFailed("no-plain-password")
        if not is_right:
            raise AuthenticationFailed("bad-password")
        return entry.account

    async def account(self, identity: str) -> UserAccount | None:
        entry = (await self._content_now()).entries.get(_key(identity))
        return entry.account if entry else None

    def has_password(self, identity: str) -> bool:
        """Whether any password can match; False if the user is unknown or refused, or the hash is
        locked, malformed or too costly.

        Raises:
            BackendUnavailable: the file cannot be read.
        """
        return _key(identity) in self._read().hashes

    async def generation(self, identity: str) -> bytes:
        del identity  # a change of the file may concern any user
        return (await self._content_now()).digest

    def generation_now(self, identity: str) -> bytes | None:
        del identity
        known = self._current_or_none()
        return known.digest if known else None

    def read_ahead(self) -> None:
        """Read the file before it is needed; a later login reports errors in it."""
        with suppress(RestanteError):
            self._read()

    def close(self) -> None:
        self._hashers.close()

    # The file.

    async def _content_now(self) -> _Content:
        """Return the current content; a file that has changed is read in a thread."""
        known = self._current_or_none()  # one stat, which costs less than a thread
        return await self._lookups.run(self._read) if known is None else known

    def _current_or_none(self) -> _Content | None:
        with suppress(OSError):  # ``_read`` reports the reason
            return self._current()
        return None

    def _read(self) -> _Content:
        """Return the current content.

        Raises:
            BackendUnavailable: the file cannot be read, or is being written during several tries.
        """
        with self._reading:
            try:
                if (known := self._current()) is not None:
                    return known
                self._content = self._read_again()
            except OSError as error:
                raise BackendUnavailable(f"{self._path}: {error.strerror}") from error
            return self._content

    def _current(self) -> _Content | None:
        """Return the content read before if the file has certainly not changed since."""
        known = self._content
        is_current = known and known.is_settled and known.stamp == _stamp(os.stat(self._path))
        return known if is_current else None

    def _read_whole(self) -> tuple[bytes, _Stamp]:
        """Read the file.  If it changes during the read, read it again."""
        for _ in range(_ATTEMPTS):
            with open_regular(self._path) as file:
                stamp = _stamp(os.fstat(file.fileno()))
                octets = file.read(_MAX_FILE + 1)
                is_whole = stamp == _stamp(os.fstat(file.fileno())) and len(octets) == stamp.size
            if len(octets) > _MAX_FILE:
                raise BackendMisconfigured(f"{self._path}: is larger than {_MAX_FILE} octets")
            if is_whole:
                return octets, stamp
            time.sleep(_PAUSE)
        raise BackendUnavailable(f"{self._path}: is being written")

    def _read_again(self) -> _Content:
        octets, stamp = self._read_whole()
        is_settled = time.time() - stamp.modified / 1e9 > _SETTLED
        digest = sha256(octets).digest()
        if self._content and self._content.digest == digest:
            return replace(self._content, stamp=stamp, is_settled=is_settled)
        entries = self._parse(octets)
        hashes = {
            name: each.stored
            for name, each in entries.items()
            if not each.is_refused and schemes.is_sane(each.stored, self._scheme)
        }
        return _Content(entries, hashes, tuple(hashes.values()), digest, stamp, is_settled)

    def review(self) -> tuple[list[UserAccount], list[str]]:
        """Return the users of lines that are not refused, and the problems of the file.

        There is one sentence for each line that is refused and each hash that is never computed.

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
            f"{self._path}: no password matches the hash of {name}: malformed, or too costly"
            for name, entry in entries.items()
            if len(entry.stored) > _LOCKED and not schemes.is_sane(entry.stored, self._scheme)
        ]
        return [each.account for each in entries.values() if not each.is_refused], problems

    def _parse(self, octets: bytes) -> dict[str, _Entry]:
        def warn(line: int, reason: str) -> None:
            fields = {"file": str(self._path), "line": line, "reason": reason}
            _log.warning("line refused", extra={"fields": fields})

        return _parse_all(octets, warn)


def _parse_all(octets: bytes, warn: Callable[[int, str], None]) -> dict[str, _Entry]:
    """Parse all lines; a malformed line affects only its own user.

    That user is refused and not unknown, because otherwise the next back end might admit a user
    that this file was meant to exclude.
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
            warn(number, "names the same user as another line; neither may log in")
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
    fields = rest.split(":", 6)  # the password, five of passwd(5), extra fields
    if (meant := _from_latin_1(name)) != name:
        text = "begins with a name that is not UTF-8; convert the file with iconv"
        raise _BadLine(text, _meant(meant))
    try:
        user = check_name(name)
    except BadName:
        raise _BadLine("begins with a name that no user can have", _meant(name)) from None
    if not schemes.is_known(fields[0]):
        raise _BadLine("has no password hash of a known scheme", user)
    if any(map(_is_restriction, fields[1:6])):
        raise _BadLine("has an extra field in the place of another; six colons precede it", user)
    account = UserAccount(user, user)
    for extra in fields[6].split() if len(fields) > 6 else []:
        key, _, value = extra.partition("=")
        if key == "nologin":
            account = replace(account, is_enabled=False)
        elif key == "allow_nets" and not account.networks:
            account = replace(account, networks=tuple(_networks(value, user)))
        elif not key.startswith(_HARMLESS):
            raise _BadLine("has an unknown extra field", user)
    return _Entry(account, fields[0])


def _meant(name: str) -> str:
    """Return the user that a malformed name probably means: without white space and invisible
    characters, such as a byte order mark, which editors and web pages add."""
    return _key("".join(each for each in name if unicodedata.category(each) != "Cf").strip())


def _from_latin_1(name: str) -> str:
    """Decode a name that is not UTF-8 as Latin-1, which older editors and systems write; return any
    other name unchanged."""
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
