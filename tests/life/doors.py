"""Mail comes in: by every door of restante, and past all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from . import foreign
from .clients import Smtp
from .model import GONE, LISTED, Message, Order, User
from .texts import LINE_ENDS, on_the_wire
from .world import World

Deliver = Callable[[Sequence[str], bytes], list[bool]]
"""Takes one message for these users, and returns for which of them it was taken."""

_MOST_COMMANDS = 10  # messages that are delivered by a command each
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
    client = Smtp(world.server.addresses["smtp"], is_lmtp=False)

    def deliver(users: Sequence[str], text: bytes) -> list[bool]:
        return client.deliver([f"{user}@localhost" for user in users], text)

    try:
        yield deliver
    finally:
        client.drop()


@contextmanager
def _command(world: World) -> Iterator[Deliver]:
    def deliver(users: Sequence[str], text: bytes) -> list[bool]:
        ran = world.home.run("deliver", users[0], stdin=text)
        assert ran.code == 0 or ran.code in _REFUSED, f"exit code {ran.code}: {ran.err}"
        return [ran.code == 0]

    yield deliver


DOORS: dict[str, Callable[[World], AbstractContextManager[Deliver]]] = {
    "LMTP": _lmtp,
    "SMTP": _smtp,
    "command": _command,
}


def arrive(world: World, names: Sequence[str], door: str, count: int, shape: str) -> None:
    """Messages come by a door of restante, one after the other."""
    names = names if door == "LMTP" else names[:1]
    texts = world.new_texts(min(count, _MOST_COMMANDS) if door == "command" else count, shape)
    world.say(f"{len(texts)} messages ({shape}) come by {door} for {' and '.join(names)}")
    with DOORS[door](world) as deliver:
        for text in texts:
            began = int(time.time())
            for name, is_taken in zip(names, deliver(names, text), strict=True):
                _note(world, world.users[name], text, is_taken, began)


def _note(world: World, user: User, text: bytes, is_taken: bool, began: int) -> None:
    verdict = user.quota.verdict(user.counted(), len(text))
    assert verdict in (None, is_taken), (
        f"a message for {user.name} was {'taken' if is_taken else 'refused'}, "
        f"with a quota of {user.quota.limit} octets"
    )
    if is_taken:
        order = Order(earliest=began, latest=time.time(), arrival=world.next_arrival())
        world.box(user.name, "INBOX").messages.append(Message(text, order=order))


def kill_while_they_arrive(world: World, names: Sequence[str], count: int, last: int) -> None:
    """The server is killed when message number ``last`` was sent, and before its reply is read."""
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
        order = Order(earliest=began, latest=time.time(), arrival=world.next_arrival())
        message = Message(sent[-1], frozenset({LISTED, GONE}), order=order)
        world.box(name, "INBOX").messages.append(message)
    world.server.start()


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
    """Another program stores messages in the Maildir."""
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
