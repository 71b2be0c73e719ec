"""Counts and sizes as users read them; programs get octets in JSON."""

from __future__ import annotations

_DECIMAL = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (1000, "kB"))
_BINARY = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def counted(number: int, thing: str) -> str:
    """Return a count with its noun, such as "1 message" and "2 messages"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def size(octets: int) -> str:
    """Return a size with two or more significant digits, such as "1.2 kB" and "340 MB"."""
    for unit, name in _DECIMAL:
        # 999 600 octets would be rounded to "1000 kB", so they are 1.0 MB.
        if octets >= unit * 0.9995:
            number = octets / unit
            return f"{number:.1f} {name}" if number < 9.95 else f"{number:.0f} {name}"
    return counted(octets, "byte")


def limit_size(octets: int) -> str:
    """Return a size as it is written in the configuration, such as "2 GiB"."""
    for unit, name in _BINARY:
        if octets and octets % unit == 0:
            return f"{octets // unit} {name}"
    return counted(octets, "byte")
