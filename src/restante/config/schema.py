"""Every section and option of the configuration, as dataclasses.

The sample file and the reference are generated from the texts of the options (``manual``).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import Field, field, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, ClassVar

from .. import sasl
from ..auth.choices import ALGORITHMS
from ..pop3.texts import LANGUAGES
from .section import Section
from .values import (
    BadValue,
    Convert,
    Secret,
    address,
    at_least,
    at_most,
    backends,
    count,
    directory,
    duration,
    greeting,
    holding,
    hostname,
    keep,
    keeping,
    many,
    network,
    number,
    octets,
    octets_or_auto,
    one_of,
    place,
    quirks,
    reference,
    scheme,
    search,
    secret,
    separator,
    service,
    source,
    text,
    web_address,
    workers,
)

ALL_MECHANISMS = (*sasl.MECHANISMS, "APOP")
# Not -PLUS: Python's ssl can bind to the certificate (tls-server-end-point) only.  Clients that use
# GSASL, such as mutt, bind by tls-unique or tls-exporter; they would pick -PLUS, fail and give up.
MECHANISMS = tuple(
    name
    for name, mechanism in sasl.MECHANISMS.items()
    if mechanism.is_usual and mechanism.binding is not sasl.Binding.REQUIRE
)


def _own_name() -> str:
    try:
        return hostname(socket.gethostname())
    except BadValue:
        return "localhost"


def option(default: Any, doc: str, convert: Convert = text, *, example: Any = None) -> Any:
    """Declare an option; ``doc`` is a full sentence, ``example`` is shown in the sample file."""
    metadata = {"doc": doc, "convert": convert, "default": default}
    metadata["example"] = default if example is None else example
    return field(default=convert(default), metadata=metadata)


class Server(Section):
    """The POP3 server."""

    hostname: str = option(
        _own_name(),
        "The host name that clients connect to; also used in certificates and Received fields.",
        hostname,
        example="mail.example.org",
    )
    listen: tuple[str, ...] = option(
        ["pop3s://127.0.0.1:1995", "pop3://127.0.0.1:1110"],
        "Addresses where POP3 is served: pop3s with implicit TLS, pop3 with STLS.",
        many(address("pop3s", "pop3")),
        example=["pop3s://[::]:995", "pop3://[::]:110"],
    )
    workers: int = option(
        "auto",
        'Number of worker processes; "auto" is one for each core, 1 runs without a supervisor.',
        workers,
    )
    proxy_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Load balancers: every POP3 connection from these networks begins with a PROXY header "
        "(version 1 or 2), which reports the client's address.",
        many(network),
        example=["192.0.2.10/32"],
    )
    tls_at_proxy: tuple[str, ...] = option(
        [],
        "Addresses of listen to which a proxy in proxy_from connects after it has terminated TLS: "
        "these connections count as TLS, unless the PROXY header reports a client without TLS. "
        "Other clients need STLS there as everywhere.",
        many(address("pop3")),
        example=["pop3://[::]:110"],
    )
    xclient_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks whose proxies may report the client's address by XCLIENT, as Dovecot's does.",
        many(network),
        example=["192.0.2.11/32"],
    )
    language: str = option(
        "en",
        "The language of the server's texts until the client chooses another with LANG.",
        one_of(*LANGUAGES),
    )
    utf8_headers: str = option(
        "as-is",
        'Headers in UTF-8 for clients that do not send UTF8: "as-is", or a "surrogate" in ASCII '
        "(RFC 6858). The stored message does not change.",
        one_of("as-is", "surrogate"),
    )
    banner: str = option(
        "ready", "The text of the greeting; it should not reveal a version.", greeting
    )


class TLS(Section):
    """Certificates."""

    mode: str = option(
        "self",
        '"self" creates a self-signed certificate at the first start; "files" uses cert and key.',
        one_of("self", "files"),
        example="files",
    )
    cert: str = option(
        "", "The certificate and its chain, PEM.", example="/etc/restante/fullchain.pem"
    )
    key: str = option("", "The private key, PEM.", example="/etc/restante/privkey.pem")
    client_ca: str = option(
        "",
        "The CA whose client certificates are trusted, PEM. With it a client may log in with "
        "EXTERNAL as the e-mail address in its certificate.",
        example="/etc/restante/clients.pem",
    )
    min_version: str = option(
        "1.2", "The oldest TLS version that is accepted.", one_of("1.2", "1.3")
    )


class Store(Section):
    """Where mail is stored."""

    kind: str = option(
        "maildir",
        '"maildir"; or "memory", which loses all mail when the server stops.',
        one_of("maildir", "memory"),
    )
    path: str = option(
        "",
        "The Maildir of one user: %n is the local part of the name, %d its domain, %u both. "
        "By default mail/%u in the state directory.",
        example="/var/mail/restante/%d/%n",
    )
    hold: float = option(
        "14d",
        "How long deleted mail can be restored; 0 destroys it at QUIT. `keep` removes nothing at "
        "QUIT, so that deleted messages appear again. `restante user hold` sets another time for "
        "a user. After the time is made shorter, held mail is destroyed after 24 hours at the "
        "earliest.",
        holding,
    )
    maildrop: tuple[str, ...] = option(
        ["INBOX"],
        "The folders that are shown as one maildrop, in this order; INBOX is the Maildir itself. "
        "Folders that a user does not have are ignored.",
        many(text),
        example=["INBOX", "Junk"],
    )
    quota: int = option(
        "0",
        "Maximum size of a user's mail in all folders, without held mail; 0 is no quota. "
        "`restante user quota` sets another quota for a user.",
        octets,
        example="2GiB",
    )


class PasswdFile(Section):
    """Users in a passwd-file as for Dovecot; crypt schemes need `restante[passwords]`."""

    REQUIRED: ClassVar = ("path",)

    path: str = option(
        "", "The file; a change takes effect at once.", example="/etc/restante/passwd"
    )
    scheme: str = option(
        "CRYPT", "The scheme of hashes without a prefix such as `{SCHEME}`.", scheme
    )


class LDAP(Section):
    """Users of an LDAP directory, found by a search, checked by a bind; needs `restante[ldap]`."""

    REQUIRED: ClassVar = ("url", "base", "name")

    url: str = option(
        "",
        "The URL: ldaps://, ldap:// (with StartTLS unless it is this machine) or ldapi://.",
        directory,
        example="ldaps://ldap.example.org",
    )
    base: str = option("", "The base DN to search under.", example="ou=people,dc=example,dc=org")
    filter: str = option(
        "(uid=%u)",
        "The search filter; %u is the name that the client sent.",
        search,
        example="(&(objectClass=inetOrgPerson)(uid=%u))",
    )
    name: str = option(
        "uid", "The attribute with the user's name; it must equal the name that the client sent."
    )
    bind_dn: str = option(
        "",
        "The DN to bind as for the search; empty for an anonymous search.",
        example="cn=restante,dc=example,dc=org",
    )
    bind_password: Secret = option(
        "",
        "The password of bind_dn; see `password` of an account.",
        secret,
        example={"file": "/run/secrets/ldap"},
    )
    ca_file: str = option("", "CA certificates to trust instead of the system's, PEM.")


class PAM(Section):
    """Users of this system; needs `restante[pam]`."""

    service: str = option("restante", "The file in /etc/pam.d.", service)
    first_uid: int = option(
        1000, "The lowest uid that may log in; lower ones belong to system users.", count
    )


class Provider(Section):
    """OAuth 2 bearer tokens of one provider; signed ones need `restante[jwt]`."""

    issuer: str = option(
        "", "The issuer, exactly as in its tokens.", example="https://id.example.org"
    )
    audience: tuple[str, ...] = option(
        [],
        "Names of this server at the provider; a token must be issued for one of them.",
        many(text),
        example=["restante"],
    )
    jwks: str = option(
        "",
        "The provider's public keys, an https URL or a file, for signed tokens.",
        source,
        example="https://id.example.org/jwks",
    )
    introspection: str = option(
        "", "The https URL at which the provider checks each token (RFC 7662).", web_address
    )
    client_id: str = option("", "This server's client ID at the provider, for introspection.")
    client_secret: Secret = option("", "The client secret; see `password` of an account.", secret)
    claim: str = option(
        "email",
        "The claim with the user's name; `email` is accepted only if it is verified.",
        example="email",
    )
    scope: str = option("", "A scope that a token must have.", example="mail")
    algorithms: tuple[str, ...] = option(
        ALGORITHMS, "Accepted signature algorithms.", many(one_of(*ALGORITHMS))
    )
    users: str = option(
        "known",
        '"known": only users of another back end; "any": every user of the provider, with a '
        "maildrop here for each of them.",
        one_of("known", "any"),
    )
    ca_file: str = option("", "CA certificates to trust instead of the system's, PEM.")


# A back end has a section of ``Auth`` with this name, and a row of ``app.backends``; only ``users``
# has a path instead of a section, and ``oauth`` an issuer of tokens instead of the row.
BACKENDS = ("users", "passwd-file", "ldap", "pam", "oauth")


class Auth(Section):
    """Users and their logins."""

    chain: tuple[str, ...] = option(
        ["users"],
        "Back ends in which a user is searched, in this order; the first that has the user "
        + "decides. Of "
        + ", ".join(BACKENDS)
        + ".",
        backends(*BACKENDS),
    )
    deadline: float = option(
        "10s",
        "Maximum time for checking a login; after it the client is asked to try again.",
        at_least(1, duration, "checking a hash takes time"),
    )
    users: str = option(
        "",
        "The user database, made by `restante user add`; by default in the state directory.",
        example="/etc/restante/users.sqlite3",
    )
    mechanisms: tuple[str, ...] = option(
        MECHANISMS,
        f"Mechanisms of AUTH, of {', '.join(sasl.MECHANISMS)}; each only if the back ends can "
        "check it. APOP enables the command of that name if the chain is only a passwd-file, for "
        "users with a PLAIN password.",
        many(one_of(*ALL_MECHANISMS)),
    )
    folder_separator: str = option(
        "+",
        'Between a user and a folder in a login name: "ann+Junk" opens the folder Junk. '
        "Empty: folders cannot be opened.",
        separator,
    )
    allow_plaintext_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks from which logins without TLS are accepted, for legacy devices.",
        many(network),
        example=["192.168.1.40/32"],
    )
    failure_delay: float = option(
        "2s",
        "Delay before a failed login is answered; up to four times as long after many recent "
        "failures from that network. Successful logins are not delayed. 0 disables the delay.",
        at_most(15, duration),
    )
    trusted: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks whose failed logins do not increase delays, such as a webmail server, whose "
        "address many users share.",
        many(network),
        example=["192.168.1.25/32"],
    )
    passwd_file: PasswdFile = field(default_factory=PasswdFile)
    ldap: LDAP = field(default_factory=LDAP)
    pam: PAM = field(default_factory=PAM)
    oauth: Provider = field(default_factory=Provider)


class LMTP(Section):
    """Receive mail from a mail server by LMTP (RFC 2033)."""

    listen: tuple[str, ...] = option(
        [],
        "unix:/path or 127.0.0.1:port; only the mail server should be able to connect.",
        many(address("")),
        example=["unix:/run/restante/lmtp.sock"],
    )


class SMTP(Section):
    """Receive mail by SMTP without a mail server, for local recipients only."""

    listen: tuple[str, ...] = option([], "Addresses to listen on; empty: off.", many(address("")))
    domains: tuple[str, ...] = option(
        ["localhost"], "The domains for which mail is accepted.", many(text)
    )


class Intake(Section):
    """Receiving mail."""

    lmtp: LMTP = field(default_factory=LMTP)
    smtp: SMTP = field(default_factory=SMTP)
    postmaster: str = option(
        "",
        "The user who receives mail for postmaster (RFC 5321 §4.5.1) if no user has that name; "
        "empty: the first user.",
        text,
    )


class Limits(Section):
    """Limits."""

    sessions: int = option(4096, "Maximum number of connections.", count)
    per_address: int = option(
        50,
        "Maximum number of connections from an IPv4 address or an IPv6 /64 network. A new one "
        "replaces the oldest that has not logged in.",
        count,
    )
    message: int = option("50MiB", "Maximum size of a received message.", octets)
    login_delay: float = option(
        "0",
        "Minimum time between two logins of a user, announced by LOGIN-DELAY; 0 means no minimum. "
        "`restante user permit` sets another time for a user.",
        duration,
    )
    expire: int | None = option(
        "never",
        "Time after which mail is removed automatically, announced by EXPIRE; it is then held like "
        "deleted mail. `restante user permit` sets another time for a user. A shorter time removes "
        "nothing within 24 hours of the change.",
        keeping,
    )
    deletions_by_new: int = option(
        "0",
        "Maximum number of messages that a login with a new password may delete on its first day, "
        "so that a wrongly configured device or a stolen password cannot empty a maildrop; 0 is "
        "no limit.",
        number,
        example=100,
    )
    idle: float = option(
        "10min",
        "Time without a command after which a session ends, without deleting anything.",
        at_least(600, duration, "RFC 1939 §3"),
    )
    login: float = option(
        "60s",
        "Maximum time until a client has logged in.",
        at_least(10, duration, "users type slowly"),
    )


class OAuth(Section):
    """Log in with OAuth 2 instead of a password; sign in with `restante account auth NAME`."""

    provider: str = option(
        "",
        '"google", "microsoft", or "other" with the URLs below; empty: log in with a password.',
        one_of("", "google", "microsoft", "other"),
        example="microsoft",
    )
    client_id: str = option(
        "", "The client ID of the app that you have registered with the provider."
    )
    client_secret: Secret = option(
        "",
        "The client secret, if the app has one; see `password`.",
        secret,
        example={"credential": "oauth.secret"},
    )
    tenant: str = option("common", "Microsoft only: the organisation, or common or consumers.")
    flow: str = option(
        "auto",
        'How to sign in: with a "browser" on this machine, by "paste" from one elsewhere, on '
        'another "device", or as a "client" with its own secret and no user.',
        one_of("auto", "browser", "paste", "device", "client"),
    )
    authorize_url: str = option("", "Another provider's authorization endpoint.")
    token_url: str = option("", "Another provider's token endpoint.")
    device_url: str = option("", "Another provider's device authorization endpoint.")
    scopes: tuple[str, ...] = option([], "Scopes to request instead of the usual ones.", many(text))


class Alert(Section):
    """Mail about an account: when it fails, and before you must sign in again."""

    after: int = option(
        0,
        "Number of failed sessions in a row after which a mail is sent; another is sent when the "
        "account works again. 0 sends none.",
        number,
        example=3,
    )
    to: str = option(
        "",
        "Where to send that mail, as in `to` of the account, which is the default.",
        example="maildrop:postmaster",
    )
    recipient: str = option(
        "",
        "Its address for lmtp: and smtp:, by default the account's.",
        example="postmaster@example.org",
    )


class Account(Section):
    """An account on another server for `restante collect`; choose any name after the dot."""

    url: str = option(
        "",
        "pop3s://host, or pop3://host for STLS on port 110. Optional if `user` is an address at a "
        "well-known provider.",
        place,
        example="pop3s://pop.example.net",
    )
    user: str = option("", "The user name on that server.", example="ann")
    password: Secret = option(
        "",
        "The password, by reference: env, file, credential (of systemd), keyring, or a command "
        "that prints it. Text is the password itself; then other users must not be able to read "
        "the file.",
        secret,
        example={"command": ["pass", "show", "isp"]},
    )
    oauth: OAuth = field(default_factory=OAuth)
    ca_file: str = option("", "CA certificates to trust instead of the system's, PEM.")
    quirks: tuple[str, ...] = option(
        ["auto"],
        'Workarounds for that server: "auto" is what is known about its host; the other words are '
        "in the guide to non-compliant servers.",
        quirks,
        example=["no-capa", "add:UIDL"],
    )
    to: str = option(
        "",
        "Where to deliver the mail: maildrop:USER (a user's name or address, of this server), "
        "maildir:PATH, mbox:PATH, a directory, lmtp:HOST:PORT, lmtp:unix:/PATH, smtp:HOST:PORT, "
        "imaps://USER@HOST/FOLDER (imap: for STARTTLS), gmail:LABEL or command:PROGRAM ARGUMENTS.",
        place,
        example="maildrop:ann",
    )
    to_password: Secret = option(
        "",
        "The password for an IMAP destination; see `password`.",
        secret,
        example={"file": "/etc/restante/imap.password"},
    )
    to_oauth: OAuth = field(default_factory=OAuth)
    to_ca_file: str = option("", "CA certificates to trust for the IMAP destination, PEM.")
    recipient: str = option(
        "",
        "The recipient for lmtp: and smtp:, or the user for gmail:; by default `user`.",
        example="ann@example.org",
    )
    keep: str = option(
        "all",
        'What stays on the server: "all"; "none"; a time such as "14d" after collection; '
        '"until-verified": until a later run has verified the copy here; "until-deleted" (for '
        "maildrop:): until it was deleted here and is no longer held.",
        keep,
        example="14d",
    )
    newest: int = option(0, "Always leave the N most recent messages on the server.", number)
    deletion_limit: int = option(
        1000,
        "On the day after the first session, and after `keep` or `newest` changed, at most this "
        "many messages are deleted there; if more are due, none is deleted before the day is over "
        "or `restante collect NAME --no-deletion-limit` is run. 0 has no limit.",
        number,
    )
    label: str = option(
        "",
        "The name with which its messages are stored, if it is not the account's. `restante "
        "account rename` writes it, so that nothing is stored twice even if the ledger is lost.",
    )
    largest: int = option(
        "0",
        "Larger messages are not collected automatically; 0 is no limit.",
        octets,
        example="20MiB",
    )
    larger: str = option(
        "skip",
        'What to do with larger messages: "skip" leaves them on the server and reports them each '
        'time, "stub" stores their header with a note. They are never deleted there. `restante '
        "collect NAME --whole ID` collects one of them; a larger `largest` collects all.",
        one_of("skip", "stub"),
        example="stub",
    )
    limit: int = option(0, "Maximum number of messages in a session; 0 is no limit.", number)
    messages_per_day: int = option(
        0,
        "Maximum number of messages in a day, for providers that limit it; 0 is no limit.",
        number,
    )
    octets_per_day: int | None = option(
        "auto",
        'Maximum size in a day; "auto" is the known limit of the provider (Gmail: 1250 MB).',
        octets_or_auto,
        example="500MiB",
    )
    logins_per_hour: int = option(
        0, "Maximum number of logins in an hour, including failed ones; 0 is no limit.", number
    )
    deadline: float = option(
        "2h",
        "Maximum time of a session; the next one continues where it ended. A server that sends "
        "very slowly cannot block the account.",
        at_least(1, duration, "a login takes time"),
    )
    every: float = option(
        "5min",
        "Minimum time between sessions with --watch or poll_on_login; the server may require more.",
        duration,
    )
    slowest: float = option(
        "15min",
        "With --watch, pauses grow from `every` to this time while there is no new mail.",
        duration,
    )
    alert: Alert = field(default_factory=Alert)
    poll_on_login: float = option(
        "0",
        "With maildrop:USER and `restante serve`: collect when that user logs in, and let the "
        "login wait at most this long. 0 is off.",
        duration,
        example="20s",
    )


class Collect(Section):
    """Settings for all accounts."""

    key: Secret = option(
        "",
        "The key that encrypts OAuth 2 tokens, base64 of 32 octets, by reference. By default it is "
        "created in the state directory, in a file that only the owner can read.",
        reference,
        example={"credential": "restante.key"},
    )
    metrics: str = option(
        "",
        "A file that is written after each session, for the textfile collector of node_exporter; "
        "its name must end with .prom.",
        example="/var/lib/prometheus/node-exporter/restante.prom",
    )


class Log(Section):
    """The log on standard error."""

    format: str = option(
        "auto",
        '"journal" has no time stamps, "human" has them, "json" is an object per line; '
        '"auto" takes journal under systemd and human elsewhere.',
        one_of("auto", "human", "journal", "json"),
    )
    level: str = option(
        "info", "The lowest level that is logged.", one_of("debug", "info", "warning", "error")
    )


class Configuration(Section):
    """The whole configuration, with every default."""

    server: Server = field(default_factory=Server)
    tls: TLS = field(default_factory=TLS)
    store: Store = field(default_factory=Store)
    auth: Auth = field(default_factory=Auth)
    intake: Intake = field(default_factory=Intake)
    limits: Limits = field(default_factory=Limits)
    log: Log = field(default_factory=Log)
    collect: Collect = field(default_factory=Collect)
    account: Mapping[str, Account] = field(default_factory=dict, metadata={"named": Account})
    source: Path | None = None
    """The file it was read from; None for private mode."""
    folder: Path = Path()
    """Directory of more files, ``conf.d``, which are read after it in order of their names."""
    state: Path = Path()
    """The state directory."""


_NOT_IN_THE_FILE = ("source", "folder", "state")


def options(kind: type[Any]) -> Iterator[Field[Any]]:
    return (each for each in fields(kind) if each.name not in _NOT_IN_THE_FILE)
