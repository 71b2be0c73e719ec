"""restante: mail held until called for.  A POP3 server, client library and collector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .net.blocking import BlockingClient, connect_blocking
    from .net.client import Client, connect
    from .net.remote import TLS
    from .pop3.dialogue import Capabilities
    from .pop3.listing import Message

_HOMES = {
    "TLS": "net.remote",
    "BlockingClient": "net.blocking",
    "Capabilities": "pop3.dialogue",
    "Client": "net.client",
    "Message": "pop3.listing",
    "connect": "net.client",
    "connect_blocking": "net.blocking",
}
__all__ = [
    "TLS",
    "BlockingClient",
    "Capabilities",
    "Client",
    "Message",
    "connect",
    "connect_blocking",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only that: the command line starts in a few ms."""
    if name not in _HOMES:
        raise AttributeError(f"module 'restante' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
