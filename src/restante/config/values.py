"""Check and convert the values of options, with a function for each kind of value.

The functions raise ``BadValue``, whose text says what is valid.  Modules that only some values
need are imported within the functions, because every command loads the configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from ..auth.choices import SCHEMES
from ..errors import ConfigurationError, UnsafeArgument
from ..server.address import Address

Convert = Callable[[Any], Any]

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SIZES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class BadValue(Exception):
    """A value is invalid; the text says what is valid."""


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise BadValue('must be text, such as "mail"')
    return value


def separator(value: Any) -> str:
    if re.search(r"[\w\s@/.:-]", result := text(value)):
        raise BadValue('must consist of characters that names cannot contain, such as "+"')
    return result


def place(value: Any) -> str:
    """Return a path or URL; it must not contain a password, since it is printed and logged."""
    if re.match(r"\w+://[^/@]*:.*@", result := text(value)):
        raise BadValue("must not contain a password; there is a separate option for it")
    return result


def hostname(value: Any) -> str:
    """Return a host name or IP address that certificates and trace fields can contain."""
    if not re.fullmatch(r"[^\W_][\w.:-]{0,252}", result := text(value)):
        raise BadValue('must be a host name, such as "mail.example.org"')
    return result


def duration(value: Any) -> float:
    """Return seconds from a value such as ``2h``, ``14d``, ``10min``, or a number of seconds."""
    match = re.fullmatch(r"([0-9]{1,9})\s*([a-z]*)", str(value))
    if isinstance(value, bool) or match is None or (match[2] or "s") not in _UNITS:
        raise BadValue('must be a time, such as "90s", "10min", "2h" or "14d"')
    return float(match[1]) * _UNITS[match[2] or "s"]


def holding(value: Any) -> float:
    """Return seconds; ``keep`` gives infinity."""
    return math.inf if value == "keep" else duration(value)


def octets(value: Any) -> int:
    """Return octets from a value such as ``25MiB``, or from a number."""
    match = re.fullmatch(r"([0-9]{1,15})\s*(|[KMG]iB)", str(value))
    if isinstance(value, bool) or match is None:
        raise BadValue('must be a size, such as "25MiB"')
    return int(match[1]) * _SIZES[match[2]]


def octets_or_auto(value: Any) -> int | None:
    """Return octets; None for "auto", which means the provider's known limit."""
    return None if value == "auto" else octets(value)


def count(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,8}", str(value)):
        raise BadValue("must be a whole number, at least 1")
    return int(value)


def keeping(value: Any) -> int | None:
    """Return whole days; None for "never"."""
    if value == "never":
        return None
    try:
        result = duration(value)
    except BadValue:
        result = 0.0
    if result < 86_400 or result % 86_400:
        raise BadValue('must be "never" or a time in whole days, such as "90d"')
    return int(result) // 86_400


def workers(value: Any) -> int:
    """Return the number of workers; 0 for "auto", which means one for each core.

    The maximum of 255 is an estimate: more workers would not have more cores to run on.
    """
    return 0 if value == "auto" else at_most(255, count)(value)


def web_address(value: Any) -> str:
    if result := text(value):
        from ..auth.http import is_safe

        if not is_safe(result):
            raise BadValue("must begin with https://, or with http:// on this machine")
    return result


def source(value: Any) -> str:
    """Return a web address or a path."""
    return web_address(value) if "://" in text(value) else text(value)


def directory(value: Any) -> str:
    if result := text(value):
        from ..auth.ldap import is_safe

        if not is_safe(result):
            raise BadValue('must be an LDAP URL, such as "ldaps://ldap.example.org"')
    return result


def search(value: Any) -> str:
    if "%u" not in text(value):
        raise BadValue('must be a filter with %u, such as "(uid=%u)"')
    return text(value)


def service(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text(value)):
        raise BadValue('must be the name of a file in /etc/pam.d, such as "restante"')
    return text(value)


def scheme(value: Any) -> str:
    result: str = one_of(*SCHEMES)(str(value).upper())
    return result


def at_most(most: int, convert: Convert) -> Convert:
    def checked(value: Any) -> Any:
        result = convert(value)
        if result > most:
            raise BadValue(f"must be at most {most}")
        return result

    return checked


def one_of(*words: str) -> Convert:
    def convert(value: Any) -> str:
        if value not in words:
            raise BadValue("must be one of " + ", ".join(words))
        return str(value)

    return convert


def backends(*known: str) -> Convert:
    """Return a converter for names of identity back ends: at least one, and each once."""

    def convert(value: Any) -> tuple[str, ...]:
        names = tuple(name.replace("_", "-") for name in many(text)(value))
        for name in names:
            if name not in known:
                from difflib import get_close_matches

                near = get_close_matches(name, known, 1)
                hint = "".join(f"; did you mean {n}?" for n in near)
                raise BadValue("must be some of " + ", ".join(known) + hint)
        if not names or len(set(names)) < len(names):
            raise BadValue("must name at least one back end, and each once")
        return names

    return convert


def many(convert: Convert) -> Convert:
    """Return a converter for lists; text is split at white space."""

    def convert_all(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = text(value).split()
        if not isinstance(value, list | tuple):
            raise BadValue("must be a list")
        return tuple(convert(each) for each in value)

    return convert_all


def network(value: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(value)
    except (ValueError, TypeError) as error:
        raise BadValue('must be a network, such as "192.168.1.40/32"') from error


def address(*schemes: str) -> Convert:
    def convert(value: Any) -> str:
        try:
            parsed = Address.parse(text(value))
        except ConfigurationError as error:
            raise BadValue(f"must be an address: {error}") from error
        if parsed.scheme not in schemes and not (parsed.path and "" in schemes):
            raise BadValue("must begin with " + " or ".join(schemes))
        return str(parsed)

    return convert


@dataclass(frozen=True, slots=True)
class Secret:
    """A reference to a secret, which is read only when it is needed."""

    kind: str
    """``text``, ``env``, ``file``, ``command``, ``credential`` or ``keyring``."""
    value: str | tuple[str, ...] = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self.value)


def secret(value: Any) -> Secret:
    """Return a reference such as ``{ file = "/run/secrets/isp" }``; text is the secret itself."""
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        return Secret("text", text(value))
    kind, given = next(iter(value.items()), ("", "")) if isinstance(value, dict) else ("", "")
    if kind == "command" and isinstance(given, list) and given and all(map(_is_text, given)):
        return Secret(kind, tuple(given))
    if kind not in ("env", "file", "credential", "keyring") or not _is_text(given):
        raise BadValue('must be { command = ["pass", "show", "isp"] }, or env, file, credential …')
    return Secret(kind, given)


def reference(value: Any) -> Secret:
    """Return a reference as ``secret`` does, but refuse text."""
    result = secret(value)
    if result and result.kind == "text":
        raise BadValue('must be { credential = "name" }, or env, file, command, keyring')
    return result


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def keep(value: Any) -> str:
    """Return ``all``, ``none``, ``until-verified``, ``until-deleted`` or a time."""
    if value in ("all", "none", "until-verified", "until-deleted"):
        return str(value)
    try:
        duration(value)
    except BadValue:
        words = '"all", "none", "until-verified", "until-deleted" or a time such as "14d"'
        raise BadValue(f"must be {words}") from None
    return str(value)


def quirks(value: Any) -> tuple[str, ...]:
    """Return the words of a list that ``pop3.quirks.parse`` accepts."""
    result: tuple[str, ...] = many(text)(value)
    if result == ("auto",):  # the default
        return result
    from ..pop3.quirks import parse

    try:
        parse(result)
    except UnsafeArgument as error:
        raise BadValue(str(error)) from error
    return result


def number(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise BadValue("must be a whole number, at least 0")
    return int(value)


def at_least(least: float, convert: Convert, why: str) -> Convert:
    def checked(value: Any) -> Any:
        result = convert(value)
        if result < least:
            raise BadValue(f"must be at least {least:g} s ({why})")
        return result

    return checked


def greeting(value: Any) -> str:
    result = text(value)
    if not result.isascii() or "<" in result or result.startswith("[") or len(result) > 500:
        raise BadValue('must be ASCII without "<", and not begin with "[" (RFC 2449 §3)')
    return result
