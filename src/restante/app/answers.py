"""Limits for the answers of control sockets, for the commands and for workers that ask others.

Any process of the server's user may listen in place of a worker, and a worker may hang.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ProtocolBroken

PIECE = 65_536  # octets that are read at a time
# Octets of an answer that is a single JSON object; the IDs of 10,000 sessions have 140 kB.
_MAX_DOCUMENT = 1 << 20
_MAX_LINE = 65_536  # octets; the longest line is an event with ``events.MAX_LINE`` octets
# Octets after which the time for an answer begins again: a list of 10,000 sessions has 2 MB, and
# takes long if the machine is busy.
_PROGRESS = 16_384


class Patience:
    """The time for all waiting for one answer, so that a peer cannot prolong it by single octets.

    Time in which the client itself does not wait, because its own output is blocked, does not
    count.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """``seconds``: the limit; None for no limit."""
        self._seconds = self._left = seconds
        self._clock = clock
        self._octets = 0

    @contextmanager
    def waiting(self) -> Iterator[float | None]:
        """Count the time in this context as waiting; yields the seconds that are left, if limited.

        Raises:
            TimeoutError: no time is left.
        """
        if self._left is None:
            yield None
            return
        if self._left <= 0:
            raise TimeoutError("the answer has taken too long")
        began = self._clock()
        try:
            yield self._left
        finally:
            self._left -= self._clock() - began

    def received(self, octets: int) -> None:
        """Count octets of the answer."""
        self._octets += octets
        if self._octets >= _PROGRESS:
            self._octets, self._left = 0, self._seconds


class Lines:
    """Divides content into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, octets: bytes) -> list[bytes]:
        """Add a piece of the content, and return the lines that are complete now.

        Raises:
            ProtocolBroken: a line is too long.
        """
        *lines, self._rest = (self._rest + octets).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            raise ProtocolBroken("the server has sent a line that is too long")
        return lines


class Document:
    """Content that is a single JSON object."""

    def __init__(self) -> None:
        self._octets = b""

    def add(self, octets: bytes) -> None:
        """Add a piece of the content.

        Raises:
            ProtocolBroken: the content is too long.
        """
        self._octets += octets
        if len(self._octets) > _MAX_DOCUMENT:
            raise ProtocolBroken("the server has sent too long an answer")

    @property
    def text(self) -> str:
        """The content as text."""
        return self._octets.decode("utf-8", "replace").strip()

    def parse(self) -> dict[str, Any]:
        """Return the object; see ``parse``."""
        return parse(self._octets)


def parse(octets: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ProtocolBroken: the octets are not a JSON object.
    """
    try:
        document = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise ProtocolBroken(f"the server has sent invalid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ProtocolBroken("the server has not sent a JSON object")
    return document
