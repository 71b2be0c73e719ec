"""``restante account add``: turn an address into a working account with one command.

The server is looked up in a list of well-known providers, then in the MX records of the domain,
and then in its SRV records.  The result is written into the configuration, so that later sessions
do not query DNS again (RFC 8314 §5.1).
Security: no secret is written into the configuration; a typed secret is stored in a separate file
in the state directory.  Forged MX records could only lead to another well-known provider.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..app import tokens
from ..app.job import Job, open_ledger
from ..collect import providers
from ..collect.providers import Mail
from ..config import Configuration, load, toml
from ..errors import ConfigurationError, ConnectionLost, LoginFailed, RestanteError, UnsafeArgument
from ..words import counted, size
from . import account_add_destination, common, consent, prompts

if TYPE_CHECKING:
    from ..client.remote import Service
    from ..collect.ledger import Ledger


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = actions.add_parser(
        "add",
        help="add an account and try to log in",
        description="Write conf.d/account-NAME.toml in the directory of the configuration file, "
        "sign in with OAuth 2 or ask for the password, and log in once. An address is enough for "
        "well-known providers and for domains that announce their server. On a terminal you are "
        "prompted for required values that you leave out; otherwise passwords are read from "
        "standard input, one per line.",
    )
    action.add_argument(
        "name", metavar="NAME", nargs="?", help="a name for the account, such as isp"
    )
    action.add_argument(
        "url",
        metavar="ADDRESS",
        nargs="?",
        help="the mail address (ann@example.org) or the URL of the maildrop (pop3s://user@host)",
    )
    action.add_argument(
        "--host",
        metavar="HOST",
        help="the POP3 server's host name, if it cannot be discovered from the address",
    )
    account_add_destination.add_options(action)
    action.add_argument(
        "--keep",
        default="all",
        help="which messages to leave on the server: all (default), none, those younger than a "
        "time such as 14d, until-verified or until-deleted",
    )
    action.add_argument(
        "--every",
        metavar="TIME",
        help="time between two sessions of `restante collect --watch`, such as 10min",
    )
    action.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="trust the CA certificates in FILE (PEM) instead of the system's for the POP3 server",
    )
    prompts.add_secret(action, "password", "the password for the POP3 server")
    action.add_argument(
        "--provider",
        choices=("google", "microsoft", "other"),
        help="sign in to this provider with OAuth 2",
    )
    action.add_argument(
        "--client-id",
        metavar="ID",
        help="client ID of the app that you registered with the OAuth 2 provider",
    )
    prompts.add_secret(action, "client-secret", "the client secret of the OAuth 2 app")
    action.add_argument(
        "--tenant", help="the organisation's Microsoft tenant, for signing in with OAuth 2"
    )
    action.add_argument(
        "--issuer",
        metavar="URL",
        help="sign in with OAuth 2 to the provider that has this issuer URL (OpenID Connect)",
    )
    action.add_argument(
        "--scope",
        action="append",
        metavar="SCOPE",
        help="request this OAuth 2 scope instead of the provider's default; may be repeated",
    )
    consent.add_flows(action)
    action.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set any other configuration option of the account, such as largest=20MiB or "
        "alert.after=3; may be repeated",
    )
    action.add_argument("--no-test", action="store_true", help="do not try to log in")
    action.set_defaults(run=add)


_SECTIONS = ("oauth", "to_oauth", "alert")  # subsections of an account


@dataclass(frozen=True, slots=True)
class _Server:
    """The POP3 server of an account, and the mail provider if it is known."""

    url: str
    user: str
    provider: Mail | None
    local: str = ""
    """User name without the domain, if the server may require this form (RFC 6186 §4)."""


def add(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    name, server = _account_and_server(options, config)
    path = file_of(config, name)
    if name in config.account or path.exists():
        raise ConfigurationError(f"account {name!r} already exists")
    if server.provider is not None:
        common.say(f"{server.user}: {server.provider.name}, {server.url}")
    destination = account_add_destination.destination(options, config, name, server.user)
    values = {
        "url": server.url,
        "user": server.user,
        "keep": options.keep,
        "every": options.every,
        "ca_file": str(options.ca_file.resolve()) if options.ca_file else None,
        **destination.values,
        **_extra_options(options.set),
    }
    _check_values(options, name, {**values, "to_oauth": destination.oauth})
    try:
        sections = _ask_for_missing(options, config, name, server, destination, values)
        write(path, name, values, sections)
        config = common.configuration(options)
        job = Job.of(config, name)
        _open(options, job)
    except BaseException:
        remove_files(config, name)
        raise
    mailbox_size: tuple[int, int] | None = None
    if not options.no_test:
        user, mailbox_size = _try(job, server)
        if user != server.user:
            path.unlink()
            write(path, name, values | {"user": user}, sections)
            common.say(f"The server requires the user name without the domain: {user}")
    _report(options, name, path, mailbox_size)
    return os.EX_OK


def _report(
    options: argparse.Namespace, name: str, path: Path, mailbox_size: tuple[int, int] | None
) -> None:
    if options.json:
        count, octets = mailbox_size or (None, None)
        common.print_json("account-add", name=name, file=str(path), messages=count, octets=octets)
        return
    if mailbox_size is not None:
        print(describe_login(name, *mailbox_size))
    common.say(f"Added account {name} in {path}\nNext: restante collect {name} --dry-run")


def _account_and_server(options: argparse.Namespace, config: Configuration) -> tuple[str, _Server]:
    """Return the account's name and its server."""
    name, address = options.name, options.url
    if address is None and name and re.search("@|://", name):
        name, address = None, name
    address = address or prompts.ask("Address, such as ann@example.org: ", "ADDRESS")
    server = _locate(address, options.host)
    return name or _name(config, server), server


def _ask_for_missing(
    options: argparse.Namespace,
    config: Configuration,
    name: str,
    server: _Server,
    destination: account_add_destination.Destination,
    values: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return the account's subsections; answers to prompts are added to ``values``."""
    oauth = _oauth_section(options, config, name, server)
    if oauth is None:
        values["password"] = _password(options, config, name, server)
    else:
        account_add_destination.offer_polling(destination, server.user)
    account_add_destination.ask_for_secrets(options, config, name, destination)
    values |= destination.values
    sections = {"oauth": oauth or {}, "to_oauth": destination.oauth}
    for section in [key for key in values if key in _SECTIONS]:  # from --set
        sections[section] = {**sections.get(section, {}), **values.pop(section)}
    return sections


def _open(options: argparse.Namespace, job: Job) -> None:
    """Open the destination, which creates missing directories, and sign in to the providers."""
    job.open_destination().close()
    for grant in (job.grant, job.destination_grant):
        if grant.options.provider:
            consent.sign_in(grant, options.flow or "")


def _extra_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse the values of ``--set``.  A key with a dot belongs to a subsection of the account.

    Raises:
        UnsafeArgument: a value does not have the form ``KEY=VALUE``, or it would set a secret.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", key):
            raise UnsafeArgument(f"--set {pair}: write KEY=VALUE, such as largest=20MiB")
        if key.rpartition(".")[2] in ("password", "to_password", "client_secret"):
            raise UnsafeArgument("a secret in --set can be read by every user of this machine")
        section, dot, name = key.rpartition(".")
        if dot:
            values.setdefault(section, {})[name] = value
        else:
            values[key] = value
    return values


def _without_empty_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without empty values, at every level."""
    pairs = (
        (key, _without_empty_values(each) if isinstance(each, dict) else each)
        for key, each in values.items()
    )
    return {key: value for key, value in pairs if value}


def _check_values(options: argparse.Namespace, name: str, values: Mapping[str, Any]) -> None:
    """Check the values before the user is asked for a password.

    Raises:
        ConfigurationError: the account cannot work with these values.
    """
    section = _without_empty_values(values)
    if str(values["to"]).startswith("imap"):
        # A placeholder, because the user has not typed the password yet.
        section["to_password"] = {"env": "HOME"}
    trial = load(options.config, overrides={f"account.{name}": section})
    if mistakes := list(Job.of(trial, name).mistakes(strict=True)):
        raise ConfigurationError("\n".join(mistakes))


def _try(job: Job, server: _Server) -> tuple[str, tuple[int, int]]:
    """Return the user name that works, and the number of messages and octets on the server.

    If the login fails, the account is removed, unless the user has signed in with OAuth 2.
    """
    try:
        result = _log_in(job, server)
        try_destination(job)
        return result
    except BaseException as error:
        if (
            isinstance(error, LoginFailed)
            and server.provider is not None
            and server.provider.enable_pop
        ):
            common.say(f"Is POP switched on? {server.provider.name}: {server.provider.enable_pop}")
        if isinstance(error, RestanteError) and job.options.oauth.provider:
            common.say(
                f"You have signed in, so account {job.name} is kept.\n"
                f"Try again: restante account test {job.name}\n"
                f"Or remove it: restante account rm {job.name}"
            )
        else:
            remove_files(job.config, job.name)
        raise


def _log_in(job: Job, server: _Server) -> tuple[str, tuple[int, int]]:
    """Log in with the whole address, or if it is refused, with the local part (RFC 6186 §4)."""
    try:
        return server.user, try_login(job)
    except LoginFailed as error:
        if error.code not in (None, "AUTH") or not server.local or job.options.oauth.provider:
            raise
        try:
            options = replace(job.options, user=server.local)
            return server.local, try_login(replace(job, options=options))
        except LoginFailed:
            raise error from None


def _name(config: Configuration, server: _Server) -> str:
    """Derive a name from the domain or host; if it is taken, prefix it with the user name."""
    local, _, domain = server.user.rpartition("@")
    base = (
        domain.split(".")[0] if local else (urlsplit(server.url).hostname or "").split(".")[-2:][0]
    )
    for candidate in (base, f"{local}-{base}"):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", candidate).strip("-_")[:64]
        if name and name not in config.account:
            return name
    raise UnsafeArgument(
        f"the account requires a name; run: restante account add mail {quote(server.user)}"
    )


# Finding the server.


def _locate(address: str, host: str | None) -> _Server:
    """Find the server of an address.

    Raises:
        UnsafeArgument: ``address`` is invalid, or its server cannot be found.
    """
    if "://" in address:
        return _from_url(address)
    local, _, domain = address.rpartition("@")
    if not local or not domain or not address.isprintable():
        raise UnsafeArgument("invalid address; write ann@example.org or pop3s://user@host")
    if host:
        url = f"pop3s://{host}"
        known = providers.by_host(urlsplit(url).hostname or "")
        return _Server(url, address, known, "" if known else local)
    mail = providers.by_domain(domain) or _by_exchanger(domain)
    if mail is None:
        return _from_srv_records(address)
    if not mail.host:
        raise UnsafeArgument(f"{mail.name} does not offer POP3")
    return _Server(f"pop3s://{mail.host}", address, mail)


def _from_url(address: str) -> _Server:
    from ..client.remote import split

    host, port, tls, login = split(address)
    if login.password:
        raise UnsafeArgument("a password in the URL can be read by every user of this machine")
    if not login.user:
        raise UnsafeArgument("the URL contains no user name; write pop3s://user@host")
    url = f"{tls.value}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
    return _Server(url, login.user, providers.by_host(host))


def _by_exchanger(domain: str) -> Mail | None:
    from ..client import discovery

    try:
        return providers.by_exchanger(discovery.mail_exchangers(domain))
    except (ConfigurationError, ConnectionLost):
        common.say("To skip the DNS lookup, name your provider's POP3 server with --host HOST.")
        raise


def _from_srv_records(address: str) -> _Server:
    """Find the server with SRV records.

    The user must confirm a host that is not within the address's domain (RFC 8314 §5.1).
    """
    from ..client import discovery

    services = discovery.discover_blocking(address)
    domain = address.rpartition("@")[2]
    if not services:
        raise UnsafeArgument(
            f"{domain} does not announce a POP3 server; name the server with --host HOST"
        )
    service = services[0]
    if not service.is_within:
        question = f"{domain} announces the server {service.host}. Is that your provider?"
        if not prompts.confirm(question):
            raise UnsafeArgument(
                f"{domain} announces the server {service.host}; if that is your provider, add "
                f"--host {service.host}"
            )
    known = providers.by_host(service.host)
    return _Server(_url(service), address, known, "" if known else address.rpartition("@")[0])


def _url(service: Service) -> str:
    is_usual = service.port == {"pop3s": 995, "pop3": 110}[service.tls.value]
    return f"{service.tls.value}://{service.host}" + ("" if is_usual else f":{service.port}")


# Choosing the credentials.


def _oauth_section(
    options: argparse.Namespace, config: Configuration, name: str, server: _Server
) -> dict[str, Any] | None:
    """Return the subsection ``oauth``, or None if the account logs in with a password."""
    mail = server.provider
    is_requested = options.provider or options.issuer or options.client_id or options.flow
    has_password = prompts.given_secret(options, "password") is not None
    if not is_requested and (has_password or mail is None or not mail.oauth):
        return None
    provider = options.provider or ("other" if options.issuer else mail.oauth if mail else "")
    if not provider:
        raise UnsafeArgument("name the provider: --provider google or microsoft, or --issuer URL")
    values: dict[str, Any] = {
        "provider": provider,
        "client_id": options.client_id,
        "client_secret": prompts.given_secret(options, "client-secret"),
        "tenant": options.tenant or (mail.tenant if mail else ""),
        "flow": "client" if options.flow == "client" else None,
        "scopes": options.scope,
    }
    if options.issuer:
        values |= _endpoints(options.issuer, options.scope)
    if not options.client_id:
        shared = prompts.shared_app(config, provider) if provider != "other" else None
        if shared is None and mail is not None and mail.accepts_passwords and not is_requested:
            return None  # a login with a password does not need a registered app
        values |= shared or {"client_id": prompts.client_id(provider, "--client-id")}
    if provider == "google" and not values["client_secret"]:
        values["client_secret"] = prompts.ask_for_secret(
            config, f"{name}.client", "Secret of the app", "--client-secret-file FILE"
        )
    return values


def _endpoints(issuer: str, scopes: list[str] | None) -> dict[str, Any]:
    from ..collect.oauth.web import endpoints

    known = endpoints(issuer)
    return {
        "authorize_url": known.get("authorization_endpoint"),
        "token_url": known.get("token_endpoint"),
        "device_url": known.get("device_authorization_endpoint"),
        "scopes": scopes or ["openid", "email", "offline_access"],
    }


def _password(
    options: argparse.Namespace, config: Configuration, name: str, server: _Server
) -> dict[str, Any]:
    password = prompts.given_secret(options, "password")
    if password is None and server.provider is not None and server.provider.password:
        common.say(f"{server.provider.name} requires {server.provider.password}")
    question = f"Password for {server.user}"
    return password or prompts.ask_for_secret(config, name, question, "--password-file FILE")


# Writing, testing and removing an account.


def write(
    path: Path,
    name: str,
    values: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the values that are not empty into a new file that only its owner can read.

    ``sections`` maps the names of the account's subsections to their values.
    """
    lines = []
    for section, options in {"": values, **(sections or {})}.items():
        rows = [f"{key} = {toml(value)}" for key, value in options.items() if value]
        lines += [f"[account.{name}{section and '.'}{section}]", *rows] if rows else []
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join([*lines, ""]))


def file_of(config: Configuration, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UnsafeArgument(
            "an account name may contain only letters, digits, - and _, must begin with a letter "
            "or digit, and must not be longer than 64 characters"
        )
    return config.folder / f"account-{name}.toml"


def remove_files(config: Configuration, name: str) -> None:
    """Remove the account's configuration, secrets and tokens, but not its ledger."""
    file_of(config, name).unlink(missing_ok=True)
    for secret in (name, f"{name}.client", f"{name}.to", f"{name}.to.client"):
        prompts.secret_file(config, secret).unlink(missing_ok=True)
    for is_destination in (False, True):
        if (config.state / "tokens").is_dir():
            tokens.token_file(config, name, is_destination=is_destination).forget()


def try_destination(job: Job) -> None:
    """Log in to the destination if it is an IMAP server; other destinations need no login."""
    if job.options.to.startswith(("imap:", "imaps:")):
        with closing(job.open_destination()) as destination:
            destination.has(job.name)


def try_login(job: Job) -> tuple[int, int]:
    """Log in to the account's server and return its number of messages and octets."""
    with closing(open_ledger(job.config)) as ledger:
        return asyncio.run(_log_in_and_count(job, ledger))


def describe_login(name: str, count: int, octets: int) -> str:
    return f"{name}: {counted(count, 'message')}, {size(octets)}"


async def _log_in_and_count(job: Job, ledger: Ledger) -> tuple[int, int]:
    """Log in, and record the login in the ledger as for any session.

    A successful login ends the delay after refused logins.
    """
    account_ledger = ledger.of(job.name)
    account_ledger.record_attempt(time.time())
    try:
        async with job.connect() as client:
            account_ledger.record_login(time.time(), client.capabilities.login_delay or 0)
            return await client.stat()
    except LoginFailed as error:
        if not error.retry:
            account_ledger.record_refusal(time.time())
        raise
