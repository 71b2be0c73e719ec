"""Held mail, backups, and damaged caches."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from . import foreign
from .looking import check_findings, look_at, look_at_held
from .model import GONE, HELD, LISTED, PICKS, Message, Order, User
from .world import World


def settle(world: World, user: User) -> bool:
    """Resolve what a kill has left uncertain; returns False if no login is possible now."""
    if user.is_certain:
        return True
    if user.name in world.sessions or not user.is_enabled:
        return False
    look_at(world, user)
    return True


# -- Held mail


def restore(world: World, name: str, pick: str, same_ids: bool) -> None:
    """Restore held messages."""
    user = world.users[name]
    ids = "their old" if same_ids else "new"
    world.say(f"{pick} of the held mail of {name} is restored with {ids} unique-ids")
    if not settle(world, user):
        return
    names = look_at_held(world, user)
    held = [message for message in user.messages if message in names]
    chosen = list(PICKS[pick](held))
    if not chosen:
        return
    which = ["--all"] if len(chosen) == len(held) else [names[message] for message in chosen]
    options = ["--same-uidl"] if same_ids else []
    began = int(time.time())
    ran = world.home.must("maildrop", "restore", name, *which, *options)
    assert ran["messages"] == len(chosen), f"{ran['messages']} of {len(chosen)} came back"
    order = Order(earliest=began, latest=time.time(), arrival=world.next_arrival())
    # A collected message keeps its name except for a later time stamp; its unique-id is new.
    collected = Order(earliest=began)
    for message in chosen:
        message.put(LISTED)
        if not same_ids:
            message.may_be_renamed, message.promised = True, ""
            message.order = collected if message.is_collected else order
            message.is_old = False
    user.quota.is_exact = True  # recounted by the command


def purge(world: World, names: Sequence[str]) -> None:
    """Destroy held mail, of one user or of all."""
    world.say(f"the held mail of {' and '.join(names)} is destroyed")
    users = [world.users[name] for name in names]
    if not all([settle(world, user) for user in users]):
        return
    whose = ["--all"] if len(names) == len(world.users) else names
    world.home.must("maildrop", "purge", *whose, "--yes")
    for user in users:
        for message in user.messages:
            if message.may_be(HELD):
                message.put(GONE)
        look_at_held(world, user)


# -- Backups


@dataclass(frozen=True)
class Backup:
    """A backup, and where each message of one maildrop was when it was made."""

    place: Path
    boxes: dict[str, list[Message]]


def back_up(world: World, name: str) -> None:
    """Make a backup while the server runs (docs/howto/backup-and-restore.md)."""
    user = world.users[name]
    if name in world.sessions or not user.is_enabled:
        return world.say(f"no backup is made of {name}")
    world.say(f"a backup is made of the mail of {name}")
    look_at(world, user)
    place = world.place / f"backup.{name}.tar"
    world.home.must("backup", str(place), "--overwrite")
    boxes = {folder: list(map(copy, box.messages)) for folder, box in user.boxes.items()}
    world.backups[name] = Backup(place, boxes)
    return None


def restore_backup(world: World, name: str) -> None:
    """Stop the server and restore one maildrop; clients still know its unique-ids."""
    backup = world.backups.get(name)
    if backup is None:
        return world.say(f"there is no backup of {name}")
    world.say(f"the server is stopped, and the mail of {name} is restored from the backup")
    user = world.users[name]
    world.stop()
    restored = world.place / f"restored.{name}"
    shutil.rmtree(restored, ignore_errors=True)
    world.home.must("restore", str(backup.place), "--to", str(restored))
    shutil.rmtree(world.maildir(user))
    (restored / "mail" / name).rename(world.maildir(user))  # which keeps the inode numbers
    world.server.start()
    boxes, user.boxes = user.boxes, {}
    for folder, messages in backup.boxes.items():
        box = user.box(folder)
        box.messages, box.owners = list(map(copy, messages)), boxes[folder].owners
        box.owners |= {
            (way, unique_id): message
            for message in box.messages
            for way, unique_id in message.unique_ids.items()
        }
    user.quota.is_exact = False
    world.imports.pop(name, None)
    check_findings(world, user)
    return None


# -- Damage


def harm_index(world: World, name: str, folder: str, how: str) -> None:
    """Damage the index: it is a cache, and no login may rely on a wrong one."""
    user = world.users[name]
    world.say(f"the index of {world.box(name, folder)} is {how}")
    user.is_index_harmed = True
    index = world.maildir(user, folder) / "restante.index"
    if index.parent.exists():
        foreign.HARM[how](index, world.place / f"{name}.{folder}.index")


def lose_count(world: World, name: str) -> None:
    world.say(f"maildirsize of {name} is lost")
    user = world.users[name]
    (world.maildir(user) / "maildirsize").unlink(missing_ok=True)
    user.quota.is_exact = True


def reindex(world: World, name: str) -> None:
    if name in world.sessions:
        return world.say(f"{name} is logged in")
    world.say(f"the index of {name} is made again by command")
    world.home.must("maildrop", "reindex", name)
    return None
