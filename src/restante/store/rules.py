"""Changes of hold and EXPIRE, and their effect on mail that is already there.

Each maildrop records in ``restante.rules`` which hold and which EXPIRE are in force since when, and
which quota this server wrote into ``maildirsize`` for other programs.  A shorter rule applies to
older mail too, but only ``GRACE`` seconds after the change: until then the operator can correct a
mistake, and the log shows how much will be removed.  A longer rule applies at once.  The rule
before the first entry is unknown, so the first entry counts as a change.

``keep`` is not a time: under it, mail that a client deletes stays in the maildrop.  Mail that is
already held or that expires is held by the previous rule, or for ``DEFAULT_HOLD`` without one.

The file begins with a checksum.  A lost or damaged one only makes mail stay longer.  All calls
that take a maildrop block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from ..maildrop import Forecast
from . import files

RULES = "restante.rules"
GRACE = 86_400
"""Seconds between a change and the first removal because of it: a day to correct a mistake."""
DEFAULT_HOLD = 14 * 86_400.0
"""Seconds; also the default of ``store.hold``."""

_MOST = 16  # changes that are recorded; forgetting older ones only makes mail stay longer
_DIGEST = 8  # octets: finds torn files, not forgeries


class RuleChange(NamedTuple):
    """The moment from which a rule is in force."""

    since: int
    """Seconds since the epoch."""
    seconds: float
    """Seconds for which mail stays; infinity is ``keep`` or ``never``."""


History = tuple[RuleChange, ...]
"""The oldest first."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules recorded for one maildrop."""

    hold: History = ()
    expire: History = ()
    quota: int = 0
    """Octets; our limit in ``maildirsize``.  0: the limit is not ours."""

    def changed(self, at: int, *, hold: float | None = None, expire: float | None = None) -> Rules:
        """Return the rules with these in force from now on, in seconds; None: unchanged.

        A recorded change in the future was made by a wrong clock and counts as made now.
        """
        if not self.expire and expire == inf:
            expire = None  # a maildrop that never expired mail needs no record
        new_hold, new_expire = _changed(self.hold, hold, at), _changed(self.expire, expire, at)
        return replace(self, hold=new_hold, expire=new_expire)

    def a_day_before(self, now: float) -> Rules:
        """Return the rules without changes whose grace is not over."""
        histories = (self.hold, self.expire)
        hold, expire = (tuple(e for e in each if e.since + GRACE <= now) for each in histories)
        return replace(self, hold=hold, expire=expire)

    @property
    def is_empty(self) -> bool:
        return not (self.hold or self.expire)

    @property
    def destroys(self) -> bool:
        """Whether deleted mail is destroyed at once."""
        return bool(self.hold) and self.hold[-1].seconds == 0

    def held_until(self, removed_at: float) -> float:
        """Return when a held message may be destroyed."""
        return _end(removed_at, tuple(_without_keep(self.hold)))

    def kept_until(self, arrived_at: float) -> float:
        """Return when a message in the maildrop expires; infinity: never."""
        return _end(arrived_at, self.expire)


def _changed(history: History, seconds: float | None, at: int) -> History:
    known = tuple(each._replace(since=min(each.since, at)) for each in history)
    if seconds is None or (known and known[-1].seconds == seconds):
        return known
    return (*known, RuleChange(at, seconds))[-_MOST:]


def _without_keep(history: History) -> Iterator[RuleChange]:
    before = DEFAULT_HOLD
    for since, seconds in history:
        before = seconds if 0 < seconds < inf else before
        yield RuleChange(since, before if seconds == inf else seconds)


def _end(begun: float, history: History) -> float:
    """Return when mail from ``begun`` ends, under the rule of that time and each later one.

    Each later rule may prolong the end at once, or shorten it to at most ``GRACE`` after the
    change.  Mail of the very second of a change belongs to the rule before it.
    """
    first = sum(since < begun for since, _ in history)  # changes before the message
    if history and history[0].since == begun:
        first = 1
    end = begun + history[first - 1].seconds if first else inf
    for since, seconds in history[first:]:
        end = max(begun + seconds, min(end, since + GRACE))
    return end


def lasting(days: int | None) -> float:
    """Return days in seconds; None becomes infinity."""
    return inf if days is None else days * 86_400.0


def forecast(
    before: Rules,
    after: Rules,
    *,
    removed: Callable[[], Iterable[float]],
    arrived: Callable[[], Iterable[float]],
) -> Forecast:
    """Return what the end of the grace removes and the old rules would have kept.

    ``removed`` and ``arrived`` return when held messages were removed and when those in the
    maildrop arrived; called only if the rule has changed.
    """
    held, expiring = list[float](), list[float]()
    if before.hold != after.hold:
        old, new = (tuple(_without_keep(each.hold)) for each in (before, after))
        held = list(_going(old, new, removed()))
    if before.expire != after.expire:
        expiring = list(_going(before.expire, after.expire, arrived()))
    return Forecast(len(held), len(expiring), min([*held, *expiring], default=inf))


def _going(before: History, after: History, begun: Iterable[float]) -> Iterator[float]:
    """Yield ends that are earlier by the new rule.

    Without a rule before, mail that should have gone by the new rule shows that it is new.
    """
    since, seconds = after[-1]
    for each in begun:
        end = _end(each, after)
        is_sooner = end < _end(each, before) if before else each + seconds <= since
        if is_sooner and end <= since + GRACE:
            yield end


# -- The file


def read(maildrop: int) -> Rules:
    """Read the rules; a damaged or missing file gives empty ones."""
    try:
        digest, _, octets = files.read(RULES, maildrop).partition(b"\n")
    except FileNotFoundError:
        return Rules()
    if digest != _checksum(octets):
        return Rules()
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        fields = json.loads(octets)
        return Rules(_parsed(fields["hold"]), _parsed(fields["expire"]), int(fields["quota"]))
    return Rules()


def note(
    maildrop: int, at: int, *, hold: float | None = None, expire: float | None = None
) -> tuple[Rules, Rules]:
    """Apply ``Rules.changed``, durably; return the rules before and after."""
    before = read(maildrop)
    if before.changed(at, hold=hold, expire=expire) == before:
        return before, before  # the usual case, without a lock
    with files.lock(maildrop):
        before = read(maildrop)
        after = before.changed(at, hold=hold, expire=expire)
        _write(maildrop, after)
    return before, after


def set_quota(maildrop: int, octets: int) -> None:
    """Record our quota, durably.  The caller holds ``files.lock`` of the maildrop."""
    before = read(maildrop)
    if before.quota != octets:
        _write(maildrop, replace(before, quota=octets))


def _write(maildrop: int, known: Rules) -> None:
    fields = {"hold": _plain(known.hold), "expire": _plain(known.expire), "quota": known.quota}
    octets = json.dumps(fields).encode("ascii")
    files.replace(RULES, b"%b\n%b" % (_checksum(octets), octets), maildrop)


def _plain(history: History) -> list[tuple[int, float | None]]:
    return [(since, None if seconds == inf else seconds) for since, seconds in history]


def _parsed(rows: list[tuple[int, float | None]]) -> History:
    return tuple(
        RuleChange(int(since), inf if seconds is None else float(seconds))
        for since, seconds in rows
    )


def _checksum(octets: bytes) -> bytes:
    return hashlib.blake2b(octets, digest_size=_DIGEST).hexdigest().encode("ascii")
