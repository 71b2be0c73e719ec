"""Requests to an identity provider.

Security: the rules in ``https`` apply.  Requests without TLS are sent only to this machine.
Limits: each response may be at most 1 MiB long and must arrive within ``_TIMEOUT`` seconds.
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

_TIMEOUT = 8.0  # seconds; less than the default deadline of a login, which is 10 s


def is_safe(url: str) -> bool:
    """Return whether a URL is valid and may be requested: it uses TLS or refers to this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port, host.encode("idna")  # raise ValueError if they are invalid
        if parts.username or parts.password or parts.fragment or not url.isprintable():
            return False
        return bool(host) and (
            parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(host))
        )
    except ValueError:
        return False


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class ProviderClient:
    """Requests JSON objects from a provider.  The calls block."""

    def __init__(self, ca_file: str = "") -> None:
        """``ca_file`` contains the authorities to trust; by default, the system's are trusted."""
        context = _context(ca_file)
        self._client = https.JsonClient(
            context, timeout=_TIMEOUT, deadline=_TIMEOUT, use_proxy=False
        )

    def ask(
        self, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> https.JsonObject:
        """Return the JSON object of the response.  If ``data`` is given, the request is a POST.

        Raises:
            BackendMisconfigured: the HTTP status shows that the configuration must be corrected.
            BackendUnavailable: the provider did not respond, responded with another error status,
                or did not return a JSON object.
        """
        host = urlsplit(url).hostname
        try:
            status, content = self._client.request(url, data, headers)
        except TemporaryFailure as error:
            raise BackendUnavailable(str(error)) from error
        if https.is_permanent(status):
            raise BackendMisconfigured(f"{host}: HTTP status {status}")
        if not 200 <= status < 300:
            raise BackendUnavailable(f"{host}: HTTP status {status}")
        if content is None:
            raise BackendUnavailable(f"{host}: the response is not a JSON object")
        return content


def _context(ca_file: str) -> ssl.SSLContext:
    if ca_file:
        read_regular(Path(ca_file))  # refuses a FIFO, for which OpenSSL would wait
    return ssl.create_default_context(cafile=ca_file or None)


def is_readable(ca_file: str) -> bool:
    """Return whether certificates can be read from a file; "" means the system's file."""
    try:
        _context(ca_file)
    except (OSError, ssl.SSLError):
        return False
    return True
