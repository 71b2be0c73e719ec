"""Several identity back ends as one: the first that knows a user decides.

Security: exactly one back end checks a password, so the second back end never accepts a password
that the first one has refused.  A refusal takes as long as for an unknown user: every back end
has looked the name up, and one has computed a hash.  If a back end is down or slow, the login fails
temporarily; that never counts as a wrong password.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, cast

from ..addons import offers
from ..errors import (
    AuthenticationFailed,
    BackendUnavailable,
    NoMaildrop,
    NoSuchUser,
    RestanteError,
    TemporaryFailure,
)
from ..passdb import (
    Accounts,
    Credentials,
    Digest,
    Digests,
    Generations,
    LastUses,
    Passdb,
    PromptGenerations,
    PromptScramKeys,
    Proof,
    ScramKeys,
    ScramSecrets,
    Token,
    UserAccount,
    end_of,
)
from ..threads import deadline, running_loop
from .names import BadName, addressed, check_name, key, normalise

if TYPE_CHECKING:
    from .tokens import Issuer


class Verifier(Passdb, Accounts, Protocol):
    """Checks passwords and looks users up."""


class Backend(Verifier, Protocol):
    """A back end that can be part of a chain."""

    def close(self) -> None:
        """Release its resources; it is not used afterwards."""


async def _generation(backend: Backend, identity: str) -> bytes | None:
    return await backend.generation(identity) if offers(backend, Generations) else None


def _combined(generations: Iterable[bytes | None]) -> bytes | None:
    """Combine the generations of all back ends; returns None if no back end has generations."""
    known = [each for each in generations if each is not None]
    digest = blake2b(digest_size=16)
    for each in known:
        digest.update(blake2b(each).digest())
    return digest.digest() if known else None


class Chain:
    """Implements ``Passdb``, ``Accounts``, ``Directory``, ``Generations``, ``PromptGenerations``
    and ``LastUses``.

    It implements ``ScramKeys`` only if every back end does; otherwise clients would choose SCRAM
    and then fail for users of a back end without keys.  The same applies to ``Digests``.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        *,
        domains: Collection[str] = (),
        deadline: float = 10.0,
        issuer: Issuer | None = None,
        takes_unknown_users: bool = False,
        takes_certificates: bool = False,
        verifiers: Mapping[str, Passdb] | None = None,
        lookups: Mapping[str, Accounts] | None = None,
        check_maildrop: Callable[[str], object] = lambda _: None,
    ) -> None:
        """
        Args:
            backends: by name, in the order of the queries; at least one.
            domains: mail domains of users whose names have none.
            deadline: seconds for all queries of one login together.
            issuer: verifies OAuth 2 tokens; if given, the chain implements ``Tokens``.
            takes_unknown_users: whether a token also admits a user that no back end knows.
            takes_certificates: whether the chain implements ``Certificates``.
            verifiers: used instead of the back ends of these names for passwords, for example a
                queue in front of each, so that a back end that hangs delays only its own users.
            lookups: the same for look-ups of names.
            check_maildrop: raises NoMaildrop for an invalid maildrop, which gets no mail.
        """
        self._backends = dict(backends)
        self._verifiers: dict[str, Passdb] = {**backends, **(verifiers or {})}
        self._lookups: dict[str, Accounts] = {**backends, **(lookups or {})}
        self._domains = {normalise(domain) for domain in domains}
        self._deadline = deadline
        self._check_maildrop = check_maildrop
        self.has_all_generations = all(offers(each, Generations) for each in backends.values())
        """Whether every back end has generations; if not, a cache may keep answers only briefly."""
        if all(offers(each, ScramKeys) for each in self._backends.values()):
            self.scram = self._scram
            self.proved = self._proved
            only = next(iter(self._backends.values())) if len(self._backends) == 1 else None
            if offers(only, PromptScramKeys):
                self.scram_now = only.scram_now
                self.proved_now = only.proved_now
        if all(offers(each, Digests) for each in self._backends.values()):
            self.digested = self._digested
        if issuer is not None:
            self._issuer, self._takes_unknown_users = issuer, takes_unknown_users
            self.verify_token = self._verify_token
        if takes_certificates:
            self.certified = self._certified

    async def verify(self, credentials: Credentials) -> UserAccount:
        return await self._verdict(
            credentials.identity, lambda name: self._verifiers[name].verify(credentials)
        )

    async def _verdict(
        self, identity: str, verify: Callable[[str], Awaitable[UserAccount]]
    ) -> UserAccount:
        """Let the back end that knows a user check the login; its name is passed to ``verify``."""
        end = self._end()
        async with self._within(end) as queried:
            name = await self._deciding(identity, queried)
            try:
                return await verify(name)
            except AuthenticationFailed as error:
                refused = error
        await self._equalise_timing(identity, name, end)
        raise refused

    async def account(self, identity: str) -> UserAccount | None:
        _, account = await self.find(identity)
        return account

    async def find(self, identity: str) -> tuple[str, UserAccount | None]:
        """Return the name of the back end that knows a user, and the account in it.

        Raises:
            TemporaryFailure: a back end cannot be queried now.
        """
        async with self._within(self._end()) as queried:
            for name, backend in self._lookups.items():
                queried.append(name)
                if account := await backend.account(identity):
                    return name, account
        return "", None

    def close(self) -> None:
        for backend in self._backends.values():
            backend.close()

    async def maildrop_of(self, recipient: str) -> str:
        for name in addressed(recipient, self._domains):
            if account := await self.account(name):
                return self._receiving(recipient, account.maildrop)
        raise NoSuchUser(recipient)

    def _receiving(self, recipient: str, maildrop: str) -> str:
        """Return the maildrop if it is valid.

        Raises:
            NoSuchUser: the maildrop is invalid; a note states the reason for the operator.  The
                sender's server must not try again, because that would not help.
        """
        try:
            self._check_maildrop(maildrop)
        except NoMaildrop as error:
            unknown = NoSuchUser(recipient)
            unknown.add_note(f"{maildrop} {error.reason}")
            raise unknown from error
        return maildrop

    async def generation(self, identity: str) -> bytes | None:
        """Return a digest of the generations of all back ends that have one, or None.

        All back ends count, because a change in any of them may change which back end decides.  A
        back end that is down is left out if an earlier back end knows the user, and so decides.
        """
        found = []
        async with self._within(self._end()) as queried:
            for name, backend in self._backends.items():
                queried.append(name)
                try:
                    found.append(await _generation(backend, identity))
                except TemporaryFailure:
                    if not await self._any_knows(identity, queried[:-1]):
                        raise
                    break
        return _combined(found)

    def generation_now(self, identity: str) -> bytes | None:
        found = []
        for backend in self._backends.values():
            if offers(backend, Generations):
                if not offers(backend, PromptGenerations):
                    return None
                generation = backend.generation_now(identity)
                if generation is None:
                    return None
                found.append(generation)
        return _combined(found)

    async def _any_knows(self, identity: str, names: Iterable[str]) -> bool:
        for name in names:
            if await self._lookups[name].account(identity):
                return True
        return False

    def used(self, account: UserAccount, address: str) -> None:
        for backend in self._backends.values():
            if offers(backend, LastUses):
                backend.used(account, address)

    async def _scram(self, identity: str, digest: str) -> ScramSecrets:
        end = self._end()
        async with self._within(end) as queried:
            name = await self._deciding(identity, queried)
            keys = await cast(ScramKeys, self._backends[name]).scram(identity, digest)
        await self._equalise_timing(identity, name, end)
        return keys

    async def _proved(self, proof: Proof) -> UserAccount:
        async with self._within(self._end()) as queried:
            name = await self._deciding(proof.identity, queried)
            return await cast(ScramKeys, self._backends[name]).proved(proof)

    async def _digested(self, shown: Digest) -> UserAccount:
        return await self._verdict(
            shown.identity, lambda name: cast(Digests, self._backends[name]).digested(shown)
        )

    # Tokens and certificates prove an identity; the back end has the account and its permissions.

    async def _verify_token(self, token: Token) -> UserAccount:
        async with self._within(self._end()) as queried:
            queried.append("oauth")
            owner = await self._issuer.owner(token.token)
            account = await self._account_of(owner, queried)
            if account is None and self._takes_unknown_users:
                with suppress(BadName):
                    account = UserAccount(check_name(owner), check_name(owner))
            return await self._authorized(account, token.identity, "token", queried)

    async def _certified(self, proof: Proof) -> UserAccount:
        async with self._within(self._end()) as queried:
            account = await self._account_of(proof.identity, queried)
            return await self._authorized(account, proof.authorization, "certificate", queried)

    async def _account_of(self, name: str, queried: list[str]) -> UserAccount | None:
        """Return the account of this name; for a local domain, also without the domain."""
        local, _, domain = key(name).partition("@")
        for each in [key(name), *([local] if domain in self._domains else [])]:
            for backend in self._backends:
                queried.append(backend)
                if account := await self._lookups[backend].account(each):
                    return account
        return None

    async def _authorized(
        self, account: UserAccount | None, authorization: str, credential: str, queried: list[str]
    ) -> UserAccount:
        """Return the account with its credential; a user must not act for another (RFC 4616 §2)."""
        if account is None:
            raise AuthenticationFailed("unknown-user")
        if authorization and key(authorization) != account.user:
            other = await self._account_of(authorization, queried)
            if other is None or other.user != account.user:
                raise AuthenticationFailed("authorization")
        return replace(account, credential=credential)

    async def _deciding(self, identity: str, queried: list[str]) -> str:
        """Return the name of the back end that decides; the last one refuses unknown users."""
        *others, last = self._backends
        for name in others:
            queried.append(name)
            if await self._lookups[name].account(identity):
                return name
        queried.append(last)
        return last

    async def _equalise_timing(self, identity: str, name: str, end: float) -> None:
        """Look the name up in the remaining back ends, as for a name that none of them knows."""
        names = list(self._backends)
        for other in names[names.index(name) + 1 : -1]:
            with suppress(RestanteError):
                async with self._within(end):
                    await self._lookups[other].account(identity)

    # The deadline.

    def _end(self) -> float:
        loop = running_loop()
        return end_of(self._deadline, time.monotonic() if loop is None else loop.time())

    @asynccontextmanager
    async def _within(self, end: float) -> AsyncIterator[list[str]]:
        """Raise BackendUnavailable at ``end``; it names the last back end in the yielded list."""
        queried: list[str] = []
        try:
            async with deadline(end):
                yield queried
        except TimeoutError:
            name = queried[-1] if queried else "chain"
            raise BackendUnavailable(f"{name}: no answer in {self._deadline:g} s") from None
