"""The quota of Maildir++, counted in the file ``maildirsize`` together with other programs.

The first line of the file repeats the limit (``2147483648S``).  Each further line is a change in
octets and messages (``1234 1``), appended by the program that caused the change.  The sum of the
lines is the size of all messages in ``new/`` and ``cur/`` of the Maildir and of its folders, as
Dovecot counts them.  Held mail does not count, so deleting mail frees space immediately.

The file is a cache and never synced.  By the rules of Maildir++, messages are recounted if the file
is missing, damaged, ``_MAX_SIZE`` octets long or has another limit, and before mail is refused
because of a count that is not fresh.  If restante has no limit, it creates no file.  It then keeps
another program's file correct, but removes a limit that restante set earlier, because other
programs would continue to refuse mail due to this limit.

A message is added to the count before it is delivered, and subtracted if the delivery fails, so a
crash can only make the count too large.  Deliveries by restante change the file one at a time,
under a lock on the maildrop's directory, and hold a shared lock on ``tmp/`` until their messages
are delivered.  A recount waits for the lock on ``tmp/``.  Counts of other programs are only as
exact as Maildir++ allows.  All calls block.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from ..errors import LargerThanQuota, QuotaExceeded
from ..maildrop import Usage
from ..scanning import MAIL, list_folders, scan
from . import files, rules
from .names import File, field

MAILDIRSIZE = "maildirsize"

_MAX_SIZE = 5120  # octets; Maildir++ requires a recount if the file has this size
_MAX_AGE = 15 * 60  # seconds; an older count must not refuse mail (Maildir++)
_LINE = re.compile(rb" *([-+]?[0-9]{1,18}) +([-+]?[0-9]{1,18}) *")

_log = logging.getLogger(__name__)


class _Count(NamedTuple):
    """The sum of the lines of the file, or the result of a recount."""

    octets: int
    messages: int
    inode: int
    """Inode number of the file, or 0 without a file."""
    is_fresh: bool
    """Whether messages were counted recently and have not changed since."""


@contextmanager
def room(
    maildrop: int, sizes: Sequence[int], limit: int, counted: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Count messages of these sizes while the block delivers them.

    If the block fails, the messages are subtracted again.  ``limit`` is in octets; 0 means that
    there is no limit, but the count of another program is kept correct.  ``counted`` is called
    after the messages were added to the count, and before ``check_room`` can read the new count.

    Raises:
        QuotaExceeded: the quota does not allow all of these messages at present.
        LargerThanQuota: a message is larger than the limit.
    """
    if limit and max(sizes) > limit:
        raise LargerThanQuota(limit)
    octets = sum(sizes)
    with ExitStack() as until_visible:
        counted_inode = _reserve(maildrop, octets, len(sizes), limit, until_visible, counted)
        try:
            yield
        except BaseException:
            if counted_inode:
                with suppress(OSError):
                    _append(maildrop, -octets, -len(sizes), counted_inode)
            raise
    if counted_inode and counted_inode != _inode(maildrop):
        forget(maildrop)  # another program has recounted, possibly without these messages


def check_room(maildrop: int, octets: Callable[[], int], limit: int) -> None:
    """Check whether the quota allows a message, without adding it to the count.

    Other deliveries may use the space before the message is delivered.  ``octets`` is called while
    the count cannot change, so that no message is counted twice.

    Raises:
        QuotaExceeded: the quota does not allow the message at present.
    """
    if limit:
        with files.lock(maildrop):
            _check_room(maildrop, octets(), limit)


def _check_room(maildrop: int, octets: int, limit: int) -> None:
    count = _read(maildrop, limit) or _recount(maildrop, limit)
    if count.octets + octets > limit and not count.is_fresh:
        count = _recount(maildrop, limit)
    if count.octets + octets > limit:
        raise QuotaExceeded(limit)


def record_change(maildrop: int, octets: int, messages: int) -> None:
    """Record that messages were added or removed, if a count is kept."""
    if messages:
        with suppress(OSError):
            _append(maildrop, octets, messages, 0)


def sizes(maildrop: int, folder: int, messages: Iterable[tuple[str, File]]) -> dict[str, int]:
    """Return the octets of the messages that are still in this folder, if a count is kept.

    ``messages`` are pairs of a key for the result and a file; they are read only if required.
    """
    octets = {}
    if is_counted(maildrop):
        for key, file in messages:
            with suppress(FileNotFoundError), files.directory(file.directory, folder) as descriptor:
                # Fails if another program has moved the file.
                files.status(file.name, descriptor)
                octets[key] = _size(file.name, descriptor)
    return octets


def update_limit(maildrop: int, limit: int) -> None:
    """Write the current limit to the file, so that other programs can read it.

    Raises:
        OSError: the file was not changed.
    """
    if is_counted(maildrop):
        with files.lock(maildrop):
            if not limit:
                _remove_our_limit(maildrop)
            elif _limit(_definition(maildrop)) != limit:
                _recount(maildrop, limit)


def _remove_our_limit(maildrop: int) -> None:
    """Remove a limit that restante set earlier and that no longer applies."""
    definition, ours = _definition(maildrop), rules.read(maildrop).quota
    if ours and _limit(definition) == ours:
        if rest := [each for each in definition.split(b",") if each != b"%dS" % ours]:
            _rewrite(maildrop, b",".join(rest))  # another program limits the number of messages
        else:
            files.unlink(MAILDIRSIZE, maildrop)
    elif files.status(MAILDIRSIZE, maildrop).st_size >= _MAX_SIZE:
        _rewrite(maildrop, definition)
    rules.set_quota(maildrop, 0)


def forget(maildrop: int) -> None:
    """Remove the count after changes of unknown size, so that the next reader recounts."""
    with suppress(OSError), files.lock(maildrop):
        files.unlink(MAILDIRSIZE, maildrop)


def is_counted(maildrop: int) -> bool:
    """Return whether a count is kept, by restante or by another program."""
    return _inode(maildrop) != 0


def usage(maildrop: int, limit: int) -> Usage:
    """Return how full the Maildir is, from the file if it is valid, otherwise after a recount."""
    with files.lock(maildrop):
        count = _read(maildrop, limit) or _recount(maildrop, limit)
    return Usage(count.octets, count.messages, limit)


def _reserve(
    maildrop: int,
    octets: int,
    messages: int,
    limit: int,
    until_visible: ExitStack,
    counted: Callable[[], None],
) -> int:
    """Add messages to the count.

    Returns the inode number of the file, or 0 if no count is kept.  The caller must close
    ``until_visible`` when the messages are visible.
    """
    if not limit and not is_counted(maildrop):
        return 0
    with files.lock(maildrop):
        if limit:
            _check_room(maildrop, octets, limit)
        else:
            with suppress(OSError):  # the file is only a cache
                _remove_our_limit(maildrop)
        tmp = until_visible.enter_context(files.directory("tmp", maildrop))
        until_visible.enter_context(files.lock(tmp, shared=True))
        try:
            inode = _append(maildrop, octets, messages, 0)
        except OSError as error:  # the file is only a cache; the disk may be full
            _log.warning("quota not counted", extra={"fields": {"reason": error.strerror}})
            return 0
        counted()
        return inode


def _append(maildrop: int, octets: int, messages: int, expected_inode: int) -> int:
    """Append a line with a single write.

    Returns the inode number of the file, or 0 if there is no file.
    """
    try:
        with files.appending(MAILDIRSIZE, maildrop) as file:
            inode = files.inode(file)
            if expected_inode in (0, inode):
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
    """Return the count in the file, or None if a recount is required."""
    try:
        octets = files.read(MAILDIRSIZE, maildrop)
        status = files.status(MAILDIRSIZE, maildrop)
    except OSError:
        return None
    definition, *lines = octets.split(b"\n")
    if lines[-1:] != [b""] or len(octets) >= _MAX_SIZE or (limit and _limit(definition) != limit):
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
    is_fresh = len(changes) == 1 and 0 <= time.time() - status.st_mtime < _MAX_AGE
    return _Count(total, messages, status.st_ino, is_fresh)


def _limit(definition: bytes) -> int:
    match = re.search(rb"(?:^|,)([0-9]{1,18})S(?=,|$)", definition)
    return int(match[1]) if match else 0


def _recount(maildrop: int, limit: int) -> _Count:
    """Count all messages.  If there is a limit, write the result to the file."""
    if not limit:
        return _count(maildrop)
    definition, message_limit = _definition(maildrop), b""
    if match := re.search(rb"(?:^|,)([0-9]{1,18}C)(?=,|$)", definition):
        message_limit = b"," + match[1]  # another program's limit on the number of messages
    with suppress(OSError):
        rules.set_quota(maildrop, limit)
    return _rewrite(maildrop, b"%dS%s" % (limit, message_limit))


def _rewrite(maildrop: int, definition: bytes) -> _Count:
    """Count all messages, and write the result unless the Maildir has changed during the count."""
    before = _last_change(maildrop)
    count = _count(maildrop)
    with suppress(OSError):
        text = b"%s\n%d %d\n" % (definition, count.octets, count.messages)
        files.replace_cache(MAILDIRSIZE, text, maildrop)
        count = count._replace(inode=_inode(maildrop))
        if _last_change(maildrop) != before:
            files.unlink(MAILDIRSIZE, maildrop)
    return count


def _count(maildrop: int) -> _Count:
    with files.directory("tmp", maildrop) as tmp, files.lock(tmp):
        octets = list(_sizes(maildrop))
    return _Count(sum(octets), len(octets), 0, is_fresh=True)


def _definition(maildrop: int) -> bytes:
    """Return the first line of the file, or an empty value if the file cannot be read."""
    with suppress(OSError):
        return files.read(MAILDIRSIZE, maildrop).partition(b"\n")[0]
    return b""


def _sizes(maildrop: int) -> Iterable[int]:
    """Yield the size of each message once.

    If another program keeps renaming files, some messages may be missing.  This does not cause mail
    to be refused, and such a count is not written.
    """
    for folder in [".", *list_folders(maildrop)]:
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            files.directory(folder, maildrop) as descriptor,
        ):
            present = [name for name in MAIL if files.exists(name, descriptor)]
            for name, names in scan(descriptor, present).names.items():
                with files.directory(name, descriptor) as directory:
                    for each in names:
                        with suppress(FileNotFoundError):
                            yield _size(each, directory)


def _size(name: str, directory: int) -> int:
    size = field("S", name)
    return files.status(name, directory).st_size if size is None else size


def _last_change(maildrop: int) -> int:
    """Return the time of the last change to a counted directory, in nanoseconds since the epoch."""
    times = [0]
    for folder in [".", *list_folders(maildrop)]:
        for name in ("new", "cur"):
            with suppress(FileNotFoundError, NotADirectoryError):
                times.append(files.status(f"{folder}/{name}", maildrop).st_mtime_ns)
    return max(times)
