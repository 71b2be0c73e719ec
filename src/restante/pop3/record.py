"""What both sides of our client's session say, line by line, for a person to read.

Security: no password ever, neither here nor in an exception.  During the login only keywords,
mechanisms and user names of what we send are recorded, and of what the server answers only the
status and the response code; later the password is blanked out wherever a server repeats it.  Of a
multi-line response only the first line is recorded.
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
# Characters of a secret that are hidden wherever they stand together: a server may repeat only its
# beginning, and English rarely has as many of them by chance.
_RUN = 6
# Shorter secrets are hidden only as words of their own: anything else would make riddles of texts.
_WORD = 4
_HIDDEN = "***"
_SHOWN = 2000  # characters of a line, though RFC 1939 §3 allows 512: each costs a look-up; ours


class Secrets:
    """A password or token, and what was sent for it, in all forms that a server may repeat."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._runs: dict[int, set[str]] | None = None  # by length; made when they are needed

    def replace(self, secret: str) -> None:
        """From now on this one is hidden, and the one before it no more."""
        self._forms, self._runs = set(), None
        if secret:
            self._forms.update(_forms(secret))

    def add(self, sent: str) -> None:
        """What was sent to prove that we know it, such as a line in base64."""
        if len(sent) >= _WORD:
            self._forms.add(sent)
            self._runs = None

    def hide(self, text: str) -> str:
        """The text with ``***`` in place of each secret, in any case of letters.

        What is longer than any honest line is cut.
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
    for before in range(3):  # where it stands among the octets that were encoded together
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
    """Of the same length, as ``lower`` is not for a few letters."""
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := each.lower()) == 1 else each for each in text)


def _is_word(text: str, at: int, size: int) -> bool:
    around = text[max(at - 1, 0) : at] + text[at + size : at + size + 1]
    return not any(each.isalnum() for each in around)


class Record:
    """Gives ``C:`` and ``S:`` lines to ``tell``, if there is one, and knows what must be hidden."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        """
        Raises:
            TypeError: ``tell`` is no function.
        """
        if tell is not None and not callable(tell):
            raise TypeError(f"record: a function is needed, not {type(tell).__name__}")
        self._tell = tell
        self._failure: Exception | None = None  # of ``tell``
        self._secrets = Secrets()
        self._is_login = False

    @contextmanager
    def login(self, secret: str) -> Iterator[None]:
        """What is said meanwhile may hold the secret in any form."""
        self._secrets.replace(secret)
        self._is_login = True
        try:
            yield
        finally:
            self._is_login = False

    def check(self) -> None:
        """Raise what ``tell`` has raised, such as a terminal that cannot show a character.

        Not at once, in the middle of a command, but when a session could go on after it.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def hide(self, text: str) -> str:
        """What a server has said, without the password; for exceptions."""
        return self._secrets.hide(text)

    def sent(self, octets: bytes) -> None:
        for line in octets.removesuffix(CRLF).split(CRLF):
            text = line.decode("utf-8", "backslashreplace")
            if self._is_login:
                found = _PUBLIC.match(text)
                rest = text[found.end() :] if found else text
                self._secrets.add(rest.strip(" "))
                self._secrets.add(rest.rpartition(" ")[2])  # APOP: the digest without the user
            self._tell_line("C", text, _PUBLIC)

    def heard(self, line: bytes) -> None:
        self._tell_line("S", line.decode("utf-8", "backslashreplace"), _PUBLIC_ANSWER)

    def _tell_line(self, side: str, text: str, public: re.Pattern[str]) -> None:
        if self._tell is None:
            return
        if self._is_login:
            found = public.match(text)
            shown = found[0] if found else ""
            text = shown if shown == text else f"{shown} ***".lstrip()
        try:
            self._tell(f"{side}: " + "".join(map(_visible, self.hide(text))))
        except Exception as error:
            self._failure = self._failure or error


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
