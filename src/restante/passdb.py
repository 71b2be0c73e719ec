"""The authentication contract: who a user is, and what the user may open.

A ``Passdb`` determines the identity of a user and returns a ``UserAccount``.  The account
determines whether its maildrop may be opened now, from this address, over this connection.
Security: these classes contain passwords in clear text, which never appear in a ``repr`` or in the
log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple, Protocol, runtime_checkable

from .maildrop import View

# Octets of UTF-8.  Longer passwords are refused without hashing, because hashing takes longer for
# longer passwords.  The limit is not from an RFC; generated passwords are far shorter.
MAX_PASSWORD = 1024
Network = IPv4Network | IPv6Network


def is_within(address: str, networks: Iterable[Network]) -> bool:
    """Return whether an IP address is in one of the networks; False for a local peer (empty)."""
    return bool(address) and any(_parsed(address) in network for network in networks)


@lru_cache(4096)  # most logins come from the same few addresses
def _parsed(address: str) -> IPv4Address | IPv6Address:
    return ip_address(address)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user name and password of USER and PASS or of a SASL exchange.

    Octets that are not UTF-8 are represented by lone surrogates (``surrogateescape``).  No user has
    such an identity, and it is treated like any unknown identity.
    """

    mechanism: str
    """``USER``, or the SASL mechanism's name."""
    identity: str
    """The authentication identity."""
    password: str = field(repr=False)
    authorization: str = ""
    """The authorization identity, empty if the client did not send one (RFC 4616 §2)."""
    address: str = ""
    """The client's IP address, empty for a local peer; filled in by the server."""


@dataclass(frozen=True, slots=True)
class ScramKey:
    """The keys that verify one credential without revealing it (RFC 5802 §3)."""

    credential: str
    """Name of the user's credential, copied to ``Proof``."""
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramSecrets:
    """The data of a user that server-side SCRAM needs.

    The client receives one salt and one iteration count before it shows which credential it has, so
    all credentials of a user share them.  The client's proof may match any of ``keys``.
    """

    salt: bytes
    iterations: int
    keys: tuple[ScramKey, ...] = field(repr=False)
    """At least one key.  For an unknown user, a decoy that no proof matches."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A login that a mechanism has verified itself, because no password was sent."""

    mechanism: str
    identity: str
    """The authentication identity."""
    credential: str
    """``ScramKey.credential`` of the key that matched."""
    authorization: str = ""
    """The authorization identity, empty if the client did not send one."""
    address: str = ""
    """The client's IP address, empty for a local peer; filled in by the server."""


@dataclass(frozen=True, slots=True)
class Token:
    """An OAuth 2 bearer token (RFC 6750), and the user whose maildrop it should open."""

    mechanism: str
    identity: str
    """Empty if the client did not send a user name; the token then determines the user."""
    token: str = field(repr=False)
    address: str = ""
    """The client's IP address, empty for a local peer; filled in by the server."""


@dataclass(frozen=True, slots=True)
class FailedProof:
    """A login that a mechanism has verified itself and rejected.  It counts as a failed login."""

    mechanism: str
    identity: str
    address: str = ""
    """The client's IP address, empty for a local peer; filled in by the server."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The argument of APOP: proof that the client knows a user's password (RFC 1939 §7)."""

    mechanism: str
    identity: str
    time_stamp: str
    """The time stamp of the greeting, with its angle brackets."""
    digest: str = field(repr=False)
    """MD5 of time stamp and password, as the client wrote it."""
    address: str = ""
    """The client's IP address, empty for a local peer; filled in by the server."""


AnyCredentials = Credentials | Proof | Token | FailedProof | Digest
"""Everything that a client can present to log in."""


class Attempt(NamedTuple):
    """A login that is being checked.

    One login causes several queries to back ends: which user is meant, which back end has the user,
    and whether the password is correct.  All these queries share one deadline and one priority.
    """

    credentials: Credentials
    """The credentials, without a password if the client did not send a password."""
    began: float
    """Start of the login in seconds, on the clock of the event loop."""


_attempt: ContextVar[Attempt | None] = ContextVar("_attempt", default=None)


@contextmanager
def attempting(credentials: AnyCredentials, began: float) -> Iterator[None]:
    """Attribute all queries that this task makes to back ends in the block to this login."""
    if not isinstance(credentials, Credentials):
        credentials = Credentials(
            credentials.mechanism, credentials.identity, "", address=credentials.address
        )
    token = _attempt.set(Attempt(credentials, began))
    try:
        yield
    finally:
        _attempt.reset(token)


def current_attempt() -> Attempt | None:
    """Return the login that is being checked.

    Returns None for other queries, such as the look-up of a recipient's maildrop.
    """
    return _attempt.get()


def end_of(deadline: float, now: float) -> float:
    """Return when a query that may take ``deadline`` seconds must be answered.

    The result is on the clock of ``now``.  All queries of a login must be answered by the same
    time.
    """
    attempt = _attempt.get()
    return (attempt.began if attempt else now) + deadline


class Terms(NamedTuple):
    """The login delay and the mail retention that CAPA announces (RFC 2449 §6.5, §6.7)."""

    login_delay: int = 0
    """Minimum number of seconds between two logins."""
    expire: int | None = None
    """Days after which the server may remove mail; None for never."""


class UserAccount(NamedTuple):
    """A user whose identity was verified, and the user's permissions."""

    user: str
    maildrop: str
    """The name to open in the store."""
    credential: str = "password"
    """Name of the credential used, for the log."""
    is_enabled: bool = True
    networks: tuple[Network, ...] = ()
    """Networks from which the user may log in; empty for all networks."""
    needs_tls: bool = False
    """Whether the user may log in only over TLS, even if the server allows clear text."""
    mechanisms: tuple[str, ...] = ()
    """Mechanisms that the user may use, including ``USER``; empty for all offered mechanisms."""
    is_read_only: bool = False
    """Whether the user may not mark messages as deleted."""
    login_delay: float = 0.0
    """Seconds between two logins; 0 for the server's default (RFC 2449 §6.5)."""
    expire: int | None = None
    """Minimum number of days that mail is kept; None for the server's default (RFC 2449 §6.7)."""
    view: View = View()
    """The part of the maildrop that is shown."""

    def refusal(self, address: str, *, is_secure: bool = True, mechanism: str = "") -> str | None:
        """Return why this account may not be opened now, or None if it may be opened.

        ``address`` is an IP address, or empty for a local peer.  The reason is for the log only:
        the client gets the same error as for a wrong password.
        """
        if not self.is_enabled:
            return "disabled"
        if self.networks and not is_within(address, self.networks):
            return "network"
        if self.needs_tls and not is_secure:
            return "needs-tls"
        # -PLUS is stronger, so it is allowed as well.
        names = {mechanism, mechanism.removesuffix("-PLUS")}
        if self.mechanisms and mechanism and not names & set(self.mechanisms):
            return "mechanism"
        return None


class Passdb(Protocol):
    """Verifies the credentials of users."""

    async def verify(self, credentials: Credentials) -> UserAccount:
        """Return the account of these credentials, whether or not it may be opened now.

        The call takes the same time for an unknown user and for a wrong password.

        Raises:
            AuthenticationFailed: the credentials are wrong, for any reason.
            TemporaryFailure: the credentials cannot be checked now; never counts as a guess.
        """


@runtime_checkable
class ScramKeys(Protocol):
    """Add-on for SCRAM (RFC 5802, RFC 7677): looks up keys, then returns the account."""

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        """Return the keys of this user; ``digest`` is ``sha256`` or ``sha1``.

        An unknown user gets the same salt and iteration count in every call.

        Raises:
            TemporaryFailure: the user cannot be looked up now; never counts as a guess.
        """

    async def proved(self, proof: Proof) -> UserAccount:
        """Return the account of a proof, whether or not it may be opened now.

        Raises:
            AuthenticationFailed: the user may not act for ``proof.authorization``, or the
                credential was revoked since ``scram``.
            TemporaryFailure: the user cannot be looked up now.
        """


@runtime_checkable
class ImmediateScramKeys(Protocol):
    """Add-on for SCRAM: does the same as ``ScramKeys`` if this is possible without waiting."""

    def scram_now(self, identity: str, digest: str) -> ScramSecrets | None:
        """Return the result of ``scram``, or None if ``scram`` must be called.  Must not block."""

    def proved_now(self, proof: Proof) -> UserAccount | None:
        """Return the result of ``proved``, or None if ``proved`` must be called.  Must not block.

        Raises:
            AuthenticationFailed: the user may not act for ``proof.authorization``, or the
                credential was revoked.
        """


@runtime_checkable
class Digests(Protocol):
    """Add-on for APOP (RFC 1939 §7): verifies digests, which requires clear-text passwords."""

    async def digested(self, digest: Digest) -> UserAccount:
        """Return the account of a digest, whether or not it may be opened now.

        The call takes the same time for an unknown user, for a user whose password is stored only
        as a hash, and for a wrong digest.

        Raises:
            AuthenticationFailed: the digest is wrong, for any reason.
            TemporaryFailure: the digest cannot be checked now; never counts as a guess.
        """


@runtime_checkable
class Tokens(Protocol):
    """Add-on for OAUTHBEARER (RFC 7628) and XOAUTH2: verifies bearer tokens."""

    async def verify_token(self, token: Token) -> UserAccount:
        """Return the account of a bearer token, whether or not it may be opened now.

        Raises:
            AuthenticationFailed: the token is forged or expired, or was issued for another service
                or user.
            TemporaryFailure: the token cannot be checked now.
        """


@runtime_checkable
class Certificates(Protocol):
    """Add-on for EXTERNAL (RFC 4422 appendix A): returns the user of a client certificate."""

    async def certified(self, proof: Proof) -> UserAccount:
        """Return the account of a mail address in a trusted certificate.

        Raises:
            AuthenticationFailed: no user has the address, or the user may not act for
                ``proof.authorization``.
            TemporaryFailure: the user cannot be looked up now.
        """


@runtime_checkable
class Accounts(Protocol):
    """Add-on for chains: returns a user's permissions if another back end verified the identity."""

    async def account(self, identity: str) -> UserAccount | None:
        """Return the account of a user, or None if this back end has no such user.

        Raises:
            TemporaryFailure: the user cannot be looked up now.
        """


class MustWait(Exception):
    """The result is not available immediately."""


@runtime_checkable
class ImmediateAccounts(Protocol):
    """Add-on for chains: does the same as ``Accounts`` if this is possible without waiting."""

    def account_now(self, identity: str) -> UserAccount | None:
        """Return the result of ``account``.  Must not block.

        Raises:
            MustWait: ``account`` must be called.
        """


@runtime_checkable
class Generations(Protocol):
    """Add-on for a cache: shows whether an earlier result is still valid."""

    async def generation(self, identity: str) -> bytes | None:
        """Return a value that changes whenever the result of ``verify`` for this user may change.

        This includes changes by other processes.  Returns None if the value is unknown.  The call
        must take only microseconds.

        Raises:
            TemporaryFailure: the value cannot be looked up now.
        """


@runtime_checkable
class ImmediateGenerations(Protocol):
    """Add-on for a cache: does the same as ``Generations`` if this is possible without waiting."""

    def generation_now(self, identity: str) -> bytes | None:
        """Return the result of ``generation``, or None if it must be called.  Must not block."""


@runtime_checkable
class ImmediateAnswers(Protocol):
    """Add-on for a cache: returns the account for a cached password without waiting."""

    def remembered(self, credentials: Credentials) -> UserAccount | None:
        """Return the result of ``verify``, or None if it must be called.  Must not block."""


@runtime_checkable
class LastUses(Protocol):
    """Add-on for a cache: records logins that the cache answered."""

    def used(self, account: UserAccount, address: str) -> None:
        """Record that ``account`` was opened without a call to ``verify``.  Must not block."""


class Directory(Protocol):
    """Add-on for intake: returns the maildrop to which a recipient's mail belongs."""

    async def maildrop_of(self, recipient: str) -> str:
        """Return the maildrop of ``recipient``: a full address, or a user name without a domain.

        Raises:
            NoSuchUser: there is no such recipient.
            TemporaryFailure: the recipient cannot be looked up now.
        """


@runtime_checkable
class ImmediateDirectory(Protocol):
    """Add-on for intake: does the same as ``Directory`` if this is possible without waiting."""

    def maildrop_now(self, recipient: str) -> str | None:
        """Return the maildrop of an existing recipient.  Must not block.

        Returns None in all other cases, so that ``maildrop_of`` must be called.
        """
