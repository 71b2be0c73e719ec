"""Parse header fields of received mail within limits and without exceptions.

For malformed values, the parsers of the standard library raise exceptions of many types, recurse as
deeply as comments are nested, and take time that is quadratic in the length.  This module uses them
only for values within limits.  Every other value becomes text, with a defect.

Standards: RFC 5322 §3.4 (addresses), §2.2.3 (folding), RFC 2047 (encoded-words), RFC 2231.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from email.errors import HeaderDefect
from email.headerregistry import (
    Address,
    AddressHeader,
    BaseHeader,
    DateHeader,
    Group,
    HeaderRegistry,
    SingleAddressHeader,
    UnstructuredHeader,
)
from email.policy import Policy
from functools import cache, lru_cache
from itertools import chain
from typing import Any, ClassVar, cast

MAX_VALUE = 32_768  # characters of a value to parse, which takes at most 0.2 s
# Characters of a structured value.  A file name of 255 CJK characters takes 2800 (RFC 2231).
_MAX_STRUCTURED = 4096
_MAX_SPECIALS = 500  # separators in a structured value; this file name contains 200
_MAX_AT_ONCE = 1000  # characters; the addresses of a longer list are parsed one by one
_MAX_ADDRESSES = 2000  # addresses in one list, which take about 0.2 s
_MAX_FOLD = 200  # characters; the standard library takes 1 s to fold 300 words of one letter
_MAX_COMMENT = 20  # levels of nested comments; far above what occurs in real mail
# Characters of a parameter's name.  With 77, the standard library never stops folding.
_MAX_PARAMETER = 60
_MAX_LINE = 76  # characters of a line with an encoded-word (RFC 2047 §2)
_MAX_WORD = 45  # octets that fit, in Base64, into an encoded-word of 75 characters

LINE_END = re.compile(r"\r\n|\r|\n")
_SPACE = re.compile(r"[ \t\r\n]+")
_SPECIAL = re.compile(r'[\s()<>@,;:\\"/\[\]?=]')
_PARENTHESIS = re.compile(r"\\.|[()]", re.DOTALL)
_BRACKET = re.compile(r'\\.|["(),:;<>\[\]]', re.DOTALL)
_CLOSES = {"(": ")", "<": ">", "[": "]", '"': '"', ":": ";"}


class HeaderNotParsed(HeaderDefect):
    """The value was not parsed: it is malformed, too long or nested too deeply."""


def text_of(value: str) -> str:
    """Return a value without lone surrogates: raw octets become UTF-8 text, or U+FFFD."""
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # surrogates that do not represent octets can come from UTF-7
        return value.encode("utf-8", "replace").decode("utf-8")


def is_bounded(value: str) -> bool:
    """Return whether a structured value can be parsed in about 10 ms without deep recursion."""
    if len(value) > _MAX_STRUCTURED or len(_SPECIAL.findall(value)) > _MAX_SPECIALS:
        return False
    depth = 0
    for token in _PARENTHESIS.finditer(value):
        depth = max(depth + {"(": 1, ")": -1}.get(token[0], 0), 0)
        if depth > _MAX_COMMENT:
            return False
    return True


class _Guard:
    """Limits a header class of the standard library; ``_guarded`` creates a subclass of both.

    A value that cannot be parsed becomes text, and the attributes are those of an empty value.
    """

    max_fold = _MAX_AT_ONCE
    """Maximum number of characters that the standard library may fold."""

    @classmethod
    def parse(cls, value: Any, kwds: dict[str, Any]) -> None:
        parse = super().parse  # type: ignore[misc]  # defined in the other base class
        if not isinstance(value, str):  # set by a program, whose mistakes must raise an exception
            parse(value, kwds)
            return
        with suppress(Exception):
            if cls.may_parse(value):
                parsed: dict[str, Any] = {"defects": []}
                parse(value, parsed)
                kwds.update(parsed, decoded=text_of(parsed["decoded"]))
                return
        parse("", kwds)
        kwds.update(decoded=text_of(value), defects=[HeaderNotParsed()])

    @classmethod
    def may_parse(cls, value: str) -> bool:
        """Return whether the standard library may parse the value."""
        return is_bounded(value)

    def fold(self, *, policy: Policy[Any]) -> str:
        header = cast(Any, self)
        longest = max(map(len, getattr(self, "params", ())), default=0)
        if len(header) <= self.max_fold and longest <= _MAX_PARAMETER and not _is_text(header):
            with suppress(Exception):
                field: str = super().fold(policy=policy)  # type: ignore[misc]
                is_encodable = field.isascii() or getattr(policy, "utf8", False)
                if is_encodable and _is_one_field(field):
                    return field
        return folded(header.name, header, policy.linesep)


class _TextGuard(_Guard):
    max_fold = _MAX_FOLD

    @classmethod
    def may_parse(cls, value: str) -> bool:
        return len(value) <= MAX_VALUE


class _AddressGuard(_Guard):
    """Parses the addresses of a long list one by one, which takes linear time.

    A malformed address does not affect the other addresses.
    """

    max_fold = _MAX_FOLD

    @classmethod
    def parse(cls, value: Any, kwds: dict[str, Any]) -> None:
        super().parse(value, kwds)
        kwds["groups"] = list(map(_without_surrogates, kwds["groups"]))
        if not isinstance(value, str) or not any(map(_is_not_parsed, kwds["defects"])):
            return
        parts = list(split_addresses(text_of(value))) if len(value) <= MAX_VALUE else []
        if 1 < len(parts) <= _MAX_ADDRESSES:
            create = cast(Any, cls)
            members = [create("", part) for part in parts]
            kwds.update(
                decoded=", ".join(members),
                defects=list(chain.from_iterable(each.defects for each in members)),
                groups=list(chain.from_iterable(each.groups for each in members)),
            )

    @classmethod
    def may_parse(cls, value: str) -> bool:
        return len(value) <= _MAX_AT_ONCE and is_bounded(value)

    def fold(self, *, policy: Policy[Any]) -> str:
        """Fold each address, because the standard library loses addresses when it folds a list."""
        header, create, end = cast(Any, self), cast(Any, type(self)), policy.linesep
        parts = list(split_addresses(header))
        if not 1 < len(parts) <= _MAX_ADDRESSES:
            return super().fold(policy=policy)
        values = [create("", part).fold(policy=policy)[1:].strip() for part in parts]
        return f"{header.name}: " + f",{end} ".join(values) + end


class _SingleAddress(SingleAddressHeader):
    @property
    def address(self) -> Address:
        """The first address; an empty address if the list is empty."""
        return next(iter(self.addresses), Address())


class _UniqueSingleAddress(_SingleAddress):
    max_count: ClassVar[Any] = 1


class Headers(HeaderRegistry):
    """Creates header objects; the ``header_factory`` of a policy."""

    def __init__(self) -> None:
        super().__init__()
        self.registry["sender"] = _UniqueSingleAddress
        self.registry["resent-sender"] = _SingleAddress
        # The parser creates the same Content-Type header many times.
        self._recent = lru_cache(maxsize=8)(super().__call__)

    def __getitem__(self, name: str) -> type[BaseHeader]:
        kind: type[BaseHeader] = _guarded(self.registry.get(name.lower(), self.default_class))
        return kind

    def __call__(self, name: str, value: Any) -> BaseHeader:
        if isinstance(value, str) and len(value) <= _MAX_STRUCTURED:
            return self._recent(name, value)
        return super().__call__(name, value)


@cache
def _guarded(kind: type[Any]) -> Any:
    guard = _Guard
    if issubclass(kind, AddressHeader):
        guard = _AddressGuard
    elif issubclass(kind, UnstructuredHeader | DateHeader):
        guard = _TextGuard
    return type("_" + kind.__name__, (guard, kind, BaseHeader), {})


def _is_not_parsed(defect: object) -> bool:
    return isinstance(defect, HeaderNotParsed)


def _is_text(header: Any) -> bool:
    return any(map(_is_not_parsed, header.defects))


def _without_surrogates(group: Group) -> Group:
    """Return a group without lone surrogates, which result from split encoded-words."""
    addresses = [
        Address(*map(text_of, (each.display_name, each.username, each.domain)))
        for each in group.addresses
    ]
    name = group.display_name
    return Group(text_of(name) if name else name, addresses)


def _is_one_field(field: str) -> bool:
    """Whether the text is one folded field; encoded-words may have contained line endings."""
    _, *lines, last = LINE_END.split(field)
    return not last and all(line[:1] in (" ", "\t") and line.strip() for line in lines)


def split_addresses(value: str) -> Iterator[str]:
    """Split an address-list (RFC 5322 §3.4) at the commas between its members.

    Commas in quoted strings, comments, angle brackets, literals and groups are ignored.
    """
    begin, closing = 0, list[str]()
    for token in _BRACKET.finditer(value):
        text, inside = token[0], closing[-1] if closing else ""
        if text == inside:
            closing.pop()
        elif inside == '"' or (inside == ")" and text != "("):
            continue
        elif text in _CLOSES and not (closing and text == ":"):
            closing.append(_CLOSES[text])
        elif text == "," and not closing:
            if member := value[begin : token.start()].strip():
                yield member
            begin = token.end()
    if member := value[begin:].strip():
        yield member


def encoded_words(text: str) -> Iterator[str]:
    """Yield a text, which must not be empty, as encoded-words in UTF-8 (RFC 2047 §2).

    No character is split between two encoded-words.
    """
    octets = b""
    for character in text:
        encoded = character.encode("utf-8", "replace")
        if len(octets) + len(encoded) > _MAX_WORD:
            yield f"=?utf-8?b?{b64encode(octets).decode()}?="
            octets = b""
        octets += encoded
    yield f"=?utf-8?b?{b64encode(octets).decode()}?="


def folded(name: str, value: str, line_end: str = "\r\n") -> str:
    """Return a header field of unstructured text in ASCII, folded (RFC 5322 §2.2.3).

    Words that are not ASCII or too long become encoded-words, with all words between them.
    """
    words = [word for word in _SPACE.split(value) if word]
    indexes = [
        index for index, word in enumerate(words) if not word.isascii() or len(word) >= _MAX_LINE
    ]
    if indexes:
        text = " ".join(words[indexes[0] : indexes[-1] + 1])
        words[indexes[0] : indexes[-1] + 1] = encoded_words(text)
    lines, line = list[str](), f"{name}:"
    for word in words:
        if len(line) + 1 + len(word) > _MAX_LINE:
            lines.append(line)
            line = ""
        line += f" {word}"
    return line_end.join([*lines, line]) + line_end
