"""Build the user database, the store and the clock from the configuration, and validate it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..auth.users import Users
from ..config import Configuration
from ..errors import (
    ConfigurationError,
    NoMaildrop,
)
from ..maildrop import Entry, ServableStore
from ..store.paths import Template
from . import backends

if TYPE_CHECKING:
    from ..clock import Clock

# Modules that only some configurations need are imported inside functions, because a mail server
# runs `restante deliver`, which uses this module, for each message.


def validate(config: Configuration) -> None:
    """Check that the files, directories and libraries that the configuration needs can be used.

    Raises:
        ConfigurationError: the text has one line for each of them that is missing or unusable.
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
                yield f"store.path: {base} is not writable by this user"
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
    check_maildrop, mistakes = backends.maildrop_check(config), []
    for user in users(config).list():
        try:
            check_maildrop(user.account.maildrop)
        except NoMaildrop as error:
            mistakes.append(f"store.path: {config.store.path}: the user {user.name} {error.reason}")
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def users(config: Configuration) -> Users:
    """Return the user database; it is opened when it is first used."""
    return Users(Path(config.auth.users), domains=backends.domains(config))


def base(config: Configuration) -> Path | None:
    """Return the directory that contains all maildrops; None if mail is kept in memory."""
    return None if config.store.kind == "memory" else Path(Template(config.store.path).base)


def clock(config: Configuration) -> Clock:
    """Return the clock, whose file is in the state directory."""
    from ..clock import Clock

    return Clock(config.state / "clock")


def store(config: Configuration, database: Users | None = None) -> ServableStore:
    """Build the store.  ``database`` is the user database, if it has already been built."""
    if config.store.kind == "memory":
        from ..store.memory import MemoryStore

        return MemoryStore(hold=lambda _: config.store.hold)
    from ..store.maildir import MaildirStore

    _make_default_directory(config)
    maildirs = MaildirStore(config.store.path, folders=config.store.maildrop, clock=clock(config))
    set_rules(maildirs, config, database or users(config))
    return maildirs


async def deliver(config: Configuration, user: str, message: AsyncIterator[bytes]) -> Entry:
    """Deliver one message like ``ServableStore.deliver``, but without importing the whole store."""
    if config.store.kind == "memory":
        return await store(config).deliver(user, message)
    from ..store import single_delivery

    _make_default_directory(config)
    template, limit = Template(config.store.path), _limit(config, users(config))
    return await single_delivery.deliver(
        template.base, template.names(user), partial(limit, user), message
    )


def _make_default_directory(config: Configuration) -> None:
    """Create the default directory.  Any other directory may be a mount point."""
    if config.store.path == f"{config.state}/mail/%u":
        for directory in (config.state, config.state / "mail"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def set_rules(store: ServableStore, config: Configuration, users: Users) -> None:
    """Apply the hold times and quotas from the configuration and from the user database."""
    from ..store.maildir import MaildirStore

    def hold(user: str) -> float:
        seconds = users.hold(user)
        return config.store.hold if seconds is None else seconds

    if isinstance(store, MaildirStore):
        store.hold, store.limit = hold, _limit(config, users)
    else:
        store.hold = lambda _: config.store.hold


def _limit(config: Configuration, users: Users) -> Callable[[str], int]:
    """Return a function that returns the quota of a user in octets, 0 for no quota."""

    def limit(user: str) -> int:
        octets = users.quota(user)
        return config.store.quota if octets is None else octets

    return limit


def maildrop_path(config: Configuration, user: str) -> Path:
    """Return the path of a user's Maildir.  The Maildir may not exist yet.

    Raises:
        NoMaildrop: the user cannot have a Maildir.
    """
    template = Template(config.store.path)
    return Path(template.base, *template.names(user))
