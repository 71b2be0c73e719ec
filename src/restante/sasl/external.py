"""EXTERNAL (RFC 4422 appendix A): the client's certificate identifies the user."""

from __future__ import annotations

from collections.abc import Generator

from ..errors import AuthenticationFailed
from ..passdb import Proof
from .exchange import Channel, ClientExchange, ClientStep


def server(channel: Channel) -> Generator[bytes, bytes, Proof]:
    """Run the server's side.  The client's message is the authorization identity, or empty.

    If the certificate contains several addresses, the message selects one of them.
    """
    wanted = (yield b"").decode("utf-8", "surrogateescape")
    if not channel.identities:
        raise AuthenticationFailed("no-certificate")
    named = [each for each in channel.identities if each.casefold() == wanted.casefold()]
    identity = named[0] if named else channel.identities[0]
    return Proof("EXTERNAL", identity, "certificate", wanted)


def client(authorization: str = "") -> ClientExchange:
    yield ClientStep(authorization.encode())
