"""Passwords that are not shown in ``repr``, logs or crash reports."""

from __future__ import annotations

from hmac import compare_digest
from typing import NoReturn


class Secret:
    """A password or token whose text is not shown in ``repr``, logs or crash reports.

    ``connect`` accepts it as ``password`` and ``token``.  It cannot be pickled.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a secret must be a string, not {type(text).__name__}")
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        """Whether the text is not empty."""
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(_octets(self._text), _octets(other._text))

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Secret:
        return self  # immutable

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


def reveal(secret: str | Secret | None) -> str:
    """Return the text of a secret; empty for None."""
    return secret.reveal() if isinstance(secret, Secret) else secret or ""


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
