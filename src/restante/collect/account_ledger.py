"""The ledger of one account: sessions, and messages collected, deleted or set aside.

Durability: every call is one transaction that is on disk when the call returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

from ..errors import LoginWithheld
from .fingerprint import Content
from .ledger_file import LedgerFile
from .plan import Collected, Doubt, Proof, Record, SetAside, Used

_MAX_KEYS = 500  # keys in one query; SQLite before 3.32 allows 999 parameters
ACCOUNT_TABLES = ("messages", "sessions", "runs", "health", "told", "accounts", "removals", "aside")
"""Names of the tables in which every row belongs to one account."""
_UNLISTED = (
    "account = ? AND taken_at NOTNULL AND NOT is_gone"
    # A key with a space is not a unique-id (RFC 1939 §7), so the server does not list it.
    " AND (NOT expected OR substr(key, 1, 1) = x'20')"
)
_HOUR, _DAY, _WEEK = 3600.0, 86_400.0, 604_800.0  # seconds
# Seconds to wait after the server has refused a login.  The time is doubled after each further
# refusal, up to a day, because providers lock accounts after many wrong passwords.
_REFUSAL_DELAY = 600.0


class Stored(NamedTuple):
    """A message, or a stub, that is durable at its destination."""

    key: str
    size: int
    """Size in octets as announced by the server."""
    content: Content | None
    """Fingerprints of the octets.  None: the destination already had the message, so it was neither
    downloaded nor compared."""
    identity: str = ""
    """The message's name at the destination; empty for the usual name."""
    is_short: bool = False
    """Whether the server sent much less than it announced."""
    is_gone: bool = False
    """Whether no server has this message, which is the case for stubs."""
    replaces: str = ""
    """Identity of a different message that had this key before; empty if there was none."""
    moved_from: str = ""
    """The key that the message had before; empty if the key has not changed."""


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
    """``removed``, ``not known`` or the server's error; empty before the server's response."""


def earlier_key(key: str, digest: bytes) -> str:
    """Return the key of a message whose unique-id now belongs to a different message.

    The key begins with a space, which no unique-id contains, so no server lists it.
    """
    return f" was {digest.hex()} {key}"


class AccountLedger:
    """The record of one account's messages and sessions; see ``Ledger.of``.

    All methods block and are thread-safe.  They raise the errors of ``Ledger``.
    """

    def __init__(self, file: LedgerFile, name: str) -> None:
        """``name`` is the account's name in the configuration."""
        self.name = name
        self._file = file

    def alone(self) -> AbstractContextManager[None]:
        """Lock the account, so that no other process collects it while the context lasts.

        Raises:
            AccountBusy: another process holds the lock.
        """
        return self._file.lock(self.name)

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Yield the database for queries about this account; the block must not write."""
        return self._file.reading()

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Run the block as one transaction: all or nothing, and on disk when the block ends."""
        return self._file.transaction()

    def known(self, keys: Iterable[str]) -> dict[str, Collected]:
        """Return the state of these messages by key; unknown keys are omitted."""
        columns = (
            "key, size, taken_at, doubt, seen_again,"
            " taken_at NOTNULL AND digest IS NULL, was_held, is_gone, expected"
        )
        collected = {}
        for key, size, at, doubt, again, *flags in self._select(columns, keys):
            is_adopted, was_held, is_gone, is_expected = map(bool, flags)
            collected[_text(key)] = Collected(
                size,
                at,
                is_adopted=is_adopted,
                was_held=was_held,
                is_gone=is_gone,
                is_expected=is_expected,
                doubt=Doubt(doubt) if doubt else Doubt.NONE,
                seen_again=again,
            )
        return collected

    def records(self, keys: Iterable[str]) -> dict[str, Record]:
        """Return the records of stored messages by key; adopted messages have no record."""
        columns = "key, size, digest, body, likeness, identity, taken_at"
        return {
            _text(key): Record(size, Content(digest, *rest), _text(identity or b""))
            for key, size, digest, *rest, identity, at in self._select(columns, keys)
            if digest and at is not None
        }

    def _select(self, columns: str, keys: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        remaining = map(_octets, keys)
        while block := list(islice(remaining, _MAX_KEYS)):
            placeholders = ",".join("?" * len(block))
            with self.reading() as database:
                rows = database.execute(
                    f"SELECT {columns} FROM messages WHERE account = ? AND key IN ({placeholders})",
                    (self.name, *block),
                ).fetchall()
            yield from rows

    def identities(self) -> dict[str, str]:
        """Return, by key, the names at the destination that differ from the usual names."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT key, identity FROM messages WHERE account = ? AND identity IS NOT NULL",
                (self.name,),
            ).fetchall()
        return {_text(key): _text(identity) for key, identity in rows}

    def expected(self) -> int:
        """Return the number of messages that the server should list under known unique-ids."""
        return self._count("expected AND substr(key, 1, 1) <> x'20'")

    def on_server(self) -> int:
        """Return the number of collected messages that should still be on the server."""
        return self._count("expected")

    def _count(self, condition: str) -> int:
        with self.reading() as database:
            (count,) = database.execute(
                "SELECT count(*) FROM messages"
                f" WHERE account = ? AND taken_at IS NOT NULL AND NOT is_gone AND {condition}",
                (self.name,),
            ).fetchone()
        return int(count)

    def has_content(self, content: Content) -> bool:
        """Return whether a message with this content was collected, under any unique-id."""
        with self.reading() as database:
            row = database.execute(
                "SELECT 1 FROM messages"
                " WHERE account = ? AND digest = ? AND taken_at IS NOT NULL"
                " UNION ALL SELECT 1 FROM messages"
                " WHERE account = ? AND body = ? AND likeness = ? AND taken_at IS NOT NULL LIMIT 1",
                (self.name, content.digest, self.name, content.body, content.header_digest),
            ).fetchone()
        return row is not None

    def unlisted(self) -> bool:
        """Return whether collected messages were missing from the last complete listing."""
        with self.reading() as database:
            row = database.execute(
                f"SELECT 1 FROM messages WHERE {_UNLISTED} LIMIT 1", (self.name,)
            ).fetchone()
        return row is not None

    def with_content(self, content: Content, *, is_unlisted: bool) -> list[str]:
        """Return the keys of collected messages with this content that may still be on the server.

        With ``is_unlisted``, only messages missing from the last complete listing are returned.
        """
        candidates = (
            _UNLISTED if is_unlisted else "account = ? AND taken_at NOTNULL AND NOT is_gone"
        )
        with self.reading() as database:
            rows = database.execute(
                f"SELECT key FROM messages WHERE {candidates} AND digest = ? UNION"
                f" SELECT key FROM messages WHERE {candidates} AND body = ? AND likeness = ?",
                (self.name, content.digest, self.name, content.body, content.header_digest),
            ).fetchall()
        return [_text(key) for (key,) in rows]

    def record_moved(self, messages: Iterable[Stored]) -> None:
        """Record the new unique-ids of messages; ``moved_from`` contains their earlier keys.

        The record under the earlier key moves to the new key.
        """
        with self.transaction() as database:
            for each in messages:
                if each.replaces:
                    self._keep_earlier(database, each)
                key = _octets(each.key)
                database.execute(
                    "DELETE FROM messages WHERE account = ? AND key = ?", (self.name, key)
                )
                database.execute(
                    "UPDATE messages SET key = ? WHERE account = ? AND key = ?",
                    (key, self.name, _octets(each.moved_from)),
                )

    def header_digests(self) -> set[bytes]:
        """Return the header digests of the messages that the server should list."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT likeness FROM messages WHERE account = ? AND likeness NOTNULL"
                " AND taken_at NOTNULL AND NOT is_gone AND expected",
                (self.name,),
            ).fetchall()
        return {likeness for (likeness,) in rows}

    def intend(self, messages: Iterable[tuple[str, int]]) -> None:
        """Record messages that are about to be stored, as pairs of key and announced size.

        After a crash, these records show the next run which messages the destination may already
        have.
        """
        rows = [(self.name, _octets(key), size) for key, size in messages]
        with self.transaction() as database:
            database.executemany(
                "INSERT INTO messages (account, key, size) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def took(self, messages: Iterable[Stored], at: float) -> None:
        """Record messages that are durable at their destination; ``at`` is the ledger's time.

        The record of a different message that had the same key is kept under ``earlier_key``.
        """
        stored = list(messages)
        rows = [
            (
                *(self.name, _octets(each.key), each.size, *_fingerprints(each.content)),
                *(_octets(each.identity) if each.identity else None, at, each.is_gone),
                Doubt.SHORT if each.is_short else Doubt.NONE,
            )
            for each in stored
        ]
        with self.transaction() as database:
            for each in stored:
                if each.replaces:
                    self._keep_earlier(database, each)
            database.executemany(
                "INSERT OR REPLACE INTO messages (account, key, size, digest, body, likeness,"
                " identity, taken_at, is_gone, doubt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def _keep_earlier(self, database: sqlite3.Connection, later: Stored) -> None:
        """Keep the record of the message that had this key before, to recognise it later."""
        row = database.execute(
            "SELECT size, digest, body, likeness, taken_at FROM messages"
            " WHERE account = ? AND key = ? AND digest <> x'' AND taken_at NOTNULL",
            (self.name, _octets(later.key)),
        ).fetchone()
        if row is not None:
            key = earlier_key(later.key, row[1])
            database.execute(
                "INSERT OR REPLACE INTO messages (account, key, size, digest, body, likeness,"
                " taken_at, identity, is_gone, expected) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 0)",
                (self.name, _octets(key), *row, _octets(later.replaces)),
            )

    def record_match(self, messages: Iterable[Stored], again_at: float | None) -> None:
        """Record that these messages were fetched, and match those stored under their keys.

        ``again_at`` is the ledger's time when they were listed again after they had been deleted or
        missing; None if they had always been listed.
        """
        rows = []
        for each in messages:
            digest, *rest = _fingerprints(each.content)
            identity = _octets(each.identity) if each.identity else None
            rows.append(
                (each.size, digest, *rest, identity, again_at, self.name, _octets(each.key))
            )
        with self.transaction() as database:
            database.executemany(
                "UPDATE messages SET size = ?, digest = coalesce(nullif(digest, x''), ?),"
                " body = coalesce(body, ?), likeness = coalesce(likeness, ?),"
                " identity = coalesce(?, identity),"
                " seen_again = coalesce(?, seen_again), is_gone = 0, expected = 1, doubt = ''"
                " WHERE account = ? AND key = ?",
                rows,
            )

    def clear_doubt(self, keys: Iterable[str]) -> None:
        """Remove the doubt about these messages, because their headers have been compared."""
        with self.transaction() as database:
            database.executemany(
                "UPDATE messages SET doubt = '' WHERE account = ? AND key = ?",
                [(self.name, _octets(key)) for key in keys],
            )

    def record_listing(self, keys: Iterable[str]) -> None:
        """Record a complete listing; messages that it does not contain are no longer expected."""
        with self.transaction() as database:
            database.execute(
                "CREATE TEMPORARY TABLE IF NOT EXISTS listed (key BLOB PRIMARY KEY) WITHOUT ROWID"
            )
            database.execute("DELETE FROM temp.listed")
            database.executemany(
                "INSERT OR IGNORE INTO temp.listed VALUES (?)", ((_octets(key),) for key in keys)
            )
            database.execute(
                "UPDATE messages SET expected = 0 WHERE account = ? AND expected AND NOT is_gone"
                " AND taken_at NOTNULL AND key NOT IN (SELECT key FROM temp.listed)",
                (self.name,),
            )

    def adopt(self, messages: Iterable[tuple[str, int]], at: float) -> None:
        """Record messages that another program collected, as pairs of key and size.

        They are never deleted on the server, because restante did not receive their octets.  The
        records of messages that restante collected do not change.
        """
        rows = [(self.name, _octets(key), size, at) for key, size in messages]
        with self.transaction() as database:
            database.executemany(
                "INSERT INTO messages (account, key, size, taken_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET size = excluded.size, taken_at = excluded.taken_at"
                " WHERE taken_at IS NULL",
                rows,
            )

    def held(self, keys: Iterable[str], *, is_held: bool) -> None:
        """Record whether these messages are in ``held/``, where messages deleted here are held."""
        with self.transaction() as database:
            database.executemany(
                "UPDATE messages SET was_held = ? WHERE account = ? AND key = ?",
                [(is_held, self.name, _octets(key)) for key in keys],
            )

    def forget(self) -> int:
        """Remove all records of the account, and return the number of its messages."""
        with self.transaction() as database:
            counts = {
                table: database.execute(
                    f"DELETE FROM {table} WHERE account = ?", (self.name,)
                ).rowcount
                for table in ACCOUNT_TABLES
            }
        return counts["messages"]

    # Deletions.

    def removing(self, proofs: Iterable[Proof], at: float) -> None:
        """Record messages that are about to be marked as deleted; ``at`` is the ledger's time.

        After a crash, the state of these messages is in doubt, because the server may have removed
        them.
        """
        with self.transaction() as database:
            database.executemany(
                "INSERT INTO removals (account, key, at, why, evidence) VALUES (?, ?, ?, ?, ?)",
                [(self.name, _octets(each.key), at, each.why, each.evidence) for each in proofs],
            )

    def record_refused_deletion(self, keys: Iterable[str], answer: str) -> None:
        """Record the error with which the server refused to delete these messages."""
        with self.transaction() as database:
            self._answer(database, keys, answer)

    def gone(self, keys: Iterable[str]) -> None:
        """Record that QUIT confirmed the deletion of these messages on the server."""
        keys = list(keys)
        with self.transaction() as database:
            database.executemany(
                "UPDATE messages SET is_gone = 1 WHERE account = ? AND key = ?",
                [(self.name, _octets(key)) for key in keys],
            )
            self._answer(database, keys, "removed")

    def _answer(self, database: sqlite3.Connection, keys: Iterable[str], answer: str) -> None:
        database.executemany(
            "UPDATE removals SET answer = ? WHERE account = ? AND key = ? AND answer IS NULL",
            [(answer, self.name, _octets(key)) for key in keys],
        )

    def record_unanswered(self) -> None:
        """Record that the results of deletions without a response are unknown.

        Call this only while no session is open.  The unique-ids of these messages may now belong to
        different messages, so the messages must be checked when they are listed again.
        """
        with self.reading() as database:
            row = database.execute(
                "SELECT 1 FROM removals WHERE account = ? AND answer IS NULL LIMIT 1", (self.name,)
            ).fetchone()
        if row is None:
            return
        with self.transaction() as database:
            database.execute(
                "UPDATE messages SET doubt = ? WHERE account = ? AND doubt = '' AND key IN"
                " (SELECT key FROM removals WHERE account = ? AND answer IS NULL)",
                (Doubt.ANSWER, self.name, self.name),
            )
            database.execute(
                "UPDATE removals SET answer = 'not known' WHERE account = ? AND answer IS NULL",
                (self.name,),
            )

    def removed_since(self, moment: float) -> int:
        """Return the number of messages that were or may have been deleted since ``moment``."""
        with self.reading() as database:
            (count,) = database.execute(
                "SELECT count(*) FROM removals WHERE account = ? AND at >= ?"
                " AND coalesce(answer, 'removed') IN ('removed', 'not known')",
                (self.name, moment),
            ).fetchone()
        return int(count)

    def removals(self) -> list[Removal]:
        """Return all deletions that were ever requested, the oldest first."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT key, at, why, evidence, coalesce(answer, '') FROM removals"
                " WHERE account = ? ORDER BY number",
                (self.name,),
            ).fetchall()
        return [Removal(_text(key), *rest) for key, *rest in rows]

    # Messages set aside.

    def aside(self) -> dict[str, SetAside]:
        """Return the messages that could not be collected, by ``aside_key``."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT key, tries, reason, until FROM aside WHERE account = ?", (self.name,)
            ).fetchall()
        return {_text(key): SetAside(*rest) for key, *rest in rows}

    def set_aside(self, key: str, reason: str, now: float, *, is_first: bool) -> SetAside:
        """Record that a message could not be collected.

        ``is_first`` is true for the message's first failure in a run.  After the first run with a
        failure, the next run tries the message after all others.  After the second such run, the
        message waits for a day.  After each further run, it waits twice as long, up to a week.
        """
        with self.transaction() as database:
            row = database.execute(
                "SELECT tries FROM aside WHERE account = ? AND key = ?", (self.name, _octets(key))
            ).fetchone()
            tries = row[0] + is_first if row else 1
            # The exponent is limited, because a float overflows at 2**1024.
            wait = 0.0 if tries == 1 else min(_DAY * 2.0 ** min(tries - 2, 30), _WEEK)
            aside = SetAside(tries, reason, now + wait)
            database.execute(
                "INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?, ?)",
                (self.name, _octets(key), aside.tries, aside.reason, aside.until),
            )
        return aside

    def bring_back(self, keys: Iterable[str]) -> None:
        """Record that these messages are no longer set aside, because they have been collected."""
        with self.transaction() as database:
            database.executemany(
                "DELETE FROM aside WHERE account = ? AND key = ?",
                [(self.name, _octets(key)) for key in keys],
            )

    # Sessions.

    def record_attempt(self, at: float) -> int:
        """Record a login attempt before it is made, and return its run number for ``add_usage``."""
        with self.transaction() as database:
            database.execute(
                "DELETE FROM runs WHERE account = ? AND used_at <= ?", (self.name, at - _DAY)
            )
            inserted = database.execute(
                "INSERT INTO runs (account, tried_at, used_at) VALUES (?, ?, ?)",
                (self.name, at, at),
            )
            assert inserted.lastrowid is not None
            return inserted.lastrowid

    def add_usage(self, run: int, more: Used, at: float) -> None:
        """Add messages and octets that the run received from the server."""
        with self.transaction() as database:
            database.execute(
                "UPDATE runs SET messages = messages + ?, octets = octets + ?, used_at = ?"
                " WHERE number = ?",
                (more.messages, more.octets, at, run),
            )

    def used_in_a_day(self, now: float) -> Used:
        """Return the messages and octets received in the last day, including failed sessions.

        A session is included until a day after its last octet.  Time stamps in the future are
        ignored, because they show that the clock was set back.
        """
        with self.reading() as database:
            row = database.execute(
                "SELECT coalesce(sum(messages), 0), coalesce(sum(octets), 0) FROM runs"
                " WHERE account = ? AND used_at > ? AND used_at <= ?",
                (self.name, now - _DAY, now),
            ).fetchone()
        return Used(*row)

    def record_login(self, at: float, login_delay: float = 0.0) -> None:
        """Record a login; ``login_delay`` is the minimum time until the next login, in seconds."""
        with self.transaction() as database:
            database.execute(
                "INSERT INTO sessions (account, began_at, login_delay) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET began_at = excluded.began_at,"
                " login_delay = excluded.login_delay, refusals = 0",
                (self.name, at, login_delay),
            )

    def record_refusal(self, at: float) -> None:
        """Record a refused login whose cause is permanent, such as a wrong password."""
        with self.transaction() as database:
            database.execute(
                "INSERT INTO sessions (account, began_at, refusals, refused_at)"
                " VALUES (?, 0, 1, ?) ON CONFLICT DO UPDATE SET refusals = refusals + 1,"
                " refused_at = excluded.refused_at",
                (self.name, at),
            )

    def withhold(self, now: float) -> None:
        """Check that enough time has passed since the last refused login.

        Raises:
            LoginWithheld: more time must pass before the next login.
        """
        with self.reading() as database:
            row = database.execute(
                "SELECT refusals, refused_at FROM sessions WHERE account = ? AND refusals > 0"
                " AND refused_at <= ?",
                (self.name, now),
            ).fetchone()
        if row is not None:
            refusals, at = row
            wait = min(_REFUSAL_DELAY * 2.0 ** min(refusals - 1, 30), _DAY)
            if now < at + wait:
                raise LoginWithheld(self.name, refusals, at + wait - now)

    def record_success(self, at: float) -> None:
        """Record a session that ended without an error."""
        with self.transaction() as database:
            database.execute(
                "UPDATE sessions SET succeeded_at = ? WHERE account = ?", (at, self.name)
            )

    def last_begin(self) -> float:
        """Return the start of the last session, in seconds since the epoch; 0 if there was none."""
        with self.reading() as database:
            row = database.execute(
                "SELECT began_at FROM sessions WHERE account = ?", (self.name,)
            ).fetchone()
        return row[0] if row else 0.0

    def may_begin(self, now: float, logins: int | None = None) -> float:
        """Return the earliest time of the next login, in seconds since the epoch.

        The server's LOGIN-DELAY applies (RFC 2449 §6.5), and a maximum of ``logins`` in an hour,
        including failed attempts.  Time stamps in the future are ignored, because they show that
        the clock was set back.
        """
        with self.reading() as database:
            rows = database.execute(
                "SELECT began_at + login_delay FROM sessions WHERE account = ? AND began_at <= ?",
                (self.name, now),
            ).fetchall()
            if logins is not None:
                rows += database.execute(
                    "SELECT tried_at + ? FROM runs WHERE account = ? AND tried_at <= ?"
                    " ORDER BY tried_at DESC LIMIT 1 OFFSET ?",
                    (_HOUR, self.name, now, logins - 1),
                ).fetchall()
        return max((at for (at,) in rows), default=0.0)

    def last_success(self) -> float | None:
        """Return the end of the last successful session, in seconds since the epoch, or None."""
        with self.reading() as database:
            row = database.execute(
                "SELECT succeeded_at FROM sessions WHERE account = ?", (self.name,)
            ).fetchone()
        return row[0] if row else None


def _fingerprints(content: Content | None) -> tuple[bytes | None, ...]:
    if content is None:
        return (b"", None, None)
    return (content.digest, content.body, content.header_digest)


def _octets(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
