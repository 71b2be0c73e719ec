"""Mail moves here from another server: its files, its unique-ids, its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import foreign
from .keeping import settle
from .model import HELD, LISTED, OWN, Message, Order
from .texts import LINE_ENDS, key, on_the_wire
from .world import World

_VALIDITY = 1_700_000_000  # UIDVALIDITY of the mailbox on the other server; never changes


@dataclass(frozen=True)
class Import:
    """The files of another server."""

    command: Sequence[str]
    """The arguments of ``restante import``."""
    unique_ids: Sequence[str]
    """In the order of the other server's listing."""
    stored: Sequence[bytes]
    """The octets of each message in these files."""
    ranks: Sequence[int] = ()
    """The rank of each among all messages from other servers."""


Writer = Callable[[Path, list[bytes]], Import]
"""Writes the files of another server with these messages into an empty directory."""


def _dovecot(place: Path, messages: list[bytes]) -> Import:
    names = [foreign.name(number) for number in range(len(messages))]
    lines = [f"3 V{_VALIDITY} N{len(names) + 1} G0123456789abcdef0123456789abcdef"]
    lines += [f"{uid} :{name}" for uid, name in enumerate(names, 1)]
    for name, stored in zip(names, messages, strict=True):
        foreign.deliver(place, name, stored, is_read=stored[-1:] == b"\n")
    (place / "dovecot-uidlist").write_text("\n".join([*lines, ""]))
    ids = [f"{uid:08x}{_VALIDITY:08x}" for uid in range(1, len(names) + 1)]
    return Import(["dovecot", str(place)], ids, messages)


def _courier(place: Path, messages: list[bytes]) -> Import:
    names = [foreign.name(number) for number in range(len(messages))]
    lines = [f"/3 {len(names) + 1} {_VALIDITY}"]
    for number, (name, stored) in enumerate(zip(names, messages, strict=True), 1):
        foreign.deliver(place, name, stored)
        lines.append(f"{name} {len(on_the_wire(stored))} {number}:{_VALIDITY}")
    (place / "courierpop3dsizelist").write_text("\n".join([*lines, ""]))
    ids = [f"UID{number}-{_VALIDITY}" for number in range(1, len(names) + 1)]
    return Import(["courier", str(place)], ids, messages)


def _mbox(place: Path, messages: list[bytes]) -> Import:
    ids = [f"{number:08x}{_VALIDITY:08x}" for number in range(1, len(messages) + 1)]
    stored = [
        f"X-UIDL: {unique_id}\n".encode() + LINE_ENDS["LF"](message)
        for unique_id, message in zip(ids, messages, strict=True)
    ]
    octets = b"".join(b"From bob Mon Jan  1 00:00:00 2024\n" + each + b"\n" for each in stored)
    (place / "mbox").write_bytes(octets)
    return Import(["mbox", str(place / "mbox")], ids, stored)


WRITERS: dict[str, Writer] = {"dovecot": _dovecot, "courier": _courier, "mbox": _mbox}


def take_over(world: World, name: str, kind: str, count: int, shape: str, ends: str) -> None:
    """Import from another server; the second time for a user, repeat the same import."""
    if name in world.imports:
        return again(world, name)
    if name in world.sessions:
        return world.say(f"{name} is logged in, and nothing is imported")
    texts = world.new_texts(count, shape)
    world.say(f"{len(texts)} messages ({shape}, {ends}) of {name} are imported from {kind}")
    if kind == "mbox":
        ends = "CRLF"  # the mbox has LF anyway
    place = world.place / f"{kind}.{name}"
    foreign.make(place)
    made = WRITERS[kind](place, [LINE_ENDS[ends](text) for text in texts])
    made = replace(made, ranks=[world.next_arrival() for _ in texts])
    world.imports[name] = made
    ran = world.home.must("import", *made.command, name)
    assert ran["copied"] == len(texts), f"{ran['copied']} of {len(texts)} messages were copied"
    for number in range(len(texts)):
        _note(world, name, made, number)
    return None


def again(world: World, name: str) -> None:
    """Repeat an import: messages that are listed or held are not copied again."""
    made, user = world.imports[name], world.users[name]
    if not made.command or name in world.sessions or not settle(world, user):
        return world.say(f"nothing is imported again for {name}")
    world.say(f"the import for {name} is repeated")
    box = user.box("INBOX")
    present = {each.unique_ids.get(OWN, each.promised) for each in [*box.at(LISTED), *box.at(HELD)]}
    missing = [n for n, each in enumerate(made.unique_ids) if each not in present]
    ran = world.home.must("import", *made.command, name)
    assert ran["copied"] == len(missing), (
        f"{ran['copied']} messages were copied again, and {len(missing)} were not here"
    )
    for number in missing:
        _note(world, name, made, number)
    return None


def _note(world: World, name: str, made: Import, number: int) -> None:
    user, stored = world.users[name], made.stored[number]
    message = Message(
        key(on_the_wire(stored)),
        stored=len(stored),
        promised=made.unique_ids[number],
        order=Order(adopted=made.ranks[number]),
    )
    box = world.box(name, "INBOX")
    box.messages.append(message)
    box.owners[OWN, message.promised] = message  # instead of an earlier copy that is gone
    user.quota.is_exact = True  # recounted by the import


def adopt(world: World, name: str) -> None:
    """Take over the unique-ids of another server that used the same Maildir."""
    user = world.users[name]
    if name in world.imports or name in world.sessions or not settle(world, user):
        return world.say(f"no unique-ids are taken over for {name}")
    messages = user.box("INBOX").at(LISTED)
    maildir = world.maildir(user)
    foreign.make(maildir)
    paths = foreign.by_key(maildir)
    files = [paths[key(message.text)].name.partition(":")[0] for message in messages]
    if len({foreign.unique_part(file) for file in files}) < len(files):
        return world.say(f"two messages of {name} have one unique part, as on no other server")
    world.say(f"{len(messages)} messages of {name} get the unique-ids of another server")
    lines = [f"3 V{_VALIDITY} N{len(files) + 1} G0123456789abcdef0123456789abcdef"]
    lines += [f"{uid} :{file}" for uid, file in enumerate(files, 1)]
    uidlist = maildir / "dovecot-uidlist"
    uidlist.write_text("\n".join([*lines, ""]))
    ran = world.home.must("import", "dovecot", str(maildir), name)
    uidlist.unlink()
    assert ran["copied"] == 0, f"{ran['copied']} messages were copied, and all are here"
    world.imports[name] = Import([], [], [])
    for uid, message in enumerate(messages, 1):
        message.may_be_renamed, message.promised = True, f"{uid:08x}{_VALIDITY:08x}"
        message.order = Order(adopted=world.next_arrival())
    return None
