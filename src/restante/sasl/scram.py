"""SCRAM-SHA-256 and SCRAM-SHA-1, with channel binding and without (RFC 5802, RFC 7677).

The password never travels, and the server proves that it knows the user.  The work is done by the
library ``scramp``; here stand the rules around it.

Security: a user who does not exist takes the same path.  A client that could have used channel
binding and was talked out of it is refused (RFC 5802 §6).
Limits: channel binding is of the type tls-server-end-point (RFC 5929 §4), for Python's ``ssl`` has
no TLS exporter (RFC 9266).  The authorization identity must be empty.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import AuthenticationFailed, BadCommand, ProtocolBroken, UnsafeArgument
from ..passdb import Disproof, Proof, ScramKey, ScramSecrets
from .exchange import Answer, Channel, Exchange, Lookup, Reply

if TYPE_CHECKING:  # 20 ms, which who logs in by another mechanism need not wait
    from scramp import ScramException
    from scramp.core import ScramServer

MAX_ITERATIONS = 1_000_000  # that a server may ask of us: some 0.4 s of one core; ours
_TYPE = "tls-server-end-point"
_OF_CREDENTIALS = ("invalid-proof", "invalid-username-encoding")
_NO_KEY = ScramKey("", bytes(32), bytes(32))
_NOTHING = ScramSecrets(bytes(16), 4096, (_NO_KEY,))


def server(name: str) -> Callable[[Channel], Exchange]:
    """The server's half of the mechanism ``name``.  Its exchange raises:

    BadCommand: malformed, or the channel binding is not right.
    AuthenticationFailed: nobody can have that name.
    """

    def exchange(channel: Channel) -> Exchange:
        from scramp import ScramException

        opening = yield b""
        nonce = secrets.token_urlsafe(24)
        try:
            _, identity = _open(name, channel, opening, nonce, _NOTHING, _NO_KEY)
            lookup = Lookup(identity, "sha256" if "SHA-256" in name else "sha1")
            yield lookup
            found = lookup.secrets
            assert found is not None
            servers = [
                (key, _open(name, channel, opening, nonce, found, key)[0]) for key in found.keys
            ]
            closing = yield servers[0][1].server_first.encode()
            proved = _proved(servers, closing)
            if proved is None:
                return Disproof(name, identity)
            key, proving = proved
            rest = yield proving.get_server_final().encode()
        except ScramException as error:
            raise _meaning(error) from error
        if rest:
            raise BadCommand("nothing may follow the server's proof")
        return Proof(name, identity, key.credential)

    return exchange


def _open(
    name: str, channel: Channel, opening: bytes, nonce: str, found: ScramSecrets, key: ScramKey
) -> tuple[ScramServer, str]:
    """The library's server after the first two messages, and the identity.

    A user may have several keys; the servers for them differ in nothing that the client hears.
    """
    from scramp import ScramMechanism

    heard: list[str] = []

    def look_up(identity: str) -> tuple[bytes, bytes, bytes, int]:
        heard.append(identity)
        return found.salt, key.stored_key, key.server_key, found.iterations

    binding = (_TYPE, channel.end_point) if channel.end_point else None
    server = ScramMechanism(name).make_server(look_up, channel_binding=binding, s_nonce=nonce)
    server.set_client_first(_text(opening))
    if server.m.name != name:
        raise BadCommand("SCRAM: channel binding is for the mechanisms that end with -PLUS")
    server.get_server_first()
    return server, heard[0]


def _proved(
    servers: list[tuple[ScramKey, ScramServer]], closing: bytes
) -> tuple[ScramKey, ScramServer] | None:
    """The key that the client has, and the server that has seen so; None: it has none."""
    from scramp import ScramException

    for key, server in servers:
        try:
            server.set_client_final(_text(closing))
        except ScramException as error:
            if _reason(error) not in _OF_CREDENTIALS:
                raise
        else:
            return key, server
    return None


def client(name: str, identity: str, password: str, end_point: bytes = b"") -> Reply:
    """The client's half.  ``end_point``: for -PLUS, or to say that we could have done it.

    Raises:
        UnsafeArgument: identity or password that no server can have (RFC 4013).
        ProtocolBroken: the server does not know the password, or asks for too much or too little.
    """
    from scramp import ScramClient, ScramException

    try:
        binding = (_TYPE, end_point) if end_point else None
        library = ScramClient([name], identity, password, channel_binding=binding)
        opening = library.get_client_first().encode()
    except ScramException as error:
        raise UnsafeArgument("SCRAM takes an identity and a password of RFC 4013") from error
    challenge = yield Answer(opening, may_be_last=False)
    try:
        library.set_server_first(_text(challenge))
        if library.iterations.value > MAX_ITERATIONS:
            raise ProtocolBroken(f"the server asks for more than {MAX_ITERATIONS} iterations")
        challenge = yield Answer(library.get_client_final().encode(), may_be_last=False)
        if challenge.startswith(b"e="):
            yield Answer(b"", may_be_last=False)  # -ERR follows
        library.set_server_final(_text(challenge))
    except (ScramException, BadCommand) as error:
        raise ProtocolBroken("the server could not prove that it knows the password") from error
    yield Answer(b"")


def _text(message: bytes) -> str:
    try:
        return message.decode()
    except UnicodeDecodeError as error:
        raise BadCommand("SCRAM: not UTF-8") from error


def _reason(error: ScramException) -> str:
    """RFC 5802 §7 ``server-error-value``."""
    return error.server_error.value if error.server_error else "malformed"


def _meaning(error: ScramException) -> Exception:
    if _reason(error) in _OF_CREDENTIALS:
        return AuthenticationFailed("bad-name")
    return BadCommand(f"SCRAM: {_reason(error)}")
