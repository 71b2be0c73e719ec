"""The ledger: which messages of which account were taken (SQLite; docs/decisions/0100-ledger.md).

Durability: every call is one transaction that is on disk when it returns.  What was taken is never
forgotten: a listing that is short today must not make tomorrow's mail look new.
Security: holds unique-ids, sizes and digests; no password, no text of a message.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..client.sinks import fsync_directory
from ..errors import ConfigurationError, LoginWithheld, TemporaryFailure
from ..posix import fcntl
from .elapsed import Reading, advance
from .fingerprint import Content
from .plan import Aside, Doubt, Proved, Record, Taken, Used
from .schema import prepare

_PATIENCE = 10.0  # seconds for another account's collector to finish writing
_AT_ONCE = 500  # unique-ids in one query
OF_ACCOUNTS = ("messages", "sessions", "runs", "health", "told", "accounts", "removals", "aside")
"""Tables of which each row belongs to an account."""
_UNLISTED = (
    "account = ? AND taken_at NOTNULL AND NOT is_gone"
    " AND (NOT expected OR substr(key, 1, 1) = x'20')"  # no listing ever shows such a key
)
_HOUR, _DAY, _WEEK = 3600.0, 86_400.0, 604_800.0  # seconds
_PENANCE = 600.0  # seconds after a login was refused; twice as long after each further one


class Stored(NamedTuple):
    """A message that is at its destination, or a stub."""

    key: str
    size: int
    """Octets, as the server announced them."""
    content: Content | None
    """None: it was there already, and was not compared."""
    identity: str = ""
    """The name by which the destination knows it; empty: the usual one."""
    is_short: bool = False
    """Much less came than was announced."""
    is_gone: bool = False
    """It stands on no server, as a stub does."""
    replaces: str = ""
    """The identity of another message that was known under this key; empty: of none."""
    moved_from: str = ""
    """The key under which it was known before; empty: this one."""


class Removal(NamedTuple):
    """A deletion that was asked for."""

    key: str
    at: float
    """By the ledger's clock."""
    why: str
    evidence: str
    answer: str
    """``removed``, ``not known`` or what the server said; empty: there is none yet."""


def earlier_key(key: str, digest: bytes) -> str:
    """Under which a message is known whose unique-id names another one now."""
    return f" was {digest.hex()} {key}"


class AccountBusy(TemporaryFailure):
    """Another collector works on this account."""

    def __init__(self, account: str) -> None:
        super().__init__(f"another collector is working on the account {account}")


class Ledger:
    """What was taken, for all accounts of one person or machine.

    All calls block; any thread may call.  Each raises TemporaryFailure when the file cannot be
    read or written now, and ConfigurationError when it is no ledger of ours.
    """

    def __init__(self, path: Path | None) -> None:
        """``None`` is a ledger in memory, which locks nothing and is forgotten when closed."""
        self._path = path
        self._turn = threading.RLock()  # one transaction at a time, whatever the thread
        with _errors():
            is_new = path is not None and _create(path)
            # Committed means on disk: FULL syncs the log at each commit.
            self._database = sqlite3.connect(
                path or ":memory:",
                timeout=_PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                prepare(self._database, path)
            except BaseException:
                self._database.close()
                raise
            if path is not None and is_new:
                fsync_directory(path.parent)

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def alone(self, account: str) -> Iterator[None]:
        """For as long as the context lasts no other process collects this account.

        Raises:
            AccountBusy: one does now.
        """
        if self._path is None:
            yield
            return
        with _errors():
            lock = _Lock(self._path, account)
        with closing(lock):
            yield

    def known(self, account: str, keys: Iterable[str]) -> dict[str, Taken]:
        """What is known of these messages, by key."""
        columns = (
            "key, size, taken_at, doubt, seen_again,"
            " taken_at NOTNULL AND digest IS NULL, was_held, is_gone, expected"
        )
        found = {}
        for key, size, at, doubt, again, *facts in self._of_keys(columns, account, keys):
            is_adopted, was_held, is_gone, is_expected = map(bool, facts)
            found[_text(key)] = Taken(
                size,
                at,
                is_adopted=is_adopted,
                was_held=was_held,
                is_gone=is_gone,
                is_expected=is_expected,
                doubt=Doubt(doubt) if doubt else Doubt.NONE,
                seen_again=again,
            )
        return found

    def records(self, account: str, keys: Iterable[str]) -> dict[str, Record]:
        """What was stored under these keys; nothing of what was only adopted."""
        columns = "key, size, digest, body, likeness, identity, taken_at"
        return {
            _text(key): Record(size, Content(digest, *rest), _text(identity or b""))
            for key, size, digest, *rest, identity, at in self._of_keys(columns, account, keys)
            if digest and at is not None
        }

    def _of_keys(
        self, columns: str, account: str, keys: Iterable[str]
    ) -> Iterator[tuple[Any, ...]]:
        left = map(_octets, keys)
        while some := list(islice(left, _AT_ONCE)):
            marks = ",".join("?" * len(some))
            with self._turn, _errors():
                rows = self._database.execute(
                    f"SELECT {columns} FROM messages WHERE account = ? AND key IN ({marks})",
                    (account, *some),
                ).fetchall()
            yield from rows

    def identities(self, account: str) -> dict[str, str]:
        """Names at the destination, by key, of the messages that do not have the usual one."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT key, identity FROM messages WHERE account = ? AND identity IS NOT NULL",
                (account,),
            ).fetchall()
        return {_text(key): _text(identity) for key, identity in rows}

    def expected(self, account: str) -> int:
        """How many messages the server should list under the unique-ids that we know."""
        return self._count(account, "expected AND substr(key, 1, 1) <> x'20'")

    def on_server(self, account: str) -> int:
        """How many messages were taken, and are still there as far as we know."""
        return self._count(account, "expected")

    def _count(self, account: str, which: str) -> int:
        with self._turn, _errors():
            (count,) = self._database.execute(
                "SELECT count(*) FROM messages"
                f" WHERE account = ? AND taken_at IS NOT NULL AND NOT is_gone AND {which}",
                (account,),
            ).fetchone()
        return int(count)

    def has_content(self, account: str, content: Content) -> bool:
        """Whether this message was taken, under whatever unique-id."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT 1 FROM messages"
                " WHERE account = ? AND digest = ? AND taken_at IS NOT NULL"
                " UNION ALL SELECT 1 FROM messages"
                " WHERE account = ? AND body = ? AND likeness = ? AND taken_at IS NOT NULL LIMIT 1",
                (account, content.digest, account, content.body, content.likeness),
            ).fetchone()
        return row is not None

    def unlisted(self, account: str) -> bool:
        """Whether messages were taken that the last whole listing did not show."""
        with self._turn, _errors():
            row = self._database.execute(
                f"SELECT 1 FROM messages WHERE {_UNLISTED} LIMIT 1", (account,)
            ).fetchone()
        return row is not None

    def equal(self, account: str, content: Content, *, is_unlisted: bool) -> list[str]:
        """Keys of what was taken of this content and is not known to be gone; ``is_unlisted``:
        only of what the last whole listing did not show."""
        of = _UNLISTED if is_unlisted else "account = ? AND taken_at NOTNULL AND NOT is_gone"
        with self._turn, _errors():
            rows = self._database.execute(
                f"SELECT key FROM messages WHERE {of} AND digest = ? UNION"
                f" SELECT key FROM messages WHERE {of} AND body = ? AND likeness = ?",
                (account, content.digest, account, content.body, content.likeness),
            ).fetchall()
        return [_text(key) for (key,) in rows]

    def moved(self, account: str, messages: Iterable[Stored]) -> None:
        """These have other unique-ids than before; all that is known of them stays known."""
        with self.transaction():
            for each in messages:
                if each.replaces:
                    self._keep_earlier(account, each)
                key = _octets(each.key)
                self._database.execute(
                    "DELETE FROM messages WHERE account = ? AND key = ?", (account, key)
                )
                self._database.execute(
                    "UPDATE messages SET key = ? WHERE account = ? AND key = ?",
                    (key, account, _octets(each.moved_from)),
                )

    def likenesses(self, account: str) -> set[bytes]:
        """Of the messages that the server should list."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT likeness FROM messages WHERE account = ? AND likeness NOTNULL"
                " AND taken_at NOTNULL AND NOT is_gone AND expected",
                (account,),
            ).fetchall()
        return {likeness for (likeness,) in rows}

    def intend(self, account: str, messages: Iterable[tuple[str, int]]) -> None:
        """These, by key and announced size, are about to be stored."""
        rows = [(account, _octets(key), size) for key, size in messages]
        with self.transaction():
            self._database.executemany(
                "INSERT INTO messages (account, key, size) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def took(self, account: str, messages: Iterable[Stored], at: float) -> None:
        """These are durable at their destination; ``at`` by the ledger's clock.

        What another message under the same key has left is kept under ``earlier_key``.
        """
        stored = list(messages)
        rows = [
            (
                *(account, _octets(each.key), each.size, *_fingerprints(each.content)),
                *(_octets(each.identity) if each.identity else None, at, each.is_gone),
                Doubt.SHORT if each.is_short else Doubt.NONE,
            )
            for each in stored
        ]
        with self.transaction():
            for each in stored:
                if each.replaces:
                    self._keep_earlier(account, each)
            self._database.executemany(
                "INSERT OR REPLACE INTO messages (account, key, size, digest, body, likeness,"
                " identity, taken_at, is_gone, doubt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def _keep_earlier(self, account: str, later: Stored) -> None:
        """So that its octets are known if they come again."""
        row = self._database.execute(
            "SELECT size, digest, body, likeness, taken_at FROM messages"
            " WHERE account = ? AND key = ? AND digest <> x'' AND taken_at NOTNULL",
            (account, _octets(later.key)),
        ).fetchone()
        if row is not None:
            key = earlier_key(later.key, row[1])
            self._database.execute(
                "INSERT OR REPLACE INTO messages (account, key, size, digest, body, likeness,"
                " taken_at, identity, is_gone, expected) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 0)",
                (account, _octets(key), *row, _octets(later.replaces)),
            )

    def compared(self, account: str, messages: Iterable[Stored], again_at: float | None) -> None:
        """These were fetched, and are what was taken under their keys.

        ``again_at`` is when they were listed again after they were gone, by the ledger's clock;
        None: they were not gone.
        """
        rows = []
        for each in messages:
            digest, *rest = _fingerprints(each.content)
            identity = _octets(each.identity) if each.identity else None
            rows.append((each.size, digest, *rest, identity, again_at, account, _octets(each.key)))
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET size = ?, digest = coalesce(nullif(digest, x''), ?),"
                " body = coalesce(body, ?), likeness = coalesce(likeness, ?),"
                " identity = coalesce(?, identity),"
                " seen_again = coalesce(?, seen_again), is_gone = 0, expected = 1, doubt = ''"
                " WHERE account = ? AND key = ?",
                rows,
            )

    def settled(self, account: str, keys: Iterable[str]) -> None:
        """The headers of these were seen, and are those of what was taken."""
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET doubt = '' WHERE account = ? AND key = ?",
                [(account, _octets(key)) for key in keys],
            )

    def listed(self, account: str, keys: Iterable[str]) -> None:
        """A whole listing showed these; what else was taken is not expected any more."""
        with self.transaction():
            self._database.execute(
                "CREATE TEMPORARY TABLE IF NOT EXISTS listed (key BLOB PRIMARY KEY) WITHOUT ROWID"
            )
            self._database.execute("DELETE FROM temp.listed")
            self._database.executemany(
                "INSERT OR IGNORE INTO temp.listed VALUES (?)", ((_octets(key),) for key in keys)
            )
            self._database.execute(
                "UPDATE messages SET expected = 0 WHERE account = ? AND expected AND NOT is_gone"
                " AND taken_at NOTNULL AND key NOT IN (SELECT key FROM temp.listed)",
                (account,),
            )

    def adopt(self, account: str, messages: Iterable[tuple[str, int]], at: float) -> None:
        """These, by key and size, were taken by other means: they are never deleted there.

        What was taken by us stays as it is.
        """
        rows = [(account, _octets(key), size, at) for key, size in messages]
        with self.transaction():
            self._database.executemany(
                "INSERT INTO messages (account, key, size, taken_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET size = excluded.size, taken_at = excluded.taken_at"
                " WHERE taken_at IS NULL",
                rows,
            )

    def held(self, account: str, keys: Iterable[str], *, is_held: bool) -> None:
        """These wait here for their end, or they do so no more since they were given back."""
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET was_held = ? WHERE account = ? AND key = ?",
                [(is_held, account, _octets(key)) for key in keys],
            )

    def forget(self, account: str) -> int:
        """Everything about an account; returns how many messages."""
        with self.transaction():
            counts = {
                table: self._database.execute(
                    f"DELETE FROM {table} WHERE account = ?", (account,)
                ).rowcount
                for table in OF_ACCOUNTS
            }
        return counts["messages"]

    # Deletions.

    def removing(self, account: str, proved: Iterable[Proved], at: float) -> None:
        """These are about to be marked as deleted; ``at`` by the ledger's clock."""
        with self.transaction():
            self._database.executemany(
                "INSERT INTO removals (account, key, at, why, evidence) VALUES (?, ?, ?, ?, ?)",
                [(account, _octets(each.key), at, each.why, each.evidence) for each in proved],
            )

    def not_removed(self, account: str, keys: Iterable[str], answer: str) -> None:
        """The server would not mark these as deleted."""
        with self.transaction():
            self._answer(account, keys, answer)

    def gone(self, account: str, keys: Iterable[str]) -> None:
        """QUIT has confirmed that these are removed from the server."""
        keys = list(keys)
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET is_gone = 1 WHERE account = ? AND key = ?",
                [(account, _octets(key)) for key in keys],
            )
            self._answer(account, keys, "removed")

    def _answer(self, account: str, keys: Iterable[str], answer: str) -> None:
        self._database.executemany(
            "UPDATE removals SET answer = ? WHERE account = ? AND key = ? AND answer IS NULL",
            [(answer, account, _octets(key)) for key in keys],
        )

    def unanswered(self, account: str) -> None:
        """No session is under way: what became of the deletions without an answer is not known.

        Their unique-ids may name other messages by now.
        """
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT 1 FROM removals WHERE account = ? AND answer IS NULL LIMIT 1", (account,)
            ).fetchone()
        if row is None:
            return
        with self.transaction():
            self._database.execute(
                "UPDATE messages SET doubt = ? WHERE account = ? AND doubt = '' AND key IN"
                " (SELECT key FROM removals WHERE account = ? AND answer IS NULL)",
                (Doubt.ANSWER, account, account),
            )
            self._database.execute(
                "UPDATE removals SET answer = 'not known' WHERE account = ? AND answer IS NULL",
                (account,),
            )

    def removed_since(self, account: str, moment: float) -> int:
        """How many messages were, or may have been, removed from the server since then."""
        with self._turn, _errors():
            (count,) = self._database.execute(
                "SELECT count(*) FROM removals WHERE account = ? AND at >= ?"
                " AND coalesce(answer, 'removed') IN ('removed', 'not known')",
                (account, moment),
            ).fetchone()
        return int(count)

    def removals(self, account: str) -> list[Removal]:
        """All deletions that were ever asked for, the oldest first."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT key, at, why, evidence, coalesce(answer, '') FROM removals"
                " WHERE account = ? ORDER BY number",
                (account,),
            ).fetchall()
        return [Removal(_text(key), *rest) for key, *rest in rows]

    # What is set aside.

    def aside(self, account: str) -> dict[str, Aside]:
        """Messages that could not be taken, by ``aside_key``."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT key, tries, reason, until FROM aside WHERE account = ?", (account,)
            ).fetchall()
        return {_text(key): Aside(*rest) for key, *rest in rows}

    def set_aside(
        self, account: str, key: str, reason: str, now: float, *, is_first: bool
    ) -> Aside:
        """Record that a message could not be taken; ``is_first``: for the first time in this run.

        After one run the next one tries it last; after the second it waits a day, and then longer.
        """
        with self.transaction():
            row = self._database.execute(
                "SELECT tries FROM aside WHERE account = ? AND key = ?", (account, _octets(key))
            ).fetchone()
            tries = row[0] + is_first if row else 1
            wait = 0.0 if tries == 1 else min(_DAY * 2.0 ** min(tries - 2, 30), _WEEK)
            found = Aside(tries, reason, now + wait)
            self._database.execute(
                "INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?, ?)",
                (account, _octets(key), found.tries, found.reason, found.until),
            )
        return found

    def bring_back(self, account: str, keys: Iterable[str]) -> None:
        """These could be taken after all."""
        with self.transaction():
            self._database.executemany(
                "DELETE FROM aside WHERE account = ? AND key = ?",
                [(account, _octets(key)) for key in keys],
            )

    # Sessions.

    def now(self, wall: float) -> float:
        """The ledger's clock (see ``elapsed``), when that of the machine shows ``wall``."""
        with self.transaction():
            row = self._database.execute(
                "SELECT wall, time, pending, pending_since FROM clock"
            ).fetchone()
            last = Reading(*row) if row else None
            reading = advance(last, wall)
            if last is not None and reading.caught_up:
                self._move_stamps(last.pending_since, reading.caught_up)
            self._database.execute(
                "INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?, ?)", tuple(reading)[:4]
            )
        return reading.time

    def _move_stamps(self, since: float, seconds: float) -> None:
        """What happened since then does not get older by this."""
        for table, column, ahead in (
            ("messages", "taken_at", 0.0),
            ("messages", "seen_again", 0.0),
            ("removals", "at", 0.0),
            ("accounts", "limited_until", _DAY),  # after it was set
            ("accounts", "one_by_one_until", _WEEK),
        ):
            self._database.execute(
                f"UPDATE {table} SET {column} = {column} + ? WHERE {column} - ? >= ?",
                (seconds, ahead, since),
            )

    def tried(self, account: str, at: float) -> int:
        """Somebody is about to log in; returns the number of this run, for ``used``."""
        with self.transaction():
            self._database.execute(
                "DELETE FROM runs WHERE account = ? AND used_at <= ?", (account, at - _DAY)
            )
            done = self._database.execute(
                "INSERT INTO runs (account, tried_at, used_at) VALUES (?, ?, ?)", (account, at, at)
            )
            assert done.lastrowid is not None
            return done.lastrowid

    def used(self, run: int, more: Used, at: float) -> None:
        """So much more came from the server."""
        with self.transaction():
            self._database.execute(
                "UPDATE runs SET messages = messages + ?, octets = octets + ?, used_at = ?"
                " WHERE number = ?",
                (more.messages, more.octets, at, run),
            )

    def used_in_a_day(self, account: str, now: float) -> Used:
        """What came in the last day, also in sessions that failed.

        A session counts until a day after its last octet.  A time stamp from the future counts for
        nothing: the clock was put back.
        """
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT coalesce(sum(messages), 0), coalesce(sum(octets), 0) FROM runs"
                " WHERE account = ? AND used_at > ? AND used_at <= ?",
                (account, now - _DAY, now),
            ).fetchone()
        return Used(*row)

    def began(self, account: str, at: float, login_delay: float = 0.0) -> None:
        """A session has logged in; the server wants so many seconds until the next login."""
        with self.transaction():
            self._database.execute(
                "INSERT INTO sessions (account, began_at, login_delay) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET began_at = excluded.began_at,"
                " login_delay = excluded.login_delay, refusals = 0",
                (account, at, login_delay),
            )

    def refused(self, account: str, at: float) -> None:
        """The server has refused the login, for no reason that passes by itself."""
        with self.transaction():
            self._database.execute(
                "INSERT INTO sessions (account, began_at, refusals, refused_at)"
                " VALUES (?, 0, 1, ?) ON CONFLICT DO UPDATE SET refusals = refusals + 1,"
                " refused_at = excluded.refused_at",
                (account, at),
            )

    def withhold(self, account: str, now: float) -> None:
        """
        Raises:
            LoginWithheld: it was refused, and the time until the next try is not over.
        """
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT refusals, refused_at FROM sessions WHERE account = ? AND refusals > 0"
                " AND refused_at <= ?",
                (account, now),
            ).fetchone()
        if row is not None:
            refusals, at = row
            wait = min(_PENANCE * 2.0 ** min(refusals - 1, 30), _DAY)
            if now < at + wait:
                raise LoginWithheld(account, refusals, at + wait - now)

    def succeeded(self, account: str, at: float) -> None:
        """A session has ended as it should."""
        with self.transaction():
            self._database.execute(
                "UPDATE sessions SET succeeded_at = ? WHERE account = ?", (at, account)
            )

    def last_begin(self, account: str) -> float:
        """Of a session, in seconds since the epoch; 0 when there was none."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT began_at FROM sessions WHERE account = ?", (account,)
            ).fetchone()
        return row[0] if row else 0.0

    def may_begin(self, account: str, now: float, logins: int | None = None) -> float:
        """Not before this moment, in seconds since the epoch.

        For LOGIN-DELAY (RFC 2449 §6.5), and for so many ``logins`` in an hour, tried ones counted.
        A time stamp from the future keeps nobody out: the clock was put back.
        """
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT began_at + login_delay FROM sessions WHERE account = ? AND began_at <= ?",
                (account, now),
            ).fetchall()
            if logins is not None:
                rows += self._database.execute(
                    "SELECT tried_at + ? FROM runs WHERE account = ? AND tried_at <= ?"
                    " ORDER BY tried_at DESC LIMIT 1 OFFSET ?",
                    (_HOUR, account, now, logins - 1),
                ).fetchall()
        return max((at for (at,) in rows), default=0.0)

    def last_success(self, account: str) -> float | None:
        """Seconds since the epoch."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT succeeded_at FROM sessions WHERE account = ?", (account,)
            ).fetchone()
        return row[0] if row else None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For questions of other modules; nothing is written."""
        with self._turn, _errors():
            yield self._database

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, and on disk when it is left."""
        with self._turn, _errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def _create(path: Path) -> bool:
    """An empty file for nobody else to read, if there is none; whether it is new."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not path.exists()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return is_new


class _Lock:
    """A lock file beside the ledger; the kernel frees it when the process dies."""

    def __init__(self, ledger: Path, account: str) -> None:
        name = f"{ledger.name}.{account.encode().hex()[:200]}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(ledger.with_name(name), flags, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise AccountBusy(account) from None

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            text = "the ledger is damaged; nothing is fetched or deleted without it"
            raise ConfigurationError(text) from error
        raise TemporaryFailure(f"ledger: {error}") from error
    except OSError as error:
        raise TemporaryFailure(f"ledger: {error.strerror}") from error


def _fingerprints(content: Content | None) -> tuple[bytes | None, ...]:
    if content is None:
        return (b"", None, None)
    return (content.digest, content.body, content.likeness)


def _octets(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
