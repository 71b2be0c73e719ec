"""Every section and option of the configuration, as dataclasses.

The text of each option is its manual: ``manual`` makes the sample file and the reference from it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, ClassVar

from .. import sasl
from ..auth.tokens import ALGORITHMS
from ..pop3.texts import LANGUAGES
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
    """One key.  ``doc`` is a full sentence; ``example`` stands in the sample file."""
    metadata = {"doc": doc, "convert": convert, "default": default}
    metadata["example"] = default if example is None else example
    return field(default=convert(default), metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The POP3 server."""

    hostname: str = option(
        _own_name(),
        "The name clients use; in certificates and in Received fields.",
        hostname,
        example="mail.example.org",
    )
    listen: tuple[str, ...] = option(
        ["pop3s://127.0.0.1:1995", "pop3://127.0.0.1:1110"],
        "Where POP3 is served. pop3s speaks TLS from the first octet; pop3 offers STLS.",
        many(address("pop3s", "pop3")),
        example=["pop3s://[::]:995", "pop3://[::]:110"],
    )
    workers: int = option(
        "auto",
        'Processes that serve; "auto" is one for each core. 1 is one without a supervisor.',
        workers,
    )
    proxy_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Load balancers: every POP3 connection from these networks begins with a PROXY header "
        "(version 1 or 2), which tells the client's address.",
        many(network),
        example=["192.0.2.10/32"],
    )
    tls_at_proxy: tuple[str, ...] = option(
        [],
        "Addresses of listen where a proxy in proxy_from has ended TLS: what it connects there "
        "counts as TLS, unless its PROXY header reports a client without TLS. Others that connect "
        "there need STLS as everywhere.",
        many(address("pop3")),
        example=["pop3://[::]:110"],
    )
    xclient_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Proxies that may tell the client's address by XCLIENT, as Dovecot's does.",
        many(network),
        example=["192.0.2.11/32"],
    )
    language: str = option(
        "en",
        "The language of the server's texts until a client chooses another by LANG.",
        one_of(*LANGUAGES),
    )
    utf8_headers: str = option(
        "as-is",
        'What a client gets that does not say UTF8: headers in UTF-8 "as-is", or a "surrogate" in '
        "ASCII (RFC 6858); what it deletes and what is held is the original.",
        one_of("as-is", "surrogate"),
    )
    banner: str = option("ready", "The text of the greeting; it tells no version.", greeting)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Certificates."""

    mode: str = option(
        "self",
        '"self" makes a certificate at the first start and keeps it; "files" uses cert and key.',
        one_of("self", "files"),
        example="files",
    )
    cert: str = option(
        "", "The certificate and its chain, PEM.", example="/etc/restante/fullchain.pem"
    )
    key: str = option("", "The private key, PEM.", example="/etc/restante/privkey.pem")
    client_ca: str = option(
        "",
        "Whose client certificates are trusted, PEM; with it a client may log in by EXTERNAL as "
        "the e-mail address that its certificate names.",
        example="/etc/restante/clients.pem",
    )
    min_version: str = option("1.2", "The oldest TLS that is spoken.", one_of("1.2", "1.3"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where mail lies."""

    kind: str = option(
        "maildir", '"memory" forgets all mail at the end.', one_of("maildir", "memory")
    )
    path: str = option(
        "",
        "The Maildir of one user: %n is the local part of the name, %d its domain, %u both. "
        "By default mail/%u in the state directory.",
        example="/var/mail/restante/%d/%n",
    )
    hold: float = option(
        "14d",
        "How long deleted mail can be given back; 0 destroys it at QUIT. `keep` removes nothing "
        "at QUIT, and what a client deleted is there again. `restante user hold` sets another "
        "one for one user. A shorter one destroys mail that is held already only 24 hours later.",
        holding,
    )
    maildrop: tuple[str, ...] = option(
        ["INBOX"],
        "The folders that are shown as one maildrop, in this order; INBOX is the Maildir itself. "
        "Those that a user has not are passed over.",
        many(text),
        example=["INBOX", "Junk"],
    )
    quota: int = option(
        "0",
        "How much mail a user may have in all folders, held mail aside; 0 is no quota. "
        "`restante user quota` sets another one for one user.",
        octets,
        example="2GiB",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswdFile:
    """Users in a text file, as Dovecot has them; needs `restante[passwords]` for crypt schemes."""

    REQUIRED: ClassVar = ("path",)

    path: str = option("", "The file; a change counts at once.", example="/etc/restante/passwd")
    scheme: str = option(
        "CRYPT", "The scheme of hashes that do not name theirs, as `{SCHEME}` does.", scheme
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LDAP:
    """Users of a directory, found by a search, checked by a bind; needs `restante[ldap]`."""

    REQUIRED: ClassVar = ("url", "base", "name")

    url: str = option(
        "",
        "The directory: ldaps://, ldap:// (which starts TLS unless it is this machine) or ldapi://.",
        directory,
        example="ldaps://ldap.example.org",
    )
    base: str = option("", "Below what they are.", example="ou=people,dc=example,dc=org")
    filter: str = option(
        "(uid=%u)",
        "How one is found; %u is the name that the client gave.",
        search,
        example="(&(objectClass=inetOrgPerson)(uid=%u))",
    )
    name: str = option("uid", "The attribute that must be that name.")
    bind_dn: str = option(
        "", "Who searches; empty: nobody in particular.", example="cn=restante,dc=example,dc=org"
    )
    bind_password: Secret = option(  # noqa: RUF009
        "",
        "And where its password is; see `password` of an account.",
        secret,
        example={"file": "/run/secrets/ldap"},
    )
    ca_file: str = option("", "Trust these certificates instead of the system's, PEM.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PAM:
    """Users of this system; needs `restante[pam]`."""

    service: str = option("restante", "The file in /etc/pam.d.", service)
    first_uid: int = option(1000, "Who has a lower uid is no person and does not log in.", count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """OAuth 2 bearer tokens of one provider; signed ones need `restante[jwt]`."""

    issuer: str = option(
        "", "The provider, exactly as its tokens name it.", example="https://id.example.org"
    )
    audience: tuple[str, ...] = option(
        [],
        "For whom a token must be: one of these, which the provider knows this server by.",
        many(text),
        example=["restante"],
    )
    jwks: str = option(
        "",
        "Where the provider's public keys are, by https or in a file: then tokens are signed.",
        source,
        example="https://id.example.org/jwks",
    )
    introspection: str = option(
        "", "Where the provider is asked about each token, by https (RFC 7662).", web_address
    )
    client_id: str = option("", "This server's name at the provider, for introspection.")
    client_secret: Secret = option(  # noqa: RUF009
        "", "And where its secret is; see `password` of an account.", secret
    )
    claim: str = option(
        "email", "What names the user; `email` counts only where it is verified.", example="email"
    )
    scope: str = option("", "A scope that a token must have.", example="mail")
    algorithms: tuple[str, ...] = option(
        ALGORITHMS, "How tokens may be signed.", many(one_of(*ALGORITHMS))
    )
    users: str = option(
        "known",
        '"known": who another back end knows; "any": whoever has a token, so that anybody whom the '
        "provider knows has a maildrop here.",
        one_of("known", "any"),
    )
    ca_file: str = option("", "Trust these certificates instead of the system's, PEM.")


# A back end has a section of ``Auth`` with this name, and a row of ``app.backends``; only ``users``
# has a path instead of a section, and ``oauth`` an issuer of tokens instead of the row.
BACKENDS = ("users", "passwd-file", "ldap", "pam", "oauth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Who may log in."""

    chain: tuple[str, ...] = option(
        ["users"],
        "Where users are looked for, in this order; the first that knows one decides. "
        + "Of "
        + ", ".join(BACKENDS)
        + ".",
        backends(*BACKENDS),
    )
    deadline: float = option(
        "10s",
        "How long a login may be checked; later the client is told to try again.",
        at_least(1, duration, "a hash takes its time"),
    )
    users: str = option(
        "",
        "The user database, made by `restante user add`; by default in the state directory.",
        example="/etc/restante/users.sqlite3",
    )
    mechanisms: tuple[str, ...] = option(
        MECHANISMS,
        "What AUTH offers, of EXTERNAL, SCRAM-SHA-256, SCRAM-SHA-1 (both also with -PLUS), "
        "OAUTHBEARER, XOAUTH2, PLAIN and LOGIN; each where the back ends can check it. "
        "APOP offers the command of that name, if the chain is a passwd-file alone, to its users "
        "with PLAIN.",
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
        "Networks from which a login without TLS is taken, for devices that can do no better.",
        many(network),
        example=["192.168.1.40/32"],
    )
    failure_delay: float = option(
        "2s",
        "A failed login is answered so late, and up to four times later where many failed lately. "
        "One that succeeds never waits for it. 0 delays none.",
        at_most(15, duration),
    )
    trusted: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks whose failed logins are not held against them, such as a webmail's, where one "
        "address stands for many people.",
        many(network),
        example=["192.168.1.25/32"],
    )
    passwd_file: PasswdFile = field(default_factory=PasswdFile)
    ldap: LDAP = field(default_factory=LDAP)
    pam: PAM = field(default_factory=PAM)
    oauth: Provider = field(default_factory=Provider)


@dataclass(frozen=True, slots=True, kw_only=True)
class LMTP:
    """Mail in from a mail server (RFC 2033)."""

    listen: tuple[str, ...] = option(
        [],
        "unix:/path or 127.0.0.1:port; nobody but the mail server should reach it.",
        many(address("")),
        example=["unix:/run/restante/lmtp.sock"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SMTP:
    """Mail in without a mail server, for small sites: local recipients only."""

    listen: tuple[str, ...] = option([], "Off when empty.", many(address("")))
    domains: tuple[str, ...] = option(
        ["localhost"], "The domains whose users have their mail here.", many(text)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Mail in."""

    lmtp: LMTP = field(default_factory=LMTP)
    smtp: SMTP = field(default_factory=SMTP)
    postmaster: str = option(
        "",
        "The user who receives mail for postmaster (RFC 5321 §4.5.1) where no user has that name; "
        "empty: the first user.",
        text,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds."""

    sessions: int = option(4096, "Connections in all.", count)
    per_address: int = option(
        50,
        "Connections from one IPv4 address or one IPv6 /64 network. For one more the first that "
        "has not logged in is closed.",
        count,
    )
    message: int = option("50MiB", "The largest message that intake takes.", octets)
    login_delay: float = option(
        "0",
        "The time from one login of a user to the next, at least, told by LOGIN-DELAY; 0 sets "
        "none. `restante user permit` gives a user another.",
        duration,
    )
    expire: int | None = option(
        "never",
        "Mail that has been in a maildrop for so long is removed automatically, announced by "
        "EXPIRE, and held like any that was removed. `restante user permit` gives a user another "
        "time. A shorter time removes nothing within 24 hours of the change.",
        keeping,
    )
    deletions_by_new: int = option(
        "0",
        "How many messages a password may delete in its first day, so that a device that was set "
        "up wrongly, or a password that was stolen, empties no maildrop; 0 is any number.",
        number,
        example=100,
    )
    idle: float = option(
        "10min",
        "Silence after which a session ends without removing anything.",
        at_least(600, duration, "RFC 1939 §3"),
    )
    login: float = option(
        "60s",
        "How long a client may take to log in.",
        at_least(10, duration, "a person types slowly"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """Logging in there by OAuth 2 instead of a password; `restante account auth NAME` begins."""

    provider: str = option(
        "",
        '"google", "microsoft", or "other", which wants the addresses below; empty: a password.',
        one_of("", "google", "microsoft", "other"),
        example="microsoft",
    )
    client_id: str = option("", "Of the application that you have registered at the provider.")
    client_secret: Secret = option(  # noqa: RUF009
        "",
        "Where its secret is, if it has one, as in `password`.",
        secret,
        example={"credential": "oauth.secret"},
    )
    tenant: str = option("common", "At Microsoft: the organisation, or common or consumers.")
    flow: str = option(
        "auto",
        'How somebody agrees: in a "browser" on this machine, by "paste" from one elsewhere, on a '
        '"device", or as a "client" with its own secret, without a person.',
        one_of("auto", "browser", "paste", "device", "client"),
    )
    authorize_url: str = option("", "Another provider's authorization endpoint.")
    token_url: str = option("", "Another provider's token endpoint.")
    device_url: str = option("", "Another provider's device authorization endpoint.")
    scopes: tuple[str, ...] = option([], "Instead of those that we know.", many(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Mail about an account: when it fails, and before somebody must sign in again."""

    after: int = option(
        0,
        "After so many sessions in a row that failed one mail tells so, and one more when it works "
        "again. 0 tells nobody.",
        number,
        example=3,
    )
    to: str = option(
        "",
        "Where that mail goes, as in `to` of the account; by default where its mail goes.",
        example="maildrop:postmaster",
    )
    recipient: str = option(
        "",
        "Its address for lmtp: and smtp:, by default the account's.",
        example="postmaster@example.org",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A maildrop elsewhere that `restante collect` takes mail from; any name after the dot."""

    url: str = option(
        "",
        "pop3s://host, or pop3://host for STLS on port 110. Where `user` is an address at a "
        "well-known provider it may be left out.",
        place,
        example="pop3s://pop.example.net",
    )
    user: str = option("", "Who logs in there.", example="ann")
    password: Secret = option(  # noqa: RUF009
        "",
        "Where the password is: env, file, credential (of systemd), keyring, or a command whose "
        "first line it is. A text is the password itself, if nobody else can read the file.",
        secret,
        example={"command": ["pass", "show", "isp"]},
    )
    oauth: OAuth = field(default_factory=OAuth)
    ca_file: str = option("", "Trust these certificates instead of the system's, PEM.")
    quirks: tuple[str, ...] = option(
        ["auto"],
        'What that server does otherwise than others: "auto" is what is known of its host; '
        "other words are in the guide to odd servers.",
        quirks,
        example=["no-capa", "add:UIDL"],
    )
    to: str = option(
        "",
        "Where the mail goes: maildrop:USER (a user's name or address, of this server), "
        "maildir:PATH, mbox:PATH, a directory, lmtp:HOST:PORT, lmtp:unix:/PATH, smtp:HOST:PORT, "
        "imaps://USER@HOST/FOLDER (imap: for STARTTLS), gmail:LABEL or command:PROGRAM ARGUMENTS.",
        place,
        example="maildrop:ann",
    )
    to_password: Secret = option(  # noqa: RUF009
        "",
        "Where the password for an IMAP destination is, as in `password`.",
        secret,
        example={"file": "/etc/restante/imap.password"},
    )
    to_oauth: OAuth = field(default_factory=OAuth)
    to_ca_file: str = option("", "Trust these certificates at the IMAP destination, PEM.")
    recipient: str = option(
        "",
        "The address for lmtp: and smtp:, and who signs in for gmail:; by default `user`.",
        example="ann@example.org",
    )
    keep: str = option(
        "all",
        'What stays on the server: "all"; "none"; for a time such as "14d" after it was taken; '
        '"until-verified": until a later run has seen that the copy here is whole; "until-deleted" '
        "(for maildrop:): until it was deleted here and is no longer held.",
        keep,
        example="14d",
    )
    newest: int = option(0, "So many of the messages taken last are never deleted there.", number)
    deletion_limit: int = option(
        1000,
        "On the day after the first session, and after `keep` or `newest` changed, at most this "
        "many messages are deleted there; if more are due, none is deleted before the day is over "
        "or `restante collect NAME --no-deletion-limit` is run. 0 has no limit.",
        number,
    )
    label: str = option(
        "",
        "The name under which its messages are stored, if it is not the account's. `restante "
        "account rename` writes it, so that no message comes twice even if the ledger is lost.",
    )
    largest: int = option(
        "0",
        "Larger messages are not taken by themselves; 0 takes all.",
        octets,
        example="20MiB",
    )
    larger: str = option(
        "skip",
        'What becomes of them: "skip" leaves them on the server and tells so each time, "stub" '
        "stores their header with a note. They are never deleted there. `restante collect NAME "
        "--whole ID` takes one, and all are taken when `largest` is raised.",
        one_of("skip", "stub"),
        example="stub",
    )
    limit: int = option(0, "Messages fetched in one session; 0 takes all.", number)
    messages_per_day: int = option(
        0, "More wait for the next day, as the provider may want it; 0 takes all.", number
    )
    octets_per_day: int | None = option(
        "auto",
        'The same for octets; "auto" takes what is known of the provider: 1250 MB at Gmail.',
        octets_or_auto,
        example="500MiB",
    )
    logins_per_hour: int = option(
        0, "More are not tried, also when they would fail; 0 has no limit.", number
    )
    deadline: float = option(
        "2h",
        "How long one session may last; the next goes on where it ended. What a server says in "
        "drops would never end.",
        at_least(1, duration, "a login takes its time"),
    )
    every: float = option(
        "5min",
        "The least time between sessions with --watch, or when logins ask for them; the server may "
        "want more.",
        duration,
    )
    slowest: float = option(
        "15min",
        "With --watch, while nothing comes, the pauses grow from `every` to this.",
        duration,
    )
    alert: Alert = field(default_factory=Alert)
    poll_on_login: float = option(
        "0",
        "With maildrop:USER, and `restante serve`: when that user logs in, first collect; the "
        "login waits so long at most. 0 does not.",
        duration,
        example="20s",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """What all accounts share."""

    key: Secret = option(  # noqa: RUF009
        "",
        "Where the key is that seals OAuth 2 tokens: base64 of 32 octets. By default it is made in "
        "the state directory, for nobody else to read.",
        reference,
        example={"credential": "restante.key"},
    )
    metrics: str = option(
        "",
        "After each session a file is written there for the textfile collector of node_exporter; "
        "it reads those that end with .prom.",
        example="/var/lib/prometheus/node-exporter/restante.prom",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is told on standard error."""

    format: str = option(
        "auto",
        '"journal" has no time stamps, "human" has, "json" is one object a line; '
        '"auto" takes journal under systemd and human elsewhere.',
        one_of("auto", "human", "journal", "json"),
    )
    level: str = option(
        "info", "The least important lines told.", one_of("debug", "info", "warning", "error")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All of it, with every default filled in."""

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
    """The file it came from; None: nothing is configured, private mode."""
    folder: Path = Path()
    """Of more files, ``conf.d``: they are read after it, in the order of their names."""
    state: Path = Path()
    """Where the program keeps what it makes itself."""


_NOT_IN_THE_FILE = ("source", "folder", "state")


def options(kind: type[Any]) -> Iterator[Field[Any]]:
    return (each for each in fields(kind) if each.name not in _NOT_IN_THE_FILE)
