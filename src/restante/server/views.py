"""Interpret login names, which can select a view of the maildrop: a folder, or recent mail.

``ann+Junk`` and ``ann+Junk@example.org`` open the folder Junk of ann and of ann@example.org.
``recent:ann`` opens only the mail of the last 30 days.  If a user has exactly the name that was
given, that user's whole maildrop is opened.

Security: before any password is checked, all interpretations are looked up in the back ends in the
same way, to find the one that names an existing user.  Whether the folder exists is checked only
after a correct password.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache

from ..addons import offers
from ..errors import PermanentFailure
from ..maildrop import Maildrop, Store, View, Viewing
from ..passdb import Accounts, Passdb, UserAccount

RECENT = 30 * 86_400.0
"""Age of recent mail in seconds: 30 days, as in Gmail's recent mode."""

_WHOLE_MAILDROP = View()
_PREFIX = "recent:"
_MAX_LENGTH = 1000  # characters; in a longer name, no folder or prefix is recognised


@lru_cache(1024)  # the same clients log in repeatedly; at most about 2 MB if names are long
def interpretations(name: str, separator: str) -> Sequence[tuple[str, View]]:
    """Return the pairs of user and view that a login name may mean, the most likely first.

    ``separator`` separates user and folder.  If it is empty, folders cannot be selected.
    """
    meanings = [(name, View())]
    if len(name) > _MAX_LENGTH:
        return meanings
    if name.casefold().startswith(_PREFIX):
        meanings.append((name[len(_PREFIX) :], View(recent=RECENT)))
    for user, view in meanings[:]:
        meanings += [
            (owner, view._replace(folders=(folder,))) for owner, folder in _splits(user, separator)
        ]
    return meanings


def _splits(name: str, separator: str) -> list[tuple[str, str]]:
    """Return the pairs of user and folder that a name may mean.

    The name is split at its last and at its first separator, because both user and folder may
    contain the separator.
    """
    local, at, domain = name.partition("@")
    length = len(separator)
    pairs = [
        (local[:position] + at + domain, local[position + length :])
        for position in _positions(local, separator)
    ]
    pairs += [
        (local + at + domain[:position], domain[position + length :])
        for position in _positions(domain, separator)
    ]
    return pairs


def _positions(text: str, separator: str) -> list[int]:
    """Return the positions of the last and the first separator, if any."""
    if not separator:
        return []
    positions = dict.fromkeys((text.rfind(separator), text.find(separator)))
    return [position for position in positions if position >= 0]


async def interpret(passdb: Passdb, name: str, separator: str) -> tuple[str, View]:
    """Return the user and the view that a login name means.

    If no interpretation names an existing user, the one with the shortest name is returned.  Thus
    values that are derived from the name, such as the SCRAM salt, are the same for ``zed`` and
    ``zed+x``, as they are for an existing user (RFC 5802 §9).

    Raises:
        TemporaryFailure: a back end cannot answer now.
    """
    meanings = interpretations(name, separator)
    if len(meanings) > 1 and offers(passdb, Accounts):
        exists = [await passdb.account(user) is not None for user, _ in meanings]
        if True in exists:
            return meanings[exists.index(True)]
        return min(meanings, key=lambda meaning: len(meaning[0]))
    return meanings[0]


def opening(store: Store, account: UserAccount) -> AbstractAsyncContextManager[Maildrop]:
    """Return a context manager that opens the account's maildrop, or the selected view of it.

    Raises:
        PermanentFailure: the store does not support folders.
    """
    if account.view == _WHOLE_MAILDROP:
        return store.open(account.maildrop)
    if offers(store, Viewing):
        return store.open_view(account.maildrop, account.view)
    raise PermanentFailure("this mail store does not support folders")
