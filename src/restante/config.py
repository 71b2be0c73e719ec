"""One TOML file, and what it may say.

Precedence: defaults < file < ``conf.d/*.toml`` beside it, by name < environment
(``RESTANTE__SERVER__HOSTNAME``) < command line.
An unknown key is an error, never ignored: a typing error in ``hold`` must not cost mail.
The text of each option here is its manual: ``example()`` and the reference are made from it.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import reduce
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from . import sasl
from .auth import ldap
from .auth.http import is_safe
from .auth.schemes import SCHEMES
from .auth.tokens import ALGORITHMS
from .collect import providers
from .errors import ConfigurationError, UnsafeArgument
from .pop3 import quirks as quirk_words
from .pop3.texts import LANGUAGES
from .regular import read_regular
from .server.listener import MAX_SOCKET_PATH, Address

BACKENDS = ("users", "passwd-file", "ldap", "pam", "oauth")
ALL_MECHANISMS = (*sasl.MECHANISMS, "APOP")
# Not -PLUS: Python's ssl can bind to the certificate (tls-server-end-point) only.  Clients that use
# GSASL, such as mutt, bind by tls-unique or tls-exporter; they would pick -PLUS, fail and give up.
MECHANISMS = tuple(
    name for name in ALL_MECHANISMS if name not in ("LOGIN", "APOP") and not name.endswith("-PLUS")
)

T = TypeVar("T")
Convert = Callable[[Any], Any]

SYSTEM = (Path("/etc"), Path("/var/lib/restante"))
"""Where the file of a service lies, and its state directory, as contrib/systemd has it."""
_PREFIX = "RESTANTE__"
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SIZES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class _BadValue(Exception):
    """Says what would be right."""


# What a value may be.


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _BadValue('wants a text such as "mail"')
    return value


def separator(value: Any) -> str:
    if re.search(r"[\w\s@/.:-]", found := text(value)):
        raise _BadValue('wants a sign that is in no name, such as "+"')
    return found


def place(value: Any) -> str:
    """Perhaps a URL, which may be shown to anybody."""
    if re.match(r"\w+://[^/@]*:.*@", found := text(value)):
        raise _BadValue("wants no password, which has an option of its own")
    return found


def hostname(value: Any) -> str:
    """A name or an address, as certificates and trace fields take it."""
    if not re.fullmatch(r"[^\W_][\w.:-]{0,252}", found := text(value)):
        raise _BadValue('wants a name such as "mail.example.org"')
    return found


def duration(value: Any) -> float:
    """Seconds, from ``2h``, ``14d``, ``10min``, or a number of seconds."""
    match = re.fullmatch(r"([0-9]{1,9})\s*([a-z]*)", str(value))
    if isinstance(value, bool) or match is None or (match[2] or "s") not in _UNITS:
        raise _BadValue('wants a time such as "90s", "10min", "2h" or "14d"')
    return float(match[1]) * _UNITS[match[2] or "s"]


def holding(value: Any) -> float:
    """Seconds; infinity is ``keep``."""
    return math.inf if value == "keep" else duration(value)


def octets(value: Any) -> int:
    """Octets, from ``25MiB`` or a number."""
    match = re.fullmatch(r"([0-9]{1,15})\s*(|[KMG]iB)", str(value))
    if isinstance(value, bool) or match is None:
        raise _BadValue('wants a size such as "25MiB"')
    return int(match[1]) * _SIZES[match[2]]


def octets_or_auto(value: Any) -> int | None:
    """None is what is known of the provider."""
    return None if value == "auto" else octets(value)


def count(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,8}", str(value)):
        raise _BadValue("wants a number from 1")
    return int(value)


def keeping(value: Any) -> int | None:
    """Whole days; None is for ever."""
    if value == "never":
        return None
    try:
        found = duration(value)
    except _BadValue:
        found = 0.0
    if found < 86_400 or found % 86_400:
        raise _BadValue('wants "never" or a time in whole days, such as "90d"')
    return int(found) // 86_400


def workers(value: Any) -> int:
    """0 stands for one for each core."""
    return 0 if value == "auto" else at_most(255, count)(value)


def web_address(value: Any) -> str:
    found = text(value)
    if found and not is_safe(found):
        raise _BadValue("wants an address that begins with https://, or http:// on this machine")
    return found


def source(value: Any) -> str:
    """A web address, or a path."""
    return web_address(value) if "://" in text(value) else text(value)


def directory(value: Any) -> str:
    found = text(value)
    if found and not ldap.is_safe(found):
        raise _BadValue('wants an address such as "ldaps://ldap.example.org"')
    return found


def search(value: Any) -> str:
    if "%u" not in text(value):
        raise _BadValue('wants a filter with %u, such as "(uid=%u)"')
    return text(value)


def service(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text(value)):
        raise _BadValue('wants the name of a file in /etc/pam.d, such as "restante"')
    return text(value)


def scheme(value: Any) -> str:
    found: str = one_of(*SCHEMES)(str(value).upper())
    return found


def at_most(most: int, convert: Convert) -> Convert:
    def checked(value: Any) -> Any:
        found = convert(value)
        if found > most:
            raise _BadValue(f"wants {most} at most")
        return found

    return checked


def one_of(*words: str) -> Convert:
    def convert(value: Any) -> str:
        if value not in words:
            raise _BadValue("wants one of " + ", ".join(words))
        return str(value)

    return convert


def backends(value: Any) -> tuple[str, ...]:
    """Names of identity back ends, each once."""
    found = tuple(name.replace("_", "-") for name in many(text)(value))
    for name in found:
        if name not in BACKENDS:
            near = difflib.get_close_matches(name, BACKENDS, 1)
            hint = "".join(f"; did you mean {n}?" for n in near)
            raise _BadValue("wants some of " + ", ".join(BACKENDS) + hint)
    if not found or len(set(found)) < len(found):
        raise _BadValue("wants each back end once, and at least one")
    return found


def many(convert: Convert) -> Convert:
    """A list; a single text is a list of one, an empty one of none."""

    def convert_all(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = text(value).split()
        if not isinstance(value, list | tuple):
            raise _BadValue("wants a list")
        return tuple(convert(each) for each in value)

    return convert_all


def network(value: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(value)
    except (ValueError, TypeError) as error:
        raise _BadValue('wants a network such as "192.168.1.40/32"') from error


def address(*schemes: str) -> Convert:
    def convert(value: Any) -> str:
        try:
            parsed = Address.parse(text(value))
        except ConfigurationError as error:
            raise _BadValue(f"wants an address: {error}") from error
        if parsed.scheme not in schemes and not (parsed.path and "" in schemes):
            raise _BadValue("wants an address that begins with " + " or ".join(schemes))
        return str(parsed)

    return convert


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is; it is fetched only when it is needed."""

    kind: str
    """``text``, ``env``, ``file``, ``command``, ``credential`` or ``keyring``."""
    value: str | tuple[str, ...] = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self.value)


def secret(value: Any) -> Secret:
    """A reference such as ``{ file = "/run/secrets/isp" }``; a text is the secret itself."""
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        return Secret("text", text(value))
    kind, given = next(iter(value.items()), ("", "")) if isinstance(value, dict) else ("", "")
    if kind == "command" and isinstance(given, list) and given and all(map(_is_text, given)):
        return Secret(kind, tuple(given))
    if kind not in ("env", "file", "credential", "keyring") or not _is_text(given):
        raise _BadValue('wants { command = ["pass", "show", "isp"] }, or env, file, credential …')
    return Secret(kind, given)


def reference(value: Any) -> Secret:
    """Like ``secret``, but never the secret itself."""
    found = secret(value)
    if found and found.kind == "text":
        raise _BadValue('wants { credential = "name" }, or env, file, command, keyring')
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def keep(value: Any) -> str:
    """``all``, ``none``, ``until-verified`` or a time."""
    if value in ("all", "none", "until-verified", "until-deleted"):
        return str(value)
    try:
        duration(value)
    except _BadValue:
        words = '"all", "none", "until-verified", "until-deleted" or a time such as "14d"'
        raise _BadValue(f"wants {words}") from None
    return str(value)


def quirks(value: Any) -> tuple[str, ...]:
    """Words that ``pop3.quirks.parse`` knows."""
    found: tuple[str, ...] = many(text)(value)
    try:
        quirk_words.parse(found)
    except UnsafeArgument as error:
        raise _BadValue(str(error)) from error
    return found


def number(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise _BadValue("wants a number from 0")
    return int(value)


def at_least(least: float, convert: Convert, why: str) -> Convert:
    def checked(value: Any) -> Any:
        found = convert(value)
        if found < least:
            raise _BadValue(f"wants {least:g} seconds at least ({why})")
        return found

    return checked


def greeting(value: Any) -> str:
    found = text(value)
    if not found.isascii() or "<" in found or found.startswith("[") or len(found) > 500:
        raise _BadValue('wants ASCII without "<", not beginning with "[" (RFC 2449 §3)')
    return found


def _own_name() -> str:
    try:
        return hostname(socket.gethostname())
    except _BadValue:
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

    path: str = option("", "The file; a change counts at once.", example="/etc/restante/passwd")
    scheme: str = option(
        "CRYPT", "The scheme of hashes that do not name theirs, as `{SCHEME}` does.", scheme
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LDAP:
    """Users of a directory, found by a search, checked by a bind; needs `restante[ldap]`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Who may log in."""

    chain: tuple[str, ...] = option(
        ["users"],
        "Where users are looked for, in this order; the first that knows one decides. "
        + "Of "
        + ", ".join(BACKENDS)
        + ".",
        backends,
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


def load(
    named: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Configuration:
    """The configuration in force.

    ``named`` is a file that must exist; else RESTANTE_CONFIG, the user's and the system's are
    looked for.  ``overrides`` are values from the command line, by dotted key.

    Raises:
        ConfigurationError: every mistake, a line each, with file, line and key.
    """
    found = _find(named, environment)
    source = found.absolute() if found else None  # a reload may come in another directory
    state = _state(source, environment)
    folder = _folder(source, environment)
    layers = [_read(source) if source else _private(state)]
    layers += (_read(path) for path in sorted(folder.glob("*.toml")))
    for name, value in environment.items():
        if name.startswith(_PREFIX):
            path = name.removeprefix(_PREFIX).lower().split("__")
            layers.append(_Layer(name, _nested(path, value)))
    for key, value in (overrides or {}).items():
        layers.append(_Layer("command line", _nested(key.split("."), value)))
    return _build(layers, source, folder, state)


def ephemeral(folder: Path) -> Configuration:
    """For tests and the demo: everything in ``folder``, every port chosen by the system."""
    lmtp, smtp = ["127.0.0.1:0"], "127.0.0.1:0"
    if len(os.fsencode(path := f"{folder}/lmtp.sock")) <= MAX_SOCKET_PATH:
        lmtp.insert(0, f"unix:{path}")  # the folder for temporary files may lie deep
    tree = {
        "server": {"listen": ["pop3s://127.0.0.1:0", "pop3://127.0.0.1:0"]},
        "intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}},
        "log": {"level": "warning"},
    }
    return _build([_Layer("configuration", tree)], None, folder, folder)


class _Layer(NamedTuple):
    """Values from one place."""

    name: str
    tree: dict[str, Any]
    text: str = ""
    """Of the file, to find the line of a key."""


def _private(state: Path) -> _Layer:
    """What serves one person on one machine, without a file."""
    lmtp, smtp = f"unix:{state}/lmtp.sock", "127.0.0.1:2525"
    tree = {"intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}}}
    return _Layer("configuration", tree)


def _find(named: Path | None, environment: Mapping[str, str]) -> Path | None:
    if named is None and environment.get("RESTANTE_CONFIG"):
        named = Path(environment["RESTANTE_CONFIG"])
    if named is not None:
        return named
    usual = [SYSTEM[0] / "restante" / "restante.toml"]
    with suppress(ConfigurationError):  # no home, so there is nothing in it
        home = _home(environment, "XDG_CONFIG_HOME", ".config")
        usual.insert(0, home / "restante" / "restante.toml")
    return next((path for path in usual if os.path.exists(path)), None)


def _state(source: Path | None, environment: Mapping[str, str]) -> Path:
    """What somebody types beside a service must find what that service writes."""
    if given := environment.get("STATE_DIRECTORY"):  # several are possible, systemd.exec(5)
        return Path(given.partition(":")[0]).absolute()
    folder, state = SYSTEM
    if source is not None and source.is_relative_to(folder):
        return state
    return _home(environment, "XDG_STATE_HOME", ".local/state") / "restante"


def _home(environment: Mapping[str, str], name: str, usual: str) -> Path:
    if given := environment.get(name):
        return Path(given).absolute()
    try:
        return Path.home() / usual
    except RuntimeError:
        raise ConfigurationError(f"this user has no home directory; next: set {name}") from None


def _folder(source: Path | None, environment: Mapping[str, str]) -> Path:
    if source is not None:
        return source.parent / "conf.d"
    with suppress(ConfigurationError):
        return _home(environment, "XDG_CONFIG_HOME", ".config") / "restante" / "conf.d"
    return Path("/etc/restante/conf.d")


def _read(source: Path) -> _Layer:
    try:
        text = read_regular(source).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        return _Layer(str(source), tomllib.loads(text), text)
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source}: is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        merged[name] = _merge(merged.get(name, {}), value) if isinstance(value, dict) else value
    return merged


def _build(
    layers: Sequence[_Layer], source: Path | None, folder: Path, state: Path
) -> Configuration:
    told: list[str] = []
    for layer in layers:
        mistakes: list[str] = []
        values = _section(Configuration, layer.tree, (), mistakes)
        if layer.text and os.stat(layer.name).st_mode & 0o077:
            mistakes += _open_secrets(layer.name, values)
        told += (_told(layer, mistake) for mistake in mistakes)
    if told:
        raise ConfigurationError("\n".join(told))
    made = {"store": {"path": f"{state}/mail/%u"}, "auth": {"users": f"{state}/users.sqlite3"}}
    tree = reduce(_merge, (layer.tree for layer in layers), made)
    configuration = Configuration(
        **_section(Configuration, tree, (), []), source=source, folder=folder, state=state
    )
    located = {name: _located(account) for name, account in configuration.account.items()}
    configuration = replace(configuration, account=located)
    told += (_told(_last(layers, each), each) for each in _contradictions(configuration))
    if told:
        raise ConfigurationError("\n".join(told))
    return configuration


def _located(account: Account) -> Account:
    """Where a well-known provider's mail is, its address tells."""
    known = providers.by_domain(account.user.rpartition("@")[2])
    if account.url or known is None or not known.host:
        return account
    return replace(account, url=f"pop3s://{known.host}")


def _section(
    kind: type[Any], tree: Mapping[str, Any], path: tuple[str, ...], mistakes: list[str]
) -> dict[str, Any]:
    known = {each.name: each for each in _options(kind)}
    values: dict[str, Any] = {}
    for name, value in tree.items():
        key = ".".join((*path, name))
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            mistakes.append(
                f"{key}: unknown option" + "".join(f"; did you mean {n}?" for n in near)
            )
        elif named := known[name].metadata.get("named"):
            values[name] = _named(named, value, (*path, name), mistakes)
        elif is_dataclass(section := known[name].default_factory):
            if isinstance(value, dict):
                assert isinstance(section, type)
                values[name] = section(**_section(section, value, (*path, name), mistakes))
            else:
                mistakes.append(f"{key}: is a section; write [{key}]")
        else:
            try:
                values[name] = known[name].metadata["convert"](value)
            except _BadValue as error:
                mistakes.append(f"{key}: {error}")
    return values


def _named(
    kind: type[Any], value: Any, path: tuple[str, ...], mistakes: list[str]
) -> dict[str, Any]:
    """Sections of one kind whose names are the writer's: ``[account.isp]``."""
    found = value if isinstance(value, dict) else {"": value}
    for name, section in found.items():
        if not isinstance(section, dict) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            mistakes.append(f"{path[-1]}: is a section with a name; write [{path[-1]}.isp]")
            return {}
    return {
        name: kind(**_section(kind, section, (*path, name), mistakes))
        for name, section in found.items()
    }


def _options(kind: type[Any]) -> Iterator[Field[Any]]:
    return (each for each in fields(kind) if each.name not in _NOT_IN_THE_FILE)


def _contradictions(found: Configuration) -> Iterator[str]:
    yield from _proxy_contradictions(found.server)
    yield from _tls_contradictions(found.tls)
    yield from _auth_contradictions(found.auth)
    for name, account in found.account.items():
        for key in ("url", "user", "to"):
            if not getattr(account, key):
                yield f"account.{name}.{key}: is missing"
    if found.source is None:
        intake = found.intake
        for key, places in (
            ("server.listen", found.server.listen),
            ("intake.lmtp.listen", intake.lmtp.listen),
            ("intake.smtp.listen", intake.smtp.listen),
        ):
            for place in places:
                if not Address.parse(place).is_local:
                    yield f"{key}: {place} is public, which wants a configuration file"


def _proxy_contradictions(found: Server) -> Iterator[str]:
    for place in found.tls_at_proxy:
        if place not in found.listen:
            yield f"server.tls_at_proxy: {place} is not one of server.listen"
    if found.tls_at_proxy and not found.proxy_from:
        yield "server.tls_at_proxy: requires server.proxy_from, the addresses of the proxy"


def _tls_contradictions(found: TLS) -> Iterator[str]:
    if found.mode == "files" and not (found.cert and found.key):
        yield 'tls.mode: "files" wants tls.cert and tls.key'
    for key in ("cert", "key"):
        if found.mode == "self" and getattr(found, key):
            yield f'tls.{key}: is used with tls.mode = "files" only'


def _auth_contradictions(auth: Auth) -> Iterator[str]:
    if not set(auth.chain) - {"oauth"}:
        yield "auth.chain: wants a back end for passwords beside oauth"
    if "passwd-file" in auth.chain and not auth.passwd_file.path:
        yield "auth.passwd_file.path: is missing"
    if "ldap" in auth.chain:
        for key in ("url", "base", "name"):
            if not getattr(auth.ldap, key):
                yield f"auth.ldap.{key}: is missing"
    if "oauth" in auth.chain:
        oauth = auth.oauth
        if bool(oauth.jwks) == bool(oauth.introspection):
            yield "auth.oauth.jwks: wants either this or auth.oauth.introspection"
        wanted = ["issuer", "audience", "claim"]
        wanted += ["client_id", "client_secret"] if oauth.introspection else ["algorithms"]
        for key in wanted:
            if not getattr(oauth, key):
                yield f"auth.oauth.{key}: is missing"


def _open_secrets(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    accounts = values.get("account", {})
    secrets = {}
    for name, account in accounts.items():
        secrets[f"account.{name}.password"] = account.password
        secrets[f"account.{name}.to_password"] = account.to_password
        secrets[f"account.{name}.oauth.client_secret"] = account.oauth.client_secret
        secrets[f"account.{name}.to_oauth.client_secret"] = account.to_oauth.client_secret
    if auth := values.get("auth"):
        secrets["auth.ldap.bind_password"] = auth.ldap.bind_password
        secrets["auth.oauth.client_secret"] = auth.oauth.client_secret
    for key, each in secrets.items():
        if each.kind == "text" and each:
            yield (
                f"{key}: others can read this file; chmod 600 {path}, or say where the secret is"
            )


def _told(layer: _Layer, mistake: str) -> str:
    return f"{layer.name}{_line_of(layer.text, _path(mistake))}: {mistake}"


def _last(layers: Sequence[_Layer], mistake: str) -> _Layer:
    """The layer whose value of a key is in force."""
    return next((each for each in reversed(layers) if _holds(each.tree, mistake)), layers[0])


def _holds(tree: Any, mistake: str) -> bool:
    for name in _path(mistake):
        if name not in tree:
            return False
        tree = tree[name]
    return True


def _path(mistake: str) -> list[str]:
    return mistake.partition(":")[0].split(".")


def _line_of(text: str, path: Sequence[str]) -> str:
    """``:12``, where a key stands; tomllib does not tell."""
    *sections, key = path
    wanted, current = ".".join(sections), ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if header := re.match(r"\[+\s*([^\]]+?)\s*\]", line):
            current = header[1]
            if current == ".".join((*sections, key)):
                return f":{number}"
        elif current == wanted and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f":{number}"
    return ""


def sections(
    kind: type[Any] = Configuration, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, type[Any], list[Field[Any]]]]:
    """Every section: its dotted name, its class, its options.  For manuals."""
    own = [each for each in _options(kind) if "doc" in each.metadata]
    if own:
        yield ".".join(path), kind, own
    for each in _options(kind):
        if named := each.metadata.get("named"):
            yield from sections(named, (*path, each.name, "isp"))
        elif is_dataclass(each.default_factory):
            assert isinstance(each.default_factory, type)
            yield from sections(each.default_factory, (*path, each.name))


def example() -> str:
    """A sample file with every option, its manual above it; all is as without a file until
    somebody takes a "#" away.
    """
    lines: list[str] = []
    for name, kind, options in sections():
        off = "#" if name.startswith("account.") else ""
        lines += [f"{off}[{name}]", f"# {kind.__doc__}"]
        for each in options:
            lines += [f"# {each.metadata['doc']}"]
            lines += [f"#{each.name} = {toml(each.metadata['example'])}"]
        lines.append("")
    return "\n".join(lines)


def toml(value: Any) -> str:
    """A value as it stands in the file."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
