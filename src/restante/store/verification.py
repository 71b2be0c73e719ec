"""Verify a maildrop: compare the index, file names and records with the messages themselves.

Every message is read, and nothing is changed.  ``reindex`` repairs the index.  Damaged mail must be
restored from a backup.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ..errors import TemporaryFailure
from ..scanning import scan_exactly
from ..words import counted
from . import adopted, files, journal
from .coded import PREFIX_LENGTH, encoding_of
from .held import VICTIMS, is_unfinished, name_before_removal
from .index import INDEX, Form, Index, Row, is_damaged, load, stamps
from .names import File, Identity, contested, field, identify
from .refresh import are_names_trusted, measured


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault in a maildrop."""

    what: str
    """Stable identifier of one or two words, for programs."""
    name: str
    """The unique-id, or the name of the file in the Maildir."""
    text: str
    """Description for the operator, without the name."""


def verify(maildrop: int) -> Iterator[Finding | None]:
    """Yield None for each message read, and each finding.  Blocking.

    The caller must hold the lock of a session.

    Raises:
        OSError: the maildrop itself cannot be read.
    """
    if is_unfinished(maildrop):
        yield Finding("update unfinished", VICTIMS, "the next login finishes it")
    adopted_ids: dict[Identity, str] = {}
    try:
        adopted_ids = adopted.read(maildrop)
    except TemporaryFailure:
        text = "logins fail until the file is restored from a backup or removed"
        yield Finding("ids damaged", adopted.ADOPTED, text)
    by_id = identify(scan_exactly(maildrop), adopted_ids)
    if contested(by_id, adopted_ids):
        yield Finding("ids contested", adopted.ADOPTED, "the next login assigns different ids")
    index, finding = _index(maildrop, by_id)
    if finding is not None:
        yield finding
    positions = index.positions()
    for unique_id, file in by_id.items():
        announced, position = Row(unique_id, file, -1), positions.get(file.inode)
        if position is not None and index.matches(position, file):
            announced = Row(unique_id, file, *index.measured(position))
        finding = _message(maildrop, announced)
        if finding is not None:
            yield finding
        yield None
    yield from _others(maildrop, {file.inode for file in by_id.values()})
    for name, lines in journal.damage(maildrop).items():
        yield Finding("journal damaged", name, f"{counted(lines, 'line')} cannot be read")


def _index(maildrop: int, by_id: Mapping[str, File]) -> tuple[Index, Finding | None]:
    """Return the index, which may be older than the mail, and a finding about it or None."""
    index = load(maildrop)
    if index is None:
        try:
            is_faulty, text = is_damaged(maildrop), "the next login rebuilds the index"
        except OSError as error:
            is_faulty, text = True, f"cannot be read: {error.strerror}; logins measure all messages"
        return Index(), Finding("index damaged", INDEX, text) if is_faulty else None
    if index.stamps == stamps(maildrop):
        messages = list(map(index.row, range(len(index))))
        listed = [(each.unique_id, each.file) for each in messages]
        if listed != list(by_id.items()) or not index.has_same_answers(messages):
            text = "the index does not match the messages"
            return Index(), Finding("index differs", INDEX, text)
    if index.on_disk is None:
        text = "the end is torn; the next login repairs the index"
        return index, Finding("index damaged", INDEX, text)
    return index, None


def _message(maildrop: int, announced: Row) -> Finding | None:
    try:
        encoding = _encoding(maildrop, announced.file)
        actual = measured(maildrop, announced)
    except FileNotFoundError:  # another program has moved or removed the message
        return None
    if encoding:
        return Finding("coded", announced.unique_id, f"cannot be read by clients: {encoding}")
    size: int | None = announced.size
    if announced.size < 0:
        size = field("W", announced.file.name) if are_names_trusted(maildrop) else None
    if actual.form is Form.GUESSED:
        return Finding("unreadable", announced.unique_id, "cannot be read now")
    if size not in (None, actual.size):
        text = f"the announced size is {size} octets, the real size is {actual.size}"
        return Finding("size differs", announced.unique_id, text)
    if actual.form < announced.form:
        return Finding(
            "form differs", announced.unique_id, "the line endings differ from those in the index"
        )
    return None


def _encoding(maildrop: int, file: File) -> str:
    with files.directory(file.directory, maildrop) as directory:
        try:
            with files.reading(file.name, directory) as message:
                return encoding_of(files.beginning(message, PREFIX_LENGTH))
        except FileNotFoundError:
            raise
        except OSError:
            return ""  # ``measured`` gets and reports the same error


def _others(maildrop: int, listed: Collection[int]) -> Iterator[Finding]:
    """Check held mail, and files that are not messages."""
    for directory in ("new", "cur"):
        for name in files.list_others(directory, maildrop):
            yield Finding("no file", f"{directory}/{name}", "is not a regular file and is ignored")
    if not files.exists(files.HELD, maildrop):
        return
    with files.directory(files.HELD, maildrop) as held:
        for name, inode in files.list_files(files.HELD, maildrop):
            if not name_before_removal(name):
                yield Finding("held unknown", name, "does not have the name of a held message")
            elif inode in listed:
                yield Finding("twice", name, "is both held and listed")
            else:
                with suppress(FileNotFoundError):
                    yield from _held(name, held)


def _held(name: str, held: int) -> Iterator[Finding]:
    try:
        with files.reading(name, held) as file:
            files.survey(file)
    except FileNotFoundError:
        raise
    except OSError:
        yield Finding("unreadable", name, "is held but cannot be read now")
