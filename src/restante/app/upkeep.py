"""Hourly upkeep: expire old mail, and destroy held mail whose hold time is over.

A system clock that jumps must not empty maildrops.  Messages are removed immediately if they are
due at the latest time that is known to have passed (``clock.Reading.proven``).  More messages
may be due according to the system clock.  They are removed too, unless the total exceeds both
``_MAX_MESSAGES`` and ``_MAX_RATIO`` times the number of certainly due messages.  In that case,
they are not removed until the clock is trusted, or until the operator runs `restante maildrop purge
--yes`.  While the clock is behind ``clock.Reading.mark``, no message is removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from ..auth.users import Users
from ..clock import Clock, Reading
from ..config import Configuration
from ..errors import MaildropInUse, RestanteError
from ..maildrop import Forecast, ServableStore, Sweep
from ..passdb import Accounts, Terms, UserAccount
from ..words import counted
from . import stores

_EVERY = 3600.0  # seconds between two rounds
_READ_CLOCK_EVERY = 600.0  # seconds between two readings of the clock; less than ``clock.SLACK``
_MAX_RATIO = 10  # chosen without measurement
_MAX_MESSAGES = 100  # fewer are removed without delay, even if the machine was off overnight

_log = logging.getLogger("restante.upkeep")


class Upkeep:
    """Removes all mail that is due.  Only one process of a server runs it."""

    def __init__(
        self,
        store: ServableStore,
        users: Users,
        other_accounts: Accounts,
        clock: Clock,
        *,
        terms: Callable[[UserAccount], Terms],
        site_expires: Callable[[], bool],
        measure: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            users: the user database; only users in it can have an expiry of their own.
            other_accounts: looks up users who are not in ``users``.
            terms: returns the terms that apply to an account.
            site_expires: returns whether the configuration sets an expiry.  Otherwise
                ``other_accounts`` is not queried.
            measure: called after each round, to measure the store for the metrics.
        """
        self._store = store
        self._users = users
        self._other_accounts = other_accounts
        self._clock = clock
        self._terms = terms
        self._site_expires = site_expires
        self._measure = measure
        self._has_jumped = False

    async def run_for_ever(self) -> None:
        """Do a round every hour until cancelled, and read the clock more often."""
        while True:
            try:
                await self.run()
                if self._measure is not None:
                    await self._measure()
            except RestanteError as error:  # the disk may be mounted before the next round
                _log.warning("purge failed", extra={"fields": {"reason": str(error)}})
            except Exception:
                _log.exception("bug", extra={"fields": {}})
            for _ in range(round(_EVERY / _READ_CLOCK_EVERY)):
                await asyncio.sleep(_READ_CLOCK_EVERY)
                await asyncio.to_thread(self.read_clock)

    async def run(self) -> None:
        """Do one round: remove all mail that is due."""
        reading = await asyncio.to_thread(self.read_clock)
        if reading.is_behind:
            return
        days = await self._expiry_days()
        changed = await self._note_rules(days, reading)
        if changed:
            first = format_time(changed.at)
            fields = {"held": changed.held, "expiring": changed.expiring, "at": first}
            _log.warning("rule changed", extra={"fields": fields})
        await self._expire(days, reading)
        await self._purge(reading)

    async def forecast(self) -> Forecast:
        """Return how much mail will be removed within a day because a rule was changed."""
        reading = await asyncio.to_thread(self.read_clock)
        if reading.is_behind:
            return Forecast()
        days = await self._expiry_days()
        await self._note_rules(days, reading)
        total = Forecast()
        for user in days:
            with suppress(RestanteError):  # the next round reports the error
                total += await self._store.forecast(user, days[user], reading.now)
        return total

    def read_clock(self) -> Reading:
        """Read the clock, record the time in its file, and log a jump.  Blocking."""
        try:
            reading = self._clock.advance()
        except OSError as error:
            _log.warning("clock not saved", extra={"fields": {"reason": error.strerror}})
            reading = self._clock.read()
        ahead = round(reading.now - reading.mark)
        if ahead and not self._has_jumped:
            _log.warning("clock jumped", extra={"fields": {"seconds": ahead}})
        self._has_jumped = bool(ahead)
        return reading

    async def _expiry_days(self) -> dict[str, int | None]:
        """Return the days after which mail expires, by maildrop; None if mail never expires.

        Maildrops whose users cannot be looked up are omitted.
        """
        try:
            users = await asyncio.to_thread(self._users.list)
        except RestanteError as error:
            _log.warning("users not read", extra={"fields": {"reason": str(error)}})
            return {}
        in_database = {user.account.maildrop: self._terms(user.account).expire for user in users}
        days: dict[str, int | None] = {}
        async for name in self._store.users():
            with suppress(RestanteError):  # the next round tries again
                if name in in_database:
                    days[name] = in_database[name]
                else:
                    days[name] = await self._configured_expiry_days(name)
        return days

    async def _configured_expiry_days(self, name: str) -> int | None:
        account = await self._other_accounts.account(name) if self._site_expires() else None
        return self._terms(account).expire if account else None

    async def _note_rules(self, days: Mapping[str, int | None], reading: Reading) -> Forecast:
        """Record the rules that apply to each maildrop; return what changed rules will remove."""
        total = Forecast()
        for user in days:
            try:
                total += await self._store.note_rules(user, days[user], reading.now)
            except RestanteError as error:
                fields = {"user": user, "reason": str(error)}
                _log.warning("purge failed", extra={"fields": fields})
        return total

    async def _expire(self, days: Mapping[str, int | None], reading: Reading) -> None:
        async def expire(user: str, until: float) -> Sweep:
            try:
                swept = await self._store.expire(user, days[user], until=until, now=reading.now)
            except MaildropInUse:  # the next round tries again
                return Sweep()
            except RestanteError as error:
                failed = {"user": user, "reason": str(error)}
                _log.warning("expiry failed", extra={"fields": failed})
                return Sweep()
            if swept.messages:
                fields = {"user": user, "messages": swept.messages, "days": days[user]}
                _log.info("expired", extra={"fields": fields})
            return swept

        users = [user for user, number in days.items() if number is not None]
        _, withheld = await _in_two_steps(users, expire, reading)
        if withheld:
            fields = {"messages": withheld, "seconds": round(reading.now - reading.mark)}
            _log.warning("expiry withheld", extra={"fields": fields})

    async def _purge(self, reading: Reading) -> None:
        async def purge(user: str, until: float) -> Sweep:
            try:
                return await self._store.purge_due(user, until=until, now=reading.now)
            except RestanteError as error:
                failed = {"user": user, "reason": str(error)}
                _log.warning("purge failed", extra={"fields": failed})
                return Sweep()

        users = [user async for user in self._store.users()]
        purged, withheld = await _in_two_steps(users, purge, reading)
        if purged:
            _log.info("purged", extra={"fields": {"messages": purged}})
        if withheld:
            fields = {"messages": withheld, "seconds": round(reading.now - reading.mark)}
            _log.warning("purge withheld", extra={"fields": fields})


async def _in_two_steps(
    users: Iterable[str], remove: Callable[[str, float], Awaitable[Sweep]], reading: Reading
) -> tuple[int, int]:
    """Remove messages that are certainly due, then the doubtful ones unless they are too many.

    A message is doubtful if it is due only according to the system clock.  ``remove`` removes the
    messages of a user that are due at the given time.

    Returns the number of removed messages and the number of doubtful messages that were kept.
    """
    removed, doubtful, users_with_doubtful = 0, 0, []
    for user in users:
        swept = await remove(user, reading.proven)
        removed += swept.messages
        if swept.doubtful:
            doubtful += swept.doubtful
            users_with_doubtful.append(user)
    if removed + doubtful > max(_MAX_MESSAGES, _MAX_RATIO * removed):
        return removed, doubtful
    for user in users_with_doubtful:
        removed += (await remove(user, reading.now)).messages
    return removed, 0


def format_time(seconds: float) -> str:
    """Format a time in seconds since the epoch for the log and for JSON (UTC)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")


async def forecast(
    config: Configuration, names: Sequence[str] = (), *, note: bool = False
) -> Forecast:
    """Return how much mail will be removed because a hold time or an expiry was changed.

    ``names`` are maildrops, by default all.  With ``note``, the day of grace that precedes the
    removal starts now, unless it has already started; without ``note``, nothing is changed.  For
    users of back ends other than the user database, the expiry in the configuration applies.

    Raises:
        RestanteError: a maildrop cannot be read.
    """
    users = stores.users(config)
    store, reading = stores.store(config, users), stores.clock(config).read()
    days = {each.account.maildrop: each.account.expire for each in users.list()}
    forecast_one = store.note_rules if note and not reading.is_behind else store.forecast
    total = Forecast()
    for name in names or [name async for name in store.users()]:
        expire = days.get(name)
        if expire is None:
            expire = config.limits.expire
        total += await forecast_one(name, expire, reading.now)
    return total


def describe(changed: Forecast) -> str:
    """Return a text such as "12 held messages will be destroyed, the first on … at 12:00"."""
    first = datetime.fromtimestamp(changed.at).strftime("%Y-%m-%d at %H:%M")
    parts = []
    if changed.held:
        parts.append(f"{counted(changed.held, 'held message')} will be destroyed")
    if changed.expiring:
        parts.append(f"{counted(changed.expiring, 'message')} will expire")
    return f"{' and '.join(parts)}, the first on {first}"


def as_json(changed: Forecast) -> dict[str, object]:
    """Return a forecast as `restante check --json` prints it."""
    first = format_time(changed.at) if changed else None
    return {"held": changed.held, "expiring": changed.expiring, "at": first}
