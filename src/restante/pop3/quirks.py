"""What some servers do otherwise than the RFCs say, so far as a client must know it beforehand.

All that can be survived without knowing is survived by ``pop3.dialogue`` everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import UnsafeArgument

_BUSY = ("already locked", "lock busy", "mailbox in use", "maildrop in use", "already in use")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """One server's ways.  None of them weakens TLS or the login."""

    no_capa: bool = False
    """CAPA is never asked, because the server hangs on it; ``added`` stands for its answer."""
    hidden: frozenset[str] = frozenset()
    """Capabilities that are announced and do not work.  Where TOP does not, ``headers`` reads
    whole messages."""
    added: tuple[str, ...] = ()
    """Capabilities that work, or hold, and are not announced, as CAPA would list them:
    ``PIPELINING``, ``LOGIN-DELAY 60``."""
    two_step_auth: bool = False
    """AUTH takes no initial response."""
    utf8_login: bool = False
    """USER and PASS take UTF-8 (RFC 6856 §2.2)."""
    reset_before_quit: bool = False
    """QUIT removes what was read: send RSET before it where nothing was marked as deleted."""
    in_parts: bool = False
    """A session lists only some of the messages, and the next one others once these are read."""
    bare_line_feeds: bool = False
    """Lines end with LF.  A message can then end itself by a line with a lone dot, so nothing of
    an untrusted sender should come this way; never chosen by itself."""
    octets_per_day: int | None = None
    """What it gives of one maildrop in a day, before it closes that for a while."""
    codes: Mapping[str, str] = field(default_factory=dict)
    """Response codes by words in what the server says instead, in lower case."""

    def code(self, text: str) -> str | None:
        """The response code that the words of a failure stand for."""
        said = text.lower()
        if any(words in said for words in _BUSY):
            return "IN-USE"
        return next((code for words, code in self.codes.items() if words in said), None)


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
    """What is known of the server of that name."""
    labels = host.lower().rstrip(".").split(".")
    return PRESETS[_HOSTS.get(".".join(labels[-2:]), "none")]


_FLAGS = (
    *("no_capa", "two_step_auth", "utf8_login", "reset_before_quit", "in_parts"),
    "bare_line_feeds",
)


def parse(words: Sequence[str], host: str = "") -> Quirks:
    """What somebody has written down, each word adding to those before it.

    ``auto`` is what is known of the host; then there are presets, flags such as ``no-capa``, and
    capabilities: ``hide:TOP``, ``add:LOGIN-DELAY:60``.

    Raises:
        UnsafeArgument: a word that means nothing.
    """
    found = Quirks()
    for word in words:
        kind, _, capability = word.upper().partition(":")
        flag = word.replace("-", "_")
        if word == "auto":
            found = by_host(host)
        elif word in PRESETS:
            found = PRESETS[word]
        elif flag in _FLAGS:
            found = replace(found, **{flag: True})  # type: ignore[arg-type]  # all are bool
        elif kind == "HIDE" and capability:
            found = replace(found, hidden=found.hidden | {capability})
        elif kind == "ADD" and capability:
            found = replace(found, added=(*found.added, capability.replace(":", " ")))
        else:
            flags = ", ".join(_FLAGS).replace("_", "-")
            presets = ", ".join(PRESETS)
            raise UnsafeArgument(f"wants auto, {presets}, {flags}, hide:TOP, add:LOGIN-DELAY:60")
    return found


def in_words(word: str) -> str:
    """How an error names a quirk: for the configuration, and for Python."""
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


# What servers say instead of LOGIN-DELAY, and where they expected AUTH alone on its line.
_TOO_SOON = re.compile(
    r"too (?:often|soon|frequent)|log.?in.{0,9}(?:delay|interval)|minimum (?:interval|time)"
    r"|(?:once|only) (?:every|per|in) \d+ (?:s|m)"
)
_NOT_UNDERSTOOD = re.compile(
    r"syntax|argument|parameter|protocol error|unrecogni[sz]ed|(?:unknown|invalid|bad) command"
    r"|not (?:supported|implemented)"
)


def remedy(command: str, text: str, *, with_response: bool = False) -> str:
    """The quirk that may help where the server refused ``command`` with this text and no response
    code; empty where none is known.  ``with_response``: AUTH had its initial response.
    """
    said = text.lower()
    if command in ("USER", "PASS", "AUTH") and _TOO_SOON.search(said):
        return f"if it limits how often to log in, set {in_words('add:LOGIN-DELAY:60')}"
    if not _NOT_UNDERSTOOD.search(said):
        return ""
    if command == "AUTH":
        word = "two-step-auth" if with_response else "hide:SASL"
        return f"if the password is right, set {in_words(word)}"
    return f"if TOP never works there, set {in_words('hide:TOP')}" if command == "TOP" else ""


class LineEnds:
    """Makes CRLF of each bare LF in octets that come in pieces."""

    def __init__(self) -> None:
        self._last = b""

    def feed(self, octets: bytes) -> bytes:
        text = self._last + octets
        whole = text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        begun = len(self._last)
        # A CR at the end was given already, and waits here only for its LF.
        self._last = b"\r" if octets.endswith(b"\r") else b""
        return whole[begun:]
