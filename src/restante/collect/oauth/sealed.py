"""Store OAuth 2 tokens on disk, encrypted with AES-GCM.

A copy of the file is useless without the key.
Durability: stored tokens are on disk when the call returns, because a provider that issues a new
refresh token may no longer accept the previous one.  If a provider is unavailable, the tokens are
kept.
"""

from __future__ import annotations

import json
import os
import secrets
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...client.sinks import fsync_directory
from ...errors import ConfigurationError, TemporaryFailure
from ...posix import fcntl
from .flow import Tokens

_NONCE = 12  # octets
_KEY = 32  # octets: AES-256
_FAILURE = ".failure"  # suffix of the file that contains the last failure


class Tokenfile:
    """The file with the tokens of one account.

    All methods block.  They raise TemporaryFailure if the file cannot be read or written now, and
    ConfigurationError if it cannot be decrypted with this key.
    """

    def __init__(self, folder: Path, account: str, key: bytes, command: str = "") -> None:
        """``command`` signs in again; error messages about the key suggest this command."""
        self._path = folder / f"{account}.sealed"
        self._account = account.encode()
        self._cipher = AESGCM(key)
        self._hint = f"; run: {command}" if command else ""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the tokens for a refresh: a provider may accept a refresh token only once."""
        with _errors():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(self._path.with_suffix(".lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def get(self) -> Tokens | None:
        """Return the stored tokens, or None if the file does not exist."""
        with _errors():
            if not self._path.exists():
                return None
            octets = self._path.read_bytes()
        try:
            text = self._cipher.decrypt(octets[:_NONCE], octets[_NONCE:], self._account)
        except (InvalidTag, ValueError) as error:
            raise ConfigurationError(
                f"{self._path} cannot be decrypted with this key{self._hint}"
            ) from error
        try:
            return Tokens(**json.loads(text))
        except (ValueError, TypeError) as error:  # with the right key, so no damage
            raise ConfigurationError(f"{self._path} was written by a newer restante") from error

    def put(self, tokens: Tokens) -> None:
        """Store tokens; they are durable on return."""
        nonce = secrets.token_bytes(_NONCE)
        octets = nonce + self._cipher.encrypt(
            nonce, json.dumps(asdict(tokens)).encode(), self._account
        )
        with _errors():
            write_durably(self._path, octets)
            self._path.with_suffix(_FAILURE).unlink(missing_ok=True)

    def record_failure(self, at: float, why: str) -> None:
        """Record that a renewal failed; ``why`` must not contain a secret."""
        with suppress(OSError):  # the caller reports the failure itself
            write_durably(self._path.with_suffix(_FAILURE), json.dumps([at, why]).encode())

    def failure(self) -> tuple[float, str] | None:
        """Return the time and reason of the last failed renewal; None if a later one succeeded."""
        try:
            at, why = json.loads(self._path.with_suffix(_FAILURE).read_bytes())
            return float(at), str(why)
        except (OSError, ValueError, TypeError):
            return None

    def forget(self) -> None:
        """Remove the tokens of an account that is being removed."""
        with _errors():
            for suffix in (".sealed", _FAILURE, ".lock"):
                self._path.with_suffix(suffix).unlink(missing_ok=True)


def load_key(path: Path, fetch: Callable[[], str] | None) -> bytes:
    """Return the key for the tokens.

    If ``fetch`` is given, it returns 32 octets in Base64.  Otherwise the key is read from the file,
    and generated if the file is missing.

    Raises:
        ConfigurationError: the key is invalid.
        TemporaryFailure: the file cannot be read or written.
    """
    if fetch is not None:
        try:
            key = b64decode(fetch(), validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY:
            raise ConfigurationError("collect.key: must be 32 octets in Base64")
        return key
    with _errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            write_durably(path, secrets.token_bytes(_KEY), is_new=True)
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path} can be read by other users; run: chmod 600 {path}")
        return path.read_bytes()


def write_durably(path: Path, octets: bytes, *, is_new: bool = False) -> None:
    """Write a file completely or not at all; only its owner can read it.

    Raises:
        FileExistsError: ``is_new`` is set and the file exists.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as writing:
            writing.write(octets)
            writing.flush()
            os.fsync(writing.fileno())
        if is_new:
            os.link(temporary, path)
        else:
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise TemporaryFailure(f"tokens: {error.filename}: {error.strerror}") from error
