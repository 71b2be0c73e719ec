"""OAuth 2 grants for accounts: to read the account, and to store its mail at the destination."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..config import Configuration, OAuth
from ..errors import ConfigurationError, ConsentNeeded
from . import secrets

if TYPE_CHECKING:
    from ..collect.oauth.flow import Application, Provider
    from ..collect.oauth.sealed import Tokenfile

SOON = 14 * 86_400.0  # seconds before the expiry of a grant; the user should then sign in again


@dataclass(frozen=True, slots=True)
class Grant:
    """A user's permission for restante to use the user's account at a provider."""

    config: Configuration
    account: str
    """The account's name."""
    user: str
    options: OAuth
    is_destination: bool = False
    """True for the destination's grant (``to_oauth``), False for the account's (``oauth``)."""

    @property
    def key(self) -> str:
        """The section of the configuration, such as ``account.isp.oauth``."""
        return f"account.{self.account}.{'to_' * self.is_destination}oauth"

    @property
    def command(self) -> str:
        """The command with which the user signs in again."""
        return sign_in(self.account, is_destination=self.is_destination)

    def file(self) -> Tokenfile:
        """Return the file that contains the tokens of this grant."""
        return token_file(self.config, self.account, is_destination=self.is_destination)

    def application(self) -> Application:
        """Return the application that is registered with the provider.

        Raises:
            ConfigurationError: an option is missing.
        """
        from ..collect.oauth.flow import Application
        from ..collect.oauth.web import check_endpoint

        if not self.options.client_id:
            raise ConfigurationError(f"{self.key}.client_id: this option is required")
        provider = self._provider()
        for url in (provider.authorize, provider.token, provider.device):
            if url:
                check_endpoint(url)
        if not provider.token:
            raise ConfigurationError(f"{self.key}.token_url: this option is required")
        secret = ""
        if self.options.client_secret:
            secret = secrets.fetch(self.options.client_secret, f"{self.key}.client_secret")
        return Application(provider, self.options.client_id, secret)

    def _provider(self) -> Provider:
        from ..collect.oauth import flow

        options = self.options
        match options.provider:
            case "google":
                provider = flow.GOOGLE
            case "microsoft":
                provider = flow.microsoft(options.tenant)
            case _:
                # Without this parameter, a second sign-in yields no refresh token (OpenID Connect
                # Core §11).
                extra = (("prompt", "consent"),) if "offline_access" in options.scopes else ()
                urls = (options.authorize_url, options.token_url, options.device_url)
                provider = flow.Provider(*urls, (), extra=extra)
        if options.scopes:
            provider = replace(provider, scopes=options.scopes, app_scopes=options.scopes)
        return provider

    def token(self, *, renew: bool = False) -> str:
        """Return an access token for one login.  Blocking; see ``collect.oauth.web.access_token``.

        Raises:
            ConsentNeeded: the user must sign in again.
        """
        from ..collect.oauth.web import access_token

        is_service = self.options.flow == "client"
        with self.naming_command():
            return access_token(self.application(), self.file(), is_service=is_service, renew=renew)

    async def fresh(self, *, renew: bool = False) -> str:
        """Like ``token``, for use in an event loop."""
        return await asyncio.to_thread(partial(self.token, renew=renew))

    @contextmanager
    def naming_command(self) -> Iterator[None]:
        """Insert the account's name into the command that an OAuth 2 error suggests."""
        try:
            yield
        except ConsentNeeded as error:
            raise ConsentNeeded(self.with_command(str(error))) from error

    def with_command(self, text: str) -> str:
        """Return an error's text with the account's name in the suggested command."""
        return text.replace("restante account auth NAME", self.command)

    def expires_at(self) -> float | None:
        """Return when the sign-in expires, in seconds since the epoch; None if unknown."""
        tokens = self.file().get()
        return tokens.refresh_expires_at if tokens is not None else None

    def imminent_expiry(self) -> float | None:
        """Return when the sign-in expires if that is within ``SOON`` seconds, else None."""
        expiry = self.expires_at()
        return expiry if expiry is not None and 0 < expiry - time.time() < SOON else None


def token_file(config: Configuration, account: str, *, is_destination: bool = False) -> Tokenfile:
    """Return the encrypted file with the tokens for this account or its destination."""
    from ..collect.oauth.sealed import Tokenfile, load_key

    folder = config.state / "tokens"
    key = config.collect.key
    fetch = partial(secrets.fetch, key, "collect.key") if key else None
    name = account + ".to" * is_destination
    command = sign_in(account, is_destination=is_destination)
    return Tokenfile(folder, name, load_key(folder / "key", fetch), command)


def sign_in(account: str, *, is_destination: bool) -> str:
    """Return the command with which the user signs in for an account or its destination."""
    return f"restante account auth {account}{' --to' * is_destination}"
