"""A POP3 server that lies, forgets, closes connections, and records which messages were deleted.

Its records decide what was lost: it identifies messages independently of their unique-ids.

Some lies are not tried because no client could notice them:

- a body that is shortened without notice by about a KiB or less, since honest servers round sizes
  up; by more, with an announced size to match; or at the same octet in two sessions, since that is
  how a server looks that always announces too much;
- other mail under the same unique-id with the same size and the same header fields;
- another message than the listed one in answer to RETR, or one that is replaced between RETR and
  DELE of one session, where RFC 1939 §4 promises an exclusive lock.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

_TOLERANCE = 1024  # octets that may be missing; see the docstring
_PATIENCE = 20.0  # seconds to wait for a silent client


@dataclass(eq=False)
class Letter:
    """A text that a sender wrote; it may be delivered several times."""

    number: int
    text: bytes
    """CRLF text."""
    has_marks: bool = True
    """It has a Message-ID and a Date."""
    has_twin: bool = False
    """Another letter has the same header, so the server must not lie about its size too."""
    deliveries: int = 0
    forms: set[bytes] = field(default_factory=set)
    """Every form in which a server has had it."""


@dataclass(eq=False)
class Mail:
    """One message of the maildrop."""

    unique_id: str
    letter: Letter
    octets: bytes
    """The message with CRLF line ends; servers rewrite headers."""
    is_disguised: bool = False
    """Other mail had its unique-id before, and no client could see that it had left."""
    cuts: set[int] = field(default_factory=set)
    """The offsets at which its body was truncated earlier."""


@dataclass
class Lies:
    """The behaviour of the server in one session.  Messages are given by message-number."""

    ends_at_command: int = 0
    """The command that is answered by closing the connection, from 1; 0 for none."""
    ends_at_octet: int = 0
    """Octets after which it closes the connection; 0 is never."""
    quit: str = "removes"
    """Or "says nothing" (but removes), "closes first", "refuses" (removes half), "forgets"."""
    removes_without_quit: bool = False
    """Removes marked messages when the connection is lost, which violates RFC 1939 §6."""
    expires: bool = False
    """Announces EXPIRE 0, and at QUIT removes all messages sent by RETR (RFC 2449 §6.7)."""
    rewrites: bool = False
    """At QUIT adds header fields to retrieved messages, as GNU mailutils does."""
    has_uidl: bool = True
    has_top: bool = True
    pipelining: str = ""
    """Or "works", or "breaks": pipelined commands end the connection."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Octets added to the announced size, by message."""
    short: dict[int, int] = field(default_factory=dict)
    """Per cent of the body that is sent as if it were complete, by message."""
    hidden: frozenset[int] = frozenset()
    """Messages that are not listed."""
    refused: frozenset[int] = frozenset()
    """Messages for which RETR and TOP are refused."""
    undeletable: frozenset[int] = frozenset()
    """Messages for which DELE is refused."""
    same_id: bool = False
    """Lists the first two messages under one unique-id."""
    delivers_at_command: int = 0

    @property
    def is_honest(self) -> bool:
        return self == Lies()


@dataclass
class Session:
    """What one client was shown and did."""

    listed: list[Mail]
    lies: Lies
    heard: list[str] = field(default_factory=list)
    """All commands of the client."""
    marked: list[Mail] = field(default_factory=list)
    read: set[Mail] = field(default_factory=set)
    is_closed: bool = False
    """Ended by QUIT."""
    sent: int = 0
    """Octets sent."""


class Hostile:
    """The maildrop, and a thread that serves one client after another."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.gone: list[Mail] = []
        """Messages that any client removed, the last one at the end."""
        self.lies = Lies()
        self.deliver: Callable[[], None] = lambda: None
        """Called in the middle of a session."""
        self.marked: Callable[[Session, Mail], None] = lambda session, mail: None
        """Called at each DELE, before it is answered."""
        self.removed: Callable[[Session, Sequence[Mail]], None] = lambda session, mails: None
        """Called when the marked messages have been removed."""
        self.expired: Callable[[Mail], object] = lambda mail: None
        """Called before a message is removed that was sent but not marked."""
        self.announced: dict[str, set[tuple[Letter, int]]] = {}
        """For each unique-id, the messages that had it and their listed sizes."""
        self.sessions: list[Session] = []
        self.errors: list[BaseException] = []
        """Errors in this server itself."""
        self._probes: set[int] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.settle()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_PATIENCE)

    def settle(self) -> None:
        """Wait until everything that earlier clients sent was read."""
        with socket.socket() as probe:
            probe.settimeout(_PATIENCE)
            probe.bind(("127.0.0.1", 0))
            self._probes.add(probe.getsockname()[1])
            probe.connect(("127.0.0.1", self.port))
            probe.recv(1)

    def _run(self) -> None:
        while True:
            try:
                client, (_, port) = self._listener.accept()
            except OSError:
                return
            with client:
                if port not in self._probes:
                    client.settimeout(_PATIENCE)
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        listed = [each for at, each in enumerate(self.mails) if at not in self.lies.hidden]
        session = Session(listed, self.lies)
        self.sessions.append(session)
        try:
            self._talk(client, session)
        except OSError:
            pass  # the client has gone, or the connection was closed
        except BaseException as error:
            self.errors.append(error)
        if session.lies.removes_without_quit and not session.is_closed:
            self._remove(session, session.marked)

    def _talk(self, client: socket.socket, session: Session) -> None:
        self._say(client, session, b"+OK ready\r\n")
        for line in _lines(client, session.lies):
            session.heard.append(line)
            if len(session.heard) == session.lies.delivers_at_command:
                self.deliver()
            if len(session.heard) == session.lies.ends_at_command:
                return
            if line == "QUIT":
                session.is_closed = True
                self._say(client, session, self._update(session))
                return
            self._say(client, session, self._answer(session, line))

    def _say(self, client: socket.socket, session: Session, octets: bytes) -> None:
        if end := session.lies.ends_at_octet:
            octets = octets[: max(0, end - session.sent)]
        session.sent += len(octets)
        client.sendall(octets)
        if end and session.sent >= end:
            raise ConnectionAbortedError

    # Commands.

    def _answer(self, session: Session, line: str) -> bytes:
        word, *rest = line.split()
        match word.upper():
            case "CAPA":
                return _lines_of(_capabilities(session.lies))
            case "LIST":
                return self._list(session)
            case "UIDL":
                return _numbered(_ids(session)) if session.lies.has_uidl else b"-ERR what?\r\n"
            case "RETR" | "TOP":
                return _message(session, word, int(rest[0]) - 1)
            case "DELE":
                return self._mark(session, int(rest[0]) - 1)
            case "RSET":
                session.marked.clear()
        return b"+OK\r\n"

    def _list(self, session: Session) -> bytes:
        sizes = [_announced(session, at) for at in range(len(session.listed))]
        for mail, size in zip(session.listed, sizes, strict=True):
            self.announced.setdefault(mail.unique_id, set()).add((mail.letter, size))
        return _numbered(map(str, sizes))

    def _mark(self, session: Session, at: int) -> bytes:
        if at in session.lies.undeletable:
            return b"-ERR no\r\n"
        self.marked(session, session.listed[at])
        session.marked.append(session.listed[at])
        return b"+OK\r\n"

    def _update(self, session: Session) -> bytes:
        lies, marked = session.lies, session.marked
        if lies.rewrites:
            for mail in session.read:
                rewrite(mail)
        match lies.quit:
            case "closes first":
                raise ConnectionAbortedError
            case "refuses" if marked:
                self._remove(session, marked[::2])
                return b"-ERR some are left\r\n"
            case "forgets":
                return b"+OK\r\n"
        self._remove(session, marked)
        if lies.expires:
            self._expire(session)
        if lies.quit == "says nothing":
            raise ConnectionAbortedError
        return b"+OK\r\n"

    def _remove(self, session: Session, marked: Sequence[Mail]) -> None:
        removed = [each for each in marked if each in self.mails]
        for mail in removed:
            self.take_away(mail)
        self.removed(session, removed)

    def _expire(self, session: Session) -> None:
        for mail in [each for each in session.listed if each in session.read]:
            if mail in self.mails:
                self.expired(mail)
                self.take_away(mail)

    # What other clients do with the maildrop.

    def take_away(self, mail: Mail) -> None:
        self.mails.remove(mail)
        self.gone.append(mail)

    def past_ids(self) -> list[str]:
        """Return unique-ids that no message has now."""
        used = {each.unique_id for each in self.mails}
        return [each.unique_id for each in self.gone if each.unique_id not in used]


def rewrite(mail: Mail) -> None:
    """Add the header fields that GNU mailutils adds."""
    head, end, body = mail.octets.partition(b"\r\n\r\n")
    head += b"\r\nStatus: RO\r\nX-UIDL: " + mail.unique_id.encode()
    mail.octets = head + end + body
    mail.letter.forms.add(mail.octets)


def can_be_cut(mail: Mail, percent: int) -> int:
    """Return where the body may be truncated so that a client can notice; 0 is nowhere."""
    at = mail.octets.rfind(b"\r\n", 0, len(mail.octets) * percent // 100) + 2
    header = mail.octets.find(b"\r\n\r\n") + 4
    missing = len(mail.octets) - at
    is_seen = missing > _TOLERANCE + mail.octets.count(b"\n", 0, at)
    return at if at > header and is_seen and at not in mail.cuts else 0


def _capabilities(lies: Lies) -> list[str]:
    announced = {
        "UIDL": lies.has_uidl,
        "TOP": lies.has_top,
        "PIPELINING": lies.pipelining,
        "EXPIRE 0": lies.expires,
    }
    return ["USER", *(tag for tag, is_there in announced.items() if is_there)]


def _message(session: Session, word: str, at: int) -> bytes:
    """Return the response to RETR or TOP."""
    if at in session.lies.refused or (word == "TOP" and not session.lies.has_top):
        return b"-ERR no\r\n"
    if word == "TOP":
        header = session.listed[at].octets.partition(b"\r\n\r\n")[0]
        return b"+OK\r\n" + _stuffed(header + b"\r\n\r\n")
    session.read.add(session.listed[at])
    return b"+OK\r\n" + _stuffed(_given(session, at))


def _announced(session: Session, at: int) -> int:
    mail = session.listed[at]
    lie = 0 if mail.letter.has_twin else session.lies.sizes.get(at, 0)
    return max(0, len(mail.octets) + lie)


def _ids(session: Session) -> list[str]:
    ids = [each.unique_id for each in session.listed]
    if session.lies.same_id:
        ids[1:2] = ids[:1]
    return ids


def _given(session: Session, at: int) -> bytes:
    mail, lies = session.listed[at], session.lies
    cut = 0 if at in lies.sizes else can_be_cut(mail, lies.short.get(at, 100))
    if not cut:
        return mail.octets
    mail.cuts.add(cut)
    return mail.octets[:cut]


def _lines(client: socket.socket, lies: Lies) -> Iterator[str]:
    """Yield commands until the client closes the connection."""
    unread = b""
    while True:
        while b"\r\n" not in unread:
            octets = client.recv(65_536)
            if not octets:
                return
            unread += octets
        line, _, unread = unread.partition(b"\r\n")
        yield line.decode()
        if unread and lies.pipelining == "breaks":
            return


def _lines_of(lines: Sequence[str]) -> bytes:
    return "\r\n".join(["+OK", *lines, ".", ""]).encode()


def _numbered(rows: Iterator[str] | Sequence[str]) -> bytes:
    return _lines_of([f"{at} {each}" for at, each in enumerate(rows, 1)])


def _stuffed(octets: bytes) -> bytes:
    return re.sub(rb"(?m)^\.", b"..", octets) + b".\r\n"
