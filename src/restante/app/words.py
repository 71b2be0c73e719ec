"""Words for people that several parts use."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """Such as "1 message" and "2 messages"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
