"""The helper process that runs PAM, so that no PAM module runs inside the server.

The server starts ``python -m restante.auth.pam_helper N``, where N is the descriptor of a Unix
socket.  For each check, the server sends one octet over this socket, together with the descriptor
of a second socket for the check.  The helper forks a child, which reads the service, the user and
the password from the second socket, each terminated by NUL.  The child answers ``STATUS TEXT``:
PAM's status code (``_pam_types.h``) and message.  If a module kills the child, the helper sends an
answer that has only a text.  If the server closes the second socket, the helper kills the child.

Security: the password goes directly from the server to the child.  The helper itself never receives
it.  Accounts without a password are refused (``PAM_DISALLOW_NULL_AUTHTOK``).
Limits: the server limits the number and the duration of simultaneous checks.  When the server has
closed the first socket, the helper kills the children and exits.  Programs that a module starts and
detaches, as ``pam_exec`` does, keep running.
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
_PARTS = 3  # service, user and password
# The server ends this process by closing the socket.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run checks until the server closes its end of the socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    for each in _IGNORED:
        signal.signal(each, signal.SIG_IGN)
    pam, problem = None, ""
    try:
        pam = import_module("pamela")
    except ImportError:
        problem = "a library is missing; run: pip install 'restante[pam]'"
    except Exception as error:  # the system has no PAM library, or an unsupported one
        problem = f"{type(error).__name__}: {error}"
    _Parent(control, pam, problem).run()


class _Parent:
    """The main loop, which forks a child for each check and never calls PAM itself."""

    def __init__(self, control: socket.socket, pam: Any, problem: str) -> None:
        """``pam`` is the module ``pamela``, or None because of ``problem``."""
        self._control, self._pam, self._problem = control, pam, problem
        # Child process and socket of each check, by the descriptor of the socket.
        self._checks: dict[int, tuple[int, socket.socket]] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._child_signals, wakeup = os.pipe()
        for end in self._child_signals, wakeup:
            os.set_blocking(end, False)
        self._poll.register(self._child_signals, select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def run(self) -> None:
        has_ended = False
        while not has_ended:
            events = dict(self._poll.poll())
            for descriptor in events.keys() & self._checks.keys():  # the server has given up
                os.kill(self._checks[descriptor][0], signal.SIGKILL)
                self._poll.unregister(descriptor)
            if self._child_signals in events:
                os.read(self._child_signals, 4096)
                self._reap()
            if self._control.fileno() in events:
                has_ended = not self._accept()
        for child, _ in self._checks.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def _accept(self) -> bool:
        """Start a check; return False if the server has closed its end of the socket."""
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        if not descriptors:
            return False
        server_socket = socket.socket(fileno=descriptors[0])
        if _is_closed(server_socket):  # the server has given up already
            server_socket.close()
            return True
        try:
            child = os.fork()
        except OSError as error:
            with server_socket, suppress(OSError):
                server_socket.sendall(f"fork: {error.strerror}".encode())
            return True
        if child == 0:
            self._check(server_socket)
        self._checks[server_socket.fileno()] = child, server_socket
        self._poll.register(server_socket, 0)  # only errors and hang-ups: the child reads the data
        return True

    def _reap(self) -> None:
        for descriptor, (child, server_socket) in list(self._checks.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            del self._checks[descriptor]
            with suppress(KeyError):
                self._poll.unregister(descriptor)
            with server_socket, suppress(OSError):  # the server may have closed its end
                if code := os.waitstatus_to_exitcode(status):
                    server_socket.sendall(_describe(code).encode())
                server_socket.shutdown(socket.SHUT_RDWR)  # even if a module's process has it open

    def _check(self, server_socket: socket.socket) -> NoReturn:
        """Run a check in the child process, and exit."""
        status = os.EX_SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            for each in (*_IGNORED, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            self._control.close()
            for _, other in self._checks.values():
                other.close()
            answer = self._problem or _authenticate(self._pam, *_read_request(server_socket))
            server_socket.sendall(answer.encode())
            status = os.EX_OK
        finally:
            os._exit(status)  # does not wait for a module's threads and exit handlers


def _is_closed(server_socket: socket.socket) -> bool:
    poll = select.poll()
    poll.register(server_socket, 0)
    return bool(poll.poll(0))


def _describe(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _read_request(server_socket: socket.socket) -> list[bytes]:
    request = b""
    while request.count(b"\0") < _PARTS and (octets := server_socket.recv(4096)):
        request += octets
    return request.split(b"\0")[:-1]


def _authenticate(pam: Any, service: bytes, user: bytes, password: bytes) -> str:
    """Check a password and return ``STATUS TEXT``.

    This does not open a PAM session or set system credentials such as Kerberos tickets.
    """
    converse = pam.new_simple_password_conv([password], "utf-8")  # PAM uses it until pam_end
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
