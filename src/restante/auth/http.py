"""Requests to an identity provider.

Security: as ``https``; requests without TLS go to this machine only.
Limits: 1 MiB and ``_PATIENCE`` seconds for a response.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from .. import https
from ..errors import BackendMisconfigured, BackendUnavailable, TemporaryFailure
from ..regular import read_regular

_PATIENCE = 8.0  # seconds; less than the default deadline of a login, which is 10 s


def is_safe(url: str) -> bool:
    """Whether a URL may be requested: over TLS, or on this machine."""
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


class ProviderClient:
    """Requests JSON objects from a provider.  It blocks."""

    def __init__(self, ca_file: str = "") -> None:
        """``ca_file`` is trusted instead of the system's authorities."""
        context = _context(ca_file)
        self._client = https.JsonClient(
            context, patience=_PATIENCE, deadline=_PATIENCE, by_proxy=False
        )

    def ask(
        self, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> https.JsonObject:
        """Return the JSON object of the response; with ``data`` the request is a POST.

        Raises:
            BackendMisconfigured: an HTTP status that stays until the configuration is changed.
            BackendUnavailable: no response, another error status, or not a JSON object.
        """
        host = urlsplit(url).hostname
        try:
            status, answer = self._client.ask(url, data, headers)
        except TemporaryFailure as error:
            raise BackendUnavailable(str(error)) from error
        if https.is_lasting(status):
            raise BackendMisconfigured(f"{host}: HTTP status {status}")
        if not 200 <= status < 300:
            raise BackendUnavailable(f"{host}: HTTP status {status}")
        if answer is None:
            raise BackendUnavailable(f"{host}: the answer is not a JSON object")
        return answer


def _context(ca_file: str) -> ssl.SSLContext:
    if ca_file:
        read_regular(Path(ca_file))  # refuses a FIFO, for which OpenSSL would wait
    return ssl.create_default_context(cafile=ca_file or None)


def is_readable(ca_file: str) -> bool:
    """Whether certificates can be read there; an empty path means those of the system."""
    try:
        _context(ca_file)
    except (OSError, ssl.SSLError):
        return False
    return True
