"""What a login name asks for besides its user: a folder, or the recent mail only.

``ann+Junk`` and ``ann+Junk@example.org`` open the folder Junk of ann or ann@example.org,
``recent:ann`` what arrived in the last 30 days.  A user whose own name looks like that is always
meant first.

Security: which reading is right is asked of the user database, for all readings alike, before any
password is looked at; whether there is such a folder is asked only after the password was right.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from ..addons import offers
from ..errors import PermanentFailure
from ..maildrop import Maildrop, Store, View, Viewing
from ..passdb import Account, Accounts, Passdb

RECENT = 30 * 86_400.0
"""Seconds; as other providers have it."""

_WHOLE = View()
_PREFIX = "recent:"
_LONGEST = 1000  # characters of a name that is looked into


def readings(name: str, separator: str) -> list[tuple[str, View]]:
    """Users and views that a login name may mean, the likeliest first.

    ``separator`` stands between user and folder; empty: folders cannot be named.
    """
    found = [(name, View())]
    if len(name) > _LONGEST:
        return found
    if name.casefold().startswith(_PREFIX):
        found.append((name[len(_PREFIX) :], View(recent=RECENT)))
    for user, view in found[:]:
        found += [
            (owner, replace(view, folders=(folder,))) for owner, folder in _cut(user, separator)
        ]
    return found


def _cut(name: str, separator: str) -> list[tuple[str, str]]:
    """User and folder, cut at the last separator and at the first: both may hold one."""
    local, at, domain = name.partition("@")
    end = len(separator)
    cuts = [
        (local[:place] + at + domain, local[place + end :]) for place in _places(local, separator)
    ]
    cuts += [
        (local + at + domain[:place], domain[place + end :]) for place in _places(domain, separator)
    ]
    return cuts


def _places(text: str, separator: str) -> list[int]:
    found = dict.fromkeys((text.rfind(separator), text.find(separator))) if separator else ()
    return [place for place in found if place >= 0]


async def understand(passdb: Passdb, name: str, separator: str) -> tuple[str, View]:
    """The user and the view that a login name means.

    Of a name without a known user, the shortest reading: what is derived from it, such as the salt
    of SCRAM, must be as equal for ``zed`` and ``zed+x`` as it is for a user who exists
    (RFC 5802 §9).

    Raises:
        TemporaryFailure: it cannot be found out now.
    """
    found = readings(name, separator)
    if len(found) > 1 and offers(passdb, Accounts):
        known = [await passdb.account(user) is not None for user, _ in found]
        if True in known:
            return found[known.index(True)]
        return min(found, key=lambda reading: len(reading[0]))
    return found[0]


def opening(store: Store, account: Account) -> AbstractAsyncContextManager[Maildrop]:
    """What this account opens.

    Raises:
        PermanentFailure: the store cannot show that.
    """
    if account.view == _WHOLE:
        return store.open(account.maildrop)
    if offers(store, Viewing):
        return store.open_view(account.maildrop, account.view)
    raise PermanentFailure("this mail storage has no folders")
