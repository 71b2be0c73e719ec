"""restante: mail held until called for.  A POP3 server, client library and collector."""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # importing ``typing`` would take longer than this module
if TYPE_CHECKING:
    from typing import Any

    from .client.asynchronous import Body, Client, PendingClient, connect
    from .client.blocking import BlockingBody, BlockingClient, connect_blocking
    from .client.bodies import BaseBody, Progress
    from .client.discovery import Resolver, discover, discover_blocking
    from .client.remote import TLS, Options, Service, StrPath, TokenSource
    from .client.secret import Secret
    from .errors import (
        BodySkipped,
        CannotConnect,
        ClientError,
        CommandFailed,
        ConfigurationError,
        ConnectionLost,
        DeadlineExceeded,
        LoginFailed,
        MessageTooLarge,
        ProtocolBroken,
        RestanteError,
        StaleMessage,
        TLSUnavailable,
        UnsafeArgument,
    )
    from .pop3.dialogue import Capabilities
    from .pop3.listing import Listing, Message
    from .pop3.quirks import Quirks
    from .sasl.exchange import Strength

_MODULES = {
    "BaseBody": "client.bodies",
    "BlockingBody": "client.blocking",
    "BlockingClient": "client.blocking",
    "Body": "client.asynchronous",
    "BodySkipped": "errors",
    "CannotConnect": "errors",
    "Capabilities": "pop3.dialogue",
    "Client": "client.asynchronous",
    "ClientError": "errors",
    "CommandFailed": "errors",
    "ConfigurationError": "errors",
    "ConnectionLost": "errors",
    "DeadlineExceeded": "errors",
    "Listing": "pop3.listing",
    "LoginFailed": "errors",
    "Message": "pop3.listing",
    "MessageTooLarge": "errors",
    "Options": "client.remote",
    "PendingClient": "client.asynchronous",
    "Progress": "client.bodies",
    "ProtocolBroken": "errors",
    "Quirks": "pop3.quirks",
    "Resolver": "client.discovery",
    "RestanteError": "errors",
    "Secret": "client.secret",
    "Service": "client.remote",
    "StaleMessage": "errors",
    "StrPath": "client.remote",
    "Strength": "sasl.exchange",
    "TLS": "client.remote",
    "TLSUnavailable": "errors",
    "TokenSource": "client.remote",
    "UnsafeArgument": "errors",
    "connect": "client.asynchronous",
    "connect_blocking": "client.blocking",
    "discover": "client.discovery",
    "discover_blocking": "client.discovery",
}
__all__ = [
    "TLS",
    "BaseBody",
    "BlockingBody",
    "BlockingClient",
    "Body",
    "BodySkipped",
    "CannotConnect",
    "Capabilities",
    "Client",
    "ClientError",
    "CommandFailed",
    "ConfigurationError",
    "ConnectionLost",
    "DeadlineExceeded",
    "Listing",
    "LoginFailed",
    "Message",
    "MessageTooLarge",
    "Options",
    "PendingClient",
    "Progress",
    "ProtocolBroken",
    "Quirks",
    "Resolver",
    "RestanteError",
    "Secret",
    "Service",
    "StaleMessage",
    "StrPath",
    "Strength",
    "TLSUnavailable",
    "TokenSource",
    "UnsafeArgument",
    "connect",
    "connect_blocking",
    "discover",
    "discover_blocking",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that commands start within milliseconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'restante' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
