"""An IMAP server in the same Maildir: it renames, moves, copies and removes files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path

from . import foreign
from .looking import look_at
from .model import GONE, LISTED, PICKS, Box, Message, Order
from .texts import key
from .world import World


def _picked(world: World, box: Box, pick: str) -> Iterator[tuple[Message, Path]]:
    """Messages that are listed, with their files."""
    paths = foreign.by_key(world.maildir(world.users[box.user], box.folder))
    for message in PICKS[pick](box.at(LISTED)):
        path = paths.pop(key(message.text), None)
        if path is not None and message.is_certain:
            yield message, path


def set_flags(world: World, name: str, folder: str, pick: str, flags: str) -> None:
    box = world.box(name, folder)
    world.say(f"an IMAP client gives {pick} in {box} the flags {flags!r}")
    for _, path in _picked(world, box, pick):
        foreign.set_flags(path, flags)


def set_flags_meanwhile(world: World, name: str, flags: str) -> None:
    """A listing with holes is a lie: nothing is missing, however often files are renamed."""
    user = world.users[name]
    if not user.is_enabled or name in world.sessions:
        return world.say(f"{name} does not log in")
    world.say(f"{name} logs in while an IMAP client gives all messages the flags {flags!r}")
    paths = [path for _, path in _picked(world, world.box(name, "INBOX"), "all")]

    def rename_all() -> None:
        for path in paths:
            foreign.set_flags(path, flags)

    with ThreadPoolExecutor(1) as threads:
        renaming = threads.submit(rename_all)
        look_at(world, user)
        renaming.result()
    return None


def expunge(world: World, name: str, folder: str, pick: str, is_counted: bool) -> None:
    user = world.users[name]
    box = world.box(name, folder)
    world.say(f"an IMAP client expunges {pick} in {box}")
    for message, path in _picked(world, box, pick):
        octets = path.stat().st_size
        path.unlink()
        message.put(GONE)
        world.note_foreign(user, -octets, -1, is_counted=is_counted)


def move(world: World, name: str, folder: str, pick: str) -> None:
    """From one folder to the other, under the same names."""
    user = world.users[name]
    box, other = world.box(name, folder), world.box(name, _OTHER[folder])
    world.say(f"an IMAP client moves {pick} from {box} to {other}")
    place = world.maildir(user, other.folder)
    for message, path in _transferable(world, box, other, pick):
        message.put(GONE)
        box.away[message.text] = message
        other.receive(message, _order_elsewhere(message, path))
        foreign.move(path, place)


def copy(world: World, name: str, folder: str, pick: str, is_counted: bool) -> None:
    """From one folder to the other, under new names."""
    user = world.users[name]
    box, other = world.box(name, folder), world.box(name, _OTHER[folder])
    world.say(f"an IMAP client copies {pick} from {box} to {other}")
    for message, path in _transferable(world, box, other, pick):
        file = foreign.copy(path, world.maildir(user, other.folder), world.next_number())
        stored = path.stat().st_size
        other.messages.append(Message(message.text, stored=stored, order=foreign.order(file)))
        world.note_foreign(user, stored, 1, is_counted=is_counted)


_OTHER = {"INBOX": "Junk", "Junk": "INBOX"}


def _transferable(world: World, box: Box, other: Box, pick: str) -> Iterator[tuple[Message, Path]]:
    """Those of which the other folder has no copy: two links to one file are one message."""
    there = {message.text for message in other.messages if message.places != {GONE}}
    for message, path in _picked(world, box, pick):
        if message.text not in there:
            yield message, path


def _order_elsewhere(message: Message, path: Path) -> Order:
    """Another folder knows nothing of a listing of another server."""
    if message.order.adopted == inf:
        return message.order
    return foreign.order(path.name)
