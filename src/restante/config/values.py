"""Check and convert the values of options, with a function for each kind of value.

The functions raise ``BadValue``, whose text says which values are valid.  Modules that only some
values need are not imported at the top, because every command loads the configuration.
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
    """A value is invalid; the text says which values are valid."""


def text(value: Any) -> str:
    """Return text without control characters."""
    if not isinstance(value, str) or not value.isprintable():
        raise BadValue('must be text, such as "mail"')
    return value


def separator(value: Any) -> str:
    """Return characters that can separate user and folder, because names cannot contain them."""
    if re.search(r"[\w\s@/.:-]", result := text(value)):
        raise BadValue('must consist of characters that names cannot contain, such as "+"')
    return result


def path_or_url(value: Any) -> str:
    """Return a path or URL, which must not contain a password, because it is printed and logged."""
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


def hold_time(value: Any) -> float:
    """Return seconds; infinity for "keep"."""
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
    """Return a whole number, at least 1."""
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,8}", str(value)):
        raise BadValue("must be a whole number, at least 1")
    return int(value)


def expiry(value: Any) -> int | None:
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

    The maximum is 255 because machines rarely have more cores.
    """
    return 0 if value == "auto" else at_most(255, count)(value)


def web_address(value: Any) -> str:
    """Return an https URL, or an http URL on this machine; may be empty."""
    if result := text(value):
        from ..auth.http import is_safe

        if not is_safe(result):
            raise BadValue(
                "must begin with https://, or with http:// on this machine, and must have a valid "
                "host and port"
            )
    return result


def path_or_web_address(value: Any) -> str:
    """Return a path or a web address."""
    return web_address(value) if "://" in text(value) else text(value)


def ldap_url(value: Any) -> str:
    """Return the URL of an LDAP server; may be empty."""
    if result := text(value):
        from ..auth.ldap import is_safe

        if not is_safe(result):
            raise BadValue('must be an LDAP URL, such as "ldaps://ldap.example.org"')
    return result


def search_filter(value: Any) -> str:
    """Return an LDAP filter that contains the user's name as ``%u``."""
    if "%u" not in text(value):
        raise BadValue('must be a filter with %u, such as "(uid=%u)"')
    return text(value)


def pam_service(value: Any) -> str:
    """Return the name of a PAM service."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text(value)):
        raise BadValue('must be the name of a file in /etc/pam.d, such as "restante"')
    return text(value)


def scheme(value: Any) -> str:
    """Return the name of a scheme for password hashes, in upper case."""
    result: str = one_of(*SCHEMES)(str(value).upper())
    return result


def at_most(maximum: int, convert: Convert) -> Convert:
    """Return a converter that refuses values above a maximum."""

    def convert_and_check(value: Any) -> Any:
        result = convert(value)
        if result > maximum:
            raise BadValue(f"must be at most {maximum}")
        return result

    return convert_and_check


def one_of(*words: str) -> Convert:
    """Return a converter that accepts only the given words."""

    def convert(value: Any) -> str:
        if value not in words:
            raise BadValue("must be one of " + ", ".join(words))
        return str(value)

    return convert


def backends(*allowed: str) -> Convert:
    """Return a converter for lists of back ends, which must not be empty or have duplicates."""

    def convert(value: Any) -> tuple[str, ...]:
        names = tuple(name.replace("_", "-") for name in list_of(text)(value))
        for name in names:
            if name not in allowed:
                from difflib import get_close_matches

                similar = get_close_matches(name, allowed, 1)
                hint = "".join(f"; did you mean {n}?" for n in similar)
                raise BadValue("possible back ends are " + ", ".join(allowed) + hint)
        if not names or len(set(names)) < len(names):
            raise BadValue("must list at least one back end, and none more than once")
        return names

    return convert


def list_of(convert: Convert) -> Convert:
    """Return a converter for lists, which may also be given as text with spaces between values."""

    def convert_all(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = text(value).split()
        if not isinstance(value, list | tuple):
            raise BadValue("must be a list")
        return tuple(convert(each) for each in value)

    return convert_all


def network(value: Any) -> IPv4Network | IPv6Network:
    """Return an IP network."""
    try:
        return ip_network(value)
    except (ValueError, TypeError) as error:
        raise BadValue('must be a network, such as "192.168.1.40/32"') from error


def address(*schemes: str) -> Convert:
    """Return a converter for addresses to listen on; with the scheme "", also Unix sockets."""

    def convert(value: Any) -> str:
        try:
            parsed = Address.parse(text(value))
        except ConfigurationError as error:
            raise BadValue(f"must be an address: {error}") from error
        if parsed.scheme not in schemes and not (parsed.path and "" in schemes):
            raise BadValue("must begin with " + " or ".join(schemes))
        return str(parsed)

    return convert


def tcp_address(value: Any) -> str:
    """Return a TCP address to listen on, without a scheme."""
    result = address("")(value)
    if Address.parse(result).path:
        raise BadValue('must be a TCP address, such as "127.0.0.1:9110"')
    return str(result)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret, or a reference to a secret that is fetched only when it is needed."""

    kind: str
    """``text``, ``env``, ``file``, ``command``, ``credential`` or ``keyring``."""
    value: str | tuple[str, ...] = field(repr=False)
    """The secret itself if ``kind`` is ``text``; otherwise a name, a path or a command."""

    def __bool__(self) -> bool:
        return bool(self.value)


def secret(value: Any) -> Secret:
    """Return a reference such as ``{ file = "/run/secrets/isp" }``; text is the secret itself."""
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        return Secret("text", text(value))
    kind, target = next(iter(value.items()), ("", "")) if isinstance(value, dict) else ("", "")
    if kind == "command" and isinstance(target, list) and target and all(map(_is_text, target)):
        return Secret(kind, tuple(target))
    if kind not in ("env", "file", "credential", "keyring") or not _is_text(target):
        raise BadValue('must be { command = ["pass", "show", "isp"] }, or env, file, credential …')
    return Secret(kind, target)


def secret_reference(value: Any) -> Secret:
    """Return a reference as ``secret`` does, but refuse text."""
    result = secret(value)
    if result and result.kind == "text":
        raise BadValue('must be { credential = "name" }, or env, file, command, keyring')
    return result


def secret_web_address(value: Any) -> Secret:
    """Return a reference as ``secret`` does; text must be an https URL."""
    result = secret(value)
    if result.kind == "text":
        web_address(result.value)
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
        valid = '"all", "none", "until-verified", "until-deleted" or a time such as "14d"'
        raise BadValue(f"must be {valid}") from None
    return str(value)


def quirks(value: Any) -> tuple[str, ...]:
    """Return a list of quirks that ``pop3.quirks.parse`` accepts."""
    result: tuple[str, ...] = list_of(text)(value)
    if result == ("auto",):  # the default
        return result
    from ..pop3.quirks import parse

    try:
        parse(result)
    except UnsafeArgument as error:
        raise BadValue(str(error)) from error
    return result


def number(value: Any) -> int:
    """Return a whole number, at least 0."""
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise BadValue("must be a whole number, at least 0")
    return int(value)


def at_least(minimum: float, convert: Convert, reason: str) -> Convert:
    """Return a converter that refuses times below a minimum; the error contains the reason."""

    def convert_and_check(value: Any) -> Any:
        result = convert(value)
        if result < minimum:
            raise BadValue(f"must be at least {minimum:g} s ({reason})")
        return result

    return convert_and_check


def greeting(value: Any) -> str:
    """Return text for the POP3 greeting."""
    result = text(value)
    if not result.isascii() or "<" in result or result.startswith("[") or len(result) > 500:
        raise BadValue('must be ASCII without "<", and not begin with "[" (RFC 2449 §3)')
    return result
