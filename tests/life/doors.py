"""Mail arrives: by each entrance of restante, or stored by other programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from . import foreign
from .clients import Smtp
from .imap import picked
from .keeping import settle
from .looking import look_at
from .model import GONE, LISTED, Message, Order, User
from .texts import LINE_ENDS, on_the_wire
from .world import World


@dataclass(slots=True)
class Unsent:
    """A message that its sender repeats until it is accepted for all recipients."""

    text: bytes
    names: Sequence[str]
    stored: set[str] = field(default_factory=set)
    """Users who certainly have it."""
    copies: dict[str, Message] = field(default_factory=dict)
    """By user, copies that may have been stored; the next login shows which were."""

    def missing(self) -> list[str]:
        """Return the users who do not have it."""
        read = {name for name, copy in self.copies.items() if copy.wire}
        return [name for name in self.names if name not in self.stored | read]


Deliver = Callable[[Sequence[str], bytes], list[bool]]
"""Delivers a message to these users; returns for each whether it was accepted."""

_MOST_COMMANDS = 10  # most messages delivered with one command each
_REFUSED = (65, 75)  # exit codes (sysexits.h): nothing was stored


@contextmanager
def _lmtp(world: World) -> Iterator[Deliver]:
    client = Smtp(world.server.addresses["lmtp"], is_lmtp=True)
    try:
        yield client.deliver
    finally:
        client.drop()


@contextmanager
def _smtp(world: World) -> Iterator[Deliver]:
    """SMTP gives one reply for all recipients."""
    client = Smtp(world.server.addresses["smtp"], is_lmtp=False)

    def deliver(users: Sequence[str], text: bytes) -> list[bool]:
        return client.deliver([f"{user.upper()}@localhost" for user in users], text) * len(users)

    try:
        yield deliver
    finally:
        client.drop()


@contextmanager
def _command(world: World) -> Iterator[Deliver]:
    def deliver(users: Sequence[str], text: bytes) -> list[bool]:
        ran = world.home.run("deliver", users[0].capitalize(), stdin=text)
        assert ran.code == 0 or ran.code in _REFUSED, f"exit code {ran.code}: {ran.err}"
        return [ran.code == 0]

    yield deliver


DOORS: dict[str, Callable[[World], AbstractContextManager[Deliver]]] = {
    "LMTP": _lmtp,
    "SMTP": _smtp,
    "command": _command,
}


def arrive(world: World, names: Sequence[str], door: str, count: int, shape: str) -> None:
    """Deliver messages by an entrance of restante, one after another."""
    names = names[:1] if door == "command" else names
    texts = world.new_texts(min(count, _MOST_COMMANDS) if door == "command" else count, shape)
    world.say(f"{len(texts)} messages ({shape}) come by {door} for {' and '.join(names)}")
    with DOORS[door](world) as deliver:
        for text in texts:
            if door == "SMTP":
                _send(world, deliver, Unsent(text, names))
                continue
            began = int(time.time())
            for name, is_taken in zip(names, deliver(names, text), strict=True):
                _note(world, world.users[name], text, is_taken, began)


def send_again(world: World) -> None:
    """Repeat a message that was refused for one of two recipients, as a mail server does."""
    unsent = world.unsent
    if unsent is None or not all([settle(world, world.users[name]) for name in unsent.names]):
        return world.say("no mail server sends a message again")
    world.say("a mail server sends a message again that was not taken for all")
    with _smtp(world) as deliver:
        _send(world, deliver, unsent)
    return None


def _send(world: World, deliver: Deliver, unsent: Unsent) -> None:
    """Send by SMTP, which has one reply for all recipients (RFC 5321 §4.2.5)."""
    began, missing = int(time.time()), unsent.missing()
    if all(deliver(unsent.names, unsent.text)):
        world.unsent = None
        for name in missing:
            _note(world, world.users[name], unsent.text, True, began)
        return
    verdicts = {name: _verdict(world.users[name], unsent.text) for name in missing}
    assert not all(verdicts.values()), "a message was refused that all have room for"
    for name, verdict in verdicts.items():
        if verdict:
            _add(world, name, unsent.text, began)
            unsent.stored.add(name)
        elif verdict is None:
            unsent.copies[name] = _add(world, name, unsent.text, began, (LISTED, GONE))
    if len(unsent.names) > 1:
        world.unsent = unsent


def _verdict(user: User, text: bytes) -> bool | None:
    return user.quota.verdict(user.counted(), len(text))


def _note(world: World, user: User, text: bytes, is_taken: bool, began: int) -> None:
    assert _verdict(user, text) in (None, is_taken), (
        f"a message for {user.name} was {'taken' if is_taken else 'refused'}, "
        f"with a quota of {user.quota.limit} octets"
    )
    if is_taken:
        _add(world, user.name, text, began)


def _add(
    world: World, name: str, text: bytes, began: int, places: Collection[str] = (LISTED,)
) -> Message:
    order = Order(earliest=began, latest=time.time(), arrival=world.next_arrival())
    message = Message(text, frozenset(places), order=order)
    world.box(name, "INBOX").messages.append(message)
    return message


def kill_while_they_arrive(world: World, names: Sequence[str], count: int, last: int) -> None:
    """Kill the server after message number ``last`` is sent, before its reply is read."""
    texts = world.new_texts(max(count, 1), "short")
    sent = texts[: last % len(texts) + 1]
    world.say(
        f"{len(sent)} messages come by LMTP for {' and '.join(names)}, and the server is killed "
        "before it replies to the last one"
    )
    client = Smtp(world.server.addresses["lmtp"], is_lmtp=True)
    for text in sent[:-1]:
        began = int(time.time())
        for name, is_taken in zip(names, client.deliver(names, text), strict=True):
            _note(world, world.users[name], text, is_taken, began)
    began = int(time.time())
    client.begin(names)
    client.send_message(sent[-1])
    world.kill()
    client.drop()
    for name in names:
        _add(world, name, sent[-1], began, (LISTED, GONE))
    world.server.start()


def drop_namesake(world: World, name: str, folder: str, pick: str) -> None:
    """Store a message with the unique part of a message that is here, as another program.

    The known one keeps its unique-id, and the new one gets another if both are there at one login.
    Otherwise it looks like a message that was restored from a backup.
    """
    user, place = world.users[name], world.maildir(world.users[name], folder)
    if not user.is_enabled or name in world.sessions:
        return world.say(f"{name} does not log in")
    world.say(f"another program stores a message in {folder} of {name}, named like {pick}")
    for known, path in list(picked(world, world.box(name, folder), pick))[:1]:
        (stored,) = world.new_texts(1, "short")
        file = f"{foreign.unique_part(path.name)},N={world.number}"
        foreign.deliver(place, file, stored)
        message = Message(stored, stored=len(stored), order=foreign.order(file))
        message.is_old = known.is_old
        message.is_contested = known.is_contested = True
        user.box(folder).messages.append(message)
        world.note_foreign(user, len(stored), 1, is_counted=False)
    look_at(world, user)
    return None


def drop_files(
    world: World,
    name: str,
    folder: str,
    count: int,
    shape: str,
    ends: str,
    names: str,
    is_counted: bool,
    is_read: bool,
) -> None:
    """Store messages in the Maildir, as another program does."""
    texts = world.new_texts(count, shape)
    where = "as an IMAP server does" if is_read else "as a mail server does"
    world.say(
        f"another program stores {len(texts)} messages ({shape}, {ends}, {names}) in "
        f"{folder} of {name}, {where}"
    )
    user = world.users[name]
    box, place = world.box(name, folder), world.maildir(user, folder)
    for number, text in enumerate(texts, world.number):
        stored = LINE_ENDS[ends](text)
        file = foreign.NAMES[names](number, stored)
        foreign.deliver(place, file, stored, is_read=is_read)
        order = foreign.order(file)
        message = Message(on_the_wire(stored), stored=len(stored), order=order)
        message.is_misnamed = message.has_wrong_name = names in foreign.WRONG
        message.is_old = names == foreign.LAST_YEAR
        box.messages.append(message)
        world.note_foreign(user, len(stored), 1, is_counted=is_counted)
