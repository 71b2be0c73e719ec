"""The client's log: the logger ``restante.client`` at level DEBUG.

Security: the lines of a session come from its ``Record``, so no line contains a password, a token
or the content of a message.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable

from ..pop3.record import Record

_logger = logging.getLogger("restante.client")


def recording(host: str, write: Callable[[str], None] | None) -> Record:
    """Return a record that passes each line to ``write`` and, if DEBUG is enabled now, to the log.

    Raises:
        TypeError: ``write`` is not callable.
    """
    record = Record(write)
    if not _logger.isEnabledFor(logging.DEBUG):
        return record

    def log_line(line: str) -> None:
        _logger.debug("%s %s", host, line)
        if write is not None:
            write(line)

    return Record(log_line)


def connected(host: str, port: int) -> None:
    _logger.debug("%s connected to port %d", host, port)


def secured(host: str, peer: ssl.SSLSocket | ssl.SSLObject) -> None:
    cipher = peer.cipher()
    _logger.debug("%s secured by %s, %s", host, peer.version(), cipher[0] if cipher else "?")


def lost(host: str, error: BaseException) -> None:
    _logger.debug("%s session lost: %s: %s", host, type(error).__name__, error)
