"""Users in a text file, as Dovecot's passwd-file has them: a line each,
``user:{SCHEME}hash:uid:gid:gecos:home:shell:extra fields``.

Security: names are compared in one normal form; lines whose names are one are refused all.  A
line with a field that is not understood is refused, because it may be one that forbids something.
An unknown user costs the work of some line of the file, the same one at each try.  The file
belongs to the administrator: whoever can write it can log in as anybody.
Limits: ``uid``, ``gid``, ``home`` and ``shell`` are not used: where mail lies is the
store's matter.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import md5, sha256
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from ..errors import AuthenticationFailed, BackendUnavailable
from ..passdb import Account, Credentials, Digest, Network
from . import passwords, schemes
from .names import BadName, check_name
from .names import key as _key

_log = logging.getLogger("restante.auth")
_MAX_FILE = 64 * 2**20  # octets
_SETTLED = 2.0  # seconds after which another change moves the time stamp for certain
_HARMLESS = ("userdb_", "event_", "forward_")
_UNKNOWN = b"sixteen octets.."  # in place of a password that nobody can tell
_ATTEMPTS, _PAUSE = 5, 0.01  # times, seconds: for a file that is being written


class _BadLine(Exception):
    """Says what is wrong with a line."""


class _Stamp(NamedTuple):
    """Tells one content of a file from another."""

    modified: int
    """Nanoseconds."""
    size: int
    inode: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line."""

    account: Account
    stored: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Content:
    """What the file said at one moment."""

    entries: dict[str, _Entry]
    digest: bytes
    stamp: _Stamp
    is_settled: bool
    """Whether a later change would have another stamp."""

    def decoy(self, name: str) -> str:
        """A hash to check for somebody who does not exist: to each name its own."""
        if not self.entries:
            return passwords.nobodys()
        stored = [entry.stored for entry in self.entries.values()]
        drawn = hmac.digest(stored[0].encode("utf-8", "surrogateescape"), name.encode(), "sha256")
        return stored[int.from_bytes(drawn) % len(stored)]


class PasswdFile:
    """``Passdb``, ``Accounts``, ``Digests`` and ``Generations`` over one file, read again when it
    changes.

    ``Digests`` only for lines whose password stands in clear.
    """

    def __init__(self, path: Path, *, scheme: str = "CRYPT") -> None:
        """``scheme`` is that of hashes that name none."""
        self._path = path
        self._scheme = scheme
        self._content: _Content | None = None
        self._hashers = passwords.Hashers("passwd-file")

    async def verify(self, credentials: Credentials) -> Account:
        return await self._hashers.run(self._verify, credentials)

    def _verify(self, credentials: Credentials) -> Account:
        password = credentials.password
        if not passwords.is_possible(password):
            raise AuthenticationFailed("impossible-password")
        name, content = _key(credentials.identity), self._read()
        entry = content.entries.get(name)
        stored = entry.stored if entry else content.decoy(name)
        # The decoy may be the hash of this very password.
        if not schemes.matches(password, stored, self._scheme) or entry is None:
            raise AuthenticationFailed("unknown-user" if entry is None else "bad-password")
        if credentials.authorization and _key(credentials.authorization) != name:
            raise AuthenticationFailed("authorization")  # RFC 4616 §2: for oneself only
        return entry.account

    async def digested(self, shown: Digest) -> Account:
        return await asyncio.to_thread(self._digested, shown)

    def _digested(self, shown: Digest) -> Account:
        name, content = _key(shown.identity), self._read()
        entry = content.entries.get(name)
        stored = entry.stored if entry else content.decoy(name)
        secret = schemes.secret(stored, self._scheme)
        octets = shown.time_stamp.encode() + (secret or _UNKNOWN)
        made = md5(octets, usedforsecurity=False).hexdigest()
        digest = shown.digest.encode("utf-8", "surrogatepass")
        is_right = hmac.compare_digest(made.encode(), digest)
        if entry is None:
            raise AuthenticationFailed("unknown-user")
        if secret is None:
            raise AuthenticationFailed("no-plain-password")
        if not is_right:
            raise AuthenticationFailed("bad-password")
        return entry.account

    async def account(self, identity: str) -> Account | None:
        content = await asyncio.to_thread(self._read)
        entry = content.entries.get(_key(identity))
        return entry.account if entry else None

    async def generation(self, identity: str) -> bytes:
        del identity  # a change of the file may be one of anybody's
        return self._read().digest  # in line: as a rule it is one stat

    def close(self) -> None:
        self._hashers.close()

    # The file.

    def _read(self) -> _Content:
        """What the file says now.

        Raises:
            BackendUnavailable: it is not there, or is being written for longer than a moment.
        """
        try:
            known = self._content
            if known and known.is_settled and known.stamp == _stamp(os.stat(self._path)):
                return known
            self._content = self._read_again()
        except OSError as error:
            raise BackendUnavailable(f"{self._path}: {error.strerror}") from error
        return self._content

    def _read_again(self) -> _Content:
        """Whole: what changed while it was read is read again."""
        for _ in range(_ATTEMPTS):
            with open(self._path, "rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                octets = file.read(_MAX_FILE + 1)
                is_whole = stamp == _stamp(os.fstat(file.fileno())) and len(octets) == stamp.size
            if len(octets) > _MAX_FILE:
                raise BackendUnavailable(f"{self._path}: is larger than {_MAX_FILE} octets")
            if is_whole:
                break
            time.sleep(_PAUSE)
        else:
            raise BackendUnavailable(f"{self._path}: is being written")
        is_settled = time.time() - stamp.modified / 1e9 > _SETTLED
        digest = sha256(octets).digest()
        if self._content and self._content.digest == digest:
            return replace(self._content, stamp=stamp, is_settled=is_settled)
        return _Content(self._parse(octets), digest, stamp, is_settled)

    def _parse(self, octets: bytes) -> dict[str, _Entry]:
        """What is wrong with a line shuts out its user, and nobody else."""
        entries: dict[str, _Entry] = {}
        twice = set()
        for number, line in enumerate(octets.decode("utf-8", "surrogateescape").split("\n"), 1):
            line = line.removesuffix("\r")
            if not line.strip() or line.startswith("#"):
                continue
            try:
                entry = _parse(line)
            except _BadLine as error:
                self._warn(number, str(error))
                continue
            name = entry.account.user
            if name in entries:
                self._warn(number, "names a user whom another line names too; neither may log in")
                twice.add(name)
            entries[name] = entry
        for name in twice:
            del entries[name]
        return entries

    def _warn(self, number: int, reason: str) -> None:
        fields = {"file": str(self._path), "line": number, "reason": reason}
        _log.warning("line refused", extra={"fields": fields})


def _stamp(found: os.stat_result) -> _Stamp:
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def _parse(line: str) -> _Entry:
    """
    Raises:
        _BadLine: nobody may log in by it.
    """
    name, _, rest = line.partition(":")
    fields = rest.split(":", 6)  # the password, five that passwd(5) has, extra fields
    try:
        user = check_name(name)
    except BadName:
        raise _BadLine("begins with a name that no user can have") from None
    if not schemes.is_known(fields[0]):
        raise _BadLine("has no password hash of a scheme that is known")
    account = Account(user, user)
    for extra in fields[6].split() if len(fields) > 6 else []:
        key, _, value = extra.partition("=")
        if key == "nologin":
            account = replace(account, is_enabled=False)
        elif key == "allow_nets" and not account.networks:
            account = replace(account, networks=tuple(_networks(value)))
        elif not key.startswith(_HARMLESS):
            raise _BadLine("has an extra field that is not understood")
    return _Entry(account, fields[0])


def _networks(text: str) -> Iterator[Network]:
    for each in text.split(","):
        try:
            yield ip_network(each.strip(), strict=False)
        except ValueError:
            raise _BadLine("allows a network that is none") from None
