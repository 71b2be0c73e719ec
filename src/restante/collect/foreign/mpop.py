"""Read mpop's file of accounts, which may inherit settings, and its lists of unique-ids."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import PermanentFailure
from . import (
    UNCHECKED,
    UNSAFE_CLEAR,
    ForeignAccount,
    absolute_path,
    parse_size,
    read_lines,
    read_text,
)

_ACCOUNT = re.compile(r"([^:]+?)\s*(?::\s*(.+))?")
_MECHANISMS = {"", "on", "user", "apop", "plain", "scram-sha-1", "scram-sha-256", "cram-md5"}
_MECHANISMS |= {"scram-sha-1-plus", "scram-sha-256-plus", "login"}
_NOTES = {
    "filter": "its filter is not imported",
    "killsize": "its killsize is not imported: such mail stays on the server",
    "tls_fingerprint": "its tls_fingerprint is not checked, but the certificate is",
    "tls_cert_file": "its client certificate is not used",
    "source_ip": "its source_ip is not used",
}


def mpop(path: Path, seen: Path | None = None) -> list[ForeignAccount]:
    """Read the accounts in mpop's file ``path``; ``seen`` replaces the path of the unique-ids.

    Raises:
        PermanentFailure: the file has no account.
        OSError: the file cannot be read.
    """
    sections: dict[str, dict[str, str]] = {"": {}}
    current, bases = sections[""], {""}
    for line in read_text(path).splitlines():
        word, rest = (*line.split(None, 1), "", "")[:2]
        rest = rest.strip()
        if not word or word.startswith("#"):
            continue
        if word == "defaults":
            current = sections[""]
        elif word == "account" and (match := _ACCOUNT.fullmatch(rest)):
            current = dict(sections[""])
            for base in filter(None, re.split(r"[\s,]+", match[2] or "")):
                current |= sections.get(base, {"unknown": base})
                bases.add(base)
            sections[match[1]] = current
        else:
            quoted = len(rest) > 1 and rest[0] == rest[-1] == '"'
            current[word] = rest[1:-1] if quoted else rest
    accounts = {
        name: each
        for name, each in sections.items()
        if name and (each.keys() >= {"host", "user"} or name not in bases)
    }
    if not accounts:
        raise PermanentFailure(f"{path} contains no mpop account")
    return [_account(name, each, seen) for name, each in accounts.items()]


def _refusal(options: dict[str, str]) -> str:
    if "unknown" in options:
        return f"it inherits from {options['unknown']}, which does not exist"
    if missing := sorted({"host", "user"} - options.keys()):
        return f"its {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if (auth := options.get("auth", "").lower()) in ("oauthbearer", "xoauth2"):
        return "it signs in with OAuth 2; run: restante account add"
    if auth not in _MECHANISMS:
        return f"it logs in with {auth}, which restante does not support"
    if "socket" in options or "proxy_host" in options:
        return "it connects through a proxy"
    return ""


def _is_on(options: dict[str, str], name: str, default: str) -> bool:
    """Return whether a setting is on; a setting without a value is on."""
    return options.get(name, default) in ("on", "")


def _account(name: str, options: dict[str, str], seen: Path | None) -> ForeignAccount:
    has_tls = _is_on(options, "tls", "off")
    command = options.get("passwordeval", "")
    account = ForeignAccount(
        name,
        host=options.get("host", ""),
        port=int(options["port"]) if options.get("port", "").isdecimal() else None,
        is_implicit=has_tls and not _is_on(options, "tls_starttls", "on"),
        user=options.get("user", ""),
        password=options.get("password", ""),
        password_command=("/bin/sh", "-c", command) if command else (),
        keep="all" if _is_on(options, "keep", "off") else "none",
        largest=parse_size(options.get("skipsize", "")),
        refused=_refusal(options),
    )
    if account.refused:
        return account
    if not has_tls:
        account.notes.append(UNSAFE_CLEAR)
    if not account.password and not command:
        account.notes.append("its password is missing (it may be in a keyring or ~/.netrc)")
    if has_tls and not _is_on(options, "tls_certcheck", "on"):
        account.notes.append(UNCHECKED)
    account.notes += [note for option, note in _NOTES.items() if options.get(option)]
    trust = options.get("tls_trust_file", "")
    account.ca_file = "" if trust == "system" else absolute_path(trust)
    kind, _, where = options.get("delivery", "").partition(" ")
    where = where.strip()
    if kind in ("maildir", "mbox"):
        account.to = f"{kind}:{absolute_path(where)}"
    elif kind == "mda" and "%" not in where:
        account.to = f"command:{shlex.join(['/bin/sh', '-c', where])}"
    else:
        account.no_destination = f"its delivery {kind or 'is missing and'} has no counterpart here"
    file = options.get("uidls_file", "~/.mpop_uidls/%U_at_%H")
    file = file.replace("%U", account.user).replace("%H", account.host)
    account.seen_file = seen or Path(absolute_path(file))
    account.seen = list(_seen(read_lines(account.seen_file), account.host, account.user))
    return account


def _seen(listed: Iterable[str], host: str, user: str) -> Iterator[str]:
    """Yield the account's unique-ids; a line `` COUNT HOST USER`` begins an account's list."""
    is_in_list = False
    for line in listed:
        if line.startswith(" "):
            words = line[1:].split(" ", 2)
            is_in_list = words[1:] == [host, user]
        elif is_in_list and not line.startswith("#"):
            yield line
