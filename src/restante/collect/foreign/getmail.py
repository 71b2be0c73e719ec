"""getmail: an INI file for each account, and ``oldmail-SERVER-PORT-USER`` beside it."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
from pathlib import Path

from ...errors import PermanentFailure
from . import UNSAFE_CLEAR, Foreign, home, lines, text


def getmail(path: Path, seen: Path | None = None) -> list[Foreign]:
    """``path`` is one rc file, or the directory of all of them.

    Raises:
        PermanentFailure: not getmail's, or not POP3.
        OSError: it cannot be read.
    """
    if not path.is_dir():
        return [_getmail(path, seen)]
    files = sorted(each for each in path.iterdir() if _is_getmailrc(each))
    if not files:
        raise PermanentFailure(f"{path}: no configuration of getmail")
    return [_getmail(each, seen) for each in files]


def _is_getmailrc(path: Path) -> bool:
    is_file = path.is_file() and not path.name.startswith("oldmail-")
    return is_file and b"[retriever]" in path.read_bytes()


def _getmail(path: Path, seen: Path | None) -> Foreign:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text(path))
        return _account(path, parser, seen)
    except (configparser.Error, KeyError, ValueError) as error:
        raise PermanentFailure(f"{path}: no configuration of getmail") from error


def _account(path: Path, parser: configparser.RawConfigParser, seen: Path | None) -> Foreign:
    retriever, destination = parser["retriever"], parser["destination"]
    kind = retriever.get("type", "")
    if "POP3" not in kind:
        raise PermanentFailure(f"{path}: {kind or 'a retriever'} is not POP3")
    found = Foreign(
        "getmail" if path.name in ("getmailrc", ".getmailrc") else path.stem,
        host=retriever.get("server", ""),
        is_implicit="SSL" in kind,
        user=retriever.get("username", ""),
        password=retriever.get("password", ""),
        password_command=_tuple(retriever.get("password_command", "()")),
        ca_file=home(retriever.get("ca_certs", "")),
    )
    port = retriever.getint("port", 995 if found.is_implicit else 110)
    found.port = port if "port" in retriever else None
    if not found.is_implicit:
        found.notes.append(UNSAFE_CLEAR)
    options = parser["options"] if parser.has_section("options") else parser["DEFAULT"]
    days = options.getint("delete_after", 0)
    if options.getboolean("delete", False):
        found.keep = "none"
    elif days:
        found.keep = f"{days}d"
    found.largest = options.getint("max_message_size", 0)
    found.to = _getmail_destination(found, destination)
    name = re.sub(r"[/\\:;<>|]+", "-", f"oldmail-{found.host}-{port}-{found.user}")
    found.seen_file = seen or path.with_name(name)
    if "Broken" in kind:
        found.notes.append(f"{kind} kept no unique-ids")
    else:
        seen_lines = lines(found.seen_file)
        found.seen = [line.partition("\0")[0] for line in seen_lines if "\0" in line]
    return found


def _getmail_destination(found: Foreign, section: configparser.SectionProxy) -> str:
    path = home(section.get("path", ""))
    match section.get("type", ""):
        case "Maildir":
            return f"maildir:{path.rstrip('/')}"
        case "Mboxrd":
            return f"mbox:{path}"
        case "MDA_external" if "%(" not in section.get("arguments", ""):
            words = (path, *_tuple(section.get("arguments", "()")))
            return f"command:{shlex.join(words)}"
        case kind:
            found.notes.append(f"its destination {kind} has no counterpart here")
    return ""


def _tuple(written: str) -> tuple[str, ...]:
    """Of getmail, which writes Python."""
    try:
        value = ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(map(str, value)) if isinstance(value, tuple) else ()
