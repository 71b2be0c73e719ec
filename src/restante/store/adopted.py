"""Unique-ids that cannot be derived from a file name and are therefore stored permanently.

There are two kinds.  Ids of mail imported from another server are stored by unique part, in the
order of that server's listing.  Ids for files that claim the same unique-id are stored by unique
part and inode number.

These ids are stored only in the file ``ADOPTED``, so the file is replaced durably.  If the file is
damaged, the maildrop is not opened, because clients would download all mail again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping

from ..errors import Damaged
from . import files
from .names import Adopted, Identity, pack, unpack

ADOPTED = "restante.ids"

_MAGIC = b"restante ids 1\n"
_NEWER = re.compile(rb"restante ids ([2-9]|[1-9][0-9]+)\n")
_DIGEST = 32  # octets
UNIQUE_ID = re.compile("[!-~]{1,70}")  # RFC 1939 §7

_log = logging.getLogger(__name__)


def read(maildrop: int) -> dict[Identity, str]:
    """Return the adopted unique-ids of a maildrop.

    Raises:
        Damaged: an administrator must restore the file from a backup, or remove it.
    """
    return unpack(_content(maildrop))


def contains(maildrop: int, names: Iterable[str]) -> bool:
    """Return whether the file contains one of these unique-ids or unique parts.

    The file is not decoded.

    Raises:
        Damaged: an administrator must restore the file from a backup, or remove it.
    """
    content = _content(maildrop)
    return any(
        b" %b%b" % (os.fsencode(name), end) in content for name in names for end in (b" ", b"\0")
    )


def _content(maildrop: int) -> bytes:
    try:
        octets = files.read(ADOPTED, maildrop)
    except FileNotFoundError:
        return b""
    if _NEWER.match(octets):
        raise Damaged("the unique-ids of this maildrop were written by a newer restante")
    head, content = octets[: len(_MAGIC) + _DIGEST], octets[len(_MAGIC) + _DIGEST :]
    if head != _MAGIC + hashlib.sha256(content).digest():
        _log.error("adopted unique-ids damaged", extra={"fields": {"file": ADOPTED}})
        raise Damaged("the unique-ids of this maildrop are damaged")
    return content


def write(maildrop: int, adopted: Adopted) -> None:
    """Replace the file of adopted unique-ids.  The file is durable on return."""
    assert all(map(UNIQUE_ID.fullmatch, adopted.values()))
    content = pack(adopted)
    files.replace(ADOPTED, _MAGIC + hashlib.sha256(content).digest() + content, maildrop)


def renumber(maildrop: int, inodes: Mapping[Identity, int]) -> None:
    """Replace inode numbers after messages were restored from a backup.

    ``inodes`` has the new inode number of each message, by its unique part and old inode number.
    The ids of messages that are missing are kept, so that no other message gets them.  The file is
    durable on return.

    Raises:
        Damaged: the file was damaged before.
    """
    ids = read(maildrop)
    if any(inode for _, inode in ids):
        present = {(unique, inodes[unique, old]) for unique, old in ids if (unique, old) in inodes}
        renumbered: dict[Identity, str] = {}
        for (unique, old), unique_id in ids.items():
            key = unique, inodes.get((unique, old), old)
            if (unique, old) in inodes or key not in present:
                renumbered[key] = unique_id
        write(maildrop, renumbered)
