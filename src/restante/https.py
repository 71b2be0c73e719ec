"""Asking a provider for a JSON object: one request by HTTPS, one answer.

Security: certificates and names are verified; no redirect is followed, so nobody is sent a secret
that was meant for another.  Which addresses may be asked is the caller's to check.
Limits: ``Web`` names them.  Everything blocks.
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

Answer = Mapping[str, Any]
_MAY_PASS = (408, 421, 423, 425, 429)  # of the statuses 4xx


class Web:
    """Who asks, and for how long."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        patience: float,
        deadline: float = math.inf,
        largest: int = 2**20,
        by_proxy: bool = True,
    ) -> None:
        """``patience``: seconds without a sign of life; ``deadline``: seconds until the answer is
        whole; ``largest``: its octets.  ``by_proxy``: through those that the environment names.
        """
        from urllib.request import (  # not at the start of every command
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
    ) -> tuple[int, Answer | None]:
        """The HTTP status, and the object that was answered; None: no JSON object, or too long.

        With ``data`` it is a POST.

        Raises:
            TemporaryFailure: no answer, or not all of it in time.
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
                        raise TemporaryFailure(f"{host}: the answer is too slow")
        except (OSError, HTTPException) as error:
            why = error.reason if isinstance(error, URLError) else error
            cause = why if isinstance(why, OSError) else None  # the others repeat the URL
            raise TemporaryFailure(f"{host}: {why}") from cause
        try:
            found = json.loads(octets) if len(octets) <= self._largest else None
        except (ValueError, RecursionError):
            found = None
        return answer.status, found if isinstance(found, dict) else None


def is_lasting(status: int) -> bool:
    """Whether an HTTP status stays until the request is changed (RFC 9110 §15.4, §15.5)."""
    return 300 <= status < 500 and status not in _MAY_PASS
