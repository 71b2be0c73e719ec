"""The authentication contract: who are you, and what may you open.

A ``Passdb`` answers the first question with an ``Account`` (identity); the account
answers the second (permission): now, from this address, over this connection.
Security: a password is here in clear; it appears in no ``repr`` and no log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Protocol, runtime_checkable

from .maildrop import View

MAX_PASSWORD = 1024  # octets of UTF-8; longer ones are refused without hashing
Network = IPv4Network | IPv6Network


def is_within(address: str, networks: Iterable[Network]) -> bool:
    """Whether this IP address is in one of these; a local peer, whose address is empty, is not."""
    return bool(address) and any(_parsed(address) in network for network in networks)


@lru_cache(4096)  # the same few come again and again
def _parsed(address: str) -> IPv4Address | IPv6Address:
    return ip_address(address)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client showed in USER and PASS or in a SASL exchange.

    Octets that are not UTF-8 arrive as lone surrogates (``surrogateescape``): such an
    identity exists nowhere and takes the same path as any unknown one.
    """

    mechanism: str
    """``USER``, or the SASL mechanism's name."""
    identity: str
    """The authentication identity."""
    password: str = field(repr=False)
    authorization: str = ""
    """The authorization identity, empty when the client named none (RFC 4616 §2)."""
    address: str = ""
    """Where from; the server fills it in.  An IP address, or empty for a local peer."""


@dataclass(frozen=True, slots=True)
class ScramKey:
    """Proves knowledge of one credential without telling it (RFC 5802 §3)."""

    credential: str
    """Which of the user's credentials; for ``Proof``."""
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramSecrets:
    """What the server's side of SCRAM needs to know of one user.

    A client hears one salt and one iteration count before it shows which credential it has, so
    all credentials of a user share them; its proof may fit any of ``keys``.
    """

    salt: bytes
    iterations: int
    keys: tuple[ScramKey, ...] = field(repr=False)
    """At least one.  For a user who does not exist: one that nothing fits."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Credentials that a mechanism has checked itself, because no password was shown."""

    mechanism: str
    identity: str
    """The authentication identity."""
    credential: str
    """``ScramKey.credential`` of the key that fitted."""
    authorization: str = ""
    """The authorization identity, empty when the client named none."""
    address: str = ""
    """Where from; the server fills it in.  An IP address, or empty for a local peer."""


@dataclass(frozen=True, slots=True)
class Token:
    """An OAuth 2 bearer token (RFC 6750), and whose maildrop it is to open."""

    mechanism: str
    identity: str
    """Empty when the client named none: then whoever the token was given to."""
    token: str = field(repr=False)
    address: str = ""
    """Where from; the server fills it in.  An IP address, or empty for a local peer."""


@dataclass(frozen=True, slots=True)
class Disproof:
    """What a mechanism has checked itself and found wrong: a failed login like any other."""

    mechanism: str
    identity: str
    address: str = ""
    """Where from; the server fills it in.  An IP address, or empty for a local peer."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What APOP shows: that somebody knew the password of a user (RFC 1939 §7)."""

    mechanism: str
    identity: str
    time_stamp: str
    """That of the greeting, with its angle brackets."""
    digest: str = field(repr=False)
    """MD5 of time stamp and password, as the client wrote it."""
    address: str = ""
    """Where from; the server fills it in.  An IP address, or empty for a local peer."""


Shown = Credentials | Proof | Token | Disproof | Digest
"""What a client has shown of itself."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that is being checked.

    Back ends are asked several questions for it: which user is meant, which of them knows that
    user, whether the password is right.  All of them share one deadline and one priority.
    """

    asker: Credentials
    """Without a password where none was shown."""
    began: float
    """On the clock of the event loop, in seconds."""


_attempt: ContextVar[Attempt | None] = ContextVar("_attempt", default=None)


@contextmanager
def attempting(shown: Shown, began: float) -> Iterator[None]:
    """What back ends are asked within it, by the same task, belongs to this login."""
    asker = shown
    if not isinstance(asker, Credentials):
        asker = Credentials(shown.mechanism, shown.identity, "", address=shown.address)
    token = _attempt.set(Attempt(asker, began))
    try:
        yield
    finally:
        _attempt.reset(token)


def current_attempt() -> Attempt | None:
    """The login that is being checked; None: the question is of another kind, such as where the
    mail of a recipient belongs."""
    return _attempt.get()


def end_of(deadline: float, now: float) -> float:
    """When a question that may take ``deadline`` seconds must be answered, on the clock of
    ``now``; all questions of one login together may take that long."""
    attempt = _attempt.get()
    return (attempt.began if attempt else now) + deadline


@dataclass(frozen=True, slots=True)
class Terms:
    """What a user is told of how often and how long (RFC 2449 §6.5, §6.7)."""

    login_delay: int = 0
    """Seconds from one login to the next, at least."""
    expire: int | None = None
    """Days after which mail may be removed without being asked; None: never."""


@dataclass(frozen=True, slots=True)
class Account:
    """An identity that was proved, and what it may open."""

    user: str
    maildrop: str
    """The name to open in the store."""
    credential: str = "password"
    """Which of the user's credentials was shown; for the log."""
    is_enabled: bool = True
    networks: tuple[Network, ...] = ()
    """From where; empty means from everywhere."""
    needs_tls: bool = False
    """Not in clear, also where others may."""
    mechanisms: tuple[str, ...] = ()
    """How; empty means by every mechanism that is offered.  ``USER`` is one."""
    is_read_only: bool = False
    """Nothing may be marked as deleted."""
    login_delay: float = 0.0
    """Seconds between two logins; 0: as the server has it (RFC 2449 §6.5)."""
    expire: int | None = None
    """Days that mail is kept at least; None: as the server has it (RFC 2449 §6.7)."""
    view: View = field(default_factory=View)
    """What of the maildrop is shown."""

    def refusal(self, address: str, *, is_secure: bool = True, mechanism: str = "") -> str | None:
        """Why this account may not be opened now from ``address``, or None: it may.

        ``address`` is an IP address, or empty for a local peer.  The reason is for the
        log only: the client is told no more than after a wrong password.
        """
        if not self.is_enabled:
            return "disabled"
        if self.networks and not is_within(address, self.networks):
            return "network"
        if self.needs_tls and not is_secure:
            return "needs-tls"
        names = {mechanism, mechanism.removesuffix("-PLUS")}  # which is the stronger of the two
        if self.mechanisms and mechanism and not names & set(self.mechanisms):
            return "mechanism"
        return None


class Passdb(Protocol):
    """Identity: checks credentials."""

    async def verify(self, credentials: Credentials) -> Account:
        """The account of these credentials, whether or not it may be opened now.

        Takes the same time for an unknown user and for a wrong password.

        Raises:
            AuthenticationFailed: wrong, for whatever reason.
            TemporaryFailure: cannot be told now; never counts as a guess.
        """


@runtime_checkable
class ScramKeys(Protocol):
    """Add-on for SCRAM (RFC 5802, RFC 7677): look keys up, then open the account."""

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        """The keys of this user; ``digest`` is ``sha256`` or ``sha1``.

        Unknown users get the same salt and iteration count each time they are asked for.

        Raises:
            TemporaryFailure: cannot be told now; never counts as a guess.
        """

    async def proved(self, proof: Proof) -> Account:
        """The account of a proof, whether or not it may be opened now.

        Raises:
            AuthenticationFailed: it may not act for ``proof.authorization``, or the credential
                was revoked since ``scram``.
            TemporaryFailure: cannot be told now.
        """


@runtime_checkable
class Digests(Protocol):
    """Add-on for APOP (RFC 1939 §7), which needs the passwords themselves."""

    async def digested(self, shown: Digest) -> Account:
        """The account of a digest, whether or not it may be opened now.

        Takes the same time for an unknown user, for one whose password is not known, and for
        a wrong digest.

        Raises:
            AuthenticationFailed: wrong, for whatever reason.
            TemporaryFailure: cannot be told now; never counts as a guess.
        """


@runtime_checkable
class Tokens(Protocol):
    """Add-on for OAUTHBEARER (RFC 7628) and XOAUTH2."""

    async def verify_token(self, token: Token) -> Account:
        """The account of a bearer token, whether or not it may be opened now.

        Raises:
            AuthenticationFailed: forged, expired, for another service or another user.
            TemporaryFailure: cannot be told now.
        """


@runtime_checkable
class Certificates(Protocol):
    """Add-on for EXTERNAL (RFC 4422 appendix A) with client certificates."""

    async def certified(self, proof: Proof) -> Account:
        """The account of an address that a trusted certificate names.

        Raises:
            AuthenticationFailed: nobody's address, or it may not act for ``proof.authorization``.
            TemporaryFailure: cannot be told now.
        """


@runtime_checkable
class Accounts(Protocol):
    """Add-on for chains: what somebody may, whoever has proved to be that one."""

    async def account(self, identity: str) -> Account | None:
        """The account of a user, or None: nobody here has that name.

        Raises:
            TemporaryFailure: cannot be told now.
        """


@runtime_checkable
class Generations(Protocol):
    """Add-on for a cache: whether an answer of before still holds."""

    async def generation(self, identity: str) -> bytes | None:
        """Another value whenever ``verify`` may answer otherwise for this user, whoever changed
        it, and in whichever process.  None: cannot be told.  Costs microseconds.

        Raises:
            TemporaryFailure: cannot be told now.
        """


@runtime_checkable
class LastUses(Protocol):
    """Add-on for a cache: hear of logins that it answered."""

    def used(self, account: Account, address: str) -> None:
        """``account`` was opened from ``address`` without asking.  Returns at once."""


class Directory(Protocol):
    """Add-on for intake: which maildrop a recipient's mail belongs to."""

    async def maildrop_of(self, recipient: str) -> str:
        """``recipient`` is a full address, or a bare user name.

        Raises:
            NoSuchUser: nobody here.
            TemporaryFailure: cannot be told now.
        """
