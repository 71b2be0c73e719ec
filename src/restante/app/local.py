"""Find the maildrop of a user of this server, and deliver mail to it."""

from __future__ import annotations

from contextlib import ExitStack, closing
from shlex import quote
from typing import TYPE_CHECKING

from ..addons import offers
from ..auth.users import Users
from ..config import Configuration
from ..errors import ConfigurationError, NoSuchUser
from ..maildrop import NamedDelivery
from ..passdb import Directory
from ..threads import to_thread
from . import backends, stores

if TYPE_CHECKING:
    from ..collect.destinations.maildrop import LocalMaildrop


class Recipients:
    """The ``Directory`` of this server's users and of postmaster (RFC 5321 §4.5.1)."""

    def __init__(self, config: Configuration, users: Users, directory: Directory) -> None:
        self._config = config
        self._users = users
        self._directory = directory

    async def maildrop_of(self, recipient: str) -> str:
        try:
            return await self._directory.maildrop_of(recipient)
        except NoSuchUser:
            if recipient.partition("@")[0].casefold() != "postmaster":
                raise
            return await self.postmaster()

    async def postmaster(self) -> str:
        """Return the maildrop for postmaster's mail, which is used if no user has that name.

        Without ``intake.postmaster``, the first user in the user database gets this mail.
        """
        name = self._config.intake.postmaster
        if not name:
            users = await to_thread(self._users.list)
            name = users[0].name if users else "postmaster"
        return await self._directory.maildrop_of(name)


async def maildrop_of(config: Configuration, recipient: str) -> str:
    """Return the maildrop to which mail for a user's name or address is delivered.

    Case is ignored, and aliases, +detail and local domains are resolved.

    Raises:
        NoSuchUser, TemporaryFailure: for the reasons documented in ``passdb.Directory``.
    """
    with (
        closing(stores.users(config)) as users,
        closing(backends.chain(config, users)) as directory,
    ):
        return await Recipients(config, users, directory).maildrop_of(recipient)


def open_maildrop(config: Configuration, recipient: str) -> LocalMaildrop:
    """Open the destination ``maildrop:RECIPIENT``.  Blocking; must not be called in an event loop.

    Raises:
        ConfigurationError: the user is unknown, or the store keeps mail only in memory.
        PermanentFailure: the user cannot have a maildrop under ``store.path``.
        TemporaryFailure: the user cannot be looked up now, or the disk is not mounted.
    """
    from ..collect.destinations.maildrop import LocalMaildrop

    try:
        user = backends.run(config, maildrop_of(config, recipient))
    except NoSuchUser as error:
        raise ConfigurationError(
            f"maildrop:{recipient}: {error}; run: restante user add {quote(recipient)}"
        ) from error
    with ExitStack() as stack:
        users = stack.enter_context(closing(stores.users(config)))
        store = stores.store(config, users)
        if not offers(store, NamedDelivery):
            raise ConfigurationError(
                f'maildrop:{recipient}: store.kind = "memory" cannot keep collected mail'
            )
        deliveries = store.deliveries(user)
        return LocalMaildrop(deliveries, stack.pop_all().close)
