"""A process that runs PAM for a server, so that no module of PAM runs inside the server.

``python -m restante.auth.pam_helper N``, where N is the descriptor of a Unix socket.  Each octet
that arrives there carries the descriptor of a socket, and a child is forked for this one check: it
reads service, user and password, each ended by NUL, and answers ``STATUS TEXT``, the code and the
text of PAM (``_pam_types.h``).  A check ends in one of three ways: the child sends this answer; if
a module killed the child, a text about the child is sent, without a code; or the caller closes the
socket, which kills the child.

Security: passwords go from the server to the child, and never through this process, its arguments
or its environment.  An account without a password is refused
(``PAM_DISALLOW_NULL_AUTHTOK``).
Limits: the callers limit the number of simultaneous checks, and their duration.  When the last
caller has gone, the children and this process end.  Programs that a module starts and detaches, as
``pam_exec`` does, keep running.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

DISALLOW_NULL_AUTHTOK = 0x0001  # the same in Linux-PAM and OpenPAM
_PARTS = 3  # of a request
# The server ends this process by closing the socket.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Serve until the other end of the socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    for each in _IGNORED:
        signal.signal(each, signal.SIG_IGN)
    pam, problem = None, ""
    try:
        pam = import_module("pamela")
    except ImportError:
        problem = "it needs pip install 'restante[pam]'"
    except Exception as error:  # no PAM library on this system, or an unknown one
        problem = f"{type(error).__name__}: {error}"
    _Parent(control, pam, problem).run()


class _Parent:
    """Forks a child for each check and runs no code of PAM itself."""

    def __init__(self, control: socket.socket, pam: Any, problem: str) -> None:
        """``pam`` is the module ``pamela``, or None because of ``problem``."""
        self._control, self._pam, self._problem = control, pam, problem
        self._checks: dict[int, tuple[int, socket.socket]] = {}  # by descriptor: child, caller
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children, wakeup = os.pipe()
        for end in self._children, wakeup:
            os.set_blocking(end, False)
        self._poll.register(self._children, select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def run(self) -> None:
        has_ended = False
        while not has_ended:
            events = dict(self._poll.poll())
            for descriptor in events.keys() & self._checks.keys():  # the caller has given up
                os.kill(self._checks[descriptor][0], signal.SIGKILL)
                self._poll.unregister(descriptor)
            if self._children in events:
                os.read(self._children, 4096)
                self._reap()
            if self._control.fileno() in events:
                has_ended = not self._accept()
        for child, _ in self._checks.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def _accept(self) -> bool:
        """Start a check; return whether there are still callers."""
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        if not descriptors:
            return False
        caller = socket.socket(fileno=descriptors[0])
        if _has_gone(caller):  # the caller gave up before its check began
            caller.close()
            return True
        try:
            child = os.fork()
        except OSError as error:
            with caller, suppress(OSError):
                caller.sendall(f"fork: {error.strerror}".encode())
            return True
        if child == 0:
            self._check(caller)
        self._checks[caller.fileno()] = child, caller
        self._poll.register(caller, 0)  # only errors and hang-ups: the child reads the data
        return True

    def _reap(self) -> None:
        for descriptor, (child, caller) in list(self._checks.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            del self._checks[descriptor]
            with suppress(KeyError):
                self._poll.unregister(descriptor)
            with caller, suppress(OSError):  # the caller may have gone
                if code := os.waitstatus_to_exitcode(status):
                    caller.sendall(_describe(code).encode())
                caller.shutdown(socket.SHUT_RDWR)  # even if a process of the module has it open

    def _check(self, caller: socket.socket) -> NoReturn:
        """Run a check in the child, and exit."""
        status = os.EX_SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            for each in (*_IGNORED, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            self._control.close()
            for _, other in self._checks.values():
                other.close()
            answer = self._problem or _ask(self._pam, *_read(caller))
            caller.sendall(answer.encode())
            status = os.EX_OK
        finally:
            os._exit(status)  # without the threads and exit handlers of a module


def _has_gone(caller: socket.socket) -> bool:
    poll = select.poll()
    poll.register(caller, 0)
    return bool(poll.poll(0))


def _describe(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _read(caller: socket.socket) -> list[bytes]:
    request = b""
    while request.count(b"\0") < _PARTS and (octets := caller.recv(4096)):
        request += octets
    return request.split(b"\0")[:-1]


def _ask(pam: Any, service: bytes, user: bytes, password: bytes) -> str:
    """Check a password and return ``STATUS TEXT``.

    It opens no session and sets no credentials of the system, such as Kerberos tickets.
    """
    converse = pam.new_simple_password_conv([password], "utf-8")  # used until pam_end
    try:
        handle = pam.pam_start(service, user, converse)
    except pam.PAMError as error:
        return f"{error.errno} {error.message}"
    status = pam.PAM_AUTHENTICATE(handle, DISALLOW_NULL_AUTHTOK)
    if status == 0:
        status = pam.PAM_ACCT_MGMT(handle, DISALLOW_NULL_AUTHTOK)
    text = pam.pam_strerror(handle, status)
    pam.PAM_END(handle, status)
    return f"{status} {text}"


if __name__ == "__main__":
    main()
