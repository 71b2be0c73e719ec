"""Request JSON objects over HTTPS.

Security: certificates and host names are verified.  Redirects are not followed, so secrets are sent
only to the intended host.  The caller must check which URLs may be requested.
Limits: see ``JsonClient``.  All calls block.
"""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import TemporaryFailure

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
            HTTPHandler,
            HTTPSHandler,
            OpenerDirector,
            ProxyHandler,
        )

        self._timeout, self._deadline, self._max_octets = timeout, deadline, max_octets
        self._opener = OpenerDirector()
        for handler in (
            ProxyHandler(None if use_proxy else {}),
            HTTPHandler(),
            HTTPSHandler(context=context),
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
            TemporaryFailure: there was no complete response in time.
        """
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        end = time.monotonic() + self._deadline
        http_request = Request(url, data, {"Accept": "application/json", **(headers or {})})
        host = urlsplit(url).hostname
        try:
            try:
                response = self._opener.open(http_request, timeout=self._timeout)
            except HTTPError as error:
                response = error
            octets = b""
            with response:
                while len(octets) <= self._max_octets and (piece := response.read1(65_536)):
                    octets += piece
                    if time.monotonic() > end:
                        raise TemporaryFailure(f"{host}: the response is too slow")
        except (OSError, HTTPException) as error:
            why = error.reason if isinstance(error, URLError) else error
            cause = why if isinstance(why, OSError) else None  # other exceptions contain the URL
            raise TemporaryFailure(f"{host}: {why}") from cause
        try:
            value = json.loads(octets) if len(octets) <= self._max_octets else None
        except (ValueError, RecursionError):
            value = None
        return response.status, value if isinstance(value, dict) else None


def is_permanent(status: int) -> bool:
    """Return whether the same request would get this status again (RFC 9110 §15.4, §15.5)."""
    return 300 <= status < 500 and status not in _TEMPORARY
