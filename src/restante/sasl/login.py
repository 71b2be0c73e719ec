"""LOGIN: identity and password in two messages, for old clients (never standardised).

The server offers LOGIN only if the configuration lists it.
"""

from __future__ import annotations

from collections.abc import Generator

from ..errors import UnsafeArgument
from ..passdb import Credentials
from .exchange import Channel, ClientExchange, ClientStep
from .prepare import saslprep


def server(_: Channel) -> Generator[bytes, bytes, Credentials]:
    """Run the server's side.  It begins with a challenge, so initial responses are refused."""
    identity = (yield b"Username:").decode("utf-8", "surrogateescape")
    password = (yield b"Password:").decode("utf-8", "surrogateescape")
    return Credentials("LOGIN", saslprep(identity), saslprep(password))


def client(identity: str, password: str) -> ClientExchange:
    """Run the client's side.

    The text of the two prompts is ignored, because it differs between servers.
    """
    if not identity or not password or "\0" in identity + password:
        raise UnsafeArgument("LOGIN requires an identity and a password, without NUL")
    yield ClientStep(identity.encode(), may_be_last=False, is_initial=False)
    yield ClientStep(password.encode())
