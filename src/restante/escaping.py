"""Escape untrusted text for the log and for terminals.

Security: such text cannot forge lines, control a terminal or mislead a filter.
"""

from __future__ import annotations

import re

_LONGEST = 2048  # characters of one value, escaped: journald splits lines at 48 KiB
_PLAIN = re.compile(r"[A-Za-z0-9_.:;,@/+%()*!?^~<>\[\]{}|#$&-]+")


def escape(value: object) -> str:
    """Return one word of visible ASCII; other characters become ``\\x20`` or ``\\u202e``."""
    text = bounded(str(value))
    if _PLAIN.fullmatch(text):
        return text
    return bounded(
        "".join(
            character if _PLAIN.fullmatch(character) else _escaped(ord(character))
            for character in text
        )
    )


def bounded(text: str) -> str:
    """Shorten a value, because peers choose the length of some."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """Return untrusted text for users; only characters that control a terminal are escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in text)
