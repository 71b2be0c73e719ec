"""Sessions of clients: complete, broken, or open while other steps are taken."""

from __future__ import annotations

from collections.abc import Callable

from .comparing import log_in
from .model import PICKS, User
from .servers import InThread
from .world import OpenSession, World

_SILENCE = 1.0  # seconds until autologout while that is tested
_LITTLE = 100  # octets read of a message before the connection is dropped


def visit(world: World, login: str, read: str, delete: str, end: str) -> None:
    """Run a session, or continue an open one; ``login`` is the name used to log in."""
    user = world.users[login.partition("+")[0].casefold()]
    session = world.sessions.pop(user.name, None)
    if session is not None:
        world.say(f"the open session of {user.name} reads {read}, deletes {delete}, {end}")
    elif user.is_enabled and user.shown(folders(login)):
        world.say(f"{login} logs in, reads {read}, deletes {delete}, {end}")
        session = _begin(world, user, login, is_watched=end == "falls silent")
    else:
        return world.say(f"{login} cannot log in")
    session.read(PICKS[read])
    session.mark(PICKS[delete])
    ENDS[end](world, session)
    return None


def folders(login: str) -> tuple[str, ...]:
    """Return the folders in a login name."""
    folder = login.partition("+")[2]
    return (folder,) if folder else ()


def _begin(world: World, user: User, login: str, *, is_watched: bool = False) -> OpenSession:
    """Begin a session; ``is_watched`` shortens the autologout, where the server allows it."""
    is_watched &= isinstance(world.server, InThread)
    if isinstance(world.server, InThread) and is_watched:
        world.server.reload(idle=_SILENCE)
    client, listing = log_in(world, user, login, user.shown(folders(login)))
    return OpenSession(user, login, client, listing, is_watched=is_watched)


def _quit(world: World, session: OpenSession) -> None:
    session.quit()


def _quit_unheard(world: World, session: OpenSession) -> None:
    session.client.send(b"QUIT")
    session.leave_in_doubt()
    _drop(world, session)


def _drop(world: World, session: OpenSession) -> None:
    session.client.drop()
    world.dropped.add(session.user.name)


def _drop_within_a_message(world: World, session: OpenSession) -> None:
    if session.listing:
        session.client.send(b"RETR 1", b"RETR 1")
        session.client.socket.recv(_LITTLE)
    _drop(world, session)


def _reset_and_quit(world: World, session: OpenSession) -> None:
    session.client.ask("RSET")
    session.marked.clear()
    session.quit()


def _fall_silent(world: World, session: OpenSession) -> None:
    """Wait for the autologout, which removes nothing (RFC 1939 §3)."""
    if session.is_watched:
        assert session.client.has_ended(), "a silent session goes on"
        world.server.reload()
    _drop(world, session)


def _stay(world: World, session: OpenSession) -> None:
    world.sessions[session.user.name] = session


ENDS: dict[str, Callable[[World, OpenSession], None]] = {
    "quits": _quit,
    "sends QUIT and does not wait for the answer": _quit_unheard,
    "drops the connection": _drop,
    "drops the connection within a message": _drop_within_a_message,
    "takes the deletions back and quits": _reset_and_quit,
    "falls silent": _fall_silent,
    "stays": _stay,
}


def kill_at_quit(world: World, name: str, delete: str) -> None:
    """Kill the server immediately after sending QUIT."""
    user = world.users[name]
    if not user.is_enabled or name in world.sessions:
        return world.say(f"{name} does not log in")
    world.say(f"{name} deletes {delete}, sends QUIT, and the server is killed")
    session = _begin(world, user, name)
    session.mark(PICKS[delete])
    session.client.send(b"QUIT")
    session.leave_in_doubt()
    world.kill()
    session.client.drop()
    world.server.start()
    return None
