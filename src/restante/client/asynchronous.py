"""A POP3 client for asyncio: sockets around ``pop3.dialogue``.

Security: certificates are verified; an own Protocol instead of streams, so that no octet from
before TLS can be read after it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from email.message import EmailMessage
from os import PathLike
from pathlib import Path
from typing import TypeVar, Unpack, cast

from ..errors import (
    BodySkipped,
    CommandFailed,
    ConnectionLost,
    DeadlineExceeded,
    UnsafeArgument,
)
from ..pop3.dialogue import Answer, Capabilities, Dialogue, Procedure, Retrieval
from ..pop3.listing import Message
from ..pop3.quirks import Quirks
from ..pop3.record import Record
from ..threads import in_thread
from .connecting import Limits, reach
from .remote import SILENCE, TLS, Options, Remote, Service, binding, explain, speaks_tls
from .sinks import AT_ONCE, Gathering, Parsing, Saving

T = TypeVar("T")
Progress = Callable[[Message, int], None]
"""Is told the message and how many of its octets have come."""
_HIGH_WATER = 262_144  # octets that wait unread before we stop reading
_NO_LIMIT = 1e6  # seconds: asyncio has one of its own for handshakes where none is given


class Body:
    """A message, or its beginning, as it comes: CRLF text in pieces, once.

    Reading it raises:
        CommandFailed: the server does not give it.
        ConnectionLost: it ended early; what came is not the message.
        BodySkipped: another command came before its end, or another session.
    """

    def __init__(
        self,
        client: Client,
        message: Message,
        progress: Progress | None,
        found: Procedure[Retrieval] | Answer,
        *,
        is_header: bool = False,
        is_part: bool = False,
    ) -> None:
        """``found`` is its answer, or how to ask for it."""
        self.message = message
        self._client = client
        self._dialogue = client._dialogue
        self._progress = progress
        self._found = found
        self._is_header = is_header
        self._is_part = is_part  # of how many octets, no listing tells
        self._is_begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._is_begun:
            raise BodySkipped("a body can be read once")
        self._is_begun = True
        answer = self._found
        if not isinstance(answer, Answer):
            retrieval = await self._client._run(answer, self._dialogue)
            answer = await self._client._next_message(retrieval, self._dialogue)
        octets = 0
        while piece := await self._client._run(self._dialogue.piece(answer), self._dialogue):
            octets += len(piece)
            if self._progress is not None:
                self._progress(self.message, octets)
            yield piece

    async def read(self, max_size: int | None = None) -> bytes:
        """All of it, in memory.

        Raises:
            MessageTooLarge: more than ``max_size`` octets.  If the server has announced that, the
                message is not asked for; otherwise the rest of it is skipped.
        """
        gathering = Gathering(max_size)
        await self._gather(gathering)
        return gathering.octets()

    async def email(self, max_size: int | None = None) -> EmailMessage:
        """All of it, parsed; malformed parts are text or octets, with a defect.

        Raises:
            MessageTooLarge: see ``read``.
        """
        parsing = Parsing(max_size, header=self._is_header)
        await self._gather(parsing)
        return await in_thread(parsing.close)

    async def _gather(self, gathering: Gathering) -> None:
        if not (self._is_begun or self._is_header or self._is_part):
            gathering.expect(self.message.size)
        async for piece in self:
            gathering.write(piece)

    async def save(self, path: str | PathLike[str]) -> None:
        """Into a file, which is there whole and durable on return, or not at all.

        The event loop does not wait for the disk.

        Raises:
            FileExistsError: nothing is ever replaced.
        """
        saving = Saving(Path(path))
        try:
            await in_thread(saving.__enter__)
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


class Client:
    """A session in the TRANSACTION state; ``connect`` makes it.  For one task at a time."""

    def __init__(self, remote: Remote, limits: Limits, record: Record) -> None:
        self._remote = remote
        self._context = remote.context()
        self._limits = limits
        self._dialogue = Dialogue(record, remote.quirks)
        self._stream: _Stream | None = None  # None: there is no session
        self._loss: BaseException | None = None  # what ended the last one
        self._is_busy = False

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

    async def stat(self) -> tuple[int, int]:
        """How many messages, how many octets."""
        return await self._run(self._dialogue.stat())

    async def messages(self) -> AsyncIterator[Message]:
        """The listing; nothing is downloaded yet."""
        for message in await self._run(self._dialogue.listing()):
            yield message

    def retrieve(self, message: Message, *, progress: Progress | None = None) -> Body:
        """One message; it is asked for when it is read.

        Raises:
            StaleMessage: a message of another session.
        """
        return Body(self, message, progress, self._dialogue.ask_for([message]))

    def top(self, message: Message, lines: int = 0) -> Body:
        """The header, the blank line and so many lines of the body (RFC 1939 §7).

        Raises:
            StaleMessage: a message of another session.
            UnsafeArgument: fewer than 0 lines.
        """
        if lines < 0:
            raise UnsafeArgument("TOP gives 0 lines of a body, or more")
        asking = self._dialogue.ask_for([message], f"TOP {lines:d}")
        return Body(self, message, None, asking, is_part=True)

    def retrieve_all(
        self, messages: Iterable[Message], *, progress: Progress | None = None
    ) -> AsyncIterator[tuple[Message, Body]]:
        """Many messages, pipelined where the server allows; their bodies in this order.

        A body that is not read to its end is skipped.  One that the server refuses raises
        CommandFailed when it is read.  Messages may be deleted meanwhile; any other command ends
        it, and so does a new session, and BodySkipped is raised.  What ``messages`` itself raises
        comes after the bodies of those before, and the session goes on.
        """
        return self._read_all(self._dialogue, iter(messages), progress)

    async def _read_all(
        self,
        dialogue: Dialogue,
        messages: Iterator[Message],
        progress: Progress | None = None,
        *,
        is_header: bool = False,
    ) -> AsyncIterator[tuple[Message, Body]]:
        self._check_session(dialogue)
        ask = dialogue.ask_for_headers if is_header else dialogue.ask_for
        retrieval = await self._run(ask(messages), dialogue)
        while (answer := await self._run(dialogue.next_message(retrieval), dialogue)) is not None:
            yield answer.message, Body(self, answer.message, progress, answer, is_header=is_header)
        if retrieval.failure is not None:
            raise retrieval.failure

    def headers(
        self, messages: Iterable[Message], *, max_size: int | None = None
    ) -> AsyncIterator[tuple[Message, EmailMessage]]:
        """The headers of many messages, by TOP, pipelined where the server allows.

        Raises:
            CommandFailed: the server does not give one of them, or has no TOP.  ``Quirks`` can say
                that it is not to be used.
            MessageTooLarge: a header of more than ``max_size`` octets.
        """
        return self._parse_all(self.raw_headers(messages), max_size)

    async def _parse_all(
        self, found: AsyncIterator[tuple[Message, Body]], max_size: int | None
    ) -> AsyncIterator[tuple[Message, EmailMessage]]:
        async for message, body in found:
            yield message, await body.email(max_size)

    def raw_headers(self, messages: Iterable[Message]) -> AsyncIterator[tuple[Message, Body]]:
        """The same as octets: one that the server does not give raises CommandFailed when it is
        read.  Where TOP is not to be used, what follows a blank line is the message's body."""
        return self._read_all(self._dialogue, iter(messages), is_header=True)

    def stop_pipelining(self) -> None:
        """Send one command at a time from now on, whatever the server announces."""
        self._dialogue.stop_pipelining()

    @property
    def is_pipelining_in_doubt(self) -> bool:
        """Whether several commands were sent at once, and only the first was answered so far."""
        return self._dialogue.is_pipelining_in_doubt

    async def delete(self, *messages: Message) -> None:
        """Mark as deleted; they are removed when the session ends normally.

        While ``retrieve_all`` is at work they take their turn among its commands.  A message that
        the server refuses to mark is added to ``refused`` and disturbs no other: QUIT removes the
        others, and only then CommandFailed is raised.

        Raises:
            StaleMessage: a message of another session; nothing was sent.
        """
        await self._run(self._dialogue.delete(messages))

    async def reset(self) -> None:
        """Take back all deletions."""
        await self._run(self._dialogue.reset())

    async def noop(self) -> None:
        """Keep the session alive."""
        await self._run(self._dialogue.noop())

    async def quit(self) -> None:
        """End the session; what was marked is removed when this returns.

        Raises:
            CommandFailed: its ``command`` is QUIT: the server could not remove all of it; or DELE:
                all of it is removed, but the server had refused to mark another message.
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
        """Remove what was marked, and go on in a new session: QUIT, connect, log in.

        The messages must be listed again.
        """
        refused: CommandFailed | None = None
        try:
            await self.quit()
        except CommandFailed as error:
            if error.command != "DELE":
                raise
            refused = error  # the others are removed
        await self.reconnect()
        if refused is not None:
            raise refused

    async def reconnect(self) -> int:
        """A new session, also after the connection was lost; returns how many deletions were lost.

        The messages must be listed again.  Nothing of the session before goes on: what it has begun
        to retrieve raises BodySkipped.
        """
        self._begin()
        before = self._dialogue
        try:
            self.abort()
            self._dialogue = Dialogue(before.record, self._remote.quirks)
            await self._open()
        except BaseException as error:
            self._dialogue, self._loss = before, error  # it knows what was lost
            raise
        finally:
            self._is_busy = False
        return before.deletions

    def abort(self) -> None:
        """Drop the connection: nothing is removed."""
        if self._stream is not None:
            self._stream.transport.abort()
            self._stream = None

    async def _enter(self) -> None:
        """The first session."""
        self._begin()
        try:
            await self._open()
        finally:
            self._is_busy = False

    async def _leave(self) -> None:
        """The block has ended normally.

        Raises:
            ConnectionLost: deletions were lost in the block, and its program has gone on.
        """
        if self._stream is not None:
            await self.quit()
        elif self._loss is not None and self._dialogue.deletions:
            raise self._dialogue.lost("the connection was lost in the block") from self._loss

    async def _open(self) -> None:
        """Connect, secure, log in."""
        remote, dialogue = self._remote, self._dialogue
        is_implicit = remote.tls is TLS.IMPLICIT
        token = remote.ask_token()
        login = replace(remote.login, token=token if isinstance(token, str) else await token)
        wait = self._next_wait()
        try:
            async with asyncio.timeout(wait):
                connection = await reach(remote.host, remote.port)
            wait = self._limits.next_wait()
            async with asyncio.timeout(wait):
                _, self._stream = await asyncio.get_running_loop().create_connection(
                    _Stream,
                    sock=connection,
                    ssl=self._context if is_implicit else None,
                    server_hostname=remote.host if is_implicit else None,
                    ssl_handshake_timeout=_above(wait) if is_implicit else None,
                )
        except OSError as error:
            raise self._explained(error) from error
        try:
            if is_implicit:
                self._check_name()
            elif await self._is_silent() and await asyncio.to_thread(
                speaks_tls, remote.host, remote.port
            ):
                raise remote.mixed_up()
            await self._perform(dialogue.greeting())
            if remote.tls is TLS.STARTTLS:
                await self._perform(dialogue.start_tls())
                await self._shake_hands()
                self._check_name()
            await self._perform(dialogue.ask_capabilities())
            await self._perform(dialogue.log_in(login, self._binding))
            await self._perform(dialogue.ask_capabilities())
        except BaseException:
            self.abort()
            raise
        self._loss = None

    async def _is_silent(self) -> bool:
        """Whether there is no greeting for some seconds, of which the server may still be slow."""
        assert self._stream is not None
        wait = self._next_wait()
        seconds = SILENCE if wait is None else min(wait, SILENCE)
        return await self._stream.is_silent(seconds) and (wait is None or wait > SILENCE)

    def _check_name(self) -> None:
        assert self._stream is not None
        self._remote.check_name(self._stream.transport.get_extra_info("ssl_object"))

    def _binding(self) -> bytes:
        assert self._stream is not None
        return binding(self._stream.transport.get_extra_info("ssl_object"))

    async def _shake_hands(self) -> None:
        assert self._stream is not None
        wait = self._next_wait()
        try:
            async with asyncio.timeout(wait):
                await self._stream.start_tls(self._context, self._remote.host, _above(wait))
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> Exception:
        if isinstance(error, TimeoutError) and self._limits.is_over:
            return self._dialogue.lost(self._limits.what_is_over, DeadlineExceeded)
        return explain(error, self._remote.host, self._remote.tls)

    def _next_wait(self) -> float | None:
        """
        Raises:
            DeadlineExceeded: the time for all of it is over.
        """
        if self._limits.is_over:
            raise self._dialogue.lost(self._limits.what_is_over, DeadlineExceeded)
        return self._limits.next_wait()

    def _begin(self) -> None:
        """
        Raises:
            RuntimeError: another task is at work in this session; nothing was sent.
        """
        if self._is_busy:
            raise RuntimeError("two tasks use one POP3 session")
        self._is_busy = True

    def _check_session(self, dialogue: Dialogue) -> None:
        """
        Raises:
            BodySkipped: it is of a session before this one, whose numbers mean other messages.
        """
        if dialogue is not self._dialogue:
            raise BodySkipped("a new session has begun; list the messages again")

    async def _run(self, procedure: Procedure[T], dialogue: Dialogue | None = None) -> T:
        """``dialogue`` is the session in which the procedure was made, if that is earlier."""
        self._begin()
        try:
            if dialogue is not None:
                self._check_session(dialogue)
            return await self._perform(procedure)
        finally:
            self._is_busy = False

    async def _next_message(self, retrieval: Retrieval, dialogue: Dialogue) -> Answer:
        answer = await self._run(dialogue.next_message(retrieval), dialogue)
        assert answer is not None  # one was asked for
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
            self.abort()  # a response may be half read: nothing after it can be trusted
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
    """For what asyncio would end otherwise than our own time does."""
    return _NO_LIMIT if wait is None else wait + 1


class _Stream(asyncio.Protocol):
    """What arrives, in one place, and no more of it than is taken."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
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
        """Some octets, or none at the end of the connection."""
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
        """Whether nothing arrives for so long, and the connection is there."""
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


@asynccontextmanager
async def connect(
    where: str | Service,
    *,
    timeout: float | None = 60.0,
    deadline: float | None = None,
    record: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> AsyncIterator[Client]:
    """Connect, secure, log in; QUIT when the block ends normally.

    An exception inside the block drops the connection without QUIT, so nothing is removed.
    ``where`` is ``pop3s://user@host``, ``pop3://user@host`` (with STLS), a host, or
    what ``discover`` found.  ``timeout`` is for each wait, ``deadline`` for all of it, both in
    seconds; None means no limit.  At the deadline the task that has entered the block is
    interrupted, wherever it waits; another task only in a command, or at its next one.
    ``record`` is given, line by line, what both sides say, without passwords and without the
    contents of messages.

    The strongest mechanism is taken that both sides know, and no other after a failure.

    Raises:
        TLSUnavailable: no connection that is safe; no credential was sent.
        LoginFailed: refused (``code`` tells whether for the credentials), or not strong enough.
        ConnectionLost: with the number of deletions that were lost by it; at the end of the block
            also for a loss that the block itself has not let out.
        CommandFailed: at the end: the server could not remove what was deleted (``command`` is
            QUIT), or it has removed that but had refused to mark another message (DELE).
        UnsafeArgument: what was asked for makes no sense; nothing was sent.
        TypeError: an option that does not exist, or of another type.
    """
    remote, limits = Remote.parse(where, **options), Limits(timeout, deadline)
    client = Client(remote, limits, Record(record))
    try:
        async with asyncio.timeout(deadline) as total:
            try:
                await client._enter()
                yield client
                await client._leave()
            finally:
                client.abort()
    except TimeoutError as error:
        if isinstance(error, DeadlineExceeded) or not total.expired():
            raise
        raise client._dialogue.lost(limits.what_is_over, DeadlineExceeded) from error
