"""A POP3 client for asyncio.  It adds sockets to ``pop3.dialogue``.

Security: certificates are verified.  The client uses its own asyncio Protocol instead of streams,
so that no octet that arrived before the TLS handshake can be read after it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from email.message import EmailMessage
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

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
from ..threads import in_thread
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
from .sinks import WRITE_SIZE, FileSink, MemorySink, ParserSink, SizeLimit

T = TypeVar("T")
_HIGH_WATER = 262_144  # octets; reading stops while more received octets are unprocessed
_NO_LIMIT = 1e6  # seconds; if no value is given, asyncio uses its own limit for handshakes


class Body(BaseBody):
    """The text of a message, or its first lines, with CRLF line endings; it can be read only once.

    ``async for piece in body`` yields pieces of any size, ``read`` returns all octets, ``email``
    parses the message, and ``save`` writes it to a file.

    Reading the body raises:
        CommandFailed: the server refuses to send the message.
        ConnectionLost: the connection ended early; the pieces so far are not the whole message.
        MessageTooLarge: the message exceeds the ``max_size`` given to ``connect``.
        BodySkipped: another command was sent before the body's end, or another session began.
    """

    def __init__(
        self,
        client: Client,
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

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._begin()
        answer = self._source
        if not isinstance(answer, Answer):
            retrieval = await self._client._run(answer, self._dialogue)
            answer = await self._client._next_message(retrieval, self._dialogue)
        while piece := await self._client._run(self._dialogue.piece(answer), self._dialogue):
            self._count(piece)
            yield piece
        self._is_at_end = True

    async def read(self, max_size: int | None = None) -> bytes:
        """Read the whole message into memory.

        Args:
            max_size: Largest size to accept, in octets; by default the limit of the session.

        Raises:
            MessageTooLarge: the message is larger.  If its announced size is larger, the message is
                not requested, or is skipped if ``retrieve_all`` has already requested it.
        """
        self._use(max_size)
        sink = MemorySink()
        async for piece in self:
            sink.write(piece)
        self._is_in_use = False
        return sink.octets()

    async def email(self, max_size: int | None = None) -> EmailMessage:
        """Read and parse the whole message.

        Malformed parts become text or octets, and are reported in ``defects``.

        Args:
            max_size: Largest size to accept, in octets; by default the limit of the session.

        Raises:
            MessageTooLarge: the message is larger; see ``read``.
        """
        self._use(max_size)
        sink = ParserSink(self._limit, header=self._is_header)
        async for piece in self:
            sink.write(piece)
        email = await in_thread(sink.close)
        self._is_in_use = False
        return email

    async def save(self, path: str | PathLike[str]) -> None:
        """Save the message to a new file.

        When this method returns, the file is complete and durable; after an exception, no partial
        file remains.  The event loop does not wait for the disk.

        Raises:
            FileExistsError: the path already exists; an existing file is never replaced.
        """
        file = FileSink(Path(path))
        try:
            await in_thread(file.__enter__)
            self._use()
            buffer = bytearray()
            async for piece in self:
                buffer += piece
                if len(buffer) >= WRITE_SIZE:
                    await in_thread(file.write, bytes(buffer))
                    buffer.clear()
            await in_thread(file.write, bytes(buffer))
        except BaseException as error:
            await in_thread(file.__exit__, type(error), error, None)
            raise
        await in_thread(file.__exit__, None, None, None)
        self._is_in_use = False


class Client:
    """A POP3 session after login, created by ``connect``.  Only one task can use it at a time.

    As an asynchronous context manager, it sends QUIT when the block ends normally.  After an
    exception it drops the connection, so that no message is removed.
    """

    _stream: _Stream | None = None  # None: no session is open

    def __init__(self, remote: Remote, limits: Limits, record: Record, max_size: SizeLimit) -> None:
        self._remote = remote
        self._max_size = max_size
        self._context = remote.context()
        self._limits = limits
        self._dialogue = Dialogue(record, remote.quirks)
        self._loss: BaseException | None = None  # the error that ended the last session
        self._is_busy = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self._leave()
        finally:
            self.abort()

    def __del__(self) -> None:
        """Warn, and drop the connection, so that the server unlocks the maildrop."""
        if self._stream is not None:
            with suppress(RuntimeError):  # the loop is closed, and so is the connection
                self._stream.loop.call_soon_threadsafe(self._stream.transport.abort)
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

    async def stat(self) -> tuple[int, int]:
        """Return the number of messages and their total size in octets (STAT)."""
        return await self._run(self._dialogue.stat())

    async def list(self) -> Listing:
        """List the messages with LIST and UIDL, without downloading any.

        The result is a sequence that can also be indexed by unique-id:
        ``(await client.list())["AAa3"]``.

        Raises:
            CommandFailed: the server refuses LIST, or announces UIDL but refuses it.
        """
        return await self._run(self._dialogue.listing())

    def messages(self) -> AsyncIterator[Message]:
        """Deprecated: use ``list``, whose result is a sequence."""
        warnings.warn("messages() is deprecated; use list()", DeprecationWarning, stacklevel=2)
        return self._messages()

    async def _messages(self) -> AsyncIterator[Message]:
        for message in await self.list():
            yield message

    def retrieve(self, message: Message, *, progress: Progress | None = None) -> Body:
        """Return the body of one message; the message is requested when the body is read.

        Args:
            message: A message of this session, for example from ``list``.
            progress: Called with the message and the number of octets received so far.

        Raises:
            StaleMessage: the message belongs to another session.
        """
        return Body(self, message, progress, self._dialogue.request_messages([message]))

    def top(self, message: Message, lines: int = 0) -> Body:
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
        return Body(self, message, None, request, is_part=True)

    def retrieve_all(
        self,
        messages: Iterable[Message],
        *,
        delete: bool = False,
        progress: Progress | None = None,
    ) -> AsyncIterator[tuple[Message, Body]]:
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

    async def _read_all(
        self,
        dialogue: Dialogue,
        messages: Iterator[Message],
        progress: Progress | None = None,
        *,
        delete: bool = False,
        is_header: bool = False,
    ) -> AsyncIterator[tuple[Message, Body]]:
        self._check_session(dialogue)
        if is_header:
            request = dialogue.request_headers(messages)
        else:
            request = dialogue.request_messages(messages, deletes=delete)
        retrieval = await self._run(request, dialogue)
        done: Message | None = None  # the message that may be deleted next
        while answer := await self._run(dialogue.next_message(retrieval, done), dialogue):
            body = Body(self, answer.message, progress, answer, is_header=is_header)
            yield body.message, body
            done = body.message if delete and body.is_complete else None
        if retrieval.failure is not None:
            raise retrieval.failure

    def headers(
        self, messages: Iterable[Message], *, max_size: int | None = None
    ) -> AsyncIterator[tuple[Message, EmailMessage]]:
        """Fetch and parse the headers of many messages with TOP, pipelined if possible.

        Args:
            messages: Messages of this session, for example from ``list``.
            max_size: Largest header to accept, in octets; by default the limit of the session.

        Raises:
            CommandFailed: the server refuses a message, or does not support TOP.  If ``quirks``
                hides TOP, whole messages are retrieved instead.
            MessageTooLarge: a header is larger than the limit.
        """
        return self._parse_all(self.raw_headers(messages), max_size)

    async def _parse_all(
        self, bodies: AsyncIterator[tuple[Message, Body]], max_size: int | None
    ) -> AsyncIterator[tuple[Message, EmailMessage]]:
        async for message, body in bodies:
            yield message, await body.email(max_size)

    def raw_headers(self, messages: Iterable[Message]) -> AsyncIterator[tuple[Message, Body]]:
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

    async def delete(self, *messages: Message) -> None:
        """Mark messages as deleted; they are removed when the session ends normally.

        In a loop over ``retrieve_all``, DELE commands are sent between the commands of the loop.  A
        message that the server refuses to mark is added to ``refused`` and does not affect the
        other messages: QUIT removes them, and then CommandFailed is raised.

        Raises:
            StaleMessage: a message belongs to another session; nothing was sent.
        """
        await self._run(self._dialogue.delete(messages))

    async def reset(self) -> None:
        """Cancel all deletions (RSET)."""
        await self._run(self._dialogue.reset())

    async def noop(self) -> None:
        """Keep the session alive (NOOP)."""
        await self._run(self._dialogue.noop())

    async def quit(self) -> None:
        """End the session (QUIT); the deleted messages have been removed when this returns.

        Raises:
            CommandFailed: the server could not remove all messages (``command`` is "QUIT"), or it
                removed them but had refused to mark another message ("DELE").
            ConnectionLost: the response to QUIT was lost; ``is_known`` is False.
        """
        self._acquire()
        try:
            await self._perform(self._dialogue.quit())
        except ConnectionLost as error:
            if not self._dialogue.is_harmless(error):
                raise
        finally:
            self._is_busy = False
            self.abort()

    async def commit(self) -> None:
        """Remove the deleted messages and begin a new session: QUIT, connect, log in.

        List the messages again afterwards.

        Raises:
            UnsafeArgument: ``sock`` was given, which allows only one session; nothing was sent.
            CommandFailed: the server refused a deletion; see ``quit``.
        """
        self._remote.route.check_renewable()
        refused: CommandFailed | None = None
        try:
            await self.quit()
        except CommandFailed as error:
            if error.command != "DELE":
                raise
            refused = error  # the other messages have been removed
        await self.reconnect()
        if refused is not None:
            raise refused

    async def reconnect(self) -> int:
        """Drop the connection, unless it was already lost, and begin a new session.

        Returns the number of deletions of the earlier session that were lost.  List the messages
        again afterwards: reading a body of the earlier session raises BodySkipped.

        Raises:
            UnsafeArgument: ``sock`` was given, which allows only one session; nothing was sent.
        """
        self._remote.route.check_renewable()
        self._acquire()
        before = self._dialogue
        try:
            self.abort()
            self._dialogue = Dialogue(before.record, self._remote.quirks)
            await self._open()
        except BaseException as error:
            # The earlier dialogue counts the lost deletions.
            self._dialogue, self._loss = before, error
            raise
        finally:
            self._is_busy = False
        return before.deletions

    def abort(self) -> None:
        """Drop the connection without QUIT, so that no message is removed."""
        if self._stream is not None:
            self._stream.transport.abort()
            self._stream = None

    async def _enter(self) -> None:
        """Open the first session."""
        self._acquire()
        try:
            await self._open()
        finally:
            self._is_busy = False

    async def _leave(self) -> None:
        """End the session after a block that ended normally.

        Raises:
            ConnectionLost: deletions were lost inside the block, and the program caught the error.
        """
        if self._stream is not None:
            await self.quit()
        elif self._loss is not None and self._dialogue.deletions:
            raise self._dialogue.connection_lost(
                "the connection was lost inside the block"
            ) from self._loss

    async def _open(self) -> None:
        """Connect, start TLS, and log in."""
        remote, dialogue = self._remote, self._dialogue
        is_implicit = remote.tls is TLS.IMPLICIT
        token = remote.get_token()
        if not isinstance(token, str | Secret):
            token = await token
        login = replace(remote.login, token=reveal(token))
        wait = self._next_wait()
        try:
            async with asyncio.timeout(wait):
                connection = await remote.route.connect()
            logs.connected(remote.host, remote.port)
            wait = self._limits.next_wait()
            async with asyncio.timeout(wait):
                _, self._stream = await asyncio.get_running_loop().create_connection(
                    _Stream,
                    sock=connection,
                    ssl=self._context if is_implicit else None,
                    server_hostname=remote.server_name if is_implicit else None,
                    ssl_handshake_timeout=_asyncio_limit(wait) if is_implicit else None,
                )
        except CannotConnect:  # a proxy refused
            raise
        except OSError as error:
            raise self._explain(error) from error
        try:
            if is_implicit:
                self._check_certificate()
            elif await self._is_silent() and await asyncio.to_thread(remote.has_implicit_tls):
                raise remote.implicit_tls_error()
            await self._perform(dialogue.greeting())
            if remote.tls is TLS.STARTTLS:
                await self._perform(dialogue.start_tls())
                await self._start_tls()
                self._check_certificate()
            await self._perform(dialogue.request_capabilities())
            await self._perform(dialogue.log_in(login, self._binding))
            await self._perform(dialogue.request_capabilities())
        except BaseException:
            self.abort()
            raise
        self._loss = None

    async def _is_silent(self) -> bool:
        """Return whether no greeting arrives for ``SILENCE`` seconds; the server may be slow."""
        assert self._stream is not None
        wait = self._next_wait()
        seconds = SILENCE if wait is None else min(wait, SILENCE)
        return await self._stream.is_silent(seconds) and (wait is None or wait > SILENCE)

    def _check_certificate(self) -> None:
        assert self._stream is not None
        peer: ssl.SSLObject = self._stream.transport.get_extra_info("ssl_object")
        self._remote.check_certificate(peer)
        logs.secured(self._remote.host, peer)

    def _binding(self) -> bytes:
        assert self._stream is not None
        return channel_binding(self._stream.transport.get_extra_info("ssl_object"))

    async def _start_tls(self) -> None:
        assert self._stream is not None
        wait = self._next_wait()
        try:
            async with asyncio.timeout(wait):
                await self._stream.start_tls(
                    self._context, self._remote.server_name, _asyncio_limit(wait)
                )
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> Exception:
        if isinstance(error, TimeoutError) and self._limits.has_deadline_passed:
            return self._dialogue.connection_lost(self._limits.timeout_reason, DeadlineExceeded)
        return explain(error, self._remote.host, self._remote.tls)

    @asynccontextmanager
    async def _before_deadline(self) -> AsyncIterator[None]:
        """Interrupt the current task when the deadline passes.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        try:
            async with asyncio.timeout(self._limits.deadline) as total:
                yield
        except TimeoutError as error:
            if isinstance(error, DeadlineExceeded) or not total.expired():
                raise
            raise self._dialogue.connection_lost(
                self._limits.timeout_reason, DeadlineExceeded
            ) from error

    def _next_wait(self) -> float | None:
        """
        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        if self._limits.has_deadline_passed:
            raise self._dialogue.connection_lost(self._limits.timeout_reason, DeadlineExceeded)
        return self._limits.next_wait()

    def _acquire(self) -> None:
        """
        Raises:
            RuntimeError: another task is using this session; nothing was sent.
        """
        if self._is_busy:
            raise RuntimeError("two tasks used one POP3 session at the same time")
        self._is_busy = True

    def _check_session(self, dialogue: Dialogue) -> None:
        """
        Raises:
            BodySkipped: ``dialogue`` is that of an earlier session.
        """
        if dialogue is not self._dialogue:
            raise BodySkipped("a new session has begun; list the messages again")

    async def _run(self, procedure: Procedure[T], dialogue: Dialogue | None = None) -> T:
        """Run a procedure; if ``dialogue`` is given, it must be that of the current session."""
        self._acquire()
        try:
            if dialogue is not None:
                self._check_session(dialogue)
            return await self._perform(procedure)
        finally:
            self._is_busy = False

    async def _next_message(self, retrieval: Retrieval, dialogue: Dialogue) -> Answer:
        answer = await self._run(dialogue.next_message(retrieval), dialogue)
        assert answer is not None  # the procedure requested an answer
        return answer

    async def _perform(self, procedure: Procedure[T]) -> T:
        stream = self._stream
        if stream is None:
            raise self._dialogue.connection_lost("the connection is closed")
        try:
            outgoing = next(procedure)
            while True:
                octets = b""
                if outgoing is None:
                    octets = await self._receive(stream)
                else:
                    self._dialogue.record.sent(outgoing)
                    stream.transport.write(outgoing)
                outgoing = procedure.send(octets)
        except StopIteration as end:
            result = cast(T, end.value)
        except (BodySkipped, CommandFailed, UnsafeArgument):
            raise
        except BaseException as error:
            self._loss = error
            logs.lost(self._remote.host, error)
            self.abort()  # a response may have been read only in part
            raise
        self._dialogue.record.check()
        return result

    async def _receive(self, stream: _Stream) -> bytes:
        wait = self._next_wait()
        try:
            async with asyncio.timeout(wait):
                octets = await stream.receive()
        except TimeoutError as error:
            reason = self._limits.timeout_reason
            raise self._dialogue.connection_lost(reason, DeadlineExceeded) from error
        except OSError as error:
            raise self._dialogue.connection_lost(str(error)) from error
        if not octets:
            reason = "the server closed the connection" if self._stream is stream else "aborted"
            raise self._dialogue.connection_lost(reason)
        return octets


def _asyncio_limit(wait: float | None) -> float:
    """Return a limit above the client's own limit, so that asyncio does not time out first."""
    return _NO_LIMIT if wait is None else wait + 1


class _Stream(asyncio.Protocol):
    """Receives octets, and pauses reading while too many are unprocessed."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.loop = asyncio.get_running_loop()
        self._octets = bytearray()
        self._arrived = asyncio.Event()
        self._error: Exception | None = None
        self._is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._octets += data
        self._arrived.set()
        if len(self._octets) > _HIGH_WATER:
            self.transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        self._error = error
        self._arrived.set()

    async def receive(self) -> bytes:
        """Wait for octets and return them; empty when the connection has ended."""
        while not self._octets:
            if self._is_closed:
                if isinstance(self._error, OSError):
                    raise self._error
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        octets = bytes(self._octets)
        self._octets.clear()
        if not self._is_closed and not self.transport.is_reading():
            self.transport.resume_reading()
        return octets

    async def is_silent(self, seconds: float) -> bool:
        """Return whether nothing arrives within ``seconds``, although the connection is open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        return not self._octets and not self._is_closed

    async def start_tls(self, context: ssl.SSLContext, host: str, timeout: float) -> None:
        self.transport.pause_reading()
        if self._octets:
            raise ConnectionResetError("the server sent data before the TLS handshake")
        transport = await asyncio.get_running_loop().start_tls(
            self.transport, self, context, server_hostname=host, ssl_handshake_timeout=timeout
        )
        if transport is None:
            raise ConnectionResetError("connection lost during the TLS handshake")
        self.transport = transport


def connect(
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
) -> PendingClient:
    """Connect to a POP3 server, secure the connection with TLS, and log in.

    Enter the result with ``async with``: when the block ends normally, QUIT is sent and the server
    removes the messages that were deleted; after an exception the connection is dropped without
    QUIT and no message is removed.  Alternatively, await the result and call ``quit``.

    The strongest login that both sides support is used.  If it fails, no weaker login is tried.

    Args:
        where: ``pop3s://user@host`` for TLS from the first octet, ``pop3://user@host`` for STLS, a
            host name, or a ``Service`` returned by ``discover``.  A URL can contain a password
            and a port; in user name and password, ":", "/", "?", "#" and "%" must be
            percent-encoded.
        user: User name; overrides the URL's.
        password: Password; overrides the URL's.  A password from a file or a keyring is safer than
            one in a URL.
        token: OAuth 2 bearer token to use instead of a password, or a function that returns a
            fresh token for each login; it may be a coroutine function.
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
        deadline: Limit in seconds for the whole session.  When it has passed, the task that has
            entered the block is interrupted wherever it waits; other tasks are interrupted in the
            command that they are executing, or at their next command.  None: no limit.
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
    return PendingClient(remote, limits, recording, SizeLimit(max_size))


class PendingClient(Awaitable["Client"], AbstractAsyncContextManager["Client"]):
    """The result of ``connect``; enter it with ``async with`` or await it, but only once.

    Before that, nothing is sent and the deadline does not begin.
    """

    def __init__(self, remote: Remote, limits: Limits, record: Record, max_size: SizeLimit) -> None:
        self._remote = remote
        self._limits = limits
        self._record = record
        self._max_size = max_size
        self._is_used = False
        self._block: AbstractAsyncContextManager[Client] | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open_client().__await__()

    async def __aenter__(self) -> Client:
        self._block = self._open_block()
        return await self._block.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._block is not None
        return await self._block.__aexit__(kind, error, trace)

    def __del__(self) -> None:
        if not getattr(self, "_is_used", True):
            warnings.warn("connect() was neither entered nor awaited", RuntimeWarning, stacklevel=1)

    async def _open_client(self) -> Client:
        client = self._client()
        async with client._before_deadline():
            await client._enter()
        return client

    @asynccontextmanager
    async def _open_block(self) -> AsyncIterator[Client]:
        client = self._client()
        async with client._before_deadline():
            await client._enter()
            async with client:
                yield client

    def _client(self) -> Client:
        """
        Raises:
            RuntimeError: this object has been used before.
        """
        if self._is_used:
            raise RuntimeError(
                "the result of connect() can be used only once; call connect() again"
            )
        self._is_used = True
        limits = Limits(self._limits.timeout, self._limits.deadline)  # the deadline begins now
        return Client(self._remote, limits, self._record, self._max_size)
