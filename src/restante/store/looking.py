"""Looking at a maildrop that has changed: an index of what is there now.

From the index known comes all that is still so.  Only the directories that have changed are
read, only messages whose names do not tell their size are opened, and where nobody quarrels
for a unique-id only what is new is worked out.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from . import adopted, files
from .coded import LONGEST, coding
from .files import in_thread
from .index import UNKNOWN, Change, Form, Index, Message, Stamps, follow, save, stamps, trusted
from .names import (
    File,
    Identity,
    contested,
    field,
    identify,
    scan,
    unique_id_of,
    unique_part,
)

_BATCH = 32  # messages measured in one call that cannot be cancelled
_MANY = 1000  # messages at once that are new; of more, all is worked out anew
_SCANS = 4  # how often directories that keep changing are read
_LONG = 1.0  # seconds; whoever waits longer for a listing is told why in the log
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO}

_log = logging.getLogger(__name__)


async def index_of_now(
    maildrop: int, began: int, known: Index, *, measure_all: bool = False
) -> Index:
    """An index of what is there now, also on disk.

    ``measure_all``: every message is read, whatever its name tells of its size.

    Whoever loses patience with many messages of unknown size leaves what was found so far.

    Raises:
        OSError: also when ``new`` or ``cur`` is missing.
    """
    start = time.monotonic()
    looked = await in_thread(_look_for_changes, maildrop, known)
    if looked is None:
        looked = await in_thread(_look_at_all, maildrop, known)
    unknown = [at for at, message in enumerate(looked.messages) if measure_all or message.size < 0]
    try:
        for first in range(0, len(unknown), _BATCH):
            await in_thread(_measure, maildrop, looked.messages, unknown[first : first + _BATCH])
    except BaseException:
        await in_thread(_write, maildrop, known, looked, 0)
        raise
    index = await in_thread(_write, maildrop, known, looked, began)
    if (seconds := time.monotonic() - start) > _LONG:
        fields = {"messages": len(index), "measured": len(unknown), "ms": round(seconds * 1000)}
        _log.warning("maildrop indexed", extra={"fields": fields})
    return index


class _Looked(NamedTuple):
    messages: list[Message]
    """All, in the order of the listing, or those that are new.  A size of -1 must be measured."""
    stamps: Stamps
    placed: int = 0
    change: Change | None = None
    """What else has changed; None: ``messages`` are all."""


def _write(maildrop: int, known: Index, looked: _Looked, began: int) -> Index:
    """``began``: stamps that are not older are not believed."""
    messages = [message for message in looked.messages if message.size >= 0]
    is_guessed = any(message.form is Form.GUESSED for message in messages)
    now = UNKNOWN if is_guessed else trusted(looked.stamps, began)
    if looked.change is not None:
        return follow(maildrop, known, looked.change._replace(added=messages), now)
    index = Index(messages, now, looked.placed)
    save(maildrop, index)
    return index


# -- What has changed


def _look_for_changes(maildrop: int, known: Index) -> _Looked | None:
    """None: it is not that simple."""
    if known.is_guessed or stamps(maildrop)[6:] != known.stamps[6:]:
        return None
    found, now = _changed_directories(maildrop, known.stamps)
    gone, fresh = _differences(known, found)
    if len(fresh) > _MANY:
        return None
    other: dict[int, Message] = {}
    added: list[Message] = []
    for file in fresh:
        if file.identity in gone:
            at = gone.pop(file.identity)
            other[at] = known.message(at)._replace(file=file)
        else:
            added.append(_message(unique_id_of(file.name), file))
    ids = {message.unique_id for message in added}
    if len(ids) < len(added) or known.has(ids) or _may_be_adopted(maildrop, added):
        return None
    return _Looked(added, now, change=Change(sorted(gone.values()), other))


def _differences(
    known: Index, found: dict[str, dict[str, int]]
) -> tuple[dict[Identity, int], list[File]]:
    """Places of what is not where it was, and files that were not there."""
    gone: dict[Identity, int] = {}
    fresh: list[File] = []
    inodes = known.inodes
    for directory, names in found.items():
        was = known.files_in(directory)
        new = [
            File(directory, name, inode)
            for name, inode in names.items()
            if name not in was or inodes[was[name]] != inode
        ]
        fresh += new
        if len(names) - len(new) < len(was):
            for at in [at for name, at in was.items() if names.get(name) != inodes[at]]:
                gone[unique_part(known.message(at).file.name), inodes[at]] = at
    return gone, fresh


def _changed_directories(maildrop: int, known: Stamps) -> tuple[dict[str, dict[str, int]], Stamps]:
    """Names and inode numbers in each directory that has changed, and the stamps before.

    As ``names.scan``, this looks again if something changes meanwhile.
    """
    for _ in range(_SCANS):
        before = stamps(maildrop)
        found = {
            name: dict(files.list_files(name, maildrop))
            for name, at in (("new", 0), ("cur", 3))  # in the order in which messages move
            if before[at : at + 3] != known[at : at + 3]
        }
        if stamps(maildrop) == before:
            break
    return found, before


def _may_be_adopted(maildrop: int, messages: Iterable[Message]) -> bool:
    """Whether one of these may have another unique-id than its name says, or one that is taken."""
    words = {part for each in messages for part in (unique_part(each.file.name), each.unique_id)}
    return bool(words) and adopted.mention(maildrop, words)


# -- All that is there


def _look_at_all(maildrop: int, known: Index) -> _Looked:
    now = stamps(maildrop)
    settled = adopted.read(maildrop)
    by_id = identify(scan(maildrop), settled)
    if quarrels := contested(by_id, settled):
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
    places = known.places()
    found = []
    for unique_id, file in by_id.items():
        at = places.get(file.inode)
        if at is not None and known.is_of(at, file) and known.form(at) is not Form.GUESSED:
            found.append(Message(unique_id, file, *known.measured(at)))
        else:
            found.append(_message(unique_id, file))
    return _Looked(found, now, len(placed & by_id.keys()))


# -- Sizes


def _message(unique_id: str, file: File) -> Message:
    """Size and form are as the name tells them."""
    size, dotted = field("W", file.name), field("D", file.name)
    if size is None:
        return Message(unique_id, file, -1)
    if dotted is None or field("S", file.name) != size:
        return Message(unique_id, file, size)
    return Message(unique_id, file, size, Form.CRLF if dotted else Form.READY)


def _measure(maildrop: int, found: list[Message], places: Sequence[int]) -> None:
    """Put in what these are on the wire; what is gone stays at -1."""
    gone = []
    for at in places:
        try:
            found[at] = measured(maildrop, found[at])
        except FileNotFoundError:
            gone.append(at)
    if gone:  # or another program has renamed it
        now = {file.identity: file for file in scan(maildrop)}
        for at in gone:
            with suppress(KeyError, FileNotFoundError):
                moved = found[at]._replace(file=now[found[at].file.identity])
                found[at] = measured(maildrop, moved)


def measured(maildrop: int, message: Message) -> Message:
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
