"""HTTP connections: each carries one request (``http``) and its response.

Limits: see ``connection`` and, for requests, ``http``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus

from ..errors import RestanteError
from .connection import BaseConnection, BaseService, Timeouts
from .http import MAX_REQUEST, BadRequest, Request, ServerExchange

REQUEST_TIME = 10.0  # seconds from connecting to a complete request; commands need far less time
TEXT, JSON, LINES = "text/plain; charset=utf-8", "application/json", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status code, media type and content."""

    status: int
    media_type: str
    content: bytes | AsyncGenerator[bytes, None]
    """The content, or its pieces."""
    is_live: bool = False
    """Whether each piece is sent immediately, and the client may pause for any length of time."""


def refusal(status: int, text: str = "") -> Answer:
    """Return a response with a line of text."""
    return Answer(status, TEXT, f"{text or HTTPStatus(status).phrase}\n".encode())


@dataclass(slots=True)
class HTTPService(BaseService):
    """The state that the HTTP connections of one listener share."""

    timeouts: Timeouts = field(default_factory=lambda: Timeouts(login=REQUEST_TIME), kw_only=True)


class HTTPConnection(BaseConnection["Request | BadRequest"]):
    """The connection of one client, which sends one request."""

    __slots__ = ("_is_live",)

    _service: HTTPService
    _session: ServerExchange
    _is_live: bool
    """Whether the response is sent piece by piece without a deadline."""

    async def _answer(self, request: Request) -> Answer:
        """Return the response to a request.  Defined by subclasses."""
        raise NotImplementedError

    def _open_session(self, ssl_object: object) -> bytes:
        self._is_live = False
        self._session = ServerExchange()
        return b""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Reading must continue, because it shows when the client disconnects.
        if self._session.discarded > MAX_REQUEST:
            self.abort("flood")

    def _respond(self, event: Request | BadRequest) -> bool:
        return False

    async def _perform(self, event: Request | BadRequest) -> None:
        await self._enter_task()
        match event:
            case BadRequest(status):
                answer = refusal(status)
            case Request():
                try:
                    answer = await self._answer(event)
                except RestanteError as error:
                    status = HTTPStatus.SERVICE_UNAVAILABLE if error.retry else HTTPStatus.CONFLICT
                    answer = refusal(status, str(error))
        await self._send(answer)
        self.close("answered")

    async def _send(self, answer: Answer) -> None:
        session, output, content = self._session, self._output, answer.content
        if isinstance(content, bytes):
            output.write(session.head(answer.status, answer.media_type, len(content)))
            output.write(session.content(content), session.end())
            return
        output.write(session.head(answer.status, answer.media_type))
        if not session.has_content:
            await content.aclose()
            output.write(session.end())
            return
        if answer.is_live:
            self._begin_live_answer()
        async with aclosing(content):
            async for piece in content:
                output.write(session.content(piece))
                await output.flush_and_wait(*((1,) if self._is_live else ()))
        output.write(session.end())

    def _begin_live_answer(self) -> None:
        """Send the head of a response whose pieces follow without a deadline."""
        self._is_live = True
        self._output.flush()

    def _answer_internal_error(self, event: Request | BadRequest | None) -> None:
        answer = refusal(HTTPStatus.INTERNAL_SERVER_ERROR)
        assert isinstance(answer.content, bytes)
        self._output.write(self._session.head(answer.status, answer.media_type))
        self._output.write(self._session.content(answer.content), self._session.end())
        self.close("bug")

    # Deadlines and closing.

    def drain(self) -> None:
        if self._is_live:
            self.abort("stopped")
        else:
            super().drain()

    def eof_received(self) -> bool:
        """End the connection if the response is live, because it would never end otherwise."""
        if self._is_live:
            self.abort("dropped")
            return False
        return super().eof_received()

    def _check_deadlines(self) -> None:
        if not self._is_live:
            super()._check_deadlines()

    def _deadline(self) -> float:
        return self._began + self._service.timeouts.login

    def _expire(self) -> None:
        self.close("timeout")

    def _finish(self) -> None:
        if self._is_lost:
            self._service.discard(self)
