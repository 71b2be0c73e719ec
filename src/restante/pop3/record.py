"""Record a client session in readable form: the lines of both sides, without secrets.

Security: neither a record nor an exception contains a password.  During the login, only the
keywords, mechanisms and user names in the client's commands are recorded, and only the status
indicators and response codes in the server's responses.  After the login, the password is masked
wherever the server repeats it.  Only the first line of a multi-line response is recorded.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from itertools import groupby
from operator import itemgetter
from unicodedata import normalize
from urllib.parse import quote, quote_plus

from ..wire import CRLF

_PUBLIC = re.compile(r"(?:USER|CAPA|STLS|AUTH)\b(?: [^ ]+)?|(?:PASS|APOP)\b", re.IGNORECASE)
_PUBLIC_ANSWER = re.compile(r"(?:\+OK|-ERR)(?: \[[A-Za-z0-9/-]{1,20}\])?")
# Any sequence of this many characters from a secret is masked, because a server may repeat only a
# part of the secret.  Shorter sequences occur in English words by chance.
_SEQUENCE_LENGTH = 6
# Shorter secrets are masked only as whole words.  Masking them inside words would make texts
# unreadable.
_MIN_LENGTH = 4
_MASK = "***"
# Maximum number of characters of a line that are searched for secrets and shown.  Our own limit,
# because each character requires a look-up; RFC 1939 §3 allows 512 octets.
_MAX_SHOWN = 2000


class Secrets:
    """Masks a password or a token, and the texts that were sent to prove it.

    It masks all forms in which a server may repeat them.
    """

    def __init__(self) -> None:
        self._forms: set[str] = set()
        # The sequences to mask, by length; computed when they are first needed.
        self._sequences: dict[int, set[str]] | None = None

    def replace(self, secret: str) -> None:
        """From now on, mask this secret instead of the previous one."""
        self._forms, self._sequences = set(), None
        if secret:
            self._forms.update(_forms(secret))

    def add(self, sent: str) -> None:
        """Also mask a text that was sent to prove the secret, such as a line in Base64."""
        if len(sent) >= _MIN_LENGTH:
            self._forms.add(sent)
            self._sequences = None

    def hide(self, text: str) -> str:
        """Return the text with each secret replaced by ``***``; case does not matter.

        A text longer than 2000 characters is truncated.
        """
        if len(text) > _MAX_SHOWN:
            text = text[:_MAX_SHOWN] + " …"
        if not self._forms:
            return text
        if self._sequences is None:
            self._sequences = _sequences(self._forms)
        lowered = _lower(text)
        flags = bytearray(len(text))  # 1 for each character of a secret
        for size, sequences in self._sequences.items():
            for begin in range(len(text) - size + 1):
                if lowered[begin : begin + size] in sequences and (
                    size >= _MIN_LENGTH or _is_word(text, begin, size)
                ):
                    flags[begin : begin + size] = b"\1" * size
        parts = groupby(zip(text, flags, strict=True), key=itemgetter(1))
        return "".join(
            _MASK if is_secret else "".join(each for each, _ in part) for is_secret, part in parts
        )


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield from (normalize(form, secret) for form in ("NFC", "NFKC"))
    yield from (quote(secret, safe=""), quote_plus(secret), escape(secret), repr(secret)[1:-1])
    yield re.sub(r'(["\\])', r"\\\1", secret)  # as a quoted string
    octets = secret.encode("utf-8", "surrogatepass")
    yield octets.decode("latin-1")
    latin = secret.encode("latin-1", "replace")
    yield from (latin.decode("utf-8", errors) for errors in ("replace", "backslashreplace"))
    # The Base64 form of the secret depends on its offset within a group of three octets.
    for before in range(3):
        encoded = b64encode(bytes(before) + octets)
        inside = encoded[(4 * before + 2) // 3 : (before + len(octets)) * 4 // 3].decode()
        if len(inside) >= _MIN_LENGTH:
            yield inside


def _sequences(forms: set[str]) -> dict[int, set[str]]:
    """Return the sequences of characters to mask in lower case, by length."""
    sequences: dict[int, set[str]] = {}
    for form in map(_lower, forms):
        size = min(len(form), _SEQUENCE_LENGTH)
        sequences.setdefault(size, set()).update(
            form[begin : begin + size] for begin in range(len(form) - size + 1)
        )
    return sequences


def _lower(text: str) -> str:
    """Return the text in lower case.

    The length does not change: unlike ``str.lower``, this never replaces a letter by several.
    """
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := each.lower()) == 1 else each for each in text)


def _is_word(text: str, begin: int, size: int) -> bool:
    neighbours = text[max(begin - 1, 0) : begin] + text[begin + size : begin + size + 1]
    return not any(each.isalnum() for each in neighbours)


class Record:
    """Passes ``C:`` and ``S:`` lines with masked secrets to ``write``, if it is given."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        """
        Raises:
            TypeError: ``write`` is not callable.
        """
        if write is not None and not callable(write):
            raise TypeError(f"record must be a function, not {type(write).__name__}")
        self._write = write
        self._failure: Exception | None = None  # raised by ``write``
        self._secrets = Secrets()
        self._is_login = False

    @contextmanager
    def login(self, secret: str) -> Iterator[None]:
        """Treat the block as a login, in which every line may contain the secret."""
        self._secrets.replace(secret)
        self._is_login = True
        try:
            yield
        finally:
            self._is_login = False

    def check(self) -> None:
        """Raise an earlier exception of ``write``, for example about an unencodable character.

        The exception is delayed until this call, so that it does not interrupt a command and end
        the session.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def hide(self, text: str) -> str:
        """Return a server's text with secrets masked, for use in exceptions."""
        return self._secrets.hide(text)

    def sent(self, octets: bytes) -> None:
        """Record lines that the client has sent."""
        for line in octets.removesuffix(CRLF).split(CRLF):
            text = line.decode("utf-8", "backslashreplace")
            if self._is_login:
                match = _PUBLIC.match(text)
                rest = text[match.end() :] if match else text
                self._secrets.add(rest.strip(" "))
                self._secrets.add(rest.rpartition(" ")[2])  # the digest of APOP, without the user
            self._write_line("C", text, _PUBLIC)

    def received(self, line: bytes) -> None:
        """Record a line that the server has sent."""
        self._write_line("S", line.decode("utf-8", "backslashreplace"), _PUBLIC_ANSWER)

    def _write_line(self, side: str, text: str, public: re.Pattern[str]) -> None:
        if self._write is None:
            return
        if self._is_login:
            match = public.match(text)
            shown = match[0] if match else ""
            text = shown if shown == text else f"{shown} {_MASK}".lstrip()
        try:
            self._write(f"{side}: " + "".join(map(_visible, self.hide(text))))
        except Exception as error:
            self._failure = self._failure or error


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
