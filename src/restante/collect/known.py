"""A cache of the ledger's records of the messages in one session.

The session also adds the records of the messages that it stores.
"""

from __future__ import annotations

from collections.abc import Iterable

from .account_ledger import AccountLedger, Stored
from .fingerprint import Content
from .plan import Collected, Doubt, Record


class Known:
    """The recorded messages of one account.  All methods may block."""

    def __init__(self, ledger: AccountLedger, label: str) -> None:
        """``label`` is the start of each message's name at the destination.

        The label must never change; otherwise all mail would be stored again.
        """
        self.collected: dict[str, Collected] = {}
        """The state of the loaded messages, by key."""
        self._ledger, self._label = ledger, label
        self._records: dict[str, Record | None] = {}  # loaded records by key; None: no record
        self._identities: dict[str, str] = {}  # names that differ from the usual name, by key

    def load(self, keys: Iterable[str]) -> None:
        """Load the state of the listed messages."""
        self.collected = self._ledger.known(keys)
        self._identities = self._ledger.identities()

    def load_more(self, keys: Iterable[str]) -> None:
        """Load the state of more messages, recorded under keys that the server does not list."""
        self.collected |= self._ledger.known(keys)

    def load_records(self, keys: Iterable[str]) -> None:
        """Load the records of many messages with few queries."""
        missing = [key for key in keys if key not in self._records]
        records = self._ledger.records(missing)
        for key in missing:
            self._records[key] = self._with_identity(key, records.get(key))

    def record(self, key: str) -> Record | None:
        """Return the record with this key; None if no message with the key was stored."""
        self.load_records([key])
        return self._records[key]

    def _with_identity(self, key: str, record: Record | None) -> Record | None:
        if record is None:
            return None
        identity = record.identity or self.identity(key, record.size)
        return Record(record.size, record.content, identity)

    def identity(self, key: str, size: int, content: Content | None = None) -> str:
        """Return the name of a message at its destination.

        With ``content``, the result is the name of a different message under the same key.  If an
        interrupted session began to store a message, the message keeps its name, even if the server
        now announces a different ``size``.
        """
        if content is not None:
            return f"{self.usual_identity(key, size)} {content.digest.hex()}"
        known = self.collected.get(key)
        if known is not None and known.at is None:
            size = known.size
        return self._identities.get(key) or self.usual_identity(key, size)

    def usual_identity(self, key: str, size: int) -> str:
        """Return the name that a message has unless the ledger contains a different name."""
        return f"{self._label} {key} {size}"

    def row(self, key: str, size: int, content: Content, identity: str = "") -> Stored:
        """Return the ledger's row of a stored message.

        ``identity`` defaults to the name that belongs to the key.
        """
        identity = identity or self.identity(key, size)
        return Stored(
            key, size, content, "" if identity == self.usual_identity(key, size) else identity
        )

    def identity_of(self, key: str) -> str:
        """Return the name of a collected message."""
        record = self.record(key)
        return self.identity(key, self.collected[key].size) if record is None else record.identity

    def add(self, row: Stored, at: float) -> None:
        """Add a message after it has been recorded in the ledger."""
        doubt = Doubt.SHORT if row.is_short else Doubt.NONE
        self.collected[row.key] = Collected(row.size, at, doubt=doubt)
        if row.content is not None:
            identity = row.identity or self.usual_identity(row.key, row.size)
            self._records[row.key] = Record(row.size, row.content, identity)

    def update(self, row: Stored, again_at: float | None) -> None:
        """Update a message whose equality with the stored copy has been recorded."""
        before = self.collected[row.moved_from or row.key]
        seen_again = before.seen_again if again_at is None else again_at
        self.collected[row.key] = Collected(
            row.size, before.at, was_held=before.was_held, seen_again=seen_again
        )
        self._records.pop(row.key, None)
