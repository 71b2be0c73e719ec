"""Check that each identity back end answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from typing import Any, Protocol, cast

from ... import sysexits
from ...auth.tokens import Issuer, Signed
from ...config import Configuration
from ...errors import AuthenticationFailed, BackendMisconfigured, RestanteError
from ...passdb import UserAccount
from .. import backends, stores
from ..failures import describe
from .findings import Finding, Subject, error, not_checked, ok

# A name that no user has: whether a back end knows it does not matter, but it must answer.
_UNKNOWN_USER = "restante-doctor"


class _Lookup(Protocol):
    """A back end, all of which can look up names."""

    async def account(self, identity: str) -> UserAccount | None: ...


def back_ends(subject: Subject) -> Iterator[Finding]:
    """Ask each back end about a user, except for the user database, which ``users`` checks."""
    config = subject.config
    questions = [*_questions(config)]
    if not questions:
        yield not_checked("there is no back end other than the user database (auth.chain)")
    for name, question in questions:
        try:
            asyncio.run(_bounded(question(), config.auth.deadline))
        except TimeoutError:
            text = f"{name} does not answer within {config.auth.deadline:g} s"
            yield error(sysexits.EX_TEMPFAIL, text, "restante auth why USER")
        except BackendMisconfigured as failure:
            yield error(sysexits.EX_CONFIG, f"{name}: {describe(failure)}", "restante check")
        except RestanteError as failure:
            yield error(sysexits.EX_TEMPFAIL, f"{name}: {describe(failure)}")
        else:
            yield ok(f"{name} answers")


async def _bounded(question: Coroutine[Any, Any, object], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await question


def _questions(
    config: Configuration,
) -> Iterator[tuple[str, Callable[[], Coroutine[Any, Any, object]]]]:
    for name in config.auth.chain:
        if name == "oauth":
            yield name, lambda: _ask_issuer(backends.issuer(config.auth.oauth))
        elif name != "users":
            yield name, lambda name=name: _ask(config, name)  # type: ignore[misc]


async def _ask(config: Configuration, name: str) -> None:
    backend = backends.KINDS[name].build(config.auth, stores.users(config))
    with closing(backend):
        await cast(_Lookup, backend).account(_UNKNOWN_USER)


async def _ask_issuer(issuer: Issuer) -> None:
    """Fetch the keys of the provider, or let it check a token that is invalid."""
    try:
        if isinstance(issuer, Signed):
            await issuer.keys.find(_UNKNOWN_USER)
        else:
            await issuer.owner(_UNKNOWN_USER)
    except AuthenticationFailed:
        pass
