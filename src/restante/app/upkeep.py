"""Hourly upkeep: expire old mail, and destroy held mail whose hold time is over.

A clock that jumps must not empty maildrops.  Messages that are due according to the time known to
have passed are removed at once.  If the clock says that more than ``_TIMES`` times as many messages
are due, and more than ``_MANY``, the others are kept until the clock is trusted (see ``clock``), or
until the operator runs `restante maildrop purge --yes`.  While the clock is behind, no message is
removed.
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
_LOOK_EVERY = 600.0  # seconds between two readings of the clock; less than the clock's slack
_TIMES = 10  # an estimate, not measured
_MANY = 100  # messages; for fewer, a day's delay after each night without power is not worth it

_log = logging.getLogger("restante.upkeep")


class Upkeep:
    """The upkeep; one process of a server runs it."""

    def __init__(
        self,
        store: ServableStore,
        users: Users,
        others: Accounts,
        clock: Clock,
        *,
        terms: Callable[[UserAccount], Terms],
        site_expires: Callable[[], bool],
    ) -> None:
        """``others`` looks up users who are not in ``users``.  It is queried only if
        ``site_expires``, because only users in ``users`` can have their own expiry.  ``terms``
        returns the terms in force for an account.
        """
        self._store = store
        self._users = users
        self._others = others
        self._clock = clock
        self._terms = terms
        self._site_expires = site_expires
        self._has_jumped = False

    async def run_for_ever(self) -> None:
        while True:
            try:
                await self.run()
            except RestanteError as error:  # the disk may be mounted in the next round
                _log.warning("purge failed", extra={"fields": {"reason": str(error)}})
            except Exception:
                _log.exception("bug", extra={"fields": {}})
            for _ in range(round(_EVERY / _LOOK_EVERY)):
                await asyncio.sleep(_LOOK_EVERY)
                await asyncio.to_thread(self.look)

    async def run(self) -> None:
        """Do one round."""
        reading = await asyncio.to_thread(self.look)
        if reading.is_behind:
            return
        days = await self._days()
        changed = await self._note_rules(days, reading)
        if changed:
            at = moment(changed.at)
            fields = {"held": changed.held, "expiring": changed.expiring, "at": at}
            _log.warning("rule changed", extra={"fields": fields})
        await self._expire(days, reading)
        await self._purge(reading)

    async def forecast(self) -> Forecast:
        """Return what will be removed within a day because a rule was changed."""
        reading = await asyncio.to_thread(self.look)
        if reading.is_behind:
            return Forecast()
        days = await self._days()
        await self._note_rules(days, reading)
        total = Forecast()
        for user in days:
            with suppress(RestanteError):  # the next round reports it
                total += await self._store.forecast(user, days[user], reading.now)
        return total

    def look(self) -> Reading:
        """Read the clock, and record the time.  Blocking."""
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

    async def _days(self) -> dict[str, int | None]:
        """Return the expiry in days by maildrop; omits maildrops whose users are not found now."""
        try:
            users = await asyncio.to_thread(self._users.list)
        except RestanteError as error:
            _log.warning("users not read", extra={"fields": {"reason": str(error)}})
            return {}
        own = {user.account.maildrop: self._terms(user.account).expire for user in users}
        days: dict[str, int | None] = {}
        async for name in self._store.users():
            with suppress(RestanteError):  # the next round tries again
                days[name] = own[name] if name in own else await self._days_of_other(name)
        return days

    async def _days_of_other(self, name: str) -> int | None:
        account = await self._others.account(name) if self._site_expires() else None
        return self._terms(account).expire if account else None

    async def _note_rules(self, days: Mapping[str, int | None], reading: Reading) -> Forecast:
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
        _, waiting = await _in_two_steps(users, expire, reading)
        if waiting:
            fields = {"messages": waiting, "seconds": round(reading.now - reading.mark)}
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
        purged, waiting = await _in_two_steps(users, purge, reading)
        if purged:
            _log.info("purged", extra={"fields": {"messages": purged}})
        if waiting:
            fields = {"messages": waiting, "seconds": round(reading.now - reading.mark)}
            _log.warning("purge withheld", extra={"fields": fields})


async def _in_two_steps(
    users: Iterable[str], act: Callable[[str, float], Awaitable[Sweep]], reading: Reading
) -> tuple[int, int]:
    """Remove messages that are certainly due, then the others unless they are too many.

    Returns the number of removed messages and the number of messages that wait.
    """
    removed, doubtful, later = 0, 0, []
    for user in users:
        swept = await act(user, reading.proven)
        removed += swept.messages
        if swept.doubtful:
            doubtful += swept.doubtful
            later.append(user)
    if removed + doubtful > max(_MANY, _TIMES * removed):
        return removed, doubtful
    for user in later:
        removed += (await act(user, reading.now)).messages
    return removed, 0


def moment(at: float) -> str:
    """Return a time in UTC, for the log and for programs."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%MZ")


async def forecast(
    config: Configuration, names: Sequence[str] = (), *, note: bool = False
) -> Forecast:
    """Return what will be removed because a hold time or an expiry was changed.

    ``names`` are maildrops, by default all.  With ``note``, the day of grace begins now, unless it
    has begun already; without ``note``, nothing is changed.  For users of back ends other than the
    user database, the expiry in the configuration applies.

    Raises:
        RestanteError: not all maildrops can be read.
    """
    users = stores.users(config)
    store, reading = stores.store(config, users), stores.clock(config).read()
    days = {each.account.maildrop: each.account.expire for each in users.list()}
    ask = store.note_rules if note and not reading.is_behind else store.forecast
    total = Forecast()
    for name in names or [name async for name in store.users()]:
        expire = days.get(name)
        total += await ask(name, config.limits.expire if expire is None else expire, reading.now)
    return total


def described(changed: Forecast) -> str:
    """Return a text such as "12 held messages will be destroyed, the first on … at 12:00"."""
    first = datetime.fromtimestamp(changed.at).strftime("%Y-%m-%d at %H:%M")
    parts = []
    if changed.held:
        parts.append(f"{counted(changed.held, 'held message')} will be destroyed")
    if changed.expiring:
        parts.append(f"{counted(changed.expiring, 'message')} will expire")
    return f"{' and '.join(parts)}, the first on {first}"


def as_json(changed: Forecast) -> dict[str, object]:
    at = moment(changed.at) if changed else None
    return {"held": changed.held, "expiring": changed.expiring, "at": at}
