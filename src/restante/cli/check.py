"""``restante check``: is this configuration good?  Looks only; needs no network."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from ..app import stores, upkeep
from ..app.job import all_jobs
from ..app.warnings import doubts, secret_files
from ..config import Configuration
from ..errors import ConfigurationError
from ..maildrop import Forecast
from ..store.paths import Template
from . import account_add_destination, common


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("check", help="look the configuration over, without a network")
    parser.add_argument(
        "--example",
        action="store_true",
        help="print a file with every option, none in force, instead",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """78 when something is wrong, with a line for each mistake."""
    if options.example:
        from ..config import example

        common.refuse_json(options)

        print(example(), end="")
        return os.EX_OK
    found = common.configuration(options)
    stores.look_over(found)
    stores.look_over_users(found)
    if mistakes := [text for job in all_jobs(found) for text in job.mistakes(strictly=True)]:
        raise ConfigurationError("\n".join(mistakes))
    source = str(found.source) if found.source else None
    warnings = [*_relative_paths(found), *doubts(found)]
    changed = _forecast(found)
    if options.json:
        listen, goes = list(found.server.listen), upkeep.as_json(changed)
        common.print_json("check", source=source, listen=listen, warnings=warnings, goes=goes)
        return os.EX_OK
    for warning in warnings:
        common.say(f"warning: {warning}")
    print(f"{source or 'no configuration file, private mode'}: good")
    print(f"  POP3  {' '.join(found.server.listen)}")
    print(f"  in    {' '.join((*found.intake.lmtp.listen, *found.intake.smtp.listen)) or 'off'}")
    print(f"  mail  {found.store.path}, deleted mail {common.told_hold(found.store.hold)}")
    if changed:
        print(f"  goes  {upkeep.described(changed)}, because a rule was changed")
    return os.EX_OK


def _forecast(found: Configuration) -> Forecast:
    """Where nothing was made yet, nothing goes, and nothing is made by looking."""
    if found.store.kind == "memory" or not Path(Template(found.store.path).base).is_dir():
        return Forecast()
    return asyncio.run(upkeep.forecast(found))


def _relative_paths(config: Configuration) -> Iterator[str]:
    """Paths that are another place in each directory from which a command is run."""
    for name, account in config.account.items():
        for key, to in (
            (f"account.{name}.to", account.to),
            (f"account.{name}.alert.to", account.alert.to),
        ):
            if (absolute := account_add_destination.absolute(to)) != to:
                yield f"{key}: {to} depends on the current directory; write {absolute}"
    for key, path in _paths(config):
        if path and not Path(path).is_absolute():
            here = Path(path).expanduser().absolute()
            yield f"{key}: {path} depends on the current directory; write {here}"


def _paths(config: Configuration) -> Iterator[tuple[str, str]]:
    tls, auth = config.tls, config.auth
    yield from (("tls.cert", tls.cert), ("tls.key", tls.key), ("tls.client_ca", tls.client_ca))
    yield from (("auth.users", auth.users), ("auth.passwd_file.path", auth.passwd_file.path))
    yield from (
        ("auth.ldap.ca_file", auth.ldap.ca_file),
        ("auth.oauth.ca_file", auth.oauth.ca_file),
    )
    yield "collect.metrics", config.collect.metrics
    for name, account in config.account.items():
        yield f"account.{name}.ca_file", account.ca_file
        yield f"account.{name}.to_ca_file", account.to_ca_file
    yield from secret_files(config)
