"""Fetch the secrets that the configuration refers to.  No message or log contains a secret."""

from __future__ import annotations

import os
from pathlib import Path

from ..config import Secret
from ..errors import ConfigurationError
from ..regular import read_regular

_TIMEOUT = 60  # seconds for a command; it may prompt the user for a passphrase


def fetch(secret: Secret, setting: str) -> str:
    """Return the secret that a setting refers to.

    ``setting`` is the name of the setting for error messages, such as ``account.isp.password``.

    Raises:
        ConfigurationError: the secret cannot be read; the message contains the reason.
    """
    import subprocess  # imported late, so that commands that need no secret start faster

    try:
        text = _SOURCES[secret.kind](secret.value)
    except (OSError, UnicodeDecodeError, subprocess.SubprocessError, ImportError) as error:
        raise ConfigurationError(f"{setting}: {_reason(error)}") from error
    if not text:
        raise ConfigurationError(f"{setting}: the value is empty or not set")
    return text


def _reason(error: Exception) -> str:
    import subprocess

    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the command took longer than {_TIMEOUT} s"
    if isinstance(error, ImportError):
        return "a keyring requires the extra restante[keyring]"
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

    completed = subprocess.run(
        list(arguments), stdout=subprocess.PIPE, text=True, check=True, timeout=_TIMEOUT
    )
    return _first_line(completed.stdout)


def _credential(name: str | tuple[str, ...]) -> str:
    """Read a systemd credential (LoadCredential= in the unit)."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return _file(f"{folder}/{name}") if folder else ""


def _keyring(name: str | tuple[str, ...]) -> str:
    import keyring

    return keyring.get_password("restante", str(name)) or ""


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].rstrip("\r")


# Functions that fetch a secret, by ``Secret.kind``.
_SOURCES = {
    "text": _text,
    "env": _environment,
    "file": _file,
    "command": _command,
    "credential": _credential,
    "keyring": _keyring,
}
