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
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .. import config
from ..app import tokens
from ..app.job import Job, open_ledger
from ..app.words import counted
from ..collect import providers
from ..collect.providers import Mail
from ..config import Configuration
from ..errors import ConfigurationError, ConnectionLost, LoginFailed, RestanteError, UnsafeArgument
from . import account_add_destination, common, consent, prompts

if TYPE_CHECKING:
    from ..client.remote import Service
    from ..collect.ledger import Ledger


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = actions.add_parser(
        "add",
        help="write an account into the configuration and try it",
        description="Writes conf.d/account-NAME.toml beside the configuration, signs in or asks "
        "for the password, and logs in once. An address is enough for well-known providers and "
        "for domains that announce their server. On a terminal you are prompted for anything "
        "required that you leave out; without one, passwords are lines of standard input.",
    )
    action.add_argument(
        "name", metavar="NAME", nargs="?", help="a word of yours, such as isp; may be left out"
    )
    action.add_argument(
        "url", metavar="ADDRESS", nargs="?", help="ann@example.org, or pop3s://user@host"
    )
    action.add_argument("--host", metavar="HOST", help="the server, where the address tells none")
    account_add_destination.add_options(action)
    action.add_argument("--keep", default="all", help="all, none, 14d, until-verified or -deleted")
    action.add_argument("--every", metavar="TIME", help="the pause between sessions with --watch")
    action.add_argument("--ca-file", type=Path, metavar="FILE", help="trust these certificates")
    prompts.add_secret(action, "password", "the password")
    action.add_argument(
        "--provider", choices=("google", "microsoft", "other"), help="sign in there by OAuth 2"
    )
    action.add_argument(
        "--client-id", metavar="ID", help="of the application that you have registered there"
    )
    prompts.add_secret(action, "client-secret", "the application's secret")
    action.add_argument("--tenant", help="at Microsoft: the organisation")
    action.add_argument(
        "--issuer", metavar="URL", help="another provider, which says itself where it is asked"
    )
    action.add_argument("--scope", action="append", metavar="SCOPE", help="instead of those known")
    consent.add_flows(action)
    action.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of an account, as the configuration has it, such as largest=20MiB "
        "or alert.after=3; may be given again",
    )
    action.add_argument("--no-test", action="store_true", help="do not log in now")
    action.set_defaults(run=add)


_SECTIONS = ("oauth", "to_oauth", "alert")  # below that of an account


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
    name, place = _identified(options, found)
    path = file_of(found, name)
    if name in found.account or path.exists():
        raise ConfigurationError(f"there is an account {name!r} already")
    if place.mail is not None:
        common.say(f"{place.user}: {place.mail.name}, at {place.url}")
    its = account_add_destination.destination(options, found, name, place.user)
    values = {
        "url": place.url,
        "user": place.user,
        "keep": options.keep,
        "every": options.every,
        "ca_file": str(options.ca_file.resolve()) if options.ca_file else None,
        **its.values,
        **_more(options.set),
    }
    _look_over(options, name, {**values, "to_oauth": its.oauth})
    try:
        sections = _completed(options, found, name, place, its, values)
        write(path, name, values, sections)
        found = common.configuration(options)
        job = Job.of(found, name)
        _open(options, job)
    except BaseException:
        take_back(found, name)
        raise
    there: tuple[int, int] | None = None
    if not options.no_test:
        user, there = _try(job, place)
        if user != place.user:
            path.unlink()
            write(path, name, values | {"user": user}, sections)
            common.say(f"the server requires the name without the domain: {user}")
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
        print(told_login(name, *there))
    common.say(f"written: {path}\nnext: restante collect {name} --dry-run")


def _identified(options: argparse.Namespace, found: Configuration) -> tuple[str, _Place]:
    """The account's name, and where its mail is."""
    name, address = options.name, options.url
    if address is None and name and re.search("@|://", name):
        name, address = None, name
    address = address or prompts.asked("Address, such as ann@example.org: ", "ADDRESS")
    place = _locate(address, options.host)
    return name or _name(found, place), place


def _completed(
    options: argparse.Namespace,
    found: Configuration,
    name: str,
    place: _Place,
    its: account_add_destination.Destination,
    values: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """The sections below the account's; ``values`` gets what was asked for."""
    agreement = _agreement(options, found, name, place)
    if agreement is None:
        values["password"] = _password(options, found, name, place)
    else:
        account_add_destination.offer_polling(its, place.user)
    account_add_destination.ask_secrets(options, found, name, its)
    values |= its.values
    sections = {"oauth": agreement or {}, "to_oauth": its.oauth}
    for section in [key for key in values if key in _SECTIONS]:  # of --set
        sections[section] = {**sections.get(section, {}), **values.pop(section)}
    return sections


def _open(options: argparse.Namespace, job: Job) -> None:
    """Make what the destination needs, and sign in where a provider must agree."""
    job.open_destination().close()
    for grant in (job.grant, job.destination_grant):
        if grant.options.provider:
            consent.agree(grant, options.flow or "")


def _more(pairs: Sequence[str]) -> dict[str, Any]:
    """``--set``; a key with a dot is in a section below the account's.

    Raises:
        UnsafeArgument: no ``KEY=VALUE``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", key):
            raise UnsafeArgument(f"--set {pair}: write KEY=VALUE, such as largest=20MiB")
        if key.rpartition(".")[2] in ("password", "to_password", "client_secret"):
            raise UnsafeArgument("a secret in --set can be read by every user of this machine")
        section, dot, name = key.rpartition(".")
        if dot:
            found.setdefault(section, {})[name] = value
        else:
            found[key] = value
    return found


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not empty, also below."""
    pairs = (
        (key, _given(each) if isinstance(each, dict) else each) for key, each in values.items()
    )
    return {key: value for key, value in pairs if value}


def _look_over(options: argparse.Namespace, name: str, values: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigurationError: this account could not work, before a password is asked for.
    """
    given = _given(values)
    if str(values["to"]).startswith("imap"):
        given["to_password"] = {"env": "HOME"}  # it is asked for later
    trial = config.load(options.config, overrides={f"account.{name}": given})
    if mistakes := list(Job.of(trial, name).mistakes(strictly=True)):
        raise ConfigurationError("\n".join(mistakes))


def _try(job: Job, place: _Place) -> tuple[str, tuple[int, int]]:
    """By which name it works, and how many messages and octets are there.

    An account that does not work is not left behind, unless somebody has signed in for it.
    """
    try:
        working = _log_in(job, place)
        try_destination(job)
        return working
    except BaseException as error:
        if isinstance(error, LoginFailed) and place.mail is not None and place.mail.switch:
            common.say(f"has POP been switched on? {place.mail.name}: {place.mail.switch}")
        if isinstance(error, RestanteError) and job.options.oauth.provider:
            common.say(
                f"you have signed in, so the account {job.name} stays; next: restante account test "
                f"{job.name}, or restante account rm {job.name}"
            )
        else:
            take_back(job.config, job.name)
        raise


def _log_in(job: Job, place: _Place) -> tuple[str, tuple[int, int]]:
    """The whole address first; where that is refused, its local part once (RFC 6186 §4)."""
    try:
        return place.user, try_login(job)
    except LoginFailed as error:
        if error.code not in (None, "AUTH") or not place.local or job.options.oauth.provider:
            raise
        try:
            options = replace(job.options, user=place.local)
            return place.local, try_login(replace(job, options=options))
        except LoginFailed:
            raise error from None


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
    from ..client.remote import split

    host, port, tls, login = split(address)
    if login.password:
        raise UnsafeArgument("a password in the URL can be read by every user of this machine")
    if not login.user:
        raise UnsafeArgument("who logs in where? write pop3s://user@host")
    url = f"{tls.value}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
    return _Place(url, login.user, providers.by_host(host))


def _by_exchanger(domain: str) -> Mail | None:
    from ..client import discovery

    try:
        return providers.by_exchanger(discovery.exchangers(domain))
    except (ConfigurationError, ConnectionLost):
        common.say("next: --host HOST, your provider's POP3 server; then DNS is not asked")
        raise


def _announced(address: str) -> _Place:
    """By SRV records.  A host elsewhere counts only when a person says so (RFC 8314 §5.1)."""
    from ..client import discovery

    services = discovery.discover_blocking(address)
    domain = address.rpartition("@")[2]
    if not services:
        raise UnsafeArgument(
            f"{domain} does not say where its mail is; next: --host HOST, your provider's server"
        )
    service = services[0]
    if not service.is_within:
        question = f"{domain} says its mail is at {service.host}. Is that your provider?"
        if not prompts.is_confirmed(question):
            raise UnsafeArgument(
                f"{domain} says its mail is at {service.host}; if that is your provider, next: "
                f"--host {service.host}"
            )
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
    has_password = prompts.given_secret(options, "password") is not None
    if not is_wanted and (has_password or mail is None or not mail.oauth):
        return None
    provider = options.provider or ("other" if options.issuer else mail.oauth if mail else "")
    if not provider:
        raise UnsafeArgument("which provider? --provider google or microsoft, or --issuer URL")
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
        shared = prompts.registered(found, provider) if provider != "other" else None
        if shared is None and mail is not None and mail.takes_passwords and not is_wanted:
            return None  # what needs no application is easier
        values |= shared or {"client_id": prompts.client_id(provider, "--client-id")}
    if provider == "google" and not values["client_secret"]:
        values["client_secret"] = prompts.typed_secret(
            found, f"{name}.client", "Secret of the application", "--client-secret-file FILE"
        )
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


def _password(
    options: argparse.Namespace, found: Configuration, name: str, place: _Place
) -> dict[str, Any]:
    given = prompts.given_secret(options, "password")
    if given is None and place.mail is not None and place.mail.password:
        common.say(f"{place.mail.name} requires {place.mail.password}")
    question = f"Password of {place.user}"
    return given or prompts.typed_secret(found, name, question, "--password-file FILE")


# What is written, tried, and taken back.


def write(
    path: Path,
    name: str,
    values: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """A new file that only its owner can read, of what is not empty.

    ``sections``: below the account's own, by their names.
    """
    lines = []
    for section, options in {"": values, **(sections or {})}.items():
        rows = [f"{key} = {config.toml(value)}" for key, value in options.items() if value]
        lines += [f"[account.{name}{section and '.'}{section}]", *rows] if rows else []
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
    for typed in (name, f"{name}.client", f"{name}.to", f"{name}.to.client"):
        prompts.secret_file(found, typed).unlink(missing_ok=True)
    for is_destination in (False, True):
        if (found.state / "tokens").is_dir():
            tokens.token_file(found, name, is_destination=is_destination).forget()


def try_destination(job: Job) -> None:
    """Log in where mail goes, if that is an IMAP server; the other kinds take no login of ours."""
    if job.options.to.startswith(("imap:", "imaps:")):
        with closing(job.open_destination()) as destination:
            destination.has(job.name)


def try_login(job: Job) -> tuple[int, int]:
    """Log in at the account's server; returns how many messages and octets are there."""
    with closing(open_ledger(job.config)) as ledger:
        return asyncio.run(_look(job, ledger))


def told_login(name: str, count: int, octets: int) -> str:
    return f"{name}: {counted(count, 'message')} ({counted(octets, 'octet')})"


async def _look(job: Job, ledger: Ledger) -> tuple[int, int]:
    """Its login counts as any other; one that works ends the wait after refusals."""
    ledger.tried(job.name, time.time())
    try:
        async with job.connect() as client:
            ledger.began(job.name, time.time(), client.capabilities.login_delay or 0)
            return await client.stat()
    except LoginFailed as error:
        if not error.retry:
            ledger.refused(job.name, time.time())
        raise
