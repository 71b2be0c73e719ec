"""A POP3 client for asyncio: sockets around ``pop3.dialogue``.

Security: certificates are verified; an own Protocol instead of streams, so that no octet from
before TLS can be read after it.
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
from ..sasl import Strength
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
    binding,
    explain,
)
from .secret import Secret, reveal
from .sinks import AT_ONCE, Gathering, Parsing, Saving, SizeLimit

T = TypeVar("T")
_HIGH_WATER = 262_144  # octets; reading stops while this many received octets are not processed
_NO_LIMIT = 1e6  # seconds; without a value asyncio limits handshakes itself


class Body(BaseBody):
    """A message, or its beginning, as CRLF text in pieces; it can be read once.

    ``async for piece in body`` reads it in pieces of any size, ``read`` into memory; ``email``
    parses it, and ``save`` writes it to a file.

    Reading it raises:
        CommandFailed: the server refuses to send it.
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
            MessageTooLarge: the message is larger.  A message that the server announces as larger
                is not requested; if ``retrieve_all`` has already requested it, it is skipped.
        """
        self._use(max_size)
        gathering = Gathering()
        async for piece in self:
            gathering.write(piece)
        self._is_in_use = False
        return gathering.octets()

    async def email(self, max_size: int | None = None) -> EmailMessage:
        """Read and parse the whole message.

        Malformed parts become text or octets, with a defect.

        Args:
            max_size: Largest size to accept, in octets; by default the limit of the session.

        Raises:
            MessageTooLarge: the message is larger; see ``read``.
        """
        self._use(max_size)
        parsing = Parsing(self._limit, header=self._is_header)
        async for piece in self:
            parsing.write(piece)
        email = await in_thread(parsing.close)
        self._is_in_use = False
        return email

    async def save(self, path: str | PathLike[str]) -> None:
        """Save the message to a new file, which is complete and durable on return, or absent.

        The event loop does not wait for the disk.

        Raises:
            FileExistsError: the path already exists; an existing file is never replaced.
        """
        saving = Saving(Path(path))
        try:
            await in_thread(saving.__enter__)
            self._use()
            waiting = bytearray()
            async for piece in self:
                waiting += piece
                if len(waiting) >= AT_ONCE:
                    await in_thread(saving.write, bytes(waiting))
                    waiting.clear()
            await in_thread(saving.write, bytes(waiting))
        except BaseException as error:
            await in_thread(saving.__exit__, type(error), error, None)
            raise
        await in_thread(saving.__exit__, None, None, None)
        self._is_in_use = False


class Client:
    """A POP3 session, logged in; created by ``connect``.  For one task at a time.

    As an asynchronous context manager it sends QUIT when the block ends normally, and drops the
    connection, so that no message is removed, after an exception.
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
            what = f"POP3 session with {self._remote.host} was not ended; call quit() or abort()"
            warnings.warn(what, ResourceWarning, source=self, stacklevel=1)

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

        The result is a sequence, also indexed by unique-id: ``(await client.list())["AAa3"]``.

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
        """Return the body of one message, which is requested when it is read.

        Args:
            message: A message of this session, for example from ``list``.
            progress: Called with the message and the number of its octets so far.

        Raises:
            StaleMessage: the message belongs to another session.
        """
        return Body(self, message, progress, self._dialogue.ask_for([message]))

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
            raise UnsafeArgument("TOP gives 0 lines of a body, or more")
        asking = self._dialogue.ask_for([message], f"TOP {lines:d}")
        return Body(self, message, None, asking, is_part=True)

    def retrieve_all(
        self,
        messages: Iterable[Message],
        *,
        delete: bool = False,
        progress: Progress | None = None,
    ) -> AsyncIterator[tuple[Message, Body]]:
        """Retrieve many messages in the given order, pipelined if the server allows it.

        The rest of a body that is not read to its end is skipped.  If the server refuses a message,
        reading its body raises CommandFailed.  Messages may be deleted during the iteration.  Any
        other command, and a new session, end the iteration, which then raises BodySkipped.  An
        exception of the iterable ``messages`` is raised after the bodies before it, and the session
        continues.

        Args:
            messages: Messages of this session, for example from ``list``.
            delete: Delete each message whose body was read to its end (and saved or parsed, by
                ``save`` or ``email``) when the loop asks for the next one.  The message at which
                the loop is left, by ``break`` or by an exception, is not deleted.  Messages that
                were read in part or not at all are not deleted either.
            progress: Called with each message and the number of its octets so far.
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
            asking = dialogue.ask_for_headers(messages)
        else:
            asking = dialogue.ask_for(messages, deletes=delete)
        retrieval = await self._run(asking, dialogue)
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
        self, found: AsyncIterator[tuple[Message, Body]], max_size: int | None
    ) -> AsyncIterator[tuple[Message, EmailMessage]]:
        async for message, body in found:
            yield message, await body.email(max_size)

    def raw_headers(self, messages: Iterable[Message]) -> AsyncIterator[tuple[Message, Body]]:
        """Fetch the headers of many messages as octets, pipelined if the server allows it.

        If the server refuses a message, reading its header raises CommandFailed.  If ``quirks``
        hides TOP, the octets after the blank line are the body of the message.
        """
        return self._read_all(self._dialogue, iter(messages), is_header=True)

    def stop_pipelining(self) -> None:
        """Send one command at a time from now on, whatever the server announces."""
        self._dialogue.stop_pipelining()

    @property
    def is_pipelining_in_doubt(self) -> bool:
        """Whether several commands were sent at once, and only the first has been answered."""
        return self._dialogue.is_pipelining_in_doubt

    async def delete(self, *messages: Message) -> None:
        """Mark messages as deleted; they are removed when the session ends normally.

        In a loop of ``retrieve_all``, the commands are sent between the commands of the loop.  A
        message that the server refuses to mark is added to ``refused`` and does not affect the
        other messages: QUIT removes them, and then CommandFailed is raised.

        Raises:
            StaleMessage: a message of another session; nothing was sent.
        """
        await self._run(self._dialogue.delete(messages))

    async def reset(self) -> None:
        """Cancel all deletions (RSET)."""
        await self._run(self._dialogue.reset())

    async def noop(self) -> None:
        """Keep the session alive (NOOP)."""
        await self._run(self._dialogue.noop())

    async def quit(self) -> None:
        """End the session (QUIT); the deleted messages are removed when this returns.

        Raises:
            CommandFailed: the server could not remove all messages (``command`` is "QUIT"), or it
                removed them but had refused to mark another message ("DELE").
            ConnectionLost: the answer to QUIT was lost; ``is_known`` is False.
        """
        self._begin()
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
            UnsafeArgument: the session was begun with ``sock``; nothing was sent.
            CommandFailed: the server refused a deletion; see ``quit``.
        """
        self._remote.route.check_renewable()
        refused: CommandFailed | None = None
        try:
            await self.quit()
        except CommandFailed as error:
            if error.command != "DELE":
                raise
            refused = error  # the other messages are removed
        await self.reconnect()
        if refused is not None:
            raise refused

    async def reconnect(self) -> int:
        """Begin a new session, even if the connection was lost.

        Returns the number of deletions of the earlier session that were lost.  List the messages
        again afterwards: reading messages of the earlier session raises BodySkipped.

        Raises:
            UnsafeArgument: the session was begun with ``sock``; nothing was sent.
        """
        self._remote.route.check_renewable()
        self._begin()
        before = self._dialogue
        try:
            self.abort()
            self._dialogue = Dialogue(before.record, self._remote.quirks)
            await self._open()
        except BaseException as error:
            self._dialogue, self._loss = before, error  # its dialogue counts the lost deletions
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
        self._begin()
        try:
            await self._open()
        finally:
            self._is_busy = False

    async def _leave(self) -> None:
        """End the session after a block that ended normally.

        Raises:
            ConnectionLost: deletions were lost in the block, and the program ignored the error.
        """
        if self._stream is not None:
            await self.quit()
        elif self._loss is not None and self._dialogue.deletions:
            raise self._dialogue.lost("the connection was lost in the block") from self._loss

    async def _open(self) -> None:
        """Connect, start TLS, and log in."""
        remote, dialogue = self._remote, self._dialogue
        is_implicit = remote.tls is TLS.IMPLICIT
        token = remote.ask_token()
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
                    ssl_handshake_timeout=_above(wait) if is_implicit else None,
                )
        except CannotConnect:  # a proxy refused
            raise
        except OSError as error:
            raise self._explained(error) from error
        try:
            if is_implicit:
                self._check_certificate()
            elif await self._is_silent() and await asyncio.to_thread(remote.speaks_tls):
                raise remote.mixed_up()
            await self._perform(dialogue.greeting())
            if remote.tls is TLS.STARTTLS:
                await self._perform(dialogue.start_tls())
                await self._shake_hands()
                self._check_certificate()
            await self._perform(dialogue.ask_capabilities())
            await self._perform(dialogue.log_in(login, self._binding))
            await self._perform(dialogue.ask_capabilities())
        except BaseException:
            self.abort()
            raise
        self._loss = None

    async def _is_silent(self) -> bool:
        """Return whether no greeting arrives for some seconds; the server may only be slow."""
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
        return binding(self._stream.transport.get_extra_info("ssl_object"))

    async def _shake_hands(self) -> None:
        assert self._stream is not None
        wait = self._next_wait()
        try:
            async with asyncio.timeout(wait):
                await self._stream.start_tls(self._context, self._remote.server_name, _above(wait))
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> Exception:
        if isinstance(error, TimeoutError) and self._limits.is_over:
            return self._dialogue.lost(self._limits.what_is_over, DeadlineExceeded)
        return explain(error, self._remote.host, self._remote.tls)

    @asynccontextmanager
    async def _before_deadline(self) -> AsyncIterator[None]:
        """Interrupt this task when the deadline passes.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        try:
            async with asyncio.timeout(self._limits.deadline) as total:
                yield
        except TimeoutError as error:
            if isinstance(error, DeadlineExceeded) or not total.expired():
                raise
            raise self._dialogue.lost(self._limits.what_is_over, DeadlineExceeded) from error

    def _next_wait(self) -> float | None:
        """
        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        if self._limits.is_over:
            raise self._dialogue.lost(self._limits.what_is_over, DeadlineExceeded)
        return self._limits.next_wait()

    def _begin(self) -> None:
        """
        Raises:
            RuntimeError: another task is using this session; nothing was sent.
        """
        if self._is_busy:
            raise RuntimeError("two tasks use one POP3 session")
        self._is_busy = True

    def _check_session(self, dialogue: Dialogue) -> None:
        """
        Raises:
            BodySkipped: it belongs to an earlier session, whose numbers mean other messages.
        """
        if dialogue is not self._dialogue:
            raise BodySkipped("a new session has begun; list the messages again")

    async def _run(self, procedure: Procedure[T], dialogue: Dialogue | None = None) -> T:
        """Run a procedure; ``dialogue`` is its session, if that may be an earlier one."""
        self._begin()
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
            raise self._dialogue.lost("the connection is closed")
        try:
            wanted = next(procedure)
            while True:
                octets = b""
                if wanted is None:
                    octets = await self._receive(stream)
                else:
                    self._dialogue.record.sent(wanted)
                    stream.transport.write(wanted)
                wanted = procedure.send(octets)
        except StopIteration as end:
            result = cast(T, end.value)
        except (BodySkipped, CommandFailed, UnsafeArgument):
            raise
        except BaseException as error:
            self._loss = error
            logs.lost(self._remote.host, error)
            self.abort()  # a response may be read in part, so later octets cannot be trusted
            raise
        self._dialogue.record.check()
        return result

    async def _receive(self, stream: _Stream) -> bytes:
        wait = self._next_wait()
        try:
            async with asyncio.timeout(wait):
                octets = await stream.receive()
        except TimeoutError as error:
            text = self._limits.what_is_over
            raise self._dialogue.lost(text, DeadlineExceeded) from error
        except OSError as error:
            raise self._dialogue.lost(str(error)) from error
        if not octets:
            gone = "the server closed the connection" if self._stream is stream else "aborted"
            raise self._dialogue.lost(gone)
        return octets


def _above(wait: float | None) -> float:
    """Return a limit above the client's own limit, so that asyncio does not time out first."""
    return _NO_LIMIT if wait is None else wait + 1


class _Stream(asyncio.Protocol):
    """Receives octets, and stops reading while too many are not processed."""

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
        """Return some octets; empty at the end of the connection."""
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
        """Return whether nothing arrives within this time, although the connection is open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        return not self._octets and not self._is_closed

    async def start_tls(self, context: ssl.SSLContext, host: str, timeout: float) -> None:
        self.transport.pause_reading()
        if self._octets:
            raise ConnectionResetError("octets came before the TLS handshake")
        transport = await asyncio.get_running_loop().start_tls(
            self.transport, self, context, server_hostname=host, ssl_handshake_timeout=timeout
        )
        if transport is None:
            raise ConnectionResetError("connection lost in the TLS handshake")
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
    QUIT and no message is removed.  Or await it and call ``quit`` yourself.

    The strongest login that both sides support is used.  If it fails, no weaker one is tried.

    Args:
        where: ``pop3s://user@host`` for TLS from the first octet, ``pop3://user@host`` for STLS, a
            host name, or a ``Service`` that ``discover`` has found.  A URL may have a password and
            a port; in user and password ":", "/", "?", "#" and "%" must be percent-encoded.
        user: User name, instead of the URL's.
        password: Password, instead of the URL's; safer from a file or a keyring than in a URL.
        token: OAuth 2 bearer token instead of a password, or a function that returns a fresh one
            for each login; it may be a coroutine function.
        certificate: Client certificate and its key: one PEM file, or a pair of files.  Without a
            password and a token it is used to log in (EXTERNAL).
        mechanism: SASL mechanism, ``USER`` or ``APOP``, used instead of the strongest login that
            both sides support.
        strength: Weakest login to accept; by default ``Strength.SECRET``.
        tls: When TLS starts, instead of the URL's setting.
        port: Port, instead of the URL's; by default 995, or 110 with STLS.
        ca_file: PEM file with the certificates to trust instead of the system's.
        quirks: How this server deviates from the protocol: a ``Quirks``, or the name of a preset;
            by default the known deviations of servers with that host name.
        context: SSL context to use instead of ``ca_file`` and ``certificate``.
        sock: Connected socket to use; it then belongs to the session, which cannot be renewed.
        proxy: ``socks5://user:password@host:port`` or ``http://…`` (CONNECT); the proxy looks up
            the server's name.
        local_addr: IP address to connect from, or a pair of an IP address and a port.
        server_hostname: Name that the server's certificate must have, if it is not the host's name.
        fingerprint: SHA-256 of the server's certificate, in hexadecimal.  It replaces the
            verification of issuer and name; with ``ca_file`` or ``context``, both are verified too.
        timeout: Seconds for each wait: look-up and connection, TLS handshake, each answer.  None:
            no limit.
        deadline: Seconds for the whole session.  When it has passed, the task that has entered the
            block is interrupted wherever it waits, and any other task in a command or at its next
            one.  None: no limit.
        max_size: Size in octets of the largest message to accept; reading a larger one raises
            MessageTooLarge.  None: no limit.  ``read``, ``email`` and ``headers`` can change it.
        record: Called with each line of client and server, without passwords and without the
            contents of messages.  The logger ``restante.client`` logs the same at level DEBUG.

    Raises:
        TLSUnavailable: no safe connection is possible; no credential was sent.
        LoginFailed: the login was refused (``code`` is "AUTH" if the credentials were), or would be
            weaker than ``strength``.
        CannotConnect: the host is unknown, unreachable, or refuses the connection.
        ConnectionLost: the connection ended too early; ``lost_deletions`` messages were not
            removed.  Also at the end of the block, if the block has ignored the error.
        DeadlineExceeded: ``timeout`` or ``deadline`` has passed.
        CommandFailed: the server refuses the connection, or at the end of the block: QUIT failed to
            remove some messages (``command`` is "QUIT"), or it removed them but had refused to mark
            another message ("DELE").
        ConfigurationError: a file of certificates cannot be used.
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
    """The result of ``connect``: enter it with ``async with``, or await it, once.

    Nothing is sent before, and the deadline begins at that time.
    """

    def __init__(self, remote: Remote, limits: Limits, record: Record, max_size: SizeLimit) -> None:
        self._remote = remote
        self._limits = limits
        self._record = record
        self._max_size = max_size
        self._is_used = False
        self._block: AbstractAsyncContextManager[Client] | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._opened().__await__()

    async def __aenter__(self) -> Client:
        self._block = self._entered()
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

    async def _opened(self) -> Client:
        client = self._client()
        async with client._before_deadline():
            await client._enter()
        return client

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[Client]:
        client = self._client()
        async with client._before_deadline():
            await client._enter()
            async with client:
                yield client

    def _client(self) -> Client:
        """
        Raises:
            RuntimeError: it was used before.
        """
        if self._is_used:
            raise RuntimeError("a session of connect() can be begun once; call connect() again")
        self._is_used = True
        limits = Limits(self._limits.timeout, self._limits.deadline)  # the deadline begins now
        return Client(self._remote, limits, self._record, self._max_size)
