"""Bring the index of a maildrop up to date at login.

The work depends on the number of changes, not on the size of the maildrop:

1. A directory is not read if its stamp equals that of the index (``scanning.passes``).
2. In the other directories, names and inode numbers are compared with the index
   (``_difference``).  If a name has disappeared and a new name has the same unique part and inode
   number, the file was renamed.
3. If the difference is small and undisputed, it becomes an ``IndexChange`` (``_small_change``), and
   ``index.apply_change`` derives the new index from the old one.
4. Otherwise all rows are computed again (``_compute_all_rows``): if two files claim the same
   unique-id, if an adopted id may belong to a new message, if the file of adopted ids has changed,
   if a size is a guess, or if more than 1,000 messages are new.  Known sizes are reused in each of
   these cases.
5. Only messages whose names do not contain their size are opened and measured.  This is done in
   batches: if the client gives up, the sizes measured so far are saved for its next login.

A message stays in the listing even if another program renames it during a pass: a message in the
index is dropped only if an exact scan does not find it.  If such a message has in fact been
removed, the response to RETR is -ERR, and the message is dropped at the next login during which
the maildrop does not change.  Without an index, the scan must be exact, because messages that it
misses cannot be added from the index.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import NamedTuple

from ..scanning import MAIL, ChangingMaildir, Scan, passes, scan_for
from . import adopted, files
from .coded import PREFIX_LENGTH, encoding_of
from .files import in_thread
from .index import (
    INCOMPLETE,
    UNKNOWN,
    Form,
    Index,
    IndexChange,
    Row,
    Stamps,
    apply_change,
    save,
    stamps,
    trusted,
)
from .names import (
    File,
    Identity,
    contested,
    field,
    identify,
    unique_id_of,
    unique_part,
)

# Name of an empty file in a maildrop where the sizes in file names are not trusted.
MEASURE_SIZES = "restante.measure-sizes"

_BATCH = 32  # messages measured in one call in a thread, which cannot be cancelled
_MAX_NEW = 1000  # limit of new messages in one change: inserting row by row takes quadratic time
_SLOW_LOGIN = 1.0  # seconds; the log explains logins that take longer
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO}

_log = logging.getLogger(__name__)


async def current_index(
    maildrop: int, began: int, previous: Index | None, *, measure_all: bool = False
) -> Index:
    """Return an index of the current content, and write it to disk.

    ``began``: when the session acquired its lock, on the file system's clock.  ``previous``: the
    newest index that is valid.  ``measure_all``: read every message, even if its name contains
    its size.

    If the caller is cancelled while messages are measured, the sizes measured so far are written.

    Raises:
        TemporaryFailure: another program keeps changing the maildrop.
        OSError: the maildrop cannot be read, or ``new`` or ``cur`` is missing.
    """
    start = time.monotonic()
    snapshot = await in_thread(_snapshot, maildrop, began, previous)
    unmeasured = [
        position
        for position, each in enumerate(snapshot.messages)
        if measure_all or not _is_measured(each)
    ]
    try:
        for first in range(0, len(unmeasured), _BATCH):
            batch = unmeasured[first : first + _BATCH]
            await in_thread(_measure, maildrop, snapshot.messages, batch)
    except BaseException:
        is_incomplete = previous is None or not previous.is_complete
        await in_thread(
            _write, maildrop, previous, snapshot, INCOMPLETE if is_incomplete else UNKNOWN
        )
        raise
    index = await in_thread(_write, maildrop, previous, snapshot, trusted(snapshot.stamps, began))
    if (seconds := time.monotonic() - start) > _SLOW_LOGIN:
        fields = {"messages": len(index), "measured": len(unmeasured), "ms": round(seconds * 1000)}
        _log.warning("maildrop indexed", extra={"fields": fields})
    return index


class _Snapshot(NamedTuple):
    """The current content of a maildrop, from which a new index is built."""

    messages: list[Row]
    """All messages, in the order of the listing; only the new messages if ``change`` is given."""
    stamps: Stamps
    ordered_count: int = 0
    """Number of messages whose order comes from another server; they are listed first."""
    change: IndexChange | None = None
    """Removed and replaced messages; None if ``messages`` contains all messages."""


def _write(maildrop: int, previous: Index | None, snapshot: _Snapshot, new_stamps: Stamps) -> Index:
    messages = [message for message in snapshot.messages if message.size >= 0]
    if new_stamps != INCOMPLETE and any(message.form is Form.GUESSED for message in messages):
        new_stamps = UNKNOWN
    if previous is not None and snapshot.change is not None:
        return apply_change(
            maildrop, previous, snapshot.change._replace(added=messages), new_stamps
        )
    index = Index(messages, new_stamps, snapshot.ordered_count)
    save(maildrop, index)
    return index


def _snapshot(maildrop: int, began: int, previous: Index | None) -> _Snapshot:
    """Return the current content.  Sizes that are not in file names must still be measured."""
    snapshot = None
    if previous is not None and previous.is_complete:
        snapshot = _snapshot_once(maildrop, began, previous, must_be_exact=False)
    snapshot = snapshot or _snapshot_once(maildrop, began, previous, must_be_exact=True)
    if snapshot is None:
        raise ChangingMaildir
    return snapshot


def _snapshot_once(
    maildrop: int, began: int, previous: Index | None, *, must_be_exact: bool
) -> _Snapshot | None:
    """Return the current content, or None if other programs prevented an exact scan.

    If the scan need not be exact, messages in ``previous`` are included even if the scan missed
    them.
    """
    index = previous or Index()
    adopted_now = stamps(maildrop)[6:]
    for seen in passes(maildrop, known=index.directories, clock=began):
        difference = _difference(index, seen)
        if not must_be_exact and not difference.missing:
            break
    if must_be_exact and not seen.is_exact:
        return None
    new_stamps = (*seen.stamps["new"], *seen.stamps["cur"], *adopted_now)
    if difference.missing and not seen.is_exact:
        new_stamps = UNKNOWN
    snapshot = None
    if previous is not None and adopted_now == previous.stamps[6:]:
        snapshot = _small_change(maildrop, previous, seen, difference, new_stamps)
    return snapshot or _compute_all_rows(maildrop, index, seen, difference, new_stamps)


# -- Changes since the index


class _Difference(NamedTuple):
    """The differences between an index and the directories that were read."""

    missing: dict[Identity, int]
    """Positions of messages that were not seen, by identity."""
    moved: dict[int, File]
    """New files of renamed messages, by position."""
    new: list[File]


def _difference(previous: Index, seen: Scan) -> _Difference:
    """Compare the directories that were read with an index."""
    missing: dict[Identity, int] = {}
    unknown_files: list[File] = []
    inodes = previous.inodes
    for directory, names in seen.names.items():
        old_positions = previous.files_in(directory)
        unknown = [
            File(directory, name, inode)
            for name, inode in names.items()
            if name not in old_positions or inodes[old_positions[name]] != inode
        ]
        unknown_files += unknown
        if len(names) - len(unknown) < len(old_positions):
            for position in [
                position
                for name, position in old_positions.items()
                if names.get(name) != inodes[position]
            ]:
                missing[unique_part(previous.row(position).file.name), inodes[position]] = position
    if not missing:
        return _Difference(missing, {}, unknown_files)
    moved: dict[int, File] = {}
    new: list[File] = []
    for file in unknown_files:
        if file.identity in missing:
            moved[missing.pop(file.identity)] = file
        else:
            new.append(file)
    return _Difference(missing, moved, new)


def _small_change(
    maildrop: int, previous: Index, seen: Scan, difference: _Difference, new_stamps: Stamps
) -> _Snapshot | None:
    """Return a change that does not depend on other messages, or None if all rows are needed.

    If ids of new messages collide with each other, with the index or with adopted ids,
    ``_compute_all_rows`` assigns them, because it considers all files that claim an id.
    """
    if previous.is_guessed or len(difference.new) > _MAX_NEW:
        return None
    is_trusted = bool(difference.new) and are_names_trusted(maildrop)
    added = [_message(unique_id_of(file.name), file, is_trusted) for file in difference.new]
    ids = {message.unique_id for message in added}
    if len(ids) < len(added) or previous.has(ids) or _may_be_adopted(maildrop, added):
        return None
    missing = sorted(difference.missing.values()) if seen.is_exact else ()
    replaced = {
        position: previous.row(position)._replace(file=file)
        for position, file in difference.moved.items()
    }
    return _Snapshot(added, new_stamps, change=IndexChange(missing, replaced))


def _may_be_adopted(maildrop: int, messages: Iterable[Row]) -> bool:
    """Return whether an adopted id may belong to one of these messages."""
    names = {part for each in messages for part in (unique_part(each.file.name), each.unique_id)}
    return bool(names) and adopted.contains(maildrop, names)


# -- All messages


def _compute_all_rows(
    maildrop: int, previous: Index, seen: Scan, difference: _Difference, new_stamps: Stamps
) -> _Snapshot | None:
    """Return all messages.

    Returns None if two files claim the same unique-id and the scan is not exact, because they may
    be the same file before and after a rename.
    """
    adopted_ids = adopted.read(maildrop)
    positions = previous.positions()

    def is_known(file: File) -> bool:
        position = positions.get(file.inode)
        return position is not None and previous.matches(position, file)

    by_id = identify(
        [*seen.files(), *_not_read(previous, seen), *_not_seen(previous, seen, difference)],
        adopted_ids,
        lambda file: (not is_known(file), _time_of_file(maildrop, file)),
    )
    if conflicts := contested(by_id, adopted_ids):
        if not seen.is_exact:
            return None
        adopted_ids.update(conflicts)
        try:
            adopted.write(maildrop, adopted_ids)
        except OSError as error:
            # If the message that keeps the id were removed, another message would inherit the id,
            # and clients would not download that message.  On a read-only disk no message is
            # removed.
            if error.errno != errno.EROFS:
                raise
        new_stamps = UNKNOWN
    ordered_ids = {unique_id for (_, inode), unique_id in adopted_ids.items() if not inode}
    is_trusted = are_names_trusted(maildrop)
    messages = [
        Row(unique_id, file, *previous.measured(positions[file.inode]))
        if is_known(file)
        else _message(unique_id, file, is_trusted)
        for unique_id, file in by_id.items()
    ]
    return _Snapshot(messages, new_stamps, len(ordered_ids & by_id.keys()))


def _not_read(previous: Index, seen: Scan) -> Iterable[File]:
    """Yield the files of directories that have not changed."""
    for directory in MAIL:
        if directory not in seen.names:
            for name, position in previous.files_in(directory).items():
                yield File(directory, name, previous.inodes[position])


def _not_seen(previous: Index, seen: Scan, difference: _Difference) -> Iterable[File]:
    """Yield the files that were not seen, unless an exact scan proves their removal."""
    if not seen.is_exact:
        yield from (previous.row(position).file for position in difference.missing.values())


def _time_of_file(maildrop: int, file: File) -> float:
    """Return the time stamp that decides which of several unknown files keeps a unique-id.

    Inode numbers do not show the age of a file, because the file system reuses them.
    """
    try:
        with files.directory(file.directory, maildrop) as directory:
            return files.status(file.name, directory).st_mtime_ns
    except FileNotFoundError:
        return inf


# -- Sizes


def _message(unique_id: str, file: File, is_trusted: bool) -> Row:
    """Return a row with the size and form that the file name contains; -1 for an unknown size."""
    size, dotted = field("W", file.name), field("D", file.name)
    if size is None or not is_trusted:
        return Row(unique_id, file, -1)
    if dotted is None or field("S", file.name) != size:
        return Row(unique_id, file, size)
    return Row(unique_id, file, size, Form.CRLF if dotted else Form.READY)


def _is_measured(message: Row) -> bool:
    return message.size >= 0 and message.form is not Form.GUESSED


def are_names_trusted(maildrop: int) -> bool:
    return not files.exists(MEASURE_SIZES, maildrop)


def correct_sizes(maildrop: int, index: Index, sizes: Mapping[int, int]) -> Index:
    """Return an index with corrected sizes, and write it to disk.

    Each wrong size costs a client its connection.  So after the first wrong size in a file name,
    no file name in this maildrop is trusted any more, and the next login measures all other
    messages.

    ``sizes``: octets on the wire, by position in the index.
    """
    messages = [index.row(position) for position in range(len(index))]
    sizes_match_names = [field("W", each.file.name) == each.size for each in messages]
    replaced = {
        position: messages[position]._replace(size=size, form=Form.UNKNOWN)
        for position, size in sizes.items()
    }
    if any(sizes_match_names[position] for position in sizes):
        _distrust_names(maildrop)
        for position, each in enumerate(messages):
            if sizes_match_names[position] and position not in sizes:
                replaced[position] = each._replace(form=Form.GUESSED)
    corrected = index.changed(IndexChange(replaced=replaced), UNKNOWN)
    save(maildrop, corrected, durably=True)
    with suppress(OSError):
        files.renew_ctime("new", maildrop)  # so that other processes rebuild their indexes
    return corrected


def _distrust_names(maildrop: int) -> None:
    """Stop trusting the sizes in file names, durably if the disk allows it."""
    if are_names_trusted(maildrop):
        _log.warning("wrong sizes in names", extra={"fields": {"file": MEASURE_SIZES}})
        with suppress(OSError):
            files.touch(MEASURE_SIZES, maildrop)
            files.sync(".", parent=maildrop)


def _measure(maildrop: int, rows: list[Row], positions: Sequence[int]) -> None:
    """Measure these rows; a message that is gone gets a size of -1."""
    missing: dict[Identity, int] = {}
    for position in positions:
        try:
            rows[position] = measured(maildrop, rows[position])
        except FileNotFoundError:
            missing[rows[position].file.identity] = position
    if missing:
        _measure_moved(maildrop, rows, missing)
    if any(_is_wrong_in_name(rows[position]) for position in positions):
        _distrust_names(maildrop)


def _measure_moved(maildrop: int, rows: list[Row], missing: Mapping[Identity, int]) -> None:
    """Measure messages that another program has renamed or removed."""
    seen, selected = scan_for(maildrop, missing)
    found_files = dict(selected)
    for identity, position in missing.items():
        with suppress(FileNotFoundError):  # renamed again: the next login measures the message
            if identity in found_files:
                rows[position] = measured(
                    maildrop, rows[position]._replace(file=found_files[identity])
                )
            elif seen.is_exact:
                rows[position] = rows[position]._replace(size=-1)


def _is_wrong_in_name(message: Row) -> bool:
    return _is_measured(message) and field("W", message.file.name) not in (None, message.size)


def measured(maildrop: int, message: Row) -> Row:
    """Return the row with its size on the wire.

    A message that cannot be read stays listed, with a guessed size.
    """
    with files.directory(message.file.directory, maildrop) as directory:
        try:
            with files.reading(message.file.name, directory) as file:
                is_coded = bool(encoding_of(files.beginning(file, PREFIX_LENGTH)))
                survey = files.survey(file)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            size = files.status(message.file.name, directory).st_size
            return message._replace(size=size, form=Form.GUESSED)
    form = Form.UNKNOWN
    if survey.has_crlf and not is_coded:
        form = Form.CRLF if survey.dotted else Form.READY
    return message._replace(size=survey.size, form=form)
