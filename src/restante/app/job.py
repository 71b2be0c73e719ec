"""An account from which mail is collected, according to its section of the configuration.

A ``Job`` connects to the account's server, opens the destination of its mail, and provides the
policy of the collector.  ``runs`` uses it to collect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Account, Configuration, duration
from ..errors import LoginFailed, RestanteError, TemporaryFailure, UnsafeArgument
from ..pop3 import quirks
from . import failures, secrets
from .tokens import Grant

if TYPE_CHECKING:
    from ..client.asynchronous import Client
    from ..client.remote import Options
    from ..collect.accounts import Mailbox
    from ..collect.destinations import Destination
    from ..collect.ledger import Ledger
    from ..collect.plan import Budget, Policy

_STANDARD_PORTS = (110, 995)  # POP3 without and with TLS; both lead to the same mailbox
_GMAIL_SCOPES = (
    "openid",
    "email",
    "https://www.googleapis.com/auth/gmail.insert",
    "https://www.googleapis.com/auth/gmail.labels",
)


@dataclass(frozen=True, slots=True)
class Job:
    """One account: its name, its options, and the configuration that contains it."""

    name: str
    options: Account
    config: Configuration

    @classmethod
    def of(cls, config: Configuration, name: str) -> Job:
        """Return the account with this name in the configuration."""
        return cls(name, config.account[name], config)

    @property
    def recipient(self) -> str:
        """The recipient of the account's mail at the destination."""
        return self.options.recipient or self.options.user

    @property
    def local_user(self) -> str | None:
        """The user of this server who gets the account's mail; None if it goes elsewhere."""
        kind, _, user = self.options.to.partition(":")
        return user if kind == "maildrop" else None

    @property
    def grant(self) -> Grant:
        """The OAuth 2 grant for reading the account; used if ``options.oauth.provider`` is set."""
        return Grant(self.config, self.name, self.options.user, self.options.oauth)

    @property
    def destination_grant(self) -> Grant:
        """The OAuth 2 grant for the destination; used if ``options.to_oauth.provider`` is set."""
        oauth = self.options.to_oauth
        oauth = replace(oauth, scopes=oauth.scopes or _GMAIL_SCOPES)
        return Grant(self.config, self.name, self.recipient, oauth, is_destination=True)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        """Open a session with the account's server; see ``client.asynchronous.connect``."""
        from ..client.asynchronous import connect

        account = self.options
        options: Options = {"user": account.user, "quirks": self.quirks()}
        if account.ca_file:
            options["ca_file"] = Path(account.ca_file)
        if account.oauth.provider:
            options["token"] = self.grant.fresh
        else:
            fetch = partial(secrets.fetch, account.password, f"account.{self.name}.password")
            options["password"] = await asyncio.to_thread(fetch)
        open_session = partial(connect, account.url, deadline=account.deadline)
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(open_session(**options))
            except LoginFailed as error:
                if not account.oauth.provider or error.retry:
                    raise
                # A token that seemed valid may have been revoked, so try again with a new token.
                options["token"] = partial(self.grant.fresh, renew=True)
                client = await stack.enter_async_context(open_session(**options))
            yield client

    def mailbox(self) -> Mailbox:
        """Return the mailbox.  Its address identifies the account in the ledger after a rename."""
        from ..client.remote import split
        from ..collect.accounts import Mailbox

        host, port, *_ = split(self.options.url)
        # A different port may be a tunnel to a different server.
        server = host if port in (None, *_STANDARD_PORTS) else f"{host}:{port}"
        address = f"pop3 {server} {self.options.user}"
        return Mailbox(self.name, address, self.options.label, self.config.account.keys())

    def quirks(self) -> quirks.Quirks:
        """Return the peculiarities of the account's server."""
        from ..client.remote import split

        return quirks.parse(self.options.quirks, split(self.options.url)[0])

    def budget(self) -> Budget:
        """Return the maximum numbers of messages, octets and logins that the provider allows."""
        from ..collect.plan import Budget

        account, octets = self.options, self.options.octets_per_day
        if octets is None:
            octets = self.quirks().octets_per_day
        logins = account.logins_per_hour or None
        return Budget(account.messages_per_day or None, octets or None, logins)

    def policy(
        self, limit: int | None = None, whole: Sequence[str] = (), *, unlimited: bool = False
    ) -> Policy:
        """Return the collector's policy from the account's ``keep`` and related options.

        Args:
            limit: the maximum number of messages to collect.
            whole: the keys of messages to collect whatever their size, or ``all``.
            unlimited: whether to ignore the deletion limit.
        """
        from ..collect.plan import Policy

        account = self.options
        if account.keep == "all":
            keep = None
        else:
            is_word = account.keep in ("none", "until-verified", "until-deleted")
            keep = 0.0 if is_word else duration(account.keep)
        return Policy(
            keep=keep,
            newest=account.newest,
            verified=account.keep == "until-verified",
            until_deleted=account.keep == "until-deleted",
            largest=None if "all" in whole else account.largest or None,
            limit=limit or account.limit or None,
            stubs=account.larger == "stub",
            whole=frozenset(whole) - {"all"},
            budget=self.budget(),
            deletions=None if unlimited else account.deletion_limit or None,
        )

    def contradiction(self) -> str:
        """Return an error text if the destination does not support ``keep``, otherwise ""."""
        from ..collect.destinations.opening import TRACING, VERIFYING

        account = self.options
        kind, colon, _ = account.to.partition(":")
        kind = kind if colon else ""
        requirements: dict[str, tuple[tuple[str, ...], str]] = {
            "until-verified": (VERIFYING, "whose copies can be read again"),
            "until-deleted": (TRACING, "that records which messages were deleted"),
        }
        kinds, description = requirements.get(account.keep, ((kind,), ""))
        if kind in kinds:
            return ""
        possible = ", ".join(f"{each}:" if each else "a directory" for each in kinds)
        return (
            f'account.{self.name}.keep: "{account.keep}" requires a destination {description} '
            f"({possible}), but account.{self.name}.to is {kind}:"
        )

    def open_destination(self) -> Destination:
        """Open the destination in the account's ``to``.  Blocking; not for use in an event loop.

        Raises:
            UnsafeArgument, ConfigurationError, PermanentFailure: the option is invalid.
            TemporaryFailure, OSError: the destination cannot be opened now.
        """
        from ..collect.destinations.opening import open_destination

        account, grant = self.options, self.destination_grant
        password = partial(secrets.fetch, account.to_password, "to_password")
        return open_destination(
            account.to,
            recipient=self.recipient,
            password=password if account.to_password else None,
            ca_file=Path(account.to_ca_file) if account.to_ca_file else None,
            token=(lambda renew: grant.token(renew=renew)) if account.to_oauth.provider else None,
            sign_in=grant.command,
            maildrop=self._open_maildrop,
        )

    def _open_maildrop(self, recipient: str) -> Destination:
        from .local import open_maildrop  # other destinations do not need the modules of the store

        return open_maildrop(self.config, recipient)

    def mistakes(self, *, strict: bool) -> Iterator[str]:
        """Yield a sentence for each mistake in the destinations, such as a conflict with ``keep``.

        Nothing is changed, and no mail server is contacted.  A missing user database is a mistake
        only if ``strict``, because its disk may not be mounted yet.
        """
        account = self.options
        if text := self.contradiction():
            yield text
        destinations = {"to": account.to}
        if account.alert.after and account.alert.to:
            destinations["alert.to"] = account.alert.to
        for key, to in destinations.items():
            job = replace(self, options=replace(account, to=to))
            if mistake := job._mistake(strict=strict):
                yield f"account.{self.name}.{key}: {mistake}"

    def _mistake(self, *, strict: bool) -> str | None:
        from ..collect.destinations.opening import check_destination

        account = self.options
        try:
            check_destination(
                account.to,
                recipient=self.recipient,
                password=(lambda: "?") if account.to_password else None,
                token=(lambda _: "") if account.to_oauth.provider else None,
                maildrop=self._open_maildrop,
            )
        except TemporaryFailure as error:
            # For a maildrop, a back end being down or a disk not being mounted is not a mistake.
            users = Path(self.config.auth.users)
            is_mistake = self.local_user is None or (strict and not users.exists())
            return failures.describe(error) if is_mistake else None
        except (RestanteError, OSError) as error:
            return failures.describe(error)
        return None


def all_jobs(config: Configuration) -> list[Job]:
    """Return all accounts of the configuration."""
    return [Job.of(config, name) for name in config.account]


def select_jobs(config: Configuration, names: Sequence[str], *, select_all: bool) -> list[Job]:
    """Return the accounts that are selected on the command line, by their names or with --all.

    Raises:
        UnsafeArgument: no account is selected, or an account does not exist.
    """
    if select_all == bool(names):
        raise UnsafeArgument("name at least one account, or use --all")
    for name in names:
        if name not in config.account:
            existing = ", ".join(config.account) or "none yet; run: restante account add"
            raise UnsafeArgument(f"no such account: {name!r}; existing accounts: {existing}")
    return [Job.of(config, name) for name in dict.fromkeys(names or config.account)]


def open_ledger(config: Configuration) -> Ledger:
    """Open the ledger in the configuration's state directory."""
    from ..collect.ledger import Ledger

    return Ledger(config.state / "ledger.sqlite3")
