"""Deviations from the RFCs for which a client must be configured before it connects to a server.

``pop3.dialogue`` tolerates all other known deviations, without configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import UnsafeArgument

_BUSY = ("already locked", "lock busy", "mailbox in use", "maildrop in use", "already in use")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """The deviations of one server.  None of them weakens TLS or the login."""

    no_capa: bool = False
    """CAPA must not be sent, because the server hangs after it.  Only the capabilities in ``added``
    are used."""
    hidden: frozenset[str] = frozenset()
    """Capabilities that the server announces but that do not work.  If TOP is hidden, ``headers``
    reads whole messages."""
    added: tuple[str, ...] = ()
    """Capabilities that work although the server does not announce them, in the form of a line in
    the response to CAPA, such as ``PIPELINING`` or ``LOGIN-DELAY 60``."""
    two_step_auth: bool = False
    """AUTH does not accept an initial response."""
    utf8_login: bool = False
    """USER and PASS accept UTF-8 (RFC 6856 §2.2)."""
    reset_before_quit: bool = False
    """QUIT removes all messages that were read, so RSET must be sent first if no message is marked
    as deleted."""
    in_parts: bool = False
    """The server lists only some of the messages in a session.  After these have been read, the
    next session lists others."""
    bare_line_feeds: bool = False
    """Lines end with LF.  In this mode, a message line that consists of a single dot ends the
    response early, so use the mode only if all senders are trusted.  It is never chosen
    automatically."""
    octets_per_day: int | None = None
    """Octets that may be downloaded from one maildrop in a day before the server blocks it."""
    codes: Mapping[str, str] = field(default_factory=dict)
    """Maps text that the server sends, in lower case, to the response code that it stands for."""

    def code(self, text: str) -> str | None:
        """Return the response code that the text of an error response implies, or None."""
        lowered = text.lower()
        if any(words in lowered for words in _BUSY):
            return "IN-USE"
        return next((code for words, code in self.codes.items() if words in lowered), None)


PRESETS: Mapping[str, Quirks] = {
    # "Download via POP: 1250 MB", Gmail bandwidth limits (Google Workspace Admin Help).
    "gmail": Quirks(
        in_parts=True,
        codes={"lockdown in sector": "SYS/TEMP"},
        octets_per_day=1_250_000_000,
    ),
    "microsoft": Quirks(two_step_auth=True),
    "ovh": Quirks(added=("LOGIN-DELAY 60",)),
    "luxsci": Quirks(added=("LOGIN-DELAY 30",)),
    "netease": Quirks(codes={"exceed": "SYS/TEMP"}),
    "none": Quirks(),
}
_HOSTS = {
    "gmail.com": "gmail",
    "googlemail.com": "gmail",
    "office365.com": "microsoft",
    "office.com": "microsoft",
    "outlook.com": "microsoft",
    "ovh.net": "ovh",
    "luxsci.com": "luxsci",
    "163.com": "netease",
    "126.com": "netease",
    "yeah.net": "netease",
}


def by_host(host: str) -> Quirks:
    """Return the known quirks of the server with this host name."""
    labels = host.lower().rstrip(".").split(".")
    return PRESETS[_HOSTS.get(".".join(labels[-2:]), "none")]


_FLAGS = (
    *("no_capa", "two_step_auth", "utf8_login", "reset_before_quit", "in_parts"),
    "bare_line_feeds",
)


def parse(words: Sequence[str], host: str = "") -> Quirks:
    """Parse the quirks in the configuration, and combine them.

    ``auto`` selects the known quirks of the host.  The other valid words are names of presets,
    flags such as ``no-capa``, and capabilities such as ``hide:TOP`` or ``add:LOGIN-DELAY:60``.

    Raises:
        UnsafeArgument: a word is unknown.
    """
    quirks = Quirks()
    for word in words:
        kind, _, capability = word.upper().partition(":")
        flag = word.replace("-", "_")
        if word == "auto":
            quirks = by_host(host)
        elif word in PRESETS:
            quirks = PRESETS[word]
        elif flag in _FLAGS:
            quirks = replace(quirks, **{flag: True})  # type: ignore[arg-type]  # all are bool
        elif kind == "HIDE" and capability:
            quirks = replace(quirks, hidden=quirks.hidden | {capability})
        elif kind == "ADD" and capability:
            quirks = replace(quirks, added=(*quirks.added, capability.replace(":", " ")))
        else:
            flags = ", ".join(_FLAGS).replace("_", "-")
            presets = ", ".join(PRESETS)
            raise UnsafeArgument(
                f"must be auto, {presets}, {flags}, hide:TOP or add:LOGIN-DELAY:60"
            )
    return quirks


def describe(word: str) -> str:
    """Describe a quirk for an error message, in the syntax of the configuration and of Python."""
    kind, _, capability = word.partition(":")
    tag = capability.replace(":", " ")
    match kind:
        case "add":
            value = f'added=("{tag}",)'
        case "hide":
            value = f'hidden=frozenset({{"{tag}"}})'
        case _:
            value = f"{kind.replace('-', '_')}=True"
    return f"the quirk {word} (in Python Quirks({value}))"


# Matches error texts from servers that enforce a login delay, but do not send LOGIN-DELAY.
_TOO_SOON = re.compile(
    r"too (?:often|soon|frequent)|log.?in.{0,9}(?:delay|interval)|minimum (?:interval|time)"
    r"|(?:once|only) (?:every|per|in) \d+ (?:s|m)"
)
# Matches error texts from servers that do not support a command or its argument.
_NOT_SUPPORTED = re.compile(
    r"syntax|argument|parameter|protocol error|unrecogni[sz]ed|(?:unknown|invalid|bad) command"
    r"|not (?:supported|implemented)"
)


def remedy(command: str, text: str, *, with_response: bool = False) -> str:
    """Suggest a quirk after the server refused ``command`` with this text, without a response code.

    ``with_response``: whether AUTH was sent with an initial response.  Returns an empty string if
    no suitable quirk is known.
    """
    lowered = text.lower()
    if command in ("USER", "PASS", "AUTH") and _TOO_SOON.search(lowered):
        return f"if the server limits how often you log in, set {describe('add:LOGIN-DELAY:60')}"
    if not _NOT_SUPPORTED.search(lowered):
        return ""
    if command == "AUTH":
        word = "two-step-auth" if with_response else "hide:SASL"
        return f"if the password is correct, set {describe(word)}"
    return (
        f"if TOP never works on this server, set {describe('hide:TOP')}" if command == "TOP" else ""
    )


class LineEndings:
    """Converts bare LF to CRLF in octets that arrive in pieces."""

    def __init__(self) -> None:
        self._last = b""

    def feed(self, octets: bytes) -> bytes:
        """Return the next piece, converted."""
        converted = (self._last + octets).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        returned = len(self._last)
        # A final CR has been returned already.  It is kept only to recognise an LF that follows.
        self._last = b"\r" if octets.endswith(b"\r") else b""
        return converted[returned:]
