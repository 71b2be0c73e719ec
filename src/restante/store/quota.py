"""The quota of Maildir++: how full a Maildir is, in ``maildirsize``, shared with other programs.

The first line of that file repeats the limit (``2147483648S``).  Each line below is a change in
octets and messages (``1234 1``), appended by the program that made the change.  The sum is the
content: all messages in ``new/`` and ``cur/`` of the Maildir and of its folders, as Dovecot counts
them.  Held mail does not count, so deleting makes room at once.

The file is a cache and never synced.  By the rules of Maildir++ it is recounted when it is missing,
garbled, for another limit or ``_LONGEST`` octets long, and before mail is refused because of lines
that are not fresh.  Without a limit of ours no file is made; the file of another program is kept
correct, and a file with our former limit is removed, since other programs would go on refusing
mail because of it.

A message is added to the count before it arrives and subtracted if it does not, so a crash can only
make the count too large.  Our deliveries change the file one at a time, under a lock on the
maildrop's directory, and hold a shared lock on ``tmp/`` until their messages have arrived; a
recount waits for that lock.  Other programs are as exact as Maildir++ is.  All calls block.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from ..errors import LargerThanQuota, QuotaExceeded
from ..maildrop import Usage
from ..scanning import MAIL, list_folders, scan
from . import files, rules
from .names import File, field

MAILDIRSIZE = "maildirsize"

_LONGEST = 5120  # octets; Maildir++ recounts a file of that length
_STALE = 15 * 60  # seconds; an older count must not refuse mail (Maildir++)
_LINE = re.compile(rb" *([-+]?[0-9]{1,18}) +([-+]?[0-9]{1,18}) *")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Count:
    """The sum of a file, or of a scan of all names."""

    octets: int
    messages: int
    inode: int
    """Of the file; 0: no file."""
    is_fresh: bool
    """Whether it was counted recently and nothing has changed since."""


@contextmanager
def room(
    maildrop: int, sizes: Sequence[int], limit: int, counted: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Count messages of these sizes, which the block delivers; uncount them if it fails.

    ``limit`` in octets; 0: no limit, but the count of another program is kept correct.
    ``counted`` is called when they are in the count, before ``look_for_room`` can see that.

    Raises:
        QuotaExceeded: no room for all of them now.
        LargerThanQuota: one of them is larger than the limit.
    """
    if limit and max(sizes) > limit:
        raise LargerThanQuota(limit)
    octets = sum(sizes)
    with ExitStack() as arrived:
        counted_in = _reserve(maildrop, octets, len(sizes), limit, arrived, counted)
        try:
            yield
        except BaseException:
            if counted_in:
                with suppress(OSError):
                    _append(maildrop, -octets, -len(sizes), counted_in)
            raise
    if counted_in and counted_in != _inode(maildrop):
        forget(maildrop)  # recounted meanwhile, maybe without our messages


def look_for_room(maildrop: int, octets: Callable[[], int], limit: int) -> None:
    """Check as ``room`` does, without adding: other deliveries may take the room.

    ``octets`` is called while the count cannot change, so that nothing is in both.
    """
    if limit:
        with files.lock(maildrop):
            _look_for_room(maildrop, octets(), limit)


def _look_for_room(maildrop: int, octets: int, limit: int) -> None:
    count = _read(maildrop, limit) or _recount(maildrop, limit)
    if count.octets + octets > limit and not count.is_fresh:
        count = _recount(maildrop, limit)
    if count.octets + octets > limit:
        raise QuotaExceeded(limit)


def changed(maildrop: int, octets: int, messages: int) -> None:
    """Record that messages came or went, if a count is kept."""
    if messages:
        with suppress(OSError):
            _append(maildrop, octets, messages, 0)


def sizes(maildrop: int, folder: int, messages: Mapping[str, File]) -> dict[str, int]:
    """Return the octets of the messages that are still in this folder, if a count is kept."""
    octets = {}
    if is_counted(maildrop):
        for key, file in messages.items():
            with suppress(FileNotFoundError), files.directory(file.directory, folder) as opened:
                files.status(file.name, opened)  # or another program has moved it
                octets[key] = _size(file.name, opened)
    return octets


def settle(maildrop: int, limit: int) -> None:
    """Write the current limit where other programs read it.

    Raises:
        OSError: nothing was changed.
    """
    if is_counted(maildrop):
        with files.lock(maildrop):
            if not limit:
                _leave_to_others(maildrop)
            elif _limit(_definition(maildrop)) != limit:
                _recount(maildrop, limit)


def _leave_to_others(maildrop: int) -> None:
    """Remove our limit, which does not apply any more."""
    definition, ours = _definition(maildrop), rules.read(maildrop).quota
    if ours and _limit(definition) == ours:
        if rest := [each for each in definition.split(b",") if each != b"%dS" % ours]:
            _rewrite(maildrop, b",".join(rest))  # the number of messages is another program's
        else:
            files.unlink(MAILDIRSIZE, maildrop)
    elif files.status(MAILDIRSIZE, maildrop).st_size >= _LONGEST:
        _rewrite(maildrop, definition)
    rules.set_quota(maildrop, 0)


def forget(maildrop: int) -> None:
    """Remove the count, so that the next reader recounts, after changes of unknown size."""
    with suppress(OSError), files.lock(maildrop):
        files.unlink(MAILDIRSIZE, maildrop)


def is_counted(maildrop: int) -> bool:
    """Return whether a count is kept, by us or another program."""
    return _inode(maildrop) != 0


def usage(maildrop: int, limit: int) -> Usage:
    """Return the content, from the file if possible, or counted."""
    with files.lock(maildrop):
        count = _read(maildrop, limit) or _recount(maildrop, limit)
    return Usage(count.octets, count.messages, limit)


def _reserve(
    maildrop: int,
    octets: int,
    messages: int,
    limit: int,
    arrived: ExitStack,
    counted: Callable[[], None],
) -> int:
    """Return the inode number of the file with our line; 0: no count is kept.  Close ``arrived``
    when the messages are visible."""
    if not limit and not is_counted(maildrop):
        return 0
    with files.lock(maildrop):
        if limit:
            _look_for_room(maildrop, octets, limit)
        else:
            with suppress(OSError):  # of a cache
                _leave_to_others(maildrop)
        tmp = arrived.enter_context(files.directory("tmp", maildrop))
        arrived.enter_context(files.lock(tmp, shared=True))
        try:
            inode = _append(maildrop, octets, messages, 0)
        except OSError as error:  # of a cache; the disk may be full for the message too
            _log.warning("quota not counted", extra={"fields": {"reason": error.strerror}})
            return 0
        counted()
        return inode


def _append(maildrop: int, octets: int, messages: int, only_to: int) -> int:
    """Append a line with one write; returns the inode number of the file; 0: no file."""
    try:
        with files.appending(MAILDIRSIZE, maildrop) as file:
            inode = files.inode(file)
            if only_to in (0, inode):
                files.write(file, b"%d %d\n" % (octets, messages))
            return inode
    except FileNotFoundError:
        return 0


def _inode(maildrop: int) -> int:
    try:
        return files.status(MAILDIRSIZE, maildrop).st_ino
    except OSError:
        return 0


def _read(maildrop: int, limit: int) -> _Count | None:
    """Return None if a recount is due."""
    try:
        octets = files.read(MAILDIRSIZE, maildrop)
        status = files.status(MAILDIRSIZE, maildrop)
    except OSError:
        return None
    definition, *lines = octets.split(b"\n")
    if lines[-1:] != [b""] or len(octets) >= _LONGEST or (limit and _limit(definition) != limit):
        return None
    changes = [_LINE.fullmatch(line) for line in lines[:-1]]
    total = messages = 0
    for change in changes:
        if change is None:
            return None
        total += int(change[1])
        messages += int(change[2])
    if not changes or total < 0 or messages < 0:
        return None
    is_fresh = len(changes) == 1 and 0 <= time.time() - status.st_mtime < _STALE
    return _Count(total, messages, status.st_ino, is_fresh)


def _limit(definition: bytes) -> int:
    match = re.search(rb"(?:^|,)([0-9]{1,18})S(?=,|$)", definition)
    return int(match[1]) if match else 0


def _recount(maildrop: int, limit: int) -> _Count:
    """Count by all names; with a limit, write the result."""
    if not limit:
        return _count(maildrop)
    definition, number = _definition(maildrop), b""
    if match := re.search(rb"(?:^|,)([0-9]{1,18}C)(?=,|$)", definition):
        number = b"," + match[1]  # of messages, which another program limits
    with suppress(OSError):
        rules.set_quota(maildrop, limit)
    return _rewrite(maildrop, b"%dS%s" % (limit, number))


def _rewrite(maildrop: int, definition: bytes) -> _Count:
    """Count, and write the result unless something changed meanwhile."""
    before = _latest(maildrop)
    count = _count(maildrop)
    with suppress(OSError):
        text = b"%s\n%d %d\n" % (definition, count.octets, count.messages)
        files.replace_cache(MAILDIRSIZE, text, maildrop)
        count = replace(count, inode=_inode(maildrop))
        if _latest(maildrop) != before:
            files.unlink(MAILDIRSIZE, maildrop)
    return count


def _count(maildrop: int) -> _Count:
    with files.directory("tmp", maildrop) as tmp, files.lock(tmp):
        octets = list(_sizes(maildrop))
    return _Count(sum(octets), len(octets), 0, is_fresh=True)


def _definition(maildrop: int) -> bytes:
    """Return the first line of the file, or nothing."""
    with suppress(OSError):
        return files.read(MAILDIRSIZE, maildrop).partition(b"\n")[0]
    return b""


def _sizes(maildrop: int) -> Iterable[int]:
    """Yield the size of each message once.  If another program keeps renaming files, some may be
    missing: no mail is refused for that, and such a count is not written."""
    for folder in [".", *list_folders(maildrop)]:
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            files.directory(folder, maildrop) as opened,
        ):
            there = [name for name in MAIL if files.exists(name, opened)]
            for name, names in scan(opened, there).names.items():
                with files.directory(name, opened) as directory:
                    for each in names:
                        with suppress(FileNotFoundError):
                            yield _size(each, directory)


def _size(name: str, directory: int) -> int:
    size = field("S", name)
    return files.status(name, directory).st_size if size is None else size


def _latest(maildrop: int) -> int:
    """Return when a counted directory last changed, in nanoseconds since the epoch."""
    times = [0]
    for folder in [".", *list_folders(maildrop)]:
        for name in ("new", "cur"):
            with suppress(FileNotFoundError, NotADirectoryError):
                times.append(files.status(f"{folder}/{name}", maildrop).st_mtime_ns)
    return max(times)
