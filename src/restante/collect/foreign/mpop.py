"""mpop: one file of accounts, which may inherit, and lists of unique-ids where each says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import PermanentFailure
from . import UNSAFE_CLEAR, Foreign, home, lines, octets, text

_ACCOUNT = re.compile(r"(\S+)(?:\s*:\s*(.+))?")


def mpop(path: Path, seen: Path | None = None) -> list[Foreign]:
    """
    Raises:
        PermanentFailure: not mpop's.
        OSError: it cannot be read.
    """
    sections: dict[str, dict[str, str]] = {"": {}}
    current = sections[""]
    for line in text(path).splitlines():
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not word or word.startswith("#"):
            continue
        if word == "defaults":
            current = sections[""]
        elif word == "account" and (match := _ACCOUNT.fullmatch(rest)):
            current = dict(sections[""])
            for base in filter(None, re.split(r"[\s,]+", match[2] or "")):
                current |= sections.get(base, {})
            sections[match[1]] = current
        else:
            quoted = len(rest) > 1 and rest[0] == rest[-1] == '"'
            current[word] = rest[1:-1] if quoted else rest
    accounts = {
        name: each for name, each in sections.items() if name and each.keys() >= {"host", "user"}
    }
    if not accounts:
        raise PermanentFailure(f"{path}: no account of mpop")
    return [_account(name, each, seen) for name, each in accounts.items()]


def _account(name: str, given: dict[str, str], seen: Path | None) -> Foreign:
    has_tls = given.get("tls", "off") == "on"
    command = given.get("passwordeval", "")
    found = Foreign(
        name,
        host=given["host"],
        port=int(given["port"]) if given.get("port", "").isdecimal() else None,
        is_implicit=has_tls and given.get("tls_starttls", "on") == "off",
        user=given.get("user", ""),
        password=given.get("password", ""),
        password_command=("/bin/sh", "-c", command) if command else (),
        keep="all" if given.get("keep", "off") == "on" else "none",
        largest=octets(given.get("skipsize", "")),
    )
    if not has_tls:
        found.notes.append(UNSAFE_CLEAR)
    trust = given.get("tls_trust_file", "")
    found.ca_file = "" if trust == "system" else home(trust)
    kind, _, where = given.get("delivery", "").partition(" ")
    where = where.strip()
    if kind in ("maildir", "mbox"):
        found.to = f"{kind}:{home(where)}"
    elif kind == "mda" and "%" not in where:
        found.to = f"command:{shlex.join(['/bin/sh', '-c', where])}"
    else:
        found.notes.append(f"its delivery {kind or 'is missing and'} has no counterpart here")
    file = given.get("uidls_file", "~/.mpop_uidls/%U_at_%H")
    file = file.replace("%U", found.user).replace("%H", found.host)
    found.seen_file = seen or Path(home(file))
    found.seen = list(_seen(lines(found.seen_file), found.host, found.user))
    return found


def _seen(listed: Iterable[str], host: str, user: str) -> Iterator[str]:
    """A line `` COUNT HOST USER`` begins a list."""
    is_ours = False
    for line in listed:
        if line.startswith(" "):
            words = line[1:].split(" ", 2)
            is_ours = words[1:] == [host, user]
        elif is_ours and not line.startswith("#"):
            yield line
