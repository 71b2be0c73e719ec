"""The mechanisms for bearer tokens: OAUTHBEARER (RFC 7628), and Google's and Microsoft's XOAUTH2.

Security: a client that has the token can open the maildrop, so a token is sent only inside TLS.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from ..errors import BadCommand, UnsafeArgument
from ..passdb import Token
from .exchange import Channel, ClientExchange, ClientStep

REFUSAL = b'{"status":"invalid_token"}'
"""The challenge that precedes -ERR (RFC 7628 §3.2.2), without the optional scope."""
_GS2 = re.compile(r"n,(?:a=([^,]*))?,")
_BEARER = re.compile(r"(?i:bearer) +([A-Za-z0-9._~+/-]+=*) *")
_END = "\x01"


def server(_: Channel) -> Generator[bytes, bytes, Token]:
    """Run the server's side of OAUTHBEARER.

    The client's message is ``n,a=user,^Ahost=…^Aport=…^Aauth=Bearer …^A^A`` (RFC 7628 §3.1).
    Unknown keys are ignored.

    Raises:
        BadCommand: the message is malformed.
    """
    message = _text((yield b""))
    header, separator, rest = message.partition(_END)
    match = _GS2.fullmatch(header)
    if match is None or not separator:
        raise BadCommand("malformed OAUTHBEARER message")
    identity = (match[1] or "").replace("=2C", ",").replace("=3D", "=")
    return Token("OAUTHBEARER", identity, _bearer(_pairs(rest).get("auth", "")))


def xoauth2(_: Channel) -> Generator[bytes, bytes, Token]:
    """Run the server's side of XOAUTH2.  The client's message is ``user=…^Aauth=Bearer …^A^A``.

    Raises:
        BadCommand: the message is malformed.
    """
    pairs = _pairs(_text((yield b"")))
    if not pairs.get("user"):
        raise BadCommand("malformed XOAUTH2 message")
    return Token("XOAUTH2", pairs["user"], _bearer(pairs.get("auth", "")))


def client(user: str, token: str, host: str = "", port: int = 0) -> ClientExchange:
    """Run the client's side of OAUTHBEARER.

    After a failure, the server sends a JSON object, the client responds with a single ^A, and the
    server sends -ERR (RFC 7628 §3.2.3).
    """
    _check(user, token)
    name = user.replace("=", "=3D").replace(",", "=2C")
    address = f"host={host}{_END}port={port}{_END}" if host else ""
    message = f"n,a={name},{_END}{address}auth=Bearer {token}{_END}{_END}"
    yield ClientStep(message.encode())
    yield ClientStep(_END.encode(), may_be_last=False)


def xoauth2_client(user: str, token: str) -> ClientExchange:
    """Run the client's side of XOAUTH2, without an initial response.

    Microsoft does not accept an initial response.  Other servers do not require it.
    """
    _check(user, token)
    message = f"user={user}{_END}auth=Bearer {token}{_END}{_END}"
    yield ClientStep(message.encode(), is_initial=False)
    yield ClientStep(b"", may_be_last=False)


def _check(user: str, token: str) -> None:
    if not user or not _BEARER.fullmatch(f"Bearer {token}"):
        raise UnsafeArgument("OAuth 2 requires a user and a valid bearer token (RFC 6750 §2.1)")


def _text(message: bytes) -> str:
    return message.decode("utf-8", "surrogateescape")


def _pairs(text: str) -> dict[str, str]:
    """Parse key=value pairs.  Each pair ends with ^A, and the text ends with another ^A.

    Raises:
        BadCommand: the text is malformed.
    """
    if not text.endswith(_END * 2):
        raise BadCommand("malformed OAuth message")
    pairs = {}
    for pair in text[:-2].split(_END):
        key, equals, value = pair.partition("=")
        if not equals or key in pairs:
            raise BadCommand("malformed OAuth message")
        pairs[key] = value
    return pairs


def _bearer(value: str) -> str:
    match = _BEARER.fullmatch(value)
    if match is None:
        raise BadCommand("missing bearer token")
    return match[1]
