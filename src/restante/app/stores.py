"""Build users, store and clock from the configuration, and check that they can be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..auth.users import Users
from ..clock import Clock
from ..config import Configuration
from ..errors import (
    ConfigurationError,
    NoMaildrop,
)
from ..maildrop import ServableStore
from ..store.maildir import MaildirStore
from ..store.paths import Template
from . import backends

# Modules that only some configurations need are imported within functions: `restante deliver` uses
# this module, and a mail server starts that command for each message.


def validate(config: Configuration) -> None:
    """Check that the files and directories in the configuration exist.

    Raises:
        ConfigurationError: the text has one line for each file or directory that is missing or
            cannot be used.
    """
    if missing := list(_missing(config)):
        raise ConfigurationError("\n".join(missing))


def _missing(config: Configuration) -> Iterator[str]:
    if config.tls.mode == "files":
        from .. import tls

        try:
            tls.server_context(
                Path(config.tls.cert),
                Path(config.tls.key),
                config.tls.min_version,
                can_bind=False,
            )
        except ConfigurationError as error:
            yield str(error)
    if config.store.kind == "maildir" and not config.store.path.startswith(f"{config.state}/"):
        try:
            base = Path(Template(config.store.path).base)
        except ConfigurationError as error:
            yield f"store.path: {error}"
        else:
            if not base.is_dir():
                yield f"store.path: {base} does not exist; run: mkdir -p {base}"
            elif not os.access(base, os.W_OK | os.X_OK):
                yield f"store.path: {base} cannot be written by this user"
    if config.tls.client_ca:
        from ..auth.http import is_readable

        if not is_readable(config.tls.client_ca):
            yield f"tls.client_ca: cannot read certificates from {config.tls.client_ca}"
    yield from backends.missing(config)


def validate_users(config: Configuration) -> None:
    """Check that every user can have a maildrop.

    Raises:
        ConfigurationError: the text has one line for each user who cannot have a maildrop.
    """
    check_place, mistakes = backends.place_check(config), []
    for user in users(config).list():
        try:
            check_place(user.account.maildrop)
        except NoMaildrop as error:
            mistakes.append(f"store.path: {config.store.path}: the user {user.name} {error.reason}")
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def users(config: Configuration) -> Users:
    return Users(Path(config.auth.users), domains=backends.domains(config))


def clock(config: Configuration) -> Clock:
    return Clock(config.state / "clock")


def store(config: Configuration, own: Users | None = None) -> ServableStore:
    """Build the store.  ``own`` is the user database, if it is open already."""
    if config.store.kind == "memory":
        from ..store.memory import MemoryStore

        return MemoryStore(hold=lambda _: config.store.hold)
    # Only the default directory is created: any other directory may be a mount point.
    if config.store.path == f"{config.state}/mail/%u":
        for place in (config.state, config.state / "mail"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
    maildirs = MaildirStore(config.store.path, folders=config.store.maildrop, clock=clock(config))
    set_rules(maildirs, config, own or users(config))
    return maildirs


def set_rules(store: ServableStore, config: Configuration, users: Users) -> None:
    """Apply the hold times and quotas of the configuration and of individual users."""

    def hold(user: str) -> float:
        seconds = users.hold(user)
        return config.store.hold if seconds is None else seconds

    def limit(user: str) -> int:
        octets = users.quota(user)
        return config.store.quota if octets is None else octets

    if isinstance(store, MaildirStore):
        store.hold, store.limit = hold, limit
    else:
        store.hold = lambda _: config.store.hold


def maildrop_path(config: Configuration, user: str) -> Path:
    """Return the path of a user's Maildir, which need not exist.

    Raises:
        NoMaildrop: the user cannot have a Maildir.
    """
    template = Template(config.store.path)
    return Path(template.base, *template.names(user))
