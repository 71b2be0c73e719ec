"""Parse header fields of received mail within limits and without exceptions.

On malformed values the parsers of the standard library raise exceptions of many types, recurse as
deep as comments are nested, and take time quadratic in the length.  The classes here use them only
for values within limits; every other value becomes text with a defect.

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

MAX_VALUE = 32_768  # characters of a value to parse; takes at worst 0.2 s
# Characters of a structured value.  A file name of 255 CJK characters has 2800 (RFC 2231).
_MAX_STRUCTURED = 4096
_MAX_SPECIALS = 500  # separators in a structured value; the same file name has 200
_MAX_AT_ONCE = 1000  # characters; a longer list of addresses is parsed one by one
_MAX_ADDRESSES = 2000  # addresses in one list; takes some 0.2 s
_MAX_FOLD = 200  # characters; the standard library takes 1 s to fold 300 words of one letter
_MAX_COMMENT = 20  # levels of nested comments; an estimate far above real mail
_MAX_PARAMETER = 60  # characters of a parameter's name; with 77 the library folds without end
_LINE = 76  # characters of a line with an encoded-word (RFC 2047 §2)
_WORD = 45  # octets that fit into an encoded-word of 75 characters, in Base64

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
    except UnicodeEncodeError:  # surrogates that are not octets: RFC 2152 (UTF-7) can encode them
        return value.encode("utf-8", "replace").decode("utf-8")


def is_bounded(value: str) -> bool:
    """Return whether a structured value can be parsed in some 10 ms without deep recursion."""
    if len(value) > _MAX_STRUCTURED or len(_SPECIAL.findall(value)) > _MAX_SPECIALS:
        return False
    depth = 0
    for token in _PARENTHESIS.finditer(value):
        depth = max(depth + {"(": 1, ")": -1}.get(token[0], 0), 0)
        if depth > _MAX_COMMENT:
            return False
    return True


class _Guard:
    """Protects a header class of the standard library; a class inherits from both.

    A value that cannot be parsed becomes text, and the attributes are those of an empty value.
    """

    max_fold = _MAX_AT_ONCE
    """Maximum number of characters that the standard library may fold."""

    @classmethod
    def parse(cls, value: Any, kwds: dict[str, Any]) -> None:
        parse = super().parse  # type: ignore[misc]  # of the class that comes after this one
        if not isinstance(value, str):  # set by a program, whose mistakes must raise
            parse(value, kwds)
            return
        with suppress(Exception):
            if cls.may_parse(value):
                found: dict[str, Any] = {"defects": []}
                parse(value, found)
                kwds.update(found, decoded=text_of(found["decoded"]))
                return
        parse("", kwds)
        kwds.update(decoded=text_of(value), defects=[HeaderNotParsed()])

    @classmethod
    def may_parse(cls, value: str) -> bool:
        return is_bounded(value)

    def fold(self, *, policy: Policy[Any]) -> str:
        header = cast(Any, self)
        longest = max(map(len, getattr(self, "params", ())), default=0)
        if len(header) <= self.max_fold and longest <= _MAX_PARAMETER and not _is_text(header):
            with suppress(Exception):
                field: str = super().fold(policy=policy)  # type: ignore[misc]
                is_fit = field.isascii() or getattr(policy, "utf8", False)
                if is_fit and _is_one_field(field):
                    return field
        return folded(header.name, header, policy.linesep)


class _TextGuard(_Guard):
    max_fold = _MAX_FOLD

    @classmethod
    def may_parse(cls, value: str) -> bool:
        return len(value) <= MAX_VALUE


class _AddressGuard(_Guard):
    """Parses a long list address by address, in linear time, so a bad address affects no other."""

    max_fold = _MAX_FOLD

    @classmethod
    def parse(cls, value: Any, kwds: dict[str, Any]) -> None:
        super().parse(value, kwds)
        kwds["groups"] = list(map(_as_text, kwds["groups"]))
        if not isinstance(value, str) or not any(map(_is_ours, kwds["defects"])):
            return
        parts = list(split_addresses(text_of(value))) if len(value) <= MAX_VALUE else []
        if 1 < len(parts) <= _MAX_ADDRESSES:
            new = cast(Any, cls)
            members = [new("", part) for part in parts]
            kwds.update(
                decoded=", ".join(members),
                defects=list(chain.from_iterable(each.defects for each in members)),
                groups=list(chain.from_iterable(each.groups for each in members)),
            )

    @classmethod
    def may_parse(cls, value: str) -> bool:
        return len(value) <= _MAX_AT_ONCE and is_bounded(value)

    def fold(self, *, policy: Policy[Any]) -> str:
        """Fold address by address, because the standard library loses some when it folds a list."""
        header, new, end = cast(Any, self), cast(Any, type(self)), policy.linesep
        parts = list(split_addresses(header))
        if not 1 < len(parts) <= _MAX_ADDRESSES:
            return super().fold(policy=policy)
        values = [new("", part).fold(policy=policy)[1:].strip() for part in parts]
        return f"{header.name}: " + f",{end} ".join(values) + end


class _SingleAddress(SingleAddressHeader):
    @property
    def address(self) -> Address:
        """The first address, or an empty one for an empty list."""
        return next(iter(self.addresses), Address())


class _UniqueSingleAddress(_SingleAddress):
    max_count: ClassVar[Any] = 1


class Headers(HeaderRegistry):
    """Makes header objects; a ``policy.header_factory``."""

    def __init__(self) -> None:
        super().__init__()
        self.registry["sender"] = _UniqueSingleAddress
        self.registry["resent-sender"] = _SingleAddress
        # The parser requests the same Content-Type many times.
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


def _is_ours(defect: object) -> bool:
    return isinstance(defect, HeaderNotParsed)


def _is_text(header: Any) -> bool:
    return any(map(_is_ours, header.defects))


def _as_text(group: Group) -> Group:
    """Return a group without lone surrogates, which split encoded-words can produce."""
    addresses = [
        Address(*map(text_of, (each.display_name, each.username, each.domain)))
        for each in group.addresses
    ]
    name = group.display_name
    return Group(text_of(name) if name else name, addresses)


def _is_one_field(field: str) -> bool:
    """Return whether a folded value is one field: decoded encoded-words can contain line ends."""
    _, *lines, last = LINE_END.split(field)
    return not last and all(line[:1] in (" ", "\t") and line.strip() for line in lines)


def split_addresses(value: str) -> Iterator[str]:
    """Split an address-list (RFC 5322 §3.4) at the commas between its members.

    They are outside of quoted strings, comments, angle brackets, literals and groups.
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
    """Return a text, not empty, as encoded-words in UTF-8 with complete characters (RFC 2047
    §2)."""
    octets = b""
    for character in text:
        more = character.encode("utf-8", "replace")
        if len(octets) + len(more) > _WORD:
            yield f"=?utf-8?b?{b64encode(octets).decode()}?="
            octets = b""
        octets += more
    yield f"=?utf-8?b?{b64encode(octets).decode()}?="


def folded(name: str, value: str, line_end: str = "\r\n") -> str:
    """Return a header field of unstructured text in ASCII, folded (RFC 5322 §2.2.3), with CRLF."""
    words = [word for word in _SPACE.split(value) if word]
    odd = [at for at, word in enumerate(words) if not word.isascii() or len(word) >= _LINE]
    if odd:
        text = " ".join(words[odd[0] : odd[-1] + 1])
        words[odd[0] : odd[-1] + 1] = encoded_words(text)
    lines, line = list[str](), f"{name}:"
    for word in words:
        if len(line) + 1 + len(word) > _LINE:
            lines.append(line)
            line = ""
        line += f" {word}"
    return line_end.join([*lines, line]) + line_end
