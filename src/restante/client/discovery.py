"""Find the POP3 server of an address with SRV records (RFC 6186) and the library ``dnspython``.

Security: an attacker who can forge DNS responses chooses the server, so its certificate must name
the mail domain (RFC 7817 §3).  A certificate for the host's own name is accepted only if the host
is in the mail domain or the user has confirmed it (RFC 8314 §5.1).
Limits: DNSSEC is not checked.  Query when an account is set up, and store the result; unsigned
records must not decide about each connection (RFC 8314 §5.1).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from ..errors import ConfigurationError, ConnectionLost, DeadlineExceeded, UnsafeArgument
from .remote import TLS, Service

_LABELS = (("_pop3s._tcp", TLS.IMPLICIT), ("_pop3._tcp", TLS.STARTTLS))


class Resolver(Protocol):
    """Answers DNS queries: a ``dns.resolver.Resolver`` of dnspython, or a replacement in tests."""

    def resolve(self, qname: str, rdtype: str, *, lifetime: float | None = None) -> Iterable[Any]:
        """Return the records of one type, such as "SRV"; ``lifetime`` is in seconds.

        Raises the exceptions of dnspython.
        """


class Target(NamedTuple):
    """The content of an SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    host: str


def discover_blocking(
    address: str, *, timeout: float = 10.0, resolver: Resolver | None = None
) -> list[Service]:
    """Find the POP3 servers of a mail address or a domain from its SRV records (RFC 6186).

    Returns the servers in the order in which to try them.  Servers with TLS from the first octet
    come first, whatever their priorities (RFC 8314 §5.1).  An empty list means that the domain
    announces no server.

    Args:
        address: A mail address or a domain.
        timeout: Seconds for each of two queries.
        resolver: Resolver to use instead of the system's resolver.

    Raises:
        UnsafeArgument: ``address`` is neither a mail address nor a domain.
        DeadlineExceeded: the DNS did not answer in time.
        ConnectionLost: the DNS failed to answer, which does not mean that there is no server.
        ConfigurationError: dnspython, the extra ``srv``, is not installed.
    """
    user = address if "@" in address else ""
    try:
        domain = address.rpartition("@")[2].rstrip(".").lower().encode("idna").decode()
    except UnicodeError as error:
        raise UnsafeArgument("an address is user@example.org") from error
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", domain):
        raise UnsafeArgument("an address is user@example.org")
    return [
        Service(target.host, target.port, tls, domain, user)
        for label, tls in _LABELS
        for target in order(_targets(f"{label}.{domain}.", timeout, resolver))
    ]


async def discover(
    address: str, *, timeout: float = 10.0, resolver: Resolver | None = None
) -> list[Service]:
    """Find the POP3 servers of a mail address or a domain from its SRV records (RFC 6186).

    Returns the servers in the order in which to try them.  Servers with TLS from the first octet
    come first, whatever their priorities (RFC 8314 §5.1).  An empty list means that the domain
    announces no server.

    Args:
        address: A mail address or a domain.
        timeout: Seconds for each of two queries.
        resolver: Resolver to use instead of the system's resolver.

    Raises:
        UnsafeArgument: ``address`` is neither a mail address nor a domain.
        DeadlineExceeded: the DNS did not answer in time.
        ConnectionLost: the DNS failed to answer, which does not mean that there is no server.
        ConfigurationError: dnspython, the extra ``srv``, is not installed.
    """
    return await asyncio.to_thread(discover_blocking, address, timeout=timeout, resolver=resolver)


def exchangers(
    domain: str, *, timeout: float = 10.0, resolver: Resolver | None = None
) -> list[str]:
    """Return the mail exchangers of a domain (MX records), the preferred one first; blocking.

    Raises:
        DeadlineExceeded, ConnectionLost, ConfigurationError: see ``discover_blocking``.
    """
    found = [(each.preference, each.exchange) for each in _ask(domain, "MX", timeout, resolver)]
    return [host.to_text(True).lower() for _, host in sorted(found)]


def _targets(name: str, timeout: float, resolver: Resolver | None) -> list[Target]:
    return [
        Target(each.priority, each.weight, each.port, each.target.to_text(True).lower())
        for each in _ask(name, "SRV", timeout, resolver)
    ]


def _ask(name: str, kind: str, timeout: float, resolver: Resolver | None) -> Sequence[Any]:
    try:
        from dns import exception
        from dns import resolver as library
    except ImportError as error:
        what = "discovery by SRV needs dnspython: pip install 'restante[srv]'"
        raise ConfigurationError(what) from error
    try:
        resolver = resolver or library.Resolver()
        found = resolver.resolve(name, kind, lifetime=timeout)
    except (library.NXDOMAIN, library.NoAnswer):
        return []
    except exception.Timeout as error:
        raise DeadlineExceeded(f"the DNS does not answer for {name}") from error
    except exception.DNSException as error:
        raise ConnectionLost(f"the DNS gives no answer for {name}") from error
    return list(found)


def order(found: Iterable[Target], chance: random.Random | None = None) -> Sequence[Target]:
    """Return the targets by priority, and among equals at random by weight (RFC 2782).

    A target "." means that the domain has no such service.
    """
    chance = chance or random.SystemRandom()
    left = sorted(each for each in found if each.host not in ("", ".", "@"))
    ordered: list[Target] = []
    while left:
        equals = [each for each in left if each.priority == left[0].priority]
        # Each weight is increased by 1, so that a target of weight 0 is chosen, but rarely.
        chosen = chance.choices(equals, [each.weight * 1000 + 1 for each in equals])[0]
        left.remove(chosen)
        ordered.append(chosen)
    return ordered
