"""Open a destination from its text in the configuration, such as ``maildir:Mail``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import UnsafeArgument
from ...maildrop import Presence as Presence
from . import Destination, TokenSource

# Kinds that offer the add-on of this name; "" is the path of a directory.
VERIFYING = ("", "maildir", "maildrop")
TRACING = ("maildrop",)


def look_over(
    text: str,
    *,
    recipient: str = "",
    password: Callable[[], str] | None = None,
    token: TokenSource | None = None,
    maildrop: Callable[[str], Destination] | None = None,
) -> None:
    """Check whether ``open_destination`` would succeed, without creating or sending anything.

    Raises:
        UnsafeArgument, ConfigurationError: the destination can never work as it is written.
        TemporaryFailure: the directory above it is missing, or ``maildrop`` raised it.
    """
    from .folder import may_be_made

    kind, colon, path = text.partition(":")
    if (kind in ("maildir", "mbox") and path) or (text and not colon):
        place = Path(path or text)
        if not place.exists():
            may_be_made(place)
    else:
        open_destination(
            text, recipient=recipient, password=password, token=token, maildrop=maildrop
        ).close()


def open_destination(
    text: str,
    *,
    recipient: str = "",
    password: Callable[[], str] | None = None,
    ca_file: Path | None = None,
    token: TokenSource | None = None,
    sign_in: str = "",
    maildrop: Callable[[str], Destination] | None = None,
) -> Destination:
    """Open a destination: ``maildir:PATH``, ``mbox:PATH`` or the path of a directory;
    ``maildrop:USER``; or a program that takes over the messages: ``lmtp:ADDRESS`` and
    ``smtp:ADDRESS`` (``host:port``, ``unix:/path``), ``command:PROGRAM …``,
    ``imaps://user@host/Folder``, ``gmail:LABEL``.

    ``recipient`` is the address for LMTP and SMTP.  ``password`` returns the password for IMAP, and
    ``token`` the token for Gmail; they are called only for these.  ``sign_in`` is the command for a
    new token.  ``maildrop`` opens the maildrop
    of a user of this server; None: there is no server here.

    Raises:
        UnsafeArgument: the kind is unknown, or a part that it requires is missing.
        ConfigurationError: a library, a program or a password that it requires is missing.
        TemporaryFailure: another program uses it, or the directory above it is missing.
        OSError: it cannot be opened.
    """
    # Each module is imported with its kind, so that a collection starts without SMTP and IMAP.
    match text.partition(":"):
        case (path, "", "") if path:
            from .folder import Folder

            return Folder(Path(path))
        case ("maildir", ":", path) if path:
            from .maildir import Maildir

            return Maildir(Path(path))
        case ("mbox", ":", path) if path:
            from .mbox import Mbox

            return Mbox(Path(path))
        case ("maildrop", ":", user) if maildrop is not None:
            return maildrop(user)
        case ("lmtp" | "smtp" as kind, ":", address) if recipient:
            from .spooled import Smtp

            return Smtp(address, recipient, lmtp=kind == "lmtp")
        case ("command", ":", command):
            from .spooled import Command

            return Command(command)
        case ("imap" | "imaps", ":", rest) if rest.startswith("//"):
            from .imap import Imap

            return Imap(text, password() if password is not None else "", ca_file)
        case ("gmail", ":", label):
            from .gmail import Gmail

            if token is None:
                raise UnsafeArgument("gmail: needs to_oauth")
            return Gmail(label, token, sign_in=sign_in)
    local = "maildrop:USER, " if maildrop is not None else ""
    raise UnsafeArgument(
        f"a destination is a directory, maildir:PATH, mbox:PATH, {local}lmtp:HOST:PORT, "
        "smtp:HOST:PORT, imaps://USER@HOST/FOLDER, gmail:LABEL or command:PROGRAM"
    )
