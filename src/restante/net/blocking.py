"""A POP3 client for code without asyncio: one socket around ``pop3.dialogue``.

The same names as in ``net.client``, with plain ``with`` and ``for``.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import TypeVar, Unpack, cast

from ..errors import BodySkipped, CommandFailed, DeadlineExceeded, UnsafeArgument
from ..pop3.dialogue import Answer, Capabilities, Dialogue, Procedure, Retrieval
from ..pop3.listing import Message
from ..pop3.quirks import Quirks
from ..pop3.record import Record
from .client import Progress
from .remote import PATIENCE, TLS, Options, Remote, Service, binding, explain
from .saving import Parsing, Saving

T = TypeVar("T")
_PIECE = 65_536  # octets read at once


class BlockingBody:
    """See ``net.client.Body``."""

    def __init__(
        self, client: BlockingClient, message: Message, progress: Progress | None = None
    ) -> None:
        self.message = message
        self._client = client
        self._progress = progress
        self._command = "RETR"
        self._is_header = False
        self._answer: Answer | None = None
        self._is_begun = False

    def __iter__(self) -> Iterator[bytes]:
        if self._is_begun:
            raise BodySkipped("a body can be read once")
        self._is_begun = True
        answer = self._answer or self._client._ask_for_one(self.message, self._command)
        octets = 0
        while piece := self._client._run(self._client._dialogue.piece(answer)):
            octets += len(piece)
            if self._progress is not None:
                self._progress(self.message, octets)
            yield piece

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self)

    def email(self) -> EmailMessage:
        """All of it, parsed with the policy ``email.policy.default``."""
        parsing = Parsing(header=self._is_header)
        for piece in self:
            parsing.write(piece)
        return parsing.close()

    def save(self, path: Path | str) -> None:
        """Into a file, which is there whole and durable on return, or not at all.

        Raises:
            FileExistsError: nothing is ever replaced.
        """
        with Saving(Path(path)) as file:
            for piece in self:
                file.write(piece)


class BlockingClient:
    """A session in the TRANSACTION state; ``connect_blocking`` makes it.  For one thread."""

    def __init__(
        self, remote: Remote, timeout: float, deadline: float | None, record: Record
    ) -> None:
        self._remote = remote
        self._context = remote.context()
        self._timeout = timeout
        self._until = None if deadline is None else time.monotonic() + deadline
        self._dialogue = Dialogue(record, remote.quirks)
        self._socket: socket.socket | None = None  # None: there is no session

    @property
    def capabilities(self) -> Capabilities:
        """As announced after the login."""
        return self._dialogue.capabilities

    @property
    def quirks(self) -> Quirks:
        """What is held of this server: given to ``connect``, or known of its host."""
        return self._dialogue.quirks

    @property
    def deletions(self) -> int:
        """Messages marked as deleted in this session."""
        return self._dialogue.deletions

    @property
    def refused(self) -> Sequence[Message]:
        """Messages that the server would not mark as deleted in this session."""
        return self._dialogue.refused

    def stat(self) -> tuple[int, int]:
        """How many messages, how many octets."""
        return self._run(self._dialogue.stat())

    def messages(self) -> Iterator[Message]:
        """The listing; nothing is downloaded yet."""
        yield from self._run(self._dialogue.listing())

    def retrieve(self, message: Message, *, progress: Progress | None = None) -> BlockingBody:
        """One message; it is asked for when it is read."""
        return BlockingBody(self, message, progress)

    def top(self, message: Message, lines: int = 0) -> BlockingBody:
        """The header, the blank line and so many lines of the body (RFC 1939 §7)."""
        body = BlockingBody(self, message)
        body._command = f"TOP {lines:d}"
        return body

    def _ask_for_one(self, message: Message, command: str) -> Answer:
        retrieval = self._run(self._dialogue.ask_for([message], command))
        answer = self._run(self._dialogue.next_message(retrieval))
        assert answer is not None
        return answer

    def retrieve_all(
        self, messages: Iterable[Message], *, progress: Progress | None = None
    ) -> Iterator[tuple[Message, BlockingBody]]:
        """Many messages, pipelined where the server allows; see ``Client.retrieve_all``."""
        return self._read_all(self._dialogue.ask_for(messages), progress)

    def _read_all(
        self,
        asking: Procedure[Retrieval],
        progress: Progress | None = None,
        *,
        is_header: bool = False,
    ) -> Iterator[tuple[Message, BlockingBody]]:
        retrieval = self._run(asking)
        while (answer := self._run(self._dialogue.next_message(retrieval))) is not None:
            body = BlockingBody(self, answer.message, progress)
            body._answer, body._is_header = answer, is_header
            yield answer.message, body
        if retrieval.failure is not None:
            raise retrieval.failure

    def headers(self, messages: Iterable[Message]) -> Iterator[tuple[Message, EmailMessage]]:
        """The headers of many messages; see ``Client.headers``."""
        asked = self._dialogue.ask_for_headers(messages)
        for message, body in self._read_all(asked, is_header=True):
            yield message, body.email()

    def delete(self, *messages: Message) -> None:
        """Mark as deleted; see ``Client.delete``."""
        self._run(self._dialogue.delete(messages))

    def reset(self) -> None:
        """Take back all deletions."""
        self._run(self._dialogue.reset())

    def noop(self) -> None:
        """Keep the session alive."""
        self._run(self._dialogue.noop())

    def quit(self) -> None:
        """End the session; what was marked is removed when this returns."""
        try:
            self._run(self._dialogue.quit())
        finally:
            self.abort()

    def commit(self) -> None:
        """Remove what was marked, and go on in a new session; see ``Client.commit``."""
        refused: CommandFailed | None = None
        try:
            self.quit()
        except CommandFailed as error:
            if error.command != "DELE":
                raise
            refused = error  # the others are removed
        self.reconnect()
        if refused is not None:
            raise refused

    def reconnect(self) -> int:
        """A new session; returns how many deletions were lost.  See ``Client.reconnect``."""
        self.abort()
        lost = self._dialogue.deletions
        self._dialogue = Dialogue(self._dialogue.record, self._remote.quirks)
        self._open()
        return lost

    def abort(self) -> None:
        """Drop the connection: nothing is removed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        """Connect, secure, log in."""
        remote, dialogue = self._remote, self._dialogue
        token = remote.ask_token()
        if not isinstance(token, str):
            raise UnsafeArgument("a token is text, or a function that gives it")
        login = replace(remote.login, token=token)
        try:
            self._socket = self._reach(remote.host, remote.port)
        except OSError as error:
            raise explain(error, remote.host) from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if remote.tls is TLS.IMPLICIT:
                self._shake_hands()
            self._run(dialogue.greeting())
            if remote.tls is TLS.STARTTLS:
                self._run(dialogue.start_tls())
                self._shake_hands()
            self._run(dialogue.ask_capabilities())
            self._run(dialogue.log_in(login, self._binding))
            self._run(dialogue.ask_capabilities())
        except BaseException:
            self.abort()
            raise

    def _reach(self, host: str, port: int) -> socket.socket:
        """A connection to the first of the host's addresses that answers.

        Raises:
            OSError: none does.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            connection = socket.socket(family, kind, protocol)
            is_last = address == found[-1][4]
            try:
                connection.settimeout(self._left() if is_last else min(self._left(), PATIENCE))
                connection.connect(address)
            except BaseException as error:
                connection.close()
                if is_last or not isinstance(error, OSError):
                    raise
            else:
                return connection
        raise OSError(f"{host} has no address")

    def _binding(self) -> bytes:
        return binding(self._socket if isinstance(self._socket, ssl.SSLSocket) else None)

    def _shake_hands(self) -> None:
        """What the kernel has from before the handshake becomes a broken handshake."""
        assert self._socket is not None
        self._socket.settimeout(self._left())
        host = self._remote.host
        try:
            inside = self._context.wrap_socket(self._socket, server_hostname=host)
        except OSError as error:
            raise explain(error, host) from error
        self._socket = inside
        self._remote.check_name(inside)

    def _left(self) -> float:
        """Seconds for the next wait.

        Raises:
            DeadlineExceeded: the time for all of it is over.
        """
        if self._until is None:
            return self._timeout
        left = min(self._timeout, self._until - time.monotonic())
        if left <= 0:
            raise self._dialogue.lost("the deadline is over", DeadlineExceeded)
        return left

    def _run(self, procedure: Procedure[T]) -> T:
        if self._socket is None:
            raise self._dialogue.lost("the connection is closed")
        try:
            wanted = next(procedure)
            while True:
                wanted = procedure.send(self._exchange(self._socket, wanted))
        except StopIteration as end:
            return cast(T, end.value)
        except (BodySkipped, CommandFailed, UnsafeArgument):
            raise
        except BaseException:
            self.abort()  # a response may be half read: nothing after it can be trusted
            raise

    def _exchange(self, connection: socket.socket, wanted: bytes | None) -> bytes:
        connection.settimeout(self._left())
        try:
            if wanted is not None:
                self._dialogue.record.sent(wanted)
                connection.sendall(wanted)
                return b""
            octets = connection.recv(_PIECE)
        except TimeoutError as error:
            self._left()
            text = f"the server was silent for {self._timeout:g} s"
            raise self._dialogue.lost(text, DeadlineExceeded) from error
        except OSError as error:
            raise self._dialogue.lost(str(error)) from error
        if not octets:
            raise self._dialogue.lost("the server closed the connection")
        return octets


@contextmanager
def connect_blocking(
    where: str | Service,
    *,
    timeout: float = 60.0,
    deadline: float | None = None,
    record: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> Iterator[BlockingClient]:
    """Connect, secure, log in; QUIT when the block ends normally.  See ``net.client.connect``."""
    remote = Remote.parse(where, **options)
    client = BlockingClient(remote, timeout, deadline, Record(record))
    try:
        client._open()
        yield client
        if client._socket is not None:
            client.quit()
    finally:
        client.abort()
