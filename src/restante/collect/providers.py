"""POP3 servers of well-known mail providers, and the steps that are required before a login.

Some providers do not accept passwords, and others require the user to enable POP first.
Limits: the data was taken from the providers' documentation and not tested with real accounts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail provider."""

    name: str
    host: str
    """Host of the POP3S server, on port 995; empty if the provider does not offer POP3."""
    oauth: str = ""
    """The OAuth 2 provider, ``google`` or ``microsoft``; empty if the provider does not support
    OAuth 2."""
    tenant: str = ""
    """The Microsoft tenant; ``consumers`` for personal addresses."""
    accepts_passwords: bool = True
    """Whether the user can log in with a password."""
    password: str = ""
    """The password to use, if it differs from the password of the web site."""
    enable_pop: str = ""
    """Where to enable POP before the first login, if this is required."""


_GOOGLE = Mail(
    name="Google",
    host="pop.gmail.com",
    oauth="google",
    password="an app password (myaccount.google.com/apppasswords); it requires 2-step verification",
    enable_pop="Gmail, Settings, Forwarding and POP/IMAP: enable POP",
)
_MICROSOFT = Mail(
    name="Microsoft 365",
    host="outlook.office365.com",
    oauth="microsoft",
    accepts_passwords=False,
    enable_pop="the administrator's page of the user, Mail, Manage email apps: allow POP",
)
_OUTLOOK = Mail(
    name="Outlook.com",
    host="outlook.office365.com",
    oauth="microsoft",
    tenant="consumers",
    accepts_passwords=False,
    enable_pop="Outlook.com, Settings, Mail, Forwarding and IMAP: let devices and apps use POP",
)
_YAHOO = "an app password (Account security, Generate app password)"
_GMX = "Settings, POP3 & IMAP: allow access over POP3 and IMAP"
_DOMAINS: dict[str, Mail] = {
    **dict.fromkeys(("gmail.com", "googlemail.com"), _GOOGLE),
    **dict.fromkeys(("outlook.com", "hotmail.com", "live.com", "msn.com"), _OUTLOOK),
    **dict.fromkeys(
        ("yahoo.com", "yahoo.co.uk", "yahoo.de", "yahoo.fr", "ymail.com", "rocketmail.com"),
        Mail(name="Yahoo", host="pop.mail.yahoo.com", password=_YAHOO),
    ),
    "aol.com": Mail(name="AOL", host="pop.aol.com", password=_YAHOO),
    **dict.fromkeys(
        ("gmx.de", "gmx.net", "gmx.at", "gmx.ch"),
        Mail(name="GMX", host="pop.gmx.net", enable_pop=_GMX),
    ),
    "gmx.com": Mail(name="GMX", host="pop.gmx.com", enable_pop=_GMX),
    "web.de": Mail(name="WEB.DE", host="pop3.web.de", enable_pop=_GMX),
    "fastmail.com": Mail(
        name="Fastmail",
        host="pop.fastmail.com",
        password="an app password (Settings, Privacy & Security)",
    ),
    "163.com": Mail(
        name="163.com",
        host="pop.163.com",
        password="an authorization code",
        enable_pop="Settings, POP3/SMTP/IMAP: enable POP3",
    ),
    **dict.fromkeys(("icloud.com", "me.com", "mac.com"), Mail(name="iCloud", host="")),
}
# Providers by the domain of their mail exchangers.
_EXCHANGERS = {
    "google.com": _GOOGLE,
    "googlemail.com": _GOOGLE,
    "mail.protection.outlook.com": _MICROSOFT,
    "mx.microsoft": _MICROSOFT,
    "yahoodns.net": _DOMAINS["yahoo.com"],
    "messagingengine.com": _DOMAINS["fastmail.com"],
}


def by_domain(domain: str) -> Mail | None:
    """Return the provider of a domain, without using the network; None if unknown."""
    return _DOMAINS.get(domain.lower())


def by_exchanger(hosts: Iterable[str]) -> Mail | None:
    """Return the provider of the first known mail exchanger (host of an MX record), or None."""
    for host in hosts:
        for domain, mail in _EXCHANGERS.items():
            if f".{host.lower()}".endswith(f".{domain}"):
                return mail
    return None


def by_host(host: str) -> Mail | None:
    """Return the provider whose POP3 server has this host name, or None."""
    providers = (*_DOMAINS.values(), _MICROSOFT)
    return next((mail for mail in providers if host and mail.host == host.lower()), None)
