"""Names of users, in the one form in which they are stored, looked up and compared.

Security: two people never have names that are one, and no name leads out of a directory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from ..errors import AuthenticationFailed, RestanteError
from ..sasl.prepare import prepared

MAX_NAME = 128  # octets of UTF-8 of each part
_MAX_TYPED = 1024  # octets of UTF-8 of what a client types; normalising takes quadratic time


class BadName(RestanteError):
    """A name that no user, or no app password, can have."""


def normalise(name: str) -> str:
    """The one form in which names are stored and looked up."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_name(name: str) -> str:
    """The normal form of a name that a user may have: ``local`` or ``local@domain``.

    Raises:
        BadName: with the reason.
    """
    normal = normalise(name)
    parts = normal.split("@")
    if len(parts) > 2:
        raise BadName("a user's name has at most one @")
    if not normal.isprintable() or " " in normal:  # also: control, bidi, zero-width, surrogates
        raise BadName("a user's name has only printable characters and no space")
    for part in parts:
        if not part or part[0] in ".-" or "/" in part or len(part.encode()) > MAX_NAME:
            raise BadName(
                f"each part of a user's name has 1 to {MAX_NAME} octets, no '/', "
                "and begins neither with '.' nor with '-'"
            )
    return normal


def check_new_name(name: str) -> str:
    """The normal form of a name for a new user; names that exist already may be others.

    Clients' names are prepared before they are looked up (RFC 4013, RFC 5034 §4): a name that this
    changes opens for no client, and what is typed for it may be the name of another person.

    Raises:
        BadName: with the reason, and the name that would do.
    """
    normal = check_name(name)
    try:
        # Some clients prepare by the Unicode of today and not by that of 2002, as we do.
        seen = check_name(unicodedata.normalize("NFKC", prepared(normal)))
    except (AuthenticationFailed, BadName):
        raise BadName(
            f"no client could log in as {normal}, because SASLprep forbids it (RFC 4013)"
        ) from None
    if seen != normal:
        raise BadName(
            f"no client could log in as {normal}, because SASLprep changes it to {seen} "
            f"(RFC 4013); use {seen}"
        )
    return normal


def key(name: str) -> str:
    """What to look up; a name that no user can have becomes one that no user has."""
    if len(name) > _MAX_TYPED or len(name.encode("utf-8", "surrogatepass")) > _MAX_TYPED:
        return ""
    normal = normalise(name)
    return normal if normal.isprintable() else ""


def addressed(recipient: str, domains: Collection[str]) -> list[str]:
    """Who may be meant by an address, the first of them who exists: the whole of it, then without
    its +detail, then without a domain of ``domains``, which are in normal form."""
    local, at, domain = key(recipient).partition("@")
    if at and not domain:
        return []
    locals_ = dict.fromkeys([local, local.partition("+")[0]])
    names = [f"{each}@{domain}" if domain else each for each in locals_]
    if domain in domains:
        names += locals_
    return names
