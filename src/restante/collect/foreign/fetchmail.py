"""Read fetchmail's configuration, a file in its own language, and its list of seen messages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from pwd import getpwuid

from ...errors import PermanentFailure
from . import (
    ONLY_POP3,
    UNCHECKED,
    UNSAFE_CLEAR,
    ForeignAccount,
    absolute_path,
    parse_size,
    read_lines,
    read_text,
)

_TOKEN = re.compile(
    r"""\#[^\n]* | "((?:\\.|[^"\\])*)" | '((?:\\.|[^'\\])*)' | (=) | ([^\s:;,\#"'=]+)""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{1,2})|(0[0-7]{0,2})|([1-9][0-9]{0,2})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "b": "\b", "r": "\r", "\n": ""}
_NOISE = {"and", "with", "has", "wants", "options"}
_ALIASES = {"proto": "protocol", "user": "username", "pass": "password", "port": "service"}
_ALIASES |= {"to": "is", "server": "poll", "local": "localdomains", "authenticate": "auth"}
_ALIASES |= {"folders": "folder", "smtphosts": "smtphost"}

# Options that apply to one user.  All other options apply to all users of the server.
_USER_OPTIONS = {"username", "password", "is", "local", "keep", "ssl", "sslcertfile", "mda"}
_USER_OPTIONS |= {"smtphost", "smtpname", "smtpaddress", "limit", "fetchlimit", "lmtp", "bsmtp"}
_USER_OPTIONS |= {"is_multidrop", "preconnect", "postconnect", "sslcertck", "sslcert"}
_USER_OPTIONS |= {"sslfingerprint", "sslcertpath", "flush"}
_VALUES = {"protocol", "password", "service", "via", "mda", "smtpname", "smtpaddress", "limit"}
_VALUES |= {"sslcertfile", "auth", "plugin", "fetchlimit", "bsmtp", "preconnect", "postconnect"}
_VALUES |= {"sslcert", "sslfingerprint", "sslcertpath"}
_FLAGS = {"ssl", "keep", "lmtp", "flush", "sslcertck"}
# Options that are ignored, with the number of words that follow them.
_SKIPPED = {
    "interval": 1, "timeout": 1, "qvirtual": 1, "interface": 1, "monitor": 1, "plugout": 1,
    "principal": 1, "esmtpname": 1, "esmtppassword": 1, "bad-header": 1, "spamresponse": 1,
    "warnings": 1, "batchlimit": 1, "fetchsizelimit": 1, "fastuidl": 1, "expunge": 1,
    "properties": 1, "sslkey": 1, "sslproto": 1, "sslcommonname": 1, "retrieve-error": 1,
    "tracepolls": 0, "dns": 0, "checkalias": 0, "uidl": 0, "fetchall": 0, "limitflush": 0,
    "rewrite": 0, "stripcr": 0, "forcecr": 0, "pass8bits": 0, "dropstatus": 0,
    "dropdelivered": 0, "mimedecode": 0, "idle": 0,
}  # fmt: skip
_LISTS = {"aka", "localdomains", "folder", "fetchdomains", "antispam"}
_SWITCHES = {"bouncemail", "invisible", "showdots", "softbounce", "spambounce", "syslog"}
_KEYWORDS = {*_ALIASES, *_ALIASES.values(), *_VALUES, *_FLAGS, *_SKIPPED, *_LISTS}
_KEYWORDS |= {
    "envelope",
    "smtphost",
    "set",
    "defaults",
    "skip",
    "here",
    "there",
    "no",
    "nokeep",
    "=",
    *_NOISE,
}

_PROTOCOLS = {"pop3", "apop", "sdps", "auto"}
_IMAP_PORTS = {"imap", "imaps", "imap2", "143", "993"}
_MECHANISMS = {"any", "password", "cram-md5"}
_NOTES = {
    "preconnect": "its preconnect command is not run",
    "postconnect": "its postconnect command is not run",
    "sslcert": "its client certificate is not used",
    "sslfingerprint": "its sslfingerprint is not checked, but the certificate is",
    "sslcertpath": "its sslcertpath is not used; set ca_file instead",
}

Row = dict[str, str]
"""The options of one user of one server.  A flag is ``yes`` or ``no``."""


def fetchmail(path: Path, seen: Path | None = None) -> list[ForeignAccount]:
    """Read the accounts in fetchmail's file ``path``; ``seen`` replaces the path of ``.fetchids``.

    Raises:
        PermanentFailure: the file has no account.
        OSError: the file cannot be read.
    """
    parser = _Parser(read_text(path))
    default = str(path.with_name(".fetchids"))
    seen_file = seen or Path(absolute_path(parser.settings.get("idfile", default)))
    entries = [line.partition(" ") for line in read_lines(seen_file)]
    local_user = _local_user(path)
    accounts = []
    for row in parser.rows:
        account = _account(row, local_user)
        hosts = {row["poll"].lower(), account.host.lower()}
        account.seen_file = seen_file
        for login, _, unique_id in entries:
            user, _, host = login.rpartition("@")
            if user == account.user and host.lower() in hosts:
                account.seen.append(unique_id)
        accounts.append(account)
    if not accounts:
        raise PermanentFailure(f"{path} contains no fetchmail account")
    names = [each.name for each in accounts]
    for each in accounts:
        if names.count(each.name) > 1:
            each.name = f"{each.name}-{each.user}"
    return accounts


def _local_user(path: Path) -> str:
    """Return the file's owner, who receives the mail if the file contains no local name."""
    user_id = path.stat().st_uid
    try:
        return getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def _account(options: Row, local_user: str) -> ForeignAccount:
    port = options.get("service", "")
    local = options.get("local", options.get("is", ""))
    account = ForeignAccount(
        options["poll"],
        host=options.get("via", options["poll"]),
        port=int(port) if port.isdecimal() else None,
        is_implicit=options.get("ssl") == "yes" or port == "pop3s",
        user=options.get("username", local or local_user),
        password=options.get("password", ""),
        keep="all" if options.get("keep") == "yes" else "none",
        largest=parse_size(options.get("limit", "")),
        limit=parse_size(options.get("fetchlimit", "")),
        ca_file=absolute_path(options.get("sslcertfile", "")),
        refused=_refusal(options),
    )
    _set_destination(account, options, local or local_user)
    account.notes += _notes(options, account)
    return account


def _refusal(options: Row) -> str:
    protocol, auth = options.get("protocol", "auto").lower(), options.get("auth", "any").lower()
    if protocol not in _PROTOCOLS:
        return f"its protocol is {protocol.upper()}; {ONLY_POP3}"
    if options.get("service", "") in _IMAP_PORTS:
        return f"its port is an IMAP port; {ONLY_POP3}"
    if auth not in _MECHANISMS:
        return f"it logs in with {auth}, which restante does not support"
    if options.get("is_multidrop") == "yes":
        return "it is multidrop: one mailbox for several users, sorted by recipients"
    if "plugin" in options:
        return "it connects through a program (plugin)"
    return ""


def _notes(options: Row, account: ForeignAccount) -> Iterator[str]:
    if options.get("protocol", "auto").lower() == "auto":
        yield 'its protocol is "auto", which is imported as POP3'
    if options.get("skip") == "yes":
        yield 'it is marked "skip": fetchmail polls it only if its name is given'
    if not account.is_implicit:
        yield UNSAFE_CLEAR
    if options.get("sslcertck") == "no":
        yield UNCHECKED
    if options.get("flush") == "yes":
        yield "its flush is not imported: messages that it has already seen stay on the server"
    for option, note in _NOTES.items():
        if option in options:
            yield note
    if unknown := options.get("unknown"):
        yield f"unknown settings were ignored: {unknown}"
    if not account.password:
        yield "its password is missing (it may be in ~/.netrc)"


def _set_destination(account: ForeignAccount, options: Row, local: str) -> None:
    """Set the destination: a program or a mail server."""
    mda = options.get("mda", "")
    if mda and "%" not in mda:
        account.to = f"command:{shlex.join(['/bin/sh', '-c', mda])}"
        return
    if mda:
        account.no_destination = "its mda requires envelope addresses, which POP3 does not provide"
        return
    if "bsmtp" in options:
        account.no_destination = "its bsmtp file has no counterpart here"
        return
    kind = "lmtp" if options.get("lmtp") == "yes" else "smtp"
    host, _, port = options.get("smtphost", "localhost").rpartition("/")
    if not host and port:
        host, port = port, "" if kind == "lmtp" else "25"
    if options.get("smtphost", "").startswith("/"):
        account.to = f"{kind}:unix:{options['smtphost']}"
    elif port.isdecimal():
        account.to = f"{kind}:{host}:{port}"
    else:
        account.no_destination = f"its {kind} server has no port"
    domain = options.get("smtpaddress", "localhost")
    account.recipient = options.get("smtpname", local if "@" in local else f"{local}@{domain}")


def _tokens(rc: str) -> Iterator[str]:
    """Yield the tokens of the file; each quoted token begins with a quotation mark."""
    for match in _TOKEN.finditer(rc):
        if match[0].startswith("#"):
            continue
        quoted = next((each for each in (match[1], match[2]) if each is not None), None)
        if quoted is not None:
            yield '"' + _ESCAPE.sub(_unescape, quoted)
        elif match[0].lower() not in _NOISE:
            yield match[0]


def _unescape(match: re.Match[str]) -> str:
    hexadecimal, octal, decimal, other = match.groups()
    if other is not None:
        return _LETTERS.get(other, other)
    return chr(int(hexadecimal, 16) if hexadecimal else int(octal or decimal, 8 if octal else 10))


class _Parser:
    """Parses the file; ``rows`` has one row for each user of each server, with the defaults."""

    def __init__(self, rc: str) -> None:
        self.settings: Row = {}
        self.rows: list[Row] = []
        self._defaults: Row = {}
        self._server = self._row = self._defaults
        self._names_given: set[str] = set()  # kinds of names read for the current user
        self._words = list(_tokens(rc))[::-1]  # in reverse order: the next word is the last
        while self._words:
            word = self._words.pop()
            self._process(_ALIASES.get(word.lower(), word.lower()), word)

    def _next(self) -> str:
        return self._words.pop().removeprefix('"') if self._words else ""

    def _is_name_next(self) -> bool:
        """Return whether a string follows instead of an option."""
        return bool(self._words) and self._words[-1].lower() not in _KEYWORDS

    def _process(self, word: str, written: str) -> None:
        if handler := _HANDLERS.get(word):
            handler(self)
        elif word in _FLAGS:
            self._row[word] = "yes"
        elif word in _VALUES:
            self._row[word] = self._next()
        elif word in _LISTS:
            list(self._list())
        elif word in _SKIPPED:
            for _ in range(_SKIPPED[word]):
                self._next()
        else:
            written = written.removeprefix('"')
            self._row["unknown"] = f"{self._row.get('unknown', '')} {written}".strip()

    def _list(self) -> Iterator[str]:
        while self._is_name_next():
            yield self._next()

    def _set(self) -> None:
        name = self._next().lower()
        if name == "no":
            self._next()
        elif name not in _SWITCHES:
            self.settings[name] = self._next()

    def _no(self) -> None:
        if (word := self._next().lower()) in _FLAGS:
            self._row[word] = "no"

    def _no_keep(self) -> None:
        self._row["keep"] = "no"

    def _envelope(self) -> None:
        if self._words and self._words[-1].isdecimal():  # the number of header fields to skip
            self._next()
        self._next()

    def _smtp_hosts(self) -> None:
        """Use the first host; fetchmail uses the other hosts only when the first is down."""
        if hosts := list(self._list()):
            self._row["smtphost"] = hosts[0]

    def _start_defaults(self) -> None:
        self._server = self._row = self._defaults
        self._names_given = set()

    def _poll(self) -> None:
        self._names_given = set()
        self._server = self._row = {**self._defaults, "poll": self._next()}
        self.rows.append(self._row)

    def _skip(self) -> None:
        self._poll()
        self._row["skip"] = "yes"

    def _user(self) -> None:
        """Start a user's entry; ``_poll`` has already created the row of a server's first user."""
        if self._names_given and self._row is not self._defaults:
            self._row = {key: self._server[key] for key in self._server.keys() - _USER_OPTIONS}
            self._row |= {key: self._defaults[key] for key in self._defaults.keys() & _USER_OPTIONS}
            self.rows.append(self._row)
        self._names_given = {"username"}
        self._row["username"] = self._next()

    def _names(self) -> None:
        """Read local names.  Several names or ``*`` mean multidrop; ``there=here`` maps a name."""
        names = []
        for name in self._list():
            if self._words and self._words[-1] == "=":
                self._words.pop()
                name = self._next()
            names.append(name)
        self._names_given.add("is")
        self._row["is"] = names[0] if names else ""
        if len(names) > 1 or "*" in names:
            self._row["is_multidrop"] = "yes"

    def _local_name(self) -> None:
        """Read ``user ann here is ann42 there``, in which the local name comes first."""
        if self._names_given == {"username"}:
            self._row["local"] = self._row.pop("username")
            self._names_given = {"local"}

    def _remote_name(self) -> None:
        """Read ``there`` after a name, which is then the name on the server."""
        if self._names_given == {"local", "is"}:
            self._row["username"] = self._row.pop("is")


_HANDLERS: dict[str, Callable[[_Parser], None]] = {
    "set": _Parser._set,
    "defaults": _Parser._start_defaults,
    "poll": _Parser._poll,
    "skip": _Parser._skip,
    "username": _Parser._user,
    "is": _Parser._names,
    "here": _Parser._local_name,
    "there": _Parser._remote_name,
    "no": _Parser._no,
    "nokeep": _Parser._no_keep,
    "envelope": _Parser._envelope,
    "smtphost": _Parser._smtp_hosts,
}
