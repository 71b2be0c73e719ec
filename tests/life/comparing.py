"""Compares a session with the model: its listing and its messages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from .clients import Ended, Listed, Pop3
from .model import LISTED, History, Message, Shown, User, check_order
from .texts import key
from .world import World

_AGAIN = 10  # known messages that are read again in each session


def log_in(
    world: World, user: User, login: str, parts: Sequence[Shown], password: str = ""
) -> tuple[Pop3, list[Message]]:
    """Log in and compare; returns the session and its messages by number.

    A file name with a wrong size costs one connection; after that the size is known.
    """
    client = world.log_in(login, password)
    misnamed = [message for part in parts for message in part.box.messages if message.is_misnamed]
    if misnamed:
        try:
            return client, find(client, user, login, parts)
        except Ended:
            client.drop()
            world.dropped.add(user.name)
            client = world.log_in(login, password)
    found = find(client, user, login, parts)
    for message in misnamed:
        message.is_misnamed = False
    return client, found


def find(client: Pop3, user: User, name: str, parts: Sequence[Shown]) -> list[Message]:
    """Compare listing and messages with the model; returns the messages by number."""
    listed = client.listing()
    found = _known(listed, parts)
    texts = dict(_read(client, listed, found))
    _recognise(listed, found, parts, texts)
    messages = [found[each.number] for each in listed]
    for each, message in zip(listed, messages, strict=True):
        if each.number in texts:
            message.read(texts[each.number])
        assert each.size == len(message.wire) or message.is_misnamed, (
            f"{name}: {message} has {len(message.wire)} octets and is listed with {each.size}"
        )
    _check_what_is_missing(name, parts, messages)
    history = user.histories.setdefault(f"{name.casefold()} {user.view}", History())
    history.check([each.unique_id for each in listed])
    for part in parts:
        own = set(part.box.messages)
        check_order([each for each in messages if each in own])
    return messages


def _known(listed: Sequence[Listed], parts: Sequence[Shown]) -> dict[int, Message]:
    """Return the messages whose unique-ids were listed before, by number."""
    found = {}
    for each in listed:
        for part in parts:
            message = part.box.owners.get((part.way, each.unique_id))
            if message is not None and message.unique_ids.get(part.way) == each.unique_id:
                assert message.may_be(LISTED), f"{message} is listed again"
                message.put(LISTED)
                found[each.number] = message
    return found


def _read(
    client: Pop3, listed: Sequence[Listed], known: dict[int, Message]
) -> Iterator[tuple[int, bytes]]:
    """Read all new messages and some known ones."""
    wanted = [each.number for each in listed if each.number not in known]
    wanted += [number for number in known if not known[number].wire]
    again = sorted(known.keys() - set(wanted))
    wanted += again[:: len(again) // _AGAIN + 1]
    for number, text in client.retrieve(sorted(wanted)):
        if text is None:
            raise Ended(f"message {number} is listed, and refused")
        yield number, text


def _recognise(
    listed: Sequence[Listed],
    found: dict[int, Message],
    parts: Sequence[Shown],
    texts: dict[int, bytes],
) -> None:
    """Identify the new messages by their text."""
    waiting: dict[bytes, list[tuple[Shown, Message]]] = defaultdict(list)
    here = set(found.values())
    for part in parts:
        for message in part.box.at(LISTED):
            if message not in here:
                waiting[message.text].append((part, message))
    for each in listed:
        if each.number in found:
            continue
        candidates = waiting[key(texts[each.number])]
        assert candidates, (
            f"there is a message too many, {each.unique_id}: {texts[each.number][:300]!r}"
        )
        part, message = candidates.pop(0)
        part.box.name(message, part.way, each.unique_id)
        message.put(LISTED)
        found[each.number] = message


def _check_what_is_missing(name: str, parts: Sequence[Shown], found: Sequence[Message]) -> None:
    here = set(found)
    for part in parts:
        for message in part.box.at(LISTED):
            if message not in here:
                message.places -= {LISTED}
                assert message.places, f"{name}: {message} is lost"
