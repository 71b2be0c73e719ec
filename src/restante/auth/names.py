"""Names of users, in the one normal form in which they are stored, looked up and compared.

Security: no two users have names with the same normal form, and no name leads out of a directory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from ..errors import AuthenticationFailed, RestanteError
from ..sasl.prepare import prepared

MAX_NAME = 128  # octets of UTF-8 of each part; twice the local part of RFC 5321 §4.5.3.1.1
_MAX_TYPED = 1024  # octets of UTF-8 that a client may send; normalising takes quadratic time


class BadName(RestanteError):
    """A name that no user, or no app password, can have."""


def normalise(name: str) -> str:
    """Return the form in which names are stored and looked up: NFC, case folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_name(name: str) -> str:
    """Return the normal form of a valid name: ``local`` or ``local@domain``.

    Raises:
        BadName: invalid; its text is the reason.
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
    """Return the normal form of a name for a new user; older users may have other names.

    The names that clients send are prepared before they are looked up (RFC 4013, RFC 5034 §4).  If
    that changes a name, no client can log in with it, or a client logs in as another user.

    Raises:
        BadName: invalid; its text is the reason, and a name that would be valid.
    """
    normal = check_name(name)
    try:
        # Unlike us, some clients prepare by current Unicode and not by Unicode 3.2 of 2002.
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
    """Return the name to look up; empty, which is no user's, for a name that no user can have."""
    if len(name) > _MAX_TYPED or len(name.encode("utf-8", "surrogatepass")) > _MAX_TYPED:
        return ""
    normal = normalise(name)
    return normal if normal.isprintable() else ""


def addressed(recipient: str, domains: Collection[str]) -> list[str]:
    """Return the names that an address may belong to; the first that exists gets the mail.

    They are the whole address, then without its +detail, then without the domain if it is one of
    ``domains``, which are in normal form.
    """
    local, at, domain = key(recipient).partition("@")
    if at and not domain:
        return []
    locals_ = dict.fromkeys([local, local.partition("+")[0]])
    names = [f"{each}@{domain}" if domain else each for each in locals_]
    if domain in domains:
        names += locals_
    return names
