"""A store of Maildirs, which any MTA may deliver into and an IMAP server may share.

A maildrop is the INBOX of a Maildir (``cur new tmp``) with ``held/`` beside them.  Octets are
stored as they come, so nothing is ever converted and back; what other programs stored with
bare LF gets CRLF on the way out.

Standards: RFC 1939 §4-§8, §11; https://cr.yp.to/proto/maildir.html.
Security: user names are checked by ``place``, symbolic links refused by ``files``.
"""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import islice
from typing import TypeVar

from ..errors import MessageGone, TemporaryFailure
from ..maildrop import Entry, HeldMessage, Maildrop
from ..message import LineEnds
from . import files
from .files import in_thread
from .held import finish_update, list_held, purge, reading_held, undelete, update
from .names import File, Identity, fresh_unique, identify, scan, wire_size
from .place import Template

_WRITE = 262_144  # octets gathered for one write
_MEASURED = 1000  # maildrops whose measured sizes are remembered
_BATCH = 32  # messages measured, or users found, in one call that cannot be cancelled
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO}

T = TypeVar("T")


class MaildirStore:
    """Implements ``Store`` and ``Holding``."""

    def __init__(self, template: str, *, hold: float = 14 * 86400) -> None:
        """``template``: see ``place.Template``.  ``hold``: seconds for which removed mail is kept
        until somebody purges it; 0 destroys it at once.

        Raises:
            ConfigurationError: the template would let two users share a maildrop.
        """
        self.hold = hold
        self._template = Template(template)
        self._measured: dict[str, dict[Identity, int]] = {}  # octets on the wire, by user

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        names = self._template.names(user)
        with ExitStack() as stack:
            maildrop = await in_thread(self._lock, stack, names)
            found = await in_thread(lambda: identify(scan(maildrop)))
            session = _Maildir(maildrop, found, self._measured_of(user), destroy=not self.hold)
            stack.callback(session.close)
            await session.take_stock()
            yield session

    def _lock(self, stack: ExitStack, names: Sequence[str]) -> int:
        maildrop = stack.enter_context(files.maildrop(self._template.base, names, make=True))
        stack.enter_context(files.session_lock(maildrop))
        finish_update(maildrop, destroy=not self.hold)
        return maildrop

    def _measured_of(self, user: str) -> dict[Identity, int]:
        """The sizes found in this process that no name told, or told wrongly."""
        measured = self._measured[user] = self._measured.pop(user, {})
        for other in list(islice(self._measured, max(len(self._measured) - _MEASURED, 0))):
            del self._measured[other]
        return measured

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        delivery = _delivery(self._template.base, self._template.names(user))
        gathered = bytearray()
        try:
            await in_thread(next, delivery)
            async for octets in message:
                gathered += octets
                if len(gathered) >= _WRITE:
                    await in_thread(delivery.send, bytes(gathered))
                    gathered.clear()
            if gathered:
                await in_thread(delivery.send, bytes(gathered))
            entry = await in_thread(delivery.send, b"")
        finally:
            await in_thread(delivery.close)
        assert entry is not None
        return entry

    async def held(self, user: str) -> Sequence[HeldMessage]:
        return await in_thread(self._at, user, list_held, [])

    async def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        with ExitStack() as stack:
            file = await in_thread(
                self._at,
                user,
                lambda maildrop: stack.enter_context(reading_held(maildrop, held.name)),
                -1,
            )
            if file < 0:
                raise MessageGone
            offset = 0
            while octets := await files.read_piece(file, offset):
                offset += len(octets)
                yield octets

    async def undelete(
        self, user: str, held: Collection[HeldMessage], *, same_unique_ids: bool = False
    ) -> int:
        names = [each.name for each in held]
        give_back = partial(
            undelete, names=names, same_unique_ids=same_unique_ids, destroy=not self.hold
        )
        return await in_thread(self._at, user, give_back, 0)

    async def purge(self, user: str, removed_before: float) -> int:
        def clean(maildrop: int) -> int:
            _sweep(maildrop)
            return purge(maildrop, removed_before)

        return await in_thread(self._at, user, clean, 0)

    async def users(self) -> AsyncIterator[str]:
        found = self._template.users()
        while batch := await in_thread(lambda: list(islice(found, _BATCH))):
            for user in batch:
                yield user

    def _at(self, user: str, call: Callable[[int], T], absent: T) -> T:
        """Call with the user's maildrop, if there is one.  Blocking."""
        names = self._template.names(user)
        with ExitStack() as stack:
            try:
                maildrop = stack.enter_context(files.maildrop(self._template.base, names))
            except FileNotFoundError:
                return absent
            return call(maildrop)


class _Maildir:
    """One session's ``Maildrop``."""

    def __init__(
        self, maildrop: int, found: dict[str, File], measured: dict[Identity, int], *, destroy: bool
    ) -> None:
        self.listing: Sequence[Entry] = ()
        self._maildrop = maildrop  # open directory
        self._files = found  # by unique-id; without those that are known to be gone
        self._measured = measured
        self._destroy = destroy

    def close(self) -> None:
        """After the session its descriptor may be another maildrop's."""
        self._maildrop = -1

    async def take_stock(self) -> None:
        """Make the listing.  Sizes that no name tells are measured, by reading the messages."""
        sizes = {
            unique_id: self._measured.get(file.identity, wire_size(file.name))
            for unique_id, file in self._files.items()
        }
        unknown = [unique_id for unique_id, size in sizes.items() if size is None]
        for first in range(0, len(unknown), _BATCH):
            sizes |= await in_thread(self._measure, unknown[first : first + _BATCH])
        self.listing = tuple(
            Entry(unique_id, size) for unique_id, size in sizes.items() if size is not None
        )
        for gone in self._measured.keys() - {file.identity for file in self._files.values()}:
            del self._measured[gone]

    def _measure(self, unique_ids: Sequence[str]) -> dict[str, int]:
        """Remembers what it finds.  A message that cannot be read is listed all the same."""
        sizes = {}
        for unique_id in unique_ids:
            found = self._files.get(unique_id)
            if found is None:
                continue
            try:
                with ExitStack() as stack:
                    size = files.wire_size(self._open(stack, unique_id))
                    sizes[unique_id] = self._measured[found.identity] = size
            except MessageGone:
                continue
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
                with files.directory(found.directory, self._maildrop) as directory:
                    sizes[unique_id] = files.status(found.name, directory).st_size
        return sizes

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """The last piece is held back until the size is known to be what was announced."""
        ends = LineEnds()
        waiting = b""
        offset = 0
        with ExitStack() as stack:
            file = await in_thread(self._open, stack, entry.unique_id)
            while octets := await files.read_piece(file, offset):
                offset += len(octets)
                text = ends.feed(octets)
                if ends.size > entry.size:
                    break
                if waiting:
                    yield waiting
                waiting = text
            waiting += ends.finish()
            if ends.size != entry.size:
                identity = self._files[entry.unique_id].identity
                self._measured[identity] = await in_thread(files.wire_size, file)
                raise TemporaryFailure("message is not of the announced size; log in again")
            if waiting:
                yield waiting

    def _open(self, stack: ExitStack, unique_id: str) -> int:
        """The file of a message, also after another program has renamed it.  Blocking."""
        for scanned in (False, True):
            file = self._files.get(unique_id)
            if file is None:
                break
            with (
                suppress(FileNotFoundError),
                files.directory(file.directory, self._maildrop) as directory,
            ):
                return stack.enter_context(files.reading(file.name, directory))
            if not scanned:
                found = {file.identity: file for file in scan(self._maildrop)}
                self._files = {
                    unique_id: found[file.identity]
                    for unique_id, file in self._files.items()
                    if file.identity in found
                }
        raise MessageGone

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        victims = {
            self._files[entry.unique_id].identity: entry.unique_id
            for entry in entries
            if entry.unique_id in self._files
        }
        if not victims:
            return ()
        left = await in_thread(update, self._maildrop, victims, destroy=self._destroy)
        return [entry for entry in entries if entry.unique_id in left]


def _delivery(base: str, names: Sequence[str]) -> Generator[Entry | None, bytes, None]:
    """One message on its way through ``tmp/`` into ``new/``.  Blocking.

    Send it the octets, then none; then it yields the entry of a message that a crash cannot
    lose.  If it is closed before, or fails, nothing is left.
    """
    unique, ends, stored = fresh_unique(), LineEnds(), 0
    with (
        files.maildrop(base, names, make=True) as maildrop,
        files.directory("tmp", maildrop) as tmp,
        files.directory("new", maildrop) as new,
    ):
        with files.undone_on_error(unique, tmp):
            with files.writing(unique, tmp) as file:
                while octets := (yield None):
                    files.write(file, octets)
                    ends.feed(octets)
                    stored += len(octets)
                ends.finish()
            name = f"{unique},S={stored},W={ends.size}"
            files.move(unique, tmp, name, new)
        with files.undone_on_error(name, new):
            files.sync(".", parent=new)
    yield Entry(unique, ends.size)


def _sweep(maildrop: int) -> None:
    """Unlink what crashed deliveries left in ``tmp/``; 36 hours as in maildir(5)."""
    with files.directory("tmp", maildrop) as tmp:
        for name, _ in files.list_files("tmp", maildrop):
            with suppress(FileNotFoundError):
                if files.status(name, tmp).st_mtime < time.time() - 36 * 3600:
                    files.unlink(name, tmp)
