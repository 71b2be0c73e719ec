"""Users of an LDAP directory (RFC 4511): a search finds the entry, a bind checks the password.

Security: the client's input is escaped in filters (RFC 4515 §3) and is never part of a
distinguished name.  This module refuses empty passwords, because a server would accept such a bind
as an anonymous one (RFC 4513 §5.1.2).  Passwords leave this machine only over TLS; certificates and
host names are verified; referrals are not followed.
Limits: one connection for each query.  All steps end at the deadline of the login, except the
look-up of the server's address, whose time the system limits.
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
from ..passdb import Credentials, UserAccount, end_of
from ..threads import Threads
from . import passwords
from .names import BadName, check_name
from .names import key as _key

_AT_ONCE = 16  # connections; an estimate of what a small directory serves without delay
_DECOY = "cn=nobody"  # entry below the base; the DN to bind as for an unknown user


def is_safe(url: str) -> bool:
    """Return whether this is the URL of a directory, with only a scheme, a host and a port."""
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
class Search:
    """The directory, and the settings for user searches."""

    url: str
    """``ldaps:``, ``ldap:`` (with STARTTLS unless it refers to this machine) or ``ldapi:``."""
    base: str
    """The base DN to search under."""
    filter: str = "(uid=%u)"
    """``%u`` is replaced by the name that the client sent."""
    name: str = "uid"
    """The attribute that contains the user's name."""
    bind_dn: str = ""
    """The DN to bind as for the search; empty for an anonymous search."""
    bind_password: str = field(default="", repr=False)
    ca_file: str = ""
    """File of trusted certificate authorities; empty for the system's authorities."""


class Ldap:
    """Implements ``Passdb`` and ``Accounts`` over one directory."""

    def __init__(self, search: Search, deadline: float = 10.0) -> None:
        """``deadline`` is in seconds, for all queries of one login together."""
        self._search = search
        self._deadline = deadline
        self._threads = Threads("ldap", _AT_ONCE)

    async def verify(self, credentials: Credentials) -> UserAccount:
        if not passwords.is_possible(credentials.password):
            raise AuthenticationFailed("impossible-password")
        if credentials.authorization and _key(credentials.authorization) != _key(
            credentials.identity
        ):
            raise AuthenticationFailed("authorization")  # RFC 4616 §2
        end = self._end()
        return await self._threads.run(lambda: self._verify(credentials, end))

    def _end(self) -> float:
        """Return the deadline on the monotonic clock; threads cannot read the loop's clock."""
        now = asyncio.get_running_loop().time()
        return time.monotonic() + end_of(self._deadline, now) - now

    def _verify(self, credentials: Credentials, end: float) -> UserAccount:
        name = _key(credentials.identity)
        known = self._find(name, end)
        entry = known or f"{_DECOY},{self._search.base}"
        password = credentials.password.encode("utf-8", "surrogateescape")
        if not self._binds(entry, password, end) or known is None:
            raise AuthenticationFailed("unknown-user" if known is None else "bad-password")
        return UserAccount(name, name)

    async def account(self, identity: str) -> UserAccount | None:
        name, end = _key(identity), self._end()
        entry = await self._threads.run(lambda: self._find(name, end))
        return None if entry is None else UserAccount(name, name)

    def close(self) -> None:
        """Has no effect, because each query has its own connection."""

    def _find(self, name: str, end: float) -> str | None:
        """Return the distinguished name of the one entry with this user name, or None."""
        import ldap
        from ldap.filter import escape_filter_chars

        search = self._search
        try:
            check_name(name)
        except BadName:
            return None
        pattern = search.filter.replace("%u", escape_filter_chars(name))
        with self._connected(end) as directory:
            try:
                directory.simple_bind_s(search.bind_dn, search.bind_password)
            except ldap.INVALID_CREDENTIALS:
                raise BackendMisconfigured("ldap: bind_dn and bind_password are refused") from None
            rows = directory.search_ext_s(
                search.base,
                ldap.SCOPE_SUBTREE,
                pattern,
                [search.name],
                timeout=_limit(directory, end),
            )
        entries = [
            entry
            for entry, attributes in rows
            # A row without an entry is a referral.  Names that a directory considers equal, such as
            # names that differ only in spaces, are not equal for restante.
            if entry and name in map(_text, _values(attributes, search.name))
        ]
        if len(entries) > 1:
            raise BackendUnavailable(f"ldap: {len(entries)} entries have the same name")
        return entries[0] if entries else None

    def _binds(self, entry: str, password: bytes, end: float) -> bool:
        """Return whether the directory accepts this password for this entry."""
        import ldap

        with self._connected(end) as directory:
            try:
                directory.simple_bind_s(entry, password)
            except (ldap.INVALID_CREDENTIALS, ldap.INAPPROPRIATE_AUTH, ldap.NO_SUCH_OBJECT):
                return False
        return True

    @contextmanager
    def _connected(self, end: float) -> Iterator[Any]:
        """Connect; the first step must end at ``end``, and ``_limit`` begins the next step.

        Raises:
            BackendUnavailable: the directory cannot be used, for any reason.
        """
        try:
            import ldap
        except ImportError as error:
            raise BackendMisconfigured("ldap needs pip install 'restante[ldap]'") from error

        url = self._search.url
        try:
            directory = ldap.initialize(url)
            try:
                directory.set_option(ldap.OPT_PROTOCOL_VERSION, 3)
                directory.set_option(ldap.OPT_REFERRALS, 0)
                # Otherwise a server that accepts TLS and sends nothing blocks for ever.
                directory.set_option(ldap.OPT_CONNECT_ASYNC, 1)
                directory.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
                if self._search.ca_file:
                    directory.set_option(ldap.OPT_X_TLS_CACERTFILE, self._search.ca_file)
                # Must be last: it applies the others.
                directory.set_option(ldap.OPT_X_TLS_NEWCTX, 0)
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
    """Make the next step end at ``end``; return the seconds that are left.

    Raises:
        BackendUnavailable: the deadline has passed.
    """
    import ldap

    left = end - time.monotonic()
    if left <= 0:
        raise BackendUnavailable("ldap: no answer in time")
    directory.set_option(ldap.OPT_NETWORK_TIMEOUT, left)
    directory.set_option(ldap.OPT_TIMEOUT, left)
    return left


def _values(attributes: dict[str, list[bytes]], name: str) -> list[bytes]:
    """Return the values of an attribute; its name is case-insensitive (RFC 4512 §2.5)."""
    return [
        value
        for each, values in attributes.items()
        if each.lower() == name.lower()
        for value in values
    ]


def _text(value: bytes) -> str:
    return _key(value.decode("utf-8", "replace"))


def _reason(error: Exception) -> str:
    details = error.args[0] if error.args else {}
    if not isinstance(details, dict):
        return str(error)
    return " ".join(str(details[each]) for each in ("desc", "info") if details.get(each))
