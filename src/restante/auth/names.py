"""Names of users, in the normal form in which they are stored, looked up and compared.

Security: the normal forms of users' names are unique, and no name can lead out of a directory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from ..errors import AuthenticationFailed, RestanteError
from ..sasl.prepare import prepared

MAX_NAME = 128  # octets of UTF-8 in each part; twice the limit of RFC 5321 §4.5.3.1.1
# Octets of UTF-8 in a name that a client sends; limited because normalising takes quadratic time.
_MAX_TYPED = 1024


class BadName(RestanteError):
    """The name is not valid for a user or an app password."""


def normalise(name: str) -> str:
    """Return the form in which names are stored and looked up: NFC, case folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_name(name: str) -> str:
    """Return the normal form of a valid name: ``local`` or ``local@domain``.

    Raises:
        BadName: the name is invalid; the text of the error states the reason.
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
    """Return the normal form of a name for a new user.  Older users may have other names.

    The names that clients send are prepared before they are looked up (RFC 4013, RFC 5034 §4).  If
    this changes a name, no client can log in with it, or a client logs in as another user.

    Raises:
        BadName: the name is invalid; the text states the reason, and a valid name if possible.
    """
    normal = check_name(name)
    try:
        # Some clients prepare names with current Unicode; restante uses Unicode 3.2 of 2002.
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
    """Return the name to look up, or "" for a name that no user can have."""
    if len(name) > _MAX_TYPED or len(name.encode("utf-8", "surrogatepass")) > _MAX_TYPED:
        return ""
    normal = normalise(name)
    return normal if normal.isprintable() else ""


def addressed(recipient: str, domains: Collection[str]) -> list[str]:
    """Return the user names that an address may belong to.

    The first user who exists gets the mail.  The names are the whole address, the address without
    its +detail, and, if the domain is one of ``domains``, both without the domain.  ``domains``
    must be in normal form.
    """
    local, at, domain = key(recipient).partition("@")
    if at and not domain:
        return []
    locals_ = dict.fromkeys([local, local.partition("+")[0]])
    names = [f"{each}@{domain}" if domain else each for each in locals_]
    if domain in domains:
        names += locals_
    return names
