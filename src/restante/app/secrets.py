"""Fetch secrets that the configuration refers to, when they are needed.  They are never shown."""

from __future__ import annotations

import os
from pathlib import Path

from ..config import Secret
from ..errors import ConfigurationError
from ..regular import read_regular

_TIMEOUT = 60  # seconds for a command; it may prompt the user for a passphrase


def fetch(secret: Secret, what: str) -> str:
    """Return the secret; ``what`` is its name in errors, such as ``account.isp.password``.

    Raises:
        ConfigurationError: the secret cannot be read; the message contains the reason.
    """
    import subprocess  # commands that need no secret start faster without it

    try:
        text = _SOURCES[secret.kind](secret.value)
    except (OSError, UnicodeDecodeError, subprocess.SubprocessError, ImportError) as error:
        raise ConfigurationError(f"{what}: {_reason(error)}") from error
    if not text:
        raise ConfigurationError(f"{what}: is empty or not set")
    return text


def _reason(error: Exception) -> str:
    import subprocess

    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the command took longer than {_TIMEOUT} s"
    if isinstance(error, ImportError):
        return "a key ring requires the extra restante[keyring]"
    return str(error)


def _text(value: str | tuple[str, ...]) -> str:
    return str(value)


def _environment(name: str | tuple[str, ...]) -> str:
    return os.environ.get(str(name), "")


def _file(path: str | tuple[str, ...]) -> str:
    return _first_line(read_regular(Path(str(path)).expanduser()).decode())


def _command(arguments: str | tuple[str, ...]) -> str:
    """Run the command without a shell; it may prompt on standard input and standard error."""
    import subprocess

    done = subprocess.run(
        list(arguments), stdout=subprocess.PIPE, text=True, check=True, timeout=_TIMEOUT
    )
    return _first_line(done.stdout)


def _credential(name: str | tuple[str, ...]) -> str:
    """Read a credential of systemd (LoadCredential= in the unit)."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return _file(f"{folder}/{name}") if folder else ""


def _keyring(name: str | tuple[str, ...]) -> str:
    import keyring

    return keyring.get_password("restante", str(name)) or ""


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].rstrip("\r")


_SOURCES = {
    "text": _text,
    "env": _environment,
    "file": _file,
    "command": _command,
    "credential": _credential,
    "keyring": _keyring,
}
