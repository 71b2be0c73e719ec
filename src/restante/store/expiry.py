"""Mail whose time is over: old mail that expires, held mail that is destroyed.

``until`` is the latest moment that has certainly come, ``now`` what the clock says (see ``clock``);
the clock is not behind.  All calls block.
"""

from __future__ import annotations

from contextlib import suppress

from ..clock import is_credible
from ..maildrop import Forecast, Sweep
from ..scanning import scan
from . import files, rules
from .folders import each_folder
from .held import date_again, purge, removals
from .names import File
from .rules import Rules

_LEFT_OVER = 36 * 3600  # seconds; maildir(5)


def purge_due(maildrop: int, known: Rules, *, until: float, now: float) -> Sweep:
    """Destroy the held messages whose time is over, in all folders."""
    purged = doubtful = 0
    for _, folder in each_folder(maildrop):
        moments = removals(folder)
        if not all(is_credible(each, now) for each in moments):
            date_again(folder, now)
            moments = removals(folder)
        ends = [known.held_until(each) for each in moments]
        doubtful += sum(until < each <= now for each in ends)
        if any(each <= until for each in ends):
            purged += purge(folder, lambda removed_at: known.held_until(removed_at) <= until)
    return Sweep(purged, doubtful)


def arrivals(maildrop: int, now: float, *, date_again: bool = False) -> list[float]:
    """When each message arrived that is there; ``date_again`` as for ``arrived``."""
    seen = scan(maildrop).files()  # one that is missing expires the next time
    found = [arrived(maildrop, file, now, date_again=date_again) for file in seen]
    return [each for each in found if each is not None]


def arrived(maildrop: int, file: File, now: float, *, date_again: bool = False) -> float | None:
    """When a message arrived, or later: the later of its mtime and its ctime.

    So what an old server or a backup gave back with its old time has arrived now.  A file whose
    ctime cannot be right has arrived now too, and with ``date_again`` its ctime is set.  None: the
    file is gone.
    """
    try:
        with files.directory(file.directory, maildrop) as directory:
            found = files.status(file.name, directory)
            if is_credible(found.st_ctime, now):
                is_sure = is_credible(found.st_mtime, now)
                return max(found.st_ctime, found.st_mtime) if is_sure else found.st_ctime
            with suppress(PermissionError):  # another user's file
                if date_again:
                    files.move_stamp(file.name, directory)
            return now
    except FileNotFoundError:  # another program was quicker
        return None


def is_anything_held(maildrop: int) -> bool:
    return any(removals(folder) for _, folder in each_folder(maildrop))


def forecast(maildrop: int, before: Rules, after: Rules, now: float) -> Forecast:
    """What will go because these rules were changed, and would have stayed otherwise."""

    def removed() -> list[float]:
        moments = [each for _, folder in each_folder(maildrop) for each in removals(folder)]
        return [each if is_credible(each, now) else now for each in moments]

    return rules.forecast(before, after, removed=removed, arrived=lambda: arrivals(maildrop, now))


def sweep(maildrop: int, until: float) -> None:
    """Unlink what crashed deliveries left in ``tmp/``."""
    with files.directory("tmp", maildrop) as tmp:
        for name, _ in files.list_files("tmp", maildrop):
            with suppress(FileNotFoundError):
                if files.status(name, tmp).st_mtime < until - _LEFT_OVER:
                    files.unlink(name, tmp)
