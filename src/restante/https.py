"""Request JSON objects over HTTPS.

Security: certificates and host names are verified.  Redirects are not followed, so secrets are sent
only to the intended host.  The caller must check which URLs may be requested.
Limits: see ``JsonClient``.  All calls block.
"""

from __future__ import annotations

import io
import json
import math
import socket
import ssl
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from .errors import TemporaryFailure

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.request import BaseHandler, Request

JsonObject = Mapping[str, Any]
_TEMPORARY = (408, 421, 423, 425, 429)  # client errors that may be temporary


class JsonClient:
    """Requests JSON objects over HTTPS, with limits on time and size."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        timeout: float,
        deadline: float = math.inf,
        max_octets: int = 2**20,
        use_proxy: bool = True,
    ) -> None:
        """
        Args:
            timeout: maximum number of seconds without any octet from the server.
            deadline: maximum number of seconds until the response is complete.
            max_octets: maximum number of octets of the response.
            use_proxy: whether to use the proxies in the environment variables.
        """
        from urllib.request import (  # imported here because the import takes 50 ms
            HTTPDefaultErrorHandler,
            HTTPErrorProcessor,
            OpenerDirector,
            ProxyHandler,
        )

        self._timeout, self._max_octets = timeout, max_octets
        self._opener = OpenerDirector()
        for handler in (
            ProxyHandler(None if use_proxy else {}),
            *_handlers(context, deadline),
            HTTPDefaultErrorHandler(),
            HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def request(
        self,
        url: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, JsonObject | None]:
        """Send GET, or POST if there is ``data``; return the HTTP status and the JSON object.

        The object is None if the response is too long or is not a JSON object.

        Raises:
            TemporaryFailure: there was no complete response in time, or the URL is invalid.  The
                text contains no part of the URL except the host.
        """
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        host = None
        try:
            host = urlsplit(url).hostname
            http_request = Request(url, data, {"Accept": "application/json", **(headers or {})})
            try:
                response = self._opener.open(http_request, timeout=self._timeout)
            except HTTPError as error:
                response = error
            octets = b""
            with response:
                while len(octets) <= self._max_octets and (piece := response.read1(65_536)):
                    octets += piece
        except (OSError, HTTPException, ValueError) as error:
            why = error.reason if isinstance(error, URLError) else error
            if isinstance(why, OSError):
                raise TemporaryFailure(f"{host}: {why}") from why
            # The texts of other exceptions may contain the URL, which may be a secret.
            name = type(error).__name__
            raise TemporaryFailure(f"{host or 'invalid URL'}: {name}") from None
        try:
            value = json.loads(octets) if len(octets) <= self._max_octets else None
        except (ValueError, RecursionError):
            value = None
        return response.status, value if isinstance(value, dict) else None


class _Reader(io.RawIOBase):
    """Reads from a socket until a deadline.

    A timeout alone does not bound the time, because a server can send one octet before each
    timeout, in the headers as well as in the content.
    """

    def __init__(self, connected: socket.socket, end: float) -> None:
        """``end`` is a time of the monotonic clock."""
        self._socket, self._end = connected, end
        self._timeout = connected.gettimeout() or math.inf
        self._file = connected.makefile("rb", buffering=0)

    def makefile(self, _: str) -> io.BufferedReader:
        """Called by ``HTTPResponse`` instead of the method of the socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the response is too slow")
        remaining = min(self._timeout, remaining)
        self._socket.settimeout(None if remaining == math.inf else remaining)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _handlers(context: ssl.SSLContext, deadline: float) -> tuple[BaseHandler, BaseHandler]:
    """Return handlers for http and https that read each response until a deadline."""
    from http.client import HTTPResponse
    from urllib.request import AbstractHTTPHandler, HTTPHandler, HTTPSHandler

    class Bounded(AbstractHTTPHandler):
        def do_open(self, http_class: Any, req: Request, **options: Any) -> HTTPResponse:
            end = time.monotonic() + deadline

            def respond(connected: socket.socket, **details: Any) -> HTTPResponse:
                return HTTPResponse(cast("socket.socket", _Reader(connected, end)), **details)

            def connect(host: str, **settings: Any) -> Any:
                connection = http_class(host, **settings)
                connection.response_class = respond
                return connection

            return super().do_open(connect, req, **options)

    class BoundedHTTP(Bounded, HTTPHandler):
        pass

    class BoundedHTTPS(Bounded, HTTPSHandler):
        pass

    return BoundedHTTP(), BoundedHTTPS(context=context)


def is_permanent(status: int) -> bool:
    """Return whether the same request would get this status again (RFC 9110 §15.4, §15.5)."""
    return 300 <= status < 500 and status not in _TEMPORARY
