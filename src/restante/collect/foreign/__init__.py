"""Read the accounts and the lists of seen messages of getmail, fetchmail and mpop.

The files are interpreted as the programs' manuals describe.  Every account is returned; if it
cannot be imported, ``refused`` contains the reason.  Settings without a counterpart in restante are
listed in ``notes``.  No server is contacted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import PermanentFailure

UNSAFE_CLEAR = "it may have logged in without TLS; restante requires STLS"
UNCHECKED = "its certificate was not checked; restante requires a valid one, or ca_file"
ONLY_POP3 = "restante collects mail only over POP3"


@dataclass(slots=True)
class ForeignAccount:
    """One account of another program."""

    name: str
    host: str = ""
    port: int | None = None
    is_implicit: bool = False
    """Whether TLS starts with the connection, instead of after STLS."""
    user: str = ""
    password: str = field(default="", repr=False)
    password_command: tuple[str, ...] = ()
    to: str = ""
    """The destination in the form that restante uses; empty if there is no counterpart."""
    no_destination: str = ""
    """Why ``to`` is empty."""
    recipient: str = ""
    """The recipient's address, for delivery over SMTP or LMTP."""
    keep: str = "all"
    """How long messages stay on the server: ``all``, ``none``, or a number of days like ``7d``."""
    largest: int = 0
    """Maximum size of a message in octets; 0: unlimited."""
    ca_file: str = ""
    seen_file: Path | None = None
    """The file that lists the seen messages."""
    seen: list[str] = field(default_factory=list)
    """Unique-ids of seen messages."""
    limit: int = 0
    """Maximum number of messages in one session; 0: unlimited."""
    notes: list[str] = field(default_factory=list)
    """Settings that differ in restante or could not be imported."""
    refused: str = ""
    """Why the account cannot be imported; empty if it can."""

    @property
    def url(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{'pop3s' if self.is_implicit else 'pop3'}://{self.host}{port}"


def absolute_path(path: str) -> str:
    """Return an absolute path; empty for an empty path.

    A relative path is resolved against the home directory, because cron runs programs there.
    """
    return str(Path.home() / Path(path).expanduser()) if path else ""


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        PermanentFailure: the file is not encoded in UTF-8, so passwords could be wrong.
        OSError: the file cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PermanentFailure(f"{path}: not UTF-8; convert it with iconv first") from error


def read_lines(path: Path | None) -> list[str]:
    """Return the lines of a file that lists seen messages; empty if the file does not exist.

    Raises:
        OSError: the file exists but cannot be read.
    """
    if path is None or not path.exists():
        return []
    content = path.read_bytes().decode("utf-8", "surrogateescape")
    return [line.rstrip("\r") for line in content.split("\n") if line.strip()]


def parse_size(size: str) -> int:
    """Return the octets of a size such as ``10k``; 0 if the size is invalid."""
    match = re.fullmatch(r"([0-9]{1,18})([kmg]?)(?:ib)?", size.lower())
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2]] if match else 0
