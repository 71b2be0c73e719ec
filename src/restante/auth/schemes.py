"""Check password hashes created by other programs, in Dovecot's notation ``{SCHEME}hash``.

Security: a hash matches nothing and is not computed if its scheme is unknown, if it is malformed,
or if computing it would take more than a second or two.  Thus one line of a file cannot stop a
server.  Comparisons take constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64decode
from binascii import unhexlify
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from ..errors import AuthenticationFailed, BackendMisconfigured
from ..sasl.prepare import saslprep
from . import passwords, scram

# The limits are higher than the defaults of the programs that create hashes, but no hash takes more
# than about two seconds of CPU time.
_MAX_BCRYPT = 14  # 2^14 rounds, about 1.2 s
_MAX_SHA_CRYPT = 1_000_000  # rounds, about 0.8 s
_MAX_PBKDF2 = 5_000_000  # iterations, about 2 s
_MAX_SCRAM = 2_000_000  # iterations, about 2 s: keys are derived for both digests
_BCRYPT_OCTETS = 72  # octets of a password that bcrypt uses; it ignores the rest

_PREFIXED = re.compile(r"\{([A-Za-z0-9-]{1,32})(?:\.(B64|BASE64|HEX))?\}(.*)", re.I)
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_SHA_CRYPT = re.compile(r"\$[56]\$(?:rounds=([1-9]\d{0,8})\$)?[^$:\s]{0,16}\$[./A-Za-z0-9]{43,86}")
_PBKDF2 = re.compile(r"\$1\$([^$]{1,64})\$([1-9]\d{0,8})\$([0-9a-fA-F]{40})")
_SCRAM = re.compile(
    r"([1-9]\d{0,8}),([A-Za-z0-9+/=]{1,128}),([A-Za-z0-9+/=]{44}),[A-Za-z0-9+/=]{44}"
)
_SIZES = {"sha1": 20, "sha256": 32, "sha512": 64}  # octets

Check = Callable[[str, str, str], bool]
"""Returns whether a password matches a hash.

Arguments: the password, the hash, and the encoding of the hash (may be empty).
"""


class _Scheme(NamedTuple):
    is_sane: Callable[[str, str], bool]
    """Returns whether an encoded hash is well-formed and not too expensive to compute."""
    check: Check
    """Must be called only for sane hashes."""


def matches(password: str, stored_hash: str, scheme: str = "CRYPT") -> bool:
    """Return whether the password matches the hash.  ``scheme`` is used if the hash has no prefix.

    Raises:
        BackendMisconfigured: the scheme needs a library that is not installed.
    """
    name, encoding, text = _split(stored_hash, scheme)
    known = _SCHEMES.get(name)
    if known is None or not known.is_sane(text, encoding):
        return False
    try:
        return known.check(password, text, encoding)
    except ImportError as error:
        raise BackendMisconfigured(
            f"{name} needs {error.name}; run: pip install 'restante[passwords]'"
        ) from error


def is_known(stored_hash: str) -> bool:
    """Return whether a hash has the prefix of a known scheme, or no prefix."""
    return bool(stored_hash) and _split(stored_hash, "CRYPT")[0] in _SCHEMES


def is_sane(stored_hash: str, scheme: str = "CRYPT") -> bool:
    """Return whether ``matches`` would compute this hash.

    It does not compute hashes that are unknown, malformed or too expensive.
    """
    name, encoding, text = _split(stored_hash, scheme)
    known = _SCHEMES.get(name)
    return known is not None and known.is_sane(text, encoding)


def secret(stored_hash: str, scheme: str = "CRYPT") -> bytes | None:
    """Return the password after SASLprep (RFC 4013), or None if only its hash is stored."""
    name, encoding, text = _split(stored_hash, scheme)
    if name == "PLAIN":
        with suppress(AuthenticationFailed, UnicodeError):
            return saslprep(_in_clear(text, encoding).decode()).encode()
    return None


def _split(stored_hash: str, scheme: str) -> tuple[str, str, str]:
    """Return the scheme, the encoding and the hash."""
    match = _PREFIXED.fullmatch(stored_hash)
    if match is None:
        return scheme, "", stored_hash
    return match[1].upper(), (match[2] or "").upper(), match[3]


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _argon2(kind: str) -> _Scheme:
    return _Scheme(
        lambda text, _: passwords.is_sane(text, kind),
        lambda password, text, _: passwords.matches(password, text, kind=kind),
    )


def _is_sane_bcrypt(text: str, _: str) -> bool:
    match = _BCRYPT.fullmatch(text)
    return match is not None and int(match[1]) <= _MAX_BCRYPT


def _bcrypt(password: str, text: str, _: str) -> bool:
    import bcrypt

    try:
        return bcrypt.checkpw(_octets(password)[:_BCRYPT_OCTETS], text.encode("ascii"))
    except ValueError:
        return False


def _sha_crypt(prefix: str) -> _Scheme:
    def is_sane(text: str, _: str) -> bool:
        match = _SHA_CRYPT.fullmatch(text) if text.startswith(prefix) else None
        return match is not None and int(match[1] or 0) <= _MAX_SHA_CRYPT

    def check(password: str, text: str, _: str) -> bool:
        from passlib.hash import sha256_crypt, sha512_crypt

        scheme = sha256_crypt if prefix == "$5$" else sha512_crypt
        try:
            return bool(scheme.verify(_octets(password), text))
        except ValueError:
            return False

    return _Scheme(is_sane, check)


def _digest(algorithm: str, *, salted: bool = False) -> _Scheme:
    """Return a scheme whose hashes are a digest of password and salt, followed by the salt."""
    size = _SIZES[algorithm]

    def is_sane(text: str, encoding: str) -> bool:
        octets = _decode(text, encoding, size)
        return len(octets) >= size and (len(octets) > size) == salted

    def check(password: str, text: str, encoding: str) -> bool:
        octets = _decode(text, encoding, size)
        computed = hashlib.new(algorithm, _octets(password) + octets[size:]).digest()
        return hmac.compare_digest(computed, octets[:size])

    return _Scheme(is_sane, check)


def _decode(text: str, encoding: str, size: int) -> bytes:
    """Decode hexadecimal digits or Base64.

    If ``encoding`` is empty, the length of the text shows which of them it is.
    """
    is_hex = encoding == "HEX" or (not encoding and len(text) == 2 * size)
    try:
        return unhexlify(text) if is_hex else b64decode(text, validate=True)
    except ValueError:
        return b""


def _is_sane_pbkdf2(text: str, _: str) -> bool:
    match = _PBKDF2.fullmatch(text)
    return match is not None and int(match[2]) <= _MAX_PBKDF2


def _pbkdf2(password: str, text: str, _: str) -> bool:
    """Check PBKDF2 with HMAC-SHA-1: ``$1$salt$iterations$hexadecimal``."""
    _, _, salt, iterations, digest = text.split("$")
    computed = hashlib.pbkdf2_hmac("sha1", _octets(password), _octets(salt), int(iterations), 20)
    return hmac.compare_digest(computed, unhexlify(digest))


def _is_sane_scram(text: str, _: str) -> bool:
    match = _SCRAM.fullmatch(text)
    return match is not None and int(match[1]) <= _MAX_SCRAM


def _scram(password: str, text: str, _: str) -> bool:
    """Check ``iterations,salt,stored key,server key`` (RFC 5803, in Dovecot's notation)."""
    iterations, salt, stored_key, _ = text.split(",")
    try:
        keys = scram.make_keys(password, b64decode(salt, validate=True), int(iterations)).sha256
        expected = b64decode(stored_key, validate=True)
    except ValueError:
        return False
    return keys is not None and hmac.compare_digest(keys[:32], expected)


def _plain(password: str, text: str, encoding: str) -> bool:
    return hmac.compare_digest(_octets(password), _in_clear(text, encoding))


def _in_clear(text: str, encoding: str) -> bytes:
    return _decode(text, encoding, 0) if encoding else _octets(text)


def _crypt(text: str) -> _Scheme | None:
    """Return the scheme of a crypt(3) hash, or None if its prefix is unknown."""
    return next((_SCHEMES[name] for start, name in _CRYPT.items() if text.startswith(start)), None)


def _is_sane_crypt(text: str, _: str) -> bool:
    scheme = _crypt(text)
    return scheme is not None and scheme.is_sane(text, "")


def _check_crypt(password: str, text: str, _: str) -> bool:
    scheme = _crypt(text)
    return scheme is not None and scheme.check(password, text, "")


_CRYPT = {"$5$": "SHA256-CRYPT", "$6$": "SHA512-CRYPT", "$2": "BLF-CRYPT"}

_SCHEMES: dict[str, _Scheme] = {
    "ARGON2I": _argon2("argon2i"),
    "ARGON2ID": _argon2("argon2id"),
    "BLF-CRYPT": _Scheme(_is_sane_bcrypt, _bcrypt),
    "CRYPT": _Scheme(_is_sane_crypt, _check_crypt),
    "PBKDF2": _Scheme(_is_sane_pbkdf2, _pbkdf2),
    "PLAIN": _Scheme(lambda text, encoding: bool(_in_clear(text, encoding)), _plain),
    "SCRAM-SHA-256": _Scheme(_is_sane_scram, _scram),
    "SHA": _digest("sha1"),
    "SHA1": _digest("sha1"),
    "SHA256": _digest("sha256"),
    "SHA256-CRYPT": _sha_crypt("$5$"),
    "SHA512": _digest("sha512"),
    "SHA512-CRYPT": _sha_crypt("$6$"),
    "SSHA": _digest("sha1", salted=True),
    "SSHA256": _digest("sha256", salted=True),
    "SSHA512": _digest("sha512", salted=True),
}
