"""``restante account add``: from an address to an account that works, in one command.

The server is found in a list of well-known providers, by the MX records of the domain, or by its
SRV records, and then written into the configuration: DNS is not asked again at each session
(RFC 8314 §5.1).
Security: no secret is written into the configuration; a typed secret is stored in a file of its
own in the state directory.  Forged MX records could only lead to another well-known provider.
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
        description="Writes conf.d/account-NAME.toml beside the configuration, signs in or asks "
        "for the password, and logs in once. An address is enough for well-known providers and "
        "for domains that announce their server. On a terminal you are prompted for anything "
        "required that you leave out; without one, passwords are lines of standard input.",
    )
    action.add_argument(
        "name", metavar="NAME", nargs="?", help="a name for the account, such as isp; optional"
    )
    action.add_argument(
        "url", metavar="ADDRESS", nargs="?", help="ann@example.org, or pop3s://user@host"
    )
    action.add_argument("--host", metavar="HOST", help="the server, if it cannot be found")
    account_add_destination.add_options(action)
    action.add_argument(
        "--keep",
        default="all",
        help="what stays there: all, none, 14d, until-verified or until-deleted",
    )
    action.add_argument("--every", metavar="TIME", help="pause between sessions with --watch")
    action.add_argument("--ca-file", type=Path, metavar="FILE", help="trust these certificates")
    prompts.add_secret(action, "password", "the password")
    action.add_argument(
        "--provider", choices=("google", "microsoft", "other"), help="sign in with OAuth 2"
    )
    action.add_argument(
        "--client-id", metavar="ID", help="of the app that you have registered with the provider"
    )
    prompts.add_secret(action, "client-secret", "the app's secret")
    action.add_argument("--tenant", help="the organisation (Microsoft)")
    action.add_argument(
        "--issuer", metavar="URL", help="another provider, by its issuer URL (OpenID Connect)"
    )
    action.add_argument(
        "--scope", action="append", metavar="SCOPE", help="replaces the usual scopes"
    )
    consent.add_flows(action)
    action.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of the account, such as largest=20MiB or alert.after=3; may be "
        "repeated",
    )
    action.add_argument("--no-test", action="store_true", help="do not try to log in")
    action.set_defaults(run=add)


_SECTIONS = ("oauth", "to_oauth", "alert")  # below the section of an account


@dataclass(frozen=True, slots=True)
class _Server:
    """The server of an account, and what is known about its provider."""

    url: str
    user: str
    provider: Mail | None
    local: str = ""
    """The user's name without its domain, if the server may require it (RFC 6186 §4)."""


def add(options: argparse.Namespace) -> int:
    config = common.configuration(options)
    name, server = _identified(options, config)
    path = file_of(config, name)
    if name in config.account or path.exists():
        raise ConfigurationError(f"account {name!r} exists already")
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
        **_more(options.set),
    }
    _look_over(options, name, {**values, "to_oauth": destination.oauth})
    try:
        sections = _completed(options, config, name, server, destination, values)
        write(path, name, values, sections)
        config = common.configuration(options)
        job = Job.of(config, name)
        _open(options, job)
    except BaseException:
        take_back(config, name)
        raise
    there: tuple[int, int] | None = None
    if not options.no_test:
        user, there = _try(job, server)
        if user != server.user:
            path.unlink()
            write(path, name, values | {"user": user}, sections)
            common.say(f"The server requires the user name without the domain: {user}")
    _report(options, name, path, there)
    return os.EX_OK


def _report(
    options: argparse.Namespace, name: str, path: Path, there: tuple[int, int] | None
) -> None:
    if options.json:
        count, octets = there or (None, None)
        common.print_json("account-add", name=name, file=str(path), messages=count, octets=octets)
        return
    if there is not None:
        print(describe_login(name, *there))
    common.say(f"Added account {name} in {path}\nNext: restante collect {name} --dry-run")


def _identified(options: argparse.Namespace, config: Configuration) -> tuple[str, _Server]:
    """Return the account's name and its server."""
    name, address = options.name, options.url
    if address is None and name and re.search("@|://", name):
        name, address = None, name
    address = address or prompts.asked("Address, such as ann@example.org: ", "ADDRESS")
    server = _locate(address, options.host)
    return name or _name(config, server), server


def _completed(
    options: argparse.Namespace,
    config: Configuration,
    name: str,
    server: _Server,
    destination: account_add_destination.Destination,
    values: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return the sections below the account's; answers to prompts are added to ``values``."""
    agreement = _agreement(options, config, name, server)
    if agreement is None:
        values["password"] = _password(options, config, name, server)
    else:
        account_add_destination.offer_polling(destination, server.user)
    account_add_destination.ask_secrets(options, config, name, destination)
    values |= destination.values
    sections = {"oauth": agreement or {}, "to_oauth": destination.oauth}
    for section in [key for key in values if key in _SECTIONS]:  # of --set
        sections[section] = {**sections.get(section, {}), **values.pop(section)}
    return sections


def _open(options: argparse.Namespace, job: Job) -> None:
    """Create what the destination needs, and sign in to providers."""
    job.open_destination().close()
    for grant in (job.grant, job.destination_grant):
        if grant.options.provider:
            consent.agree(grant, options.flow or "")


def _more(pairs: Sequence[str]) -> dict[str, Any]:
    """``--set``; a key with a dot is in a section below the account's.

    Raises:
        UnsafeArgument: it is not ``KEY=VALUE``, or a secret.
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


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not empty, at each level."""
    pairs = (
        (key, _given(each) if isinstance(each, dict) else each) for key, each in values.items()
    )
    return {key: value for key, value in pairs if value}


def _look_over(options: argparse.Namespace, name: str, values: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigurationError: the account could not work; raised before a password is asked for.
    """
    given = _given(values)
    if str(values["to"]).startswith("imap"):
        given["to_password"] = {"env": "HOME"}  # it is asked for later
    trial = load(options.config, overrides={f"account.{name}": given})
    if mistakes := list(Job.of(trial, name).mistakes(strictly=True)):
        raise ConfigurationError("\n".join(mistakes))


def _try(job: Job, server: _Server) -> tuple[str, tuple[int, int]]:
    """Return the user name that works, and how many messages and octets are there.

    An account that does not work is removed, unless the user has signed in for it.
    """
    try:
        working = _log_in(job, server)
        try_destination(job)
        return working
    except BaseException as error:
        if (
            isinstance(error, LoginFailed)
            and server.provider is not None
            and server.provider.switch
        ):
            common.say(f"Is POP switched on? {server.provider.name}: {server.provider.switch}")
        if isinstance(error, RestanteError) and job.options.oauth.provider:
            common.say(
                f"You have signed in, so account {job.name} is kept.\n"
                f"Try again: restante account test {job.name}\n"
                f"Or remove it: restante account rm {job.name}"
            )
        else:
            take_back(job.config, job.name)
        raise


def _log_in(job: Job, server: _Server) -> tuple[str, tuple[int, int]]:
    """Try the whole address first, then once its local part (RFC 6186 §4)."""
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
    """Return a name from the domain or the host, with the user's name before it if it is taken."""
    local, _, domain = server.user.rpartition("@")
    word = (
        domain.split(".")[0] if local else (urlsplit(server.url).hostname or "").split(".")[-2:][0]
    )
    for tried in (word, f"{local}-{word}"):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", tried).strip("-_")[:64]
        if name and name not in config.account:
            return name
    raise UnsafeArgument(f"give the account a name: restante account add mail {quote(server.user)}")


# Where.


def _locate(address: str, host: str | None) -> _Server:
    """
    Raises:
        UnsafeArgument: it is not an address, or its server cannot be found.
    """
    if "://" in address:
        return _from_url(address)
    local, _, domain = address.rpartition("@")
    if not local or not domain or not address.isprintable():
        raise UnsafeArgument("not an address; write ann@example.org or pop3s://user@host")
    if host:
        url = f"pop3s://{host}"
        known = providers.by_host(urlsplit(url).hostname or "")
        return _Server(url, address, known, "" if known else local)
    mail = providers.by_domain(domain) or _by_exchanger(domain)
    if mail is None:
        return _announced(address)
    if not mail.host:
        raise UnsafeArgument(f"{mail.name} does not offer POP3")
    return _Server(f"pop3s://{mail.host}", address, mail)


def _from_url(address: str) -> _Server:
    from ..client.remote import split

    host, port, tls, login = split(address)
    if login.password:
        raise UnsafeArgument("a password in the URL can be read by every user of this machine")
    if not login.user:
        raise UnsafeArgument("the URL has no user; write pop3s://user@host")
    url = f"{tls.value}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
    return _Server(url, login.user, providers.by_host(host))


def _by_exchanger(domain: str) -> Mail | None:
    from ..client import discovery

    try:
        return providers.by_exchanger(discovery.exchangers(domain))
    except (ConfigurationError, ConnectionLost):
        common.say("Name your provider's POP3 server with --host HOST; then DNS is not asked.")
        raise


def _announced(address: str) -> _Server:
    """Find the server by SRV records.  A user must confirm a host elsewhere (RFC 8314 §5.1)."""
    from ..client import discovery

    services = discovery.discover_blocking(address)
    domain = address.rpartition("@")[2]
    if not services:
        raise UnsafeArgument(
            f"{domain} does not announce a POP3 server; name your provider's with --host HOST"
        )
    service = services[0]
    if not service.is_within:
        question = f"{domain} announces the server {service.host}. Is that your provider?"
        if not prompts.is_confirmed(question):
            raise UnsafeArgument(
                f"{domain} announces the server {service.host}; if that is your provider, add "
                f"--host {service.host}"
            )
    known = providers.by_host(service.host)
    return _Server(_url(service), address, known, "" if known else address.rpartition("@")[0])


def _url(service: Service) -> str:
    is_usual = service.port == {"pop3s": 995, "pop3": 110}[service.tls.value]
    return f"{service.tls.value}://{service.host}" + ("" if is_usual else f":{service.port}")


# By which credential.


def _agreement(
    options: argparse.Namespace, config: Configuration, name: str, server: _Server
) -> dict[str, Any] | None:
    """Return the section ``oauth``; None: log in with a password."""
    mail = server.provider
    is_wanted = options.provider or options.issuer or options.client_id or options.flow
    has_password = prompts.given_secret(options, "password") is not None
    if not is_wanted and (has_password or mail is None or not mail.oauth):
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
        shared = prompts.registered(config, provider) if provider != "other" else None
        if shared is None and mail is not None and mail.takes_passwords and not is_wanted:
            return None  # a password needs no app
        values |= shared or {"client_id": prompts.client_id(provider, "--client-id")}
    if provider == "google" and not values["client_secret"]:
        values["client_secret"] = prompts.typed_secret(
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
    given = prompts.given_secret(options, "password")
    if given is None and server.provider is not None and server.provider.password:
        common.say(f"{server.provider.name} requires {server.provider.password}")
    question = f"Password of {server.user}"
    return given or prompts.typed_secret(config, name, question, "--password-file FILE")


# What is written, tried, and taken back.


def write(
    path: Path,
    name: str,
    values: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the values that are not empty into a new file that only its owner can read.

    ``sections`` are those below the account's own, by name.
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
        raise UnsafeArgument("the name of an account may have letters, digits, - and _, at most 64")
    return config.folder / f"account-{name}.toml"


def take_back(config: Configuration, name: str) -> None:
    """Remove everything that was written for an account, except its ledger."""
    file_of(config, name).unlink(missing_ok=True)
    for typed in (name, f"{name}.client", f"{name}.to", f"{name}.to.client"):
        prompts.secret_file(config, typed).unlink(missing_ok=True)
    for is_destination in (False, True):
        if (config.state / "tokens").is_dir():
            tokens.token_file(config, name, is_destination=is_destination).forget()


def try_destination(job: Job) -> None:
    """Log in to the destination if it is an IMAP server; the others need no login."""
    if job.options.to.startswith(("imap:", "imaps:")):
        with closing(job.open_destination()) as destination:
            destination.has(job.name)


def try_login(job: Job) -> tuple[int, int]:
    """Log in to the account's server; returns the number of messages and octets there."""
    with closing(open_ledger(job.config)) as ledger:
        return asyncio.run(_look(job, ledger))


def describe_login(name: str, count: int, octets: int) -> str:
    return f"{name}: {counted(count, 'message')}, {size(octets)}"


async def _look(job: Job, ledger: Ledger) -> tuple[int, int]:
    """Record the login in the ledger as any other; a success ends the wait after refusals."""
    account_ledger = ledger.of(job.name)
    account_ledger.tried(time.time())
    try:
        async with job.connect() as client:
            account_ledger.began(time.time(), client.capabilities.login_delay or 0)
            return await client.stat()
    except LoginFailed as error:
        if not error.retry:
            account_ledger.refused(time.time())
        raise
