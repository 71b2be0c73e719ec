"""``restante account add``: from an address to an account that works, in one command.

The server is found by what is known of the domain, by who takes its mail (MX), or by what it
announces (SRV), and then written down: DNS is not asked at each session (RFC 8314 §5.1).
Security: no secret is written into the configuration; one that is typed stands in a file of its
own in the state directory.  Forged MX records could only lead to another well-known provider.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .. import config
from ..collect import providers
from ..collect.providers import Mail
from ..config import Account, Configuration
from ..errors import ConfigurationError, ConnectionLost, LoginFailed, RestanteError, UnsafeArgument
from . import collect, common, oauth
from .telling import counted

if TYPE_CHECKING:
    from ..collect.ledger import Ledger
    from ..net.remote import Service

_REGISTER = {
    "google": "Google wants to know which program asks. Once, and for nothing: at "
    "console.cloud.google.com make a project, enable the Gmail API, and under APIs & Services, "
    'Credentials make an OAuth client ID of the type "Desktop app".',
    "microsoft": "Microsoft wants to know which program asks. Once, and for nothing: at "
    "entra.microsoft.com under App registrations make a new one for accounts in any organisation "
    "and personal ones; add the platform Mobile and desktop with the address http://localhost, "
    "allow public client flows, and give it the delegated permission POP.AccessAsUser.All.",
}


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = actions.add_parser(
        "add",
        help="write an account into the configuration and try it",
        description="Writes conf.d/account-NAME.toml beside the configuration, signs in or asks "
        "for the password, and logs in once. An address is enough for well-known providers and "
        "for domains that announce their server; what is not said is asked, where somebody is "
        "there.",
    )
    action.add_argument(
        "name", metavar="NAME", nargs="?", help="a word of yours, such as isp; may be left out"
    )
    action.add_argument(
        "url", metavar="ADDRESS", nargs="?", help="ann@example.org, or pop3s://user@host"
    )
    action.add_argument("--host", metavar="HOST", help="the server, where the address tells none")
    action.add_argument("--to", metavar="PLACE", help="such as maildrop:ann or maildir:Mail")
    action.add_argument("--keep", default="all", help="all, none, 14d, until-verified or -deleted")
    action.add_argument("--every", metavar="TIME", help="the pause between sessions with --watch")
    action.add_argument("--ca-file", type=Path, metavar="FILE", help="trust these certificates")
    action.add_argument("--recipient", metavar="ADDRESS", help="for lmtp: and smtp:")
    _add_secret(action, "password", "the password")
    action.add_argument(
        "--provider", choices=("google", "microsoft", "other"), help="sign in there by OAuth 2"
    )
    action.add_argument(
        "--client-id", metavar="ID", help="of the application that you have registered there"
    )
    _add_secret(action, "client-secret", "the application's secret")
    action.add_argument("--tenant", help="at Microsoft: the organisation")
    action.add_argument(
        "--issuer", metavar="URL", help="another provider, which says itself where it is asked"
    )
    action.add_argument("--scope", action="append", metavar="SCOPE", help="instead of those known")
    oauth.add_flows(action)
    action.add_argument("--no-test", action="store_true", help="do not log in now")
    action.set_defaults(run=add)


def _add_secret(action: argparse.ArgumentParser, name: str, what: str) -> None:
    given = action.add_mutually_exclusive_group()
    for kind, metavar, text in (
        ("file", "FILE", f"{what} is its first line"),
        ("env", "NAME", "an environment variable"),
        ("credential", "NAME", "of systemd (LoadCredential=)"),
        ("keyring", "NAME", "in the key ring, under restante"),
    ):
        given.add_argument(f"--{name}-{kind}", metavar=metavar, help=text)
    text = "prints it; must come last"
    given.add_argument(f"--{name}-command", metavar="COMMAND", nargs="+", help=text)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the mail is, and what is known of it."""

    url: str
    user: str
    mail: Mail | None
    local: str = ""
    """The user's name without its domain, where the server may want that (RFC 6186 §4)."""


def add(options: argparse.Namespace) -> int:
    found = common.configuration(options)
    name, address = options.name, options.url
    if address is None and name and re.search("@|://", name):
        name, address = None, name
    address = address or _asked("The address, such as ann@example.org: ", "whose mail? an address")
    place = _locate(address, options.host)
    name = name or _name(found, place)
    path = file_of(found, name)
    if name in found.account or path.exists():
        raise ConfigurationError(f"there is an account {name!r} already")
    if place.mail is not None:
        common.say(f"{place.user}: {place.mail.name}, at {place.url}")
    values = {
        "url": place.url,
        "user": place.user,
        "to": absolute(options.to or _asked_place(name)),
        "keep": options.keep,
        "every": options.every,
        "ca_file": str(options.ca_file.resolve()) if options.ca_file else None,
        "recipient": options.recipient,
    }
    try:
        agreement = _agreement(options, found, name, place)
        if agreement is None:
            values["password"] = _password(options, found, name, place)
        write(path, name, values, agreement)
        found = common.configuration(options)
        account = found.account[name]
        collect.open_destination(found, name, account).close()
        if agreement is not None:
            oauth.agree(found, name, account, options.flow or "")
    except BaseException:
        take_back(found, name)
        raise
    if not options.no_test:
        user = _try(found, name, account, options, place)
        if user != place.user:
            path.unlink()
            write(path, name, values | {"user": user}, agreement)
            common.say(f"the server wants the name without the domain: {user}")
    common.say(f"written: {path}\nnext: restante collect {name} --dry-run")
    return os.EX_OK


def _try(
    found: Configuration,
    name: str,
    account: Account,
    options: argparse.Namespace,
    place: _Place,
) -> str:
    """By which name it works.

    An account that does not work is not left behind, unless somebody has signed in for it.
    """
    try:
        return _log_in(found, name, account, options, place)
    except BaseException as error:
        if isinstance(error, LoginFailed) and place.mail is not None and place.mail.switch:
            common.say(f"has POP been switched on? {place.mail.name}: {place.mail.switch}")
        if isinstance(error, RestanteError) and account.oauth.provider:
            common.say(
                f"you have signed in, so the account {name} stays; next: restante account test "
                f"{name}, or restante account rm {name}"
            )
        else:
            take_back(found, name)
        raise


def _log_in(
    found: Configuration,
    name: str,
    account: Account,
    options: argparse.Namespace,
    place: _Place,
) -> str:
    """The whole address first; where that is refused, its local part once (RFC 6186 §4)."""
    try:
        try_login(found, name, account, options)
    except LoginFailed as error:
        if error.code not in (None, "AUTH") or not place.local or account.oauth.provider:
            raise
        try:
            try_login(found, name, replace(account, user=place.local), options)
        except LoginFailed:
            raise error from None
        return place.local
    return place.user


def _asked(question: str, wanted: str) -> str:
    """What a person types; without one it must be on the command line."""
    if not sys.stdin.isatty():
        raise UnsafeArgument(f"{wanted} is wanted on the command line")
    return input(question).strip()


def _asked_place(name: str) -> str:
    default = Path.home() / "Mail" / name
    question = f"Where shall its mail go? maildrop:USER, maildir:PATH, … [maildir:{default}] "
    if answer := _asked(question, "--to PLACE"):
        return answer
    default.parent.mkdir(exist_ok=True)  # a collector makes no directory above a Maildir
    return f"maildir:{default}"


def absolute(to: str) -> str:
    """The same destination from wherever a command is run, as cron does it elsewhere.

    Raises:
        UnsafeArgument: a command whose quotation marks do not match.
    """
    kind, colon, rest = to.partition(":")
    if kind in ("maildir", "mbox") and rest:
        return f"{kind}:{_absolute(rest)}"
    if kind == "command":
        return f"command:{_absolute_program(rest)}"
    return _absolute(to) if to and not colon else to


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _absolute_program(command: str) -> str:
    """A name without "/" is looked for in PATH, and stays as it is."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UnsafeArgument(f"command: {error}") from error
    if not words or "/" not in words[0] or words[0].startswith("/"):
        return command
    return shlex.join([_absolute(words[0]), *words[1:]])


def _name(found: Configuration, place: _Place) -> str:
    """Of the domain, or of the host; with the user's before it where that is taken."""
    local, _, domain = place.user.rpartition("@")
    word = (
        domain.split(".")[0] if local else (urlsplit(place.url).hostname or "").split(".")[-2:][0]
    )
    for tried in (word, f"{local}-{word}"):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", tried).strip("-_")[:64]
        if name and name not in found.account:
            return name
    raise UnsafeArgument(f"give the account a name: restante account add NAME {place.user}")


# Where.


def _locate(address: str, host: str | None) -> _Place:
    """
    Raises:
        UnsafeArgument: no address, or one that does not tell its server.
    """
    if "://" in address:
        return _from_url(address)
    local, _, domain = address.rpartition("@")
    if not local or not domain or not address.isprintable():
        raise UnsafeArgument("who logs in where? write ann@example.org or pop3s://user@host")
    if host:
        url = f"pop3s://{host}"
        known = providers.by_host(urlsplit(url).hostname or "")
        return _Place(url, address, known, "" if known else local)
    mail = providers.by_domain(domain) or _by_exchanger(domain)
    if mail is None:
        return _announced(address)
    if not mail.host:
        raise UnsafeArgument(f"{mail.name} gives no mail by POP3")
    return _Place(f"pop3s://{mail.host}", address, mail)


def _from_url(address: str) -> _Place:
    from ..net.remote import split

    host, port, tls, login = split(address)
    if login.password:
        raise UnsafeArgument("a password in the URL can be read by every user of this machine")
    if not login.user:
        raise UnsafeArgument("who logs in where? write pop3s://user@host")
    url = f"{tls.value}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
    return _Place(url, login.user, providers.by_host(host))


def _by_exchanger(domain: str) -> Mail | None:
    from ..net import discovery

    try:
        return providers.by_exchanger(discovery.exchangers(domain))
    except (ConfigurationError, ConnectionLost):
        common.say("next: --host HOST, your provider's POP3 server; then DNS is not asked")
        raise


def _announced(address: str) -> _Place:
    """By SRV records.  A host elsewhere counts only when a person says so (RFC 8314 §5.1)."""
    from ..net import discovery

    services = discovery.discover_blocking(address)
    domain = address.rpartition("@")[2]
    if not services:
        raise UnsafeArgument(
            f"{domain} does not say where its mail is; next: --host HOST, your provider's server"
        )
    service = services[0]
    if not service.is_within:
        question = f"{domain} says its mail is at {service.host}. Is that your provider? [y/N] "
        wanted = f"{domain} says its mail is at {service.host}; if that is right, --host"
        if _asked(question, wanted).lower() not in ("y", "yes"):
            raise UnsafeArgument("next: --host HOST, your provider's server")
    known = providers.by_host(service.host)
    return _Place(_url(service), address, known, "" if known else address.rpartition("@")[0])


def _url(service: Service) -> str:
    is_usual = service.port == {"pop3s": 995, "pop3": 110}[service.tls.value]
    return f"{service.tls.value}://{service.host}" + ("" if is_usual else f":{service.port}")


# By which credential.


def _agreement(
    options: argparse.Namespace, found: Configuration, name: str, place: _Place
) -> dict[str, Any] | None:
    """The section ``oauth``; None: a password."""
    mail = place.mail
    is_wanted = options.provider or options.issuer or options.client_id or options.flow
    if not is_wanted and (_given(options, "password") or mail is None or not mail.oauth):
        return None
    provider = options.provider or ("other" if options.issuer else mail.oauth if mail else "")
    if not provider:
        raise UnsafeArgument("which provider? --provider google or microsoft, or --issuer URL")
    values: dict[str, Any] = {
        "provider": provider,
        "client_id": options.client_id,
        "client_secret": _given(options, "client_secret"),
        "tenant": options.tenant or (mail.tenant if mail else ""),
        "flow": "client" if options.flow == "client" else None,
        "scopes": options.scope,
    }
    if options.issuer:
        values |= _endpoints(options.issuer, options.scope)
    if not options.client_id:
        registered = _registered(found, provider) if provider != "other" else None
        if registered is None and mail is not None and mail.takes_passwords and not is_wanted:
            return None  # what needs no application is easier
        values |= registered or {"client_id": _asked_id(provider)}
    if provider == "google" and not values["client_secret"]:
        values["client_secret"] = _typed(found, f"{name}.client", "The application's secret: ")
    return values


def _endpoints(issuer: str, scopes: list[str] | None) -> dict[str, Any]:
    from ..collect.oauth.web import endpoints

    told = endpoints(issuer)
    return {
        "authorize_url": told.get("authorization_endpoint"),
        "token_url": told.get("token_endpoint"),
        "device_url": told.get("device_authorization_endpoint"),
        "scopes": scopes or ["openid", "email", "offline_access"],
    }


def _registered(found: Configuration, provider: str) -> dict[str, Any] | None:
    """The application that another account asks by."""
    for name, account in found.account.items():
        known, secret = account.oauth, account.oauth.client_secret
        is_written = secret and secret.kind == "text"  # which is not copied
        if known.provider == provider and known.client_id and not is_written:
            common.say(f"by the application of the account {name}")
            value = list(secret.value) if secret.kind == "command" else secret.value
            shared = {secret.kind: value} if secret else None
            return {"client_id": known.client_id, "client_secret": shared}
    return None


def _asked_id(provider: str) -> str:
    if words := _REGISTER.get(provider):
        common.say(f"{words}\nThen it tells a client ID. Further accounts will take the same one.")
    typed = _asked("The client ID: ", "--client-id ID")
    if not typed:
        raise UnsafeArgument("a client ID is wanted")
    return typed


def _password(
    options: argparse.Namespace, found: Configuration, name: str, place: _Place
) -> dict[str, Any]:
    given = _given(options, "password")
    if given is None and place.mail is not None and place.mail.password:
        common.say(f"{place.mail.name} wants {place.mail.password}")
    return given or _typed(found, name, f"Password of {place.user}: ")


def _given(options: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """A reference to a secret, as the configuration holds it."""
    for kind in ("file", "env", "credential", "keyring", "command"):
        if value := getattr(options, f"{name}_{kind}"):
            return {kind: str(Path(value).resolve()) if kind == "file" else value}
    return None


def _typed(found: Configuration, name: str, question: str) -> dict[str, str]:
    """Not shown, and in a file of its own that nobody else can read, durable on return."""
    from ..collect.oauth.sealed import write_durably

    typed = getpass(question) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not typed:
        raise UnsafeArgument(f"{question.rstrip(': ')}: that is empty")
    path = _secret_file(found, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, f"{typed}\n".encode())
    return {"file": str(path)}


def _secret_file(found: Configuration, name: str) -> Path:
    return found.state / "passwords" / name


# What is written, tried, and taken back.


def write(
    path: Path, name: str, values: Mapping[str, Any], oauth: Mapping[str, Any] | None = None
) -> None:
    """A new file that nobody else can read, of what is not empty."""
    lines = []
    for section, options in ((f"account.{name}", values), (f"account.{name}.oauth", oauth or {})):
        rows = [f"{key} = {config.toml(value)}" for key, value in options.items() if value]
        lines += [f"[{section}]", *rows] if rows else []
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join([*lines, ""]))


def file_of(found: Configuration, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UnsafeArgument("an account's name has letters, digits, - and _")
    return found.folder / f"account-{name}.toml"


def take_back(found: Configuration, name: str) -> None:
    """All that was written for an account, but for its ledger."""
    file_of(found, name).unlink(missing_ok=True)
    for typed in (name, f"{name}.client"):
        _secret_file(found, typed).unlink(missing_ok=True)
    for tokens in (name, f"{name}.to"):
        if (found.state / "tokens").is_dir():
            oauth.tokenfile(found, tokens).forget()


def try_login(
    found: Configuration, name: str, account: Account, options: argparse.Namespace
) -> int:
    with closing(collect.open_ledger(found)) as ledger:
        count, octets = asyncio.run(_look(found, name, account, ledger))
    if options.json:
        common.print_json("account-test", name=name, messages=count, octets=octets)
    else:
        print(f"{name}: {counted(count, 'message')} ({counted(octets, 'octet')})")
    return os.EX_OK


async def _look(
    found: Configuration, name: str, account: Account, ledger: Ledger
) -> tuple[int, int]:
    """Its login counts as any other; one that works ends the wait after refusals."""
    ledger.tried(name, time.time())
    try:
        async with collect.connected(found, name, account) as client:
            ledger.began(name, time.time(), client.capabilities.login_delay or 0)
            return await client.stat()
    except LoginFailed as error:
        if not error.retry:
            ledger.refused(name, time.time())
        raise
