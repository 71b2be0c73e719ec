"""From the text of a configuration, such as ``maildir:Mail``, to a destination."""

from __future__ import annotations

from pathlib import Path

from ...errors import UnsafeArgument
from ...maildrop import Presence as Presence
from . import Destination, TokenSource


def look_over(
    text: str,
    *,
    recipient: str = "",
    password: str = "",
    token: TokenSource | None = None,
) -> None:
    """Find what ``open_destination`` would refuse, and make, lock and ask nothing.

    Raises:
        UnsafeArgument, ConfigurationError: it can never work as it is written.
        TemporaryFailure: the directory above it is not there.
    """
    from .folder import may_be_made

    kind, colon, path = text.partition(":")
    if (kind in ("maildir", "mbox") and path) or (text and not colon):
        place = Path(path or text)
        if not place.exists():
            may_be_made(place)
    else:
        open_destination(text, recipient=recipient, password=password, token=token).close()


def open_destination(
    text: str,
    *,
    recipient: str = "",
    password: str = "",
    ca_file: Path | None = None,
    token: TokenSource | None = None,
) -> Destination:
    """``maildir:PATH``, ``mbox:PATH``, the path of a directory; or where a message is handed over:
    ``lmtp:ADDRESS`` and ``smtp:ADDRESS`` (``host:port``, ``unix:/path``), ``command:PROGRAM …``,
    ``imaps://user@host/Folder``, ``gmail:LABEL``.

    ``recipient`` is the address for LMTP and SMTP, ``password`` the one for IMAP, ``token`` for
    Gmail.

    Raises:
        UnsafeArgument: another kind, or not all that it needs.
        ConfigurationError: it needs a library or a program that is not installed.
        TemporaryFailure: another program uses it, or the directory above it is not there.
        OSError: it cannot be used.
    """
    from .folder import Folder
    from .maildir import Maildir
    from .mbox import Mbox
    from .spooled import Command, Smtp

    match text.partition(":"):
        case (path, "", "") if path:
            return Folder(Path(path))
        case ("maildir", ":", path) if path:
            return Maildir(Path(path))
        case ("mbox", ":", path) if path:
            return Mbox(Path(path))
        case ("lmtp" | "smtp" as kind, ":", address) if recipient:
            return Smtp(address, recipient, lmtp=kind == "lmtp")
        case ("command", ":", command):
            return Command(command)
        case ("imap" | "imaps", ":", rest) if rest.startswith("//"):
            from .imap import Imap

            return Imap(text, password, ca_file)
        case ("gmail", ":", label):
            from .gmail import Gmail

            if token is None:
                raise UnsafeArgument("gmail: needs to_oauth")
            return Gmail(label, token)
    raise UnsafeArgument(
        "a destination is a directory, maildir:PATH, mbox:PATH, lmtp:HOST:PORT, smtp:HOST:PORT, "
        "imaps://USER@HOST/FOLDER, gmail:LABEL or command:PROGRAM"
    )
