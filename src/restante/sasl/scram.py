"""SCRAM-SHA-256 and SCRAM-SHA-1, with and without channel binding (RFC 5802, RFC 7677).

The password is never sent, and the server proves that it knows the password's keys.  The library
``scramp`` computes the messages; this module adds the rules that the library does not enforce.

Security: an exchange with an unknown user proceeds like an exchange with an existing user.  If a
client states that it supports channel binding but the server does not, the login is refused,
because an attacker must have changed the server's offer (RFC 5802 §6).
Limits: only channel binding of the type tls-server-end-point is supported (RFC 5929 §4), because
Python's ``ssl`` has no TLS exporter (RFC 9266).  The authorization identity must be empty or equal
to the identity.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import AuthenticationFailed, BadCommand, ProtocolBroken, UnsafeArgument
from ..passdb import FailedProof, Proof, ScramKey, ScramSecrets
from .exchange import Channel, ClientExchange, ClientStep, Exchange, Lookup

if TYPE_CHECKING:  # the import takes 20 ms, so other mechanisms must not cause it
    from scramp import ScramException
    from scramp.core import Gs2Header, ScramServer

# Maximum number of iterations that a server may require from the client: about 0.4 s of CPU time.
# This is our own limit; RFC 7677 §4 recommends at least 4096.
MAX_ITERATIONS = 1_000_000
_TYPE = "tls-server-end-point"
_LOGIN_ERRORS = ("invalid-proof", "invalid-username-encoding")
_DUMMY = bytes(16), bytes(32), bytes(32), 4096  # salt, two keys and number of iterations


def server(name: str) -> Callable[[Channel], Exchange]:
    """Return the function that starts the server's side of the mechanism ``name``.

    The exchange raises BadCommand if a message is malformed or if the channel binding does not
    match.  It raises AuthenticationFailed if the user name is invalid.
    """

    def exchange(channel: Channel) -> Exchange:
        from scramp import ScramException
        from scramp.core import IterationCount, Salt

        client_first, authorization = _without_authorization((yield b""))
        nonce = secrets.token_urlsafe(24)
        try:
            server, identity = _begin(name, channel, client_first, nonce)
            if authorization not in ("", identity):
                raise BadCommand("SCRAM: other-error")  # acting for another user is not supported
            lookup = Lookup(identity, "sha256" if "SHA-256" in name else "sha1")
            yield lookup
            user_secrets = lookup.secrets
            assert user_secrets is not None
            if authorization:
                server.gs2_header = _Authorized(server.gs2_header, authorization)
            server.salt, server.i = Salt(user_secrets.salt), IterationCount(user_secrets.iterations)
            client_final = yield server.get_server_first().encode()
            key = _matching_key(server, user_secrets, client_final)
            if key is None:
                return FailedProof(name, identity)
            rest = yield server.get_server_final().encode()
        except ScramException as error:
            raise _convert(error) from error
        if rest:
            raise BadCommand("no data may follow the server's proof")
        return Proof(name, identity, key.credential)

    return exchange


def _begin(name: str, channel: Channel, client_first: str, nonce: str) -> tuple[ScramServer, str]:
    """Pass the client's first message to the library.

    Returns the library's server and the identity.  The library requests the keys immediately, so it
    gets dummy keys first, which are replaced after the look-up.
    """
    from scramp import ScramMechanism

    identities: list[str] = []

    def look_up(identity: str) -> tuple[bytes, bytes, bytes, int]:
        identities.append(identity)
        return _DUMMY

    binding = (_TYPE, channel.end_point) if channel.end_point else None
    server = ScramMechanism(name).make_server(look_up, channel_binding=binding, s_nonce=nonce)
    server.set_client_first(client_first)
    if server.m.name != name:
        raise BadCommand("SCRAM: channel binding requires a mechanism that ends with -PLUS")
    return server, identities[0]


def _matching_key(
    server: ScramServer, user_secrets: ScramSecrets, client_final: bytes
) -> ScramKey | None:
    """Return the key that matches the client's proof, or None.

    A user may have many keys, one for each app password.  All keys share the salt and the number of
    iterations, so the client cannot find out how many keys exist.  Each attempt takes one HMAC.
    """
    from scramp import ScramException

    stage, text = server.stage, _text(client_final)
    for key in user_secrets.keys:
        server.stage, server.error = stage, None
        server.stored_key, server.server_key = key.stored_key, key.server_key
        try:
            server.set_client_final(text)
        except ScramException as error:
            if _reason(error) not in _LOGIN_ERRORS:
                raise
        else:
            return key
    return None


def _without_authorization(client_first: bytes) -> tuple[str, str]:
    """Return the first message without its authorization identity, and this identity.

    The library does not accept an authorization identity, but mutt sends the user name as one.  The
    message begins with ``gs2-cbind-flag "," [ authzid ] ","`` (RFC 5802 §7).
    """
    text = _text(client_first)
    flag, comma, rest = text.partition(",")
    authorization, second, bare = rest.partition(",")
    if not (comma and second and authorization.startswith("a=")):
        return text, ""
    name = authorization.removeprefix("a=").replace("=2C", ",").replace("=3D", "=")
    return f"{flag},,{bare}", name


class _Authorized:
    """The header of the first message, including the authorization identity.

    The library receives the message without this identity, but the client's proof covers the
    original header.
    """

    def __init__(self, header: Gs2Header, authorization: str) -> None:
        self._header = header
        name = authorization.replace("=", "=3D").replace(",", "=2C")
        self._text = f",a={name},".encode()

    def make_cbind_input(self, binding: object) -> bytes:
        octets: bytes = self._header.make_cbind_input(binding)
        return octets.replace(b",,", self._text, 1)


def client(name: str, identity: str, password: str, end_point: bytes = b"") -> ClientExchange:
    """Run the client's side.

    ``end_point`` is the channel binding.  A mechanism without -PLUS only announces that the client
    supports it.

    Raises:
        UnsafeArgument: RFC 4013 forbids the identity or the password.
        ProtocolBroken: the server does not know the password, or the number of iterations that it
            requires is too high or too low.
    """
    from scramp import ScramClient, ScramException

    try:
        binding = (_TYPE, end_point) if end_point else None
        library = ScramClient([name], identity, password, channel_binding=binding)
        client_first = library.get_client_first().encode()
    except ScramException as error:
        raise UnsafeArgument(
            "the user name or the password contains characters that SASLprep forbids (RFC 4013)"
        ) from error
    challenge = yield ClientStep(client_first, may_be_last=False)
    try:
        library.set_server_first(_text(challenge))
        if library.iterations.value > MAX_ITERATIONS:
            raise ProtocolBroken(f"the server requires more than {MAX_ITERATIONS} iterations")
        challenge = yield ClientStep(library.get_client_final().encode(), may_be_last=False)
        if challenge.startswith(b"e="):
            yield ClientStep(b"", may_be_last=False)  # the server then sends -ERR
        library.set_server_final(_text(challenge))
    except (ScramException, BadCommand) as error:
        raise ProtocolBroken("the server could not prove that it knows the password") from error
    yield ClientStep(b"")


def _text(message: bytes) -> str:
    try:
        return message.decode()
    except UnicodeDecodeError as error:
        raise BadCommand("SCRAM: invalid UTF-8") from error


def _reason(error: ScramException) -> str:
    """Return the ``server-error-value`` of an error (RFC 5802 §7)."""
    return error.server_error.value if error.server_error else "malformed"


def _convert(error: ScramException) -> Exception:
    if _reason(error) in _LOGIN_ERRORS:
        return AuthenticationFailed("bad-name")
    return BadCommand(f"SCRAM: {_reason(error)}")
