"""Changes of hold and EXPIRE, and their effect on existing mail.

The file ``restante.rules`` of each maildrop records the values of hold and EXPIRE with the times
from which they apply, and the quota that this server wrote into ``maildirsize`` for other programs.
A shorter rule also applies to older mail, but only ``GRACE`` seconds after the change.  During this
time the operator can correct a mistake, and the log shows how much mail will be removed.  A longer
rule applies immediately.  The rule before the first entry is unknown, so the first entry counts as
a change.

``keep`` is not a time: mail that a client deletes under this rule stays in the maildrop.  Mail that
is already held, or that expires, is held according to the previous rule, or for ``DEFAULT_HOLD`` if
there is no previous rule.

The file begins with a checksum.  If the file is lost or damaged, mail is kept longer than required.
All calls with a maildrop as an argument block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from math import inf
from typing import NamedTuple

from ..maildrop import Forecast
from . import files

RULES = "restante.rules"
GRACE = 86_400
"""Seconds between a change and the first removal that it causes: a day to correct a mistake."""
DEFAULT_HOLD = 14 * 86_400.0
"""Seconds; also the default of ``store.hold``."""

_MAX_CHANGES = 16  # recorded changes; dropping older changes can only keep mail longer
_DIGEST = 8  # octets; detects torn files, not forgeries


class RuleChange(NamedTuple):
    """A rule and the time from which it applies."""

    since: int
    """Seconds since the epoch."""
    seconds: float
    """Seconds for which mail stays; infinity stands for ``keep`` or ``never``."""


History = tuple[RuleChange, ...]
"""Changes of a rule, the oldest first."""


class Rules(NamedTuple):
    """The rules recorded for one maildrop."""

    hold: History = ()
    expire: History = ()
    quota: int = 0
    """The limit that restante has written to ``maildirsize``, in octets; 0 if it has not."""

    def changed(self, at: int, *, hold: float | None = None, expire: float | None = None) -> Rules:
        """Return the rules after a change at the time ``at``.  None leaves a rule unchanged.

        ``hold`` and ``expire`` are in seconds.  If the time of a recorded change is in the future,
        the clock was wrong, and the change counts as made at ``at``.
        """
        if not self.expire and expire == inf:
            expire = None  # a maildrop that never expired mail needs no record
        new_hold, new_expire = _changed(self.hold, hold, at), _changed(self.expire, expire, at)
        return self._replace(hold=new_hold, expire=new_expire)

    def without_recent_changes(self, now: float) -> Rules:
        """Return the rules without the changes whose grace period is not over."""
        histories = (self.hold, self.expire)
        hold, expire = (tuple(e for e in each if e.since + GRACE <= now) for each in histories)
        return self._replace(hold=hold, expire=expire)

    @property
    def is_empty(self) -> bool:
        return not (self.hold or self.expire)

    @property
    def destroys_immediately(self) -> bool:
        """Whether deleted mail is destroyed immediately."""
        return bool(self.hold) and self.hold[-1].seconds == 0

    def held_until(self, removed_at: float) -> float:
        """Return the time at which a held message may be destroyed."""
        return _end(removed_at, tuple(_without_keep(self.hold)))

    def kept_until(self, arrived_at: float) -> float:
        """Return the time at which a message in the maildrop expires, or infinity for never."""
        return _end(arrived_at, self.expire)


def _changed(history: History, seconds: float | None, at: int) -> History:
    changes = tuple(each._replace(since=min(each.since, at)) for each in history)
    if seconds is None or (changes and changes[-1].seconds == seconds):
        return changes
    return (*changes, RuleChange(at, seconds))[-_MAX_CHANGES:]


def _without_keep(history: History) -> Iterator[RuleChange]:
    before = DEFAULT_HOLD
    for since, seconds in history:
        before = seconds if 0 < seconds < inf else before
        yield RuleChange(since, before if seconds == inf else seconds)


def _end(start: float, history: History) -> float:
    """Return the end for mail from ``start``, under the rule of that time and all later rules.

    A later rule may postpone the end immediately, or bring it forward, but not before ``GRACE``
    seconds after the change.  Mail from the second in which a rule changed belongs to the rule
    before the change.
    """
    first = sum(since < start for since, _ in history)  # changes before the message
    if history and history[0].since == start:
        first = 1
    end = start + history[first - 1].seconds if first else inf
    for since, seconds in history[first:]:
        end = max(start + seconds, min(end, since + GRACE))
    return end


def days_to_seconds(days: int | None) -> float:
    """Convert days to seconds, and None to infinity."""
    return inf if days is None else days * 86_400.0


def forecast(
    before: Rules,
    after: Rules,
    *,
    removal_times: Callable[[], Iterable[float]],
    arrival_times: Callable[[], Iterable[float]],
) -> Forecast:
    """Return a forecast of the mail that the old rules would keep and the new rules remove.

    ``removal_times`` returns when the held messages were removed, and ``arrival_times`` when the
    messages in the maildrop arrived.  Each function is called only if its rule has changed.
    """
    held, expiring = list[float](), list[float]()
    if before.hold != after.hold:
        old, new = (tuple(_without_keep(each.hold)) for each in (before, after))
        held = list(_earlier_ends(old, new, removal_times()))
    if before.expire != after.expire:
        expiring = list(_earlier_ends(before.expire, after.expire, arrival_times()))
    return Forecast(len(held), len(expiring), min([*held, *expiring], default=inf))


def _earlier_ends(before: History, after: History, starts: Iterable[float]) -> Iterator[float]:
    """Yield the ends that are earlier under the new rule than under the old rule.

    If no rule was recorded before, mail that should already have been removed under the new rule
    shows that the rule is new.
    """
    since, seconds = after[-1]
    for start in starts:
        end = _end(start, after)
        is_sooner = end < _end(start, before) if before else start + seconds <= since
        if is_sooner and end <= since + GRACE:
            yield end


# -- The file


def read(maildrop: int) -> Rules:
    """Read the rules of a maildrop.  They are empty if the file is damaged or missing."""
    try:
        digest, _, octets = files.read(RULES, maildrop).partition(b"\n")
    except FileNotFoundError:
        return Rules()
    if digest != _checksum(octets):
        return Rules()
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        fields = json.loads(octets)
        return Rules(_from_json(fields["hold"]), _from_json(fields["expire"]), int(fields["quota"]))
    return Rules()


def record_change(
    maildrop: int, at: int, *, hold: float | None = None, expire: float | None = None
) -> tuple[Rules, Rules]:
    """Apply ``Rules.changed`` durably, and return the rules before and after the change."""
    before = read(maildrop)
    if before.changed(at, hold=hold, expire=expire) == before:
        return before, before  # the usual case, without a lock
    with files.lock(maildrop):
        before = read(maildrop)
        after = before.changed(at, hold=hold, expire=expire)
        _write(maildrop, after)
    return before, after


def set_quota(maildrop: int, octets: int) -> None:
    """Record restante's quota durably.  The caller must hold ``files.lock`` of the maildrop."""
    before = read(maildrop)
    if before.quota != octets:
        _write(maildrop, before._replace(quota=octets))


def _write(maildrop: int, rules: Rules) -> None:
    fields = {"hold": _to_json(rules.hold), "expire": _to_json(rules.expire), "quota": rules.quota}
    octets = json.dumps(fields).encode("ascii")
    files.replace(RULES, b"%b\n%b" % (_checksum(octets), octets), maildrop)


def _to_json(history: History) -> list[tuple[int, float | None]]:
    return [(since, None if seconds == inf else seconds) for since, seconds in history]


def _from_json(rows: list[tuple[int, float | None]]) -> History:
    return tuple(
        RuleChange(int(since), inf if seconds is None else float(seconds))
        for since, seconds in rows
    )


def _checksum(octets: bytes) -> bytes:
    return hashlib.blake2b(octets, digest_size=_DIGEST).hexdigest().encode("ascii")
