"""Replaces pamela, libpam and its modules in the process that checks passwords.

Its functions act as the password says, record calls in ``asked`` next to this file, and answer with
the code in ``answer``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Handle = tuple[str, str, str]


class PAMError(Exception):
    """As pamela's."""


def new_simple_password_conv(passwords: list[bytes], encoding: str) -> list[bytes]:
    return passwords


def pam_start(service: bytes, user: bytes, converse: list[bytes]) -> Handle:
    return service.decode(), user.decode(), converse[0].decode("utf-8", "surrogateescape")


def PAM_AUTHENTICATE(handle: Handle, flags: int) -> int:
    note("authenticate", handle, flags)
    if kind := KINDS.get(handle[2]):
        kind()
    path = HERE / "answer"
    return int(path.read_text()) if path.exists() else 0


def PAM_ACCT_MGMT(handle: Handle, flags: int) -> int:
    note("acct_mgmt", handle, flags)
    return 13 if handle[2] == "expired" else 0


def PAM_END(handle: Handle, status: int) -> int:
    return status


def pam_strerror(handle: Handle, status: int) -> str:
    return "its words"


def note(function: str, handle: Handle, flags: int) -> None:
    with open(HERE / "asked", "a") as file:
        print(json.dumps([function, os.getpid(), os.getppid(), *handle, flags]), file=file)


def hang() -> None:
    for each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(each, signal.SIG_IGN)
    time.sleep(600)


def fork_and_crash() -> None:
    """What the module has forked holds everything open."""
    if os.fork() == 0:
        deadline = time.monotonic() + 30
        while not (HERE / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0)
    ctypes.string_at(0)


KINDS: dict[str, Any] = {
    "crash": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(0),
    "exit 7": lambda: os._exit(7),
    "raise": lambda: 1 / 0,
    "close": lambda: os.closerange(3, 100),
    "fork": fork_and_crash,
    "hang": hang,
}
