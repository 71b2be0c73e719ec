"""Actions of operators: change rules and passwords, restart and reload the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .model import GONE, Message
from .world import World

_MOMENT = 0.02  # seconds; longer than the resolution of file time stamps
_LITTLE = 10_000  # octets of a small quota


# -- Rules


def set_hold(world: World, name: str, hold: str) -> None:
    """Set the hold, which takes effect at the next QUIT."""
    world.say(f"deleted mail of {name} is held: {hold}")
    world.home.must("user", "hold", name, hold)
    user = world.users[name]
    user.hold = hold
    if user.removed() == GONE:  # this rule applies to an UPDATE that a kill has interrupted
        for message in user.messages:
            if not message.is_certain:
                message.places |= {GONE}


QUOTAS: dict[str, Callable[[Sequence[Message]], int]] = {
    "none": lambda messages: 0,
    "what is there, and a little": lambda messages: _total(messages) + _LITTLE,
    "half of what is there": lambda messages: _total(messages) // 2 + 1,
    "a little": lambda messages: _LITTLE,
}
"""Quotas in octets, given the messages that are there."""


def _total(messages: Sequence[Message]) -> int:
    return sum(message.most for message in messages)


def set_quota(world: World, name: str, kind: str) -> None:
    user = world.users[name]
    octets = QUOTAS[kind](list(user.counted()))
    world.say(f"{name} has this quota: {kind} ({octets} octets)")
    world.home.must("user", "quota", name, str(octets) if octets else "none")
    user.quota.set(octets)


def set_view(world: World, name: str, view: Sequence[str]) -> None:
    world.say(f"a login as {name} shows {' and '.join(view) or 'the INBOX'}")
    world.home.must("user", "permit", name, "--folder", *(view or ["any"]))
    world.users[name].view = tuple(view)


def enable(world: World, name: str, is_enabled: bool) -> None:
    """Enable or disable a user: disabling ends an open session, but mail is still accepted."""
    verb = "enable" if is_enabled else "disable"
    world.say(f"{name} is {verb}d")
    world.home.must("user", verb, name)
    world.users[name].is_enabled = is_enabled
    if not is_enabled and name in world.sessions:
        session = world.sessions.pop(name)
        assert session.client.has_ended(), f"the session of {name} goes on"
        session.client.drop()
        world.dropped.add(name)


# -- Passwords


def add_app_password(world: World, name: str) -> None:
    label = f"device {world.next_number()}"
    world.say(f"{name} gets an app password for {label}")
    made = world.home.must("user", "app-password", "new", name, label)
    world.users[name].passwords[label] = made["password"]


def revoke_app_password(world: World, name: str) -> None:
    """Revoke the last app password: logins with it are refused, an open session continues."""
    user = world.users[name]
    *_, label = user.passwords
    if not label:
        return world.say(f"{name} has no app password")
    world.say(f"the app password of {name} for {label} is revoked")
    world.home.must("user", "app-password", "revoke", name, label)
    user.revoked.append(user.passwords.pop(label))
    return None


def change_password(world: World, name: str) -> None:
    user = world.users[name]
    password = f"another secret, number {world.next_number()}"
    world.say(f"{name} gets another password")
    world.home.must("user", "passwd", name, stdin=f"{password}\n".encode())
    user.revoked.append(user.passwords[""])
    user.passwords[""] = password


# -- The server


def restart(world: World) -> None:
    """Restart the server: sessions end without carrying out deletions."""
    world.say("the server is stopped and started again")
    world.stop()
    world.server.start()


def reload(world: World, banner: str) -> None:
    """Reload the configuration: no session is dropped."""
    world.say(f"the configuration is changed (banner {banner!r}) and loaded again")
    world.home.configure("server", banner=banner)
    world.server.reload()


def kill(world: World) -> None:
    world.say("all processes of the server are killed, and it is started again")
    world.kill()
    world.server.start()


def check_nothing(world: World, steps: int) -> None:
    world.say(f"nothing is checked during the next {steps} steps")
    world.unchecked = steps + 1  # plus this step


def wait(world: World) -> None:
    """Wait until new time stamps of files differ from earlier ones."""
    world.say("a moment passes")
    time.sleep(_MOMENT)
