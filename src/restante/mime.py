"""Parse any mail into ``email.message.EmailMessage`` objects that do not raise exceptions.

For malformed mail, the parsers of the standard library raise exceptions of many types, recurse as
deeply as parts and comments are nested, and take time that is quadratic in the length of a value.
The classes in this module and in ``headers`` use these parsers only within limits.  Everything that
exceeds the limits becomes text or octets, with a defect.

Standards: RFC 5322, RFC 2045 to 2047, RFC 2231.
Promises: ``parse`` does not raise, whatever the octets are, and reading the result does not raise
either.  The time is linear in the number of octets, but can block an event loop for too long.
Limits: a message is split into at most ``MAX_PARTS`` parts on at most ``MAX_DEPTH`` levels.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from contextlib import suppress
from email.contentmanager import ContentManager, raw_data_manager
from email.errors import MessageDefect, NoBoundaryInMultipartDefect, StartBoundaryNotFoundDefect
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import EmailPolicy, Policy
from functools import lru_cache
from typing import Any

from .headers import LINE_END, Headers, folded, is_bounded, text_of

MAX_PARTS = 1000  # parts of a message; parsing the header of each part may take 10 ms
# Nested levels of a message.  Postfix accepts 100, but ``deepcopy`` uses 6 stack frames for each
# level, and Python's limit is 1000.
MAX_DEPTH = 50
_MIN_DEPTH = 10  # levels that are allowed even if a message has very many lines
# The parser compares each line with the boundaries of all levels.  This number of comparisons takes
# about 2 s.
_MAX_COMPARISONS = 5_000_000
_OPAQUE = "application/octet-stream"  # for unknown types (RFC 2046 §4.5.3)
_TEXT = "text/plain"  # for types without a required parameter, such as a boundary (RFC 2045 §5.2)
_NO_PARTS = (NoBoundaryInMultipartDefect, StartBoundaryNotFoundDefect)
# Python codecs that are slow, or that are not for text.
_UNUSABLE_CODECS = {"idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"}


class MessageNotSplit(MessageDefect):
    """The content was not split: it has too many parts or levels, or cannot be parsed."""


def parse(octets: bytes, *, header_only: bool = False) -> EmailMessage:
    """Parse a message, as ``email.message_from_bytes`` with ``policy.default`` does.

    Malformed parts become text or octets, with a defect.  With ``header_only``, the result has no
    content.
    """
    try:
        message = _parse(octets, _MessageFactory(octets), header_only)
    except Exception:  # more than MAX_PARTS parts, or a fault in the standard library
        message = _parse(octets, _create_unsplit, header_only=True)
    if header_only:
        message.set_payload("")
    return message


def _parse(octets: bytes, factory: Callable[..., Any], header_only: bool) -> EmailMessage:
    parser: BytesParser[Any] = BytesParser(factory, policy=POLICY)
    message: EmailMessage = parser.parsebytes(octets, header_only)
    return message


class _MessageFactory:
    """Creates the message objects for one call to ``parse``, and limits their number."""

    def __init__(self, octets: bytes) -> None:
        lines = octets.count(b"\n") + octets.count(b"\r") + 1
        self._levels = min(MAX_DEPTH, max(_MIN_DEPTH, _MAX_COMPARISONS // lines))
        # The parser also creates the message itself, and one object as a test.
        self._left = MAX_PARTS + 2

    def __call__(self, *, policy: Policy[Any]) -> TolerantMessage:
        if not self._left:
            raise MessageNotSplit
        self._left -= 1
        message = TolerantMessage(policy)
        message.levels = self._levels
        return message


def _create_unsplit(*, policy: Policy[Any]) -> TolerantMessage:
    message = TolerantMessage(policy)
    message.levels = 0
    return message


class TolerantMessage(EmailMessage):
    """A message, or a part of a message, that can be read without exceptions.

    Incorrect calls still raise the documented exceptions: for example, ``get_content`` of a
    multipart message, or ``get_payload(7)`` of a message with fewer parts.
    """

    levels = MAX_DEPTH
    """Maximum number of levels below this part."""

    def __init__(self, policy: Policy[Any] | None = None) -> None:
        super().__init__(policy or POLICY)

    def attach(self, payload: Any) -> None:
        if isinstance(payload, TolerantMessage):
            payload.levels = self.levels - 1
        super().attach(payload)

    def get_content_type(self) -> str:
        """Return the type; for content that was not split, the type of text or octets."""
        kind = super().get_content_type()
        if not kind.startswith(("multipart/", "message/")):
            return kind
        if any(isinstance(defect, _NO_PARTS) for defect in self.defects):
            return _TEXT
        if self.levels > 0:
            return kind
        if not any(isinstance(defect, MessageNotSplit) for defect in self.defects):
            self.defects.append(MessageNotSplit())
        return _OPAQUE

    def get_params(
        self, failobj: Any = None, header: str = "content-type", unquote: bool = True
    ) -> Any:
        if is_bounded(str(self.get(header, ""))):
            with suppress(Exception):
                params = super().get_params(None, header, unquote)
                if params is not None:
                    return [(name, _with_known_charset(value)) for name, value in params]
        return failobj

    def get_param(
        self,
        param: str,
        failobj: Any = None,
        header: str = "content-type",
        unquote: bool = True,
    ) -> Any:
        for name, value in self.get_params((), header, unquote):
            if name.lower() == param.lower():
                return value
        return failobj

    def get_boundary(self, failobj: Any = None) -> Any:
        """Return the boundary, or ``failobj`` if it is missing or empty (RFC 2046 §5.1.1)."""
        return super().get_boundary(failobj) or failobj

    def get_payload(self, i: Any = None, decode: Any = False) -> Any:
        if i is None and not self.is_multipart():
            with suppress(Exception):
                return super().get_payload(decode=decode)
            payload: str = self._payload or ""  # type: ignore[attr-defined]  # not decoded
            octets = payload.encode("utf-8", "surrogateescape")
            return octets if decode else octets.decode("ascii", "replace")
        return super().get_payload(i, decode)

    def as_bytes(self, unixfrom: bool = False, policy: Policy[Any] | None = None) -> bytes:
        """Return the message with the line endings and the line length of ``policy``.

        Unchanged header fields are written as received.
        """
        chosen = _tolerant(policy or self.policy)
        with suppress(Exception):  # cte_type="7bit" may be impossible in the charset
            return super().as_bytes(unixfrom, chosen)
        return super().as_bytes(unixfrom, chosen.clone(cte_type="8bit"))

    def as_string(
        self,
        unixfrom: bool = False,
        maxheaderlen: int | None = None,
        policy: Policy[Any] | None = None,
    ) -> str:
        """Return the message as text; octets that cannot be decoded become U+FFFD."""
        chosen = _tolerant(policy or self.policy)
        with suppress(Exception):  # a text that does not fit its charset, or an unknown charset
            return super().as_string(unixfrom, maxheaderlen, chosen)
        return self.as_bytes(unixfrom, chosen).decode("utf-8", "replace")


def _with_known_charset(value: Any) -> Any:
    """Return the value of a parameter.

    If the value contains a charset (RFC 2231) that cannot be decoded, the charset becomes None.
    """
    if not isinstance(value, tuple):
        return value
    charset, language, text = value
    is_known = _codec(charset or "") not in (None, "utf-7")  # UTF-7 can hold lone surrogates
    return (charset if is_known else None, language, text)


@lru_cache(maxsize=64)
def _codec(charset: str) -> str | None:
    """Return the codec for text in this charset; None if Python has no usable codec."""
    with suppress(LookupError, ValueError):
        b"a ".decode(charset, "replace")
        name = codecs.lookup(charset).name
        return None if name.replace("-", "_") in _UNUSABLE_CODECS else name
    return None


class _Contents(ContentManager):
    """A content manager whose ``get_content`` returns octets for types that are not text."""

    def get_content(self, msg: Any, *args: Any, **kw: Any) -> Any:
        if msg.is_multipart():
            return raw_data_manager.get_content(msg, *args, **kw)
        if msg.get_content_maintype() in ("text", "multipart", "message"):
            return self._text(msg, *args, **kw)
        return msg.get_payload(decode=True)

    def _text(self, message: Any, errors: str = "replace") -> str:
        octets: bytes = message.get_payload(decode=True)
        codec = _codec(message.get_content_charset("ascii")) or "ascii"
        return text_of(octets.decode(codec, errors))

    def set_content(self, msg: Any, obj: Any, *args: Any, **kw: Any) -> None:
        raw_data_manager.set_content(msg, obj, *args, **kw)


class TolerantPolicy(EmailPolicy):
    """``email.policy.default`` with limits; unchanged fields are written as received."""

    refold_source = "none"
    content_manager = _Contents()

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("header_factory", Headers())
        settings.setdefault("message_factory", TolerantMessage)
        super().__init__(**settings)

    def fold(self, name: str, value: Any) -> str:
        if hasattr(value, "name"):
            return str(value.fold(policy=self))
        if value.isascii():
            return f"{name}: {_refolded(value, self.linesep)}{self.linesep}"
        text = text_of(value)
        if self.utf8:
            return f"{name}: {_refolded(text, self.linesep)}{self.linesep}"
        return folded(name, text, self.linesep)

    def fold_binary(self, name: str, value: Any) -> bytes:
        if hasattr(value, "name") or self.cte_type == "7bit":
            return self.fold(name, value).encode("utf-8" if self.utf8 else "ascii", "replace")
        field = f"{name}: {_refolded(value, self.linesep)}{self.linesep}"
        return field.encode("utf-8", "surrogateescape")


def _refolded(value: str, line_end: str) -> str:
    """Return a value as received, with other line endings.

    The parser has checked that each line after the first begins with white space.
    """
    return line_end.join(LINE_END.split(value))


def _tolerant(policy: Policy[Any]) -> TolerantPolicy:
    """Return a ``TolerantPolicy`` with the output settings of another policy."""
    if isinstance(policy, TolerantPolicy):
        return policy
    return POLICY.clone(
        linesep=policy.linesep,
        cte_type=policy.cte_type,
        max_line_length=policy.max_line_length,
        utf8=getattr(policy, "utf8", False),
    )


POLICY = TolerantPolicy()
