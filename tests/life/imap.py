"""An IMAP server on the same Maildir: it renames, moves, copies and removes files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from unittest.mock import patch

from restante import scanning

from . import foreign
from .looking import look_at
from .model import GONE, LISTED, PICKS, Box, Message, Order
from .texts import key
from .world import World

_AT_ONCE = 40  # files renamed during one read of a directory


def picked(world: World, box: Box, pick: str) -> Iterator[tuple[Message, Path]]:
    """Yield the listed messages that ``pick`` selects, with their files."""
    paths = foreign.by_key(world.maildir(world.users[box.user], box.folder))
    for message in PICKS[pick](box.at(LISTED)):
        path = paths.pop(key(message.text), None)
        if path is not None and message.is_certain:
            yield message, path


def set_flags(world: World, name: str, folder: str, pick: str, flags: str) -> None:
    box = world.box(name, folder)
    world.say(f"an IMAP client gives {pick} in {box} the flags {flags!r}")
    for _, path in picked(world, box, pick):
        foreign.set_flags(path, flags)


def set_flags_meanwhile(world: World, name: str, flags: str) -> None:
    """Log in while files are renamed: the listing must have no holes."""
    user = world.users[name]
    if not user.is_enabled or name in world.sessions:
        return world.say(f"{name} does not log in")
    world.say(f"{name} logs in while an IMAP client gives all messages the flags {flags!r}")
    maildir = world.maildir(user)
    paths = [path for _, path in picked(world, user.box("INBOX"), "all")]
    paths = [path for path in paths if path != foreign.with_flags(path, flags)]
    for path in paths[:1]:
        foreign.set_flags(path, flags)  # makes the server read the directories
    with _renamed_while_read(maildir, paths[1:], flags):
        look_at(world, user)
    return None


@contextmanager
def _renamed_while_read(maildir: Path, paths: Sequence[Path], flags: str) -> Iterator[None]:
    """Rename some of these files whenever a server in this process reads a directory.

    The server sees them under neither name, as POSIX allows (readdir).
    """
    remaining, inode, read = list(paths), maildir.stat().st_ino, scanning._list

    def read_with_holes(name: str, parent: int) -> dict[str, int]:
        inodes = read(name, parent)
        if os.fstat(parent).st_ino == inode:
            for path in [each for each in remaining if each.parent.name == name][:_AT_ONCE]:
                remaining.remove(path)
                foreign.set_flags(path, flags)
                inodes.pop(path.name)
        return inodes

    with patch.object(scanning, "_list", read_with_holes):
        yield
    for path in remaining:
        foreign.set_flags(path, flags)


def expunge(world: World, name: str, folder: str, pick: str, is_counted: bool) -> None:
    user = world.users[name]
    box = world.box(name, folder)
    world.say(f"an IMAP client expunges {pick} in {box}")
    for message, path in picked(world, box, pick):
        octets = path.stat().st_size
        path.unlink()
        message.put(GONE)
        world.note_foreign(user, -octets, -1, is_counted=is_counted)


def move(world: World, name: str, folder: str, pick: str) -> None:
    """Move messages from one folder to the other, under the same names."""
    user = world.users[name]
    box, other = world.box(name, folder), world.box(name, _OTHER[folder])
    world.say(f"an IMAP client moves {pick} from {box} to {other}")
    place = world.maildir(user, other.folder)
    for message, path in _transferable(world, box, other, pick):
        if (
            message.is_contested
        ):  # its unique-id in the other folder depends on earlier messages there
            continue
        message.put(GONE)
        box.away[message.text] = message
        other.receive(message, _order_elsewhere(message, path))
        foreign.move(path, place)


def copy(world: World, name: str, folder: str, pick: str, is_counted: bool) -> None:
    """Copy messages from one folder to the other, under new names."""
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
    """Yield messages without a copy in the other folder: two links to one file are one message."""
    there = {message.text for message in other.messages if message.places != {GONE}}
    for message, path in picked(world, box, pick):
        if message.text not in there:
            yield message, path


def _order_elsewhere(message: Message, path: Path) -> Order:
    """Return the order in the other folder, where the order of an import does not apply."""
    if message.order.adopted == inf:
        return message.order
    return foreign.order(path.name)
