"""Deliver one message to a Maildir, atomically and durably.

This module does not import the rest of the store, so that ``restante deliver`` starts quickly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence

from ..maildrop import Entry
from ..message import Survey
from . import files, quota
from .files import in_thread
from .names import fields, fresh_unique

_WRITE_SIZE = 262_144  # octets collected for each write, to reduce the number of calls to threads


async def deliver(
    base: str, names: Sequence[str], limit: Callable[[], int], message: AsyncIterator[bytes]
) -> Entry:
    """Deliver one message to the INBOX of a maildrop.  A missing maildrop is created.

    ``base`` and ``names``: see ``files.maildrop``.  ``limit`` returns the quota in octets, 0 for no
    quota.

    Raises:
        TemporaryFailure, QuotaExceeded, LargerThanQuota: no part of the message is left.
    """
    return await _deliver(_delivery(base, names, limit), message)


async def deliver_named(maildrop: int, name: str, message: AsyncIterator[bytes]) -> Entry:
    """Deliver a message under a given file name.  The caller syncs the directories."""
    return await _deliver(_named_delivery(maildrop, name), message)


async def _deliver(
    delivery: Generator[Entry | None, bytes, None], message: AsyncIterator[bytes]
) -> Entry:
    """Deliver a message.

    A small message needs only one call to a thread, because such a call costs more than the work
    done in it.
    """
    buffer, has_begun = bytearray(), False

    def write(*, is_last: bool) -> Entry | None:
        if not has_begun:
            next(delivery)
        if buffer:
            delivery.send(bytes(buffer))
            buffer.clear()
        if not is_last:
            return None
        try:
            return delivery.send(b"")
        finally:
            delivery.close()

    try:
        async for octets in message:
            buffer += octets
            if len(buffer) >= _WRITE_SIZE:
                await in_thread(write, is_last=False)
                has_begun = True
        entry = await in_thread(write, is_last=True)
    except BaseException:
        if has_begun:
            await in_thread(delivery.close)
        raise
    assert entry is not None
    return entry


def _named_delivery(maildrop: int, name: str) -> Generator[Entry | None, bytes, None]:
    """Deliver like ``_delivery``, but under a given name and without syncing directories."""
    unique = fresh_unique()
    directory_name = "cur" if ":" in name else "new"  # names in new/ have no flags (Maildir)
    with (
        files.directory("tmp", maildrop) as tmp,
        files.directory(directory_name, maildrop) as directory,
        files.OpenDescriptors(files.create(unique, tmp)) as file,
        files.UndoneOnError(unique, tmp),
    ):
        survey = yield from _write_pieces(file)
        files.sync_file(file)
        files.move(unique, tmp, name, directory)
    yield Entry(name, survey.size)


def _delivery(
    base: str, names: Sequence[str], limit: Callable[[], int]
) -> Generator[Entry | None, bytes, None]:
    """Deliver one message through ``tmp/`` into ``new/``.  Blocking.

    The caller sends the octets, then an empty piece.  In return the generator yields the entry of
    the durable message.  If the generator is closed earlier or fails, no file is left.
    """
    unique = fresh_unique()
    with (
        files.maildrop(base, names, make=True) as maildrop,
        files.directory("tmp", maildrop) as tmp,
        files.directory("new", maildrop) as new,
        files.OpenDescriptors(files.create(unique, tmp)) as file,
        files.UndoneOnError(unique, tmp),
    ):
        survey = yield from _write_pieces(file)
        name = unique + fields(survey)
        with quota.room(maildrop, [survey.stored], limit()):
            files.sync_file(file)
            files.move(unique, tmp, name, new)
            with files.UndoneOnError(name, new):
                files.sync_together(new)
    yield Entry(unique, survey.size)


def _write_pieces(file: int) -> Generator[None, bytes, Survey]:
    """Write the octets that the caller sends, until an empty piece is sent."""
    survey = Survey()
    while octets := (yield):
        files.write(file, octets)
        survey.feed(octets)
    survey.finish()
    return survey
