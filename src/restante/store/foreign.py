"""Read the files in which other POP3 servers keep unique-ids and the order of messages.

This module does no I/O.  The unique-ids are those that clients have seen on the old server, so
clients do not download any message again.

Formats: ``dovecot-uidlist`` versions 1 and 3, Courier's ``courierpop3dsizelist`` versions 2 and
3, the UIDL response of any server.  The module ``mbox`` reads mbox files.
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
    """Return a unique-id in the format of Dovecot's pop3_uidl_format.

    The variables are %u, %v, %f and %g, with an optional width and X for hexadecimal digits.
    """

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
    """Return unique-ids by file name (without flags) in POP3 order: those with an O field first.

    Raises:
        PermanentFailure: the file is not a dovecot-uidlist.
    """
    header, *lines = uidlist.split(b"\n")
    match = re.match(rb"3 (?:[^ ]+ )*?V([0-9]{1,10})\b|1 ([0-9]{1,10}) ", header)
    if match is None:
        raise PermanentFailure("dovecot-uidlist: neither version 1 nor version 3")
    validity = int(match[1] or match[2])
    rows = []
    for line in filter(None, lines):
        parts = _UIDLIST_LINE.fullmatch(line)
        if parts is None:
            raise PermanentFailure(f"dovecot-uidlist: invalid line: {line[:40]!r}")
        extras = (parts[2] or b"").decode("utf-8", "surrogateescape").split(" ")
        fields = {each[:1]: each[1:] for each in extras}
        uid, name = int(parts[1]), _without_flags(parts[3])
        unique_id = fields.get("P") or render(
            template, uid=uid, uid_validity=validity, file=name, guid=fields.get("G", "")
        )
        order = fields.get("O", "")
        if not re.fullmatch("[0-9]{0,10}", order):
            raise PermanentFailure(f"dovecot-uidlist: invalid order: {order[:40]!r}")
        rows.append((not order, int(order or 0), uid, name, unique_id))
    return {name: unique_id for *_, name, unique_id in sorted(rows)}


def dovecot_uidlist(ids: Mapping[str, str], *, uid_validity: int, guid: str) -> bytes:
    """Return a dovecot-uidlist that makes Dovecot show the same ids in the same order."""
    lines = [f"3 V{uid_validity} N{len(ids) + 1} G{guid}"]
    lines += [f"{uid} P{unique_id} :{name}" for uid, (name, unique_id) in enumerate(ids.items(), 1)]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def courier(sizelist: bytes) -> dict[str, str]:
    """Return unique-ids by file name (without flags), in POP3 order.

    Raises:
        PermanentFailure: the file is not a courierpop3dsizelist of version 2 or 3.
    """
    header, *lines = sizelist.split(b"\n")
    if not re.match(rb"/[23] ", header):
        raise PermanentFailure("courierpop3dsizelist: neither version 2 nor version 3")
    ids = {}
    for line in filter(None, lines):
        match = re.fullmatch(
            rb"(.+) [0-9]+ ([0-9]{1,20}):([0-9]{1,20})(?::[0-9]+)?", line, re.DOTALL
        )
        if match is None:
            raise PermanentFailure(f"courierpop3dsizelist: invalid line: {line[:40]!r}")
        name = _without_flags(match[1])
        ids[name] = f"UID{int(match[2])}-{int(match[3])}" if int(match[2]) else name
    return ids


def unique_id_list(lines: bytes) -> dict[int, str]:
    """Return the unique-ids in a UIDL response or from ``restante maildrop export``, by number.

    Raises:
        PermanentFailure: a line is invalid.
    """
    ids = {}
    for line in lines.splitlines():
        match = re.fullmatch(rb"([0-9]{1,9})[ \t]+([!-~]+)[ \t]*", line)
        if match:
            ids[int(match[1])] = match[2].decode()
        elif line.strip() not in (b"", b".") and not line.startswith(b"+OK"):
            raise PermanentFailure(f"list of unique-ids: invalid line: {line[:40]!r}")
    return ids


def _without_flags(name: bytes) -> str:
    """Return a name without flags; octets that are not UTF-8 become lone surrogates."""
    return name.decode("utf-8", "surrogateescape").partition(":")[0]
