"""Who took or removed which mail: one line for each session that did, beside the mail.

A line is a checksum of what follows, a space, and a JSON object.  Lines are only appended, in
turns (the session's lock), and each by itself: a torn one, or what a crash has made of it, is
passed over, and nothing is ever written into its remains.  When the file has grown to ``_FULL``
octets it becomes the old one, and the old one before is forgotten.

Security: unique-ids, sizes, addresses and names of credentials; never a password, never text of a
message.  The file is its owner's alone (0600).
All calls block.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from ..maildrop import Entry, SessionRecord
from . import files

JOURNAL, OLD = "restante.journal", "restante.journal.1"

_FULL = 1_048_576  # octets
_DIGEST = 8  # octets

_log = logging.getLogger(__name__)


def record(maildrop: int, session: SessionRecord) -> None:
    """Durable on return if the session removed something; an error is told to the log."""
    try:
        append(maildrop, session)
    except OSError as error:
        _log.error("journal not written", extra={"fields": {"reason": error.strerror}})


def record_at_once(maildrop: int, session: SessionRecord) -> bool:
    """As ``record``, if that takes no waiting for the disk; else nothing is done, and False."""
    if session.removed:
        return False
    try:
        return files.append_line(JOURNAL, _line(session), maildrop, most=_FULL)
    except OSError:
        return False  # ``record`` will hear it again


def append(maildrop: int, session: SessionRecord) -> None:
    """As ``record``.

    Raises:
        OSError: the line is not in the journal, or not durably.
    """
    durably = bool(session.removed)
    files.append_bounded(JOURNAL, OLD, _line(session), maildrop, most=_FULL, durably=durably)


def read(maildrop: int) -> Iterator[SessionRecord]:
    """The oldest first.  What is damaged is passed over, and told to the log."""
    for _, line in _lines(maildrop):
        session = _parse(line)
        if session is not None:
            yield session
    for name, lines in damage(maildrop).items():
        _log.warning("journal damaged", extra={"fields": {"file": name, "lines": lines}})


def damage(maildrop: int) -> dict[str, int]:
    """How many lines cannot be read, by the name of the file."""
    return dict(Counter(name for name, line in _lines(maildrop) if _parse(line) is None))


def _lines(maildrop: int) -> Iterator[tuple[str, bytes]]:
    """With the names of their files."""
    for name in (OLD, JOURNAL):
        with suppress(FileNotFoundError):
            for line in files.read(name, maildrop).split(b"\n"):
                if line:
                    yield name, line


def _line(session: SessionRecord) -> bytes:
    told = {
        "began_at": round(session.began_at, 3),
        "ended_at": round(session.ended_at, 3),
        "address": session.address,
        "tls": session.tls,
        "credential": session.credential,
        "retrieved": [[entry.unique_id, entry.size] for entry in session.retrieved],
        "unnamed": session.unnamed,
        "removed": [[entry.unique_id, entry.size] for entry in session.removed],
        "end": session.end,
    }
    octets = json.dumps(told, separators=(",", ":")).encode("ascii")  # no line end in it
    return b"%b %b\n" % (_digest(octets), octets)


def _parse(line: bytes) -> SessionRecord | None:
    """What a later version adds is passed over."""
    digest, _, octets = line.partition(b" ")
    if digest != _digest(octets):
        return None
    with suppress(ValueError, TypeError, KeyError):
        told = json.loads(octets)
        return SessionRecord(
            began_at=float(told["began_at"]),
            ended_at=float(told["ended_at"]),
            address=str(told["address"]),
            tls=str(told["tls"]),
            credential=str(told["credential"]),
            retrieved=_entries(told["retrieved"]),
            removed=_entries(told["removed"]),
            end=str(told["end"]),
            unnamed=int(told["unnamed"]),
        )
    return None


def _entries(told: list[tuple[str, int]]) -> tuple[Entry, ...]:
    return tuple(Entry(str(unique_id), int(size)) for unique_id, size in told)


def _digest(octets: bytes) -> bytes:
    return hashlib.blake2b(octets, digest_size=_DIGEST).hexdigest().encode("ascii")
