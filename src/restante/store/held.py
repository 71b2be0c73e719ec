"""Removed mail: how it leaves a maildrop, waits in ``held/``, and comes back or is destroyed.

UPDATE (RFC 1939 §6) is a list of victims made durable, then a rename for each, then a sync.
After a crash half-way the list is still there, and the next session does the rest first.  A
held file is named ``<seconds of its removal>.<its old name>``; only where another message has
the unique-id that follows from the old name, it is named after its own.

``held/`` is locked while it changes, so that a message which is given back can neither be
taken again by an UPDATE under way nor by the list of one that crashed.  All calls block.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from ..clock import is_credible
from ..errors import MessageGone, TemporaryFailure
from ..maildrop import Entry, HeldMessage, SessionRecord
from ..scanning import Scan, scan_exactly, scan_for
from . import adopted, files, journal
from .names import (
    Adopted,
    File,
    Identity,
    adopted_id,
    delivered_at,
    fresh_unique,
    given_name,
    pack,
    renamed,
    size_fields,
    unique_id_of,
    unique_of,
    unique_part,
    unpack,
)

VICTIMS = "restante.removing"
PURGED, _PURGED_BEFORE = "restante.purged", "restante.purged.1"
_PURGED_FULL = 1_048_576  # octets: 31,775 names, more than a collector leaves unread for long

_NAME_MAX = 255  # octets, on nearly every file system
_LONGEST = _NAME_MAX - 12  # octets after the moment of a removal, until the year 5138
_ATTEMPTS = 3  # at files that another program renames under our hands
_FULL = {errno.ENOSPC, errno.EDQUOT}

_log = logging.getLogger(__name__)

Victims = Mapping[Identity, str]
"""Unique-ids of the messages to remove."""


# -- UPDATE


def update(maildrop: int, victims: Victims, removed_at: int | None) -> set[str]:
    """Remove messages, durably; returns the unique-ids of those that are still there.

    ``removed_at``: the moment from which they are held; None destroys them.

    On a full disk, where no list can be written, it goes on without: people remove mail to
    make room, and each rename is atomic by itself.
    """
    try:
        with files.directory_lock(files.HELD, maildrop):
            try:
                files.replace(VICTIMS, pack(victims), maildrop)
            except OSError as error:
                if error.errno not in _FULL:
                    _withdraw(maildrop)
                    raise
                files.sync(".", parent=maildrop)  # held/ may be new
            return _take(maildrop, victims, removed_at)
    except OSError as error:
        _note("update failed", reason=error.strerror)
        return set(victims.values())


def is_unfinished(maildrop: int) -> bool:
    """Whether a crash has cut an UPDATE short."""
    return files.exists(VICTIMS, maildrop)


def finish_update(maildrop: int, removed_at: int | None) -> None:
    """Do the rest of an UPDATE that a crash has cut short; ``removed_at`` as for ``update``.

    Raises:
        OSError: whether there is one cannot be told.
    """
    if _victims(maildrop) is not None:
        with files.directory_lock(files.HELD, maildrop):
            _finish(maildrop, removed_at)


def _finish(maildrop: int, removed_at: int | None) -> None:
    victims = _victims(maildrop)
    if victims is not None:
        left = _take(maildrop, victims, removed_at)
        _note("update finished", messages=len(victims), left=len(left))
        removed = [Entry(each, 0) for each in victims.values() if each not in left]
        now = time.time()
        journal.record(maildrop, SessionRecord(now, now, "", "", "", (), removed, "crash"))


def _take(maildrop: int, victims: Victims, removed_at: int | None) -> set[str]:
    """The second half of UPDATE, done again after a crash.  Touches nothing but the victims."""
    wanted, left = dict(victims), set[str]()
    try:
        for _ in range(_ATTEMPTS):
            found = scan_for(maildrop, wanted)
            failed, renamed = _take_once(maildrop, found, wanted, removed_at)
            left |= failed
            seen = {wanted[file.identity] for file in found.select(wanted)}
            wanted = {key: each for key, each in wanted.items() if each not in seen - renamed}
            if not renamed:
                break
        left |= renamed
        if not found.is_exact:  # not seen is not gone
            left |= set(wanted.values())
        # held/ first: a crash may leave a message in both places, never in none.
        files.sync(files.HELD, "cur", "new", parent=maildrop)
    except OSError as error:
        _note("update failed", reason=error.strerror)
        left = set(victims.values())
    _withdraw(maildrop, durably=bool(left))
    return left


def _take_once(
    maildrop: int, found: Scan, victims: Victims, removed_at: int | None
) -> tuple[set[str], set[str]]:
    """Unique-ids of what could not be moved, and of what another program has just renamed."""
    left, renamed = set(), set()
    with files.directory(files.HELD, maildrop) as held:
        for file in found.select(victims):
            unique_id = victims[file.identity]
            try:
                with files.directory(file.directory, maildrop) as directory:
                    if removed_at is None:
                        files.unlink(file.name, directory)
                    else:
                        _hold(file, unique_id, directory, held, removed_at)
            except FileNotFoundError:
                renamed.add(unique_id)
            except OSError as error:
                _note("message not removed", reason=error.strerror, unique_id=unique_id)
                left.add(unique_id)
    return left, renamed


def _hold(file: File, unique_id: str, directory: int, held: int, removed_at: int) -> None:
    """Move into ``held/``."""
    _move(file.name, directory, _name_in_held(file.name, unique_id), held, removed_at)


def _name_in_held(name: str, unique_id: str) -> str:
    """One that gives the same unique-id and the same place in the listing, if any can.

    What an id of another server's makes impossible, ``restante.ids`` knows by the old name.
    """
    names = [name, unique_part(name)]  # without other programs' endless fields and flags
    if unique_id_of(name) != unique_id and re.fullmatch("[^.,:/][^,:/]*", unique_id):
        names = [renamed(name, unique_id), renamed(unique_part(name), unique_id)]
    names.append(renamed(unique_part(name), unique_id_of(name)))  # of an endless unique part
    return next(each for each in names if 0 < len(os.fsencode(each)) <= _LONGEST)


def _move(name: str, source: int, new_name: str, held: int, removed_at: int) -> None:
    """Into ``held/``, under the first moment that is not taken for that name."""
    while True:
        try:
            return files.move(name, source, f"{removed_at}.{new_name}", held)
        except FileExistsError:
            removed_at += 1


def _victims(maildrop: int) -> Victims | None:
    try:
        return unpack(files.read(VICTIMS, maildrop))
    except FileNotFoundError:
        return None


def _withdraw(maildrop: int, *, durably: bool = True) -> None:
    """Without the list nothing will be taken later that we call not removed now."""
    with suppress(OSError):
        files.unlink(VICTIMS, maildrop)
        if durably:
            files.sync(".", parent=maildrop)


def _note(event: str, **fields: object) -> None:
    _log.error(event, extra={"fields": fields})


# -- What is held


def list_held(maildrop: int) -> list[HeldMessage]:
    """The oldest removal first."""
    settled = _settled(maildrop)
    try:
        with files.directory(files.HELD, maildrop) as held:
            found = [
                _held_message(name, inode, held, settled)
                for name, inode in files.list_files(files.HELD, maildrop)
            ]
    except FileNotFoundError:
        return []
    return sorted(filter(None, found), key=lambda message: (message.removed_at, message.name))


def _held_message(name: str, inode: int, held: int, settled: Adopted) -> HeldMessage | None:
    removed_at, old_name = _parse(name)
    try:
        size = files.status(name, held).st_size
    except FileNotFoundError:
        return None
    if not old_name:
        return None
    unique_id = _unique_id(File(files.HELD, old_name, inode), settled)
    return HeldMessage(name, unique_id, size, removed_at)


def _settled(maildrop: int) -> Adopted:
    """Unique-ids that do not follow from names.  Without them, if they are damaged, no maildrop
    opens, but what is held can be seen."""
    with suppress(TemporaryFailure):
        return adopted.read(maildrop)
    return {}


def _unique_id(file: File, settled: Adopted) -> str:
    return adopted_id(file, settled) or unique_id_of(file.name)


def name_before(name: str) -> str:
    """What a held file was called; one that is not ours has no name."""
    return _parse(name)[1]


def _parse(name: str) -> tuple[int, str]:
    """When it was removed, and its name before; a name that is not ours has none.

    No message has a name that begins with a dot: nobody would see it."""
    match = re.fullmatch(r"([0-9]{1,11})\.([^/]+)", name, re.DOTALL)
    return (int(match[1]), match[2]) if match else (0, "")


@contextmanager
def reading_held(maildrop: int, name: str) -> Iterator[int]:
    """Raises:
    MessageGone: nothing of this name is held.
    """
    try:
        if not _parse(name)[1]:
            raise MessageGone
        with files.directory(files.HELD, maildrop) as held, files.reading(name, held) as file:
            yield file
    except FileNotFoundError as error:
        raise MessageGone from error


def restore(
    maildrop: int, names: Iterable[str], *, same_unique_ids: bool, removed_at: int | None
) -> int:
    """Give held messages back; returns how many.  Overwrites nothing; repeat it after an error.

    ``removed_at``: for the rest of an UPDATE, as for ``update``.
    """
    restored = 0
    with files.directory_lock(files.HELD, maildrop) as held:
        _finish(maildrop, removed_at)
        # Not even a power failure may bring back a list of what we give back now.
        files.sync(".", parent=maildrop)
        settled = _settled(maildrop)
        parts, ids, inodes = set(), set(), {0}
        for file in scan_exactly(maildrop):
            parts.add(unique_part(file.name))
            ids.add(_unique_id(file, settled))
            inodes.add(file.inode)
        inode_of = dict(files.list_files(files.HELD, maildrop))
        for name in names:
            old = File(files.HELD, _parse(name)[1], inode_of.get(name, 1))
            new_name = old.name if same_unique_ids else _another_name(old.name, parts)
            unique_id = _unique_id(old._replace(name=new_name), settled)
            # Of two links to one message the other is purged with the rest.
            if not old.name or unique_id in ids or old.inode in inodes:
                continue
            # In new/ no name has flags (Maildir).
            place = "cur" if ":" in new_name else "new"
            with (
                suppress(FileNotFoundError, FileExistsError),
                files.directory(place, maildrop) as directory,
            ):
                files.move(name, held, new_name, directory)
                parts.add(unique_part(new_name))
                ids.add(unique_id)
                inodes.add(old.inode)
                restored += 1
        files.sync("cur", "new", files.HELD, parent=maildrop)
    return restored


def _another_name(old_name: str, present: Collection[str]) -> str:
    """With another unique part, but still one by which its sender finds the message again."""
    given, unique = given_name(old_name), fresh_unique()
    if given is not None:
        unique = unique_of(given, after=delivered_at(old_name))
        while unique in present:  # what was collected twice is given back twice
            unique = unique_of(given, after=delivered_at(unique))
    return unique + size_fields(old_name)


def purge(maildrop: int, is_over: Callable[[float], bool]) -> int:
    """Destroy held messages, chosen by the moment of their removal; returns how many."""
    purged = []
    with files.directory_lock(files.HELD, maildrop) as held:
        for name, _ in files.list_files(files.HELD, maildrop):
            removed_at, old_name = _parse(name)
            if old_name and is_over(removed_at):
                with suppress(FileNotFoundError):
                    files.unlink(name, held)
                    purged.append(old_name)
        files.sync(files.HELD, parent=maildrop)
        _record_purged(maildrop, purged)
    return len(purged)


def _record_purged(maildrop: int, names: Iterable[str]) -> None:
    """The evidence by which a message may be deleted where it was collected: that it is not here
    proves nothing, since a disk may be new or a backup old.  Without this record it stays there."""
    lines = [f"{given}\n" for given in map(given_name, names) if given is not None]
    if lines:
        octets = "".join(lines).encode("ascii")
        try:
            files.append_bounded(
                PURGED, _PURGED_BEFORE, octets, maildrop, most=_PURGED_FULL, durably=True
            )
        except OSError as error:
            _note("purge not recorded", reason=error.strerror)


def purged(maildrop: int) -> set[str]:
    """Of messages that were delivered under a name and destroyed by ``purge``: those names, as far
    as they are remembered."""
    found: set[str] = set()
    for file in (_PURGED_BEFORE, PURGED):
        with suppress(FileNotFoundError):
            lines = files.read(file, maildrop).decode("ascii", "replace").split("\n")
            found.update(line for line in lines if re.fullmatch("[0-9a-f]{32}", line))
    return found


def removals(maildrop: int) -> list[int]:
    """When each held message was removed, as its name says."""
    try:
        found = [_parse(name) for name, _ in files.list_files(files.HELD, maildrop)]
    except FileNotFoundError:
        return []
    return [removed_at for removed_at, old_name in found if old_name]


def date_again(maildrop: int, now: float) -> None:
    """From now on, what was removed while the clock was wrong was removed now."""
    with files.directory_lock(files.HELD, maildrop) as held:
        for name, _ in files.list_files(files.HELD, maildrop):
            removed_at, old_name = _parse(name)
            if old_name and not is_credible(removed_at, now):
                with suppress(FileNotFoundError):
                    _move(name, held, old_name, held, int(now))
        files.sync(files.HELD, parent=maildrop)
