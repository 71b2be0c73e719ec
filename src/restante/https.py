"""Request a JSON object from a provider by HTTPS.

Security: certificates and host names are verified; redirects are not followed, so secrets go to the
intended host only.  The caller checks which addresses may be requested.
Limits: see ``JsonClient``.  Everything blocks.
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
    """Requests JSON objects by HTTPS, within limits of time and size."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        patience: float,
        deadline: float = math.inf,
        largest: int = 2**20,
        by_proxy: bool = True,
    ) -> None:
        """
        Args:
            patience: maximum seconds without any octet from the server.
            deadline: maximum seconds until the response is complete.
            largest: maximum octets of the response.
            by_proxy: whether to use the proxies that the environment names.
        """
        from urllib.request import (  # importing it takes 50 ms, which most commands avoid
            HTTPDefaultErrorHandler,
            HTTPErrorProcessor,
            HTTPHandler,
            HTTPSHandler,
            OpenerDirector,
            ProxyHandler,
        )

        self._patience, self._deadline, self._largest = patience, deadline, largest
        self._opener = OpenerDirector()
        for handler in (
            ProxyHandler(None if by_proxy else {}),
            HTTPHandler(),
            HTTPSHandler(context=context),
            HTTPDefaultErrorHandler(),
            HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def ask(
        self,
        url: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, JsonObject | None]:
        """Return the HTTP status and the JSON object; None if it is not one, or too long.

        With ``data`` the request is a POST.

        Raises:
            TemporaryFailure: no complete response in time.
        """
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        end = time.monotonic() + self._deadline
        request = Request(url, data, {"Accept": "application/json", **(headers or {})})
        host = urlsplit(url).hostname
        try:
            try:
                answer = self._opener.open(request, timeout=self._patience)
            except HTTPError as error:
                answer = error
            octets = b""
            with answer:
                while len(octets) <= self._largest and (piece := answer.read1(65_536)):
                    octets += piece
                    if time.monotonic() > end:
                        raise TemporaryFailure(f"{host}: the response is too slow")
        except (OSError, HTTPException) as error:
            why = error.reason if isinstance(error, URLError) else error
            cause = why if isinstance(why, OSError) else None  # other exceptions contain the URL
            raise TemporaryFailure(f"{host}: {why}") from cause
        try:
            value = json.loads(octets) if len(octets) <= self._largest else None
        except (ValueError, RecursionError):
            value = None
        return answer.status, value if isinstance(value, dict) else None


def is_lasting(status: int) -> bool:
    """Return whether the same request always gets this status (RFC 9110 §15.4, §15.5)."""
    return 300 <= status < 500 and status not in _TEMPORARY
