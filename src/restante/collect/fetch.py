"""Fetch all messages of one maildrop: each is durable here before it is deleted there."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO

from ..errors import CommandFailed
from ..net.client import Client
from ..pop3.listing import Message
from .destinations import Destination

_IN_MEMORY = 2**20  # octets of a message that must be seen whole before it is stored
_PIECE = 65_536  # octets


@dataclass(slots=True)
class Outcome:
    """What one run did."""

    stored: int = 0
    octets: int = 0
    """Of the messages that came."""
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
    """Download what the destination has not, of ``limit`` messages; unless ``keep``, delete.

    ``progress`` is called with the listing and the number of octets that came.

    Raises:
        OSError: the destination has no room; what was stored before is safe, nothing is deleted.
        ConnectionLost: likewise.
    """
    outcome = Outcome()
    messages = [message async for message in client.messages()][:limit]
    progress(messages, 0)
    identities = _identities(account, messages)
    twins: Counter[str] = Counter()
    safe, wanted = [], []
    for message in messages:
        identity = identities.get(message.number)
        if identity is not None and destination.has(identity):
            safe.append(message)
            progress(messages, message.size)
        else:
            wanted.append(message)
    async for message, body in client.retrieve_all(wanted):
        try:
            with SpooledTemporaryFile(_IN_MEMORY) as whole:
                identity = identities.get(message.number)
                pieces: AsyncIterable[bytes] = body
                if identity is None:
                    digest = await _spool(body, whole)
                    twins[digest] += 1
                    identity, pieces = f"{account} {digest} {twins[digest]}", _pieces(whole)
                async for octets in _store(destination, identity, pieces, outcome):
                    progress(messages, octets)
        except CommandFailed as error:
            outcome.refused.append(f"message {message.number}: {error.text}")
        else:
            safe.append(message)
    outcome.present = len(safe) - outcome.stored
    if not keep and safe:
        try:
            await client.delete(*safe)
        except CommandFailed as error:
            outcome.refused.append(str(error))
        outcome.deleted = client.deletions
    return outcome


async def _store(
    destination: Destination, identity: str, body: AsyncIterable[bytes], outcome: Outcome
) -> AsyncIterator[int]:
    """Tells how many octets came; durable at its end, if the message was wanted."""
    try:
        is_new = destination.begin(identity)
        async for piece in body:
            if is_new:
                destination.write(piece)
            outcome.octets += len(piece)
            yield len(piece)
        if is_new:
            destination.commit()
            outcome.stored += 1
    finally:
        destination.abort()


async def _spool(body: AsyncIterable[bytes], whole: IO[bytes]) -> str:
    """The digest of what is then in ``whole``."""
    digest = sha256()
    async for piece in body:
        digest.update(piece)
        whole.write(piece)
    whole.seek(0)
    return digest.hexdigest()


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _identities(account: str, messages: Sequence[Message]) -> dict[int, str]:
    """Account, unique-id and size: who has the same is the same message.

    Where a unique-id is missing, or stands for two messages (RFC 1939 §7 lets a server do so), the
    content decides, which is known only when it has come: the second message of the same octets is
    another one, in every run.
    """
    known = Counter(message.unique_id for message in messages)
    return {
        message.number: f"{account} {message.unique_id} {message.size}"
        for message in messages
        if message.unique_id is not None and known[message.unique_id] == 1
    }
