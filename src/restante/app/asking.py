"""Send requests from a command to a running server, through the server's control sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ..errors import NotPermitted, NotRunning, ProtocolBroken, TemporaryFailure, UnsafeArgument
from ..server.address import socket_path
from ..server.http import ClientExchange
from .answers import PIECE, Document, Lines, Patience, parse

# Seconds for all waiting for an answer.  Longer than a worker waits for others (``siblings``).
TIMEOUT = 5.0


class Reply:
    """The response of a server."""

    def __init__(
        self, connected: socket.socket, exchange: ClientExchange, patience: Patience
    ) -> None:
        """Send the request, and read the head of the response.

        Raises:
            OSError: no response has arrived; TimeoutError if the connection is still open.
        """
        self._connected, self._exchange, self._patience = connected, exchange, patience
        self._is_live = False
        with patience.waiting() as seconds:
            connected.settimeout(seconds)
            connected.sendall(exchange.request)
        while not exchange.status:
            self._receive()

    @property
    def status(self) -> int:
        """The status code."""
        return self._exchange.status

    def pieces(self) -> Iterator[bytes]:
        """Yield the content, and close the connection.

        Raises:
            TemporaryFailure: the content is incomplete, late or malformed.
            NotRunning: the content is live and the connection has ended.
        """
        with self._connected:
            while True:
                yield from self._exchange.take()
                if self._exchange.is_over and self._is_live:
                    raise NotRunning("the server ended its answer")
                if self._exchange.is_over:
                    return
                try:
                    self._receive()
                except TimeoutError as error:
                    raise TemporaryFailure("the server's answer did not end in time") from error
                except ConnectionError as error:
                    failure = NotRunning if self._is_live else TemporaryFailure
                    raise failure(f"the server closed the connection: {error}") from error

    def _receive(self) -> None:
        with self._patience.waiting() as seconds:
            self._connected.settimeout(seconds)
            octets = self._connected.recv(PIECE)
        self._patience.received(len(octets))
        self._exchange.receive(octets)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects of the content, which has one object per line.

        Raises:
            ProtocolBroken: a line is not a JSON object.
        """
        lines = Lines()
        for piece in self.pieces():
            yield from map(parse, lines.add(piece))

    def json(self) -> dict[str, Any]:
        """Return the content, which is a JSON object.

        Raises:
            ProtocolBroken: the content is not a JSON object.
        """
        return self._document().parse()

    def text(self) -> str:
        """Return the content, which is text."""
        return self._document().text

    def _document(self) -> Document:
        document = Document()
        for piece in self.pieces():
            document.add(piece)
        return document

    def live(self) -> None:
        """Remove the time limit, for content without end whose pieces may arrive at any time."""
        self._patience, self._is_live = Patience(None), True


def ask(
    folder: Path, method: str, target: str, *, timeout: float = TIMEOUT, accept: int = 200
) -> Reply:
    """Send a request to the first worker that answers.

    Args:
        folder: the directory of the control sockets.
        timeout: seconds for all waiting for the answer.
        accept: a status code that is not an error, in addition to 200.

    Raises:
        NotRunning: no worker listens.
        NotPermitted: the current user may not connect, or may not send this request.
        UnsafeArgument: the server refuses an argument.
        ProtocolBroken: the server cannot answer this request; it may have another version.
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
        except ConnectionError as failure:  # also if the answer is malformed
            if _is_operator(path):
                error = TemporaryFailure(f"the server closed the connection: {failure}")
            else:
                error = _not_permitted(path)
        except OSError as failure:  # not a socket, or too many open files
            error = failure
        else:
            return reply if reply.status in (200, accept) else _refuse(reply)
    raise error


def _is_operator(path: Path) -> bool:
    """Return whether the server answers all requests of the current user."""
    with suppress(OSError):
        return os.geteuid() in (0, path.stat().st_uid)
    return False


def _sockets(folder: Path) -> list[Path]:
    try:
        paths = [folder / name for name in os.listdir(folder) if name.endswith(".sock")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise _not_permitted(folder) from None
    return sorted(paths, key=lambda path: (len(path.name), path.name))  # 10.sock after 9.sock


def _ask(path: Path, method: str, target: str, timeout: float) -> Reply:
    if timeout > TIMEOUT:  # the answer takes long, so find out now whether the worker hangs
        _ask(path, "GET", "/status?here=1", TIMEOUT).text()
    connected, patience = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), Patience(timeout)
    try:
        with patience.waiting() as seconds, socket_path(path) as short:
            connected.settimeout(seconds)
            connected.connect(short)
        return Reply(connected, ClientExchange(method, target), patience)
    except BaseException:
        connected.close()
        raise


def _refuse(reply: Reply) -> NoReturn:
    text = reply.text()
    match reply.status:
        case 400 | 414 | 431:
            raise UnsafeArgument(text)
        case 403:
            raise NotPermitted(text)
        case 503:
            raise TemporaryFailure(text)
    raise ProtocolBroken(f"the server cannot answer this request: {text}")


def _not_permitted(path: Path) -> NotPermitted:
    return NotPermitted(
        f"{path}: permission denied. Only root, the server's user and, to read, members of the "
        "server's group may do this"
    )
