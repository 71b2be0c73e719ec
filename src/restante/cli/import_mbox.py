"""``restante import mbox``: import mail from an mbox file, even if it has no unique-ids."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

from ..errors import PermanentFailure
from ..store import mbox
from ..store.coded import PREFIX_LENGTH, encoding_of
from ..words import counted
from .import_messages import ImportedFiles, ImportedMessage, name_of, stamp

_LINE = 65_536  # octets; a longer line is read in parts
_MAX_NUMBERS = 10  # message numbers in a note; more would fill the terminal


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unquote",
        action=argparse.BooleanOptionalAction,
        help='replace ">From" at the beginning of a line with "From", as in mboxrd; by '
        "default only for files that were not written by a server",
    )


def read(options: argparse.Namespace) -> ImportedFiles:
    """Read the messages of an mbox.

    Messages without a unique-id get one from their content, so that an import can be repeated.  If
    several messages without a unique-id are identical, only the first is imported.

    Raises:
        PermanentFailure: the file is not a plain mbox.
    """
    stamp_before = stamp(options.path)
    with options.path.open("rb") as file:
        if encoding := encoding_of(file.read(PREFIX_LENGTH)):
            raise PermanentFailure(
                f"{options.path} is not a plain mbox ({encoding}); unpack it first"
            )
        file.seek(0)
        box = mbox.read(iter(partial(file.readline, _LINE), b""))
    is_server_mbox = options.kind == "uw" or bool(options.uidl) or box.has_server_ids
    ids = _ids(box) if is_server_mbox else {}
    messages = [each for each in box.messages if is_server_mbox or not each.is_expunged]
    result = ImportedFiles(
        [], notes=[*_notes(box), *(_notes_of_ids(box) if is_server_mbox else ())]
    )
    make_message = partial(
        ImportedMessage,
        path=options.path,
        unquotes=not is_server_mbox if options.unquote is None else options.unquote,
        stamp=stamp_before,
    )
    known: dict[str, int] = {}
    for each in messages:
        unique_id = ids.get(each.number, "")
        if not unique_id and not options.uidl:
            if each.digest in known:
                result.duplicates.append((each.number, known[each.digest]))
                continue
            known[each.digest] = each.number
            unique_id, result.new_ids = each.digest, result.new_ids + 1
        name = name_of(unique_id)
        result.messages.append(make_message(name, unique_id, begin=each.begin, end=each.end))
    if result.duplicates:
        pairs = (f"{number} (same as {other})" for number, other in result.duplicates)
        text = counted(len(result.duplicates), "message")
        result.notes.append(f"left out {text} identical to another message: {_abbreviated(pairs)}")
    return result


def _ids(box: mbox.Mbox) -> dict[int, str]:
    """Return the old server's unique-ids by message number, except ids that are not unique."""
    uses = Counter(each.unique_id for each in box.messages)
    return {
        each.number: each.unique_id
        for each in box.messages
        if each.unique_id and uses[each.unique_id] == 1
    }


def _notes_of_ids(box: mbox.Mbox) -> Iterator[str]:
    uses = Counter(each.unique_id for each in box.messages if each.unique_id)
    for unique_id in (each for each, count in uses.items() if count > 1):
        numbers = (str(each.number) for each in box.messages if each.unique_id == unique_id)
        listed = _abbreviated(numbers)
        yield f"these messages had the same unique-id, so each gets a new one: {listed}"


def _notes(box: mbox.Mbox) -> Iterator[str]:
    if not box.messages:
        yield "the file contains no messages"
    if box.doubtful:
        yield (
            f'{counted(len(box.doubtful), "line")} beginning with "From " may be text or the '
            f"beginning of a message; check: {_abbreviated(map(str, box.doubtful))}"
        )
    expunged = sum(each.is_expunged for each in box.messages)
    if expunged and not box.has_server_ids:
        yield f"left out {counted(expunged, 'message')} deleted in Thunderbird"


def _abbreviated(items: Iterable[str]) -> str:
    listed = list(items)
    more = f", and {len(listed) - _MAX_NUMBERS} more" if len(listed) > _MAX_NUMBERS else ""
    return ", ".join(listed[:_MAX_NUMBERS]) + more
