"""Find the POP3 server for a mail address with SRV records (RFC 6186), using dnspython.

Security: an attacker who can forge DNS responses chooses the server, so its certificate must name
the mail domain (RFC 7817 §3).  A certificate for the host's own name is accepted only if the host
is in the mail domain or the user has confirmed it (RFC 8314 §5.1).
Limits: DNSSEC is not validated.  Discover the server once, when an account is set up, and store the
result; unsigned records must not determine the server of each connection (RFC 8314 §5.1).
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
    come first, regardless of their priorities (RFC 8314 §5.1).  An empty list means that the domain
    announces no server.

    Args:
        address: A mail address or a domain.
        timeout: Limit in seconds for each of the two queries.
        resolver: Resolver to use instead of the system's resolver.

    Raises:
        UnsafeArgument: ``address`` is neither a mail address nor a domain.
        DeadlineExceeded: the DNS server did not answer in time.
        ConnectionLost: the DNS query failed, which does not mean that there is no POP3 server.
        ConfigurationError: dnspython is not installed (use the extra ``srv``).
    """
    user = address if "@" in address else ""
    try:
        domain = address.rpartition("@")[2].rstrip(".").lower().encode("idna").decode()
    except UnicodeError as error:
        raise UnsafeArgument("an address must have the form user@example.org") from error
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", domain):
        raise UnsafeArgument("an address must have the form user@example.org")
    return [
        Service(target.host, target.port, tls, domain, user)
        for label, tls in _LABELS
        for target in order_by_priority(targets(f"{label}.{domain}.", timeout, resolver))
    ]


async def discover(
    address: str, *, timeout: float = 10.0, resolver: Resolver | None = None
) -> list[Service]:
    """Find the POP3 servers of a mail address or a domain from its SRV records (RFC 6186).

    Returns the servers in the order in which to try them.  Servers with TLS from the first octet
    come first, regardless of their priorities (RFC 8314 §5.1).  An empty list means that the domain
    announces no server.

    Args:
        address: A mail address or a domain.
        timeout: Limit in seconds for each of the two queries.
        resolver: Resolver to use instead of the system's resolver.

    Raises:
        UnsafeArgument: ``address`` is neither a mail address nor a domain.
        DeadlineExceeded: the DNS server did not answer in time.
        ConnectionLost: the DNS query failed, which does not mean that there is no POP3 server.
        ConfigurationError: dnspython is not installed (use the extra ``srv``).
    """
    return await asyncio.to_thread(discover_blocking, address, timeout=timeout, resolver=resolver)


def mail_exchangers(
    domain: str, *, timeout: float = 10.0, resolver: Resolver | None = None
) -> list[str]:
    """Return the mail exchangers of a domain (MX records), the preferred one first; blocking.

    Raises:
        DeadlineExceeded, ConnectionLost, ConfigurationError: see ``discover_blocking``.
    """
    records = _query(domain, "MX", timeout, resolver)
    exchangers = sorted((each.preference, each.exchange) for each in records)
    return [host.to_text(True).lower() for _, host in exchangers]


def addresses_of(
    host: str, *, timeout: float = 10.0, resolver: Resolver | None = None
) -> list[str]:
    """Return the IP addresses of a host (A and AAAA records); blocking.

    Raises:
        DeadlineExceeded, ConnectionLost, ConfigurationError: see ``discover_blocking``.
    """
    return [
        each.to_text() for kind in ("A", "AAAA") for each in _query(host, kind, timeout, resolver)
    ]


def targets(name: str, timeout: float = 10.0, resolver: Resolver | None = None) -> list[Target]:
    """Return the SRV records with this name; blocking.

    Raises:
        DeadlineExceeded, ConnectionLost, ConfigurationError: see ``discover_blocking``.
    """
    return [
        Target(each.priority, each.weight, each.port, each.target.to_text(True).lower())
        for each in _query(name, "SRV", timeout, resolver)
    ]


def _query(name: str, rdtype: str, timeout: float, resolver: Resolver | None) -> Sequence[Any]:
    try:
        from dns import exception
        from dns import resolver as library
    except ImportError as error:
        advice = "SRV discovery requires dnspython: pip install 'restante[srv]'"
        raise ConfigurationError(advice) from error
    try:
        resolver = resolver or library.Resolver()
        records = resolver.resolve(name, rdtype, lifetime=timeout)
    except (library.NXDOMAIN, library.NoAnswer):
        return []
    except exception.Timeout as error:
        raise DeadlineExceeded(f"the DNS query for {name} timed out") from error
    except exception.DNSException as error:
        raise ConnectionLost(f"the DNS query for {name} failed") from error
    return list(records)


def order_by_priority(
    targets: Iterable[Target], rng: random.Random | None = None
) -> Sequence[Target]:
    """Return the targets by priority, and at random by weight within a priority (RFC 2782).

    A target "." means that the domain has no such service.
    """
    rng = rng or random.SystemRandom()
    remaining = sorted(each for each in targets if each.host not in ("", ".", "@"))
    ordered: list[Target] = []
    while remaining:
        candidates = [each for each in remaining if each.priority == remaining[0].priority]
        # Weights are scaled and increased by 1, so that a target of weight 0 has a small chance.
        chosen = rng.choices(candidates, [each.weight * 1000 + 1 for each in candidates])[0]
        remaining.remove(chosen)
        ordered.append(chosen)
    return ordered
