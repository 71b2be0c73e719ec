"""Modules and flags that POSIX systems have and others, such as Windows, do not.

The client, the server for tests and ``restante fetch`` work without these modules, so importing
restante must not fail if one of them is missing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from .errors import ConfigurationError

__all__ = ["fcntl", "flags", "host_name", "pwd", "resource", "termios"]


class NotOnThisSystem(ConfigurationError):
    """The operating system lacks a function that is needed."""


class _Missing:
    """A placeholder for a missing module; accessing any of its attributes raises an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        raise NotOnThisSystem(f"this needs {self._name}.{attribute}, which Windows does not have")


def _module(name: str) -> object:
    try:
        return import_module(name)
    except ImportError:
        return _Missing(name)


if TYPE_CHECKING:
    import fcntl
    import pwd
    import resource
    import termios
else:
    fcntl, pwd, resource, termios = map(_module, ("fcntl", "pwd", "resource", "termios"))


def host_name() -> str:
    """Return the name of this machine."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket  # takes 3 ms, which ``restante deliver`` saves

    return socket.gethostname()


def flags(*names: str) -> int:
    """Combine the named ``os.open`` flags; flags that the system does not have are left out."""
    combined = 0
    for name in names:
        combined |= getattr(os, name, 0)
    return combined
