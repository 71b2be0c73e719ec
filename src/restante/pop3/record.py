"""A readable record of a client session: the lines of both sides, without secrets.

Security: neither a record nor an exception contains a password.  During the login, only keywords,
mechanisms and user names of our commands are recorded, and only the status and the response code of
the server's responses.  Later the password is masked wherever a server repeats it.  Only the first
line of a multi-line response is recorded.
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
# Any run of this many characters of a secret is masked, because a server may repeat only a part of
# it.  Shorter runs occur in English words by chance.
_RUN = 6
# Secrets shorter than this many characters are masked as whole words only; masking them inside
# words would make texts unreadable.
_WORD = 4
_HIDDEN = "***"
# Characters of a line that are searched for secrets and shown; RFC 1939 §3 allows 512 octets.  Our
# own limit, because each character costs a look-up.
_SHOWN = 2000


class Secrets:
    """A secret and the texts that were sent to prove it, in all forms that a server may repeat.

    A secret is a password or a token.
    """

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._runs: dict[int, set[str]] | None = None  # by length; computed when first needed

    def replace(self, secret: str) -> None:
        """Mask this secret instead of the previous secret from now on."""
        self._forms, self._runs = set(), None
        if secret:
            self._forms.update(_forms(secret))

    def add(self, sent: str) -> None:
        """Also mask a text that was sent to prove the secret, such as a line in Base64."""
        if len(sent) >= _WORD:
            self._forms.add(sent)
            self._runs = None

    def hide(self, text: str) -> str:
        """Return the text with ``***`` in place of each secret, compared without case.

        A text longer than 2000 characters is truncated.
        """
        if len(text) > _SHOWN:
            text = text[:_SHOWN] + " …"
        if not self._forms:
            return text
        if self._runs is None:
            self._runs = _runs(self._forms)
        lowered = _lowered(text)
        is_secret = bytearray(len(text))
        for size, runs in self._runs.items():
            for at in range(len(text) - size + 1):
                if lowered[at : at + size] in runs and (size >= _WORD or _is_word(text, at, size)):
                    is_secret[at : at + size] = b"\1" * size
        parts = groupby(zip(text, is_secret, strict=True), key=itemgetter(1))
        return "".join(
            _HIDDEN if hidden else "".join(each for each, _ in part) for hidden, part in parts
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
    for before in range(3):  # its offset within a group of three octets decides its Base64 form
        encoded = b64encode(bytes(before) + octets)
        inside = encoded[(4 * before + 2) // 3 : (before + len(octets)) * 4 // 3].decode()
        if len(inside) >= _WORD:
            yield inside


def _runs(forms: set[str]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for form in map(_lowered, forms):
        size = min(len(form), _RUN)
        runs = found.setdefault(size, set())
        runs.update(form[at : at + size] for at in range(len(form) - size + 1))
    return found


def _lowered(text: str) -> str:
    """Return the text in lower case with the same length; ``str.lower`` lengthens a few letters."""
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := each.lower()) == 1 else each for each in text)


def _is_word(text: str, at: int, size: int) -> bool:
    around = text[max(at - 1, 0) : at] + text[at + size : at + size + 1]
    return not any(each.isalnum() for each in around)


class Record:
    """Passes ``C:`` and ``S:`` lines to ``write``, if given, and masks secrets in them."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        """
        Raises:
            TypeError: ``write`` is not callable.
        """
        if write is not None and not callable(write):
            raise TypeError(f"record must be a function, not {type(write).__name__}")
        self._write = write
        self._failure: Exception | None = None  # of ``write``
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
        """Raise an earlier exception of ``write``, such as a terminal that cannot show a character.

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
        for line in octets.removesuffix(CRLF).split(CRLF):
            text = line.decode("utf-8", "backslashreplace")
            if self._is_login:
                found = _PUBLIC.match(text)
                rest = text[found.end() :] if found else text
                self._secrets.add(rest.strip(" "))
                self._secrets.add(rest.rpartition(" ")[2])  # APOP: the digest without the user
            self._write_line("C", text, _PUBLIC)

    def heard(self, line: bytes) -> None:
        self._write_line("S", line.decode("utf-8", "backslashreplace"), _PUBLIC_ANSWER)

    def _write_line(self, side: str, text: str, public: re.Pattern[str]) -> None:
        if self._write is None:
            return
        if self._is_login:
            found = public.match(text)
            shown = found[0] if found else ""
            text = shown if shown == text else f"{shown} ***".lstrip()
        try:
            self._write(f"{side}: " + "".join(map(_visible, self.hide(text))))
        except Exception as error:
            self._failure = self._failure or error


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
