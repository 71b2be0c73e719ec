"""Send requests from a command to a running server, through the server's control sockets."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import NotPermitted, NotRunning, ProtocolBroken, TemporaryFailure
from ..server.address import socket_path
from ..server.http import ClientExchange

# Seconds without a received octet.  Longer than a worker waits for other workers (``siblings``).
TIMEOUT = 5.0
_PIECE = 65_536  # octets that are read at a time


class Reply:
    """The response of a server."""

    def __init__(self, connected: socket.socket, exchange: ClientExchange) -> None:
        """Send the request, and read the head of the response.

        Raises:
            OSError: no response has arrived; TimeoutError if the connection is still open.
        """
        self._connected, self._exchange = connected, exchange
        self._received: list[bytes] = []
        connected.sendall(exchange.request)
        while not exchange.status:
            self._received += exchange.receive(connected.recv(_PIECE))

    @property
    def status(self) -> int:
        """The status code."""
        return self._exchange.status

    def pieces(self) -> Iterator[bytes]:
        """Yield the content, and close the connection.

        Raises:
            OSError: the connection has ended, or nothing arrived in time.
        """
        with self._connected:
            yield from self._received
            while not self._exchange.is_over:
                yield from self._exchange.receive(self._connected.recv(_PIECE))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects of the content, which has one object per line."""
        rest = b""
        for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                with suppress(ValueError):  # the end of a worker's answer that was cut off
                    yield json.loads(line)

    def json(self) -> dict[str, Any]:
        """Return the content, which is a JSON object."""
        document: dict[str, Any] = json.loads(b"".join(self.pieces()))
        return document

    def text(self) -> str:
        """Return the content, which is text."""
        return b"".join(self.pieces()).decode("utf-8", "replace").strip()

    def live(self) -> None:
        """Remove the timeout, for content whose pieces may arrive at any time."""
        self._connected.settimeout(None)


def ask(folder: Path, method: str, target: str, *, timeout: float = TIMEOUT) -> Reply:
    """Send a request to the first worker that answers.

    Args:
        folder: the directory of the control sockets.
        timeout: seconds without a received octet.

    Raises:
        NotRunning: no worker listens.
        NotPermitted: the current user may not connect, or may not send this request.
        TemporaryFailure: no worker answers in time, or the server cannot do this now.
    """
    deadline = time.monotonic() + 2 * timeout  # several workers may not respond
    error: Exception = NotRunning(f"no server is running: no process listens in {folder}")
    for path in _sockets(folder):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        try:
            reply = _ask(path, method, target, min(timeout, remaining))
        except (ConnectionRefusedError, FileNotFoundError):  # the worker has died
            continue
        except PermissionError:
            error = _not_permitted(path)
        except (TimeoutError, BlockingIOError):
            error = TemporaryFailure(f"the server does not answer within {timeout:.0f} seconds")
        except (ProtocolBroken, ConnectionError) as failure:
            if os.geteuid() in (0, path.stat().st_uid):
                error = TemporaryFailure(f"the server closed the connection: {failure}")
            else:
                error = _not_permitted(path)
        else:
            return _checked(reply)
    raise error


def _sockets(folder: Path) -> list[Path]:
    try:
        paths = [folder / name for name in os.listdir(folder) if name.endswith(".sock")]
    except FileNotFoundError:
        return []
    except PermissionError:
        raise _not_permitted(folder) from None
    return sorted(paths, key=lambda path: (len(path.name), path.name))  # 10.sock after 9.sock


def _ask(path: Path, method: str, target: str, timeout: float) -> Reply:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        with socket_path(path) as short:
            connected.connect(short)
        return Reply(connected, ClientExchange(method, target))
    except BaseException:
        connected.close()
        raise


def _checked(reply: Reply) -> Reply:
    match reply.status:
        case 403:
            raise NotPermitted(reply.text())
        case 503:
            raise TemporaryFailure(reply.text())
    return reply


def _not_permitted(path: Path) -> NotPermitted:
    return NotPermitted(
        f"{path}: permission denied. Only root, the server's user and, to read, members of the "
        "server's group may do this"
    )
