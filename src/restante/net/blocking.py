"""A POP3 client for code without asyncio: one socket around ``pop3.dialogue``.

The same names as in ``net.client``, with plain ``with`` and ``for``.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

from ..errors import CommandFailed, DeadlineExceeded, UnsafeArgument
from ..pop3.dialogue import Capabilities, Dialogue, Message, Procedure
from .remote import TLS, Remote, explain

T = TypeVar("T")
_PIECE = 65_536  # octets read at once


class BlockingClient:
    """A session in the TRANSACTION state; ``connect_blocking`` makes it."""

    def __init__(
        self, dialogue: Dialogue, connection: socket.socket, timeout: float, deadline: float | None
    ) -> None:
        self._dialogue = dialogue
        self._socket = connection
        self._timeout = timeout
        self._until = None if deadline is None else time.monotonic() + deadline
        self._is_lost = False

    @property
    def capabilities(self) -> Capabilities:
        """As announced after the login."""
        return self._dialogue.capabilities

    def stat(self) -> tuple[int, int]:
        """How many messages, how many octets."""
        return self._run(self._dialogue.stat())

    def messages(self) -> Iterator[Message]:
        """The listing; nothing is downloaded yet."""
        yield from self._run(self._dialogue.listing())

    def retrieve(self, message: Message) -> Iterator[bytes]:
        """One message in pieces of CRLF text; raises as ``Client.retrieve`` does."""
        yield from self._ask_for_one(message, "RETR")

    def top(self, message: Message, lines: int = 0) -> bytes:
        """The header, the blank line and so many lines of the body (RFC 1939 §7)."""
        return b"".join(self._ask_for_one(message, f"TOP {lines}"))

    def _ask_for_one(self, message: Message, command: str) -> Iterator[bytes]:
        self._run(self._dialogue.ask_for([message], command))
        answer = self._run(self._dialogue.next_message())
        assert answer is not None
        return self._body(answer[1])

    def retrieve_all(
        self, messages: Iterable[Message]
    ) -> Iterator[tuple[Message, Iterator[bytes]]]:
        """Many messages, pipelined where the server allows; see ``Client.retrieve_all``."""
        self._run(self._dialogue.ask_for(messages))
        while (answer := self._run(self._dialogue.next_message())) is not None:
            yield answer[0], self._body(answer[1])

    def _body(self, error: CommandFailed | None) -> Iterator[bytes]:
        if error is not None:
            raise error
        while piece := self._run(self._dialogue.piece()):
            yield piece

    def delete(self, *messages: Message) -> None:
        """Mark as deleted; they are removed when the session ends normally."""
        self._run(self._dialogue.delete(messages))

    def reset(self) -> None:
        """Take back all deletions."""
        self._run(self._dialogue.reset())

    def noop(self) -> None:
        """Keep the session alive."""
        self._run(self._dialogue.noop())

    def quit(self) -> None:
        """End the session; what was marked is removed when this returns."""
        self._run(self._dialogue.quit())
        self.abort()

    def abort(self) -> None:
        """Drop the connection: nothing is removed."""
        self._is_lost = True
        self._socket.close()

    def _run(self, procedure: Procedure[T]) -> T:
        if self._is_lost:
            raise self._dialogue.lost("the connection is closed")
        try:
            wanted = next(procedure)
            while True:
                wanted = procedure.send(self._exchange(wanted))
        except StopIteration as end:
            return cast(T, end.value)
        except (CommandFailed, UnsafeArgument):
            raise
        except BaseException:
            self.abort()  # a response may be half read: nothing after it can be trusted
            raise

    def _exchange(self, wanted: bytes | None) -> bytes:
        left = self._timeout
        if self._until is not None:
            left = min(left, self._until - time.monotonic())
        if left <= 0:
            raise self._dialogue.lost("the deadline is over", DeadlineExceeded)
        self._socket.settimeout(left)
        try:
            if wanted is not None:
                self._socket.sendall(wanted)
                return b""
            octets = self._socket.recv(_PIECE)
        except TimeoutError as error:
            text = f"the server was silent for {left:g} s"
            raise self._dialogue.lost(text, DeadlineExceeded) from error
        except OSError as error:
            raise self._dialogue.lost(str(error)) from error
        if not octets:
            raise self._dialogue.lost("the server closed the connection")
        return octets

    def _start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """What the kernel has from before the handshake becomes a broken handshake."""
        self._run(self._dialogue.start_tls())
        self._socket = context.wrap_socket(self._socket, server_hostname=host)


@contextmanager
def connect_blocking(
    url: str,
    *,
    user: str = "",
    password: str = "",
    tls: TLS | None = None,
    ca_file: Path | None = None,
    context: ssl.SSLContext | None = None,
    timeout: float = 60.0,
    deadline: float | None = None,
) -> Iterator[BlockingClient]:
    """Connect, secure, log in; QUIT when the block ends normally.  See ``net.client.connect``."""
    remote = Remote.parse(url, user=user, password=password, tls=tls)
    client = _open(remote, remote.context(context, ca_file), timeout, deadline)
    try:
        yield client
        if not client._is_lost:
            client.quit()
    finally:
        client.abort()


def _open(
    remote: Remote, context: ssl.SSLContext, timeout: float, deadline: float | None
) -> BlockingClient:
    dialogue = Dialogue()
    try:
        connection = socket.create_connection((remote.host, remote.port), timeout)
    except TimeoutError as error:
        raise dialogue.lost(f"{remote.host} does not answer", DeadlineExceeded) from error
    except OSError as error:
        raise explain(error, remote.host) from error
    client = BlockingClient(dialogue, connection, timeout, deadline)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if remote.tls is TLS.IMPLICIT:
                client._socket = context.wrap_socket(connection, server_hostname=remote.host)
            client._run(dialogue.greeting())
            if remote.tls is TLS.STARTTLS:
                client._start_tls(context, remote.host)
        except OSError as error:
            raise explain(error, remote.host) from error
        client._run(dialogue.ask_capabilities())
        client._run(dialogue.log_in(remote.user, remote.password))
        client._run(dialogue.ask_capabilities())
    except BaseException:
        client.abort()
        raise
    return client
