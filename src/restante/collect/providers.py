"""Where the mail of well-known domains is, and how it is had there.

What no standard tells: that a password is not enough, or that POP must be switched on first.
Limits: read in the providers' own pages; nobody here can try it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One provider."""

    name: str
    host: str
    """For POP3S on port 995; empty: it has no POP3."""
    oauth: str = ""
    """``google`` or ``microsoft``, whose OAuth 2 it takes."""
    tenant: str = ""
    """At Microsoft, for personal addresses."""
    takes_passwords: bool = True
    password: str = ""
    """Which password, where it is not that of the web site."""
    switch: str = ""
    """What must be switched on first."""


_GOOGLE = Mail(
    name="Google",
    host="pop.gmail.com",
    oauth="google",
    password="an app password (myaccount.google.com/apppasswords), which wants 2-step verification",
    switch="Gmail, Settings, Forwarding and POP/IMAP: enable POP",
)
_MICROSOFT = Mail(
    name="Microsoft 365",
    host="outlook.office365.com",
    oauth="microsoft",
    takes_passwords=False,
    switch="the administrator's page of the user, Mail, Manage email apps: allow POP",
)
_OUTLOOK = Mail(
    name="Outlook.com",
    host="outlook.office365.com",
    oauth="microsoft",
    tenant="consumers",
    takes_passwords=False,
    switch="Outlook.com, Settings, Mail, Forwarding and IMAP: let devices and apps use POP",
)
_YAHOO = "an app password (Account security, Generate app password)"
_GMX = "Settings, POP3 & IMAP: allow access by POP3 and IMAP"
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
        Mail(name="GMX", host="pop.gmx.net", switch=_GMX),
    ),
    "gmx.com": Mail(name="GMX", host="pop.gmx.com", switch=_GMX),
    "web.de": Mail(name="WEB.DE", host="pop3.web.de", switch=_GMX),
    "fastmail.com": Mail(
        name="Fastmail",
        host="pop.fastmail.com",
        password="an app password (Settings, Privacy & Security)",
    ),
    "163.com": Mail(
        name="163.com",
        host="pop.163.com",
        password="an authorization code",
        switch="Settings, POP3/SMTP/IMAP: switch POP3 on",
    ),
    **dict.fromkeys(("icloud.com", "me.com", "mac.com"), Mail(name="iCloud", host="")),
}
# By the end of the name of the host that takes a domain's mail.
_EXCHANGERS = {
    "google.com": _GOOGLE,
    "googlemail.com": _GOOGLE,
    "mail.protection.outlook.com": _MICROSOFT,
    "mx.microsoft": _MICROSOFT,
    "yahoodns.net": _DOMAINS["yahoo.com"],
    "messagingengine.com": _DOMAINS["fastmail.com"],
}


def by_domain(domain: str) -> Mail | None:
    """Of an address, without asking anybody."""
    return _DOMAINS.get(domain.lower())


def by_exchanger(hosts: Iterable[str]) -> Mail | None:
    """Of a domain whose mail one of these hosts takes (MX records)."""
    for host in hosts:
        for end, mail in _EXCHANGERS.items():
            if f".{host.lower()}".endswith(f".{end}"):
                return mail
    return None


def by_host(host: str) -> Mail | None:
    """Of a POP3 server."""
    found = (*_DOMAINS.values(), _MICROSOFT)
    return next((mail for mail in found if host and mail.host == host.lower()), None)
