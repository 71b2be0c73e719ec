"""``restante check``: check the configuration; changes nothing and needs no network."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from ..app import privileges, server_alerts, stores, upkeep
from ..app.job import all_jobs
from ..app.warnings import configuration_warnings, secret_files, unreadable_files
from ..config import Configuration
from ..errors import ConfigurationError
from ..maildrop import Forecast
from ..store.paths import Template
from . import account_add_destination, common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--example",
        action="store_true",
        help="print a sample configuration with every option instead of checking",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the configuration; ConfigurationError has a line for each mistake."""
    if options.example:
        from ..config import example

        common.refuse_json(options)
        print(example(), end="")
        return os.EX_OK
    config = common.configuration(options)
    stores.validate(config)
    stores.validate_users(config)
    mistakes = [text for job in all_jobs(config) for text in job.mistakes(strict=True)]
    if text := server_alerts.mistake(config):
        mistakes.append(text)
    name = privileges.became or "this user"
    mistakes += [f"{name} cannot read {each}" for each in unreadable_files(config)]
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    source = str(config.source) if config.source else None
    warnings = [*_relative_paths(config), *configuration_warnings(config)]
    forecast = _removal_forecast(config)
    if options.json:
        common.print_json(
            "check",
            source=source,
            listen=list(config.server.listen),
            warnings=warnings,
            goes=upkeep.as_json(forecast),
        )
        return os.EX_OK
    for warning in warnings:
        common.say(f"warning: {warning}")
    print(f"{source or 'no configuration file, private mode'}: OK")
    intake = (*config.intake.lmtp.listen, *config.intake.smtp.listen)
    rows = [
        ("POP3", " ".join(config.server.listen)),
        ("intake", " ".join(intake) or "off"),
        ("mail", f"{config.store.path}, deleted mail {common.describe_hold(config.store.hold)}"),
    ]
    if forecast:
        rows.append(("removal", f"{upkeep.describe(forecast)}, because a rule was changed"))
    common.print_fields(rows)
    return os.EX_OK


def _removal_forecast(config: Configuration) -> Forecast:
    """Return which messages will be removed; create no files if the mail directory is missing."""
    if config.store.kind == "memory" or not Path(Template(config.store.path).base).is_dir():
        return Forecast()
    return asyncio.run(upkeep.forecast(config))


def _relative_paths(config: Configuration) -> Iterator[str]:
    """Yield a warning for each path that depends on the current directory."""
    destinations = {"alert.to": config.alert.to}
    for name, account in config.account.items():
        destinations[f"account.{name}.to"] = account.to
        destinations[f"account.{name}.alert.to"] = account.alert.to
    for key, to in destinations.items():
        if (absolute := account_add_destination.absolute(to)) != to:
            yield f"{key}: {to} depends on the current directory; use {absolute}"
    for key, path in _paths(config):
        if path and not Path(path).is_absolute():
            absolute = str(Path(path).expanduser().absolute())
            yield f"{key}: {path} depends on the current directory; use {absolute}"


def _paths(config: Configuration) -> Iterator[tuple[str, str]]:
    tls, auth = config.tls, config.auth
    yield from (("tls.cert", tls.cert), ("tls.key", tls.key), ("tls.client_ca", tls.client_ca))
    yield from (("auth.users", auth.users), ("auth.passwd_file.path", auth.passwd_file.path))
    yield from (
        ("auth.ldap.ca_file", auth.ldap.ca_file),
        ("auth.oauth.ca_file", auth.oauth.ca_file),
    )
    yield "alert.ca_file", config.alert.ca_file
    yield "collect.metrics", config.collect.metrics
    for name, account in config.account.items():
        yield f"account.{name}.ca_file", account.ca_file
        yield f"account.{name}.to_ca_file", account.to_ca_file
    yield from secret_files(config)
