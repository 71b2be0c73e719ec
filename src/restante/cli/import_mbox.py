"""``restante import mbox``: mail from one file, also of programs that know of no unique-ids."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

from ..app.words import counted
from ..errors import PermanentFailure
from ..store import mbox
from ..store.coded import LONGEST, coding
from .import_messages import Arrival, Found, name_of, stamp

_LINE = 65_536  # octets; a longer line is read in parts
_NAMED = 10  # of many


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unquote",
        action=argparse.BooleanOptionalAction,
        help='turn ">From" at the beginning of a line into "From", as mboxrd wants it; by default '
        "unless a server used the file",
    )


def read(options: argparse.Namespace) -> Found:
    """Messages without an id of a server get one that is made from their content, so an import can
    be repeated; of such messages that are equal one is taken.

    Raises:
        PermanentFailure: no mbox.
    """
    before = stamp(options.path)
    with options.path.open("rb") as file:
        if how := coding(file.read(LONGEST)):
            raise PermanentFailure(f"{options.path} is no plain mbox ({how}); next: unpack it")
        file.seek(0)
        found = mbox.read(iter(partial(file.readline, _LINE), b""))
    is_servers = options.kind == "uw" or bool(options.uidl) or found.is_servers
    ids = _ids(found) if is_servers else {}
    messages = [each for each in found.messages if is_servers or not each.is_expunged]
    result = Found([], notes=[*_notes(found), *(_notes_of_ids(found) if is_servers else ())])
    make = partial(
        Arrival,
        path=options.path,
        unquotes=not is_servers if options.unquote is None else options.unquote,
        stamp=before,
    )
    known: dict[str, int] = {}
    for each in messages:
        unique_id = ids.get(each.number, "")
        if not unique_id and not options.uidl:
            if each.digest in known:
                result.duplicates.append((each.number, known[each.digest]))
                continue
            known[each.digest] = each.number
            unique_id, result.made = each.digest, result.made + 1
        name = name_of(unique_id)
        result.arrivals.append(make(name, unique_id, begin=each.begin, end=each.end))
    if result.duplicates:
        pairs = (f"{number} (as {other})" for number, other in result.duplicates)
        text = counted(len(result.duplicates), "message")
        result.notes.append(f"{text} equal to another one, which is taken once: {_few(pairs)}")
    return result


def _ids(found: mbox.Mbox) -> dict[int, str]:
    """Of the old server, by number; without those that several messages claim."""
    claims = Counter(each.unique_id for each in found.messages)
    return {
        each.number: each.unique_id
        for each in found.messages
        if each.unique_id and claims[each.unique_id] == 1
    }


def _notes_of_ids(found: mbox.Mbox) -> Iterator[str]:
    claims = Counter(each.unique_id for each in found.messages if each.unique_id)
    for unique_id in (each for each, count in claims.items() if count > 1):
        numbers = (str(each.number) for each in found.messages if each.unique_id == unique_id)
        yield f"one unique-id for several messages, which get new ones: {_few(numbers)}"


def _notes(found: mbox.Mbox) -> Iterator[str]:
    if not found.messages:
        yield "there are no messages in it"
    if found.doubtful:
        yield (
            f'{counted(len(found.doubtful), "line")} beginning with "From " may be text or the '
            f"beginning of a message; look at: {_few(map(str, found.doubtful))}"
        )
    expunged = sum(each.is_expunged for each in found.messages)
    if expunged and not found.is_servers:
        yield f"{counted(expunged, 'message')} deleted in Thunderbird, left out"


def _few(words: Iterable[str]) -> str:
    named = list(words)
    more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more
