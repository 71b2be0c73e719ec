"""The base class of message bodies in both clients: the size limit, and whether a body was read
to its end.

``Client.retrieve_all(…, delete=True)`` relies on ``BaseBody.is_complete``: a message is deleted
only if it was read to its end, and saved or parsed if ``save`` or ``email`` was called.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BodySkipped
from ..pop3.dialogue import Answer, Dialogue, Procedure, Retrieval
from ..pop3.listing import Message
from .sinks import SizeLimit

Progress = Callable[[Message, int], None]
"""Called with a message and the number of its octets read so far."""


class BaseBody:
    """A message that can be read once; base class of ``Body`` and ``BlockingBody``."""

    def __init__(
        self,
        dialogue: Dialogue,
        message: Message,
        source: Procedure[Retrieval] | Answer,
        limit: SizeLimit,
        progress: Progress | None = None,
        *,
        is_header: bool = False,
        is_part: bool = False,
    ) -> None:
        """``source`` is the server's response, or the procedure that requests it."""
        self.message = message
        self._dialogue = dialogue
        self._source = source
        self._limit = limit
        self._progress = progress
        self._is_header = is_header
        self._is_part = is_part  # whether only the beginning of the message was requested
        self._octets = 0
        self._is_begun = False
        self._is_at_end = False
        self._is_in_use = False  # whether ``read``, ``email`` or ``save`` is running or has failed

    @property
    def is_complete(self) -> bool:
        """Whether the message was read to its end, and saved or parsed if that was requested."""
        return self._is_at_end and not self._is_in_use

    def _begin(self) -> None:
        """
        Raises:
            BodySkipped: the body has been read already.
            MessageTooLarge: the announced size exceeds the limit; the message is not requested.
        """
        if self._is_begun:
            raise BodySkipped("a body can be read only once")
        self._check_announced(self._limit)
        self._is_begun = True

    def _check_announced(self, limit: SizeLimit) -> None:
        """
        Raises:
            MessageTooLarge: see ``_begin``.
        """
        if not (self._is_begun or self._is_header or self._is_part):
            limit.check(self.message.size)

    def _count(self, piece: bytes) -> None:
        """
        Raises:
            MessageTooLarge: the received octets exceed the limit.
        """
        self._octets += len(piece)
        if not self._is_header:  # the sink counts the octets of a header
            self._limit.check(self._octets)
        if self._progress is not None:
            self._progress(self.message, self._octets)

    def _use(self, max_size: int | None = None) -> None:
        """Prepare a method that reads the body; the method resets ``_is_in_use`` after success.

        Raises:
            MessageTooLarge: see ``_begin``.
        """
        limit = self._limit if max_size is None else SizeLimit(max_size)
        self._check_announced(limit)
        self._limit, self._is_in_use = limit, True
