"""Bring the index of a maildrop up to date at login.

The work depends on the number of changes, not on the size of the maildrop:

1. A directory is not read if its stamp equals that of the index (``scanning.passes``).
2. In the other directories, names and inode numbers are compared with the index
   (``_difference``).  If a name has disappeared and a new name has the same unique part and inode
   number, the file was renamed.
3. If the difference is small and undisputed, it becomes an ``IndexChange`` (``_small_change``), and
   ``index.apply_change`` derives the new index from the old one.
4. Otherwise all rows are computed again (``_all``): if two files claim the same unique-id, if an
   adopted id may belong to a new message, if the file of adopted ids has changed, if a size is a
   guess, or if more than 1,000 messages are new.  Known sizes are reused in each of these cases.
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
_MANY = 1000  # limit of new messages in one change: inserting row by row takes quadratic time
_LONG = 1.0  # seconds; the log explains logins that take longer
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO}

_log = logging.getLogger(__name__)


async def current_index(
    maildrop: int, began: int, known: Index | None, *, measure_all: bool = False
) -> Index:
    """Return an index of the current content, and write it to disk.

    ``began``: when the session's lock was taken, on the file system's clock.  ``known``: the
    newest index that is valid.  ``measure_all``: read every message, even if its name contains
    its size.

    If the caller is cancelled while messages are measured, the sizes measured so far are written.

    Raises:
        TemporaryFailure: another program keeps changing the maildrop.
        OSError: the maildrop cannot be read, or ``new`` or ``cur`` is missing.
    """
    start = time.monotonic()
    snapshot = await in_thread(_snapshot, maildrop, began, known)
    unmeasured = [
        at for at, each in enumerate(snapshot.messages) if measure_all or not _is_measured(each)
    ]
    try:
        for first in range(0, len(unmeasured), _BATCH):
            batch = unmeasured[first : first + _BATCH]
            await in_thread(_measure, maildrop, snapshot.messages, batch)
    except BaseException:
        has_holes = known is None or not known.is_complete
        await in_thread(_write, maildrop, known, snapshot, INCOMPLETE if has_holes else UNKNOWN)
        raise
    index = await in_thread(_write, maildrop, known, snapshot, trusted(snapshot.stamps, began))
    if (seconds := time.monotonic() - start) > _LONG:
        fields = {"messages": len(index), "measured": len(unmeasured), "ms": round(seconds * 1000)}
        _log.warning("maildrop indexed", extra={"fields": fields})
    return index


class _Snapshot(NamedTuple):
    messages: list[Row]
    """All messages, in the order of the listing; only the new messages if ``change`` is given."""
    stamps: Stamps
    placed: int = 0
    """Number of messages whose order comes from another server; they are listed first."""
    change: IndexChange | None = None
    """The other parts of a small change.  None if ``messages`` contains all messages."""


def _write(maildrop: int, known: Index | None, snapshot: _Snapshot, now: Stamps) -> Index:
    messages = [message for message in snapshot.messages if message.size >= 0]
    if now != INCOMPLETE and any(message.form is Form.GUESSED for message in messages):
        now = UNKNOWN
    if known is not None and snapshot.change is not None:
        return apply_change(maildrop, known, snapshot.change._replace(added=messages), now)
    index = Index(messages, now, snapshot.placed)
    save(maildrop, index)
    return index


def _snapshot(maildrop: int, began: int, known: Index | None) -> _Snapshot:
    """Return the current content.  Sizes that are not in file names must still be measured."""
    snapshot = None
    if known is not None and known.is_complete:
        snapshot = _snapshot_once(maildrop, began, known, must_be_exact=False)
    snapshot = snapshot or _snapshot_once(maildrop, began, known, must_be_exact=True)
    if snapshot is None:
        raise ChangingMaildir
    return snapshot


def _snapshot_once(
    maildrop: int, began: int, known: Index | None, *, must_be_exact: bool
) -> _Snapshot | None:
    """Return the current content, or None if other programs prevented an exact scan.

    If the scan need not be exact, messages in ``known`` are included even if the scan missed them.
    """
    index = known or Index()
    adopted_now = stamps(maildrop)[6:]
    for seen in passes(maildrop, known=index.directories, clock=began):
        difference = _difference(index, seen)
        if not must_be_exact and not difference.gone:
            break
    if must_be_exact and not seen.is_exact:
        return None
    now = (*seen.stamps["new"], *seen.stamps["cur"], *adopted_now)
    if difference.gone and not seen.is_exact:
        now = UNKNOWN
    snapshot = None
    if known is not None and adopted_now == known.stamps[6:]:
        snapshot = _small_change(maildrop, known, seen, difference, now)
    return snapshot or _all(maildrop, index, seen, difference, now)


# -- Changes since the index


class _Difference(NamedTuple):
    """How the directories that were read differ from an index."""

    gone: dict[Identity, int]
    """Positions of messages that were not seen, by identity."""
    moved: dict[int, File]
    """New files of renamed messages, by position."""
    new: list[File]


def _difference(known: Index, seen: Scan) -> _Difference:
    gone: dict[Identity, int] = {}
    fresh: list[File] = []
    inodes = known.inodes
    for directory, names in seen.names.items():
        was = known.files_in(directory)
        unknown = [
            File(directory, name, inode)
            for name, inode in names.items()
            if name not in was or inodes[was[name]] != inode
        ]
        fresh += unknown
        if len(names) - len(unknown) < len(was):
            for at in [at for name, at in was.items() if names.get(name) != inodes[at]]:
                gone[unique_part(known.row(at).file.name), inodes[at]] = at
    if not gone:
        return _Difference(gone, {}, fresh)
    moved: dict[int, File] = {}
    new: list[File] = []
    for file in fresh:
        if file.identity in gone:
            moved[gone.pop(file.identity)] = file
        else:
            new.append(file)
    return _Difference(gone, moved, new)


def _small_change(
    maildrop: int, known: Index, seen: Scan, difference: _Difference, now: Stamps
) -> _Snapshot | None:
    """Return a change that does not depend on other messages, or None if all rows are needed.

    If ids of new messages collide with each other, with the index or with adopted ids, ``_all``
    assigns them, because it considers all files that claim an id.
    """
    if known.is_guessed or len(difference.new) > _MANY:
        return None
    is_trusted = bool(difference.new) and are_names_trusted(maildrop)
    added = [_message(unique_id_of(file.name), file, is_trusted) for file in difference.new]
    ids = {message.unique_id for message in added}
    if len(ids) < len(added) or known.has(ids) or _may_be_adopted(maildrop, added):
        return None
    gone = sorted(difference.gone.values()) if seen.is_exact else ()
    other = {at: known.row(at)._replace(file=file) for at, file in difference.moved.items()}
    return _Snapshot(added, now, change=IndexChange(gone, other))


def _may_be_adopted(maildrop: int, messages: Iterable[Row]) -> bool:
    """Return whether an adopted id may belong to one of these messages."""
    names = {part for each in messages for part in (unique_part(each.file.name), each.unique_id)}
    return bool(names) and adopted.contains(maildrop, names)


# -- All messages


def _all(
    maildrop: int, known: Index, seen: Scan, difference: _Difference, now: Stamps
) -> _Snapshot | None:
    """Return all messages.

    Returns None if two files claim the same unique-id and the scan is not exact, because they may
    be the same file before and after a rename.
    """
    settled = adopted.read(maildrop)
    positions = known.positions()

    def is_known(file: File) -> bool:
        at = positions.get(file.inode)
        return at is not None and known.is_of(at, file)

    by_id = identify(
        [*seen.files(), *_not_read(known, seen), *_not_seen(known, seen, difference)],
        settled,
        lambda file: (not is_known(file), _arrived(maildrop, file)),
    )
    if conflicts := contested(by_id, settled):
        if not seen.is_exact:
            return None
        settled.update(conflicts)
        try:
            adopted.write(maildrop, settled)
        except OSError as error:
            # If the message that keeps the id were removed, another message would inherit the id,
            # and clients would not download that message.  On a read-only disk no message is
            # removed.
            if error.errno != errno.EROFS:
                raise
        now = UNKNOWN
    placed = {unique_id for (_, inode), unique_id in settled.items() if not inode}
    is_trusted = are_names_trusted(maildrop)
    messages = [
        Row(unique_id, file, *known.measured(positions[file.inode]))
        if is_known(file)
        else _message(unique_id, file, is_trusted)
        for unique_id, file in by_id.items()
    ]
    return _Snapshot(messages, now, len(placed & by_id.keys()))


def _not_read(known: Index, seen: Scan) -> Iterable[File]:
    """Yield the files of directories that have not changed."""
    for directory in MAIL:
        if directory not in seen.names:
            for name, at in known.files_in(directory).items():
                yield File(directory, name, known.inodes[at])


def _not_seen(known: Index, seen: Scan, difference: _Difference) -> Iterable[File]:
    """Yield the files that were not seen, unless an exact scan proves their removal."""
    if not seen.is_exact:
        yield from (known.row(at).file for at in difference.gone.values())


def _arrived(maildrop: int, file: File) -> float:
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


def correct(maildrop: int, index: Index, sizes: Mapping[int, int]) -> Index:
    """Return an index with corrected sizes, and write it to disk.

    Each wrong size costs a client its connection.  So after the first wrong size in a file name,
    no file name in this maildrop is trusted any more, and the next login measures all other
    messages.

    ``sizes``: octets on the wire, by position in the index.
    """
    messages = [index.row(at) for at in range(len(index))]
    is_named = [field("W", each.file.name) == each.size for each in messages]
    others = {at: messages[at]._replace(size=size, form=Form.UNKNOWN) for at, size in sizes.items()}
    if any(is_named[at] for at in sizes):
        _distrust_names(maildrop)
        for at, each in enumerate(messages):
            if is_named[at] and at not in sizes:
                others[at] = each._replace(form=Form.GUESSED)
    corrected = index.changed(IndexChange(other=others), UNKNOWN)
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
    for at in positions:
        try:
            rows[at] = measured(maildrop, rows[at])
        except FileNotFoundError:
            missing[rows[at].file.identity] = at
    if missing:
        _measure_moved(maildrop, rows, missing)
    if any(_is_wrong_in_name(rows[at]) for at in positions):
        _distrust_names(maildrop)


def _measure_moved(maildrop: int, rows: list[Row], missing: Mapping[Identity, int]) -> None:
    """Measure messages that another program has renamed or removed."""
    seen = scan_for(maildrop, missing)
    now = dict(seen.select(missing))
    for identity, at in missing.items():
        with suppress(FileNotFoundError):  # renamed again: the next login measures the message
            if identity in now:
                rows[at] = measured(maildrop, rows[at]._replace(file=now[identity]))
            elif seen.is_exact:
                rows[at] = rows[at]._replace(size=-1)


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
