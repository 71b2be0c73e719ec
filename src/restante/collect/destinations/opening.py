"""Open the destination that a value in the configuration specifies, such as ``maildir:Mail``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import UnsafeArgument
from ...maildrop import Presence as Presence
from . import Destination, TokenSource

# Kinds of destinations that offer the add-ons ``Verifying`` and ``Tracing``.  "" is a directory.
VERIFYING = ("", "maildir", "maildrop")
TRACING = ("maildrop",)


def check_destination(
    text: str,
    *,
    recipient: str = "",
    password: Callable[[], str] | None = None,
    token: TokenSource | None = None,
    maildrop: Callable[[str], Destination] | None = None,
) -> None:
    """Check a destination as far as possible without creating, sending or delivering anything.

    The parameters are those of ``open_destination``.

    Raises:
        UnsafeArgument, ConfigurationError: the destination can never work as configured.
        TemporaryFailure: the parent directory is missing, or ``maildrop`` raised the error.
    """
    from .folder import check_parent

    kind, colon, path = text.partition(":")
    if (kind in ("maildir", "mbox") and path) or (text and not colon):
        target = Path(path or text)
        if not target.exists():
            check_parent(target)
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
    """Open a destination.

    Destinations on this machine are ``maildir:PATH``, ``mbox:PATH``, the path of a directory, and
    ``maildrop:USER``.  Programs and servers are ``command:PROGRAM …``, ``lmtp:ADDRESS`` and
    ``smtp:ADDRESS`` (``host:port`` or ``unix:/path``), ``imaps://user@host/Folder`` and
    ``gmail:LABEL``.

    ``recipient`` is the address for LMTP and SMTP.  ``password`` returns the password for IMAP, and
    ``token`` returns the token for Gmail; each is called only for its protocol.  ``sign_in`` is the
    command that error messages suggest if Gmail refuses the token.  ``maildrop`` opens the maildrop
    of a user of this server; it is None if this machine has no server.

    Raises:
        UnsafeArgument: the kind is unknown, or a part that it requires is missing.
        ConfigurationError: a required library, program or password is missing.
        TemporaryFailure: another program is using the destination, or its parent directory is
            missing.
        OSError: the destination cannot be opened.
    """
    # Each module is imported only for its kind, so that other destinations start faster.
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
                raise UnsafeArgument("gmail: requires to_oauth")
            return Gmail(label, token, sign_in=sign_in)
    local = "maildrop:USER, " if maildrop is not None else ""
    raise UnsafeArgument(
        f"a destination is a directory, maildir:PATH, mbox:PATH, {local}lmtp:HOST:PORT, "
        "smtp:HOST:PORT, imaps://USER@HOST/FOLDER, gmail:LABEL or command:PROGRAM"
    )
