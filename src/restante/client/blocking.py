"""A POP3 client for code that does not use asyncio.  It adds a socket to ``pop3.dialogue``.

Its methods have the same names as those in ``client.asynchronous``; it is used with plain ``with``
and ``for``.
"""

from __future__ import annotations

import inspect
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.message import EmailMessage
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast

from ..errors import (
    BodySkipped,
    CannotConnect,
    CommandFailed,
    ConnectionLost,
    DeadlineExceeded,
    UnsafeArgument,
)
from ..pop3.dialogue import Answer, Capabilities, Dialogue, Procedure, Retrieval
from ..pop3.listing import Listing, Message
from ..pop3.quirks import Quirks
from ..pop3.record import Record
from ..sasl.exchange import Strength
from . import logs
from .bodies import BaseBody, Progress
from .connecting import Limits
from .remote import (
    SILENCE,
    TLS,
    Options,
    Remote,
    Service,
    StrPath,
    TokenSource,
    channel_binding,
    explain,
)
from .secret import Secret, reveal
from .sinks import FileSink, MemorySink, ParserSink, SizeLimit

T = TypeVar("T")
_READ_SIZE = 65_536  # octets read at a time


class BlockingBody(BaseBody):
    """The text of a message, or its first lines, with CRLF line endings; it can be read only once.

    ``for piece in body`` yields pieces of any size, ``read`` returns all octets, ``email`` parses
    the message, and ``save`` writes it to a file.

    Reading the body raises:
        CommandFailed: the server refuses to send the message.
        ConnectionLost: the connection ended early; the pieces so far are not the whole message.
        MessageTooLarge: the message exceeds the ``max_size`` given to ``connect_blocking``.
        BodySkipped: another command was sent before the body's end, or another session began.
    """

    def __init__(
        self,
        client: BlockingClient,
        message: Message,
        progress: Progress | None,
        source: Procedure[Retrieval] | Answer,
        *,
        is_header: bool = False,
        is_part: bool = False,
    ) -> None:
        super().__init__(
            client._dialogue,
            message,
            source,
            client._max_size,
            progress,
            is_header=is_header,
            is_part=is_part,
        )
        self._client = client

    def __iter__(self) -> Iterator[bytes]:
        self._begin()
        answer = self._source
        if not isinstance(answer, Answer):
            retrieval = self._client._run(answer, self._dialogue)
            answer = self._client._next_message(retrieval, self._dialogue)
        while piece := self._client._run(self._dialogue.piece(answer), self._dialogue):
            self._count(piece)
            yield piece
        self._is_at_end = True

    def read(self, max_size: int | None = None) -> bytes:
        """Read the whole message into memory.

        Args:
            max_size: Largest size to accept, in octets; by default the limit of the session.

        Raises:
            MessageTooLarge: the message is larger.  If its announced size is larger, the message is
                not requested, or is skipped if ``retrieve_all`` has already requested it.
        """
        self._use(max_size)
        sink = MemorySink()
        for piece in self:
            sink.write(piece)
        self._is_in_use = False
        return sink.octets()

    def email(self, max_size: int | None = None) -> EmailMessage:
        """Read and parse the whole message.

        Malformed parts become text or octets, and are reported in ``defects``.

        Args:
            max_size: Largest size to accept, in octets; by default the limit of the session.

        Raises:
            MessageTooLarge: the message is larger; see ``read``.
        """
        self._use(max_size)
        sink = ParserSink(self._limit, header=self._is_header)
        for piece in self:
            sink.write(piece)
        email = sink.close()
        self._is_in_use = False
        return email

    def save(self, path: str | PathLike[str]) -> None:
        """Save the message to a new file.

        When this method returns, the file is complete and durable; after an exception, no partial
        file remains.

        Raises:
            FileExistsError: the path already exists; an existing file is never replaced.
        """
        with FileSink(Path(path)) as file:
            self._use()
            for piece in self:
                file.write(piece)
        self._is_in_use = False


class BlockingClient:
    """A POP3 session after login, created by ``connect_blocking``.

    As a context manager, it sends QUIT when the block ends normally.  After an exception it drops
    the connection, so that no message is removed.  Only one thread can use it at a time, but
    ``abort`` can be called from another thread.
    """

    _socket: socket.socket | None = None  # None: no session is open

    def __init__(self, remote: Remote, limits: Limits, record: Record, max_size: SizeLimit) -> None:
        self._remote = remote
        self._max_size = max_size
        self._context = remote.context()
        self._limits = limits
        self._dialogue = Dialogue(record, remote.quirks)
        self._loss: BaseException | None = None  # the error that ended the last session
        self._busy = threading.Lock()  # held by the thread that uses the session

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._leave()
        finally:
            self.abort()

    def __del__(self) -> None:
        """Warn, and drop the connection, so that the server unlocks the maildrop."""
        if self._socket is not None:
            self._drop()
            warning = f"POP3 session with {self._remote.host} was not ended; call quit() or abort()"
            warnings.warn(warning, ResourceWarning, source=self, stacklevel=1)

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities that the server announced after the login (CAPA, RFC 2449)."""
        return self._dialogue.capabilities

    @property
    def quirks(self) -> Quirks:
        """The deviations of this server that the session takes into account."""
        return self._dialogue.quirks

    @property
    def deletions(self) -> int:
        """Number of messages that are marked as deleted in this session."""
        return self._dialogue.deletions

    @property
    def refused(self) -> Sequence[Message]:
        """Messages that the server refused to mark as deleted in this session."""
        return self._dialogue.refused

    def stat(self) -> tuple[int, int]:
        """Return the number of messages and their total size in octets (STAT)."""
        return self._run(self._dialogue.stat())

    def list(self) -> Listing:
        """List the messages with LIST and UIDL, without downloading any.

        The result is a sequence that can also be indexed by unique-id: ``client.list()["AAa3"]``.

        Raises:
            CommandFailed: the server refuses LIST, or announces UIDL but refuses it.
        """
        return self._run(self._dialogue.listing())

    def messages(self) -> Iterator[Message]:
        """Deprecated: use ``list``, whose result is a sequence."""
        warnings.warn("messages() is deprecated; use list()", DeprecationWarning, stacklevel=2)
        return (message for message in self.list())

    def retrieve(self, message: Message, *, progress: Progress | None = None) -> BlockingBody:
        """Return the body of one message; the message is requested when the body is read.

        Args:
            message: A message of this session, for example from ``list``.
            progress: Called with the message and the number of octets received so far.

        Raises:
            StaleMessage: the message belongs to another session.
        """
        return BlockingBody(self, message, progress, self._dialogue.request_messages([message]))

    def top(self, message: Message, lines: int = 0) -> BlockingBody:
        """Return the header, the blank line and the first lines of a message (TOP, RFC 1939 §7).

        Args:
            message: A message of this session.
            lines: Number of lines of the body.

        Raises:
            StaleMessage: the message belongs to another session.
            UnsafeArgument: ``lines`` is negative.
        """
        if lines < 0:
            raise UnsafeArgument("the number of lines for TOP must be at least 0")
        request = self._dialogue.request_messages([message], f"TOP {lines:d}")
        return BlockingBody(self, message, None, request, is_part=True)

    def retrieve_all(
        self,
        messages: Iterable[Message],
        *,
        delete: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Message, BlockingBody]]:
        """Retrieve many messages in the given order, pipelined if the server allows it.

        If a body is not read to its end, the rest of it is skipped.  If the server refuses a
        message, reading its body raises CommandFailed.  Messages can be deleted during the
        iteration.  Any other command, or a new session, makes the iteration raise BodySkipped.  If
        the iterable ``messages`` raises an exception, it is raised after the bodies of the earlier
        messages, and the session continues.

        Args:
            messages: Messages of this session, for example from ``list``.
            delete: Delete each message when the loop requests the next one, provided that its body
                was read to the end, and that ``save`` or ``email`` succeeded if it was called.  If
                ``break`` or an exception ends the loop, the current message is not deleted.
                Messages that were read only in part or not at all are not deleted either.
            progress: Called with each message and the number of its octets received so far.
        """
        return self._read_all(self._dialogue, iter(messages), progress, delete=delete)

    def _read_all(
        self,
        dialogue: Dialogue,
        messages: Iterator[Message],
        progress: Progress | None = None,
        *,
        delete: bool = False,
        is_header: bool = False,
    ) -> Iterator[tuple[Message, BlockingBody]]:
        self._check_session(dialogue)
        if is_header:
            request = dialogue.request_headers(messages)
        else:
            request = dialogue.request_messages(messages, deletes=delete)
        retrieval = self._run(request, dialogue)
        done: Message | None = None  # the message that may be deleted next
        while answer := self._run(dialogue.next_message(retrieval, done), dialogue):
            body = BlockingBody(self, answer.message, progress, answer, is_header=is_header)
            yield body.message, body
            done = body.message if delete and body.is_complete else None
        if retrieval.failure is not None:
            raise retrieval.failure

    def headers(
        self, messages: Iterable[Message], *, max_size: int | None = None
    ) -> Iterator[tuple[Message, EmailMessage]]:
        """Fetch and parse the headers of many messages with TOP, pipelined if possible.

        Args:
            messages: Messages of this session, for example from ``list``.
            max_size: Largest header to accept, in octets; by default the limit of the session.

        Raises:
            CommandFailed: the server refuses a message, or does not support TOP.  If ``quirks``
                hides TOP, whole messages are retrieved instead.
            MessageTooLarge: a header is larger than the limit.
        """
        bodies = self.raw_headers(messages)
        return ((message, body.email(max_size)) for message, body in bodies)

    def raw_headers(self, messages: Iterable[Message]) -> Iterator[tuple[Message, BlockingBody]]:
        """Fetch the headers of many messages as octets, pipelined if the server allows it.

        If the server refuses a message, reading its header raises CommandFailed.  If ``quirks``
        hides TOP, the octets after the blank line are the body of the message.
        """
        return self._read_all(self._dialogue, iter(messages), is_header=True)

    def stop_pipelining(self) -> None:
        """Send one command at a time from now on, even if the server announces PIPELINING."""
        self._dialogue.stop_pipelining()

    @property
    def is_pipelining_in_doubt(self) -> bool:
        """Whether several commands were sent together, and only the first has been answered."""
        return self._dialogue.is_pipelining_in_doubt

    def delete(self, *messages: Message) -> None:
        """Mark messages as deleted; they are removed when the session ends normally.

        In a loop over ``retrieve_all``, DELE commands are sent between the commands of the loop.  A
        message that the server refuses to mark is added to ``refused`` and does not affect the
        other messages: QUIT removes them, and then CommandFailed is raised.

        Raises:
            StaleMessage: a message belongs to another session; nothing was sent.
        """
        self._run(self._dialogue.delete(messages))

    def reset(self) -> None:
        """Cancel all deletions (RSET)."""
        self._run(self._dialogue.reset())

    def noop(self) -> None:
        """Keep the session alive (NOOP)."""
        self._run(self._dialogue.noop())

    def quit(self) -> None:
        """End the session (QUIT); the deleted messages have been removed when this returns.

        Raises:
            CommandFailed: the server could not remove all messages (``command`` is "QUIT"), or it
                removed them but had refused to mark another message ("DELE").
            ConnectionLost: the response to QUIT was lost; ``is_known`` is False.
        """
        with self._exclusive():
            try:
                self._perform(self._dialogue.quit())
            except ConnectionLost as error:
                if not self._dialogue.is_harmless(error):
                    raise
            finally:
                self._drop()

    def commit(self) -> None:
        """Remove the deleted messages and begin a new session: QUIT, connect, log in.

        List the messages again afterwards.

        Raises:
            UnsafeArgument: ``sock`` was given, which allows only one session; nothing was sent.
            CommandFailed: the server refused a deletion; see ``quit``.
        """
        self._remote.route.check_renewable()
        refused: CommandFailed | None = None
        try:
            self.quit()
        except CommandFailed as error:
            if error.command != "DELE":
                raise
            refused = error  # the other messages have been removed
        self.reconnect()
        if refused is not None:
            raise refused

    def reconnect(self) -> int:
        """Drop the connection, unless it was already lost, and begin a new session.

        Returns the number of deletions of the earlier session that were lost.  List the messages
        again afterwards: reading a body of the earlier session raises BodySkipped.

        Raises:
            UnsafeArgument: ``sock`` was given, which allows only one session; nothing was sent.
        """
        self._remote.route.check_renewable()
        with self._exclusive():
            before = self._dialogue
            try:
                self._drop()
                self._dialogue = Dialogue(before.record, self._remote.quirks)
                self._open()
            except BaseException as error:
                # The earlier dialogue counts the lost deletions.
                self._dialogue, self._loss = before, error
                raise
            return before.deletions

    def abort(self) -> None:
        """Drop the connection without QUIT, so that no message is removed.

        If another thread is using the session, ConnectionLost is raised in that thread.
        """
        if self._busy.acquire(blocking=False):
            self._drop()
            self._busy.release()
        elif (connection := self._socket) is not None:
            # Only the thread that uses the socket may close it; otherwise that thread could read
            # from a different connection with the same descriptor.  ``SSLSocket.shutdown`` would
            # make it continue without TLS.
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _drop(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _enter(self) -> None:
        """Open the first session."""
        with self._exclusive():
            self._open()

    def _leave(self) -> None:
        """End the session after a block that ended normally.

        Raises:
            ConnectionLost: deletions were lost inside the block, and the program caught the error.
        """
        if self._socket is not None:
            self.quit()
        elif self._loss is not None and self._dialogue.deletions:
            raise self._dialogue.connection_lost(
                "the connection was lost inside the block"
            ) from self._loss

    def _open(self) -> None:
        """Connect, start TLS, and log in."""
        remote, dialogue = self._remote, self._dialogue
        token = remote.get_token()
        if not isinstance(token, str | Secret):
            if inspect.iscoroutine(token):
                token.close()
            raise UnsafeArgument(
                "token must be a string or a Secret, or a function that returns one"
            )
        login = replace(remote.login, token=reveal(token))
        wait = self._next_wait()
        try:
            self._socket = remote.route.connect_blocking(wait)
            logs.connected(remote.host, remote.port)
        except CannotConnect:  # a proxy refused
            raise
        except OSError as error:
            raise self._explain(error) from error
        try:
            with suppress(OSError):  # the given socket may not be a TCP socket
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if remote.tls is TLS.IMPLICIT:
                self._start_tls()
            elif self._is_silent() and remote.has_implicit_tls():
                raise remote.implicit_tls_error()
            self._perform(dialogue.greeting())
            if remote.tls is TLS.STARTTLS:
                self._perform(dialogue.start_tls())
                self._start_tls()
            self._perform(dialogue.request_capabilities())
            self._perform(dialogue.log_in(login, self._binding))
            self._perform(dialogue.request_capabilities())
        except BaseException:
            self._drop()
            raise
        self._loss = None

    def _binding(self) -> bytes:
        return channel_binding(self._socket if isinstance(self._socket, ssl.SSLSocket) else None)

    def _is_silent(self) -> bool:
        """Return whether no greeting arrives for ``SILENCE`` seconds; the server may be slow."""
        assert self._socket is not None
        wait = self._next_wait()
        self._socket.settimeout(SILENCE if wait is None else min(wait, SILENCE))
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return wait is None or wait > SILENCE
        except OSError:
            pass  # reading the greeting reports it again
        return False

    def _start_tls(self) -> None:
        """Do the TLS handshake; it fails if the server has sent octets before it."""
        assert self._socket is not None
        wait = self._next_wait()
        try:
            self._socket.settimeout(wait)
            secured = self._context.wrap_socket(
                self._socket, server_hostname=self._remote.server_name
            )
        except OSError as error:
            raise self._explain(error) from error
        self._socket = secured
        self._remote.check_certificate(secured)
        logs.secured(self._remote.host, secured)

    def _explain(self, error: OSError) -> Exception:
        if isinstance(error, TimeoutError) and self._limits.has_deadline_passed:
            return self._dialogue.connection_lost(self._limits.timeout_reason, DeadlineExceeded)
        return explain(error, self._remote.host, self._remote.tls)

    def _next_wait(self) -> float | None:
        """
        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        if self._limits.has_deadline_passed:
            raise self._dialogue.connection_lost(self._limits.timeout_reason, DeadlineExceeded)
        return self._limits.next_wait()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """
        Raises:
            RuntimeError: another thread is using this session; nothing was sent.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("two threads used one POP3 session at the same time")
        try:
            yield
        finally:
            self._busy.release()

    def _check_session(self, dialogue: Dialogue) -> None:
        """
        Raises:
            BodySkipped: ``dialogue`` is that of an earlier session.
        """
        if dialogue is not self._dialogue:
            raise BodySkipped("a new session has begun; list the messages again")

    def _run(self, procedure: Procedure[T], dialogue: Dialogue | None = None) -> T:
        """Run a procedure; if ``dialogue`` is given, it must be that of the current session."""
        with self._exclusive():
            if dialogue is not None:
                self._check_session(dialogue)
            return self._perform(procedure)

    def _next_message(self, retrieval: Retrieval, dialogue: Dialogue) -> Answer:
        answer = self._run(dialogue.next_message(retrieval), dialogue)
        assert answer is not None  # the procedure requested an answer
        return answer

    def _perform(self, procedure: Procedure[T]) -> T:
        if self._socket is None:
            raise self._dialogue.connection_lost("the connection is closed")
        try:
            outgoing = next(procedure)
            while True:
                outgoing = procedure.send(self._exchange(self._socket, outgoing))
        except StopIteration as end:
            result = cast(T, end.value)
        except (BodySkipped, CommandFailed, UnsafeArgument):
            raise
        except BaseException as error:
            self._loss = error
            logs.lost(self._remote.host, error)
            self._drop()  # a response may have been read only in part
            raise
        self._dialogue.record.check()
        return result

    def _exchange(self, connection: socket.socket, outgoing: bytes | None) -> bytes:
        wait = self._next_wait()
        try:
            connection.settimeout(wait)
            if outgoing is not None:
                self._dialogue.record.sent(outgoing)
                connection.sendall(outgoing)
                return b""
            octets = connection.recv(_READ_SIZE)
        except TimeoutError as error:
            reason = self._limits.timeout_reason
            raise self._dialogue.connection_lost(reason, DeadlineExceeded) from error
        except OSError as error:
            raise self._dialogue.connection_lost(str(error)) from error
        if not octets:
            raise self._dialogue.connection_lost("the server closed the connection")
        return octets


def connect_blocking(
    where: str | Service,
    *,
    user: str | None = None,
    password: str | Secret | None = None,
    token: TokenSource | None = None,
    certificate: StrPath | tuple[StrPath, StrPath] | None = None,
    mechanism: str | None = None,
    strength: Strength | None = None,
    tls: TLS | None = None,
    port: int | None = None,
    ca_file: StrPath | None = None,
    quirks: Quirks | str | None = None,
    context: ssl.SSLContext | None = None,
    sock: socket.socket | None = None,
    proxy: str | None = None,
    local_addr: str | tuple[str, int] | None = None,
    server_hostname: str | None = None,
    fingerprint: str | bytes | None = None,
    timeout: float | None = 60.0,
    deadline: float | None = None,
    max_size: int | None = None,
    record: Callable[[str], None] | None = None,
) -> BlockingClient:
    """Connect to a POP3 server, secure the connection with TLS, and log in; without asyncio.

    Use the result in a ``with`` block: when the block ends normally, QUIT is sent and the server
    removes the messages that were deleted; after an exception the connection is dropped without
    QUIT and no message is removed.  Alternatively, call ``quit``.

    The strongest login that both sides support is used.  If it fails, no weaker login is tried.

    Args:
        where: ``pop3s://user@host`` for TLS from the first octet, ``pop3://user@host`` for STLS, a
            host name, or a ``Service`` returned by ``discover_blocking``.  A URL can contain
            a password and a port; in user name and password, ":", "/", "?", "#" and "%" must be
            percent-encoded.
        user: User name; overrides the URL's.
        password: Password; overrides the URL's.  A password from a file or a keyring is safer than
            one in a URL.
        token: OAuth 2 bearer token to use instead of a password, or a function that returns a
            fresh token for each login.
        certificate: Client certificate and its key: one PEM file, or a pair of files.  If neither
            a password nor a token is given, it is used to log in (EXTERNAL).
        mechanism: Login method to use instead of the strongest that both sides support: the name
            of a SASL mechanism, ``USER`` or ``APOP``.
        strength: Weakest login to accept; by default ``Strength.SECRET``.
        tls: When TLS begins; overrides the URL's scheme.
        port: Port; overrides the URL's.  By default 995, or 110 with STLS.
        ca_file: PEM file with the certificates to trust instead of the system's.
        quirks: How this server deviates from the protocol: a ``Quirks``, or the name of a preset.
            By default, the known deviations of servers with this host name.
        context: SSL context to use instead of ``ca_file`` and ``certificate``.
        sock: Connected socket to use instead of a new connection.  The client closes it at the end
            of the session; ``commit`` and ``reconnect`` are then impossible.
        proxy: ``socks5://user:password@host:port`` or ``http://…`` (CONNECT); the proxy looks up
            the server's name.
        local_addr: IP address to connect from, or a pair of an IP address and a port.
        server_hostname: Name that the server's certificate must contain; by default the host name.
        fingerprint: SHA-256 of the server's certificate, in hexadecimal.  It replaces the
            verification of issuer and name; with ``ca_file`` or ``context``, both are verified too.
        timeout: Limit in seconds for each wait: for lookup and connection, for the TLS handshake,
            and for each response.  None: no limit.
        deadline: Limit in seconds for the whole session, counted from this call.  When it has
            passed, the current command or the next one raises DeadlineExceeded; nothing else is
            interrupted.  None: no limit.
        max_size: Size in octets of the largest message to accept; reading a larger one raises
            MessageTooLarge.  None: no limit.  ``read``, ``email`` and ``headers`` can override it.
        record: Called with each line that client or server sends, without passwords and without
            the contents of messages.  The logger ``restante.client`` logs the same lines at level
            DEBUG.

    Raises:
        TLSUnavailable: no safe connection is possible; no credential was sent.
        LoginFailed: the server refused the login (``code`` is "AUTH" if the credentials are wrong),
            or the login would be weaker than ``strength``.
        CannotConnect: the host is unknown, unreachable, or refuses the connection.
        ConnectionLost: the connection ended too early; ``lost_deletions`` messages were not
            removed.  Raised at the end of the block as well if the block has caught the error.
        DeadlineExceeded: ``timeout`` or ``deadline`` has passed.
        CommandFailed: the server refuses the connection.  At the end of the block: the server could
            not remove all messages (``command`` is "QUIT"), or it removed them but had refused to
            mark another message ("DELE").
        ConfigurationError: a certificate file cannot be used.
        UnsafeArgument: an argument is invalid, such as a malformed URL; nothing was sent.
        TypeError: an argument has the wrong type.
    """
    options: Options = {
        "user": user,
        "password": password,
        "token": token,
        "certificate": certificate,
        "mechanism": mechanism,
        "strength": strength,
        "tls": tls,
        "port": port,
        "ca_file": ca_file,
        "quirks": quirks,
        "context": context,
        "sock": sock,
        "proxy": proxy,
        "local_addr": local_addr,
        "server_hostname": server_hostname,
        "fingerprint": fingerprint,
    }
    remote, limits = Remote.parse(where, **options), Limits(timeout, deadline)
    recording = logs.recording(remote.host, record)
    client = BlockingClient(remote, limits, recording, SizeLimit(max_size))
    client._enter()
    return client
