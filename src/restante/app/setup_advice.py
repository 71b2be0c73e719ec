"""What the operator must configure elsewhere after ``restante init``: DNS, Postfix and clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ..server.address import Address
from .setup import Plan, has_systemd, units_for

if TYPE_CHECKING:
    from pwd import struct_passwd

# UDP sockets connected to these addresses (RFC 5737, RFC 3849) reveal the address of this machine
# that is used for the Internet.  Nothing is sent.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1", "A"), (socket.AF_INET6, "2001:db8::1", "AAAA"))


def dns_records(plan: Plan) -> list[str]:
    """Return the DNS records in the notation of zone files; a private server needs none."""
    if plan.place.kind == "private":
        return []
    host, domain = plan.config.server.hostname, _domain(plan)
    rows = [(f"{host}.", kind, address) for kind, address in public_addresses()]
    rows = rows or [(f"{host}.", "A", "the public address of this machine")]
    if plan.choices.mail != "none":
        rows.append((f"{domain}.", "MX", f"10 {host}."))
    rows.append((f"_pop3s._tcp.{domain}.", "SRV", f"0 1 995 {host}."))
    rows.append((f"_pop3._tcp.{domain}.", "SRV", "0 0 0 ."))  # not offered (RFC 6186 §3.4)
    width = max(len(name) for name, _, _ in rows)
    return [f"{name:<{width}}  {kind:<4}  {value}" for name, kind, value in rows]


def public_addresses() -> Iterator[tuple[str, str]]:
    """Yield type and value of this machine's addresses that the Internet can reach."""
    for family, elsewhere, kind in _ELSEWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            address = probe.getsockname()[0]
            if ip_address(address).is_global:
                yield kind, address


def postfix_lines(plan: Plan) -> list[str]:
    """Return the lines for Postfix's main.cf; empty if it does not deliver to this server."""
    if plan.choices.mail != "lmtp" or plan.place.kind != "system":
        return []
    address = plan.config.intake.lmtp.listen[0]
    return [
        f"virtual_mailbox_domains = {_domain(plan)}",
        f"virtual_transport = lmtp:inet:{address}",
        "smtpd_recipient_restrictions =",
        "    reject_unauth_destination, reject_unverified_recipient",
        "unverified_recipient_reject_code = 550",
        "unverified_recipient_reject_reason = No such user",
        "address_verify_negative_expire_time = 10s",
        "address_verify_positive_refresh_time = 10m",
    ]


def client_settings(plan: Plan) -> dict[str, str]:
    """Return what users enter in a mail client."""
    # A container's port 1995 is published as port 995.
    port = Address.parse(plan.config.server.listen[0]).port
    shown = 995 if plan.place.kind == "container" else port
    return {
        "server": plan.config.server.hostname,
        "port": str(shown),
        "security": "SSL/TLS",
        "user": plan.choices.address,
    }


def next_commands(plan: Plan) -> list[str]:
    """Return the commands that start the server, if it does not run yet, and verify it."""
    start: list[str] = []
    if plan.place.kind == "private":
        start = ["restante serve"]
    elif plan.place.kind == "system" and not plan.units:
        if has_systemd():
            start = ["systemctl enable --now \\", f"    {' '.join(units_for(plan.choices))}"]
        elif plan.account:
            first, second, third = start_without_systemd(plan.account)
            start = [f"{first} \\", f"    {second} \\", f"    {third}"]
    return [*start, "restante doctor"]


def start_without_systemd(account: struct_passwd) -> tuple[str, str, str]:
    """Return the command that starts the service as its unit does, in parts for three lines.

    It also gives the server the right to open ports below 1024.
    """
    return (
        f"setpriv --reuid={account.pw_name} --regid={account.pw_gid} --init-groups",
        "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service",
        "restante serve",
    )


def _domain(plan: Plan) -> str:
    return plan.choices.address.rpartition("@")[2]
