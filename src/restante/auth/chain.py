"""Combine several identity back ends: the first back end that has a user checks the user's logins.

Security: exactly one back end checks a password, so a password that the first back end has refused
is never accepted by the second one.  A refusal takes as long for an existing user as for an unknown
one: every back end looks the name up, and one of them computes a hash.  If a back end is down or
slow, the login fails temporarily and does not count as a wrong password.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
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
    ImmediateAccounts,
    ImmediateGenerations,
    ImmediateScramKeys,
    LastUses,
    MustWait,
    Passdb,
    Proof,
    ScramKeys,
    ScramSecrets,
    Token,
    UserAccount,
    end_of,
)
from ..threads import deadline, running_loop
from .names import BadName, check_name, key, normalise, possible_users

if TYPE_CHECKING:
    from .tokens import Issuer


class Verifier(Passdb, Accounts, Protocol):
    """Checks passwords and looks users up."""


class Backend(Verifier, Protocol):
    """A back end that can be part of a chain."""

    def close(self) -> None:
        """Release all resources.  The back end must not be used afterwards."""


async def _generation(backend: Backend, identity: str) -> bytes | None:
    return await backend.generation(identity) if offers(backend, Generations) else None


def _combine(generations: Iterable[bytes | None]) -> bytes | None:
    """Combine the generations of all back ends; returns None if no back end has generations."""
    existing = [each for each in generations if each is not None]
    digest = blake2b(digest_size=16)
    for each in existing:
        digest.update(blake2b(each).digest())
    return digest.digest() if existing else None


class Chain:
    """Several back ends that are used like one.

    Implements ``Passdb``, ``Accounts``, ``Directory``, ``ImmediateDirectory``, ``Generations``,
    ``ImmediateGenerations`` and ``LastUses``.  A chain implements ``ScramKeys`` only if all of its
    back ends do; otherwise clients would choose SCRAM, and the login of a user in a back end
    without keys would fail.  The same applies to ``Digests``.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        *,
        domains: Collection[str] = (),
        deadline: float = 10.0,
        issuer: Issuer | None = None,
        accepts_unknown_users: bool = False,
        accepts_certificates: bool = False,
        verifiers: Mapping[str, Passdb] | None = None,
        lookups: Mapping[str, Accounts] | None = None,
        check_maildrop: Callable[[str], object] = lambda _: None,
    ) -> None:
        """
        Args:
            backends: at least one back end, by name; they are queried in this order.
            domains: mail domains of users whose names contain no domain.
            deadline: maximum number of seconds for all queries of one login together.
            issuer: verifies OAuth 2 tokens; if given, the chain implements ``Tokens``.
            accepts_unknown_users: whether a valid token admits a user who is not in any back end.
            accepts_certificates: whether the chain implements ``Certificates``.
            verifiers: for some back ends, by name, the object that checks passwords instead, for
                example a queue in front of the back end.  With a queue for each back end, a back
                end that hangs delays only its own users.
            lookups: for some back ends, by name, the object that looks names up instead.
            check_maildrop: must raise NoMaildrop if a maildrop is invalid; recipients with such a
                maildrop are refused.
        """
        self._backends = dict(backends)
        self._verifiers: dict[str, Passdb] = {**backends, **(verifiers or {})}
        self._lookups: dict[str, Accounts] = {**backends, **(lookups or {})}
        self._domains = {normalise(domain) for domain in domains}
        self._deadline = deadline
        self._check_maildrop = check_maildrop
        self.has_all_generations = all(offers(each, Generations) for each in backends.values())
        """Whether every back end has generations; if not, results may be cached only briefly."""
        if all(offers(each, ScramKeys) for each in self._backends.values()):
            self.scram = self._scram
            self.proved = self._proved
            single = next(iter(self._backends.values())) if len(self._backends) == 1 else None
            if offers(single, ImmediateScramKeys):
                self.scram_now = single.scram_now
                self.proved_now = single.proved_now
        if all(offers(each, Digests) for each in self._backends.values()):
            self.digested = self._digested
        if issuer is not None:
            self._issuer, self._accepts_unknown_users = issuer, accepts_unknown_users
            self.verify_token = self._verify_token
        if accepts_certificates:
            self.certified = self._certified

    async def verify(self, credentials: Credentials) -> UserAccount:
        return await self._authenticate(
            credentials.identity, lambda name: self._verifiers[name].verify(credentials)
        )

    async def _authenticate(
        self, identity: str, verify: Callable[[str], Awaitable[UserAccount]]
    ) -> UserAccount:
        """Call ``verify`` with the name of the back end that has the user."""
        end = self._end()
        async with self._within(end) as queried:
            name = await self._responsible_backend(identity, queried)
            try:
                return await verify(name)
            except AuthenticationFailed as error:
                refusal = error
        await self._equalise_timing(identity, name, end)
        raise refusal

    async def account(self, identity: str) -> UserAccount | None:
        _, account = await self.find(identity)
        return account

    async def find(self, identity: str) -> tuple[str, UserAccount | None]:
        """Return the name of the back end that has a user, and the user's account.

        Returns an empty name and None if no back end has the user.

        Raises:
            TemporaryFailure: a back end cannot be queried now.
        """
        async with self._within(self._end()) as queried:
            for name, backend in self._lookups.items():
                queried.append(name)
                if account := await backend.account(identity):
                    return name, account
        return "", None

    @property
    def backends(self) -> Mapping[str, Backend]:
        """The back ends by name, without queues."""
        return self._backends

    def close(self) -> None:
        for backend in self._backends.values():
            backend.close()

    async def maildrop_of(self, recipient: str) -> str:
        for name in possible_users(recipient, self._domains):
            if account := await self.account(name):
                return self._valid_maildrop(recipient, account.maildrop)
        raise NoSuchUser(recipient)

    def maildrop_now(self, recipient: str) -> str | None:
        try:
            for name in possible_users(recipient, self._domains):
                if account := self._account_now(name):
                    return self._valid_maildrop(recipient, account.maildrop)
        except (MustWait, NoSuchUser):
            pass  # ``maildrop_of`` waits, or reports the reason
        return None

    def _account_now(self, identity: str) -> UserAccount | None:
        """Return the result of ``account``.

        Raises:
            MustWait: a back end must be waited for.
        """
        for backend in self._lookups.values():
            if not offers(backend, ImmediateAccounts):
                raise MustWait
            if account := backend.account_now(identity):
                return account
        return None

    def _valid_maildrop(self, recipient: str, maildrop: str) -> str:
        """Return the maildrop if it is valid.

        Raises:
            NoSuchUser: the maildrop is invalid.  A note states the reason for the operator.  The
                error is permanent, because trying again would not help.
        """
        try:
            self._check_maildrop(maildrop)
        except NoMaildrop as error:
            unknown = NoSuchUser(recipient)
            unknown.add_note(f"{maildrop} {error.reason}")
            raise unknown from error
        return maildrop

    async def generation(self, identity: str) -> bytes | None:
        """Return a digest of the generations of all back ends, or None if they have no generations.

        All back ends are included, because a change in any of them may change which back end is
        responsible for the user.  A back end that is down is left out if an earlier back end has
        the user.
        """
        generations = []
        async with self._within(self._end()) as queried:
            for name, backend in self._backends.items():
                queried.append(name)
                try:
                    generations.append(await _generation(backend, identity))
                except TemporaryFailure:
                    if not await self._any_has(identity, queried[:-1]):
                        raise
                    break
        return _combine(generations)

    def generation_now(self, identity: str) -> bytes | None:
        generations = []
        for backend in self._backends.values():
            if offers(backend, Generations):
                if not offers(backend, ImmediateGenerations):
                    return None
                generation = backend.generation_now(identity)
                if generation is None:
                    return None
                generations.append(generation)
        return _combine(generations)

    async def _any_has(self, identity: str, names: Iterable[str]) -> bool:
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
            name = await self._responsible_backend(identity, queried)
            keys = await cast(ScramKeys, self._backends[name]).scram(identity, digest)
        await self._equalise_timing(identity, name, end)
        return keys

    async def _proved(self, proof: Proof) -> UserAccount:
        async with self._within(self._end()) as queried:
            name = await self._responsible_backend(proof.identity, queried)
            return await cast(ScramKeys, self._backends[name]).proved(proof)

    async def _digested(self, digest: Digest) -> UserAccount:
        return await self._authenticate(
            digest.identity, lambda name: cast(Digests, self._backends[name]).digested(digest)
        )

    # Tokens and certificates prove an identity; the back ends supply the account and its
    # permissions.

    async def _verify_token(self, token: Token) -> UserAccount:
        async with self._within(self._end()) as queried:
            queried.append("oauth")
            owner = await self._issuer.owner(token.token)
            account = await self._account_of(owner, queried)
            if account is None and self._accepts_unknown_users:
                with suppress(BadName):
                    account = UserAccount(check_name(owner), check_name(owner))
            return await self._authorize(account, token.identity, "token", queried)

    async def _certified(self, proof: Proof) -> UserAccount:
        async with self._within(self._end()) as queried:
            account = await self._account_of(proof.identity, queried)
            return await self._authorize(account, proof.authorization, "certificate", queried)

    async def _account_of(self, name: str, queried: list[str]) -> UserAccount | None:
        """Return the account with this name.

        If the name has a local domain, the name without the domain is tried too.
        """
        local, _, domain = key(name).partition("@")
        for each in [key(name), *([local] if domain in self._domains else [])]:
            for backend in self._backends:
                queried.append(backend)
                if account := await self._lookups[backend].account(each):
                    return account
        return None

    async def _authorize(
        self, account: UserAccount | None, authorization: str, credential: str, queried: list[str]
    ) -> UserAccount:
        """Return the account with ``credential``.

        Raises:
            AuthenticationFailed: the user is unknown, or requests to act for another user
                (RFC 4616 §2).
        """
        if account is None:
            raise AuthenticationFailed("unknown-user")
        if authorization and key(authorization) != account.user:
            other = await self._account_of(authorization, queried)
            if other is None or other.user != account.user:
                raise AuthenticationFailed("authorization")
        return account._replace(credential=credential)

    async def _responsible_backend(self, identity: str, queried: list[str]) -> str:
        """Return the name of the back end that has the user.

        For an unknown user, this is the last back end, which refuses the login.
        """
        *others, last = self._backends
        for name in others:
            queried.append(name)
            if await self._lookups[name].account(identity):
                return name
        queried.append(last)
        return last

    async def _equalise_timing(self, identity: str, name: str, end: float) -> None:
        """Look the name up in the remaining back ends, as is done for an unknown user."""
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
        """Raise BackendUnavailable if the block has not finished at ``end``.

        The block must append the name of each back end that it queries to the yielded list; the
        error names the last one.
        """
        queried: list[str] = []
        try:
            async with deadline(end):
                yield queried
        except TimeoutError:
            name = queried[-1] if queried else "chain"
            raise BackendUnavailable(f"{name}: no answer in {self._deadline:g} s") from None
