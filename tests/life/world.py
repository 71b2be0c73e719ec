"""One server with its users, the model of its promises, and the story so far."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from . import foreign
from .clients import Pop3, log_in
from .homes import PASSWORDS, Home, memory
from .model import LISTED, Box, Message, Pick, User
from .servers import Server, check_log
from .texts import text

if TYPE_CHECKING:
    from .collecting import Account
    from .doors import Unsent
    from .importing import Import
    from .keeping import Backup

_MANY = 500  # messages in a life; after that batches are small, to limit the time
_FEW = 10  # messages in a small batch, or in one of large messages
_ELSEWHERE = 1_000_000  # first message number there, so that all texts differ
_BULKY = {"long lines": 100, "many lines": 100, "large": _FEW}  # most messages at once


class World:
    """``serve`` makes the server of an installation.

    ``beside``: the world that collects mail from this one; they share a story.
    """

    def __init__(
        self,
        serve: Callable[[Home], Server],
        *,
        workers: int = 1,
        beside: World | None = None,
    ) -> None:
        self.story: list[str] = [] if beside is None else beside.story
        """The steps so far, in words."""
        self.account: Account | None = None
        """The collector's account at another server; None until it is needed."""
        self._name = "" if beside is None else "elsewhere"
        self.place = Path(mkdtemp(prefix="life-", dir=memory()))
        self.home = Home(self.place / "here", workers=workers)
        self.serve = serve
        self.server = serve(self.home)
        self.users = {name: User(name, {"": password}) for name, password in PASSWORDS.items()}
        self.sessions: dict[str, OpenSession] = {}
        """Open sessions by user."""
        self._clients: list[Pop3] = []
        self.dropped: set[str] = set()
        """Users whose last session was dropped, which the server may not have noticed yet."""
        self.imports: dict[str, Import] = {}
        """Imports from other servers, by user."""
        self.backups: dict[str, Backup] = {}
        """Backups by user."""
        self.unsent: Unsent | None = None
        """A message that another mail server will send again."""
        self.unchecked = 0
        """Number of coming steps without a check."""
        self.number = self._first_number = 0 if beside is None else _ELSEWHERE
        """Number of the last message."""
        self.arrivals = 0
        """Number of messages that restante has delivered."""
        for user in self.users.values():
            user.box("INBOX")
        self.home.fill()
        self.server.start()

    def end(self) -> None:
        """Stop the server, check its log and remove all files."""
        try:
            if self.account is not None:
                self.account.there.end()
            self.server.stop()
            check_log(self.server.log())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop everything after a failure, and remove all files."""
        if self.account is not None:
            self.account.there.abandon()
        for client in self._clients:
            client.drop()
        self.server.kill()
        shutil.rmtree(self.place, ignore_errors=True)

    def all(self) -> list[World]:
        """Return this world and, if there is one, the other."""
        return [self] if self.account is None else [self, self.account.there]

    def say(self, text: str) -> None:
        self.story.append(f"{self._name}: {text}" if self._name else text)

    # -- Messages

    def new_texts(self, count: int, shape: str) -> list[bytes]:
        """Make messages with CRLF line ends; fewer than ``count`` if there are many already."""
        are_many = self.number - self._first_number > _MANY
        count = min(count, _FEW if are_many else _BULKY.get(shape, count))
        self.number += count
        return [text(n, shape) for n in range(self.number - count + 1, self.number + 1)]

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def next_arrival(self) -> int:
        self.arrivals += 1
        return self.arrivals

    # -- Maildirs and logins

    def maildir(self, user: User, folder: str = "INBOX") -> Path:
        return foreign.directory(self.home.mail / user.name, folder)

    def box(self, name: str, folder: str) -> Box:
        """Return a folder; a missing one is made as an IMAP server makes it."""
        user = self.users[name]
        if folder not in user.boxes:
            foreign.make(self.maildir(user))
            foreign.make(self.maildir(user, folder))
        return user.box(folder)

    def log_in(self, name: str, password: str = "") -> Pop3:
        """Log in as ``ann``, ``ann+Junk`` or ``recent:ann``; a valid login must succeed."""
        user = self.users[name.removeprefix("recent:").partition("+")[0].casefold()]
        client = log_in(
            self.server.addresses["pop3"],
            name,
            password or user.passwords[""],
            may_be_locked=user.name in self.dropped,
        )
        self._clients.append(client)
        return client

    def note_foreign(self, user: User, octets: int, messages: int, *, is_counted: bool) -> None:
        """Note that another program added or removed messages, and counted them or not."""
        if is_counted:
            foreign.count(self.maildir(user), octets, messages)
        else:
            user.quota.is_exact = False

    def stop(self) -> None:
        """Stop the server as an operator does: sessions end without carrying out deletions."""
        self.server.stop()
        self._end_sessions()

    def kill(self) -> None:
        """Kill all processes of the server at once."""
        self.server.kill()
        self._end_sessions()

    def _end_sessions(self) -> None:
        self.dropped.clear()
        for session in self.sessions.values():
            session.client.drop()
        self.sessions.clear()


class OpenSession:
    """An open session with its listing."""

    def __init__(
        self,
        user: User,
        login: str,
        client: Pop3,
        listing: Sequence[Message],
        *,
        is_watched: bool = False,
    ) -> None:
        self.user = user
        self.login = login
        self.client = client
        self.listing = list(listing)
        """Messages in the order of their message-numbers, which start at 1."""
        self.is_watched = is_watched
        """The server ends this session after a short silence."""
        self.marked: set[int] = set()
        """Message-numbers marked as deleted."""

    def _picked(self, pick: Pick) -> list[int]:
        """Return the numbers that ``pick`` selects among unmarked messages."""
        numbers = {id(message): n for n, message in enumerate(self.listing, 1)}
        left = [each for n, each in enumerate(self.listing, 1) if n not in self.marked]
        return [numbers[id(message)] for message in pick(left)]

    def read(self, pick: Pick) -> None:
        """Read messages: those removed by other programs are refused, the others are unchanged."""
        for number, wire in self.client.retrieve(self._picked(pick)):
            message = self.listing[number - 1]
            assert (wire is not None) == message.may_be(LISTED), (
                f"RETR {number} is {'answered' if wire else 'refused'}: {message}"
            )
            if wire is not None:
                message.read(wire)

    def mark(self, pick: Pick) -> None:
        numbers = self._picked(pick)
        self.client.mark(numbers)
        self.marked.update(numbers)

    def quit(self) -> None:
        """End the session: exactly the marked messages leave the maildrop."""
        self.client.quit()
        for message in self._removed():
            message.put(self.user.removed())

    def leave_in_doubt(self) -> None:
        """Note that QUIT was sent and its answer will not be read."""
        for message in self._removed():
            message.put(LISTED, self.user.removed())

    def _removed(self) -> Iterator[Message]:
        """Yield the marked messages that other programs have not removed."""
        for number in self.marked:
            if self.listing[number - 1].may_be(LISTED):
                yield self.listing[number - 1]
