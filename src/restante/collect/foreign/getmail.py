"""Read getmail's INI file for each account, and its lists of seen messages, ``oldmail-…``."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ...errors import PermanentFailure
from . import ONLY_POP3, UNSAFE_CLEAR, ForeignAccount, absolute_path, read_lines, read_text

_TLS_OPTIONS = ("ssl_fingerprints", "certfile", "ssl_version", "ssl_ciphers")
_IGNORED_OPTIONS = ("delete_bigger_than", "max_bytes_per_session")


def getmail(path: Path, seen: Path | None = None) -> list[ForeignAccount]:
    """Read the accounts in ``path``, which is one rc file, or the directory of all rc files.

    ``seen`` replaces the path of the list of seen messages.  If a file in a directory is invalid or
    cannot be read, the result contains a refused account.

    Raises:
        PermanentFailure: ``path`` is not a getmail configuration.
        OSError: ``path`` cannot be read.
    """
    if not path.is_dir():
        return [_read(path, seen)]
    results = [_read_one_of_many(each, seen) for each in sorted(path.iterdir()) if _may_be_rc(each)]
    accounts = [each for each in results if each is not None]
    if not accounts:
        raise PermanentFailure(f"{path} contains no getmail configuration")
    return accounts


def _may_be_rc(path: Path) -> bool:
    return path.is_file() and not path.name.startswith("oldmail-")


def _read_one_of_many(path: Path, seen: Path | None) -> ForeignAccount | None:
    """Read one file of a directory; return None if it is not an rc file."""
    try:
        if b"[retriever]" not in path.read_bytes():
            return None
        return _read(path, seen)
    except PermanentFailure as error:
        return ForeignAccount(_name(path), refused=str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return ForeignAccount(_name(path), refused=f"{path}: {error.strerror}")


def _read(path: Path, seen: Path | None) -> ForeignAccount:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(read_text(path))
        return _account(path, parser, seen)
    except (configparser.Error, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, configparser.Error) else error
        raise PermanentFailure(f"{path}: invalid getmail configuration: {reason}") from error


def _name(path: Path) -> str:
    return "getmail" if path.name in ("getmailrc", ".getmailrc") else path.stem


def _account(path: Path, parser: configparser.RawConfigParser, seen: Path | None) -> ForeignAccount:
    retriever = parser["retriever"]
    kind = retriever.get("type", "")
    account = ForeignAccount(
        _name(path),
        host=retriever.get("server", ""),
        is_implicit="SSL" in kind,
        user=retriever.get("username", ""),
        password=retriever.get("password", ""),
        password_command=_tuple(retriever.get("password_command", "()")),
        ca_file=_home(retriever.get("ca_certs", "")),
        refused=_refusal(kind, retriever),
    )
    if account.refused:
        return account
    port = retriever.getint("port", 995 if account.is_implicit else 110)
    account.port = port if "port" in retriever else None
    options = parser["options"] if parser.has_section("options") else parser["DEFAULT"]
    days = options.getint("delete_after", 0)
    if options.getboolean("delete", False):
        account.keep = "none"
    elif days:
        account.keep = f"{days}d"
    account.largest = options.getint("max_message_size", 0)
    account.limit = options.getint("max_messages_per_session", 0)
    account.to = _destination(account, parser["destination"])
    account.notes += _notes(account, parser)
    name = re.sub(r"[/\\:;<>|]+", "-", f"oldmail-{account.host}-{port}-{account.user}")
    account.seen_file = seen or path.with_name(name)
    if "Broken" in kind:
        account.notes.append(f"it did not record seen messages, because its type is {kind}")
    else:
        seen_lines = read_lines(account.seen_file)
        account.seen = [line.partition("\0")[0] for line in seen_lines if "\0" in line]
    return account


def _refusal(kind: str, retriever: configparser.SectionProxy) -> str:
    if "POP3" not in kind and "SDPS" not in kind:
        return f"{kind or 'a retriever without a type'}: {ONLY_POP3}"
    if kind.startswith("Multidrop"):
        return f"{kind}: one mailbox for several users, sorted by recipients"
    if retriever.getboolean("use_xoauth2", False):
        return "it signs in with OAuth 2; run: restante account add"
    if retriever.getboolean("use_kerberos", False):
        return "it logs in with Kerberos, which restante does not support"
    return ""


def _notes(account: ForeignAccount, parser: configparser.RawConfigParser) -> Iterator[str]:
    retriever = parser["retriever"]
    if not account.is_implicit:
        yield UNSAFE_CLEAR
    if not account.password and not account.password_command:
        yield "its password is missing (it may be in a keyring or ~/.netrc)"
    for name in (*(each for each in _TLS_OPTIONS if each in retriever), *_filters(parser)):
        yield f"its {name} is not imported"
    if parser.has_section("options"):
        for name in _IGNORED_OPTIONS:
            if parser["options"].get(name, "0") != "0":
                yield f"its {name} is not imported"


def _filters(parser: configparser.RawConfigParser) -> list[str]:
    return [name for name in parser.sections() if name.startswith("filter")]


def _destination(account: ForeignAccount, section: configparser.SectionProxy) -> str:
    path = _home(section.get("path", ""))
    match section.get("type", ""):
        case "Maildir" if path:
            return f"maildir:{path.rstrip('/')}"
        case "Mboxrd" if path:
            return f"mbox:{path}"
        case "MDA_external" if path and "%(" not in section.get("arguments", ""):
            words = (path, *_tuple(section.get("arguments", "()")))
            return f"command:{shlex.join(words)}"
        case "MDA_lmtp" if section.get("host", "").startswith("/") and section.get("override"):
            account.recipient = section.get("override", "")
            return f"lmtp:unix:{section['host']}"
        case "MDA_lmtp" if section.get("port", "").isdecimal() and section.get("override"):
            account.recipient = section.get("override", "")
            return f"lmtp:{section.get('host', '')}:{section['port']}"
        case kind:
            account.no_destination = f"its destination {kind} has no counterpart here"
    return ""


def _home(path: str) -> str:
    """Expand a path as getmail does, with environment variables."""
    return absolute_path(os.path.expandvars(path))


def _tuple(written: str) -> tuple[str, ...]:
    """Parse a tuple in Python syntax; the result is empty if it is invalid."""
    try:
        value = ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(map(str, value)) if isinstance(value, tuple) else ()
