"""Several identity back ends as one: the first that knows a user decides.

Security: exactly one back end looks at a password, so a user of the first is never let in by a
wrong password that the second would take.  A refusal costs what it costs for somebody nobody
knows: every back end has been asked for the name, and one has computed a hash.  A back end that is
down or slow makes an answer impossible, never negative.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Protocol, cast

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
    Account,
    Accounts,
    Credentials,
    Digest,
    Digests,
    Generations,
    LastUses,
    Passdb,
    Proof,
    ScramKeys,
    ScramSecrets,
    Token,
    end_of,
)
from .names import BadName, addressed, check_name, key, normalise
from .tokens import Issuer


class Verifier(Passdb, Accounts, Protocol):
    """Checks passwords and looks users up."""


class Backend(Verifier, Protocol):
    """A back end that can be part of a chain."""

    def close(self) -> None:
        """Release what it holds; it is not used afterwards."""


async def _generation(backend: Backend, identity: str) -> bytes | None:
    return await backend.generation(identity) if offers(backend, Generations) else None


class Chain:
    """``Passdb``, ``Accounts``, ``Directory``, ``Generations`` and ``LastUses``.

    ``ScramKeys`` only if every back end is: a client would choose SCRAM, and then fail with the
    password of one that has no keys.  So it is with ``Digests``.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        *,
        domains: Collection[str] = (),
        deadline: float = 10.0,
        issuer: Issuer | None = None,
        takes_strangers: bool = False,
        takes_certificates: bool = False,
        by: Mapping[str, Passdb] | None = None,
        lookups: Mapping[str, Accounts] | None = None,
        check_place: Callable[[str], object] = lambda _: None,
    ) -> None:
        """``backends`` by name, at least one; all that they are asked for one login may take
        ``deadline`` seconds together.

        ``domains``: where a user without one in the name gets mail.
        ``issuer`` makes it ``Tokens``; ``takes_strangers``: a token is enough, also for somebody
        whom no back end knows.  ``takes_certificates`` makes it ``Certificates``.
        ``by``: asked for passwords in place of back ends, such as a queue before each: one that
        hangs must not keep the users of another waiting.  ``lookups``: the same for names.
        ``check_place`` raises NoMaildrop for a maildrop that cannot be: it gets no mail.
        """
        self._backends = dict(backends)
        self._by: dict[str, Passdb] = {**backends, **(by or {})}
        self._lookups: dict[str, Accounts] = {**backends, **(lookups or {})}
        self._domains = {normalise(domain) for domain in domains}
        self._deadline = deadline
        self._check_place = check_place
        self.tells_all_changes = all(offers(each, Generations) for each in backends.values())
        """Whether ``generation`` changes with every back end; else no cache may trust it long."""
        if all(offers(each, ScramKeys) for each in self._backends.values()):
            self.scram = self._scram
            self.proved = self._proved
        if all(offers(each, Digests) for each in self._backends.values()):
            self.digested = self._digested
        if issuer is not None:
            self._issuer, self._takes_strangers = issuer, takes_strangers
            self.verify_token = self._verify_token
        if takes_certificates:
            self.certified = self._certified

    async def verify(self, credentials: Credentials) -> Account:
        return await self._decided(
            credentials.identity, lambda name: self._by[name].verify(credentials)
        )

    async def _decided(self, identity: str, judge: Callable[[str], Awaitable[Account]]) -> Account:
        """What the back end says that knows a user; ``judge`` is given its name."""
        end = self._end()
        async with self._until(end) as asked:
            name = await self._who_knows(identity, asked)
            try:
                return await judge(name)
            except AuthenticationFailed as error:
                refused = error
        await self._equalise_timing(identity, name, end)
        raise refused

    async def account(self, identity: str) -> Account | None:
        _, account = await self.find(identity)
        return account

    async def find(self, identity: str) -> tuple[str, Account | None]:
        """The back end that knows a user, by its name, and the account there.

        Raises:
            TemporaryFailure: cannot be told now.
        """
        async with self._until(self._end()) as asked:
            for name, backend in self._lookups.items():
                asked.append(name)
                if found := await backend.account(identity):
                    return name, found
        return "", None

    def close(self) -> None:
        for backend in self._backends.values():
            backend.close()

    async def maildrop_of(self, recipient: str) -> str:
        for name in addressed(recipient, self._domains):
            if found := await self.account(name):
                return self._placed(recipient, found.maildrop)
        raise NoSuchUser(recipient)

    def _placed(self, recipient: str, maildrop: str) -> str:
        """
        Raises:
            NoSuchUser: with a note for people, because trying again would not help.
        """
        try:
            self._check_place(maildrop)
        except NoMaildrop as error:
            unknown = NoSuchUser(recipient)
            unknown.add_note(f"{maildrop} {error.reason}")
            raise unknown from error
        return maildrop

    async def generation(self, identity: str) -> bytes | None:
        """Of all back ends that can tell, whatever their order: a change in any of them may be one
        in the back end that decides.  None: none of them can.

        A back end that is down is left out if one before it knows the user, and so decides.
        """
        found, told = blake2b(digest_size=16), False
        async with self._until(self._end()) as asked:
            for name, backend in self._backends.items():
                asked.append(name)
                try:
                    one = await _generation(backend, identity)
                except TemporaryFailure:
                    if not await self._any_knows(identity, asked[:-1]):
                        raise
                    break
                if one is not None:
                    found.update(blake2b(one).digest())
                    told = True
        return found.digest() if told else None

    async def _any_knows(self, identity: str, names: Iterable[str]) -> bool:
        for name in names:
            if await self._lookups[name].account(identity):
                return True
        return False

    def used(self, account: Account, address: str) -> None:
        for backend in self._backends.values():
            if offers(backend, LastUses):
                backend.used(account, address)

    async def _scram(self, identity: str, digest: str) -> ScramSecrets:
        end = self._end()
        async with self._until(end) as asked:
            name = await self._who_knows(identity, asked)
            found = await cast(ScramKeys, self._backends[name]).scram(identity, digest)
        await self._equalise_timing(identity, name, end)
        return found

    async def _proved(self, proof: Proof) -> Account:
        async with self._until(self._end()) as asked:
            name = await self._who_knows(proof.identity, asked)
            return await cast(ScramKeys, self._backends[name]).proved(proof)

    async def _digested(self, shown: Digest) -> Account:
        return await self._decided(
            shown.identity, lambda name: cast(Digests, self._backends[name]).digested(shown)
        )

    # Who has proved an identity elsewhere is whom a back end knows by it, with its permission.

    async def _verify_token(self, token: Token) -> Account:
        async with self._until(self._end()) as asked:
            asked.append("oauth")
            owner = await self._issuer.owner(token.token)
            account = await self._named(owner, asked)
            if account is None and self._takes_strangers:
                with suppress(BadName):
                    account = Account(check_name(owner), check_name(owner))
            return await self._acting(account, token.identity, "token", asked)

    async def _certified(self, proof: Proof) -> Account:
        async with self._until(self._end()) as asked:
            account = await self._named(proof.identity, asked)
            return await self._acting(account, proof.authorization, "certificate", asked)

    async def _named(self, name: str, asked: list[str]) -> Account | None:
        """Whoever has that name; in a domain of ours also without the domain."""
        local, _, domain = key(name).partition("@")
        for each in [key(name), *([local] if domain in self._domains else [])]:
            for backend in self._backends:
                asked.append(backend)
                if found := await self._lookups[backend].account(each):
                    return found
        return None

    async def _acting(
        self, account: Account | None, wanted: str, credential: str, asked: list[str]
    ) -> Account:
        """For oneself only (RFC 4616 §2)."""
        if account is None:
            raise AuthenticationFailed("unknown-user")
        if wanted and key(wanted) != account.user:
            other = await self._named(wanted, asked)
            if other is None or other.user != account.user:
                raise AuthenticationFailed("authorization")
        return replace(account, credential=credential)

    async def _who_knows(self, identity: str, asked: list[str]) -> str:
        """The name of the back end that decides; who nobody knows is for the last to refuse."""
        *others, last = self._backends
        for name in others:
            asked.append(name)
            if await self._lookups[name].account(identity):
                return name
        asked.append(last)
        return last

    async def _equalise_timing(self, identity: str, name: str, end: float) -> None:
        """What is left of the way of somebody whom only the last back end could know."""
        names = list(self._backends)
        for other in names[names.index(name) + 1 : -1]:
            with suppress(RestanteError):
                async with self._until(end):
                    await self._lookups[other].account(identity)

    # The deadline.

    def _end(self) -> float:
        return end_of(self._deadline, asyncio.get_running_loop().time())

    @asynccontextmanager
    async def _until(self, end: float) -> AsyncIterator[list[str]]:
        """Yields a list for the names of who was asked; the last of them is blamed."""
        asked: list[str] = []
        try:
            async with asyncio.timeout_at(end):
                yield asked
        except TimeoutError:
            who = asked[-1] if asked else "chain"
            raise BackendUnavailable(f"{who}: no answer in {self._deadline:g} s") from None
