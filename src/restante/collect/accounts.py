"""Accounts in the ledger, identified by the address of their mailbox instead of their name.

An account that is renamed in the configuration is recognised by its address, which consists of the
protocol, the server's host and the login.  The names of its messages at the destination do not
change, because they begin with the account's *label*, the name under which it was first collected.
The accounts are stored in the ledger's file.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from typing import NamedTuple

from ..errors import ConfigurationError
from .account_ledger import ACCOUNT_TABLES
from .ledger import Ledger
from .plan import Doubt

_DAY = 86_400.0  # seconds for which the deletions of a new account are limited
_WEEK = 7 * _DAY  # until pipelining is tried again


class Mailbox(NamedTuple):
    """One account of the configuration."""

    name: str
    address: str = ""
    """``pop3 host login``; if empty, the account is not recognised under another name."""
    label: str = ""
    """Start of its messages' names at the destination; empty for the account's ``name``.  If
    another account uses the label, a number is added."""
    configured: Collection[str] = ()
    """Names of all accounts in the configuration."""


class Entry(NamedTuple):
    """An account's entry in the ledger at the beginning of a session."""

    label: str
    limited_until: float
    """End of the limit on deletions, by the ledger's clock."""
    answer: str
    """The user's decision when nearly every message looked new; empty if there was none."""
    one_by_one_until: float
    """End of the time without pipelining, by the ledger's clock."""
    rule: str
    """The deletion rule of the last session; empty if no session has recorded a rule."""
    renamed_from: str = ""
    """The account's name before this session; empty if it is unchanged."""


class Accounts:
    """The accounts in a ledger.  All methods block, and raise the errors of ``Ledger``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def enter(self, mailbox: Mailbox, now: float) -> Entry:
        """Begin a session and return the account's entry; ``now`` is the ledger's time.

        If the account is unknown, and an account with the same address is no longer in the
        configuration, the account gets the records of that account.  If the address has changed,
        the account keeps its records, but every message must be checked: another server may use the
        same unique-ids for different messages.

        Raises:
            AccountBusy: another process is collecting the account under its earlier name.
        """
        name = mailbox.name
        old_name = self._find_old_name(mailbox)
        if old_name:
            with self._ledger.of(old_name).alone():
                self.rename(old_name, name)
        with self._ledger.transaction() as database:
            row = database.execute(
                "SELECT address FROM accounts WHERE account = ?", (name,)
            ).fetchone()
            if row is None:
                is_new, label = not self._has_messages(name), self._free_label(mailbox)
                database.execute(
                    "INSERT INTO accounts (account, label, address, limited_until)"
                    " VALUES (?, ?, ?, ?)",
                    (name, label, mailbox.address, now + _DAY if is_new else 0.0),
                )
            elif mailbox.address and row[0] != mailbox.address:
                if row[0]:
                    database.execute(
                        "UPDATE messages SET doubt = ? WHERE account = ? AND doubt = ''"
                        " AND taken_at NOTNULL AND digest <> x''",
                        (Doubt.ADDRESS, name),
                    )
                database.execute(
                    "UPDATE accounts SET address = ? WHERE account = ?", (mailbox.address, name)
                )
            row = database.execute(
                "SELECT label, limited_until, answer, one_by_one_until, rule FROM accounts"
                " WHERE account = ?",
                (name,),
            ).fetchone()
        return Entry(*row)._replace(renamed_from=old_name)

    def _find_old_name(self, mailbox: Mailbox) -> str:
        """Return the mailbox's earlier account name; empty if there is not exactly one."""
        with self._ledger.reading() as database:
            is_known = database.execute(
                "SELECT 1 FROM accounts WHERE account = ?", (mailbox.name,)
            ).fetchone()
            if is_known or not mailbox.address or self._has_messages(mailbox.name):
                return ""
            rows = database.execute(
                "SELECT account FROM accounts WHERE address = ?", (mailbox.address,)
            ).fetchall()
        names = [name for (name,) in rows if name not in mailbox.configured]
        return names[0] if len(names) == 1 else ""

    def _has_messages(self, name: str) -> bool:
        with self._ledger.reading() as database:
            row = database.execute("SELECT 1 FROM messages WHERE account = ? LIMIT 1", (name,))
            return row.fetchone() is not None

    def _free_label(self, mailbox: Mailbox) -> str:
        """Return a label that no other account uses for the names of its messages."""
        preferred = mailbox.label or mailbox.name
        with self._ledger.reading() as database:
            rows = database.execute("SELECT label FROM accounts").fetchall()
        used = {label for (label,) in rows}
        candidates = (preferred if number == 1 else f"{preferred}~{number}" for number in count(1))
        return next(each for each in candidates if each not in used)

    def label(self, name: str) -> str:
        """Return the account's label; empty if the account is unknown."""
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT label FROM accounts WHERE account = ?", (name,)
            ).fetchone()
        return str(row[0]) if row else ""

    def rename(self, old: str, new: str) -> None:
        """Move all records of ``old`` to ``new``; do nothing if ``old`` has no records.

        Raises:
            ConfigurationError: both names have records of messages.
        """
        with self._ledger.transaction() as database:
            if not self._has_messages(old) and not self._is_known(old):
                return
            if self._has_messages(new):
                raise ConfigurationError(f"the ledger already has an account {new!r}")
            if not self._is_known(old):  # an older version wrote the records
                database.execute("INSERT INTO accounts (account, label) VALUES (?, ?)", (old, old))
            for table in ACCOUNT_TABLES:
                database.execute(f"DELETE FROM {table} WHERE account = ?", (new,))
                database.execute(f"UPDATE {table} SET account = ? WHERE account = ?", (new, old))

    def _is_known(self, name: str) -> bool:
        with self._ledger.reading() as database:
            row = database.execute("SELECT 1 FROM accounts WHERE account = ?", (name,)).fetchone()
        return row is not None

    def change_rule(self, name: str, rule: str, limited_until: float) -> None:
        """Store a new deletion rule and the end of its limit, by the ledger's clock."""
        with self._ledger.transaction() as database:
            database.execute(
                "UPDATE accounts SET rule = ?, limited_until = ? WHERE account = ?",
                (rule, limited_until, name),
            )

    def remove_limit(self, name: str) -> None:
        """Remove the limit on deletions, because the operator has removed it."""
        self._set(name, "limited_until", 0.0)

    def set_answer(self, name: str, answer: str) -> None:
        """Store the decision that the user made when nearly every message looked new."""
        self._set(name, "answer", answer)

    def pause_pipelining(self, name: str, now: float | None) -> None:
        """Stop pipelining for a week from ``now``; None allows pipelining again immediately."""
        self._set(name, "one_by_one_until", 0.0 if now is None else now + _WEEK)

    def _set(self, name: str, column: str, value: object) -> None:
        with self._ledger.transaction() as database:
            database.execute(f"UPDATE accounts SET {column} = ? WHERE account = ?", (value, name))
