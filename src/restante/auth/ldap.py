"""Users of an LDAP directory (RFC 4511): found by a search, checked by a bind as themselves.

Security: what a client sends is escaped before it is part of a filter (RFC 4515 §3), and never part
of a distinguished name.  An empty password is refused here, because a server would take the bind
for an anonymous one and say yes (RFC 4513 §5.1.2).  Passwords go by TLS, or not beyond this
machine; certificates and names are verified; referrals are not followed.
Limits: a connection for each question.  All steps end at the deadline of the login that is checked,
except that the system bounds how long the look-up of the server's address takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import AuthenticationFailed, BackendMisconfigured, BackendUnavailable
from ..passdb import Account, Credentials, end_of
from ..threads import Threads
from . import passwords
from .names import BadName, check_name
from .names import key as _key

_AT_ONCE = 16  # questions
_NOBODY = "cn=nobody"  # before the base: whom to bind as for somebody who does not exist


def is_safe(url: str) -> bool:
    """Whether it is the URL of a directory, without anything but where it is."""
    try:
        parts = urlsplit(url)
        extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        return parts.scheme in ("ldap", "ldaps", "ldapi") and bool(parts.netloc) and not extra
    except ValueError:
        return False


def _stays_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "ldapi" or parts.hostname in ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Place:
    """Where users are, and how they are found."""

    url: str
    """``ldaps:``, ``ldap:`` (which starts TLS, unless it is this machine) or ``ldapi:``."""
    base: str
    """Below this entry."""
    filter: str = "(uid=%u)"
    """``%u`` stands for the name that the client gave."""
    name: str = "uid"
    """The attribute that is the user's name."""
    bind_dn: str = ""
    """Who searches; empty: nobody in particular."""
    bind_password: str = field(default="", repr=False)
    ca_file: str = ""
    """To trust instead of the system's authorities."""


class Ldap:
    """``Passdb`` and ``Accounts`` over one directory."""

    def __init__(self, place: Place, deadline: float = 10.0) -> None:
        """All that is asked for one login may take ``deadline`` seconds."""
        self._place = place
        self._deadline = deadline
        self._threads = Threads("ldap", _AT_ONCE)

    async def verify(self, credentials: Credentials) -> Account:
        if not passwords.is_possible(credentials.password):
            raise AuthenticationFailed("impossible-password")
        if credentials.authorization and _key(credentials.authorization) != _key(
            credentials.identity
        ):
            raise AuthenticationFailed("authorization")  # RFC 4616 §2: for oneself only
        end = self._end()
        return await self._threads.run(lambda: self._verify(credentials, end))

    def _end(self) -> float:
        """On the monotonic clock: threads do not know that of the event loop."""
        now = asyncio.get_running_loop().time()
        return time.monotonic() + end_of(self._deadline, now) - now

    def _verify(self, credentials: Credentials, end: float) -> Account:
        name = _key(credentials.identity)
        found = self._find(name, end)
        entry = found or f"{_NOBODY},{self._place.base}"
        password = credentials.password.encode("utf-8", "surrogateescape")
        if not self._binds(entry, password, end) or found is None:
            raise AuthenticationFailed("unknown-user" if found is None else "bad-password")
        return Account(name, name)

    async def account(self, identity: str) -> Account | None:
        name, end = _key(identity), self._end()
        found = await self._threads.run(lambda: self._find(name, end))
        return None if found is None else Account(name, name)

    def close(self) -> None:
        """No connection outlives its question."""

    def _find(self, name: str, end: float) -> str | None:
        """The distinguished name of the one entry that has this name, or None."""
        import ldap
        from ldap.filter import escape_filter_chars

        place = self._place
        try:
            check_name(name)
        except BadName:
            return None
        wanted = place.filter.replace("%u", escape_filter_chars(name))
        with self._connected(end) as directory:
            try:
                directory.simple_bind_s(place.bind_dn, place.bind_password)
            except ldap.INVALID_CREDENTIALS:
                raise BackendMisconfigured("ldap: bind_dn and bind_password are refused") from None
            rows = directory.search_ext_s(
                place.base,
                ldap.SCOPE_SUBTREE,
                wanted,
                [place.name],
                timeout=_limit(directory, end),
            )
        found = [
            entry
            for entry, attributes in rows
            # Without an entry it is a referral.  What a directory takes for equal, such as names
            # with other spaces, need not be equal for us.
            if entry and name in map(_text, _values(attributes, place.name))
        ]
        if len(found) > 1:
            raise BackendUnavailable(f"ldap: {len(found)} entries have the same name")
        return found[0] if found else None

    def _binds(self, entry: str, password: bytes, end: float) -> bool:
        """Whether the directory takes this password of this entry."""
        import ldap

        with self._connected(end) as directory:
            try:
                directory.simple_bind_s(entry, password)
            except (ldap.INVALID_CREDENTIALS, ldap.INAPPROPRIATE_AUTH, ldap.NO_SUCH_OBJECT):
                return False
        return True

    @contextmanager
    def _connected(self, end: float) -> Iterator[Any]:
        """A connection whose first step must end then; for another see ``_limit``.

        Raises:
            BackendUnavailable: for whatever reason.
        """
        try:
            import ldap
        except ImportError as error:
            raise BackendMisconfigured("ldap needs pip install 'restante[ldap]'") from error

        url = self._place.url
        try:
            directory = ldap.initialize(url)
            try:
                directory.set_option(ldap.OPT_PROTOCOL_VERSION, 3)
                directory.set_option(ldap.OPT_REFERRALS, 0)
                # Or a server that accepts a connection for TLS and says nothing holds us for ever.
                directory.set_option(ldap.OPT_CONNECT_ASYNC, 1)
                directory.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
                if self._place.ca_file:
                    directory.set_option(ldap.OPT_X_TLS_CACERTFILE, self._place.ca_file)
                directory.set_option(ldap.OPT_X_TLS_NEWCTX, 0)  # the last: it makes it so
                _limit(directory, end)
                if url.startswith("ldap:") and not _stays_here(url):
                    directory.start_tls_s()
                    _limit(directory, end)
                yield directory
            finally:
                directory.unbind_ext_s()
        except ldap.LDAPError as error:
            raise BackendUnavailable(f"ldap: {_reason(error)}") from error


def _limit(directory: Any, end: float) -> float:
    """What comes next must end then.  Returns the seconds that are left.

    Raises:
        BackendUnavailable: none are.
    """
    import ldap

    left = end - time.monotonic()
    if left <= 0:
        raise BackendUnavailable("ldap: no answer in time")
    directory.set_option(ldap.OPT_NETWORK_TIMEOUT, left)
    directory.set_option(ldap.OPT_TIMEOUT, left)
    return left


def _values(attributes: dict[str, list[bytes]], name: str) -> list[bytes]:
    """Names of attributes are case-insensitive (RFC 4512 §2.5)."""
    return [
        value
        for each, values in attributes.items()
        if each.lower() == name.lower()
        for value in values
    ]


def _text(value: bytes) -> str:
    return _key(value.decode("utf-8", "replace"))


def _reason(error: Exception) -> str:
    told = error.args[0] if error.args else {}
    if not isinstance(told, dict):
        return str(error)
    return " ".join(str(told[each]) for each in ("desc", "info") if told.get(each))
