"""How each program changes odd messages: the octets sent and stored."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .programs import Order, Program, stored
from .remote import Remote
from .trial import PATIENCE, home, run

_HEAD = (
    b"From: ann@example.org\r\nTo: bob@example.org\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n"
    b"Message-ID: <1@example.org>\r\nSubject: odd\r\n"
)
MESSAGES = {
    "plain, CRLF": _HEAD + b"\r\nOne.\r\nTwo.\r\n",
    "all lines end with LF": _HEAD.replace(b"\r\n", b"\n") + b"\nOne.\nTwo.\n\r\n",
    "LF and CRLF mixed": _HEAD + b"\r\nOne.\nTwo.\r\nThree.\n\nFour.\r\n",
    "a lone CR within lines": _HEAD + b"\r\nOne\rtwo.\r\nThree.\r\r\nFour.\r\n",
    "NULs": _HEAD + b"\r\nOne\0two\0\0.\r\n\0\r\nThree.\r\n",
    "8-bit octets": _HEAD + b"\r\n" + bytes(range(128, 256)) + b"\r\n\xff\xfe\r\n",
    "control octets": _HEAD + b"\r\n" + bytes(set(range(1, 32)) - {10, 13}) + b"\x7f\r\n",
    "8-bit octets in the header": _HEAD + b"X-Odd: gr\xfc\xdfe \xf0\x9f\x93\xae\r\n\r\nOne.\r\n",
    "a line of 100 kB": _HEAD + b"\r\n" + b"x" * 100_000 + b"\r\nTwo.\r\n",
    "a header line of 20 kB": _HEAD + b"X-Long: " + b"y" * 20_000 + b"\r\n\r\nOne.\r\n",
    "leading dots": _HEAD + b"\r\n.\r\n..\r\n.one\r\n...two\r\n",
    "a dot as the first octet": b".\r\n" + _HEAD + b"\r\nOne.\r\n",
    "From lines": _HEAD + b"\r\nOne.\r\n\r\nFrom ann\r\n>From bob\r\n>>From eve\r\nFrom: x\r\n",
    "a From line as the first line": b"From ann@example.org Thu Jan  1 00:00:00 2026\r\n"
    + _HEAD
    + b"\r\nOne.\r\n",
    "trailing blank lines": _HEAD + b"\r\nOne.\r\n\r\n\r\n\r\n",
    "trailing spaces": _HEAD + b"\r\nOne.  \r\n \t\r\nTwo.\t\r\n",
    "folded header fields": _HEAD + b"X-Odd: one\r\n two\r\n\tthree\r\nX-ODD:four\r\n\r\nOne.\r\n",
    "an empty body": _HEAD + b"\r\n",
    "a header without a blank line": _HEAD,
    "a blank line and no header": b"\r\nOne.\r\nTwo.\r\n",
    "neither a header nor a blank line": b"One two three\r\nfour five.\r\n",
    "only a blank line": b"\r\n",
    "an empty message": b"",
}

Change = Callable[[bytes], bytes]


def _same(text: bytes) -> bytes:
    return text


def _lf(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n")


# From the smallest change to the largest; the first that explains the result is reported.
_EXPLANATIONS: tuple[tuple[str, Change], ...] = (
    ("as sent", _same),
    ("LF", _lf),
    ("LF, lone CR removed", lambda text: re.sub(rb"\r+\n", b"\n", text)),
    ("LF, extra line ending", lambda text: _lf(text) + b"\n"),
    ("LF, no final line ending", lambda text: _lf(text).removesuffix(b"\n")),
    ("LF, no trailing blank lines", lambda text: _lf(text).rstrip(b"\n") + b"\n"),
    ("LF, without NULs", lambda text: _lf(text).replace(b"\0", b"")),
)
_FIELDS = re.compile(rb"(?:(?:Return-Path|Received|Status|X-[\w-]+): ?[^\n]*\n(?:[ \t][^\n]*\n)*)+")


@dataclass(frozen=True, slots=True)
class Kept:
    """The stored form of a message."""

    verdict: str
    detail: str = ""
    """Offset of the first difference."""


def explain(sent: bytes, have: list[bytes]) -> Kept:
    if not have:
        return Kept("not fetched")
    if len(have) > 1:
        return Kept(f"{len(have)} messages")
    (text,) = have
    for verdict, change in _EXPLANATIONS:
        if text == change(sent):
            return Kept(verdict)
    added = _FIELDS.match(text)
    for verdict, change in _EXPLANATIONS if added else ():
        assert added is not None
        if text[added.end() :].removeprefix(b"\n" * (not sent.strip())) == change(sent):
            return Kept(f"{verdict}, extra field")
    wanted = _lf(sent)
    if added and not wanted.startswith(added[0][:8]):
        text = text[added.end() :]
    at = next(
        (n for n, (a, b) in enumerate(zip(text, wanted, strict=False)) if a != b),
        min(len(text), len(wanted)),
    )
    near = slice(max(at - 10, 0), at + 30)
    verdict = "truncated" if at == len(text) else "changed"
    return Kept(verdict, f"octet {at}: {text[near]!r} instead of {wanted[near]!r}")


def tries(program: Program, *, mbox: bool) -> Iterator[tuple[str, Kept]]:
    """Return one case per message, so that messages do not affect each other."""
    for name, text in MESSAGES.items():
        remote = Remote({"id1": text})
        with home(program) as place, remote:
            ca = place / "ca.pem"
            shutil.copy(remote.ca_file, ca)
            order = Order(place=place, port=remote.port, ca=ca, keep=True, mbox=mbox)
            run(program, order, remote.fate, PATIENCE)
            sent = remote.left["id1"]
            yield name, explain(sent, stored(place, mbox=mbox))
