"""LOGIN: identity and password in two messages, for old clients; it never became a standard.

The server offers LOGIN only if the configuration lists it, and only inside TLS.
"""

from __future__ import annotations

from collections.abc import Generator

from ..errors import UnsafeArgument
from ..passdb import Credentials
from .exchange import Channel, ClientExchange, ClientStep
from .prepare import prepared


def server(_: Channel) -> Generator[bytes, bytes, Credentials]:
    """Run the server's side.  The server speaks first, so there is no initial response."""
    identity = (yield b"Username:").decode("utf-8", "surrogateescape")
    password = (yield b"Password:").decode("utf-8", "surrogateescape")
    return Credentials("LOGIN", prepared(identity), prepared(password))


def client(identity: str, password: str) -> ClientExchange:
    """Run the client's side.

    The prompts are answered in a fixed order, because their text differs between servers.
    """
    if not identity or not password or "\0" in identity + password:
        raise UnsafeArgument("LOGIN requires an identity and a password, without NUL")
    yield ClientStep(identity.encode(), may_be_last=False, is_initial=False)
    yield ClientStep(password.encode())
