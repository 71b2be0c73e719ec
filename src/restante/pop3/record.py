"""What both sides of our client's session say, line by line, for a person to read.

Security: no password ever.  During the login only keywords, mechanisms and user names of what we
send are told, and of what the server answers only the status and the response code; later the
password is blanked out wherever a server repeats it.  Of a multi-line response only the first line
is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..wire import CRLF

_PUBLIC = re.compile(r"(?:USER|CAPA|STLS|AUTH)\b(?: [^ ]+)?|(?:PASS|APOP)\b", re.IGNORECASE)
_PUBLIC_ANSWER = re.compile(r"(?:\+OK|-ERR)(?: \[[A-Za-z0-9/-]{1,20}\])?")


class Record:
    """Tells ``C:`` and ``S:`` lines to ``tell``, or nobody."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._tell = tell
        self._secret = ""
        self._is_login = False

    @contextmanager
    def login(self, secret: str) -> Iterator[None]:
        """What is said meanwhile may hold the secret in any form."""
        self._secret, self._is_login = secret, True
        try:
            yield
        finally:
            self._is_login = False

    def sent(self, octets: bytes) -> None:
        for line in octets.removesuffix(CRLF).split(CRLF):
            self._tell_line("C", line, _PUBLIC)

    def heard(self, line: bytes) -> None:
        self._tell_line("S", line, _PUBLIC_ANSWER)

    def _tell_line(self, side: str, line: bytes, public: re.Pattern[str]) -> None:
        if self._tell is None:
            return
        text = line.decode("utf-8", "backslashreplace")
        if self._is_login:
            found = public.match(text)
            shown = found[0] if found else ""
            text = shown if shown == text else f"{shown} ***".lstrip()
        if self._secret:
            text = text.replace(self._secret, "***")
        self._tell(f"{side}: " + "".join(map(_visible, text)))


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
