"""Compares what clients and operators see with the model.

After each step: every valid login succeeds; count, sizes, unique-ids and order are as promised;
no message is lost or duplicated; the log reports no bug.
"""

from __future__ import annotations

from .clients import is_refused
from .comparing import log_in
from .model import HELD, LISTED, OWN, Box, Message, User
from .servers import check_log
from .world import World


def look(world: World) -> None:
    """Check everything that clients see."""
    check_log(world.server.log())
    for user in world.users.values():
        while user.revoked:
            assert _is_refused(world, user, user.revoked.pop())
        if not user.is_enabled:
            assert _is_refused(world, user, user.passwords[""])
        elif user.name in world.sessions:
            _look_from_within(world, user)
        else:
            look_at(world, user)


def look_at(world: World, user: User) -> None:
    """Check the maildrop of a user, and each folder that it does not show."""
    shown = user.shown(())
    views = {user.name: shown}
    seen = {each.box.folder for each in shown}
    for folder in user.boxes.keys() - seen:
        views[f"{user.name}+{folder}"] = user.shown((folder,))
    for name, parts in sorted(views.items()):
        client, _ = log_in(world, user, name, parts, _some_password(world, user))
        client.quit()
    world.dropped.discard(user.name)
    if not user.is_certain:
        look_at_held(world, user)


def _is_refused(world: World, user: User, password: str) -> bool:
    return is_refused(world.server.addresses["pop3"], user.name, password, "[AUTH]")


def _some_password(world: World, user: User) -> str:
    """Return the valid passwords of the user in turn."""
    passwords = list(user.passwords.values())
    return passwords[len(world.story) % len(passwords)]


def _look_from_within(world: World, user: User) -> None:
    """A second login is refused at once, and the open session still sees the same messages."""
    session = world.sessions[user.name]
    address, password = world.server.addresses["pop3"], user.passwords[""]
    assert is_refused(address, session.login, password, "[IN-USE]")
    count, _ = session.client.stat()
    assert count == len(session.listing) - len(session.marked)


def look_at_held(world: World, user: User) -> dict[Message, str]:
    """Check the held mail, and resolve what a kill has left uncertain.

    Listed messages must be checked before.  Returns the names under which messages are held.
    """
    found: dict[Message, str] = {}
    for row in world.home.must("maildrop", "held", user.name)["messages"]:
        folder = "INBOX" if "/" not in row["name"] else row["name"][1:].partition("/")[0]
        message = _held(user.boxes[folder], row["unique_id"], row["size"])
        assert message is not None, f"{user.name}: {row} is held, and should not be"
        message.put(HELD)
        found[message] = row["name"]
    for message in user.messages:
        if message.may_be(HELD) and message not in found:
            message.places -= {HELD}
            assert message.places, f"{user.name}: {message} is not held any more"
    for box in user.boxes.values():
        box.forget_gone()
    return found


def _held(box: Box, unique_id: str, size: int) -> Message | None:
    """Return the message held under the unique-id that it has in its own folder."""
    for message in box.at(HELD):
        if message.stored == size and message.unique_ids.setdefault(OWN, unique_id) == unique_id:
            return message
    return None


def look_thoroughly(world: World) -> None:
    """Check, at the end of a life, every message, held mail and the findings of ``verify``."""
    for user in world.users.values():
        if not user.is_enabled or user.name in world.sessions:
            continue
        look_at(world, user)
        look_at_held(world, user)
        look_at_recent(world, user)
        look_at_usage(world, user)
        client, messages = log_in(world, user, user.name, user.shown(()))
        texts = client.retrieve(range(1, len(messages) + 1))
        for message, (_, text) in zip(messages, texts, strict=True):
            assert text == message.wire, f"{message} came as {(text or b'')[:300]!r}"
        client.quit()
        check_findings(world, user)


def check_findings(world: World, user: User) -> None:
    """``verify`` finds no damage except in an index that the test has damaged.

    A server that has the index in memory does not read it again.
    """
    for found in world.home.run("maildrop", "verify", user.name).json["maildrops"]:
        for finding in found["findings"]:
            is_ours = finding["what"] == "index damaged" and user.is_index_harmed
            assert is_ours, f"verify finds a fault: {finding}"


def look_at_recent(world: World, user: User) -> None:
    """``recent:`` shows what arrived in the last 30 days, under the usual unique-ids."""
    client = world.log_in(user.name)
    everything = {each.unique_id for each in client.listing()}
    client.quit()
    client = world.log_in(f"recent:{user.name}")
    recent = {each.unique_id for each in client.listing()}
    client.quit()
    old = {
        message.unique_ids[part.way]
        for part in user.shown(())
        for message in part.box.at(LISTED)
        if message.is_old
    }
    expected = everything - old
    assert not recent - expected, f"recent:{user.name} shows {recent - expected} as well"
    assert not expected - recent, f"recent:{user.name} does not show {expected - recent}"


def look_at_usage(world: World, user: User) -> None:
    """Check the usage that the command shows, unless there were changes that are not counted."""
    counted = list(user.counted())
    if not user.quota.limit or not user.quota.is_exact or not user.is_certain:
        return
    found = world.home.must("maildrop", "show", user.name)
    least, most = (sum(getattr(each, name) for each in counted) for name in ("least", "most"))
    assert least <= found["used"] <= most, f"{user.name} uses {least}, not {found['used']} octets"
