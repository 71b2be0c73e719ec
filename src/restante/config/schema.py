"""All sections and options of the configuration, with their descriptions.

The sample file and the reference are generated from the descriptions (see ``manual``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, field, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, ClassVar

from ..auth import choices
from ..pop3.texts import LANGUAGES
from ..posix import host_name
from ..regular import RegularFile
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
    duration,
    expiry,
    greeting,
    hold_time,
    hostname,
    keep,
    ldap_url,
    list_of,
    network,
    number,
    octets,
    octets_or_auto,
    one_of,
    pam_service,
    path_or_url,
    path_or_web_address,
    quirks,
    scheme,
    search_filter,
    secret,
    secret_reference,
    secret_web_address,
    separator,
    tcp_address,
    text,
    web_address,
    workers,
)

ALL_MECHANISMS = (*choices.MECHANISMS, "APOP")
# The default does not include -PLUS: Python's ssl supports only tls-server-end-point as the channel
# binding.  Clients with GSASL, such as mutt, use tls-unique or tls-exporter, so they would choose
# -PLUS and fail.  Nor does it include LOGIN, which only very old clients need.
MECHANISMS = ("EXTERNAL", "SCRAM-SHA-256", "SCRAM-SHA-1", "OAUTHBEARER", "XOAUTH2", "PLAIN")


def _default_hostname() -> str:
    try:
        return hostname(host_name())
    except BadValue:
        return "localhost"


def option(default: Any, doc: str, convert: Convert = text, *, example: Any = None) -> Any:
    """Declare an option; ``doc`` describes it, and ``example`` is its value in the sample file."""
    metadata = {"doc": doc, "convert": convert, "default": default}
    metadata["example"] = default if example is None else example
    return field(default=convert(default), metadata=metadata)


class Server(Section):
    """The POP3 server."""

    hostname: str = option(
        _default_hostname(),
        "The host name that clients connect to. It is also used in self-signed certificates and in "
        "Received fields.",
        hostname,
        example="mail.example.org",
    )
    listen: tuple[str, ...] = option(
        ["pop3s://127.0.0.1:1995", "pop3://127.0.0.1:1110"],
        "Addresses to listen on for POP3: pop3s:// for implicit TLS, pop3:// for STLS.",
        list_of(address("pop3s", "pop3")),
        example=["pop3s://[::]:995", "pop3://[::]:110"],
    )
    workers: int = option(
        "auto",
        'Number of worker processes. "auto" means one for each CPU core. With 1, the server runs '
        "in a single process without a supervisor.",
        workers,
    )
    proxy_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks of load balancers. Every POP3 connection from these networks must begin with a "
        "PROXY header (version 1 or 2), which reports the client's address.",
        list_of(network),
        example=["192.0.2.10/32"],
    )
    tls_at_proxy: tuple[str, ...] = option(
        [],
        "Addresses from `listen` to which a proxy in `proxy_from` connects after it has terminated "
        "TLS. Such a connection is treated as secure, unless its PROXY header reports that the "
        "client does not use TLS. Clients that connect to these addresses directly still have to "
        "use STLS.",
        list_of(address("pop3")),
        example=["pop3://[::]:110"],
    )
    xclient_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks whose proxies may report the client's address with XCLIENT, as Dovecot's proxy "
        "does.",
        list_of(network),
        example=["192.0.2.11/32"],
    )
    language: str = option(
        "en",
        "The language of the server's responses until the client chooses another one with LANG.",
        one_of(*LANGUAGES),
    )
    utf8_headers: str = option(
        "as-is",
        "How headers in UTF-8 are sent to clients that have not sent the UTF8 command: unchanged "
        '("as-is"), or converted to ASCII ("surrogate", RFC 6858). The stored message is not '
        "changed.",
        one_of("as-is", "surrogate"),
    )
    banner: str = option(
        "ready", "The text of the greeting. It should not reveal the software's version.", greeting
    )


class TLS(Section):
    """Certificates and TLS versions."""

    mode: str = option(
        "self",
        'Where the certificate comes from: "self" creates a self-signed certificate when the '
        'server first starts; "files" uses the files in `cert` and `key`.',
        one_of("self", "files"),
        example="files",
    )
    cert: str = option(
        "",
        "A file with the certificate and its chain (PEM).",
        example="/etc/restante/fullchain.pem",
    )
    key: str = option("", "A file with the private key (PEM).", example="/etc/restante/privkey.pem")
    client_ca: str = option(
        "",
        "A file with the certificate of the CA that issues client certificates (PEM). A client "
        "with such a certificate can log in with EXTERNAL; the user name is the e-mail address in "
        "the certificate.",
        example="/etc/restante/clients.pem",
    )
    min_version: str = option(
        "1.2", "The oldest TLS version that is accepted.", one_of("1.2", "1.3")
    )


class Store(Section):
    """Where mail is stored, and for how long."""

    kind: str = option(
        "maildir",
        'How mail is stored: as "maildir", or in "memory", which loses all mail when the server '
        "stops.",
        one_of("maildir", "memory"),
    )
    path: str = option(
        "",
        "The path of a user's Maildir. %n is replaced by the local part of the user name, %d by "
        "its domain, and %u by the whole name. The default is mail/%u in the state directory.",
        example="/var/mail/restante/%d/%n",
    )
    hold: float = option(
        "14d",
        'How long deleted mail is held, so that it can be restored. With "0", deleted mail is '
        'destroyed at QUIT. With "keep", QUIT removes nothing, and deleted messages are listed '
        "again in the next session. `restante user hold` sets a different time for one user. A "
        "shorter time takes effect 24 hours after the change.",
        hold_time,
    )
    maildrop: tuple[str, ...] = option(
        ["INBOX"],
        "The folders whose messages are listed as one maildrop, in this order. INBOX is the "
        "Maildir itself. Folders that do not exist are ignored.",
        list_of(text),
        example=["INBOX", "Junk"],
    )
    quota: int = option(
        "0",
        "Maximum size of a user's mail in all folders, not counting held mail; 0 means no quota. "
        "`restante user quota` sets a different quota for one user.",
        octets,
        example="2GiB",
    )


class PasswdFile(Section):
    """Users in a passwd-file in Dovecot's format. Crypt schemes require `restante[passwords]`."""

    REQUIRED: ClassVar = ("path",)

    path: str = option(
        "",
        "The path of the passwd-file. Changes to the file take effect immediately.",
        example="/etc/restante/passwd",
    )
    scheme: str = option(
        "CRYPT", "The scheme of hashes that have no prefix such as `{SCHEME}`.", scheme
    )


class LDAP(Section):
    """Users in an LDAP directory, which checks their passwords. Requires `restante[ldap]`."""

    REQUIRED: ClassVar = ("url", "base", "name")

    url: str = option(
        "",
        "The URL of the directory server: ldaps://, ldap:// (which uses StartTLS, unless the "
        "server is on this machine) or ldapi://.",
        ldap_url,
        example="ldaps://ldap.example.org",
    )
    base: str = option("", "The base DN to search under.", example="ou=people,dc=example,dc=org")
    filter: str = option(
        "(uid=%u)",
        "The search filter, in which %u is replaced by the name that the client sent.",
        search_filter,
        example="(&(objectClass=inetOrgPerson)(uid=%u))",
    )
    name: str = option(
        "uid",
        "The attribute that contains the user's name, which must equal the name that the client "
        "sent.",
    )
    bind_dn: str = option(
        "",
        "The DN for the bind before a search; empty for an anonymous search.",
        example="cn=restante,dc=example,dc=org",
    )
    bind_password: Secret = option(
        "",
        "The password for `bind_dn`: text or a reference, in the same form as an account's "
        "`password`.",
        secret,
        example={"file": "/run/secrets/ldap"},
    )
    ca_file: str = option("", "A file with CA certificates (PEM) to trust instead of the system's.")


class PAM(Section):
    """Users of this operating system. Requires `restante[pam]`."""

    service: str = option(
        "restante", "The name of the PAM service, a file in /etc/pam.d.", pam_service
    )
    first_uid: int = option(
        1000,
        "The lowest user ID that may log in; lower IDs belong to system users.",
        count,
    )


class Provider(Section):
    """OAuth 2 bearer tokens of one provider. Signed tokens require `restante[jwt]`."""

    issuer: str = option(
        "", "The issuer, exactly as it appears in tokens.", example="https://id.example.org"
    )
    audience: tuple[str, ...] = option(
        [],
        "The names that identify this server to the provider; tokens must be issued for one of "
        "them.",
        list_of(text),
        example=["restante"],
    )
    jwks: str = option(
        "",
        "The provider's public keys for checking signed tokens: an https URL or a file.",
        path_or_web_address,
        example="https://id.example.org/jwks",
    )
    introspection: str = option(
        "",
        "The https URL of the provider's introspection endpoint, which checks each token "
        "(RFC 7662).",
        web_address,
    )
    client_id: str = option("", "This server's client ID at the provider, for introspection.")
    client_secret: Secret = option(
        "",
        "This server's client secret at the provider, for introspection: text or a reference, in "
        "the same form as an account's `password`.",
        secret,
    )
    claim: str = option(
        "email",
        "The claim that contains the user's name. The claim `email` is accepted only if the "
        "provider has verified the address.",
        example="email",
    )
    scope: str = option("", "A scope that tokens must have.", example="mail")
    algorithms: tuple[str, ...] = option(
        choices.ALGORITHMS, "Accepted signature algorithms.", list_of(one_of(*choices.ALGORITHMS))
    )
    users: str = option(
        "known",
        "Which users of the provider may log in: only users who also exist in another back end "
        '("known"), or all users ("any"). Each user has a maildrop on this server.',
        one_of("known", "any"),
    )
    ca_file: str = option("", "A file with CA certificates (PEM) to trust instead of the system's.")


# Each back end has a section of the same name in ``Auth`` and an entry in ``app.backends.KINDS``,
# with two exceptions: ``users`` has a path instead of a section, and ``oauth`` has no entry.
BACKENDS = ("users", "passwd-file", "ldap", "pam", "oauth")


class Auth(Section):
    """Users, and how they log in."""

    chain: tuple[str, ...] = option(
        ["users"],
        "Back ends in which users are looked up, in this order. The first back end in which the "
        + "user exists decides whether the login is accepted. Possible values: "
        + ", ".join(BACKENDS)
        + ".",
        backends(*BACKENDS),
    )
    deadline: float = option(
        "10s",
        "Maximum time for checking a login. If a check takes longer, the client is asked to try "
        "again.",
        at_least(1, duration, "checking a hash takes time"),
    )
    users: str = option(
        "",
        "The path of the user database, which `restante user add` creates. The default is "
        "users.sqlite3 in the state directory.",
        example="/etc/restante/users.sqlite3",
    )
    mechanisms: tuple[str, ...] = option(
        MECHANISMS,
        f"SASL mechanisms for the AUTH command. Possible values: {', '.join(choices.MECHANISMS)}. "
        "A mechanism is offered only if the back ends support it. The value APOP enables the APOP "
        "command, which requires that passwd-file is the only back end; users can log in with it "
        "if their passwords are stored as PLAIN.",
        list_of(one_of(*ALL_MECHANISMS)),
    )
    folder_separator: str = option(
        "+",
        'The separator between user and folder in a login name: "ann+Junk" opens ann\'s folder '
        "Junk. If it is empty, folders cannot be opened in this way.",
        separator,
    )
    allow_plaintext_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks from which logins without TLS are accepted, for legacy devices.",
        list_of(network),
        example=["192.168.1.40/32"],
    )
    failure_delay: float = option(
        "2s",
        "Delay before a failed login is answered. It is up to four times as long after many recent "
        "failures from the same network. Successful logins are not delayed. 0 disables the delay.",
        at_most(15, duration),
    )
    trusted: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks from which failed logins do not increase delays. List a webmail server here, "
        "because many users share its address.",
        list_of(network),
        example=["192.168.1.25/32"],
    )
    passwd_file: PasswdFile = field(default_factory=PasswdFile)
    ldap: LDAP = field(default_factory=LDAP)
    pam: PAM = field(default_factory=PAM)
    oauth: Provider = field(default_factory=Provider)


class LMTP(Section):
    """Receive mail from a mail server over LMTP (RFC 2033)."""

    listen: tuple[str, ...] = option(
        [],
        "Addresses to listen on, such as unix:/path or 127.0.0.1:port. Only the mail server should "
        "be able to connect to them.",
        list_of(address("")),
        example=["unix:/run/restante/lmtp.sock"],
    )


class SMTP(Section):
    """Receive mail over SMTP for local recipients, without another mail server."""

    listen: tuple[str, ...] = option(
        [], "Addresses to listen on. If the list is empty, SMTP is disabled.", list_of(address(""))
    )
    domains: tuple[str, ...] = option(
        ["localhost"], "The domains for which mail is accepted.", list_of(text)
    )


class Intake(Section):
    """Receive mail over LMTP and SMTP."""

    lmtp: LMTP = field(default_factory=LMTP)
    smtp: SMTP = field(default_factory=SMTP)
    postmaster: str = option(
        "",
        "The user who receives mail for postmaster (RFC 5321 §4.5.1) if no user has that name. "
        "The default is the first user.",
        text,
    )


class Limits(Section):
    """Limits on connections, messages and deletions."""

    sessions: int = option(4096, "Maximum number of connections to the server.", count)
    per_address: int = option(
        50,
        "Maximum number of connections from one IPv4 address or one IPv6 /64 network. At the "
        "limit, a new connection replaces the oldest one that has not logged in.",
        count,
    )
    message: int = option("50MiB", "Maximum size of a received message.", octets)
    login_delay: float = option(
        "0",
        "Minimum time between two logins of a user, announced by LOGIN-DELAY; 0 means no minimum. "
        "`restante user permit` sets a different time for one user.",
        duration,
    )
    expire: int | None = option(
        "never",
        "Time after which mail is removed automatically, announced by EXPIRE. Removed mail is held "
        "like deleted mail. `restante user permit` sets a different time for one user. A "
        "shorter time takes effect 24 hours after the change.",
        expiry,
    )
    deletions_by_new: int = option(
        "0",
        "Maximum number of messages that can be deleted with a new password during its first day "
        "of use, so that a wrongly configured device or a stolen password cannot empty a maildrop. "
        "0 means no limit.",
        number,
        example=100,
    )
    idle: float = option(
        "10min",
        "Time without a command after which a session ends. Messages that were marked as deleted "
        "are not removed.",
        at_least(600, duration, "RFC 1939 §3"),
    )
    login: float = option(
        "60s",
        "Maximum time from connecting to a successful login.",
        at_least(10, duration, "users type slowly"),
    )


class OAuth(Section):
    """Log in with OAuth 2 instead of a password. To sign in, run `restante account auth NAME`."""

    provider: str = option(
        "",
        'The OAuth 2 provider: "google", "microsoft", or "other" with the endpoints in '
        "`authorize_url`, `token_url` and `device_url`. If it is empty, a password is used.",
        one_of("", "google", "microsoft", "other"),
        example="microsoft",
    )
    client_id: str = option("", "The client ID of the app that you registered with the provider.")
    client_secret: Secret = option(
        "",
        "The client secret of the app that you registered, if it has one: text or a reference, in "
        "the same form as the account's `password`.",
        secret,
        example={"credential": "oauth.secret"},
    )
    tenant: str = option(
        "common",
        'For Microsoft only: the tenant of your organisation, or "common" or "consumers".',
    )
    flow: str = option(
        "auto",
        'How to sign in. "browser": with a browser on this machine. "paste": with a browser on any '
        'machine, by pasting the final address. "device": on another device, by entering a code. '
        '"client": with the app\'s own secret and without a user. "auto": chosen automatically.',
        one_of("auto", "browser", "paste", "device", "client"),
    )
    authorize_url: str = option("", 'The authorization endpoint, for the provider "other".')
    token_url: str = option("", 'The token endpoint, for the provider "other".')
    device_url: str = option("", 'The device authorization endpoint, for the provider "other".')
    scopes: tuple[str, ...] = option(
        [], "Scopes to request instead of the default scopes for the provider.", list_of(text)
    )


class Alert(Section):
    """Send mail when an account fails, or when its OAuth 2 sign-in is about to expire."""

    after: int = option(
        0,
        "Number of consecutive failed sessions after which an alert is sent. Another message is "
        "sent when the account works again. 0 disables alerts.",
        number,
        example=3,
    )
    to: str = option(
        "",
        "Where to deliver alerts, in the same form as the account's `to`, which is the default.",
        example="maildrop:postmaster",
    )
    recipient: str = option(
        "",
        "The recipient of alerts that are delivered to lmtp: or smtp:. The default is the "
        "account's `recipient`.",
        example="postmaster@example.org",
    )


class Account(Section):
    """An account on another server for `restante collect`. Choose any name in place of isp."""

    url: str = option(
        "",
        "The server's URL: pop3s://host for implicit TLS, or pop3://host for STLS on port 110. "
        "Optional if `user` is an address at a well-known provider.",
        path_or_url,
        example="pop3s://pop.example.net",
    )
    user: str = option("", "The user name on the POP3 server.", example="ann")
    password: Secret = option(
        "",
        "Where to get the password: from an environment variable (env), a file, a systemd "
        "credential, a keyring entry, or the output of a command. If the value is text, it is the "
        "password itself; in that case, other users must not be able to read the configuration "
        "file.",
        secret,
        example={"command": ["pass", "show", "isp"]},
    )
    oauth: OAuth = field(default_factory=OAuth)
    ca_file: str = option("", "A file with CA certificates (PEM) to trust instead of the system's.")
    quirks: tuple[str, ...] = option(
        ["auto"],
        'Workarounds for the server. "auto" uses the workarounds that are known for its host name. '
        "The guide to non-compliant servers explains the other values.",
        quirks,
        example=["no-capa", "add:UIDL"],
    )
    to: str = option(
        "",
        "Where to deliver the mail: maildrop:USER (the name or address of a user of this server), "
        "maildir:PATH, mbox:PATH, a directory, lmtp:HOST:PORT, lmtp:unix:/PATH, smtp:HOST:PORT, "
        "imaps://USER@HOST/FOLDER (imap: for STARTTLS), gmail:LABEL or command:PROGRAM ARGUMENTS.",
        path_or_url,
        example="maildrop:ann",
    )
    to_password: Secret = option(
        "",
        "The password for an IMAP destination: text or a reference, in the same form as "
        "`password`.",
        secret,
        example={"file": "/etc/restante/imap.password"},
    )
    to_oauth: OAuth = field(default_factory=OAuth)
    to_ca_file: str = option(
        "", "A file with CA certificates (PEM) to trust for an IMAP destination."
    )
    recipient: str = option(
        "",
        "The recipient if the destination is lmtp: or smtp:, or the Gmail user if it is gmail:. "
        "The default is the account's `user`.",
        example="ann@example.org",
    )
    keep: str = option(
        "all",
        'How long to leave collected messages on the server: for ever ("all"), not at all '
        '("none"), for a time such as "14d" after collection, until a later run has verified the '
        'local copy ("until-verified"), or until the local copy has been deleted and is no longer '
        'held ("until-deleted", only for maildrop:).',
        keep,
        example="14d",
    )
    newest: int = option(0, "Always leave the N most recent messages on the server.", number)
    deletion_limit: int = option(
        1000,
        "Maximum number of messages to delete on the server within 24 hours of the first session "
        "or of a change to `keep` or `newest`. If more messages are due, none are deleted until "
        "the 24 hours are over or `restante collect NAME --no-deletion-limit` is run. 0 means no "
        "limit.",
        number,
    )
    label: str = option(
        "",
        "The name under which the account's messages are stored, if it differs from the account's "
        "name. `restante account rename` sets this option, so that no message is stored twice, "
        "even if the ledger is lost.",
    )
    largest: int = option(
        "0",
        "Maximum size of messages that are collected automatically; 0 means no limit.",
        octets,
        example="20MiB",
    )
    larger: str = option(
        "skip",
        'What to do with messages larger than `largest`: "skip" reports them in each session, '
        '"stub" stores their header with a note. In either case they are never deleted on the '
        "server. `restante collect NAME --whole ID` collects one of them; a higher value of "
        "`largest` collects all of them.",
        one_of("skip", "stub"),
        example="stub",
    )
    limit: int = option(
        0, "Maximum number of messages to collect per session; 0 means no limit.", number
    )
    messages_per_day: int = option(
        0,
        "Maximum number of messages per day, for providers with such a limit; 0 means no limit.",
        number,
    )
    octets_per_day: int | None = option(
        "auto",
        'Maximum total size of the messages collected per day. "auto" uses the known limit of the '
        "provider (Gmail: 1250 MB).",
        octets_or_auto,
        example="500MiB",
    )
    logins_per_hour: int = option(
        0,
        "Maximum number of logins per hour, including failed ones; 0 means no limit.",
        number,
    )
    deadline: float = option(
        "2h",
        "Maximum duration of a session, so that a server that sends very slowly cannot block the "
        "account. The next session continues where the interrupted session ended.",
        at_least(1, duration, "a login takes time"),
    )
    every: float = option(
        "5min",
        "Minimum time between two sessions, with `restante collect --watch` or `poll_on_login`. "
        "The server may require a longer time.",
        duration,
    )
    slowest: float = option(
        "15min",
        "Maximum time between two sessions with `restante collect --watch`: while there is no new "
        "mail, the time grows from `every` to this value.",
        duration,
    )
    alert: Alert = field(default_factory=Alert)
    poll_on_login: float = option(
        "0",
        "Maximum time that USER's login waits for new mail from this account, if `to` is "
        "maildrop:USER. With this option, `restante serve` collects mail from the account whenever "
        "USER logs in. 0 disables this.",
        duration,
        example="20s",
    )


class Collect(Section):
    """Settings for all accounts."""

    key: Secret = option(
        "",
        "A reference to the key that encrypts OAuth 2 tokens. The key is 32 octets in base64. By "
        "default, a key is created in the state directory, in a file that only its owner can read.",
        secret_reference,
        example={"credential": "restante.key"},
    )
    metrics: str = option(
        "",
        "A file to which metrics are written after each session, for the textfile collector of "
        "node_exporter. Its name must end with .prom.",
        example="/var/lib/prometheus/node-exporter/restante.prom",
    )


class ServerAlert(Section):
    """Send alerts about the server by mail or to a webhook."""

    to: str = option(
        "",
        "Where to deliver alerts: maildrop:USER (the name or address of a user of this server), "
        "maildir:PATH, mbox:PATH, a directory, lmtp:HOST:PORT, lmtp:unix:/PATH, smtp:HOST:PORT or "
        "command:PROGRAM ARGUMENTS. If it is empty, no mail is sent.",
        path_or_url,
        example="smtp:mail.example.org:25",
    )
    recipient: str = option(
        "",
        "The recipient of alerts that are delivered to lmtp: or smtp:. The default is postmaster "
        "at `server.hostname`.",
        example="postmaster@example.org",
    )
    webhook: Secret = option(
        "",
        "The https URL to which alerts are sent as JSON: text or a reference, in the same form as "
        "an account's `password`. Use a reference if the URL contains a secret.",
        secret_web_address,
        example={"file": "/etc/restante/webhook"},
    )
    ca_file: str = option(
        "", "A file with CA certificates (PEM) to trust for the webhook instead of the system's."
    )
    min_free: int = option(
        5,
        "The percentage of free space and of free inodes below which the disk is nearly full.",
        at_most(50, count),
    )
    quiet: float = option(
        "2h",
        "A series of errors is over when no error has occurred for this time. Each series causes "
        "one alert, and another one when it is over. Some errors are noticed only once per hour, "
        "so a time of an hour or less may cause many alerts.",
        at_least(1, duration, "otherwise each error would cause an alert"),
    )


class Log(Section):
    """The log on standard error."""

    format: str = option(
        "auto",
        'The format of log lines: "human" with time stamps, "journal" without time stamps, or '
        '"json" with one object per line. "auto" means "journal" under systemd, otherwise "human".',
        one_of("auto", "human", "journal", "json"),
    )
    level: str = option(
        "info",
        "The lowest level of the events to log.",
        one_of("debug", "info", "warning", "error"),
    )


class Metrics(Section):
    """Metrics for Prometheus and health checks, over HTTP."""

    listen: tuple[str, ...] = option(
        [],
        "Addresses to listen on for requests for /metrics, /healthz and /readyz. If the list is "
        "empty, only the control socket answers them.",
        list_of(tcp_address),
        example=["127.0.0.1:9110"],
    )
    allow_from: tuple[IPv4Network | IPv6Network, ...] = option(
        [],
        "Networks whose clients get an answer, in addition to this machine. Required if `listen` "
        "contains an address that other machines can reach. There is no login and no TLS.",
        list_of(network),
        example=["192.0.2.20/32"],
    )


class Configuration(Section):
    """The whole configuration."""

    server: Server = field(default_factory=Server)
    tls: TLS = field(default_factory=TLS)
    store: Store = field(default_factory=Store)
    auth: Auth = field(default_factory=Auth)
    intake: Intake = field(default_factory=Intake)
    limits: Limits = field(default_factory=Limits)
    log: Log = field(default_factory=Log)
    alert: ServerAlert = field(default_factory=ServerAlert)
    metrics: Metrics = field(default_factory=Metrics)
    collect: Collect = field(default_factory=Collect)
    account: Mapping[str, Account] = field(default_factory=dict, metadata={"named": Account})
    source: Path | None = None
    """The configuration file; None if the server runs without one."""
    folder: Path = Path()
    """The directory ``conf.d``, whose files are read after ``source``, sorted by name."""
    state: Path = Path()
    """The state directory."""
    runtime: Path = Path()
    """The directory for files that are needed only while the server runs."""
    files: tuple[RegularFile, ...] = ()
    """The files that were read: ``source``, and those in ``folder``."""


_NOT_IN_THE_FILE = ("source", "folder", "state", "runtime", "files")


def options(kind: type[Any]) -> Iterator[Field[Any]]:
    """Return the options and the sections that a section contains."""
    return (each for each in fields(kind) if each.name not in _NOT_IN_THE_FILE)
