"""EXTERNAL (RFC 4422 appendix A): the client's certificate identifies the user."""

from __future__ import annotations

from collections.abc import Generator

from ..errors import AuthenticationFailed
from ..passdb import Proof
from .exchange import Channel, ClientExchange, ClientStep


def server(channel: Channel) -> Generator[bytes, bytes, Proof]:
    """Run the server's side.  The client's message is the authorization identity, or empty.

    If the certificate contains several addresses, the authorization identity selects one of them.
    """
    authorization = (yield b"").decode("utf-8", "surrogateescape")
    if not channel.identities:
        raise AuthenticationFailed("no-certificate")
    matches = [each for each in channel.identities if each.casefold() == authorization.casefold()]
    identity = matches[0] if matches else channel.identities[0]
    return Proof("EXTERNAL", identity, "certificate", authorization)


def client(authorization: str = "") -> ClientExchange:
    """Run the client's side."""
    yield ClientStep(authorization.encode())
