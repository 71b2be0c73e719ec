"""HTTP/1.1 without I/O: one request and its response, as the server or as the client.

Standards: RFC 9112, implemented by h11.
Security: each connection carries one request, and octets after it are discarded, so requests cannot
be pipelined or smuggled.
Limits: a request has at most ``MAX_REQUEST`` octets and no content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import h11

from ..errors import ProtocolBroken

MAX_REQUEST = 8192  # octets, as for a line in nginx and Apache; our requests have about 100
_MAX_PARAMETERS = 10  # of a query; our requests have at most three
_HOST = "restante"  # required by RFC 9112 §3.2, and ignored by the server


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request."""

    method: str
    path: str
    """The path without the query, with percent-encoding, such as ``/sessions``."""
    query: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    """The field Host, with the port if there is one; empty if it is missing (HTTP/1.0)."""


@dataclass(frozen=True, slots=True)
class BadRequest:
    """A request that cannot be answered; ``status`` is the status code of the response."""

    status: int


class ServerExchange:
    """Reads a request and formats its response.

    A request with the method HEAD is returned as GET, and its response has no content
    (RFC 9110 §9.3.2).
    """

    def __init__(self) -> None:
        self._parser = h11.Connection(h11.SERVER)
        self._pending = b""
        self._left = MAX_REQUEST  # octets that the parser may still receive
        self._head: h11.Request | None = None
        self._is_complete = False
        self.discarded = 0
        """Number of octets that the client has sent after its request."""

    def receive(self, octets: bytes) -> None:
        """Add octets from the client; those after a request are discarded."""
        if self._is_complete:
            self.discarded += len(octets)
        else:
            self._pending += octets

    @property
    def unread(self) -> int:
        """Number of octets that have not been parsed."""
        return len(self._pending)

    @property
    def is_complete(self) -> bool:
        """Whether the request, or an invalid one, has been returned."""
        return self._is_complete

    def next(self) -> Request | BadRequest | None:
        """Return the request once it is complete; return None before and afterwards."""
        if self._is_complete:
            return None
        try:
            event = self._parse()
        except h11.RemoteProtocolError as error:
            event = BadRequest(error.error_status_hint)
        self._is_complete = event is not None
        if self._is_complete:
            self._pending = b""
        return event

    def _parse(self) -> Request | BadRequest | None:
        while True:
            match self._parser.next_event():
                case h11.Request() as head:
                    self._head = head
                case h11.Data():
                    return BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                case h11.EndOfMessage() if self._head is not None:
                    return _request(self._head)
                case h11.NEED_DATA:
                    if not self._pending:
                        return None
                    if not self._left:
                        return BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                    # h11 limits only the size of an incomplete request.
                    piece, self._pending = self._pending[: self._left], self._pending[self._left :]
                    self._left -= len(piece)
                    self._parser.receive_data(piece)
                case _:
                    return BadRequest(HTTPStatus.BAD_REQUEST)

    def head(self, status: int, content_type: str, octets: int | None = None) -> bytes:
        """Return the head of the response.

        ``octets`` is the length of the content; None if it is not known yet.
        """
        headers = [("Content-Type", content_type), ("Connection", "close")]
        if octets is not None:
            headers.append(("Content-Length", str(octets)))
        return self._send(h11.Response(status_code=status, headers=headers))

    @property
    def has_content(self) -> bool:
        """Whether the response has content."""
        return self._head is None or self._head.method != b"HEAD"

    def content(self, octets: bytes) -> bytes:
        """Return a piece of the content in the encoding of the response."""
        return self._send(h11.Data(data=octets)) if self.has_content else b""

    def end(self) -> bytes:
        """Return the octets that end the response."""
        return self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> bytes:
        return self._parser.send(event) or b""


def _request(head: h11.Request) -> Request | BadRequest:
    try:
        target = urlsplit(head.target.decode("ascii"))
        query = dict(parse_qsl(target.query, max_num_fields=_MAX_PARAMETERS))
    except ValueError:
        return BadRequest(HTTPStatus.BAD_REQUEST)
    method = head.method.decode("ascii")
    if method == "CONNECT":  # a response would turn the connection into a tunnel (§9.3.6)
        return BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
    host = dict(head.headers).get(b"host", b"").decode("latin-1")
    return Request("GET" if method == "HEAD" else method, target.path, query, host)


class ClientExchange:
    """Formats a request and reads its response."""

    def __init__(self, method: str, target: str) -> None:
        """``target`` is the path and the query, percent-encoded."""
        self._parser = h11.Connection(h11.CLIENT)
        headers = [("Host", _HOST), ("Connection", "close")]
        head = self._parser.send(h11.Request(method=method, target=target, headers=headers))
        self.request = (head or b"") + (self._parser.send(h11.EndOfMessage()) or b"")
        """The octets to send."""
        self.status = 0
        """The status code of the response; 0 until its head has been read."""
        self.is_over = False
        """Whether the response is complete."""
        self._pieces: list[bytes] = []

    def receive(self, octets: bytes) -> None:
        """Parse received octets.  Empty ``octets`` mean that the server closed the connection.

        Raises:
            ProtocolBroken: the response is malformed or incomplete.
        """
        try:
            self._parser.receive_data(octets)
            while not self.is_over:
                match self._parser.next_event():
                    case h11.Response(status_code=status):
                        self.status = status
                    case h11.Data(data=data):
                        self._pieces.append(bytes(data))
                    case h11.EndOfMessage():
                        self.is_over = True
                    case h11.NEED_DATA:
                        return
                    case _:
                        raise ProtocolBroken("the connection was closed without a response")
        except h11.RemoteProtocolError as error:
            raise ProtocolBroken(f"invalid HTTP response: {error}") from error

    def take(self) -> list[bytes]:
        """Return the pieces of the content that have been received and not been taken yet."""
        pieces, self._pieces = self._pieces, []
        return pieces
