"""Fetch all messages of one maildrop: each is durable here before it is deleted there."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import CommandFailed
from ..net.client import Client
from ..pop3.dialogue import Message
from .destinations import Destination


@dataclass(slots=True)
class Outcome:
    """What one run did."""

    stored: int = 0
    octets: int = 0
    present: int = 0
    """Messages that the destination had already."""
    deleted: int = 0
    """Marked as deleted; removed when QUIT is answered."""
    refused: list[str] = field(default_factory=list)
    """What the server said of the messages that it did not give."""


async def fetch(
    client: Client,
    destination: Destination,
    *,
    account: str,
    keep: bool,
    limit: int | None = None,
    progress: Callable[[Sequence[Message], int], None] = lambda messages, octets: None,
) -> Outcome:
    """Download what the destination has not, ``limit`` messages at most; unless ``keep``, delete.

    ``progress`` is called with the listing and the number of octets that came.

    Raises:
        OSError: the destination has no room; what was stored before is safe, nothing is deleted.
        ConnectionLost: likewise.
    """
    outcome = Outcome()
    messages = [message async for message in client.messages()][:limit]
    progress(messages, 0)
    identities = _identities(account, messages)
    safe: list[Message] = []
    async for message, body in client.retrieve_all(messages):
        try:
            if not destination.begin(identities[message.number]):
                outcome.present += 1
                safe.append(message)
                progress(messages, message.size)
                continue
            async for piece in body:
                destination.write(piece)
                outcome.octets += len(piece)
                progress(messages, len(piece))
            destination.commit()
        except CommandFailed as error:
            outcome.refused.append(f"message {message.number}: {error.text}")
            continue
        finally:
            destination.abort()
        outcome.stored += 1
        safe.append(message)
    if not keep and safe:
        await client.delete(*safe)
        outcome.deleted = len(safe)
    return outcome


def _identities(account: str, messages: Sequence[Message]) -> dict[int, str]:
    """Account, unique-id and size: who has the same is the same message.

    Where a unique-id is missing, or stands for two messages (RFC 1939 §7 lets a server do so), a
    message is like no other, so that none is ever taken for one that is here already.
    """
    known = Counter(message.unique_id for message in messages)
    return {
        message.number: f"{account} {message.unique_id} {message.size}"
        if message.unique_id is not None and known[message.unique_id] == 1
        else secrets.token_hex()
        for message in messages
    }
