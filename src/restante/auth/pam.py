"""Users of the operating system, authenticated with PAM.

Security: only users of the operating system (``getpwnam``) whose uid is in the range for regular
users can log in.  PAM is never called for root or for daemons.  PAM's account management is called
too, so users whose accounts are locked or have expired cannot log in.  PAM runs in separate
processes (``pam_helper``), so if a module crashes, hangs or exits, only one check fails, with a
temporary error.
Limits: at most ``_MAX_CHECKS`` simultaneous checks.  A check ends at the deadline of its caller.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import suppress

from ..errors import AuthenticationFailed, BackendUnavailable
from ..passdb import Credentials, UserAccount
from ..posix import pwd
from ..threads import Threads
from . import passwords
from .names import BadName, check_name
from .names import key as _key

FIRST_UID = 1000  # lowest uid of regular users: UID_MIN of login.defs(5) on most systems
_LAST_UID = 65_533  # 65534 is Linux's overflow uid
# Maximum number of simultaneous checks, and also of simultaneous name look-ups.  The value was
# chosen without measurement; each check runs in its own process.
_MAX_CHECKS = 16
_EXIT_TIMEOUT = 1.0  # seconds for the helper to terminate its child processes and exit
# Checked in place of an unknown user, so that the refusal takes as long as for a known user.
_DECOY = "restante-nobody"
_SUCCESS = 0
# PAM's status codes for refusals; all other codes are errors (security/_pam_types.h).
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
    """Implements ``Passdb`` and ``Accounts`` with PAM and ``getpwnam``."""

    def __init__(self, service: str, *, first_uid: int = FIRST_UID) -> None:
        """
        Args:
            service: the name of a file in ``/etc/pam.d``.
            first_uid: users with a lower uid are treated as unknown.
        """
        self._service = service
        self._first_uid = first_uid
        self._threads = Threads("pam", _MAX_CHECKS)
        self._helper = _Helper()

    async def verify(self, credentials: Credentials) -> UserAccount:
        if not passwords.is_possible(credentials.password):
            raise AuthenticationFailed("impossible-password")
        name = _key(credentials.identity)
        if credentials.authorization and _key(credentials.authorization) != name:
            raise AuthenticationFailed("authorization")  # RFC 4616 §2
        account = await self.account(name)
        try:
            await self._check(name if account else _DECOY, credentials.password)
        except AuthenticationFailed as error:
            raise AuthenticationFailed(error.reason if account else "unknown-user") from None
        if account is None:
            raise AuthenticationFailed("unknown-user")
        return account

    async def _check(self, name: str, password: str) -> None:
        request = "".join(f"{part}\0" for part in (self._service, name, password))
        answer = await self._helper.check(request.encode("utf-8", "surrogateescape"))
        status, _, text = answer.partition(" ")
        if not status.isdecimal():
            raise BackendUnavailable(f"pam: {answer}")
        if int(status) in _REFUSALS:
            raise AuthenticationFailed(_REFUSALS[int(status)])
        if int(status) != _SUCCESS:
            raise BackendUnavailable(f"pam: {text}")

    async def account(self, identity: str) -> UserAccount | None:
        name = _key(identity)
        return await self._threads.run(lambda: self._look_up(name))

    def _look_up(self, name: str) -> UserAccount | None:
        """Look a user up.  Blocks, possibly for a long time, if the directory service is slow."""
        try:
            entry = pwd.getpwnam(check_name(name))
        except (BadName, KeyError, ValueError):
            return None
        except OSError as error:
            raise BackendUnavailable(f"pam: {error.strerror}") from error
        is_regular = self._first_uid <= entry.pw_uid <= _LAST_UID and entry.pw_name == name
        return UserAccount(name, name) if is_regular else None

    def close(self) -> None:
        self._helper.close()


class _Helper:
    """The process that runs ``pam_helper``; it is started for the first check, and restarted if it
    has ended."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_MAX_CHECKS)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def check(self, request: bytes) -> str:
        """Run one check and return its answer.

        The formats of the request and the answer are described in ``pam_helper``.

        Raises:
            BackendUnavailable: the helper cannot be started.
        """
        loop, answer = asyncio.get_running_loop(), b""
        async with self._slots:
            our_end, helper_end = socket.socketpair()
            with our_end:  # closing it ends the check
                with helper_end:
                    self._send(helper_end)
                our_end.setblocking(False)
                with suppress(OSError):  # ``Pam`` refuses an incomplete answer
                    await loop.sock_sendall(our_end, request)
                    while octets := await loop.sock_recv(our_end, 4096):
                        answer += octets
        return answer.decode("utf-8", "replace") or "the check ended without an answer"

    def _send(self, helper_end: socket.socket) -> None:
        """Send the helper its end of the socket for a check."""
        for _ in range(2):  # the first attempt fails if the helper has ended
            try:
                socket.send_fds(self._ensure_started(), [b"\0"], [helper_end.fileno()])
                return
            except OSError as error:  # also raised if too many sockets wait for the helper
                self._stop(0.0)
                problem = error.strerror
        raise BackendUnavailable(f"pam: no helper: {problem}")

    def _ensure_started(self) -> socket.socket:
        """Start the helper if it is not running, and return the socket to it."""
        if self._control is None:
            self._control, helper_end = socket.socketpair()
            self._control.setblocking(False)
            with helper_end:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        f"{__package__}.pam_helper",
                        str(helper_end.fileno()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[helper_end.fileno()],
                    start_new_session=True,  # Ctrl-C must not reach the helper; the server ends it
                )
        return self._control

    def close(self) -> None:
        """End the helper and all its checks."""
        self._stop(_EXIT_TIMEOUT)

    def _stop(self, timeout: float) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            self._process.kill()
            self._process.wait()
        self._control = self._process = None
