"""Unique-ids that do not follow from the name of a file, kept for ever.

They come from another server whose mail was imported (by unique part, in the order of its listing),
or assign different ids to two files that claim the same one (by unique part and inode number).

They cannot be derived from anything else: the file is replaced durably, and if it is damaged the
maildrop is not opened, because clients would download all mail again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable

from ..errors import Damaged
from . import files
from .names import Adopted, Identity, pack, unpack

ADOPTED = "restante.ids"

_MAGIC = b"restante ids 1\n"
_DIGEST = 32  # octets
UNIQUE_ID = re.compile("[!-~]{1,70}")  # RFC 1939 §7

_log = logging.getLogger(__name__)


def read(maildrop: int) -> dict[Identity, str]:
    """Raises:
    Damaged: an administrator must restore it from a backup, or remove it.
    """
    return unpack(_listed(maildrop))


def mention(maildrop: int, words: Iterable[str]) -> bool:
    """Return whether one of these unique-ids or unique parts occurs, without decoding all.

    Raises:
        Damaged: as ``read``.
    """
    listed = _listed(maildrop)
    return any(
        b" %b%b" % (os.fsencode(each), end) in listed for each in words for end in (b" ", b"\0")
    )


def _listed(maildrop: int) -> bytes:
    try:
        octets = files.read(ADOPTED, maildrop)
    except FileNotFoundError:
        return b""
    head, listed = octets[: len(_MAGIC) + _DIGEST], octets[len(_MAGIC) + _DIGEST :]
    if head != _MAGIC + hashlib.sha256(listed).digest():
        _log.error("adopted unique-ids damaged", extra={"fields": {"file": ADOPTED}})
        raise Damaged("the unique-ids of this maildrop are damaged")
    return listed


def write(maildrop: int, adopted: Adopted) -> None:
    """Write the file; it is durable on return."""
    assert all(map(UNIQUE_ID.fullmatch, adopted.values()))
    listed = pack(adopted)
    files.replace(ADOPTED, _MAGIC + hashlib.sha256(listed).digest() + listed, maildrop)
