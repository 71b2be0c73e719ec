"""Users of this system, checked by PAM.

Security: who is looked for is a user of the system (``getpwnam``) with a uid of people, so neither
root nor a daemon logs in, nor is PAM troubled with them.  The account's management is asked too, so
that whoever is locked or expired stays out.
Limits: PAM blocks, as long as its modules please; a bounded number of calls runs at once.
"""

from __future__ import annotations

from ..errors import AuthenticationFailed, BackendUnavailable
from ..passdb import Account, Credentials
from ..posix import pwd
from . import passwords
from .aside import Aside
from .names import BadName, check_name
from .names import key as _key

FIRST_UID = 1000  # of people, on most systems
_LAST_UID = 65_533  # above it is nobody
_AT_ONCE = 16  # calls
_NOBODY = "restante-nobody"  # checked for somebody who does not exist, at the same cost
# What says no; anything else says nothing (security/_pam_types.h).
_REFUSALS = {
    6: "permission",
    7: "bad-password",
    8: "bad-password",
    10: "unknown-user",
    11: "bad-password",
    12: "password-expired",
    13: "account-expired",
    27: "password-expired",
}


class Pam:
    """``Passdb`` and ``Accounts``."""

    def __init__(self, service: str, *, first_uid: int = FIRST_UID) -> None:
        """``service`` is a file in ``/etc/pam.d``."""
        self._service = service
        self._first_uid = first_uid
        self._aside = Aside("pam", _AT_ONCE)

    async def verify(self, credentials: Credentials) -> Account:
        if not passwords.is_possible(credentials.password):
            raise AuthenticationFailed("impossible-password")
        name = _key(credentials.identity)
        if credentials.authorization and _key(credentials.authorization) != name:
            raise AuthenticationFailed("authorization")  # RFC 4616 §2: for oneself only
        return await self._aside.run(lambda: self._verify(name, credentials.password))

    def _verify(self, name: str, password: str) -> Account:
        account = self._known(name)
        try:
            self._ask(name if account else _NOBODY, password)
        except AuthenticationFailed as error:
            raise AuthenticationFailed(error.reason if account else "unknown-user") from None
        if account is None:
            raise AuthenticationFailed("unknown-user")
        return account

    def _ask(self, name: str, password: str) -> None:
        try:
            import pamela
        except ImportError as error:
            raise BackendUnavailable("pam needs pip install 'restante[pam]'") from error

        try:
            octets = password.encode("utf-8", "surrogateescape")
            # Credentials of the system, such as Kerberos tickets, are not ours to make.
            pamela.authenticate(name, [octets], service=self._service, resetcred=0)
        except pamela.PAMError as error:
            if error.errno in _REFUSALS:
                raise AuthenticationFailed(_REFUSALS[error.errno]) from None
            raise BackendUnavailable(f"pam: {error.message}") from None

    async def account(self, identity: str) -> Account | None:
        name = _key(identity)
        return await self._aside.run(lambda: self._known(name))

    def _known(self, name: str) -> Account | None:
        """A system can take hours to know its users (LDAP, NIS)."""
        try:
            found = pwd.getpwnam(check_name(name))
        except (BadName, KeyError, ValueError):
            return None
        except OSError as error:
            raise BackendUnavailable(f"pam: {error.strerror}") from error
        is_person = self._first_uid <= found.pw_uid <= _LAST_UID and found.pw_name == name
        return Account(name, name) if is_person else None

    def close(self) -> None:
        """Nothing is open."""
