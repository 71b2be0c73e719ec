"""Users of an LDAP directory (RFC 4511): a search finds the entry, a bind checks the password.

Security: the client's input is escaped in filters (RFC 4515 §3) and is never part of a
distinguished name.  This module refuses empty passwords, because a server would accept such a bind
as an anonymous one (RFC 4513 §5.1.2).  Passwords leave this machine only over TLS; certificates and
host names are verified; referrals are not followed.
Limits: one connection for each query.  The deadline of the login applies to all steps except the
look-up of the server's address, whose duration the operating system limits.
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

# Maximum number of simultaneous connections.  We estimate that a small directory server handles
# this number without delay.
_MAX_CONNECTIONS = 16
# The password of an unknown user is checked against this entry below the base DN, so that the
# refusal takes as long as for a known user.
_DECOY = "cn=nobody"


def is_safe(url: str) -> bool:
    """Return whether this is the URL of a directory, with only a scheme, a host and a port."""
    try:
        parts = urlsplit(url)
        extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        return parts.scheme in ("ldap", "ldaps", "ldapi") and bool(parts.netloc) and not extra
    except ValueError:
        return False


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "ldapi" or parts.hostname in ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Search:
    """A directory server, and the settings for user searches."""

    url: str
    """An ``ldaps:``, ``ldapi:`` or ``ldap:`` URL.  ``ldap:`` uses STARTTLS, unless the
    server is on this machine."""
    base: str
    """The base DN to search under."""
    filter: str = "(uid=%u)"
    """``%u`` is replaced by the name that the client sent."""
    name: str = "uid"
    """The attribute that contains the user's name."""
    bind_dn: str = ""
    """The DN that is used to bind before the search; empty for an anonymous search."""
    bind_password: str = field(default="", repr=False)
    ca_file: str = ""
    """A file of trusted certificate authorities; empty for the system's authorities."""


class Ldap:
    """The users of one directory.  Implements ``Passdb`` and ``Accounts``."""

    def __init__(self, search: Search, deadline: float = 10.0) -> None:
        """``deadline``: maximum number of seconds for all queries of one login together."""
        self._search = search
        self._deadline = deadline
        self._threads = Threads("ldap", _MAX_CONNECTIONS)

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
        """Return the deadline on the monotonic clock, which threads can read."""
        now = asyncio.get_running_loop().time()
        return time.monotonic() + end_of(self._deadline, now) - now

    def _verify(self, credentials: Credentials, end: float) -> UserAccount:
        name = _key(credentials.identity)
        user_dn = self._find(name, end)
        entry = user_dn or f"{_DECOY},{self._search.base}"
        password = credentials.password.encode("utf-8", "surrogateescape")
        if not self._accepts(entry, password, end) or user_dn is None:
            raise AuthenticationFailed("unknown-user" if user_dn is None else "bad-password")
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
                raise BackendMisconfigured(
                    "ldap: the directory refused bind_dn and bind_password"
                ) from None
            rows = directory.search_ext_s(
                search.base,
                ldap.SCOPE_SUBTREE,
                pattern,
                [search.name],
                timeout=_set_timeouts(directory, end),
            )
        entries = [
            entry
            for entry, attributes in rows
            # A row without an entry is a referral.  The name is compared again, because a directory
            # may ignore differences such as extra spaces.
            if entry and name in map(_text, _values(attributes, search.name))
        ]
        if len(entries) > 1:
            raise BackendUnavailable(f"ldap: {len(entries)} entries have the same name")
        return entries[0] if entries else None

    def _accepts(self, entry: str, password: bytes, end: float) -> bool:
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
        """Connect to the directory.  The next operation in the block must finish by ``end``.

        Call ``_set_timeouts`` before each further operation.

        Raises:
            BackendUnavailable: the directory cannot be used, for whatever reason.
        """
        try:
            import ldap
        except ImportError as error:
            raise BackendMisconfigured(
                "ldap requires a library; run: pip install 'restante[ldap]'"
            ) from error

        url = self._search.url
        try:
            directory = ldap.initialize(url)
            try:
                directory.set_option(ldap.OPT_PROTOCOL_VERSION, 3)
                directory.set_option(ldap.OPT_REFERRALS, 0)
                # Without this option, a server that accepts the connection but does not respond to
                # the TLS handshake would block the thread for ever.
                directory.set_option(ldap.OPT_CONNECT_ASYNC, 1)
                directory.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
                if self._search.ca_file:
                    directory.set_option(ldap.OPT_X_TLS_CACERTFILE, self._search.ca_file)
                # This option must be set last, because it applies the other TLS options.
                directory.set_option(ldap.OPT_X_TLS_NEWCTX, 0)
                _set_timeouts(directory, end)
                if url.startswith("ldap:") and not _is_local(url):
                    directory.start_tls_s()
                    _set_timeouts(directory, end)
                yield directory
            finally:
                directory.unbind_ext_s()
        except ldap.LDAPError as error:
            raise BackendUnavailable(f"ldap: {_reason(error)}") from error


def _set_timeouts(directory: Any, end: float) -> float:
    """Set the timeouts of the next operation so that it finishes by ``end``.

    Returns the number of seconds until ``end``.

    Raises:
        BackendUnavailable: the deadline has passed.
    """
    import ldap

    remaining = end - time.monotonic()
    if remaining <= 0:
        raise BackendUnavailable("ldap: no answer in time")
    directory.set_option(ldap.OPT_NETWORK_TIMEOUT, remaining)
    directory.set_option(ldap.OPT_TIMEOUT, remaining)
    return remaining


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
