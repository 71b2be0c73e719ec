"""Escape untrusted text for the log and for terminals.

Security: escaped text cannot forge lines, control a terminal or mislead a log filter.
"""

from __future__ import annotations

import re

_MAX_VALUE = 2048  # characters of an escaped value; journald splits lines at 48 KiB
_PLAIN = re.compile(r"[A-Za-z0-9_.:;,@/+%()*!?^~<>\[\]{}|#$&-]+")


def escape(value: object) -> str:
    """Return the text of a value as one word of visible ASCII.

    Other characters are replaced with escapes such as ``\\x20`` and ``\\u202e``.
    """
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
    """Truncate a long value, because a peer may have chosen its length."""
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """Return untrusted text for users; only characters that are not printable are escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in text)
