"""What getmail, fetchmail and mpop know: their accounts, and which messages they have seen.

Their files are read as their manuals describe them.  Each account is returned: one that cannot be
imported says why in ``refused``, and what has no counterpart here is in ``notes``, not guessed.
Nothing is asked of any server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import PermanentFailure

UNSAFE_CLEAR = "it may have logged in without TLS; here STLS is required"
UNCHECKED = "its certificate was not checked; here it must be valid, or named by ca_file"
ONLY_POP3 = "restante collects by POP3 only"


@dataclass(slots=True)
class Foreign:
    """One account of another program."""

    name: str
    host: str = ""
    port: int | None = None
    is_implicit: bool = False
    """TLS from the first octet, rather than STLS."""
    user: str = ""
    password: str = field(default="", repr=False)
    password_command: tuple[str, ...] = ()
    to: str = ""
    """A destination of restante; empty if none fits, and ``no_destination`` says why."""
    no_destination: str = ""
    recipient: str = ""
    keep: str = "all"
    largest: int = 0
    """Octets; 0: any."""
    ca_file: str = ""
    seen_file: Path | None = None
    seen: list[str] = field(default_factory=list)
    """Unique-ids."""
    limit: int = 0
    """Messages in one session; 0: any number."""
    notes: list[str] = field(default_factory=list)
    """What is different here, or could not be imported."""
    refused: str = ""
    """Why the account cannot be imported; empty: it can."""

    @property
    def url(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{'pop3s' if self.is_implicit else 'pop3'}://{self.host}{port}"


def home(path: str) -> str:
    """Absolute; a relative path is one in the home directory, from where cron runs programs."""
    return str(Path.home() / Path(path).expanduser()) if path else ""


def text(path: Path) -> str:
    """Of a configuration.

    Raises:
        PermanentFailure: no UTF-8; a password in it would become another one.
        OSError: it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PermanentFailure(f"{path}: not UTF-8; convert it by iconv first") from error


def lines(path: Path | None) -> list[str]:
    """Nothing where there is no such file: then nothing was seen.

    Raises:
        OSError: it is there, and cannot be read.
    """
    if path is None or not path.exists():
        return []
    content = path.read_bytes().decode("utf-8", "surrogateescape")
    return [line.rstrip("\r") for line in content.split("\n") if line.strip()]


def octets(size: str) -> int:
    """From ``10k``; 0 where it is no size."""
    match = re.fullmatch(r"([0-9]{1,18})([kmg]?)(?:ib)?", size.lower())
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2]] if match else 0
