"""User names in the normal form in which they are stored, looked up and compared.

Security: the normal form of each user name is unique, and no name can cause a path traversal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from ..errors import AuthenticationFailed, RestanteError
from ..sasl.prepare import saslprep

MAX_NAME = 128  # octets of UTF-8 in each part; twice the limit of RFC 5321 §4.5.3.1.1
# Octets of UTF-8 in a name that a client sends; limited because normalising takes quadratic time.
_MAX_RECEIVED = 1024


class BadName(RestanteError):
    """The name is not valid for a user or an app password."""


def normalise(name: str) -> str:
    """Return the form in which names are stored and looked up: NFC, case folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_name(name: str) -> str:
    """Return the normal form of a valid name: ``local`` or ``local@domain``.

    Raises:
        BadName: the name is invalid; the error text states the reason.
    """
    normal = normalise(name)
    parts = normal.split("@")
    if len(parts) > 2:
        raise BadName("a user name must not contain more than one @")
    # This also excludes control, bidi and zero-width characters, and surrogates.
    if not normal.isprintable() or " " in normal:
        raise BadName("a user name must contain only printable characters and no spaces")
    for part in parts:
        if not part or part[0] in ".-" or "/" in part or len(part.encode()) > MAX_NAME:
            raise BadName(
                f"each part of a user name must have 1 to {MAX_NAME} octets, must not contain '/' "
                "and must not begin with '.' or '-'"
            )
    return normal


def check_new_name(name: str) -> str:
    """Return the normal form of a name for a new user.

    The names that clients send are prepared before they are looked up (RFC 4013, RFC 5034 §4).  If
    this would change the name, clients could not log in with it, or would log in as another user.
    Existing users may have such names.

    Raises:
        BadName: the name is invalid; the error text states the reason, and a valid name if
            possible.
    """
    normal = check_name(name)
    try:
        # Some clients prepare names with current Unicode; restante uses Unicode 3.2 of 2002.
        sent = check_name(unicodedata.normalize("NFKC", saslprep(normal)))
    except (AuthenticationFailed, BadName):
        raise BadName(
            f"no client could log in as {normal}, because SASLprep forbids it (RFC 4013)"
        ) from None
    if sent != normal:
        raise BadName(
            f"no client could log in as {normal}, because SASLprep changes it to {sent} "
            f"(RFC 4013); use {sent}"
        )
    return normal


def key(name: str) -> str:
    """Return the normal form of a name that a client sent, or "" if no user can have the name."""
    if len(name) > _MAX_RECEIVED or len(name.encode("utf-8", "surrogatepass")) > _MAX_RECEIVED:
        return ""
    normal = normalise(name)
    return normal if normal.isprintable() else ""


def possible_users(recipient: str, domains: Collection[str]) -> list[str]:
    """Return the names of the users who may get the mail for an address, in order of precedence.

    The names are the whole address, the address without its +detail, and, if the domain is one of
    ``domains``, both without the domain.  The first user who exists gets the mail.  ``domains``
    must be in normal form.
    """
    local, at, domain = key(recipient).partition("@")
    if at and not domain:
        return []
    local_parts = dict.fromkeys([local, local.partition("+")[0]])
    names = [f"{each}@{domain}" if domain else each for each in local_parts]
    if domain in domains:
        names += local_parts
    return names
