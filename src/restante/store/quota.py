"""How full a Maildir is: the quota of Maildir++, in ``maildirsize``, which other programs share.

The first line of that file repeats the limit (``2147483648S``); every line below it is a change in
octets and messages (``1234 1``), appended by whoever made it; their sum is what is there: all
messages in ``new/`` and ``cur/`` of the Maildir and of its folders, as Dovecot counts them.  Held
mail does not count: deleting makes room at once.  The file is a cache, never synced, and counted
anew by the rules of Maildir++: when it is missing, garbled, for another limit or ``_LONGEST``
octets long, and before anybody is refused because of lines that are not fresh.  Without a limit of
ours no file is made; the file of another program is kept right, and one that has our former limit
is removed, for other programs would go on refusing mail by it.

A message is added before it arrives and taken back if it does not, so a crash can only count too
much.  Our own deliveries take turns at the file, by a lock on the maildrop's directory, and share
a lock on ``tmp/`` until they have arrived, which who counts anew waits for.  Other programs are as
exact as Maildir++ is.  All calls block.
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

_LONGEST = 5120  # octets of a file that is worth reading (Maildir++)
_STALE = 15 * 60  # seconds for which a fresh count may refuse mail (Maildir++)
_LINE = re.compile(rb" *([-+]?[0-9]{1,18}) +([-+]?[0-9]{1,18}) *")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Count:
    """What a file told, or a look at all names."""

    octets: int
    messages: int
    inode: int
    """Of the file; 0: there is none."""
    is_fresh: bool
    """Counted a short while ago, and nothing has changed since."""


@contextmanager
def room(
    maildrop: int, sizes: Sequence[int], limit: int, counted: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Add messages of these sizes, which the block makes arrive; if it fails, take them back.

    ``limit`` in octets; 0: there is none, but a count that another program keeps stays right.
    ``counted`` is called when they are in the count, before ``look_for_room`` can see that.

    Raises:
        QuotaExceeded: no room now for all of them.
        LargerThanQuota: there never will be for one of them.
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
        forget(maildrop)  # counted anew meanwhile, and nobody knows whether this one was seen


def look_for_room(maildrop: int, octets: Callable[[], int], limit: int) -> None:
    """As ``room``, and nothing is added: others may have the room first.

    ``octets`` is called while the count cannot change, so that nothing is in both.
    """
    if limit:
        with files.lock(maildrop):
            _look_for_room(maildrop, octets(), limit)


def _look_for_room(maildrop: int, octets: int, limit: int) -> None:
    found = _read(maildrop, limit) or _recount(maildrop, limit)
    if found.octets + octets > limit and not found.is_fresh:
        found = _recount(maildrop, limit)
    if found.octets + octets > limit:
        raise QuotaExceeded(limit)


def changed(maildrop: int, octets: int, messages: int) -> None:
    """Messages came or went; counted if anybody counts."""
    if messages:
        with suppress(OSError):
            _append(maildrop, octets, messages, 0)


def sizes(maildrop: int, folder: int, messages: Mapping[str, File]) -> dict[str, int]:
    """Octets of those that are still in this folder of it, if anybody counts them."""
    found = {}
    if is_counted(maildrop):
        for key, file in messages.items():
            with suppress(FileNotFoundError), files.directory(file.directory, folder) as opened:
                files.status(file.name, opened)  # or another program has moved it
                found[key] = _size(file.name, opened)
    return found


def settle(maildrop: int, limit: int) -> None:
    """Let other programs read the limit that is in force now.

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
    """We have no limit any more."""
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
    """Something has changed that cannot be told in numbers: who wants to know counts anew."""
    with suppress(OSError), files.lock(maildrop):
        files.unlink(MAILDIRSIZE, maildrop)


def is_counted(maildrop: int) -> bool:
    """Whether anybody keeps a count."""
    return _inode(maildrop) != 0


def usage(maildrop: int, limit: int) -> Usage:
    """What is there, as the file tells it, or else counted."""
    with files.lock(maildrop):
        found = _read(maildrop, limit) or _recount(maildrop, limit)
    return Usage(found.octets, found.messages, limit)


def _reserve(
    maildrop: int,
    octets: int,
    messages: int,
    limit: int,
    arrived: ExitStack,
    counted: Callable[[], None],
) -> int:
    """The inode number of the file with our line; 0: there is no count.  ``arrived`` is to be
    closed once the messages can be seen."""
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
    """One line, by one write; returns the inode number of the file, or 0: there is none."""
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
    """None: it must be counted anew."""
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
    """Look at all names; with a limit, write what there is."""
    if not limit:
        return _count(maildrop)
    definition, number = _definition(maildrop), b""
    if match := re.search(rb"(?:^|,)([0-9]{1,18}C)(?=,|$)", definition):
        number = b"," + match[1]  # of messages, which another program limits
    with suppress(OSError):
        rules.set_quota(maildrop, limit)
    return _rewrite(maildrop, b"%dS%s" % (limit, number))


def _rewrite(maildrop: int, definition: bytes) -> _Count:
    """Count, and write it if nothing moved meanwhile."""
    before = _latest(maildrop)
    found = _count(maildrop)
    with suppress(OSError):
        text = b"%s\n%d %d\n" % (definition, found.octets, found.messages)
        files.replace_cache(MAILDIRSIZE, text, maildrop)
        found = replace(found, inode=_inode(maildrop))
        if _latest(maildrop) != before:
            files.unlink(MAILDIRSIZE, maildrop)
    return found


def _count(maildrop: int) -> _Count:
    with files.directory("tmp", maildrop) as tmp, files.lock(tmp):
        found = list(_sizes(maildrop))
    return _Count(sum(found), len(found), 0, is_fresh=True)


def _definition(maildrop: int) -> bytes:
    """The first line of the file, or nothing."""
    with suppress(OSError):
        return files.read(MAILDIRSIZE, maildrop).partition(b"\n")[0]
    return b""


def _sizes(maildrop: int) -> Iterable[int]:
    """Of each message once.  If another program renames files all the time some may be missing:
    mail is not refused for that, and such a count is not written."""
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
    told = field("S", name)
    return files.status(name, directory).st_size if told is None else told


def _latest(maildrop: int) -> int:
    """The newest change of any directory that is counted, in nanoseconds."""
    found = [0]
    for folder in [".", *list_folders(maildrop)]:
        for name in ("new", "cur"):
            with suppress(FileNotFoundError, NotADirectoryError):
                found.append(files.status(f"{folder}/{name}", maildrop).st_mtime_ns)
    return max(found)
