"""What other POP3 servers know of their mail, read from their files: unique-ids and the order.

Without I/O.  The unique-ids come as the old server showed them, so that a client which kept
its list of them downloads nothing again.

Formats: ``dovecot-uidlist`` versions 1 and 3, Courier's ``courierpop3dsizelist`` versions 2 and
3, the lines of any server's UIDL; ``mbox`` reads mbox files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import PermanentFailure

DOVECOT = "%08Xu%08Xv"
"""Dovecot's default pop3_uidl_format; its hexadecimal digits are lower-case."""
CYRUS = "%v.%u"

_VARIABLE = re.compile(r"%(?:(0?)([0-9]{1,2}))?(X?)([uvfg%])")
_UIDLIST_LINE = re.compile(rb"([0-9]{1,10}) (?:((?:[A-Z][^ ]* )*):)?(.+)", re.DOTALL)


def render(template: str, *, uid: int, uid_validity: int, file: str = "", guid: str = "") -> str:
    """A unique-id as Dovecot's pop3_uidl_format says: %u %v %f %g, with width and X for hex."""

    def expand(match: re.Match[str]) -> str:
        zero, width, is_hex, letter = match.groups()
        if letter in "uv":
            number = uid if letter == "u" else uid_validity
            text = f"{number:x}" if is_hex else str(number)
        else:
            text = {"f": file, "g": guid or file, "%": "%"}[letter]
        return text.rjust(int(width or 0), "0" if zero else " ")

    return _VARIABLE.sub(expand, template)


def dovecot(uidlist: bytes, template: str = DOVECOT) -> dict[str, str]:
    """Unique-ids by file name without flags, in the order of POP3: first what has an O field.

    Raises:
        PermanentFailure: not a dovecot-uidlist.
    """
    header, *lines = uidlist.split(b"\n")
    match = re.match(rb"3 (?:[^ ]+ )*?V([0-9]{1,10})\b|1 ([0-9]{1,10}) ", header)
    if match is None:
        raise PermanentFailure("dovecot-uidlist: neither version 1 nor version 3")
    validity = int(match[1] or match[2])
    found = []
    for line in filter(None, lines):
        parts = _UIDLIST_LINE.fullmatch(line)
        if parts is None:
            raise PermanentFailure(f"dovecot-uidlist: a line that is none: {line[:40]!r}")
        extras = (parts[2] or b"").decode("utf-8", "surrogateescape").split(" ")
        fields = {each[:1]: each[1:] for each in extras}
        uid, name = int(parts[1]), _base(parts[3])
        unique_id = fields.get("P") or render(
            template, uid=uid, uid_validity=validity, file=name, guid=fields.get("G", "")
        )
        order = fields.get("O", "")
        if not re.fullmatch("[0-9]{0,10}", order):
            raise PermanentFailure(f"dovecot-uidlist: an order that is none: {order[:40]!r}")
        found.append((not order, int(order or 0), uid, name, unique_id))
    return {name: unique_id for *_, name, unique_id in sorted(found)}


def dovecot_uidlist(ids: Mapping[str, str], *, uid_validity: int, guid: str) -> bytes:
    """The other way: a dovecot-uidlist by which Dovecot shows the same ids in the same order."""
    lines = [f"3 V{uid_validity} N{len(ids) + 1} G{guid}"]
    lines += [f"{uid} P{unique_id} :{name}" for uid, (name, unique_id) in enumerate(ids.items(), 1)]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def courier(sizelist: bytes) -> dict[str, str]:
    """Unique-ids by file name without flags, in the order of POP3.

    Raises:
        PermanentFailure: not a courierpop3dsizelist of version 2 or 3.
    """
    header, *lines = sizelist.split(b"\n")
    if not re.match(rb"/[23] ", header):
        raise PermanentFailure("courierpop3dsizelist: neither version 2 nor version 3")
    found = {}
    for line in filter(None, lines):
        match = re.fullmatch(
            rb"(.+) [0-9]+ ([0-9]{1,20}):([0-9]{1,20})(?::[0-9]+)?", line, re.DOTALL
        )
        if match is None:
            raise PermanentFailure(f"courierpop3dsizelist: a line that is none: {line[:40]!r}")
        name = _base(match[1])
        found[name] = f"UID{int(match[2])}-{int(match[3])}" if int(match[2]) else name
    return found


def unique_id_list(lines: bytes) -> dict[int, str]:
    """Number–unique-id pairs, as a server's UIDL or ``restante maildrop export`` tells them.

    Raises:
        PermanentFailure: a line that is none of them.
    """
    found = {}
    for line in lines.splitlines():
        match = re.fullmatch(rb"([0-9]{1,9})[ \t]+([!-~]+)[ \t]*", line)
        if match:
            found[int(match[1])] = match[2].decode()
        elif line.strip() not in (b"", b".") and not line.startswith(b"+OK"):
            raise PermanentFailure(f"list of unique-ids: a line that is none: {line[:40]!r}")
    return found


def _base(name: bytes) -> str:
    """Without flags; octets that are not UTF-8 as lone surrogates, like os.fsdecode."""
    return name.decode("utf-8", "surrogateescape").partition(":")[0]
