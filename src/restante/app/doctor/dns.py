"""Check the DNS records by which clients and other mail servers find the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from ... import sysexits
from ...client.discovery import Target, addresses_of, mail_exchangers, targets
from ...errors import ConfigurationError, ConnectionLost, DeadlineExceeded, RestanteError
from .. import stores
from .findings import Finding, Subject, error, not_checked, ok, warning
from .server import addresses

T = TypeVar("T")
_PORT = 995  # of POP3 over TLS; a firewall may forward it to another port
_MAX_DOMAINS = 10
_LOCAL = ("localhost", "localdomain", "local", "lan", "home.arpa", "internal")


def dns(subject: Subject) -> Iterator[Finding]:
    """Check the server's name, and the SRV and MX records of the mail domains."""
    host = subject.config.server.hostname.lower()
    if "." not in host or host.endswith(tuple(f".{each}" for each in _LOCAL)):
        yield not_checked(f"{host} is not a name in DNS (server.hostname)")
        return
    yield from _host(subject, host)
    for domain in _domains(subject):
        yield from _service(subject, host, domain)
        if subject.config.intake.smtp.listen:
            yield from _exchangers(subject, host, domain)


def _asked(question: Callable[[], T], name: str) -> tuple[T | None, Finding | None]:
    """Return the answer to a query, or why the query failed.

    An empty answer means that there is no such record, which is a different fault.
    """
    try:
        return question(), None
    except ConfigurationError as failure:  # the library is missing
        return None, not_checked(str(failure))
    except DeadlineExceeded:
        return None, not_checked(f"{name}: the DNS server does not answer")
    except ConnectionLost:
        text = f"{name}: the DNS servers refuse the query or fail"
        return None, warning(text, f"dig +trace {name}")


def _host(subject: Subject, host: str) -> Iterator[Finding]:
    timeout, resolver = subject.timeout, subject.resolver
    found, failure = _asked(
        lambda: addresses_of(f"{host}.", timeout=timeout, resolver=resolver), host
    )
    if failure:
        yield failure
    elif not found:
        text = f"{host} has no address in DNS, so clients cannot find the server"
        yield error(sysexits.EX_UNAVAILABLE, text, f"add: {host}. A or AAAA, the server's address")
    else:
        yield ok(f"{host} has the address {', '.join(found)}")


def _service(subject: Subject, host: str, domain: str) -> Iterator[Finding]:
    """Check the SRV record for POP3 over TLS (RFC 6186 §3.3)."""
    name = f"_pop3s._tcp.{domain}"
    found, failure = _asked(lambda: targets(f"{name}.", subject.timeout, subject.resolver), name)
    record = f"add: {name}. SRV 0 1 {_PORT} {host}."
    if failure:
        yield failure
    elif not found:
        yield warning(f"{name} does not exist, so clients have to guess the server", record)
    elif all(each.host in ("", ".", "@") for each in found):
        yield warning(f"{name} says that {domain} has no POP3 server", record)
    else:
        ports = {_PORT, *(each.port for _, each in addresses(subject, "pop3s"))}
        wrong = [each for each in found if each.host != host or each.port not in ports]
        if wrong:
            shown = ", ".join(map(_shown, wrong))
            yield warning(f"{name} names {shown}, not {host}:{_PORT}", record)
        else:
            yield ok(f"{name} names {', '.join(map(_shown, found))}")


def _shown(target: Target) -> str:
    return f"{target.host}:{target.port}"


def _exchangers(subject: Subject, host: str, domain: str) -> Iterator[Finding]:
    """Check that mail for a domain comes to this server, which receives it over SMTP."""
    timeout, resolver = subject.timeout, subject.resolver
    found, failure = _asked(
        lambda: mail_exchangers(f"{domain}.", timeout=timeout, resolver=resolver), domain
    )
    record = f"add: {domain}. MX 10 {host}."
    if failure:
        yield failure
    elif not found:
        yield warning(f"{domain} has no MX record, so it gets no mail from other servers", record)
    elif host not in found:
        yield warning(f"mail for {domain} goes to {', '.join(found)}, not to {host}", record)
    else:
        yield ok(f"mail for {domain} comes to {host}")


def _domains(subject: Subject) -> list[str]:
    """Return the domains of the users, and those for which mail is accepted over SMTP."""
    domains = [each for each in subject.config.intake.smtp.domains if each != "localhost"]
    try:
        names = [user.name for user in stores.users(subject.config).list()]
    except RestanteError:  # the check ``users`` reports it
        names = []
    domains += [name.rpartition("@")[2] for name in names if "@" in name]
    return list(dict.fromkeys(each.lower() for each in domains))[:_MAX_DOMAINS]
