"""One restante with its users, the model of what it has promised, and the story so far."""

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

_MANY = 500  # messages in all; beyond them batches are small, or a life would take too long
_FEW = 10  # messages in a small batch, and in one of large messages
_ELSEWHERE = 1_000_000  # the first number of a message there: no two have the same text
_BULKY = {"long lines": 100, "many lines": 100, "large": _FEW}  # messages at once, at most


class World:
    """``serve`` makes the server of a home.

    ``beside``: its mail is collected by this one, which is part of the same story.
    """

    def __init__(
        self,
        serve: Callable[[Home], Server],
        *,
        workers: int = 1,
        beside: World | None = None,
    ) -> None:
        self.story: list[str] = [] if beside is None else beside.story
        """What has happened, in words."""
        self.account: Account | None = None
        """The collector's account at another restante; None: it was not needed yet."""
        self._name = "" if beside is None else "elsewhere"
        self.place = Path(mkdtemp(prefix="life-", dir=memory()))
        self.home = Home(self.place / "here", workers=workers)
        self.serve = serve
        self.server = serve(self.home)
        self.users = {name: User(name, {"": password}) for name, password in PASSWORDS.items()}
        self.sessions: dict[str, OpenSession] = {}
        """By user, sessions that go on while other things happen."""
        self._clients: list[Pop3] = []
        self.dropped: set[str] = set()
        """Users whose last session ended without QUIT; the server may not have noticed it yet."""
        self.imports: dict[str, Import] = {}
        """By user, the mail that was moved here from another server."""
        self.backups: dict[str, Backup] = {}
        """By user."""
        self.unsent: Unsent | None = None
        """What another mail server still has to send."""
        self.unchecked = 0
        """Steps after which nothing is checked."""
        self.number = self._first_number = 0 if beside is None else _ELSEWHERE
        """The last number that a message was given."""
        self.arrivals = 0
        """Messages that came by a door of restante."""
        for user in self.users.values():
            user.box("INBOX")
        self.home.fill()
        self.server.start()

    def end(self) -> None:
        """Stop, and leave nothing."""
        try:
            if self.account is not None:
                self.account.there.end()
            self.server.stop()
            check_log(self.server.log())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """After a failure: stop whatever still runs."""
        if self.account is not None:
            self.account.there.abandon()
        for client in self._clients:
            client.drop()
        self.server.kill()
        shutil.rmtree(self.place, ignore_errors=True)

    def all(self) -> list[World]:
        """This one and the other one."""
        return [self] if self.account is None else [self, self.account.there]

    def say(self, text: str) -> None:
        self.story.append(f"{self._name}: {text}" if self._name else text)

    # -- Messages

    def new_texts(self, count: int, shape: str) -> list[bytes]:
        """In CRLF text; fewer than asked for if there are very many already."""
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

    # -- Where things are

    def maildir(self, user: User, folder: str = "INBOX") -> Path:
        return foreign.directory(self.home.mail / user.name, folder)

    def box(self, name: str, folder: str) -> Box:
        """Made as an IMAP server makes a folder, if it was not there."""
        user = self.users[name]
        if folder not in user.boxes:
            foreign.make(self.maildir(user))
            foreign.make(self.maildir(user, folder))
        return user.box(folder)

    def log_in(self, name: str, password: str = "") -> Pop3:
        """As ``ann``, ``ann+Junk`` or ``recent:ann``.  A valid login must be answered."""
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
        """Another program has added or removed messages, and has counted them or not."""
        if is_counted:
            foreign.count(self.maildir(user), octets, messages)
        else:
            user.quota.is_exact = False

    def stop(self) -> None:
        """As an operator stops it: sessions end, and no deletions are carried out by that."""
        self.server.stop()
        self._end_sessions()

    def kill(self) -> None:
        """All processes of the server, at once."""
        self.server.kill()
        self._end_sessions()

    def _end_sessions(self) -> None:
        self.dropped.clear()
        for session in self.sessions.values():
            session.client.drop()
        self.sessions.clear()


class OpenSession:
    """A session and the listing that it has seen."""

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
        """By message-number, from 1."""
        self.is_watched = is_watched
        """The server ends it after a short silence."""
        self.marked: set[int] = set()
        """Message-numbers."""

    def _picked(self, pick: Pick) -> list[int]:
        """Of those that are not marked as deleted."""
        numbers = {id(message): n for n, message in enumerate(self.listing, 1)}
        left = [each for n, each in enumerate(self.listing, 1) if n not in self.marked]
        return [numbers[id(message)] for message in pick(left)]

    def read(self, pick: Pick) -> None:
        """What another program has removed meanwhile is refused, and all else is as it was."""
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
        """What is marked leaves the maildrop, and nothing else does."""
        self.client.quit()
        for message in self._removed():
            message.put(self.user.removed())

    def leave_in_doubt(self) -> None:
        """QUIT was sent, and its answer will not be read."""
        for message in self._removed():
            message.put(LISTED, self.user.removed())

    def _removed(self) -> Iterator[Message]:
        """Those marked that another program has not taken away."""
        for number in self.marked:
            if self.listing[number - 1].may_be(LISTED):
                yield self.listing[number - 1]
