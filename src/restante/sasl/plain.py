"""PLAIN (RFC 4616): identity and password in one message."""

from __future__ import annotations

from collections.abc import Generator

from ..errors import BadCommand, UnsafeArgument
from ..passdb import Credentials
from .exchange import Channel, ClientExchange, ClientStep
from .prepare import saslprep


def server(_: Channel) -> Generator[bytes, bytes, Credentials]:
    """Run the server's side.  The message is ``[authzid] NUL authcid NUL passwd`` (RFC 4616 §2).

    Raises:
        BadCommand: the message is malformed.
        AuthenticationFailed: SASLprep forbids a part of the message, or makes it empty.
    """
    message = yield b""
    parts = [part.decode("utf-8", "surrogateescape") for part in message.split(b"\0")]
    if len(parts) != 3:
        raise BadCommand("malformed PLAIN message")
    authorization, identity, password = parts
    authorization = authorization and saslprep(authorization)
    return Credentials("PLAIN", saslprep(identity), saslprep(password), authorization)


def client(identity: str, password: str, authorization: str = "") -> ClientExchange:
    """Run the client's side.

    Raises:
        UnsafeArgument: an argument contains NUL, or the identity or the password is empty.
    """
    parts = (authorization, identity, password)
    if any("\0" in part for part in parts) or not identity or not password:
        raise UnsafeArgument("PLAIN requires an identity and a password, without NUL")
    yield ClientStep("\0".join(parts).encode())
