"""Expire old mail and purge held mail.

``until`` is the latest time that is known to have passed.  ``now`` is the time of the system
clock (see ``clock``), which is never earlier than ``until``.  All calls block.
"""

from __future__ import annotations

from contextlib import suppress

from ..clock import is_credible
from ..maildrop import Forecast, Sweep
from ..scanning import scan
from . import files, rules
from .folders import each_folder
from .held import purge, removals, reset_removal_times
from .names import File
from .rules import Rules

_LEFT_OVER = 36 * 3600  # seconds after which a file in tmp/ is abandoned (maildir(5))


def purge_due(maildrop: int, recorded: Rules, *, until: float, now: float) -> Sweep:
    """Destroy the held messages whose hold time is over, in all folders."""
    purged = doubtful = 0
    for _, folder in each_folder(maildrop):
        times = removals(folder)
        if not all(is_credible(each, now) for each in times):
            reset_removal_times(folder, now)
            times = removals(folder)
        ends = [recorded.held_until(each) for each in times]
        doubtful += sum(until < each <= now for each in ends)
        if any(each <= until for each in ends):
            purged += purge(folder, lambda removed_at: recorded.held_until(removed_at) <= until)
    return Sweep(purged, doubtful)


def arrival_times(maildrop: int, now: float, *, reset_time: bool = False) -> list[float]:
    """Return the time of arrival of each message; see ``arrival_time`` for ``reset_time``."""
    seen = scan(maildrop).files()  # the next call processes messages that the scan missed
    times = [arrival_time(maildrop, file, now, reset_time=reset_time) for file in seen]
    return [each for each in times if each is not None]


def arrival_time(
    maildrop: int, file: File, now: float, *, reset_time: bool = False
) -> float | None:
    """Return the later of mtime and ctime, or None if the file has been removed.

    This time is never before the message arrived.  Mail that was copied from another server or a
    backup with its old mtime counts as having arrived when it was copied.  A file with an
    impossible ctime counts as having arrived now; with ``reset_time`` its ctime is also set to the
    current time.
    """
    try:
        with files.directory(file.directory, maildrop) as directory:
            entry = files.status(file.name, directory)
            if is_credible(entry.st_ctime, now):
                is_mtime_credible = is_credible(entry.st_mtime, now)
                return max(entry.st_ctime, entry.st_mtime) if is_mtime_credible else entry.st_ctime
            with suppress(PermissionError):  # another user's file
                if reset_time:
                    files.renew_ctime(file.name, directory)
            return now
    except FileNotFoundError:  # another program removed or renamed it
        return None


def has_held_mail(maildrop: int) -> bool:
    return any(removals(folder) for _, folder in each_folder(maildrop))


def forecast(maildrop: int, before: Rules, after: Rules, now: float) -> Forecast:
    """Return a forecast of the removals that changing the rules to ``after`` will cause."""

    def removal_times() -> list[float]:
        times = [each for _, folder in each_folder(maildrop) for each in removals(folder)]
        return [each if is_credible(each, now) else now for each in times]

    return rules.forecast(
        before,
        after,
        removal_times=removal_times,
        arrival_times=lambda: arrival_times(maildrop, now),
    )


def remove_abandoned_files(maildrop: int, until: float) -> None:
    """Unlink files that crashed deliveries left in ``tmp/``."""
    with files.directory("tmp", maildrop) as tmp:
        for name, _ in files.list_files("tmp", maildrop):
            with suppress(FileNotFoundError):
                if files.status(name, tmp).st_mtime < until - _LEFT_OVER:
                    files.unlink(name, tmp)
