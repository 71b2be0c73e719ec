"""One request to an identity provider.

Security: certificates and names are verified; without TLS only to this machine; no redirect is
followed, so a provider cannot send a secret elsewhere.
Limits: an answer has ``_MAX_ANSWER`` octets at most, and ``_PATIENCE`` seconds.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import BackendUnavailable

_MAX_ANSWER = 1_048_576  # octets
_PATIENCE = 8.0  # seconds


def is_safe(url: str) -> bool:
    """Whether a URL may be asked: by TLS, or on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.username or parts.password or parts.fragment or not url.isprintable():
            return False
        return bool(host) and (
            parts.scheme == "https" or (parts.scheme == "http" and _is_here(host))
        )
    except ValueError:
        return False


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Web:
    """Asks, and takes JSON for an answer.  It blocks."""

    def __init__(self, ca_file: str = "") -> None:
        """``ca_file`` is trusted instead of the system's authorities."""
        from urllib.request import (  # not at the start of every command
            HTTPDefaultErrorHandler,
            HTTPErrorProcessor,
            HTTPHandler,
            HTTPSHandler,
            OpenerDirector,
        )

        context = ssl.create_default_context(cafile=ca_file or None)
        self._opener = OpenerDirector()
        for handler in (
            HTTPHandler(),
            HTTPSHandler(context=context),
            HTTPDefaultErrorHandler(),
            HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def ask(
        self, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        """The object that is answered; with ``data`` it is a POST.

        Raises:
            BackendUnavailable: no answer, a refusal, or no object.
        """
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        end = time.monotonic() + _PATIENCE
        request = Request(url, data, {"Accept": "application/json", **(headers or {})})
        host = urlsplit(url).hostname
        try:
            with self._opener.open(request, timeout=_PATIENCE) as answer:
                octets = b""
                while piece := answer.read1(65_536):
                    octets += piece
                    if len(octets) > _MAX_ANSWER or time.monotonic() > end:
                        raise BackendUnavailable(f"{host}: the answer is too long or too slow")
            found = json.loads(octets)
        except HTTPError as error:
            error.close()
            raise BackendUnavailable(f"{host}: HTTP status {error.code}") from None
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            why = error.reason if isinstance(error, URLError) else error
            raise BackendUnavailable(f"{host}: {why}") from None
        if not isinstance(found, dict):
            raise BackendUnavailable(f"{host}: the answer is no JSON object")
        return found


def is_readable(ca_file: str) -> bool:
    """Whether certificates can be read there; nowhere means those of the system."""
    try:
        ssl.create_default_context(cafile=Path(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError):
        return False
    return True
