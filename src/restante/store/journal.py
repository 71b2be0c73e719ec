"""The journal of a maildrop: one line for each session that retrieved or removed mail.

A line is a checksum of the rest, a space, and a JSON object.  Lines are only appended, under the
session's lock, and do not depend on each other: readers skip a line that a crash has torn, and
writers start a new line after a torn line.  When the file reaches ``_MAX_SIZE`` octets, it becomes
the old file, and the previous old file is deleted.

Security: the journal contains unique-ids, sizes, addresses and names of credentials, but never a
password or the text of a message.  Only the file's owner can read it (mode 0600).
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

_MAX_SIZE = 1_048_576  # octets; both files together have up to 2 MiB, thousands of sessions
_DIGEST = 8  # octets; detects torn lines, not forgeries

# ``json.dumps`` would create an encoder for each line.
_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_log = logging.getLogger(__name__)


def record(maildrop: int, session: SessionRecord) -> None:
    """Append a session, durably if it removed mail.  Errors are only logged."""
    try:
        append(maildrop, session)
    except OSError as error:
        _log.error("journal not written", extra={"fields": {"reason": error.strerror}})


def record_without_waiting(maildrop: int, session: SessionRecord) -> bool:
    """Append a session if this is possible without waiting for the disk.

    Otherwise the function does nothing and returns False.
    """
    if session.removed:
        return False
    try:
        return files.append_line(JOURNAL, _line(session), maildrop, max_octets=_MAX_SIZE)
    except OSError:
        return False  # ``record`` gets the same error and logs it


def append(maildrop: int, session: SessionRecord) -> None:
    """Append a session, durably if it removed mail.

    Raises:
        OSError: the line was not written, or is not durable.
    """
    durably = bool(session.removed)
    files.append_bounded(
        JOURNAL, OLD, _line(session), maildrop, max_octets=_MAX_SIZE, durably=durably
    )


def read(maildrop: int) -> Iterator[SessionRecord]:
    """Yield the sessions, the oldest first.  Damaged lines are skipped and logged."""
    for _, line in _lines(maildrop):
        session = _parse(line)
        if session is not None:
            yield session
    for name, lines in damage(maildrop).items():
        _log.warning("journal damaged", extra={"fields": {"file": name, "lines": lines}})


def damage(maildrop: int) -> dict[str, int]:
    """Return the number of damaged lines by file name."""
    return dict(Counter(name for name, line in _lines(maildrop) if _parse(line) is None))


def _lines(maildrop: int) -> Iterator[tuple[str, bytes]]:
    """Yield each line with the name of its file."""
    for name in (OLD, JOURNAL):
        with suppress(FileNotFoundError):
            for line in files.read(name, maildrop).split(b"\n"):
                if line:
                    yield name, line


def _line(session: SessionRecord) -> bytes:
    fields = {
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
    octets = _JSON.encode(fields).encode("ascii")  # JSON in ASCII has no line ending
    return b"%b %b\n" % (_digest(octets), octets)


def _parse(line: bytes) -> SessionRecord | None:
    """Return None if the line is damaged.  Fields of later versions are ignored."""
    digest, _, octets = line.partition(b" ")
    if digest != _digest(octets):
        return None
    with suppress(ValueError, TypeError, KeyError):
        fields = json.loads(octets)
        return SessionRecord(
            began_at=float(fields["began_at"]),
            ended_at=float(fields["ended_at"]),
            address=str(fields["address"]),
            tls=str(fields["tls"]),
            credential=str(fields["credential"]),
            retrieved=_entries(fields["retrieved"]),
            removed=_entries(fields["removed"]),
            end=str(fields["end"]),
            unnamed=int(fields["unnamed"]),
        )
    return None


def _entries(pairs: list[tuple[str, int]]) -> tuple[Entry, ...]:
    return tuple(Entry(str(unique_id), int(size)) for unique_id, size in pairs)


def _digest(octets: bytes) -> bytes:
    return hashlib.blake2b(octets, digest_size=_DIGEST).hexdigest().encode("ascii")
