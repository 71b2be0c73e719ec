"""Delete messages on their server; each deletion requires a ``Proof``.

The ledger records each deletion with its reason and evidence before DELE is sent.  The deletion is
logged after the server has confirmed it in its response to QUIT.  All other code uses ``Reader``,
which cannot delete.
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
from .plan import Proof, short_name

# Number of DELE commands that are sent before their responses are checked; chosen without
# measurement.
_BLOCK = 1000

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """A session with a server, without the ability to delete; see ``restante.Client``."""

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


def quit_removes_retrieved(reader: Reader) -> bool:
    """Return whether QUIT may remove messages that were retrieved but not marked as deleted.

    A server announces this with EXPIRE 0 (RFC 2449 §6.7).  For a server that does not announce it,
    the operator can set the quirk ``add:EXPIRE:0`` or ``reset-before-quit``.  With the second
    quirk, RSET is sent before QUIT.  RSET also unmarks the messages that were marked with DELE, so
    it is sent only if no message is marked.
    """
    return reader.quirks.reset_before_quit or (reader.capabilities.expire or "?").strip("0") == ""


class Deletions:
    """The deletions of one session."""

    def __init__(self, client: Client, ledger: AccountLedger) -> None:
        self.marked: list[Proof] = []
        """Messages marked as deleted, which the server removes at QUIT."""
        self._client = client
        self._ledger = ledger

    async def request(self, proofs: Sequence[Proof], now: float) -> None:
        """Mark these messages as deleted; ``now`` is the ledger's time."""
        self._ledger.removing(proofs, now)
        for first in range(0, len(proofs), _BLOCK):
            block = proofs[first : first + _BLOCK]
            await self._client.delete(*[each.message for each in block])
            refused = {message.number for message in self._client.refused}
            self.marked += [each for each in block if each.message.number not in refused]
            keys = [each.key for each in block if each.message.number in refused]
            if keys:
                self._ledger.record_refused_deletion(keys, "refused")

    def leave_without_quit(self) -> None:
        """Drop the connection, so that the server removes nothing (RFC 1939 §6)."""
        self._client.abort()

    def record_confirmation(self) -> None:
        """Record that the server answered +OK to QUIT, and removed the marked messages."""
        self._ledger.gone([each.key for each in self.marked])
        for each in self.marked:
            fields = {
                "account": self._ledger.name,
                "message": short_name(each.message),
                "why": each.why,
                "evidence": each.evidence.value,
            }
            _log.info("deleted upstream", extra={"fields": fields})

    def record_refusal(self, answer: str) -> None:
        """Record that the server answered -ERR to QUIT, and may not have removed all messages."""
        self._ledger.record_refused_deletion([each.key for each in self.marked], answer)
