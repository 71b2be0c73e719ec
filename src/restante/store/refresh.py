"""Looking at a maildrop that has changed: an index of what is there now.

From the index known comes all that is still so.  Only the directories that have changed are
read, only messages whose names do not tell their size are opened, and where nobody quarrels
for a unique-id only what is new is worked out.

No message leaves the listing because a directory was read while another program renamed files
in it (``scanning``): what the index knows stays until a look that is exact does not find it.
Without an index there is nothing to fill the holes from, and the look must be exact.
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
from .coded import LONGEST, coding
from .files import in_thread
from .index import (
    INCOMPLETE,
    UNKNOWN,
    Form,
    Index,
    IndexChange,
    Row,
    Stamps,
    follow,
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

MEASURE_SIZES = "restante.measure-sizes"  # an empty file: names in this maildrop are not believed

_BATCH = 32  # messages measured in one call that cannot be cancelled
_MANY = 1000  # messages at once that are new; of more, all is worked out anew
_LONG = 1.0  # seconds; whoever waits longer for a listing is told why in the log
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO}

_log = logging.getLogger(__name__)


async def index_of_now(
    maildrop: int, began: int, known: Index | None, *, measure_all: bool = False
) -> Index:
    """An index of what is there now, also on disk.

    ``began``: when the session's lock was taken, by the clock of the file system.  ``known``: the
    newest index that can be believed.  ``measure_all``: every message is read, whatever its name
    tells of its size.

    Whoever loses patience with many messages of unknown size leaves what was found so far.

    Raises:
        TemporaryFailure: another program changes the maildrop all the time.
        OSError: also when ``new`` or ``cur`` is missing.
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
    """All, in the order of the listing, or those that are new."""
    stamps: Stamps
    placed: int = 0
    change: IndexChange | None = None
    """What else has changed; None: ``messages`` are all."""


def _write(maildrop: int, known: Index | None, snapshot: _Snapshot, now: Stamps) -> Index:
    messages = [message for message in snapshot.messages if message.size >= 0]
    if now != INCOMPLETE and any(message.form is Form.GUESSED for message in messages):
        now = UNKNOWN
    if known is not None and snapshot.change is not None:
        return follow(maildrop, known, snapshot.change._replace(added=messages), now)
    index = Index(messages, now, snapshot.placed)
    save(maildrop, index)
    return index


def _snapshot(maildrop: int, began: int, known: Index | None) -> _Snapshot:
    """What is there now; sizes that names do not tell are still to be measured."""
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
    """None: it would have to be exact, and another program did not let it.

    Otherwise ``known`` fills the holes: what it has and was not seen stays.
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


# -- What has changed


class _Difference(NamedTuple):
    """An index, and what was seen in the directories that were read."""

    gone: dict[Identity, int]
    """Places of messages that were not seen."""
    moved: dict[int, File]
    """By place; the same messages under another name."""
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
    """None: it is not that simple."""
    if known.is_guessed or len(difference.new) > _MANY:
        return None
    is_believed = bool(difference.new) and are_names_believed(maildrop)
    added = [_message(unique_id_of(file.name), file, is_believed) for file in difference.new]
    ids = {message.unique_id for message in added}
    if len(ids) < len(added) or known.has(ids) or _may_be_adopted(maildrop, added):
        return None
    gone = sorted(difference.gone.values()) if seen.is_exact else ()
    other = {at: known.row(at)._replace(file=file) for at, file in difference.moved.items()}
    return _Snapshot(added, now, change=IndexChange(gone, other))


def _may_be_adopted(maildrop: int, messages: Iterable[Row]) -> bool:
    """Whether one of these may have another unique-id than its name says, or one that is taken."""
    words = {part for each in messages for part in (unique_part(each.file.name), each.unique_id)}
    return bool(words) and adopted.mention(maildrop, words)


# -- All that is there


def _all(
    maildrop: int, known: Index, seen: Scan, difference: _Difference, now: Stamps
) -> _Snapshot | None:
    """None: messages quarrel for a unique-id, and one may only have been replaced by the other."""
    settled = adopted.read(maildrop)
    places = known.places()

    def is_known(file: File) -> bool:
        at = places.get(file.inode)
        return at is not None and known.is_of(at, file)

    by_id = identify(
        [*seen.files(), *_not_read(known, seen), *_not_seen(known, seen, difference)],
        settled,
        lambda file: (not is_known(file), _arrived(maildrop, file)),
    )
    if quarrels := contested(by_id, settled):
        if not seen.is_exact:
            return None
        settled.update(quarrels)
        try:
            adopted.write(maildrop, settled)
        except OSError as error:
            # If the one that keeps the id left, another would inherit it, and a client would take
            # that one for known.  Where nothing can be written nobody leaves.
            if error.errno != errno.EROFS:
                raise
        now = UNKNOWN
    placed = {unique_id for (_, inode), unique_id in settled.items() if not inode}
    is_believed = are_names_believed(maildrop)
    messages = [
        Row(unique_id, file, *known.measured(places[file.inode]))
        if is_known(file)
        else _message(unique_id, file, is_believed)
        for unique_id, file in by_id.items()
    ]
    return _Snapshot(messages, now, len(placed & by_id.keys()))


def _not_read(known: Index, seen: Scan) -> Iterable[File]:
    """What is in directories that are as they were."""
    for directory in MAIL:
        if directory not in seen.names:
            for name, at in known.files_in(directory).items():
                yield File(directory, name, known.inodes[at])


def _not_seen(known: Index, seen: Scan, difference: _Difference) -> Iterable[File]:
    """What nothing has shown to be gone."""
    if not seen.is_exact:
        yield from (known.row(at).file for at in difference.gone.values())


def _arrived(maildrop: int, file: File) -> float:
    """When another program says that it came, which decides where we know nothing better.

    Its inode number says nothing: numbers that became free are given out again.
    """
    try:
        with files.directory(file.directory, maildrop) as directory:
            return files.status(file.name, directory).st_mtime_ns
    except FileNotFoundError:
        return inf


# -- Sizes


def _message(unique_id: str, file: File, is_believed: bool) -> Row:
    """Size and form are as the name tells them."""
    size, dotted = field("W", file.name), field("D", file.name)
    if size is None or not is_believed:
        return Row(unique_id, file, -1)
    if dotted is None or field("S", file.name) != size:
        return Row(unique_id, file, size)
    return Row(unique_id, file, size, Form.CRLF if dotted else Form.READY)


def _is_measured(message: Row) -> bool:
    return message.size >= 0 and message.form is not Form.GUESSED


def are_names_believed(maildrop: int) -> bool:
    return not files.exists(MEASURE_SIZES, maildrop)


def correct(maildrop: int, index: Index, sizes: Mapping[int, int]) -> Index:
    """The index after messages turned out to be of other sizes, on disk and for all processes.

    Each wrong size costs a client its connection.  So after the first name that was wrong no name
    in this maildrop is believed any more, and the next login measures all other messages.

    ``sizes``: octets on the wire, by place in the index.
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
        files.move_stamp("new", maildrop)  # what other processes know is not believed any more
    return corrected


def _distrust_names(maildrop: int) -> None:
    """Durably, as far as the disk lets us."""
    if are_names_believed(maildrop):
        _log.warning("wrong sizes in names", extra={"fields": {"file": MEASURE_SIZES}})
        with suppress(OSError):
            files.touch(MEASURE_SIZES, maildrop)
            files.sync(".", parent=maildrop)


def _measure(maildrop: int, rows: list[Row], places: Sequence[int]) -> None:
    """Put in what these are on the wire; what is gone gets a size of -1."""
    missing: dict[Identity, int] = {}
    for at in places:
        try:
            rows[at] = measured(maildrop, rows[at])
        except FileNotFoundError:
            missing[rows[at].file.identity] = at
    if missing:
        _measure_moved(maildrop, rows, missing)
    if any(_is_wrong_in_name(rows[at]) for at in places):
        _distrust_names(maildrop)


def _measure_moved(maildrop: int, rows: list[Row], missing: Mapping[Identity, int]) -> None:
    """Another program has renamed or removed these."""
    seen = scan_for(maildrop, missing)
    now = {file.identity: file for file in seen.select(missing)}
    for identity, at in missing.items():
        with suppress(FileNotFoundError):  # renamed once more: as it is known, or the next time
            if identity in now:
                rows[at] = measured(maildrop, rows[at]._replace(file=now[identity]))
            elif seen.is_exact:
                rows[at] = rows[at]._replace(size=-1)


def _is_wrong_in_name(message: Row) -> bool:
    return _is_measured(message) and field("W", message.file.name) not in (None, message.size)


def measured(maildrop: int, message: Row) -> Row:
    """What cannot be read is listed all the same."""
    with files.directory(message.file.directory, maildrop) as directory:
        try:
            with files.reading(message.file.name, directory) as file:
                is_coded = bool(coding(files.beginning(file, LONGEST)))
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
