"""Check the running server: that it is the configured one, what it listens on, and its limits."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ... import __version__, sysexits
from ...config import Configuration, Server
from ...errors import ConnectionLost, NotPermitted, NotRunning, RestanteError
from ...posix import pwd
from ...server.address import Address
from ...tls import CertificateFacts, certificate_facts, first_certificate
from ...words import counted
from ..failures import describe, exit_code
from ..live import CERTIFICATE_DAYS
from ..readiness import MAX_AGE as READINESS_AGE
from ..server import needed_descriptors
from ..setup_advice import start_without_systemd
from ..sockets import configured_listeners
from .backends import back_ends
from .files import store, users
from .findings import Finding, Level, Subject, error, not_checked, ok, warning
from .probing import Heard, Probe, context

_RESTART = "systemctl restart restante"
# OpenSSL's reasons for a version that this system cannot offer.
_UNSUPPORTED = ("NO_PROTOCOLS_AVAILABLE", "NO_CIPHERS_AVAILABLE")
_OLD = {ssl.TLSVersion.TLSv1: "TLS 1.0", ssl.TLSVersion.TLSv1_1: "TLS 1.1"}


# Control socket


def _has_error(check: Callable[[Subject], Iterable[Finding]]) -> Callable[[Subject], bool]:
    return lambda subject: any(each.level is Level.ERROR for each in check(subject))


# How the server begins a fault, and a function that returns whether another check reports it.
_CAUSES: dict[str, Callable[[Subject], bool]] = {
    "the certificate": lambda _: True,
    "mail storage": _has_error(store),
    "no identity back end": lambda subject: any(
        _has_error(check)(subject) for check in (users, back_ends)
    ),
}


def server(subject: Subject) -> Iterator[Finding]:
    """Check that the running server is the one that this configuration describes."""
    status, failure = subject.status, subject.status_failure
    if isinstance(failure, NotPermitted):
        yield not_checked(str(failure))
    elif isinstance(failure, NotRunning):
        yield error(sysexits.EX_UNAVAILABLE, "no server is running", _start(subject))
    elif failure is not None:
        yield error(sysexits.EX_TEMPFAIL, describe(failure), "systemctl status restante")
    elif status is not None:
        found = [*_identity(subject, status), *_state(subject, status)]
        found += _listeners(subject, status)
        yield from found
        if not found:
            workers = counted(len(status["workers"]), "worker")
            yield ok(f"restante {status['version']} is ready: {workers}, process {status['pid']}")


def _start(subject: Subject) -> str:
    """Return the command that starts the server."""
    if subject.config.state != subject.service_state:
        return "restante serve"
    if (subject.system / "run/systemd/system").is_dir():
        return "systemctl start restante"
    try:
        return " ".join(start_without_systemd(pwd.getpwuid(subject.owner)))
    except KeyError:
        return "restante serve"


def _identity(subject: Subject, status: dict[str, Any]) -> Iterator[Finding]:
    used, source = status["configuration"]["file"], subject.config.source
    if used != (str(source) if source else None):
        text = f"the running server uses {used or 'no configuration file'}"
        yield error(sysexits.EX_CONFIG, text, f"restante -c {used} doctor" if used else "")
    if status["version"] != __version__:
        text = f"the running server is restante {status['version']}, not {__version__}"
        yield warning(text, _RESTART)


def _state(subject: Subject, status: dict[str, Any]) -> Iterator[Finding]:
    """Report what ``restante status`` reports, unless another check reports the cause."""
    for text in status["attention"]:
        if any(text.startswith(begin) and find(subject) for begin, find in _CAUSES.items()):
            continue
        if text in status["faults"]:
            if text.startswith(tuple(_CAUSES)):  # the cause may have been removed meanwhile
                text += f" (checked by the server at most {READINESS_AGE:.0f} s ago)"
            yield error(sysexits.EX_TEMPFAIL, text, "restante status")
        else:
            yield warning(text, _RESTART if "restart" in text else "restante reload")


def _listeners(subject: Subject, status: dict[str, Any]) -> Iterator[Finding]:
    """Compare the addresses in the configuration with those of the server."""
    opened = _opened(status)
    configured = _configured(subject.config, opened)
    for address, scheme, setting in configured:
        if not any(_is_same(scheme, address, *each) for each in opened):
            text = f"the server does not listen on {address} ({setting.partition(' ')[0]})"
            yield error(sysexits.EX_CONFIG, text, _RESTART)
    for scheme, address in opened:
        if not any(_is_same(each[1], each[0], scheme, address) for each in configured):
            yield warning(f"the server listens on {address} for {scheme}, which is not configured")


def _opened(status: dict[str, Any]) -> list[tuple[str, Address]]:
    """Return protocol and address of each socket of the server."""
    return [(each["proto"], Address.parse(each["listen"])) for each in status.get("listen", ())]


def _configured(
    config: Configuration, opened: list[tuple[str, Address]]
) -> list[tuple[Address, str, str]]:
    """Return address, protocol and setting of each configured listener.

    The default of ``server.listen`` does not count if systemd has opened other sockets for POP3.
    """
    defaults = [Address.parse(text) for text in Server().listen]
    is_default_open = any(_is_same(each.scheme, each, *row) for each in defaults for row in opened)
    return configured_listeners(config, () if is_default_open else {row[0] for row in opened})


def _is_same(scheme: str, configured: Address, opened_scheme: str, opened: Address) -> bool:
    is_any_port = not configured.port and not configured.path and not opened.path
    return scheme == opened_scheme and (
        is_any_port or (configured.port, configured.path) == (opened.port, opened.path)
    )


# Listeners


def addresses(subject: Subject, *schemes: str) -> Iterator[tuple[str, Address]]:
    """Yield protocol and address of each listener; a free port is replaced by the real one.

    Addresses on which the running server does not listen are left out: see ``_listeners``.
    """
    opened = _opened(subject.status or {})
    for address, scheme, _ in _configured(subject.config, opened):
        if scheme in schemes:
            same = [each for name, each in opened if _is_same(scheme, address, name, each)]
            if subject.status is None or same:
                found = same[0] if same and not (address.port or address.path) else address
                yield scheme, found._replace(scheme="" if found.path else scheme)


def listen(subject: Subject) -> Iterator[Finding]:
    """Connect to each POP3 address as a client does: greeting, capabilities, TLS, certificate."""
    certificates: dict[bytes, Address] = {}
    for scheme, address in addresses(subject, "pop3s", "pop3"):
        try:
            heard = _hear(subject, scheme, address)
        except ConnectionRefusedError:
            if subject.status is None:
                yield not_checked(f"{address}: the server is not running")
            else:
                yield error(sysexits.EX_UNAVAILABLE, f"{address} refuses connections", _RESTART)
        except TimeoutError:
            text = f"{address}: no answer within {subject.timeout:g} s"
            yield error(sysexits.EX_TEMPFAIL, text, _program(address))
        except (OSError, RestanteError) as failure:
            code = 0 if isinstance(failure, ConnectionLost | OSError) else exit_code(failure)
            text = f"{address} does not answer as a POP3 server: {_reason(failure)}"
            yield error(listed(code), text, _program(address))
        else:
            if scheme == "pop3" and not heard.announced_stls:
                yield error(sysexits.EX_UNAVAILABLE, f"{address} does not offer STLS")
            elif "USER" not in heard.capabilities.tags and not heard.capabilities.sasl:
                text = f"{address} offers no way to log in (CAPA)"
                yield error(sysexits.EX_UNAVAILABLE, text, "restante check")
            else:
                yield ok(f"{address}: POP3, {heard.tls.replace('v', ' ')}")
            certificates.setdefault(heard.certificate, address)
    for certificate, address in certificates.items():
        yield from _certificate(subject, address, certificate)


def listed(code: int) -> int:
    """Return an exit code that doctor may have."""
    known = (69, 74, 75, 77, 78)
    return code if code in known else sysexits.EX_UNAVAILABLE


def _reason(failure: Exception) -> str:
    if isinstance(failure, ssl.SSLError):
        return f"TLS: {(failure.reason or 'handshake failed').lower().replace('_', ' ')}"
    return describe(failure)


def _program(address: Address) -> str:
    return f"ss -ltnp 'sport = {address.port}'"


def _hear(subject: Subject, scheme: str, address: Address) -> Heard:
    with connect(subject, address) as probe:
        return probe.hear(is_implicit=scheme == "pop3s")


def connect(subject: Subject, address: Address) -> Probe:
    """Connect to a POP3 listener.

    Raises:
        OSError: the connection is refused, or not accepted in time.
    """
    return Probe(address, subject.timeout, subject.config.server.proxy_from)


def _certificate(subject: Subject, address: Address, der: bytes) -> Iterator[Finding]:
    """Check days, name, chain, and that the server uses the certificate that is on the disk."""
    facts, host = certificate_facts(der), subject.config.server.hostname
    found = [*_validity(facts), *_freshness(subject, facts)]
    if not found:
        found = [*_trust(subject, address, facts, host)]
    yield from found
    if not found:
        days = int((facts.ends_at - time.time()) / 86_400)
        kind = "self-signed certificate" if subject.config.tls.mode == "self" else "certificate"
        yield ok(f"the {kind} is for {host} and valid for {counted(days, 'day')}")


def _validity(facts: CertificateFacts) -> Iterator[Finding]:
    now, renew = time.time(), "renew the certificate, then: restante reload"
    if facts.ends_at <= now:
        yield error(sysexits.EX_CONFIG, "the certificate has expired", renew)
    elif facts.begins_at > now:
        yield error(sysexits.EX_CONFIG, "the certificate is not valid yet", "timedatectl")
    elif (days := (facts.ends_at - now) / 86_400) < CERTIFICATE_DAYS:
        yield warning(f"the certificate expires in {counted(int(days), 'day')}", renew)


def certificate_path(config: Configuration) -> Path:
    """Return the path of the server's certificate, which may not exist yet."""
    if config.tls.mode == "self":
        return config.state / "tls/certificate.pem"
    return Path(config.tls.cert)


def _freshness(subject: Subject, facts: CertificateFacts) -> Iterator[Finding]:
    path = certificate_path(subject.config)
    try:
        stored = first_certificate(path)
    except (OSError, ValueError, RestanteError):  # the check of the configuration reports it
        return
    if stored != facts.der:
        yield warning(f"the server does not use the certificate in {path}", "restante reload")


def _trust(
    subject: Subject, address: Address, facts: CertificateFacts, host: str
) -> Iterator[Finding]:
    """Check the name, and unless the certificate is self-signed by restante, the chain."""
    if subject.config.tls.mode == "self":
        if not facts.is_valid_for(host):
            yield error(
                sysexits.EX_CONFIG,
                f"the certificate is not for {host} (server.hostname)",
                f"rm -r {subject.config.state}/tls, then: restante reload",
            )
        return
    verifying = ssl.create_default_context()
    verifying.set_alpn_protocols(["pop3"])
    try:
        with connect(subject, address) as probe:
            if address.scheme == "pop3":
                probe.send_stls()
            probe.start_tls(verifying, host)
    except ssl.SSLCertVerificationError as failure:
        if not facts.is_valid_for(host):
            text = f"the certificate is not for {host} (server.hostname)"
            command = (
                f"get a certificate for {host}, or set server.hostname to one of its names, then: "
                "restante reload"
            )
            yield error(sysexits.EX_CONFIG, text, command)
        else:
            yield warning(
                f"clients may not trust the certificate: {failure.verify_message}",
                "check that tls.cert contains the whole chain",
            )
    except (OSError, RestanteError) as failure:
        yield not_checked(f"the chain of the certificate: {_reason(failure)}")


# TLS versions


def tls(subject: Subject) -> Iterator[Finding]:
    """Check that each POP3 address refuses old versions of TLS."""
    is_checked = False
    for scheme, address in addresses(subject, "pop3s", "pop3"):
        for version, name in _refused_versions(subject).items():
            try:
                is_accepted = _accepts(subject, scheme, address, version)
            except (OSError, RestanteError):
                yield not_checked(f"{address}: no answer")  # the check ``listen`` reports it
                break
            if is_accepted is None:
                yield not_checked(f"{address}: this system's OpenSSL does not support {name}")
            elif is_accepted:
                yield error(sysexits.EX_CONFIG, f"{address} accepts {name}", _RESTART)
                break
            is_checked = True
        else:
            if is_checked:
                yield ok(f"{address} refuses TLS before {subject.config.tls.min_version}")


def _refused_versions(subject: Subject) -> dict[ssl.TLSVersion, str]:
    is_newest_only = subject.config.tls.min_version == "1.3"
    return _OLD | {ssl.TLSVersion.TLSv1_2: "TLS 1.2"} if is_newest_only else _OLD


def _accepts(
    subject: Subject, scheme: str, address: Address, version: ssl.TLSVersion
) -> bool | None:
    """Return whether a listener accepts a version of TLS; None if this system cannot offer it.

    Raises:
        OSError, RestanteError: the listener does not answer.
    """
    with connect(subject, address) as probe:
        if scheme == "pop3":
            probe.send_stls()
        try:
            probe.start_tls(context(version))
        except ssl.SSLError as failure:
            return None if failure.reason in _UNSUPPORTED else False
        except ConnectionError:
            return False
        return True


# Limits


def limits(subject: Subject) -> Iterator[Finding]:
    """Check that each worker may open enough files for the configured connections."""
    if subject.status is None:
        yield not_checked("the server is not running")
        return
    needed = needed_descriptors(subject.config.limits.sessions)
    seen = []
    for worker in subject.status["workers"]:
        path = subject.system / f"proc/{worker.get('pid')}/limits"
        try:
            seen.append(_open_files(path.read_text()))
        except (OSError, ValueError):
            yield not_checked(f"worker {worker['worker']}: {path} cannot be read")
    if seen and min(seen) < needed:
        text = f"a worker may open {min(seen):.0f} files, but needs {needed} (limits.sessions)"
        yield warning(text, f"systemctl edit restante, set LimitNOFILE={needed}")
    elif seen:
        yield ok(f"enough open files for {subject.config.limits.sessions} connections")


def _open_files(text: str) -> float:
    """Return the soft limit of open files (proc_pid_limits(5))."""
    [line] = [each for each in text.splitlines() if each.startswith("Max open files")]
    soft = line.split()[3]
    return float("inf") if soft == "unlimited" else int(soft)
