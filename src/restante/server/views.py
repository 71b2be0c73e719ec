"""Views that a login name can select: a folder, or only recent mail.

``ann+Junk`` and ``ann+Junk@example.org`` open the folder Junk of ann or ann@example.org.
``recent:ann`` opens only the mail of the last 30 days.  If a user's own name has this form, the
user takes precedence.

Security: the user database decides which reading is correct before any password is checked, in the
same way for all readings.  Whether the folder exists is checked only after a correct password.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import lru_cache

from ..addons import offers
from ..errors import PermanentFailure
from ..maildrop import Maildrop, Store, View, Viewing
from ..passdb import Accounts, Passdb, UserAccount

RECENT = 30 * 86_400.0
"""Seconds; Gmail's recent mode also covers 30 days."""

_WHOLE = View()
_PREFIX = "recent:"
_LONGEST = 1000  # characters; a longer name is not searched for a folder or a prefix


@lru_cache(1024)  # the same clients log in repeatedly; at most about 2 MB if names are long
def readings(name: str, separator: str) -> Sequence[tuple[str, View]]:
    """Return the users and views that a login name may mean, the most likely first.

    ``separator`` separates user and folder.  If it is empty, folders cannot be selected.
    """
    meanings = [(name, View())]
    if len(name) > _LONGEST:
        return meanings
    if name.casefold().startswith(_PREFIX):
        meanings.append((name[len(_PREFIX) :], View(recent=RECENT)))
    for user, view in meanings[:]:
        meanings += [
            (owner, replace(view, folders=(folder,))) for owner, folder in _splits(user, separator)
        ]
    return meanings


def _splits(name: str, separator: str) -> list[tuple[str, str]]:
    """Return the possible pairs of user and folder.

    The name is split at its last and at its first separator, because both user and folder may
    contain a separator.
    """
    local, at, domain = name.partition("@")
    end = len(separator)
    cuts = [
        (local[:position] + at + domain, local[position + end :])
        for position in _positions(local, separator)
    ]
    cuts += [
        (local + at + domain[:position], domain[position + end :])
        for position in _positions(domain, separator)
    ]
    return cuts


def _positions(text: str, separator: str) -> list[int]:
    both = dict.fromkeys((text.rfind(separator), text.find(separator))) if separator else ()
    return [position for position in both if position >= 0]


async def understand(passdb: Passdb, name: str, separator: str) -> tuple[str, View]:
    """Return the user and the view that a login name means.

    For a name without a known user, return the shortest reading.  Values derived from it, such as
    the SCRAM salt, must be the same for ``zed`` and ``zed+x``, as they are for an existing user
    (RFC 5802 §9).

    Raises:
        TemporaryFailure: a back end cannot answer now.
    """
    meanings = readings(name, separator)
    if len(meanings) > 1 and offers(passdb, Accounts):
        known = [await passdb.account(user) is not None for user, _ in meanings]
        if True in known:
            return meanings[known.index(True)]
        return min(meanings, key=lambda meaning: len(meaning[0]))
    return meanings[0]


def opening(store: Store, account: UserAccount) -> AbstractAsyncContextManager[Maildrop]:
    """Return the context manager that opens the account's maildrop or view.

    Raises:
        PermanentFailure: the store does not support folders.
    """
    if account.view == _WHOLE:
        return store.open(account.maildrop)
    if offers(store, Viewing):
        return store.open_view(account.maildrop, account.view)
    raise PermanentFailure("this mail store does not support folders")
