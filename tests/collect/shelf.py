"""A remote maildrop behind our real server; a test chooses its unique-ids and listing."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from restante.client.asynchronous import connect
from restante.collect.collector import Account
from restante.collect.plan import Policy
from restante.errors import TemporaryFailure
from restante.maildrop import Entry, Maildrop

from ..support import Server, serving

Row = tuple[str, bytes]


class Shelf:
    """Implements ``Store`` for one user."""

    def __init__(self, *rows: Row) -> None:
        self.rows = list(rows)
        self.read: list[str] = []
        """Retrieved unique-ids in order."""
        self.unreadable: set[str] = set()
        self.forgets_deletions = False

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        yield _Session(self)

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        raise TemporaryFailure("nothing comes in here")


class _Session:
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._rows = dict(enumerate(shelf.rows))
        self.listing = [Entry(unique_id, len(text)) for unique_id, text in shelf.rows]

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        at = next(at for at, each in enumerate(self.listing) if each is entry)
        if entry.unique_id in self._shelf.unreadable:
            raise TemporaryFailure("the disk is on holiday")
        self._shelf.read.append(entry.unique_id)
        yield self._rows[at][1]

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        if not self._shelf.forgets_deletions:
            gone = [self._rows[at] for at, each in enumerate(self.listing) if each in entries]
            self._shelf.rows = [row for row in self._shelf.rows if row not in gone]
        return ()


@asynccontextmanager
async def remote(shelf: Shelf, context: ssl.SSLContext) -> AsyncIterator[Server]:
    async with serving(shelf, tls=context, implicit=True, clear=False) as server:
        yield server


def account(
    port: int, ca_file: Path, policy: Policy | None = None, password: str = "tan staaf"
) -> Account:
    url = f"pop3s://127.0.0.1:{port}"
    log_in = partial(connect, url, user="mrose", password=password, ca_file=ca_file)
    return Account("isp", log_in, policy or Policy())
