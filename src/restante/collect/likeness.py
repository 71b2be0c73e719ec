"""Which mail is here already, told by its header: a Maildir that another program has filled.

Such a program may have changed line ends, put fields in front, folded others anew and moved the
message into a folder.  What it leaves alone is what the sender wrote into a few fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import compat32
from hashlib import sha256
from pathlib import Path

_FIELDS = ("message-id", "date", "from", "to", "cc", "subject")
_MOST = 256 * 1024  # octets of a header


def likeness(header: Message) -> bytes | None:
    """SHA-256 of what the sender wrote; None: it names neither itself nor its time, as RFC 5322
    §3.6 wants one to do, and may be any message."""
    found = {name.lower(): " ".join(str(value).split()) for name, value in header.raw_items()}
    told = [found.get(name, "") for name in _FIELDS]
    if not (told[0] or told[1]):
        return None
    return sha256("\0".join(told).encode("utf-8", "surrogateescape")).digest()


def in_maildir(path: Path) -> Counter[bytes]:
    """How many messages of each likeness are there and in its folders.

    Raises:
        OSError: it cannot be read, or is no Maildir.
    """
    found: Counter[bytes] = Counter()
    parser = BytesHeaderParser(policy=compat32)
    for file in _messages(path):
        with file.open("rb") as opened:
            if mark := likeness(parser.parsebytes(opened.read(_MOST))):
                found[mark] += 1
    return found


def _messages(path: Path) -> Iterator[Path]:
    for name in ("new", "cur"):
        yield from (each for each in (path / name).iterdir() if each.is_file())
    for folder in path.iterdir():
        is_folder = folder.name not in ("new", "cur", "tmp") and not folder.is_symlink()
        if is_folder and (folder / "cur").is_dir():
            yield from _messages(folder)
