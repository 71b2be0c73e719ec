"""The ledger: which messages of which account were taken (SQLite; docs/decisions/0100-ledger.md).

Durability: every call is one transaction that is on disk when the call returns.  Taken messages are
never forgotten: an incomplete listing today must not make known mail look new tomorrow.
Security: holds unique-ids, sizes and digests, but no password and no text of a message.
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

# Seconds to wait while the collector of another account writes; a transaction takes milliseconds,
# and a slow disk's sync a second or two.
_PATIENCE = 10.0
_AT_ONCE = 500  # unique-ids in one query; SQLite before 3.32 allows 999 parameters
OF_ACCOUNTS = ("messages", "sessions", "runs", "health", "told", "accounts", "removals", "aside")
"""Names of the tables whose rows each belong to an account."""
_UNLISTED = (
    "account = ? AND taken_at NOTNULL AND NOT is_gone"
    " AND (NOT expected OR substr(key, 1, 1) = x'20')"  # unique-ids have no space (RFC 1939 §7)
)
_HOUR, _DAY, _WEEK = 3600.0, 86_400.0, 604_800.0  # seconds
# Seconds without a login after the server refused one, doubled after each further refusal up to a
# day: a wrong password that is repeated often makes providers lock the account.
_PENANCE = 600.0


class Stored(NamedTuple):
    """A message, or a stub, that is durable at its destination."""

    key: str
    size: int
    """Size in octets as announced by the server."""
    content: Content | None
    """Fingerprints of the octets.  None: the destination had the message already, and it was not
    compared."""
    identity: str = ""
    """The message's name at the destination; empty for the usual name."""
    is_short: bool = False
    """The server sent much less than it announced."""
    is_gone: bool = False
    """No server has this message; true of stubs."""
    replaces: str = ""
    """Identity of the different message that had this key before; empty if there was no other."""
    moved_from: str = ""
    """The key that the message had before; empty if it is unchanged."""


class Removal(NamedTuple):
    """A deletion that was requested from a server."""

    key: str
    at: float
    """When the deletion was requested, in seconds of the ledger's clock."""
    why: str
    """Why the policy no longer kept the message."""
    evidence: str
    """The value of a ``plan.Evidence``."""
    answer: str
    """``removed``, ``not known`` or the server's error; empty before the answer."""


def earlier_key(key: str, digest: bytes) -> str:
    """Return the key of a message whose unique-id names a different message now.

    It begins with a space, which no unique-id contains, so it is never listed.
    """
    return f" was {digest.hex()} {key}"


class AccountBusy(TemporaryFailure):
    """Another process is collecting this account."""

    def __init__(self, account: str) -> None:
        super().__init__(f"another collector is working on the account {account}")


class Ledger:
    """The record of taken messages, for all accounts of one user or machine.

    All calls block, and any thread may call them.  They raise TemporaryFailure when the file cannot
    be read or written now, and ConfigurationError when it is damaged or not a ledger.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the ledger, and create it if it is missing.

        ``None`` makes a ledger in memory, which locks nothing and is lost when closed.
        """
        self._path = path
        self._turn = threading.RLock()  # the threads share one connection: one transaction each
        with _errors():
            is_new = path is not None and _create(path)
            # ``prepare`` sets synchronous=FULL, so the log is synced at each commit.
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
        """Lock the account, so that no other process collects it while the context lasts.

        Raises:
            AccountBusy: another process holds the lock.
        """
        if self._path is None:
            yield
            return
        with _errors():
            lock = _Lock(self._path, account)
        with closing(lock):
            yield

    def known(self, account: str, keys: Iterable[str]) -> dict[str, Taken]:
        """Return what is known of these messages, by key; unknown keys are left out."""
        columns = (
            "key, size, taken_at, doubt, seen_again,"
            " taken_at NOTNULL AND digest IS NULL, was_held, is_gone, expected"
        )
        taken = {}
        for key, size, at, doubt, again, *facts in self._of_keys(columns, account, keys):
            is_adopted, was_held, is_gone, is_expected = map(bool, facts)
            taken[_text(key)] = Taken(
                size,
                at,
                is_adopted=is_adopted,
                was_held=was_held,
                is_gone=is_gone,
                is_expected=is_expected,
                doubt=Doubt(doubt) if doubt else Doubt.NONE,
                seen_again=again,
            )
        return taken

    def records(self, account: str, keys: Iterable[str]) -> dict[str, Record]:
        """Return what was stored under these keys; adopted messages are left out."""
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
        """Return the names at the destination, by key, where they are not the usual ones."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT key, identity FROM messages WHERE account = ? AND identity IS NOT NULL",
                (account,),
            ).fetchall()
        return {_text(key): _text(identity) for key, identity in rows}

    def expected(self, account: str) -> int:
        """Return how many messages the server should list under known unique-ids."""
        return self._count(account, "expected AND substr(key, 1, 1) <> x'20'")

    def on_server(self, account: str) -> int:
        """Return how many taken messages should still be on the server."""
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
        """Return whether a message with this content was taken, under any unique-id."""
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
        """Return whether the last complete listing lacked messages that were taken."""
        with self._turn, _errors():
            row = self._database.execute(
                f"SELECT 1 FROM messages WHERE {_UNLISTED} LIMIT 1", (account,)
            ).fetchone()
        return row is not None

    def equal(self, account: str, content: Content, *, is_unlisted: bool) -> list[str]:
        """Return the keys of taken messages with this content that may still be on the server.

        With ``is_unlisted`` only those that the last complete listing lacked.
        """
        of = _UNLISTED if is_unlisted else "account = ? AND taken_at NOTNULL AND NOT is_gone"
        with self._turn, _errors():
            rows = self._database.execute(
                f"SELECT key FROM messages WHERE {of} AND digest = ? UNION"
                f" SELECT key FROM messages WHERE {of} AND body = ? AND likeness = ?",
                (account, content.digest, account, content.body, content.likeness),
            ).fetchall()
        return [_text(key) for (key,) in rows]

    def moved(self, account: str, messages: Iterable[Stored]) -> None:
        """Record the new unique-ids of messages, each with its key in ``moved_from`` until now.

        Everything known about them moves to the new key.
        """
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
        """Return the likenesses of the messages that the server should list."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT likeness FROM messages WHERE account = ? AND likeness NOTNULL"
                " AND taken_at NOTNULL AND NOT is_gone AND expected",
                (account,),
            ).fetchall()
        return {likeness for (likeness,) in rows}

    def intend(self, account: str, messages: Iterable[tuple[str, int]]) -> None:
        """Record messages, as keys with announced sizes, that are about to be stored.

        After a crash the next run knows by this which messages the destination may have already.
        """
        rows = [(account, _octets(key), size) for key, size in messages]
        with self.transaction():
            self._database.executemany(
                "INSERT INTO messages (account, key, size) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def took(self, account: str, messages: Iterable[Stored], at: float) -> None:
        """Record messages that are durable at their destination, at ``at`` by the ledger's clock.

        The record of a different message that had the same key is kept under ``earlier_key``.
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
        """Keep the record of the message that had this key before, to recognise its octets."""
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
        """Record that these messages were fetched and equal those taken under their keys.

        ``again_at`` is when they were listed again after a deletion, by the ledger's clock; None if
        they were never gone.
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
        """Remove the doubt about these messages: their headers are those of the taken ones."""
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET doubt = '' WHERE account = ? AND key = ?",
                [(account, _octets(key)) for key in keys],
            )

    def listed(self, account: str, keys: Iterable[str]) -> None:
        """Record a complete listing; taken messages that it lacks are no longer expected."""
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
        """Record messages, as keys with sizes, that another program took.

        They are never deleted on the server, as their octets were never seen.  Messages that were
        taken by restante stay as they are.
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
        """Record whether these messages, deleted by the user, are in ``held/`` now."""
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET was_held = ? WHERE account = ? AND key = ?",
                [(is_held, account, _octets(key)) for key in keys],
            )

    def forget(self, account: str) -> int:
        """Forget everything about an account, and return the number of its messages."""
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
        """Record messages that are about to be marked as deleted, ``at`` by the ledger's clock.

        After a crash their unique-ids are in doubt, since QUIT may have been carried out.
        """
        with self.transaction():
            self._database.executemany(
                "INSERT INTO removals (account, key, at, why, evidence) VALUES (?, ?, ?, ?, ?)",
                [(account, _octets(each.key), at, each.why, each.evidence) for each in proved],
            )

    def not_removed(self, account: str, keys: Iterable[str], answer: str) -> None:
        """Record the error with which the server refused to mark these as deleted."""
        with self.transaction():
            self._answer(account, keys, answer)

    def gone(self, account: str, keys: Iterable[str]) -> None:
        """Record that QUIT confirmed the deletion of these messages on the server."""
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
        """Mark deletions that are still without an answer as unknown.

        Call this only while no session is open.  The unique-ids of these messages may name
        different messages by now, so they become doubtful.
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
        """Return how many messages were, or may have been, deleted since ``moment``."""
        with self._turn, _errors():
            (count,) = self._database.execute(
                "SELECT count(*) FROM removals WHERE account = ? AND at >= ?"
                " AND coalesce(answer, 'removed') IN ('removed', 'not known')",
                (account, moment),
            ).fetchone()
        return int(count)

    def removals(self, account: str) -> list[Removal]:
        """Return all deletions that were ever requested, the oldest first."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT key, at, why, evidence, coalesce(answer, '') FROM removals"
                " WHERE account = ? ORDER BY number",
                (account,),
            ).fetchall()
        return [Removal(_text(key), *rest) for key, *rest in rows]

    # What is set aside.

    def aside(self, account: str) -> dict[str, Aside]:
        """Return the messages that could not be taken, by ``aside_key``."""
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT key, tries, reason, until FROM aside WHERE account = ?", (account,)
            ).fetchall()
        return {_text(key): Aside(*rest) for key, *rest in rows}

    def set_aside(
        self, account: str, key: str, reason: str, now: float, *, is_first: bool
    ) -> Aside:
        """Record that a message could not be taken; ``is_first`` for the first time in this run.

        After the first such run the next one tries the message last.  After the second it waits for
        a day, then twice as long each time, up to a week.
        """
        with self.transaction():
            row = self._database.execute(
                "SELECT tries FROM aside WHERE account = ? AND key = ?", (account, _octets(key))
            ).fetchone()
            tries = row[0] + is_first if row else 1
            # The exponent is bounded first, since a float overflows at 1024.
            wait = 0.0 if tries == 1 else min(_DAY * 2.0 ** min(tries - 2, 30), _WEEK)
            aside = Aside(tries, reason, now + wait)
            self._database.execute(
                "INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?, ?)",
                (account, _octets(key), aside.tries, aside.reason, aside.until),
            )
        return aside

    def bring_back(self, account: str, keys: Iterable[str]) -> None:
        """Remove these from the messages set aside: they could be taken."""
        with self.transaction():
            self._database.executemany(
                "DELETE FROM aside WHERE account = ? AND key = ?",
                [(account, _octets(key)) for key in keys],
            )

    # Sessions.

    def now(self, wall: float) -> float:
        """Return the time by the ledger's clock (see ``elapsed``).

        ``wall`` is the machine's clock, in seconds since the epoch.
        """
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
        """Move time stamps from ``since`` on forward, so that these events do not become older."""
        for table, column, ahead in (
            ("messages", "taken_at", 0.0),
            ("messages", "seen_again", 0.0),
            ("removals", "at", 0.0),
            ("accounts", "limited_until", _DAY),  # is set to a day after the event
            ("accounts", "one_by_one_until", _WEEK),
        ):
            self._database.execute(
                f"UPDATE {table} SET {column} = {column} + ? WHERE {column} - ? >= ?",
                (seconds, ahead, since),
            )

    def tried(self, account: str, at: float) -> int:
        """Record a login that is about to be tried, and return its run number for ``used``."""
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
        """Add what the run received from the server."""
        with self.transaction():
            self._database.execute(
                "UPDATE runs SET messages = messages + ?, octets = octets + ?, used_at = ?"
                " WHERE number = ?",
                (more.messages, more.octets, at, run),
            )

    def used_in_a_day(self, account: str, now: float) -> Used:
        """Return what was received in the last day, including sessions that failed.

        A session counts until a day after its last octet.  Time stamps in the future are ignored:
        the clock was set back.
        """
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT coalesce(sum(messages), 0), coalesce(sum(octets), 0) FROM runs"
                " WHERE account = ? AND used_at > ? AND used_at <= ?",
                (account, now - _DAY, now),
            ).fetchone()
        return Used(*row)

    def began(self, account: str, at: float, login_delay: float = 0.0) -> None:
        """Record a login; ``login_delay`` is the server's minimum until the next, in seconds."""
        with self.transaction():
            self._database.execute(
                "INSERT INTO sessions (account, began_at, login_delay) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET began_at = excluded.began_at,"
                " login_delay = excluded.login_delay, refusals = 0",
                (account, at, login_delay),
            )

    def refused(self, account: str, at: float) -> None:
        """Record a refused login whose cause is permanent, such as a wrong password."""
        with self.transaction():
            self._database.execute(
                "INSERT INTO sessions (account, began_at, refusals, refused_at)"
                " VALUES (?, 0, 1, ?) ON CONFLICT DO UPDATE SET refusals = refusals + 1,"
                " refused_at = excluded.refused_at",
                (account, at),
            )

    def withhold(self, account: str, now: float) -> None:
        """Check that the account may log in again after a refused login.

        Raises:
            LoginWithheld: the waiting time after the refusal is not over.
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
        """Record a session that ended without an error."""
        with self.transaction():
            self._database.execute(
                "UPDATE sessions SET succeeded_at = ? WHERE account = ?", (at, account)
            )

    def last_begin(self, account: str) -> float:
        """Return when the last session began, in seconds since the epoch; 0 if there was none."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT began_at FROM sessions WHERE account = ?", (account,)
            ).fetchone()
        return row[0] if row else 0.0

    def may_begin(self, account: str, now: float, logins: int | None = None) -> float:
        """Return the earliest time of the next login, in seconds since the epoch.

        It respects LOGIN-DELAY (RFC 2449 §6.5), and at most ``logins`` in an hour, including
        attempts that failed.  Time stamps in the future are ignored: the clock was set back.
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
        """Return when the last successful session ended, in seconds since the epoch."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT succeeded_at FROM sessions WHERE account = ?", (account,)
            ).fetchone()
        return row[0] if row else None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give other modules the database for queries; they must not write."""
        with self._turn, _errors():
            yield self._database

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction: all or nothing, and on disk when the block ends."""
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
    """Create an empty file that only its owner can read, if missing; return whether it is new."""
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
            text = "the ledger is damaged; without it nothing can be fetched or deleted"
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
