"""One request to an identity provider.

Security: that of ``https``; without TLS only to this machine.
Limits: an answer has 1 MiB at most, and ``_PATIENCE`` seconds.
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
        context = _context(ca_file)
        self._web = https.Web(context, patience=_PATIENCE, deadline=_PATIENCE, by_proxy=False)

    def ask(
        self, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> https.Answer:
        """The object that is answered; with ``data`` it is a POST.

        Raises:
            BackendUnavailable: no answer, a refusal, or no object.
        """
        host = urlsplit(url).hostname
        try:
            status, found = self._web.ask(url, data, headers)
        except TemporaryFailure as error:
            raise BackendUnavailable(str(error)) from error
        if https.is_lasting(status):
            raise BackendMisconfigured(f"{host}: HTTP status {status}")
        if not 200 <= status < 300:
            raise BackendUnavailable(f"{host}: HTTP status {status}")
        if found is None:
            raise BackendUnavailable(f"{host}: the answer is no JSON object")
        return found


def _context(ca_file: str) -> ssl.SSLContext:
    if ca_file:
        read_regular(Path(ca_file))  # OpenSSL would wait for a FIFO
    return ssl.create_default_context(cafile=ca_file or None)


def is_readable(ca_file: str) -> bool:
    """Whether certificates can be read there; nowhere means those of the system."""
    try:
        _context(ca_file)
    except (OSError, ssl.SSLError):
        return False
    return True
