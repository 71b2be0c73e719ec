"""The embedded user database (SQLite): the users who may log in and receive mail.

Security: a name is converted to its normal form (NFC, case folded) when a user is created and at
every look-up, so the names of two users never differ only in case or encoding.  A login of an
unknown user takes as long as a login with a wrong password.  Values are passed to queries only as
parameters.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from ipaddress import ip_network
from math import ceil, inf
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from ..errors import (
    AuthenticationFailed,
    ConfigurationError,
    NoSuchUser,
    RestanteError,
)
from ..maildrop import View
from ..passdb import (
    MAX_PASSWORD,
    Credentials,
    MustWait,
    Network,
    Proof,
    ScramSecrets,
    Terms,
    UserAccount,
)
from ..sasl.prepare import saslprep
from ..threads import to_thread
from . import passwords, scram
from .database import ReadOnlyDatabase, temporary_failure, transaction
from .last_use import LastUse
from .names import BadName, check_new_name, normalise, possible_users
from .names import key as _key

MAX_APP_PASSWORDS = 32  # per user; low, because a SCRAM login tries the keys of all of them
_PASSWORD = "password"  # the label of the user's own password
_PERMISSIONS = (
    "is_enabled, networks, needs_tls, mechanisms, is_read_only, login_delay, expire, folders"
)
_ACCOUNT_QUERY = f"SELECT {_PERMISSIONS} FROM users WHERE name = ?"
_GENERATION_QUERY = (
    f"SELECT label, selector, hash, {_PERMISSIONS} FROM users JOIN credentials ON user = name"
    " WHERE name = ? ORDER BY label"
)

_SCRAM_QUERIES = {
    # Each query returns at least one row with the secret, from which the keys of an unknown user
    # are derived.
    digest: "SELECT value, salt, iterations, label, key FROM secrets LEFT JOIN"
    f" (SELECT salt, iterations, label, {digest} AS key FROM users JOIN credentials ON user = name"
    f" WHERE name = ? AND {digest} IS NOT NULL) WHERE secrets.name = 'scram'"
    for digest in ("sha256", "sha1")
}
_PROOF_QUERY = (
    f"SELECT {_PERMISSIONS} FROM users JOIN credentials ON user = name WHERE name = ? AND label = ?"
)


class NameTaken(RestanteError):
    """A user or an app password with this name exists."""

    def __init__(self, name: str, what: str = "user") -> None:
        super().__init__(f"{what} {name!r} already exists")


class NoSuchAppPassword(RestanteError):
    """The user has no app password with this name."""

    def __init__(self, user: str, label: str) -> None:
        super().__init__(f"{user} has no app password {label!r}")


class BadPassword(RestanteError):
    """An invalid password."""


class User(NamedTuple):
    """A user and the user's permissions, without secrets."""

    account: UserAccount
    created_at: float
    """Seconds since the epoch."""

    @property
    def name(self) -> str:
        return self.account.user


class AppPassword(NamedTuple):
    """An app password, without its secret.  Times are seconds since the epoch."""

    label: str
    created_at: float
    used_at: float | None
    """Time of the last login with this password, to the minute; None if it was never used."""
    used_from: str
    """The client's address at the last login; empty for a local client."""
    selector: str = ""
    """The first characters of the password, which identify it."""


class _Column(NamedTuple):
    """The database column of a permission, and how the permission is converted for the column."""

    name: str
    convert: Callable[[Any], object] = lambda value: value


_COLUMNS = {
    "is_enabled": _Column("is_enabled"),
    "networks": _Column("networks", lambda networks: " ".join(map(str, networks))),
    "needs_tls": _Column("needs_tls"),
    "mechanisms": _Column("mechanisms", " ".join),
    "is_read_only": _Column("is_read_only"),
    "login_delay": _Column("login_delay"),
    "expire": _Column("expire"),
    "view": _Column("folders", lambda view: "\n".join(view.folders)),
}
"""The columns by attribute of ``UserAccount``."""


class Users:
    """The user database.

    Implements ``Passdb``, ``Accounts``, ``ImmediateAccounts``, ``ScramKeys``,
    ``ImmediateScramKeys``, ``Directory``, ``Generations``, ``ImmediateGenerations`` and
    ``LastUses``.
    """

    def __init__(self, path: Path, *, domains: Collection[str] = ("localhost",)) -> None:
        """``domains``: mail domains of users whose names contain no domain."""
        self._path = path
        self._domains = {normalise(domain) for domain in domains}
        self._hashers = passwords.Hashers("hash")
        self._last_use = LastUse(path)
        self._reader = ReadOnlyDatabase(path)
        self._settings_reader, self._settings_lock = ReadOnlyDatabase(path), Lock()

    # Administration; all these methods block.

    def add(self, name: str, password: str, *, networks: Sequence[Network] = ()) -> None:
        """Add a user.

        Raises:
            BadName, BadPassword, NameTaken: nothing was changed.
        """
        normal, secrets = check_new_name(name), _make_secrets(password)
        with transaction(self._path, create=True) as database:
            try:
                database.execute(
                    "INSERT INTO users (name, networks, created_at, salt, iterations)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (
                        normal,
                        " ".join(map(str, networks)),
                        time.time(),
                        secrets.salt,
                        secrets.iterations,
                    ),
                )
            except sqlite3.IntegrityError:
                raise NameTaken(normal) from None
            _insert_credential(database, normal, _PASSWORD, "", secrets)

    def set_password(self, name: str, password: str) -> None:
        """Change a user's password; app passwords stay valid.

        Raises:
            NoSuchUser, BadPassword: nothing was changed.
        """
        key = _key(name)
        _check_password(password)
        with transaction(self._path) as database:
            parameters = _salt_and_iterations(database, key)
        secrets = _make_secrets(password, parameters)
        if any(each.selector == passwords.selector(password) for each in self.app_passwords(name)):
            raise BadPassword(
                "the password begins with the same characters as one of this user's app passwords; "
                "choose another password"
            )
        self._change(
            "UPDATE credentials SET hash = ?, sha256 = ?, sha1 = ?, created_at = ?,"
            " used_at = NULL, used_from = NULL WHERE label = 'password' AND user = ?",
            (secrets.phc, secrets.keys.sha256, secrets.keys.sha1, time.time()),
            name,
        )

    def add_app_password(self, name: str, label: str, length: int = passwords.APP_LENGTH) -> str:
        """Add an app password for one device or program, and return it.  Only its hash is stored.

        Raises:
            NoSuchUser, BadName, NameTaken: nothing was changed.
        """
        key, password = _key(name), passwords.generate_app_password(length)
        if label == _PASSWORD or not label.isprintable() or not 0 < len(label.strip()) <= 64:
            raise BadName("the name of an app password must have 1 to 64 printable characters")
        with transaction(self._path) as database:
            parameters = _salt_and_iterations(database, key)
        secrets = _make_secrets(password, parameters)
        with transaction(self._path) as database:
            labels = database.execute("SELECT label FROM credentials WHERE user = ?", (key,))
            if len(labels.fetchall()) > MAX_APP_PASSWORDS:
                raise BadName(f"a user can have at most {MAX_APP_PASSWORDS} app passwords")
            try:
                _insert_credential(database, key, label, passwords.selector(password), secrets)
            except sqlite3.IntegrityError:
                raise NameTaken(label, "app password") from None
        return password

    def app_passwords(self, name: str) -> Sequence[AppPassword]:
        """Return a user's app passwords, sorted by label.

        Raises:
            NoSuchUser: unknown user.
        """
        with transaction(self._path) as database:
            _salt_and_iterations(database, _key(name))
            rows = database.execute(
                "SELECT label, created_at, used_at, used_from, selector FROM credentials"
                " WHERE user = ? AND selector != '' ORDER BY label",
                (_key(name),),
            ).fetchall()
        return [
            AppPassword(label, created_at, used_at, used_from or "", selector)
            for label, created_at, used_at, used_from, selector in rows
        ]

    def revoke(self, name: str, label: str) -> None:
        """Delete an app password, so that no device can log in with it any more.

        Raises:
            NoSuchUser, NoSuchAppPassword: nothing was changed.
        """
        with transaction(self._path) as database:
            _salt_and_iterations(database, _key(name))
            if not database.execute(
                "DELETE FROM credentials WHERE user = ? AND label = ? AND selector != ''",
                (_key(name), label),
            ).rowcount:
                raise NoSuchAppPassword(_key(name), label)

    def permit(
        self, name: str, account: UserAccount, fields: Collection[str] = tuple(_COLUMNS)
    ) -> None:
        """Copy permissions from ``account`` to a user, in one transaction.

        Args:
            fields: attributes of ``UserAccount`` to copy; the others are not written, so that
                simultaneous changes by another process are not lost.

        Raises:
            NoSuchUser: nothing was changed.
        """
        columns = {field: column for field, column in _COLUMNS.items() if field in fields}
        changes = ", ".join(f"{column.name} = ?" for column in columns.values()) or "name = name"
        values = tuple(column.convert(getattr(account, field)) for field, column in columns.items())
        self._change(f"UPDATE users SET {changes} WHERE name = ?", values, name)

    def set_quota(self, name: str, octets: int | None) -> None:
        """Set a user's quota in octets.

        0 means unlimited; None means the setting in the configuration.
        """
        self._change("UPDATE users SET quota = ? WHERE name = ?", (octets,), name)

    def quota(self, name: str) -> int | None:
        """Return a user's own quota in octets, 0 if unlimited, or None if it is not set.

        Raises:
            TemporaryFailure: the database cannot be read now.
        """
        octets = self._setting("quota", name)
        return None if octets is None else int(octets)

    def set_hold(self, name: str, seconds: float | None) -> None:
        """Set the number of seconds for which a user's deleted messages are held.

        Infinity means that the messages are held for ever; None means the setting in the
        configuration.
        """
        stored = -1.0 if seconds == inf else seconds
        self._change("UPDATE users SET hold = ? WHERE name = ?", (stored,), name)

    def hold(self, name: str) -> float | None:
        """Return the number of seconds for which a user's deleted messages are held.

        Returns None if it is not set for this user.

        Raises:
            TemporaryFailure: the database cannot be read now.
        """
        seconds = self._setting("hold", name)
        return inf if seconds is not None and seconds < 0 else seconds

    def _setting(self, column: str, name: str) -> float | None:
        query = f"SELECT {column} FROM users WHERE name = ?"
        try:
            with self._settings_lock:  # several threads share the connection
                rows: Sequence[tuple[float | None]] = self._settings_reader.rows(query, _key(name))
        except FileNotFoundError:
            return None
        except (sqlite3.Error, OSError):
            rows = self._rows_blocking(query, _key(name))
        return rows[0][0] if rows else None

    def set_enabled(self, name: str, is_enabled: bool) -> None:
        self._change("UPDATE users SET is_enabled = ? WHERE name = ?", (is_enabled,), name)

    def remove(self, name: str) -> None:
        """Remove a user, but not the user's mail.

        Raises:
            NoSuchUser: unknown user.
        """
        with transaction(self._path) as database:
            if not database.execute("DELETE FROM users WHERE name = ?", (_key(name),)).rowcount:
                raise NoSuchUser(name)

    def list(self) -> Sequence[User]:
        """Return all users, sorted by name."""
        with transaction(self._path) as database:
            rows = database.execute(
                f"SELECT name, created_at, {_PERMISSIONS} FROM users ORDER BY name"
            ).fetchall()
        return [
            User(_account(name, permissions), created_at) for name, created_at, *permissions in rows
        ]

    def get(self, name: str) -> User:
        """Return one user.

        Raises:
            NoSuchUser: unknown user.
        """
        key = _key(name)
        user = next((each for each in self.list() if each.name == key), None)
        if user is None:
            raise NoSuchUser(name)
        return user

    def announced_terms(self, terms: Terms) -> Terms | None:
        """Return the longest login delay and the shortest expiry of any user.

        ``terms`` are the terms of the server.  Returns None if no user has different terms.
        """
        with transaction(self._path) as database:
            count, delay, expire = database.execute(
                "SELECT count(*), max(login_delay), min(expire) FROM users"
                " WHERE login_delay > 0 OR expire IS NOT NULL"
            ).fetchone()
        if not count:
            return None
        days = [each for each in (expire, terms.expire) if each is not None]
        return Terms(max(ceil(delay), terms.login_delay), min(days, default=None))

    def _change(self, statement: str, values: tuple[object, ...], name: str) -> None:
        with transaction(self._path) as database:
            if not database.execute(statement, (*values, _key(name))).rowcount:
                raise NoSuchUser(name)

    # The methods of the contracts in ``passdb``.

    async def verify(self, credentials: Credentials) -> UserAccount:
        return await self._hashers.run(self._verify, credentials)

    def _verify(self, credentials: Credentials) -> UserAccount:
        password = credentials.password
        if not passwords.is_possible(password):
            raise AuthenticationFailed("impossible-password")
        key = _key(credentials.identity)
        with self._transaction_for_peer() as database:
            row = database.execute(
                f"SELECT label, hash, sha256, {_PERMISSIONS}"
                " FROM users JOIN credentials ON user = name"
                " WHERE name = ? AND selector IN ('', ?) ORDER BY selector DESC LIMIT 1",
                (key, passwords.selector(password)),
            ).fetchone()
        label, phc, keys, *permissions = row or ("", "", None)
        # If the user is unknown or the hash is not sane, a decoy is checked, which takes as long.
        is_sane = passwords.is_sane(phc)
        is_match = passwords.matches(password, phc if is_sane else passwords.decoy_hash())
        if not is_match or not is_sane:
            raise AuthenticationFailed("unknown-user" if row is None else "bad-password")
        account = self._authorize(_account(key, permissions, label), credentials)
        self.used(account, credentials.address)
        if keys is None or not passwords.is_current(phc):
            self._hashers.run_later(partial(self._renew, key, label, phc, password))
        return account

    def _authorize(self, account: UserAccount, login: Credentials | Proof) -> UserAccount:
        """Return the account.

        Raises:
            AuthenticationFailed: the user requests to act for another user (RFC 4616 §2).
        """
        if login.authorization and _key(login.authorization) != account.user:
            raise AuthenticationFailed("authorization")
        return account

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        key = _key(identity)
        return self._scram_secrets(await self._rows(_SCRAM_QUERIES[digest], key), key, digest)

    def scram_now(self, identity: str, digest: str) -> ScramSecrets | None:
        key = _key(identity)
        rows = self._rows_now(_SCRAM_QUERIES[digest], key)
        return None if rows is None else self._scram_secrets(rows, key, digest)

    def _scram_secrets(self, rows: Sequence[Any], key: str, digest: str) -> ScramSecrets:
        # Derived for existing users too, so that the response time does not reveal which users
        # exist.
        decoy = scram.decoy_secrets(rows[0][0], key, digest)
        stored = [row[1:] for row in rows if row[1] is not None]
        if not stored:
            return decoy
        salt, iterations = stored[0][:2]
        return ScramSecrets(
            salt, iterations, tuple(scram.split_keys(row[2], row[3]) for row in stored)
        )

    async def proved(self, proof: Proof) -> UserAccount:
        key = _key(proof.identity)
        return self._proved(await self._rows(_PROOF_QUERY, key, proof.credential), key, proof)

    def proved_now(self, proof: Proof) -> UserAccount | None:
        key = _key(proof.identity)
        rows = self._rows_now(_PROOF_QUERY, key, proof.credential)
        return None if rows is None else self._proved(rows, key, proof)

    def _proved(self, rows: Sequence[Any], key: str, proof: Proof) -> UserAccount:
        if not rows:
            raise AuthenticationFailed("revoked")
        account = self._authorize(_account(key, rows[0], proof.credential), proof)
        self.used(account, proof.address)
        return account

    async def generation(self, identity: str) -> bytes:
        """Return a digest of all data on which the result of ``verify`` for this user depends."""
        return _digest(await self._rows(_GENERATION_QUERY, _key(identity)))

    def generation_now(self, identity: str) -> bytes | None:
        rows = self._rows_now(_GENERATION_QUERY, _key(identity))
        return None if rows is None else _digest(rows)

    async def _rows(self, query: str, *values: str) -> Sequence[Any]:
        """Run a query, in the event loop if possible, because a query rarely has to wait."""
        rows = self._rows_now(query, *values)
        return await to_thread(self._rows_blocking, query, *values) if rows is None else rows

    def _rows_now(self, query: str, *values: str) -> Sequence[Any] | None:
        """Run a query without waiting; return None if another process is writing or on an error."""
        try:
            return self._reader.rows(query, *values)
        except (sqlite3.Error, OSError):
            return None

    def _rows_blocking(self, query: str, *values: str) -> Sequence[Any]:
        with self._transaction_for_peer() as database:
            return database.execute(query, values).fetchall()

    def used(self, account: UserAccount, address: str) -> None:
        self._last_use.record(account.user, account.credential, address)

    def _renew(self, key: str, label: str, old_hash: str, password: str) -> None:
        """Store a hash and keys with the current parameters, unless the password has changed."""
        with suppress(RestanteError):
            with transaction(self._path) as database:
                parameters = _salt_and_iterations(database, key)
            secrets = _make_secrets(password, parameters)
            with transaction(self._path) as database:
                database.execute(
                    "UPDATE credentials SET hash = ?, sha256 = ?, sha1 = ?"
                    " WHERE user = ? AND label = ? AND hash = ?",
                    (secrets.phc, secrets.keys.sha256, secrets.keys.sha1, key, label, old_hash),
                )

    def close(self) -> None:
        """Wait until all changes are written, and close the database."""
        self._hashers.close()
        self._last_use.close()
        self._reader.close()
        self._settings_reader.close()

    async def account(self, identity: str) -> UserAccount | None:
        key = _key(identity)
        for row in await self._rows(_ACCOUNT_QUERY, key):
            return _account(key, row)
        return None

    def account_now(self, identity: str) -> UserAccount | None:
        key = _key(identity)
        rows = self._rows_now(_ACCOUNT_QUERY, key)
        if rows is None:
            raise MustWait
        return _account(key, rows[0]) if rows else None

    async def maildrop_of(self, recipient: str) -> str:
        for name in possible_users(recipient, self._domains):
            if await self._rows("SELECT 1 FROM users WHERE name = ?", name):
                return name
        raise NoSuchUser(recipient)

    # SQLite.

    @contextmanager
    def _transaction_for_peer(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction for a login or a delivery.

        Every error is temporary, so no login is refused and no mail bounces because a disk is not
        mounted.  The error text, which is sent to the peer, contains no details.
        """
        if not os.path.exists(self._path):
            raise temporary_failure(f"{self._path} does not exist; run: restante user add ann")
        try:
            with transaction(self._path) as database:
                yield database
        except ConfigurationError as error:
            raise temporary_failure(str(error)) from error


def _digest(rows: Sequence[Any]) -> bytes:
    return blake2b(repr(rows).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Secrets:
    """The stored values of one password."""

    phc: str
    salt: bytes
    iterations: int
    keys: scram.StoredKeys


def _make_secrets(password: str, salt_and_iterations: tuple[bytes, int] | None = None) -> _Secrets:
    """Compute the stored values of a password, by default with a new salt.

    Raises:
        BadPassword: the password is invalid.
    """
    _check_password(password)
    password = saslprep(password)
    salt, iterations = salt_and_iterations or (os.urandom(scram.SALT), scram.ITERATIONS)
    keys = scram.make_keys(password, salt, iterations)
    return _Secrets(passwords.make_hash(password), salt, iterations, keys)


def _check_password(password: str) -> None:
    if not passwords.is_possible(password):
        raise BadPassword(f"a password must have 1 to {MAX_PASSWORD} octets and no NUL")
    try:
        saslprep(password)
    except AuthenticationFailed as error:
        raise BadPassword(
            "the password contains a character that SASLprep forbids (RFC 4013)"
        ) from error


def _salt_and_iterations(database: sqlite3.Connection, key: str) -> tuple[bytes, int]:
    """Return the salt and the iteration count that all credentials of a user share.

    They are created if they are missing.  See ``ScramSecrets``.

    Raises:
        NoSuchUser: unknown user.
    """
    database.execute(
        "UPDATE users SET salt = randomblob(?), iterations = ? WHERE name = ? AND salt IS NULL",
        (scram.SALT, scram.ITERATIONS, key),
    )
    row: tuple[bytes, int] | None = database.execute(
        "SELECT salt, iterations FROM users WHERE name = ?", (key,)
    ).fetchone()
    if row is None:
        raise NoSuchUser(key)
    return row


def _insert_credential(
    database: sqlite3.Connection, key: str, label: str, selector: str, secrets: _Secrets
) -> None:
    database.execute(
        "INSERT INTO credentials (user, label, hash, created_at, selector, sha256, sha1)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (key, label, secrets.phc, time.time(), selector, secrets.keys.sha256, secrets.keys.sha1),
    )


def _account(key: str, permissions: Sequence[Any], credential: str = _PASSWORD) -> UserAccount:
    is_enabled, networks, needs_tls, mechanisms, is_read_only, delay, expire, folders = permissions
    return UserAccount(
        key,
        key,
        credential,
        is_enabled=bool(is_enabled),
        networks=tuple(map(ip_network, networks.split())),
        needs_tls=bool(needs_tls),
        mechanisms=tuple(mechanisms.split()),
        is_read_only=bool(is_read_only),
        login_delay=delay,
        expire=expire,
        view=View(tuple(folders.splitlines())),
    )
