"""Where fetched mail goes: a directory, a Maildir, an mbox; or on to a server or a program.

A destination takes one message at a time: ``begin`` says whether it wants it, ``write`` adds
octets, ``commit`` makes it durable, ``abort`` leaves no trace.  After ``commit`` a crash cannot
lose the message, so only then may it be deleted on its server.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

from ...errors import MessageRefused, UnsafeArgument
from ...maildrop import Place as Place


class Destination(Protocol):
    """One place for mail."""

    @property
    def is_repeatable(self) -> bool:
        """Whether no message is stored twice if ``has`` is asked after a crash."""

    def has(self, identity: str) -> bool:
        """Whether this message is here already, and durable."""

    def begin(self, identity: str) -> bool:
        """Whether this message is wanted; False: it is here already.

        ``identity`` is account and unique-id; the same message has the same one, always.
        """

    def write(self, octets: bytes) -> None:
        """CRLF text of the message that was begun."""

    def commit(self) -> None:
        """Durable on return."""

    def abort(self) -> None:
        """Leave no trace of the message that was begun; harmless after ``commit``."""

    def close(self) -> None:
        """No more messages."""


class Doubtful(MessageRefused):
    """``commit`` failed, and it may be the fault of this message or of the destination."""


@runtime_checkable
class Verifying(Protocol):
    """Add-on of a destination that can look at what it stored."""

    def holds(self, identity: str, digest: bytes) -> bool:
        """Whether the message is there, and its octets have this SHA-256."""


@runtime_checkable
class Tracing(Protocol):
    """Add-on of a destination that knows what became of a message."""

    def place(self, identity: str) -> Place:
        """Where it is.  Only GONE is evidence that it was removed here."""


@runtime_checkable
class Grouping(Protocol):
    """Add-on of a destination where many messages become durable in one go, which is faster."""

    def end(self) -> None:
        """The message that was begun is whole; like ``commit``, but not durable yet."""

    def group(self) -> Callable[[], None]:
        """Closes the group of those that were ended.

        The call makes them durable, in any thread, while the next group is begun; an error leaves
        no part of any.
        """


def name_of(identity: str) -> str:
    """A file name; nothing that a server says becomes part of a path."""
    return sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]


TokenSource = Callable[[bool], str]
"""Gives an access token; True: another than the last, which was refused."""


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
    from .handed import Command, Smtp
    from .maildir import Maildir
    from .mbox import Mbox

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
