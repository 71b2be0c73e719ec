"""Users of this system, checked by PAM.

Security: only users of the system (``getpwnam``) with the uid of a person are looked for, so
neither root nor a daemon logs in, nor is PAM asked about them. Account management is checked too,
so users whose accounts are locked or have expired cannot log in. PAM runs in processes of its own
(``pam_helper``), so a module that crashes, hangs or exits ends one check and nothing else; that is
a temporary failure.
Limits: ``_AT_ONCE`` checks at a time.  A caller that gives up, at its deadline, ends its check.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import suppress

from ..errors import AuthenticationFailed, BackendUnavailable
from ..passdb import Account, Credentials
from ..posix import pwd
from ..threads import Threads
from . import passwords
from .names import BadName, check_name
from .names import key as _key

FIRST_UID = 1000  # of people, on most systems
_LAST_UID = 65_533  # above it is nobody
_AT_ONCE = 16  # checks, and look-ups of names
_END = 1.0  # seconds that the helper gets to end its children and itself
_NOBODY = "restante-nobody"  # checked for somebody who does not exist, at the same cost
_SUCCESS = 0
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
        self._threads = Threads("pam", _AT_ONCE)
        self._helper = _Helper()

    async def verify(self, credentials: Credentials) -> Account:
        if not passwords.is_possible(credentials.password):
            raise AuthenticationFailed("impossible-password")
        name = _key(credentials.identity)
        if credentials.authorization and _key(credentials.authorization) != name:
            raise AuthenticationFailed("authorization")  # RFC 4616 §2: for oneself only
        account = await self.account(name)
        try:
            await self._check(name if account else _NOBODY, credentials.password)
        except AuthenticationFailed as error:
            raise AuthenticationFailed(error.reason if account else "unknown-user") from None
        if account is None:
            raise AuthenticationFailed("unknown-user")
        return account

    async def _check(self, name: str, password: str) -> None:
        request = "".join(f"{part}\0" for part in (self._service, name, password))
        answer = await self._helper.ask(request.encode("utf-8", "surrogateescape"))
        status, _, text = answer.partition(" ")
        if not status.isdecimal():
            raise BackendUnavailable(f"pam: {answer}")
        if int(status) in _REFUSALS:
            raise AuthenticationFailed(_REFUSALS[int(status)])
        if int(status) != _SUCCESS:
            raise BackendUnavailable(f"pam: {text}")

    async def account(self, identity: str) -> Account | None:
        name = _key(identity)
        return await self._threads.run(lambda: self._known(name))

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
        self._helper.close()


class _Helper:
    """The process of ``pam_helper``, started when it is first needed, and again if it has ended."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def ask(self, request: bytes) -> str:
        """What the helper answers, decoded.

        Raises:
            BackendUnavailable: there is no helper.
        """
        loop, answer = asyncio.get_running_loop(), b""
        async with self._places:
            ours, theirs = socket.socketpair()
            with ours:  # closing it ends the check
                with theirs:
                    self._send(theirs)
                ours.setblocking(False)
                with suppress(OSError):  # what is missing of the answer says it
                    await loop.sock_sendall(ours, request)
                    while octets := await loop.sock_recv(ours, 4096):
                        answer += octets
        return answer.decode("utf-8", "replace") or "the check ended without an answer"

    def _send(self, caller: socket.socket) -> None:
        """Give the helper its end of the socket of a check."""
        for _ in range(2):  # a helper that has ended is noticed here
            try:
                socket.send_fds(self._started(), [b"\0"], [caller.fileno()])
                return
            except OSError as error:  # also: it has not taken the earlier ones
                self._end(0.0)
                problem = error.strerror
        raise BackendUnavailable(f"pam: no helper: {problem}")

    def _started(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair()
            self._control.setblocking(False)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", f"{__package__}.pam_helper", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the server, which then ends it
                )
        return self._control

    def close(self) -> None:
        """End the helper, and with it all checks."""
        self._end(_END)

    def _end(self, patience: float) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
            self._process.kill()
            self._process.wait()
        self._control = self._process = None
