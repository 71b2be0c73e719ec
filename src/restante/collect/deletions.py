"""The only way to delete a message on its server: with a ``Proved``.

Each deletion is in the ledger with its reason and its evidence before DELE is sent, and logged when
QUIT has confirmed it.  A session gets ``Reader``, which cannot delete.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from ..client.asynchronous import Body, Client
from ..pop3.dialogue import Capabilities
from ..pop3.listing import Listing, Message
from ..pop3.quirks import Quirks
from .account_ledger import AccountLedger
from .plan import Proved, short_name

_AT_ONCE = 1000  # messages between two looks at what was refused

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """A session with a server in which nothing can be deleted; see ``restante.Client``."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def quirks(self) -> Quirks: ...

    @property
    def is_pipelining_in_doubt(self) -> bool: ...

    async def list(self) -> Listing: ...

    def top(self, message: Message, lines: int = 0) -> Body: ...

    def raw_headers(self, messages: Iterable[Message]) -> AsyncIterator[tuple[Message, Body]]: ...

    def retrieve_all(self, messages: Iterable[Message]) -> AsyncIterator[tuple[Message, Body]]: ...


def removes_what_it_sent(reader: Reader) -> bool:
    """Whether QUIT may remove all that RETR sent, though nothing of it was marked as deleted.

    A server announces that by EXPIRE 0 (RFC 2449 §6.7).  Of one that does not the operator may
    know it: ``add:EXPIRE:0``, or ``reset-before-quit``, whose RSET takes back our own marks too, so
    that it is sent only where there are no marks.
    """
    return reader.quirks.reset_before_quit or (reader.capabilities.expire or "?").strip("0") == ""


class Deletions:
    """What is deleted in one session."""

    def __init__(self, client: Client, ledger: AccountLedger) -> None:
        self.marked: list[Proved] = []
        """Marked as deleted; removed when QUIT is answered."""
        self._client = client
        self._ledger = ledger

    async def request(self, proved: Sequence[Proved], now: float) -> None:
        """Mark these as deleted; ``now`` by the ledger's clock."""
        self._ledger.removing(proved, now)
        for first in range(0, len(proved), _AT_ONCE):
            some = proved[first : first + _AT_ONCE]
            await self._client.delete(*[each.message for each in some])
            refused = {message.number for message in self._client.refused}
            self.marked += [each for each in some if each.message.number not in refused]
            keys = [each.key for each in some if each.message.number in refused]
            if keys:
                self._ledger.not_removed(keys, "refused")

    def leave_without_quit(self) -> None:
        """Drop the connection, so that the server removes nothing (RFC 1939 §6)."""
        self._client.abort()

    def confirmed(self) -> None:
        """QUIT was answered by +OK: they are removed (RFC 1939 §6)."""
        self._ledger.gone([each.key for each in self.marked])
        for each in self.marked:
            fields = {
                "account": self._ledger.name,
                "message": short_name(each.message),
                "why": each.why,
                "evidence": each.evidence.value,
            }
            _log.info("deleted upstream", extra={"fields": fields})

    def not_confirmed(self, answer: str) -> None:
        """QUIT was answered by -ERR: some are removed and some are not."""
        self._ledger.not_removed([each.key for each in self.marked], answer)
