"""Remove mail from a maildrop, and hold, restore or destroy removed mail.

UPDATE (RFC 1939 §6) must appear atomic to the client, although each message requires a
separate rename and the machine may crash between two of them:

1. The list of victims (identity and unique-id) is written to ``restante.removing`` and synced.
2. Each victim is renamed into ``held/``, or unlinked if removed mail is not held.
3. ``held/`` is synced before ``cur/`` and ``new/``, so that after a crash each message is in at
   least one of these directories.
4. The list is removed, and only then does the client get +OK.

If a session finds a list when it begins, it repeats steps 2 to 4 before it lists any message.  This
is safe because a victim is identified by unique part and inode number: a message that arrived later
never matches, and a victim that is already held is not found again.  If few messages of a large
maildrop are removed, each is first looked up under the name in the index.  The directories are
scanned for victims that are not found under this name, or that have a second link.  A victim that
was not seen counts as removed only after an exact scan; otherwise the client gets -ERR with the
number of messages not removed.

Restoring renames a held file back into ``cur/`` or ``new/``.  By default the message gets another
unique-id, because clients do not download a message whose unique-id they have seen before.
Restoring takes the lock of ``held/``, finishes a crashed UPDATE and syncs the removal of its list
first; otherwise a restored message could be removed again after a power failure.  No file is
overwritten.  A message stays held if its unique-id or inode number is already in the maildrop.

Purging unlinks held files whose hold time is over.  A collector may delete such a message from the
server that it came from only if the purge is recorded in ``restante.purged``.  The absence of a
message proves nothing, because the disk may be new or restored from an old backup
(docs/decisions/0197-recorded-purges.md).

A held file is named ``<time of removal in seconds>.<old name>``.  If the old name implies a
unique-id that belongs to another message, the file is named after its own id instead.  All calls
block.
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
from ..scanning import scan_exactly, scan_for
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
# Maximum size in octets: 31,775 names of 33 octets, more than are purged between two polls of a
# collector.  One older file of this size is kept as well.
_PURGED_MAX = 1_048_576

_FILE_NAME_MAX = 255  # octets of a file name on nearly every file system
# The new name begins with 11 digits of seconds (until the year 5138) and a dot.
_OLD_NAME_MAX = _FILE_NAME_MAX - 12
_ATTEMPTS = 3  # scans for files that another program renames while they are moved
_VALID_UNIQUE_PART = re.compile("[^.,:/][^,:/]*")  # a unique-id that can be a unique part
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

_log = logging.getLogger(__name__)

Victims = Mapping[Identity, str]
"""Unique-ids of the messages to remove."""


# -- UPDATE


def update(
    maildrop: int, victims: Victims, removed_at: int | None, expected: Iterable[File] = ()
) -> set[str]:
    """Remove messages durably.  Returns the unique-ids of those that could not be removed.

    ``removed_at``: the time from which the messages are held; None destroys them.
    ``expected``: files of victims, which are looked up before the maildrop is scanned.  If all are
    found, the cost does not depend on the size of the maildrop.

    If the list of victims cannot be written because the disk is full, the messages are removed
    without a list, because users delete mail to free space, and each single rename is atomic.
    """
    try:
        with files.directory_lock(files.HELD, maildrop):
            try:
                files.replace(VICTIMS, pack(victims), maildrop)
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    _delete_list(maildrop)
                    raise
                files.sync(".", parent=maildrop)  # held/ may be new
            return _remove_victims(maildrop, victims, removed_at, expected)
    except OSError as error:
        _log_event("update failed", reason=error.strerror)
        return set(victims.values())


def is_unfinished(maildrop: int) -> bool:
    """Return whether a crash interrupted an UPDATE."""
    return files.exists(VICTIMS, maildrop)


def finish_update(maildrop: int, removed_at: int | None) -> None:
    """Finish an UPDATE that a crash interrupted.

    ``removed_at``: the time from which the messages are held; None destroys them.

    Raises:
        OSError: the list cannot be read.
    """
    if _victims(maildrop) is not None:
        with files.directory_lock(files.HELD, maildrop):
            _finish(maildrop, removed_at)


def _finish(maildrop: int, removed_at: int | None) -> None:
    victims = _victims(maildrop)
    if victims is not None:
        left = _remove_victims(maildrop, victims, removed_at)
        _log_event("update finished", messages=len(victims), left=len(left))
        removed = [Entry(each, 0) for each in victims.values() if each not in left]
        now = time.time()
        journal.record(maildrop, SessionRecord(now, now, "", "", "", (), removed, "crash"))


def _remove_victims(
    maildrop: int, victims: Victims, removed_at: int | None, expected: Iterable[File] = ()
) -> set[str]:
    """Perform steps 2 to 4 of UPDATE.  The call can be repeated, and affects only the victims."""
    remaining, left, is_exact = dict(victims), set[str](), True
    try:
        selected = [(file.identity, file) for file in _in_place(maildrop, expected)]
        for attempt in range(1 + _ATTEMPTS):
            if attempt:
                scan, selected = scan_for(maildrop, remaining)
                is_exact = scan.is_exact
            seen = [(file, remaining[identity]) for identity, file in selected]
            failed, renamed = _remove_seen(maildrop, seen, removed_at)
            left |= failed
            done = {unique_id for _, unique_id in seen} - renamed
            remaining = {key: each for key, each in remaining.items() if each not in done}
            if not remaining or (attempt and not renamed):
                break
        left |= renamed
        if not is_exact:  # a message that was not seen may still exist
            left |= set(remaining.values())
        # held/ is synced first, so that a message cannot be lost in a crash.
        files.sync(files.HELD, "cur", "new", parent=maildrop)
    except OSError as error:
        _log_event("update failed", reason=error.strerror)
        left = set(victims.values())
    _delete_list(maildrop, durably=bool(left))
    return left


def _in_place(maildrop: int, expected: Iterable[File]) -> list[File]:
    """Return the files that still have their names, and have no second link elsewhere."""
    unchanged = []
    with files.directory("new", maildrop) as new, files.directory("cur", maildrop) as cur:
        for file in expected:
            with suppress(FileNotFoundError):
                status = files.status(file.name, new if file.directory == "new" else cur)
                if status.st_ino == file.inode and status.st_nlink == 1:
                    unchanged.append(file)
    return unchanged


def _remove_seen(
    maildrop: int, victims: Iterable[tuple[File, str]], removed_at: int | None
) -> tuple[set[str], set[str]]:
    """Move or unlink messages.

    Returns the unique-ids of messages that could not be moved, and those of messages that another
    program has just renamed.
    """
    left, renamed = set(), set()
    with (
        files.directory(files.HELD, maildrop) as held,
        files.directory("new", maildrop) as new,
        files.directory("cur", maildrop) as cur,
    ):
        for file, unique_id in victims:
            directory = new if file.directory == "new" else cur
            try:
                if removed_at is None:
                    files.unlink(file.name, directory)
                else:
                    new_name = _name_in_held(file.name, unique_id)
                    _move(file.name, directory, new_name, held, removed_at)
            except FileNotFoundError:
                renamed.add(unique_id)
            except OSError as error:
                _log_event("message not removed", reason=error.strerror, unique_id=unique_id)
                left.add(unique_id)
    return left, renamed


def _name_in_held(name: str, unique_id: str) -> str:
    """Return a name that preserves the unique-id and the position in the listing, if possible.

    If an adopted id makes this impossible, ``restante.ids`` contains the id for the old name.
    """
    if unique_part(name) == unique_id and name.isascii() and len(name) <= _OLD_NAME_MAX:
        return name  # the usual case
    names = _names_in_held(name, unique_id)
    return next(each for each in names if 0 < len(os.fsencode(each)) <= _OLD_NAME_MAX)


def _names_in_held(name: str, unique_id: str) -> Iterator[str]:
    """Yield the best name first, then shorter names."""
    own_id = unique_id_of(name)
    if own_id == unique_id or not _VALID_UNIQUE_PART.fullmatch(unique_id):
        yield name
        yield unique_part(name)  # without very long fields and flags of other programs
    else:
        yield renamed(name, unique_id)
        yield renamed(unique_part(name), unique_id)
    yield renamed(unique_part(name), own_id)  # for a very long unique part


def _move(name: str, source: int, new_name: str, held: int, removed_at: int) -> None:
    """Move a file into ``held/``, dated at the first second that is not in use for this name."""
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


def _delete_list(maildrop: int, *, durably: bool = True) -> None:
    """Delete the list, so that no later session removes a message reported as not removed."""
    with suppress(OSError):
        files.unlink(VICTIMS, maildrop)
        if durably:
            files.sync(".", parent=maildrop)


def _log_event(event: str, **fields: object) -> None:
    _log.error(event, extra={"fields": fields})


# -- Held messages


def list_held(maildrop: int) -> list[HeldMessage]:
    """Return the held messages, the oldest removal first."""
    adopted_ids = _adopted_ids(maildrop)
    try:
        with files.directory(files.HELD, maildrop) as held:
            messages = [
                _held_message(name, inode, held, adopted_ids)
                for name, inode in files.list_files(files.HELD, maildrop)
            ]
    except FileNotFoundError:
        return []
    return sorted(filter(None, messages), key=lambda message: (message.removed_at, message.name))


def _held_message(name: str, inode: int, held: int, adopted_ids: Adopted) -> HeldMessage | None:
    removed_at, old_name = _parse(name)
    try:
        size = files.status(name, held).st_size
    except FileNotFoundError:
        return None
    if not old_name:
        return None
    unique_id = _unique_id(File(files.HELD, old_name, inode), adopted_ids)
    return HeldMessage(name, unique_id, size, removed_at)


def _adopted_ids(maildrop: int) -> Adopted:
    """Return the adopted unique-ids, or an empty mapping if their file is damaged.

    A damaged file prevents the maildrop from being opened, but held messages can still be listed.
    """
    with suppress(TemporaryFailure):
        return adopted.read(maildrop)
    return {}


def _unique_id(file: File, adopted_ids: Adopted) -> str:
    return adopted_id(file, adopted_ids) or unique_id_of(file.name)


def name_before_removal(name: str) -> str:
    """Return a held file's name before its removal, or "" for files of other programs."""
    return _parse(name)[1]


def _parse(name: str) -> tuple[int, str]:
    """Return the time of removal and the old name of a held file; 0 and "" for other files.

    The old name never begins with a dot, because ``scanning`` skips dotfiles.
    """
    match = re.fullmatch(r"([0-9]{1,11})\.([^/]+)", name, re.DOTALL)
    return (int(match[1]), match[2]) if match else (0, "")


@contextmanager
def reading_held(maildrop: int, name: str) -> Iterator[int]:
    """Open a held message for reading.

    Raises:
        MessageGone: no message of this name is held.
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
    """Restore held messages, and return their number.  May be repeated after an error.

    ``removed_at``: the removal time for messages of an interrupted UPDATE; None destroys them.
    """
    restored = 0
    with files.directory_lock(files.HELD, maildrop) as held:
        _finish(maildrop, removed_at)
        # Even after a power failure, the list must not contain messages that are restored below.
        files.sync(".", parent=maildrop)
        adopted_ids = _adopted_ids(maildrop)
        parts, ids, inodes = set(), set(), {0}
        for file in scan_exactly(maildrop):
            parts.add(unique_part(file.name))
            ids.add(_unique_id(file, adopted_ids))
            inodes.add(file.inode)
        inode_of = dict(files.list_files(files.HELD, maildrop))
        for name in names:
            old = File(files.HELD, _parse(name)[1], inode_of.get(name, 1))
            new_name = old.name if same_unique_ids else _another_name(old.name, parts)
            unique_id = _unique_id(old._replace(name=new_name), adopted_ids)
            # If a message was linked twice, the other link stays held and is purged later.
            if not old.name or unique_id in ids or old.inode in inodes:
                continue
            # Names in new/ have no flags (Maildir).
            directory_name = "cur" if ":" in new_name else "new"
            with (
                suppress(FileNotFoundError, FileExistsError),
                files.directory(directory_name, maildrop) as directory,
            ):
                files.move(name, held, new_name, directory)
                parts.add(unique_part(new_name))
                ids.add(unique_id)
                inodes.add(old.inode)
                restored += 1
        files.sync("cur", "new", files.HELD, parent=maildrop)
    return restored


def _another_name(old_name: str, present: Collection[str]) -> str:
    """Return a name with a new unique part, which still contains the name given at delivery."""
    given, unique = given_name(old_name), fresh_unique()
    if given is not None:
        unique = unique_of(given, after=delivered_at(old_name))
        while unique in present:  # a message collected twice is restored twice
            unique = unique_of(given, after=delivered_at(unique))
    return unique + size_fields(old_name)


def purge(maildrop: int, is_over: Callable[[float], bool]) -> int:
    """Destroy held messages, and return their number.

    ``is_over``: returns whether the hold of a message with this time of removal is over.
    """
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
    """Record purged names; without this record, collectors must not delete the messages."""
    lines = [f"{given}\n" for given in map(given_name, names) if given is not None]
    if lines:
        octets = "".join(lines).encode("ascii")
        try:
            files.append_bounded(
                PURGED, _PURGED_BEFORE, octets, maildrop, max_octets=_PURGED_MAX, durably=True
            )
        except OSError as error:
            _log_event("purge not recorded", reason=error.strerror)


def purged(maildrop: int) -> set[str]:
    """Return the recorded names of delivered messages that ``purge`` has destroyed."""
    names: set[str] = set()
    for file in (_PURGED_BEFORE, PURGED):
        with suppress(FileNotFoundError):
            lines = files.read(file, maildrop).decode("ascii", "replace").split("\n")
            names.update(line for line in lines if re.fullmatch("[0-9a-f]{32}", line))
    return names


def removals(maildrop: int) -> list[int]:
    """Return the time of removal of each held message, taken from its name."""
    try:
        parsed = [_parse(name) for name, _ in files.list_files(files.HELD, maildrop)]
    except FileNotFoundError:
        return []
    return [removed_at for removed_at, old_name in parsed if old_name]


def reset_removal_times(maildrop: int, now: float) -> None:
    """Set the removal time of messages that were removed while the clock was wrong to ``now``."""
    with files.directory_lock(files.HELD, maildrop) as held:
        for name, _ in files.list_files(files.HELD, maildrop):
            removed_at, old_name = _parse(name)
            if old_name and not is_credible(removed_at, now):
                with suppress(FileNotFoundError):
                    _move(name, held, old_name, held, int(now))
        files.sync(files.HELD, parent=maildrop)
