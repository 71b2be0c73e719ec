"""The embedded user database (SQLite): who may log in, and whose mail intake takes.

Security: names are compared in one normal form (NFC, case folded) at creation and at every
look-up, so two people never have names that are one.  An unknown user costs a login the same work
as a wrong password.  Queries take values as parameters only.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from ..errors import (
    AuthenticationFailed,
    ConfigurationError,
    NoSuchUser,
    RestanteError,
    TemporaryFailure,
    TooBusy,
)
from ..passdb import MAX_PASSWORD, Account, Credentials, Network
from . import passwords

MAX_NAME = 128  # octets of UTF-8 of each part
_VERSION = 1  # of the schema, in user_version
_PATIENCE = 5.0  # seconds for another process to finish writing
_WAITING = 256  # logins that may wait for their turn to be hashed
_SCHEMA = """
CREATE TABLE users (
    name TEXT PRIMARY KEY,
    is_enabled INTEGER NOT NULL DEFAULT 1,
    networks TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE credentials (
    user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    label TEXT NOT NULL,
    hash TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (user, label)
) STRICT;
"""


class NameTaken(RestanteError):
    """A user of that name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"user {name!r} exists already")


class BadName(RestanteError):
    """A name that no user can have."""


class BadPassword(RestanteError):
    """A password that no user can have."""


@dataclass(frozen=True, slots=True)
class User:
    """One row, without its secrets."""

    name: str
    is_enabled: bool
    networks: tuple[Network, ...]
    created_at: float
    """Seconds since the epoch."""


def normalise(name: str) -> str:
    """The one form in which names are stored and looked up."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_name(name: str) -> str:
    """The normal form of a name that a user may have: ``local`` or ``local@domain``.

    Raises:
        BadName: with the reason.
    """
    normal = normalise(name)
    parts = normal.split("@")
    if len(parts) > 2:
        raise BadName("a user's name has at most one @")
    if not normal.isprintable() or " " in normal:  # also: control, bidi, zero-width, surrogates
        raise BadName("a user's name has only printable characters and no space")
    for part in parts:
        if not part or part[0] in ".-" or "/" in part or len(part.encode()) > MAX_NAME:
            raise BadName(
                f"each part of a user's name has 1 to {MAX_NAME} octets, no '/', "
                "and begins neither with '.' nor with '-'"
            )
    return normal


class Users:
    """Implements ``Passdb`` and ``Directory``."""

    def __init__(self, path: Path, *, domains: Collection[str] = ("localhost",)) -> None:
        """``domains``: where a user without one in the name gets mail."""
        self._path = path
        self._domains = {normalise(domain) for domain in domains}
        self._hashers = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "hash")
        self._waiting = 0

    # Administration; all of it blocks.

    def add(self, name: str, password: str, *, networks: Sequence[Network] = ()) -> None:
        """
        Raises:
            BadName, BadPassword, NameTaken: nothing was changed.
        """
        normal, phc = check_name(name), _hash(password)
        with self._open(make=True) as database:
            try:
                database.execute(
                    "INSERT INTO users (name, networks, created_at) VALUES (?, ?, ?)",
                    (normal, " ".join(map(str, networks)), time.time()),
                )
            except sqlite3.IntegrityError:
                raise NameTaken(normal) from None
            database.execute(
                "INSERT INTO credentials VALUES (?, 'password', ?, ?)", (normal, phc, time.time())
            )

    def set_password(self, name: str, password: str) -> None:
        phc = _hash(password)
        self._change(
            "UPDATE credentials SET hash = ? WHERE label = 'password' AND user = ?", phc, name
        )

    def set_enabled(self, name: str, is_enabled: bool) -> None:
        self._change("UPDATE users SET is_enabled = ? WHERE name = ?", int(is_enabled), name)

    def remove(self, name: str) -> None:
        """The maildrop stays where it is."""
        with self._open() as database:
            if not database.execute("DELETE FROM users WHERE name = ?", (_key(name),)).rowcount:
                raise NoSuchUser(name)

    def list(self) -> Sequence[User]:
        """Everybody, by name."""
        with self._open() as database:
            rows = database.execute(
                "SELECT name, is_enabled, networks, created_at FROM users ORDER BY name"
            ).fetchall()
        return [User(name, bool(on), _networks(nets), at) for name, on, nets, at in rows]

    def _change(self, statement: str, value: str | int, name: str) -> None:
        with self._open() as database:
            if not database.execute(statement, (value, _key(name))).rowcount:
                raise NoSuchUser(name)

    # Contracts.

    async def verify(self, credentials: Credentials) -> Account:
        if self._waiting >= _WAITING:
            raise TooBusy("too many logins at once")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._hashers, self._verify, credentials)
        finally:
            self._waiting -= 1

    def _verify(self, credentials: Credentials) -> Account:
        password = credentials.password
        if not _is_possible(password):
            raise AuthenticationFailed("impossible-password")
        key = _key(credentials.identity)
        with self._consult() as database:
            row = database.execute(
                "SELECT is_enabled, networks, hash FROM users JOIN credentials ON user = name"
                " WHERE name = ? AND label = 'password'",
                (key,),
            ).fetchone()
        nobody = (False, "", passwords.nobodys())
        is_enabled, networks, phc = row or nobody
        if not passwords.matches(password, phc) or row is None:
            raise AuthenticationFailed("unknown-user" if row is None else "bad-password")
        if credentials.authorization and _key(credentials.authorization) != key:
            raise AuthenticationFailed("authorization")
        return Account(key, key, is_enabled=bool(is_enabled), networks=_networks(networks))

    async def maildrop_of(self, recipient: str) -> str:
        return await asyncio.to_thread(self._maildrop_of, recipient)

    def _maildrop_of(self, recipient: str) -> str:
        """The whole address, then without its +detail, then without a domain of ours."""
        local, _, domain = _key(recipient).partition("@")
        locals_ = dict.fromkeys([local, local.partition("+")[0]])
        names = [f"{each}@{domain}" if domain else each for each in locals_]
        if domain in self._domains:
            names += locals_
        with self._consult() as database:
            for name in names:
                if database.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone():
                    return name
        raise NoSuchUser(recipient)

    # SQLite.

    @contextmanager
    def _consult(self) -> Iterator[sqlite3.Connection]:
        """For a peer, who learns nothing of what is wrong here, and is neither refused nor
        bounced because a disk is not mounted."""
        if not os.path.exists(self._path):
            raise TemporaryFailure("user database cannot be used")
        try:
            with self._open() as database:
                yield database
        except ConfigurationError as error:
            raise TemporaryFailure("user database cannot be used") from error

    @contextmanager
    def _open(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction.  A database that does not exist has no users."""
        if make and not self._path.exists():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            place = str(self._path) if self._path.exists() else ":memory:"
            database = sqlite3.connect(place, timeout=_PATIENCE)
            try:
                _prepare(database, self._path)
                with database:
                    yield database
            finally:
                database.close()
        except (sqlite3.Error, OSError) as error:
            raise TemporaryFailure("user database cannot be used") from error


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.execute("PRAGMA foreign_keys = ON")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.execute("BEGIN IMMEDIATE")  # another process may be at it too
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            if database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                raise ConfigurationError(f"{path} is a database of another program")
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        database.commit()
    elif version != _VERSION:
        raise ConfigurationError(f"{path} was written by a newer restante")


def _hash(password: str) -> str:
    if not _is_possible(password):
        raise BadPassword(f"a password has 1 to {MAX_PASSWORD} octets and no NUL")
    return passwords.make_hash(password)


def _is_possible(password: str) -> bool:
    octets = password.encode("utf-8", "surrogateescape")
    return 0 < len(octets) <= MAX_PASSWORD and b"\0" not in octets


def _key(name: str) -> str:
    """What to look up; a name that nobody can have becomes one that nobody has."""
    normal = normalise(name)
    return normal if normal.isprintable() else ""


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, text.split()))
