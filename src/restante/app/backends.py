"""Build the authentication back ends that are listed in ``auth.chain``."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..auth.chain import Backend, Chain, Verifier
from ..auth.users import Users
from ..config import Auth, Configuration, Provider, Secret
from ..errors import ConfigurationError
from ..regular import open_regular
from ..store.paths import Template
from ..threads import complete
from . import secrets

if TYPE_CHECKING:
    from ..auth.passwd_file import PasswdFile
    from ..auth.tokens import Issuer

# Each function that builds a back end imports its module, so that back ends that are not configured
# cost commands and workers neither time nor memory.

T = TypeVar("T")
Queue = Callable[[Backend, int], Verifier]
"""Returns a queue in front of a back end, for at most this number of simultaneous requests."""

_MAX_REQUESTS = 16  # simultaneous requests to another program; each one occupies a thread


def chain(
    config: Configuration,
    users: Users,
    queue: Queue = lambda backend, _: backend,
    built: Mapping[str, Backend] = MappingProxyType({}),
) -> Chain:
    """Build the chain of back ends, each with its own queue.

    ``built`` contains back ends that have already been built, by name.
    """
    auth = config.auth
    kinds = {name: KINDS[name] for name in auth.chain if name in KINDS}
    backends = {
        name: built[name] if name in built else kind.build(auth, users)
        for name, kind in kinds.items()
    }
    max_hashes = max(1, (os.cpu_count() or 1) - 1)  # leaves one core for all other work
    queued = {
        name: queue(each, max_hashes if kinds[name].is_local else _MAX_REQUESTS)
        for name, each in backends.items()
    }
    return Chain(
        backends,
        verifiers=queued,
        lookups={name: queued[name] for name, kind in kinds.items() if not kind.is_local},
        domains=domains(config),
        deadline=auth.deadline,
        issuer=issuer(auth.oauth) if "oauth" in auth.chain else None,
        accepts_unknown_users=auth.oauth.users == "any",
        accepts_certificates=bool(config.tls.client_ca),
        check_maildrop=maildrop_check(config),
    )


def read_ahead(config: Configuration) -> dict[str, Backend]:
    """Build the back ends that keep a large file in memory, and make them read the file.

    Processes that are forked afterwards share this memory until the file changes.
    """
    if "passwd-file" not in config.auth.chain:
        return {}
    backend = passwd_file(config.auth)
    backend.read_ahead()
    return {"passwd-file": backend}


def run(config: Configuration, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits only for back ends and for blocking calls.

    The user database responds or fails within seconds, so the coroutine needs no event loop.  Other
    back ends may hang; their deadlines require an event loop.
    """
    if config.auth.chain == ("users",):
        return complete(work)
    import asyncio

    return asyncio.run(work)


def find_outside_users(config: Configuration, users: Users, name: str) -> tuple[str, str]:
    """Find a user in the back ends other than the user database.

    Returns the names of the back end and of the maildrop; both are empty if no other back end
    allows the user to log in.

    Raises:
        TemporaryFailure, ConfigurationError: a back end cannot be queried.
    """
    others = tuple(each for each in config.auth.chain if each != "users")
    without_users = replace(config, auth=replace(config.auth, chain=others))
    with closing(chain(without_users, users)) as other_backends:
        backend, account = run(without_users, other_backends.find(name))
    if account is None and "oauth" in others and config.auth.oauth.users == "any":
        return "oauth", name
    return (backend, account.maildrop) if account and account.is_enabled else ("", "")


def maildrop_check(config: Configuration) -> Callable[[str], object]:
    """Return a function that raises NoMaildrop for names that no maildrop can have.

    Raises:
        ConfigurationError: ``store.path`` is not a valid template.
    """
    return Template(config.store.path).names if config.store.kind == "maildir" else lambda _: None


def domains(config: Configuration) -> set[str]:
    """Return the local mail domains: in each of them, ann@DOMAIN is an address of the user ann."""
    return {"localhost", config.server.hostname, *config.intake.smtp.domains}


def missing(config: Configuration) -> Iterator[str]:
    """Yield one sentence for each missing requirement of the back ends."""
    auth = config.auth
    users = Path(auth.users)
    if users.exists() and not os.access(users, os.R_OK):
        yield f"auth.users: {users} is not readable by this user"
    for name, kind in KINDS.items():
        if name in auth.chain:
            yield from kind.missing(auth)
    if "oauth" in auth.chain:
        yield from _missing_for_tokens(auth.oauth)


def _missing_for_passwd_file(auth: Auth) -> Iterator[str]:
    yield from _missing_file(auth.passwd_file.path, "auth.passwd_file.path")


def _missing_for_pam(auth: Auth) -> Iterator[str]:
    if find_spec("pamela") is None:
        yield "auth.chain: pam requires a library; run: pip install 'restante[pam]'"
    if not Path("/etc/pam.d", auth.pam.service).exists():
        yield f"auth.pam.service: /etc/pam.d/{auth.pam.service} does not exist"


def _missing_for_ldap(auth: Auth) -> Iterator[str]:
    from ..auth.http import is_readable

    ldap = auth.ldap
    if find_spec("ldap") is None:
        yield "auth.chain: ldap requires a library; run: pip install 'restante[ldap]'"
    if ldap.ca_file and not is_readable(ldap.ca_file):
        yield f"auth.ldap.ca_file: cannot read certificates from {ldap.ca_file}"
    if ldap.bind_dn:
        yield from _missing_secret(ldap.bind_password, "auth.ldap.bind_password")


def _missing_file(path: str, key: str) -> Iterator[str]:
    try:
        open_regular(Path(path)).close()
    except OSError as error:
        yield f"{key}: {path}: {error.strerror}"


def _missing_secret(secret: Secret, key: str) -> Iterator[str]:
    try:
        secrets.fetch(secret, key)
    except ConfigurationError as error:
        yield str(error)


def _missing_for_tokens(oauth: Provider) -> Iterator[str]:
    from ..auth.http import is_readable

    if oauth.ca_file and not is_readable(oauth.ca_file):
        yield f"auth.oauth.ca_file: cannot read certificates from {oauth.ca_file}"
    if oauth.jwks and find_spec("jwt") is None:
        yield "auth.oauth.jwks: signed tokens require a library; run: pip install 'restante[jwt]'"
    if oauth.jwks and "://" not in oauth.jwks:
        yield from _missing_file(oauth.jwks, "auth.oauth.jwks")
    if oauth.introspection:
        yield from _missing_secret(oauth.client_secret, "auth.oauth.client_secret")


def _ldap(auth: Auth) -> Backend:
    from ..auth.ldap import Ldap, Search

    ldap = auth.ldap
    password = secrets.fetch(ldap.bind_password, "auth.ldap.bind_password") if ldap.bind_dn else ""
    return Ldap(
        Search(ldap.url, ldap.base, ldap.filter, ldap.name, ldap.bind_dn, password, ldap.ca_file),
        auth.deadline,
    )


def issuer(oauth: Provider) -> Issuer:
    from ..auth.http import ProviderClient
    from ..auth.tokens import Introspected, KeySet, Signed, TokenRules

    rules = TokenRules(oauth.issuer, oauth.audience, oauth.claim, oauth.scope)
    client = ProviderClient(oauth.ca_file)
    if oauth.jwks:
        return Signed(KeySet(oauth.jwks, client), rules, algorithms=oauth.algorithms)
    secret = secrets.fetch(oauth.client_secret, "auth.oauth.client_secret")
    return Introspected(oauth.introspection, oauth.client_id, secret, rules, client)


def passwd_file(auth: Auth) -> PasswdFile:
    """Build the back end for the configured passwd-file."""
    from ..auth.passwd_file import PasswdFile

    return PasswdFile(Path(auth.passwd_file.path), scheme=auth.passwd_file.scheme)


def _pam(auth: Auth) -> Backend:
    from ..auth.pam import Pam

    return Pam(auth.pam.service, first_uid=auth.pam.first_uid)


class Kind(NamedTuple):
    """A kind of back end, which is one row of ``KINDS``."""

    build: Callable[[Auth, Users], Backend]
    missing: Callable[[Auth], Iterable[str]] = lambda _: ()
    """Yields one sentence for each missing requirement of the back end."""
    is_local: bool = False
    """Whether a login computes a hash on this machine.  Otherwise another program checks the login,
    and look-ups of names wait in the queue too."""


# The kinds by their names in ``auth.chain``.  A new back end needs a module in ``auth``, a row in
# this table and a section in ``config.schema``.
KINDS = {
    "users": Kind(lambda _, users: users, is_local=True),
    "passwd-file": Kind(lambda auth, _: passwd_file(auth), _missing_for_passwd_file, is_local=True),
    "ldap": Kind(lambda auth, _: _ldap(auth), _missing_for_ldap),
    "pam": Kind(lambda auth, _: _pam(auth), _missing_for_pam),
}
